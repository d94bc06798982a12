"""The pre-activation ResNets for 32x32 images (He et al. 2016b): 6n + 2 layers, three stages, 1x1 projections."""

from __future__ import annotations

from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; where the shape changes a 1x1 convolution projects.

    The shortcut of a stage's ``first`` block, projected or not, reads what the first batch norm and ReLU give.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.projection = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H/stride x W/stride."""
        active = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        shortcut = active if self.first else x
        return out + (shortcut if self.projection is None else self.projection(shortcut))  # type: ignore[no-any-return]


class PreActResNet(nn.Module):
    """``depth`` = 6n + 2; ``width`` scales the 16, 32 and 64 channels of the stages; input N x 3 x H x W."""

    def __init__(self, depth: int, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2, not {depth}")
        channels = [max(1, round(c * width)) for c in (16, 32, 64)]
        self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        inputs = channels[0]
        for stage, outputs in enumerate(channels, start=1):
            blocks = []
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(PreActBlock(inputs, outputs, stride, first=index == 0))
                inputs = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x num_classes logits."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))  # type: ignore[operator]
        return self.linear(self.pool(self.relu(self.bn(x))).flatten(1))  # type: ignore[no-any-return]
