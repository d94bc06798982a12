"""Figures of what each layer keeps: its filters, and the error of its reconstruction."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
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
    """The convolutions that lose filters in any row, in the network's order, and the filters of each that rows keep.

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
    names = sorted({name for values in found.values() for name in values}, key=_natural)
    curves = {
        row: [(float(place), float(values[name])) for place, name in enumerate(names) if name in values]
        for row, values in found.items()
    }
    return names, curves


def gapped(curve: Sequence[tuple[float, float]], places: Sequence[float]) -> list[float]:
    """The values at ``places``, nan where the curve has none: no line is drawn through a layer that was left."""
    known = dict(curve)
    return [known.get(place, math.nan) for place in places]


def _natural(name: str) -> list[tuple[int, str]]:
    """``features.10`` behind ``features.7``: numbers by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _figure(table: Table, names: Sequence[str], curves: Curves, title: str, base: int) -> Figure:
    """One line a row; rows that keep the same have one line and one name; more lines than colours are counted only."""
    figure = Figure(figsize=(7.5, 4.8))
    axes: Axes = figure.subplots()
    groups = list(on_each_other(curves, 0.0).items())
    drawn = groups[: len(COLOURS)]
    # the layers of the rows that are drawn: others would only tear the lines
    places = sorted({x for first, _ in drawn for x, _ in curves[first]})
    for number, (first, rows) in enumerate(drawn):
        axes.plot(
            range(len(places)),
            gapped(curves[first], places),
            color=COLOURS[number],
            marker=MARKERS[number],
            markersize=3.5,
            label=_together(rows),
        )
    axes.set_yscale("log", base=base)
    if base == 10:
        axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.02)
    axes.set_xticks(range(len(places)), [names[int(place)] for place in places], rotation=90, fontsize=7)
    axes.set_ylabel(title)
    if left_out := sum(len(rows) for _, rows in groups[len(COLOURS) :]):
        axes.set_title(f"{left_out} rows more are not drawn", fontsize=8, color="#333333")
    legend(figure, axes)
    where = f"{table.scale}{' (analogue)' if table.analogue else ''}"
    figure.suptitle(textwrap.fill(f"{table.name}, {where}: the first seed's networks", TITLE), fontsize=11)
    return figure


def _together(rows: Sequence[str]) -> str:
    """The rows that one line stands for."""
    rest = len(rows) - _NAMED
    said = " = ".join(rows[:_NAMED])
    return textwrap.fill(said + (f" and {rest} more" if rest > 0 else ""), _WRAP)
