"""A figure of detectors: precision against recall, the pruned ones over the dense one, one panel a row."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import rounded
from bench.report.drawing import COLOURS, legend
from bench.report.tables import Table

_ACROSS, _WRAP = 3, 36
# by the names of the row file: colour and dashes
_LOOKS: dict[str, tuple[str, Any]] = {"dense": (COLOURS[0], "-"), "pruned": (COLOURS[1], (0, (5, 1.5)))}


def figure(table: Table) -> Figure | None:
    """Thick the mean over the classes, thin each of them; None where no row has such curves."""
    found = {
        line.name: line.drawn["precision_recall"]
        for line in table.lines
        if line.ran and "precision_recall" in line.drawn
    }
    if not found:
        return None
    across = min(_ACROSS, len(found))
    down = math.ceil(len(found) / across)
    figure = Figure(figsize=(max(3.4 * across, 5.0), 2.7 * down + 1.0))
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    for place, (axes, (name, told)) in enumerate(zip(grid.flat, found.items(), strict=False)):
        _panel(axes, told["networks"])
        axes.set_title(textwrap.fill(name, _WRAP), loc="left")
        if place % across == 0:
            axes.set_ylabel("precision")
        if place + across >= len(found):
            axes.set_xlabel("recall")
            axes.tick_params(labelbottom=True)  # above an empty place too
    legend(figure, grid[0, 0])
    first = next(iter(found.values()))
    where = f"{table.scale}{' (analogue)' if table.analogue else ''}"
    single = any(network["classes"] for told in found.values() for network in told["networks"].values())
    said = (
        f"precision and recall at IoU 0.5 on {first['images']:,} test images, the first seed's detectors; thick: mean "
        f"over {first['networks']['dense']['of']} classes{', thin: each of them' if single else ''}"
    )
    figure.suptitle(textwrap.fill(f"{table.name}, {where}: {said}", max(36 * across, 55)), fontsize=11)
    return figure


def _panel(axes: Axes, networks: Mapping[str, Mapping[str, Any]]) -> None:
    for name, (colour, _) in _LOOKS.items():
        for curve in networks[name]["classes"].values():
            _curve(axes, curve, color=colour, linewidth=0.6, alpha=0.35)
    for name, (colour, dashes) in _LOOKS.items():
        _curve(axes, networks[name]["mean"], color=colour, linestyle=dashes, linewidth=2.0, label=name)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.02)


def _curve(axes: Axes, text: str, **look: Any) -> None:
    """``text`` holds precisions at recalls from 0 to 1 with equal distances; points within a level part go."""
    precisions = rounded.values(text)
    last = len(precisions) - 1
    level = [0 < n < last and precisions[n - 1] == precisions[n] == precisions[n + 1] for n in range(last + 1)]
    kept = [(n / last, value) for n, value in enumerate(precisions) if not level[n]]
    axes.plot(*zip(*kept, strict=True), **look)
