"""MACs against published integers, released widths and shapes worked out by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.measure import macs
from bench.measure.macs import Macs, count
from bench.models.recipe import Recipe
from bench.models.vgg import CONVS

IMAGENET = (3, 224, 224)


@pytest.mark.parametrize(
    ("builder", "arguments", "shape", "convention", "published"),
    [
        ("vgg16", {}, IMAGENET, "conv+fc", 15_470_264_320),
        ("vgg16", {}, IMAGENET, "conv", 15_346_630_656),
        ("vgg16", {}, IMAGENET, "2x", 30_940_528_640),
        ("resnet50", {}, IMAGENET, "conv+fc", 4_089_184_256),
        ("resnet50", {"caffe_stride": True}, IMAGENET, "conv+fc", 3_857_973_248),
        ("resnet18", {}, IMAGENET, "conv+fc", 1_814_073_344),
        ("cifar_resnet56", {}, (3, 32, 32), "conv", 125_485_056),
    ],
)
def test_published_totals(
    builder: str, arguments: dict[str, object], shape: tuple[int, int, int], convention: str, published: int
) -> None:
    assert count(Recipe(builder, arguments, shape).build("meta"), shape).total(convention) == published


# He et al. 2017, released networks: filters of conv1_1 to conv4_3
VGG_WIDTHS = {
    2.129: (11, 64, 55, 128, 148, 104, 256, 221, 421, 512),
    3.868: (12, 64, 21, 128, 73, 58, 256, 121, 166, 512),
    4.525: (24, 22, 41, 51, 108, 89, 111, 184, 276, 228),
}


@pytest.mark.parametrize("speedup", VGG_WIDTHS)
def test_released_vgg_networks(speedup: float) -> None:
    """The speed-up of the convolutions, to the digits that are known."""
    names = list(CONVS.values())
    widths = dict(zip(names, VGG_WIDTHS[speedup], strict=False))
    pruned = count(Recipe("vgg16", {}, IMAGENET).removed(widths).build("meta"), IMAGENET).total("conv")
    assert round(15_346_630_656 / pruned, 3) == speedup


# the released ResNet-50 2x: for each block channels read by 2a's sampler, filters of 2a, filters of 2b
RESNET_WIDTHS = {
    "layer1": [(35, 64, 55), (101, 51, 39), (97, 50, 37)],
    "layer2": [(144, 128, 106), (205, 105, 72), (198, 105, 72), (288, 128, 110)],
    "layer3": [(278, 256, 225), (418, 209, 147), (407, 204, 158), (423, 212, 155), (412, 211, 148), (595, 256, 213)],
    "layer4": [(606, 512, 433), (1222, 512, 437), (1147, 512, 440)],
}


def test_released_resnet50() -> None:
    """1.485x on the Caffe graph, although the paper calls it 2x."""
    widths: dict[str, int] = {}
    samplers: dict[str, list[int]] = {}
    for stage, blocks in RESNET_WIDTHS.items():
        for block, (read, first, second) in enumerate(blocks):
            name = f"{stage}.{block}"
            samplers[f"{name}.conv1"] = list(range(read))
            widths[f"{name}.conv1"], widths[f"{name}.conv2"] = first, second
    arguments = {"caffe_stride": True}
    dense = count(Recipe("resnet50", arguments, IMAGENET).build("meta"), IMAGENET).total("conv")
    pruned = Recipe("resnet50", arguments, IMAGENET).sampled(samplers).removed(widths)
    assert round(dense / count(pruned.build("meta"), IMAGENET).total("conv"), 3) == 1.485


@pytest.mark.parametrize(
    ("layer", "shape", "conv", "fc"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (4, 5, 7), 6 * 5 * 7 * 4 * 9, 0),
        (nn.Conv2d(4, 6, 3, stride=2, bias=False), (4, 7, 9), 6 * 3 * 4 * 4 * 9, 0),
        (nn.Conv2d(4, 6, (1, 3), dilation=2), (4, 5, 7), 6 * 5 * 3 * 4 * 3, 0),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 7), 6 * 5 * 7 * 2 * 9, 0),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 5, 7), 8 * 5 * 7 * 1 * 9, 0),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 7), 4 * 5 * 7 * 6 * 9, 0),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 5, 7), 4 * 5 * 7 * 3 * 4, 0),
        (nn.Sequential(nn.Flatten(), nn.Linear(4 * 5 * 7, 11)), (4, 5, 7), 0, 4 * 5 * 7 * 11),
        (nn.Linear(7, 3), (4, 5, 7), 0, 4 * 5 * 7 * 3),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Softmax(1)), (4, 6, 6), 0, 0),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_single_layers_by_hand(layer: nn.Module, shape: tuple[int, int, int], conv: int, fc: int, device: str) -> None:
    """Outputs times the products behind each; a transposed convolution spends k*k products on each input."""
    counted = count(layer.to(device) if device == "cpu" else type_on_meta(layer), shape)
    assert (sum(counted.conv.values()), sum(counted.fc.values())) == (conv, fc)
    assert counted.params == sum(p.numel() for p in layer.parameters())
    assert counted.total("conv") == conv
    assert counted.total("conv+fc") == conv + fc
    assert counted.total("2x") == 2 * (conv + fc)


def type_on_meta(layer: nn.Module) -> nn.Module:
    """A copy without storage."""
    return copy.deepcopy(layer).to("meta")


def test_layers_called_twice_count_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))  # type: ignore[no-any-return]

    counted = count(Twice(), (3, 4, 4))
    assert counted.conv == {"conv": 2 * 3 * 3 * 16}
    assert counted.params == 12


def test_names_are_those_of_the_modules() -> None:
    counted = count(Recipe("cifar_resnet20", {}, (3, 32, 32)).build("meta"), (3, 32, 32))
    assert counted.conv["conv1"] == 16 * 32 * 32 * 27
    assert counted.conv["layer2.0.conv1"] == 32 * 16 * 16 * 16 * 9
    assert counted.fc == {"linear": 640}
    assert len(counted.conv) == 19


class Strange(nn.Module):
    """A convolution and one operation more."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to whatever the operation gives."""
        x = self.conv(x)
        if self.operation == "fft":
            return torch.fft.fft2(x)  # type: ignore[no-any-return]
        if self.operation == "inv":
            return torch.linalg.inv(x + 10.0 * torch.eye(4))  # type: ignore[no-any-return]
        return x.cumsum(1)


