"""The page of all methods on the same network: pictures, tables and values."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import matplotlib as mpl

from bench.metrics import size
from bench.report.drawing import STYLE, save
from bench.report.leaderboard import Entry, Group, front, groups, speeds, standings
from bench.report.leaderboard_figure import draw
from bench.report.load import Line
from bench.report.readable import cell_text
from bench.report.render import markdown_text
from bench.store import write_text

FOLDER = "same-network"
_ABOUT = (
    "This page is generated from the row files; edits are overwritten.\n\nRows of all papers that start from the same "
    "weights and are measured on the same images. A network that several papers' rows show stands here once. Epochs "
    "are those of training after the dense network, 0 where nothing follows the pruning. **Bold**: no other trained as "
    "long or shorter has more accuracy at as few MACs (to a hundredth), by the values; whether a difference is more "
    "than chance a paper's contrasts tell, not two intervals. Changes are from the dense network. A row's name is that "
    "of its paper's page, where it says how it was pruned: rows of one name on two pages may differ in that."
)


_CHANGE = ("top1_change", "change_low", "change_high")


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
    """A table of each standing, the dense networks on top of the first."""
    best, lines = front(group.entries), []
    dense = [entry for entry in group.entries if entry.dense]
    for part in standings(group.entries):
        lines += [
            f"### {speeds(part)}",
            "",
            "| method | paper | MACs | speed-up | epochs | seeds | top-1 (%) | top-1 change (pp) |",
            "| :-- | :-- | --: | --: | --: | --: | --: | --: |",
            *(_row(group, entry, entry in best, names) for entry in [*dense, *part]),
            "",
        ]
        dense = []
    return lines[:-1]


def _row(group: Group, entry: Entry, best: bool, names: Mapping[str, str]) -> str:
    name = markdown_text(group.name(entry))
    change = entry.line.cells.get("top1_change")
    cells = [
        f"**{name}**" if best else name,
        f"[{names.get(entry.line.paper, entry.line.paper)}](../{quote(entry.line.paper)}/README.md)",
        "" if entry.macs is None else size(entry.macs.value),
        f"{entry.speedup:.2f}x",
        str(entry.epochs),
        str(entry.top1.seeds),
        cell_text(entry.top1),
        "" if change is None else cell_text(change),
    ]
    return "| " + " | ".join(cells) + " |"


def csv_text(group: Group) -> str:
    """Every entry unrounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    top1 = ("top1_acc", "low", "high", "n", "seeds")
    writer.writerow(["paper", "row", "name", "speedup", "macs", "epochs", *top1, *_CHANGE, "front"])
    best = front(group.entries)
    for entry in group.entries:
        cell = entry.top1
        macs = None if entry.macs is None else entry.macs.value
        values = (entry.speedup, macs, entry.epochs, cell.value, cell.low, cell.high, cell.n, cell.seeds)
        change = entry.line.cells.get("top1_change")
        changes = ("", "", "") if change is None else (change.value, change.low, change.high)
        writer.writerow([entry.line.paper, entry.line.id, group.name(entry), *values, *changes, entry in best])
    return file.getvalue()
