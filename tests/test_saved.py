"""A pruned network that was saved and loaded is the same network: equal outputs, bit for bit, for every structure."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import api, saved
from bench.data.images import ImageSet, MemorySplit
from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.pruning import surgery

SIDE = 12


def conv(inputs: int, outputs: int, size: int, bias: bool, norm: bool) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias)]
    return nn.Sequential(*parts, *([nn.BatchNorm2d(outputs)] if norm else []))


class Plain(nn.Module):
    """A chain, as most networks; the subclasses replace ``middle``."""

    def __init__(self, bias: bool, norm: bool, inplace: bool) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=inplace)
        self.enter, self.one = conv(3, 8, 3, bias, norm), conv(8, 10, 3, bias, norm)
        self.two, self.three = conv(10, 8, 1, bias, norm), conv(8, 8, 3, bias, norm)
        self.head = nn.Linear(8, 3)

    def middle(self, x: Tensor) -> Tensor:
        return self.act(self.three(self.act(self.two(self.act(self.one(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.act(self.enter(x))).mean((2, 3)))


class Residual(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return self.act(x + self.three(self.act(self.two(self.act(self.one(x))))))


class PreActivation(Plain):
    def middle(self, x: Tensor) -> Tensor:
        y = x + self.two(self.act(self.one(F.relu(x))))
        return y + self.three(F.relu(y))


class Concatenation(Plain):
    def __init__(self, bias: bool, norm: bool, inplace: bool) -> None:
        super().__init__(bias, norm, inplace)
        self.four = conv(18, 8, 1, bias, norm)

    def middle(self, x: Tensor) -> Tensor:
        y = self.act(self.one(x))
        return self.act(self.three(self.act(self.four(torch.cat([y, self.act(self.two(y))], 1)))))


class SqueezeExcite(Plain):
    def __init__(self, bias: bool, norm: bool, inplace: bool) -> None:
        super().__init__(bias, norm, inplace)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = self.act(self.two(self.act(self.one(x))))
        gate = torch.sigmoid(self.excite(self.act(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.act(self.three(y * gate))


class Shared(Plain):
    """One convolution called twice."""

    def middle(self, x: Tensor) -> Tensor:
        y = self.act(self.three(self.act(self.three(x))))
        return self.act(self.two(self.act(self.one(y))))


class Flattened(Plain):
    def __init__(self, bias: bool, norm: bool, inplace: bool) -> None:
        super().__init__(bias, norm, inplace)
        self.head = nn.Linear(8 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.middle(self.act(self.enter(x))), 4)
        return self.head(torch.flatten(y, 1))


KINDS = (Plain, Residual, PreActivation, Concatenation, SqueezeExcite, Shared, Flattened)
# bias, norm and inplace: every two of them in all four ways
STYLES = ((False, False, False), (False, True, True), (True, False, True), (True, True, False))
NETWORKS = [(kind, *style) for kind in KINDS for style in STYLES]


def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (24, 9):
        pixels = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        splits.append(MemorySplit(pixels, torch.arange(count) % 3, (0.5,) * 3, (0.5,) * 3, pad=0, mirror=False))
    return ImageSet("noise", "0", ("a", "b", "c"), SIDE, splits[0], splits[1], "none")


def network(kind: type[Plain], bias: bool, norm: bool, inplace: bool) -> nn.Module:
    """With busy batch norms, so that nothing that is lost goes unseen."""
    torch.manual_seed(0)
    model = kind(bias, norm, inplace)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize(("kind", "bias", "norm", "inplace"), NETWORKS, ids=str)
def test_loaded_is_saved(tmp_path: Path, kind: type[Plain], bias: bool, norm: bool, inplace: bool) -> None:
    model = network(kind, bias, norm, inplace)
    found = api.prune(model, images(), speedup=1.3, progress=False, tell=quiet)
    assert found.speedup >= 1.3
    found.save(tmp_path)
    x = torch.randn(5, 3, SIDE, SIDE)
    for loaded in (api.load(tmp_path), api.load(tmp_path, network(kind, bias, norm, inplace))):
        assert not loaded.training
        assert torch.equal(loaded(x), found.model.eval()(x))
        assert {n: p.shape for n, p in loaded.named_parameters()} == {
            n: p.shape for n, p in found.model.named_parameters()
        }


def edited(dense: nn.Module) -> tuple[nn.Module, Recipe]:
    """Everything that pruning can add at once: fewer filters, a sampler, a sampler behind a sampler, new biases."""
    model = copy.deepcopy(dense)
    surgery.remove_filters(model, (3, SIDE, SIDE), "one.0", [1, 4, 6])
    surgery.sample_input(model, "one.0", [0, 2, 3, 5, 7])
    surgery.sample_input(model, "one.0", [1, 2, 4])
    for name in ("two.0", "one.0"):
        layer = surgery.convolution(model, name)
        layer.bias = nn.Parameter(torch.randn(layer.out_channels).to(layer.weight.dtype))
    samplers, biases = surgery.structure(dense, model)
    assert (samplers, sorted(biases)) == ({"one.0": [2, 3, 7]}, ["one.0", "two.0"])
    return model, Recipe("", {}, (3, SIDE, SIDE)).sampled(samplers).removed({"one.0": 7}).biased(biases)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_all_structures_at_once(tmp_path: Path, precision: torch.dtype) -> None:
    dense = network(Residual, False, True, False).to(precision)
    model, recipe = edited(dense)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))).to_json() == recipe.to_json()
    assert saved.save(model, recipe, tmp_path) is None
    x = torch.randn(5, 3, SIDE, SIDE, dtype=precision)
    assert torch.equal(api.load(tmp_path)(x), model(x))
    assert torch.equal(api.load(tmp_path, network(Residual, False, True, False))(x), model(x))


class Still(nn.Module):
    """Weights in two precisions, which say nothing."""

    def __init__(self, first: torch.dtype, second: torch.dtype, weight: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.full((300, 300), weight, dtype=first))
        self.second = nn.Parameter(torch.full((300, 300), weight, dtype=second))

    def forward(self, x: Tensor) -> Tensor:
        return x


HALF, OTHER, SINGLE = 0.25, 0.1, 1.0 + 2.0**-20  # of half precision; of single alone, twice


@pytest.mark.parametrize(
    ("precisions", "weight", "bytes_each"),
    [
        ((torch.float32, torch.float32), HALF, 2),
        ((torch.float32, torch.float32), OTHER, 4),
        ((torch.float32, torch.float32), SINGLE, 4),
        ((torch.float32, torch.float32), math.inf, 2),
        ((torch.float32, torch.float32), 1e5, 4),
        # single and half side by side: each must come back as it was
        ((torch.float32, torch.float16), HALF, None),
        ((torch.float16, torch.float16), HALF, 2),
        ((torch.float64, torch.float64), HALF, 8),
    ],
)
def test_weights_of_half_precision_take_half_the_space(
    tmp_path: Path, precisions: tuple[torch.dtype, torch.dtype], weight: float, bytes_each: int | None
) -> None:
    """And come back in the precision that they had, whatever that is."""
    model = Still(*precisions, weight)
    assert saved.save(model, Recipe("", {}, (3, SIDE, SIDE)), tmp_path) is None
    loaded = saved.load(tmp_path)
    for (name, before), (again, after) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert (name, before.dtype) == (again, after.dtype)
        assert torch.equal(before, after)
    if bytes_each is not None:
        size = (tmp_path / saved.WEIGHTS).stat().st_size
        assert 0 <= size - bytes_each * 2 * 300 * 300 < 1000


def test_networks_saved_before_recipes_had_edits_are_loaded(tmp_path: Path) -> None:
    dense = network(Residual, False, True, False)
    model, recipe = edited(dense)
    assert saved.save(model, recipe, tmp_path) is None
    value = json.loads((tmp_path / "recipe.json").read_text())
    value["recipe"] = {
        "builder": "",
        "arguments": {},
        "input_shape": [3, SIDE, SIDE],
        "widths": {"one.0": 7},
        "samplers": {"one.0": [2, 3, 7]},
        "biases": ["one.0", "two.0"],
    }
    (tmp_path / "recipe.json").write_text(json.dumps(value))
    assert saved.recipe_of(tmp_path) == recipe
    x = torch.randn(5, 3, SIDE, SIDE)
    for loaded in (api.load(tmp_path), api.load(tmp_path, dense)):
        assert torch.equal(loaded(x), model(x))


class Tied(nn.Module):
    """Shared parameters, a buffer outside the state, and an attribute that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.randn(1, 3, 1, 1), persistent=False)
        self.function = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x) + self.offset)).mean((2, 3))


