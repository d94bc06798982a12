"""A run against a baseline, row by row and metric by metric: the same, better, worse, or not to be told.

The threshold of a metric is the larger of its tolerance and the measured noise of the difference (half its 95 %
interval, which is twice its standard error): of accuracies the paired interval over the test images where the baseline
kept its predictions, else the two intervals of the values together.  What was counted, not measured, has no noise.

Milliseconds are those of a machine's hour: an unchanged network takes half as long again while neighbours compute, and
no interval within a run sees that.  So the times of a row are compared in units of its first one, the dense network's,
which was taken in turns with them; that one itself fails no night.

Another processor, or another number of threads, rounds otherwise: it trains other networks, as another seed does, and
has other speed-ups.  Beside a baseline from elsewhere a time is never better or worse, a value of networks that were
made there only where there are seeds enough to tell by how much such networks differ, and a size only by more than 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from bench import metrics
from bench.errors import UserError
from bench.measure.statistics import interval_of_change
from bench.nightly import baseline
from bench.report.cells import Cell, aggregate
from bench.report.load import RAN, content, row_files
from bench.store import Store
from bench.verdict import LEAST_RUNS

PAIRED_METRIC = "top1_acc"


class Word(StrEnum):
    """What became of a value; ``worse`` and ``missing`` fail."""

    SAME = "SAME"
    BETTER = "BETTER"
    WORSE = "WORSE"
    AMBIGUOUS = "AMBIGUOUS"
    MISSING = "MISSING"


FAILING = (Word.WORSE, Word.MISSING)


@dataclass(frozen=True)
class Tolerance:
    """``least`` is the difference that nobody minds, ``seen`` the one that a comparison must be able to see.

    In the metric's unit, or, ``relative``, as a share of the value before.
    """

    least: float
    seen: float
    relative: bool = False


# percentage points; times and their ratios, of which a shared machine's neighbours move even those by a few per cent;
# everything else that has an interval
_POINTS, _TIMES, _OTHERS = Tolerance(0.1, 1.0), Tolerance(0.1, 0.15, True), Tolerance(0.02, 0.2, True)
_IN_POINTS, _IN_TIME = ("%", "pp", "points"), ("ms", "s", "us", "x")
# by so much sizes may differ that follow from data on other hardware
_SIZES = 0.05
_ABSOLUTE, _REALISED = ("ms", "s", "us"), "realised"


@dataclass(frozen=True)
class Compared:
    """One metric of one row: before, now, the threshold in its unit, and what it comes to.

    Of a time that is compared in units of the dense network's, ``before`` is what it would have been in this run.
    ``elsewhere``: it would be better or worse, and was not made or timed on the same hardware.  ``changed`` counts the
    test images whose prediction differs (None: not compared image by image).
    """

    metric: str
    before: float
    now: float | None
    threshold: float
    word: Word
    changed: int | None = None
    elsewhere: bool = False

    @property
    def difference(self) -> float | None:
        """Now minus before, in the metric's unit."""
        return None if self.now is None else self.now - self.before


@dataclass(frozen=True)
class RowCheck:
    """One row: its metrics, and where one failed what differs in how the two were made."""

    id: str
    scale: str
    compared: Sequence[Compared] = ()
    missing: str = ""
    differs: Sequence[str] = field(default_factory=tuple)

    @property
    def word(self) -> Word:
        """The worst word of its metrics."""
        words = {one.word for one in self.compared}
        order = (Word.MISSING, Word.WORSE, Word.AMBIGUOUS, Word.BETTER)
        if self.missing:
            return Word.MISSING
        return next((word for word in order if word in words), Word.SAME)

    @property
    def failed(self) -> bool:
        """Whether it makes the exit status 1."""
        return self.word in FAILING


def measured(base: Path) -> dict[Path, dict[str, Any]]:
    """The measured rows of a baseline by their files.

    Raises :class:`UserError` where it holds none, or an unreadable one.
    """
    files = {path: value for path in row_files(base) if (value := content(path))["status"] == RAN}
    if not files:
        found = "no measured rows in" if base.is_dir() else "no folder"
        raise UserError(f"{found} {base}: make a baseline by `bench accept --from RUNS --baseline {base}`")
    return files


