"""Is a network that is 10 % slower caught, and one that is not left alone?  Ten times each, on this machine as it is.

The network is a chain of equal convolutions; the slowed one computes one of ten twice.  Each time a fresh network takes
turns with itself (A/A), with a copy and with the slowed one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.latency.interval import SLOWER, Estimate, judge, noise_floor
from bench.measure import latency
from bench.measure.latency import Network, Protocol, Timing
from bench.provenance import git_state, hardware, now
from bench.store import write_json

LAYERS = 10
PROTOCOL = Protocol(block=2, rounds=200, least=20, warm_up=5, precision=0.01, seconds=4.0)
# with intervals of single processes, wider than of several: what is asked is whether 10 % are seen
_WIDEST = 0.15


class Chain(nn.Module):
    """Ten equal convolutions with ReLU; with ``slowed`` one of them is computed once more."""

    def __init__(self, channels: int, slowed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(LAYERS)])
        self.slowed = slowed

    def forward(self, x: Tensor) -> Tensor:
        """N x channels x H x W to the same."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        if self.slowed:
            torch.relu(self.layers[0](x))
        return x


def tried(
    times: int,
    device: str = "cpu",
    channels: int = 32,
    side: int = 24,
    protocol: Protocol = PROTOCOL,
    turns: Callable[..., Timing] | None = None,
    clock: Callable[[Network, Tensor], float] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One entry a time: the noise floor (%), and of the copy and of the slowed network the ratio and the verdict.

    ``turns`` and ``clock`` (seconds of one call) stand in for the harness's.
    """
    found = []
    for number in range(times):
        torch.manual_seed(number)
        network = Chain(channels).to(device).eval()
        slow = copy.deepcopy(network)
        slow.slowed = True
        networks: dict[str, Network] = {
            "network": network,
            "again": copy.deepcopy(network),
            "unchanged": copy.deepcopy(network),
            "slowed": slow,
        }
        inputs = [torch.randn(1, channels, side, side, device=device) for _ in range(4)]
        usual = latency.synchronised if device.startswith("cuda") else latency.wall
        with torch.inference_mode():
            timing = (turns or latency.turns)(networks, inputs, protocol, clock or usual, "sensitivity", device, False)
        floor = noise_floor(_ratio(timing, "again"))
        entry: dict[str, Any] = {"noise_floor": 100.0 * floor, "rounds": len(timing.blocks("network"))}
        for name in ("unchanged", "slowed"):
            ratio = _ratio(timing, name)
            entry[name] = [ratio.value, ratio.low, ratio.high, judge(ratio, floor, _WIDEST)]
        found.append(entry)
        say(f"{number + 1}: floor {100 * floor:.1f} %, unchanged {entry['unchanged'][3]}, slowed {entry['slowed'][3]}")
    return found


def _ratio(timing: Timing, name: str) -> Estimate:
    """The network's time over another's, of one process: the bootstrap over its rounds."""
    value, low, high = timing.ratio("network", name)
    return Estimate(value, low, high, 1, len(timing.blocks(name)))


def caught(entry: dict[str, Any], name: str, times: float = 2.0) -> bool:
    """Whether the network is called slower: its interval does, and by more than twice the noise floor."""
    value, _, high, _ = entry[name]
    return bool(high < 1.0 and 100.0 * (1.0 - value) > times * entry["noise_floor"])


def passed(found: list[dict[str, Any]]) -> bool:
    """Whether every slowed network was caught and no unchanged one."""
    return all(caught(entry, "slowed") and not caught(entry, "unchanged") for entry in found)


def text(found: list[dict[str, Any]]) -> str:
    """The counts in one line."""
    right, wrong = (sum(caught(entry, name) for entry in found) for name in ("slowed", "unchanged"))
    close = sum(entry["unchanged"][3] == SLOWER for entry in found)
    ratios = [entry["slowed"][0] for entry in found]
    floors = [entry["noise_floor"] for entry in found]
    middle = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    expected = LAYERS / (LAYERS + 1)
    return (
        f"slowed by 10 %: caught {right} of {len(found)} (mean ratio {middle:.3f}, expected {expected:.3f}); "
        f"unchanged: flagged {wrong} of {len(found)} beyond twice the noise floor, {close} beyond the floor alone; "
        f"noise floor {min(floors):.1f} to {max(floors):.1f} %"
    )


def keep(found: list[dict[str, Any]], device: str, path: Path) -> Path:
    """Writes the entries, what they say, and what made them."""
    about = {"text": text(found), "device": hardware(device), "code": git_state(), "date": now()}
    write_json(path, {**about, "entries": found})
    return path
