"""What measured values say about published ones, and measured contrasts about a paper's claims: computed, never typed.

**On a value** the question is: does the procedure, run again on the same test images, do as well as published?  d is
ours minus the published value in the better direction; one run varies about the procedure's mean by sigma.  Our mean is
over S runs, and the paper's run is one draw more, so d has the standard error sigma sqrt(1/S + 1).  With the one-sided
95 % bounds of d and the tolerance t (:attr:`bench.registry.Published.limit`, at most half of the effect that the row is
about):

* ``better``: the lower bound lies above t;
* ``reproduced``: it lies above -t;
* ``not reproduced``: the upper bound lies below -t;
* ``inconclusive`` otherwise, and instead of the first two where the paper prints a bound alone ("at least 87.54"): the
  published value may be anywhere beyond it.

sigma is the spread of three or more runs (Student's t with S - 1 degrees of freedom).  With fewer the paired noise of
the images against the dense network stands in, and the verdict says so: it holds as far as seeds move a run no more
than images do.  A wide interval can therefore never earn a verdict; it takes one away.

**On a claim**, that one row beats another, the paired contrast of the two decides (:func:`of_claim`).
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from scipy import special, stats

from bench.registry import Published

LEAST_RUNS = 3
# a dense network further than this from the paper's is another base (points)
LARGEST_BASE_DIFFERENCE = 4.0
ANALOGUE, OTHER_BASE, OTHER_CONVENTION = "analogue", "other base", "other convention"
A_BOUND = "the paper prints a bound"
_QUANTILE = float(special.ndtri(0.95))
_MOST_RUNS = 1000


@dataclass(frozen=True)
class Verdict:
    """A verdict's ``word``, with a ``reason`` in a few words where it needs one, and the bounds of d behind it.

    ``low`` and ``high`` are the one-sided 95 % bounds of ours minus published in the better direction, in the published
    row's unit.  ``stand_in`` says that the images' noise stood in for the runs' spread.  A verdict on a value that
    nobody could verify, or that others than the paper's authors report, is not ``verified``: it is shown in brackets
    and enters no count.
    """

    word: str
    reason: str = ""
    low: float | None = None
    high: float | None = None
    stand_in: bool = False
    verified: bool = True

    def __str__(self) -> str:
        text = f"{self.word} ({self.reason})" if self.reason else self.word
        return text if self.verified else f"[{text}]"


def of_value(
    measured: float,
    published: Published,
    *,
    sigma: float,
    runs: int,
    least_sigma: float = 0.0,
    slack: float = 0.0,
) -> Verdict:
    """The verdict on an accuracy, an error, an mAP or a difference of such, in the published row's unit.

    ``sigma`` is the standard deviation of ``runs`` runs on the same images, or with fewer than three runs the paired
    noise of the images; it is taken for at least ``least_sigma`` (what one image is worth), because runs may agree by
    chance.  ``slack`` is what test images that are missing could change.  Raises ValueError where nothing was
    published, for a spread that is no number, and for a row that is not about such a value.
    """
    if published.value is None:
        raise ValueError(f"no published value of {published.metric} for {published.row} in {published.table}")
    if published.direction not in ("higher", "lower"):
        raise ValueError(f"{published.metric} of {published.row} in {published.table} has no better direction")
    if not sigma >= 0.0 or not math.isfinite(sigma) or runs < 1:
        raise ValueError(f"a spread of {sigma} over {runs} runs")
    if math.isnan(measured):
        return Verdict("not reproduced", "no number", verified=published.counted)
    sigma, tolerance = max(sigma, least_sigma), published.limit
    difference = measured - published.value if published.direction == "higher" else published.value - measured
    reach = half_width(sigma, runs) + slack
    low, high = difference - reach, difference + reach
    stand_in = runs < LEAST_RUNS
    if published.bound and high >= -tolerance:
        word, reason = "inconclusive", A_BOUND
    elif low > tolerance:
        word, reason = "better", ""
    elif low > -tolerance:
        word, reason = "reproduced", ""
    elif high < -tolerance:
        word, reason = "not reproduced", ""
    else:
        word, reason = "inconclusive", _what_settles(difference, tolerance, sigma, runs, slack)
    if stand_in and word != "inconclusive":
        reason = "one run" if runs == 1 else f"{runs} runs"
    return Verdict(word, reason, low, high, stand_in, published.counted)


def half_width(sigma: float, runs: int) -> float:
    """How far a one-sided 95 % bound of d lies from d: quantile times sigma sqrt(1/S + 1)."""
    quantile = float(special.stdtrit(runs - 1, 0.95)) if runs >= LEAST_RUNS else _QUANTILE
    return quantile * sigma * math.sqrt(1.0 / runs + 1.0)


def _what_settles(difference: float, tolerance: float, sigma: float, runs: int, slack: float) -> str:
    """How many runs of this spread would decide if their mean were the one measured; or why none would."""
    margin = abs(difference + tolerance) - slack
    if margin <= 0.0 < slack:
        return "missing test images could turn it"
    if half_width(sigma, _MOST_RUNS) >= margin:
        return "the paper's one run leaves it open"  # it varies as ours do, and ours can be repeated alone
    # the half-width falls with the number of runs
    counts = range(max(runs + 1, LEAST_RUNS), _MOST_RUNS + 1)
    place = bisect.bisect_right(counts, -margin, key=lambda count: -half_width(sigma, count))
    return f"{counts[place]} runs would settle it"


def power(published: Published, sigma: float, runs: int) -> float:
    """The probability of ``reproduced`` or ``better`` where our procedure equals the paper's, for ``runs`` runs.

    ``sigma`` is the true spread of one run in the published row's unit.  A spread of zero decides at once; beside a
    bound nothing does.
    """
    if published.bound:
        return 0.0
    if sigma == 0.0:
        return 1.0
    shift = published.limit / (sigma * math.sqrt(1.0 / runs + 1.0))
    if runs < LEAST_RUNS:
        return float(special.ndtr(shift - _QUANTILE))
    return float(stats.nct.sf(special.stdtrit(runs - 1, 0.95), runs - 1, shift))


def seeds_for(low: float, high: float, seeds: int, effect: float) -> int:
    """How many seeds at least make a 95 % interval, of ``seeds`` of them, so narrow that ``effect`` is told from zero.

    At best half of it falls with their root; what comes of the test images, which all seeds share, falls less.
    """
    half = (high - low) / 2.0
    return max(seeds, math.ceil(seeds * (half / effect) ** 2))


def of_claim(difference: float, low: float, high: float, smallest: float, published: float | None = None) -> Verdict:
    """The verdict on the claim that the first of two rows is better, from their paired contrast and its 95 % interval.

    The contrast is in the claim's direction (positive: the first is better), in points; ``smallest`` is the smallest
    effect of interest, ``published`` the paper's, where it prints one.

    * ``holds``: the interval lies above zero and reaches the smallest effect of interest;
    * ``does not hold``: it lies below the smallest effect of interest and does not hold the published effect;
    * ``undecided`` otherwise.

    Raises ValueError for a reversed interval and a smallest effect that is not positive.
    """
    if not low <= high:
        raise ValueError(f"the interval is reversed: {low} to {high}")
    if not smallest > 0.0:
        raise ValueError(f"a smallest effect of interest of {smallest}: give a positive one")
    if low > 0.0 and high >= smallest:
        return Verdict("holds", low=low, high=high)
    if high < smallest and (published is None or not low <= published <= high):
        return Verdict("does not hold", low=low, high=high)
    return Verdict("undecided", low=low, high=high)
