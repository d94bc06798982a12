"""Figures of a table: curves (one panel a row), dot plots with intervals (one line a row), accuracy against MACs."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench import cache, metrics
from bench.report import activity, densities, layers, pictures, precision_recall, training
from bench.report.cells import Cell, Point
from bench.report.drawing import COLOURS, MARKERS, STYLE, digest_of, label_ends, limits, on_each_other, save
from bench.report.glossary import metric, position
from bench.report.judging import CONTRASTS
from bench.report.load import Line
from bench.report.readable import DAGGER, mark
from bench.report.tables import Table
from bench.store import write_text

# fewer lines are read faster in the table
LEAST_LINES = 4
_WRAP = 50
# tables of several folders whose pictures are known
_REMEMBERED = 1000
_PANELS_ACROSS = 3
# distance of two curves' labels, in parts of the panel's height
_LABEL_GAP = 0.085


def draw(table: Table, folder: Path, trainings: bool = True) -> tuple[list[Path], list[str]]:
    """Writes the table's figures and the points of its curves into ``folder``; returns the files, none for many tables.

    ``<slug>.png`` is the first figure, further ones are named ``<slug>--<what>.png``, each with the same as SVG;
    ``<slug>.csv`` holds the points.  Without ``trainings`` none are drawn: another table's figure shows them.  The
    texts say of which curves nothing was drawn because there is nothing to see.  Pictures that are there, and were
    made of an equal table by the same sources, are left as they are.
    """
    made: list[tuple[list[Path], list[str]]] = []

    def told() -> list[Any]:
        made.append(_drawn(table, folder, trainings))
        files, said = made[0]
        return [[[path.name, digest_of(path)] for path in files if path.suffix == ".png"], said]

    # the frames follow from the lines
    facts = f"{mpl.__version__} {trainings} {table.paper} {table.name} {table.scale} {table.lines!r} {table.notes!r}"
    given = hashlib.sha256(facts.encode()).hexdigest()
    pictures, said = cache.remembered("figures", given, told, _REMEMBERED)
    if not made:
        there = [(folder / name, digest) for name, digest in pictures]
        if all(digest_of(path) == digest and path.with_suffix(".svg").is_file() for path, digest in there):
            made.append(([file for path, _ in there for file in (path, path.with_suffix(".svg"))], said))
        else:
            made.append(_drawn(table, folder, trainings))
    files, said = made[0]
    if any(line.points for line in table.lines):
        path = folder / f"{table.slug}.csv"
        write_text(path, points_csv(table))
        files.append(path)
    return files, said


def _drawn(table: Table, folder: Path, trainings: bool) -> tuple[list[Path], list[str]]:
    """The pictures, and of which curves there are none."""
    said, figures = [], []
    names = sorted({point.cell.metric for line in table.lines for point in line.points}, key=position)
    with mpl.rc_context(STYLE):
        for name in names:
            values = {p.cell.value for line in table.lines for p in line.points if p.cell.metric == name}
            if len(values) == 1:
                shown = metric(name)
                said.append(f"{shown.title}: {shown.number(values.pop())} at every point of every curve; not drawn.")
            else:
                figures.append((name, _curves(table, name)))
        if panels := _panels(table.lines):
            figures.append(("summary", _dots(table, panels)))
        if len(trade_off_points(table.lines)) >= LEAST_LINES:
            figures.append(("trade-off", _trade_off(table)))
        figures += layers.figures(table)
        further = (
            *((("training", training), ("densities", densities)) if trainings else ()),
            *(("activity", activity), ("precision-recall", precision_recall), ("pictures", pictures)),
        )
        figures += [(what, made) for what, module in further if (made := module.figure(table)) is not None]
        files = []
        for number, (what, figure) in enumerate(figures):
            files += save(figure, folder / (f"{table.slug}--{what}.png" if number else f"{table.slug}.png"))
    return files, said


def points_csv(table: Table) -> str:
    """All points of the table's curves, unrounded: row, metric, series, x, value, interval, unit, n, seeds."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "metric", "series", "x", "value", "low", "high", "unit", "n", "seeds"])
    for line in table.lines:
        for point in line.points:
            cell = point.cell
            values = (point.x, cell.value, cell.low, cell.high, cell.unit, cell.n, cell.seeds)
            writer.writerow([line.name, cell.metric, point.series, *values])
    return file.getvalue()


