"""Promotes what a run measured into the committed results, where it comes from committed code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.report.load import RAN, Declarations, content, row_files
from bench.store import disk_errors, row_path, write_json


def accept(
    runs: Path, results: Path, papers: Sequence[str] | None, declared: Declarations, *, allow_dirty: bool = False
) -> list[Path]:
    """Copies row files from ``runs`` to ``results`` for these papers (all for None); returns the files written.

    Rows that no script declares any more are left out, and removed from ``results``.
    Rows that ran replace what is there; rows that did not are written only where nothing is, so that no measured value
    is lost.  Nothing is written at all when the code that made one of the rows was not committed, unless
    ``allow_dirty``, or when a row file is unreadable.  Raises :class:`UserError` for these and where nothing is found.
    """
    known = sorted({path.parts[-4] for path in row_files(runs)})
    if not known:
        raise UserError(f"no rows in {runs}: run `bench run` first, or name the run's folder")
    for paper in papers or []:
        if paper not in known:
            raise UserError(f"no rows of {paper!r} in {runs}: it has {', '.join(known)}")
    chosen = []
    for paper in papers or known:
        for path in row_files(runs, paper):
            row = content(path)
            if row["id"] not in declared.get(paper, {}):
                continue
            target = results / path.relative_to(runs)
            if row.get("status") == RAN:
                if not allow_dirty:
                    _check_code(path, row)
                chosen.append((target, row))
            elif not target.exists() and not any(target.parent.glob(f"{target.stem}--*.json")):
                chosen.append((target, row))
    for target, row in chosen:
        write_json(target, row)
        if row["status"] == RAN:  # the note that it could not run
            row_path(results, row["id"], {"scale": row["setting"]["scale"]}).unlink(missing_ok=True)
    for paper in papers or known:
        for old in row_files(results, paper):
            if content(old)["id"] not in declared.get(paper, {}):
                with disk_errors(old):
                    old.unlink()
    return [target for target, _ in chosen]


def _check_code(path: Path, row: dict[str, Any]) -> None:
    """Raises :class:`UserError` unless every step of the row was made by committed code."""
    commits = [step.get("provenance", {}).get("code") for step in row.get("steps", {}).values()] or [None]
    if None in commits:
        raise UserError(f"{path} does not say which commit made it: run the row again in a git checkout")
    if any(commit.endswith("-dirty") for commit in commits):
        raise UserError(f"{path} was made by code that is not committed: commit it and run the row again")
