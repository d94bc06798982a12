"""The penalty in training, against gradient descent by hand; the steps that gate, slim and measure, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.data.digits import digits_images
from bench.data.images import ImageSet, MemorySplit
from bench.gating import measuring, steps, timing
from bench.gating.convert import convert
from bench.gating.edit import Gate
from bench.gating.layer import GateOptions, gated_layers, saliency_l1
from bench.measure.latency import Protocol
from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.steps import Context, DataValue, Kind, make_step
from bench.train.fit import fit, seed_everything
from bench.train.schedule import Schedule
from bench.train.steps import Loading, run_loaded

BASE = Recipe("mcifarnet", {"num_classes": 10, "width": 0.0625, "side": 16, "dropout": 0.0}, (3, 16, 16))


def small(count: int = 40) -> MemorySplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return MemorySplit(images, torch.arange(count) % 10, (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False)


def gated_network() -> nn.Module:
    seed_everything(3)
    model = BASE.build()
    convert(model, 500, GateOptions())
    return model


def test_the_penalty_is_added_to_the_loss(tmp_path: Path) -> None:
    """The whole set as one batch: three steps of plain gradient descent on cross-entropy + 0.01 sum E |g|_1."""
    data, net, plain = small(), gated_network(), gated_network().train()
    schedule = Schedule(epochs=3, lr=0.05, batch=40, momentum=0.0)
    fit(net, data, schedule, 0, tmp_path, "cpu", progress=False, penalty=lambda model: 0.01 * saliency_l1(model))
    images = data.batch(list(range(40)))
    for _ in range(3):
        loss = F.cross_entropy(plain(images), data.labels) + 0.01 * saliency_l1(plain)
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter.sub_(0.05 * gradient)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """The real digits, the first 64 and 32 of them."""
    whole = digits_images(16)

    def part(split: Any, count: int) -> MemorySplit:
        return MemorySplit(split.images[:count], split.labels[:count], (0.5,) * 3, (0.5,) * 3, pad=1, mirror=False)

    return ImageSet("few", "few", whole.classes, 16, part(whole.train, 64), part(whole.test, 32), "16x16")


def test_a_chain_from_dense_to_latency(data: ImageSet, tmp_path: Path) -> None:
    """Dense, gated at d = 1, stepped down to 0.5: states and recipes go through, everything is measured."""
    context = Context(lambda: data, "cpu", False, tmp_path / "work")
    seed_everything(0)
    dense = checkpoint(BASE.build(), BASE)
    schedule = Schedule(epochs=1, lr=0.01, batch=32)
    at_one = steps.run_gated(context, [dense], steps.Gating(1000, schedule, 0, 1e-8, GateOptions(phi="zero")))
    gate = Gate(1000, GateOptions(phi="zero"))
    assert at_one.recipe is not None and Recipe.from_json(at_one.recipe) == BASE.edited(gate)
    context.work = tmp_path / "next"
    half = steps.run_gated(context, [at_one], steps.Gating(500, schedule, 0, 1e-8, GateOptions(phi="zero")))
    assert half.recipe is not None and Recipe.from_json(half.recipe) == BASE.gated(500, GateOptions(phi="zero"))
    model = Recipe.from_json(half.recipe).build()
    model.load_state_dict(half.state)
    assert {layer.density for layer in gated_layers(model).values()} == {500}
    measured = measuring.run_measured(context, [half], measuring.Measuring(0))
    values = {record.metric: record for record in measured.records}
    assert values["top1_acc"].value + values["top1_err"].value == pytest.approx(100)
    assert (values["top1_err"].low, values["top1_err"].high) == pytest.approx(
        (100 - values["top1_acc"].high, 100 - values["top1_acc"].low)  # type: ignore[operator]
    )
    assert measured.arrays["logits"].shape == (32, 10) and measured.arrays["macs"].shape == (32,)
    sizes = {
        r.metric: r.value for r in steps.run_expected(context, [], steps.Sizes(Recipe.from_json(half.recipe))).records
    }
    assert values["dynamic_macs"].value == sizes["expected_macs_gates"]  # a chain without additions has no spread
    assert values["dynamic_speedup"].value == sizes["expected_speedup"]
    skipped = {r.metric: r for r in measuring.run_skipped(context, [half], measuring.Skipping(16)).records}
    assert skipped["winner_flips"].n == 16 and skipped["skipped_float64_difference"].value < 1e-10
    assert abs(skipped["skipped_top1_change"].value) <= skipped["winner_flips"].value
    protocol = Protocol(block=2, rounds=2, least=1, warm_up=1, seconds=2.0)
    timed = timing.run_latency(context, [dense, half], timing.Timing(1, protocol, processes=2))
    found = {r.metric: r.value for r in timed.records}
    assert found["realised_share"] == pytest.approx(100 * found["realised_speedup"] / found["theoretical_speedup"])
    assert found["theoretical_speedup"] == pytest.approx(sizes["expected_speedup"])
    assert sum(v for k, v in found.items() if k.startswith("time_share")) == pytest.approx(100)
    assert timed.arrays["seconds_skipped"].shape == (2, 2, 2)
    remembered = measuring.MemoryMeasuring((1, 16), 0)
    used = {r.metric: r.value for r in measuring.run_memory(context, [half], remembered).records}
    whole = {r.metric: r.value for r in measuring.run_memory(context, [dense], remembered).records}
    assert used["memory_activations_batch1"] < whole["memory_activations_batch1"]
    assert used["memory_weights_batch1"] < whole["memory_weights_batch1"]


def test_slimming_then_gating_counts_from_the_first_network(data: ImageSet, tmp_path: Path) -> None:
    """NS + FBS: the speed-up is over the network before slimming."""
    context = Context(lambda: data, "cpu", False, tmp_path / "work")
    seed_everything(0)
    dense = checkpoint(BASE.build(), BASE)
    schedule = Schedule(epochs=1, lr=0.01, batch=32)
    sparse = steps.run_sparse(context, [dense], steps.Sparse(schedule, 0, 1e-4))
    small_ = steps.run_slimmed(context, [sparse], steps.Slimming(speedup=1.5))
    assert small_.recipe is not None and Recipe.from_json(small_.recipe).widths
    context.work = tmp_path / "next"
    gated = steps.run_gated(context, [small_], steps.Gating(500, schedule, 0, 0.0))
    values = {
        name: {r.metric: r.value for r in measuring.run_measured(context, [result], measuring.Measuring(0)).records}
        for name, result in (("slimmed", small_), ("both", gated))
    }
    assert values["slimmed"]["dynamic_speedup"] > 1.4
    # a half of the channels on both sides of a narrow network
    assert values["both"]["dynamic_speedup"] > 2 * values["slimmed"]["dynamic_speedup"]
    assert values["slimmed"]["weight_reduction"] > 1.0


def test_step_names_tell_the_density_and_the_start() -> None:
    data = DataValue("plain", "training")
    dense = make_step(Kind.LOAD, "dense(seed 0)", run_loaded, Loading(BASE), device="cpu")
    schedule, options = Schedule(1, 0.1), GateOptions()
    first = steps.gated(dense, 1000, schedule, 0, data, 1.0, 1e-8, options)
    second = steps.gated(first, 500, schedule, 0, data, 1.0, 1e-8, options)
    assert (first.name, second.name) == ("gated(d=1, dense(seed 0))", "gated(d=0.5, dense(seed 0))")
    assert second.parents == (first,) and first.key != second.key
