"""A figure of FBS's way down: loss and accuracy on the training images, epoch after epoch, density after density."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.report.drawing import COLOURS, GREY, TITLE, legend
from bench.report.load import Line
from bench.report.tables import Table
from bench.report.training import PANELS

_GATED = re.compile(r"gated\((d=[0-9.]+), (.*)\)")
# a way has at least so many densities
_LEAST = 3
# with more, their names have no room side by side
_UPRIGHT = 5


def way(line: Line) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The trainings of the row's first seed on the way to its network: the dense one's, then each density's, in order.

    Empty for rows without gates, and for those that compare networks.
    """
    if not any(step.get("kind") == "evaluate" for step in line.steps.values()):
        return []
    trainings = list(line.history.values())
    own = [one for one in trainings if one["seed"] == trainings[0]["seed"]]
    gated = [(found, one["epochs"]) for one in own if (found := _GATED.fullmatch(one["step"]))]
    starts = [("before gating", one["epochs"]) for one in own if gated and one["step"] == gated[0][0].group(2)]
    return [*starts, *((found.group(1), epochs) for found, epochs in gated)]


def furthest(lines: Sequence[Line]) -> list[Line]:
    """The row that went down furthest, and those that went through the same densities by other trainings.

    None where no row went through three densities.
    """
    ways = [(line, way(line)) for line in lines if line.ran]
    gone = [(line, steps) for line, steps in ways if sum(name.startswith("d=") for name, _ in steps) >= _LEAST]
    if not gone:
        return []
    _, longest = max(gone, key=lambda pair: len(pair[1]))
    names = [name for name, _ in longest]
    found: list[tuple[Line, Any]] = []
    for line, steps in gone:
        if [name for name, _ in steps] == names and all(steps != other for _, other in found):
            found.append((line, steps))
    return [line for line, _ in found]


def figure(table: Table) -> Figure | None:
    """Loss and accuracy side by side over all epochs of the longest ways, a line where each density begins.

    Beside them, where the row was compared with it, the dense network that was trained as long.
    """
    lines = furthest(table.lines)
    if not lines:
        return None
    first = lines[0]
    found = Figure(figsize=(7.5, 3.6))
    panels = found.subplots(1, 2)
    longer = (one["epochs"] for one in first.history.values() if one["step"].startswith("dense, longer("))
    alone: list[Mapping[str, Any]] = next(longer, [])
    for axes, (what, title) in zip(panels, PANELS, strict=True):
        if alone:
            xs, values = _points(alone, what, 0)
            axes.plot(xs, values, color=GREY, linewidth=1.0, label="dense, trained longer")
        for line, colour in zip(lines, COLOURS, strict=False):
            begun = 0
            for number, (_, epochs) in enumerate(way(line)):
                xs, values = _points(epochs, what, begun)
                axes.plot(xs, values, color=colour, marker=".", markersize=3, label=None if number else line.name)
                begun += len(epochs)
        begun = 0
        for number, (name, epochs) in enumerate(way(first)):
            if number:
                axes.axvline(begun + 0.5, color="#c8c8c8", linewidth=0.7, zorder=0)
            if name.startswith("d="):
                axes.text(
                    *(begun + 0.5 + len(epochs) / 2, 1.01, name.removeprefix("d=")),
                    transform=axes.get_xaxis_transform(),
                    ha="center",
                    rotation=90 if len(way(first)) > _UPRIGHT else 0,
                    fontsize=6.5,
                    color="#333333",
                )
            begun += len(epochs)
        axes.text(0.0, 1.01, "d =", transform=axes.transAxes, fontsize=6.5, color="#333333")
        axes.set_ylabel(title)
        axes.set_xlabel("epochs since the first")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(found, panels[0])
    where = f"{table.scale}{' (analogue)' if table.analogue else ''}"
    names = " and to ".join(line.name for line in lines)
    found.suptitle(textwrap.fill(f"{table.name}, {where}: the first seed's way to {names}", TITLE), fontsize=11)
    return found


def _points(epochs: Sequence[Mapping[str, Any]], what: str, begun: int) -> tuple[list[float], list[float]]:
    told = [(begun + float(epoch["epoch"]), float(epoch[what])) for epoch in epochs if what in epoch]
    return [x for x, _ in told], [value for _, value in told]
