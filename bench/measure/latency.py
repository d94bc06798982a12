"""Latency of networks that are compared: interleaved in one process, paired, every sample kept.

The contestants take turns in blocks, forwards and backwards (A B, B A, A B, …), so that a machine that warms up or
slows down does so for all of them.  Each block's median is one observation; ratios are formed within rounds.  A
:class:`Timing`'s own interval is a bootstrap over the rounds, which says nothing of other processes: those are what
:mod:`bench.latency.interval` is for.  On a GPU the time of the device (events) and the time until the result is
there (wall clock) are both taken, and where a CUDA graph can be captured its replay too: their differences say whether
the launches or the work cost the time.  Times on different devices are never compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bench.store import Record

_RESAMPLES = 2000
# a percentile p needs at least 10 / (1 - p) samples
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Protocol:
    """How long is measured.

    ``block`` calls a turn, ``rounds`` pairs of a forward and a backward turn at most, fewer when the interval of every
    ratio to the first contestant is narrower than ``precision`` (a fraction; not before ``least`` rounds), and no new
    round after ``seconds``.
    """

    block: int = 10
    rounds: int = 60
    least: int = 10
    warm_up: int = 20
    precision: float = 0.01
    seconds: float = 15.0
    seed: int = 0


@dataclass
class Timing:
    """``samples[name]`` are the seconds of every call (rounds x 2 x block, float64); ``clock`` says what was read.

    ``telemetry`` describes the machine before and after; ``stopped`` why the measurement ended.
    """

    samples: dict[str, Tensor]
    clock: str
    stopped: str
    telemetry: dict[str, Any] = field(default_factory=dict)

    def blocks(self, name: str) -> np.ndarray[Any, Any]:
        """The median of each round's two blocks, mean of the two: one observation a round."""
        # NumPy's median: torch's takes the lower of the two in the middle
        return np.asarray(np.median(self.samples[name].numpy(), axis=2).mean(axis=1))

    def median(self, name: str) -> float:
        """The median of all calls, in seconds."""
        return float(np.median(self.samples[name].numpy()))

    def ratio(self, over: str, name: str, seed: int = 0) -> tuple[float, float, float]:
        """How many times faster ``name`` is than ``over``: median over the rounds, 95 % bootstrap interval."""
        return _ratio(self.blocks(over) / self.blocks(name), seed)

    def records(self, over: str, units: Mapping[str, str] | None = None, seed: int | None = None) -> list[Record]:
        """For each contestant the median (ms, interval over rounds) and, but for ``over``, its speed-up over that one.

        ``units`` renames contestants in the metrics.
        """
        found = []
        for name in self.samples:
            label = (units or {}).get(name, name)
            middle, low, high = _ratio(1e3 * self.blocks(name), 0)
            calls = self.samples[name].numel()
            found.append(Record(f"latency_{label}", middle, "ms", low, high, calls, seed))
            if name != over:
                value, low, high = self.ratio(over, name)
                found.append(Record(f"realised_{label}", value, "x", low, high, len(self.blocks(name)), seed))
        return found

    def percentiles(self, name: str) -> dict[int, float]:
        """Percentiles in ms, those that the number of samples supports."""
        values = 1e3 * self.samples[name].flatten().numpy()
        return {p: float(np.percentile(values, p)) for p in PERCENTILES if len(values) >= 10 / (1 - p / 100.0)}


