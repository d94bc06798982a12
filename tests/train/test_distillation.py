"""Distillation: the loss against plain arithmetic, its gradient by differences, the training against a plain loop."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.images import MemorySplit
from bench.train.distillation import Distillation, Student, distil, distillation_loss
from bench.train.fit import fit, seed_everything
from bench.train.schedule import Schedule

OPTIONS = [Distillation(4.0, 0.9), Distillation(1.0, 1.0), Distillation(2.5, 0.0), Distillation(0.5, 0.3)]


def split(count: int = 40, pad: int = 0) -> MemorySplit:
    """Random 8x8 images in which the label is the brighter half."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[labels == 1, :, :, 4:] += 100
    return MemorySplit(images, labels, (0.5,) * 3, (0.25,) * 3, pad=pad, mirror=pad > 0)


def network(seed: int = 3, width: int = 4) -> nn.Module:
    seed_everything(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 2)
    )


def state(net: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


def logits(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    outputs, targets = (3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return outputs, targets, torch.arange(shape[0]) % shape[1]


def plain_loss(
    outputs: list[list[float]], targets: list[list[float]], labels: list[int], options: Distillation
) -> float:
    """Number by number: softened probabilities, their divergence, the label's surprise."""

    def shares(row: list[float], temperature: float) -> list[float]:
        powers = [math.exp(value / temperature) for value in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for student, teacher, label in zip(outputs, targets, labels, strict=True):
        hard = -math.log(shares(student, 1.0)[label])
        q, p = shares(student, options.temperature), shares(teacher, options.temperature)
        soft = sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
        total += (1 - options.weight) * hard + options.weight * options.temperature**2 * soft
    return total / len(labels)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_is_that_of_plain_arithmetic(options: Distillation) -> None:
    outputs, targets, labels = logits(6, 5)
    expected = plain_loss(outputs.tolist(), targets.tolist(), labels.tolist(), options)
    assert float(distillation_loss(outputs, targets, labels, options)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_gradient_is_that_of_differences(options: Distillation) -> None:
    outputs, targets, labels = logits(3, 4)
    outputs.requires_grad_()
    distillation_loss(outputs, targets, labels, options).backward()  # type: ignore[no-untyped-call]
    step, found = 1e-5, torch.zeros(3, 4, dtype=torch.float64)
    for place in range(12):
        ends = []
        for sign in (1, -1):
            moved = outputs.detach().clone()
            moved.view(-1)[place] += sign * step
            ends.append(plain_loss(moved.tolist(), targets.tolist(), labels.tolist(), options))
        found.view(-1)[place] = (ends[0] - ends[1]) / (2 * step)
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, found, rtol=1e-6, atol=1e-9)


def test_a_full_batch_run_equals_plain_gradient_descent(tmp_path: Path) -> None:
    """The student in training mode, the teacher in evaluation mode and left as it was."""
    options = Distillation(3.0, 0.7)
    data, net, plain, teacher = split(), network(), network(), network(5, width=6)
    before = state(teacher)
    schedule = Schedule(epochs=4, lr=0.05, batch=40, momentum=0.0)
    history = distil(net, teacher.train(), data, schedule, options, 0, tmp_path, "cpu", progress=False)
    images = data.batch(list(range(40)))
    wanted = teacher.eval()(images).detach()
    for entry in history:
        outputs = plain(images)
        p, q = (wanted / 3.0).softmax(1), (outputs / 3.0).softmax(1)
        loss = 0.3 * F.cross_entropy(outputs, data.labels) + 0.7 * 9.0 * (p * (p / q).log()).sum(1).mean()
        assert entry["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
        assert entry["accuracy"] == pytest.approx(100 * float((outputs.argmax(1) == data.labels).float().mean()))
        with torch.no_grad():
            for weight, g in zip(plain.parameters(), torch.autograd.grad(loss, list(plain.parameters())), strict=True):
                weight.sub_(0.05 * g)
    torch.testing.assert_close(state(net), state(plain), rtol=1e-4, atol=1e-5)
    assert torch.equal(state(teacher), before)
    assert not net.training


def test_without_weight_it_is_the_ordinary_training_and_with_all_of_it_labels_do_not_count(tmp_path: Path) -> None:
    schedule = Schedule(epochs=2, lr=0.05, batch=8, shape="cosine")
    ordinary = network()
    fit(ordinary, split(pad=2), schedule, 1, tmp_path / "o", "cpu", progress=False)
    found = []
    for name, weight, turned in (("0", 0.0, False), ("1", 1.0, False), ("t", 1.0, True)):
        net, data = network(), split(pad=2)
        data = data.labelled(1 - data.labels) if turned else data
        options = Distillation(4.0, weight)
        distil(net, network(5), data, schedule, options, 1, tmp_path / name, "cpu", progress=False)
        found.append(state(net))
    assert torch.equal(found[0], state(ordinary))
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])


def test_the_teacher_is_no_part_of_what_is_trained_and_saved() -> None:
    student = Student(network(), network(5), OPTIONS[0])
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in network().parameters())
    assert len(student.state_dict()) == len(network().state_dict())
    student.train()
    assert student.net.training and not student._teacher[0].training


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    found = []
    for name, stops in (("whole", (3,)), ("stopped", (1, 3))):
        for epochs in stops:  # the second time the network's own weights are replaced by the checkpoint's
            net = network()
            schedule = Schedule(epochs=epochs, lr=0.05, batch=8)
            distil(net, network(5), split(pad=2), schedule, OPTIONS[0], 2, tmp_path / name, "cpu", progress=False)
        found.append(state(net))
    assert torch.equal(found[0], found[1])
