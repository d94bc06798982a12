"""Recipes: edits in order, their JSON old and new, equal keys of equal recipes, published sizes."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.gating.edit import Gate, at_density
from bench.gating.layer import GatedConv2d, GateOptions, gated_layers
from bench.measure import macs
from bench.models.checkpoint import network
from bench.models.edits import Bias, Edit, NewOutputs, Remove, ReplaceHead, Sample
from bench.models.recipe import Recipe
from bench.models.vgg import CONVS
from bench.pruning.surgery import SampledConv2d, convolution
from bench.steps import Kind, canonical, make_step
from bench.store import Result, Store
from bench.train.schedule import Schedule
from bench.train.steps import Training, run_trained

IMAGENET = (3, 224, 224)
RESNET = Recipe("bottleneck_resnet", {"num_classes": 5, "width": 1 / 16, "blocks": [1, 2, 1, 1]}, (3, 16, 16))
SMALL_VGG = Recipe("vgg16", {"num_classes": 6, "form": "cifar", "width": 1 / 16}, (3, 32, 32))
WIDTHS, CHANNELS = {"layer2.1.conv1": 3, "layer3.0.conv2": 2}, {"layer3.0.conv1": [0, 9, 31]}


def shapes(recipe: Recipe, device: str = "meta") -> dict[str, torch.Size]:
    return {name: value.shape for name, value in recipe.build(device).state_dict().items()}


# --------------------------------------------------------------------------------------------------------------------
# JSON


def test_the_json_of_a_recipe_is_its_base_and_its_edits_in_order() -> None:
    recipe = RESNET.sampled(CHANNELS).removed(WIDTHS).biased(["layer1.0.conv1"])
    gated = Recipe("mcifarnet", {}, (3, 32, 32)).removed({"conv1": 9}).gated(500, GateOptions(phi="zero"), ("conv2",))
    assert recipe.to_json() == {
        "builder": "bottleneck_resnet",
        "arguments": {"blocks": [1, 2, 1, 1], "num_classes": 5, "width": 0.0625},
        "input_shape": [3, 16, 16],
        "edits": [
            {"kind": "sample", "channels": {"layer3.0.conv1": [0, 9, 31]}},
            {"kind": "remove", "widths": {"layer2.1.conv1": 3, "layer3.0.conv2": 2}},
            {"kind": "bias", "names": ["layer1.0.conv1"]},
        ],
    }
    assert gated.to_json()["edits"] == [
        {"kind": "remove", "widths": {"conv1": 9}},
        {
            "kind": "gate",
            "density": 500,
            "options": {
                "subsample": "l1",
                "phi": "zero",
                "rectify": "always",
                "shift": "gated",
                "ties": "exact",
                "penalty": "all",
            },
            "ungated": ["conv2"],
        },
    ]
    headless = SMALL_VGG.edited(ReplaceHead(7))
    assert headless.to_json()["edits"] == [{"kind": "replace head", "classes": 7}]
    for one in (recipe, gated, headless, RESNET):
        assert Recipe.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_recipes_written_before_there_were_edits_are_read() -> None:
    older = {
        "builder": "bottleneck_resnet",
        "arguments": {"blocks": [1, 2, 1, 1], "num_classes": 5, "width": 0.0625},
        "input_shape": [3, 16, 16],
        "widths": {"layer2.1.conv1": 3, "layer3.0.conv2": 2},
        "samplers": {"layer3.0.conv1": [0, 9, 31]},
    }
    recipe = RESNET.edited(Sample(CHANNELS), Remove(WIDTHS))
    assert Recipe.from_json(older) == recipe
    assert Recipe.from_json({**older, "biases": ["layer1.0.conv1"]}) == recipe.edited(Bias(["layer1.0.conv1"]))
    assert Recipe.from_json({**older, "widths": {}, "samplers": {}}) == RESNET == recipe.base


def test_gated_recipes_written_as_a_builder_around_a_recipe_are_read() -> None:
    base = {"builder": "mcifarnet", "arguments": {}, "input_shape": [3, 32, 32], "widths": {"conv1": 9}, "samplers": {}}
    older: dict[str, Any] = {"builder": "gated", "input_shape": [3, 32, 32], "widths": {}, "samplers": {}}
    full = {"base": base, "density": 500, "options": {"phi": "zero", "ties": "strict"}, "ungated": ["conv2"]}
    slim = Recipe("mcifarnet", {}, (3, 32, 32)).removed({"conv1": 9})
    gate = Gate(500, GateOptions(phi="zero", ties="strict"), ("conv2",))
    assert Recipe.from_json({**older, "arguments": full}) == slim.edited(gate)
    assert Recipe.from_json({**older, "arguments": {"base": base}}) == slim.edited(Gate(1000))
    assert Recipe.from_json({**older, "arguments": {"base": base, "options": None}}).base == slim.base
    built = Recipe.from_json({**older, "arguments": full}).build("meta")
    assert {name: (layer.out_channels, layer.k) for name, layer in gated_layers(built).items()}["conv1"] == (9, 5)
    assert type(convolution(built, "conv2")) is nn.Conv2d


def test_steps_stored_before_recipes_had_edits_are_read(tmp_path: Path) -> None:
    """A removal, and gates in what is left, as a store holds them."""
    torch.manual_seed(0)
    slim = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16}, (3, 16, 16)).removed({"conv1": 3})
    older: dict[str, Any] = {**slim.base.to_json(), "widths": {"conv1": 3}, "samplers": {}}
    del older["edits"]
    arguments = {"base": older, "density": 500, "options": {"phi": "zero"}, "ungated": []}
    gates = {"builder": "gated", "arguments": arguments, "input_shape": [3, 16, 16], "widths": {}, "samplers": {}}
    store = Store(tmp_path)
    for name, recipe, value in (("a", slim, older), ("b", slim.gated(500, GateOptions(phi="zero")), gates)):
        made = recipe.build().eval()
        store.save(name, Result(recipe=value, state=dict(made.state_dict())), {"step": name})
        stored = store.load(name)
        assert stored is not None
        model, found = network(stored)
        assert found == recipe
        x = torch.randn(2, 3, 16, 16)
        assert torch.equal(model(x), made(x))


def test_the_networks_released_beside_the_results_are_read() -> None:
    files = sorted((Path(__file__).parents[2] / "results").glob("*/networks/*/recipe.json"))
    assert files
    gated = {float(file.parent.name.rpartition("d-")[2]): file for file in files if "fbs" in file.parts}
    assert set(gated) == {0.7, 0.5}
    for density, file in gated.items():
        recipe = Recipe.from_json(json.loads(file.read_text())["recipe"])
        options = GateOptions(phi="zero")
        assert recipe == Recipe("mcifarnet", {"num_classes": 10}, (3, 32, 32)).gated(round(1000 * density), options)
    for file in (file for file in files if file not in gated.values()):
        value = json.loads(file.read_text())["recipe"]
        recipe = Recipe.from_json(value)
        widths = value["widths"] if "widths" in value else value["edits"][0]["widths"]
        assert recipe.edits == (Remove(widths),) and recipe.widths == widths != {}
    pruned = recipe.build("meta")
    assert {name: convolution(pruned, name).out_channels for name in widths} == widths


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"kind": "fold"}, "unknown edit 'fold': choose one of remove"),
        ({"kind": "torch.nn:Linear", "in_features": 3}, "'torch.nn:Linear' is no subclass"),
        ({"kind": "torch.nn:NoSuchThing"}, "'torch.nn:NoSuchThing' is no subclass"),
        ({"kind": "no_such_package_here:Fold"}, "cannot import 'no_such_package_here' of edit"),
    ],
)
def test_edits_that_cannot_be_found_are_user_errors(edit: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe.from_json({**RESNET.to_json(), "edits": [edit]})


# --------------------------------------------------------------------------------------------------------------------
# Equality and keys


def key(recipe: Recipe) -> str:
    params = Training(Schedule(1, 0.1), 0, recipe)
    return make_step(Kind.TRAIN, "t", run_trained, params, device="cpu").key


def test_edits_that_do_nothing_make_no_difference() -> None:
    for same in (RESNET.removed({}), RESNET.sampled({}).biased(()), Recipe.from_json(RESNET.removed({}).to_json())):
        assert same == RESNET and same.to_json() == RESNET.to_json() and key(same) == key(RESNET)


def test_equal_recipes_have_equal_json_and_keys_however_they_were_written() -> None:
    first, second = {"layer2.1.conv1": 3}, {"layer3.0.conv2": 2}
    one = RESNET.sampled(CHANNELS).removed(first).removed(second).biased(["b", "a"])
    others = [
        Recipe("bottleneck_resnet", dict(reversed(RESNET.arguments.items())), (3, 16, 16), one.edits),
        RESNET.sampled(CHANNELS).removed({**second, **first}).biased(["a"]).removed({}).biased(["b"]),
        RESNET.sampled({"layer3.0.conv1": (0, 9, 31)})
        .removed({**first, "layer3.0.conv2": 7})
        .removed(second)
        .biased(("a", "b", "a")),
        Recipe.from_json({**one.to_json(), "edits": [edit.to_json() for edit in one.edits]}),
    ]
    for other in others:
        assert other == one and repr(other.to_json()) == repr(one.to_json()) and key(other) == key(one)
    different = [RESNET.sampled(CHANNELS).removed(first).biased(["a", "b"]), one.gated(500), one.gated(400), one.base]
    assert len({key(recipe) for recipe in [one, *different]}) == 5
    gates = [RESNET.gated(500, None, ("b", "a")), RESNET.gated(500, GateOptions(), ("a", "b")), RESNET.gated(500)]
    assert gates[0] == gates[1] != gates[2] and key(gates[0]) == key(gates[1]) != key(gates[2])


def test_the_base_has_no_edits_and_what_was_done_can_be_asked() -> None:
    recipe = RESNET.sampled(CHANNELS).removed(WIDTHS).gated(700).biased(["x"]).removed({"layer2.1.conv1": 1})
    assert recipe.base == RESNET and recipe.base.edits == ()
    assert recipe.widths == {"layer2.1.conv1": 1, "layer3.0.conv2": 2}
    assert (recipe.samplers, recipe.biases) == ({"layer3.0.conv1": [0, 9, 31]}, ("x",))
    assert recipe.last("gate") == Gate(700) and RESNET.last("gate") is None
    assert recipe.last("remove") == Remove({"layer2.1.conv1": 1})
    assert [edit.kind for edit in at_density(recipe, 300).edits] == [edit.kind for edit in recipe.edits]
    assert at_density(recipe, 300).last("gate") == Gate(300)
    assert (RESNET.widths, RESNET.samplers, RESNET.biases) == ({}, {}, ())


def test_only_recipes_with_gates_depend_on_the_code_of_gates() -> None:
    def modules(recipe: Recipe) -> set[str]:
        params = Training(Schedule(1, 0.1), 0, recipe)
        step = make_step(Kind.TRAIN, "t", run_trained, params, device="cpu")
        return {module for module, _ in step.code.definitions}

    plain = RESNET.sampled(CHANNELS).removed(WIDTHS).biased(["layer1.0.conv1"])
    assert "bench.pruning.surgery" in modules(plain)
    assert not {module for module in modules(plain) if module.startswith("bench.gating")}
    assert {"bench.gating.edit", "bench.gating.convert", "bench.gating.layer"} <= modules(plain.gated(500))
    assert canonical(plain.gated(500))["edits"][-1] == {"type": "Gate", "density": 500}


# --------------------------------------------------------------------------------------------------------------------
# Networks


def test_a_second_removal_goes_on_from_the_first() -> None:
    recipe = RESNET.removed({"layer2.1.conv1": 3}).sampled(CHANNELS).removed({"layer2.1.conv1": 2, "layer1.0.conv1": 1})
    assert len(recipe.edits) == 3
    model = recipe.build("meta")
    assert [convolution(model, f"layer{at}.conv1").out_channels for at in ("2.1", "1.0")] == [2, 1]
    with pytest.raises(UserError, match=r"layer2\.1\.conv1: 3 filters cannot be left of 2"):
        RESNET.removed({"layer2.1.conv1": 2}).removed({"layer2.1.conv1": 3})
    with pytest.raises(UserError, match="not between 1 and its 2 filters"):
        recipe.sampled({"layer4.0.conv1": [1]}).removed({"layer2.1.conv1": 3}).build("meta")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_sampler_behind_a_sampler_counts_the_channels_of_the_stream(device: str) -> None:
    """Joined or not, in the recipe or on a network with weights."""
    name = "layer3.0.conv1"
    for recipe in (
        RESNET.sampled({name: [0, 9, 31]}).sampled({name: [9, 31]}),
        RESNET.sampled({name: [0, 9, 31]}).removed({"layer2.1.conv1": 1}).sampled({name: [9, 31]}),
    ):
        conv = convolution(recipe.build(device), name)
        assert isinstance(conv, SampledConv2d) and conv.index.tolist() == [9, 31] and conv.weight.shape[1] == 2
    for channels in ([9, 8], [32]):
        with pytest.raises(UserError, match="reads no channel"):
            RESNET.sampled({name: [0, 9]}).removed({"layer2.1.conv1": 1}).sampled({name: channels}).build(device)
    model = RESNET.build("cpu")
    weight = convolution(model, name).weight.detach().clone()
    RESNET.sampled({name: [0, 9, 31]}).removed({"layer2.1.conv1": 1}).sampled({name: [31, 9]}).apply(model)
    assert torch.equal(convolution(model, name).weight, weight[:, [31, 9]])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_edits_are_applied_in_order(device: str) -> None:
    """Gates stand in front of what is there: their inputs are those left by a removal before them."""
    recipe = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16}, (3, 16, 16)).removed({"conv1": 3})
    model = recipe.gated(500, ungated=("conv4",)).build(device)
    second = model.get_submodule("conv2")
    assert isinstance(second, GatedConv2d) and second.gate.weight.shape == (second.out_channels, 3)
    assert list(gated_layers(model)) == [f"conv{place}" for place in (0, 1, 2, 3, 5, 6, 7)]
    assert all(parameter.device.type == device for parameter in model.parameters())


def test_the_seed_gives_the_weights_that_it_gave_before() -> None:
    """He normal filters in the order of the modules, each of the size that is left: by torch's functions alone."""
    recipe = SMALL_VGG.removed({"features.0": 2, "features.28": 5})
    torch.manual_seed(3)
    state = recipe.build().state_dict()
    torch.manual_seed(3)
    sizes = [2, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 5]
    inputs = 3
    for name, filters in zip(CONVS.values(), sizes, strict=True):
        weight = torch.empty(filters, inputs, 3, 3).normal_(0, (2 / (9 * filters)) ** 0.5)
        torch.testing.assert_close(state[f"{name}.weight"], weight, rtol=1e-6, atol=0)
        inputs = filters
    torch.testing.assert_close(state["classifier.0.weight"], torch.empty(6, 5).normal_(0, 0.01), rtol=1e-6, atol=0)


