"""The rows of all papers as ``bench list`` shows them, remembered by the hash of the sources.

Asking the scripts means importing torch, which takes seconds; the list of rows changes with the sources alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import UserError

_KEPT = 8  # lists of other versions of the sources


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
    place = _folder() / f"index-{_sources()}.json"
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(place.read_text())
        return found
    made = _made()
    with contextlib.suppress(OSError):  # a cache: where it cannot be written the next call is as slow as this one
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{os.getpid()}")
        temporary.write_text(json.dumps(made))
        temporary.replace(place)
        old = sorted(place.parent.glob("index-*.json"), key=lambda path: path.stat().st_mtime)
        for path in old[:-_KEPT]:
            path.unlink()
    return made


def _made() -> dict[str, Any]:
    from bench import runner

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
        for key, paper in runner.papers().items()
    }


def _folder() -> Path:
    # the XDG specification: an empty value counts as none
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pruning-bench"


def _sources() -> str:
    hasher = hashlib.sha256()
    for package in ("bench", "reproductions"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            hasher.update(f"{package}/{path.relative_to(folder).as_posix()}\n".encode())
            hasher.update(path.read_bytes())
    return hasher.hexdigest()[:16]
