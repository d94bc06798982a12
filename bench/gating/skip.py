"""Runs a gated network by computing only the winners: smaller dense convolutions, not multiplications by zero.

For one image the active filters and the active input channels of a layer are gathered into a smaller convolution.  Between
layers only the active channels exist (:class:`Compact`).  In a batch, images with equal masks are computed together; where
masks differ the group splits.  What cannot be said of active channels alone (a fully connected layer, an unknown
operation) gets the whole tensor.  Works on CPU and CUDA, in any precision; for evaluation only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.gating.flow import PASSING_MODULES, is_addition, keeps_zeros, module_of
from bench.gating.layer import GatedConv2d
from bench.gating.winners import winners
from bench.pruning.graph import trace

# whose outputs are never negative, so that the subsampler needs no absolute value
_NON_NEGATIVE = (nn.ReLU, nn.ReLU6)


class Compact:
    """The active channels of a group of images: ``values`` B x k x H x W are the channels ``index`` (k) of ``channels``."""

    __slots__ = ("channels", "index", "values")

    def __init__(self, values: Tensor, index: Tensor, channels: int) -> None:
        self.values, self.index, self.channels = values, index, channels

    def dense(self) -> Tensor:
        """B x channels x H x W, the inactive ones zero."""
        batch, _, height, width = self.values.shape
        whole = self.values.new_zeros(batch, self.channels, height, width)
        return whole.index_copy_(1, self.index, self.values)

    def rows(self, chosen: Tensor) -> Compact:
        """The images ``chosen`` of the group."""
        return Compact(self.values.index_select(0, chosen), self.index, self.channels)


Value = Tensor | Compact


def dense(value: Any) -> Any:
    """The whole tensor of a value."""
    return value.dense() if isinstance(value, Compact) else value


class SkippedConv(nn.Module):
    """One gated layer: the batch norm folded into the filters, the gate's phi and rho as they are.

    ``rectify`` applies a ReLU at once; ``non_negative`` says that the input is never negative.
    """

    weight: Tensor
    bias: Tensor
    behind: Tensor
    phi: Tensor
    rho: Tensor

    def __init__(self, layer: GatedConv2d, rectify: bool = False, non_negative: bool = False) -> None:
        super().__init__()
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise UserError("only zero padding of a fixed size can be skipped")
        inverse = torch.rsqrt(layer.running_var.detach() + layer.eps)
        shift = -layer.running_mean.detach() * inverse
        gated = layer.options.shift == "gated"
        self.register_buffer("weight", (layer.weight.detach() * inverse[:, None, None, None]).contiguous())
        self.register_buffer("bias", shift + layer.beta.detach() if gated else shift)
        self.register_buffer("behind", layer.beta.detach().clone())
        # by input channel, so that active channels are rows
        self.register_buffer("phi", layer.gate.weight.detach().t().contiguous())
        self.register_buffer("rho", layer.gate.bias.detach().clone())
        self.shape = (layer.stride, layer.padding, layer.dilation)
        self.channels, self.inputs, self.k = layer.out_channels, layer.in_channels, layer.k
        self.exact, self.gated = layer.options.ties == "exact", gated
        self.rectified_gate, self.rectify = layer.gate.rectified, rectify
        self.last: Tensor | None = None
        self.absolute = layer.options.subsample == "l1" and not non_negative

    def saliency(self, x: Value) -> Tensor:
        """g, B x C_out, from the channels that exist."""
        values, phi = (x.values, self.phi.index_select(0, x.index)) if isinstance(x, Compact) else (x, self.phi)
        # a sum, and the mean's division in the product: one operation less
        s = (values.abs() if self.absolute else values).sum((2, 3))
        g = torch.addmm(self.rho, s, phi, alpha=1.0 / (values.shape[2] * values.shape[3]))
        return g.relu_() if self.rectified_gate else g

    def chosen(self, g: Tensor) -> tuple[Tensor | None, Tensor]:
        """The winners of one image (g: 1 x C_out), None for all, and their saliencies (1 x k)."""
        k = self.k
        if k == self.channels:
            return None, g
        if not self.exact:
            index = (g[0] > g[0].topk(k + 1).values[-1]).nonzero()[:, 0]
            return index, g.index_select(1, index)
        if g.is_cpu:
            # several times faster than a stable sort, and the same set unless there is a tie at the threshold
            values, places = g.topk(k + 1)
            if values[0, k - 1].item() != values[0, k].item():
                return places[0, :k], values[:, :k]
        index = winners(g, k)[0]
        return index, g.index_select(1, index)

    def gather(self, x: Value, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """The filters ``index`` at the input channels of ``x``, and their biases."""
        weight, bias = self.weight, self.bias
        if index is not None:
            weight, bias = weight.index_select(0, index), bias.index_select(0, index)
        if isinstance(x, Compact):
            weight = weight.index_select(1, x.index)
        return weight, bias

    def compute(self, x: Value, index: Tensor | None, pi: Tensor) -> Value:
        """The layer's outputs ``index`` times ``pi`` (B x k) for images that share them: B x k x H' x W'."""
        weight, bias = self.gather(x, index)
        y = F.conv2d(x.values if isinstance(x, Compact) else x, weight, bias, *self.shape)  # type: ignore[arg-type]
        y.mul_(pi[:, :, None, None])
        if not self.gated:
            y.add_((self.behind if index is None else self.behind.index_select(0, index))[:, None, None])
        if self.rectify:
            y.relu_()
        return y if index is None else Compact(y, index, self.channels)

    def forward(self, x: Value) -> Value:
        """One image; ``last`` keeps its winners (None: all)."""
        self.last, pi = self.chosen(self.saliency(x))
        return self.compute(x, self.last, pi)

    def groups(self, x: Value) -> list[tuple[Tensor, Value]]:
        """A batch: for each set of images with equal winners their rows and their outputs."""
        g = self.saliency(x)
        if self.k == self.channels:
            return [(torch.arange(len(g), device=g.device), self.compute(x, None, g))]
        if self.exact:
            masks = winners(g, self.k).sort(dim=1).values
        else:
            masks = (g > g.topk(self.k + 1, dim=1).values[:, -1:]).long()
        unique, which = masks.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
        found = []
        for number, mask in enumerate(unique):
            rows = (which == number).nonzero()[:, 0]
            index = mask if self.exact else mask.nonzero()[:, 0]
            pi = g.index_select(0, rows).index_select(1, index)
            found.append((rows, self.compute(take(x, rows), index, pi)))
        return found


