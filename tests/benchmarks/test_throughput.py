"""What the harness costs: training and evaluation against a bare loop with the images ready in memory.

Ratios of processor time (wall time on a GPU), measured in turns in one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.images import IMAGENET_MEAN, IMAGENET_STD, MemorySplit
from bench.measure import accuracy
from bench.models.recipe import Recipe
from bench.train.fit import fit
from bench.train.schedule import Schedule

BATCH, CIFAR = 128, 50_000
# a neighbour on the machine makes a turn slower, never faster: a ratio of best turns that disappoints after the fewest
# may come of too few of them, and a harness that is slow stays slow however many there are
FEWEST, MOST = 3, 12
NETWORKS = {
    "ResNet-56": Recipe("cifar_resnet56", {"num_classes": 10}, (3, 32, 32)),
    "M-CifarNet": Recipe("mcifarnet", {"num_classes": 10}, (3, 32, 32)),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def images(count: int) -> MemorySplit:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return MemorySplit(pixels, torch.arange(count) % 10, IMAGENET_MEAN, IMAGENET_STD, pad=4, mirror=True)


def seconds(function: Callable[[], object], device: str) -> float:
    """Processor time is that of this process alone, whatever else the machine does; a GPU's is not in it."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    begin = clock()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def best(turn: Callable[[], tuple[float, ...]], ratio: Callable[..., float], least: float) -> tuple[float, ...]:
    """The best time of each column of ``turn``, from FEWEST turns on until ``ratio`` of them is ``least``, or MOST."""
    times = turn()
    for count in range(2, MOST + 1):
        times = tuple(map(min, times, turn()))
        if count >= FEWEST and ratio(*times) >= least:
            break
    return times


def prepared(name: str, split: MemorySplit, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network and the images as a bare loop likes them best."""
    layout = torch.channels_last if device == "cpu" else torch.contiguous_format
    model = NETWORKS[name].build().to(device, memory_format=layout)
    inputs = split.batch(list(range(len(split)))).to(device, memory_format=layout)
    return model, inputs, split.labels.to(device)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NETWORKS)
def test_training_keeps_up_with_a_bare_loop(
    name: str,
    device: str,
    tmp_path: Path,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    kept_up: Callable[[str, float], None],
) -> None:
    """Augmentation, schedule, checks and checkpoint included; the loop has none of them.

    What an epoch of CIFAR-10 takes, from what a further batch takes and what a further epoch of the same batches does.
    """
    torch.manual_seed(0)
    few = 256 if device == "cpu" else 12_800
    splits = {count: images(count) for count in (few, 3 * few)}
    model, inputs, labels = prepared(name, splits[3 * few], device)
    optimiser = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def loop() -> None:
        model.train()
        for x, y in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):  # type: ignore[no-untyped-call]
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    def harness(count: int = few, epochs: int = 1) -> None:
        schedule = Schedule(epochs=epochs, lr=0.01, batch=BATCH, weight_decay=1e-4, shape="cosine")
        work = tmp_path / str(time.monotonic_ns())
        work.mkdir()
        fit(NETWORKS[name].build(), splits[count], schedule, 0, work, device, progress=False)

    def turn() -> tuple[float, ...]:
        longer, repeated = (lambda: harness(3 * few)), (lambda: harness(epochs=3))
        return tuple(seconds(run, device) for run in (loop, harness, longer, repeated))

    def apart(one: float, longer: float, repeated: float) -> tuple[float, float]:
        image = (longer - one) / (2 * few)
        return image, (repeated - one) / 2 - few * image  # an epoch's checkpoint, seeds, loader

    def speed(bare: float, *ours: float) -> float:
        image, epoch = apart(*ours)
        return bare / (3 * few) * CIFAR / (image * CIFAR + max(0.0, epoch))

    harness()
    bare, *ours = best(turn, speed, least=0.9)
    ratio, epoch = speed(bare, *ours), apart(*ours)[1]
    benchmark.pedantic(harness, rounds=1)
    benchmark.extra_info.update(seconds_an_epoch_beside_its_images=epoch)
    with capsys.disabled():
        print(f"\n{name}, training on {device}: {ratio:.1%} of a bare loop's speed; {epoch:.2f} s more an epoch")
    assert ratio >= 0.9  # ResNet-56 0.99, M-CifarNet 1.02 (one thread)
    kept_up("of a bare loop", ratio)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_keeps_up_with_a_bare_loop(
    name: str,
    device: str,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    kept_up: Callable[[str, float], None],
) -> None:
    split = images(1024 if device == "cpu" else 51_200)
    model, inputs, _ = prepared(name, split, device)
    own = NETWORKS[name].build()

    @torch.no_grad()
    def loop() -> None:
        model.eval()
        for x in inputs.split(256):  # type: ignore[no-untyped-call]
            model(x)

    def harness() -> None:
        accuracy.logits(own, split, device, progress=False, channels_last=True)

    def speed(bare: float, ours: float) -> float:
        return bare / ours

    harness()
    ratio = speed(*best(lambda: (seconds(loop, device), seconds(harness, device)), speed, least=0.8))
    benchmark.pedantic(harness, rounds=1)
    with capsys.disabled():
        print(f"\n{name}, evaluation on {device}: {ratio:.1%} of a bare loop's speed")
    assert ratio >= 0.8  # ResNet-56 0.99 to 1.00, M-CifarNet 0.92 to 1.04 (one thread, two machines)
    kept_up("of a bare loop", ratio)
