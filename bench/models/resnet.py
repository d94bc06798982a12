"""The ImageNet ResNets (He et al. 2016) with torchvision's module names, the Caffe stride (v1) or v1.5, any width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18); ``caffe_stride`` makes no difference here."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, caffe_stride: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x planes x H/stride x W/stride."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; v1 (Caffe) strides in the first 1x1, v1.5 (torchvision) in the 3x3."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, caffe_stride: bool) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, stride if caffe_stride else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1 if caffe_stride else stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x 4*planes x H/stride x W/stride."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Four stages of ``blocks`` blocks; ``width`` scales every channel count; ``small_input``: 3x3 stem, no pooling.

    Input N x 3 x H x W; the state dict is torchvision's.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        num_classes: int,
        width: float,
        caffe_stride: bool,
        small_input: bool,
    ) -> None:
        super().__init__()
        base = max(1, round(64 * width))
        self.conv1 = nn.Conv2d(
            3, base, 3 if small_input else 7, 1 if small_input else 2, 1 if small_input else 3, bias=False
        )
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, 1)
        inputs = base
        for stage, count in enumerate(blocks):
            planes, members = base * 2**stage, []
            for index in range(count):
                members.append(block(inputs, planes, 2 if stage and index == 0 else 1, caffe_stride))
                inputs = planes * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*members))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x num_classes logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # type: ignore[operator]
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def resnet18(num_classes: int = 1000, width: float = 1.0, small_input: bool = False) -> nn.Module:
    """ResNet-18: 1,814,073,344 MACs at 224x224."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, width, False, small_input)


def resnet50(
    num_classes: int = 1000, width: float = 1.0, caffe_stride: bool = False, small_input: bool = False
) -> nn.Module:
    """ResNet-50: v1.5 by default (4,089,184,256 MACs at 224x224), v1 with ``caffe_stride`` (3.858 GMACs)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, width, caffe_stride, small_input)


def bottleneck_resnet(
    num_classes: int = 10, width: float = 0.25, blocks: Sequence[int] = (2, 2, 2, 2), caffe_stride: bool = True
) -> nn.Module:
    """ResNet-50's pattern at any depth with a stem for small images: its stand-in at the embedded scale."""
    return ResNet(Bottleneck, tuple(blocks), num_classes, width, caffe_stride, True)
