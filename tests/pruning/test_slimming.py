"""Network slimming: the ranking by brute force, removal against masking, and the speed-up that was asked for."""

import copy

import pytest
import torch
from torch import nn

from bench.errors import UserError
from bench.measure import macs
from bench.models.mcifarnet import mcifarnet
from bench.models.recipe import Recipe
from bench.models.resnet import resnet18
from bench.pruning.slimming import gamma_l1, slim

SHAPE = (3, 16, 16)


def network(seed: int = 0) -> nn.Module:
    """M-CifarNet at an eighth of its width with gammas and statistics that differ everywhere."""
    torch.manual_seed(seed)
    model = mcifarnet(10, 0.125, 16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.double().eval()


def test_the_term_is_the_sum_of_absolute_gammas() -> None:
    model = network()
    expected = sum(float(m.weight.abs().sum()) for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert float(gamma_l1(model)) == pytest.approx(expected)
    gamma_l1(model).backward()
    norm = model.get_submodule("bn0")
    assert isinstance(norm, nn.BatchNorm2d) and norm.weight.grad is not None
    assert torch.equal(norm.weight.grad, norm.weight.sign())


@pytest.mark.parametrize("speedup", [1.3, 3.0])
def test_the_smallest_gammas_of_all_layers_go(speedup: float) -> None:
    """Removed equals masked: gamma and beta of the lost channels set to zero in the original."""
    model = network()
    conv = macs.count(model.float(), SHAPE).conv
    model.double()
    smaller, widths = slim(model, SHAPE, conv, speedup)
    reached = sum(conv.values()) / sum(macs.count(copy.deepcopy(smaller).float(), SHAPE).conv.values())
    assert speedup <= reached < 1.15 * speedup
    # the last layer has no convolution behind it and is left alone (as in the official slimmed network)
    assert "conv7" not in widths
    gammas = {f"conv{n}": model.get_submodule(f"bn{n}").weight.detach().abs() for n in range(7)}
    masked = copy.deepcopy(model)
    lost = []
    for name, gamma in gammas.items():
        gone = gamma.argsort()[: len(gamma) - widths.get(name, len(gamma))]
        lost += gamma[gone].tolist()
        norm = masked.get_submodule(name.replace("conv", "bn"))
        with torch.no_grad():
            norm.weight[gone] = 0.0  # type: ignore[index]
            norm.bias[gone] = 0.0  # type: ignore[index]
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), masked(x), rtol=1e-9, atol=1e-9)
    # one global threshold, but for layers that would be left empty
    kept = [float(v) for name, g in gammas.items() for v in g.sort().values[len(g) - widths.get(name, len(g)) :]]
    assert max(lost) < min(v for v in kept if v > max(lost)) and sum(v < max(lost) for v in kept) <= len(gammas)


def test_fixed_widths_and_the_recipe_of_the_result() -> None:
    model = network()
    conv = macs.count(model.float(), SHAPE).conv
    smaller, widths = slim(model, SHAPE, conv, keep={"conv0": 5, "conv3": 9})
    assert widths == {"conv0": 5, "conv3": 9}
    recipe = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16}, SHAPE).removed(widths)
    recipe.build().load_state_dict(smaller.state_dict())


def test_residual_networks_lose_their_inner_channels() -> None:
    torch.manual_seed(0)
    model = resnet18(10, 0.25, True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    _, widths = slim(model, SHAPE, macs.count(model, SHAPE).conv, 1.39)
    assert widths and all(name.endswith("conv1") and name.startswith("layer") for name in widths)


def test_mistakes() -> None:
    model = network().float()
    with pytest.raises(UserError, match="out of reach"):
        slim(model, SHAPE, macs.count(model, SHAPE).conv, 1e6)
    with pytest.raises(UserError, match="nothing can be slimmed"):
        slim(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), SHAPE, {}, 2.0)
