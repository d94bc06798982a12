"""Networks against torchvision's with the same weights, published parameter counts, and the papers' layer names."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.models import vgg, vgg19
from bench.models.builders import BUILDERS
from bench.models.cifar_resnet import BasicBlock, CifarResNet
from bench.models.initial import initialise
from bench.models.recipe import Recipe, find_builder
from bench.models.resnet import bottleneck_resnet, resnet18, resnet50


@pytest.mark.parametrize(
    ("ours", "theirs"), [(resnet18, torchvision.models.resnet18), (resnet50, torchvision.models.resnet50)]
)
def test_resnets_equal_torchvision(ours: Callable[..., nn.Module], theirs: Callable[..., nn.Module]) -> None:
    """The same state dict, key by key, gives the same logits in both modes."""
    torch.manual_seed(0)
    reference = theirs(weights=None, num_classes=7)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    model = ours(num_classes=7)
    model.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for training in (True, False):  # the pass in training mode moves the running statistics of both
            torch.testing.assert_close(model.train(training)(x), reference.train(training)(x), rtol=1e-4, atol=1e-4)


def test_vgg16_has_torchvision_s_state_and_output() -> None:
    recipe = Recipe("vgg16", {}, (3, 224, 224))
    ours = {key: value.shape for key, value in recipe.build("meta").state_dict().items()}
    with torch.device("meta"):
        theirs = {key: value.shape for key, value in torchvision.models.vgg16(weights=None).state_dict().items()}
    assert ours == theirs


@pytest.mark.parametrize(
    ("builder", "arguments", "published"),
    [
        ("cifar_resnet20", {}, 269_722),
        ("cifar_resnet56", {}, 853_018),
        ("cifar_resnet110", {}, 1_727_962),
        ("vgg16", {}, 138_357_544),
        ("resnet18", {}, 11_689_512),
        ("resnet50", {}, 25_557_032),
        ("resnet50", {"caffe_stride": True}, 25_557_032),
    ],
)
def test_published_parameter_counts(builder: str, arguments: dict[str, object], published: int) -> None:
    model = Recipe(builder, arguments, (3, 32, 32)).build("meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_caffe_stride_is_in_the_first_convolution() -> None:
    for caffe, strides in ((True, (2, 1)), (False, (1, 2))):
        block = bottleneck_resnet(width=1 / 16, caffe_stride=caffe).get_submodule("layer2.0")
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides  # type: ignore[index]


def test_option_a_shortcut_by_hand() -> None:
    """Every second pixel, and zero channels on both sides."""
    block = BasicBlock(2, 4, stride=2)
    x = torch.randn(1, 2, 4, 4)
    out = block.shortcut(x)
    expected = torch.zeros(1, 4, 2, 2)
    for row in range(2):
        for column in range(2):
            expected[0, 1:3, row, column] = x[0, :, 2 * row, 2 * column]
    assert torch.equal(out, expected)
    same = BasicBlock(2, 2, stride=1)
    assert torch.equal(same.shortcut(x), x)


def test_cifar_block_by_functions() -> None:
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut), with torch's functions alone."""
    torch.manual_seed(1)
    block = BasicBlock(4, 8, stride=2).eval()
    x = torch.randn(2, 4, 6, 6)

    def norm(y: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    with torch.no_grad():
        for bn in (block.bn1, block.bn2):
            bn.weight.normal_()
            bn.bias.normal_()
        y = F.relu(norm(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1))
        y = norm(F.conv2d(y, block.conv2.weight, padding=1), block.bn2)
        padded = torch.cat([torch.zeros(2, 2, 3, 3), x[:, :, ::2, ::2], torch.zeros(2, 2, 3, 3)], 1)
        torch.testing.assert_close(block(x), F.relu(y + padded), rtol=1e-5, atol=1e-5)


def test_cifar_depth_must_be_6n_plus_2() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 2"):
        CifarResNet(21)


def test_vgg_names_of_the_papers() -> None:
    """torchvision's places of the thirteen convolutions, written out."""
    # fmt: off
    assert list(vgg.CONVS.items()) == [
        ("conv1_1", "features.0"), ("conv1_2", "features.2"), ("conv2_1", "features.5"), ("conv2_2", "features.7"),
        ("conv3_1", "features.10"), ("conv3_2", "features.12"), ("conv3_3", "features.14"), ("conv4_1", "features.17"),
        ("conv4_2", "features.19"), ("conv4_3", "features.21"), ("conv5_1", "features.24"), ("conv5_2", "features.26"),
        ("conv5_3", "features.28"),
    ]
    # fmt: on
    model = Recipe("vgg16", {}, (3, 224, 224)).build("meta")
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    for module, width in zip(vgg.CONVS.values(), widths, strict=True):
        conv = model.get_submodule(module)
        assert isinstance(conv, nn.Conv2d)
        assert conv.out_channels == width


SMALL: dict[str, Recipe] = {
    "vgg16 imagenet": Recipe("vgg16", {"width": 1 / 32, "num_classes": 6}, (3, 40, 40)),
    "vgg16 cifar": Recipe("vgg16", {"width": 1 / 16, "form": "cifar", "num_classes": 6}, (3, 32, 32)),
    "resnet50": Recipe("resnet50", {"width": 1 / 16, "num_classes": 6, "small_input": True}, (3, 16, 16)),
    "bottleneck_resnet": Recipe("bottleneck_resnet", {"width": 1 / 16, "num_classes": 6}, (3, 16, 16)),
    "cifar_resnet32": Recipe("cifar_resnet32", {"width": 0.25, "num_classes": 6}, (3, 16, 16)),
}


@pytest.mark.parametrize("name", SMALL)
def test_builds_are_seeded_and_alive(name: str) -> None:
    """Fresh weights are random, the same for the same seed, and give finite logits of the asked-for classes."""
    recipe = SMALL[name]
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(recipe.build().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    model = recipe.build()
    with torch.no_grad():
        assert model(torch.randn(2, *recipe.input_shape)).shape == (2, 6)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            assert bool(torch.isfinite(module.running_var).all())


def test_convolutions_start_he_normal() -> None:
    """Standard deviation sqrt(2 / fan out), as torchvision's VGG and ResNet; linear layers 0.01; no bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Linear(300, 200), nn.BatchNorm2d(4))
    initialise(model.requires_grad_(False))
    conv, linear, norm = model
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm2d)
    assert float(conv.weight.std()) == pytest.approx((2.0 / (64 * 9)) ** 0.5, rel=0.03)
    assert float(linear.weight.std()) == pytest.approx(0.01, rel=0.03)
    assert conv.bias is not None
    assert float(conv.bias.abs().sum() + linear.bias.abs().sum() + norm.bias.abs().sum()) == 0.0
    assert norm.weight.tolist() == [1.0] * 4


def test_builders_of_the_user_are_imported() -> None:
    assert find_builder("torchvision.models:resnet18") is torchvision.models.resnet18
    recipe = Recipe("torchvision.models:resnet18", {"num_classes": 4}, (3, 32, 32)).removed({"layer1.0.conv1": 5})
    model = recipe.build()
    conv = model.get_submodule("layer1.0.conv1")
    assert isinstance(conv, nn.Conv2d)
    assert conv.out_channels == 5
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenet", "unknown model 'lenet'.*vgg16"),
        ("no_such_package_here:build", "cannot import 'no_such_package_here'"),
        ("torchvision.models:no_such_factory", "no function 'no_such_factory'"),
        ("torchvision:__version__", "no function '__version__'"),
        (":build", "model"),
    ],
)
def test_builders_that_cannot_be_found_are_user_errors(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_builder(name)
    assert name not in BUILDERS


def plain_preact(state: dict[str, torch.Tensor], x: torch.Tensor, depth: int) -> torch.Tensor:
    """He et al. 2016b by hand, from a state dict: batch norm and ReLU in front of each convolution, in evaluation.

    The first block of every stage, of the first one too, adds what its first batch norm and ReLU gave.
    """

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for index in range((depth - 2) // 6):
            block, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            before = norm(x, f"{block}.bn1")
            inner = norm(F.conv2d(before, state[f"{block}.conv1.weight"], stride=stride, padding=1), f"{block}.bn2")
            added = F.conv2d(inner, state[f"{block}.conv2.weight"], padding=1)
            shortcut = before if index == 0 else x
            if stride == 2:
                shortcut = F.conv2d(shortcut, state[f"{block}.projection.weight"], stride=2)
            x = added + shortcut
    return F.linear(norm(x, "bn").mean((2, 3)), state["linear.weight"], state["linear.bias"])


def test_a_pre_activation_resnet_by_hand() -> None:
    torch.manual_seed(0)
    model = Recipe("cifar_preact_resnet20", {"num_classes": 7, "width": 0.25}, (3, 32, 32)).build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, 0.0, 0.2)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain_preact(model.state_dict(), x, 20), rtol=1e-4, atol=1e-5)


def test_vgg19_is_torchvision_s_without_its_last_pooling() -> None:
    """Sixteen convolutions by name; the features are those of torchvision's vgg19_bn on the 2x2 map before pooling."""
    torch.manual_seed(0)
    model = Recipe("cifar_vgg19_bn", {}, (3, 32, 32)).build().eval()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert names == list(vgg19.CONVS) and len(names) == 16
    assert sum(parameter.numel() for parameter in model.parameters()) == 20_040_522
    with torch.device("meta"):
        theirs = torchvision.models.vgg19_bn(weights=None)
    states = [{key: value.shape for key, value in net.features.state_dict().items()} for net in (model, theirs)]
    assert states[0] == states[1]
    reference = theirs.features.to_empty(device="cpu").eval()
    reference.load_state_dict(model.features.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        pooled = reference[:-1](x).mean((2, 3))
        torch.testing.assert_close(model(x), model.classifier(pooled), rtol=1e-4, atol=1e-5)
