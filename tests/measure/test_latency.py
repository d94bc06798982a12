"""Latency: the order of the turns, drift that cancels, intervals, the rules for stopping; clocks are made up."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.measure import latency
from bench.measure.latency import Protocol, Timing, interleaved

INPUTS = [torch.zeros(1), torch.ones(1)]


def measure(times: dict[str, Any], **protocol: Any) -> tuple[Timing, list[str]]:
    """Runs the harness on made-up times: ``times[name](n)`` is what the n-th call of all takes."""
    order: list[str] = []
    calls = itertools.count()

    def clock(network: Any, x: torch.Tensor) -> float:
        order.append(network)
        return float(times[network](next(calls)))

    settings = {"block": 3, "rounds": 8, "least": 8, "warm_up": 2, "seconds": 1e9, **protocol}
    names = {n: n for n in times}
    timing = latency.turns(names, INPUTS, Protocol(**settings), clock, "made up", "cpu", False)  # type: ignore[misc]
    return timing, order


def test_turns_go_forwards_and_backwards() -> None:
    _, order = measure({"a": lambda n: 1.0, "b": lambda n: 1.0, "c": lambda n: 1.0}, rounds=2, least=2)
    turn = ["a", "b", "c", "c", "b", "a"]
    assert order == ["a"] * 2 + ["b"] * 2 + ["c"] * 2 + [name for name in turn * 2 for _ in range(3)]


def test_a_linear_drift_cancels() -> None:
    """The machine slows down by a per mille each call: each contestant's two turns have the same mean place."""
    timing, _ = measure({"slow": lambda n: 2.0 * (1 + n / 1000), "fast": lambda n: 1.0 + n / 1000}, precision=0.0)
    value, low, high = timing.ratio("slow", "fast")
    assert (value, low, high) == pytest.approx((2.0, 2.0, 2.0), rel=1e-12)


def test_every_sample_is_kept() -> None:
    timing, _ = measure({"a": lambda n: float(n), "b": lambda n: float(n)}, precision=0.0)
    assert timing.samples["a"].shape == timing.samples["b"].shape == (8, 2, 3)
    values = sorted(timing.samples["a"].flatten().tolist() + timing.samples["b"].flatten().tolist())
    assert values == [float(n) for n in range(4, 4 + 8 * 12)]  # the warm-up's four are not among them


def test_stopping() -> None:
    assert measure({"a": lambda n: 2.0, "b": lambda n: 1.0}, least=5)[0].stopped == "precise enough"
    noise = np.random.default_rng(0)
    timing, _ = measure({"a": lambda n: noise.uniform(1, 3), "b": lambda n: noise.uniform(1, 3)})
    assert timing.stopped.startswith("all rounds done; an interval is wider than 1 %")
    timing, _ = measure({"a": lambda n: noise.uniform(1, 3), "b": lambda n: 1.0}, seconds=0.0)
    assert timing.stopped.startswith("0 s are over") and len(timing.blocks("a")) == 1


def test_the_interval_covers_the_truth() -> None:
    """Noisy times with a true ratio of 1.5: 95 % intervals over 200 measurements miss it rarely."""
    generator = np.random.default_rng(1)
    missed = 0
    for _ in range(200):
        samples = {
            name: torch.from_numpy(mean * generator.lognormal(0, 0.2, (30, 2, 5)))
            for name, mean in (("a", 1.5), ("b", 1.0))
        }
        _, low, high = Timing(samples, "", "").ratio("a", "b")
        missed += not low <= 1.5 <= high
    assert 1 <= missed <= 24  # 5 % of 200 is 10


def test_percentiles_only_where_the_samples_support_them() -> None:
    values = torch.arange(1.0, 151.0).reshape(5, 2, 15) * 1e-3
    found = Timing({"a": values}, "", "").percentiles("a")
    assert set(found) == {50, 90}
    assert found[50] == pytest.approx(75.5) and found[90] == pytest.approx(135.1)


