"""Removing channels is compared with masking them completely, on random inputs and networks with busy batch norms."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from bench.errors import UserError
from bench.models.builders import BUILDERS
from bench.models.cifar_resnet import CifarResNet
from bench.models.recipe import Recipe
from bench.models.resnet import bottleneck_resnet, resnet18
from bench.pruning.surgery import SampledConv2d, convolution, remove_filters, replace_module, sample_input

SHAPE = (3, 16, 16)


class BatchNormVgg(nn.Module):
    """The form of torchvision's vgg16_bn in two stages; the linear layers read 4x4 values of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.features = make_layers([6, 8, "M", 10, "M"], batch_norm=True)
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(nn.Linear(10 * 16, 12), nn.ReLU(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 5."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


# name of the network: its factory and, for removable convolutions, the batch norms behind them
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, str | None]]] = {
    "vgg with batch norm": (
        BatchNormVgg,
        {"features.0": "features.1", "features.3": "features.4", "features.7": "features.8"},
    ),
    "vgg16": (
        lambda: Recipe("vgg16", {"num_classes": 5, "form": "cifar", "width": 1 / 16}, (3, 32, 32)).build(),
        {"features.0": None, "features.5": None, "features.12": None, "features.28": None},
    ),
    "resnet18": (
        lambda: resnet18(num_classes=5, width=1 / 16, small_input=True),
        {"layer1.0.conv1": "layer1.0.bn1", "layer2.0.conv1": "layer2.0.bn1", "layer4.1.conv1": "layer4.1.bn1"},
    ),
    "cifar resnet": (
        lambda: CifarResNet(14, num_classes=5, width=0.25),
        {"layer1.1.conv1": "layer1.1.bn1", "layer2.0.conv1": "layer2.0.bn1"},
    ),
    "bottleneck": (
        lambda: bottleneck_resnet(num_classes=5, width=1 / 16, blocks=(2, 1, 1, 1)),
        {
            "layer1.0.conv1": "layer1.0.bn1",
            "layer1.1.conv2": "layer1.1.bn2",
            "layer2.0.conv1": "layer2.0.bn1",
            "layer3.0.conv2": "layer3.0.bn2",
        },
    ),
}


def busy(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network in evaluation mode with random weights and batch norms far from the identity."""
    torch.manual_seed(seed)
    model = factory()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn_like(module.weight))
                module.bias.copy_(torch.randn_like(module.bias))
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.copy_(torch.randn_like(module.bias))
    return model.eval()


@torch.no_grad()
def masked(model: nn.Module, conv: str, norm: str | None, removed: list[int]) -> nn.Module:
    """A copy whose ``removed`` filters send exactly zero to what follows: no weight, no bias, no shift."""
    model = copy.deepcopy(model)
    layer = model.get_submodule(conv)
    assert isinstance(layer, nn.Conv2d)
    layer.weight[removed] = 0.0
    if layer.bias is not None:
        layer.bias[removed] = 0.0
    if norm is not None:
        scale = model.get_submodule(norm)
        assert isinstance(scale, nn.BatchNorm2d)
        scale.weight[removed] = 0.0
        scale.bias[removed] = 0.0
    return model


def outputs(model: nn.Module, seed: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Logits of four random images in evaluation mode."""
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.eval()(x)  # type: ignore[no-any-return]


def close(first: Tensor, second: Tensor) -> bool:
    """Equal up to float32 rounding, relative to the largest value."""
    return float((first - second).abs().max()) <= 1e-5 * max(1.0, float(second.abs().max()))


@pytest.mark.parametrize("network", NETWORKS)
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_removed_equals_masked(network: str, data: st.DataObject) -> None:
    """Two convolutions lose random filters; the outputs are those of the masked network."""
    factory, convs = NETWORKS[network]
    seed = data.draw(st.integers(0, 10_000), label="seed")
    size = 32 if network == "vgg16" else 16
    pruned = busy(factory, seed)
    reference = copy.deepcopy(pruned)
    for name in data.draw(st.lists(st.sampled_from(sorted(convs)), min_size=1, max_size=2, unique=True), label="convs"):
        filters = convolution(reference, name).out_channels
        removed = data.draw(
            st.lists(st.integers(0, filters - 1), min_size=1, max_size=filters - 1, unique=True), label="removed"
        )
        reference = masked(reference, name, convs[name], removed)
        remove_filters(pruned, (3, size, size), name, removed)
        assert convolution(pruned, name).out_channels == filters - len(removed)
    assert close(outputs(pruned, seed, (3, size, size)), outputs(reference, seed, (3, size, size)))


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_sampled_convolution_equals_the_whole_on_zeroed_channels(data: st.DataObject) -> None:
    """The sampler reads the chosen channels; zeroing the others changes nothing for the whole convolution."""
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    conv = nn.Conv2d(
        6,
        4,
        data.draw(st.sampled_from([1, 3])),
        data.draw(st.integers(1, 2)),
        padding=data.draw(st.integers(0, 2)),
        dilation=data.draw(st.integers(1, 2)),
        bias=data.draw(st.booleans()),
    )
    index = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True))
    x = torch.randn(2, 6, 7, 9)
    mask = torch.zeros(6)
    mask[index] = 1.0
    with torch.no_grad():
        assert close(SampledConv2d.on(conv, index)(x), conv(x * mask[:, None, None]))


