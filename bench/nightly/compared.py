"""Two values of one metric: the same, better, worse, or not to be told.

The threshold is the larger of the metric's tolerance and the measured noise of the difference (half its 95 % interval,
which is twice its standard error): of accuracies the paired interval over the test images where the baseline kept its
predictions, else the two intervals of the values together.  What was counted has neither (:attr:`bench.metrics.Metric.
exact`); what was measured and has no interval, a share of channels or a COCO AP, has its tolerance alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from bench import metrics
from bench.report.cells import Cell, aggregate

# the metrics of one prediction each image, and the sign of a gain in their unit
PAIRED = {"top1_acc": 1.0, "top1_err": -1.0}
# a metric, and on a curve its series and place
Place = tuple[str, str | None, float | None]


class Word(StrEnum):
    """What became of a value, and of a row; ``worse`` and ``missing`` fail.

    ``other`` rows are in another setting than the baseline's, because somebody chose it, and are not compared.
    """

    SAME = "SAME"
    BETTER = "BETTER"
    WORSE = "WORSE"
    AMBIGUOUS = "AMBIGUOUS"
    MISSING = "MISSING"
    OTHER = "OTHER SETTING"


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
# everything else, and what has no interval
_POINTS, _TIMES, _OTHERS = Tolerance(0.1, 1.0), Tolerance(0.1, 0.15, True), Tolerance(0.02, 0.2, True)
_IN_POINTS, _IN_TIME = ("%", "pp", "points"), ("ms", "s", "us")
# ratios and shares that are made from times
_OF_TIMES = ("realised", "speedup_over")
# of a time's name, the clock that took it
_CLOCKS = ("_events", "_graph")
# sums of floats in another order
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Compared:
    """One value of one row: before, now, the threshold in its unit, and what it comes to.

    ``at`` says where it stands on a curve.  Of a time that is compared in units of the dense network's, ``before`` is
    what it would have been in this run.  ``excuse`` says why a value that would be better or worse is AMBIGUOUS.
    ``changed`` counts the test images whose prediction differs (None: not compared image by image).
    """

    metric: str
    before: float
    now: float | None
    threshold: float
    word: Word
    changed: int | None = None
    excuse: str = ""
    at: str = ""

    @property
    def difference(self) -> float | None:
        """Now minus before, in the metric's unit."""
        return None if self.now is None else self.now - self.before

    def excused(self, why: str) -> Compared:
        """AMBIGUOUS for this reason, where it would be better or worse."""
        if not why or self.word not in (Word.WORSE, Word.BETTER):
            return self
        return replace(self, word=Word.AMBIGUOUS, excuse=why)


def judged(row: Mapping[str, Any]) -> dict[Place, Cell]:
    """The values of a row file that can get better or worse, those on curves too."""
    cells, points = aggregate(row["records"])
    found: dict[Place, Cell] = {(name, None, None): cell for name, cell in cells.items()}
    found |= {(point.cell.metric, point.series, point.x): point.cell for point in points}
    return {place: cell for place, cell in found.items() if (known := metrics.find(place[0])) and known.better}


def compare(
    before: Cell, now: Cell | None, paired: tuple[float, float, int] | None = None, place: Place | None = None
) -> Compared:
    """The word on one value; ``paired`` is the change, half its interval and the number of changed predictions."""
    known = metrics.find(before.metric)
    assert known is not None
    at = "" if place is None or place[2] is None else f"{place[1] or 'curve'} at {place[2]:.4g}"
    if now is None:
        return Compared(before.metric, before.value, None, 0.0, Word.MISSING, at=at)
    difference, changed, noise = now.value - before.value, None, math.hypot(_half(before), _half(now))
    if paired is not None:
        difference, noise, changed = paired
    tolerance = _tolerance(before, now)
    scale = abs(before.value) if tolerance.relative else 1.0
    least = max(tolerance.least * scale, known.rounding)
    if tolerance is _OTHERS and before.unit in _IN_POINTS:
        least = max(least, _POINTS.least)  # two per cent of nothing are nothing
    threshold = 0.0 if known.exact else max(least, noise)
    close = math.isclose(now.value, before.value, rel_tol=_ROUNDING)
    if not changed and (difference == 0.0 or close):
        word = Word.SAME
    elif abs(difference) > threshold:
        word = Word.BETTER if (difference > 0.0) == (known.better == "higher") else Word.WORSE
    else:
        word = Word.SAME if threshold <= max(tolerance.seen * scale, known.rounding) else Word.AMBIGUOUS
    return Compared(before.metric, before.value, now.value, threshold, word, changed, at=at)


def exact(cell: Cell) -> bool:
    """Whether the value is counted."""
    known = metrics.find(cell.metric)
    return known is not None and known.exact


def is_time(cell: Cell) -> bool:
    """A time, or what is made from times, whatever its unit: the share of a saving that was realised."""
    return cell.unit in _IN_TIME or cell.metric.startswith(_OF_TIMES)


def clock(cell: Cell) -> str | None:
    """Which clock took a time; None for what is no time or has no unit of one."""
    return _suffix(cell) if cell.unit in _IN_TIME else None


def ratio_s_clock(cell: Cell) -> str | None:
    """Which clock took the times that a ratio is made from; None for what is no ratio of times."""
    return _suffix(cell) if cell.metric.startswith(_OF_TIMES) else None


def scaled(cell: Cell, factor: float) -> Cell:
    """A time as it would have been on a machine that is ``factor`` times as slow."""
    low, high = (None if end is None else end * factor for end in (cell.low, cell.high))
    return replace(cell, value=cell.value * factor, low=low, high=high)


def worst(words: Sequence[Word]) -> Word:
    """What several values come to together; of none nothing can be told."""
    order = (Word.MISSING, Word.WORSE, Word.AMBIGUOUS, Word.BETTER, Word.SAME)
    return next((word for word in order if word in words), Word.AMBIGUOUS)


def in_words(one: Compared) -> str:
    """A value's comparison in one line."""
    known = metrics.find(one.metric)
    if known is None:
        return f"{one.metric}: was {one.before:g}, and no script declares such a metric any more"
    title = f"{known.title}, {one.at}" if one.at else known.title
    if one.now is None:
        return f"{title}: was {known.number(one.before)}, not measured now"
    images = "" if one.changed is None else f", {one.changed} predictions differ"
    why = f", {one.excuse}" if one.excuse else ""
    return (
        f"{title}: {known.number(one.before)} before, {known.number(one.now)} now, threshold "
        f"{one.threshold:.3g}{images}: {one.word}{why}"
    )


def to_json(one: Compared) -> dict[str, Any]:
    """For machines."""
    return {
        "metric": one.metric,
        "at": one.at,
        "before": one.before,
        "now": one.now,
        "threshold": one.threshold,
        "changed": one.changed,
        "word": one.word,
        "excuse": one.excuse,
    }


def _tolerance(before: Cell, now: Cell) -> Tolerance:
    if is_time(before):
        return _TIMES
    interval = _half(before) > 0.0 or _half(now) > 0.0
    return _POINTS if before.unit in _IN_POINTS and interval else _OTHERS


def _half(cell: Cell) -> float:
    return 0.0 if cell.low is None or cell.high is None else (cell.high - cell.low) / 2.0


def _suffix(cell: Cell) -> str:
    """Of the clock in a metric's name; empty for the wall's."""
    return next((suffix for suffix in _CLOCKS if cell.metric.endswith(suffix)), "")
