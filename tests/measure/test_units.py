"""Intervals where several test images show one scan: coverage simulated, and what ignoring the scans would cost."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from bench.measure import accuracy
from bench.measure.statistics import interval_of_change, interval_of_mean, interval_of_ratio, interval_of_share
from bench.measure.units import by_unit, effective_proportion, effective_size, firsts, number

UNITS, EACH = 400, 5
OF = torch.arange(UNITS).repeat_interleave(EACH)
LEAST, RUNS = 0.935, 600
# a simulated share of coverage lies this much below the true one in one of a thousand cases
NOISE = 3.1 * math.sqrt(0.95 * 0.05 / RUNS)


def alike(rng: np.random.Generator, shares: list[float], correlation: float, runs: int = RUNS) -> NDArray[np.int64]:
    """Counts of each outcome (runs x units x outcomes) among a unit's images, of this correlation within units.

    The unit draws its own probabilities (Dirichlet of mean ``shares``), its images draw from them; at 1 all are equal.
    """
    if correlation == 1.0:
        return EACH * rng.multinomial(1, shares, size=(runs, UNITS))
    if correlation == 0.0:
        return rng.multinomial(EACH, shares, size=(runs, UNITS))
    weights = rng.gamma(np.array(shares) * (1.0 - correlation) / correlation + 1e-9, size=(runs, UNITS, len(shares)))
    weights[..., -1] += 1e-12
    return rng.multinomial(EACH, weights / weights.sum(-1, keepdims=True))


def images(counts: NDArray[np.int64], outcomes: list[float]) -> torch.Tensor:
    """Outcomes of single images (units x images of each, flat) with these ``counts`` (units x outcomes)."""
    return torch.from_numpy(np.repeat(np.tile(outcomes, len(counts)), counts.ravel()))


def covered(ends: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in ends]))


# --------------------------------------------------------------------------------------------------------------------
# Against plain arithmetic


def test_means_by_unit_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    units = torch.from_numpy(rng.permutation(np.repeat([7, 2, 9, 4], 3)))
    values = torch.from_numpy(rng.normal(size=(2, 12)))
    expected = [
        [float(np.mean([values[s, i] for i in range(12) if units[i] == unit])) for unit in (2, 4, 7, 9)] for s in (0, 1)
    ]
    assert by_unit(values, units).tolist() == [pytest.approx(row) for row in expected]
    assert by_unit(values, None) is values
    assert (number(units), number(None)) == (4, None)
    assert firsts(5, None) == [0, 1, 2, 3, 4]
    assert firsts(5, torch.tensor([3, 3, 1, 3, 1])) == [0, 2]


def test_units_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        by_unit(torch.zeros(1, 3), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="2 units' numbers for 3 images"):
        by_unit(torch.zeros(1, 3), torch.tensor([0, 1]))


def test_the_effective_size_is_n_over_the_design_effect() -> None:
    """Units of two, a third right twice, a third once: the variance of the mean over units against that of pq / n."""
    means = torch.tensor([1.0] * 40 + [0.5] * 40 + [0.0] * 40)
    among = 80 * 0.25 / 119 / 120  # of the mean
    quantiles = stats.t.ppf(0.975, 239) / stats.t.ppf(0.975, 119)
    expected = 240 * (0.25 / 240) / among * quantiles**2
    assert effective_size(means, 240) == pytest.approx(expected)
    # a unit's images as unlike as can be say no more than independent ones
    assert effective_size(torch.full((120,), 0.5), 240) == 240
    # and where all are right nothing says how alike they are
    assert effective_size(torch.ones(120), 240) == 120


@pytest.mark.parametrize("right", [0, 3, 350, 400])
def test_equal_images_have_the_exact_interval_of_the_units(right: int) -> None:
    means = torch.zeros(UNITS)
    means[:right] = 1.0
    low, high = effective_proportion(means, UNITS * EACH)
    theirs = stats.binomtest(right, UNITS).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=5e-4)
    value, *ends = interval_of_share(means.repeat_interleave(EACH)[None], OF)
    assert (value, *ends) == pytest.approx((right / UNITS, low, high))


def test_equal_images_say_no_more_than_their_units() -> None:
    """Each image five times: means, changes and ratios have the intervals of the images themselves."""
    rng = np.random.default_rng(1)
    for seeds in (1, 3):
        values = torch.from_numpy(rng.normal(size=(seeds, UNITS)))
        change = torch.from_numpy(rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.92, 0.03], size=(seeds, UNITS)))
        five, changes = (part.repeat_interleave(EACH, dim=1) for part in (values, change))
        assert interval_of_mean(five, units=OF) == pytest.approx(interval_of_mean(values))
        assert interval_of_change(changes, OF) == pytest.approx(interval_of_change(change))
        ratio = interval_of_ratio(five.exp(), changes + 2.0, OF)
        assert ratio == pytest.approx(interval_of_ratio(values.exp(), change + 2.0))


def test_records_take_the_scan_for_the_unit() -> None:
    """Every record says how many units there are; equal images five times have the intervals of one each.

    Nearly: one network's share has the exact interval at an effective size that is estimated.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (80,), generator=generator)
    dense, other, third = (torch.randn(80, 10, generator=generator) + 3 * torch.eye(10)[labels] for _ in range(3))
    five = [part.repeat_interleave(EACH, dim=0) for part in (labels, dense, other, third)]
    units = torch.arange(80).repeat_interleave(EACH)
    single = [*accuracy.compare([other], [dense], labels), *accuracy.contrast([third], [other], [dense], labels)]
    found = accuracy.compare([five[2]], [five[1]], five[0], units=units)
    found += accuracy.contrast([five[3]], [five[2]], [five[1]], five[0], units=units)
    for one, by in zip(single, found, strict=True):
        assert (by.n, by.units, one.units) == (400, 80, None)
        assert (by.value, by.low, by.high) == pytest.approx((one.value, one.low, one.high), abs=0.5), by.metric
    (top1, _), (plain, _) = (accuracy.records(five[1], five[0], 0, units=u) for u in (units, None))
    assert (top1.units, plain.units, top1.value) == (80, None, plain.value)
    assert top1.high - top1.low > 1.8 * (plain.high - plain.low)  # type: ignore[operator]
    (over, _) = accuracy.summary([five[1], five[2]], five[0], units=units)
    (alone, _) = accuracy.summary([dense, other], labels)
    assert (over.value, over.low, over.high) == pytest.approx((alone.value, alone.low, alone.high))


