"""How masks of channels flow through a network: what each layer reads and writes for each image.

A mask passes unchanged through everything that treats every channel by itself and keeps zeros (ReLU, pooling, padding),
through dropout and identity; a residual addition has the union of both; flattening keeps it; behind everything else all
channels are active.  Masks may be probabilities: the union of independent a and b is a + b - ab, which for 0 and 1 is
the logical or.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bench.gating.layer import GatedConv2d
from bench.pruning.graph import trace

# operations that treat every channel by itself and leave a channel of zeros as it is
# fmt: off
ZERO_PRESERVING_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Tanh, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d,
)
ZERO_PRESERVING_FUNCTIONS = (
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.silu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.tanh,
)
# fmt: on
ZERO_PRESERVING_METHODS = ("relu", "tanh", "contiguous")
PASSING_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d)


def module_of(model: nn.Module, node: fx.Node | None) -> nn.Module | None:
    """The module that the node calls, or None."""
    return model.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def keeps_zeros(model: nn.Module, node: fx.Node) -> bool:
    """Whether the node treats each channel by itself and gives zeros for zeros, in evaluation mode."""
    if node.op == "call_module":
        return isinstance(module_of(model, node), (*ZERO_PRESERVING_MODULES, *PASSING_MODULES))
    if node.op == "call_function":
        return node.target in ZERO_PRESERVING_FUNCTIONS
    return node.op == "call_method" and node.target in ZERO_PRESERVING_METHODS


def is_addition(node: fx.Node) -> bool:
    """An addition of two tensors (a scalar would not keep zeros)."""
    known = (node.op == "call_function" and node.target in (operator.add, torch.add)) or (
        node.op == "call_method" and node.target == "add"
    )
    return known and len(node.all_input_nodes) == len(node.args) == 2 and not node.kwargs


def is_flatten(model: nn.Module, node: fx.Node) -> bool:
    """A flattening of each image's features, channels first."""
    if node.op == "call_module":
        module = module_of(model, node)
        return isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1
    flattens = (node.op == "call_function" and node.target is torch.flatten) or (
        node.op == "call_method" and node.target == "flatten"
    )
    return flattens and node.args[1:] == (1,) and not node.kwargs


class _Shapes(fx.Interpreter):
    """Remembers the shape of every node's output."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.found: dict[str, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.name] = value.shape
        return value


class Flow:
    """The network as a graph with the shape of every value for one image, on the device of its parameters.

    ``input_shape`` is (C, H, W).  Raises :class:`UserError` for a network that torch.fx cannot trace.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        self.model, self.graph = model, trace(model)
        parameter = next(model.parameters())
        training = model.training
        shapes = _Shapes(model.eval(), self.graph)
        with torch.no_grad():
            shapes.run(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
        model.train(training)
        self.shapes = shapes.found
        self.nodes = list(self.graph.nodes)

    def layers(self) -> list[fx.Node]:
        """The calls of convolutions and fully connected layers, in forward order."""
        return [node for node in self.nodes if isinstance(module_of(self.model, node), (nn.Conv2d, nn.Linear))]

    def positions(self, node: fx.Node) -> int:
        """H x W of the node's output (1 for vectors)."""
        return int(self.shapes[node.name][2:].numel())

    def channels(self, node: fx.Node) -> int:
        """Channels of the node's output."""
        return int(self.shapes[node.name][1])

    def masks(
        self, winners: Mapping[str, Tensor], lost: tuple[type[nn.Module], ...] = ()
    ) -> dict[fx.Node, Tensor | None]:
        """The mask (B x C, float64; None: all active) of every node's output.

        ``winners`` gives those of the gated layers by name; modules of the types ``lost`` lose the mask.
        """
        found: dict[fx.Node, Tensor | None] = {}
        for node in self.nodes:
            sources = [found[source] for source in node.all_input_nodes]
            if isinstance(module_of(self.model, node), GatedConv2d):
                found[node] = winners[str(node.target)].double()
            elif isinstance(module_of(self.model, node), lost):
                found[node] = None
            elif len(sources) == 1 and (keeps_zeros(self.model, node) or is_flatten(self.model, node)):
                found[node] = sources[0]
            elif is_addition(node) and sources[0] is not None and sources[1] is not None:
                found[node] = sources[0] + sources[1] - sources[0] * sources[1]
            else:
                found[node] = None
        return found
