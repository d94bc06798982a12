"""The edits that make networks versatile: their JSON, what they replace, wrong ones, saving and loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import saved
from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.versatile.edit import Learned, Versatile, exported
from bench.versatile.layer import Options, VersatileConv2d
from bench.versatile.learned import LearnedConv2d, Masks

NARROW = Recipe("bottleneck_resnet", {"num_classes": 5, "width": 1 / 16, "blocks": [1, 1, 1, 1]}, (3, 16, 16))
PLAIN = Recipe("vgg16", {"num_classes": 5, "form": "cifar", "width": 1 / 16}, (3, 32, 32))


def test_json_and_defaults() -> None:
    recipe = NARROW.edited(Versatile(Options(windows=2, shift=0.25), ("conv1",)))
    assert recipe.to_json()["edits"] == [
        {
            "kind": "versatile",
            "linears": {},
            "options": {
                "spatial": True, "windows": 2, "shift": 0.25, "channels": "paper", "aggregate": "concatenate",
            },
            "skipped": ["conv1"],
        }
    ]  # fmt: skip
    masks = PLAIN.edited(Learned(Masks(4, False, "{-1,+1}")))
    assert masks.to_json()["edits"] == [
        {
            "kind": "learned masks",
            "exported": False,
            "masks": {"count": 4, "own": False, "alphabet": "{-1,+1}"},
            "skipped": [],
        }
    ]
    for one in (recipe, masks, exported(masks)):
        assert Recipe.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert exported(masks) == PLAIN.edited(Learned(Masks(4, False, "{-1,+1}"), exported=True)) != masks


def test_what_is_replaced() -> None:
    """Spatial masks do nothing for 1x1 convolutions, which stay; what is skipped stays; the head is no convolution."""
    model = NARROW.edited(Versatile(skipped=["conv1"])).build()
    versatile = {name for name, module in model.named_modules() if isinstance(module, VersatileConv2d)}
    assert versatile == {f"layer{stage}.0.conv2" for stage in (1, 2, 3, 4)}
    windows = NARROW.edited(Versatile(Options(spatial=False, windows=2))).build("meta")
    assert {type(m) for m in windows.modules() if hasattr(m, "out_channels")} == {VersatileConv2d}
    masks = NARROW.edited(Learned()).build("meta")
    assert sum(isinstance(module, LearnedConv2d) for module in masks.modules()) == 5


def test_a_fully_connected_layer_on_a_map_is_a_convolution_of_its_size() -> None:
    """With one mask more it keeps what it computes: the first maps are those of the filters in full."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(1), nn.Linear(2 * 9, 4), nn.ReLU(), nn.Linear(4, 2))
    linear = model[1]
    Versatile(linears={"1": 3}).apply(model, (2, 3, 3))
    layer = model[1][1]
    assert isinstance(layer, VersatileConv2d) and layer.weight.shape == (2, 2, 3, 3)
    linear.weight.data[:2] = layer.weight.data.flatten(1)
    linear.bias.data.zero_()
    x = torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(model[1](x.flatten(1))[:, :2], linear(x.flatten(1))[:, :2])
    assert model(x).shape == (3, 2)


def test_weights_that_stay_are_kept_and_new_ones_are_initialised() -> None:
    torch.manual_seed(0)
    model = PLAIN.build().eval()
    head = model.classifier[0].weight.clone()
    Versatile().apply(model, PLAIN.input_shape)
    assert torch.equal(model.classifier[0].weight, head)
    for module in model.modules():
        if isinstance(module, VersatileConv2d):
            # He, fan out, of the ordinary layer: 9 places, all filters
            expected = (2.0 / (9 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.3)
            assert module.bias is not None and not module.bias.any() and not module.training


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Versatile(skipped=["features.1"]), "features.1: no convolution has this name"),
        (Versatile(Options(spatial=False)), "the network would stay as it is"),
        (Versatile(linears={"classifier.0": 3}), "classifier.0 is no fully connected layer on a map of 3x3"),
        (Learned(Masks(1)), "the network would stay as it is"),
    ],
)
def test_edits_that_do_not_fit_are_user_errors(edit: Versatile | Learned, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PLAIN.edited(edit).build("meta")


@pytest.mark.parametrize(
    "edit",
    [
        Versatile(Options(windows=2)),
        Learned(Masks(4, own=False, alphabet="{-1,+1}"), exported=True),
        Learned(exported=True),
    ],
)
def test_saved_and_loaded_bit_for_bit(edit: Versatile | Learned, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = PLAIN.edited(edit)
    model = recipe.build().eval()
    assert saved.save(model, recipe, tmp_path) is None
    loaded = saved.load(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    bits = {name for name, value in loaded.state_dict().items() if value.dtype == torch.bool}
    assert len(bits) == (13 if isinstance(edit, Learned) else 0)
