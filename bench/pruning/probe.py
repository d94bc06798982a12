"""What a layer computes, found by running it: whether a module is the plain convolution or batch norm it is called.

Selection, folding, reconstruction and removal all read and write ``weight``, ``bias`` and running statistics.  That is
right only where the layer's output is the plain formula of these tensors, so each candidate is run on random input and
compared with the formula; subclasses, hooks, masks and parametrisations that change the result do not pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EXTRA = 3  # positions along each side that the probe's output has, so that padding and inner ones are both seen
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
def convolution_fault(conv: nn.Conv2d) -> str | None:
    """Why ``conv`` cannot be treated as the convolution of its own weight and bias, or None where it can."""
    fault = _unowned(conv, ("weight", "bias"), ("weight", "bias"))
    if fault is not None:
        return fault
    if conv.groups != 1:
        return f"it has {conv.groups} groups"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return (
            f"its padding is {conv.padding if isinstance(conv.padding, str) else conv.padding_mode}, "
            "not zeros of a fixed size"
        )
    if conv.weight.is_meta:  # no values to compare: the class has to do
        return None
    sides = [
        d * (k - 1) + 1 + s * (_EXTRA - 1) for d, k, s in zip(conv.dilation, conv.kernel_size, conv.stride, strict=True)
    ]
    x = _random((2, conv.in_channels, *sides), conv.weight)
    weight, bias = conv.weight, conv.bias
    expected = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return _compare(conv, x, expected, "the convolution of its weight and bias")


@torch.no_grad()
def norm_fault(norm: nn.BatchNorm2d) -> str | None:
    """Why ``norm`` cannot be treated as a fixed scale and shift for each channel, or None where it can."""
    if not norm.affine or norm.weight is None or norm.bias is None:
        return "it is a norm without scale and shift"
    if norm.running_mean is None or norm.running_var is None:
        return "it is a norm without running statistics"
    fault = _unowned(norm, ("weight", "bias"), _NORM_TENSORS)
    if fault is not None or norm.weight.is_meta:
        return fault
    x = _random((2, norm.num_features, _EXTRA, _EXTRA), norm.weight)
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    return _compare(norm, x, expected, "the normalisation by its running statistics, scale and shift")


@torch.no_grad()
def passing_fault(module: nn.Module) -> str | None:
    """Why a module of a class that treats every channel by itself may not do so: a hook, or a later ``forward``."""
    if not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)):
        return None
    x = _random((2, 5, 7, 7), torch.zeros(()))  # channels of no network's own count
    return _compare(module, x, type(module).forward(module, x.clone()), f"what {type(module).__name__} does")


def _unowned(module: nn.Module, owned: tuple[str, ...], known: tuple[str, ...]) -> str | None:
    """Weights that are computed before each call (writing to them is lost), and tensors unknown to removal."""
    for name in owned:
        if getattr(module, name) is not None and name not in module._parameters:
            return f"its {name} is computed from other tensors (a mask, weight norm or another parametrisation)"
    others = [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in known]
    return f"it holds other tensors as well ({', '.join(others[:3])})" if others else None


def _random(shape: tuple[int, ...], like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like)


def _compare(module: nn.Module, x: Tensor, expected: Tensor, formula: str) -> str | None:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        found = module(x.clone())
    except Exception as error:  # the user's own forward may raise anything
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        return f"it does not run by itself ({reason})"
    finally:
        for part, training in modes:
            part.training = training
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return f"it does not compute {formula} (another shape)"
    scale = max(float(expected.abs().max()), torch.finfo(expected.dtype).tiny)
    difference = float((found - expected).abs().max()) / scale
    tolerance = 1e3 * torch.finfo(expected.dtype).eps  # of the same sum, added up in any order
    if not difference <= tolerance:
        return f"it does not compute {formula} (they differ by {difference:.2g} of the largest output)"
    return None
