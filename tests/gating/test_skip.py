"""Skipped against masked execution: layer by layer on 1,000 inputs, whole networks, and what is really computed."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba.core import caching
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.errors import UserError
from bench.gating import batched, kernels
from bench.gating.compact import Compact, PerImage, add, dense
from bench.gating.convert import convert
from bench.gating.layer import OFFICIAL_CODE, PAPER, GatedConv2d, GateOptions, gated_layers
from bench.gating.skip import SkippedNetwork
from bench.gating.skipped import SkippedConv
from bench.measure import dynamic, latency
from bench.models.cifar_resnet import CifarResNet
from bench.models.mcifarnet import mcifarnet
from bench.models.resnet import resnet18
from bench.models.vgg import vgg16_bn

IMAGES = 1000
# inputs, filters, kernel, stride, padding, height, width, density
LAYERS = [
    (6, 8, 3, 1, 1, 5, 7, 500),
    (8, 6, 3, 2, 1, 7, 7, 300),
    (8, 12, 3, 2, 0, 9, 6, 700),
    (12, 5, 1, 1, 0, 3, 3, 400),
    (5, 9, 1, 2, 0, 5, 5, 600),
    (4, 10, 5, 1, 2, 4, 4, 1),  # k = 1
    (3, 4, 3, 1, 0, 6, 6, 1000),
]


def made(
    inputs: int, outputs: int, kernel: int, stride: int, padding: int, density: int, options: GateOptions
) -> GatedConv2d:
    torch.manual_seed(outputs)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    layer = GatedConv2d(conv, nn.BatchNorm2d(outputs), density, options, followed_by_relu=False)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    with torch.no_grad():
        layer.beta.normal_()
    return layer.eval()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("shape", LAYERS)
@torch.inference_mode()
def test_layer_by_layer(shape: tuple[int, ...], dtype: torch.dtype, limit: float) -> None:
    """The same incoming tensor, half of its channels zero and, to the skipped layer, absent."""
    inputs, outputs, kernel, stride, padding, height, width, density = shape
    layer = made(inputs, outputs, kernel, stride, padding, density, PAPER).to(dtype)
    skipping = SkippedConv(layer)
    x = torch.randn(IMAGES, inputs, height, width, dtype=dtype)
    index = torch.randperm(inputs)[: max(1, inputs // 2)]
    x[:, [c for c in range(inputs) if c not in index.tolist()]] = 0
    expected = layer(x)
    assert layer.winners is not None and layer.winners.sum(1).eq(layer.k).all()
    found = []
    for image in x:
        value = skipping(Compact(image[None, index], index, inputs))
        assert isinstance(value, Tensor) or value.values.shape[1] == layer.k
        found.append(dense(value))
    assert float((torch.cat(found) - expected).abs().max()) <= limit * float(expected.abs().max())
    for rows, group in skipping.groups(x):
        assert float((dense(group) - expected[rows]).abs().max()) <= limit * float(expected.abs().max())
    for value in (x, PerImage(x[:, index], index.expand(len(x), -1), inputs)):
        whole = skipping(value)
        assert isinstance(whole, PerImage if layer.k < outputs else Tensor)
        assert float((dense(whole) - expected).abs().max()) <= limit * float(expected.abs().max())


@pytest.mark.parametrize("options", [OFFICIAL_CODE, GateOptions(shift="masked"), GateOptions(subsample="mean")])
@torch.inference_mode()
def test_the_options_skip_too(options: GateOptions) -> None:
    layer = made(6, 8, 3, 1, 1, 500, options).double()
    skipping = SkippedConv(layer)
    x = torch.randn(50, 6, 5, 5, dtype=torch.float64)
    expected = layer(x)
    one_by_one = torch.cat([dense(skipping(image[None])) for image in x])
    torch.testing.assert_close(one_by_one, expected, rtol=1e-10, atol=1e-10)
    for rows, group in skipping.groups(x):
        torch.testing.assert_close(dense(group), expected[rows], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dense(skipping(x)), expected, rtol=1e-10, atol=1e-10)


def test_winners_keep_their_slots_and_only_what_changed_is_gathered() -> None:
    """Against plain indexing, over a walk of winners and input channels; of a fewer than k the others are losers."""
    rng = np.random.default_rng(0)
    outputs, taps, inputs, k, n = 9, 4, 7, 4, 3
    rows = rng.normal(size=(outputs, taps, inputs))
    slots, place = np.arange(k), np.r_[np.arange(k), np.full(outputs - k, -1)]
    weights, held, columns = np.full((k, taps, n), np.nan), np.full(k, -1), np.full(n, -1)
    chosen = np.arange(n)
    for turn in range(200):
        winners = np.sort(rng.permutation(outputs)[: k - (turn % 5 == 0)])
        if turn % 3:  # else the same as before
            chosen = np.sort(rng.permutation(inputs)[:n])
        before = slots.copy()
        kernels.settle(slots, place, winners)
        stay = [s for s in range(k) if before[s] in winners]
        assert slots[stay].tolist() == before[stay].tolist()
        assert set(winners) <= set(slots) and len(set(slots)) == k
        assert place.tolist() == [slots.tolist().index(o) if o in slots else -1 for o in range(outputs)]
        kernels.gather(weights, held, columns, rows, slots, chosen)
        np.testing.assert_array_equal(weights, rows[slots][:, :, chosen])
        # scaled by the saliencies
        y, g = rng.normal(size=(5, k)), rng.normal(size=outputs)
        bias, behind = rng.normal(size=outputs), rng.normal(size=outputs)
        wanted = g[slots] * (y + bias[slots]) + behind[slots]
        kernels.finish(y, slots, g, bias, behind, turn % 2 == 0)
        np.testing.assert_allclose(y, np.maximum(wanted, 0.0) if turn % 2 == 0 else wanted, rtol=1e-12, atol=1e-12)


def reloaded(skipping: SkippedConv, other: SkippedConv) -> SkippedConv:
    skipping.load_state_dict(other.state_dict())
    return skipping


@pytest.mark.parametrize("change", ["copied", "pickled", "loaded", "in float32 and back"])
@torch.inference_mode()
def test_what_is_gathered_is_never_that_of_other_filters(change: str) -> None:
    """A layer that has seen images, then copied, pickled, or given other weights: as the masked layer."""
    layer, other = (made(6, 8, 3, 1, 1, 500, PAPER).double() for _ in range(2))
    with torch.no_grad():
        other.weight.normal_()
    skipping, x = SkippedConv(layer), torch.randn(20, 6, 5, 5, dtype=torch.float64)
    for image in x[:5]:
        skipping(image[None])
    now = {
        "copied": lambda: copy.deepcopy(skipping),
        "pickled": lambda: pickle.loads(pickle.dumps(skipping)),
        "loaded": lambda: reloaded(skipping, SkippedConv(other)),
        "in float32 and back": lambda: skipping.float().double(),
    }[change]()
    wanted = (other if change == "loaded" else layer)(x)
    found = torch.cat([dense(now(image[None])) for image in x])
    loose = 1e-5 if change == "in float32 and back" else 1e-10
    torch.testing.assert_close(found, wanted, rtol=loose, atol=loose)


@torch.inference_mode()
def test_with_strict_ties_only_the_winners_are_computed() -> None:
    """Three of eight saliencies equal at the threshold of k = 4 all lose: fewer filters, and the masked layer's."""
    layer = made(4, 8, 3, 1, 1, 500, replace(PAPER, ties="strict")).double()
    layer.gate.weight.zero_()
    layer.gate.bias.copy_(torch.tensor([5.0, 1.0, 3.0, 3.0, 3.0, 4.0, 0.5, 0.2]))
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    skipping = SkippedConv(layer)
    for image, wanted in zip(x, layer(x), strict=True):
        value = skipping(image[None])
        assert isinstance(value, Compact) and value.values.shape[1] == 2 and sorted(value.index.tolist()) == [0, 5]
        torch.testing.assert_close(value.dense()[0], wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dense(skipping(x)), layer(x), rtol=1e-10, atol=1e-10)


