"""Trained gates held to one choice: against masks written by hand, and gates that have no choice to lose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.images import ImageSet, MemorySplit
from bench.gating import ablation
from bench.gating.convert import convert
from bench.gating.edit import Gate
from bench.gating.layer import PAPER, GateOptions, gated_layers
from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.steps import Context
from bench.train.fit import seed_everything

BASE = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16, "dropout": 0.0}, (3, 16, 16))


def split(count: int, seed: int) -> MemorySplit:
    images = torch.randint(0, 255, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    # each image has a brightness of its own, so that its channels' saliencies differ from others'
    images = (images * torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed + 1))).to(torch.uint8)
    return MemorySplit(images, torch.arange(count) % 10, (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False)


def network(density: int = 500) -> nn.Module:
    seed_everything(3)
    model = BASE.build()
    convert(model, density, PAPER)
    return model.eval()


def plain(model: nn.Module, x: Tensor, means: dict[str, Tensor], saliency: bool) -> Tensor:
    """M-CifarNet layer by layer, the losers' maps zero for all images."""
    for name in model.order:  # type: ignore[union-attr]
        layer = getattr(model, name)
        if name not in means:
            x = layer(x)
            continue
        g = (x.abs().mean((2, 3)) @ layer.gate.weight.T + layer.gate.bias).relu()
        best = sorted(range(len(means[name])), key=lambda c: -float(means[name][c]))[: -(-len(means[name]) // 2)]
        pi = torch.zeros_like(g)
        for c in best:
            pi[:, c] = means[name][c] if saliency else g[:, c]
        y = F.batch_norm(F.conv2d(x, layer.weight, None, layer.stride, layer.padding), layer.running_mean,
                         layer.running_var, None, layer.beta, False, 0.0, layer.eps)  # fmt: skip
        x = y * pi[:, :, None, None]
    return model.logits(model.pool(x).flatten(1))  # type: ignore[no-any-return,operator]


@torch.no_grad()
def test_mean_saliencies_are_those_of_a_loop_over_images() -> None:
    model, data = network(), split(300, 0)
    places = [7, 3, 299, *range(20, 280)]
    found = ablation.mean_saliencies(model, data, places, "cpu")
    sums = {name: torch.zeros(layer.out_channels) for name, layer in gated_layers(model).items()}
    for place in places:
        x = data.batch([place])
        for name in model.order:  # type: ignore[union-attr]
            layer = getattr(model, name)
            if name in sums:
                sums[name] += layer.gate(x)[0]
            x = layer(x)
    for name, total in sums.items():
        torch.testing.assert_close(found[name], total / len(places))
    assert all(not layer.gate._forward_hooks for layer in gated_layers(model).values())


@torch.no_grad()
@pytest.mark.parametrize("saliency", [False, True])
def test_a_held_network_is_the_plain_one_with_fixed_masks_and_is_free_again_afterwards(saliency: bool) -> None:
    model, images = network(), split(16, 5).batch(list(range(16)))
    means = {name: torch.rand(layer.out_channels) for name, layer in gated_layers(model).items()}
    free = model(images)
    with ablation.held(model, means, saliency):
        torch.testing.assert_close(model(images), plain(model, images, means, saliency), rtol=1e-4, atol=1e-5)
        counts = [int(layer.winners.sum(1).unique()) for layer in gated_layers(model).values()]  # type: ignore[union-attr]
        assert counts == [layer.k for layer in gated_layers(model).values()]
        assert not torch.allclose(model(images), free, rtol=1e-3)
    assert torch.equal(model(images), free)


@torch.no_grad()
def test_gates_that_do_not_look_at_the_image_lose_nothing() -> None:
    model, images = network(), split(16, 5).batch(list(range(16)))
    for layer in gated_layers(model).values():
        layer.gate.weight.zero_()
        layer.gate.bias.copy_(torch.rand(layer.out_channels))
    means = ablation.mean_saliencies(model, split(64, 0), list(range(64)), "cpu")
    free = model(images)
    for saliency in (False, True):
        with ablation.held(model, means, saliency):
            torch.testing.assert_close(model(images), free, rtol=1e-4, atol=1e-6)


def test_the_step_holds_what_the_training_images_say() -> None:
    model, data = network(), ImageSet("random", "0", tuple("0123456789"), 16, split(40, 0), split(30, 9), "16x16")
    context = Context(lambda: data, "cpu", False)
    recipe = BASE.edited(Gate(500, GateOptions(), ()))
    parent = checkpoint(model, recipe)
    result = ablation.run_held(context, [parent], ablation.Held(25, 4))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))[:25].tolist()
    means = ablation.mean_saliencies(model, data.train, order, "cpu")
    with torch.no_grad():
        expected = plain(model, data.test.batch(list(range(30))), means, False)
    torch.testing.assert_close(result.arrays["logits"], expected, rtol=1e-4, atol=1e-5)
    (top1,) = (record for record in result.records if record.metric == "top1_acc")
    right = float((expected.argmax(1) == data.test.labels).double().mean())
    assert (top1.value, top1.n, top1.seed) == (pytest.approx(100 * right), 30, 4)
