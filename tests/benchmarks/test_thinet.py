"""ThiNet's greedy choice from the Gram against the plain procedure: a ratio of times measured in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F

from bench.pruning.moments import Moments, patches, sample_positions
from bench.pruning.thinet import ChannelMoments, backward, channel_moments

CHANNELS, OUTPUTS, KEEP = 128, 128, 64
IMAGES, SIZE, POSITIONS = 64, 14, 10
# removals that the plain procedure makes; the others are extrapolated from its median time for a candidate
FIRST = 2


def layer() -> tuple[Tensor, nn.Conv2d, Tensor]:
    """Inputs behind a ReLU with correlated channels of different strength, a 3x3 reader, sampled positions."""
    torch.manual_seed(0)
    mixed = torch.einsum("nchw,cd->ndhw", torch.randn(IMAGES, 16, SIZE, SIZE), torch.randn(16, CHANNELS) / 4.0)
    strength = torch.logspace(-1.0, 0.5, CHANNELS)[torch.randperm(CHANNELS)]
    images = F.relu(mixed + 0.5 * torch.randn(mixed.shape)) * strength[:, None, None]
    conv = nn.Conv2d(CHANNELS, OUTPUTS, 3, padding=1)
    return images, conv, sample_positions(POSITIONS, IMAGES, SIZE, SIZE, torch.Generator().manual_seed(0))


def plain(images: Tensor, conv: nn.Conv2d, positions: Tensor) -> tuple[list[int], list[float]]:
    """Algorithm 1 with a convolution for each candidate: the first channels to go, and each candidate's seconds.

    A candidate's own contribution alone is convolved, and added to that of the channels that have gone.
    """
    image = torch.arange(IMAGES)[:, None]
    removed: list[int] = []
    total = torch.zeros(IMAGES, POSITIONS, OUTPUTS, dtype=torch.float64)
    seconds: list[float] = []
    for _ in range(FIRST):
        best, least, added = -1, float("inf"), total
        for j in range(CHANNELS):
            if j in removed:
                continue
            begin = time.perf_counter()
            maps = F.conv2d(images[:, j : j + 1], conv.weight[:, j : j + 1], padding=1)
            here = total + maps[image, :, positions[..., 0], positions[..., 1]]
            value = float(here.square().sum())
            seconds.append(time.perf_counter() - begin)
            if value < least:
                best, least, added = j, value, here
        removed.append(best)
        total = added
    return removed, seconds


@torch.no_grad()
def test_greedy_from_the_gram_is_a_thousand_times_faster_than_a_convolution_for_each_candidate(
    benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str], kept_up: Callable[[str, float], None]
) -> None:
    """Half of 128 channels; the same first channels go.  The pass that makes the Gram is told beside it."""
    images, conv, positions = layer()
    removed, seconds = plain(images, conv, positions)
    candidates = sum(CHANNELS - gone for gone in range(CHANNELS - KEEP))
    slow = candidates * median(seconds)

    def gather() -> ChannelMoments:
        inputs = patches(images, positions, conv)
        moments = Moments(inputs.shape[1], OUTPUTS)
        moments.add(inputs, inputs @ conv.weight.flatten(1).T + conv.bias)
        return channel_moments(moments, conv.weight, conv.bias)

    passes = []
    for _ in range(3):
        begin = time.perf_counter()
        found = gather()
        passes.append(time.perf_counter() - begin)
    gathering = min(passes)
    kept = benchmark.pedantic(lambda: backward(found.gram, KEEP), rounds=3, iterations=1, warmup_rounds=1)
    greedy = benchmark.stats.stats.min
    given, whole = slow / greedy, slow / (greedy + gathering)
    benchmark.extra_info.update(plain_seconds=slow)
    with capsys.disabled():
        print(
            f"\n{KEEP} of {CHANNELS} channels kept: {given:,.0f}x given the Gram ({1e3 * greedy:.1f} ms), "
            f"{whole:,.0f}x with the pass that makes it ({1e3 * gathering:.0f} ms); plain {slow:.0f} s, extrapolated "
            f"from {len(seconds)} of {candidates:,} candidates"
        )
    assert set(backward(found.gram, CHANNELS - FIRST)) == set(range(CHANNELS)) - set(removed)
    assert len(kept) == KEEP and not set(kept) & set(removed)
    assert given >= 1000.0
    kept_up("given the Gram", given)
    kept_up("with its pass", whole)
