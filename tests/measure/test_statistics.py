"""Intervals against closed forms, analysis of variance written out, and their coverage, enumerated and simulated."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from bench.measure.statistics import (
    interval_of_change,
    interval_of_mean,
    interval_of_ratio,
    interval_of_share,
    interval_of_statistic,
    proportion,
    spread,
)

LEAST, MOST = 0.935, 0.98


@settings(deadline=None, max_examples=40)
@given(trials=st.integers(1, 20_000), share=st.floats(0.0, 1.0))
def test_the_exact_interval_inverts_the_binomial_tails(trials: int, share: float) -> None:
    """At either end the tail beyond the observed count holds 2.5 %."""
    successes = round(share * trials)
    low, high = proportion(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0
    if successes > 0:
        assert stats.binom.sf(successes - 1, trials, low) == pytest.approx(0.025, rel=1e-6)
    if successes < trials:
        assert stats.binom.cdf(successes, trials, high) == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_proportion_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        proportion(successes, trials)


def test_one_network_s_mean_has_student_s_interval() -> None:
    values = np.random.default_rng(0).exponential(2.0, 60)
    mean, low, high = interval_of_mean(torch.from_numpy(values)[None])
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), theirs.low, theirs.high), rel=1e-9)
    with pytest.raises(ValueError, match="one image"):
        interval_of_mean(torch.zeros(3, 1))


def test_a_change_of_one_network_is_bonett_and_price_s_interval() -> None:
    """12 lost, 5 gained of 200 with 1.15 imagined images for either: plain arithmetic, normal quantile to 1 %."""
    values = torch.zeros(1, 200)
    values[0, :12], values[0, 12:17] = -1.0, 1.0
    mean, low, high = interval_of_change(values)
    total, lost, gained = 202.3, 13.15 / 202.3, 6.15 / 202.3
    centre = gained - lost
    half = 1.959964 * math.sqrt((lost + gained - centre**2) / total)
    assert mean == pytest.approx(-0.035)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=0.01 * half)


def test_seeds_that_agree_are_worth_one_network() -> None:
    """Three equal seeds share their images: the interval is that of one."""
    values = torch.from_numpy(np.random.default_rng(1).standard_normal(2000))
    _, low, high = interval_of_mean(values.expand(3, -1))
    assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / math.sqrt(2000), rel=0.01)


def test_images_that_agree_leave_student_s_interval_over_the_seeds() -> None:
    """Seed means 0, 1, 2 on images without noise: 1 -+ t(2) / sqrt(3)."""
    values = torch.tensor([0.0, 1.0, 2.0]).double()[:, None].expand(3, 500)
    mean, low, high = interval_of_mean(values)
    half = 4.302652729911275 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((1.0, 1.0 - half, 1.0 + half), rel=1e-6)


def test_the_variance_is_that_of_a_crossed_analysis_of_variance() -> None:
    """(MS seeds + MS images - MS rest) / SN, with the shares' mixture of quantiles, from the sums of squares."""
    rng = np.random.default_rng(2)
    y = rng.normal(0, 0.4, (4, 1)) + rng.normal(0, 1.0, (1, 90)) + rng.normal(0, 1.0, (4, 90))
    seeds, images = y.shape
    grand, by_seed, by_image = y.mean(), y.mean(1), y.mean(0)
    ms_seeds = images * ((by_seed - grand) ** 2).sum() / (seeds - 1)
    ms_images = seeds * ((by_image - grand) ** 2).sum() / (images - 1)
    rest = ((y - by_seed[:, None] - by_image[None] + grand) ** 2).sum() / ((seeds - 1) * (images - 1))
    images_part = (ms_images - rest) / (seeds * images)
    variance = ms_seeds / (seeds * images) + images_part
    share = images_part / variance
    quantile = (1 - share) * stats.t.ppf(0.975, seeds - 1) + share * stats.t.ppf(0.975, images - 1)
    mean, low, high = interval_of_mean(torch.from_numpy(y))
    assert mean == pytest.approx(grand)
    assert (high - low) / 2 == pytest.approx(quantile * math.sqrt(variance), rel=1e-6)


def test_ratio_of_means_equals_the_delta_method() -> None:
    rng = np.random.default_rng(2)
    below = rng.gamma(4.0, 1.0, 8000)
    above = 0.5 * below + rng.gamma(2.0, 0.3, 8000)
    ratio, low, high = interval_of_ratio(torch.from_numpy(above)[None], torch.from_numpy(below)[None])
    expected = above.mean() / below.mean()
    half = 1.96 * (above - expected * below).std() / below.mean() / math.sqrt(8000)
    assert (ratio, low, high) == pytest.approx((expected, expected - half, expected + half), rel=1e-3)
    with pytest.raises(ValueError, match="zero"):
        interval_of_ratio(torch.ones(1, 5), torch.zeros(1, 5))


