"""Promotes what a run measured into the committed results, where it comes from committed code."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.report.load import RAN, Declarations, content, row_files
from bench.store import disk_errors, row_path, write_json

# where a row file goes, and what it holds
Chosen = list[tuple[Path, dict[str, Any]]]


def accept(
    runs: Path, results: Path, papers: Sequence[str] | None, declared: Declarations, *, allow_dirty: bool = False
) -> list[Path]:
    """Copies row files from ``runs`` to ``results``, :func:`choose` and :func:`write`; returns the files written."""
    chosen = choose(runs, results, papers, declared, allow_dirty=allow_dirty)
    return write(runs, results, papers, declared, chosen)


def choose(
    runs: Path,
    results: Path,
    papers: Sequence[str] | None,
    declared: Declarations,
    *,
    allow_dirty: bool = False,
    only: Collection[Path] | None = None,
) -> Chosen:
    """The row files in ``runs`` of these papers (all for None) that go to ``results``; nothing is written yet.

    With ``only`` no others than these files.  Rows that no script declares any more are left out.  Rows that ran
    replace what is there; rows that did not are taken only where nothing was measured, so that no value is lost.
    Raises :class:`UserError` where the code that made one of the rows was not committed, unless ``allow_dirty``, where
    a row file is unreadable, and where nothing is found.
    """
    chosen = []
    for paper in _papers(runs, papers):
        for path in row_files(runs, paper):
            if only is not None and path not in only:
                continue
            row = content(path)
            if row["id"] not in declared.get(paper, {}):
                continue
            target = results / path.relative_to(runs)
            if row.get("status") == RAN:
                if not allow_dirty:
                    _check_code(path, row)
                chosen.append((target, row))
            elif not any(target.parent.glob(f"{target.stem}--*.json")) and not _stays(target, row["status"]):
                chosen.append((target, row))
    return chosen


def _stays(path: Path, reason: str) -> bool:
    """Whether a row file that is there stays: it holds what was measured, or says the same ``reason``."""
    return path.exists() and content(path)["status"] in (RAN, reason)


def write(
    runs: Path, results: Path, papers: Sequence[str] | None, declared: Declarations, chosen: Chosen
) -> list[Path]:
    """Writes what was chosen, and removes rows that no script declares any more; returns the files written."""
    for target, row in chosen:
        write_json(target, row)
        if row["status"] == RAN:  # the note that it could not run
            row_path(results, row["id"], {"scale": row["setting"]["scale"]}).unlink(missing_ok=True)
    for paper in _papers(runs, papers):
        for old in row_files(results, paper):
            if content(old)["id"] not in declared.get(paper, {}):
                with disk_errors(old):
                    old.unlink()
    return [target for target, _ in chosen]


def _papers(runs: Path, papers: Sequence[str] | None) -> Sequence[str]:
    """The named papers, or all that have rows in ``runs``.  Raises :class:`UserError` where there are none."""
    known = sorted({path.parts[-4] for path in row_files(runs)})
    if not known:
        raise UserError(f"no rows in {runs}: run `bench run` first, or name the run's folder")
    for paper in papers or []:
        if paper not in known:
            raise UserError(f"no rows of {paper!r} in {runs}: it has {', '.join(known)}")
    return papers or known


def _check_code(path: Path, row: dict[str, Any]) -> None:
    """Raises :class:`UserError` unless every step of the row was made by committed code."""
    commits = [step.get("provenance", {}).get("code") for step in row.get("steps", {}).values()] or [None]
    if None in commits:
        raise UserError(f"{path} does not say which commit made it: run the row again in a git checkout")
    if any(commit.endswith("-dirty") for commit in commits):
        raise UserError(f"{path} was made by code that is not committed: commit it and run the row again")