def test_shared_parameters_and_buffers_outside_the_state(tmp_path: Path) -> None:
    model = Tied().eval()
    assert saved.save(model, Recipe("", {}, (3, SIDE, SIDE)), tmp_path) is None
    loaded = saved.load(tmp_path)
    x = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(loaded(x), model(x))
    assert loaded.second.weight is loaded.first.weight


FACTORY = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 9, 3, bias=False), nn.ReLU(),
                         nn.Conv2d(9, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


def test_a_factory_s_network_is_pruned_saved_and_pruned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ownfactory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    first = api.prune("ownfactory:net", images(), speedup=1.3, progress=False, tell=quiet, out=tmp_path / "one")
    x = torch.randn(5, 3, SIDE, SIDE)
    assert torch.equal(api.load(tmp_path / "one")(x), first.model(x))
    assert not (tmp_path / "one" / "structure.pt").exists()
    assert first.recipe.biases  # the reconstruction gave one to the convolutions without
    second = api.prune(
        "ownfactory:net",
        images(),
        weights=tmp_path / "one",
        speedup=1.3,
        progress=False,
        tell=quiet,
        out=tmp_path / "two",
    )
    assert second.dense.total("conv") == first.pruned.total("conv")
    assert torch.equal(api.load(tmp_path / "two")(x), second.model(x))
    with pytest.raises(UserError, match="ownfactory:net"):
        api.prune("torchvision.models:resnet18", images(), weights=tmp_path / "one", progress=False)
    sys.modules.pop("ownfactory")


def damaged(folder: Path) -> None:
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "weights.safetensors").write_bytes(data)


