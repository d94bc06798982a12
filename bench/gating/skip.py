"""Runs a gated network by computing only the winners: smaller dense convolutions, not multiplications by zero.

For one image the active filters and the active input channels of a layer are gathered into a smaller convolution.
Between layers only the active channels exist (:class:`Compact`).  In a batch on the CPU, images with equal masks are
computed together; where masks differ the group splits.  On a GPU a batch, of one image too, stays whole, with filters
gathered for each image (:mod:`bench.gating.batched`): to split it, or to ask how many have won, is to wait for the
device at each layer.  What cannot be said of active channels alone (a fully connected layer, an unknown operation) gets
the whole tensor.  Works in any precision; for evaluation only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.gating.compact import Compact, add, dense, take
from bench.gating.flow import PASSING_MODULES, is_addition, keeps_zeros, module_of
from bench.gating.layer import GatedConv2d
from bench.gating.skipped import PlainConv, SkippedConv
from bench.pruning.functional import out_of_place
from bench.pruning.graph import trace

# whose outputs are never negative, so that the subsampler needs no absolute value
_NON_NEGATIVE = (nn.ReLU, nn.ReLU6)

Instruction = tuple[Callable[..., Any], int, tuple[int, ...], bool]


class SkippedNetwork(nn.Module):
    """The gated network ``model`` (in evaluation mode, copied by reference) as a program that skips.

    Input N x C x H x W, output as the network's.  ``together``: whether a batch stays whole (None: on a GPU).  Raises
    :class:`UserError` for a network that cannot be traced or has no gated layer.
    """

    slots: int
    output: int

    def __init__(self, model: nn.Module, together: bool | None = None) -> None:
        super().__init__()
        self.together = together
        graph = trace(model)
        if not any(isinstance(module, GatedConv2d) for module in model.modules()):
            raise UserError("the network has no gated layer: convert it first")
        self.parts = nn.ModuleList()
        self.program: list[Instruction] = []
        self.layers: dict[str, SkippedConv] = {}
        _compile(model.eval(), graph, self)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W; on the CPU one image at a time is fastest."""
        whole = x.is_cuda if self.together is None else self.together
        for layer in self.layers.values():
            layer.whole = whole
        if not whole:
            x = x.contiguous(memory_format=torch.channels_last)
        if len(x) == 1 or whole:
            values: list[Any] = [None] * self.slots
            values[0] = x
            for run, target, sources, _ in self.program:
                values[target] = run(*[values[source] for source in sources])
            return dense(values[self.output])  # type: ignore[no-any-return]
        rows = torch.arange(len(x), device=x.device)
        finished: list[tuple[Tensor, Tensor]] = []
        waiting = [(0, [x, *[None] * (self.slots - 1)], rows)]
        while waiting:
            self._advance(*waiting.pop(), waiting, finished)
        result = finished[0][1].new_empty(len(x), *finished[0][1].shape[1:])
        for chosen, value in finished:
            result[chosen] = value
        return result

    def _advance(
        self, position: int, values: list[Any], rows: Tensor, waiting: list[Any], finished: list[tuple[Tensor, Tensor]]
    ) -> None:
        """Runs a group to its end, or to the layer where it splits."""
        for place in range(position, len(self.program)):
            run, target, sources, splits = self.program[place]
            arguments = [values[source] for source in sources]
            if not splits or len(rows) == 1:
                values[target] = run(*arguments)
                continue
            groups = run.__self__.groups(*arguments)  # type: ignore[attr-defined]
            if len(groups) > 1:
                for chosen, value in groups:
                    part = [take(v, chosen) for v in values]
                    part[target] = value
                    waiting.append((place + 1, part, rows[chosen]))
                return
            values[target] = groups[0][1]
        finished.append((rows, dense(values[self.output])))


