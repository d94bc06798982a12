"""Which points are timed: by names (a paper, a row, a model, a saved network), or by a suite.

Suites stand in ``registry/latency/suites.csv`` beside the papers' published values: each line is a chunk of points that
share their networks, in the order of their worth, so that a run which is cut off has measured the best of them.  The
papers' own times, which become ratios, are found through ``published.csv`` there.
"""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench import planning, saved
from bench.errors import UserError
from bench.latency.contestants import FORWARD, LAYOUTS, MODES, Subject, check_dtype
from bench.latency.point import DENSE, Point
from bench.latency.report import ROUNDED, Quoted
from bench.models.builders import BUILDERS
from bench.models.recipe import Recipe, network_of
from bench.pruning.rounding import rounded
from bench.registry import find, load
from bench.rows import Paper, Row, match
from bench.store import digest

# sides of the images of models that are named, and not 224
SIDES = {"cifar": 32, "mcifar": 32, "ssd300": 300, "narrow_ssd": 160}
_SUITE_COLUMNS = ("suite", "networks", "batches", "dtypes", "mode", "layers", "compile")
_PUBLISHED_COLUMNS = ("network", "mode", "batch", "paper", "table", "dense", "row", "metrics")


@dataclass(frozen=True)
class Where:
    """How the named networks are timed."""

    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    device: str
    layouts: tuple[str, ...] = LAYOUTS
    mode: str = FORWARD
    compiled: bool = False
    layers: bool = True


def recipe_of_model(name: str, size: int | None) -> Recipe:
    """A model by the name of its builder, or MODULE:FACTORY.

    Raises :class:`UserError` for a ``size`` of images that the model does not take.
    """
    if name not in BUILDERS:
        network_of(name)
    side = size or next((side for known, side in SIDES.items() if name.startswith(known)), 224)
    recipe = Recipe(name, {}, (3, side, side))
    if size is not None:
        model = recipe.build("meta").eval()
        try:
            model(torch.empty(1, *recipe.input_shape, device="meta"))
        except RuntimeError as error:
            raise UserError(f"{name} takes no images of {side}x{side} ({error}): give another --size") from error
    return recipe


def subjects(name: str, size: int | None = None, weights: str | None = None) -> list[Subject]:
    """The networks behind a name: a saved network's folder, a model, a paper (all shapes of its rows) or rows.

    Raises :class:`UserError` where nothing has this name, or only networks whose widths come from the data.
    """
    if saved.is_saved(Path(name)):
        return [Subject(Path(name).name, saved.recipe_of(Path(name)), str(Path(name).resolve()))]
    if name in BUILDERS or ":" in name:
        return [Subject(name, recipe_of_model(name, size), weights)]
    if weights is not None:
        raise UserError("--weights belong to a model: give its name, or MODULE:FACTORY")
    papers = _papers()
    known = {key: row for paper in papers.values() for key, row in paper.ids.items()}
    chosen = list(papers[name].ids) if name in papers else match(name, {key: row.name for key, row in known.items()})
    if not chosen:
        raise UserError(
            f"unknown paper, row, model or saved network {name!r}: see `bench list`, or give MODULE:FACTORY"
        )
    found: dict[str, Subject] = {}
    for key in chosen:
        recipe = shape(known[key])
        if recipe is not None:  # rows of one shape take the same time
            found.setdefault(digest(recipe.to_json()), Subject(key, recipe))
    if not found:
        raise UserError(
            f"{name!r} has no shape of the paper's own: its widths come from the data; name a saved network"
        )
    return list(found.values())


@functools.cache
def _papers() -> dict[str, Paper]:
    return planning.papers()


def shape(row: Row) -> Recipe | None:
    """A row's network at the paper's own shape, with its gates where it has some."""
    return row.sized or row.own_shape()