def test_a_statistic_by_bootstrap_has_the_interval_of_the_mean() -> None:
    """For a mean over images both ways must give the same, up to the resamples' noise."""
    rng = np.random.default_rng(4)
    y = rng.normal(0, 0.05, (3, 1)) + rng.normal(0, 1.0, (1, 300)) + rng.normal(0, 0.5, (3, 300))
    draws = np.array([y @ (rng.multinomial(300, np.full(300, 1 / 300)) / 300) for _ in range(4000)])
    draws[7, 1] = math.nan  # a resample on which the statistic does not exist is left out
    theirs = interval_of_statistic(y.mean(1).tolist(), draws, 300)
    ours = interval_of_mean(torch.from_numpy(y))
    assert theirs[0] == pytest.approx(ours[0])
    assert theirs[2] - theirs[1] == pytest.approx(ours[2] - ours[1], rel=0.06)
    one = interval_of_statistic([y[0].mean()], draws[:, :1], 300)
    assert one[2] - one[1] == pytest.approx(2 * 1.96 * y[0].std() / math.sqrt(300), rel=0.06)
    # nothing differs in any resample, and still 1 % of the images may
    never = interval_of_statistic([0.0], np.zeros((50, 1)), 300)
    assert never == pytest.approx((0.0, -2.973 / 302.3, 2.973 / 302.3), rel=1e-3)