def _compile(model: nn.Module, graph: fx.Graph, network: SkippedNetwork) -> None:
    """Fills the program: one instruction a node, aliases and fused ReLUs left out, slots used again when free."""
    nodes = list(graph.nodes)
    alias: dict[fx.Node, fx.Node] = {}

    def origin(node: fx.Node) -> fx.Node:
        while node in alias:
            node = alias[node]
        return node

    def users(node: fx.Node) -> list[fx.Node]:
        found = []
        for user in node.users:
            found += users(user) if user in alias else [user]
        return found

    for node in nodes:
        if node.op == "call_module" and isinstance(module_of(model, node), PASSING_MODULES):
            alias[node] = node.all_input_nodes[0]
    rectified = set()
    for node in nodes:
        if isinstance(module_of(model, node), GatedConv2d):
            behind = users(node)
            if len(behind) == 1 and isinstance(module_of(model, behind[0]), nn.ReLU):
                rectified.add(node)
                alias[behind[0]] = node
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[origin(source)] = place
    slot: dict[fx.Node, int] = {}
    free: list[int] = []
    count = 0
    for place, node in enumerate(nodes):
        if node in alias:
            continue
        if node.op == "output":
            network.output = slot[origin(node.all_input_nodes[0])]
            continue
        sources = tuple(slot[origin(source)] for source in node.all_input_nodes)
        if node.op == "placeholder" and node.all_input_nodes == [] and count:
            raise UserError("a network with several inputs cannot be skipped")
        for source in dict.fromkeys(origin(source) for source in node.all_input_nodes):
            if last[source] == place:
                free.append(slot[source])
        if free:
            slot[node] = free.pop()
        else:
            slot[node], count = count, count + 1
        if node.op != "placeholder":
            run, splits = _instruction(model, node, network, node in rectified, _non_negative(model, node, origin))
            network.program.append((run, slot[node], sources, splits))
    network.slots = count


def _non_negative(model: nn.Module, node: fx.Node, origin: Callable[[fx.Node], fx.Node]) -> bool:
    """Whether what ``node`` reads comes out of a ReLU, perhaps pooled or padded since."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        module = module_of(model, node)
        if isinstance(module, _NON_NEGATIVE) or node.target in (F.relu, torch.relu, "relu"):
            return True
        if not isinstance(module, (*PASSING_MODULES, nn.MaxPool2d, nn.AvgPool2d, nn.ZeroPad2d)):
            return False
    return False


def _instruction(
    model: nn.Module, node: fx.Node, network: SkippedNetwork, rectify: bool, non_negative: bool
) -> tuple[Callable[..., Any], bool]:
    """The function behind a node, and whether it may split a group."""
    module = module_of(model, node)
    if isinstance(module, GatedConv2d):
        layer = SkippedConv(module, rectify, non_negative)
        network.parts.append(layer)
        network.layers[str(node.target)] = layer
        return layer.forward, True
    if isinstance(module, nn.Conv2d):
        plain = PlainConv(module)
        network.parts.append(plain)
        return plain.forward, False
    if module is not None:
        network.parts.append(module)
    if is_addition(node):
        return add, False
    # values are used again, so nothing may change them
    call = _call(None if module is None else out_of_place(module), node)
    if keeps_zeros(model, node) and len(node.all_input_nodes) == 1:
        return lambda x: x.holding(call(x.values)) if isinstance(x, Compact) else call(x), False
    return lambda *values: call(*[dense(value) for value in values]), False


def _call(module: nn.Module | None, node: fx.Node) -> Callable[..., Any]:
    """The node as a function of the values of ``node.all_input_nodes``."""
    inputs = node.all_input_nodes

    def arguments(values: tuple[Any, ...]) -> tuple[Any, Any]:
        known = dict(zip(inputs, values, strict=True))
        return fx.node.map_arg(node.args, known.__getitem__), fx.node.map_arg(node.kwargs, known.__getitem__)

    plain = node.args == tuple(inputs) and not node.kwargs
    if module is not None and plain:
        return module.forward

    def run(*values: Any) -> Any:
        args, kwargs = arguments(values)
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        raise UserError(f"a node of kind {node.op} cannot be skipped")

    return run
