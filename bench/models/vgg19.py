"""VGG-19 with batch norm in its CIFAR form: sixteen 3x3 convolutions, four poolings, a mean, one linear layer."""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import VGG, make_layers

# filters at full width by stage; a 2x2 max pooling between two of them
STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
# the module names of the convolutions: a batch norm and a ReLU follow each, a pooling each stage but the last
CONVS = tuple(
    f"features.{3 * number + stage}"
    for number, stage in enumerate(stage for stage, filters in enumerate(STAGES) for _ in filters)
)


def vgg19_bn(num_classes: int = 10, width: float = 1.0) -> nn.Module:
    """VGG-19 of Liu et al. (2017) and Zhuang et al. (2018); ``width`` scales every layer; input N x 3 x 32 x 32."""
    layers: list[int | str] = []
    for filters in STAGES:
        layers += [max(1, round(count * width)) for count in filters]
        layers.append("M")
    model: nn.Module = VGG(
        make_layers(layers[:-1], batch_norm=True),  # type: ignore[arg-type]
        num_classes=num_classes,
        init_weights=False,
    )
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(max(1, round(512 * width)), num_classes))
    return model