def grouped(networks: Sequence[Subject], where: Where, multiple: int | None = None) -> list[list[Point]]:
    """The points of some networks, in chunks of one dense network each: what the networks were pruned from.

    ``multiple`` adds each pruned network with its widths rounded to that, with fresh weights: they take as long.
    Raises :class:`UserError` for a number format or mode that cannot be timed there, and for networks of one name.
    """
    check(where)
    networks = told_apart(networks)
    groups: dict[str, tuple[Subject, list[Subject]]] = {}
    for one in networks:
        base = one.recipe.base
        key = digest(base.to_json())
        dense, members = groups.setdefault(key, (Subject(dense_name(base), base), []))
        if one.recipe == base:
            groups[key] = (replace(one, name=dense.name if one.weights is None else one.name), members)
            continue
        members.append(one)
        if multiple is not None:
            small = rounded(one.recipe, multiple)
            if small != one.recipe:
                members.append(Subject(f"{one.name}{ROUNDED}{multiple}", small))
    for dense, members in groups.values():
        _check_names(dense, members)
    return [
        [
            Point(
                dense,
                tuple(members),
                batch,
                where.device,
                dtype,
                where.mode,
                where.layouts,
                where.compiled,
                where.layers,
            )
            for dtype in where.dtypes
            for batch in where.batches
        ]
        for dense, members in groups.values()
    ]


def told_apart(networks: Sequence[Subject]) -> list[Subject]:
    """The networks, each once; saved ones of one name get their folder's in front: ``a/pruned`` and ``b/pruned``."""
    found: list[Subject] = []
    for one in networks:
        if one not in found:
            found.append(one)
    names = Counter(one.name for one in found)
    return [
        replace(one, name="/".join(Path(one.weights).parts[-2:])) if names[one.name] > 1 and one.weights else one
        for one in found
    ]


def _check_names(dense: Subject, members: Sequence[Subject]) -> None:
    """Raises :class:`UserError` where a name would stand for two networks; ``dense`` stands for the dense one."""
    names = Counter([*{DENSE, dense.name}, *(one.name for one in members)])
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UserError(f"two networks would be called {twice[0]!r}: name the folder of one of them otherwise")


def dense_name(recipe: Recipe) -> str:
    """A base in few words."""
    words = [f"{name}={value}" for name, value in recipe.arguments.items() if name != "num_classes"]
    return " ".join([recipe.builder, *words])


def check(where: Where) -> None:
    """Raises :class:`UserError` for what cannot be timed."""
    for dtype in where.dtypes:
        check_dtype(dtype, where.device)
    for layout in where.layouts:
        if layout not in LAYOUTS:
            raise UserError(f"unknown layout {layout!r}: choose among {', '.join(LAYOUTS)}")
    if where.mode not in MODES:
        raise UserError(f"unknown mode {where.mode!r}: choose among {', '.join(MODES)}")
    if not where.batches or min(where.batches) < 1:
        raise UserError("a batch needs an image: give --batch 1 or more")


def suite(name: str, folder: Path, where: Where, batches: Sequence[int] | None = None) -> list[list[Point]]:
    """The chunks of a suite, in order; ``where`` gives the device and the layouts, a line the rest.

    Raises :class:`UserError` for an unknown suite and for a file that breaks its form.
    """
    lines = _lines(folder / "suites.csv", _SUITE_COLUMNS)
    names = dict.fromkeys(line["suite"] for line in lines)
    if name not in names:
        raise UserError(f"unknown suite {name!r}: choose one of {', '.join(names)}")
    found = []
    for line in (line for line in lines if line["suite"] == name):
        here = replace(
            where,
            batches=tuple(batches or map(int, line["batches"].split())),
            dtypes=tuple(line["dtypes"].split()),
            mode=line["mode"],
            compiled=line["compile"] == "yes",
            layers=line["layers"] == "yes",
        )
        networks = [subject for text in line["networks"].split(";") for subject in subjects(text.strip())]
        found += grouped(networks, here)
    return found


def quoted(folder: Path, registry: Path) -> dict[tuple[str, str, int], Quoted]:
    """The papers' own times as ratios, by network (row id), mode and batch."""
    found = {}
    for line in _lines(folder / "published.csv", _PUBLISHED_COLUMNS):
        values = load(line["paper"], registry)
        sums, verified = [0.0, 0.0], True
        for metric in line["metrics"].split():
            for place, row in enumerate((line["dense"], line["row"])):
                entry = find(values, line["table"], row, metric)
                if entry is None or entry.value is None:
                    raise UserError(f"{folder / 'published.csv'}: no value {metric} of {row} in {line['table']}")
                sums[place] += entry.value
                verified = verified and entry.verified
        where = f"{line['paper']}, {line['table']}"
        found[line["network"], line["mode"], int(line["batch"])] = Quoted(sums[0] / sums[1], where, verified)
    return found


def _lines(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise UserError(f"{path}, line 1: make the header {','.join(columns)}")
        return [{name: text or "" for name, text in line.items()} for line in reader]
