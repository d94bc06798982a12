"""Folding is compared with the modules' own outputs; unfolding must give back what was asked for."""

import copy

import pytest
import torch
from torch import nn

from bench.pruning.fold import folded, unfold


def pair(bias: bool, norm: str | None, seed: int = 0) -> tuple[nn.Conv2d, nn.BatchNorm2d | None]:
    """A convolution and, by ``norm``, a batch norm with usual, negative, zero or no scales."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 6, 3, padding=1, bias=bias)
    if norm is None:
        return conv, None
    bn = nn.BatchNorm2d(6, eps=1e-3).eval()
    with torch.no_grad():
        assert bn.running_mean is not None
        assert bn.running_var is not None
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.2, 3.0)
        bn.bias.normal_()
        bn.weight.uniform_(0.5, 2.0)
        if norm in ("negative", "zero"):
            bn.weight[::2] *= -1.0
        if norm == "zero":
            bn.weight[1], bn.weight[2], bn.weight[3] = 0.0, 1e-9, -1e-8
    return conv, bn


def module_output(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = conv(x)
        return y if norm is None else norm.eval()(y)  # type: ignore[no-any-return]


CASES = [(bias, norm) for bias in (False, True) for norm in (None, "usual", "negative", "zero")]


@pytest.mark.parametrize(("bias", "norm"), CASES)
def test_folded_map_equals_the_modules(bias: bool, norm: str | None) -> None:
    conv, bn = pair(bias, norm)
    x = torch.randn(2, 3, 5, 5)
    weight, shift = folded(conv, bn)
    expected = module_output(conv, bn, x)
    torch.testing.assert_close(
        nn.functional.conv2d(x.double(), weight, shift, padding=1).float(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("bias", "norm"), CASES)
def test_unfolded_modules_compute_any_map_asked_for(bias: bool, norm: str | None) -> None:
    """Also where a scale is zero: the map asked for is not zero there, and the modules must reach it."""
    conv, bn = pair(bias, norm)
    before = None if bn is None else copy.deepcopy(bn.state_dict())
    weight, shift = torch.randn(6, 3, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    unfold(conv, bn, weight, shift)
    x = torch.randn(2, 3, 5, 5)
    expected = nn.functional.conv2d(x.double(), weight, shift, padding=1).float()
    torch.testing.assert_close(module_output(conv, bn, x), expected, rtol=1e-5, atol=1e-5)
    if bn is not None and before is not None:
        for key in ("running_mean", "running_var"):
            assert torch.equal(bn.state_dict()[key], before[key])


@pytest.mark.parametrize(("bias", "norm"), CASES)
def test_round_trip_changes_no_output(bias: bool, norm: str | None) -> None:
    conv, bn = pair(bias, norm)
    x = torch.randn(2, 3, 5, 5)
    before = module_output(conv, bn, x)
    unfold(conv, bn, *folded(conv, bn))
    torch.testing.assert_close(module_output(conv, bn, x), before, rtol=1e-5, atol=1e-5)


def test_scales_that_are_usable_stay() -> None:
    """The filters carry the change: a usable scale, negative or not, is the one fine-tuning started with."""
    conv, bn = pair(False, "negative")
    assert bn is not None
    scales = bn.weight.detach().clone()
    unfold(conv, bn, torch.randn(6, 3, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64))
    assert torch.equal(bn.weight, scales)


def test_parameters_stay_trainable() -> None:
    """A bias that had to be added trains like the rest, and the optimizer can be built from the module."""
    conv, _ = pair(False, None)
    unfold(conv, None, torch.randn(6, 3, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64))
    assert conv.bias is not None
    assert conv.bias.requires_grad
    assert conv.bias.dtype == conv.weight.dtype
    assert {name for name, _ in conv.named_parameters()} == {"weight", "bias"}


def test_folding_changes_nothing_in_the_modules() -> None:
    conv, bn = pair(True, "usual")
    assert bn is not None
    before = copy.deepcopy((conv.state_dict(), bn.state_dict()))
    weight, shift = folded(conv, bn)
    weight.zero_()
    shift.zero_()
    for old, new in zip(before, (conv.state_dict(), bn.state_dict()), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    weight, shift = folded(conv.double(), None)
    assert weight.dtype == shift.dtype == torch.float64
