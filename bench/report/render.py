"""Tables as Markdown, CSV, LaTeX (booktabs) and self-contained HTML, and as plain text for a terminal."""

from __future__ import annotations

import csv
import html
import io
import itertools
import re
import textwrap
from collections.abc import Sequence

import pandas as pd

from bench.report.readable import VERDICT
from bench.report.tables import Table, long

UNLINKED = "Published, not run here"
# of a terminal, in characters: its width, that of a row's name, and what is left out first where there is no room
_SCREEN, _NAME = 120, 56
_SPARE = ("params", "first", "second", "smallest of interest")
_GOOD = ("reproduced", "better", "exact", "holds")
_BAD = ("not reproduced", "wrong", "does not hold")
_OPEN = ("inconclusive", "undecided")
# blue and orange, which colour-blind readers tell apart; the word says it too
_CSS = """
body { font: 15px/1.4 sans-serif; margin: 2em; color: #1a1a1a; }
table { border-collapse: collapse; } th, td { padding: 0.25em 0.7em; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-top: 2px solid; border-bottom: 1px solid; } tbody tr:last-child td { border-bottom: 2px solid; }
.good { background: #cfe3f5; } .bad { background: #fbdcc4; } .open { background: #e6e6e6; }
.notes { font-size: 0.9em; }
"""
# fmt: off
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    # a bracket after a line's end would be read as the argument of the line break
    "[": "{[}", "]": "{]}", "|": r"\textbar{}", '"': "''",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$",
    "±": r"$\pm$", "\u00d7": r"$\times$", "\u2013": "--", "\u2212": "$-$", "…": r"\ldots{}",
    "≤": r"$\leq$", "≥": r"$\geq$", "Δ": r"$\Delta$", "λ": r"$\lambda$", "ε": r"$\epsilon$", "→": r"$\to$",
}
# fmt: on
# of a LaTeX table: the longest name of a row, in characters, that stands in one line, and the width of the others
_TEX_NAME, _TEX_WIDTH = 18, "27mm"
# the fonts of values and of what stands below them; with more columns than these they are smaller
_TEX_COLUMNS, _TEX_FONTS, _TEX_SMALLER = 7, (r"\footnotesize", r"\scriptsize"), (r"\scriptsize", r"\tiny")


def markdown(table: Table) -> str:
    """A GitHub table, its footnotes and the published rows that were not run."""
    below = markdown_notes(table)
    return markdown_table(table) + (f"\n{below}" if below else "")


def markdown_table(table: Table) -> str:
    """A GitHub table."""
    frame = table.frame
    head = [markdown_text(name) for name in frame.columns]
    rule = [":--", *("--:" for _ in head[1:])]
    body = [[markdown_text(str(text)) for text in row] for row in frame.to_numpy()]
    lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]
    return "\n".join(lines) + "\n"


def markdown_notes(table: Table) -> str:
    """The footnotes, and the published rows that were not run; empty where there are none."""
    lines = [f"- {markdown_text(note)}" for note in table.notes]
    if table.unlinked:
        lines += [*([""] if lines else []), f"{UNLINKED}:", "", *(f"- {markdown_text(row)}" for row in table.unlinked)]
    return "\n".join(lines) + "\n" if lines else ""


