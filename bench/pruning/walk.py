"""Runs a traced network over all calibration images, from one convolution to the next, without starting anew.

Layer-by-layer pruning needs the input of every reader in the network *as pruned so far*.  Values that are live just
before a reader are kept for all batches where they fit the memory budget, so the whole walk costs about one forward
pass; where they do not fit, the prefix since the last kept place is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bench.pruning.functional import out_of_place
from bench.pruning.graph import keeps_channels, reader_node


class Walk:
    """The network, its graph, the batches (N x C x H x W each) and the values kept between visits.

    ``budget`` is the memory for kept values in bytes.  The network may be pruned between visits; its modules are looked
    up by name at every call.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, batches: Sequence[Tensor], device: str, budget: int) -> None:
        self.model, self.graph, self.device, self.budget = model, graph, device, budget
        self.nodes = list(graph.nodes)
        self.order = {node: place for place, node in enumerate(self.nodes)}
        self.last_use = {
            node: max((self.order[user] for user in node.users), default=self.order[node]) for node in self.nodes
        }
        # values behind a norm over all channels cannot be cut, only computed again: their inputs live as long
        self.coupled: set[fx.Node] = set()
        for node in self.nodes:
            own = node.op == "call_module" and keeps_channels(model.get_submodule(str(node.target)))
            if own or (not self._is_convolution(node) and any(n in self.coupled for n in node.all_input_nodes)):
                self.coupled.add(node)
        for node in reversed(self.nodes):
            if node in self.coupled:
                for parent in node.all_input_nodes:
                    self.last_use[parent] = max(self.last_use[parent], self.last_use[node])
        self.first = next(node for node in self.nodes if node.op == "placeholder")
        self.batches = batches
        # None: only the images, which the batches hold (in whatever form they like) and give again
        self.kept: list[dict[fx.Node, Tensor] | None] = [None] * len(batches)
        self.position = self.order[self.first] + 1
        # who is shown a node's value, batch by batch, whenever it is computed
        self.watched: dict[fx.Node, Callable[[Tensor], None]] = {}

    def visit(self, reader: str, shortcut: str | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """For each batch: the input of the convolution ``reader`` and the value of the node ``shortcut``.

        Readers must be visited in forward order.
        """
        for inputs, added in self.visit_all([reader], shortcut):
            yield inputs[0], added

    @torch.no_grad()
    def visit_all(
        self, readers: Sequence[str], shortcut: str | None = None
    ) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        """For each batch: the inputs of several readers of one value, and the value of the node ``shortcut``.

        The first of ``readers`` is the first in forward order, and is visited; the others may lie far behind it.
        """
        targets = [reader_node(self.graph, reader).all_input_nodes[0] for reader in readers]
        wanted = None if shortcut is None else next(node for node in self.nodes if node.name == shortcut)
        for values in self.live(readers[0]):
            inputs = [self.value(node, dict(values)) for node in targets]
            yield inputs, None if wanted is None else self.value(wanted, dict(values))

    @torch.no_grad()
    def live(self, reader: str) -> Iterator[dict[fx.Node, Any]]:
        """For each batch: the values that the convolution ``reader`` and what comes behind it need."""
        target = reader_node(self.graph, reader)
        stop = self.order[target]
        keep: bool | None = None
        self.model.eval()
        for place, start in enumerate(self.kept):
            start = {self.first: self.batches[place]} if start is None else start
            # copies, because a network may change its values in place
            values: dict[fx.Node, Any] = {node: value.to(self.device, copy=True) for node, value in start.items()}
            for node in self.nodes[self.position : stop]:
                values[node] = run_node(self.model, node, values)
                if node in self.watched:
                    self.watched[node](values[node])
                values = {n: v for n, v in values.items() if self.last_use[n] > self.order[node]}
            live = {node: value for node, value in values.items() if self.last_use[node] >= stop}
            if keep is None:  # one batch tells what all will need
                size = sum(v.nbytes for v in live.values() if isinstance(v, Tensor))
                tensors = all(isinstance(value, Tensor) for value in live.values())
                keep = tensors and size * len(self.kept) <= self.budget
            if keep:
                self.kept[place] = {node: value.detach().to("cpu", copy=True) for node, value in live.items()}
            yield live
        if keep:
            self.position = stop

    @torch.no_grad()
    def select(self, readers: str | Sequence[str], channels: Tensor) -> None:
        """After the filters in front of ``readers`` were removed: kept values behind them lose the same channels."""
        cut: set[fx.Node] = set()
        again: set[fx.Node] = set()
        for reader in [readers] if isinstance(readers, str) else readers:
            node = reader_node(self.graph, reader).all_input_nodes[0]
            while True:
                if node in (self.kept[0] or {}):
                    (again if node in self.coupled else cut).add(node)
                if self._is_convolution(node) or not node.all_input_nodes:
                    break  # the producer: what lies before it is as it was
                node = node.all_input_nodes[0]
        for values in self.kept:
            if values is None:
                continue
            for node in cut:
                values[node] = values[node][:, channels.cpu()].clone()
            for node in sorted(again, key=self.order.__getitem__):
                inputs = {parent: values[parent].to(self.device) for parent in node.all_input_nodes}
                values[node] = run_node(self.model, node, inputs).detach().to("cpu", copy=True)

    def _is_convolution(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.model.get_submodule(str(node.target)), nn.Conv2d)

    def value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """The value of any node, computed from live values (which grow by what is computed on the way)."""
        if node not in values:
            for parent in node.all_input_nodes:
                values[parent] = self.value(parent, values)
            values[node] = run_node(self.model, node, values)
        return values[node]


def run_node(model: nn.Module, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """One node of the graph, from the values of the nodes that it uses; modules are looked up by name."""
    args = fx.node.map_arg(node.args, lambda n: values[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
    if node.op == "call_module":
        return out_of_place(model.get_submodule(str(node.target)))(*args, **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        value: Any = model
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value
    return args[0]  # output