def check(runs: Path, base: Path, files: Mapping[str, Path] | None = None) -> list[RowCheck]:
    """Each row of the baseline ``base`` against the same row and setting in ``runs``.

    With ``files`` those that a night wrote, by row, are compared, and what the baseline holds of them in other settings
    is left out.  Raises :class:`UserError` where the baseline holds no measured row, or an unreadable one.
    """
    store = Store(runs) if (runs / "steps").is_dir() else None
    found = []
    for path, before in measured(base).items():
        place = path.relative_to(base)
        if files is None:
            found.append(_row(path, before, _same_setting(before, runs, place), store))
            continue
        now = content(files[before["id"]]) if before["id"] in files else None
        if now is not None and _setting(now) == _setting(before):
            found.append(_row(path, before, now, store))
    return found


def _setting(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's setting but for the data, which may change from one night to another."""
    return {name: value for name, value in row["setting"].items() if name not in ("data", "further")}


def _same_setting(before: Mapping[str, Any], runs: Path, place: Path) -> dict[str, Any] | None:
    """The row now: the file of the same name, else the newest one of the same setting on other data."""
    if (runs / place).exists():
        return content(runs / place)
    stem = place.name.rpartition("--")[0]
    like = [content(path) for path in sorted((runs / place.parent).glob(f"{stem}--*.json"))]
    like = [one for one in like if one["id"] == before["id"] and _setting(one) == _setting(before)]
    return max(like, key=lambda one: max(step["provenance"]["date"] for step in one["steps"].values()), default=None)


def _row(path: Path, before: Mapping[str, Any], now: Mapping[str, Any] | None, store: Store | None) -> RowCheck:
    name, scale = before["id"], before["setting"]["scale"]
    if now is None:
        return RowCheck(name, scale, missing="was not run")
    if now["status"] != RAN:
        return RowCheck(name, scale, missing=str(now["status"]))
    old, new = (aggregate(row["records"])[0] for row in (before, now))
    paired = _paired(path, before, now, store)
    judged = {metric: cell for metric, cell in old.items() if (known := metrics.find(metric)) and known.better}
    times = [metric for metric, cell in judged.items() if cell.unit in _ABSOLUTE and metric in new]
    # with one time alone there is nothing to compare it with
    first = times[0] if len(times) > 1 else None
    drift = new[first].value / old[first].value if first is not None else 1.0
    few = len(before["setting"].get("seeds", ())) < LEAST_RUNS
    made, took = (of(before) != of(now) for of in (baseline.made_on, baseline.timed_on))
    compared = []
    for metric, cell in judged.items():
        known_before = _scaled(cell, drift) if metric in times and metric != first else cell
        found = _metric(known_before, new.get(metric), paired if metric == PAIRED_METRIC else None)
        if metric == first and found.word in (Word.WORSE, Word.BETTER):
            found = replace(found, word=Word.AMBIGUOUS)
        if found.threshold > 0.0:
            elsewhere = took if _is_time(cell) else made and few
        else:  # a size: widths that follow from the data may be others by a channel or so
            elsewhere = made and abs(found.difference or 0.0) <= _SIZES * abs(cell.value)
        if elsewhere and found.word in (Word.WORSE, Word.BETTER):
            found = replace(found, word=Word.AMBIGUOUS, elsewhere=True)
        compared.append(found)
    differs = baseline.differences(before, now)
    return RowCheck(name, scale, compared, "", tuple(differs))


def _paired(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], store: Store | None
) -> tuple[float, float, int] | None:
    """Mean change of top-1 (points), half its 95 % interval and the number of changed predictions.

    None where the two rows did not classify the same images, or the predictions were not kept.
    """
    same = [(row["setting"].get("data") or {}).get("fingerprint") for row in (before, now)]
    kept = baseline.read(path)
    if store is None or same[0] != same[1] or not kept:
        return None
    fresh = baseline.predicted(now, store)
    if set(fresh) != set(kept) or any(len(kept[name]) != len(fresh[name][0]) for name in kept):
        return None
    labels, units = next(iter(fresh.values()))[1:]
    right_now = torch.stack([classes == labels for classes, _, _ in fresh.values()]).double()
    right_before = torch.stack([kept[name] == labels for name in fresh]).double()
    changed = sum(int((kept[name] != fresh[name][0]).sum()) for name in fresh)
    mean, low, high = interval_of_change(right_now - right_before, units)
    return 100.0 * mean, 50.0 * (high - low), changed


