"""Where a network can be pruned: its convolutions as readers of channels, found in the torch.fx graph.

CP and ThiNet judge the filters of one layer by what the *next* layer makes of them, so the unit of pruning is a
:class:`Site`: a reader (the convolution whose input channels are selected and whose weights are rebuilt) and, where the
channels belong to one convolution alone, the producer that loses the filters.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.pruning.functional import InPlaceProxy, functionalise
from bench.pruning.probe import convolution_fault, norm_fault, passing_fault
from bench.pruning.surgery import SampledConv2d

# operations that treat every channel by itself and keep their order
# fmt: off
_CHANNELWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.ZeroPad2d,
)
_CHANNELWISE_FUNCTIONS = (F.relu, F.relu6, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout, torch.relu)
_CHANNELWISE_METHODS = ("relu", "contiguous")
_OTHER_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm,
)
# fmt: on


@dataclass(frozen=True)
class Site:
    """One selection: the convolution ``reader`` and the convolution ``producer`` of its input channels.

    ``producer`` is None where the input is shared (a residual stream): such a reader can only get a channel sampler.
    ``batch_norm`` is the batch norm right behind the reader.  ``shortcut`` is the graph node added to the reader's
    response at the end of a residual branch; ``branch_end`` the reader at the end of the branch that holds this one.
    ``rectified`` says that a ReLU comes next, behind the batch norm and the addition.  ``others`` are further readers
    of the same channels (the heads of a detector read what the next convolution reads).
    """

    reader: str
    producer: str | None
    batch_norm: str | None
    shortcut: str | None
    branch_end: str | None
    rectified: bool
    others: tuple[Site, ...] = ()

    @property
    def readers(self) -> tuple[Site, ...]:
        """All readers of the channels, this one first."""
        return (self, *self.others)


class _Tracer(fx.Tracer):  # type: ignore[misc]
    """Keeps every convolution and batch norm whole, also those of other classes: what they compute is probed."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Convolutions, norms over channels and torch's own modules are nodes; everything else is traced through."""
        own = isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or keeps_channels(m)
        return own or bool(super().is_leaf_module(m, module_qualified_name))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Values that record their in-place operators."""
        return InPlaceProxy(node, self)


def keeps_channels(module: nn.Module) -> bool:
    """Whether a module says of itself that its output channels are its input channels (SSD's L2Norm does).

    Values may depend on all channels, so a pruned input changes the others: readers behind it are fitted afterwards.
    """
    return bool(getattr(module, "keeps_channels", False))


def trace(model: nn.Module) -> fx.Graph:
    """The network's graph in evaluation mode, in-place operations made explicit (:func:`functionalise`).

    ``model`` is left as it is; modules with an ``inplace`` flag have to be run out of place, as :func:`run_node` does.
    Raises :class:`UserError` for a network that torch.fx cannot trace or whose in-place operations cannot be followed.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # what forward() asks of its mode becomes part of the graph
    try:
        graph: fx.Graph = _Tracer().trace(model)
    except Exception as error:  # tracing runs the user's own forward, which may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"torch.fx cannot trace {type(model).__name__}: {reason}") from error
    finally:
        for module, training in modes:
            module.training = training
    functionalise(model, graph)
    return graph


class Layers:
    """The layers of a traced network and what keeps each of them from being pruned (``faults``, by name).

    A convolution or norm fits where it computes the plain formula of its own tensors (:mod:`bench.pruning.probe`), is
    called once, and shares no tensor with another.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model = model
        self.faults: dict[str, str] = {}
        self.modules: dict[fx.Node, nn.Module] = {}
        calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        owners: dict[int, list[str]] = {}
        for name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), []).append(name)
        for node in graph.nodes:
            if node.op == "call_function" and node.target is F.conv2d:
                self.faults[node.name] = "it is a convolution called as a function"
            if node.op != "call_module":
                continue
            name = str(node.target)
            self.modules[node] = module = model.get_submodule(name)
            if name in self.faults:
                continue
            fault = _fault(module)
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                tied = [other for p in module.parameters(recurse=False) for other in owners[id(p)] if other != name]
                if calls[name] > 1:
                    fault = f"it is called {calls[name]} times in one forward pass"
                elif tied:
                    fault = f"it shares its weights with {tied[0]}"
                elif name in read:
                    fault = "forward() also reads its weights directly"
            if fault is not None:
                self.faults[name] = fault

    def convolution(self, node: fx.Node) -> nn.Conv2d | None:
        """The convolution behind a node where it can be pruned, else None."""
        module = self.modules.get(node)
        return module if isinstance(module, nn.Conv2d) and str(node.target) not in self.faults else None

    def is_batch_norm(self, node: fx.Node) -> bool:
        """Whether a node is a batch norm that is a fixed scale and shift of each channel."""
        return isinstance(self.modules.get(node), nn.BatchNorm2d) and str(node.target) not in self.faults

    def is_channelwise(self, node: fx.Node) -> bool:
        """Whether a node treats every channel by itself and keeps their order."""
        if node.op == "call_module":
            known = isinstance(self.modules[node], _CHANNELWISE_MODULES)
            return (known and str(node.target) not in self.faults) or self.is_batch_norm(node)
        if node.op == "call_function":
            return node.target in _CHANNELWISE_FUNCTIONS
        return node.op == "call_method" and node.target in _CHANNELWISE_METHODS

    def is_coupled(self, node: fx.Node) -> bool:
        """Whether a node's values depend on all channels, although its output channels are its input channels."""
        return node in self.modules and keeps_channels(self.modules[node])


def _fault(module: nn.Module) -> str | None:
    """What a module computes that its class does not say, or None."""
    if type(module) is SampledConv2d:  # ours: plain in its filters, but no reader (it samples its input already)
        return None
    if isinstance(module, nn.Conv2d):
        return convolution_fault(module)
    if isinstance(module, nn.BatchNorm2d):
        return norm_fault(module)
    if isinstance(module, _OTHER_NORMS):
        return f"a {type(module).__name__} cannot lose channels"
    return passing_fault(module) if isinstance(module, _CHANNELWISE_MODULES) else None


def left_out(model: nn.Module, graph: fx.Graph) -> list[tuple[str, str]]:
    """The layers that pruning leaves as they are, in forward order, each with the reason."""
    return list(Layers(model, graph).faults.items())


def find_sites(model: nn.Module, graph: fx.Graph, shared: bool = False) -> list[Site]:
    """Every convolution that reads another layer's channels, in forward order.

    The first convolution and what :func:`left_out` names are left out.  With ``shared`` the readers of one
    convolution's channels are one site even where they are several; without it such readers have no producer.
    """
    layers = Layers(model, graph)
    single = _single_sites(layers, graph)
    if not shared:
        return single
    by_reader = {site.reader: site for site in single}
    grouped: dict[str, Site] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        readers = _all_readers(layers, node) if layers.convolution(node) is not None else None
        if readers is not None and len(readers) > 1 and all(name in by_reader for name in readers):
            first, *rest = (replace(by_reader[name], producer=str(node.target)) for name in readers)
            grouped[first.reader] = replace(first, others=tuple(rest))
            taken.update(readers)
    return [grouped.get(site.reader, site) for site in single if site.reader in grouped or site.reader not in taken]


def _all_readers(layers: Layers, producer: fx.Node) -> list[str] | None:
    """The convolutions that read the producer's channels, in forward order; None where anything else does."""
    found: list[fx.Node] = []
    waiting = list(producer.users)
    while waiting:
        node = waiting.pop()
        if layers.convolution(node) is not None:
            found.append(node)
        elif (layers.is_channelwise(node) or layers.is_coupled(node)) and len(node.all_input_nodes) == 1:
            waiting += list(node.users)
        else:
            return None
    order = {node: place for place, node in enumerate(producer.graph.nodes)}
    return [str(node.target) for node in sorted(set(found), key=order.__getitem__)]


def _single_sites(layers: Layers, graph: fx.Graph) -> list[Site]:
    convs = {node.name: node for node in graph.nodes if layers.convolution(node) is not None}
    sites = []
    for node in convs.values():
        if _input(node).op == "placeholder" or isinstance(layers.convolution(node), SampledConv2d):
            continue
        producer = _producer(layers, node)
        norm = _only_user(node)
        end, shortcut = _branch_end(layers, node)
        sites.append(
            Site(
                reader=str(node.target),
                producer=str(producer.target) if producer is not None else None,
                batch_norm=str(norm.target) if norm is not None and layers.is_batch_norm(norm) else None,
                shortcut=shortcut.name if end is node and shortcut is not None else None,
                branch_end=str(end.target) if end is not None else None,
                rectified=_is_rectified(layers, node, end is node),
            )
        )
    return sites


def reader_node(graph: fx.Graph, reader: str) -> fx.Node:
    """The call of the convolution ``reader``."""
    found: fx.Node = next(node for node in graph.nodes if node.op == "call_module" and node.target == reader)
    return found


def _is_addition(node: fx.Node) -> bool:
    """Whether a node is the plain sum of two values, without a factor ``alpha``."""
    known = (node.op == "call_function" and node.target in (operator.add, torch.add)) or (
        node.op == "call_method" and node.target == "add"
    )
    return known and len(node.args) + len(node.kwargs) == 2 and "alpha" not in node.kwargs


def _input(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _is_rectified(layers: Layers, reader: fx.Node, ends_branch: bool) -> bool:
    """Whether a ReLU comes next: behind the batch norm and, at the end of a branch, behind the addition."""
    node = _only_user(reader)
    if node is not None and layers.is_batch_norm(node):
        node = _only_user(node)
    if node is not None and ends_branch and _is_addition(node):
        node = _only_user(node)
    if node is None:
        return False
    if node.op == "call_module":
        return isinstance(layers.modules[node], nn.ReLU) and str(node.target) not in layers.faults
    return node.target in (F.relu, torch.relu, "relu")


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _producer(layers: Layers, reader: fx.Node) -> fx.Node | None:
    """The convolution whose channels only ``reader`` reads, or None."""
    node = _input(reader)
    while len(node.users) == 1:
        if layers.convolution(node) is not None:
            return node
        if not layers.is_channelwise(node) or len(node.all_input_nodes) != 1:
            return None
        node = _input(node)
    return None


def _branch_end(layers: Layers, reader: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The last convolution of the residual branch that ``reader`` is in, and the node added to its response."""
    node, end = reader, reader
    while (user := _only_user(node)) is not None:
        if _is_addition(user):
            others = [other for other in user.all_input_nodes if other is not node]
            # a downsampling convolution leads to the same addition, but it is the shortcut, not the branch
            is_branch = len(others) == 1 and _depth(layers, node, others[0]) > _depth(layers, others[0], node)
            linear = node is end or (_input(node) is end and layers.is_batch_norm(node))
            return (end, others[0]) if is_branch and linear else (None, None)
        if layers.convolution(user) is not None:
            end = user
        elif not layers.is_channelwise(user):
            return None, None
        node = user
    return None, None


def _depth(layers: Layers, node: fx.Node, other: fx.Node) -> int:
    """Convolutions on the way from the place where the ways to ``node`` and to ``other`` part, down to ``node``."""
    common = _ancestors(other) | {other}
    count = 0
    while node not in common and node.all_input_nodes:
        count += isinstance(layers.modules.get(node), nn.Conv2d)
        node = _input(node)
    return count


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        for parent in waiting.pop().all_input_nodes:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found