def test_sampler_on_a_sampler_reads_the_composed_channels() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, padding=1)
    twice = SampledConv2d.on(SampledConv2d.on(conv, [5, 1, 3]), [2, 0])
    mask = torch.zeros(6)
    mask[[3, 5]] = 1.0
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        assert close(twice(x), conv(x * mask[:, None, None]))
    assert twice.in_channels == 2


def test_sampler_keeps_mode_and_leaves_the_first_convolution_alone() -> None:
    conv = nn.Conv2d(4, 2, 1).eval()
    sampled = SampledConv2d.on(conv, [0, 1])
    assert not sampled.training
    with torch.no_grad():
        sampled.weight.zero_()
        assert sampled.bias is not None
        sampled.bias.zero_()
    assert conv.bias is not None
    assert bool((conv.weight != 0).all())
    assert bool((conv.bias != 0).any())


def test_sampler_refuses_grouped_convolutions() -> None:
    with pytest.raises(UserError, match="groups"):
        SampledConv2d.on(nn.Conv2d(4, 4, 1, groups=2), [0])


def test_stream_reader_with_sampler_equals_zeroed_weights() -> None:
    """In a bottleneck net the shortcut keeps the whole stream while the first 1x1 reads some channels, and its own
    filters can still be removed afterwards."""
    factory, _ = NETWORKS["bottleneck"]
    pruned = busy(factory, 5)
    reference = copy.deepcopy(pruned)
    kept = [0, 3, 4, 9, 15]
    sample_input(pruned, "layer1.1.conv1", kept)
    whole = convolution(reference, "layer1.1.conv1")
    with torch.no_grad():
        whole.weight[:, sorted(set(range(whole.in_channels)) - set(kept))] = 0.0
    assert close(outputs(pruned, 6), outputs(reference, 6))
    remove_filters(pruned, SHAPE, "layer1.1.conv1", [0, 2])
    assert close(outputs(pruned, 6), outputs(masked(reference, "layer1.1.conv1", "layer1.1.bn1", [0, 2]), 6))
    assert isinstance(convolution(pruned, "layer1.1.conv1"), SampledConv2d)


@pytest.mark.parametrize(
    ("network", "conv"),
    [
        ("resnet18", "conv1"),
        ("resnet18", "layer1.0.conv2"),
        ("resnet18", "layer2.0.downsample.0"),
        ("cifar resnet", "conv1"),
        ("cifar resnet", "layer1.0.conv2"),
        ("bottleneck", "layer1.0.conv3"),
        ("bottleneck", "layer4.0.downsample.0"),
    ],
)
def test_stream_channels_are_refused(network: str, conv: str) -> None:
    """Channels that are added to another layer's cannot go alone, and a refusal changes nothing."""
    model = busy(NETWORKS[network][0], 0)
    before = outputs(model, 1)
    with pytest.raises(UserError, match=conv.replace(".", r"\.")):
        remove_filters(model, SHAPE, conv, [0])
    assert torch.equal(outputs(model, 1), before)


def test_a_refusal_leaves_the_training_mode() -> None:
    model = resnet18(num_classes=5, width=1 / 16, small_input=True).train()
    with pytest.raises(UserError):
        remove_filters(model, SHAPE, "layer1.0.conv2", [0])
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_removal_keeps_mode_and_statistics(training: bool) -> None:
    """Tracing must not move the running statistics of a network in training mode."""
    model = busy(BatchNormVgg, 3).train(training)
    norm = model.get_submodule("features.4")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    remove_filters(model, SHAPE, "features.3", [1, 4])
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, before[[0, 2, 3, 5, 6, 7]])
    assert model.training is training
    assert norm.training is training


def test_frozen_networks_can_be_pruned() -> None:
    """Weights that do not train (a frozen backbone) are removed like any other and stay frozen."""
    model = busy(BatchNormVgg, 3).requires_grad_(False)
    reference = masked(model, "features.3", "features.4", [1, 4])
    remove_filters(model, SHAPE, "features.3", [1, 4])
    assert close(outputs(model, 1), outputs(reference, 1))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_impossible_removals_are_user_errors() -> None:
    model = busy(BatchNormVgg, 0)
    with pytest.raises(UserError, match="at least one must stay"):
        remove_filters(model, SHAPE, "features.0", range(6))
    with pytest.raises(UserError, match="no module 'nowhere'"):
        remove_filters(model, SHAPE, "nowhere", [0])
    with pytest.raises(UserError, match="BatchNorm2d"):
        remove_filters(model, SHAPE, "features.1", [0])


