"""Points: when processes stop being started, what is caught, what is never compared; the clock is made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from bench.latency.contestants import Subject
from bench.latency.interval import SAME, SLOWER
from bench.latency.point import AGAIN, DENSE, OUT_OF_MEMORY, Effort, Measured, Point, Run, after, replicated
from bench.models.recipe import Recipe

RECIPE = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16}, (3, 16, 16))


def point(batch: int = 1) -> Point:
    small = RECIPE.removed({"conv1": 4})
    return Point(Subject("net", RECIPE), (Subject("unchanged", small), Subject("slowed", small)), batch, "cpu")


def machine(generator: np.random.Generator, times: dict[str, float], noise: float, seconds: float = 10.0) -> Run:
    """A process on a made-up machine: it is as a whole up to 1 % off for each contestant, slows down by 20 % while it
    runs, and each call is noisy.
    """
    samples = {}
    for name, mean in times.items():
        drift = np.linspace(1.0, 1.2, 30)[:, None, None]
        samples[name] = mean * generator.normal(1, 0.002) * drift * generator.lognormal(0, noise, (30, 2, 5))
    return Run("cpu", {"wall": samples}, about={"seconds": seconds})


TIMES = {DENSE: 1.0, AGAIN: 1.0, "unchanged": 1.0, "slowed": 1.1}


def test_ten_per_cent_slower_is_caught_and_unchanged_is_not_ten_times_of_ten() -> None:
    verdicts = []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        launch = lambda numbers, seconds, g=generator: [machine(g, TIMES, 0.05)]  # noqa: E731
        (found,) = replicated([point()], [{}], launch, Effort())
        verdicts.append(tuple(found.verdict("wall", DENSE, name) for name in ("slowed", "unchanged")))
    assert verdicts == [(SLOWER, SAME)] * 10


def launcher(runs: Callable[[int], Run | str], asked: list[Any]) -> Callable[[Sequence[int], float], list[Run | str]]:
    def launch(numbers: Sequence[int], seconds: float) -> list[Run | str]:
        asked.append((list(numbers), seconds))
        return [runs(number) for number in numbers]

    return launch


def quiet(seconds: float = 10.0, noise: float = 0.0005) -> Callable[[int], Run]:
    generator = np.random.default_rng(0)
    return lambda number: machine(generator, {DENSE: 1.0, AGAIN: 1.0}, noise, seconds)


def test_three_processes_are_enough_where_they_agree() -> None:
    asked: list[Any] = []
    constant = Run("cpu", {"wall": {DENSE: np.ones((6, 2, 3)), AGAIN: np.ones((6, 2, 3))}}, about={"seconds": 5.0})
    (found,) = replicated([point()], [{}], launcher(lambda number: constant, asked), Effort(90.0, 3, 5))
    assert found.stopped == "precise enough" and found.seconds == 15.0
    assert asked == [([0], 18.0)] * 3


def test_what_was_not_met_is_told() -> None:
    (found,) = replicated([point()], [{}], launcher(quiet(noise=0.3), []), Effort(90.0, 3, 5, 0.001))
    assert found.stopped.startswith("5 processes; 1 intervals are wider than 0.1 %, that of dense, again (wall) is ")
    assert len(found.runs) == 5
    (found,) = replicated([point()], [{}], launcher(quiet(25.0, 0.3), []), Effort(90.0, 3, 9, 0.001))
    assert found.stopped.startswith("90 s are over; ") and found.seconds == 75.0  # a fourth would end at 100 s


def test_every_point_of_a_chunk_stops_by_itself() -> None:
    asked: list[Any] = []
    constant = Run("cpu", {"wall": {DENSE: np.ones((6, 2, 3)), AGAIN: np.ones((6, 2, 3))}}, about={"seconds": 1.0})
    noisy = quiet(1.0, 0.3)

    def runs(number: int) -> Run | str:
        return constant if number == 0 else noisy(number) if number == 1 else OUT_OF_MEMORY

    found = replicated([point(), point(8), point(32)], [{}, {}, {}], launcher(runs, asked), Effort(90.0, 3, 5, 0.001))
    assert [numbers for numbers, _ in asked] == [[0, 1, 2], [0, 1], [0, 1], [1], [1]]
    assert [one.reason for one in found] == [None, None, OUT_OF_MEMORY]
    assert [len(one.runs) for one in found] == [3, 5, 0]


def test_a_point_whose_dense_network_failed_is_not_started() -> None:
    asked: list[Any] = []
    found = replicated([point()], [{"failed": OUT_OF_MEMORY}], launcher(quiet(), asked), Effort())
    assert found[0].reason == OUT_OF_MEMORY and not asked


def test_what_two_processes_found_is_kept_when_a_third_dies() -> None:
    measured = Measured(point(), {}, [], "")
    for run in (quiet()(0), quiet()(1)):
        assert after(measured, run, Effort()) == ""
    assert after(measured, "the run's time was over", Effort()) == "the run's time was over"
    assert measured.reason is None and len(measured.runs) == 2


def test_cpu_and_gpu_are_never_compared() -> None:
    measured = Measured(point(), {}, [quiet()(0)], "")
    other = Run("NVIDIA H100", {"wall": {DENSE: np.ones((2, 2, 2))}}, about={"seconds": 1.0})
    with pytest.raises(ValueError, match="different devices cannot be compared: NVIDIA H100, cpu"):
        after(measured, other, Effort())


def test_speed_ups_are_paired_in_rounds() -> None:
    """A machine that doubles its times halfway: the ratio of the medians would be off, those in rounds are 2."""
    steps = np.repeat([1.0, 2.0], 4)[:, None, None] * np.ones((8, 2, 3))
    run = Run("cpu", {"wall": {DENSE: 2.0 * steps, AGAIN: 2.0 * steps, "slowed": steps}}, about={"seconds": 1.0})
    found = Measured(point(), {}, [run, run], "")
    ratio = found.speedup("wall", DENSE, "slowed")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.latency("wall", DENSE).value == pytest.approx(1e3 * np.sqrt(2.0) * 2.0)


def test_a_point_is_its_json() -> None:
    first = point(8)
    again = Point.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first and again.key == first.key and point(1).key != first.key


def test_precise_times_of_too_few_calls_are_not_enough() -> None:
    """Five processes of 18 calls each that agree wholly: 90, ten fewer than are asked for."""
    constant = Run("cpu", {"wall": {DENSE: np.ones((3, 2, 3)), AGAIN: np.ones((3, 2, 3))}}, about={"seconds": 1.0})
    (found,) = replicated([point()], [{}], launcher(lambda number: constant, []), Effort(90.0, 3, 5))
    assert found.stopped == "5 processes; fewer than 100 calls: 90 of dense (wall)"


def forms(**seconds: dict[str, float]) -> Measured:
    """By clock and contestant, seconds of calls without noise."""
    samples = {
        clock: {name: np.full((4, 2, 3), time) for name, time in times.items()} for clock, times in seconds.items()
    }
    runs = [Run("cpu", samples, about={"seconds": 1.0}) for _ in range(3)]
    return Measured(point(), {}, runs, "")


def test_each_clock_says_which_form_is_the_best() -> None:
    dense = {DENSE: 3.0, "dense [folded]": 2.0, "dense [folded, channels-last]": 2.5}
    found = forms(
        wall=dense, events={**dense, "dense [folded, channels-last]": 1.0, "dense [folded, channels-last], again": 0.5}
    )
    assert found.best("wall", DENSE) == "dense [folded]"
    assert found.best("events", DENSE) == "dense [folded, channels-last]"
    assert found.best("wall", "slowed") is None


def test_a_form_without_a_time_may_be_the_best_one() -> None:
    """A network that skips has no graph: the masked one is not the best form by that clock."""
    both = {DENSE: 3.0, "slowed": 4.0, "slowed [skipping]": 1.0}
    found = forms(events=both, graph={DENSE: 2.0, "slowed": 2.5})
    assert found.best("events", "slowed") == "slowed [skipping]"
    assert found.best("graph", "slowed") is None and found.untimed("graph", "slowed") == ["skipping"]


def test_the_floor_is_the_largest_of_what_was_timed_twice() -> None:
    times = {DENSE: 1.0, AGAIN: 1.01, "dense [folded]": 1.0, "dense [folded], again": 1.04}
    found = forms(wall=times)
    assert found.twice("wall") == [DENSE, "dense [folded]"]
    assert found.floor("wall") == pytest.approx(1 - 1 / 1.04)