def test_records() -> None:
    samples = {"dense": torch.full((4, 2, 5), 3e-3), "small": torch.full((4, 2, 5), 1e-3)}
    found = {r.metric: r for r in Timing(samples, "", "").records("dense", {"small": "pruned"})}
    assert found["latency_dense"].value == pytest.approx(3.0) and found["latency_dense"].unit == "ms"
    assert found["realised_pruned"].value == pytest.approx(3.0) and found["realised_pruned"].n == 4
    assert found["latency_pruned"].n == 40


def test_a_real_measurement_on_the_cpu() -> None:
    """A product of 256^3 against one of 64^3: 64 times the work shows, whatever else the machine does."""
    big, small = torch.randn(256, 256), torch.randn(64, 64)
    networks = {"big": lambda x: big @ big, "small": lambda x: small @ small}
    protocol = Protocol(block=5, rounds=10, least=3, warm_up=3, seconds=2.0)
    (timing,) = interleaved(networks, INPUTS, protocol, "cpu", progress=False)
    assert timing.ratio("big", "small")[0] > 2
    assert timing.clock == "wall clock, CPU"
    assert timing.telemetry["before"]["threads"] == torch.get_num_threads()


def test_the_median_of_an_even_number_lies_between_the_two_in_the_middle() -> None:
    """Ten calls a block, as the protocol has: 1 to 10 have the median 5.5, not the fifth value."""
    block = torch.arange(1.0, 11.0, dtype=torch.float64)
    timing = Timing({"a": torch.stack([block, 10 * block]).reshape(1, 2, 10)}, "", "")
    assert timing.blocks("a").tolist() == [(5.5 + 55.0) / 2]
    assert timing.median("a") == 10.0  # of 1 ... 10, 10 ... 100 the tenth and the eleventh are 10 and 10


def test_the_wall_clock_reads_seconds() -> None:
    """A call that sleeps for 20 ms; the machine may be slow, but not fifty times as slow."""
    assert 0.02 <= latency.wall(lambda x: time.sleep(0.02), INPUTS[0]) < 1.0


class Gpu:
    """As much of torch.cuda as a capture needs; ``at`` is the stream that calls go to, ``mode`` what waiting does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.at, self.mode, self.capturing = "usual", 0, False
        self.done: list[str] = []
        patch.setattr(torch.cuda, "Stream", lambda: self.named("side"))
        patch.setattr(torch.cuda, "current_stream", lambda: self.named(self.at))
        patch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "at", stream.name))
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(torch.cuda, "synchronize", lambda: self.done.append(f"synchronize on {self.at}"))
        patch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)
        patch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))
        patch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.done.append("replay")))
        patch.setattr(torch.cuda, "graph", self.graph)

    def named(self, name: str) -> Any:
        return SimpleNamespace(name=name, wait_stream=lambda other: None)

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        """As torch's: the end of a capture that has failed raises before the stream is given back."""
        self.done.append("capture")
        self.at, self.capturing = "capture", True
        try:
            yield
        except RuntimeError:
            raise RuntimeError("failed due to a previous error during capture")  # noqa: B904
        self.at, self.capturing = "usual", False


def test_a_network_that_waits_for_the_gpu_is_never_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)

    def network(x: torch.Tensor) -> None:
        if gpu.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nmore")

    reason = "it waits for the GPU within a call (called a synchronizing CUDA operation)"
    assert latency.captured(network, torch.ones(1)) == reason
    assert gpu.done == [] and gpu.mode == 0


def test_a_capture_that_fails_says_why_and_leaves_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)

    def network(x: torch.Tensor) -> None:
        if gpu.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    assert latency.captured(network, torch.ones(1)) == "operation not permitted when stream is capturing"
    assert gpu.at == "usual" and gpu.done == ["capture", "synchronize on usual"]


def test_a_graph_replays_what_was_captured_on_the_images_of_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, seen = Gpu(monkeypatch), []
    replay = latency.captured(seen.append, torch.zeros(1))
    assert not isinstance(replay, str) and gpu.done == ["capture"] and gpu.at == "usual"
    replay(torch.tensor([7.0]))
    assert gpu.done == ["capture", "replay"] and float(seen[-1]) == 7.0