def screen(table: Table) -> str:
    """Aligned text without footnotes, for a terminal of 120 characters: the columns that say most, at least two."""
    frame = table.frame.astype(str)
    names = list(frame.columns)
    wrapped = [textwrap.wrap(text, _NAME) or [""] for text in frame.iloc[:, 0]]
    widths = {name: max(len(name), int(frame[name].str.len().max())) for name in names}
    left = widths[names[0]] = max(len(line) for line in (names[0], *itertools.chain(*wrapped)))
    # the verdict, at the right, stays
    spare = [*(name for name in _SPARE if name in names), *(name for name in names[:1:-1] if name != VERDICT)]
    while spare and sum(widths[name] + 2 for name in names) - 2 > _SCREEN:
        if (least := spare.pop(0)) in names:
            names.remove(least)
    lines = ["  ".join([names[0].ljust(left), *(name.rjust(widths[name]) for name in names[1:])])]
    for first, row in zip(wrapped, frame.to_dict("records"), strict=True):
        lines.append("  ".join([first[0].ljust(left), *(row[name].rjust(widths[name]) for name in names[1:])]))
        lines += [f"  {more}" for more in first[1:]]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is; backticks are left for code."""
    return re.sub(r"([\\|*<~])", r"\\\1", text).replace("\n", " ")


def csv_text(table: Table) -> str:
    """Every measured value, unrounded, one a line; empty where there is none."""
    rows = long(table)
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def latex(table: Table) -> str:
    """A tabular that needs the package booktabs only, with its notes below, to be put into a table environment.

    What stands in brackets goes below its value, so that eight columns fit a page 6.5 inches wide.
    """
    frame = table.frame
    narrow = any(len(str(name)) > _TEX_NAME for name in frame.iloc[:, 0])
    first, turned = (rf"p{{{_TEX_WIDTH}}}", r"\raggedright ") if narrow else ("l", "")
    font, small = _TEX_FONTS if frame.shape[1] <= _TEX_COLUMNS else _TEX_SMALLER
    lines = [rf"{{{font}\setlength{{\tabcolsep}}{{2.5pt}}"]
    lines += [rf"\begin{{tabular}}{{{first}{'r' * (frame.shape[1] - 1)}}}", r"\toprule"]
    lines += [" & ".join(_heading(name) for name in frame.columns) + r" \\", r"\midrule"]
    for name, *texts in frame.astype(str).to_numpy():
        lines.append(
            " & ".join([turned + tex(name), *(_stacked(text, small) for text in texts)]) + r" \\ \addlinespace[2pt]"
        )
    lines += [r"\bottomrule", r"\end{tabular}}"]
    below = list(table.notes)
    if table.unlinked:
        below += [f"{UNLINKED}:", *table.unlinked]
    if below:
        lines += ["", r"\par\smallskip\footnotesize\sloppy", *(rf"\noindent {tex(note)}\par" for note in below)]
    return "\n".join(lines) + "\n"


def _stacked(text: str, font: str) -> str:
    """A cell of LaTeX: the interval, or what else stands in brackets or behind ±, in ``font`` on a line of its own."""
    parts = [part for part in re.split(r" (?=[\[(±])", text) if part]
    small = [rf"{{{font} {tex(line)}}}" for part in parts[1:] for line in textwrap.wrap(part, 22)]
    return _lines([*(tex(line) for line in textwrap.wrap(parts[0], 22) or [""]), *small]) if parts else ""


def _heading(text: str) -> str:
    """A heading of LaTeX, in lines of a dozen characters where its words allow that."""
    return _lines([tex(line) for line in textwrap.wrap(text, 12, break_long_words=False, break_on_hyphens=False)])


def _lines(lines: Sequence[str]) -> str:
    if len(lines) == 1:
        return lines[0]
    return "".join([r"\begin{tabular}[t]{@{}r@{}}", r"\\ ".join(lines), r"\end{tabular}"])


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped; a minus before a digit becomes one in mathematics."""
    escaped = "".join(_TEX.get(character, character) for character in text.replace("`", ""))
    return re.sub(r"(^|[ }])-(?=\d)", r"\1$-$", escaped)


def html_page(table: Table) -> str:
    """A page of its own without scripts or other files: the readable table, then every metric of every row.

    Verdicts are coloured, analogues never.
    """
    title = html.escape(f"{table.name} ({table.scale})")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<h1>{title}</h1>",
        _html_table(table.frame),
        _html_list(table.notes),
        f"<p>{UNLINKED}:</p>\n{_html_list(table.unlinked)}" if table.unlinked else "",
        f"<h2>All metrics</h2>\n{_html_table(table.full)}" if not table.full.equals(table.frame) else "",
        "</body>\n</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _html_table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in frame.columns)
    body = []
    for row in frame.to_dict("records"):
        cells = [_verdict(str(text)) if name == VERDICT else html.escape(str(text)) for name, text in row.items()]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join([f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>", *body, "</tbody>\n</table>"])


def _html_list(texts: Sequence[str]) -> str:
    items = "\n".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<ul class="notes">\n{items}\n</ul>' if texts else ""


def _verdict(text: str) -> str:
    """Each of a cell's verdicts (``top-1: better; top-5: exact``) in its colour."""
    parts = []
    for part in text.split("; "):
        # neither analogues nor verdicts in brackets (on unverified values) have a colour
        word = "" if "(analogue)" in part else part.rsplit(": ", 1)[-1].partition(" (")[0]
        colour = "good" if word in _GOOD else "bad" if word in _BAD else "open" if word in _OPEN else ""
        escaped = html.escape(part)
        parts.append(f'<span class="{colour}">{escaped}</span>' if colour else escaped)
    return "; ".join(parts)
