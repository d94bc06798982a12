"""A figure of the channels that gates choose: how often each wins, layer by layer, and class by class in the last."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from bench import rounded
from bench.report.load import Line
from bench.report.tables import Table

Array = npt.NDArray[np.float64]
# dark for never, bright for always, in one order of brightness for every eye
_COLOURS = "cividis"
# networks side by side
_MOST = 3
# from this share on a channel counts as one that always wins, below the rest as one that never does
_NEARLY = 0.99


def layers(line: Line) -> dict[str, Array]:
    """The share of the test images for which each channel of a layer wins, the largest first, by layer."""
    found = line.drawn["activity"]["layers"]
    return {name: np.sort(rounded.values(shares))[::-1] for name, shares in found.items()}


def by_class(line: Line) -> tuple[str, list[str], Array]:
    """A layer, the classes, and the same shares of their images (classes x channels), channels in the layer's order."""
    activity = line.drawn["activity"]
    name, shares = activity["by_class"]["layer"], activity["by_class"]["shares"]
    order = np.argsort(-np.array(rounded.values(activity["layers"][name])), kind="stable")
    return name, list(shares), np.array([rounded.values(one) for one in shares.values()])[:, order]


def figure(table: Table) -> Figure | None:
    """A column for each network: a strip for each layer, the last layer by class below; None where none was looked at.

    Networks with other layers than the first are left out.
    """
    lines = [line for line in table.lines if line.ran and "activity" in line.drawn]
    lines = [line for line in lines if list(layers(line)) == list(layers(lines[0]))][:_MOST]
    if not lines:
        return None
    strips, classes = len(layers(lines[0])), len(by_class(lines[0])[1])
    heights = [0.3] * strips + [0.19 * max(classes, 5)]
    figure = Figure(figsize=(0.8 + 5.2 * len(lines), sum(heights) + 0.08 * strips + 2.0))
    grid = figure.subplots(strips + 1, len(lines), squeeze=False, height_ratios=heights)
    for column, line in zip(grid.T, lines, strict=True):
        for axes, (name, shares) in zip(column, layers(line).items(), strict=False):
            _map(axes, shares[None], [name])
            axes.text(1.01, 0.5, _counted(shares), transform=axes.transAxes, va="center", fontsize=7, color="#333333")
        column[0].set_title(line.name, loc="left")
        name, labels, shares = by_class(line)
        image = _map(column[-1], shares, labels)
        column[-1].set_title(f"{name} by class of the image", loc="left", fontsize=9)
        column[-1].set_xlabel("channels, in the order of the strip above")
    figure.colorbar(
        image, ax=grid.ravel().tolist(), location="bottom", fraction=0.03, aspect=45, label="share of the test images"
    )
    where = f"{table.scale}{' (analogue)' if table.analogue else ''}"
    activity = lines[0].drawn["activity"]
    told = (
        f"for how many of {activity['images']:,} test images each channel wins, the first seed's networks; always: "
        f"at least {_NEARLY:.0%}, never: at most {1.0 - _NEARLY:.0%}"
    )
    if classes < activity["by_class"]["classes"]:
        told += f"; {classes} of {activity['by_class']['classes']:,} classes"
    figure.suptitle(textwrap.fill(f"{table.name}, {where}: {told}", 20 + 45 * len(lines)), fontsize=11)
    return figure


def _map(axes: Axes, shares: Array, names: Sequence[str]) -> AxesImage:
    rows, channels = shares.shape
    look: dict[str, Any] = {"vmin": 0.0, "vmax": 1.0, "cmap": _COLOURS, "interpolation": "none", "aspect": "auto"}
    image = axes.imshow(shares, extent=(0.0, channels, rows, 0.0), **look)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks(np.arange(rows) + 0.5, [textwrap.shorten(name, 22) for name in names], fontsize=7)
    axes.tick_params(length=0)
    return image


def _counted(shares: Array) -> str:
    """How many channels of a layer hardly depend on the image."""
    always, never = int((shares >= _NEARLY).sum()), int((shares <= 1.0 - _NEARLY).sum())
    return f"of {len(shares)}: {always} always,\n{never} never"