def test_spread_over_seeds() -> None:
    assert spread([2.0]) is None
    assert spread([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt((4.0 + 1.0 + 9.0) / 2.0))


# --------------------------------------------------------------------------------------------------------------------
# Coverage.  One network: the probability of every outcome, summed; several seeds: simulated.


@pytest.mark.parametrize("images", [20, 60, 360, 1017, 10_000])
def test_coverage_of_one_network_s_accuracy(images: int) -> None:
    """Every count of right answers, for accuracies from 50 to 99.95 %."""
    counts = np.arange(images + 1)
    shares = np.concatenate([np.linspace(0.5, 0.99, 25 if images < 5000 else 4), [0.993, 0.996, 0.998, 0.999, 0.9995]])
    likely = counts[stats.binom.pmf(counts, images, shares[:, None]).max(0) > 1e-9]
    ends = np.array([proportion(int(count), images) for count in likely])
    for share in shares:
        held = (ends[:, 0] <= share) & (share <= ends[:, 1])
        covered = float(stats.binom.pmf(likely, images, share)[held].sum())
        assert covered >= LEAST
        if images * (1 - share) >= 10:
            assert covered <= MOST


def coverage_of_change(images: int, lost: float, gained: float) -> float:
    """Exact coverage of one network's interval, ``lost`` and ``gained`` images expected, over all outcomes."""
    most = [int(min(images, mean + 7 * math.sqrt(mean) + 9)) for mean in (lost, gained)]
    covered = 0.0
    for b in range(most[0] + 1):
        left = stats.binom.pmf(b, images, lost / images)
        right = stats.binom.pmf(np.arange(most[1] + 1), images - b, gained / (images - lost))
        for c in np.flatnonzero(right * left > 1e-9):
            if b + c <= images:
                values = torch.zeros(1, images)
                values[0, :b], values[0, b : b + c] = -1.0, 1.0
                mean, low, high = interval_of_change(values)
                assert low < high and low <= mean <= high
                covered += left * right[c] * (low <= (gained - lost) / images <= high)
    return covered


def changes(fine: bool) -> Iterator[tuple[int, float, float]]:
    """Images, expected losses and gains: rare and common ones, at most half of the images."""
    for images in (20, 60, 360, 10_000) if fine else (20, 360):
        for lost in (0.1, 0.5, 1, 2, 2.8, 3.6, 4.4, 6, 8, 10, 12, 16, 24) if fine else (0.5, 2.16, 2.8, 4.4, 8):
            for gained in (0.0, 0.05, 1.08, 2, 5, 9) if fine else (0.0, 1.08):
                if gained <= lost and lost + gained <= images / 2:
                    yield images, lost, gained


@pytest.mark.parametrize("fine", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_coverage_of_one_network_s_change(fine: bool) -> None:
    """Rare changes included: 0.6 % lost and 0.3 % gained of 360 images are 2.16 and 1.08."""
    for images, lost, gained in changes(fine):
        covered = coverage_of_change(images, lost, gained)
        assert covered >= LEAST, (images, lost, gained, covered)
        if lost + gained >= 10:
            assert covered <= MOST, (images, lost, gained, covered)


def drawn(
    rng: np.random.Generator,
    trials: int,
    seeds: int,
    images: int,
    lost: float,
    gained: float,
    seed_noise: float,
    shared: float,
) -> NDArray[np.int8]:
    """trials x seeds x images changes; seeds move the mean by ``seed_noise`` (sd), ``shared`` images change alike."""
    move = rng.normal(0.0, seed_noise, (trials, seeds, 1)) if seed_noise else np.zeros((trials, seeds, 1))
    gain, loss = gained + np.maximum(move, 0.0), lost + np.maximum(-move, 0.0)
    alike = rng.random((trials, 1, images), dtype=np.float32) < shared
    draw = np.where(
        alike, rng.random((trials, 1, images), dtype=np.float32), rng.random((trials, seeds, images), dtype=np.float32)
    )
    return (draw < gain).astype(np.int8) - ((draw >= gain) & (draw < gain + loss)).astype(np.int8)


def grid(*levels: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Half of the levels' combinations, those whose places sum to an even number: every two levels still meet."""
    combined = itertools.product(*map(enumerate, levels))
    return [tuple(level for _, level in cell) for cell in combined if sum(place for place, _ in cell) % 2 == 0]


# seeds; images and shares lost and gained; noise between seeds; share of images that change alike
FAST = [
    (seeds, *case, noise, shared)
    for seeds, case, noise, shared in grid(
        (3, 5),
        ((20, 0.06, 0.03), (360, 0.006, 0.003), (360, 0.06, 0.03), (1000, 0.15, 0.05)),
        (0.0, 0.005, 0.044),
        (0.0, 0.7),
    )
]
FULL = [
    (seeds, images, *changed, noise, shared)
    for seeds, images, changed, noise, shared in grid(
        (3, 5),
        (20, 100, 360, 1017, 10_000),
        ((0.006, 0.003), (0.02, 0.005), (0.06, 0.03), (0.15, 0.05)),
        (0.0, 0.002, 0.01, 0.044),
        (0.0, 1.0),
    )
]


@pytest.mark.parametrize("cells", [FAST, pytest.param(FULL, marks=pytest.mark.slow)], ids=["fast", "full"])
def test_coverage_over_several_seeds(cells: list[tuple[int, int, float, float, float, float]]) -> None:
    """New images and new seeds in every cell of the grid; simulation noise is allowed for at four sigmas."""
    rng = np.random.default_rng(0)
    for seeds, images, lost, gained, noise, shared in cells:
        count = 1500 if images < 5000 else 300
        held = 0
        for values in drawn(rng, count, seeds, images, lost, gained, noise, shared):
            _, low, high = interval_of_change(torch.from_numpy(values))
            assert low < high
            held += low <= gained - lost <= high
        noise_of_simulation = 4 * math.sqrt(0.05 * 0.95 / count)
        assert held / count >= LEAST - noise_of_simulation, (seeds, images, lost, gained, noise, shared, held / count)
        if images * (lost + gained) >= 10:
            most = MOST + 4 * math.sqrt(MOST * (1 - MOST) / count)
            assert held / count <= most, (seeds, images, lost, gained, noise, shared, held / count)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("images", "noise"), [(60, 0.0), (1000, 0.0), (1000, 0.01), (1000, 0.044)])
def test_coverage_of_the_accuracy_over_several_seeds(seeds: int, images: int, noise: float) -> None:
    """Networks that share four fifths of their mistakes; Student's t over the seeds alone would cover half of this."""
    rng = np.random.default_rng(1)
    held = plain = 0
    trials = 1500
    for _ in range(trials):
        alike = rng.random((1, images)) < 0.8
        draw = np.where(alike, rng.random((1, images)), rng.random((seeds, images)))
        right = draw < 0.9 + np.clip(rng.normal(0.0, noise, (seeds, 1)), -0.1, 0.1)
        _, low, high = interval_of_share(torch.from_numpy(right.astype(np.int8)))
        held += low <= 0.9 <= high
        means = right.mean(1)
        half = stats.t.ppf(0.975, seeds - 1) * means.std(ddof=1) / math.sqrt(seeds)
        plain += abs(means.mean() - 0.9) <= half
    assert held / trials >= LEAST - 4 * math.sqrt(0.05 * 0.95 / trials)
    if noise == 0.0:
        assert held / trials <= MOST + 4 * math.sqrt(0.02 * 0.98 / trials)
        assert plain / trials < 0.85
