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

ROUNDS, BATCH, CIFAR = 3, 128, 50_000
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


def compared(bare: Callable[[], float], ours: Callable[[], float]) -> float:
    """Ours' speed as a fraction of the bare loop's, each by its best of several turns."""
    ours()
    turns = [(bare(), ours()) for _ in range(ROUNDS)]
    return min(turn[0] for turn in turns) / min(turn[1] for turn in turns)


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

    harness()
    turns = [
        (
            seconds(loop, device),
            seconds(harness, device),
            seconds(lambda: harness(3 * few), device),
            seconds(lambda: harness(epochs=3), device),
        )
        for _ in range(ROUNDS)
    ]
    bare, one, longer, repeated = (min(column) for column in zip(*turns, strict=True))
    image = (longer - one) / (2 * few)
    epoch = (repeated - one) / 2 - few * image  # its checkpoint, its seeds, its loader
    ratio = bare / (3 * few) * CIFAR / (image * CIFAR + max(0.0, epoch))
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

    ratio = compared(lambda: seconds(loop, device), lambda: seconds(harness, device))
    benchmark.pedantic(harness, rounds=1)
    with capsys.disabled():
        print(f"\n{name}, evaluation on {device}: {ratio:.1%} of a bare loop's speed")
    assert ratio >= 0.8  # ResNet-56 0.99 to 1.00, M-CifarNet 0.92 to 1.04 (one thread, two machines)
    kept_up("of a bare loop", ratio)
