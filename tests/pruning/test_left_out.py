"""Layers that do not compute what their class says are left out, with the reason, and the rest is pruned rightly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from bench.errors import UserError
from bench.pruning.calibration import Sampling, calibrate
from bench.pruning.faithful import copied
from bench.pruning.graph import find_sites, left_out, trace
from bench.pruning.layerwise import Method
from bench.pruning.layerwise import prune as prune_layers
from bench.pruning.surgery import remove_filters


class Chain(nn.Module):
    """Six convolutions a to f with norms na to ne and ReLUs, a mean and a linear layer; N x 3 x 8 x 8 to N x 4."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 6, 6, 6, 6, 6, 5]
        for name, inputs, outputs in zip("abcdef", widths, widths[1:], strict=False):
            self.add_module(name, nn.Conv2d(inputs, outputs, 3, padding=1, bias=name in "ce"))
            self.add_module(f"n{name}", nn.BatchNorm2d(outputs))
        self.act = nn.ReLU()
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        for name in "abcdef":
            x = self.act(self.get_submodule(f"n{name}")(self.get_submodule(name)(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Standardised(nn.Conv2d):
    """Filters are brought to mean 0 before they are used."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Gained(nn.Conv2d):
    """One gain a filter, all one at first: computes the plain formula, but removal would leave the gains behind."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain[:, None, None]


class Plain(nn.Conv2d):
    """A subclass that computes what its parent does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.0


class PlainNorm(nn.BatchNorm2d):
    """The same for norms."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.0


class BatchOnly(nn.BatchNorm2d):
    """Normalises by the batch, also in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


class Half(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 0.5 * weight


def conv(kind: type[nn.Conv2d] = nn.Conv2d, **options: Any) -> nn.Conv2d:
    return kind(6, 6, 3, **({"padding": 1, "bias": True} | options))


def replaced(name: str, make: Callable[[], nn.Module]) -> Callable[[Chain], object]:
    return lambda model: setattr(model, name, make())


def hooked(name: str, hook: Callable[..., Any]) -> Callable[[Chain], object]:
    return lambda model: model.get_submodule(name).register_forward_hook(hook)


def overridden(model: Chain) -> None:
    forward = model.c.forward  # type: ignore[union-attr]
    model.c.forward = lambda x: forward(x).flip(1)  # type: ignore[operator, union-attr, assignment]


def tied(model: Chain) -> None:
    model.d.weight = model.c.weight  # type: ignore[union-attr]


def same_norm(model: Chain) -> None:
    model.nd = model.nc


def same_conv(model: Chain) -> None:
    model.d = model.c


# what is done to the chain, the layers that must be named, and a word of the reason
CASES: dict[str, tuple[Callable[[Chain], object], set[str], str]] = {
    "weight-standardised": (replaced("c", lambda: conv(Standardised)), {"c"}, "does not compute"),
    "gain a filter": (replaced("c", lambda: conv(Gained)), {"c"}, "gain"),
    "weight norm, by hooks": (replaced("c", lambda: weight_norm(conv())), {"c"}, "computed from other"),
    "weight norm, parametrised": (replaced("c", lambda: parametrizations.weight_norm(conv())), {"c"}, "computed from"),
    "spectral norm, by hooks": (replaced("c", lambda: spectral_norm(conv())), {"c"}, "computed from other tensors"),
    "spectral norm, parametrised": (replaced("c", lambda: parametrizations.spectral_norm(conv())), {"c"}, "computed"),
    "a parametrisation": (
        replaced("c", lambda: parametrize.register_parametrization(conv(), "weight", Half())),
        {"c"},
        "computed from",
    ),
    "a parametrised bias": (
        replaced("c", lambda: parametrize.register_parametrization(conv(), "bias", Half())),
        {"c"},
        "its bias is",
    ),
    "masked weights": (
        replaced("c", lambda: prune.l1_unstructured(conv(), "weight", 0.3)),
        {"c"},
        "computed from other tensors",
    ),
    "groups": (replaced("c", lambda: conv(groups=2)), {"c"}, "2 groups"),
    "reflected padding": (replaced("c", lambda: conv(padding_mode="reflect")), {"c"}, "padding is reflect"),
    "same padding": (replaced("c", lambda: conv(padding="same")), {"c"}, "padding is same"),
    "a hook that changes values": (hooked("c", lambda module, inputs, output: output * 0.5), {"c"}, "does not compute"),
    "a forward put in later": (overridden, {"c"}, "does not compute"),
    "a hook on a norm": (hooked("nc", lambda module, inputs, output: output + 1.0), {"nc"}, "does not compute"),
    "a hook on a ReLU": (hooked("act", lambda module, inputs, output: output.flip(1)), {"act"}, "does not compute"),
    "tied weights": (tied, {"c", "d"}, "shares its weights with"),
    "a convolution called twice": (same_conv, {"c"}, "called 2 times"),
    "a norm behind two convolutions": (same_norm, {"nc"}, "called 2 times"),
    "a norm without scale and shift": (
        replaced("nc", lambda: nn.BatchNorm2d(6, affine=False)),
        {"nc"},
        "without scale",
    ),
    "a norm without statistics": (
        replaced("nc", lambda: nn.BatchNorm2d(6, track_running_stats=False)),
        {"nc"},
        "without running statistics",
    ),
    "a norm of its own": (replaced("nc", lambda: BatchOnly(6)), {"nc"}, "does not compute"),
    "group norm": (replaced("nc", lambda: nn.GroupNorm(2, 6)), {"nc"}, "GroupNorm cannot lose channels"),
    "instance norm": (replaced("nc", lambda: nn.InstanceNorm2d(6)), {"nc"}, "InstanceNorm2d cannot lose channels"),
}
FINE: dict[str, Callable[[Chain], object]] = {
    "nothing": lambda model: None,
    "a plain subclass": replaced("c", lambda: conv(Plain)),
    "a plain subclass of a norm": replaced("nc", lambda: PlainNorm(6)),
    "a hook that looks on": hooked("c", lambda module, inputs, output: None),
    "a hook that looks on at a ReLU": hooked("act", lambda module, inputs, output: None),
    "dilation and stride": replaced("c", lambda: conv(dilation=2, padding=2, stride=2)),
}


def chain(change: Callable[[Chain], object]) -> Chain:
    """The changed chain, with norms far from the identity, in evaluation mode."""
    torch.manual_seed(3)
    model = Chain()
    change(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                if tensor is not None:
                    tensor.data.add_(0.3 * torch.randn(len(tensor)))
    return model.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))  # type: ignore[no-any-return]


def producers(model: nn.Module) -> set[str]:
    return {site.producer for site in find_sites(model, trace(model)) if site.producer is not None}


@pytest.mark.parametrize("name", CASES)
def test_it_is_left_out_and_the_reason_is_told(name: str) -> None:
    change, layers, reason = CASES[name]
    model = chain(change)
    found = dict(left_out(model, trace(model)))
    assert set(found) == layers
    assert all(reason in text for text in found.values())
    assert not layers & producers(model)
    if layers & {"c", "nc"} and name != "a norm behind two convolutions":
        assert "c" not in producers(model)


@pytest.mark.parametrize("name", FINE)
def test_what_computes_the_plain_formula_is_pruned(name: str) -> None:
    model = chain(FINE[name])
    assert left_out(model, trace(model)) == []
    assert producers(model) == set("abcde")


def test_where_nothing_is_left_the_reasons_are_told() -> None:
    """The only ReLU stands behind every convolution."""
    model = chain(CASES["a hook on a ReLU"][0])
    assert producers(model) == set()
    everything = chain(lambda m: [setattr(m, name, conv(Standardised)) for name in "bcde"])
    everything.f = nn.Conv2d(6, 5, 3, groups=1, padding="same")
    with pytest.raises(
        UserError, match=r"nothing to prune \(b: it does not compute .*; c: .*; d: .* and 2 more\)"
    ) as told:
        calibrate(everything, images(4), Sampling(), progress=False)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", [*CASES, *FINE])
def test_the_rest_is_pruned_rightly(name: str) -> None:
    """Refitting without removal gives the network itself; removed == masked; half of the filters go without error."""
    model, x = chain(CASES[name][0] if name in CASES else FINE[name]), images(30)
    with torch.no_grad():
        truth = copied(model).eval()(x)
    calibration = calibrate(model, x, Sampling(positions=20), progress=False)
    refitted, _ = prune_layers(model, calibration, {}, Method(refit=True), progress=False)
    with torch.no_grad():
        torch.testing.assert_close(refitted(x), truth, rtol=1e-3, atol=1e-3 * float(truth.abs().max()))
    sites = [site for site in calibration.sites if site.producer is not None]
    masked, removed = copied(model).eval(), copied(model).eval()
    for site in sites:
        with torch.no_grad():
            for part in (site.producer, f"n{site.producer}"):
                for parameter in masked.get_submodule(part).parameters():  # type: ignore[arg-type]
                    parameter[[1, 4]] = 0.0
        remove_filters(removed, (3, 8, 8), site.producer, [1, 4])  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(removed(x), masked(x), rtol=1e-5, atol=1e-5)
    pruned, reports = prune_layers(model, calibration, {s.reader: 3 for s in sites}, Method("exact"), progress=False)
    assert [report.producer for report in reports] == [site.producer for site in sites]
    with torch.no_grad():
        assert bool(torch.isfinite(pruned(x)).all())


def test_a_copy_of_computed_weights_follows_its_own_factors() -> None:
    """PyTorch refuses to copy weights that a hook has computed; the copy is independent and computes the same."""
    model = chain(CASES["weight norm, by hooks"][0])
    x = images(2)
    model(x)  # the weight is now the result of a computation with gradients
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    twin = copied(model)
    torch.testing.assert_close(twin(x), model(x))
    with torch.no_grad():
        twin.c.weight_g.mul_(2.0)  # type: ignore[union-attr, operator]
    assert not torch.allclose(twin(x), model(x))
