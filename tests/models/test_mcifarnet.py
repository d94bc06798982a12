"""M-CifarNet against the table worked out from the layer shapes, and its padding against TensorFlow's rule."""

import pytest
import torch
from torch import nn

from bench.measure.macs import count
from bench.models.mcifarnet import MCifarNet, same_padding
from bench.models.recipe import Recipe

# inputs, filters, side of the output, MACs, weights
TABLE = {
    "conv0": (3, 64, 30, 1_555_200, 1_728),
    "conv1": (64, 64, 30, 33_177_600, 36_864),
    "conv2": (64, 128, 15, 16_588_800, 73_728),
    "conv3": (128, 128, 15, 33_177_600, 147_456),
    "conv4": (128, 128, 15, 33_177_600, 147_456),
    "conv5": (128, 192, 8, 14_155_776, 221_184),
    "conv6": (192, 192, 8, 21_233_664, 331_776),
    "conv7": (192, 192, 8, 21_233_664, 331_776),
}


def test_every_layer_of_the_table() -> None:
    recipe = Recipe("mcifarnet", {}, (3, 32, 32))
    model = recipe.build("meta")
    counted = count(model, (3, 32, 32))
    assert counted.conv == {name: row[3] for name, row in TABLE.items()}
    assert counted.fc == {"logits": 1_920}
    assert counted.total("conv+fc") == 174_301_824
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {name: conv.weight.numel() for name, conv in convs.items()} == {name: row[4] for name, row in TABLE.items()}
    assert sum(conv.weight.numel() for conv in convs.values()) + 1_920 == 1_293_888
    assert {name: (conv.in_channels, conv.out_channels) for name, conv in convs.items()} == {
        name: row[:2] for name, row in TABLE.items()
    }


@pytest.mark.parametrize(
    ("side", "stride", "expected"),
    [(30, 2, (0, 1)), (15, 2, (1, 1)), (14, 2, (0, 1)), (7, 2, (1, 1)), (30, 1, (1, 1)), (9, 1, (1, 1))],
)
def test_same_padding(side: int, stride: int, expected: tuple[int, int]) -> None:
    """The outputs are ceil(side / stride), and the odd row goes behind (TensorFlow's documentation)."""
    assert same_padding(side, 3, stride) == expected
    assert (side + sum(expected) - 3) // stride + 1 == -(-side // stride)


@pytest.mark.parametrize(("side", "sides"), [(32, (30, 15, 8)), (16, (14, 7, 4)), (17, (15, 8, 4))])
def test_the_windows_of_the_strided_layers_lie_as_tensorflow_s(side: int, sides: tuple[int, int, int]) -> None:
    """The first output of conv2 reads rows 0 to 2 of an even input and rows -1 to 1 of an odd one."""
    model = MCifarNet(width=0.125, side=side).eval()
    for number, before in ((2, sides[0]), (5, sides[1])):
        conv = model.get_submodule(f"conv{number}")
        assert isinstance(conv, nn.Conv2d)
        x = torch.randn(1, conv.in_channels, before, before, requires_grad=True)
        padded = model.get_submodule(f"pad{number}")(x) if f"pad{number}" in model.order else x
        y = conv(padded)
        assert y.shape[2] == -(-before // 2) == sides[1 if number == 2 else 2]
        y[0, :, 0, 0].sum().backward()
        assert x.grad is not None
        touched = x.grad.abs().sum((0, 1, 3)).nonzero()[:, 0].tolist()
        assert touched == ([0, 1, 2] if before % 2 == 0 else [0, 1])


def test_width_side_and_dropout() -> None:
    model = MCifarNet(num_classes=7, width=0.5, side=16, dropout=0.25)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    assert model.order.index("drop3") == model.order.index("relu3") + 1
    assert model.order.index("drop6") == model.order.index("relu6") + 1
