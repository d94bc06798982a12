"""Dynamic MACs against the table derived from the shapes, against what hooks see, and against hand counts."""

import math

import pytest
import torch
from torch import Tensor, nn

from bench.gating.convert import convert
from bench.gating.flow import Flow
from bench.gating.layer import PAPER, GatedConv2d, gated_layers
from bench.measure import dynamic, macs, memory
from bench.models.recipe import Recipe
from bench.models.resnet import resnet18
from bench.models.vgg import batch_norm_convs

# M-CifarNet: millions of MACs, convolutions and classifier, then with the gates (worked out from the layer shapes)
# fmt: off
TABLE = {
    1000: (174.30, 174.68), 900: (142.82, 143.19), 800: (113.44, 113.79), 700: (86.50, 86.84), 600: (64.01, 64.33),
    500: (43.97, 44.28), 400: (28.93, 29.23), 300: (16.65, 16.93), 200: (7.45, 7.71), 100: (2.05, 2.30),
}
# fmt: on
LAYERS = [
    (3, 64, 30),
    (64, 64, 30),
    (64, 128, 15),
    (128, 128, 15),
    (128, 128, 15),
    (128, 192, 8),
    (192, 192, 8),
    (192, 192, 8),
]


def gated(base: Recipe, density: int, ungated: tuple[str, ...] = ()) -> nn.Module:
    return base.gated(density, ungated=ungated).build("meta")


@pytest.mark.parametrize("density", TABLE)
def test_the_derived_table_of_m_cifarnet(density: int) -> None:
    counted = dynamic.expected(gated(Recipe("mcifarnet", {}, (3, 32, 32)), density), (3, 32, 32))
    assert (round(float(counted.macs.sum()) / 1e6, 2), round(float(counted.totals[0]) / 1e6, 2)) == TABLE[density]

    # and to the last MAC
    def k(channels: int) -> int:
        return channels if channels == 3 else math.ceil(density * channels / 1000)

    convs = sum(9 * k(i) * k(o) * side * side for i, o, side in LAYERS)
    gates = sum(k(i) * o + side * side * o for i, o, side in LAYERS)
    assert float(counted.macs.sum()) == pytest.approx(convs + 1920, abs=1e-3)
    assert float(counted.gates.sum()) == pytest.approx(gates, abs=1e-3)
    assert counted.dense == 174_301_824


def test_the_headline() -> None:
    """43.97 M, 44.28 M with the gates, 3.94x."""
    counted = dynamic.expected(gated(Recipe("mcifarnet", {}, (3, 32, 32)), 500), (3, 32, 32))
    values = {record.metric: record.value for record in counted.records(None)}
    assert round(values["dynamic_macs"] / 1e6, 2) == 44.28
    assert round(values["dynamic_speedup"], 2) == 3.94


B22 = ("layer2.1.conv1", "layer2.1.conv2")


@pytest.mark.parametrize(
    ("density", "ungated", "speedup"),
    [
        (800, (), 1.41),
        (700, (), 1.76),
        (650, (), 1.99),
        (600, (), 2.27),
        (700, B22, 1.62),
        (650, B22, 1.79),
        (600, B22, 1.98),
    ],
)
def test_the_rules_of_resnet18(density: int, ungated: tuple[str, ...], speedup: float) -> None:
    """Union at additions; with block b22 not gated the paper's 1.62x (d = 0.7) and 1.98x (d = 0.6)."""
    base = Recipe("resnet18", {}, (3, 224, 224))
    counted = dynamic.expected(gated(base, density, ungated), base.input_shape)
    assert round(counted.dense / float(counted.totals[0]), 2) == speedup
    assert counted.dense == 1_814_073_344


def test_the_slimmed_vgg16() -> None:
    """7.905 G; 2.905 G at d = 0.6 with the masks carried through pooling and flattening."""
    widths = dict(
        zip(batch_norm_convs().values(), (16, 48, 70, 110, 143, 170, 232, 378, 399, 413, 456, 435, 512), strict=True)
    )
    base = Recipe("vgg16_bn", {}, (3, 224, 224)).removed(widths)
    assert round(macs.count(base.build("meta"), base.input_shape).total("conv+fc") / 1e9, 3) == 7.905
    counted = dynamic.expected(gated(base, 600), base.input_shape)
    assert round(float(counted.macs.sum()) / 1e9, 3) == 2.905


