"""Fresh weights of networks that are built on ``meta``."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Fresh weights: He normal (fan out) in convolutions as torchvision's VGG and ResNet, torch's own elsewhere.

    A network with an ``initialise`` of its own (the detectors) is left to it; a module with one (gated layers) too, but
    not what is in it.
    """
    own = getattr(model, "initialise", None)
    if callable(own):
        own()
        return
    for module in model.modules():
        own = getattr(module, "initialise", None)
        if callable(own):
            own()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
        else:
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