# --------------------------------------------------------------------------------------------------------------------
# Curves


def _curves(table: Table, name: str) -> Figure:
    lines = [line for line in table.lines if any(point.cell.metric == name for point in line.points)]
    series = list(dict.fromkeys(p.series for line in lines for p in line.points if p.cell.metric == name))
    across = min(_PANELS_ACROSS, len(lines))
    down = math.ceil(len(lines) / across)
    figure = Figure(figsize=(4.1 * across, 2.9 * down + 0.5))
    grid = figure.subplots(down, across, squeeze=False)
    unit = next(p.cell.unit for line in lines for p in line.points if p.cell.metric == name)
    for place, axes in enumerate(grid.flat):
        if place >= len(lines):
            axes.set_axis_off()
            continue
        chosen = [point for point in lines[place].points if point.cell.metric == name]
        _curve_panel(axes, chosen, series)
        axes.set_title(textwrap.fill(lines[place].name, _WRAP), loc="left")
        if place % across == 0:
            axes.set_ylabel(metric(name, unit).title)
        if place + across >= len(lines):
            axes.set_xlabel("speed-up (x)")
    figure.suptitle(textwrap.fill(f"{table.name}, {_setting(table)}", 45 * across), fontsize=11)
    return figure


def _curve_panel(axes: Axes, points: Sequence[Point], series: Sequence[str]) -> None:
    """One line for each series with interval bars, named at its right end; those on each other have one name."""
    curves: dict[str, list[tuple[float, float]]] = {}
    looks = {}
    for number, name in enumerate(series):
        chosen = sorted((point for point in points if point.series == name), key=lambda point: point.x)
        if not chosen:
            continue
        colour, marker = looks[name] = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        curves[name] = [(point.x, point.cell.value) for point in chosen]
        xs, values = zip(*curves[name], strict=True)
        reach = _reach([point.cell for point in chosen])
        axes.errorbar(xs, values, yerr=reach, color=colour, marker=marker, elinewidth=0.9)
    axes.margins(x=0.04, y=0.08)
    low, high = axes.get_ylim()
    ends = []
    for first, names in on_each_other(curves, high - low).items():
        x, value = curves[first][-1]
        together = textwrap.fill(" = ".join(names), 22)
        ends.append((value, x, together, looks[first][0] if len(names) == 1 else "#333333"))
    label_ends(axes, ends, _LABEL_GAP)


def _reach(cells: Sequence[Cell]) -> Any:
    """How far the intervals reach below and above the values (2 x N, in their unit), 0 without an interval."""
    below = [0.0 if cell.low is None else max(0.0, cell.value - cell.low) for cell in cells]
    above = [0.0 if cell.high is None else max(0.0, cell.high - cell.value) for cell in cells]
    return np.array([below, above])


# --------------------------------------------------------------------------------------------------------------------
# Accuracy against MACs

_AT_SPEEDUP, _AT_ACCURACY = re.compile(r"at ([\d.]+)x"), re.compile(r"at ([\d.]+)% top-1")


def series_of(name: str) -> str:
    """The curve that a row belongs to: its name up to `` at ``."""
    return name.partition(" at ")[0]


def trade_off_points(lines: Sequence[Line]) -> list[tuple[str, float, Cell]]:
    """For each line with both: its series, its MACs in percent of the dense network's, and its accuracy."""
    return [
        (series_of(line.name), 100.0 / line.cells["dynamic_speedup"].value, line.cells["top1_acc"])
        for line in lines
        if "dynamic_speedup" in line.cells and "top1_acc" in line.cells
    ]


def published_points(lines: Sequence[Line]) -> list[tuple[str, float, float, bool]]:
    """The published points that lines quote: series, MACs in percent, top-1, whether both values were checked.

    A published row that is named after one coordinate (``NS at 2x``, ``FBS at 90.50% top-1``) tells it by its name.
    """
    found = []
    for line in lines:
        accuracy, speedup = line.links.get("top1_acc"), line.links.get("dynamic_speedup")
        x = speedup.value if speedup is not None else None
        y = accuracy.value if accuracy is not None else None
        if x is None and accuracy is not None and (match := _AT_SPEEDUP.search(accuracy.row)):
            x = float(match[1])
        if x is None and y is not None and line.name == "dense":
            x = 1.0
        if y is None and speedup is not None and (match := _AT_ACCURACY.search(speedup.row)):
            y = float(match[1])
        if x and y is not None:
            verified = all(entry.counted for entry in (accuracy, speedup) if entry is not None)
            found.append((series_of(line.name), 100.0 / x, y, verified))
    return found


