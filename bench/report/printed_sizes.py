"""The sizes that a paper prints, decided from built networks: all in a table of their own, the wrong ones said."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bench.registry import Published
from bench.report.coverage import REASONS, Coverage
from bench.report.load import Declared
from bench.report.readable import MARKS, printed
from bench.report.render import markdown_text
from bench.store import write_text

if TYPE_CHECKING:
    from bench.sizes import Decided

_HEAD = ("table", "row", "size", "convention", "published", "ours", "verdict")
_ABOUT = (
    "Sizes follow from the shape of a network alone: it is built as the paper describes it and counted by the paper's "
    "convention, without data. `exact`: ours, rounded or cut to the printed digits, is what is printed."
)


def section(
    folder: Path, rows: Mapping[str, Declared], published: Sequence[Published], coverage: Coverage
) -> tuple[list[str], list[Path]]:
    """The part of a paper's page on its printed sizes, and the files that it links to; nothing where it prints none.

    All sizes with their verdicts, or why there is none, go to ``<folder>/tables/printed/``.
    """
    found = {one.published: one for row in rows.values() for one in row.sizes(published)}
    entries = [(outcome.published, outcome.text) for outcome in coverage.outcomes if outcome.published.kind == "size"]
    if not entries:
        return [], []
    lines = [_cells(entry, found.get(entry), said) for entry, said in entries]
    page, values = (folder / "tables" / "printed" / f"Sizes.{ending}" for ending in ("md", "csv"))
    write_text(page, "\n".join(["# Printed sizes", "", _ABOUT, "", *_table(lines)]) + "\n")
    write_text(values, _csv(entries, found))
    links = ", ".join(f"[{name}]({quote(path.relative_to(folder).as_posix())})" for name, path in
                      (("all of them", page), ("unrounded (csv)", values)))  # fmt: skip
    text = ["## Printed sizes", "", _ABOUT, ""]
    counts = ", ".join(f"{n} {word}" for word, n in Counter(cells[-1] for cells in lines).most_common())
    text.append(f"Of {len(entries)}: {counts} ({links}).")
    wrong = [cells for cells, (_, said) in zip(lines, entries, strict=True) if said == "wrong"]
    if wrong:
        text += ["", "Those that come out otherwise:", "", *_table(wrong)]
    return [*text, ""], [page, values]


def _cells(entry: Published, decided: Decided | None, said: str) -> tuple[str, ...]:
    ours = "" if decided is None or decided.value is None else _rounded(decided.value, entry)
    verdict = REASONS.get(said, said)
    verdict = verdict if entry.counted or decided is None else f"[{verdict}]"
    where = f"{entry.row} ({entry.model})" if entry.model and entry.model not in entry.row else entry.row
    return entry.table, where, entry.metric, entry.convention, printed(entry), ours, verdict


def _rounded(value: Fraction, entry: Published) -> str:
    """Two digits more than are printed, so that rounding and cutting can be seen."""
    digits = len(entry.printed.partition(".")[2]) + 2
    return f"{float(value):,.{digits}f}"


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    head = ["| " + " | ".join(_HEAD) + " |", "| :-- | :-- | :-- | :-- | --: | --: | :-- |"]
    signs = [sign for sign in MARKS if any(sign in cell for cells in lines for cell in cells)]
    foot = ["", "; ".join(f"{sign} {MARKS[sign]}" for sign in signs) + ": the verdict stands in brackets."]
    return [*head, *("| " + " | ".join(map(markdown_text, cells)) + " |" for cells in lines), *(foot if signs else [])]


def _csv(entries: Sequence[tuple[Published, str]], found: Mapping[Published, Decided]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    about = "table", "row", "model", "metric", "convention"
    writer.writerow([*about, "published", "unit", "verified", "origin", "ours", "outcome"])
    for entry, said in entries:
        decided = found.get(entry)
        ours = "" if decided is None or decided.value is None else float(decided.value)
        where = [getattr(entry, name) for name in about]
        writer.writerow([*where, entry.printed, entry.unit, entry.verified, entry.origin, ours, said])
    return file.getvalue()
