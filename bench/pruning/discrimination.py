"""DCP's selection as published: both losses over whole feature maps, mini-batch after mini-batch (Zhuang et al. 2018).

L(W) = mu L_M + lambda L_S, with L_M = |O_b - O|^2 / (2Q) between the layer's outputs in the baseline and in the pruned
network (equation 4; Q the number of elements of O), and L_S the loss of the classifier behind the segment that holds
the layer (equation 5).  Channels are chosen by the gradient over all mini-batches (a pass), then the chosen weights
follow the gradients of one mini-batch after the other (a second pass).

All but the layer's weights is fixed meanwhile.  So what stands in front of the layer, in both networks, is computed
once for each mini-batch and kept; every pass runs the layer, on the channels chosen so far, and what follows it up to
the classifier alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from bench.errors import UserError
from bench.pruning import surgery
from bench.pruning.graph import Site, find_sites, trace
from bench.pruning.greedy import AuxiliaryLoss, Greedy, SiteReport, Tail, prune_sites, sgd
from bench.pruning.walk import Walk

Batch = tuple[Mapping[fx.Node, Any], Tensor]


class Replay:
    """L of one reader over all mini-batches; its passes begin at the reader.

    Each pass of SGD starts without momentum: the released code has a new optimiser, and one pass, behind each pick.

    ``batches()`` gives, for each mini-batch, the values in front of the reader (:meth:`Walk.live`) and O_b (B x n x H x
    W); ``original`` is the reader's weight n x c x kh x kw; ``auxiliary`` the classifier's loss, or None for L_M alone.
    ``passes`` counts the passes over all mini-batches.  Raises :class:`UserError` for settings that it does not know.
    """

    def __init__(self, tail: Tail, batches: Any, original: Tensor, settings: Greedy, auxiliary: AuxiliaryLoss | None):
        if settings.update != "sgd":
            raise UserError(f"unknown update {settings.update!r} of whole feature maps: choose sgd")
        self.tail, self.batches, self.settings, self.auxiliary = tail, batches, settings, auxiliary
        self.originals: Sequence[Tensor] = [original]
        self.passes = 0
        self._loss = 0.0

    def gradients(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """dL / dW over all images: the mini-batches' means, weighed by their sizes."""
        weight = weights[0]
        total, value, count = torch.zeros_like(weight), 0.0, 0
        chosen = weight.abs().amax((0, 2, 3)).nonzero().flatten()
        every = torch.arange(weight.shape[1], device=weight.device)
        for place, (values, target) in enumerate(self.batches()):
            loss, gradient = self._of(place, values, target, weight, chosen, every)
            total += len(target) * gradient
            value += len(target) * loss
            count += len(target)
        self.passes += 1
        self._loss = value / count
        return [total / count]

    def loss(self) -> float:
        """L over all images at the weights of the latest :meth:`gradients`."""
        return self._loss

    def step(self, weights: Sequence[Tensor], chosen: Tensor) -> None:
        """A pass of SGD: a step for each mini-batch."""
        channels = chosen.nonzero().flatten()
        velocity = [torch.zeros_like(weights[0])]
        for place, (values, target) in enumerate(self.batches()):
            _, found = self._of(place, values, target, weights[0], channels, channels)
            gradient = torch.zeros_like(weights[0])
            gradient[:, channels] = found
            sgd(weights, velocity, [gradient], chosen, self.settings)
        self.passes += 1

    def _of(
        self,
        place: int,
        values: Mapping[fx.Node, Any],
        target: Tensor,
        weight: Tensor,
        chosen: Tensor,
        wanted: Tensor,
    ) -> tuple[float, Tensor]:
        """L of one mini-batch, where only ``chosen`` channels have weights, and its gradient in the ``wanted`` ones."""
        conv, x = self.tail.reader, self.tail.inputs(values)
        how = (conv.stride, conv.padding, conv.dilation)
        if len(chosen):
            small = weight[:, chosen].to(x.dtype)
            response = F.conv2d(_channels(x, chosen), small, conv.bias, *how)  # type: ignore[arg-type]
        else:
            response = torch.zeros_like(target)
            if conv.bias is not None:
                response += conv.bias[:, None, None]
        with torch.enable_grad():
            response = response.detach().requires_grad_(True)
            loss = total_loss(self.tail, place, values, target, response, self.settings, self.auxiliary)
            (outer,) = torch.autograd.grad(loss, response)
        shape = (weight.shape[0], len(wanted), *weight.shape[2:])
        gradient = conv2d_weight(_channels(x, wanted), shape, outer, *how)  # type: ignore[arg-type, no-untyped-call]
        return float(loss.detach()), gradient.to(weight.dtype)


