"""How all figures look and how they are written: one style, an SVG and a PNG, the same bytes for the same numbers."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection, LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bench.store import disk_errors

STYLE: Any = {  # matplotlib types it by every single key
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.0,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.08,
    "text.parse_math": False,  # a dollar in a row's name is a dollar
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bench",  # names of parts by their content, not by chance
}
# Okabe and Ito's colours without yellow, which is too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
GREY = "#9a9a9a"
# characters of a title in a figure of 7.5 inches
TITLE = 90
DPI = 150
_COLOURS_OF_A_PNG = 128
_DRAWN = "Description"
# curves nowhere further apart than this part of the panel lie on each other
_SAME = 0.015
# values are cut off where the others need less than this part of the axis, and are a third or less of all
_LEAST_USE, _MOST_CUT = 0.2, 3


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes ``path`` (a PNG) and the same as SVG, atomically; returns both.

    The PNG tells by a digest what is drawn; pictures of the same are left as they are, since drawing takes longer than
    all the rest.
    """
    digest, vector = drawn(figure), path.with_suffix(".svg")
    if vector.is_file() and digest_of(path) == digest:
        return [path, vector]
    with disk_errors(path), mpl.rc_context(STYLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out now, once for both
        _write(path, _png(figure, digest))
        buffer = io.BytesIO()
        # no date and no version of the drawing program: the same file wherever the numbers are the same
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        _write(vector, buffer.getvalue())
    return [path, vector]


def _png(figure: Figure, digest: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    # few colours: a third of the bytes
    few = Image.open(buffer).convert("RGB").quantize(_COLOURS_OF_A_PNG, dither=Image.Dither.NONE)
    about, out = PngInfo(), io.BytesIO()
    about.add_text(_DRAWN, digest)
    few.save(out, format="PNG", optimize=True, pnginfo=about, dpi=(DPI, DPI))
    return out.getvalue()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    temporary.replace(path)


def digest_of(path: Path) -> str | None:
    """The digest of what a PNG shows; None where there is no such picture."""
    try:
        with Image.open(path) as image:
            return image.info.get(_DRAWN)
    except OSError:
        return None


def drawn(figure: Figure) -> str:
    """A digest of what a figure shows: every line, mark, bar and text with its place in the data, and the style.

    It does not depend on fonts or on the drawing program, so pictures of two machines can be compared by it.
    """
    parts = [json.dumps(STYLE, sort_keys=True), str(DPI), _numbers(figure.get_size_inches())]
    parts += [part for artist in figure.findobj() for part in _told(artist)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _told(artist: Any) -> Iterator[str]:
    kind = type(artist).__name__
    if isinstance(artist, Axes):
        yield f"{kind} {_numbers([*artist.get_xlim(), *artist.get_ylim()])} {artist.get_xscale()} {artist.get_yscale()}"
    elif isinstance(artist, Line2D):
        look = artist.get_color(), artist.get_linestyle(), artist.get_marker(), artist.get_markerfacecolor()
        yield f"{kind} {_numbers(artist.get_xydata())} {look}"
    elif isinstance(artist, Text) and artist.get_text():
        place = [*artist.get_position(), *(artist.xy if isinstance(artist, Annotation) else ())]
        yield f"{kind} {artist.get_text()} {place} {artist.get_color()}"
    elif isinstance(artist, LineCollection):
        yield f"{kind} {[_numbers(segment) for segment in artist.get_segments()]} {_numbers(artist.get_edgecolor())}"
    elif isinstance(artist, Collection):
        yield f"{kind} {_numbers(artist.get_offsets())} {_numbers(artist.get_facecolor())}"
    elif isinstance(artist, AxesImage):
        pixels = np.asarray(artist.get_array(), dtype="<f8")
        shown = hashlib.sha256(pixels.tobytes()).hexdigest()
        yield f"{kind} {pixels.shape} {shown} {artist.get_extent()} {artist.cmap.name} {artist.get_clim()}"
    elif isinstance(artist, Patch):
        yield f"{kind} {_numbers(artist.get_path().vertices)} {artist.get_facecolor()} {artist.get_label()}"
        if hasattr(artist, "get_bbox"):
            yield _numbers(artist.get_bbox().get_points())


def _numbers(values: Any) -> str:
    return " ".join(f"{float(value):.9g}" for value in np.asarray(values, dtype=float).ravel())


def limits(lows: Sequence[float], values: Sequence[float], highs: Sequence[float]) -> tuple[float, float] | None:
    """The axis for values with their intervals where some lie so far away that the others could not be told apart.

    None where all can be shown: the farthest are cut off, a third of all at the most, only where the axis of the others
    is less than a fifth as long.
    """
    middle = float(np.median(values)) if len(values) else 0.0
    order = sorted(range(len(values)), key=lambda place: abs(values[place] - middle))
    whole = max(highs, default=0.0) - min(lows, default=0.0)
    for cut in range(1, len(order) // _MOST_CUT + 1):
        kept = order[:-cut]
        low, high = min(lows[place] for place in kept), max(highs[place] for place in kept)
        if high - low < _LEAST_USE * whole:
            return low, high
    return None


def on_each_other(curves: Mapping[str, Sequence[tuple[float, float]]], height: float) -> dict[str, list[str]]:
    """The curves by name, those that lie on an earlier one under its name: equal x, values nowhere further apart than
    1.5 % of the panel's ``height``."""
    groups: dict[str, list[str]] = {}
    for name, points in curves.items():
        for first in groups:
            other = curves[first]
            if len(other) == len(points) and all(
                x == x_ and abs(y - y_) <= _SAME * height for (x, y), (x_, y_) in zip(points, other, strict=True)
            ):
                groups[first].append(name)
                break
        else:
            groups[name] = [name]
    return groups


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights (parts of a panel) moved apart to ``gap``, as little as needed, and kept below the top."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    top = 1.0
    for place in reversed(range(len(placed))):
        placed[place] = min(placed[place], top)
        top = placed[place] - gap
    return placed


def legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """What the curves of ``axes`` are called, below all panels, where it covers nothing."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(names)), frameon=False, fontsize=8)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Names of curves right of the panel: of each (last value, last x, name, colour); the y axis is fixed before.

    ``gap`` is the least distance of two names, in parts of the panel's height.
    """
    low, high = axes.get_ylim()
    position = axes.transScale + axes.transLimits  # data to parts of the panel, also on logarithmic axes
    ends = sorted(ends)
    axes.set_ylim(low, high)
    heights = spread([float(position.transform((x, value))[1]) for value, x, *_ in ends], gap)
    for (value, x, name, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            xy=(x, value),
            xytext=(1.05, height),
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
        )