def test_real_masks_against_what_hooks_see() -> None:
    """Every active channel is nonzero here, so the tensors that the layers get and give show what was computed."""
    torch.manual_seed(0)
    model = resnet18(10, 0.125, True)
    convert(model, 600, PAPER, B22)
    for layer in gated_layers(model).values():
        nn.init.constant_(layer.beta, 6.0)
        nn.init.uniform_(layer.gate.bias, 1.0, 2.0)
        nn.init.uniform_(layer.gate.weight, 0.0, 0.1)
        layer.momentum = 1.0
    for name in ("layer2.1.bn1", "layer2.1.bn2"):
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.constant_(norm.bias, 6.0)
        norm.momentum = 1.0
    model.double().train()(torch.randn(32, 3, 16, 16, dtype=torch.float64))
    model.eval()
    x = torch.randn(7, 3, 16, 16, dtype=torch.float64)
    expected: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        read = (inputs[0] != 0).flatten(2).any(2).sum(1)
        gives = (output != 0).flatten(2).any(2).sum(1)
        positions = output[0, 0].numel()
        total = module.kernel_size[0] ** 2 * read * gives * positions
        if isinstance(module, GatedConv2d):
            total = total + (read + positions) * module.out_channels
        expected.append(total)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)  # type: ignore[arg-type]
    counter = dynamic.Counter(model, (3, 16, 16))
    expected.clear()  # the counter has sent zeros through
    with torch.no_grad():
        for part in (x[:3], x[3:]):
            model(part)
            counter.add(dynamic.applied(model), len(part))
    counted = counter.result()
    per_layer = [torch.cat([expected[i], expected[i + 20]]) for i in range(20)]
    wanted = torch.stack(per_layer).sum(0) + 64 * 10
    torch.testing.assert_close(counted.totals, wanted.double(), rtol=1e-12, atol=0)
    assert len(set(counted.totals.tolist())) > 1  # unions differ from image to image
    values = {record.metric: record.value for record in counted.records(0)}
    assert values["dynamic_macs_p5"] <= values["dynamic_macs_p50"] <= values["dynamic_macs_p95"]
    assert values["dynamic_macs"] == pytest.approx(float(wanted.double().mean()))


def test_networks_without_gates_have_their_static_macs() -> None:
    model = resnet18(10, 0.125, True)
    counted = dynamic.expected(model, (3, 16, 16))
    static = macs.count(model, (3, 16, 16))
    assert float(counted.totals[0]) == static.total("conv+fc") == counted.dense
    assert {row["layer"]: row["macs"] for row in counted.table()} == {**static.conv, **static.fc}


def tiny(density: int = 500) -> nn.Module:
    """Two gated layers on 4x4: 2 -> 4 (3x3), pooled to 2x2, 4 -> 6 (1x1), then 24 features to 3 classes."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3, bias=False),
    )
    convert(model, density)
    return model


MASKS = {
    "0": torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]).bool(),
    "4": torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]).bool(),
}


def test_counts_and_used_weights_by_hand() -> None:
    counter = dynamic.Counter(tiny(), (2, 4, 4))
    counter.add({name: mask[:1] for name, mask in MASKS.items()}, 1)
    counter.add({name: mask[1:] for name, mask in MASKS.items()}, 1)
    counted = counter.result()
    assert counted.macs.tolist() == [[2 * 2 * 9 * 16, 2 * 3 * 4, 72]] * 2
    assert counted.gates.tolist() == [[(2 + 16) * 4, (2 + 4) * 6, 0]] * 2
    # channels 0, 1, 2 of the first layer are used by some image, 0, 1, 2 of the second
    torch.testing.assert_close(counted.used, torch.tensor([3 / 4, 3 / 4 * 3 / 6, 1.0]).double())
    whole, used = 72 + 24 + 72, 72 * 3 / 4 + 24 * 3 / 8 + 72
    assert counted.records(None)[-1].value == pytest.approx(whole / used)


def test_memory_by_hand() -> None:
    flow = Flow(tiny(), (2, 4, 4))
    one = memory.batch_memory(flow, {name: mask[:1] for name, mask in MASKS.items()}, 1)
    # filters, phi, and rho and beta; the classifier's columns of the three active channels
    first, second, last = 2 * 2 * 9 + 2 * 4 + 8, 2 * 3 + 2 * 6 + 12, 3 * 12
    assert one.weights == 4 * (first + second + last)
    # 2x16 in, 2x16 out; 2x4 in, 3x4 out; 12 in, 3 out
    assert one.activations == 4 * (32 + 32 + 8 + 12 + 12 + 3)
    assert one.peak == 4 * max(32 + 32 + first, 32 + 8, 8 + 12 + second, 12 + 3 + last)
    both = memory.batch_memory(flow, MASKS, 2)
    # two images together need filters 0, 1, 2 and, of the second layer, the columns 0, 1, 2
    first, second = 2 * 3 * 9 + 2 * 4 + 8, 3 * 3 + 3 * 6 + 12
    assert both.weights == 4 * (first + second + last)
    assert both.activations == 2 * one.activations
    found = {record.metric: record for record in memory.records(flow, MASKS, (1, 2, 128), 0)}
    assert found["memory_weights_batch1"].value == one.weights / 1e6
    assert found["memory_weights_batch2"].value == both.weights / 2 / 1e6
    assert found["memory_peak_batch2"].value == both.peak / 1e6
    assert "memory_peak_batch128" not in found


def test_memory_of_a_dense_network_is_its_weights() -> None:
    """VGG-16's convolutions hold 56.1 MiB of weights."""
    model = Recipe("vgg16", {}, (3, 224, 224)).build("meta")
    flow = Flow(model, (3, 224, 224))
    values = {record.metric: record.value for record in memory.records(flow, {}, (1,), 0)}
    fc = 4 * (25_088 * 4096 + 4096 * 4096 + 4096 * 1000)
    assert round((values["memory_weights_batch1"] * 1e6 - fc) / 2**20, 1) == 56.1
