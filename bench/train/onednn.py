"""A fault of oneDNN that training must keep clear of.

The weights' gradient of a strided 1x1 convolution of channels-last images writes past its workspace where there are
fewer input channels than a vector holds (16 with AVX-512, 8 with AVX2): the process dies, hangs, or goes on with wrong
gradients (https://github.com/uxlfoundation/oneDNN/issues/6035, seen here with torch 2.14.1).  Narrow and pruned ResNets
have such shortcuts.  Channels-last is otherwise the faster layout on CPUs, so only these convolutions leave it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_VECTOR = 16


@contextlib.contextmanager
def spared(model: nn.Module) -> Iterator[None]:
    """Within, the convolutions of ``model`` that the fault can reach compute on contiguous tensors; equal values."""
    hooks = [module.register_forward_pre_hook(_contiguous) for module in model.modules() if _in_reach(module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _in_reach(module: nn.Module) -> bool:
    """Whether ``module`` is a strided 1x1 convolution of few channels."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < _VECTOR
    )


def _contiguous(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs, and the module's weight, out of the channels-last layout."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    # a 1x1 filter counts as contiguous in both layouts: only a copy has the strides of the ordinary one
    if weight.stride() != weight.new_empty(weight.shape).stride():
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)