def test_a_saliency_that_is_no_number_wins_nothing() -> None:
    phi, rho = np.ones((2, 4)), np.array([0.1, np.nan, 0.3, 0.2])
    won, _ = kernels.choose(np.full((3, 2), np.nan), np.arange(2), phi, rho, 2, False, False, True)
    assert len(won) == 0


class Odd(nn.Module):
    """What the program must get right: two readers, a scalar added, a functional ReLU, a sigmoid, an ungated reader."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.nb = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.na(self.a(x)))
        y = self.nb(self.b(self.drop(x)))
        z = self.plain(self.pool(y)) + self.pool(x)
        z = (z + 1.0) * torch.sigmoid(self.pool(y) + self.pool(x))
        return self.fc(z.mean((2, 3)))  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mcifarnet": (lambda: mcifarnet(10, 0.25, 16), 16),
    "mcifarnet, odd": (lambda: mcifarnet(10, 0.25, 19), 19),
    "vgg": (lambda: vgg16_bn(10, "cifar", 0.125), 32),
    "resnet18": (lambda: resnet18(10, 0.125, True), 16),
    "resnet18 with its own stem": (lambda: resnet18(10, 0.125), 64),
    "cifar resnet": (lambda: CifarResNet(20, 10, 0.5), 16),
    "odd": (Odd, 9),
}


def network(name: str, density: int) -> tuple[nn.Module, int]:
    """A gated network whose layers all have something to say, in float64."""
    make, side = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    ungated = ("layer2.1.conv1", "layer2.1.conv2") if name == "resnet18" else ()
    convert(model, density, PAPER, ungated)
    for layer in gated_layers(model).values():
        torch.nn.init.normal_(layer.beta, 0.5, 0.5)
        layer.momentum = 1.0
    # without statistics of its own the network would explode: saliency times response squares the scale in every layer
    model.double().train()(torch.randn(16, 3, side, side, dtype=torch.float64))
    return model.eval(), side


@pytest.mark.parametrize("density", [1, 300, 700, 1000])
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_networks_end_to_end(name: str, density: int) -> None:
    """One image at a time, and in a batch in which some images are the same."""
    model, side = network(name, density)
    skipping = SkippedNetwork(model)
    x = torch.randn(5, 3, side, side, dtype=torch.float64)[[0, 1, 0, 2, 3, 4, 2, 0]]
    expected = model(x)
    limit = 1e-10 * float(expected.abs().max())
    assert float((skipping(x) - expected).abs().max()) <= limit
    singles = torch.cat([skipping(image[None]) for image in x])
    assert float((singles - expected).abs().max()) <= limit
    together = SkippedNetwork(model, together=True)
    assert float((together(x) - expected).abs().max()) <= limit
    assert float((together(x[:1]) - expected[:1]).abs().max()) <= limit


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that are launched."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "convolution" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mcifarnet", "vgg", "resnet18"])
@torch.inference_mode()
def test_a_whole_batch_launches_as_often_as_one_image(name: str) -> None:
    """Eight images with winners of their own: a convolution a layer, whose MACs are those of the images one by one.

    But behind an addition, where the whole batch has all channels and a single image the union of two sets.
    """
    model, side = network(name, 400)
    x = torch.randn(8, 3, side, side, dtype=torch.float64)
    calls: dict[str, list[int]] = {}
    for what, net, images in (
        ("whole", SkippedNetwork(model, together=True), [x]),
        ("one by one", SkippedNetwork(model), list(x.split(1))),
    ):
        counted = calls[what] = []
        for batch in images:
            with FlopCounterMode(display=False) as counter, Convolutions() as seen:
                net(batch)
            counts = counter.get_flop_counts()["Global"]
            counted += [seen.count, sum(v for operation, v in counts.items() if "convolution" in str(operation))]
    assert calls["whole"][0] == calls["one by one"][0] and set(calls["one by one"][::2]) == {calls["whole"][0]}
    alone = sum(calls["one by one"][1::2])
    assert calls["whole"][1] > alone if name == "resnet18" else calls["whole"][1] == alone


def test_the_filters_of_each_image_are_plain_indexing() -> None:
    rows, outputs, inputs = torch.randn(6, 9, 5), torch.tensor([[4, 0], [1, 5]]), torch.tensor([[0, 3, 4], [1, 2, 3]])
    for image in range(2):
        chosen = rows[outputs[image]]
        assert torch.equal(batched.gathered(rows, outputs, None)[image], chosen)
        assert torch.equal(batched.gathered(rows, outputs, inputs)[image], chosen[:, :, inputs[image]])


@pytest.mark.parametrize("name", ["mcifarnet", "vgg"])
@torch.inference_mode()
def test_what_is_computed_is_what_is_counted(name: str) -> None:
    """The convolutions that torch really runs have exactly the MACs of the dynamic count."""
    model, side = network(name, 400)
    skipping = SkippedNetwork(model)
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        skipping(x)
    counts = counter.get_flop_counts()["Global"]
    convolutions = sum(value for operation, value in counts.items() if "convolution" in str(operation))
    tally = dynamic.Counter(model, (3, side, side))
    model(x)
    tally.add(dynamic.applied(model), 1)
    counted = tally.result()
    wanted = sum(row["macs"] for row in counted.table() if not row["layer"].startswith(("logits", "classifier")))
    assert convolutions / 2 == pytest.approx(wanted, abs=0.5)


@torch.inference_mode()
def test_ties_at_the_threshold_go_to_the_first() -> None:
    """All saliencies equal, or all zero: the first k filters, masked and skipped alike."""
    layer = made(4, 9, 3, 1, 1, 300, PAPER).double()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    layer.gate.weight.zero_()
    for rho in (1.0, -1.0):
        layer.gate.bias.fill_(rho)
        expected = layer(x)
        skipping = SkippedConv(layer)
        for image, wanted in zip(x, expected, strict=True):
            value = skipping(image[None])
            assert isinstance(value, Compact) and sorted(value.index.tolist()) == [0, 1, 2]
            torch.testing.assert_close(value.dense()[0], wanted, rtol=1e-10, atol=1e-10)
        ((rows, group),) = skipping.groups(x)
        torch.testing.assert_close(dense(group), expected[rows], rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_the_union_of_two_sets_of_channels() -> None:
    values = torch.randn(2, 2, 3, 3, dtype=torch.float64), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    a = Compact(values[0], torch.tensor([4, 1]), 6)
    b = Compact(values[1], torch.tensor([0, 4, 3]), 6)
    both = add(a, b)
    assert isinstance(both, Compact) and sorted(both.index.tolist()) == [0, 1, 3, 4]
    torch.testing.assert_close(both.dense(), a.dense() + b.dense())
    whole = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    for pair in ((a, whole), (whole, a)):
        torch.testing.assert_close(dense(add(*pair)), a.dense() + whole)
    own = (
        PerImage(values[0], torch.tensor([[4, 1], [0, 2]]), 6),
        PerImage(values[1], torch.tensor([[0, 4, 3], [2, 1, 5]]), 6),
    )
    plain = [torch.zeros(2, 6, 3, 3, dtype=torch.float64) for _ in own]
    for part, zeros in zip(own, plain, strict=True):
        for image in range(2):
            zeros[image, part.index[image]] = part.values[image]
    for pair, wanted in ((own, sum(plain)), ((own[0], whole), plain[0] + whole), ((whole, own[1]), plain[1] + whole)):
        torch.testing.assert_close(dense(add(*pair)), wanted)
    assert torch.equal(dense(own[1].rows(torch.tensor([1]))), plain[1][1:])


def test_networks_without_gates_are_refused() -> None:
    with pytest.raises(UserError, match="no gated layer"):
        SkippedNetwork(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", ["mcifarnet", "resnet18"])
@torch.inference_mode()
def test_on_cuda(name: str) -> None:
    model, side = network(name, 500)
    model = model.cuda()
    x = torch.randn(6, 3, side, side, dtype=torch.float64, device="cuda")
    expected = model(x)
    skipping = SkippedNetwork(copy.deepcopy(model)).cuda()
    grouped = SkippedNetwork(copy.deepcopy(model), together=False).cuda()
    limit = 1e-9 * float(expected.abs().max())
    assert float((skipping(x) - expected).abs().max()) <= limit
    assert float((grouped(x) - expected).abs().max()) <= limit
    assert float((torch.cat([skipping(image[None]) for image in x]) - expected).abs().max()) <= limit
    for batch in (x, x[:1]):  # whole batches wait for nothing
        captured = latency.captured(skipping, batch)
        assert not isinstance(captured, str), captured


def added(x: Any, y: Any) -> Any:
    return x + y


def test_kernels_are_kept_for_the_next_process_where_a_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that Numba finds none on they are compiled all the same."""
    assert Path(kernels.choose_and_gather.stats.cache_path).is_dir()
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    one = np.arange(3.0)
    assert kernels.compiled(added)(one, one).tolist() == [0.0, 2.0, 4.0]
