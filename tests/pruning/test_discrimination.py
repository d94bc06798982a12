"""DCP's selection on whole feature maps against a plain form: two full passes of both networks for every channel."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.errors import UserError
from bench.models.preact import PreActResNet
from bench.models.vgg19 import CONVS, vgg19_bn
from bench.pruning.discrimination import Replay, prune_segment, total_loss
from bench.pruning.graph import trace
from bench.pruning.greedy import Greedy, Sampled, SiteReport, Tail, Term, channel_scores, choose, output_node, sgd
from bench.pruning.surgery import convolution
from bench.pruning.walk import Walk
from bench.train.auxiliary import Discriminating, Head, Heads

CLASSES = 5
# the settings are such that a pass moves the weights visibly
GREEDY = Greedy(alpha=0.8, lr=0.05, weight_decay=1e-3)


def busy(model: nn.Module, seed: int) -> nn.Module:
    """Random batch norms, and weights that another seed moves a little."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.2, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.2)  # type: ignore[arg-type]
    return model.eval()


def networks() -> tuple[nn.Module, nn.Module]:
    """A pre-activation ResNet of one block a stage, 4, 8 and 16 channels, and what a little training made of it."""
    torch.manual_seed(0)
    baseline = busy(PreActResNet(8, CLASSES, 0.25), 1)
    tuned = copy.deepcopy(baseline)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter)) if parameter.numel() > 1 else None
    return baseline, tuned


def images() -> tuple[list[Tensor], list[Tensor]]:
    """Three mini-batches, the last one smaller, and their labels."""
    torch.manual_seed(2)
    return [torch.randn(count, 3, 8, 8) for count in (6, 6, 3)], [torch.randint(CLASSES, (n,)) for n in (6, 6, 3)]


@dataclass
class Classifier:
    """The loss at a place: through a head, or of the network's own logits."""

    head: nn.Module
    labels: Sequence[Tensor]

    def __call__(self, place: int, features: Tensor) -> Tensor:
        return F.cross_entropy(self.head(features), self.labels[place])


def classifier(position: str, labels: Sequence[Tensor], channels: int = 8) -> Classifier:
    if not position:
        return Classifier(nn.Identity(), labels)
    torch.manual_seed(3)
    return Classifier(busy(Head(channels, CLASSES), 4), labels)


def seen(net: nn.Module, weights: Mapping[str, Tensor], x: Tensor, names: Sequence[str]) -> list[Tensor]:
    """What modules give in the whole network ("" is the network) with other weights."""
    found: dict[str, Tensor] = {}
    handles = [
        net.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: found.update({name: o}))  # type: ignore[misc]
        for name in names
        if name
    ]
    found[""] = functional_call(net, dict(weights), (x,))
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def plain(
    net: nn.Module, baseline: nn.Module, reader: str, keep: int, settings: Greedy, end: str, loss: Classifier | None
) -> tuple[list[int], Tensor, list[float]]:
    """Algorithm 2 for one layer of ``net``: order, weights, and L without channels and behind each pick."""
    batches, _ = images()
    count = sum(len(batch) for batch in batches)
    original = convolution(net, reader).weight.detach()
    weight = nn.Parameter(torch.zeros_like(original))
    how = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    chosen: list[int] = []
    losses: list[float] = []

    def batch_loss(place: int) -> Tensor:
        with torch.no_grad():
            (target,) = seen(baseline, {}, batches[place], [reader])
        response, features = seen(net, {f"{reader}.weight": weight}, batches[place], [reader, end])
        value = settings.reconstruction * F.mse_loss(response, target) / 2.0
        return value if loss is None else value + settings.alpha * loss(place, features)

    def whole_pass() -> Tensor:
        total = sum(len(batch) / count * batch_loss(place) for place, batch in enumerate(batches))
        assert isinstance(total, Tensor)
        losses.append(float(total.detach()))
        return torch.autograd.grad(total, weight)[0]

    gradient = whole_pass()
    while len(chosen) < keep:
        scores = []
        for k in range(original.shape[1]):
            kernels = [float(gradient[j, k].norm()) for j in range(original.shape[0])]
            scores.append(sum(kernels) if settings.score == "l21" else sum(norm**2 for norm in kernels))
        best = max((k for k in range(original.shape[1]) if k not in chosen), key=scores.__getitem__)
        chosen.append(best)
        weight.data[:, best] = original[:, best]
        optimizer = torch.optim.SGD([weight], nesterov=True, **how)  # a new one behind each pick
        for place in range(len(batches)):
            optimizer.zero_grad()
            batch_loss(place).backward()  # type: ignore[no-untyped-call]
            assert weight.grad is not None
            weight.grad[:, [k for k in range(original.shape[1]) if k not in chosen]] = 0.0
            optimizer.step()
        gradient = whole_pass()
        if settings.epsilon is not None and abs(losses[-2] - losses[-1]) <= settings.epsilon * losses[0]:
            break
    return chosen, weight.detach(), losses


