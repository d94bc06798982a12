"""Multiply-accumulates of gated networks, for each image, from the masks that were really applied.

A convolution costs its dense MACs times the share of active input channels times the share of active filters.  A gate
costs one product for each active input channel and filter, and one multiplication for each value of the layer's output
(deep-fry/mayo mayo/net/tf/gate/layers.py).  The last fully connected layer reads everything.  Networks without gates
have the MACs of :mod:`bench.measure.macs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench.data.images import Split
from bench.gating.flow import Flow, module_of
from bench.gating.layer import GatedConv2d, gated_layers
from bench.metrics import Metric
from bench.store import Record

CONVENTION = "conv+fc+gates"
PERCENTILES = (5, 50, 95)


METRICS = (
    Metric(
        "dynamic_macs",
        "MACs per image",
        "",
        None,
        "Multiply-accumulates for one image, mean over the test images: the layers at the masks applied to it, "
        "and the gates.",
        "lower",
        count=True,
    ),
    *(
        Metric(
            f"dynamic_macs_p{percentile}",
            f"MACs, {words}",
            "",
            None,
            f"The same, {words}.",
            "lower",
            count=True,
            shown=False,
        )
        for percentile, words in ((5, "5th percentile"), (50, "median"), (95, "95th percentile"))
    ),
    Metric(
        "dynamic_speedup",
        "MAC speed-up",
        "x",
        2,
        "MACs of the dense network divided by the mean MACs per image of this one, gates included.",
        "higher",
    ),
    Metric("gate_share", "gates", "%", 2, "Share of the gates in the MACs per image.", "lower", shown=False),
    Metric(
        "weight_reduction",
        "weight reduction",
        "x",
        2,
        "Weights of the dense network divided by those between channels that some test image uses.",
        "higher",
        shown=False,
    ),
)


@dataclass(frozen=True)
class Layer:
    """One convolution or fully connected layer: name, dense MACs, weights, whether it is gated."""

    name: str
    macs: int
    weights: int
    gated: bool


@dataclass
class Dynamic:
    """MACs of N images in L layers.

    ``macs`` and ``gates`` (N x L, float64) are the MACs of the layers and of their gates; ``reads`` and ``writes`` (N x
    L) the active shares of their inputs and outputs; ``used`` (L) the share of the weights that any of the images
    needs.
    """

    layers: list[Layer]
    macs: Tensor
    gates: Tensor
    reads: Tensor
    writes: Tensor
    used: Tensor

    @property
    def dense(self) -> int:
        """MACs of the network without gates."""
        return sum(layer.macs for layer in self.layers)

    @property
    def totals(self) -> Tensor:
        """MACs of each image (N), gates included."""
        return (self.macs + self.gates).sum(1)

    def table(self) -> list[dict[str, Any]]:
        """For each layer: dense MACs, mean MACs, those of its gate, mean active shares, share of the weights used."""
        columns = zip(
            self.layers,
            self.macs.mean(0),
            self.gates.mean(0),
            self.reads.mean(0),
            self.writes.mean(0),
            self.used,
            strict=True,
        )
        return [
            {
                "layer": layer.name,
                "dense_macs": layer.macs,
                "macs": float(macs),
                "gate_macs": float(gate),
                "reads": float(reads),
                "writes": float(writes),
                "weights_used": float(used),
            }
            for layer, macs, gate, reads, writes, used in columns
        ]

    def records(self, seed: int | None, images: int | None = None, original: Dynamic | None = None) -> list[Record]:
        """Mean, percentiles, speed-up over the dense network, the gates' share, and the reduction of the weights used.

        ``original`` is the dense network where this one has lost channels for good.
        """
        totals, dense = self.totals, (original or self).dense
        mean = float(totals.mean())
        whole = sum(layer.weights for layer in (original or self).layers)
        weights = torch.tensor([layer.weights for layer in self.layers], dtype=torch.float64)
        found = [Record("dynamic_macs", mean, "MACs", n=images, seed=seed, convention=CONVENTION)]
        for percentile in PERCENTILES:
            value = float(totals.quantile(percentile / 100.0))
            found.append(
                Record(f"dynamic_macs_p{percentile}", value, "MACs", n=images, seed=seed, convention=CONVENTION)
            )
        found += [
            Record("dynamic_speedup", dense / mean, "x", n=images, seed=seed, convention=CONVENTION),
            Record("gate_share", 100.0 * float(self.gates.sum(1).mean()) / mean, "%", n=images, seed=seed),
            Record("weight_reduction", whole / float((weights * self.used).sum()), "x", n=images, seed=seed),
        ]
        return found


class Counter:
    """Counts images of one network; ``input_shape`` is (C, H, W).

    Modules of the types ``lost`` lose the masks, as in estimates that do not carry them through (an artefact of
    theirs).
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int], lost: tuple[type[nn.Module], ...] = ()) -> None:
        self.lost = lost
        self.flow = Flow(model, input_shape)
        self.nodes = self.flow.layers()
        self.layers: list[Layer] = []
        for node in self.nodes:
            module = module_of(model, node)
            assert isinstance(module, (nn.Conv2d, nn.Linear))
            weights = module.weight.numel()
            gated = isinstance(module, GatedConv2d)
            self.layers.append(Layer(str(node.target), weights * self.flow.positions(node), weights, gated))
        linear = [place for place, node in enumerate(self.nodes) if isinstance(module_of(model, node), nn.Linear)]
        self.classifier = linear[-1] if linear else None
        self.parts: list[tuple[Tensor, ...]] = []
        self.seen: list[tuple[Tensor, Tensor]] | None = None

    def add(self, winners: Mapping[str, Tensor], images: int) -> None:
        """A batch of ``images`` with the masks (B x C) of the gated layers."""
        masks = self.flow.masks(winners, self.lost)
        columns: list[tuple[Tensor, ...]] = []
        seen = []
        for place, node in enumerate(self.nodes):
            source = node.all_input_nodes[0]
            read = self._mask(masks[source], images, self.flow.channels(source))
            module = module_of(self.flow.model, node)
            if place == self.classifier or (isinstance(module, nn.Conv2d) and module.groups != 1):
                read = torch.ones_like(read)
            written = self._mask(masks[node], images, self.flow.channels(node))
            reads, writes = read.mean(1), written.mean(1)
            layer, positions = self.layers[place], self.flow.positions(node)
            gate = torch.zeros_like(reads)
            if layer.gated:
                gate = (read.sum(1) + positions) * written.shape[1]
            columns.append((layer.macs * reads * writes, gate, reads, writes))
            seen.append((read.amax(0), written.amax(0)))
        self.parts.append(tuple(torch.stack(column, 1) for column in zip(*columns, strict=True)))
        if self.seen is not None:
            seen = [(torch.maximum(a, c), torch.maximum(b, d)) for (a, b), (c, d) in zip(self.seen, seen, strict=True)]
        self.seen = seen

    @staticmethod
    def _mask(mask: Tensor | None, images: int, channels: int) -> Tensor:
        if mask is None:
            return torch.ones(images, channels, dtype=torch.float64)
        return mask.cpu()

    def result(self) -> Dynamic:
        """All batches so far."""
        assert self.seen is not None
        macs, gates, reads, writes = (torch.cat(column) for column in zip(*self.parts, strict=True))
        used = torch.stack([read.mean() * written.mean() for read, written in self.seen])
        return Dynamic(self.layers, macs, gates, reads, writes, used)


