"""Slow changes over nights: scores against a plain loop, false alarms and detections by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.nightly import drift


def plain_scores(values: list[float]) -> list[float]:
    """Hawkins's scores as they are written, with numpy and scipy's distributions."""
    found = []
    for place in range(drift.FIRST, len(values)):
        past = np.array(values[:place])
        t = (values[place] - past.mean()) / past.std(ddof=1) * math.sqrt(place / (place + 1))
        found.append(float(np.clip(stats.norm.ppf(stats.t.cdf(t, place - 1)), -3.0, 3.0)))
    return found


def test_scores_are_those_of_the_definition() -> None:
    values = np.random.default_rng(0).normal(70.0, 0.3, 40).tolist()
    assert drift.scores(values) == pytest.approx(plain_scores(values), abs=1e-9)


def test_scores_do_not_depend_on_place_and_unit() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 30)
    assert drift.scores((1e-3 * values + 42.0).tolist()) == pytest.approx(drift.scores(values.tolist()), abs=1e-6)


def test_constant_nights_are_no_drift_and_one_odd_night_is_none() -> None:
    assert drift.find([93.39] * 200) is None
    for place in (5, 20, 59):
        nights = np.random.default_rng(2).normal(5.0, 0.1, 60)
        nights[place] = 50.0
        assert drift.find(nights.tolist()) is None


def test_a_step_that_stays_is_a_change_and_no_drift() -> None:
    """The same code gives the same number: one change of it is told by the comparison with the baseline."""
    for nights in (1, 10, 60):
        assert drift.find([5.0] * 30 + [5.1] * nights) is None
    assert drift.find([5.0] * 30 + [5.1] * 30 + [4.9] * 30) is None


def test_steps_in_one_direction_are_a_drift() -> None:
    """A little worse with every change of the code, each of which stays for a week."""
    nights = [90.0 - 0.05 * (n // 7) for n in range(7 * 16)]
    found = drift.find(nights)
    assert found is not None and found.direction == "down" and found.since % 7 == 0


def test_a_drift_is_told_for_thirty_nights_and_then_is_what_later_nights_are_compared_with() -> None:
    """A step of five deviations: found within a week, told for a month; a second one is found from there."""
    noise = np.random.default_rng(5).normal(0.0, 1.0, 200)
    noise[60:] += 5.0
    told = [end for end in range(1, 161) if drift.find(noise[:end].tolist()) is not None]
    assert told == list(range(told[0], told[0] + 30)) and 62 <= told[0] <= 68
    noise[160:] += 5.0
    found = drift.find(noise.tolist()[:170])
    assert found is not None and 160 <= found.since <= 162
    # its mean before is that since the first step
    assert found.before == pytest.approx(5.0, abs=0.5) and found.after == pytest.approx(10.0, abs=1.5)


def test_no_alarm_in_a_hundred_clean_nights() -> None:
    """One value alarms once in 20,000 nights: of 300 over 100 nights one or two, at most six (Poisson, 0.1 %)."""
    generator = np.random.default_rng(3)
    alarms = sum(
        any(drift.find(nights[:end].tolist()) is not None for end in range(20, 101, 10))
        for nights in generator.normal(0.0, 1.0, (300, 100))
    )
    assert alarms <= 6
    assert 19_000 < drift.false_alarms() < 21_000


@pytest.mark.parametrize(
    ("step", "within"),
    # sums grow by shift - 0.5 a night, under a slope as the square of the nights; the past drifts too, which costs more
    [(0.1, 60), (0.2, 40), (0.5, 25)],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_drift_is_found_within_the_nights_that_its_size_allows(step: float, within: int, sign: float) -> None:
    """After 30 clean nights every night is ``step`` deviations further: found in nine of ten within so many nights."""
    generator = np.random.default_rng(4)
    found = 0
    for _ in range(40):
        nights = generator.normal(0.0, 1.0, 30 + within)
        nights[30:] += sign * step * np.arange(1, within + 1)
        alarm = drift.find(nights.tolist())
        found += alarm is not None and alarm.direction == ("up" if sign > 0 else "down") and alarm.shift * sign > 0
    assert found >= 36


def test_few_nights_say_nothing() -> None:
    assert drift.scores([1.0, 2.0, 3.0, 4.0, 5.0]) == []
    assert drift.find([1.0, 100.0]) is None
