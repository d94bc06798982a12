"""Where a network can be pruned: its convolutions as readers of channels, found in the torch.fx graph.

CP and ThiNet judge the filters of one layer by what the *next* layer makes of them, so the unit of pruning is a
:class:`Site`: a reader (the convolution whose input channels are selected and whose weights are rebuilt) and, where the
channels belong to one convolution alone, the producer that loses the filters.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from bench.errors import UserError

# operations that treat every channel by itself and keep their order
_CHANNELWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.ZeroPad2d,
)  # fmt: skip
_CHANNELWISE_FUNCTIONS = (F.relu, F.relu6, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout, torch.relu)
_CHANNELWISE_METHODS = ("relu", "contiguous")
_IN_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul}


@dataclass(frozen=True)
class Site:
    """One selection: the convolution ``reader`` and the convolution ``producer`` of its input channels.

    ``producer`` is None where the input is shared (a residual stream): such a reader can only get a channel sampler.
    ``batch_norm`` is the batch norm right behind the reader.  ``shortcut`` is the graph node added to the reader's
    response at the end of a residual branch; ``branch_end`` the reader at the end of the branch that holds this one.
    ``rectified`` says that a ReLU comes next, behind the batch norm and the addition.  ``others`` are further readers of
    the same channels (the heads of a detector read what the next convolution reads).
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
    """Keeps every convolution whole, also those of our own classes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Convolutions, norms over channels and torch's own modules are nodes; everything else is traced through."""
        own = isinstance(m, nn.Conv2d) or keeps_channels(m)
        return own or bool(super().is_leaf_module(m, module_qualified_name))


def keeps_channels(module: nn.Module) -> bool:
    """Whether a module says of itself that its output channels are its input channels (SSD's L2Norm does).

    Values may depend on all channels, so a pruned input changes the others: readers behind it are fitted afterwards.
    """
    return bool(getattr(module, "keeps_channels", False))


def trace(model: nn.Module) -> fx.Graph:
    """The network's graph without in-place operations, so that values may be kept and reused.

    In-place flags of the network's own activations are switched off, which changes no result.  Raises
    :class:`UserError` for a network that torch.fx cannot trace.
    """
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    try:
        graph: fx.Graph = _Tracer().trace(model)
    except Exception as error:  # tracing runs the user's own forward, which may raise anything
        raise UserError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _IN_PLACE.get(node.target, node.target)
        elif node.op == "call_method" and node.target in ("add_", "mul_", "relu_"):
            node.target = node.target[:-1]
    return graph


def find_sites(model: nn.Module, graph: fx.Graph, shared: bool = False) -> list[Site]:
    """Every convolution that reads another layer's channels, in forward order.

    The first convolution, grouped convolutions and convolutions called more than once are left out.  With ``shared``
    the readers of one convolution's channels are one site even where they are several; without it such readers have no
    producer.
    """
    single = _single_sites(model, graph)
    if not shared:
        return single
    by_reader = {site.reader: site for site in single}
    grouped: dict[str, Site] = {}
    taken: set[str] = set()
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        once = _convolution(model, node) is not None and calls.count(node.target) == 1
        readers = _all_readers(model, node) if once else None
        if readers is not None and len(readers) > 1 and all(name in by_reader for name in readers):
            first, *rest = (replace(by_reader[name], producer=str(node.target)) for name in readers)
            grouped[first.reader] = replace(first, others=tuple(rest))
            taken.update(readers)
    return [grouped.get(site.reader, site) for site in single if site.reader in grouped or site.reader not in taken]


def _all_readers(model: nn.Module, producer: fx.Node) -> list[str] | None:
    """The convolutions that read the producer's channels, in forward order; None where anything else does."""
    found: list[fx.Node] = []
    waiting = list(producer.users)
    while waiting:
        node = waiting.pop()
        if _convolution(model, node) is not None:
            found.append(node)
        elif (_is_channelwise(model, node) or _is_coupled(model, node)) and len(node.all_input_nodes) == 1:
            waiting += list(node.users)
        else:
            return None
    order = {node: place for place, node in enumerate(producer.graph.nodes)}
    return [str(node.target) for node in sorted(set(found), key=order.__getitem__)]


