"""Latency of one layer against its channel count: the staircase of the machine, and what it advises.

The layer's filters are varied, everything else stays as it is in the network.  All counts take turns, so that a machine
that slows down does so for all of them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bench.errors import UserError
from bench.latency import contestants
from bench.latency.contestants import Subject
from bench.latency.decomposition import MULTIPLES
from bench.measure import latency
from bench.measure.latency import Network, Protocol
from bench.provenance import git_state, now, versions
from bench.report.drawing import COLOURS, DPI, STYLE
from bench.store import disk_errors, write_json, write_text

# counts that are timed: all up to here, and of more channels the multiples of 8 and their neighbours at those of 32
_ALL = 48
# per cent that a wider layer may take longer and still be called free
_FREE = 2.0
# calls of a layer between two events of a GPU
_CALLS = 20


@dataclass(frozen=True)
class Stairs:
    """Milliseconds by channel count: medians, and the ends of their 95 % intervals; ``layout`` is the faster one."""

    name: str
    layout: str
    counts: tuple[int, ...]
    ms: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    stopped: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the advice among them."""
        return {
            "name": self.name,
            "layout": self.layout,
            "counts": list(self.counts),
            "ms": list(self.ms),
            "low": list(self.low),
            "high": list(self.high),
            "stopped": self.stopped,
            "advice": self.advice(),
            "rounding_up": {str(m): self.rounding_up(m) for m in MULTIPLES},
        }

    def rounding_up(self, multiple: int) -> dict[str, Any] | None:
        """What the next multiple takes longer than the counts between, in per cent: median; at how many it is free.

        Free is one whose interval does not lie above the other's.  None where nothing between was timed.
        """
        place = {count: number for number, count in enumerate(self.counts)}
        changes, free = [], 0
        for count, number in place.items():
            above = place.get(-(-count // multiple) * multiple)
            if count % multiple == 0 or above is None:
                continue
            changes.append(100.0 * (self.ms[above] / self.ms[number] - 1.0))
            free += self.low[above] <= self.high[number]
        return {"median": float(np.median(changes)), "free": free, "of": len(changes)} if changes else None

    def advice(self) -> str:
        """The largest multiple that is worth rounding up to: most counts below it take as long, or hardly less."""
        for m in MULTIPLES:
            found = self.rounding_up(m)
            if found is not None and found["free"] > found["of"] / 2 and found["median"] <= _FREE:
                return (
                    f"round widths up to multiples of {m}: at {found['free']} of {found['of']} counts between the next "
                    f"multiple is no slower (median {found['median']:+.1f} %)"
                )
        return "rounding up pays at no multiple of 8, 16 or 32: every channel less is time saved"


def counts_of(channels: int) -> list[int]:
    """The counts that are timed for a layer of so many filters."""
    if channels <= _ALL:
        return list(range(1, channels + 1))
    chosen = set(range(8, channels + 1, 8)) | {channels}
    for edge in range(32, channels + 1, 32):
        chosen |= {edge - 12, edge - 4, edge - 1, edge + 1, edge + 4}
    return sorted(count for count in chosen if 1 <= count <= channels)


def measured(subject: Subject, layer: str, batch: int, dtype: str, device: str, seconds: float) -> Stairs:
    """The staircase of a convolution or linear layer of a network, by its module's name.

    Raises :class:`UserError` where the network has no such layer.
    """
    contestants.check_dtype(dtype, device)
    contestants.set_precision(dtype)
    model = subject.build(0)
    modules = dict(model.named_modules())
    module = modules.get(layer)
    if not isinstance(module, (nn.Conv2d, nn.Linear)) or getattr(module, "groups", 1) != 1:
        known = [name for name, one in modules.items() if isinstance(one, (nn.Conv2d, nn.Linear))]
        raise UserError(
            f"{subject.name} has no convolution or linear layer {layer!r}: choose one of {', '.join(known)}"
        )
    shape = _input_shape(model, module, subject.recipe.input_shape)
    number = contestants.DTYPES[dtype]
    inputs = [torch.randn(batch, *shape, device=device).to(number) for _ in range(2)]
    counts = counts_of(module.out_channels if isinstance(module, nn.Conv2d) else module.out_features)
    layouts = ["nchw", "nhwc"] if isinstance(module, nn.Conv2d) else ["nchw"]
    layout = min(
        layouts, key=lambda name: _seconds(_ready(module, counts[-1], name, number, device), inputs, name, device)
    )
    networks: dict[str, Network] = {str(count): _ready(module, count, layout, number, device) for count in counts}
    laid = [_laid(x, layout) for x in inputs]
    protocol = Protocol(block=5, rounds=200, least=10, warm_up=3, precision=0.02, seconds=seconds)
    with torch.inference_mode():
        clock, many = latency.wall, networks
        if device.startswith("cuda"):
            clock, many = _of_many, {name: _many(network, laid[0]) for name, network in networks.items()}
        timing = latency.turns(many, laid, protocol, clock, "staircase", device, False)
    found = {record.metric: record for record in timing.records(str(counts[0]))}
    rows = [found[f"latency_{count}"] for count in counts]
    name = f"{subject.name}, {layer}, batch {batch}, {dtype}, {device}"
    return Stairs(
        name,
        layout,
        tuple(counts),
        tuple(row.value for row in rows),
        tuple(float(row.low or 0.0) for row in rows),
        tuple(float(row.high or 0.0) for row in rows),
        timing.stopped,
    )


def _input_shape(model: nn.Module, module: nn.Module, image: Sequence[int]) -> tuple[int, ...]:
    """Of what the layer reads, without the batch."""
    seen: list[tuple[int, ...]] = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append(tuple(inputs[0].shape[1:])))
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *image))
    finally:
        handle.remove()
    return seen[0]


