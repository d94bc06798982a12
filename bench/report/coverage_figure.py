"""The picture on the index: of each paper's published values, how many are decided, by which verdict, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import matplotlib.patches
from matplotlib.figure import Figure

from bench.report.coverage import Coverage
from bench.report.drawing import STYLE, save

# verdicts in colours that colour-blind readers tell apart, reasons in greys
_COLOURS = {
    "exact": "#0072B2",
    "reproduced": "#56B4E9",
    "better": "#009E73",
    "not reproduced": "#D55E00",
    "wrong": "#E69F00",
}
_DECIDED, _OPEN = tuple(_COLOURS), "not decided"
_GREY = "#d9d9d9"


def counted(coverages: Mapping[str, Coverage], titles: Mapping[str, str]) -> list[tuple[str, dict[str, int]]]:
    """The bars: what is counted (paper and kind of value), and the number of values by verdict; papers without values
    are left out."""
    bars = []
    for paper, coverage in coverages.items():
        for kind, words in (("accuracy", "accuracies"), ("size", "sizes")):
            decided, rest = coverage.decided(kind), sum(coverage.open(kind).values())
            numbers = {word: decided[word] for word in _DECIDED if decided[word]} | ({_OPEN: rest} if rest else {})
            if numbers:
                bars.append((f"{titles.get(paper, paper)}: {words}", numbers))
    return bars


def draw(coverages: Mapping[str, Coverage], titles: Mapping[str, str], path: Path) -> list[Path]:
    """Writes the picture, one bar for each paper and kind of value; returns its files."""
    bars = counted(coverages, titles)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.3 * len(bars) + 1.3))
        axes = figure.subplots()
        for place, (_, numbers) in enumerate(bars):
            left = 0
            for word, number in numbers.items():
                axes.barh(place, number, left=left, color=_COLOURS.get(word, _GREY), height=0.72)
                left += number
            decided = left - numbers.get(_OPEN, 0)
            axes.text(left + 1.5, place, f"{decided} of {left}", va="center", fontsize=8, color="#333333")
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("values of the papers that could be verified")
        present = [word for word in (*_DECIDED, _OPEN) if any(word in numbers for _, numbers in bars)]
        handles = [mpl.patches.Patch(color=_COLOURS.get(word, _GREY), label=word) for word in present]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        return save(figure, path)
