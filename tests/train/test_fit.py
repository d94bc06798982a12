"""Training: against a plain loop, resumed after kill -9, in two processes, and stopped by a NaN."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from mmengine.fileio.backends.local_backend import LocalBackend
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.augment import Augmented
from bench.data.images import MemorySplit
from bench.errors import UserError
from bench.train.fit import fit, seed_everything
from bench.train.schedule import Schedule


def split(count: int = 40) -> MemorySplit:
    """Random 8x8 images in which the label is the brighter half; no augmentation."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[labels == 1, :, :, 4:] += 100
    images[labels == 0, :, :, :4] += 100
    return MemorySplit(images, labels, (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False)


def network() -> nn.Module:
    seed_everything(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def state(net: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


def test_a_full_batch_run_equals_plain_sgd(tmp_path: Path) -> None:
    """With the whole set as one batch the order does not matter: SGD with momentum and weight decay by hand."""
    data, net = split(), network()
    plain = network()
    schedule = Schedule(epochs=5, lr=0.05, batch=40, momentum=0.9, weight_decay=0.01)
    fit(net, data, schedule, 0, tmp_path, "cpu", progress=False)
    images = data.batch(list(range(40)))
    velocity = [torch.zeros_like(p) for p in plain.parameters()]
    for _ in range(5):
        loss = F.cross_entropy(plain(images), data.labels)
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for p, g, v in zip(plain.parameters(), gradients, velocity, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(0.05 * v)
    torch.testing.assert_close(state(net), state(plain), rtol=1e-4, atol=1e-5)


def test_the_rate_falls_tenfold_at_a_milestone(tmp_path: Path) -> None:
    """The whole set as one batch: two steps of plain gradient descent at the rate, two at a tenth of it."""
    data, net, plain = split(), network(), network()
    schedule = Schedule(epochs=4, lr=0.05, batch=40, shape="steps", milestones=(2,), momentum=0.0)
    fit(net, data, schedule, 0, tmp_path, "cpu", progress=False)
    images = data.batch(list(range(40)))
    for rate in (0.05, 0.05, 0.005, 0.005):
        gradients = torch.autograd.grad(F.cross_entropy(plain(images), data.labels), list(plain.parameters()))
        with torch.no_grad():
            for p, g in zip(plain.parameters(), gradients, strict=True):
                p.sub_(rate * g)
    torch.testing.assert_close(state(net), state(plain), rtol=1e-4, atol=1e-5)


def test_the_seed_decides_the_order(tmp_path: Path) -> None:
    found = []
    for place, seed in enumerate((0, 0, 1)):
        net = network()
        fit(net, split(), Schedule(epochs=2, lr=0.05, batch=8), seed, tmp_path / str(place), "cpu", progress=False)
        found.append(state(net))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def augmented() -> MemorySplit:
    plain = split()
    return MemorySplit(plain.images, plain.labels, (0.5,) * 3, (0.25,) * 3, pad=2, mirror=True)


def dropping() -> nn.Module:
    seed_everything(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 2))


def test_workers_change_nothing(tmp_path: Path) -> None:
    """Augmentation is drawn from (seed, epoch, place): 0, 1 and 2 batch-making processes train the same network."""
    found = []
    for workers in (0, 1, 2):
        net = dropping()
        schedule = Schedule(epochs=2, lr=0.05, batch=8)
        fit(net, augmented(), schedule, 0, tmp_path / str(workers), "cpu", workers=workers, progress=False)
        found.append(state(net))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_image_s_augmentation_depends_on_seed_epoch_and_place_alone() -> None:
    data = Augmented(augmented(), seed=5)
    first = data[[3, 8]][0]
    assert torch.equal(first[1], data[[8]][0][0])  # not on the batch
    again = Augmented(augmented(), seed=5)
    assert torch.equal(again[[3, 8]][0], first)
    everything = list(range(40))
    whole = data[everything][0]
    other = Augmented(augmented(), seed=6)
    data.epoch = 1
    for changed in (data[everything][0], other[everything][0]):
        assert not torch.equal(changed, whole)
    data.epoch = 0
    assert torch.equal(data[everything][0], whole)


def test_the_draws_are_uniform() -> None:
    """Five offsets each way and two mirrors, all equally likely: chi-squared, 10,000 images, 49 degrees of freedom."""
    images = torch.zeros(10_000, 3, 8, 8, dtype=torch.uint8)
    data = Augmented(MemorySplit(images, torch.zeros(10_000).long(), (0.5,) * 3, (0.5,) * 3, pad=2, mirror=True), 0)
    draws = data.draws()
    offsets = (draws[:, :2] * 5).long()
    cells = 10 * offsets[:, 0] + 2 * offsets[:, 1] + (draws[:, 2] < 0.5).long()
    counts = torch.bincount(cells, minlength=50).double()
    assert float(((counts - 200) ** 2 / 200).sum()) < 85.4  # the 99.9 % quantile


def test_the_history_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    """The whole set as one batch: loss and accuracy before each step, by hand; the rate falls at the milestone."""
    data, net, plain = split(), network(), network()
    schedule = Schedule(epochs=4, lr=0.05, batch=40, shape="steps", milestones=(2,), momentum=0.0)
    history = fit(net, data, schedule, 0, tmp_path, "cpu", progress=False)
    images = data.batch(list(range(40)))
    for entry, rate in zip(history, (0.05, 0.05, 0.005, 0.005), strict=True):
        outputs = plain(images)
        loss = F.cross_entropy(outputs, data.labels)
        assert entry["loss"] == pytest.approx(float(loss), rel=1e-4)
        assert entry["accuracy"] == pytest.approx(100 * float((outputs.argmax(1) == data.labels).float().mean()))
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for p, g in zip(plain.parameters(), gradients, strict=True):
                p.sub_(rate * g)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert [entry["lr"] for entry in history][:2] == pytest.approx([0.05, 0.05])


def test_convolutions_are_repeatable_in_training_only(tmp_path: Path) -> None:
    """Latency must not depend on whether the network was trained in this process."""
    seen = []

    def look(net: nn.Module) -> Tensor:
        seen.append(torch.backends.cudnn.deterministic)
        return torch.zeros(())

    for before in (False, True):
        torch.backends.cudnn.deterministic = before
        try:
            schedule = Schedule(epochs=1, lr=0.05, batch=40)
            fit(network(), split(), schedule, 0, tmp_path / str(before), "cpu", progress=False, penalty=look)
            assert torch.backends.cudnn.deterministic == before
        finally:
            torch.backends.cudnn.deterministic = False
    assert seen == [True, True]


def test_a_loss_that_is_no_number_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learning rate"):
        fit(network(), split(), Schedule(epochs=20, lr=1e30, batch=8), 0, tmp_path, "cpu", progress=False)


def _dying(moment: str) -> None:
    """From now on this process kills itself at the third checkpoint: half written, or in the place of the last."""
    put, replace, writes = LocalBackend.put, Path.replace, 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fragile_put(self: Any, obj: Any, path: Any) -> None:
        nonlocal writes
        writes += str(path).endswith((".pth", ".part"))
        if writes == 3 and moment == "half":
            put(self, obj[: len(obj) // 2], path)
            die()
        put(self, obj, path)

    def fragile_replace(self: Path, target: Any) -> Path:
        moved = replace(self, target)
        if writes == 3 and moment == "replaced":
            die()
        return moved

    LocalBackend.put, Path.replace = fragile_put, fragile_replace  # type: ignore[method-assign]


def _train(folder: Path, moment: str = "") -> None:
    """Trains and keeps weights and losses; with a ``moment`` its process dies then."""
    if moment:
        _dying(moment)
    net = network()
    schedule = Schedule(epochs=6, lr=0.05, batch=8, shape="cosine")
    history = fit(net, augmented(), schedule, 0, folder / "work", "cpu", progress=False)
    losses = torch.tensor([entry["loss"] for entry in history], dtype=torch.float64)
    torch.save(torch.cat([state(net), losses]), folder / "result")


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    """kill -9 in the middle of writing a checkpoint, or just after it took the last one's place; the same again:
    bit for bit the same weights."""
    (tmp_path / "undisturbed").mkdir()
    assert children.done(_train, tmp_path / "undisturbed") == 0
    expected = torch.load(tmp_path / "undisturbed" / "result")
    for moment in ("half", "replaced"):
        folder = tmp_path / moment
        folder.mkdir()
        assert children.done(_train, folder, moment) == -signal.SIGKILL
        assert not (folder / "result").exists()
        assert children.done(_train, folder) == 0
        assert torch.equal(torch.load(folder / "result"), expected), moment


def _share(place: Path) -> None:
    """Trains on its share of the batches, if it is one of several processes, and keeps the weights."""
    seed_everything(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    world, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    fit(net, split(), Schedule(epochs=4, lr=0.05, batch=40), 0, place / f"work{world}", "cpu", progress=False)
    torch.save(state(net), place / f"result{world}{rank}")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """With gloo: both processes end with the same weights, near those of one process with the whole batch."""
    children.two_ranks(_share, tmp_path)
    assert children.done(_share, tmp_path) == 0
    first, second, alone = (torch.load(tmp_path / f"result{name}") for name in ("20", "21", "10"))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-3, atol=1e-4)
