"""M-CifarNet (Gao et al. 2019, appendix; deep-fry/mayo models/cifarnet.yaml): eight 3x3 convolutions and a classifier.

174,301,824 MACs and 1,293,888 weights at 32x32.  TensorFlow's SAME padding at stride 2 is asymmetric on even inputs:
one row and column at the bottom and the right, none at the top and the left, which PyTorch's ``padding=1`` is not.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

# filters at full width, stride, padding; dropout follows conv3 and conv6
# fmt: off
_LAYOUT = [
    (64, 1, "valid"), (64, 1, "same"), (128, 2, "same"), (128, 1, "same"),
    (128, 1, "same"), (192, 2, "same"), (192, 1, "same"), (192, 1, "same"),
]
# fmt: on
_DROPOUT_BEHIND = (3, 6)


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one dimension: (before, after); the odd row goes behind."""
    total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
    return total // 2, total - total // 2


class MCifarNet(nn.Module):
    """``width`` scales every layer; ``side`` is the input's height and width; ``dropout`` drops that share of features.

    Input N x 3 x side x side; modules ``conv0`` … ``conv7`` (with ``bn``, ``relu``, where needed ``pad`` and ``drop``
    of the same number), ``pool`` and ``logits``.
    """

    def __init__(self, num_classes: int = 10, width: float = 1.0, side: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = 3
        for number, (filters, stride, rule) in enumerate(_LAYOUT):
            outputs = max(1, round(filters * width))
            before, after = same_padding(side, 3, stride) if rule == "same" else (0, 0)
            if before != after:
                layers[f"pad{number}"] = nn.ZeroPad2d((before, after, before, after))
            padding = before if before == after else 0
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False)
            layers[f"bn{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{number}"] = nn.ReLU()
            if number in _DROPOUT_BEHIND:
                layers[f"drop{number}"] = nn.Dropout(dropout)
            inputs, side = outputs, (side + before + after - 3) // stride + 1
        for name, module in layers.items():
            self.add_module(name, module)
        self.order = list(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        # a 1x1 convolution on the 1x1 map in the paper: the same function
        self.logits = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x side x side to N x num_classes logits."""
        for name in self.order:
            x = getattr(self, name)(x)
        return self.logits(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def mcifarnet(num_classes: int = 10, width: float = 1.0, side: int = 32, dropout: float = 0.5) -> nn.Module:
    """M-CifarNet; see :class:`MCifarNet`."""
    return MCifarNet(num_classes, width, side, dropout)