@torch.no_grad()
def measure(
    model: nn.Module, split: Split, device: str, batch: int = 256, workers: int = 0, progress: bool = True
) -> tuple[Tensor, Dynamic]:
    """Logits (N x classes, float32) of all images of ``split``, in order, and their MACs."""
    counter = Counter(model, split.batch([0]).shape[1:])
    model = model.to(device).eval()
    outputs = []
    total = -(-len(split) // batch)
    for images, _ in tqdm(
        split.on(device).batches(batch, workers), "evaluating", total, disable=not progress, leave=False
    ):
        outputs.append(model(images.to(device)).float().cpu())
        counter.add(applied(model), len(images))
    return torch.cat(outputs), counter.result()


def applied(model: nn.Module) -> dict[str, Tensor]:
    """The masks (B x C, bool) that the gated layers applied in the last forward pass, by name."""
    found = {}
    for name, layer in gated_layers(model).items():
        assert layer.winners is not None
        found[name] = layer.winners
    return found


def expected(model: nn.Module, input_shape: Sequence[int], lost: tuple[type[nn.Module], ...] = ()) -> Dynamic:
    """The MACs that the densities alone tell, masks being independent of each other; works on ``meta``."""
    counter = Counter(model, input_shape, lost)
    shares = {
        name: torch.full((1, layer.out_channels), layer.k / layer.out_channels, dtype=torch.float64)
        for name, layer in gated_layers(model).items()
    }
    counter.add(shares, 1)
    return counter.result()
