"""Ratios of times over fresh processes: the interval, the noise floor, and what may be said of a ratio.

A process chooses its algorithms and memory once, so its rounds are no independent observations of the network: the
processes are.  Each gives the median of its rounds' log ratios; the interval is Student's over these, with the variance
that the rounds alone would give as a least one, because a few processes may agree by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

# `bench latency` says nothing whose interval is wider than this share of the value; rows' tables say that it is wider
WIDEST = 0.05
FASTER, SLOWER, SAME, WIDE = "faster", "slower", "no difference", "too wide"


@dataclass(frozen=True)
class Estimate:
    """A median (time in ms, or a ratio) and its 95 % interval.

    ``between`` and ``within`` are the standard deviations, in per cent, of the processes' medians and of the rounds in
    a process.  Without a second process ``low`` and ``high`` are None.
    """

    value: float
    low: float | None
    high: float | None
    processes: int
    rounds: int
    between: float | None = None
    within: float | None = None

    @property
    def width(self) -> float:
        """Of the interval, as a share of the value; infinite where there is none."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / self.value


def estimate(processes: Sequence[NDArray[np.float64]]) -> Estimate:
    """Of positive observations, one array of rounds a process: the median and its interval on the log scale."""
    logs = [np.log(rounds) for rounds in processes]
    medians = np.array([np.median(rounds) for rounds in logs])
    count = sum(len(rounds) for rounds in logs)
    middle = float(np.exp(medians.mean()))
    spreads = [float(rounds.var(ddof=1)) for rounds in logs if len(rounds) > 1]
    within = 100.0 * math.sqrt(float(np.mean(spreads))) if spreads else None
    if len(logs) < 2:
        return Estimate(middle, None, None, len(logs), count, None, within)
    # the variance of a median of n is pi / 2 that of their mean, for large n and normal rounds
    by_rounds = [math.pi / 2.0 * float(rounds.var(ddof=1)) / len(rounds) if len(rounds) > 1 else 0.0 for rounds in logs]
    between = float(medians.var(ddof=1))
    variance = max(between, float(np.mean(by_rounds))) / len(logs)
    half = float(special.stdtrit(len(logs) - 1, 0.975)) * math.sqrt(variance)
    low, high = math.exp(medians.mean() - half), math.exp(medians.mean() + half)
    return Estimate(middle, low, high, len(logs), count, 100.0 * math.sqrt(between), within)


def noise_floor(same: Estimate) -> float:
    """From a network against itself (A/A): the largest change, as a share, that its interval cannot exclude."""
    if same.low is None or same.high is None:
        return math.inf
    return max(abs(same.low - 1.0), abs(same.high - 1.0))


def judge(ratio: Estimate, floor: float, widest: float = WIDEST) -> str:
    """What a ratio of times (reference over network) says: a difference beyond both its interval and the noise floor.

    A ratio is ``too wide`` to be said where its interval is.
    """
    if ratio.low is None or ratio.high is None or ratio.width > widest:
        return WIDE
    if ratio.low > 1.0 and ratio.value - 1.0 > floor:
        return FASTER
    if ratio.high < 1.0 and 1.0 - ratio.value > floor:
        return SLOWER
    return SAME
