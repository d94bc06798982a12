"""The table that people read: at most eight columns, one line for each published value; the rest is in other files.

Where rows stand beside published values: row, MACs, metric, ours with its interval, published, difference, verdict.
Elsewhere, in analogues and studies: row, MACs and the metrics that say most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median_low

import pandas as pd

from bench.metrics import Metric, size
from bench.registry import Published
from bench.report.cells import Cell
from bench.report.glossary import metric, position
from bench.report.load import Line

# a value that nobody could check, and one that others than the paper's authors report
DAGGER, DOUBLE_DAGGER = "†", "‡"
MARKS = {
    DAGGER: "not checked against the publication",
    DOUBLE_DAGGER: "reported by others than the paper's authors",
}
ROW, MACS, METRIC, OURS, VERDICT = "row", "MACs (speed-up)", "metric", "ours", "verdict"
PUBLISHED, DIFFERENCE, EXPECTED = "published", "difference", "expected (our arithmetic)"
MOST_COLUMNS = 8
# what the column of MACs says: of gated networks the mean over the images
_COUNTS, _SPEEDUPS = ("dynamic_macs", "macs"), ("dynamic_speedup", "speedup")
_POINTS = ("%", "pp", "points")


def readable(lines: Sequence[Line]) -> pd.DataFrame:
    """The lines (of one table and scale) as text, in their order; columns without any text are left out.

    Beside published values every line is there; elsewhere those that ran, or all with the reason where none did.
    """
    if any(line.links and not line.analogue for line in lines):
        counts = Counter(name for line in lines for name in line.links)
        linked, usual = sorted(counts, key=position), [name for name, _ in counts.most_common()]
        body = [text for line in lines for text in _judged(line, linked, usual, usual_seeds(lines))]
        if len({text[METRIC] for text in body if text[METRIC]}) == 1:
            (title,) = {text.pop(METRIC) for text in body} - {""}
            body = [
                {f"{OURS}: {title}" if name == OURS else name: cell for name, cell in text.items()} for text in body
            ]
    else:
        shown = [line for line in lines if line.ran] or lines
        chosen = _telling(shown)
        body = [_measured(line, chosen, _middle(shown), usual_seeds(shown)) for line in shown]
    frame = pd.DataFrame(body, dtype=object)
    kinds = {entry.kind for line in lines for entry in line.links.values()}
    if kinds == {"check"}:  # our own arithmetic is never called published
        frame = frame.rename(columns={PUBLISHED: EXPECTED})
    return frame[[name for name in frame.columns if name == ROW or bool((frame[name] != "").any())]]


def columns(lines: Sequence[Line], quoted: bool = True) -> list[str]:
    """The metrics of these lines that a table shows, in the order of their declarations.

    Left out is what its declaration leaves to the CSV file, always or beside what says the same or more, unless a
    published value is linked to it and it is to be ``quoted``.
    """
    present = {name for line in lines for name in line.cells}
    linked = {name for line in lines for name in line.links if quoted}

    def wanted(name: str) -> bool:
        known = metric(name)
        return name in linked or (known.shown and not any(other in present for other in known.beside))

    return sorted(filter(wanted, present), key=position)


def cell_text(cell: Cell) -> str:
    """A value with its interval; mean ± standard deviation over seeds where no interval is known."""
    shown = metric(cell.metric, cell.unit)
    if cell.low is not None and cell.high is not None:
        return f"{shown.number(cell.value)} [{shown.number(cell.low)}, {shown.number(cell.high)}]"
    if cell.sd is not None:
        return f"{shown.number(cell.value)} ± {shown.number(cell.sd, plus=False)}"
    return shown.number(cell.value)


def printed(entry: Published) -> str:
    """A published value as printed, with its unit, what it bounds, and its mark."""
    text = f"{entry.printed or '(unread)'} {entry.unit}".strip()
    if entry.bound:
        text = f"{'at most' if entry.direction == 'lower' else 'at least'} {text}"
    return text + mark(entry)


def mark(entry: Published) -> str:
    """What stands beside a value that no count holds; empty for the others."""
    if entry.origin == "others":
        return DOUBLE_DAGGER
    return "" if entry.verified else DAGGER


def row_name(line: Line, all_ours: bool, seeds: int | None = None) -> str:
    """The row's name, marked where it goes beyond a paper that has other rows, or is not over ``seeds`` seeds."""
    count = seeds_of(line)
    marks = ["beyond the paper"] if line.ours and not all_ours else []
    if seeds not in (None, count) and line.ran and line.cells:
        marks.append(f"{count} seed{'s' if count > 1 else ''}")
    return f"{line.name} [{', '.join(marks)}]" if marks else line.name


