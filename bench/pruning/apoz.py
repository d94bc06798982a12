"""APoZ (Hu et al. 2016): how often a channel is zero behind its ReLU, over all images and all positions of its map.

Counted while a walk passes the ReLU on its way to the reader, so nothing is run again; what pooling does afterwards
does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.pruning.calibration import Calibration
from bench.pruning.graph import Layers, reader_node
from bench.pruning.walk import Walk


class ZeroCount:
    """Zeros of each channel over the images that are flagged (N), whose maps come in order, in batches."""

    def __init__(self, wanted: Tensor) -> None:
        self.wanted, self.zeros, self.total, self._image = wanted, torch.zeros(()), 0, 0

    def add(self, maps: Tensor) -> None:
        """The next images' maps, B x c x H x W."""
        flags = self.wanted[self._image : self._image + len(maps)].to(maps.device)
        self._image += len(maps)
        chosen = maps[flags]
        self.zeros = (chosen == 0).sum((0, 2, 3)).to("cpu", torch.float64) + self.zeros
        self.total += len(chosen) * maps.shape[2] * maps.shape[3]

    @property
    def shares(self) -> Tensor:
        """Zeros as shares of all values, c."""
        return self.zeros / max(self.total, 1)


def rectifier(model: nn.Module, graph: fx.Graph, reader: str) -> fx.Node:
    """The last ReLU in front of the convolution ``reader`` with nothing but channelwise operations between.

    Raises :class:`UserError` where there is none.
    """
    layers = Layers(model, graph)
    node = reader_node(graph, reader)
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if _is_relu(layers, node):
            return node
        if not (layers.is_channelwise(node) or layers.is_coupled(node)) or len(node.all_input_nodes) != 1:
            break
    raise UserError(f"apoz counts zeros behind a ReLU, and none leads to {reader!r}: choose another selection")


def _is_relu(layers: Layers, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(layers.modules[node], (nn.ReLU, nn.ReLU6)) and str(node.target) not in layers.faults
    return node.op.startswith("call_") and node.target in (F.relu, F.relu6, torch.relu, "relu")


@contextmanager
def counted(calibration: Calibration, walk: Walk, reader: str) -> Iterator[ZeroCount]:
    """Within it one pass of ``walk`` to ``reader`` has to be made; afterwards the zeros of the fitted images are known.

    Where the walk has already passed the ReLU (branches side by side), the network is run anew from its images.
    """
    node = rectifier(walk.model, walk.graph, reader)
    count = ZeroCount(calibration.fitted)
    passed = walk.order[node] < walk.position
    here = Walk(walk.model, walk.graph, walk.batches, walk.device, 0) if passed else walk
    here.watched[node] = count.add
    if passed:
        for _ in here.live(reader):
            pass
    try:
        yield count
    finally:
        del here.watched[node]
