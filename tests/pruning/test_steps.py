"""The steps that prune: which images they see, which network's responses, and which parameters reach the walk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.data.images import ImageSet, MemorySplit
from bench.measure import accuracy
from bench.models.checkpoint import checkpoint
from bench.models.checkpoint import network as network_of
from bench.models.recipe import Recipe
from bench.pruning import detection_steps
from bench.pruning import steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.steps import Context
from bench.store import Record, Result

RECIPE = Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.25}, (3, 16, 16))
KEEP = {"layer1.0.conv1": 2, "layer3.1.conv1": 7}
SAMPLING = Sampling(positions=3, batch=16, seed=0)


class Plain(MemorySplit):
    """Noise that must be read as it is; keeps what was asked for."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
        super().__init__(pixels, torch.arange(count) % 10, (0.5,) * 3, (0.25,) * 3, pad=2, mirror=True)
        self.read: set[int] = set()

    def batch(self, places: list[int]) -> Tensor:
        self.read |= set(places)
        return super().batch(places)

    def augmented(self, places: list[int], draws: Tensor) -> Tensor:
        pytest.fail("only training may augment")


def data() -> ImageSet:
    return ImageSet("noise", "0", tuple("abcdefghij"), 16, Plain(64, 0), Plain(20, 1), "16x16")


def dense(seed: int) -> Result:
    torch.manual_seed(seed)
    model = RECIPE.build().train()
    model(torch.randn(64, 3, 16, 16))  # batch norms with statistics
    return checkpoint(model, RECIPE)


def context(images: ImageSet, parent: str = "dense 0", memory: dict[Any, Any] | None = None) -> Context:
    return Context(lambda: images, "cpu", False, parents=(parent,), memory={} if memory is None else memory)


def state(result: Result) -> Tensor:
    return torch.cat([value.flatten().double() for value in result.state.values()])


def parameters(selection: str = "exact", count: int | None = 40, seed: int = 0) -> pruning.Pruning:
    return pruning.Pruning(Method(selection), pruning.Fixed(KEEP), replace(SAMPLING, seed=seed), count)


def test_calibration_sees_training_images_without_augmentation() -> None:
    """As many as are asked for, drawn by the seed; no test image, but where the outputs are measured."""
    images = data()
    found = pruning.run_pruned(context(images), [dense(0)], parameters())
    first = images.train.read  # type: ignore[attr-defined]
    assert len(first) == 40 and not images.test.read  # type: ignore[attr-defined]
    assert found.recipe is not None and Recipe.from_json(found.recipe).widths == KEEP
    other = data()
    pruning.run_pruned(context(other), [dense(0)], parameters(seed=1))
    assert other.train.read != first  # type: ignore[attr-defined]
    curves = data()
    pruning.run_curves(context(curves), [dense(0)], pruning.CurveMeasuring(SAMPLING, 40))
    assert curves.train.read == first and not curves.test.read  # type: ignore[attr-defined]
    whole = data()
    params = pruning.SingleLayer("layer2.0.conv2", ("first k",), (2.0,), SAMPLING, 40)
    pruning.run_single_layer(context(whole), [dense(0)], params)
    assert whole.train.read == first  # type: ignore[attr-defined]
    assert len(whole.test.read) == 20  # type: ignore[attr-defined]


def test_responses_are_shared_by_steps_of_one_network_and_sampling_alone() -> None:
    """In one process, one after the other: another network, seed or count is answered by its own responses."""
    memory: dict[Any, Any] = {}
    cases = [("dense 0", 0, 40, 0), ("dense 1", 1, 40, 0), ("dense 0", 0, 40, 1), ("dense 0", 0, 30, 0)]
    shared = []
    for parent, network, count, seed in cases:
        params = parameters(count=count, seed=seed)
        shared.append(state(pruning.run_pruned(context(data(), parent, memory), [dense(network)], params)))
        if parent == "dense 1":
            alone = state(pruning.run_pruned(context(data(), parent), [dense(network)], params))
            assert torch.equal(shared[-1], alone)
    for place in range(4):
        assert not any(torch.equal(shared[place], other) for other in shared[:place])
    # and the same network with the same sampling is not asked again
    again = data()
    pruning.run_pruned(context(again, "dense 0", dict(list(memory.items()))), [dense(0)], parameters(count=30))
    assert not again.train.read  # type: ignore[attr-defined]


