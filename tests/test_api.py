"""``bench.api.prune`` on a small network with the expensive parts watched: what each argument decides."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import api
from bench.data.images import ImageSet, MemorySplit
from bench.measure import macs
from bench.models.recipe import Recipe
from bench.pruning.layerwise import Method
from bench.pruning.widths import MacModel

LABELS = torch.arange(20) % 10


def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    splits = [
        MemorySplit(
            torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator),
            torch.arange(count) % 10, (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False,
        )
        for count in (60, 20)
    ]  # fmt: skip
    return ImageSet("noise", "0", tuple("abcdefghij"), 16, splits[0], splits[1], "16x16")


def network() -> nn.Module:
    torch.manual_seed(0)
    return Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.25}, (3, 16, 16)).build().eval()


def right(count: int) -> Tensor:
    """Logits of 20 images, of which the first ``count`` are answered right."""
    found = torch.zeros(20, 10)
    answers = torch.where(torch.arange(20) < count, LABELS, (LABELS + 1) % 10)
    found[torch.arange(20), answers] = 3.0
    return found


class Watched:
    """The calls of a pruning: the calibration's images, the walk's parameters, and whose outputs were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.walks: list[tuple[Any, dict[str, int], Method]] = []
        self.calibrated: list[tuple[Any, ...]] = []
        self.evaluated: list[tuple[nn.Module, Any]] = []
        self.answers = [right(5), right(15)]
        walk, calibration = api.prune_layers, api.calibration_images

        def watched(network: Any, calibration: Any, keep: Any, method: Any, progress: Any, stages: Any) -> Any:
            self.walks.append((calibration, keep, method))
            return walk(network, calibration, keep, method, progress, stages)

        def drawn(*arguments: Any) -> Any:
            self.calibrated.append(arguments)
            return calibration(*arguments)

        def logits(model: nn.Module, split: Any, *rest: Any) -> Tensor:
            self.evaluated.append((model, split))
            return self.answers[len(self.evaluated) - 1]

        monkeypatch.setattr(api, "prune_layers", watched)
        monkeypatch.setattr(api, "calibration_images", drawn)
        monkeypatch.setattr(api.accuracy, "logits", logits)


def prune(data: ImageSet, **options: Any) -> api.Pruned:
    chosen = {
        "method": "first-k",
        "images": 40,
        "positions": 3,
        "progress": False,
        "tell": lambda line: None,
        **options,
    }
    return api.prune(network(), data, **chosen)


# the names of the command line, and the criteria that they are
METHODS = {
    "cp": "lasso",
    "exact": "exact",
    "thinet": "thinet",
    "max-response": "max response",
    "first-k": "first k",
    "weight-sum": "weight sum",
    "random": "random",
}


def test_every_method_is_the_criterion_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(api.METHODS) == set(METHODS)
    calibrate = api.calibrate
    once: list[Any] = []

    def shared(*arguments: Any, **named: Any) -> Any:
        """One calibration serves all: it does not depend on the method."""
        once.extend([calibrate(*arguments, **named)] if not once else [])
        return once[0]

    monkeypatch.setattr(api, "calibrate", shared)
    for name, selection in METHODS.items():
        watched = Watched(monkeypatch)
        monkeypatch.setattr(api, "prune_layers", _ends(watched))
        with pytest.raises(InterruptedError):
            prune(images(), method=name)
        assert watched.walks == [Method(selection)], name


def _ends(watched: Watched) -> Any:
    def walk(network: Any, calibration: Any, keep: Any, method: Any, *rest: Any) -> Any:
        watched.walks.append(method)
        raise InterruptedError

    return walk


def test_what_was_measured_is_after_minus_before_on_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 % before, 75 % after: 50 points up."""
    watched, data = Watched(monkeypatch), images()
    found = prune(data, speedup=1.5)
    records = {record.metric: record.value for record in found.records}
    before = {record.metric: record.value for record in found.dense_records}
    assert (before["top1_acc"], records["top1_acc"]) == (25.0, 75.0)
    assert records["top1_change"] == pytest.approx(50.0) and records["top1_err_increase"] == pytest.approx(-50.0)
    (first, split), (second, again) = watched.evaluated
    assert split is again and torch.equal(split.images, data.test.images)  # type: ignore[attr-defined]
    sizes = [sum(p.numel() for p in model.parameters()) for model in (first, second)]
    assert sizes == [found.dense.params, found.pruned.params] and sizes[0] > sizes[1]


@pytest.mark.parametrize("speedup", [1.5, 3.0])
def test_uniform_widths_reach_the_speed_up_of_the_convolutions(speedup: float, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    found = prune(images(), speedup=speedup)
    assert speedup <= found.speedup < 1.15 * speedup
    assert found.speedup == found.dense.total("conv") / found.pruned.total("conv")
    ((_, keep, _),) = watched.walks
    shares = [count / (16 if "layer3" in reader else 8 if "layer2" in reader else 4) for reader, count in keep.items()]
    assert max(shares) - min(shares) <= 0.25  # the same share of 4, 8 and 16 filters, to whole ones


def test_seed_images_and_positions_reach_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, data = Watched(monkeypatch), images()
    prune(data, images=30, seed=7, positions=4)
    ((drawn_from, count, seed, batch, workers, progress),) = watched.calibrated
    assert torch.equal(drawn_from.train.images, data.train.images)
    assert (count, seed, workers, progress) == (30, 7, 0, False)
    ((calibration, _, _),) = watched.walks
    sampling = calibration.sampling
    assert (sampling.seed, sampling.positions, sampling.batch) == (7, 4, batch)
    assert len(calibration.fitted) == 30


def test_error_driven_widths_are_chosen_for_the_speed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    asked = []

    def choose(model: MacModel, curves: Any, speedup: float) -> dict[str, int]:
        asked.append((set(curves), speedup))
        return {"layer1.0.conv2": 2}

    monkeypatch.setattr(api, "error_driven", choose)
    found = prune(images(), widths="error-driven", speedup=2.5)
    readers = {f"layer{stage}.{block}.conv2" for stage in (1, 2, 3) for block in range(3)}
    assert asked == [(readers, 2.5)]
    assert watched.walks[0][1] == {"layer1.0.conv2": 2}
    assert found.recipe.widths == {"layer1.0.conv1": 2}


def test_labels_are_those_of_the_named_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's first output is class j, its last class a: an answer counts by its name."""
    turned = 9 - LABELS
    watched = Watched(monkeypatch)
    watched.answers = [nn.functional.one_hot(turned, 10).float()] * 2
    found = prune(images(), classes=list("jihgfedcba"))
    assert {record.value for record in found.records if record.metric == "top1_acc"} == {100.0}


def test_the_speed_up_is_counted_in_convolutions() -> None:
    counted = [SimpleNamespace(total=lambda kind, conv=conv: {"conv": conv, "conv+fc": 10}[kind]) for conv in (8, 2)]
    nothing: Any = None
    empty: list[Any] = []
    found = api.Pruned(
        nothing, empty, counted[0], counted[1], empty, nothing, {}, empty, empty, {}, empty,  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.speedup == 4.0
    assert "conv" in macs.CONVENTIONS
