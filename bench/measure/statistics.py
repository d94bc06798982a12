"""Intervals: what a measured value would be on new images, and with new seeds where it is a mean over several.

Test images and seeds are crossed: every seed's network sees the same images.  With values y[s, i] the mean over S seeds
and N images varies by  var(seed means) / S + C,  C the covariance of two seeds' means through the images they share.
Both are estimated without bias (Henderson 1953 for two crossed factors); the first has S - 1 degrees of freedom, the
second as many as there are images.  Their quantiles are mixed by the variances' shares, Student's for the seeds and the
normal one for the images (Cochran 1964).  A single network's interval is about that network on new images.

Few changes among many images leave no spread to estimate.  Each network is therefore given two imagined images more,
one for either outcome, which is Bonett and Price's interval (2012) for paired proportions and Agresti and Coull's
(1998) for proportions; their weight is set so that the coverage, simulated and enumerated in the tests, is at least
93.5 %.

Images may come in units, several of one scan (:mod:`bench.measure.units`).  The units are then what new ones are drawn
of: their means stand in for images, imagined ones included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor

from bench.measure.units import by_unit, effective_proportion

_Z = float(special.ndtri(0.975))
# the variance is never taken for less than this share of what the images alone give: by chance seeds may agree exactly
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Imagined:
    """Outcomes of imagined images, each counted ``weight`` / sqrt(seeds) times, and the range of the mean."""

    outcomes: tuple[float, ...]
    weight: float

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and largest mean that is possible."""
        return min(self.outcomes), max(self.outcomes)


NOTHING = Imagined((), 0.0)
# paired changes of single predictions, -1, 0 or 1.  Bonett and Price take weight 1: its coverage goes down to 92.8 %
CHANGES = Imagined((-1.0, 1.0), 1.15)
# right or wrong, 0 or 1: z^2 / 2
SHARES = Imagined((0.0, 1.0), _Z**2 / 2.0)


def proportion(successes: int, trials: int) -> tuple[float, float]:
    """The exact 95 % interval (Clopper and Pearson 1934) of one network's proportion; both ends in [0, 1].

    Wilson's interval falls to 84 % coverage where nearly all images are right.  Raises ValueError without trials.
    """
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials is no proportion")
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def interval_of_mean(
    values: Tensor, imagined: Imagined = NOTHING, units: Tensor | None = None
) -> tuple[float, float, float]:
    """Mean of ``values`` (seeds x images) and its 95 % interval for new images and, with several seeds, new seeds.

    ``imagined`` is CHANGES or SHARES for outcomes of single predictions, which may be rare.  ``units`` (images) as in
    :func:`by_unit`; the interval is then for new units.  Raises ValueError for a single image or unit.
    """
    data = by_unit(values, units).double().numpy()
    seeds, images = data.shape
    if images < 2:
        raise ValueError("one image gives no interval")
    mean = float(data.mean())
    weight = imagined.weight / math.sqrt(seeds)
    total = images + weight * len(imagined.outcomes)
    extra = np.asarray(imagined.outcomes)
    means = (data.sum(1) + weight * extra.sum()) / total
    centred = data - means[:, None]
    # what the images contribute to the covariance of the seeds' means (seeds x seeds); imagined ones are shared by all
    imagined_part = weight * ((extra[None, :] - means[:, None]) @ (extra[None, :] - means[:, None]).T)
    covariance = (centred @ centred.T + imagined_part) / (total * (total - 1.0))
    low, high = _interval(float(means.mean()), means, covariance, images)
    if imagined.outcomes:
        low, high = max(low, imagined.bounds[0]), min(high, imagined.bounds[1])
    return mean, min(low, mean), max(high, mean)


def interval_of_share(values: Tensor, units: Tensor | None = None) -> tuple[float, float, float]:
    """Share of ones in ``values`` (seeds x images, 0 or 1) and its 95 % interval: exact for a single network.

    With ``units`` (images) it is Clopper and Pearson's at the effective sample size.
    """
    if len(values) > 1:
        return interval_of_mean(values, SHARES, units)
    return float(values.double().mean()), *exact_ends(values[0], units)


def exact_ends(values: Tensor, units: Tensor | None = None) -> tuple[float, float]:
    """The 95 % interval of one network's share of ones in ``values`` (images)."""
    if units is None:
        return proportion(int(values.sum()), len(values))
    return effective_proportion(by_unit(values[None], units)[0], len(values))


def interval_of_change(values: Tensor, units: Tensor | None = None) -> tuple[float, float, float]:
    """Mean of paired changes of predictions (seeds x images, -1, 0 or 1) and its 95 % interval."""
    return interval_of_mean(values, CHANGES, units)


def interval_of_ratio(above: Tensor, below: Tensor, units: Tensor | None = None) -> tuple[float, float, float]:
    """Mean of ``above`` over mean of ``below`` (both seeds x images), and its 95 % interval by linearisation.

    ``units`` (images) as in :func:`interval_of_mean`.  Raises ValueError where the mean of ``below`` is zero.
    """
    bottom = float(below.double().mean())
    if bottom == 0.0:
        raise ValueError("a ratio to zero")
    ratio = float(above.double().mean()) / bottom
    _, low, high = interval_of_mean((above.double() - ratio * below.double()) / bottom, units=units)
    return ratio, ratio + low, ratio + high


def interval_of_statistic(
    values: Sequence[float], draws: NDArray[np.float64], images: int
) -> tuple[float, float, float]:
    """Mean over the seeds of a statistic that is no mean over images (AP), and its 95 % interval.

    ``values`` are one per seed; ``draws`` (resamples x seeds) the same on bootstrap samples of the ``images``, each
    sample shared by the seeds.  Centred on the value itself: resampling images raises AP.  Where no resample differs
    (all objects found, or nothing changed) the half-width is that of imagined images, as for CHANGES: about 3 / images.
    """
    given = np.asarray(values, dtype=np.float64)
    usable = draws[np.isfinite(draws).all(1)]
    covariance = np.atleast_2d(np.cov(usable, rowvar=False)) if len(usable) > 1 else np.zeros((len(given),) * 2)
    mean = float(given.mean())
    low, high = _interval(mean, given, covariance, images)
    least = _Z * math.sqrt(2.0 * CHANGES.weight) / (images + 2.0 * CHANGES.weight)
    return mean, min(low, mean - least), max(high, mean + least)


def _interval(
    centre: float, means: NDArray[np.float64], covariance: NDArray[np.float64], images: int
) -> tuple[float, float]:
    """``centre`` -+ half, from the seeds' means and their covariance through the images."""
    seeds = len(means)
    by_images = float(covariance.sum()) / seeds**2
    normal = float(special.stdtrit(images - 1, 0.975))
    if seeds == 1:
        half = normal * math.sqrt(max(by_images, 0.0))
        return centre - half, centre + half
    shared = float(covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1))
    variance = max(float(means.var(ddof=1)) / seeds + shared, _LEAST_SHARE * by_images)
    share = min(max(shared / variance, 0.0), 1.0) if variance > 0.0 else 1.0
    quantile = (1.0 - share) * float(special.stdtrit(seeds - 1, 0.975)) + share * normal
    half = quantile * math.sqrt(variance)
    return centre - half, centre + half


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation (n - 1) of one value per seed; None for a single one."""
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else None
