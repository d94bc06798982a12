"""The network that is pruned and measured is the one that was given, and the user's own object stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bench import api
from bench.data.images import ImageSet, MemorySplit
from bench.errors import UserError
from bench.pruning.calibration import Sampling, calibrate
from bench.pruning.faithful import run_graph
from bench.pruning.functional import out_of_place
from bench.pruning.graph import find_sites, trace


def image_set(train: int = 120, test: int = 200, classes: int = 4) -> ImageSet:
    """Random 8x8 images with random labels."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> MemorySplit:
        pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        labels = torch.randint(classes, (count,), generator=generator)
        return MemorySplit(pixels, labels, (0.5,) * 3, (0.25,) * 3, 0, False)

    return ImageSet("noise", "0", tuple("abcd"[:classes]), 8, split(train), split(test), "8x8")


class PreActivation(nn.Module):
    """norm, ReLU, convolution twice, + x; in place the first ReLU also changes what the shortcut hands on."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.relu = nn.ReLU(inplace=inplace)
        self.n1, self.n2 = nn.BatchNorm2d(6), nn.BatchNorm2d(8)
        self.c1, self.c2 = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(self.stem(x))
        out = self.relu(x)
        out = self.c2(self.relu(self.n2(self.c1(out))))
        return self.head((0.3 * out + x).mean((2, 3)))  # type: ignore[no-any-return]


def preactivation() -> PreActivation:
    torch.manual_seed(5)
    return PreActivation()


@torch.no_grad()
def accuracy_of(model: nn.Module, data: ImageSet) -> float:
    """Top-1 in evaluation mode, of a copy, image by image."""
    twin = copy.deepcopy(model).eval()
    right = [int(twin(data.test[[i]][0]).argmax()) == int(data.test.labels[i]) for i in range(len(data.test))]
    return 100.0 * sum(right) / len(right)


def test_the_change_is_measured_against_the_given_network() -> None:
    model, data = preactivation(), image_set()
    truth = accuracy_of(model, data)
    switched = copy.deepcopy(model)
    switched.relu.inplace = False
    assert accuracy_of(switched, data) != truth  # otherwise the flag would not matter here
    result = api.prune(model, data, speedup=1.3, progress=False)
    assert accuracy_of(model, data) == truth
    found = {record.metric: record.value for record in result.records}
    assert found["top1_acc"] - found["top1_change"] == pytest.approx(truth)
    assert found["top1_acc"] == pytest.approx(accuracy_of(result.model, data))
    assert result.model.get_submodule("relu").inplace is True


@pytest.mark.parametrize("fails", [False, True])
def test_the_user_s_object_stays_as_it_was(fails: bool) -> None:
    """Modes module by module, flags, hooks, gradients, frozen parameters, values; also where pruning is refused."""
    model, data = preactivation().train(), image_set()
    model.n1.eval()
    model.c1.weight.requires_grad_(False)
    model.c2.weight.grad = torch.ones_like(model.c2.weight)
    seen: list[int] = []
    model.c2.register_forward_hook(lambda module, inputs, output: seen.append(1))
    state = copy.deepcopy(model.state_dict())

    def facts() -> list[object]:
        modules = [
            (n, m.training, getattr(m, "inplace", None), len(m._forward_hooks)) for n, m in model.named_modules()
        ]
        parameters = [(n, id(p), p.requires_grad, p.grad is None, p.device) for n, p in model.named_parameters()]
        return [modules, parameters]

    before = facts()
    if fails:
        with pytest.raises(UserError, match="out of reach"):
            api.prune(model, data, speedup=1000.0, progress=False)
    else:
        api.prune(model, data, speedup=1.3, progress=False)
    assert facts() == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Body(nn.Module):
    """Two convolutions around a piece of code; N x 3 x 8 x 8 to N x 4."""

    def __init__(self, code: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.code = code
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.code(self.a(x), self.b)).mean((2, 3))  # type: ignore[no-any-return]


def statement(x: Tensor, b: nn.Module) -> Tensor:
    y = b(x)
    y.mul_(0.5)
    x.relu_()
    y.add_(x)
    y.clamp_(min=-0.1)
    return y


def chained(x: Tensor, b: nn.Module) -> Tensor:
    y = x
    z = y.sub_(0.2).mul_(1.5)
    y += 1.0
    return b(z) - x  # type: ignore[no-any-return]


def identities(x: Tensor, b: nn.Module) -> Tensor:
    y = F.dropout(x.detach(), 0.5, False)
    F.leaky_relu(y, 0.3, inplace=True)
    torch.sigmoid_(x)
    return b(x) * y  # type: ignore[no-any-return]


def sizes(x: Tensor, b: nn.Module) -> Tensor:
    height = x.shape[2]
    half = height
    half //= 2
    y = b(x)
    y /= height
    return F.pad(y[:, :, :half], (0, 0, 0, height - half))


def views_read_before(x: Tensor, b: nn.Module) -> Tensor:
    total = x.flatten(1).sum(1)
    x.relu_()
    return b(x) * total[:, None, None, None]  # type: ignore[no-any-return]


FOLLOWED = [statement, chained, identities, sizes, views_read_before]


@pytest.mark.parametrize("code", FOLLOWED)
def test_in_place_operations_are_what_they_are(code: Callable[[Tensor, nn.Module], Tensor]) -> None:
    torch.manual_seed(1)
    model, x = Body(code).eval(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(run_graph(model, trace(model), x), model(x.clone()), rtol=1e-6, atol=1e-6)
    interpreted = fx.Interpreter(fx.GraphModule(model, trace(model))).run(x.clone())
    torch.testing.assert_close(interpreted, model(x.clone()), rtol=1e-6, atol=1e-6)


def view_of_base(x: Tensor, b: nn.Module) -> Tensor:
    x[:, :2].relu_()
    return b(x)  # type: ignore[no-any-return]


def base_of_view(x: Tensor, b: nn.Module) -> Tensor:
    y = x.view(x.shape[0], -1)
    x.relu_()
    return b(x) * y.mean()  # type: ignore[no-any-return]


def written(x: Tensor, b: nn.Module) -> Tensor:
    y = b(x)
    torch.add(x, y, out=y)
    return y


def filled(x: Tensor, b: nn.Module) -> Tensor:
    y = b(x)
    y.copy_(x)
    return y


REFUSED = {view_of_base: "through a view", base_of_view: "through a view", written: "out=", filled: "copy_"}


@pytest.mark.parametrize("code", REFUSED)
def test_what_cannot_be_followed_is_refused_in_one_line(code: Callable[[Tensor, nn.Module], Tensor]) -> None:
    with pytest.raises(UserError, match=REFUSED[code]) as told:
        trace(Body(code).eval())
    assert "\n" not in str(told.value)


class Counting(Body):
    """Adds up the means of its inputs in a buffer."""

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(x.mean())  # type: ignore[operator]
        return super().forward(x)


def test_a_network_that_changes_its_own_state_is_refused() -> None:
    with pytest.raises(UserError, match="own state"):
        trace(Counting(lambda x, b: b(x)).eval())


def test_a_scaled_addition_is_no_shortcut_to_make_up_for() -> None:
    """x + y compensates for what comes down the shortcut; x + 0.2 y must not do it as if the factor were 1."""

    def shortcuts(code: Callable[[Tensor, nn.Module], Tensor]) -> list[str | None]:
        model = Body(code)
        return [site.shortcut for site in find_sites(model, trace(model)) if site.reader == "b"]

    assert shortcuts(lambda x, b: x + b(x)) == ["a"]
    assert shortcuts(lambda x, b: torch.add(x, b(x))) == ["a"]
    assert shortcuts(lambda x, b: torch.add(x, b(x), alpha=0.2)) == [None]
    assert shortcuts(lambda x, b: x.add_(b(x), alpha=0.2)) == [None]


def test_a_network_that_traces_to_something_else_is_refused_before_any_work() -> None:
    """A hook on the network itself is not part of its trace."""
    model = Body(lambda x, b: b(F.relu(x)))
    model.register_forward_hook(lambda module, inputs, output: 2.0 * output)
    with pytest.raises(UserError, match="computes something else") as told:
        calibrate(model, torch.randn(20, 3, 8, 8), Sampling(), progress=False)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="computes something else"):
        api.prune(model, image_set(), speedup=1.3, progress=False)


def test_evaluation_mode_is_what_is_traced() -> None:
    """Whatever mode the network is in, and the mode stays."""
    model = Body(lambda x, b: b(F.dropout(x, 0.9, b.training))).train()
    graph, x = trace(model), torch.randn(2, 3, 8, 8)
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(run_graph(model, graph, x), model.eval()(x))


def test_out_of_place_twins_share_their_parameters() -> None:
    module = nn.Sequential(nn.ReLU(inplace=True))
    assert out_of_place(module[0]) is not module[0]
    assert out_of_place(module[0]).inplace is False  # type: ignore[comparison-overlap]
    assert module[0].inplace is True
    plain = nn.ReLU()
    assert out_of_place(plain) is plain


def test_few_images_are_warned_of_with_the_numbers() -> None:
    model = preactivation().eval()
    result = api.prune(model, image_set(), speedup=1.3, images=12, progress=False)
    (warning,) = [line for line in result.warnings if line.startswith("few calibration images")]
    unknowns = 9 * len(result.layers[0].kept)
    assert f"12 give 120 rows for up to {unknowns} unknowns" in warning
    assert f"give {unknowns} images or more" in warning
    enough = api.prune(model, image_set(), speedup=1.3, images=120, progress=False)
    assert not any("few" in line for line in enough.warnings)
