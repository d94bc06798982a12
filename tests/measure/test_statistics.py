"""Intervals against closed forms, SciPy's bootstrap and the normal approximation on large samples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.measure.statistics import interval_of_mean, over_seeds, wilson


@settings(deadline=None, max_examples=30)
@given(trials=st.integers(1, 50_000), share=st.floats(0.0, 1.0))
def test_wilson_equals_its_closed_form(trials: int, share: float) -> None:
    """(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.959964."""
    successes = round(share * trials)
    z, p = 1.959963984540054, successes / trials
    middle = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = wilson(successes, trials)
    assert low == pytest.approx(max(0.0, (middle - half) / scale), abs=1e-9)
    assert high == pytest.approx(min(1.0, (middle + half) / scale), abs=1e-9)
    assert 0.0 <= low <= p <= high + 1e-12 <= 1.0 + 1e-12


def test_wilson_at_another_confidence() -> None:
    """Half of 100 at 99 %: z = 2.575829."""
    z = 2.5758293035489004
    half = z * math.sqrt(0.25 / 100 + z * z / 40_000) / (1 + z * z / 100)
    assert wilson(50, 100, 0.99) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, trials)


def test_one_seed_equals_the_normal_approximation_on_many_images() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(2.0, 5000)
    mean, low, high = interval_of_mean(torch.from_numpy(values)[None], seed=1)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    half = 1.96 * values.std(ddof=1) / math.sqrt(5000)
    # 2,000 resamples place each end to about 4 % of the half-width
    assert low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_one_seed_equals_scipy_s_percentile_bootstrap() -> None:
    rng = np.random.default_rng(3)
    values = rng.gamma(0.5, 2.0, 60)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", random_state=0)
    _, low, high = interval_of_mean(torch.from_numpy(values)[None], seed=1)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.07 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.07 * width)


def test_images_are_shared_by_the_seeds() -> None:
    """Three equal seeds are worth one: drawing images for each seed anew would narrow the interval by sqrt(3)."""
    values = torch.from_numpy(np.random.default_rng(1).standard_normal(2000))
    _, low, high = interval_of_mean(values.expand(3, -1), seed=0)
    half = 1.96 * float(values.std()) / math.sqrt(2000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_spread_between_seeds_counts() -> None:
    """Many images that agree, seeds that do not: the interval is that of resampling the three seed means."""
    values = torch.tensor([0.0, 1.0, 2.0]).double()[:, None].expand(3, 500)
    mean, low, high = interval_of_mean(values, seed=0)
    assert mean == pytest.approx(1.0)
    # of 27 draws of three one gives 0, three give 1/3: the 2.5 % point lies at 0, and the upper one at 2
    assert (low, high) == pytest.approx((0.0, 2.0), abs=1e-9)


def test_ratio_of_means_equals_the_delta_method() -> None:
    rng = np.random.default_rng(2)
    below = rng.gamma(4.0, 1.0, 8000)
    above = 0.5 * below + rng.gamma(2.0, 0.3, 8000)
    mean, low, high = interval_of_mean(torch.from_numpy(above)[None], 0, over=torch.from_numpy(below)[None])
    ratio = above.mean() / below.mean()
    half = 1.96 * (above - ratio * below).std() / below.mean() / math.sqrt(8000)
    assert mean == pytest.approx(ratio, rel=1e-12)
    assert low == pytest.approx(ratio - half, abs=0.15 * half)
    assert high == pytest.approx(ratio + half, abs=0.15 * half)


def test_intervals_are_seeded_and_hold_the_mean() -> None:
    values = torch.from_numpy(np.random.default_rng(4).standard_normal((3, 40)))
    first, again, other = (interval_of_mean(values, seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    skewed = torch.zeros(1, 50).double()
    skewed[0, 0] = 1000.0
    mean, low, high = interval_of_mean(skewed, 0)
    assert low <= mean <= high


def test_coverage_is_about_95_percent() -> None:
    """100 experiments of 150 images: binomial, 88 to 100 expected at four standard deviations."""
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(100):
        _, low, high = interval_of_mean(torch.from_numpy(rng.normal(1.0, 1.0, (1, 150))), seed)
        held += low <= 1.0 <= high
    assert 86 <= held <= 100


def test_mean_and_deviation_over_seeds() -> None:
    assert over_seeds([2.0]) == (2.0, None)
    mean, deviation = over_seeds([1.0, 2.0, 6.0])
    assert mean == pytest.approx(3.0)
    assert deviation == pytest.approx(math.sqrt((4.0 + 1.0 + 9.0) / 2.0))
