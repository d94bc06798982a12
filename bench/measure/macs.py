"""Multiply-accumulates and parameters, counted twice by independent counters that must agree.

The conventions differ between papers and are a field of every record: CP counts convolutions only (``conv``), ThiNet
2 x (convolutions + fully connected) (``2x``), DCP MACs of both (``conv+fc``).  Bias, batch norm, activations and
pooling count nothing in any of them.  Works on the ``meta`` device: no weights, no data.

One counter goes by layers: those of torch by the formulas below, every other module by its own method
``macs(input_shape, output_shape) -> int``, which stands for all that is in it.  The other goes by operations: those of
``torch.utils.flop_counter``, and those in ``OPERATIONS``, where a script may enter more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from bench.errors import UserError

CONVENTIONS = ("conv", "conv+fc", "2x")
# of (layer, shape of its input, shape of its output)
Formula = Callable[[Any, torch.Size, torch.Size], int]

# the MACs of operations for which torch has no formula: name to function of (arguments, output)
OPERATIONS: dict[str, Callable[[Sequence[Any], Any], int]] = {
    "mv": lambda arguments, output: arguments[0].numel(),
    "addmv": lambda arguments, output: arguments[1].numel(),
    "dot": lambda arguments, output: arguments[0].numel(),
}

# operations that cost no multiply-accumulates by every convention above, in place (with a "_" behind) or not
_FREE_GROUPS = (
    # arithmetic
    "abs add argmax bitwise_and bitwise_or clamp clamp_min div eq erf exp ge gt le log logical_and logical_or "
    "logit lt maximum minimum mul ne neg pow rsqrt sqrt sub where",
    # activations
    "_log_softmax _prelu_kernel _softmax celu elu gelu hardsigmoid hardswish hardtanh leaky_relu "
    "log_sigmoid_forward mish prelu relu selu sigmoid silu softmax softplus tanh threshold",
    # sums and statistics
    "amax amin linalg_vector_norm max mean min norm std sum var var_mean",
    # norms and dropout
    "_native_batch_norm_legit _native_batch_norm_legit_no_training _weight_norm_interface batch_norm "
    "bernoulli cudnn_batch_norm dropout native_batch_norm native_dropout native_group_norm native_layer_norm",
    # pooling, padding, resizing
    "_adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d avg_pool3d constant_pad_nd "
    "max_pool2d_with_indices pad reflection_pad2d upsample_bilinear2d upsample_nearest2d",
    # shapes
    "_unsafe_view alias chunk contiguous detach expand flatten permute reshape select slice split "
    "split_with_sizes squeeze t transpose unbind unsqueeze view",
    # indexing and copies
    "_to_copy cat clone copy gather index index_select lift_fresh repeat scatter sort stack topk",
    # new tensors
    "arange empty empty_like empty_strided fill full new_empty new_zeros ones ones_like zero zeros zeros_like",
)
_FREE = frozenset(name for group in _FREE_GROUPS for name in group.split())


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations in ``OPERATIONS``, and remembers those that neither cost nothing nor have a formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = str(func._overloadpacket.__name__)
        if name in OPERATIONS:
            self.macs += OPERATIONS[name](args, output)
        elif func._overloadpacket not in flop_registry and name.removesuffix("_") not in _FREE:
            self.unknown.add(name)
        return output


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

    A module that declares its MACs is a convolution where it gives maps and a fully connected layer where it gives
    vectors.  Raises :class:`UserError` for an operation without a known cost, and where the counters disagree.
    """
    parameters = list(model.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    example = torch.zeros(1, *input_shape, device=device)
    conv: dict[str, int] = {}
    fc: dict[str, int] = {}
    handles = []

    def hook(name: str, formula: Formula) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            is_fc = isinstance(module, nn.Linear) or (_declares(module) and output.ndim < 3)
            column = fc if is_fc else conv
            column[name] = column.get(name, 0) + formula(module, inputs[0].shape, output.shape)

        return note

    for name, module, formula in _layers(model):
        handles.append(module.register_forward_hook(hook(name, formula)))
    training = model.training
    operations = _Operations()
    try:
        model.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter, operations:
            model(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if operations.unknown:
        raise UserError(
            f"no MAC count is known for the operation {', '.join(sorted(operations.unknown))}: add its cost to "
            "bench.measure.macs.OPERATIONS"
        )
    seen, traced = sum(conv.values()) + sum(fc.values()), counter.get_total_flops() // 2 + operations.macs
    if seen != traced:
        raise UserError(
            f"the two MAC counters disagree ({seen:,} by layers, {traced:,} by operations): the network computes "
            "convolutions or products outside of its layers; make them modules, or give the module that computes them "
            "a method macs(input_shape, output_shape)"
        )
    return Macs(conv, fc, sum(p.numel() for p in model.parameters()))


def _linear(layer: nn.Linear, x: torch.Size, y: torch.Size) -> int:
    """One product for each input of each output."""
    return y.numel() * layer.in_features


def _convolution(layer: nn.Conv2d, x: torch.Size, y: torch.Size) -> int:
    """One product for each place of the kernel and each input channel of its group, for each output."""
    return y.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)


def _transposed(layer: nn.ConvTranspose2d, x: torch.Size, y: torch.Size) -> int:
    """One product for each place of the kernel and each output channel of its group, for each input."""
    return x.numel() * layer.out_channels // layer.groups * math.prod(layer.kernel_size)


_LAYERS: dict[type[nn.Module], Formula] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose2d: _transposed,
}


def _declares(module: nn.Module) -> bool:
    return callable(getattr(type(module), "macs", None))


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Formula]]:
    """The modules that cost something, by name, with their formulas; nothing from inside one that declares its own."""
    declaring: list[str] = []
    for name, module in model.named_modules():
        if any(other == "" or name.startswith(f"{other}.") for other in declaring):
            continue
        if _declares(module):
            declaring.append(name)
            yield name, module, lambda module, x, y: int(module.macs(x, y))
            continue
        formula = next((formula for kind, formula in _LAYERS.items() if isinstance(module, kind)), None)
        if formula is not None:
            yield name, module, formula
