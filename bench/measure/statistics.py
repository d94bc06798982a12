"""Intervals: Wilson for proportions, a bootstrap over images and seeds for paired differences, Student's t over seeds."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

_RESAMPLES = 2000


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion; both ends in [0, 1].  Raises ValueError without trials."""
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials is no proportion")
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def interval_of_mean(values: Tensor, seed: int, over: Tensor | None = None) -> tuple[float, float, float]:
    """Mean of ``values`` (seeds x images) and its 95 % bootstrap interval; with ``over`` the ratio of two means.

    Images are drawn with replacement, the same for all seeds because the seeds share them; seeds are drawn with
    replacement too where there are several.  The percentile interval (Efron 1979) is widened to hold the mean itself.
    """
    generator = np.random.default_rng(seed)
    data = values.double().numpy()
    other = None if over is None else over.double().numpy()
    seeds, images = data.shape
    estimates = np.empty(_RESAMPLES)
    for round_ in range(_RESAMPLES):
        weight = np.bincount(generator.integers(images, size=images), minlength=images) / images
        chosen = generator.integers(seeds, size=seeds)
        estimate = (data @ weight)[chosen].mean()
        estimates[round_] = estimate if other is None else estimate / (other @ weight)[chosen].mean()
    mean = float(data.mean()) if other is None else float(data.mean() / other.mean())
    low, high = np.quantile(estimates, [0.025, 0.975])
    return mean, min(float(low), mean), max(float(high), mean)


def over_seeds(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1) of one value per seed; no deviation for a single seed."""
    mean = math.fsum(values) / len(values)
    return mean, float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else None