def test_building_on_meta_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    RESNET.gated(500).build("meta")
    SMALL_VGG.edited(ReplaceHead()).build("meta")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_of_the_user_s_own_keeps_its_weights_through_all_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three filters of a convolution that computes the same as the first three of it did before."""

    def build() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))

    place = types.ModuleType("a_users_module")
    place.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_users_module", place)
    recipe = Recipe("a_users_module:build", {}, (3, 8, 8)).removed({"0": 3}).biased(["0"]).gated(1000, {"phi": "zero"})
    plain, x = build().eval(), torch.randn(2, 3, 8, 8)
    hidden = F.relu(plain[1](plain[0](x)))[:, :3]  # type: ignore[index]
    expected = F.conv2d(hidden, plain[3].weight[:, :3], plain[3].bias)  # type: ignore[index]
    with torch.no_grad():
        torch.testing.assert_close(recipe.build().eval()(x), expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# The replaced head


THINET = (32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
TINY = (16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 256)


@pytest.mark.parametrize(
    ("widths", "pooled", "gflops", "mparams"),
    [
        ({}, False, 30.94, 138.34),
        (THINET, False, 9.58, 131.44),
        (THINET, True, 9.34, 8.32),
        (TINY, True, 2.01, 1.32),
    ],
    ids=["VGG-16", "ThiNet-Conv", "ThiNet-GAP", "ThiNet-Tiny"],
)
def test_published_sizes_of_thinet(widths: Sequence[int], pooled: bool, gflops: float, mparams: float) -> None:
    """Luo et al. 2017, Table 1: twice the MACs of convolutions and fully connected layers, weights without biases."""
    recipe = Recipe("vgg16", {}, IMAGENET).removed(dict(zip(CONVS.values(), widths, strict=False)))
    recipes = [recipe]
    if pooled:  # in either order
        recipes = [recipe.edited(ReplaceHead()), recipe.base.edited(ReplaceHead(), *recipe.edits)]
    for one in recipes:
        model = one.build("meta")
        assert round(macs.count(model, IMAGENET).total("2x") / 1e9, 2) == gflops
        weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
        assert round(weights / 1e6, 2) == mparams
        assert macs.count(one.base.build("meta"), IMAGENET).total("2x") == 30_940_528_640


def test_the_replaced_head_is_the_mean_over_the_last_map_and_one_linear_layer() -> None:
    """With the weights of a network that has them; the rest of it computes what it did."""
    torch.manual_seed(0)
    model = SMALL_VGG.build().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.features[:-1](x)  # type: ignore[index, operator]
        before = {name: value.clone() for name, value in model.features.state_dict().items()}  # type: ignore[union-attr]
        SMALL_VGG.edited(ReplaceHead(9)).apply(model)
        state = model.state_dict()
        expected = features.mean((2, 3)) @ state["classifier.0.weight"].T + state["classifier.0.bias"]
        assert features.shape[2:] == (2, 2) and expected.shape == (2, 9)
        torch.testing.assert_close(model(x), expected)
    assert all(torch.equal(state[f"features.{name}"], value) for name, value in before.items())
    assert set(state) == {f"features.{name}" for name in before} | {"classifier.0.weight", "classifier.0.bias"}
    assert float(state["classifier.0.weight"].std()) == pytest.approx(0.01, rel=0.2)
    assert shapes(SMALL_VGG.edited(ReplaceHead(9))) == {name: value.shape for name, value in state.items()}
    assert shapes(SMALL_VGG.edited(ReplaceHead()), "cpu")["classifier.0.weight"] == (6, 32)


def test_new_outputs_are_fresh_and_the_rest_stays() -> None:
    """The last linear layer alone, of VGG in both forms and of a ResNet; as a recipe's edit it is read back."""
    for recipe in (SMALL_VGG, SMALL_VGG.edited(ReplaceHead()), RESNET):
        model = recipe.build()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        NewOutputs(11).apply(model, recipe.input_shape)
        after = model.state_dict()
        assert list(after) == list(before)
        assert {name for name, value in after.items() if not torch.equal(value, before[name])} >= {f"{last}.weight"}
        assert after[f"{last}.weight"].shape == (11, before[f"{last}.weight"].shape[1])
        assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith(last))
        edited = recipe.edited(NewOutputs(11))
        assert shapes(Recipe.from_json(edited.to_json())) == {name: value.shape for name, value in after.items()}