@pytest.mark.parametrize(("operation", "named"), [("fft", "fft"), ("inv", "inv"), ("cumsum", "cumsum")])
def test_unknown_operations_are_named(operation: str, named: str) -> None:
    model = Strange(operation).train()
    with pytest.raises(UserError, match=rf"no MAC count is known.*{named}"):
        count(model, (3, 4, 4))
    assert model.training
    assert not model.conv._forward_hooks


def test_products_outside_of_layers_are_not_lost() -> None:
    """A matrix product in the forward function costs MACs that no layer accounts for: it must not pass in silence."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) @ x.transpose(2, 3)  # type: ignore[no-any-return]

    with pytest.raises((UserError, RuntimeError)):
        count(Product(), (3, 4, 4))


class Shifted(nn.Module):
    """A 1x1 convolution computed with a part of a larger filter: its products are in no layer of torch's."""

    def __init__(self, declared: int | None = None) -> None:
        super().__init__()
        self.filters = nn.Conv2d(4, 6, 3)
        self.declared = declared

    def forward(self, x: Tensor) -> Tensor:
        """N x 4 x H x W to N x 6 x H x W."""
        return nn.functional.conv2d(x, self.filters.weight[:, :, 1:2, 1:2])


class Declared(Shifted):
    """The same, which says what it costs."""

    def macs(self, x: torch.Size, y: torch.Size) -> int:
        """Four products for each output."""
        assert tuple(x) == (1, 4, 5, 7) and tuple(y) == (1, 6, 5, 7)
        return 4 * y.numel() if self.declared is None else self.declared


class Vectors(nn.Module):
    """A product of vectors, which says what it costs; what is in it would count by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4 * 5 * 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        """N x 4 x H x W to N x 3."""
        return self.inner(x.flatten(1)) @ torch.ones(3, 3, device=x.device)  # type: ignore[no-any-return]

    def macs(self, x: torch.Size, y: torch.Size) -> int:
        """Both products."""
        return 3 * x[1:].numel() + 9


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_modules_say_how_they_are_counted(device: str) -> None:
    """Maps are a convolution's, vectors a fully connected layer's; the module stands for all that is in it."""
    model = nn.Sequential(Declared(), nn.ReLU(), nn.Conv2d(6, 2, 1)).to(device)
    counted = count(model, (4, 5, 7))
    assert counted.conv == {"0": 4 * 6 * 5 * 7, "2": 6 * 2 * 5 * 7} and counted.fc == {}
    assert count(Declared().to(device), (4, 5, 7)).conv == {"": 4 * 6 * 5 * 7}
    counted = count(nn.ModuleDict({"head": Vectors()})["head"].to(device), (4, 5, 7))
    assert counted.fc == {"": 3 * 4 * 5 * 7 + 9} and counted.conv == {}


def test_what_a_module_says_is_checked_by_the_operations() -> None:
    for model in (Shifted(), Declared(declared=4 * 6 * 5 * 7 + 1)):
        with pytest.raises(UserError, match=r"counters disagree.*840 by operations"):
            count(model, (4, 5, 7))


class Transformed(nn.Module):
    """A Fourier transform, which torch has no cost for."""

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        return torch.fft.fft(x)

    def macs(self, x: torch.Size, y: torch.Size) -> int:
        """Four lines of eight: 4 * 8 * log2(8)."""
        return 96


def test_a_script_may_say_what_an_operation_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(2, 1, 1), Transformed())
    with pytest.raises(UserError, match="for the operation _fft_r2c"):
        count(model, (2, 4, 8))
    monkeypatch.setitem(macs.OPERATIONS, "_fft_r2c", lambda arguments, output: 3 * arguments[0].numel())
    monkeypatch.setitem(macs.OPERATIONS, "_conj_physical", lambda arguments, output: 0)
    assert count(model, (2, 4, 8)).conv == {"0": 64, "1": 96}


def test_products_of_vectors_are_counted() -> None:
    class Product(nn.Module):
        def __init__(self, operation: str) -> None:
            super().__init__()
            self.operation = operation

        def forward(self, x: Tensor) -> Tensor:
            matrix = x[0, 0]
            if self.operation == "dot":
                return torch.dot(matrix[0], matrix[1])
            if self.operation == "mv":
                return torch.mv(matrix, matrix[0])
            return torch.addmv(matrix[:, 0], matrix, matrix[0])

        def macs(self, x: torch.Size, y: torch.Size) -> int:
            return 5 if self.operation == "dot" else 15

    for operation, products in (("dot", 5), ("mv", 15), ("addmv", 15)):
        assert count(Product(operation), (1, 3, 5)).total("conv+fc") == products


def test_counting_changes_nothing() -> None:
    """Neither the mode nor the running statistics."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count(model, (3, 8, 8))
    assert model.training
    assert model[1].training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_unknown_conventions_are_user_errors() -> None:
    with pytest.raises(UserError, match=r"unknown convention 'flops'.*conv\+fc"):
        Macs({}, {}, 0).total("flops")
