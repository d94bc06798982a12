"""Which row of a run stands against one of the baseline, or why none does."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import planning
from bench.data import EMBEDDED
from bench.nightly import settings
from bench.nightly.night import Night
from bench.nightly.order import EMBEDDED_SCALE
from bench.report.load import RAN, content


@dataclass(frozen=True)
class Match:
    """The row ``now``; else why it is ``missing``, or in which choices it is ``other`` than the baseline's."""

    now: Mapping[str, Any] | None = None
    missing: str = ""
    other: str = ""


def files_of(done: Night, out: Path) -> dict[str, Path]:
    """The files of the rows that a night measured, by row, in the folder ``out`` wherever it has been moved to."""
    return {name: out.joinpath(*path.parts[-4:]) for name, path in done.files.items()}


def in_run(before: Mapping[str, Any], runs: Path, place: Path) -> Match:
    """The file of the same name in ``runs``, else the only one of the row that differs in its data alone."""
    if (runs / place).exists():
        return _ran(content(runs / place))
    stem = place.name.rpartition("--")[0]
    rows = [content(path) for path in sorted((runs / place.parent).glob(f"{stem}--*.json"))]
    like = [row for row in rows if row["id"] == before["id"] and _alike(before, row)]
    if len(like) > 1:  # no clock says which of them counts
        return Match(missing=f"was measured on {len(like)} other data sets: leave one of them in {runs}")
    return _ran(like[0]) if like else Match(missing="was not run")


def in_night(
    before: Mapping[str, Any], done: Night, out: Path, held: Set[tuple[str, str]] = frozenset()
) -> Match | None:
    """The row as the night measured it; None for rows that it was not asked for or had no time for.

    ``held`` are the baseline's rows with their scales: one that moved to a scale which none of them has is missing.
    """
    name, scale = before["id"], before["setting"]["scale"]
    file = files_of(done, out).get(name)
    if file is not None:
        now = content(file)
        if (here := now["setting"]["scale"]) != scale:
            moved = _asked(before, done) and (name, here) not in held
            return Match(missing=f"was measured on {here} instead: accept a new baseline") if moved else None
        if other := settings.differing(settings.chosen(before), settings.chosen(now)):
            return Match(other=other)
        if (seeds := _seeds(before)) != _seeds(now):
            words = f"seeds {seeds} before, {_seeds(now)} now"
            one = done.arguments.get("seed") is not None
            return Match(other=words) if one else Match(missing=f"{words}: accept a new baseline")
        return _ran(now)
    if name in done.left or not _asked(before, done):
        return None
    if name in done.elsewhere:  # the night took other data for its paper; it was once meant for the baseline's
        if _is_meant(name, scale):
            return None
        return Match(missing=f"{done.elsewhere[name]}, not on {scale} any more")
    if other := _other_night(before, done):
        return Match(other=other)
    if (report := done.rows.get(name)) is not None:
        return Match(missing=f"{report.status}: {report.reason}")
    if name in done.not_run:
        return Match(missing=f"cannot run any more: {done.not_run[name]}")
    return Match(missing="no script has this row at this scale any more")


def dropped(before: Mapping[str, Any], done: Night) -> bool:
    """Whether no night like this one will measure the row again: no script has it, or has it at this scale."""
    name, scale = before["id"], before["setting"]["scale"]
    if not _asked(before, done):
        return False
    paper = planning.scripts()[0].get(name.partition("/")[0])
    return paper is not None and (name not in paper.ids or not _is_meant(name, scale))


def _is_meant(name: str, scale: str) -> bool:
    """Whether a row is meant for a scale, as far as a script knows it."""
    known, _ = planning.scripts()
    paper = known.get(name.partition("/")[0])
    row = None if paper is None else paper.ids.get(name)
    return row is None or row.scales is None or scale in row.scales


def _ran(row: Mapping[str, Any]) -> Match:
    return Match(row) if row["status"] == RAN else Match(missing=str(row["status"]))


def _alike(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return settings.chosen(before) == settings.chosen(now) and _seeds(before) == _seeds(now)


def _seeds(row: Mapping[str, Any]) -> list[int]:
    return list(row["setting"].get("seeds", ()))


def _asked(row: Mapping[str, Any], done: Night) -> bool:
    """Whether the night was asked for the row at its scale."""
    setting, papers = row["setting"], done.arguments.get("papers")
    paper = row["id"].partition("/")[0]
    known, broken = planning.scripts()
    if (papers and paper not in papers) or paper in broken:  # a broken script is told as that
        return False
    scale = done.arguments.get("scale")
    if scale == EMBEDDED_SCALE:
        return setting["scale"] in EMBEDDED and not setting.get("folder")
    if scale is None:  # each row at its own; of one that no script has any more nobody knows it
        own = known[paper].ids.get(row["id"]) if paper in known else None
        return own is None or own.scale == setting["scale"]
    name = Path(scale).name
    return bool(name == setting["scale"] and (name != scale) == bool(setting.get("folder")))


def _other_night(before: Mapping[str, Any], done: Night) -> str:
    """In which of the night's choices a row that it did not measure differs; empty where in none."""
    found = {"device": before["setting"].get("device"), "weights": settings.weights(before)}
    asked = {name: done.arguments.get(name, value) for name, value in found.items()}
    return settings.differing(found, asked)