def macs_text(line: Line) -> str:
    """MACs of the network and how many times fewer they are; of a row that did not run at the paper's own shape."""
    claimed = "" if line.claimed is None else f"; claimed {line.claimed:g}x"
    count = next((line.cells[name] for name in _COUNTS if name in line.cells), None)
    ratio = next((line.cells[name] for name in _SPEEDUPS if name in line.cells), None)
    if count is not None:
        times = "" if ratio is None else f" ({ratio.value:.2f}x{claimed})"
        return cell_text(count) + times
    if ratio is not None:
        return f"({ratio.value:.2f}x{claimed})"
    if line.shape is None or line.points:  # a curve is of many networks
        return ""
    return f"{size(line.shape['macs']['conv'])} ({line.shape['speedup']:.2f}x{claimed})"


def difference(cell: Cell, entry: Published) -> float | None:
    """Ours minus the published value in the published unit; None where they cannot be subtracted."""
    if entry.value is None:
        return None
    if cell.unit == entry.unit or (cell.unit in _POINTS and entry.unit in _POINTS):
        return cell.value - entry.value
    return cell.value / 100.0 - entry.value if cell.unit in _POINTS and entry.unit == "" else None


def seeds_of(line: Line) -> int:
    """How many networks a row's values are over: one for given weights, whatever the seeds."""
    return max((cell.seeds for cell in line.cells.values()), default=0) or 1


def usual_seeds(lines: Sequence[Line]) -> int | None:
    """How many seeds most of the rows that ran are over, where they differ; the others are marked by theirs."""
    counts = Counter(seeds_of(line) for line in lines if line.ran and line.cells)
    return counts.most_common(1)[0][0] if len(counts) > 1 else None


def _judged(line: Line, linked: Sequence[str], usual: Sequence[str], seeds: int | None) -> list[dict[str, str]]:
    """A line for each published value of the row; one, without such, for a row beyond the paper."""
    names = [name for name in linked if name in line.links]
    if not names:  # what most of the paper's rows are judged by, else what says most
        names = [name for name in (*usual, *_telling([line])) if name in line.cells][:1]
    body = []
    for number, name in enumerate(names or [""]):
        cell, entry = line.cells.get(name), line.links.get(name)
        shown = metric(name, "" if cell is None else cell.unit)
        found = line.verdicts.get(name)
        verdict = "" if found is None else str(found)
        if not number and not line.ran:
            verdict = line.status
        apart = difference(cell, entry) if cell is not None and entry is not None else None
        body.append(
            {
                ROW: row_name(line, False, seeds) if number == 0 else "",
                MACS: macs_text(line) if number == 0 else "",
                METRIC: shown.title if name else "",
                OURS: "" if cell is None else cell_text(cell),
                PUBLISHED: "" if entry is None else printed(entry),
                DIFFERENCE: "" if apart is None else _signed(shown, apart),
                VERDICT: verdict,
            }
        )
    return body


def _signed(shown: Metric, value: float) -> str:
    """A difference of two values of a metric, with its sign."""
    text = shown.number(value, plus=False) if not shown.signed else shown.number(value)
    return text if text.startswith(("-", "+")) or value == 0 or not text.strip("0.") else f"+{text}"


def _telling(lines: Sequence[Line]) -> list[str]:
    """As many metrics as the table has room for, in order; what is declared minor goes first."""
    names = [name for name in columns(lines, quoted=False) if name not in (*_COUNTS, *_SPEEDUPS)]
    room = MOST_COLUMNS - (2 if any(macs_text(line) for line in lines) else 1) - len(_middle(lines))
    by_weight = sorted(names, key=lambda name: (metric(name).minor, position(name)))
    return sorted(by_weight[: max(0, room)], key=position)


def _middle(lines: Sequence[Line]) -> Mapping[str, tuple[str, float]]:
    """The columns of curves: each series at the middle of the speed-ups that all curves have, as (series, x)."""
    curves = [
        {point.x for point in line.points if point.series == series}
        for line in lines
        for series in {point.series for point in line.points}
    ]
    common = set.intersection(*curves) if curves else set()
    series = list(dict.fromkeys(point.series for line in lines for point in line.points))[: MOST_COLUMNS - 2]
    if not common:
        return {}
    middle = median_low(common)
    return {f"{name} at {middle:.3g}x": (name, middle) for name in series}


def _measured(
    line: Line, chosen: Sequence[str], curves: Mapping[str, tuple[str, float]], seeds: int | None
) -> dict[str, str]:
    """One line of an analogue or a study."""
    text = {ROW: row_name(line, True, seeds), MACS: macs_text(line), VERDICT: "" if line.ran else line.status}
    for name in chosen:
        cell = line.cells.get(name)
        text[metric(name, "" if cell is None else cell.unit).title] = "" if cell is None else cell_text(cell)
    for heading, (series, x) in curves.items():
        found = [point.cell for point in line.points if (point.series, point.x) == (series, x)]
        text[heading] = f"{cell_text(found[0])} {found[0].unit}" if found else ""
    return text
