"""Claims as rows: the paired contrast of the two rows that a claim compares, on the same images and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from bench.claims import TABLE, Claim
from bench.data import BOXES
from bench.measure import detection_steps as detection
from bench.measure import steps as measuring
from bench.models.recipe import Recipe
from bench.rows import Chain, Paper, Row, Setting


def with_claims(paper: Paper, claims: Sequence[Claim]) -> Paper:
    """The paper with one row more for each of its claims, in a table of their own."""
    rows = [claim_row(claim, paper.rows) for claim in claims if claim.paper == paper.key]
    return replace(paper, rows=[*paper.rows, *rows])


def claim_row(claim: Claim, rows: Sequence[Row]) -> Row:
    """The row that measures a claim; where one of its rows does not exist or cannot run, it says so.

    It runs at the scales that both rows are meant for, with the seeds that they have in common.
    """
    first = _find(rows, claim.table, claim.first)
    second = _find(rows, claim.second_table, claim.second)
    scale = first.scale if first is not None else second.scale if second is not None else "imagenet"
    for row, name in ((first, claim.first), (second, claim.second)):
        if row is None or row.chain is None:
            reason = "no row implements" if row is None else f"{row.missing or 'not implemented'}:"
            return Row(TABLE, claim.claim, scale, missing=f"{reason} {name}")
    assert first is not None and second is not None
    scales = (*first.seeds_at, *second.seeds_at)
    return Row(
        TABLE,
        claim.claim,
        scale,
        dense=first.dense,
        chain=partial(contrast, first=first, second=second),
        seeds=_shared(first.seeds, second.seeds),
        seeds_at={scale: _shared(first.seeds_on(scale), second.seeds_on(scale)) for scale in scales},
        scales=_common(first.scales, second.scales),
        data=first.data,
        further=lambda scale: {**second.further(scale), **first.further(scale)},
    )


def contrast(setting: Setting, recipe: Recipe, *, first: Row, second: Row) -> Chain:
    """First minus second, paired by image and seed, both about the dense network of the first."""
    assert first.chain is not None and second.chain is not None and second.dense is not None
    ours = first.chain(setting, recipe)
    other = second.chain(setting, second.dense(setting.scale, setting.classes, setting.weights is not None))
    # a pair that comes back for every seed (both from weights that were given) is one pair
    triples = {
        tuple(step.key for step in steps): steps
        for steps in zip(ours.evaluations, other.evaluations, ours.references, strict=True)
    }
    runs, opponents, references = (list(column) for column in zip(*triples.values(), strict=True))
    if first.data == BOXES:
        return Chain([], [detection.compared(setting, runs, opponents, kind="difference")])
    return Chain([], [measuring.contrasted(runs, opponents, references)])


def _find(rows: Sequence[Row], table: str, name: str) -> Row | None:
    return next((row for row in rows if (row.table, row.name) == (table, name)), None)


def _shared(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(seed for seed in first if seed in second) or first[:1]


def _common(first: tuple[str, ...] | None, second: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if first is None or second is None:
        return first if second is None else second
    return tuple(scale for scale in first if scale in second)