def _ratio(values: np.ndarray[Any, Any], seed: int) -> tuple[float, float, float]:
    """Median with a 95 % percentile bootstrap interval over the observations."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])
    middle = float(np.median(values))
    return middle, min(float(low), middle), max(float(high), middle)


Network = Callable[[Tensor], Any]


def interleaved(
    networks: Mapping[str, Network],
    inputs: Sequence[Tensor],
    protocol: Protocol,
    device: str = "cpu",
    progress: bool = True,
) -> list[Timing]:
    """Times the networks on the same inputs, in turns; the first is what the precision is judged against.

    ``inputs`` are already on ``device`` and taken in order, again and again (real images, because gates depend on
    them).  One :class:`Timing` on the CPU; on CUDA one by the wall clock, one by events and, where every network can be
    captured, one of the graphs' replay.
    """
    with torch.inference_mode():
        if not device.startswith("cuda"):
            return [turns(networks, inputs, protocol, wall, "wall clock, CPU", "cpu", progress)]
        found = [
            turns(networks, inputs, protocol, synchronised, "wall clock, CUDA", device, progress),
            turns(networks, inputs, protocol, events, "events, CUDA", device, progress),
        ]
        graphs = {name: captured(network, inputs[0]) for name, network in networks.items()}
        failed = {name: reason for name, reason in graphs.items() if isinstance(reason, str)}
        if failed:
            found[0].telemetry["no CUDA graph"] = failed
        else:
            replays = {name: graph for name, graph in graphs.items() if not isinstance(graph, str)}
            found.append(turns(replays, inputs, protocol, events, "CUDA graph, events", device, progress))
        return found


def turns(
    networks: Mapping[str, Network],
    inputs: Sequence[Tensor],
    protocol: Protocol,
    clock: Callable[[Network, Tensor], float],
    label: str,
    device: str,
    progress: bool,
    over: str | None = None,
) -> Timing:
    """The networks' turns by one ``clock(network, images)`` in seconds; ``label`` says which it is.

    Their order is that of ``networks``; ``over`` (default: the first) is what the precision is judged against.
    """
    names = list(networks)
    compared = [over or names[0], *(name for name in names if name != (over or names[0]))]
    before = machine(device)
    for name in names:
        for number in range(protocol.warm_up):
            clock(networks[name], inputs[number % len(inputs)])
    taken: dict[str, list[list[list[float]]]] = {name: [] for name in names}
    begin, place, stopped = time.monotonic(), 0, "all rounds done"
    for round_ in tqdm(range(protocol.rounds), desc=f"timing ({label})", disable=not progress, leave=False):
        for name in names:
            taken[name].append([])
        # each way with images of its own: the network in the middle comes twice in a row, and one that skips would
        # find what it has just gathered
        for order in (names, list(reversed(names))):
            chosen = [inputs[(place + number) % len(inputs)] for number in range(protocol.block)]
            place += protocol.block
            for name in order:
                taken[name][-1].append([clock(networks[name], x) for x in chosen])
        if time.monotonic() - begin > protocol.seconds:
            stopped = f"{protocol.seconds:g} s are over"
            break
        if round_ + 1 >= protocol.least and (round_ + 1) % 5 == 0 and _precise(taken, compared, protocol):
            stopped = "precise enough"
            break
    samples = {name: torch.tensor(values, dtype=torch.float64) for name, values in taken.items()}
    if stopped != "precise enough" and len(names) > 1 and not _precise(taken, compared, protocol):
        stopped += f"; an interval is wider than {100 * protocol.precision:g} %"
    return Timing(samples, label, stopped, {"before": before, "after": machine(device)})


def _precise(taken: Mapping[str, list[list[list[float]]]], names: Sequence[str], protocol: Protocol) -> bool:
    so_far = Timing({name: torch.tensor(taken[name], dtype=torch.float64) for name in names}, "", "")
    for name in names[1:]:
        value, low, high = so_far.ratio(names[0], name)
        if high - low > protocol.precision * value:
            return False
    return True


def wall(network: Network, x: Tensor) -> float:
    """Seconds of one call on the CPU."""
    begin = time.perf_counter_ns()
    network(x)
    return (time.perf_counter_ns() - begin) * 1e-9


def synchronised(network: Network, x: Tensor) -> float:
    """Seconds of one call until the GPU has finished: what a user waits."""
    torch.cuda.synchronize()
    begin = time.perf_counter_ns()
    network(x)
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - begin) * 1e-9


def events(network: Network, x: Tensor) -> float:
    """Seconds between two events of the GPU around one call."""
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    network(x)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def captured(network: Network, x: Tensor) -> Network | str:
    """The network as a CUDA graph, or why it cannot be captured.

    A network that waits for values of the GPU (as one that chooses its channels and groups its images by them) is found
    out before, because a capture that fails may leave its stream and its memory behind.
    """
    static, before = x.clone(), torch.cuda.current_stream()
    try:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            for _ in range(3):
                network(static)
            reason = _waits(network, static)
        before.wait_stream(stream)
        if reason is not None:
            return reason
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            network(static)
    except RuntimeError as error:
        # the end of a failed capture raises too, before it gives the stream back and with less to say
        torch.cuda.set_stream(before)
        torch.cuda.synchronize()
        return _first_line(error.__context__ or error)

    def replay(inputs: Tensor) -> None:
        static.copy_(inputs)
        graph.replay()

    return replay


def _waits(network: Network, x: Tensor) -> str | None:
    """Why a network waits for the GPU within a call, or None."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        network(x)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return f"it waits for the GPU within a call ({_first_line(error)})"
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


def machine(device: str) -> dict[str, Any]:
    """What may disturb a measurement: threads, processors at hand, load; on CUDA clocks, temperature, other users."""
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "load": [round(value, 2) for value in os.getloadavg()]}
    found["processors"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.startswith("cuda"):
        found["name"] = torch.cuda.get_device_name()
        for name in ("clock_rate", "temperature", "power_draw", "utilization"):
            try:
                found[name] = getattr(torch.cuda, name)()
            except Exception as error:  # NVML is optional and raises many kinds; the record says that it was not read
                found[name] = f"not read ({type(error).__name__})"
    return found
