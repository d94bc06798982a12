"""Learned masks: what the layer computes, every gradient by finite differences, training in turns, export."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.images import ImageSet, MemorySplit
from bench.errors import UserError
from bench.measure import macs
from bench.models.checkpoint import network
from bench.models.recipe import Recipe
from bench.steps import Context
from bench.train.schedule import Schedule
from bench.versatile import training
from bench.versatile.edit import Learned, exported
from bench.versatile.learned import LearnedConv2d, Masks, learned_layers, network_orthogonality, orthogonality, signs

LAYERS = [
    ((4, 6, 3), {"padding": 1}, Masks()),
    ((4, 7, 3), {"padding": 1, "bias": False}, Masks(3, own=False)),
    ((4, 10, 3), {"stride": 2, "groups": 2}, Masks(2, own=True, alphabet="{-1,+1}")),
    ((4, 10, 2), {"groups": 2}, Masks(4, own=False, alphabet="{-1,+1}")),
]


def layer_of(shape: tuple, settings: dict, masks: Masks) -> LearnedConv2d:
    layer = LearnedConv2d(nn.Conv2d(*shape, **settings), masks).double()
    layer.initialise()
    return layer


def naive(x: Tensor, layer: LearnedConv2d, masks: Tensor, weight: Tensor) -> Tensor:
    """Map by map: of each group mask after mask, primary filter after primary filter."""
    groups, per_group = layer.groups, layer.out_channels // layer.groups
    count = masks.shape[1 if layer.masks.own else 0]
    primaries, inputs = len(weight) // groups, x.shape[1] // groups
    maps = []
    for group in range(groups):
        own = []
        for mask, primary in itertools.product(range(count), range(primaries)):
            place = group * primaries + primary
            bits = masks[place, mask] if layer.masks.own else masks[mask]
            seen = x[:, group * inputs : (group + 1) * inputs]
            padding = (layer.pads[2], layer.pads[0])
            own.append(F.conv2d(seen, (bits * weight[place])[None], None, layer.stride, padding))
        maps += own[:per_group]
    y = torch.cat(maps, 1)
    return y if layer.bias is None else y + layer.bias[:, None, None]


@pytest.mark.parametrize(("shape", "settings", "masks"), LAYERS)
def test_each_map_is_of_a_filter_under_one_of_its_masks(shape: tuple, settings: dict, masks: Masks) -> None:
    torch.manual_seed(0)
    layer = layer_of(shape, settings, masks)
    entries = layer.binary().detach()
    low = 0.0 if masks.alphabet == "{0,1}" else -1.0
    assert set(entries.unique().tolist()) == {low, 1.0}
    assert torch.equal(entries == 1.0, layer.proxies > 0)
    x = torch.randn(2, 4, 7, 6, dtype=torch.double)
    torch.testing.assert_close(layer(x), naive(x, layer, entries, layer.weight), rtol=0.0, atol=1e-12)


def released(masks: Tensor) -> Tensor:
    """The precursor's ``ortho_loss`` of one layer by loops: of each two masks of {-1,+1} (of one with itself too) the
    mean product of their entries, which should be 1 or 0, squared; the mean over all of them.
    """
    rows = list(masks.reshape(-1, masks.shape[-3:].numel()))
    off = [(first * second).mean() - float(a == b) for a, first in enumerate(rows) for b, second in enumerate(rows)]
    return torch.stack([value**2 for value in off]).sum() / len(rows) ** 2


def differences(value: object, at: Tensor) -> Tensor:
    """The gradient of a function of one tensor by central differences."""
    found, step = torch.zeros_like(at), 1e-6
    for place in range(at.numel()):
        ends = []
        for sign in (1.0, -1.0):
            moved = at.detach().clone()
            moved.view(-1)[place] += sign * step
            ends.append(float(value(moved)))  # type: ignore[operator]
        found.view(-1)[place] = (ends[0] - ends[1]) / (2.0 * step)
    return found


@pytest.mark.parametrize(("shape", "settings", "masks"), LAYERS)
def test_gradients_of_filters_and_of_masks_are_numerical_ones(shape: tuple, settings: dict, masks: Masks) -> None:
    """Of the loss as a function of the masks' entries and signs, taken for real numbers; it passes straight through."""
    torch.manual_seed(0)
    layer = layer_of(shape, settings, masks)
    x = torch.randn(2, 4, 4, 4, dtype=torch.double)
    target = torch.randn_like(layer(x))
    weight, entries = layer.weight.detach(), layer.binary().detach()
    lam = 0.3
    (F.mse_loss(layer(x), target) + lam * orthogonality(signs(layer))).backward()

    def task(bits: Tensor, filters: Tensor) -> Tensor:
        return F.mse_loss(naive(x, layer, bits, filters), target)

    with torch.no_grad():
        assert layer.weight.grad is not None and layer.proxies.grad is not None
        of_filters = differences(lambda moved: task(entries, moved), weight)
        torch.testing.assert_close(layer.weight.grad, of_filters, rtol=1e-6, atol=1e-8)
        of_masks = differences(lambda moved: task(moved, weight), entries)
        of_signs = differences(lambda moved: lam * released(moved), (layer.proxies > 0).double() * 2.0 - 1.0)
        assert float(of_signs.abs().max()) > 1e-5
        torch.testing.assert_close(layer.proxies.grad, of_masks + of_signs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("shape", "settings", "masks"), LAYERS)