def test_the_memory_keeps_the_latest_few() -> None:
    where = Context(lambda: None, "cpu", False)
    for key in range(5):
        assert where.remember(key, lambda key=key: 10 * key) == 10 * key  # type: ignore[misc]
    assert list(where.memory) == [2, 3, 4]
    assert where.remember(4, lambda: pytest.fail("made again")) == 40


def test_balanced_images_are_spread_over_the_classes() -> None:
    """As many of each class whatever the count, as far as there are some; drawn by the seed, none twice."""
    images = data()
    images.train.labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 4)

    def drawn(count: int, seed: int = 0) -> list[int]:
        stream = pruning.calibration_images(images, count, seed, 16, balanced=True)
        return [place for chunk in stream.chunks for place in chunk]

    for count, expected in [(9, [3, 3, 3]), (12, [4, 4, 4]), (30, [13, 13, 4]), (60, [36, 20, 4]), (64, [40, 20, 4])]:
        places = drawn(count)
        assert len(set(places)) == count
        assert torch.bincount(images.train.labels[places], minlength=3).tolist() == expected
    assert sorted(torch.bincount(images.train.labels[drawn(10)]).tolist()) == [3, 3, 4]
    assert drawn(9) == drawn(9) and set(drawn(9)) != set(drawn(9, seed=1))


def test_a_pruning_of_balanced_images_reads_them() -> None:
    """And shares its responses with no step that draws otherwise."""
    memory: dict[Any, Any] = {}
    pruning.run_pruned(context(data(), memory=memory), [dense(0)], parameters(count=20))
    images = data()
    pruning.run_pruned(context(images, memory=memory), [dense(0)], replace(parameters(count=20), balanced=True))
    read = torch.tensor(sorted(images.train.read))  # type: ignore[attr-defined]
    assert torch.bincount(images.train.labels[read]).tolist() == [2] * 10