def test_removing_nothing_changes_nothing() -> None:
    model = busy(BatchNormVgg, 0)
    before = outputs(model, 0)
    remove_filters(model, SHAPE, "features.0", [])
    assert torch.equal(outputs(model, 0), before)
    assert convolution(model, "features.0").out_channels == 6


def test_replace_module_reaches_nested_names() -> None:
    model: nn.Module = resnet18(width=1 / 16)
    replace_module(model, "layer2.0.downsample.1", nn.Identity())
    assert isinstance(model.get_submodule("layer2.0.downsample.1"), nn.Identity)
    replace_module(model, "conv1", nn.Identity())
    assert isinstance(model.conv1, nn.Identity)


RECIPES = {
    "vgg16 for 224": Recipe("vgg16", {"num_classes": 5, "width": 1 / 32}, (3, 32, 32)).removed(
        {"features.0": 1, "features.10": 3, "features.28": 7}
    ),
    "vgg16 for cifar": Recipe("vgg16", {"num_classes": 5, "form": "cifar", "width": 1 / 16}, (3, 32, 32)).removed(
        {"features.2": 3, "features.28": 1}
    ),
    "resnet18": Recipe("resnet18", {"num_classes": 5, "width": 1 / 16, "small_input": True}, SHAPE).removed(
        {"layer2.0.conv1": 3}
    ),
    "cifar_resnet20": Recipe("cifar_resnet20", {"width": 0.25}, SHAPE).removed(
        {"layer1.0.conv1": 2, "layer3.2.conv1": 5}
    ),
    "bottleneck_resnet": Recipe("bottleneck_resnet", {"num_classes": 5, "width": 1 / 16, "blocks": [1, 2, 1, 1]}, SHAPE)
    .sampled({"layer2.1.conv1": [1, 2, 8, 30], "layer3.0.conv1": [0, 31]})
    .removed({"layer2.1.conv1": 3, "layer2.1.conv2": 5, "layer3.0.conv2": 2}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_its_widths(name: str) -> None:
    """Every named convolution has its width, every other the dense one, and the network runs and trains."""
    recipe = Recipe.from_json(RECIPES[name].to_json())
    assert recipe == RECIPES[name]
    torch.manual_seed(0)
    model = recipe.build()
    dense = BUILDERS[recipe.builder](**recipe.arguments)
    assert model.training
    for conv, module in dense.named_modules():
        if isinstance(module, nn.Conv2d):
            built = convolution(model, conv)
            assert built.out_channels == recipe.widths.get(conv, module.out_channels)
            assert built.weight.shape[0] == built.out_channels
            if conv in recipe.samplers:
                assert isinstance(built, SampledConv2d)
                assert built.index.tolist() == recipe.samplers[conv]
                assert built.weight.shape[1] == len(recipe.samplers[conv])
    logits = model(torch.randn(2, *recipe.input_shape))
    assert bool(torch.isfinite(logits).all())
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_state_of_a_pruned_network_fits_the_recipe(name: str) -> None:
    """A network pruned step by step, random filters and not the last ones, loads into what its recipe builds."""
    recipe = RECIPES[name]
    pruned = busy(lambda: BUILDERS[recipe.builder](**recipe.arguments), 11)
    for conv, index in recipe.samplers.items():
        sample_input(pruned, conv, index)
    for conv, width in recipe.widths.items():
        filters = convolution(pruned, conv).out_channels
        remove_filters(pruned, recipe.input_shape, conv, torch.randperm(filters)[width:].tolist())
    built = recipe.build()
    built.load_state_dict(pruned.state_dict())
    assert torch.equal(outputs(built, 1, recipe.input_shape), outputs(pruned, 1, recipe.input_shape))


@pytest.mark.parametrize("name", RECIPES)
def test_meta_build_allocates_nothing(name: str) -> None:
    """Every parameter of the meta build is without storage and has the shape of the real one."""
    shapes = {key: value.shape for key, value in RECIPES[name].build().state_dict().items()}
    meta = RECIPES[name].build("meta")
    assert all(parameter.is_meta for parameter in meta.parameters())
    assert {key: value.shape for key, value in meta.state_dict().items()} == shapes


def test_full_size_vgg16_on_meta_is_quick_to_prune() -> None:
    """A 138-million-parameter network loses filters without any memory for weights."""
    meta = Recipe("vgg16", {}, (3, 224, 224)).removed({"features.28": 100}).build("meta")
    first = meta.get_submodule("classifier.0")
    assert isinstance(first, nn.Linear)
    assert first.weight.is_meta
    assert first.in_features == 100 * 49


def test_impossible_widths_are_user_errors() -> None:
    for width in (0, 65):
        with pytest.raises(UserError, match="not between 1 and its 64 filters"):
            Recipe("vgg16", {}, (3, 32, 32)).removed({"features.0": width}).build("meta")


def test_dense_recipe_forgets_every_removal() -> None:
    recipe = RECIPES["bottleneck_resnet"]
    model = recipe.base.build("meta")
    dense = BUILDERS[recipe.builder](**recipe.arguments)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in dense.state_dict().items()}
