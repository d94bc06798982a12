"""Figures of what each layer keeps: its filters, and the error of its reconstruction."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.report.drawing import COLOURS, MARKERS, TITLE, legend, on_each_other
from bench.report.load import Line
from bench.report.tables import Table

Curves = dict[str, list[tuple[float, float]]]
_LEAST_LAYERS = 3
# names of rows with the same widths that are written out
_NAMED = 2
_WRAP = 55
_MANY = 40
# one order of brightness for every eye
_COLOURS = "cividis"
# a layer whose channels all stay is rebuilt but for rounding; on a logarithmic axis that would be all there is to see
_ROUNDING = 1e-6


def figures(table: Table) -> list[tuple[str, Figure]]:
    """Of the networks of the rows' first seeds, by name: ``widths`` where they differ, ``errors`` where these are kept.

    The networks of one base are drawn together; of several bases those of the base that most rows have.
    """
    found = []
    names, curves = widths(table.lines)
    if len(names) >= _LEAST_LAYERS and len({tuple(curve) for curve in curves.values()}) > 1:
        found.append(("widths", _figure(table, names, curves, "filters kept", 2)))
    names, curves = errors(table.lines)
    if len(names) >= _LEAST_LAYERS:
        title = "reconstruction error (share of the variance)"
        found.append(("errors", _figure(table, names, curves, title, 10)))
    return found


def widths(lines: Sequence[Line]) -> tuple[list[str], Curves]:
    """The convolutions that lose filters in any row, and the filters of each that rows keep.

    They stand in the network's order, where blocks have several those of one kind together: a ResNet's ``conv1`` first.
    A curve's x is the place of the layer among these names.
    """
    kept: dict[str, Mapping[str, int]] = {}
    for line in _of_one_base(lines):
        first = next(iter(line.widths.values()), {})
        if first:
            kept[line.name] = first
    return _curves(kept)


def errors(lines: Sequence[Line]) -> tuple[list[str], Curves]:
    """The same of the errors of the layers' reconstruction: on held-out training rows, else on the fitted ones.

    Layers that are rebuilt but for rounding are left out.
    """
    found: dict[str, dict[str, float]] = {}
    for line in _of_one_base(lines):
        reports = next(iter(line.layers.values()), [])
        missed = {str(report["reader"]): _error(report) for report in reports}
        values = {name: value for name, value in missed.items() if value > _ROUNDING}
        if values:
            found[line.name] = values
    return _curves(found)


def _error(report: Mapping[str, Any]) -> float:
    held = report.get("held_out_error")
    return float(report["error"] if held is None else held)


def _of_one_base(lines: Sequence[Line]) -> list[Line]:
    ran = [line for line in lines if line.ran and line.widths]
    bases = [line.recipe for line in ran]
    return [line for line in ran if line.recipe == max(bases, key=bases.count)]


def _curves(found: Mapping[str, Mapping[str, float]]) -> tuple[list[str], Curves]:
    names = sorted(
        {name for values in found.values() for name in values}, key=lambda name: (_kind(name), _natural(name))
    )
    curves = {
        row: [(float(place), float(values[name])) for place, name in enumerate(names) if name in values]
        for row, values in found.items()
    }
    return names, curves


def gapped(curve: Sequence[tuple[float, float]], places: Sequence[float]) -> list[float]:
    """The values at ``places``, nan where the curve has none: no line is drawn through a layer that was left."""
    known = dict(curve)
    return [known.get(place, math.nan) for place in places]


def _kind(name: str) -> str:
    """``conv2`` of ``layer1.0.conv2``: the blocks' second convolutions stand together; empty where it is a number."""
    last = name.rpartition(".")[2]
    return "" if last.isdigit() else last


def _natural(name: str) -> list[tuple[int, str]]:
    """``features.10`` behind ``features.7``: numbers by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _figure(table: Table, names: Sequence[str], curves: Curves, title: str, base: int) -> Figure:
    """One line a row, of more rows than colours a strip; rows that keep the same have one and one name."""
    groups = on_each_other(curves, 0.0)
    if len(groups) > len(COLOURS):
        figure = _strips(names, {_together(rows): curves[first] for first, rows in groups.items()}, title)
    else:
        figure = _lines(names, {_together(rows): curves[first] for first, rows in groups.items()}, title, base)
    where = f"{table.scale}{' (analogue)' if table.analogue else ''}"
    figure.suptitle(textwrap.fill(f"{table.name}, {where}: the first seed's networks", TITLE), fontsize=11)
    return figure


def _lines(names: Sequence[str], curves: Curves, title: str, base: int) -> Figure:
    figure = Figure(figsize=(7.5, 4.8))
    axes: Axes = figure.subplots()
    # an empty place, and so a gap in the lines, between convolutions of two kinds
    kinds = [_kind(name) for name in names]
    breaks = [place for place in range(1, len(names)) if kinds[place] != kinds[place - 1]]
    where = [place + sum(place >= gap for gap in breaks) for place in range(len(names))]
    for number, (label, curve) in enumerate(curves.items()):
        look: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3.5}
        values = np.insert(gapped(curve, range(len(names))), breaks, math.nan)
        axes.plot(range(len(values)), values, label=label, **look)
    axes.set_yscale("log", base=base)
    if base == 10:
        axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.02)
    axes.set_xticks(where, names, rotation=90, fontsize=_letters(names))
    axes.set_ylabel(title)
    legend(figure, axes)
    return figure


def _strips(names: Sequence[str], curves: Curves, title: str) -> Figure:
    """A strip of colours for each row, a square a layer; white where a row leaves the layer."""
    values = np.array([gapped(curve, range(len(names))) for curve in curves.values()])
    figure = Figure(figsize=(7.5, 2.0 + 0.24 * len(curves)))
    axes: Axes = figure.subplots()
    image = axes.imshow(values, norm=LogNorm(), cmap=_COLOURS, interpolation="none", aspect="auto")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    # of many layers every other one's name has room
    apart = 2 if len(names) > _MANY else 1
    axes.set_xticks(range(0, len(names), apart), names[::apart], rotation=90, fontsize=_letters(names[::apart]))
    axes.set_yticks(range(len(curves)), list(curves), fontsize=8)
    if np.isnan(values).any():
        axes.set_title("white: the row leaves the layer as it is", loc="left", fontsize=8, color="#333333")
    bar = figure.colorbar(image, ax=axes, label=textwrap.fill(title, 28))
    bar.ax.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def _letters(names: Sequence[str]) -> float:
    """The size of letters with which so many names stand side by side."""
    return min(7.0, 300.0 / len(names))


def _together(rows: Sequence[str]) -> str:
    """The rows that one line stands for."""
    rest = len(rows) - _NAMED
    said = " = ".join(rows[:_NAMED])
    return textwrap.fill(said + (f" and {rest} more" if rest > 0 else ""), _WRAP)
