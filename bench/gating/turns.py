"""The turns of the dense, folded, masked and skipped network, in several fresh processes.

A process lays out its memory and chooses its algorithms once: of networks of a millisecond the speed-up over the dense
one was 1.14x to 1.27x in six processes, and 1.86x in one that had just trained them, while the rounds of each agreed
within a few per cent.  So the processes are the observations, as they are in ``bench latency``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from tqdm import tqdm

from bench import children
from bench.gating.compact import Compact, dense
from bench.gating.skip import SkippedNetwork
from bench.gating.skipped import SkippedConv
from bench.latency.interval import WIDEST, Estimate, estimate
from bench.measure import latency
from bench.measure.latency import Protocol, Timing

# the contestants, by the order of their turns; each is compared with the first
NAMES = ("dense", "folded", "masked", "skipped")


@dataclass(frozen=True)
class Run:
    """What one clock read: a :class:`Timing` of each process."""

    timings: Sequence[Timing]

    def samples(self, name: str) -> Tensor:
        """Seconds of every call (rounds of all processes x 2 x calls of a block, float64)."""
        return torch.cat([timing.samples[name] for timing in self.timings])

    def milliseconds(self, name: str) -> Estimate:
        """The time of a network."""
        return estimate([1e3 * timing.blocks(name) for timing in self.timings])

    def ratio(self, over: str, name: str) -> Estimate:
        """How many times faster ``name`` is than ``over``."""
        return estimate([timing.blocks(over) / timing.blocks(name) for timing in self.timings])

    def load(self) -> float:
        """Runnable processes for each processor, the largest one-minute mean that was seen."""
        seen = [timing.telemetry[when] for timing in self.timings for when in ("before", "after")]
        return float(max(one["load"][0] / one["processors"] for one in seen))

    def facts(self) -> dict[str, Any]:
        """Clock, how the turns ended, the machine before and after them, percentiles, rounds of each process."""
        first, last = self.timings[0], self.timings[-1]
        stopped = f"{len(self.timings)} processes"
        if any(self.ratio(NAMES[0], name).width > WIDEST for name in NAMES[1:]):
            stopped += f"; an interval is wider than {100 * WIDEST:g} %"
        every = Timing({name: self.samples(name) for name in NAMES}, first.clock, stopped)
        return {
            "clock": first.clock,
            "stopped": stopped,
            "machine": {**first.telemetry, "after": last.telemetry["after"]},
            "percentiles": {name: every.percentiles(name) for name in NAMES},
            "rounds": [len(timing.samples[NAMES[0]]) for timing in self.timings],
        }


def in_processes(
    plain: nn.Module,
    gated: nn.Module,
    inputs: Sequence[Tensor],
    protocol: Protocol,
    processes: int,
    device: str,
    progress: bool,
) -> tuple[list[Run], dict[str, float]]:
    """The networks' turns on the same inputs by each clock of the device, as it could be read in all ``processes``.

    These share the rounds and the time of the ``protocol``.  Also where the skipped network's time goes (per cent, the
    processes' mean; only on the CPU and of one image).
    """
    each = replace(protocol, rounds=math.ceil(protocol.rounds / processes), seconds=protocol.seconds / processes)
    arguments = (plain.cpu(), gated.cpu(), [x.cpu() for x in inputs], each, device)
    counted = tqdm(range(processes), desc="timing (fresh processes)", disable=not progress, leave=False)
    found = [children.fresh(taken, *arguments) for _ in counted]
    runs = [Run(timings) for timings in zip(*(timings for timings, _ in found), strict=False)]
    shares = {part: float(np.mean([one[part] for _, one in found])) for part in found[0][1]}
    return runs, shares


def taken(
    plain: nn.Module, gated: nn.Module, inputs: Sequence[Tensor], protocol: Protocol, device: str
) -> tuple[list[Timing], dict[str, float]]:
    """The turns in this process (:func:`in_processes`)."""
    plain, gated = plain.to(device).eval(), gated.to(device).eval()
    inputs = [x.to(device) for x in inputs]
    with torch.no_grad():
        skipping = SkippedNetwork(gated).to(device)
        contestants = (plain, _channels_last(fuse(plain)), gated, skipping)
    found = latency.interleaved(dict(zip(NAMES, contestants, strict=True)), inputs, protocol, device, progress=False)
    shares = time_shares(skipping, inputs) if device == "cpu" and len(inputs[0]) == 1 else {}
    return found, shares


def _channels_last(model: nn.Module) -> latency.Network:
    """``model`` in channels-last layout, the images brought into it as part of the call."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: model(x.contiguous(memory_format=torch.channels_last))


@torch.inference_mode()
def time_shares(skipping: SkippedNetwork, inputs: Sequence[Tensor], rounds: int = 3) -> dict[str, float]:
    """Where the skipped network's time goes on single images (CPU), in per cent: gates, gathering, convolving, rest."""
    spent = dict.fromkeys(("gates", "gather", "convolution", "rest"), 0)
    for x in [x for _ in range(rounds) for x in inputs]:
        values: list[Any] = [None] * skipping.slots
        values[0] = x.contiguous(memory_format=torch.channels_last)
        for run, target, sources, splits in skipping.program:
            begin = time.perf_counter_ns()
            if not splits:
                values[target] = run(*[values[source] for source in sources])
                spent["rest"] += time.perf_counter_ns() - begin
                continue
            layer: SkippedConv = run.__self__  # type: ignore[attr-defined]
            value: Tensor | Compact = values[sources[0]]
            index, g = layer.choose(value)
            gated = time.perf_counter_ns()
            filters = layer.gather(value, index, g)
            gathered = time.perf_counter_ns()
            values[target] = layer.convolve(value, index, g, *filters)
            spent["gates"] += gated - begin
            spent["gather"] += gathered - gated
            spent["convolution"] += time.perf_counter_ns() - gathered
        dense(values[skipping.output])
    total = sum(spent.values())
    return {part: 100.0 * nanoseconds / total for part, nanoseconds in spent.items()}
