"""How a run ends on the screen: its tables under their titles, then what was found, in three lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import metrics
from bench.report import render
from bench.report.cells import Cell
from bench.report.chance import NEAR_CHANCE, failed
from bench.report.glossary import metric
from bench.report.load import Line
from bench.report.readable import cell_text
from bench.report.tables import Table
from bench.verdict import ANALOGUE


def text(tables: Sequence[Table], page: Path, failed: str = "") -> str:
    """The tables in which something ran, each under its title, one line about the others, and the three last lines.

    Footnotes and columns for which a terminal has no room stand on the page.

    ``failed`` says which rows failed, where some did; it stands before these three.
    """
    ran = [table for table in tables if any(line.ran for line in table.lines)]
    parts = [f"## {table.title}\n\n{render.screen(table).rstrip()}" for table in ran]
    if left_out := [table for table in tables if table not in ran]:
        names = list(dict.fromkeys(table.name for table in left_out))
        parts.append(f"Left out, nothing of them ran here: {', '.join(names)}")
    parts += [failed] if failed else []
    lines = [line for table in ran for line in table.lines]
    parts.append("\n".join([largest_effect(lines), verdicts_and_claims(lines), f"The page: {page}"]))
    return "\n\n".join(parts)


def to_json(tables: Sequence[Table]) -> dict[str, str]:
    """What was found, for machines: the two lines about it."""
    lines = [line for table in tables for line in table.lines if any(other.ran for other in table.lines)]
    return {"largest_effect": largest_effect(lines), "verdicts": verdicts_and_claims(lines)}


def largest_effect(lines: Iterable[Line]) -> str:
    """The difference of two methods, in points, that is largest in size, of those whose 95 % interval excludes zero.

    Trainings that failed are left out, claims to beat them, and claims that nobody could verify.  Where no methods were
    compared and the largest change is a loss, the best row of its table stands beside it.
    """
    ran = [line for line in lines if line.ran]
    told = [line for line in ran if not _excused(line)]
    clear = [(line, line.cells[name]) for name in _effects() for line in told if _clear(line.cells.get(name))]
    # of two methods first: a row that prunes badly is as far from its dense network as one likes
    found = [pair for pair in clear if pair[1].metric.endswith("_difference")]
    if not clear:
        return "Largest effect: none, every interval of a difference holds zero."
    if found:
        line, cell = max(found, key=lambda pair: abs(pair[1].value))
        return f"Largest effect: {_told(line, cell, _name(line))}."
    line, cell = max(clear, key=lambda pair: abs(pair[1].value))
    beside = [(other, other.cells[cell.metric]) for other in told
              if (other.table, other.scale) == (line.table, line.scale) and cell.metric in other.cells]  # fmt: skip
    best, its = max(beside, key=lambda pair: pair[1].value)
    if best is line or cell.value > 0.0:
        return f"Largest effect: {_told(line, cell, line.name)}."
    shown = metric(its.metric, its.unit)
    # mAP stays mAP
    heading = shown.heading if shown.heading[1:2].isupper() else f"{shown.heading[:1].upper()}{shown.heading[1:]}"
    return (
        f"{heading} from {cell_text(its)} {shown.unit} ({best.name}) down to "
        f"{cell_text(cell)} {shown.unit} ({line.name}); {line.table}, {line.scale}."
    )


def answered(lines: Sequence[Line]) -> str:
    """The first difference (in points) of each row, by scale, in the lines' order; empty where none was measured."""
    found: dict[str, list[str]] = {}
    for line in lines:
        shown = [line.cells[name] for name in _effects() if name in line.cells]
        if shown:
            heading = metric(shown[0].metric, shown[0].unit)
            said = f"{_name(line)}: {heading.heading} {cell_text(shown[0])} {heading.unit}"
            found[line.scale] = [*found.get(line.scale, []), said]
    parts = [f"{'; '.join(said)} ({scale})" for scale, said in found.items()]
    return f"Measured: {'. '.join(parts)}." if parts else ""


def _name(line: Line) -> str:
    """The row's; of a claim the two rows that it compares."""
    return line.name if line.claim is None else f"{line.claim.first} against {line.claim.second}"


def _effects() -> list[str]:
    """The metrics that are differences in points, but those from a control."""
    return [m.name for m in metrics.declared().values() if m.panel == 1 and not m.name.endswith(metrics.CONTROL)]


def _excused(line: Line) -> bool:
    """Whether a training failed, the row is a claim to beat one that did, or one not checked in the publication."""
    found = line.decision
    if found is None:
        return failed(line)
    return found.reason.endswith(NEAR_CHANCE) or not found.verified


def _told(line: Line, cell: Cell, name: str) -> str:
    """``top-1 difference +3.6 [+2.8, +4.4] pp, A against B (Table 1, cifar10)``."""
    shown = metric(cell.metric, cell.unit)
    return f"{shown.heading} {cell_text(cell)} {shown.unit}, {name} ({line.table}, {line.scale})"


def verdicts_and_claims(lines: Sequence[Line]) -> str:
    """How many published values and claims got which verdict; those on unverified values and analogues stand apart."""
    verdicts: Counter[str] = Counter()
    claims: Counter[str] = Counter()
    analogues = 0
    for line in lines:
        if line.claim is not None:
            claims[_outcome(line)] += 1
        elif line.ran and line.analogue:
            analogues += 1
        verdicts.update(f"[{found.word}]" if not found.verified else found.word for found in line.verdicts.values())
    said = [f"Verdicts: {_counted(verdicts) or 'none'}"]
    if analogues:
        rows = f"{analogues} row{'s' if analogues > 1 else ''}"
        said.append(f"{rows} on other data than the paper's, which get none ({ANALOGUE})")
    said.append(f"claims: {_counted(claims) or 'none'}")
    return f"{'; '.join(said)}."


def _clear(cell: Cell | None) -> bool:
    """Whether the interval lies on one side of zero."""
    return cell is not None and cell.low is not None and cell.high is not None and (cell.low > 0.0 or cell.high < 0.0)


def _outcome(line: Line) -> str:
    """A claim's verdict without its reason."""
    if line.decision is None:
        return "not run" if not line.ran else "not measured"
    word = line.decision.word if line.decision.verified else f"[{line.decision.word}]"
    return f"{word} ({ANALOGUE})" if line.analogue else word


def _counted(words: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in words.most_common())
