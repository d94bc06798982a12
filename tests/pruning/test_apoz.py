"""APoZ against a count value by value behind the ReLU, in plain forward passes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.pruning.apoz import counted
from bench.pruning.calibration import Calibration, Sampling, calibrate
from bench.pruning.graph import trace
from bench.pruning.layerwise import Method, prune
from bench.pruning.walk import Walk


class Net(nn.Module):
    """Two prunable layers with batch norms and pooling; the last reader has a bias and no norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(7)
        self.middle = nn.Conv2d(7, 8, 3, padding=1)
        self.middle_norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x 8 x 8 to N x 5 x 2 x 2."""
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(x))), 2)
        return self.last(F.relu(self.middle_norm(self.middle(x))))  # type: ignore[no-any-return]


def busy(model: nn.Module, seed: int) -> nn.Module:
    """Random biases and batch norms, so that forgetting one of them shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.3)
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.5)
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def seen(model: nn.Module, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Input and output of a module in the plain forward pass, in float64."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: found.append((inputs[0].double(), output.double()))
    )
    model.eval()(x)
    handle.remove()
    return found[0]


def plain_apoz(calibration: Calibration, maps: Tensor) -> list[float]:
    """Share of zeros of each channel over the fitted images, value by value."""
    shares = []
    for channel in range(maps.shape[1]):
        values = [value for i in range(len(maps)) if calibration.fitted[i] for value in maps[i, channel].flatten()]
        shares.append(sum(float(value) == 0.0 for value in values) / len(values))
    return shares


@pytest.mark.parametrize("budget", [0, 10**9])
def test_apoz_counts_zeros_behind_the_relu_of_the_pruned_network(budget: int) -> None:
    """Before pooling, over the fitted images; the second layer's in the network that has lost channels."""
    model = busy(Net(), seed=8)
    x = images(30)
    sampling = Sampling(positions=4, batch=8, held_out=0.3, least_held_out=5, budget=budget)
    calibration = calibrate(model, x, sampling, progress=False)
    _, reports = prune(model, calibration, {"middle": 4, "last": 4}, Method("apoz"), progress=False)
    first = plain_apoz(calibration, F.relu(seen(model, x, "stem_norm")[1]))
    assert reports[0].kept == sorted(np.argsort(first)[:4].tolist())
    half, _ = prune(model, calibration, {"middle": 4}, Method("apoz"), progress=False)
    second = plain_apoz(calibration, F.relu(seen(half, x, "middle_norm")[1]))
    assert reports[1].kept == sorted(np.argsort(second)[:4].tolist())
    assert len({*first}) == 7 and len({*second}) == 8  # no ties, so nothing is left to chance
    walk = Walk(half, trace(half), calibration.batches, "cpu", budget)
    with counted(calibration, walk, "last") as zeros:
        assert len([*walk.visit("last")]) == len(calibration.batches)
    assert zeros.shares.tolist() == pytest.approx(second)
    others = replace(calibration, fitted=~calibration.fitted)
    assert second != plain_apoz(others, F.relu(seen(half, x, "middle_norm")[1]))
    assert not walk.watched


class Branches(nn.Module):
    """Branches side by side: when the walk has come to the first reader, it has passed the second one's ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.left_reader, self.right_reader = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 4 x H/4 x W/4."""
        left, right = self.left(x), self.right(x)
        left, right = F.max_pool2d(F.relu(left), 4), F.max_pool2d(F.relu(right), 4)
        return self.left_reader(left) + self.right_reader(right)  # type: ignore[no-any-return]


def test_apoz_of_branches_side_by_side() -> None:
    model = busy(Branches(), seed=0)
    x = images(24)
    calibration = calibrate(model, x, Sampling(positions=4, batch=8), progress=False)
    _, reports = prune(model, calibration, {"left_reader": 3, "right_reader": 3}, Method("apoz"), progress=False)
    for report, name in zip(reports, ("left", "right"), strict=True):
        maps = F.relu(seen(model, x, name)[1])
        shares = plain_apoz(calibration, maps)
        assert report.kept == sorted(np.argsort(shares)[:3].tolist())
        pooled = plain_apoz(calibration, F.max_pool2d(maps, 4))
        assert shares != pooled


def test_apoz_without_a_relu_is_a_user_error_before_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.LeakyReLU(), nn.Conv2d(6, 4, 1)).eval()
    calibration = calibrate(model, images(12), Sampling(positions=2), progress=False)
    _, (refitted,) = prune(model, calibration, {"2": 6}, Method("apoz", refit=True), progress=False)
    assert refitted.kept == list(range(6))  # nothing is to be chosen, so nothing is counted
    monkeypatch.setattr("bench.pruning.layerwise.Walk", lambda *args: pytest.fail("walked"))
    with pytest.raises(UserError, match="none leads to '2'"):
        prune(model, calibration, {"2": 3}, Method("apoz"), progress=False)
