"""DCP's selection with kept activations against the plain procedure: the ratio of their times, measured in one run."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.recipe import Recipe
from bench.pruning.discrimination import prune_segment
from bench.pruning.discrimination_steps import Segment, segments
from bench.pruning.greedy import Greedy
from bench.pruning.surgery import convolution
from bench.train.auxiliary import Heads

RESNET20 = Recipe("cifar_preact_resnet20", {"width": 0.5}, (3, 32, 32))
KEPT = 0.25
SETTINGS = Greedy(lr=0.01)


class Stop(Exception):
    """A forward pass that has come as far as it is needed."""


def upto(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """What the module ``name`` gives; the network is not run any further ("": all of it)."""
    found: list[Tensor] = []

    def stop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output)
        raise Stop

    handle = (net.get_submodule(name) if name else net).register_forward_hook(stop)
    try:
        net(x)
    except Stop:
        pass
    finally:
        handle.remove()
    return found[0]


def plain(
    net: nn.Module,
    baseline: nn.Module,
    part: Segment,
    heads: Heads,
    batches: list[Tensor],
    labels: list[Tensor],
    passes: Counter[str],
) -> dict[str, list[int]]:
    """Algorithm 2 for a segment as it stands: for each channel two passes, each from the images, of both networks.

    Chosen weights are kept in ``net``, in place; only the layer's own have gradients.  Returns the order by producer.
    """
    orders = {}
    for producer in part.producers:
        conv = convolution(net, producer.replace("conv1", "conv2"))
        reader = producer.replace("conv1", "conv2")
        original, order = conv.weight.detach().clone(), []
        conv.weight.data.zero_()
        conv.weight.requires_grad_(True)
        outputs: list[Tensor] = []
        handle = conv.register_forward_hook(lambda m, i, o, outputs=outputs: outputs.append(o))

        def loss(place: int, reader: str = reader, outputs: list[Tensor] = outputs) -> Tensor:
            with torch.no_grad():
                target = upto(baseline, reader, batches[place])
            outputs.clear()
            features = upto(net, part.position, batches[place])
            logits = heads.at(part.position)(features) if part.position else features
            return F.mse_loss(outputs[0], target) / 2.0 + F.cross_entropy(logits, labels[place])

        def gradient(conv: nn.Conv2d = conv) -> Tensor:
            conv.weight.grad = None
            for place in range(len(batches)):
                (len(batches[place]) / sum(map(len, batches)) * loss(place)).backward()
            passes["from the images"] += 1
            assert conv.weight.grad is not None
            return conv.weight.grad

        scores = gradient().square().sum((0, 2, 3))
        for _ in range(int(KEPT * original.shape[1])):
            scores[order] = -1.0
            order.append(int(scores.argmax()))
            conv.weight.data[:, order[-1]] = original[:, order[-1]]
            others = [k for k in range(original.shape[1]) if k not in order]
            optimizer = torch.optim.SGD([conv.weight], lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True)
            for place in range(len(batches)):
                optimizer.zero_grad()
                loss(place).backward()
                assert conv.weight.grad is not None
                conv.weight.grad[:, others] = 0.0
                optimizer.step()
            passes["from the images"] += 1
            scores = gradient().square().sum((0, 2, 3))
        handle.remove()
        conv.weight.requires_grad_(False)
        orders[producer] = order
    return orders


@pytest.mark.slow
@pytest.mark.parametrize(("losses", "least"), [(3, 2.5), (4, 2.5)])
def test_kept_activations_against_two_passes_from_the_images(
    losses: int,
    least: float,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    kept_up: Callable[[str, float], None],
) -> None:
    """A quarter of the channels of every block of ResNet-20 at half its width: the same channels.

    Timed is the processor's time of one thread, which other work on the machine changes little.  What limits the ratio
    is the part of a pass that must be repeated, from the layer to the loss and back: behind an early loss it is as long
    as what stands in front of the layer.  The time of removing filters (0.1 s a layer) counts for the kept way alone.
    """
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    baseline = RESNET20.build().eval().requires_grad_(False)
    net = copy.deepcopy(baseline)
    batches = [torch.randn(64, 3, 32, 32) for _ in range(2)]
    labels = [torch.randint(10, (64,)) for _ in batches]
    parts = segments(RESNET20, losses)
    heads = Heads(baseline, [part.position for part in parts if part.position], RESNET20.input_shape, 10)
    heads.eval().requires_grad_(False)
    passes: Counter[str] = Counter()
    lines, whole, kept = [], 0.0, 0.0

    def select(part: Segment) -> dict[str, list[int]]:
        head = heads.at(part.position) if part.position else nn.Identity()

        def loss(place: int, features: Tensor) -> Tensor:
            passes["from the layer"] += place == 0
            return F.cross_entropy(head(features), labels[place])

        keep = {name: int(KEPT * convolution(baseline, name).out_channels) for name in part.producers}
        _, reports = prune_segment(net, baseline, batches, keep, SETTINGS, part.position, loss, progress=False)
        return {report.producer: report.order for report in reports}

    try:
        for part in parts:
            last = part is parts[-1]
            begin = time.process_time()
            found = benchmark.pedantic(select, (part,), rounds=1, iterations=1) if last else select(part)
            fast = time.process_time() - begin
            begin = time.process_time()
            orders = plain(net, baseline, part, heads, batches, labels, passes)  # and leaves net without the others
            slow = time.process_time() - begin
            assert found == orders
            whole, kept = whole + slow, kept + fast
            lines.append(f"{part.position or 'the network'} {slow / fast:.1f}x ({slow:.1f} s, {fast:.2f} s)")
    finally:
        torch.set_num_threads(threads)
    ratio = whole / kept
    benchmark.extra_info.update(plain_seconds=whole, kept_seconds=kept, passes=dict(passes))
    with capsys.disabled():
        print(
            f"\n{losses} losses: {ratio:.1f}x in all ({whole:.1f} s, {kept:.1f} s); {passes['from the images']} passes "
            f"from the images, {passes['from the layer']} from the layer; by the loss behind {', '.join(lines)}"
        )
    assert passes["from the images"] == passes["from the layer"]
    assert ratio >= least
    kept_up("over two passes from the images", ratio)