def _trade_off(table: Table) -> Figure:
    """Accuracy against MACs with intervals; what was published beside or (the paper's data) among it."""
    points, quoted = trade_off_points(table.lines), published_points(table.lines)
    apart = bool(quoted) and all(line.analogue for line in table.lines if line.ran)
    figure = Figure(figsize=(11.5 if apart else 7.5, 5.0))
    grid = figure.subplots(1, 2 if apart else 1, squeeze=False)[0]
    names = list(dict.fromkeys([name for name, *_ in points] + [name for name, *_ in quoted]))
    for number, name in enumerate(names):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        mine = sorted(((x, cell) for series, x, cell in points if series == name), key=lambda pair: pair[0])
        if mine:
            grid[0].errorbar(
                [x for x, _ in mine],
                [cell.value for _, cell in mine],
                yerr=_reach([cell for _, cell in mine]),
                color=colour,
                marker=marker,
                elinewidth=0.9,
                label=name,
            )
        theirs = sorted((x, y, verified) for series, x, y, verified in quoted if series == name)
        if theirs:
            axes = grid[-1]
            axes.plot(
                [x for x, *_ in theirs],
                [y for _, y, _ in theirs],
                color=colour,
                marker=marker,
                linestyle=(0, (4, 2)),
                markerfacecolor="white",
                markersize=7,
                label=f"{name}, published",
            )
            for x, y, verified in theirs:
                axes.annotate(
                    f"{y:g}{'' if verified else DAGGER}",
                    xy=(x, y),
                    xytext=(0, 8),
                    textcoords="offset points",
                    ha="center",
                    color=colour,
                    fontsize=8,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
                )
    own = next(line.own_scale for line in table.lines)
    for axes, title in zip(grid, (f"{table.scale}, measured", f"{own}, published (quoted)"), strict=False):
        axes.set_xscale("log")
        axes.margins(x=0.08, y=0.12)  # room for the published values
        # 10, 20, 30, 50, 70, 100 as they are, not as powers
        axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 3.0, 5.0, 7.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("MACs per image (% of the dense network)")
        axes.set_ylabel("top-1 (%)")
        # below the panel, where it covers no interval
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
        if apart:
            axes.set_title(title, loc="left")
    figure.suptitle(textwrap.fill(f"{table.name}, {_setting(table)}", 90), fontsize=11)
    return figure


# --------------------------------------------------------------------------------------------------------------------
# Dot plots


def _panels(lines: Sequence[Line]) -> list[str]:
    """The metrics of the dot plot, one a panel (:class:`bench.metrics.Metric`): those that most lines have."""
    deciding = Counter(name for line in lines if (name := _decided_by(line)) is not None)
    if deciding:
        return [name for name, _ in deciding.most_common(2)] if deciding.total() >= LEAST_LINES else []
    found = []
    for panel in (1, 2):
        names = [metric.name for metric in metrics.declared().values() if metric.panel == panel]
        # beside the dense network itself the one that was trained as long is the fairer reference
        names.sort(key=lambda name: not name.endswith(metrics.CONTROL))
        counts = {name: sum(name in line.cells for line in lines) for name in names}
        best = max(names, key=lambda name: counts[name])
        if counts[best]:
            found.append((best, counts[best]))
    return [name for name, _ in found] if any(count >= LEAST_LINES for _, count in found) else []


def _decided_by(line: Line) -> str | None:
    """The contrast that decides a claim; None for other rows, and for claims that were not measured."""
    name = None if line.claim is None else CONTRASTS[line.claim.metric][0]
    return name if name in line.cells else None


def _shown(line: Line, name: str) -> bool:
    """Whether the dot plot's panel of this metric shows the line: of a claim the contrast that decides it."""
    return name in line.cells and _decided_by(line) in (None, name)


