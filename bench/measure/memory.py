"""Memory accesses and peak memory of gated networks (Gao et al. 2019, Table 3), counted from the masks.

Counted is what an execution that skips must touch, in bytes of 32-bit floats: of each convolution and fully connected
layer the weights between active inputs and active filters (for a batch: those that any of its images needs) and the
gate's phi; the active input and output channels as activations.  Peak memory is the largest sum, over the layers in
turn, of the activations that are still needed and the weights of the layer at work.  Elementwise operations work in
place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from bench.gating.flow import Flow, is_addition, is_flatten, keeps_zeros, module_of
from bench.gating.layer import GatedConv2d
from bench.metrics import Metric
from bench.store import Record

_BYTES = 4


# what is drawn of them
_PANELS = {("activations", 128): 1, ("peak", 128): 2}
METRICS = tuple(
    Metric(
        f"memory_{part}_batch{size}",
        f"{heading}, batch {size}",
        "MB",
        2,
        f"{meaning} {size}.",
        "lower",
        panel=_PANELS.get((part, size), 0),
    )
    for size in (1, 128)
    for part, heading, meaning in (
        ("weights", "weights read", "Bytes (1e6) of weights that must be read for one image, in batches of"),
        ("activations", "activations", "Bytes (1e6) of activations read and written for one image, in batches of"),
        ("peak", "peak memory", "Largest sum of live activations and the weights of one layer, for a batch of"),
    )
)


@dataclass(frozen=True)
class Memory:
    """Bytes for one batch: weights read, activations read and written, the peak of what must be held."""

    weights: float
    activations: float
    peak: float


def batch_memory(flow: Flow, winners: Mapping[str, Tensor], images: int) -> Memory:
    """The memory of a batch of ``images`` computed together, with the masks (B x C) of the gated layers."""
    masks = flow.masks(winners)
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(flow.nodes):
        for source in node.all_input_nodes:
            last[source] = place
    weights = activations = peak = 0.0
    live: dict[fx.Node, float] = {}
    for place, node in enumerate(flow.nodes):
        if node.name not in flow.shapes:
            continue
        size = _active(flow, masks, node, images).sum().item() * flow.positions(node)
        needed = 0.0
        module = module_of(flow.model, node)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            needed = _weights(flow, masks, node, images, module)
            weights += needed
            activations += live[node.all_input_nodes[0]] + size
        in_place = is_addition(node) or is_flatten(flow.model, node) or _elementwise(flow, node)
        reused = 0.0
        if in_place:
            reused = max((live[s] for s in node.all_input_nodes if last[s] == place and s in live), default=0.0)
        live[node] = size
        peak = max(peak, sum(live.values()) - min(reused, size) + needed)
        live = {value: bytes_ for value, bytes_ in live.items() if last.get(value, place) > place}
    return Memory(_BYTES * weights, _BYTES * activations, _BYTES * peak)


def _elementwise(flow: Flow, node: fx.Node) -> bool:
    """Whether the node's output can take its input's place."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    same = source is not None and flow.shapes.get(source.name) == flow.shapes[node.name]
    norm = isinstance(module_of(flow.model, node), nn.BatchNorm2d)
    return same and (norm or keeps_zeros(flow.model, node))


def _active(flow: Flow, masks: Mapping[fx.Node, Tensor | None], node: fx.Node, images: int) -> Tensor:
    """B x C: which channels of the node's output exist."""
    mask = masks[node]
    whole = flow.channels(node)
    if mask is None:
        return torch.ones(images, whole, dtype=torch.float64)
    mask = mask.cpu()
    # flattened features: each channel stands for several
    return mask if mask.shape[1] == whole else mask.repeat_interleave(whole // mask.shape[1], 1)


def _weights(
    flow: Flow, masks: Mapping[fx.Node, Tensor | None], node: fx.Node, images: int, module: nn.Conv2d | nn.Linear
) -> float:
    """Weights that the batch needs: every pair of input and filter active together in at least one image."""
    read = _active(flow, masks, node.all_input_nodes[0], images)
    if isinstance(module, nn.Linear) or module.groups != 1:
        return float(read.amax(0).mean()) * module.weight.numel()
    written = _active(flow, masks, node, images)
    pairs = float(((read.T @ written) > 0).sum())
    found = pairs * module.weight[0, 0].numel()
    if isinstance(module, GatedConv2d):
        found += float(read.amax(0).sum()) * module.out_channels + 2 * module.out_channels
    return found


def records(flow: Flow, winners: Mapping[str, Tensor], sizes: tuple[int, ...], seed: int | None) -> list[Record]:
    """Means over the images in batches of each of ``sizes``; per image, in MB (1e6 bytes), the peak per batch.

    ``winners`` hold the masks of all images; the last, smaller batch is left out.  A size above the number of images
    gives nothing.
    """
    images = len(next(iter(winners.values()))) if winners else max(sizes)
    found = []
    for size in sizes:
        starts = range(0, images - size + 1, size)
        # the memory of a network without gates is the same for all batches
        starts = starts if winners else range(1)
        parts = [
            batch_memory(flow, {name: mask[start : start + size] for name, mask in winners.items()}, size)
            for start in starts
        ]
        if parts:
            for name, scale in (("weights", size), ("activations", size), ("peak", 1)):
                mean = sum(getattr(part, name) for part in parts) / len(parts) / scale / 1e6
                metric = f"memory_{name}_batch{size}"
                found.append(Record(metric, mean, "MB", n=len(parts) * size if winners else None, seed=seed))
    return found
