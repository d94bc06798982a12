"""The steps that train: fresh weights are seeded, a parent's network is trained on, all that is declared arrives."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.augment import CropAndMirror, PadCropAndMirror, ResizedCropAndMirror
from bench.data.images import FileSplit, ImageSet, MemorySplit, Split
from bench.gating import steps as gating
from bench.gating.edit import Gate
from bench.gating.layer import GateOptions, gated_layers
from bench.models import weights
from bench.models.checkpoint import checkpoint, network
from bench.models.edits import ReplaceHead
from bench.models.recipe import Recipe
from bench.steps import Context
from bench.store import Result
from bench.train import detection_steps as detection
from bench.train import detector
from bench.train import steps as training
from bench.train.detector import Batches
from bench.train.distillation import Distillation
from bench.train.fit import fit, seed_everything
from bench.train.schedule import Schedule

RECIPE = Recipe("cifar_resnet20", {"num_classes": 2, "width": 0.25}, (3, 8, 8))
GATES = Recipe("mcifarnet", {"num_classes": 2, "width": 0.0625, "side": 16}, (3, 16, 16))
SCHEDULE = Schedule(epochs=3, lr=0.07, batch=8)


def split(count: int, side: int = 8, pad: int = 2) -> MemorySplit:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return MemorySplit(images, torch.arange(count) % 2, (0.5,) * 3, (0.25,) * 3, pad=pad, mirror=pad > 0)


DATA = ImageSet("noise", "f", ("a", "b"), 8, split(24), split(8), "8x8")


def context(work: Path = Path("nowhere")) -> Context:
    return Context(lambda: DATA, "cpu", False, work, workers=2, label="the label")


def state(result: Result) -> Tensor:
    return torch.cat([value.flatten().double() for value in result.state.values()])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the training loop is asked for; it changes nothing."""
    found: list[tuple[Any, ...]] = []

    def record(*arguments: Any, **named: Any) -> list[dict[str, float]]:
        found.append((*arguments, named) if named else arguments)
        return []

    monkeypatch.setattr(training, "fit", record)
    monkeypatch.setattr(gating, "fit", record)
    monkeypatch.setattr(detection, "fit_detector", record)
    return found


def test_fresh_weights_are_those_of_the_seed(calls: list[tuple[Any, ...]]) -> None:
    """Whatever was drawn before."""
    found = []
    for disturbed, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(disturbed)
        found.append(training.run_trained(context(), [], training.Training(SCHEDULE, seed, RECIPE)))
    assert torch.equal(state(found[0]), state(found[1]))
    assert not torch.equal(state(found[0]), state(found[2]))
    seed_everything(1)
    expected = checkpoint(RECIPE.build(), RECIPE)
    assert torch.equal(state(found[2]), state(expected))


def test_what_is_declared_reaches_the_loop(calls: list[tuple[Any, ...]]) -> None:
    """The training split, the schedule and the seed; fine-tuning takes the parent's weights."""
    torch.manual_seed(5)
    parent = checkpoint(RECIPE.build(), RECIPE)
    tuned = training.run_trained(context(), [parent], training.Training(SCHEDULE, 4))
    assert torch.equal(state(tuned), state(parent))
    net, data, *rest = calls[0]
    assert data is DATA.train and isinstance(net, nn.Module)
    assert rest == [SCHEDULE, 4, Path("nowhere"), "cpu", "the label", 2, False]
    assert tuned.facts == {"images": 24, "history": []}


def test_from_scratch_files_are_cropped_otherwise_and_nothing_else_changes(calls: list[tuple[Any, ...]]) -> None:
    """Images in memory stay as they are; so does the split that other steps read."""
    files = FileSplit([(Path("absent.png"), 1)], 8, "short256")
    params = training.Training(SCHEDULE, 3, RECIPE)
    expected = training.run_trained(context(), [], params)
    train: Split
    for train, augmentation in ((files, ResizedCropAndMirror(8)), (DATA.train, PadCropAndMirror(2, True))):
        data = replace(DATA, train=train)
        where = Context(lambda data=data: data, "cpu", False, Path("nowhere"), workers=2, label="the label")
        found = training.run_scratch(where, [], params)
        assert torch.equal(state(found), state(expected))
        _, seen, *rest = calls[-1]
        assert (seen.augmentation, seen.labels.tolist()) == (augmentation, train.labels.tolist())
        assert rest == list(calls[0][2:])
    assert files.augmentation == CropAndMirror(8)


