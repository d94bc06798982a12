"""Slow changes over many nights, none of which shows in a single one: a self-starting CUSUM.

Each night's value is compared with the mean and deviation of the nights before it (Hawkins 1987): under a constant
normal process the scores are independent standard normal ones, whatever its unknown mean and deviation are.  Two
cumulative sums then look for a mean that has gone up or down (Page 1954).  A single odd night counts at most CLIP.

The same code gives the same number, night after night: of equal values in a row the first counts alone.  So a single
step that stays is no drift, it is a change, which the comparison with the baseline tells; several steps in one
direction are a drift.  A drift is told for LISTED nights; then a new series begins where it began, and what it came to
is what later nights are compared with.

The limit is one value's.  A night follows some thousand values (rows times metrics), of which those that are measured
anew with noise, times above all, can alarm without any drift: of V such values one does every :func:`false_alarms` / V
nights, and is listed for LISTED nights.  With a thousand of them that is one in three weeks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

# the shift, in standard deviations, that the sums are tuned to is twice this
SLACK = 0.5
# one value without any drift gives an alarm once in 20,000 nights (:func:`false_alarms`), 200 of them once in 100
LIMIT = 8.74
# nights before the first score, and the largest that one night can score
FIRST, CLIP = 5, 3.0
# nights that a drift is told, from the one that found it
LISTED = 30


@dataclass(frozen=True)
class Drift:
    """A value that drifts: since which night (its place in the sequence), and ``shift`` from the mean before it."""

    since: int
    direction: str
    before: float
    after: float

    @property
    def shift(self) -> float:
        """The mean since then minus that of the nights before."""
        return self.after - self.before


def false_alarms() -> float:
    """The mean number of nights until one value without any drift gives an alarm.

    Siegmund's approximation (1985) of one side's run length, (exp(2kb) - 2kb - 1) / (2 k^2) with b = h + 1.166; two
    sides halve it.
    """
    b = 2.0 * SLACK * (LIMIT + 1.166)
    return (math.exp(b) - b - 1.0) / (2.0 * SLACK**2) / 2.0


def scores(values: Sequence[float]) -> list[float]:
    """Standard normal scores of the values from the ``FIRST``-th on, each against all before it.

    Values without any spread before them score 0 where they are equal to these, else the clip with its sign.
    """
    found = []
    for place in range(FIRST, len(values)):
        past = values[:place]
        mean = math.fsum(past) / place
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in past) / (place - 1))
        distance = values[place] - mean
        if deviation <= 1e-12 * max(1.0, abs(mean)):
            score = 0.0 if abs(distance) <= 1e-12 * max(1.0, abs(mean)) else math.copysign(CLIP, distance)
        else:
            t = distance / (deviation * math.sqrt(1.0 + 1.0 / place))
            score = math.copysign(float(special.ndtri(special.stdtr(place - 1, -abs(t)))), t)
        found.append(max(-CLIP, min(CLIP, score)))
    return found


def find(values: Sequence[float]) -> Drift | None:
    """The drift in one value's nights, oldest first, that was found within the last LISTED of them; None for none."""
    # of equal nights in a row the first
    nights = [place for place, value in enumerate(values) if place == 0 or value != values[place - 1]]
    begin = 0
    while (alarm := _alarm([values[night] for night in nights[begin:]])) is not None:
        since, place, direction = alarm
        night = nights[begin + since]
        if len(values) - nights[begin + place] <= LISTED:
            before, after = values[nights[begin] : night], values[night:]
            return Drift(night, direction, math.fsum(before) / len(before), math.fsum(after) / len(after))
        begin += since
    return None


def _alarm(values: Sequence[float]) -> tuple[int, int, str] | None:
    """Of the first alarm, the place where its sum began, the place where it passed the limit, and the direction."""
    sums, starts = {"up": 0.0, "down": 0.0}, {"up": FIRST, "down": FIRST}
    for place, score in enumerate(scores(values), start=FIRST):
        for direction, sign in (("up", 1.0), ("down", -1.0)):
            sums[direction] = max(0.0, sums[direction] + sign * score - SLACK)
            if sums[direction] == 0.0:
                starts[direction] = place + 1
            if sums[direction] > LIMIT:
                return starts[direction], place, direction
    return None
