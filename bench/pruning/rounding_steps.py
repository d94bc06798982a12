"""Pruning to widths that are rounded to a multiple of 8, 16 or 32, by rows that say nothing of it (``--round``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from bench.models.checkpoint import network
from bench.pruning import steps as pruning
from bench.pruning import surgery
from bench.pruning.graph import find_sites, trace
from bench.pruning.rounding import to_multiple
from bench.steps import Context, Step
from bench.store import Result


@dataclass(frozen=True)
class Rounded:
    """The pruning of a row, with each width rounded to a ``multiple``; samplers keep theirs."""

    pruning: pruning.Pruning
    multiple: int


def run_rounded(context: Context, parents: list[Result], params: Rounded) -> Result:
    """As :func:`bench.pruning.steps.run_pruned`, whose widths are found first and then rounded."""
    model, recipe = network(parents[0])
    wanted = params.pruning
    sites = [s for s in find_sites(model, trace(model)) if s.producer is not None or s.reader in wanted.samplers]
    keep = pruning._keep(wanted.widths, pruning.mac_model(model, recipe, sites), sites, parents)
    fixed = {}
    for site in sites:
        if site.reader in keep:
            channels = surgery.convolution(model, site.reader).in_channels
            rounded = site.producer is not None
            count = to_multiple(keep[site.reader], channels, params.multiple) if rounded else keep[site.reader]
            fixed[pruning._name(site)] = count
    return pruning.run_pruned(context, parents, replace(wanted, widths=pruning.Fixed(fixed)))


def rounded_steps(steps: Iterable[Step], multiple: int) -> list[Step]:
    """The same steps with every pruning among them, and among what they are made from, rounded."""
    done: dict[int, Step] = {}

    def of(step: Step) -> Step:
        if id(step) not in done:
            parents = tuple(of(parent) for parent in step.parents)
            found = step if all(a is b for a, b in zip(parents, step.parents, strict=True)) else _with(step, parents)
            if isinstance(step.params, pruning.Pruning):
                name = f"{step.name}, rounded to {multiple}"
                params = Rounded(step.params, multiple)
                found = replace(found, run=run_rounded, params=params, name=name)
            done[id(step)] = found
        return done[id(step)]

    return [of(step) for step in steps]


def _with(step: Step, parents: tuple[Step, ...]) -> Step:
    return replace(step, parents=parents)
