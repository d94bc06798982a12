"""Weights from files and from torchvision, with errors that name the keys that do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import UserError

PRETRAINED = {
    "vgg16": "VGG16_Weights.IMAGENET1K_V1",
    "vgg16_bn": "VGG16_BN_Weights.IMAGENET1K_V1",
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
}
# backbones of detectors: torchvision's weights, and the prefix of ours; the VGG-16 is the one that SSD starts from
BACKBONES = {
    "ssd300_vgg16": ("VGG16_Weights.IMAGENET1K_FEATURES", "features."),
    "ssd300_resnet50": ("ResNet50_Weights.IMAGENET1K_V1", ""),
}


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors, or a torch file loaded with ``weights_only=True``.

    A ``state_dict`` (or ``model``) key and ``module.`` prefixes are taken off.  Raises :class:`UserError` for a file
    that is missing, broken, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}: give the path of a state dict with --weights")
    try:
        if path.suffix == ".safetensors":
            value: Any = load_file(path)
        else:
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the garbage makes it do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is no readable state dict ({reason[:120]}): save model.state_dict() and give that file"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if (
        not isinstance(value, Mapping)
        or not value
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    ):
        raise UserError(f"{path} holds no state dict: save model.state_dict() and give that file")
    return {name.removeprefix("module."): tensor for name, tensor in value.items()}


def load(model: nn.Module, path: Path) -> None:
    """Loads a file into ``model``.

    Raises :class:`UserError` naming the keys that are missing, unknown or misshapen.
    """
    state, own = read(path), model.state_dict()
    # files older than PyTorch 0.4.1 lack the batch counters, which no result depends on
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    problems = [f"{name} is missing" for name in own if name not in state and name not in counters]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        if (path.parent / "recipe.json").is_file():
            more += f"; {path.parent} holds a pruned network, give that folder"
        raise UserError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems[:4])}{more}: give the weights of this "
            "network"
        )
    model.load_state_dict({**{name: own[name] for name in counters}, **state})


def load_pretrained(model: nn.Module, builder: str, progress: bool = True) -> None:
    """Loads torchvision's ImageNet weights, downloading them where needed (checked by hash).

    Raises :class:`UserError` where there are none for ``builder`` or they cannot be downloaded.
    """
    if builder not in PRETRAINED:
        raise UserError(f"there are no pretrained weights for {builder}: give a state dict with --weights")
    try:
        state = torchvision.models.get_weight(PRETRAINED[builder]).get_state_dict(progress=progress, check_hash=True)
    except Exception as error:  # the download layer raises many kinds; all mean the same to the user
        raise UserError(
            f"torchvision's {PRETRAINED[builder]} could not be loaded ({error}): give a state dict with --weights"
        ) from error
    model.load_state_dict(state)


def load_backbone(model: nn.Module, builder: str, progress: bool = True) -> None:
    """Loads torchvision's ImageNet weights into the backbone of a detector; layers that ImageNet nets lack stay fresh.

    Raises :class:`UserError` where there are none for ``builder`` or they cannot be downloaded.
    """
    if builder not in BACKBONES:
        raise UserError(
            f"there are no ImageNet weights for the backbone of {builder}: give a state dict with --weights"
        )
    name, prefix = BACKBONES[builder]
    try:
        state = torchvision.models.get_weight(name).get_state_dict(progress=progress, check_hash=True)
    except Exception as error:  # the download layer raises many kinds; all mean the same to the user
        raise UserError(
            f"torchvision's {name} could not be loaded ({error}): give the detector's state dict with --weights"
        ) from error
    own = model.state_dict()
    fitting = {
        f"backbone.{key}": value
        for key, value in state.items()
        if key.startswith(prefix) and f"backbone.{key}" in own and own[f"backbone.{key}"].shape == value.shape
    }
    convolutions = [key for key in own if key.startswith("backbone.") and own[key].ndim == 4]
    if len([key for key in convolutions if key in fitting]) < len(convolutions) - 2:  # fc6 and fc7 are fresh
        raise UserError(f"torchvision's {name} does not fit {builder}: give the detector's state dict with --weights")
    model.load_state_dict({**own, **fitting})
