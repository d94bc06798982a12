"""Intervals over fresh processes: their coverage in simulations, the noise floor, and what may be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bench.latency.contestants import Subject
from bench.latency.interval import FASTER, SAME, SLOWER, WIDE, Estimate, estimate, judge, noise_floor
from bench.latency.point import AGAIN, DENSE, Effort, Point, Run, replicated
from bench.models.recipe import Recipe

RECIPE = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16}, (3, 16, 16))
POINT = Point(Subject("net", RECIPE), (Subject("small", RECIPE.removed({"conv1": 4})),), 1, "cpu")


def known(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 3, 30)


def test_the_interval_is_student_s_over_the_processes() -> None:
    """Processes with the medians 2, 4 and 8 on the log scale: by scipy's own interval of a mean."""
    found = estimate([np.full(5, 2.0), np.full(5, 4.0), np.full(5, 8.0)])
    logs = np.log([2.0, 4.0, 8.0])
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert found.value == pytest.approx(4.0)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.between == pytest.approx(100 * logs.std(ddof=1)) and found.within == pytest.approx(0.0)


def test_processes_that_agree_by_chance_leave_the_rounds_variance() -> None:
    rounds = np.exp(np.array([-0.1, 0.0, 0.1]))
    found = estimate([rounds, rounds[::-1], rounds])
    half = stats.t.ppf(0.975, 2) * math.sqrt(math.pi / 2 * 0.01 / 3 / 3)
    assert (found.low, found.high) == pytest.approx((math.exp(-half), math.exp(half)))


def test_two_rounds_have_a_variance_too() -> None:
    rounds = np.exp(np.array([-0.1, 0.1]))
    found = estimate([rounds, rounds])
    half = stats.t.ppf(0.975, 1) * math.sqrt(math.pi / 2 * 0.02 / 2 / 2)
    assert (found.low, found.high) == pytest.approx((math.exp(-half), math.exp(half)))


def test_one_process_has_no_interval() -> None:
    found = estimate([np.array([1.0, 1.1])])
    assert found.low is None and found.width == math.inf and judge(found, 0.0) == WIDE
    assert noise_floor(found) == math.inf


@pytest.mark.parametrize("between", [0.0, 0.01])
def test_the_interval_covers_the_truth_with_the_rule_that_stops(between: float) -> None:
    """A ratio of 1.5 in 400 campaigns, with and without differences between processes: 95 % hold it, or nearly."""
    generator = np.random.default_rng(0)
    missed = 0

    def launch(numbers: object, seconds: float) -> list[Run]:
        factor = math.exp(generator.normal(0, between))
        samples = {
            name: mean * generator.lognormal(0, 0.02, (8, 2, 3))
            for name, mean in ((DENSE, 1.5 * factor), (AGAIN, 1.5 * factor), ("small", 1.0))
        }
        return [Run("cpu", {"wall": samples}, about={"seconds": seconds})]

    for _ in range(400):
        (found,) = replicated([POINT], [{}], launch, Effort(90.0, 3, 5, 0.03))
        ratio = found.speedup("wall", DENSE, "small")
        assert ratio.low is not None and ratio.high is not None
        missed += not ratio.low <= 1.5 <= ratio.high
    assert missed <= 30  # 5 % of 400 is 20; three standard deviations more are 33


@pytest.mark.parametrize(
    ("ratio", "floor", "verdict"),
    [
        (known(1.20, 1.19, 1.21), 0.01, FASTER),
        (known(0.91, 0.90, 0.92), 0.02, SLOWER),
        (known(1.20, 1.19, 1.21), 0.25, SAME),  # smaller than what the same network shows
        (known(1.01, 0.995, 1.025), 0.001, SAME),  # its own interval holds 1
        (known(2.00, 1.90, 2.10), 0.01, WIDE),
        (known(1.00, 0.999, 1.001), 0.01, SAME),
    ],
)
def test_what_may_be_said(ratio: Estimate, floor: float, verdict: str) -> None:
    assert judge(ratio, floor) == verdict


def test_the_noise_floor_is_the_farther_end() -> None:
    assert noise_floor(known(1.01, 0.97, 1.02)) == pytest.approx(0.03)
    assert noise_floor(known(1.01, 0.99, 1.05)) == pytest.approx(0.05)