def test_a_layer_that_is_pruned_alone_is_the_only_one_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its producer's name, by a sampler's, in ratios; error-driven widths need all."""
    asked: list[list[str]] = []

    def walk(model: Any, calibration: Any, keep: Any, method: Any, progress: bool) -> Any:
        asked.append([site.reader for site in calibration.sites])
        return model, []

    monkeypatch.setattr(pruning, "prune", walk)
    fixed = pruning.Fixed({"layer3.1.conv1": 7, "layer2.1.conv1:in": 3})
    ratios = pruning.Ratios({"layer1.0.conv1": 1.0}, 1.01)
    for widths in (fixed, ratios):
        params = pruning.Pruning(Method("exact"), widths, SAMPLING, 40, ("layer2.1.conv1",), alone=True)
        pruning.run_pruned(context(data()), [dense(0)], params)
    assert asked == [["layer2.1.conv1", "layer3.1.conv2"], ["layer1.0.conv2"]]


def test_layers_pruned_one_after_the_other_give_the_widths_of_all() -> None:
    """A step's parent may be the network that another step has pruned."""
    first = replace(parameters("thinet"), widths=pruning.Fixed({"layer1.0.conv1": 2}), alone=True)
    second = replace(parameters("thinet"), widths=pruning.Fixed({"layer3.1.conv1": 7}), alone=True)
    once = pruning.run_pruned(context(data()), [dense(0)], first)
    twice = pruning.run_pruned(context(data(), "once"), [once], second)
    assert twice.recipe is not None and Recipe.from_json(twice.recipe).widths == KEEP
    assert network_of(twice)[0](torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_the_method_reaches_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def walk(model: Any, calibration: Any, keep: Any, method: Any, progress: bool) -> Any:
        found.append((keep, method, calibration.sampling))
        return model, []

    monkeypatch.setattr(pruning, "prune", walk)
    method = Method("thinet", compensate=False, refit=True, rectify=2)
    params = pruning.Pruning(method, pruning.Fixed(KEEP), SAMPLING, 40)
    pruning.run_pruned(context(data()), [dense(0)], params)
    # widths go by producer, the walk by reader
    assert found == [({"layer1.0.conv2": 2, "layer3.1.conv2": 7}, method, SAMPLING)]


def test_ratios_are_the_proportions_of_the_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third stage keeps twice the share of the second; the common factor reaches the speed-up."""
    found = []
    monkeypatch.setattr(pruning, "prune", lambda model, calibration, keep, *rest: found.append(keep) or (model, []))
    ratios = {"layer2.0.conv1": 1.0, "layer2.1.conv1": 1.0, "layer3.0.conv1": 2.0, "layer3.1.conv1": 2.0}
    params = pruning.Pruning(Method("exact"), pruning.Ratios(ratios, 1.3), SAMPLING, 40)
    pruning.run_pruned(context(data()), [dense(0)], params)
    (keep,) = found
    assert set(keep) == {name.replace("conv1", "conv2") for name in ratios}
    second, third = keep["layer2.0.conv2"] / 8, keep["layer3.0.conv2"] / 16
    assert second < 1.0 and third == pytest.approx(min(1.0, 2 * second), abs=1 / 8)


def test_samplers_are_measured_pruned_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "layer2.1.conv1"
    asked = []

    def curves(model: Any, calibration: Any, ridge: float, samplers: Any, progress: bool) -> dict[str, Any]:
        asked.append((ridge, samplers))
        return {}

    monkeypatch.setattr(pruning, "error_curves", curves)
    pruning.run_curves(context(data()), [dense(0)], pruning.CurveMeasuring(SAMPLING, 40, (name,)))
    assert asked == [(1e-4, (name,))]
    params = pruning.Pruning(Method("exact"), pruning.Fixed({f"{name}:in": 3}), SAMPLING, 40, (name,))
    found = pruning.run_pruned(context(data()), [dense(0)], params)
    assert found.recipe is not None and Recipe.from_json(found.recipe).widths == {}
    assert {reader: len(index) for reader, index in Recipe.from_json(found.recipe).samplers.items()} == {name: 3}


def test_error_driven_widths_come_from_the_second_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(model: Any, curves: Any, speedup: float) -> dict[str, int]:
        asked.append((curves, speedup))
        return {"layer1.0.conv2": 3}

    monkeypatch.setattr(pruning, "error_driven", choose)
    curves = Result(facts={"curves": {"layer1.0.conv2": [1.0, 0.0], "layer1.0.conv1": [2.0, 0.0]}})
    params = pruning.Pruning(Method("exact"), pruning.ErrorDriven(2.5), SAMPLING, 40)
    found = pruning.run_pruned(context(data()), [dense(0), curves], params)
    # a reader of the stream has no producer, so no width is its own
    assert asked == [({"layer1.0.conv2": [1.0, 0.0]}, 2.5)]
    assert found.recipe is not None and Recipe.from_json(found.recipe).widths == {"layer1.0.conv1": 3}


def test_a_single_layer_s_curve_has_the_criterion_and_the_layer_s_speed_up() -> None:
    """Keeping all channels changes nothing; half of eight is 2x of that layer, three of eight 2.67x."""
    params = pruning.SingleLayer("layer2.0.conv2", ("first k", "exact"), (1.0, 2.0, 3.0), SAMPLING, 40)
    found = pruning.run_single_layer(context(data()), [dense(0)], params)
    points: dict[tuple[str | None, float | None], Record] = {
        (record.series, record.x): record for record in found.records if record.metric == "kl"
    }
    assert set(points) == {(series, x) for series in ("first k", "exact") for x in (1.0, 2.0, 8 / 3)}
    for series in ("first k", "exact"):
        assert points[series, 1.0].value < 0.05 * points[series, 2.0].value
    assert points["exact", 2.0].value < points["first k", 2.0].value
    metrics = {record.metric for record in found.records}
    assert metrics == {"top1_err_increase", "top5_err_increase", "kl"}


def test_a_single_layer_s_network_is_compared_with_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compare(
        runs: list[Tensor], references: list[Tensor], labels: Tensor, of: int | None, units: Tensor | None
    ) -> list[Record]:
        assert units is images.test.units
        asked.append((runs[0], references[0], labels, of))
        return []

    images = replace(data(), whole=(1000, 900))
    expected = accuracy.logits(network_of(dense(0))[0], images.test, "cpu", progress=False)
    monkeypatch.setattr(pruning.accuracy, "compare", compare)
    params = pruning.SingleLayer("layer2.0.conv2", ("first k",), (4.0,), SAMPLING, 40)
    pruning.run_single_layer(context(images), [dense(0)], params)
    ((run, reference, labels, of),) = asked
    torch.testing.assert_close(reference, expected)  # another layout, another rounding
    assert not torch.allclose(run, expected)
    assert torch.equal(labels, images.test.labels) and of == 900


# --------------------------------------------------------------------------------------------------------------------
# Detectors


def test_a_detector_is_calibrated_on_training_images_that_are_resized_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    train = [None] * 50

    def batches(split: Any, size: int, places: Sequence[int], batch: int, **named: Any) -> Any:
        asked.append((split is train, size, list(places), batch, named))
        return iter([(torch.zeros(2, 3, 4, 4), [])])

    def calibrate(net: Any, images: Any, sampling: Any, device: str, wanted: Any, progress: bool, shared: bool) -> Any:
        chosen = [wanted(SimpleNamespace(producer=name)) for name in ("a", "b", "c")]
        asked.append((float(images[0].mean()), sampling, chosen, shared))
        sites = [SimpleNamespace(producer="a", reader="after a"), SimpleNamespace(producer="c", reader="after c")]
        return SimpleNamespace(sites=sites)

    def prune(net: Any, calibration: Any, keep: Any, method: Any, progress: bool) -> Any:
        asked.append((keep, method))
        return torch.nn.Identity(), []

    net = SimpleNamespace(size=160, normalised=lambda pixels: pixels + 7.0)
    recipe = Recipe("narrow_ssd", {}, (3, 160, 160)).removed({"z": 1})
    monkeypatch.setattr(detection_steps, "detector", lambda result: (net, recipe))
    monkeypatch.setattr(detection_steps, "batches", batches)
    monkeypatch.setattr(detection_steps, "calibrate", calibrate)
    monkeypatch.setattr(detection_steps, "prune", prune)
    monkeypatch.setattr(detection_steps.surgery, "structure", lambda *_: ({}, ()))
    sampling, method = Sampling(positions=100, batch=16, seed=3), Method("exact")
    params = detection_steps.DetectorPruning({"a": 5, "c": 6}, method, 20, sampling)
    images = SimpleNamespace(train=train, test=[None] * 9)
    where = Context(lambda: images, "cpu", False, workers=2)
    found = detection_steps.run_pruned(where, [Result()], params)
    places = torch.randperm(50, generator=torch.Generator().manual_seed(3))[:20].tolist()
    assert asked == [
        (True, 160, places, 16, {"workers": 2}),
        (7.0, sampling, [True, False, True], True),
        ({"after a": 5, "after c": 6}, method),
    ]
    assert found.recipe is not None and Recipe.from_json(found.recipe).widths == {"a": 5, "c": 6, "z": 1}
