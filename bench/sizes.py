"""Printed sizes decided without data: a row's network is built on the ``meta`` device and counted as the paper counts.

Our metrics: ``macs``; ``speedup``, dense over pruned MACs; ``macs_removed``, the share of the MACs that is gone, in per
cent; ``params``; ``params_reduction``, dense over pruned parameters; ``params_growth``, ours over dense;
``params_removed`` in per cent; ``memory`` of the weights. Which convention they are counted by is the published
value's.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from bench import cache
from bench.measure import dynamic, macs
from bench.metrics import Metric
from bench.models.edits import Remove
from bench.models.recipe import Recipe
from bench.pruning import surgery
from bench.registry import UNITS, OtherConvention, Published, converted, linked
from bench.rows import Paper, Row
from bench.verdict import OTHER_CONVENTION, Verdict

METRICS = (
    Metric(
        "macs",
        "MACs",
        "",
        None,
        "Multiply-accumulates of the convolutions, one image.",
        "lower",
        count=True,
        exact=True,
    ),
    Metric("params", "params", "", None, "Parameters of the network.", "lower", count=True, minor=True, exact=True),
    Metric(
        "speedup", "speed-up", "x", 3, "MACs of the dense network divided by those of this one.", "higher", exact=True
    ),
)


POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
# the modules behind which the masks of a gated network are lost, by convention
LOST: dict[str, tuple[type[nn.Module], ...]] = {
    "conv+fc+gates": (),
    "conv+fc+gates, masks lost at dropout": (nn.Dropout, nn.Dropout2d),
    "conv+fc+gates, masks lost at pools": POOLS,
}
# Caffe holds a batch norm as two layers, whose first parameters (means, scales) ThiNet's tool takes for their work
NORMED = "2x conv+fc+norms"
# (metric over dense, its form): plain counts, ratios of two, per cent of the dense network that is gone
RATIOS = {
    "speedup": ("macs", "dense/ours"),
    "macs_removed": ("macs", "removed"),
    "params_reduction": ("params", "dense/ours"),
    "params_growth": ("params", "ours/dense"),
    "params_removed": ("params", "removed"),
}
COUNTS = ("macs", "params", "memory")


@dataclass(frozen=True)
class Decided:
    """A printed size with what the network ``row`` stands for has, in the published unit, and the verdict.

    ``value`` is None where the network cannot be counted as the paper counts.
    """

    published: Published
    row: str
    value: Fraction | None
    verdict: Verdict


def of_paper(paper: Paper, published: Sequence[Published]) -> list[Decided]:
    """All printed sizes that the paper's rows link to, in the rows' order.

    Raises ValueError for a link to no published size or to one that is linked already, LookupError for one to several.
    """
    found = [decided for row in paper.rows for decided in of_row(row, published)]
    seen: set[Published] = set()
    for decided in found:
        if decided.published in seen:
            raise ValueError(f"{decided.row}: {decided.published.metric} of {decided.published.row} is linked twice")
        seen.add(decided.published)
    return found


def decided(paper: Paper, published: Sequence[Published]) -> list[Decided]:
    """:func:`of_paper`, remembered: it follows from the sources and the registry alone."""
    given = "\n".join([paper.key, torch.__version__, *map(repr, published)])
    found = cache.remembered(
        f"sizes-{paper.key}",
        given,
        lambda: [
            [published.index(one.published), one.row, None if one.value is None else str(one.value), one.verdict.word]
            for one in of_paper(paper, published)
        ],
    )
    return [
        Decided(
            published[place],
            row,
            None if value is None else Fraction(value),
            Verdict(word, verified=published[place].counted),
        )
        for place, row, value, word in found
    ]


def of_row(row: Row, published: Sequence[Published]) -> list[Decided]:
    """The printed sizes that a row links to.

    Raises ValueError for a link to no published size, LookupError to several.
    """
    found = []
    recipe = None
    for metric, links in row.sizes.items():
        for link in links:
            entry = linked(published, row.table, link)
            if entry is None or entry.kind != "size":
                raise ValueError(f"{row.table}, {row.name}: no published size {link[1]!r} of {link[0]!r} in this table")
            recipe = recipe or row.sized or row.own_shape()
            if recipe is None:
                raise ValueError(
                    f"{row.table}, {row.name}: sizes are linked and there is no network of the paper's shape"
                )
            found.append(_decide(entry, row.name, metric, recipe))
    return found


def _decide(entry: Published, row: str, metric: str, recipe: Recipe) -> Decided:
    try:
        value = size(recipe, metric, entry.convention)
    except OtherConvention:
        return Decided(entry, row, None, Verdict(OTHER_CONVENTION, verified=entry.counted))
    if metric in COUNTS and metric != "memory":
        value /= UNITS[entry.unit]
    return Decided(entry, row, value, Verdict("exact" if entry.agrees(value) else "wrong", verified=entry.counted))


def size(recipe: Recipe, metric: str, convention: str) -> Fraction:
    """One of our metrics of the network of ``recipe``: counts, MiB for memory, ratios, or per cent.

    Raises :class:`bench.registry.OtherConvention` where the network cannot be counted by ``convention``, and ValueError
    for an unknown metric.
    """
    if metric in COUNTS:
        return _count(recipe, "params" if metric == "memory" else metric, convention)
    if metric not in RATIOS:
        raise ValueError(f"unknown size {metric!r}: use one of {', '.join((*COUNTS, *RATIOS))}")
    counted, form = RATIOS[metric]
    ours, dense = _count(recipe, counted, convention), _dense(recipe, counted, convention)
    if form == "removed":
        return 100 * (1 - ours / dense)
    return dense / ours if form == "dense/ours" else ours / dense


def _dense(recipe: Recipe, counted: str, convention: str) -> Fraction:
    # a network without gates has none to count
    return _count(recipe.base, counted, "conv+fc" if convention in LOST else convention)


def _count(recipe: Recipe, counted: str, convention: str) -> Fraction:
    return _counted(json.dumps(recipe.to_json(), sort_keys=True), counted, convention)


# a network is built and counted once for all rows, metrics and conventions: recipes say all that a size depends on
@functools.cache
def _counted(text: str, counted: str, convention: str) -> Fraction:
    recipe, model = _built(text)
    if counted == "params":
        return _params(model, convention)
    gated = recipe.last("gate") is not None
    if convention in LOST:
        if not gated:
            raise OtherConvention(f"other convention: {convention}, and the network has no gates")
        return Fraction(float(dynamic.expected(model, recipe.input_shape, LOST[convention]).totals[0]))
    if gated:
        raise OtherConvention(f"other convention: {convention}, and the network's gates cost something")
    if convention == "conv+fc+bias":
        return Fraction(_macs(text).total("conv+fc") + _biased_outputs(model, recipe.input_shape))
    if convention == NORMED:
        channels = sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        return Fraction(2 * _macs(text).total("conv+fc") + 4 * channels)
    known = "conv" if convention == "conv" else "conv+fc"
    return converted(Fraction(_macs(text).total(known)), known, convention)


@functools.cache
def _macs(text: str) -> macs.Macs:
    recipe, model = _built(text)
    return macs.count(model, recipe.input_shape)


def _biased_outputs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Outputs of the convolutions and fully connected layers that have a bias, for one input of shape (C, H, W)."""
    outputs: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output.numel())

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *input_shape, device=next(model.parameters()).device))
    for handle in handles:
        handle.remove()
    return sum(outputs)


@functools.lru_cache(maxsize=16)
def _built(text: str) -> tuple[Recipe, nn.Module]:
    """The recipe, and its network on ``meta``, the filters of each edit removed together."""
    recipe = Recipe.from_json(json.loads(text))
    model = recipe.base.build("meta")
    for edit in recipe.edits:
        if isinstance(edit, Remove):
            surgery.shrink_together(model, recipe.input_shape, edit.widths)
        else:
            edit.apply(model, recipe.input_shape)
    return recipe, model


def _params(model: nn.Module, convention: str) -> Fraction:
    if convention == "all":
        return Fraction(sum(parameter.numel() for parameter in model.parameters()))
    # a layer of another kind that declares its cost has its weights under the same name
    layers: list[Any] = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) or hasattr(m, "macs")]
    return converted(Fraction(sum(layer.weight.numel() for layer in layers)), "weights", convention)