def _ready(module: nn.Conv2d | nn.Linear, count: int, layout: str, dtype: torch.dtype, device: str) -> nn.Module:
    """The layer with ``count`` of its filters."""
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        made: nn.Module = nn.Linear(module.in_features, count, bias)
    else:
        made = nn.Conv2d(
            module.in_channels,
            count,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            bias=bias,
        )
    made = made.to(device=device, dtype=dtype).eval()
    return made.to(memory_format=torch.channels_last) if layout == "nhwc" else made  # type: ignore[call-overload, no-any-return]


def _many(network: Network, x: Tensor) -> Network:
    """Several calls as one, a CUDA graph where it can be captured: one call of a layer is shorter than its start."""

    def run(inputs: Tensor) -> None:
        for _ in range(_CALLS):
            network(inputs)

    found = latency.captured(run, x)
    return run if isinstance(found, str) else found


def _of_many(network: Network, x: Tensor) -> float:
    """Seconds of one of these calls, by events."""
    return latency.events(network, x) / _CALLS


def _laid(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if layout == "nhwc" else x


def _seconds(network: Network, inputs: list[Tensor], layout: str, device: str) -> float:
    clock = latency.synchronised if device.startswith("cuda") else latency.wall
    x = _laid(inputs[0], layout)
    with torch.inference_mode():
        return sorted(clock(network, x) for _ in range(7))[3]


def keep(stairs: Stairs, path: Path, hardware: Mapping[str, Any]) -> None:
    """Writes ``path``.csv, ``path``.png and, with what the numbers depend on, ``path``.json."""
    about = {"device": dict(hardware), "versions": versions(), "code": git_state(), "date": now()}
    write_json(path.with_name(f"{path.name}.json"), {**stairs.to_json(), **about})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("channels", "ms", "low", "high", "multiple"))
    for count, ms, low, high in zip(stairs.counts, stairs.ms, stairs.low, stairs.high, strict=True):
        writer.writerow((count, ms, low, high, next((m for m in MULTIPLES if count % m == 0), 1)))
    write_text(path.with_name(f"{path.name}.csv"), text.getvalue())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 3.6))
        axes = figure.add_subplot()
        axes.fill_between(stairs.counts, stairs.low, stairs.high, color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(stairs.counts, stairs.ms, color=COLOURS[0], marker=".", label="any count")
        for number, m in enumerate(MULTIPLES):
            places = [place for place, count in enumerate(stairs.counts) if count % m == 0]
            if m == 32 and places:
                x, y = [stairs.counts[p] for p in places], [stairs.ms[p] for p in places]
                axes.plot(x, y, "o", color=COLOURS[number + 1], label=f"multiples of {m}")
        axes.set(title=stairs.name, xlabel="filters", ylabel="ms", ylim=(0, None))
        axes.legend(frameon=False)
        with disk_errors(path):
            figure.savefig(path.with_name(f"{path.name}.png"), dpi=DPI)
