"""A figure of a few test images with boxes: the true ones, the dense detector's, and those of pruned ones."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from bench.report.drawing import COLOURS
from bench.report.load import Line
from bench.report.tables import Table

# pruned detectors side by side
_MOST = 3
_WRAP = 24
_TRUE, _DENSE, _PRUNED = COLOURS[2], COLOURS[0], COLOURS[1]
# of a panel, in inches
_SIDE = 2.0


def figure(table: Table) -> Figure | None:
    """A line for each image, a column for each kind of boxes; None where no row has any.

    Where the row file keeps no pixels, the boxes stand on an empty ground of the image's shape.
    """
    lines = [line for line in table.lines if line.ran and "pictures" in line.drawn][:_MOST]
    if not lines:
        return None
    first = lines[0].drawn["pictures"]
    columns = [("ground truth", lines[0], "truth", _TRUE), ("dense", lines[0], "dense", _DENSE)]
    columns += [(line.name, line, "pruned", _PRUNED) for line in lines]
    tallest = [image["height"] / image["width"] for image in first["images"]]
    figure = Figure(figsize=(_SIDE * len(columns) + 0.4, _SIDE * sum(tallest) + 0.1 * len(tallest) + 0.9))
    grid = figure.subplots(len(tallest), len(columns), squeeze=False, height_ratios=tallest)
    for column, (title, line, kind, colour) in zip(grid.T, columns, strict=True):
        for axes, image in zip(column, shown(line), strict=True):
            _panel(axes, image, image[kind], colour)
        column[0].set_title(textwrap.fill(title, _WRAP), loc="left", color=colour)
    where = f"{table.scale}{' (analogue)' if table.analogue else ''}"
    said = (
        f"boxes with a score of at least {first['score']:g} on the first {len(tallest)} test images with an object "
        "that is not difficult, the first seed's detectors"
    )
    figure.suptitle(textwrap.fill(f"{table.name}, {where}: {said}", 22 * len(columns)), fontsize=11)
    return figure


def shown(line: Line) -> Sequence[Mapping[str, Any]]:
    """The images of a row file: width, height, perhaps a thumbnail, and boxes by their kind."""
    images: Sequence[Mapping[str, Any]] = line.drawn["pictures"]["images"]
    return images


def _panel(axes: Axes, image: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]], colour: str) -> None:
    width, height = image["width"], image["height"]
    if "thumbnail" in image:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["thumbnail"]))), dtype=float)
        # lighter than it is, so that boxes and their names stand out
        axes.imshow(pixels, extent=(0, width, height, 0), cmap="gray", vmin=-120.0, vmax=255.0, interpolation="none")
    for box in boxes:
        left, top, right, bottom = map(int, box["box"].split())
        axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=colour, linewidth=1.6)
        score = f" {box['score']:.2f}" if "score" in box else ""
        axes.text(
            left,
            top,
            f"{textwrap.shorten(box['class'], 14)}{score}",
            fontsize=6.5,
            color="white",
            va="bottom",
            clip_on=False,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
        )
    axes.spines[:].set_visible("thumbnail" not in image)  # a frame where there is no image
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
