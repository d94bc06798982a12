"""Efficient versatile convolutions against those that compute each secondary filter by itself: ratios of times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from bench.versatile.layer import Options, VersatileConv2d

# name: convolution (inputs, outputs, side), options, side of the map, the efficient execution, the least ratio
CASES = {
    "added masks of 7x7": ((64, 64, 7), Options(aggregate="add"), 28, "one", 1.2),
    "two windows of 1x1": ((1024, 512, 1), Options(windows=2), 14, "shared", 1.2),
    "two windows and nested masks of 3x3": ((512, 512, 3), Options(windows=2), 14, "shared", 1.2),
    # nothing to fold and no windows that share: each filter by itself is the efficient one
    "nested masks of 3x3": ((256, 256, 3), Options(), 14, "one", None),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_efficient_execution(
    name: str,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    kept_up: Callable[[str, float], None],
) -> None:
    """Equal to 1e-5, and faster where products are shared; times in turns, one thread's."""
    shape, options, side, execution, least = CASES[name]
    torch.manual_seed(0)
    conv = nn.Conv2d(*shape, padding=shape[2] // 2)
    layer = VersatileConv2d(conv, options)
    layer.initialise()
    x = torch.randn(4, shape[0], side, side).to(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {"cropped": [], execution: [], "ordinary": []}
    outputs = {}
    for _ in range(9):
        for way, found in seconds.items():
            if way != "ordinary":
                layer.execution = way
            begin = time.process_time()
            outputs[way] = (conv if way == "ordinary" else layer)(x)
            found.append(time.process_time() - begin)
    scale = float(outputs["cropped"].abs().max())
    torch.testing.assert_close(outputs[execution], outputs["cropped"], rtol=0.0, atol=1e-5 * scale)
    typical = {way: statistics.median(found[2:]) for way, found in seconds.items()}
    ratio, ordinary = typical["cropped"] / typical[execution], typical["ordinary"] / typical[execution]
    layer.execution = execution
    benchmark.pedantic(lambda: layer(x), rounds=3, iterations=1)
    with capsys.disabled():
        print(f"\n{name}: {execution} {ratio:.2f}x the speed of cropped, {ordinary:.2f}x of the ordinary convolution")
    if least is not None:
        assert ratio >= least
    kept_up("over cropped", ratio)
    kept_up("over ordinary", ordinary)