def test_the_second_parent_teaches_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(training, "distil", lambda *given: calls.append(given) or [])
    torch.manual_seed(5)
    parent, teacher = (checkpoint(RECIPE.build(), RECIPE) for _ in range(2))
    params = training.Distilling(SCHEDULE, Distillation(4.0, 0.9), 4)
    tuned = training.run_distilled(context(), [parent, teacher], params)
    net, master, data, *rest = calls[0]
    assert torch.equal(state(tuned), state(parent))
    assert torch.equal(state(checkpoint(net, RECIPE)), state(parent))
    assert torch.equal(state(checkpoint(master, RECIPE)), state(teacher))
    assert data is DATA.train
    assert rest == [SCHEDULE, Distillation(4.0, 0.9), 4, Path("nowhere"), "cpu", "the label", 2, False]
    assert tuned.facts == {"images": 24, "history": []}


def test_an_edit_keeps_the_weights_that_stay() -> None:
    """VGG's head gives way to average pooling and one linear layer, whose fresh weights are those of the seed."""
    recipe = Recipe("vgg16", {"num_classes": 4, "form": "cifar", "width": 0.125}, (3, 32, 32))
    dense = checkpoint(recipe.build(), recipe)
    found = [training.run_edited(context(), [dense], training.Editing(ReplaceHead(), seed)) for seed in (3, 3, 4)]
    small, again, other = (network(result)[0].state_dict() for result in found)
    assert network(found[0])[1] == recipe.edited(ReplaceHead())
    for name in dense.state:
        if name.startswith("features"):
            assert torch.equal(small[name], dense.state[name])
    assert small["classifier.0.weight"].shape == (4, 64)
    assert torch.equal(small["classifier.0.weight"], again["classifier.0.weight"])
    assert not torch.equal(small["classifier.0.weight"], other["classifier.0.weight"])


def test_weights_in_half_precision_are_those_that_numpy_rounds_to() -> None:
    """Computed in single precision; a counter stays what it was."""
    torch.manual_seed(5)
    parent = checkpoint(RECIPE.build(), RECIPE)
    parent.state["bn1.num_batches_tracked"] += 123_457
    rounded = training.run_halved(context(), [parent], training.Halving())
    for name, value in parent.state.items():
        expected = value.numpy()
        if expected.dtype == np.float32:
            expected = expected.astype(np.float16).astype(np.float32)
        assert rounded.state[name].dtype == value.dtype
        assert np.array_equal(rounded.state[name].numpy(), expected), name
    assert not torch.equal(state(rounded), state(parent))
    parent.state["conv1.weight"][0, 0, 0, 0] = 70_000.0  # the largest half is 65,504
    with pytest.raises(ValueError, match=r"conv1\.weight does not fit"):
        training.run_halved(context(), [parent], training.Halving())


def test_given_weights_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    expected = checkpoint(RECIPE.build(), RECIPE)
    torch.save(expected.state, tmp_path / "w.pth")
    where = Context(lambda: DATA, "cpu", False, weights_file=tmp_path / "w.pth")
    found = training.run_loaded(where, [], training.Loading(RECIPE, "sha"))
    assert torch.equal(state(found), state(expected))
    asked = []
    monkeypatch.setattr(weights, "load_pretrained", lambda model, builder, progress: asked.append(builder))
    training.run_loaded(where, [], training.Loading(RECIPE))
    assert asked == ["cifar_resnet20"]


# --------------------------------------------------------------------------------------------------------------------
# Gates and slimming


def test_lambda_times_the_saliencies_is_what_gating_adds(calls: list[tuple[Any, ...]]) -> None:
    torch.manual_seed(0)
    parent = checkpoint(GATES.build(), GATES)
    options = GateOptions(phi="he", subsample="mean")
    params = gating.Gating(500, SCHEDULE, 2, 1e-3, options, ("conv2",))
    first = gating.run_gated(context(), [parent], params)
    net, data, schedule, seed, *_, penalty = calls[0]
    assert (data, schedule, seed) == (DATA.train, SCHEDULE, 2)
    before = state(first)
    net.train()(torch.rand(4, 3, 16, 16))
    # by hand: each image's sum over the channels, mean over the images, sum over the layers
    layers = [module for module in net.modules() if getattr(module, "l1", None) is not None]
    assert len(layers) == 7 and {layer.options for layer in layers} == {options}
    assert first.recipe is not None
    assert Recipe.from_json(first.recipe) == GATES.edited(Gate(500, options, ("conv2",)))
    expected = 1e-3 * sum(float(layer.l1.detach()) for layer in layers)
    assert float(penalty(net).detach()) == pytest.approx(expected, rel=1e-5)
    # gates are drawn from the seed, whatever was drawn before; at another density the same gates go on
    torch.manual_seed(9)
    assert torch.equal(state(gating.run_gated(context(), [parent], params)), before)
    assert {layer.density for layer in layers} == {500}
    lower = gating.run_gated(context(), [first], gating.Gating(300, SCHEDULE, 2, 1e-3))
    assert {layer.density for layer in gated_layers(calls[-1][0]).values()} == {300}
    assert lower.recipe is not None
    assert Recipe.from_json(lower.recipe) == GATES.edited(Gate(300, options, ("conv2",)))
    assert torch.equal(state(lower), state(first))


