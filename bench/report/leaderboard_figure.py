"""The picture of all methods on one network: curves over the MACs, or standings where many share a speed-up."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.report.cells import Cell
from bench.report.drawing import COLOURS, GREY, MARKERS, legend, limits
from bench.report.leaderboard import Entry, Group, front, speeds, standings

# with more networks at one speed-up than that, points lie on each other
_CROWD = 6
# of a standing the best are drawn, of what lies beyond the axis so many are named
_BEST, _NAMED = 10, 3


def draw(group: Group, names: Mapping[str, str]) -> Figure:
    """Accuracy by MACs; ``names`` are the papers' in short.

    Standings of the best, one panel a speed-up, where at one of them stand more networks than a curve can tell apart.
    """
    found = standings(group.entries)
    figure = _standings(group, found, names) if any(len(part) > _CROWD for part in found) else _curves(group, names)
    figure.suptitle(textwrap.fill(f"{group.title}; bars: 95 % intervals", 90), fontsize=11)
    return figure


def _trained_on(entry: Entry) -> bool:
    """Whether it is a dense network that was tuned or trained longer: the one that others come from is before it."""
    return "tuned" in entry.line.name or "longer" in entry.line.name


def _standings(group: Group, parts: Sequence[Sequence[Entry]], names: Mapping[str, str]) -> Figure:
    """A panel for each speed-up: a row for each of the ten best, in its paper's colour."""
    shown = [part[:_BEST] for part in parts]
    figure = Figure(figsize=(7.5, 1.6 + sum(0.8 + 0.24 * len(part) for part in shown)))
    panels = figure.subplots(len(parts), 1, squeeze=False, height_ratios=[len(part) + 1.5 for part in shown])[:, 0]
    papers = list(dict.fromkeys(entry.line.paper for part in shown for entry in part))
    dense = next((entry.top1.value for entry in sorted(group.entries, key=_trained_on) if entry.dense), None)
    for axes, part, best in zip(panels, parts, shown, strict=True):
        for place, entry in enumerate(best):
            axes.errorbar(
                entry.top1.value,
                place,
                xerr=[[entry.top1.value - low(entry.top1)], [high(entry.top1) - entry.top1.value]],
                fmt=MARKERS[papers.index(entry.line.paper) % len(MARKERS)],
                color=COLOURS[papers.index(entry.line.paper) % len(COLOURS)],
                elinewidth=1.2,
            )
        if dense is not None:
            axes.axvline(dense, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)))
        labels = [textwrap.fill(group.name(entry), 42, break_on_hyphens=False) for entry in best]
        axes.set_yticks(range(len(best)), labels, fontsize=8)
        axes.set_ylim(len(best) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_title(_said(part, best), loc="left", fontsize=9)
    panels[-1].set_xlabel("top-1 (%)")
    handles = [
        Line2D([], [], color=COLOURS[n % len(COLOURS)], marker=MARKERS[n % len(MARKERS)], linestyle="none")
        for n in range(len(papers))
    ]
    said = [names.get(paper, paper) for paper in papers]
    if dense is not None:
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (4, 2))))
        said.append(f"dense, {dense:.2f} %")
    figure.legend(handles, said, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _said(part: Sequence[Entry], best: Sequence[Entry]) -> str:
    """``2.0x fewer MACs: the best 10 of 27, the rest down to 10 %``."""
    if len(part) == len(best):
        return speeds(part)
    return f"{speeds(part)}: the best {len(best)} of {len(part)}, the rest down to {part[-1].top1.value:.0f} %"


def _curves(group: Group, names: Mapping[str, str]) -> Figure:
    """Accuracy against MACs in percent of the dense network's.

    Methods that no other beats have a colour, then those at several speed-ups; the others are grey and counted.
    """
    methods: dict[tuple[str, str], list[Entry]] = {}
    for entry in group.entries:
        methods.setdefault((entry.line.paper, entry.method), []).append(entry)
    best = {(entry.line.paper, entry.method) for entry in front(group.entries)}
    ranked = sorted(methods, key=lambda key: (not methods[key][0].dense, key not in best, -len(methods[key])))
    coloured = [key for key in ranked if methods[key][0].dense or key in best or len(methods[key]) > 1]
    coloured = coloured[: len(COLOURS)]
    figure = Figure(figsize=(7.5, 5.2))
    axes: Axes = figure.subplots()
    values = [entry.top1.value for entry in group.entries]
    cut = limits([low(entry.top1) for entry in group.entries], values, [high(entry.top1) for entry in group.entries])
    beyond = [entry for entry in group.entries if cut is not None and not cut[0] <= entry.top1.value <= cut[1]]
    several = len({entry.line.paper for entry in group.entries}) > 1
    for key in [*(key for key in ranked if key not in coloured), *coloured]:
        place = coloured.index(key) if key in coloured else None
        colour, marker = (GREY, "o") if place is None else (COLOURS[place], MARKERS[place])
        shown = [entry for entry in methods[key] if entry not in beyond]
        paper, method = key
        label = f"{names.get(paper, paper)}: {method}" if several else method
        axes.errorbar(
            [100.0 / entry.speedup for entry in shown],
            [entry.top1.value for entry in shown],
            yerr=[
                [entry.top1.value - low(entry.top1) for entry in shown],
                [high(entry.top1) - entry.top1.value for entry in shown],
            ],
            fmt=marker if len(shown) < 2 or place is None else f"{marker}-",
            color=colour,
            elinewidth=0.9,
            label=textwrap.fill(label, 52) if place is not None and shown else "_",
        )
    if cut is not None:
        margin = 0.06 * (cut[1] - cut[0])
        axes.set_ylim(cut[0] - margin, cut[1] + margin)
    _scale(axes)
    rest = len(methods) - len(coloured)
    said = [f"grey: {rest} other methods, all in the table"] if rest else []
    if beyond:
        worst = [f"{group.name(entry)} {entry.top1.value:.1f} %" for entry in beyond]
        more = [f"{len(worst) - _NAMED} more"] if len(worst) > _NAMED else []
        said.append(f"beyond the axis: {'; '.join(worst[:_NAMED] + more)}")
    if said:
        axes.set_title(textwrap.fill("; ".join(said), 100), fontsize=8, color="#333333", loc="left")
    legend(figure, axes)
    return figure


def _scale(axes: Axes) -> None:
    axes.set_xscale("log")
    # 10, 20, 30, 50, 70, 100 as they are, not as powers
    axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("MACs per image (% of the dense network)")
    axes.set_ylabel("top-1 (%)")


def low(cell: Cell) -> float:
    """The lower end of the interval; the value where there is none."""
    return cell.value if cell.low is None else min(cell.low, cell.value)


def high(cell: Cell) -> float:
    """The upper end."""
    return cell.value if cell.high is None else max(cell.high, cell.value)
