"""AlexNet as Caffe has it (Krizhevsky et al. 2012): two groups in conv2, conv4 and conv5; fc6 to fc8 as convolutions.

Input N x 3 x 227 x 227: 60,954,656 weights (232.5 MiB), 724,406,816 multiply-accumulates.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def alexnet(num_classes: int = 1000) -> nn.Module:
    """The network, by Caffe's names of layers; the local response norms stand behind the poolings' inputs, as there."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 96, 11, stride=4)),
        ("relu1", nn.ReLU()),
        ("norm1", nn.LocalResponseNorm(5)),
        ("pool1", nn.MaxPool2d(3, 2)),
        ("conv2", nn.Conv2d(96, 256, 5, padding=2, groups=2)),
        ("relu2", nn.ReLU()),
        ("norm2", nn.LocalResponseNorm(5)),
        ("pool2", nn.MaxPool2d(3, 2)),
        ("conv3", nn.Conv2d(256, 384, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(384, 384, 3, padding=1, groups=2)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(384, 256, 3, padding=1, groups=2)),
        ("relu5", nn.ReLU()),
        ("pool5", nn.MaxPool2d(3, 2)),
        ("fc6", nn.Conv2d(256, 4096, 6)),
        ("relu6", nn.ReLU()),
        ("drop6", nn.Dropout()),
        ("fc7", nn.Conv2d(4096, 4096, 1)),
        ("relu7", nn.ReLU()),
        ("drop7", nn.Dropout()),
        ("fc8", nn.Conv2d(4096, num_classes, 1)),
        ("flatten", nn.Flatten()),
    ]
    return nn.Sequential(OrderedDict(layers))