def test_orthogonality_is_the_precursor_s_over_all_masks_of_a_layer(shape: tuple, settings: dict, masks: Masks) -> None:
    """Of their signs, whatever the alphabet, while they are learned and after."""
    torch.manual_seed(0)
    layer = layer_of(shape, settings, masks)
    count = layer.secondaries * (len(layer.weight) if masks.own else 1)
    expected = layer.proxies.detach().sign().reshape(count, *layer.weight.shape[1:])
    assert torch.equal(signs(layer).detach().reshape(expected.shape), expected)
    torch.testing.assert_close(orthogonality(signs(layer)), released(expected), rtol=1e-12, atol=0.0)
    layer.export()
    assert torch.equal(signs(layer).reshape(expected.shape), expected)


def test_orthogonality_in_numbers_and_its_closed_gradient() -> None:
    """|X X'/n - I|^2 / m^2 and 4 / (n m^2) (X X'/n - I) X; the masks of several filters are one set."""
    masks = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]).reshape(2, 4, 1, 1)
    assert float(orthogonality(masks)) == 0.0
    same = torch.ones(2, 4, 1, 1)
    assert float(orthogonality(same)) == 0.5  # two of four entries of the Gram are 1 and should be 0
    # two filters of the same two masks: of the 16 entries four more should be 0, those of the equal pairs
    assert float(orthogonality(torch.stack([masks, masks]))) == 0.25
    assert float(orthogonality(torch.stack([masks, same]))) == 0.125  # the two equal ones, orthogonal to the others
    torch.manual_seed(0)
    x = torch.randn(3, 2, 3, 2, dtype=torch.double, requires_grad=True)
    orthogonality(x).backward()
    rows = x.detach().reshape(3, 12)
    closed = 4.0 / (12 * 9) * (rows @ rows.T / 12 - torch.eye(3, dtype=torch.double)) @ rows
    assert x.grad is not None
    torch.testing.assert_close(x.grad.reshape(3, 12), closed, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(differences(orthogonality, x), x.grad, rtol=1e-6, atol=1e-9)


def test_multiplications_are_those_of_full_filters_and_masks_are_no_parameters_after_export() -> None:
    model = nn.Sequential(LearnedConv2d(nn.Conv2d(8, 12, 3, padding=1, bias=False), Masks()))
    (layer,) = learned_layers(model)
    layer.initialise()
    assert macs.count(model, (8, 5, 5)).total("conv+fc") == 25 * 12 * 8 * 9
    x = torch.randn(2, 8, 5, 5)
    before, bits = model(x), layer.proxies > 0
    layer.export()
    layer.export()  # twice is once
    assert torch.equal(model(x), before)
    assert torch.equal(layer.fixed, bits) and layer.fixed.dtype == torch.bool and layer.fixed.shape == (6, 2, 8, 3, 3)
    assert {name: p.numel() for name, p in model.named_parameters()} == {"0.weight": 6 * 8 * 9}
    assert macs.count(model, (8, 5, 5)).total("conv+fc") == 25 * 12 * 8 * 9


@pytest.mark.parametrize(("fields", "message"), [({"alphabet": "bits"}, "unknown alphabet"), ({"count": 0}, "0 masks")])
def test_wrong_masks_are_user_errors(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Masks(**fields)


# --------------------------------------------------------------------------------------------------------------------
# Training

SMALL = Recipe("mcifarnet", {"num_classes": 2, "width": 0.0625, "side": 16}, (3, 16, 16)).edited(Learned(Masks(2)))
GENERATOR = torch.Generator().manual_seed(0)
SPLIT = MemorySplit(
    torch.randint(0, 256, (16, 3, 16, 16), generator=GENERATOR, dtype=torch.uint8),
    torch.arange(16) % 2, (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False,
)  # fmt: skip
DATA = ImageSet("noise", "f", ("a", "b"), 16, SPLIT, SPLIT, "16x16")


class Plain:
    """The optimiser's part of one turn, in place of mmengine's wrapper."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def optim_context(self, model: nn.Module) -> torch.no_grad | torch.enable_grad:
        return torch.enable_grad()

    def update_params(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Net(nn.Module):
    """One layer with learned masks and a mean: no batch norm, whose statistics would move."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = LearnedConv2d(nn.Conv2d(3, 6, 3, padding=1), Masks())
        self.layer.initialise()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).square().mean((2, 3))


def step_by_hand(images: Tensor, labels: Tensor, weight: float, lr: float) -> Net:
    """Filters by the task's loss; then the masks, with the new filters, by the whole loss."""
    net = Net()
    layer = net.layer
    gradients = torch.autograd.grad(F.cross_entropy(net(images), labels), [layer.weight, layer.bias])
    with torch.no_grad():
        layer.weight -= lr * gradients[0]
        layer.bias -= lr * gradients[1]  # type: ignore[operator]
    loss = F.cross_entropy(net(images), labels) + weight * released(signs(layer))
    (of_masks,) = torch.autograd.grad(loss, [layer.proxies])
    with torch.no_grad():
        layer.proxies.copy_((layer.proxies - lr * of_masks).clamp(-1.0, 1.0))
    return net


@pytest.mark.parametrize("weight", [0.0, 5.0, 500.0])
def test_filters_and_masks_take_turns(weight: float) -> None:
    images, labels, lr = torch.randn(8, 3, 6, 6, generator=GENERATOR), torch.arange(8) % 6, 0.5
    net = Net()
    turns = training.Alternating(net, weight)
    before = net.layer.proxies.detach().clone()
    losses = turns.train_step((images, labels), Plain(torch.optim.SGD(net.parameters(), lr)))  # type: ignore[arg-type]
    expected = step_by_hand(images, labels, weight, lr)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    # the filters do not see the other term, however much it weighs
    assert torch.equal(net.layer.weight, step_by_hand(images, labels, 0.0, lr).layer.weight)
    assert not torch.equal(net.layer.proxies, before) and float(net.layer.proxies.detach().abs().max()) <= 1.0
    torch.testing.assert_close(losses["loss"], F.cross_entropy(Net()(images), labels))


def test_a_network_without_masks_to_learn_is_refused() -> None:
    for recipe in (SMALL.base, exported(SMALL)):
        with pytest.raises(UserError, match="no masks that could be learned"):
            training.Alternating(recipe.build(), 1.0)


def test_the_step_gives_a_network_with_fixed_masks(tmp_path: Path) -> None:
    """Trained by mmengine's Runner; filters and masks have moved, the masks are bits, and the network can be built."""
    schedule = Schedule(epochs=2, lr=0.5, batch=8)
    context = Context(lambda: DATA, "cpu", False, tmp_path, label="masks")
    result = training.run_masked(context, [], training.Masked(SMALL, schedule, 0, 1.0))
    model, recipe = network(result)
    assert recipe == exported(SMALL)
    layers = learned_layers(model)
    assert len(layers) == 8 and all(layer.exported for layer in layers)
    assert all(value.dtype == torch.bool for name, value in result.state.items() if name.endswith("fixed"))
    assert not any(name.endswith("proxies") for name in result.state)
    records = {record.metric: record.value for record in result.records}
    assert records["mask_bits"] == sum(layer.fixed.numel() for layer in layers)
    overlaps = [float(released(layer.fixed.double() * 2.0 - 1.0)) for layer in layers]
    assert records["mask_overlap"] == pytest.approx(sum(overlaps) / 8, rel=1e-5)
    assert float(network_orthogonality(model)) == pytest.approx(sum(overlaps), rel=1e-5)
    assert [entry["epoch"] for entry in result.facts["history"]] == [1, 2]
    torch.manual_seed(0)
    training.seed_everything(0)
    fresh = learned_layers(SMALL.build())
    assert any(bool(((a.proxies > 0) != b.fixed).any()) for a, b in zip(fresh, layers, strict=True))


def test_under_torchrun_the_step_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training, "launched", lambda: 2)
    context = Context(lambda: DATA, "cpu", False, tmp_path, label="masks")
    with pytest.raises(UserError, match="run this row without torchrun"):
        training.run_masked(context, [], training.Masked(SMALL, Schedule(1, 0.1, 8), 0, 1.0))
