"""Multiply-accumulates and parameters, counted twice by independent counters that must agree.

The conventions differ between papers and are a field of every record: CP counts convolutions only (``conv``), ThiNet
2 x (convolutions + fully connected) (``2x``), DCP MACs of both (``conv+fc``).  Bias, batch norm, activations and
pooling count nothing in any of them.  Works on the ``meta`` device: no weights, no data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from bench.errors import UserError

CONVENTIONS = ("conv", "conv+fc", "2x")

# what costs no multiply-accumulates by every convention above: elementwise, pooling, norms, shapes, indexing
_FREE = frozenset(
    [
        *("prelu", "_prelu_kernel", "elu", "elu_", "selu", "celu", "mish", "softplus", "log_sigmoid_forward", "logit"),
        *("erf", "std", "var", "var_mean", "norm", "linalg_vector_norm", "_weight_norm_interface", "new_empty"),
        *("avg_pool3d", "copy_", "fill_", "zero_"),
        "add",
        "add_",
        "sub",
        "mul",
        "mul_",
        "div",
        "neg",
        "relu",
        "relu_",
        "threshold",
        "hardtanh",
        "hardtanh_",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "silu",
        "silu_",
        "gelu",
        "leaky_relu",
        "tanh",
        "clamp",
        "clamp_min",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "pow",
        "abs",
        "sum",
        "mean",
        "max",
        "min",
        "amax",
        "amin",
        "argmax",
        "maximum",
        "minimum",
        "softmax",
        "_softmax",
        "_log_softmax",
        "where",
        "eq",
        "ne",
        "gt",
        "ge",
        "lt",
        "le",
        "logical_or",
        "logical_and",
        "bitwise_and",
        "bitwise_or",
        "max_pool2d_with_indices",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "_adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "mean.dim",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "cudnn_batch_norm",
        "batch_norm",
        "native_layer_norm",
        "native_group_norm",
        "native_dropout",
        "dropout",
        "bernoulli_",
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "t",
        "transpose",
        "permute",
        "expand",
        "squeeze",
        "unsqueeze",
        "slice",
        "select",
        "index",
        "index_select",
        "cat",
        "stack",
        "split",
        "split_with_sizes",
        "chunk",
        "clone",
        "detach",
        "alias",
        "contiguous",
        "copy_",
        "fill_",
        "zero_",
        "zeros",
        "zeros_like",
        "ones",
        "ones_like",
        "empty",
        "empty_like",
        "new_zeros",
        "full",
        "arange",
        "constant_pad_nd",
        "pad",
        "reflection_pad2d",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "_to_copy",
        "lift_fresh",
        "unbind",
        "repeat",
        "gather",
        "topk",
        "sort",
        "scatter",
        "scatter_",
        "empty_strided",
        "linalg_vector_norm",
    ]
)


class _UnknownOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers operations that neither cost nothing nor have a formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        if packet not in flop_registry and packet.__name__ not in _FREE:
            self.names.add(str(packet.__name__))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Macs:
    """MACs of one input: by convolution, by fully connected layer (module names), and the parameter count."""

    conv: dict[str, int]
    fc: dict[str, int]
    params: int

    def total(self, convention: str) -> int:
        """The sum by one of ``CONVENTIONS``.  Raises :class:`UserError` for another."""
        if convention not in CONVENTIONS:
            raise UserError(f"unknown convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")
        conv, fc = sum(self.conv.values()), sum(self.fc.values())
        return {"conv": conv, "conv+fc": conv + fc, "2x": 2 * (conv + fc)}[convention]


def count(model: nn.Module, input_shape: Sequence[int]) -> Macs:
    """MACs of ``model`` for one input of shape (C, H, W), on the device its parameters are on.

    Raises :class:`UserError` for an operation without a known cost, and where the counters disagree.
    """
    parameters = list(model.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    example = torch.zeros(1, *input_shape, device=device)
    layers: dict[str, tuple[nn.Module, int]] = {}
    handles = []

    def hook(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            layers[name] = (module, layers.get(name, (module, 0))[1] + _layer_macs(module, inputs[0], output))

        return note

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)):
            handles.append(module.register_forward_hook(hook(name)))
    training = model.training
    unknown = _UnknownOps()
    try:
        model.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter, unknown:
            model(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if unknown.names:
        raise UserError(
            f"no MAC count is known for the operation {', '.join(sorted(unknown.names))}: add its cost to "
            "bench.measure.macs"
        )
    conv = {name: macs for name, (module, macs) in layers.items() if not isinstance(module, nn.Linear)}
    fc = {name: macs for name, (module, macs) in layers.items() if isinstance(module, nn.Linear)}
    seen, traced = sum(conv.values()) + sum(fc.values()), counter.get_total_flops()
    if 2 * seen != traced:
        raise UserError(
            f"the two MAC counters disagree ({seen:,} by layers, {traced // 2:,} by operations): the network computes "
            "convolutions or products outside of its layers; make them modules"
        )
    return Macs(conv, fc, sum(p.numel() for p in model.parameters()))


def _layer_macs(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """MACs of one layer from its shapes: outputs times the products behind each."""
    if isinstance(module, nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, nn.ConvTranspose2d):
        return x.numel() * module.out_channels // module.groups * math.prod(module.kernel_size)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return y.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