def _is_coupled(model: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and keeps_channels(model.get_submodule(str(node.target)))


def _single_sites(model: nn.Module, graph: fx.Graph) -> list[Site]:
    convs = {node.name: node for node in graph.nodes if _convolution(model, node) is not None}
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    sites = []
    for node in convs.values():
        if calls.count(node.target) > 1 or _input(node).op == "placeholder":
            continue
        producer = _producer(model, node)
        if producer is not None and calls.count(producer.target) > 1:
            producer = None
        norm = _only_user(node)
        end, shortcut = _branch_end(model, node)
        sites.append(
            Site(
                reader=str(node.target),
                producer=str(producer.target) if producer is not None else None,
                batch_norm=str(norm.target) if norm is not None and _is_batch_norm(model, norm) else None,
                shortcut=shortcut.name if end is node and shortcut is not None else None,
                branch_end=str(end.target) if end is not None else None,
                rectified=_is_rectified(model, node, end is node),
            )
        )
    return sites


def reader_node(graph: fx.Graph, reader: str) -> fx.Node:
    """The call of the convolution ``reader``."""
    found: fx.Node = next(node for node in graph.nodes if node.op == "call_module" and node.target == reader)
    return found


def _convolution(model: nn.Module, node: fx.Node) -> nn.Conv2d | None:
    """The plain convolution behind a node (groups 1, zero padding of fixed size), or None."""
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    plain = isinstance(module, nn.Conv2d) and module.groups == 1
    return module if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str) else None  # type: ignore[return-value]


def _is_batch_norm(model: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.BatchNorm2d)


def _is_channelwise(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _CHANNELWISE_MODULES)
    if node.op == "call_function":
        return node.target in _CHANNELWISE_FUNCTIONS
    return node.op == "call_method" and node.target in _CHANNELWISE_METHODS


def _is_addition(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in (operator.add, torch.add)) or (
        node.op == "call_method" and node.target == "add"
    )


def _input(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _is_rectified(model: nn.Module, reader: fx.Node, ends_branch: bool) -> bool:
    """Whether a ReLU comes next: behind the batch norm and, at the end of a branch, behind the addition."""
    node = _only_user(reader)
    if node is not None and _is_batch_norm(model, node):
        node = _only_user(node)
    if node is not None and ends_branch and _is_addition(node):
        node = _only_user(node)
    if node is None:
        return False
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (F.relu, torch.relu, "relu")


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _producer(model: nn.Module, reader: fx.Node) -> fx.Node | None:
    """The convolution whose channels only ``reader`` reads, or None."""
    node = _input(reader)
    while len(node.users) == 1:
        if _convolution(model, node) is not None:
            return node
        if not _is_channelwise(model, node) or len(node.all_input_nodes) != 1:
            return None
        node = _input(node)
    return None


def _branch_end(model: nn.Module, reader: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The last convolution of the residual branch that ``reader`` is in, and the node added to its response."""
    node, end = reader, reader
    while (user := _only_user(node)) is not None:
        if _is_addition(user):
            others = [other for other in user.all_input_nodes if other is not node]
            # a downsampling convolution leads to the same addition, but it is the shortcut, not the branch
            is_branch = len(others) == 1 and _depth(model, node, others[0]) > _depth(model, others[0], node)
            linear = node is end or (_input(node) is end and _is_batch_norm(model, node))
            return (end, others[0]) if is_branch and linear else (None, None)
        if _convolution(model, user) is not None:
            end = user
        elif not _is_channelwise(model, user):
            return None, None
        node = user
    return None, None


def _depth(model: nn.Module, node: fx.Node, other: fx.Node) -> int:
    """Convolutions on the way from the place where the ways to ``node`` and to ``other`` part, down to ``node``."""
    common = _ancestors(other) | {other}
    count = 0
    while node not in common and node.all_input_nodes:
        count += _convolution(model, node) is not None
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
