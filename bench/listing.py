"""The rows of all papers as ``bench list`` shows them, remembered by the hash of the sources.

Asking the scripts means importing torch, which takes seconds; the list of rows changes with the sources alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import cache
from bench.errors import UserError


def rows(papers: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """The rows of these papers (all for none), and the same as text.

    Raises :class:`UserError` for an unknown paper.
    """
    known = index()
    for name in papers:
        if name not in known:
            raise UserError(f"unknown paper {name!r}: choose one of {', '.join(known)}")
    value, lines = [], []
    for key in papers or known:
        paper = known[key]
        lines.append(f"{key}: {paper['title']} ({paper['reference']})")
        table = None
        for row in paper["rows"]:
            if row["table"] != table:
                table = row["table"]
                lines.append(f"  {table}")
            scales = "" if row["scales"] is None else f"; runs at {', '.join(row['scales'])}"
            needs = f"not run: {row['missing']}" if row["missing"] else f"own scale {row['scale']}{scales}"
            lines.append(f"    {row['id'].partition('/')[2]}  {row['row']}  [{needs}]")
            value.append({"paper": key, **row})
    return value, "\n".join(lines)


def index() -> dict[str, Any]:
    """Title, reference and rows of every paper, by key."""
    found: dict[str, Any] = cache.remembered("index", "", _made)
    return found


def _made() -> dict[str, Any]:
    from bench import planning

    return {
        key: {
            "title": paper.title,
            "reference": paper.reference,
            "rows": [
                {
                    "id": name,
                    "table": row.table,
                    "row": row.name,
                    "scale": row.scale,
                    "scales": row.scales,
                    "missing": row.missing,
                }
                for name, row in paper.ids.items()
            ],
        }
        for key, paper in planning.papers().items()
    }