def _dots(table: Table, names: Sequence[str]) -> Figure:
    lines = [line for line in table.lines if any(_shown(line, name) for name in names)]
    names_ = [line.name if line.claim is None else line.claim.statement for line in lines]
    labels = [textwrap.fill(name, _WRAP, break_on_hyphens=False) for name in names_]
    # lines of text, so that wrapped names have room
    heights = np.array([1 + 0.62 * label.count("\n") for label in labels])
    places = np.cumsum(heights) - heights / 2
    total = float(heights.sum())
    figure = Figure(figsize=(3.8 + 4.3 * len(names), 0.27 * total + 1.5))
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name, colour in zip(grid, names, (COLOURS[0], COLOURS[2]), strict=False):
        _dot_panel(axes, lines, places, name, colour)
    grid[0].set_yticks(places, labels)
    grid[0].set_ylim(total, 0)
    figure.suptitle(textwrap.fill(f"{table.name}, {_setting(table)}", 40 + 35 * len(names)), fontsize=11)
    return figure


def _dot_panel(axes: Axes, lines: Sequence[Line], places: Any, name: str, colour: str) -> None:
    """One dot with its interval for each line, the numbers at the right edge, zero and the published value marked."""
    rows = [(line.cells[name], place) for line, place in zip(lines, places, strict=True) if _shown(line, name)]
    cells = [cell for cell, _ in rows]
    axes.axvline(0.0, color="#555555", linewidth=1.0)
    below, above = _reach(cells)
    values = np.array([cell.value for cell in cells])
    found = published_value(lines, name)
    marks = [0.0, *([] if found is None else [found[0]])]
    cut = limits(list(values - below), list(values), list(values + above))
    if cut is not None:
        cut = min(cut[0], *marks), max(cut[1], *marks)
    inside: Any = np.ones(len(values), bool)
    if cut is not None:
        margin = 0.06 * (cut[1] - cut[0])
        inside = (values >= cut[0] - margin) & (values <= cut[1] + margin)
        # what is drawn is drawn with its whole interval
        cut = min(cut[0], *(values - below)[inside]), max(cut[1], *(values + above)[inside])
    axes.errorbar(
        values[inside],
        np.array([place for _, place in rows])[inside],
        xerr=_reach([cell for cell, shown in zip(cells, inside, strict=True) if shown]),
        fmt="o",
        color=colour,
        elinewidth=1.3,
    )
    if cut is not None:
        margin = 0.06 * (cut[1] - cut[0])
        axes.set_xlim(cut[0] - margin, cut[1] + margin)
        for (cell, place), shown_ in zip(rows, inside, strict=True):
            if not shown_:
                left = cell.value < cut[0]
                axes.plot(
                    0.0 if left else 1.0,
                    place,
                    "<" if left else ">",
                    color=colour,
                    transform=axes.get_yaxis_transform(),
                    clip_on=False,
                )
        axes.set_title("triangles: beyond the axis, the number is at the right", fontsize=8, color="#333333")
    shown = metric(name, cells[0].unit)
    for cell, place in rows:
        axes.text(
            1.02,
            place,
            shown.number(cell.value),
            transform=axes.get_yaxis_transform(),
            va="center",
            ha="left",
            fontsize=8,
            color="#333333",
        )
    if found is not None:
        axes.axvline(found[0], color="#D55E00", linewidth=1.3, linestyle=(0, (4, 2)))
        axes.annotate(
            found[1],
            xy=(found[0], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color="#B34700",
        )
    axes.set_xlabel(shown.title)
    axes.tick_params(axis="y", length=0)


def published_value(lines: Sequence[Line], name: str) -> tuple[float, str] | None:
    """The value that the lines' links to metric ``name`` have in common, with its label; None for none or several.

    A published increase of the error is a change of the accuracy with the other sign.
    """
    mirror = name.replace("change", "err_increase") if "change" in name else None
    found = set()
    for line in lines:
        for linked, entry in line.links.items():
            if linked in (name, mirror) and entry.value is not None:
                where = f"published ({line.own_scale}, quoted)" if line.analogue else "published"
                value = entry.value if linked == name else -entry.value
                found.add((value, where + mark(entry)))
    return found.pop() if len(found) == 1 else None


def _setting(table: Table) -> str:
    """The data, said to be an analogue where no line is at its own scale; the meaning of the bars."""
    analogue = all(line.analogue for line in table.lines if line.ran)
    return f"{table.scale}{' (analogue)' if analogue else ''}; bars: 95 % intervals"
