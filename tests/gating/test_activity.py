"""Which channels gates choose: against a loop over single images that computes every gate from its layer's input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import rounded
from bench.data.images import ImageSet, MemorySplit
from bench.errors import UserError
from bench.gating.activity import Activity, run_activity, wins
from bench.gating.convert import convert
from bench.gating.edit import Gate
from bench.gating.fresh import normalise
from bench.gating.layer import PAPER, gated_layers
from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.steps import Context
from bench.store import Result
from bench.train.fit import seed_everything

BASE = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16, "dropout": 0.0}, (3, 16, 16))
COUNT, DENSITY = 37, 300
# class 1 has no test image, class 2 one
LABELS = torch.tensor([0, 3, 4] * 12 + [2])


def split() -> MemorySplit:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (COUNT, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[LABELS == 3, 0] //= 8  # classes differ in colour
    images[LABELS == 4, 1:] //= 8
    return MemorySplit(images, LABELS, (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Gates of random weights, so that winners depend on the image."""
    seed_everything(3)
    net = BASE.build()
    convert(net, DENSITY, PAPER)
    normalise(net, split().batch(list(range(COUNT))))
    return net.eval()


def by_loops(net: nn.Module, data: MemorySplit, classes: int) -> dict[str, list[list[int]]]:
    """For each layer and class how often each channel is among the k of largest saliency, image by image."""
    found = {name: [[0] * layer.out_channels for _ in range(classes)] for name, layer in gated_layers(net).items()}
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0][0]}))
        for name, layer in gated_layers(net).items()
    ]
    for place in range(len(data)):
        with torch.no_grad():
            net(data.batch([place]))
        for name, layer in gated_layers(net).items():
            pressed = [float(plane.abs().mean()) for plane in seen[name]]
            saliencies = [
                max(0.0, sum(w * s for w, s in zip(weights, pressed, strict=True)) + bias)
                for weights, bias in zip(layer.gate.weight.tolist(), layer.gate.bias.tolist(), strict=True)
            ]
            k = -(-DENSITY * len(saliencies) // 1000)
            for winner in sorted(range(len(saliencies)), key=lambda c: -saliencies[c])[:k]:
                found[name][int(data.labels[place])][winner] += 1
    for hook in hooks:
        hook.remove()
    return found


def test_wins_by_loops(model: nn.Module) -> None:
    expected = by_loops(model, split(), 5)
    found = wins(model, split(), 5, "cpu", batch=16, progress=False)
    assert list(found) == list(expected) == [f"conv{i}" for i in range(8)]
    assert {name: counted.tolist() for name, counted in found.items()} == expected
    chosen = [int(((counted.sum(0) > 0) & (counted.sum(0) < COUNT)).sum()) for counted in found.values()]
    assert min(chosen) > 0  # in every layer some channels win for some images alone


def test_the_step_keeps_shares_of_all_images_and_of_each_class(model: nn.Module) -> None:
    """Of classes without a test image there is nothing; text has three decimals."""
    names = ("a", "b", "c", "d", "e")
    data = ImageSet("few", "few", names, 16, split(), split(), "16x16")
    context = Context(lambda: data, "cpu", False, Path("nowhere"))
    result = run_activity(context, [checkpoint(model, BASE.edited(Gate(DENSITY, PAPER)))], Activity())
    assert not result.state
    found, expected = result.facts["activity"], by_loops(model, split(), 5)
    assert found["images"] == COUNT
    for name, counted in expected.items():
        shares = [sum(column) / COUNT for column in zip(*counted, strict=True)]
        assert rounded.values(found["layers"][name]) == pytest.approx(shares, abs=0.000501)
    every = [sum(column) / COUNT for counted in expected.values() for column in zip(*counted, strict=True)]
    by_image = sum(0.01 < share < 0.99 for share in every) / len(every)
    (record,) = result.records
    assert (record.metric, record.unit, record.value) == ("chosen_channels", "%", pytest.approx(100 * by_image))
    assert 0 < by_image < 1
    last = found["by_class"]
    assert (last["layer"], last["classes"], list(last["shares"])) == ("conv7", 5, ["a", "c", "d", "e"])
    for name, images in (("a", 12), ("c", 1), ("d", 12), ("e", 12)):
        shares = [count / images for count in expected["conv7"][names.index(name)]]
        assert rounded.values(last["shares"][name]) == pytest.approx(shares, abs=0.000501)


def test_a_network_without_gates_is_refused() -> None:
    data = ImageSet("few", "few", tuple("abcde"), 16, split(), split(), "16x16")
    parent: Result = checkpoint(BASE.build(), BASE)
    with pytest.raises(UserError, match="has no gates"):
        run_activity(Context(lambda: data, "cpu", False, Path("nowhere")), [parent], Activity())


def test_shares_as_text() -> None:
    assert rounded.text([0.5, 1 / 3, 1.0, 0.0, 0.0004, 0.99951]) == "0.5 0.333 1 0 0 1"
    assert rounded.values("0.5 0.333 1 0") == [0.5, 0.333, 1.0, 0.0]
