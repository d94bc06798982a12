"""All methods on the same network: accuracy against MACs over the papers, as a picture, a table and values."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.metrics import size
from bench.report.cells import Cell
from bench.report.drawing import COLOURS, GREY, MARKERS, STYLE, legend, limits, save
from bench.report.load import Line
from bench.report.readable import cell_text
from bench.report.render import markdown_text
from bench.report.tables import slug
from bench.store import write_text

FOLDER = "same-network"
# narrow networks and scans that all methods read: nothing to compare
_EMBEDDED = ("digits", "clutter", "scenes")
_SPEEDUPS, _COUNTS = ("dynamic_speedup", "speedup"), ("dynamic_macs", "macs")
_LEAST = 4
_ABOUT = (
    "This page is generated from the row files; edits are overwritten.\n\nRows of all papers that start from the same "
    "weights and are measured on the same images. A network that several papers' rows show stands here once. Sorted by "
    "speed-up, then by accuracy; **bold**: no other has more accuracy at as few MACs. Changes are from the dense "
    "network."
)
_SPEED = re.compile(r",? ?\bat .*$|\b\d+(\.\d+)?x\b,? ?")


@dataclass(frozen=True)
class Entry:
    """One pruned network (over its seeds): the speed-up in MACs, top-1 and the MACs themselves."""

    line: Line
    speedup: float
    top1: Cell
    macs: Cell | None

    @property
    def method(self) -> str:
        """The row without its speed-up: what several entries have in common that differ in it."""
        return re.sub(r"\s+", " ", _SPEED.sub("", self.line.name)).strip(" ,") or self.line.name

    @property
    def dense(self) -> bool:
        """Whether it is the network that the others are pruned from, or that one trained longer."""
        return "dense" in self.line.name


@dataclass(frozen=True)
class Group:
    """The entries of one network on one data set, starting from the same weights."""

    network: str
    scale: str
    entries: Sequence[Entry]

    @property
    def title(self) -> str:
        """Network and data in words, with the number of test images."""
        images = sorted({entry.top1.n for entry in self.entries if entry.top1.n})
        told = f", {' or '.join(f'{n:,}' for n in images)} test images" if images else ""
        return f"{self.network}, {self.scale}{told}"

    @property
    def slug(self) -> str:
        """The title as a file name."""
        return slug(f"{self.network} {self.scale}")


def groups(lines: Iterable[Line]) -> list[Group]:
    """The networks on which at least four pruned ones were measured, by name; a network that several rows show is one.

    Embedded data are left out, rows that are curves or contrasts, and those without top-1 or speed-up.
    """
    found: dict[tuple[str, ...], list[Entry]] = {}
    seen: dict[tuple[str, ...], set[str]] = {}
    for line in lines:
        top1, data = line.cells.get("top1_acc"), line.setting.get("data") or {}
        speedup = next((line.cells[name] for name in _SPEEDUPS if name in line.cells), None)
        if not line.ran or top1 is None or speedup is None or line.setting.get("scale") in _EMBEDDED:
            continue
        weights = (line.setting.get("weights") or {}).get("sha256", "")
        key = line.recipe, str(data.get("fingerprint")), str(data.get("protocol")), str(weights)
        evaluated = {name for name, step in line.steps.items() if step.get("kind") == "evaluate"}
        if evaluated & seen.setdefault(key, set()):
            continue
        seen[key] |= evaluated
        macs = next((line.cells[name] for name in _COUNTS if name in line.cells), None)
        found.setdefault(key, []).append(Entry(line, speedup.value, top1, macs))
    return [
        Group(key[0], entries[0].line.scale, sorted(entries, key=lambda entry: (entry.speedup, -entry.top1.value)))
        for key, entries in sorted(found.items())
        if sum(not entry.dense for entry in entries) >= _LEAST
    ]


def front(entries: Sequence[Entry]) -> list[Entry]:
    """The pruned entries that no other beats: none has more accuracy at as few MACs."""
    pruned = [entry for entry in entries if not entry.dense]
    return [
        entry
        for entry in pruned
        if not any(
            other.speedup >= entry.speedup
            and other.top1.value >= entry.top1.value
            and (other.speedup, other.top1.value) != (entry.speedup, entry.top1.value)
            for other in pruned
        )
    ]


def draw(group: Group, names: Mapping[str, str]) -> Figure:
    """Accuracy against MACs in percent of the dense network's; ``names`` are the papers' in short.

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
        worst = (f"{entry.line.name} {entry.top1.value:.1f} %" for entry in beyond)
        said.append(f"beyond the axis: {'; '.join(worst)}")
    if said:
        axes.set_title(textwrap.fill("; ".join(said), 100), fontsize=8, color="#333333", loc="left")
    legend(figure, axes)
    figure.suptitle(textwrap.fill(f"{group.title}; bars: 95 % intervals", 90), fontsize=11)
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


def write(root: Path, found: Mapping[str, Sequence[Line]], names: Mapping[str, str]) -> tuple[list[Path], list[str]]:
    """Writes the page with its pictures and values into ``root``; returns the files and the index's lines."""
    here = groups(line for lines in found.values() for line in lines)
    if not here:
        return [], []
    folder = root / FOLDER
    files: list[Path] = []
    text = ["# All methods on the same network", "", _ABOUT]
    index = ["## All methods on the same network", ""]
    for group in here:
        with mpl.rc_context(STYLE):
            pictures = save(draw(group, names), folder / f"{group.slug}.png")
        values = folder / f"{group.slug}.csv"
        write_text(values, csv_text(group))
        files += [*pictures, values]
        picture = f"![{group.title}]({{}}{quote(group.slug)}.png)"
        text += ["", f"## {markdown_text(group.title)}", "", picture.format(""), "", *_markdown(group, names), ""]
        text.append(f"Files: [every value (csv)]({quote(group.slug)}.csv), [picture (svg)]({quote(group.slug)}.svg)")
        index += [f"[{picture.format(f'{FOLDER}/')}]({FOLDER}/README.md)", ""]
    index += [f"[The tables behind]({FOLDER}/README.md)", ""]
    page = folder / "README.md"
    write_text(page, "\n".join(text) + "\n")
    return [*files, page], index


def _markdown(group: Group, names: Mapping[str, str]) -> list[str]:
    best = front(group.entries)
    lines = [
        "| method | paper | MACs | speed-up | top-1 (%) | top-1 change (pp) |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    for entry in group.entries:
        name = markdown_text(entry.line.name)
        change = entry.line.cells.get("top1_change")
        cells = [
            f"**{name}**" if entry in best else name,
            f"[{names.get(entry.line.paper, entry.line.paper)}](../{quote(entry.line.paper)}/README.md)",
            "" if entry.macs is None else size(entry.macs.value),
            f"{entry.speedup:.2f}x",
            cell_text(entry.top1),
            "" if change is None else cell_text(change),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def csv_text(group: Group) -> str:
    """Every entry unrounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["paper", "row", "method", "speedup", "macs", "top1_acc", "low", "high", "n", "seeds", "front"])
    best = front(group.entries)
    for entry in group.entries:
        cell = entry.top1
        macs = None if entry.macs is None else entry.macs.value
        values = (entry.speedup, macs, cell.value, cell.low, cell.high, cell.n, cell.seeds, entry in best)
        writer.writerow([entry.line.paper, entry.line.id, entry.method, *values])
    return file.getvalue()
