"""VGG-16 (Simonyan & Zisserman 2015): torchvision's at 224x224, the CIFAR form (one linear layer) at 32x32."""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import VGG, make_layers

# (name in the papers, filters at full width); "M" is a 2x2 max pooling
# fmt: off
_LAYOUT: list[tuple[str, int] | str] = [
    ("conv1_1", 64), ("conv1_2", 64), "M",
    ("conv2_1", 128), ("conv2_2", 128), "M",
    ("conv3_1", 256), ("conv3_2", 256), ("conv3_3", 256), "M",
    ("conv4_1", 512), ("conv4_2", 512), ("conv4_3", 512), "M",
    ("conv5_1", 512), ("conv5_2", 512), ("conv5_3", 512), "M",
]
# fmt: on


def _module_names() -> dict[str, str]:
    """Maps the papers' layer names to torchvision's module names (a convolution and its ReLU take two places)."""
    names, place = {}, 0
    for entry in _LAYOUT:
        if isinstance(entry, tuple):
            names[entry[0]] = f"features.{place}"
        place += 2 if isinstance(entry, tuple) else 1
    return names


CONVS: dict[str, str] = _module_names()


def vgg16(num_classes: int = 1000, form: str = "imagenet", width: float = 1.0, batch_norm: bool = False) -> nn.Module:
    """VGG-16, plain or with batch norm; ``width`` scales every layer; input N x 3 x 224 x 224 or N x 3 x 32 x 32.

    ``form`` is ``imagenet`` (7x7 pooling, three fully connected layers, torchvision's state dict) or ``cifar`` (one
    linear layer on the 1x1 map).
    """
    layers = [entry if isinstance(entry, str) else max(1, round(entry[1] * width)) for entry in _LAYOUT]
    model: nn.Module = VGG(
        make_layers(layers, batch_norm),  # type: ignore[arg-type]
        num_classes=num_classes,
        init_weights=False,
    )
    channels = max(1, round(512 * width))
    if form == "cifar":
        model.avgpool = nn.Identity()
        model.classifier = nn.Sequential(nn.Linear(channels, num_classes))
    elif width != 1.0:
        hidden = max(1, round(4096 * width))
        model.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, num_classes),
        )
    return model


def vgg16_bn(num_classes: int = 1000, form: str = "imagenet", width: float = 1.0) -> nn.Module:
    """VGG-16 with a batch norm behind every convolution, as torchvision's ``vgg16_bn``."""
    return vgg16(num_classes, form, width, batch_norm=True)


def batch_norm_convs() -> dict[str, str]:
    """The papers' layer names to the module names of :func:`vgg16_bn`, where a batch norm takes a place too."""
    names, place = {}, 0
    for entry in _LAYOUT:
        if isinstance(entry, tuple):
            names[entry[0]] = f"features.{place}"
        place += 3 if isinstance(entry, tuple) else 1
    return names
