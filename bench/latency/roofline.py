"""What this machine can do at most: the FLOP/s of a large matrix product, the bytes/s of a large copy, both measured.

A layer of arithmetic intensity I (FLOP a byte) can reach min(peak, I x bandwidth) (Williams et al. 2009, roofline).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Roofline:
    """``flops`` (2 a multiply-accumulate) and ``bytes`` (read plus written) a second, at ``threads``."""

    flops: float
    bytes: float
    threads: int

    def at(self, intensity: float) -> float:
        """The highest FLOP/s at an arithmetic intensity in FLOP a byte."""
        return min(self.flops, intensity * self.bytes)

    @property
    def ridge(self) -> float:
        """The intensity (FLOP a byte) below which memory is the limit."""
        return self.flops / self.bytes

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"flops_per_s": self.flops, "bytes_per_s": self.bytes, "threads": self.threads, "ridge": self.ridge}


def measured(
    device: str, dtype: torch.dtype, side: int | None = None, megabytes: int | None = None, times: int = 5
) -> Roofline:
    """The best of ``times`` products of side x side matrices and of copies of so many MB (default: by the device)."""
    cuda = device.startswith("cuda")
    side, megabytes = side or (8192 if cuda else 1536), megabytes or (1024 if cuda else 192)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(megabytes * 1_000_000 // 4, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        for_product = _best(lambda: torch.mm(a, b, out=product), cuda, times)
        for_copy = _best(lambda: target.copy_(source), cuda, times)
    return Roofline(2.0 * side**3 / for_product, 8.0 * len(source) / for_copy, torch.get_num_threads())


def _best(function: Callable[[], object], cuda: bool, times: int) -> float:
    taken = []
    for _ in range(times + 1):  # the first warms up
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return min(taken[1:])