BREAKAGES = {
    "no recipe": (lambda f: (f / "recipe.json").unlink(), "holds no saved network"),
    "a broken recipe": (lambda f: (f / "recipe.json").write_text("{}"), "no readable recipe"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "cannot be read"),
    "a flipped bit": (damaged, "is not the file"),
    "no modules": (lambda f: (f / "structure.pt").unlink(), "give the dense network"),
    "garbage": (lambda f: (f / "structure.pt").write_bytes(b"PK garbage"), "cannot be read"),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_a_damaged_folder_gets_one_line(tmp_path: Path, what: str) -> None:
    model, recipe = edited(network(Residual, False, True, False))
    saved.save(model, recipe, tmp_path)
    break_it, named = BREAKAGES[what]
    break_it(tmp_path)
    with pytest.raises(UserError, match=named) as caught:
        saved.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_dense_network_is_refused(tmp_path: Path) -> None:
    model, recipe = edited(network(Residual, False, True, False))
    saved.save(model, recipe, tmp_path)
    with pytest.raises(UserError, match="does not fit Plain"):
        saved.load(tmp_path, network(Plain, False, False, False))


def test_a_network_whose_classes_cannot_be_found_again_is_told_and_loads_with_the_dense_one(tmp_path: Path) -> None:
    class Local(Residual):
        pass

    torch.manual_seed(0)
    dense = Local(False, True, False).eval()
    model, recipe = edited(dense)
    problem = saved.save(model, recipe, tmp_path)
    assert problem is not None and "bench.api.load(folder, dense_network)" in problem
    x = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(saved.load(tmp_path, dense)(x), model(x))


def test_reading_modules_calls_nothing_else(tmp_path: Path) -> None:
    """A structure file that asks for a function of the system is refused, and the function is not called."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.mkdir, (str(tmp_path / "called"),)

    model, recipe = edited(network(Residual, False, True, False))
    saved.save(model, recipe, tmp_path)
    torch.save(Evil(), tmp_path / "structure.pt")
    with pytest.raises(UserError, match="cannot be read"):
        saved.load(tmp_path)
    assert not (tmp_path / "called").exists()