CASES = [
    ("layer1.0", "layer2.0", 3, GREEDY),
    ("layer2.0", "layer2.0", 4, replace(GREEDY, score="l21", alpha=0.3)),
    ("layer2.0", "", 3, replace(GREEDY, reconstruction=0.0)),
    ("layer3.0", "", 6, GREEDY),
]


@pytest.mark.parametrize(("block", "end", "keep", "settings"), CASES)
@pytest.mark.parametrize("budget", [10**9, 0])
def test_a_layer_is_algorithm_2_with_full_passes(
    block: str, end: str, keep: int, settings: Greedy, budget: int
) -> None:
    """The same channels in the same order, the same losses and weights; also where nothing fits the memory."""
    baseline, tuned = networks()
    batches, labels = images()
    loss = classifier(end, labels)
    reader, producer = f"{block}.conv2", f"{block}.conv1"
    order, weight, losses = plain(tuned, baseline, reader, keep, settings, end, loss)
    before = copy.deepcopy(tuned.state_dict())
    pruned, (report,) = prune_segment(
        tuned, baseline, batches, {producer: keep}, settings, end, loss, budget=budget, progress=False
    )
    assert (report.reader, report.producer, report.order) == (reader, producer, order)
    assert (report.first_loss, report.last_loss) == (
        pytest.approx(losses[0], rel=1e-4), pytest.approx(losses[-1], rel=1e-3))  # fmt: skip
    kept = sorted(order)
    torch.testing.assert_close(convolution(pruned, reader).weight.detach(), weight[:, kept], rtol=1e-3, atol=1e-5)
    assert torch.equal(convolution(pruned, producer).weight, convolution(tuned, producer).weight[kept])
    # and it computes what the network with the masked weights does
    masked = functional_call(tuned, {f"{reader}.weight": weight}, (batches[0],))
    torch.testing.assert_close(pruned(batches[0]), masked, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


def test_layers_of_a_segment_are_pruned_in_the_network_as_it_is_by_then() -> None:
    baseline, tuned = networks()
    batches, labels = images()
    loss = classifier("layer2.0", labels)
    keep = {"layer1.0.conv1": 2, "layer2.0.conv1": 3}
    pruned, reports = prune_segment(tuned, baseline, batches, keep, GREEDY, "layer2.0", loss, progress=False)
    net = copy.deepcopy(tuned)
    for report, (producer, count) in zip(reports, keep.items(), strict=True):
        reader = producer.replace("conv1", "conv2")
        order, weight, _ = plain(net, baseline, reader, count, GREEDY, "layer2.0", loss)
        assert (report.producer, report.order) == (producer, order)
        convolution(net, reader).weight.data.copy_(weight)
    torch.testing.assert_close(pruned(batches[0]), net(batches[0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("epsilon", [0.2, 0.03])
def test_the_adaptive_stop(epsilon: float) -> None:
    """Behind the first pick that changes L by no more than epsilon L_0, at most all channels."""
    baseline, tuned = networks()
    batches, labels = images()
    loss = classifier("", labels)
    settings = replace(GREEDY, epsilon=epsilon)
    order, _, losses = plain(tuned, baseline, "layer3.0.conv2", 16, settings, "", loss)
    small = [abs(old - new) <= epsilon * losses[0] for old, new in pairwise(losses)]
    assert small.index(True) + 1 == len(order) < 16
    keep = {"layer3.0.conv1": 16}
    pruned, (report,) = prune_segment(tuned, baseline, batches, keep, settings, "", loss, progress=False)
    assert report.order == order
    assert convolution(pruned, "layer3.0.conv1").out_channels == len(order)


def test_without_a_limit_of_the_loss_all_channels_may_stay() -> None:
    baseline, tuned = networks()
    batches, labels = images()
    settings = replace(GREEDY, epsilon=0.0)
    pruned, (report,) = prune_segment(
        tuned, baseline, batches, {"layer1.0.conv1": 4}, settings, "", classifier("", labels), progress=False
    )
    assert sorted(report.order) == [0, 1, 2, 3]
    assert convolution(pruned, "layer1.0.conv1").out_channels == 4


def test_random_channels_have_their_weights_optimised_all_the_same() -> None:
    baseline, tuned = networks()
    batches, labels = images()
    loss = classifier("", labels)
    found: list[SiteReport] = []
    for seed in (0, 0, 1):
        settings = replace(GREEDY, score="random", seed=seed)
        keep = {"layer2.0.conv1": 5, "layer3.0.conv1": 8}
        pruned, reports = prune_segment(tuned, baseline, batches, keep, settings, "", loss, progress=False)
        found.append(reports[1])
        kept = sorted(reports[0].order)
        moved = convolution(pruned, "layer2.0.conv2").weight - convolution(tuned, "layer2.0.conv2").weight[:, kept]
        assert float(moved.detach().abs().min(dim=0).values.max()) > 1e-4
        assert reports[0].last_loss < reports[0].first_loss
    assert found[0] == found[1] and found[0].order != found[2].order
    assert found[0].order != list(range(8))


def test_random_orders_of_two_segments_are_not_the_same() -> None:
    """The first layer of one segment is not drawn as the first of another."""
    torch.manual_seed(0)
    net = PreActResNet(14, CLASSES, 0.25).eval()
    batches, _ = images()
    settings = Greedy(score="random", alpha=0.0)
    orders = []
    for producer in ("layer3.0.conv1", "layer3.1.conv1"):
        _, (report,) = prune_segment(net, net, batches, {producer: 15}, settings, "", None, progress=False)
        orders.append(report.order)
    assert [len(set(order)) for order in orders] == [15, 15] and orders[0] != orders[1]


# --------------------------------------------------------------------------------------------------------------------
# Gradients by differences


@pytest.mark.parametrize(("reconstruction", "alpha"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.7)])
@pytest.mark.parametrize("end", ["layer2.0", ""])
def test_gradients_of_l_m_and_l_s_against_differences(reconstruction: float, alpha: float, end: str) -> None:
    """In double precision, along four directions: L_M (equation 4), L_S (equation 5), and L (equation 6)."""
    baseline, tuned = (net.double() for net in networks())
    batches, labels = images()
    loss = classifier(end, labels)
    loss.head.double()
    x = batches[0].double()
    graph = trace(tuned)
    walk = Walk(tuned, graph, [x], "cpu", 10**9)
    tail = Tail(tuned, graph, "layer2.0.conv2", end)
    (values,) = list(walk.live("layer2.0.conv2"))
    (target,) = seen(baseline, {}, x, ["layer2.0.conv2"])
    settings = Greedy(alpha=alpha, reconstruction=reconstruction)
    torch.manual_seed(5)
    weight = 0.1 * torch.randn(8, 8, 3, 3, dtype=torch.float64)

    def value(w: Tensor) -> Tensor:
        response = F.conv2d(tail.inputs(values), w, padding=1)
        return total_loss(tail, 0, values, target.detach(), response, settings, loss)

    response, features = seen(tuned, {"layer2.0.conv2.weight": weight}, x, ["layer2.0.conv2", end])
    squares = float((target - response).detach().square().mean())
    expected = reconstruction * squares / 2.0 + alpha * float(loss(0, features).detach())
    assert float(value(weight).detach()) == pytest.approx(expected, rel=1e-10)
    replay = Replay(tail, lambda: iter([(values, target.detach())]), weight, settings, loss)
    (gradient,) = replay.gradients([weight])
    assert replay.loss() == pytest.approx(expected, rel=1e-10) and replay.passes == 1
    for _ in range(4):
        direction = torch.randn_like(weight)
        step = 1e-6
        difference = value(weight + step * direction) - value(weight - step * direction)
        slope = float(difference.detach()) / (2.0 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-9)


def test_a_head_is_batch_norm_relu_mean_and_a_linear_layer() -> None:
    """Its value by hand, its gradients in features and parameters by differences, in training and evaluation mode."""
    torch.manual_seed(0)
    head = Head(3, 4).double()
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    pooled = ((x - mean) / (var + 1e-5).sqrt()).clamp_min(0.0).mean((2, 3))
    torch.testing.assert_close(head(x), pooled @ head.linear.weight.T + head.linear.bias)
    names = [name for name, _ in head.named_parameters()]
    state = [parameter.detach().clone().requires_grad_(True) for parameter in head.parameters()]
    for training in (True, False):
        head.train(training)

        def loss(features: Tensor, *parameters: Tensor) -> Tensor:
            own = copy.deepcopy(head)  # running statistics move
            return F.cross_entropy(functional_call(own, dict(zip(names, parameters, strict=True)), (features,)), labels)

        assert torch.autograd.gradcheck(loss, (x, *state))


def test_training_adds_the_losses_inside() -> None:
    baseline, _ = networks()
    torch.manual_seed(0)
    heads = Heads(baseline, ["layer1.0", "layer3.0"], (3, 8, 8), CLASSES)
    assert [heads.at(name).norm.num_features for name in ("layer1.0", "layer3.0")] == [4, 16]
    model = Discriminating(baseline, heads, {"layer1.0": 0.25, "layer3.0": 1.0}).eval()
    (x, *_), (y, *_) = images()
    losses = model(x, y)
    assert isinstance(losses, dict)
    total, _ = model.parse_losses(dict(losses))
    logits, one, three = seen(baseline, {}, x, ["", "layer1.0", "layer3.0"])
    expected = F.cross_entropy(logits, y) + 0.25 * F.cross_entropy(heads.at("layer1.0")(one), y)
    expected = expected + F.cross_entropy(heads.at("layer3.0")(three), y)
    torch.testing.assert_close(total, expected)
    assert float(losses["accuracy"]) == float((logits.argmax(1) == y).float().mean())
    assert torch.equal(model(x, y, "predict"), logits)


# --------------------------------------------------------------------------------------------------------------------
# Places in the network


def test_where_a_module_gives_its_output() -> None:
    """Of a block the sum, of a convolution itself, of the network its logits; another name is the user's mistake."""
    baseline, _ = networks()
    graph = trace(baseline)
    assert output_node(graph, "layer2.0.conv1").target == "layer2.0.conv1"
    added = output_node(graph, "layer1.0")
    assert added.op == "call_function" and "layer1_0_conv2" in [node.name for node in added.all_input_nodes]
    assert output_node(graph, "").target == "linear"
    with pytest.raises(UserError, match=r"no module 'layer9.0'"):
        output_node(graph, "layer9.0")


def test_a_layer_of_vgg_may_end_its_segment() -> None:
    """The loss reads the very convolution whose inputs are chosen, before its batch norm."""
    torch.manual_seed(0)
    net = busy(vgg19_bn(CLASSES, 1 / 32), 1)
    torch.manual_seed(1)
    batches, labels = [torch.randn(4, 3, 32, 32)], [torch.randint(CLASSES, (4,))]
    loss = classifier(CONVS[2], labels, channels=4)
    _, (report,) = prune_segment(net, net, batches, {CONVS[1]: 1}, GREEDY, CONVS[2], loss, progress=False)
    original = convolution(net, CONVS[2]).weight.detach()
    weight = torch.zeros_like(original, requires_grad=True)
    (target,) = seen(net, {}, batches[0], [CONVS[2]])
    (response,) = seen(net, {f"{CONVS[2]}.weight": weight}, batches[0], [CONVS[2]])
    value = F.mse_loss(response, target.detach()) / 2.0 + GREEDY.alpha * loss(0, response)
    (gradient,) = torch.autograd.grad(value, weight)
    assert report.order == [int(gradient.square().sum((0, 2, 3)).argmax())]
    assert report.first_loss == pytest.approx(float(value.detach()), rel=1e-5)


def test_only_sgd_is_known_and_only_channels_of_one_reader_can_go() -> None:
    baseline, tuned = networks()
    batches, labels = images()
    with pytest.raises(UserError, match="choose sgd"):
        prune_segment(
            tuned, baseline, batches, {"layer1.0.conv1": 2}, Greedy(update="newton"), "", classifier("", labels),
            progress=False,
        )  # fmt: skip
    with pytest.raises(UserError, match="more than one convolution"):
        prune_segment(tuned, baseline, batches, {"conv1": 2}, GREEDY, "", None, progress=False)


# --------------------------------------------------------------------------------------------------------------------
# What localization-aware pruning uses


@pytest.mark.parametrize("update", ["sgd", "newton"])
def test_the_choice_from_moments_is_what_it_was_bit_for_bit(update: str) -> None:
    """The loop as it stood before objectives were told apart, on the same terms and mini-batches in turn."""
    torch.manual_seed(0)
    terms = []
    for outputs in (4, 3):
        x = torch.randn(60, 6 * 4, dtype=torch.float64)
        weight = torch.randn(outputs, 6, 2, 2, dtype=torch.float64)
        f = x @ weight.flatten(1).T
        terms.append(Term(x.T @ x, x.T @ f, float(f.square().sum()), 60, weight, unit=0.5))
    probes = torch.randn(3, 4, 6, 2, 2, dtype=torch.float64)
    settings = Greedy(alpha=0.7, update=update, lr=0.02, steps=2, last_steps=3)

    def turns() -> tuple[list[int], object]:
        calls: list[int] = []

        def auxiliary(weight: Tensor) -> tuple[float, Tensor]:
            probe = probes[len(calls) % 3]
            calls.append(len(calls))
            return float((weight * probe).sum().sin()), probe * (weight * probe).sum().cos()

        return calls, auxiliary

    calls, auxiliary = turns()
    found = choose(Sampled(terms, settings, auxiliary), 4, settings)  # type: ignore[arg-type]
    again, auxiliary = turns()
    weights = [torch.zeros_like(t.weight) for t in terms]
    velocity = [torch.zeros_like(t.weight) for t in terms]
    chosen, order = torch.zeros(6, dtype=torch.bool), []
    value, extra = (settings.alpha * part for part in auxiliary(weights[0]))  # type: ignore[operator]
    first = sum(t.value(w) for t, w in zip(terms, weights, strict=True)) + value
    for number in range(4):
        gradients = [t.gradient(w) for t, w in zip(terms, weights, strict=True)]
        gradients[0] = gradients[0] + extra
        scores = channel_scores(gradients, settings.score)
        scores[chosen] = -torch.inf
        channel = int(scores.argmax())
        chosen[channel] = True
        order.append(channel)
        for weight, t in zip(weights, terms, strict=True):
            weight[:, channel] = t.weight[:, channel]
        for _ in range(2 if number + 1 < 4 else 5):
            _, extra = (settings.alpha * part for part in auxiliary(weights[0]))  # type: ignore[operator]
            if update == "newton":
                for weight, t in zip(weights, terms, strict=True):
                    weight.sub_(t.newton(t.gradient(weight), chosen, settings.ridge))
                push = extra * chosen[:, None, None]
                weights[0].sub_(settings.lr * weights[0].norm() / push.norm() * push)
            else:
                gradients = [t.gradient(w) for t, w in zip(terms, weights, strict=True)]
                gradients[0] = gradients[0] + extra
                sgd(weights, velocity, gradients, chosen, settings)
        value, extra = (settings.alpha * part for part in auxiliary(weights[0]))  # type: ignore[operator]
    assert (found.order, calls) == (order, again)
    assert all(torch.equal(left, right) for left, right in zip(found.weights, weights, strict=True))
    assert found.losses == (first, sum(t.value(w) for t, w in zip(terms, weights, strict=True)) + value)