# --------------------------------------------------------------------------------------------------------------------
# Coverage, with outcomes that are alike within a scan


@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("share", [0.7, 0.9, 0.97, 0.995])
def test_coverage_of_a_share(share: float, correlation: float) -> None:
    rng = np.random.default_rng(int(1000 * share + 10 * correlation))
    means = alike(rng, [share, 1.0 - share], correlation)[..., 0] / EACH
    ends = [effective_proportion(torch.from_numpy(run), UNITS * EACH) for run in means]
    assert covered(ends, share) >= LEAST - NOISE


@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize(("gained", "lost"), [(0.0, 0.001), (0.001, 0.005), (0.01, 0.02), (0.05, 0.09)])
def test_coverage_of_a_change(gained: float, lost: float, correlation: float) -> None:
    rng = np.random.default_rng(int(1e4 * lost + 10 * correlation))
    counts = alike(rng, [gained, lost, 1.0 - gained - lost], correlation)
    ends = [interval_of_change(images(run, [1.0, -1.0, 0.0])[None], OF)[1:] for run in counts]
    assert covered(ends, gained - lost) >= LEAST - NOISE


@pytest.mark.parametrize("correlation", [0.2, 0.6])
def test_coverage_with_three_seeds_on_the_same_images(correlation: float) -> None:
    """Each seed's network has its own accuracy, and images and scans that are hard for all."""
    rng = np.random.default_rng(int(10 * correlation))
    scan = rng.normal(0.0, math.sqrt(correlation), (RUNS, 1, UNITS, 1))
    image = rng.normal(0.0, math.sqrt(1.0 - correlation), (RUNS, 1, UNITS, EACH))
    seed, rest = rng.normal(0.0, 0.1, (RUNS, 3, 1, 1)), rng.normal(0.0, 0.7, (RUNS, 3, UNITS, EACH))
    right = scan + image + seed + rest > -2.0
    truth = stats.norm.cdf(2.0 / math.sqrt(1.0 + 0.01 + 0.49))
    values = torch.from_numpy(right.reshape(RUNS, 3, -1)).double()
    assert covered([interval_of_share(run, OF)[1:] for run in values], truth) >= LEAST - NOISE


def test_without_the_scans_intervals_would_be_too_narrow() -> None:
    """The same data, taken for independent images: a share and a change are covered in far fewer than 95 %."""
    rng = np.random.default_rng(7)
    shares = alike(rng, [0.9, 0.1], 0.6)
    right = [images(run, [1.0, 0.0])[None] for run in shares]
    plain, ours = ([interval_of_share(run, units)[1:] for run in right] for units in (None, OF))
    assert covered(plain, 0.9) < 0.85 and covered(ours, 0.9) >= LEAST - NOISE
    changes = alike(rng, [0.05, 0.09, 0.86], 0.6)
    single = [interval_of_change(images(run, [1.0, -1.0, 0.0])[None])[1:] for run in changes]
    assert covered(single, -0.04) < 0.85
