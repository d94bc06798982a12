"""Conversion: with phi = 0 and d = 1 the FBS form is the original, whatever the signs of gamma; the rest by hand."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.gating.convert import SMALLEST_GAMMA, convert, find_pairs
from bench.gating.edit import Gate
from bench.gating.layer import GatedConv2d, GateOptions, gated_layers
from bench.models.cifar_resnet import CifarResNet
from bench.models.mcifarnet import mcifarnet
from bench.models.recipe import Recipe
from bench.models.resnet import resnet18
from bench.models.vgg import vgg16_bn

ZERO = GateOptions(phi="zero")


class Biased(nn.Module):
    """A bias in front of the batch norm, a functional ReLU, a convolution without one, a grouped one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3)
        self.grouped_norm = nn.BatchNorm2d(6)
        self.bare = nn.Conv2d(6, 4, 1)
        self.last = nn.Conv2d(4, 5, 3, stride=2)
        self.last_norm = nn.BatchNorm2d(5, affine=False)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = self.bare(self.grouped_norm(self.grouped(x)))
        return self.fc(self.last_norm(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "vgg": (lambda: vgg16_bn(10, "cifar", 0.125), 32, 13),
    "resnet18": (lambda: resnet18(10, 0.125, True), 16, 20),
    "resnet18 with its own stem": (lambda: resnet18(10, 0.125), 64, 20),
    "cifar resnet": (lambda: CifarResNet(20, 10, 0.25), 16, 19),
    "mcifarnet": (lambda: mcifarnet(10, 0.125, 16), 16, 8),
    "biased": (Biased, 12, 2),
}


def trained(make: Callable[[], nn.Module], smallest: float = 0.0) -> nn.Module:
    """A network in float64 whose batch norms have been through training: gammas of both signs, some zero or tiny."""
    torch.manual_seed(1)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 3.0)
            if module.weight is not None:
                with torch.no_grad():
                    module.weight.normal_().add_(smallest * module.weight.sign())
                    module.bias.normal_()
                    if not smallest:
                        module.weight[0] = 0.0
                        module.weight[1] = 1e-5
    return model


def test_rho_is_gamma_where_phi_is_zero_or_in_its_units_and_one_from_the_paper_s_start() -> None:
    """Gao et al. 2019, section 3.2: phi He normal, rho 1; the shift stays what keeps each channel's sign."""
    model = trained(NETWORKS["mcifarnet"][0], 0.1).eval()
    gammas = [m.weight.detach().abs() for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    drawn: dict[str, list[Tensor]] = {}
    for phi in ("zero", "he", "truncated", "scaled"):
        torch.manual_seed(3)
        converted = copy.deepcopy(model)
        convert(converted, 700, GateOptions(phi=phi))
        rhos = [layer.gate.bias.detach() for layer in gated_layers(converted).values()]
        assert len(rhos) == len(gammas) == 8
        for rho, gamma in zip(rhos, gammas, strict=True):
            torch.testing.assert_close(rho, gamma if phi in ("zero", "scaled") else torch.ones_like(rho))
        drawn[phi] = [layer.gate.weight.detach() for layer in gated_layers(converted).values()]
        spreads = [float(layer.gate.weight.detach().std()) for layer in gated_layers(converted).values()]
        assert all((spread == 0) == (phi == "zero") for spread in spreads)
    for he, scaled, gamma in zip(drawn["he"], drawn["scaled"], gammas, strict=True):
        torch.testing.assert_close(scaled, he * gamma[:, None])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_converted_network_is_the_original(name: str) -> None:
    make, side, count = NETWORKS[name]
    model = trained(make).eval()
    converted = copy.deepcopy(model)
    done = convert(converted, 1000, ZERO)
    assert len(done.gated) == len(gated_layers(converted)) == count
    x = torch.randn(4, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(converted(x), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    gammas = [
        m.weight
        for n, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d) and m.weight is not None and "grouped" not in n
    ]
    assert done.negated == sum(int((g < 0).sum()) for g in gammas) > 0
    assert done.clamped == sum(int((g.abs() < SMALLEST_GAMMA).sum()) for g in gammas) >= 2 * len(gammas) - 2


@pytest.mark.parametrize("name", ["resnet18", "vgg"])
def test_in_training_mode_too(name: str) -> None:
    """Batch statistics do not care about a filter's sign; gammas are kept away from zero here."""
    make, side, _ = NETWORKS[name]
    model = trained(make, smallest=0.1).train()
    converted = copy.deepcopy(model)
    convert(converted, 1000, ZERO)
    x = torch.randn(4, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(converted.eval()(x), model.eval()(x), rtol=1e-7, atol=1e-8)


def test_which_convolutions_are_gated_and_what_follows_them() -> None:
    assert [(p.conv, p.norm, p.followed_by_relu) for p in find_pairs(Biased())] == [
        ("first", "norm", True),
        ("last", "last_norm", False),
    ]
    followed = {p.conv: p.followed_by_relu for p in find_pairs(resnet18(10, 0.125, True))}
    assert followed["layer1.0.conv1"] and not followed["layer1.0.conv2"] and not followed["layer2.0.downsample.0"]


def test_ungated_layers_and_mistakes() -> None:
    model = resnet18(10, 0.125, True)
    done = convert(model, 600, ZERO, ("layer2.1.conv1", "layer2.1.conv2"))
    assert len(done.gated) == 18
    assert type(model.get_submodule("layer2.1.conv1")) is nn.Conv2d
    assert isinstance(model.get_submodule("layer2.1.bn1"), nn.BatchNorm2d)
    with pytest.raises(UserError, match="no convolution with a batch norm behind it"):
        convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 500)
    with pytest.raises(UserError, match="nonsense"):
        convert(resnet18(10, 0.125, True), 500, ZERO, ("nonsense",))
    with pytest.raises(UserError, match="running statistics"):
        convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 500)


def test_a_recipe_describes_the_gated_network() -> None:
    """Built twice from JSON it has the same state names; the weights of a converted network fit into it."""
    arguments = {"num_classes": 10, "width": 0.125, "small_input": True}
    base = Recipe("resnet18", arguments, (3, 16, 16)).removed({"layer1.0.conv1": 5})
    recipe = Recipe.from_json(base.edited(Gate(600, ZERO, ("layer2.1.conv1",))).to_json())
    torch.manual_seed(0)
    model = base.build()
    convert(model, 600, ZERO, ("layer2.1.conv1",))
    built = recipe.build()
    built.load_state_dict(model.state_dict())
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(built.eval()(x), model.eval()(x))
    fresh = recipe.build()
    assert all(bool(torch.isfinite(value.double()).all()) for value in fresh.state_dict().values())
    assert {layer.k for layer in gated_layers(fresh).values() if layer.out_channels == 8} == {5}
    assert isinstance(built.get_submodule("layer1.0.conv1"), GatedConv2d)
