"""Mixed precision: fp16 with scaled losses on a GPU, bf16 on a processor, which needs no scaling.

Weights, losses, batch norms' statistics, the optimiser, and modules that say ``full_precision = True`` stay in fp32, in
which networks are evaluated too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from bench.errors import UserError


class Bf16OptimWrapper(OptimWrapper):  # type: ignore[misc]
    """The forward pass under torch's bf16 autocast of the processor; mmengine's own wrapper asks for a GPU."""

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Within, convolutions and linear layers compute in bf16."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield


@contextlib.contextmanager
def full_where_asked(model: nn.Module) -> Iterator[None]:
    """Within, the modules of ``model`` with ``full_precision`` compute in fp32 under any autocast."""
    modules = [module for module in model.modules() if getattr(module, "full_precision", False)]
    for module in modules:
        module.forward = partial(_in_full, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _in_full(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def optim_wrapper(amp: bool, device: str) -> dict[str, Any]:
    """What mmengine's Runner builds its optimiser's wrapper from, without the optimiser.

    Raises :class:`UserError` where the processor has no instructions for bf16: there it would be slower than fp32.
    """
    if not amp:
        return dict(type="OptimWrapper")
    if device.startswith("cuda"):
        return dict(type="AmpOptimWrapper")
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise UserError("this processor has no bf16: leave out --amp")
    return dict(type=Bf16OptimWrapper)
