"""Forms of networks: which there are, that they compute the same, and that one which does not is found."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import saved
from bench.errors import UserError
from bench.latency import contestants
from bench.latency.contestants import AS_IT_IS, BACKWARD, DETECTIONS, FORWARD, Form, Subject
from bench.measure import macs
from bench.models.recipe import Recipe

BN = Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.5}, (3, 16, 16))
SAMPLED = Recipe("bottleneck_resnet", {"width": 0.25, "blocks": [1, 1, 1, 1]}, (3, 16, 16)).sampled(
    {"layer1.0.conv1": [0, 1, 5], "layer3.0.conv1": list(range(9))}
)
PLAIN = Recipe("vgg16", {"num_classes": 10, "form": "cifar", "width": 0.125}, (3, 32, 32))
GATED = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16}, (3, 16, 16)).gated(500)
NARROW = Recipe("narrow_ssd", {"num_classes": 3, "size": 64, "widths": (8, 8, 8, 8, 8, 8, 8, 8)}, (3, 64, 64))


def trained(recipe: Recipe) -> nn.Module:
    """With batch norm statistics that a fold must not lose."""
    model = Subject("x", recipe).build(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def test_which_forms_there_are() -> None:
    both = ("nchw", "nhwc")
    names = [form.name for form in contestants.forms(trained(BN), False, FORWARD, both, True)]
    assert names == [
        "as it is",
        "folded",
        "folded, compiled",
        "folded, channels-last",
        "folded, channels-last, compiled",
    ]
    assert contestants.forms(trained(PLAIN), False, FORWARD, both, False) == [AS_IT_IS, Form(layout="nhwc")]
    assert contestants.forms(trained(BN), False, BACKWARD, both, True) == [AS_IT_IS, Form(layout="nhwc")]
    assert contestants.forms(trained(PLAIN), True, FORWARD, both, True) == [AS_IT_IS, Form(skipped=True)]


@pytest.mark.parametrize("recipe", [BN, PLAIN, SAMPLED])
def test_every_form_computes_what_the_network_does_and_leaves_it_as_it_is(recipe: Recipe) -> None:
    model, x = trained(recipe), torch.randn(2, *recipe.input_shape)
    before = contestants.digest(model)
    with torch.no_grad():
        reference = model(x).flatten()
    for form in contestants.forms(model, False, FORWARD, ("nchw", "nhwc"), False):
        call, checked = contestants.prepared(model, form, FORWARD, "fp32", "cpu")
        assert contestants.difference(contestants.outputs(call, x), reference) < 1e-4, form.name
        assert contestants.difference(contestants.outputs(checked, x), reference) < 1e-4, form.name
    assert contestants.digest(model) == before


@pytest.mark.parametrize("recipe", [BN, SAMPLED])
def test_a_folded_network_has_no_batch_norm_left(recipe: Recipe) -> None:
    """Convolutions behind channel samplers, which are of a class of ours, are no exception."""
    body = contestants.body_of(trained(recipe), Form(folded=True, layout="nhwc"), "bf16", "cpu")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    counted = macs.count(recipe.build("meta"), recipe.input_shape)
    assert {*counted.conv, *counted.fc} <= {name for name, module in body.named_modules() if not [*module.children()]}
    weights = [module.weight for module in body.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.dtype == torch.bfloat16 for weight in weights)
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_difference() -> None:
    reference = torch.tensor([1.0, -4.0])
    assert contestants.difference(torch.tensor([1.1, -4.0]), reference) == pytest.approx(0.025)
    assert contestants.difference(torch.tensor([1.0]), reference) == float("inf")


def test_the_digest_sees_one_bit_and_one_name() -> None:
    model = nn.Linear(2, 1)
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    by_hand = hashlib.sha256()
    by_hand.update(b"bias (1,) torch.float32" + model.bias.detach().numpy().tobytes())
    by_hand.update(b"weight (1, 2) torch.float32" + model.weight.detach().numpy().tobytes())
    assert contestants.digest(model) == by_hand.hexdigest()
    with torch.no_grad():
        model.weight[0, 0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert contestants.digest(model) != by_hand.hexdigest()


def test_forward_and_backward_gives_gradients_and_moves_no_statistic() -> None:
    model, x = trained(BN), torch.randn(4, 3, 16, 16)
    timed = copy.deepcopy(model)
    call = contestants.training(timed)
    first, second = contestants.outputs(call, x), contestants.outputs(call, x)
    assert torch.equal(first, second)
    assert all(parameter.grad is not None for parameter in timed.parameters())
    ours = {name: value for name, value in timed.state_dict().items() if "running" in name}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in ours.items())
    # the loss is the cross-entropy against class 0 in training mode
    plain = copy.deepcopy(model).train()
    loss = -torch.log_softmax(plain(x), 1)[:, 0].mean()
    loss.backward()
    for mine, other in zip(timed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_a_detector_is_timed_with_its_post_processing() -> None:
    model = Subject("ssd", NARROW).build(0)
    x = torch.randn(2, 3, 64, 64)
    call, checked = contestants.prepared(model, Form(layout="nhwc"), DETECTIONS, "fp32", "cpu")
    with torch.inference_mode():
        boxes = call(x)
        maps = torch.cat([value.flatten() for value in model(x)])
    assert boxes.ndim == 2 and boxes.shape[1] == 5 and len(boxes) <= 2 * 200
    assert contestants.difference(contestants.outputs(checked, x), maps) < 1e-4


def test_a_saved_network_is_the_one_that_was_saved(tmp_path: Path) -> None:
    model = trained(BN)
    saved.save(model, BN, tmp_path / "net")
    found = Subject("net", BN, str(tmp_path / "net")).build(1)
    assert contestants.digest(found) == contestants.digest(model)
    torch.save(model.state_dict(), tmp_path / "state.pth")
    assert contestants.digest(Subject("net", BN, str(tmp_path / "state.pth")).build(1)) == contestants.digest(model)


def test_macs_are_those_of_the_counters() -> None:
    """VGG-16 as the papers count it; a gated network at half of its channels costs less than half of the dense one."""
    whole = Subject("vgg", Recipe("vgg16", {}, (3, 224, 224)))
    counted = contestants.mac_count(whole, whole.recipe.build("meta"))
    assert counted == {"conv": 15_346_630_656.0, "conv+fc": 15_470_264_320.0}
    dense = contestants.mac_count(Subject("m", GATED.base), GATED.base.build("meta"))["conv+fc"]
    gated = contestants.mac_count(Subject("m", GATED), GATED.build("meta"))["conv+fc+gates"]
    assert 0.2 * dense < gated < 0.5 * dense


def test_formats_that_the_device_lacks() -> None:
    with pytest.raises(UserError, match="tf32 is a mode of NVIDIA GPUs"):
        contestants.check_dtype("tf32", "cpu")
    with pytest.raises(UserError, match="unknown dtype 'fp16'"):
        contestants.check_dtype("fp16", "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["fp32", "tf32", "bf16"])
def test_forms_on_the_gpu(dtype: str) -> None:
    contestants.set_precision(dtype)
    model, x = trained(BN), torch.randn(2, 3, 16, 16, device="cuda").to(contestants.DTYPES[dtype])
    _, checked = contestants.prepared(model, AS_IT_IS, FORWARD, dtype, "cuda")
    reference = contestants.outputs(checked, x)
    for form in contestants.forms(model, False, FORWARD, ("nchw", "nhwc"), False):
        call, _ = contestants.prepared(model, form, FORWARD, dtype, "cuda")
        assert contestants.difference(contestants.outputs(call, x), reference) < contestants.TOLERANCE[dtype]