def test_lambda_times_the_gammas_is_what_slimming_adds(calls: list[tuple[Any, ...]]) -> None:
    torch.manual_seed(0)
    parent = checkpoint(GATES.build(), GATES)
    gating.run_sparse(context(), [parent], gating.Sparse(SCHEDULE, 2, 0.5))
    net, data, schedule, seed, *_, penalty = calls[0]
    assert (data, schedule, seed) == (DATA.train, SCHEDULE, 2)
    gammas = sum(float(m.weight.detach().abs().sum()) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert float(penalty(net).detach()) == pytest.approx(0.5 * gammas)


# --------------------------------------------------------------------------------------------------------------------
# Detectors


def test_a_detector_s_augmentation_and_schedule_reach_the_loop(
    calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe("narrow_ssd", {"num_classes": 2, "size": 160}, (3, 160, 160))
    backbones = []
    monkeypatch.setattr(weights, "load_backbone", lambda net, builder, progress: backbones.append(builder))
    data = type("Data", (), {"train": [0] * 5, "problems": {}})()
    where = Context(lambda: data, "cpu", False, Path("nowhere"), workers=2, label="the label")
    found = []
    for disturbed, seed, backbone in ((0, 3, True), (1, 3, False), (0, 4, False)):
        torch.manual_seed(disturbed)
        params = detection.DetectorTraining(SCHEDULE, seed, detection.Augmenting(False, 2.5), recipe, backbone=backbone)
        found.append(detection.run_trained(where, [], params))
    assert torch.equal(state(found[0]), state(found[1])) and not torch.equal(state(found[0]), state(found[2]))
    assert backbones == ["narrow_ssd"]
    _, split_, schedule, seed, *_, named = calls[0]
    assert (split_, schedule, seed) == (data.train, SCHEDULE, 3)
    assert named == {"mirror": False, "zoom_out": 2.5, "workers": 2, "progress": False}


class Dice:
    """A data set that draws as mmdet's transforms do."""

    def __getitem__(self, place: int) -> tuple[float, float]:
        return random.random(), float(np.random.rand())


def test_a_detector_s_augmentation_is_drawn_from_seed_epoch_and_place() -> None:
    found = []
    for seed in (0, 1):
        data = Batches(Dice(), seed)
        for epoch in (0, 1):
            data.epoch = epoch
            found += [data._item(place) for place in (3, 4)]
    assert len(set(found)) == 8
    again = Batches(Dice(), 0)
    assert [again._item(3), again._item(4)] == found[:2]


def test_images_to_look_at_are_neither_augmented_nor_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """For evaluation and calibration: no image of the split is missing, whatever it shows."""
    asked = []

    def dataset(pipeline: list[dict[str, Any]], training: bool) -> Dice:
        asked.append(([step["type"] for step in pipeline], training))
        return Dice()

    split_ = type("Split", (), {"dataset": staticmethod(dataset)})()
    for boxes in (False, True):
        detector.batches(split_, 160, [0], 1, boxes)
    load, resize, pack = "LoadImageFromFile", "mmdet.Resize", "mmdet.PackDetInputs"
    assert asked == [([load, resize, pack], False), ([load, "mmdet.LoadAnnotations", resize, pack], False)]


# --------------------------------------------------------------------------------------------------------------------
# The loop itself


def small() -> nn.Module:
    seed_everything(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


def stepped(schedule: Schedule, penalty: Any, update: Any, tmp_path: Path) -> None:
    """Two steps on the whole set as one batch, against ``update(parameters, gradients, step)`` by hand."""
    data, net, plain = split(24, pad=0), small(), small()
    fit(net, data, schedule, 0, tmp_path, "cpu", progress=False, penalty=penalty)
    images = data.batch(list(range(24)))
    parameters = list(plain.parameters())
    for step in range(2):
        loss = F.cross_entropy(plain(images), data.labels)
        if penalty is not None:
            loss = loss + penalty(plain)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            update(parameters, gradients, step)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def descend(rate: float) -> Any:
    def update(parameters: list[Tensor], gradients: tuple[Tensor, ...], step: int) -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p.sub_(rate * g)

    return update


def test_a_penalty_is_added_to_the_loss(tmp_path: Path) -> None:
    schedule = Schedule(2, 0.05, batch=24, momentum=0.0)
    stepped(schedule, lambda net: 3.0 * sum(p.square().sum() for p in net.parameters()), descend(0.05), tmp_path)


def test_gradients_are_clipped_to_their_joint_length(tmp_path: Path) -> None:
    def update(parameters: list[Tensor], gradients: tuple[Tensor, ...], step: int) -> None:
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        assert length > 0.01
        descend(0.05)(parameters, tuple(g * 0.01 / length for g in gradients), step)

    stepped(Schedule(2, 0.05, batch=24, momentum=0.0, clip=0.01), None, update, tmp_path)


def test_adamw_decays_the_weights_beside_its_steps(tmp_path: Path) -> None:
    moments: dict[int, list[Tensor]] = {}

    def update(parameters: list[Tensor], gradients: tuple[Tensor, ...], step: int) -> None:
        for place, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            m, v = moments.setdefault(place, [torch.zeros_like(p), torch.zeros_like(p)])
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            p.mul_(1 - 0.05 * 0.1)
            p.sub_(0.05 * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8))

    stepped(Schedule(2, 0.05, batch=24, weight_decay=0.1, optimizer="AdamW"), None, update, tmp_path)


def test_a_cosine_starts_warm_and_ends_at_nothing(tmp_path: Path) -> None:
    """100 epochs of one step: five of warm-up from a hundredth of the rate, then half a cosine; rates after a step."""
    history = fit(small(), split(24), Schedule(100, 0.2, 24, shape="cosine"), 0, tmp_path, "cpu", progress=False)
    rates = [entry["lr"] for entry in history]
    assert rates[:4] == pytest.approx([0.2 * (0.01 + 0.99 * step / 4) for step in (1, 2, 3, 4)])
    for place in (10, 40, 70):
        assert rates[place] == pytest.approx(0.1 * (1 + math.cos(math.pi * (place - 4) / 95)), rel=0.03)
    assert rates[99] == pytest.approx(0.0, abs=1e-4)


class Watched(MemorySplit):
    """Keeps what it is asked for."""

    def __init__(self) -> None:
        plain = split(24)
        super().__init__(plain.images, plain.labels, plain.mean, plain.std, pad=2, mirror=True)
        assert self.augmentation == PadCropAndMirror(2, True)
        self.seen: list[tuple[tuple[int, ...], Tensor]] = []

    def batch(self, places: list[int]) -> Tensor:
        pytest.fail("training must augment")

    def augmented(self, places: list[int], draws: Tensor) -> Tensor:
        self.seen.append((tuple(places), draws.clone()))
        return super().augmented(places, draws)


def test_every_epoch_has_an_order_and_an_augmentation_of_its_own(tmp_path: Path) -> None:
    """Each image once an epoch; the draws of one image differ between epochs and seeds, and come back with the seed."""
    found = []
    for number, seed in enumerate((0, 0, 1)):
        data = Watched()
        fit(small(), data, Schedule(3, 0.05, batch=8), seed, tmp_path / str(number), "cpu", progress=False)
        epochs = [data.seen[i : i + 3] for i in (0, 3, 6)]
        assert len(data.seen) == 9
        for epoch in epochs:
            assert sorted(place for places, _ in epoch for place in places) == list(range(24))
        found.append([{p: tuple(row.tolist()) for places, draws in epoch for p, row in zip(places, draws, strict=True)}
                      for epoch in epochs])  # fmt: skip
        orders = [[place for places, _ in epoch for place in places] for epoch in epochs]
        assert orders[0] != orders[1] != orders[2]
    assert found[0] == found[1]
    for place in range(24):
        draws = [run[epoch][place] for run in (found[0], found[2]) for epoch in range(3)]
        assert len(set(draws)) == 6


def test_milestones_are_epochs_and_no_image_is_left_out(tmp_path: Path) -> None:
    """20 images in batches of 8: three steps an epoch, the last with four; a tenth of the rate from the third on."""
    plain = split(20, pad=0)
    schedule = Schedule(4, 0.1, batch=8, shape="steps", milestones=(2,))
    history = fit(small(), plain, schedule, 0, tmp_path, "cpu", progress=False)
    assert [entry["lr"] for entry in history[:1]] == pytest.approx([0.1])
    assert history[-1]["lr"] == pytest.approx(0.01)
    data = Watched()
    fit(small(), data, Schedule(2, 0.05, batch=9), 0, tmp_path / "b", "cpu", progress=False)
    assert [len(places) for places, _ in data.seen] == [9, 9, 6] * 2


class Drawing(nn.Module):
    """Keeps what its forward passes draw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 2)
        self.drawn: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.drawn.append(float(torch.rand(())))
        return self.linear(images.flatten(1))  # type: ignore[no-any-return]


def test_what_a_network_draws_differs_by_epoch_and_comes_back_with_the_seed(tmp_path: Path) -> None:
    """Dropout: no two epochs alike, and a resumed training repeats an undisturbed one."""
    found = []
    for number, seed in enumerate((0, 0, 1)):
        net = Drawing()
        fit(net, split(24), Schedule(3, 0.05, batch=12), seed, tmp_path / str(number), "cpu", progress=False)
        found.append(net.drawn)
        assert not net.training
    assert found[0] == found[1] and len(set(found[0] + found[2])) == 12