def _channels(x: Tensor, channels: Tensor) -> Tensor:
    """Some channels of B x C x H x W, ``x`` itself where they are all."""
    return x if len(channels) == x.shape[1] else x[:, channels]


def total_loss(
    tail: Tail,
    place: int,
    values: Mapping[fx.Node, Any],
    target: Tensor,
    response: Tensor,
    settings: Greedy,
    auxiliary: AuxiliaryLoss | None,
) -> Tensor:
    """L of mini-batch ``place`` where the layer answers ``response`` (B x n x H x W), a scalar."""
    loss = settings.reconstruction * reconstruction_loss(response, target)
    if auxiliary is not None and settings.alpha != 0.0:
        loss = loss + settings.alpha * auxiliary(place, tail.behind(values, response))
    return loss


def reconstruction_loss(response: Tensor, target: Tensor) -> Tensor:
    """L_M = |O_b - O|^2 / (2Q), of two tensors of one shape (equation 4)."""
    return (target - response).square().sum() / (2.0 * target.numel())


def segment_sites(net: nn.Module, producers: Sequence[str]) -> list[Site]:
    """The sites whose channels these convolutions produce, in forward order.

    Raises :class:`UserError` for a convolution whose channels no other one alone reads.
    """
    found = {site.producer: site for site in find_sites(net, trace(net))}
    missing = [name for name in producers if name not in found]
    if missing:
        raise UserError(f"{missing[0]}: its channels are read by more than one convolution, or by none")
    return [site for producer, site in found.items() if producer in producers]


def prune_segment(
    net: nn.Module,
    baseline: nn.Module,
    batches: Sequence[Tensor],
    keep: Mapping[str, int],
    settings: Greedy,
    end: str,
    auxiliary: AuxiliaryLoss | None,
    device: str = "cpu",
    budget: int = 1_500_000_000,
    progress: bool = True,
) -> tuple[nn.Module, list[SiteReport]]:
    """A copy of ``net`` in which the convolutions in ``keep`` (filters left, by name) have lost channels, one by one.

    ``baseline`` gives O_b: a network with the same readers.  ``batches`` are the images (B x 3 x H x W each),
    ``auxiliary`` the loss of the output of the module ``end`` ("": of the network).  ``budget`` bytes of activations
    may be kept: half for the walks through the networks, half for the passes of a layer (what does not fit is computed
    again in each pass).
    """
    sites = segment_sites(net, list(keep))
    wanted = {site.reader: keep[str(site.producer)] for site in sites}
    reference = baseline.to(device).eval().requires_grad_(False)
    other = Walk(reference, trace(reference), batches, device, budget // 4)

    def objective(model: nn.Module, graph: fx.Graph, walk: Walk, site: Site) -> Replay:
        tail = Tail(model, graph, site.reader, end)
        target = surgery.convolution(reference, site.reader)

        def fresh() -> Iterator[Batch]:
            with torch.no_grad():
                for values, (x, _) in zip(walk.live(site.reader), other.visit(site.reader), strict=True):
                    yield values, target(x)

        kept, whole = _held(fresh(), budget // 2)
        original = surgery.convolution(model, site.reader).weight.detach().to(torch.float64)
        return Replay(tail, (lambda: iter(kept)) if whole else fresh, original, settings, auxiliary)

    return prune_sites(net, batches, sites, wanted, settings, objective, device, budget // 4, progress)


def _held(fresh: Iterator[Batch], budget: int) -> tuple[list[Batch], bool]:
    """All mini-batches, and True; or nothing and False where they need more than ``budget`` bytes."""
    kept: list[Batch] = []
    size = 0
    for values, target in fresh:
        size += target.nbytes + sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
        kept.append((values, target))
        if size > budget:
            # the walks go on to the end: what they keep must be there for all mini-batches
            for _ in fresh:
                pass
            return [], False
    return kept, True
