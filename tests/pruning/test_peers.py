"""torch-pruning's pruners as steps: how far they go, what is left of the network, and statistics by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.images import ImageSet, MemorySplit
from bench.data.stream import ImageStream
from bench.measure import macs
from bench.models.checkpoint import checkpoint
from bench.models.checkpoint import network as network_of
from bench.models.recipe import Recipe
from bench.pruning import peers
from bench.steps import Context, DataValue
from bench.store import Result

RECIPE = Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.5}, (3, 16, 16))


def split(count: int, seed: int) -> MemorySplit:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return MemorySplit(pixels, torch.arange(count) % 10, (0.5,) * 3, (0.25,) * 3, pad=2, mirror=True)


def context() -> Context:
    data = ImageSet("noise", "0", tuple("abcdefghij"), 16, split(150, 0), split(20, 1), "16x16")
    return Context(lambda: data, "cpu", False)


def dense() -> tuple[nn.Module, Result]:
    torch.manual_seed(0)
    model = RECIPE.build().train()
    model(torch.randn(64, 3, 16, 16))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval(), checkpoint(model, RECIPE)


def rows_of(conv: nn.Conv2d) -> set[tuple[float, ...]]:
    return {tuple(row.tolist()) for row in conv.weight.detach().flatten(1)}


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_filters_go_until_the_macs_have_fallen_far_enough(importance: str, everywhere: bool) -> None:
    """What is left are filters of the dense network, of inner layers only; one step less would be too little."""
    model, parent = dense()
    found = peers.run_peer(context(), [parent], peers.Peer(importance, everywhere, 2.0, 100, 0))
    small, recipe = network_of(found)
    assert found.recipe is not None and recipe.widths
    full = macs.count(model, RECIPE.input_shape).total("conv")
    left = macs.count(small, RECIPE.input_shape).total("conv")
    assert 1.98 <= full / left < (2.1 if everywhere else 2.3)  # one filter of eight is a long step
    shares = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            smaller = small.get_submodule(name)
            assert isinstance(smaller, nn.Conv2d)
            inner = name.endswith("conv1") and name != "conv1"
            assert smaller.out_channels == (
                recipe.widths.get(name, module.out_channels) if inner else module.out_channels
            )
            if inner:
                assert rows_of(smaller) <= rows_of(module)
                shares.add(smaller.out_channels / module.out_channels)
    if everywhere:
        assert max(shares) - min(shares) > 0.2
    else:
        assert max(shares) - min(shares) < 0.15


def test_a_speed_up_that_is_out_of_reach_is_refused() -> None:
    with pytest.raises(Exception, match="out of reach"):
        peers.run_peer(context(), [dense()[1]], peers.Peer("magnitude", False, 100.0, 100, 0))


def test_gradients_are_those_of_the_mean_loss_over_all_images() -> None:
    """Against one backward pass through all images at once."""
    model, _ = dense()
    data = split(150, 0)
    places = [5, 149, 17, 3, 80, 41, 7]
    labels = data.labels[torch.tensor(places)]
    peers.gradients(model, ImageStream(data, places, 3), labels, context())
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    F.cross_entropy(model(data.batch(places)), labels).backward()
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_renewed_statistics_are_means_over_batches() -> None:
    """By hand on two layers: the second sees what the first has normalised batch by batch."""
    torch.manual_seed(1)
    first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    nn.init.uniform_(first.weight)
    model = nn.Sequential(first, nn.ReLU(), second, nn.Dropout(0.9))
    data = split(20, 0)
    peers.renew(model, ImageStream(data, list(range(20)), 8), context())
    means: list[list[Tensor]] = [[], []]
    spreads: list[list[Tensor]] = [[], []]
    for chunk in (range(8), range(8, 16), range(16, 20)):
        x = data.batch(list(chunk))
        for place, norm in enumerate((first, second)):
            means[place].append(x.mean((0, 2, 3)))
            spreads[place].append(x.var((0, 2, 3), unbiased=True))
            centred = (x - x.mean((0, 2, 3), keepdim=True)) / (
                x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
            ).sqrt()
            x = (centred * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()
    for place, norm in enumerate((first, second)):
        torch.testing.assert_close(norm.running_mean, torch.stack(means[place]).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, torch.stack(spreads[place]).mean(0), rtol=1e-4, atol=1e-5)
        assert norm.momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_only_the_statistics_differ_where_they_are_renewed() -> None:
    plain, renewed = (
        peers.run_peer(context(), [dense()[1]], peers.Peer("magnitude", True, 1.5, 100, 0, renewed))
        for renewed in (False, True)
    )
    assert plain.recipe == renewed.recipe
    for name, value in plain.state.items():
        same = torch.equal(value, renewed.state[name])
        assert same == (not name.endswith(("running_mean", "running_var", "num_batches_tracked"))), name


def test_the_step_names_what_it_does_and_has_one_parent() -> None:
    parent = SimpleNamespace(name="dense", device="cpu", key="k", parents=())
    params = peers.Peer("taylor", True, 3.0, 10, 2, True)
    step = peers.peer(parent, params, DataValue("plain", "training"), 1.0)  # type: ignore[arg-type]
    assert (step.params, step.parents, step.data) == (params, (parent,), "plain")
    assert step.name == "torch-pruning(taylor, global 3x, renewed, dense)"
