"""The study of fine-tuning: which images are tuned on and which judge, what is trained by what, what is reported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.data.images import ImageSet, MemorySplit
from bench.errors import UserError
from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.pruning import steps as pruning
from bench.pruning.layerwise import Method
from bench.pruning.steps import calibration_images
from bench.rows import Setting
from bench.steps import Context, DataValue, Kind
from bench.store import Result
from bench.train.distillation import Distillation
from bench.train.schedule import Schedule
from reproductions import fine_tuning_study as study
from reproductions.fine_tuning_study import HeldOut, Judging, Parts, Trial

RECIPE = Recipe("cifar_resnet20", {"num_classes": 2, "width": 0.25}, (3, 8, 8))
ROWS = {row.name: row for row in study.paper().rows}
PARTS = Parts(16, 10, 3)


def numbered(count: int) -> MemorySplit:
    """Image i has the value i everywhere, and label i modulo 2."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 8, 8).contiguous()
    return MemorySplit(images, torch.arange(count) % 2, (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False)


DATA = ImageSet("numbers", "f", ("a", "b"), 8, numbered(40), numbered(8), "8x8")


def context() -> Context:
    return Context(lambda: DATA, "cpu", False, Path("nowhere"), label="the label")


def places(split: MemorySplit) -> list[int]:
    assert torch.equal(split.labels, split.images[:, 0, 0, 0].long() % 2)
    found: list[int] = split.images[:, 0, 0, 0].tolist()
    return found


def network(seed: int) -> Result:
    torch.manual_seed(seed)
    return checkpoint(RECIPE.build(), RECIPE)


def test_the_judging_images_are_neither_tuned_on_nor_calibrated_with() -> None:
    images, held_out = (places(part) for part in PARTS.of(DATA))
    assert (len(set(images)), len(set(held_out))) == (16, 10)
    assert not set(images) & set(held_out)
    calibrated = [place for chunk in calibration_images(DATA, 30, 3, 8).chunks for place in chunk]
    assert set(held_out) == set(range(40)) - set(calibrated)
    assert places(PARTS.of(DATA)[1]) == held_out and places(Parts(16, 10, 4).of(DATA)[1]) != held_out


def test_too_few_images_are_told() -> None:
    with pytest.raises(UserError, match="needs 41 training images in memory: run it with --scale cifar10"):
        Parts(31, 10, 0).of(DATA)


def test_a_trial_tunes_the_pruned_network_and_the_dense_one_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(study, "fit", lambda *given, **named: calls.append((*given, named)) or [])
    monkeypatch.setattr(study, "distil", lambda *given, **named: calls.append((*given, named)) or [])
    schedule, soft = Schedule(2, 0.3, 8), Distillation(2.0, 0.5)
    parents = [network(1), network(2)]
    for option in (None, soft):
        study.run_tried(context(), parents, Trial(schedule, option, PARTS))
    tail = [3, Path("nowhere"), "cpu", "the label", {"progress": False}]
    plain, taught = (list(call) for call in calls)
    assert plain[2:] == [schedule, *tail] and taught[3:] == [schedule, soft, *tail]
    for call, split in ((plain, plain[1]), (taught, taught[2])):
        assert torch.equal(torch.cat([p.flatten() for p in call[0].state_dict().values()]), flat(parents[0]))
        assert places(split) == places(PARTS.of(DATA)[0])
    assert torch.equal(torch.cat([p.flatten() for p in taught[1].state_dict().values()]), flat(parents[1]))


def flat(result: Result) -> torch.Tensor:
    return torch.cat([value.flatten() for value in result.state.values()])


def test_the_held_out_images_are_what_a_network_is_measured_on() -> None:
    """In evaluation mode, and with statistics that are those of the renewing images."""
    parent = network(1)
    model = RECIPE.build()
    model.load_state_dict(parent.state)
    images, held_out = PARTS.of(DATA)
    inputs = held_out.batch(list(range(10)))
    found = study.run_held_out(context(), [parent], HeldOut(PARTS))
    torch.testing.assert_close(found.arrays["logits"], model.eval()(inputs).detach())
    assert torch.equal(found.arrays["labels"], held_out.labels)
    renewed = study.run_held_out(context(), [parent], HeldOut(PARTS, 12))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0  # the statistics of the one batch
    model.train()(images.batch(list(range(12))))
    torch.testing.assert_close(renewed.arrays["logits"], model.eval()(inputs).detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(renewed.arrays["logits"], found.arrays["logits"])


def test_what_is_reported_of_a_trial() -> None:
    """Four images, three, two and four of them right; loss and divergence by hand."""
    labels = torch.tensor([0, 1, 0, 1])

    def outputs(*margins: float) -> Result:
        """Logits (margin, 0): class 0 where it is positive."""
        return Result(arrays={"logits": torch.tensor([[margin, 0.0] for margin in margins]), "labels": labels})

    runs = [outputs(2.0, -1.0, 1.0, 3.0), outputs(-2.0, -1.0, 1.0, 3.0), outputs(2.0, -1.0, 1.0, -3.0)]
    found = {record.metric: record.value for record in study.run_judged(context(), runs, Judging()).records}
    losses = [math.log1p(math.exp(-m)) for m in (2.0, 1.0, 1.0, -3.0)]
    p = 1 / (1 + math.exp(3.0))  # the reference's share of class 0 in the last image, 1 - p the tuned one's
    assert found == pytest.approx(
        {
            "held_out_acc": 75.0,
            "held_out_change": -25.0,
            "held_out_loss": sum(losses) / 4,
            "held_out_kl": (p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)) / 4,
            "held_out_renewed_change": -50.0,
        },
        rel=1e-6,
    )


def test_every_trial_is_judged_beside_the_dense_network_on_the_same_images() -> None:
    setting = Setting("cifar10", DataValue("plain", "training"), 10, 50_000, 10_000, "cpu", (0,), "sha")
    recipe = study.resnet56("cifar10", 10, True)
    parts = Parts(10_000, 5000, 0)
    trials = {name: (schedule, soft) for name, schedule, soft in study.TRIALS}
    for name, row in ROWS.items():
        assert row.chain is not None and (row.scale, row.scales, row.seeds) == ("cifar10", ("cifar10",), (0,))
        chain = row.chain(setting, recipe)
        (last,), (judged,) = chain.networks, chain.records
        tuned, renewed, reference = judged.parents
        assert [run.params for run in judged.parents] == [HeldOut(parts), HeldOut(parts, 2560), HeldOut(parts)]
        assert tuned.parents == renewed.parents == (last,)
        (start,) = reference.parents
        assert start.kind is Kind.LOAD
        pruned = last
        if name != "not tuned":
            assert last.params == Trial(*trials[name], parts)
            pruned = last.parents[0]
            assert last.parents[1] is start
        assert pruned.run is pruning.run_pruned and pruned.params.method == Method("lasso")
        assert pruned.parents == (start,)
    assert len(set(trials.values())) == len(trials) == len(ROWS) - 1
