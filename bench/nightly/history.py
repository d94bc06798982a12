"""What each night measured: one line a row in ``<out>/nightly/history.jsonl``, oldest first, never rewritten."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import metrics as declarations
from bench.errors import UserError
from bench.nightly import drift, makings
from bench.report.cells import aggregate
from bench.report.load import content
from bench.store import disk_errors, make_folder

NAME = "nightly/history.jsonl"
# what of a setting makes two nights' rows comparable
_SETTING = ("scale", "seeds", "device")
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Entry:
    """One row of one night.

    ``night`` counts the nights of this folder (no clock is asked), ``metrics`` are value, low and high by name; those
    of a row that failed are empty.  ``data`` is the data set's fingerprint, ``commit`` the code's.
    """

    night: int
    row: str
    setting: str
    status: str
    minutes: float
    date: str
    commit: str | None
    data: str | None
    metrics: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


def setting_of(row: Mapping[str, Any]) -> str:
    """The part of a row file's setting that comparable nights share, and what its networks and times are from."""
    parts = [f"{name} {row['setting'].get(name)}" for name in _SETTING]
    if given := row["setting"].get("weights"):
        parts.append(f"weights {str(given['sha256'])[:12]}")
    for title, of in (("made on", makings.made_on), ("timed on", makings.timed_on)):
        parts += [f"{title} {' and '.join(map(str, found))}"] if (found := sorted(of(row))) else []
    if counts := makings.processes(row) - {0}:
        parts.append(f"times of {' and '.join(map(str, sorted(counts)))} processes")
    return ", ".join(parts)


def metrics_of(row: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Value, low and high of each metric of a row file, curves left out."""
    cells, _ = aggregate(row["records"])
    return {name: [cell.value, cell.low, cell.high] for name, cell in cells.items()}


def entry(night: int, name: str, status: str, minutes: float, date: str, file: Path | None) -> Entry:
    """A row's line, with what its file holds where it has one."""
    if file is None:
        return Entry(night, name, "", status, minutes, date, None, None)
    row = content(file)
    commits = sorted({str(step["provenance"]["code"]) for step in row["steps"].values()})
    data = row["setting"].get("data") or {}
    metrics = metrics_of(row)
    return Entry(
        night, name, setting_of(row), status, minutes, date, " ".join(commits), data.get("fingerprint"), metrics
    )


def append(out: Path, line: Entry) -> None:
    """Adds one line, whole or not at all: a line without its end is left out when it is read."""
    path = out / NAME
    text = json.dumps(asdict(line), allow_nan=False) + "\n"
    make_folder(path.parent)
    with disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":  # the last writer was killed in the middle
                text = "\n" + text
            if os.write(handle, whole := text.encode()) < len(whole):
                raise OSError(errno.ENOSPC, "the line was cut")
            os.fsync(handle)
        finally:
            os.close(handle)


def read(out: Path) -> list[Entry]:
    """All lines, oldest night first; of several for one row and night the last one."""
    found: dict[tuple[int, str], Entry] = {}
    try:
        lines = (out / NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            one = Entry(**json.loads(line))
        except (ValueError, TypeError):
            continue  # written half
        found[one.night, one.row] = one
    return sorted(found.values(), key=lambda one: one.night)


def series(entries: Iterable[Entry], row: str, metric: str) -> list[tuple[int, float]]:
    """One metric of one row over the nights as (night, value), in the setting and on the data of its latest night."""
    own = [one for one in entries if one.row == row and one.metrics]
    if not own:
        return []
    return [
        (one.night, float(one.metrics[metric][0] or 0.0))
        for one in own
        if (one.setting, one.data) == (own[-1].setting, own[-1].data) and metric in one.metrics
    ]


def judged(entries: Iterable[Entry]) -> list[str]:
    """The metrics in these lines that can get better or worse, those of a family by their own names."""
    names = dict.fromkeys(name for one in entries for name in one.metrics)
    return [name for name in names if (known := declarations.find(name)) is not None and known.better]


def drifts(entries: Sequence[Entry]) -> list[tuple[str, str, int, drift.Drift]]:
    """Drifts of what can get better or worse in all rows, as (row, metric, night it began, drift)."""
    by_row: dict[str, list[Entry]] = {}
    for one in entries:
        by_row.setdefault(one.row, []).append(one)
    found = []
    for row, own in by_row.items():
        for metric in judged(own):
            points = series(own, row, metric)
            alarm = drift.find([value for _, value in points])
            if alarm is not None:
                found.append((row, metric, points[alarm.since][0], alarm))
    return found


def text(entries: Sequence[Entry], row: str) -> str:
    """A row's nights for people: for each metric a bar for each night, its range, and a drift where there is one."""
    lines = [row]
    for metric in judged(one for one in entries if one.row == row):
        points = series(entries, row, metric)
        if points:
            values = [value for _, value in points]
            alarm = drift.find(values)
            told = "" if alarm is None else f"; drifts {alarm.direction} since night {points[alarm.since][0]}"
            ends = f"{min(values):.4g} to {max(values):.4g}, last {values[-1]:.4g}"
            lines.append(f"  {metric}: {bars(values)} ({len(values)} nights, {ends}{told})")
    if len(lines) == 1:
        raise UserError(f"no night has measured {row}: see `bench nightly --plan`")
    return "\n".join(lines)


def bars(values: Sequence[float]) -> str:
    """One character for each value, by its height between the smallest and the largest."""
    low, high = min(values), max(values)
    if high == low:
        return _BARS[3] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)
