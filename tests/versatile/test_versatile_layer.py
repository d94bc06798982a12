"""The versatile convolution against a loop over every output, every filter and every place of its mask."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.measure import macs
from bench.versatile.layer import Options, VersatileConv2d, crops_of

# how the layer computes its maps
EXECUTIONS = ("cropped", "one", "shared")


def naive(x: Tensor, layer: VersatileConv2d, conv: nn.Conv2d, options: Options, padding: tuple[int, int]) -> Tensor:
    """The definition, output by output: group, window, mask, primary filter, place, channel, row, column."""
    (kh, kw), (sh, sw), (dh, dw), groups = conv.kernel_size, conv.stride, conv.dilation, conv.groups
    c, per_group = conv.in_channels // groups, conv.out_channels // groups
    s = math.ceil(min(kh, kw) / 2) if options.spatial else 1
    g = max(1, round(options.shift * c))
    n_c = options.windows
    while c - (n_c - 1) * g < 1:
        n_c -= 1
    c_hat = c - (n_c - 1) * g
    added = options.aggregate == "add"
    m = math.ceil(per_group / (n_c * (1 if added else s)))
    assert layer.weight.shape == (groups * m, c, kh, kw)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    out = torch.zeros(len(x), conv.out_channels, height, width, dtype=x.dtype)
    for group in range(groups):
        place = 0
        for window in range(n_c):
            for masks in [list(range(s))] if added else [[i] for i in range(s)]:
                for primary in range(m):
                    if place == per_group:
                        break
                    weight = layer.weight[group * m + primary]
                    for i in masks:
                        for k in range(c_hat):
                            read = x[:, group * c + window * g + k]
                            own = weight[k if options.channels == "released" else window * g + k]
                            for a in range(i, kh - i):
                                for b in range(i, kw - i):
                                    seen = read[:, a * dh :: sh, b * dw :: sw][:, :height, :width]
                                    out[:, group * per_group + place] += own[a, b] * seen
                    if layer.bias is not None:
                        out[:, group * per_group + place] += layer.bias[group * per_group + place]
                    place += 1
    return out


CASES = [
    ((4, 6, 3), {"padding": 1}, {}),
    ((4, 7, 3), {"padding": 1, "stride": 2, "bias": False}, {}),  # one map to spare
    ((3, 10, 7), {"padding": 3, "stride": 2}, {}),
    ((3, 11, 6), {"padding": 2}, {}),  # masks of side 6, 4 and 2
    ((4, 9, 4), {"stride": 3}, {}),
    ((4, 5, 5), {"padding": 0, "dilation": 2}, {}),
    ((4, 7, (3, 5)), {"padding": (0, 2), "stride": (2, 1)}, {}),
    ((6, 10, 3), {"padding": 1, "groups": 2}, {}),
    ((8, 13, 3), {"padding": 1}, {"windows": 2, "shift": 0.25}),
    ((8, 13, 3), {"padding": 1}, {"windows": 3, "shift": 0.25, "channels": "released"}),
    ((8, 9, 1), {"stride": 2}, {"windows": 2}),
    ((12, 18, 3), {"padding": 1, "groups": 3}, {"windows": 2, "shift": 0.25}),
    ((8, 6, 3), {"padding": 2}, {"windows": 2, "spatial": False, "shift": 0.5}),
    ((1, 6, 3), {"padding": 1}, {"windows": 2}),  # one channel has one window
    ((10, 7, 3), {"padding": 1}, {"windows": 3, "shift": 0.4}),  # windows that leave channels out
    ((8, 7, 1), {"groups": 1}, {"windows": 5, "shift": 0.25}),  # four of two channels each
    ((4, 6, 5), {"padding": 2}, {"aggregate": "add"}),
    ((8, 7, 5), {"padding": 1, "groups": 1}, {"aggregate": "add", "windows": 2}),
    ((2, 1, 5), {"padding": 2}, {}),  # no map is left for the smaller masks
    ((4, 4, 3), {"padding": 1, "groups": 4}, {}),
]


@pytest.mark.parametrize(("shape", "settings", "options"), CASES)
def test_the_layer_computes_the_definition_in_every_way(shape: tuple, settings: dict, options: dict) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(*shape, **settings).double()
    chosen = Options(**options)
    layer = VersatileConv2d(conv, chosen)
    nn.init.normal_(layer.weight)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(2, shape[0], 13, 15, dtype=torch.double)
    padding = conv.padding
    assert isinstance(padding, tuple)
    expected = naive(x, layer, conv, chosen, padding)
    assert expected.shape == conv(x).shape
    for execution in EXECUTIONS:
        layer.execution = execution
        torch.testing.assert_close(layer(x), expected, rtol=0.0, atol=1e-10)
    layer.float()
    for execution in EXECUTIONS:
        layer.execution = execution
        y = layer(x.float().to(memory_format=torch.channels_last))
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(
    ("channels", "options", "few"),
    [(8, {}, True), (9, {}, False), (64, {"windows": 2}, True), (65, {"windows": 2}, False)],
)
def test_few_channels_train_by_one_convolution(
    channels: int, options: dict, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = VersatileConv2d(nn.Conv2d(channels, 8, 3, padding=1), Options(**options))
    layer.initialise()
    seen = []
    convolution = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, weight, *more: seen.append(len(weight)) or convolution(x, weight, *more))
    x = torch.randn(1, channels, 5, 5)
    layer.train()
    trained = layer(x)
    assert (seen == [8]) == few
    seen.clear()
    layer.eval()
    torch.testing.assert_close(layer(x), trained, rtol=1e-4, atol=1e-4)
    assert len(seen) == len(layer.blocks) and sum(seen) == 8


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_uneven_and_other_paddings(mode: str) -> None:
    """Same padding of an even kernel; a filter in full is what torch's own convolution computes."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 4, padding="same", padding_mode=mode)
    layer = VersatileConv2d(conv)
    layer.initialise()
    x = torch.randn(2, 3, 9, 10)
    own = nn.Conv2d(3, 3, 4, padding="same", padding_mode=mode, bias=False)
    own.weight.data = layer.weight.data
    inner = nn.Conv2d(3, 3, 4, padding="same", padding_mode=mode, bias=False)
    inner.weight.data = layer.weight.data * F.pad(torch.ones(2, 2), (1, 1, 1, 1))
    for execution in EXECUTIONS:
        layer.execution = execution
        torch.testing.assert_close(layer(x), torch.cat([own(x), inner(x)], 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "sides"), [(1, [1]), (2, [2]), (3, [3, 1]), (6, [6, 4, 2]), (7, [7, 5, 3, 1]), (11, [11, 9, 7, 5, 3, 1])]
)
def test_nested_masks(kernel: int, sides: list[int]) -> None:
    assert [kernel - 2 * crop for crop in crops_of((kernel, kernel))] == sides


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("options", [{}, {"windows": 2, "shift": 0.25}, {"aggregate": "add"}])
def test_gradients_of_filters_biases_and_inputs_are_numerical_ones(execution: str, options: dict) -> None:
    torch.manual_seed(0)
    layer = VersatileConv2d(nn.Conv2d(4, 5, 3, stride=2, padding=1).double(), Options(**options))
    layer.initialise()
    layer.execution = execution
    assert layer.bias is not None

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    x = torch.randn(1, 4, 5, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, layer.weight, layer.bias))


def test_multiplications_are_those_of_the_cropped_filters() -> None:
    """n/s maps of each mask, 9 and 1 places; both counters agree, and what is executed changes nothing declared."""
    model = nn.Sequential(VersatileConv2d(nn.Conv2d(16, 32, 3, padding=1, bias=False), Options(windows=2)))
    example = (16, 8, 8)
    # c_hat = 15; 32 maps of 8 primaries, two windows, two masks
    expected = 64 * 15 * (16 * 9 + 16 * 1)
    assert macs.count(model, example).total("conv+fc") == expected
    assert sum(p.numel() for p in model.parameters()) == 8 * 16 * 9
    layer = model[0]
    assert isinstance(layer, VersatileConv2d)
    assert layer.training and layer.few  # counted is what evaluation computes
    layer.execution = "one"
    assert layer.macs(torch.Size((1, *example)), torch.Size((1, 32, 8, 8))) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": "code"}, "unknown channels 'code': choose one of paper, released"),
        ({"aggregate": "sum"}, "unknown aggregate 'sum': choose one of concatenate, add"),
        ({"windows": 0}, "0 windows that move by"),
        ({"shift": 1.0}, "windows that move by 1.0"),
    ],
)
def test_wrong_options_are_user_errors(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Options(**fields)
