"""Gated networks with fresh weights."""

from __future__ import annotations

from torch import Tensor, nn

from bench.gating.layer import gated_layers


def normalise(model: nn.Module, images: Tensor) -> None:
    """Gives a gated network with fresh weights the statistics of some images, as training would."""
    layers = gated_layers(model).values()
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    model.train()(images)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