def test_a_network_without_a_linear_layer_has_no_outputs_to_replace() -> None:
    with pytest.raises(UserError, match="no fully connected layer"):
        NewOutputs(3).apply(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 8, 8))


def test_a_head_that_cannot_be_replaced_is_a_user_s_error() -> None:
    for recipe in (RESNET.edited(ReplaceHead()), SMALL_VGG.edited(ReplaceHead(), ReplaceHead())):
        with pytest.raises(UserError, match="its head cannot be replaced"):
            recipe.build("meta")


# --------------------------------------------------------------------------------------------------------------------
# Edits of a script's own


@dataclasses.dataclass(frozen=True)
class Negate(Edit):
    """Turns the sign of a layer."""

    kind: ClassVar[str] = "a_script:Negate"
    layer: str

    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """In place."""
        conv = convolution(model, self.layer)
        if not conv.weight.is_meta:
            conv.weight.data.neg_()


def test_a_script_s_own_edit_needs_no_entry_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    place = types.ModuleType("a_script")
    place.Negate = Negate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_script", place)
    recipe = SMALL_VGG.edited(Negate("features.0")).removed({"features.0": 2})
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe and again.last("a_script:Negate") == Negate("features.0")
    model = SMALL_VGG.build()
    weight = convolution(model, "features.0").weight.detach().clone()
    again.apply(model)
    assert torch.equal(convolution(model, "features.0").weight, -weight[:2])