class PlainConv(nn.Module):
    """A convolution that is not gated: all its filters, but only the input channels that are active."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Value) -> Tensor:
        """B x C_out x H' x W'."""
        conv = self.conv
        if isinstance(x, Tensor) or conv.groups != 1 or type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
            return conv(dense(x))  # type: ignore[no-any-return]
        weight = conv.weight.index_select(1, x.index)
        return F.conv2d(x.values, weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def take(value: Any, rows: Tensor) -> Any:
    """The images ``rows`` of a value; what is no tensor of images stays as it is."""
    if isinstance(value, Compact):
        return value.rows(rows)
    return value.index_select(0, rows) if isinstance(value, Tensor) and value.ndim else value


def add(a: Value, b: Value) -> Value:
    """A residual addition: the union of both sets of channels."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a + b
    if isinstance(a, Tensor):
        a, b = b, a
    assert isinstance(a, Compact)
    if isinstance(b, Tensor):
        return b.index_add(1, a.index, a.values)
    place = torch.zeros(a.channels, dtype=torch.long, device=a.index.device)
    place[a.index] = 1
    place[b.index] = 1
    union = place.nonzero()[:, 0]
    place[union] = torch.arange(len(union), device=union.device)
    batch, _, height, width = a.values.shape
    whole = a.values.new_zeros(batch, len(union), height, width)
    whole.index_copy_(1, place[a.index], a.values).index_add_(1, place[b.index], b.values)
    return Compact(whole, union, a.channels)


Instruction = tuple[Callable[..., Any], int, tuple[int, ...], bool]


class SkippedNetwork(nn.Module):
    """The gated network ``model`` (in evaluation mode, copied by reference) as a program that skips.

    Input N x C x H x W, output as the network's.  Raises :class:`UserError` for a network that cannot be traced or has no
    gated layer.
    """

    slots: int
    output: int

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        graph = trace(model)
        if not any(isinstance(module, GatedConv2d) for module in model.modules()):
            raise UserError("the network has no gated layer: convert it first")
        self.parts = nn.ModuleList()
        self.program: list[Instruction] = []
        self.layers: dict[str, SkippedConv] = {}
        _compile(model.eval(), graph, self)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W; one image at a time is fastest, batches are grouped by equal masks."""
        if len(x) == 1:
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
    """Fills the program: one instruction a node, aliases and fused ReLUs left out, slots used again when they are free."""
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
    call = _call(module, node)
    if keeps_zeros(model, node) and len(node.all_input_nodes) == 1:
        return lambda x: Compact(call(x.values), x.index, x.channels) if isinstance(x, Compact) else call(x), False
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