def _scaled(cell: Cell, factor: float) -> Cell:
    """A time as it would have been on a machine that is ``factor`` times as slow."""
    low, high = (None if end is None else end * factor for end in (cell.low, cell.high))
    return replace(cell, value=cell.value * factor, low=low, high=high)


def _metric(before: Cell, now: Cell | None, paired: tuple[float, float, int] | None) -> Compared:
    if now is None:
        return Compared(before.metric, before.value, None, 0.0, Word.MISSING)
    known = metrics.find(before.metric)
    assert known is not None
    difference, changed = now.value - before.value, None
    if paired is not None:
        difference, noise, changed = paired
    else:
        noise = math.hypot(_half(before), _half(now))
    exact = paired is None and _half(before) == 0.0 == _half(now)
    tolerance = _tolerance(before)
    scale = abs(before.value) if tolerance.relative else 1.0
    threshold = 0.0 if exact else max(tolerance.least * scale, noise)
    if difference == 0.0 and not changed:
        word = Word.SAME
    elif abs(difference) > threshold:
        word = Word.BETTER if (difference > 0.0) == (known.better == "higher") else Word.WORSE
    else:
        word = Word.SAME if threshold <= tolerance.seen * scale else Word.AMBIGUOUS
    return Compared(before.metric, before.value, now.value, threshold, word, changed)


def _tolerance(cell: Cell) -> Tolerance:
    """That of times for what is made from them too, whatever its unit: the share of a saving that was realised."""
    if _is_time(cell):
        return _TIMES
    return _POINTS if cell.unit in _IN_POINTS else _OTHERS


def _is_time(cell: Cell) -> bool:
    return cell.unit in _IN_TIME or cell.metric.startswith(_REALISED)


def _half(cell: Cell) -> float:
    return 0.0 if cell.low is None or cell.high is None else (cell.high - cell.low) / 2.0


def text(found: Sequence[RowCheck]) -> str:
    """For people: what failed with its figures and what differs, then how many rows came to what."""
    lines = []
    for row in sorted(found, key=lambda one: not one.failed):
        if row.word is Word.SAME:
            continue
        lines.append(f"{row.word}: {row.id} ({row.scale})" + (f": {row.missing}" if row.missing else ""))
        lines += [f"  {in_words(one)}" for one in row.compared if one.word is not Word.SAME]
        if row.failed and not row.missing:
            lines += [f"  {part}" for part in row.differs or ("the code, packages, data and device are the same",)]
    counts = {word: sum(row.word is word for row in found) for word in Word}
    lines.append(", ".join(f"{count} {word}" for word, count in counts.items() if count))
    return "\n".join(lines)


def in_words(one: Compared) -> str:
    """A metric's comparison in one line."""
    known = metrics.find(one.metric)
    assert known is not None
    if one.now is None:
        return f"{known.title}: was {known.number(one.before)}, not measured now"
    images = "" if one.changed is None else f", {one.changed} predictions differ"
    why = ", other hardware" if one.elsewhere else ""
    return (
        f"{known.title}: {known.number(one.before)} before, {known.number(one.now)} now, threshold "
        f"{one.threshold:.3g}{images}: {one.word}{why}"
    )


def to_json(found: Sequence[RowCheck]) -> list[dict[str, Any]]:
    """For machines."""
    return [
        {
            "row": row.id,
            "scale": row.scale,
            "word": row.word,
            "missing": row.missing,
            "differs": list(row.differs),
            "metrics": [
                {
                    "metric": one.metric,
                    "before": one.before,
                    "now": one.now,
                    "threshold": one.threshold,
                    "changed": one.changed,
                    "word": one.word,
                    "elsewhere": one.elsewhere,
                }
                for one in row.compared
            ],
        }
        for row in found
    ]
