"""Greedy selection by gradients against explicit rows, autograd, finite differences and a plain form of algorithm 2."""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.errors import UserError
from bench.pruning.calibration import Calibration, Sampling, calibrate
from bench.pruning.graph import find_sites, trace
from bench.pruning.greedy import Greedy, Sampled, SiteReport, Tail, Term, channel_scores, choose, prune_stage, term
from bench.pruning.moments import Moments
from bench.pruning.surgery import convolution
from bench.pruning.walk import Walk

DOUBLE = torch.float64


# --- networks ---


class Plain(nn.Module):
    """Five convolutions, with and without batch norm and bias; ``four`` ends a stage, ``five`` is behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.one_norm = nn.BatchNorm2d(5)
        self.two = nn.Conv2d(5, 6, 3, padding=1)
        self.two_norm = nn.BatchNorm2d(6)
        self.three = nn.Conv2d(6, 5, (3, 1), stride=2)
        self.four = nn.Conv2d(5, 4, 1, bias=False)
        self.four_norm = nn.BatchNorm2d(4)
        self.five = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 3."""
        x = F.relu(self.one_norm(self.one(x)))
        x = F.max_pool2d(F.relu(self.two_norm(self.two(x))), 2)
        x = self.four_norm(self.four(F.relu(self.three(x))))
        return self.five(F.relu(x)).mean((2, 3))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A residual block of two convolutions, then two more; ``four`` reads what the sum and a ReLU make of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.one_norm = nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 4, 3, padding=1)
        self.two_norm = nn.BatchNorm2d(4)
        self.three = nn.Conv2d(4, 5, 1)
        self.four = nn.Conv2d(5, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 3."""
        x = F.relu(self.stem(x))
        y = F.relu(self.one_norm(self.one(x)))
        x = F.relu(x + self.two_norm(self.two(y)))
        return self.four(F.relu(self.three(x))).mean((2, 3))  # type: ignore[no-any-return]


class Fork(nn.Module):
    """The map of ``map`` is read by ``next``, on the way to ``end``, and by a head of another kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.map = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.map_norm = nn.BatchNorm2d(6)
        self.next = nn.Conv2d(6, 4, 3, padding=1)
        self.next_norm = nn.BatchNorm2d(4)
        self.end = nn.Conv2d(4, 3, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """N x 3 x H x W to two maps."""
        x = F.relu(self.map_norm(self.map(F.relu(self.stem(x)))))
        return self.end(F.relu(self.next_norm(self.next(x)))), self.head(x)


def busy(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases and batch norms, so that forgetting one of them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
            if isinstance(module, nn.BatchNorm2d):
                features = module.num_features
                module.weight.copy_(0.5 + torch.rand(features, generator=generator))
                module.weight[1::2] *= -1.0  # a negative scale is as good as a positive one
                module.bias.copy_(0.5 + 0.5 * torch.randn(features, generator=generator))
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(0.3 * torch.randn(features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(features, generator=generator))
    return model.eval()


def images(number: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Head(nn.Module):
    """An auxiliary classifier: batch norm, ReLU, average pooling, linear (DCP, section 3.2), on known labels."""

    def __init__(self, channels: int, batches: Sequence[Tensor], seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, 3)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            self.linear.weight.copy_(2.0 * torch.randn(3, channels, generator=generator))
            self.linear.bias.copy_(0.3 * torch.randn(3, generator=generator))
            self.norm.weight.copy_(0.5 + torch.rand(channels, generator=generator))
        self.labels = [torch.randint(3, (len(batch),), generator=generator) for batch in batches]
        self.eval()

    def forward(self, place: int, features: Tensor) -> Tensor:
        """The cross-entropy of mini-batch ``place``."""
        pooled = F.relu(self.norm(features)).mean((2, 3))
        return F.cross_entropy(self.linear(pooled), self.labels[place])


@torch.no_grad()
def seen(model: nn.Module, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Input and output of a module in the plain forward pass."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: found.append((inputs[0].clone(), output.clone()))
    )
    model.eval()(x)
    handle.remove()
    return found[0]


# --- the reconstruction's term ---


class Rows:
    """A layer with explicit rows: original inputs, inputs now (rows x p), and the raw outputs F without the bias."""

    def __init__(
        self, seed: int, channels: int, kernel: tuple[int, int], outputs: int, rows: int, norm: bool, bias: bool
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        columns = channels * kernel[0] * kernel[1]
        self.conv = nn.Conv2d(channels, outputs, kernel, bias=bias, dtype=DOUBLE)
        self.norm = nn.BatchNorm2d(outputs, dtype=DOUBLE) if norm else None
        sequence = nn.Sequential(self.conv, *([self.norm] if self.norm is not None else []))
        busy(sequence, seed)
        original = torch.randn(rows, columns, generator=generator, dtype=DOUBLE) + 0.5
        self.x = original + 0.3 * torch.randn(rows, columns, generator=generator, dtype=DOUBLE)
        weight = self.conv.weight.detach()
        self.f = original @ weight.flatten(1).T
        maps = original.reshape(rows, channels, *kernel)
        responses = sequence(maps).detach().flatten(1)
        moments = Moments(columns, outputs)
        half = rows // 2
        moments.add(self.x[:half], responses[:half])
        moments.add(self.x[half:], responses[half:])
        self.term = term(moments, self.conv, self.norm)

    def loss(self, weight: Tensor) -> Tensor:
        """|F - X W|^2 / (2Q), Q the number of elements of F, by its definition."""
        return (self.f - self.x @ weight.flatten(1).T).square().sum() / (2.0 * self.f.numel())


rows_cases = st.builds(
    Rows,
    seed=st.integers(0, 10_000),
    channels=st.integers(1, 4),
    kernel=st.sampled_from([(1, 1), (2, 3), (3, 1)]),
    outputs=st.integers(1, 4),
    rows=st.integers(4, 30),
    norm=st.booleans(),
    bias=st.booleans(),
)


@settings(max_examples=30, deadline=None)
@given(case=rows_cases, unit=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_term_is_the_reconstruction_of_the_convolution_itself(case: Rows, unit: float, seed: int) -> None:
    """Value and gradient against explicit rows and autograd, the gradient against central differences too."""
    case.term.unit = unit
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(case.conv.weight.shape, generator=generator, dtype=DOUBLE)
    assert torch.equal(case.term.weight, case.conv.weight.detach())
    for here in (weight, torch.zeros_like(weight), case.conv.weight.detach()):
        free = here.clone().requires_grad_(True)
        loss = unit * case.loss(free)
        (gradient,) = torch.autograd.grad(loss, free)
        scale = unit * float(case.f.square().mean())
        assert case.term.value(here) == pytest.approx(float(loss.detach()), rel=1e-7, abs=1e-7 * scale)
        torch.testing.assert_close(case.term.gradient(here), gradient, rtol=1e-7, atol=1e-7 * scale)
    direction = torch.randn(weight.shape, generator=generator, dtype=DOUBLE)
    step = 1e-3  # the loss is quadratic: central differences have no error but rounding
    slope = (case.term.value(weight + step * direction) - case.term.value(weight - step * direction)) / (2.0 * step)
    assert slope == pytest.approx(float((case.term.gradient(weight) * direction).sum()), rel=1e-6, abs=1e-6 * scale)


def test_term_leaves_out_what_a_batch_norm_has_switched_off() -> None:
    """Nothing can be known of that filter: it adds neither loss nor gradient, and the others' are as without it."""
    generator = torch.Generator().manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 1, dtype=DOUBLE), nn.BatchNorm2d(4, dtype=DOUBLE)
    busy(nn.Sequential(conv, norm), 1)
    with torch.no_grad():
        norm.weight[2] = 0.0
    x = torch.randn(20, 3, generator=generator, dtype=DOUBLE)
    responses = norm(conv(x[:, :, None, None])).detach().flatten(1)
    moments = Moments(3, 4)
    moments.add(x, responses)
    found = term(moments, conv, norm)
    weight = torch.randn(4, 3, 1, 1, generator=generator, dtype=DOUBLE)
    gradient = found.gradient(weight)
    live = [0, 1, 3]
    residual = x @ (weight - conv.weight.detach())[live].flatten(1).T
    torch.testing.assert_close(gradient[live].flatten(1), residual.T @ x / (20 * 4))
    assert found.value(conv.weight.detach()) == pytest.approx(0.0, abs=1e-12)
    assert torch.equal(gradient[2], torch.zeros_like(gradient[2]))


# --- scores ---


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    channels=st.integers(1, 4),
    readers=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([(1, 1), (2, 3)])), min_size=1, max_size=3),
)
def test_scores_against_loops(seed: int, channels: int, readers: list[tuple[int, tuple[int, int]]]) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(outputs, channels, *kernel, generator=generator) for outputs, kernel in readers]
    frobenius, l21 = [0.0] * channels, [0.0] * channels
    for gradient in gradients:
        for k in range(channels):
            for output in gradient.tolist():
                squares = sum(value * value for row in output[k] for value in row)
                frobenius[k] += squares
                l21[k] += squares**0.5
    assert channel_scores(gradients, "frobenius").tolist() == pytest.approx(frobenius, rel=1e-5)
    assert channel_scores(gradients, "l21").tolist() == pytest.approx(l21, rel=1e-5)


def test_an_unknown_score_is_the_user_s_mistake() -> None:
    with pytest.raises(UserError, match="frobenius or l21"):
        channel_scores([torch.ones(1, 1, 1, 1)], "l1")


# --- algorithm 2 ---


def algorithm2(
    readers: Sequence[Rows],
    units: Sequence[float],
    keep: int,
    greedy: Greedy,
    auxiliary: Callable[[int, Tensor], Tensor] | None,
) -> tuple[list[int], list[Tensor], tuple[float, float]]:
    """DCP's algorithm 2 as it stands in the paper, on explicit rows, with autograd and torch's SGD.

    ``auxiliary`` is L_a of the first reader's weight, on the mini-batch of the given turn.  Returns the order, the
    weights, and L before the first pick and behind the last step.
    """
    originals = [reader.conv.weight.detach() for reader in readers]
    weights = [nn.Parameter(torch.zeros_like(original)) for original in originals]
    sgd = torch.optim.SGD(
        weights, lr=greedy.lr, momentum=greedy.momentum, weight_decay=greedy.weight_decay, nesterov=greedy.momentum > 0
    )
    channels = originals[0].shape[1]
    chosen: list[int] = []
    turn = count()

    def backward() -> float:
        sgd.zero_grad()
        loss = torch.stack([unit * r.loss(w) for unit, r, w in zip(units, readers, weights, strict=True)]).sum()
        if auxiliary is not None:
            loss = loss + greedy.alpha * auxiliary(next(turn), weights[0])
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    first = last = backward()
    while len(chosen) < keep:
        scores = []
        for k in range(channels):
            parts = [w.grad[:, k] for w in weights if w.grad is not None]
            if greedy.score == "frobenius":
                scores.append(sum(float(torch.linalg.norm(part)) ** 2 for part in parts))
            else:
                scores.append(sum(float(torch.linalg.norm(kernel)) for part in parts for kernel in part))
        best = max((k for k in range(channels) if k not in chosen), key=scores.__getitem__)
        chosen.append(best)
        for weight, original in zip(weights, originals, strict=True):
            weight.data[:, best] = original[:, best]
        for _ in range(greedy.steps + (greedy.last_steps if len(chosen) == keep else 0)):
            backward()
            for weight in weights:
                assert weight.grad is not None
                for k in set(range(channels)) - set(chosen):
                    weight.grad[:, k] = 0.0
            sgd.step()
        last = backward()
    return chosen, [weight.detach() for weight in weights], (first, last)


def curved(case: Rows, seed: int) -> Callable[[int, Tensor], Tensor]:
    """Some smooth loss of a weight that is another one at every turn."""
    probes = torch.randn(3, case.x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return lambda turn, weight: torch.tanh(weight.flatten(1) @ probes[turn % 3]).square().sum()


greedies = st.builds(
    Greedy,
    alpha=st.sampled_from([0.0, 0.5, 2.0]),
    score=st.sampled_from(["frobenius", "l21"]),
    lr=st.sampled_from([0.01, 0.1]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 1e-4, 0.1]),
    steps=st.integers(0, 3),
    last_steps=st.integers(0, 2),
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    channels=st.integers(2, 5),
    greedy=greedies,
    data=st.data(),
    shapes=st.lists(
        st.tuples(st.sampled_from([(1, 1), (2, 1), (2, 2)]), st.integers(1, 3), st.booleans()), min_size=1, max_size=3
    ),
    aided=st.booleans(),
)
def test_pick_is_algorithm_2(
    seed: int,
    channels: int,
    greedy: Greedy,
    data: st.DataObject,
    shapes: list[tuple[tuple[int, int], int, bool]],
    aided: bool,
) -> None:
    """Same channels in the same order, same weights and losses, for one reader and for several in unequal units."""
    readers = [
        Rows(seed + i, channels, kernel, outputs, 20 + i, norm, True)
        for i, (kernel, outputs, norm) in enumerate(shapes)
    ]
    units = [1.0] + [data.draw(st.sampled_from([0.1, 3.0])) for _ in readers[1:]]
    keep = data.draw(st.integers(1, channels))
    for reader, unit in zip(readers, units, strict=True):
        reader.term.unit = unit
    loss = curved(readers[0], seed) if aided else None
    order, weights, losses = algorithm2(readers, units, keep, greedy, loss)
    turn = count()

    def auxiliary(weight: Tensor) -> tuple[float, Tensor]:
        assert loss is not None
        free = weight.clone().requires_grad_(True)
        value = loss(next(turn), free)
        return float(value.detach()), torch.autograd.grad(value, free)[0]

    before = [reader.term.weight.clone() for reader in readers]
    terms = [reader.term for reader in readers]
    found = choose(Sampled(terms, greedy, auxiliary if aided else None), keep, greedy)
    assert found.order == order
    for weight, truth in zip(found.weights, weights, strict=True):
        torch.testing.assert_close(weight, truth, rtol=1e-8, atol=1e-8)
    assert found.losses == pytest.approx(losses, rel=1e-7, abs=1e-9)
    assert all(torch.equal(a, reader.term.weight) for a, reader in zip(before, readers, strict=True))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kernel=st.sampled_from([(1, 1), (2, 1)]),
    ridge=st.sampled_from([1e-6, 1e-2]),
    unit=st.sampled_from([0.1, 1.0, 20.0]),
    aided=st.booleans(),
)
def test_newton_s_step_is_a_least_squares_of_the_residual(
    seed: int, kernel: tuple[int, int], ridge: float, unit: float, aided: bool
) -> None:
    """After the only pick: warm start, plus the ridge regression of what it leaves, on explicit rows.

    Then, with an auxiliary loss, ``lr`` times the weights' length against its gradient at the warm start.
    """
    case = Rows(seed, 3, kernel, 2, 40, True, True)
    case.term.unit = unit
    probe = torch.randn(case.conv.weight.shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    greedy = Greedy(update="newton", ridge=ridge, lr=0.1, alpha=0.3)
    auxiliary = (lambda weight: (float((weight * probe).sum()), probe)) if aided else None
    found = choose(Sampled([case.term], greedy, auxiliary), 1, greedy)
    (channel,) = found.order
    size = kernel[0] * kernel[1]
    x = case.x[:, channel * size : (channel + 1) * size]
    warm = case.conv.weight.detach()[:, channel].flatten(1).T
    amount = ridge * float(x.square().sum(0).mean())
    stacked = torch.cat([x, amount**0.5 * torch.eye(size, dtype=DOUBLE)])
    left = torch.cat([case.f - x @ warm, torch.zeros(size, 2, dtype=DOUBLE)])
    truth = warm + torch.linalg.lstsq(stacked, left).solution
    if aided:
        push = probe[:, channel].flatten(1).T
        truth = truth - 0.1 * truth.norm() * push / push.norm()
    torch.testing.assert_close(found.weights[0][:, channel].flatten(1).T, truth, rtol=1e-7, atol=1e-9)
    assert float(found.weights[0].abs().sum((0, 2, 3)).count_nonzero()) == 1.0


def test_an_unknown_update_is_the_user_s_mistake() -> None:
    case = Rows(0, 2, (1, 1), 2, 10, False, True)
    with pytest.raises(UserError, match="sgd or newton"):
        choose(Sampled([case.term], Greedy(update="adam")), 1, Greedy(update="adam"))


@pytest.mark.parametrize("score", ["frobenius", "l21"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_no_channel_is_picked_twice_where_all_others_are_dead(score: str, steps: int) -> None:
    """The published code once did (its fix of May 2019): only channel 1 has a gradient, ever."""
    xx = torch.zeros(4, 4, dtype=DOUBLE)
    xx[1, 1] = 7.0
    weight = torch.ones(2, 4, 1, 1, dtype=DOUBLE)
    dead = Term(xx, xx @ weight.flatten(1).T, float((weight.flatten(1) @ xx @ weight.flatten(1).T).trace()), 5, weight)
    settings = Greedy(score=score, steps=steps, lr=0.1)
    found = choose(Sampled([dead], settings), 4, settings)
    assert found.order[0] == 1
    assert sorted(found.order) == [0, 1, 2, 3]
    silent = Term(torch.zeros_like(xx), torch.zeros(4, 2, dtype=DOUBLE), 0.0, 5, weight)
    assert sorted(choose(Sampled([silent], settings), 4, settings).order) == [0, 1, 2, 3]


def test_a_dead_channel_comes_last() -> None:
    """An input that is always zero has no gradient."""
    case = Rows(3, 4, (1, 1), 3, 30, True, True)
    case.term.xx[2], case.term.xx[:, 2], case.term.xy[2] = 0.0, 0.0, 0.0
    assert choose(Sampled([case.term], Greedy()), 4, Greedy()).order[-1] == 2


# --- the tail ---


# fmt: off
TAILS = [
    (Plain, "two", "four"), (Plain, "three", "four"), (Plain, "four", "four"), (Plain, "two", "five"),
    (Residual, "two", "four"), (Residual, "two", "three"), (Residual, "one", "four"), (Fork, "next", "end"),
    (Fork, "next", "head"),
]
# fmt: on


@pytest.mark.parametrize(("factory", "reader", "end"), TAILS)
def test_tail_is_the_network_with_the_changed_weight(factory: Callable[[], nn.Module], reader: str, end: str) -> None:
    """Outputs and gradients, on every mini-batch, for weights that differ; the network keeps its own."""
    model = busy(factory())
    x = images(5)
    graph = trace(model)
    walk = Walk(model, graph, [x[:3], x[3:]], "cpu", 10**9)
    tail = Tail(model, graph, reader, end)
    own = convolution(model, reader).weight
    before = own.detach().clone()
    weights = [own.detach(), torch.zeros_like(own), torch.randn(own.shape, generator=torch.Generator().manual_seed(3))]
    for batch, values in zip((x[:3], x[3:]), walk.live(reader), strict=True):
        known = {node: value.clone() for node, value in values.items()}
        for weight in weights:
            first, second = (weight.clone().requires_grad_(True) for _ in range(2))
            truth: list[Tensor] = []
            handle = model.get_submodule(end).register_forward_hook(lambda m, i, o, seen=truth: seen.append(o))
            with torch.enable_grad():
                functional_call(model, {f"{reader}.weight": first}, (batch,))
                handle.remove()
                found = tail(values, second)
            torch.testing.assert_close(found, truth[0], rtol=1e-5, atol=1e-5)
            if end == "head":  # it does not depend on the reader
                assert torch.autograd.grad(found.square().sum(), second, allow_unused=True)[0] is None
                continue
            with torch.enable_grad():
                (expected,) = torch.autograd.grad(truth[0].square().sum(), first)
                (gradient,) = torch.autograd.grad(found.square().sum(), second)
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert values.keys() == known.keys()
        assert all(torch.equal(values[node], known[node]) for node in known)
    assert torch.equal(own, before)


def test_tail_refuses_an_end_in_front_of_the_reader() -> None:
    model = busy(Plain())
    with pytest.raises(ValueError, match="two comes before four"):
        Tail(model, trace(model), "four", "two")


# --- a whole stage ---


def explicit_rows(model: nn.Module, x: Tensor, name: str, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (rows x p) and raw outputs without the bias (rows x n) of a convolution at positions, by ``F.unfold``."""
    conv = convolution(model, name)
    value, response = seen(model, x, name)
    if conv.bias is not None:
        response = response - conv.bias.detach()[:, None, None]
    unfolded = F.unfold(value, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
    inputs, outputs = [], []
    for image, places in enumerate(positions.tolist()):
        for row, column in places:
            inputs.append(unfolded[image, :, row * response.shape[3] + column])
            outputs.append(response[image, :, row, column])
    return torch.stack(inputs).double(), torch.stack(outputs).double()


class SlowStage:
    """One stage in double precision on a network whose channels are masked, every gradient by autograd on all of it."""

    def __init__(self, net: nn.Module, calibration: Calibration, greedy: Greedy, end: str, head: Head | None) -> None:
        self.original = copy.deepcopy(net).double().eval()
        self.net = copy.deepcopy(self.original)
        self.calibration, self.greedy, self.end = calibration, greedy, end
        self.head = None if head is None else copy.deepcopy(head).double()
        self.batches = [batch.double() for batch in calibration.batches]

    def loss(
        self, readers: Sequence[str], rows: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Tensor], turn: int
    ) -> Tensor:
        """L = L_re + alpha L_a, each further reader's L_re in the unit of the first (energy of F)."""
        energies = [f.square().mean() for _, f in rows]
        total = torch.zeros((), dtype=DOUBLE)
        for (x, f), energy, weight in zip(rows, energies, weights, strict=True):
            total = total + energies[0] / energy * (f - x @ weight.flatten(1).T).square().mean() / 2.0
        if self.head is not None:
            place = turn % len(self.batches)
            found: list[Tensor] = []
            handle = self.net.get_submodule(self.end).register_forward_hook(lambda m, i, o: found.append(o))
            functional_call(self.net, {f"{readers[0]}.weight": weights[0]}, (self.batches[place],))
            handle.remove()
            total = total + self.greedy.alpha * self.head(place, found[0])
        return total

    def site(self, readers: Sequence[str], keep: int) -> tuple[list[int], list[float]]:
        """Prunes one site by masking: the chosen order, and L wherever it was evaluated."""
        x = torch.cat(self.batches)
        fitted = self.calibration.fitted.repeat_interleave(self.calibration.sampling.positions)
        rows = []
        for name in readers:
            positions = self.calibration.responses[name].positions
            inputs, _ = explicit_rows(self.net, x, name, positions)
            _, wanted = explicit_rows(self.original, x, name, positions)
            rows.append((inputs[fitted], wanted[fitted]))
        originals = [convolution(self.net, name).weight.detach().clone() for name in readers]
        weights = [nn.Parameter(torch.zeros_like(original)) for original in originals]
        g = self.greedy
        sgd = torch.optim.SGD(weights, lr=g.lr, momentum=g.momentum, weight_decay=g.weight_decay, nesterov=True)
        order: list[int] = []
        losses: list[float] = []
        channels = originals[0].shape[1]
        turn = count()

        def backward() -> list[Tensor]:
            sgd.zero_grad()
            loss = self.loss(readers, rows, weights, next(turn))
            losses.append(float(loss.detach()))
            loss.backward()  # type: ignore[no-untyped-call]
            return [weight.grad for weight in weights if weight.grad is not None]

        gradients = backward()
        while len(order) < keep:
            score = torch.stack([gradient.square().sum((0, 2, 3)) for gradient in gradients]).sum(0).tolist()
            order.append(max(set(range(channels)) - set(order), key=score.__getitem__))
            for weight, original in zip(weights, originals, strict=True):
                weight.data[:, order[-1]] = original[:, order[-1]]
            for _ in range(g.steps):
                for gradient in backward():
                    gradient[:, sorted(set(range(channels)) - set(order))] = 0.0
                sgd.step()
            gradients = backward()
        for name, weight in zip(readers, weights, strict=True):
            convolution(self.net, name).weight.data.copy_(weight.data)
        return order, losses


STAGES: list[tuple[Callable[[], nn.Module], str, dict[str, int], list[list[str]]]] = [
    (Plain, "four", {"two": 3, "three": 4, "four": 3}, [["two"], ["three"], ["four"]]),
    (Plain, "five", {"three": 2}, [["three"]]),
    (Residual, "four", {"two": 3, "four": 2}, [["two"], ["four"]]),
    (Fork, "end", {"map": 3, "next": 3, "end": 3}, [["map"], ["next", "head"], ["end"]]),
]


def prepared(
    factory: Callable[[], nn.Module], end: str, **sampling: int | float
) -> tuple[nn.Module, Calibration, Head]:
    """A network, its calibration on three mini-batches of unequal size, and an auxiliary head on ``end``."""
    model = busy(factory())
    settings = {"positions": 6, "batch": 8, "held_out": 0.2, "seed": 3} | sampling
    rules = Sampling(**settings)  # type: ignore[arg-type]
    calibration = calibrate(model, images(20), rules, progress=False, shared=True)
    return model, calibration, Head(convolution(model, end).out_channels, calibration.batches)


def producers(model: nn.Module) -> dict[str, str]:
    found = {site.reader: site.producer for site in find_sites(model, trace(model), shared=True)}
    return {reader: producer for reader, producer in found.items() if producer is not None}


@pytest.mark.parametrize("aided", [False, True])
@pytest.mark.parametrize(("factory", "end", "keep", "sites"), STAGES)
def test_a_stage_is_algorithm_2_on_every_site(
    factory: Callable[[], nn.Module], end: str, keep: dict[str, int], sites: list[list[str]], aided: bool
) -> None:
    """Channels, losses and weights of the whole chain: sampled rows, frozen batch norm, the tail, mini-batches in turn.

    Then the pruned network computes what the masked one does, and everything else in it is as it was.
    """
    model, calibration, head = prepared(factory, end)
    before = copy.deepcopy(model.state_dict())
    greedy = Greedy(lr=0.02, steps=2, alpha=0.7)
    slow = SlowStage(model, calibration, greedy, end, head if aided else None)
    truth = [slow.site(readers, keep[readers[0]]) for readers in sites]
    pruned, reports = prune_stage(model, calibration, keep, greedy, end, head if aided else None, progress=False)
    assert [(r.reader, r.order) for r in reports] == [(s[0], order) for s, (order, _) in zip(sites, truth, strict=True)]
    behind = producers(model)
    for report, (_, losses) in zip(reports, truth, strict=True):
        assert report.producer == behind[report.reader]
        assert report.first_loss == pytest.approx(losses[0], rel=1e-3)
        assert report.last_loss == pytest.approx(losses[-1], rel=1e-3)
    kept = {reader: sorted(order) for readers, (order, _) in zip(sites, truth, strict=True) for reader in readers}
    rows = {behind[readers[0]]: kept[readers[0]] for readers in sites}
    for name, module in pruned.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        masked, own = convolution(slow.net, name), convolution(model, name)
        filters = rows.get(name, list(range(own.out_channels)))
        columns = kept.get(name, list(range(own.in_channels)))
        assert module.weight.shape[:2] == (len(filters), len(columns))
        torch.testing.assert_close(module.weight.double(), masked.weight[filters][:, columns], rtol=1e-3, atol=1e-4)
        if name not in kept:
            assert torch.equal(module.weight, own.weight[filters])
        assert (module.bias is None) == (own.bias is None)
        if module.bias is not None and own.bias is not None:
            assert torch.equal(module.bias, own.bias[filters])
        if f"{name}_norm.weight" in before:
            for key in ("weight", "bias", "running_mean", "running_var"):
                assert torch.equal(pruned.state_dict()[f"{name}_norm.{key}"], before[f"{name}_norm.{key}"][filters])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in pruned.parameters())
    assert not any(module.training for module in pruned.modules())


@pytest.mark.parametrize(("factory", "end", "keep", "sites"), STAGES)
def test_removal_is_masking_of_the_weights_that_come_back(
    factory: Callable[[], nn.Module], end: str, keep: dict[str, int], sites: list[list[str]]
) -> None:
    model, calibration, head = prepared(factory, end)
    pruned, reports = prune_stage(model, calibration, keep, Greedy(), end, head, progress=False)
    masked = copy.deepcopy(model)
    behind = producers(model)
    kept = {name: sorted(r.order) for readers, r in zip(sites, reports, strict=True) for name in readers}
    rows = {behind[readers[0]]: kept[readers[0]] for readers in sites}
    for name, columns in kept.items():
        weight = convolution(masked, name).weight
        filters = rows.get(name, list(range(len(weight))))
        whole = torch.zeros_like(weight)
        whole[torch.tensor(filters)[:, None], torch.tensor(columns)] = convolution(pruned, name).weight.detach()
        weight.data.copy_(whole)
    x = images(4, seed=8)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), masked(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(torch.as_tensor(first(pruned(x))), first(model(x)), atol=1e-2)


def test_a_report_says_how_many_channels_there_were() -> None:
    """As the layer-by-layer reports do: channels before, beside the order of those that were kept."""
    model, calibration, _ = prepared(Plain, "four")
    keep = {"two": 3, "three": 4}
    _, reports = prune_stage(model, calibration, keep, Greedy(), "four", None, progress=False)
    assert [(r.reader, r.producer, r.channels, len(r.order)) for r in reports] == [
        ("two", "one", 5, 3),
        ("three", "two", 6, 4),
    ]


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def test_picks_follow_the_loss_s_own_differences() -> None:
    """S_k of the full L by central differences in every weight, at every pick, with nothing but forward passes.

    Without steps the weights at each pick are the original ones of the channels chosen so far.
    """
    model, calibration, head = prepared(Plain, "four")
    greedy = Greedy(steps=0, alpha=0.5)
    _, (report,) = prune_stage(model, calibration, {"three": 4}, greedy, "four", head, progress=False)
    slow = SlowStage(model, calibration, greedy, "four", head)
    x = torch.cat(slow.batches)
    fitted = calibration.fitted.repeat_interleave(calibration.sampling.positions)
    inputs, wanted = explicit_rows(slow.net, x, "three", calibration.responses["three"].positions)
    rows = [(inputs[fitted], wanted[fitted])]
    original = convolution(slow.net, "three").weight.detach()
    weight = torch.zeros_like(original)
    chosen: list[int] = []
    with torch.no_grad():
        for turn in range(4):
            scores = [0.0] * original.shape[1]
            for place in range(weight.numel()):
                step = torch.zeros_like(weight)
                step.view(-1)[place] = 1e-5
                up, down = (float(slow.loss(["three"], rows, [weight + sign * step], turn)) for sign in (1, -1))
                k = place // (weight.shape[2] * weight.shape[3]) % weight.shape[1]
                scores[k] += ((up - down) / 2e-5) ** 2
            chosen.append(max(set(range(original.shape[1])) - set(chosen), key=scores.__getitem__))
            if turn == 0:
                loss = float(slow.loss(["three"], rows, [weight], turn))
                assert report.first_loss == pytest.approx(loss, rel=1e-4)
            weight[:, chosen[-1]] = original[:, chosen[-1]]
        last = float(slow.loss(["three"], rows, [weight], 4))
    assert report.order == chosen
    assert report.last_loss == pytest.approx(last, rel=1e-4)


def test_the_auxiliary_loss_matters() -> None:
    """The control of the cases above: with a large alpha other channels are chosen, with other weights."""
    model, calibration, head = prepared(Plain, "four")
    orders = []
    for alpha in (0.0, 1000.0):
        _, reports = prune_stage(
            model, calibration, {"two": 3, "three": 3}, Greedy(alpha=alpha, lr=1e-5), "four", head, progress=False
        )
        orders.append([report.order for report in reports])
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("factory", "end", "keep"), [stage[:3] for stage in STAGES])
def test_alpha_zero_is_reconstruction_only(factory: Callable[[], nn.Module], end: str, keep: dict[str, int]) -> None:
    model, calibration, head = prepared(factory, end)
    without, first_reports = prune_stage(model, calibration, keep, Greedy(), end, None, progress=False)
    zero, second_reports = prune_stage(model, calibration, keep, Greedy(alpha=0.0), end, head, progress=False)
    assert first_reports == second_reports
    same_state(without, zero)


def same_state(left: nn.Module, right: nn.Module) -> None:
    first_state, second_state = left.state_dict(), right.state_dict()
    assert first_state.keys() == second_state.keys()
    assert all(torch.equal(value, second_state[key]) for key, value in first_state.items())


def run(seed: int, budget: int = 10**9) -> tuple[nn.Module, list[SiteReport]]:
    model, calibration, head = prepared(Plain, "four", seed=seed, budget=budget)
    return prune_stage(model, calibration, {"two": 3, "four": 2}, Greedy(), "four", head, progress=False)


def test_one_seed_gives_one_result() -> None:
    (one, reports), (two, again), (three, other) = run(5), run(5), run(6)
    assert reports == again
    same_state(one, two)
    assert other != reports  # other positions
    assert not torch.equal(convolution(one, "four").weight, convolution(three, "four").weight)


def test_sites_that_keep_all_or_are_not_asked_for_stay_as_they_are() -> None:
    model, calibration, head = prepared(Plain, "four")
    keep = {"two": 5, "three": 4, "four": 7}
    pruned, reports = prune_stage(model, calibration, keep, Greedy(), "four", head, progress=False)
    assert [report.reader for report in reports] == ["three"]
    for name in ("one", "four", "five"):
        assert torch.equal(convolution(pruned, name).weight, convolution(model, name).weight)
    same, none = prune_stage(model, calibration, {}, Greedy(), "four", head, progress=False)
    assert none == []
    same_state(same, model)
    assert same is not model


def noted(head: Head) -> tuple[Callable[[int, Tensor], Tensor], list[tuple[int, Tensor]]]:
    """The head, and a list of what it will have been called with."""
    calls: list[tuple[int, Tensor]] = []

    def loss(place: int, features: Tensor) -> Tensor:
        calls.append((place, features.detach().clone()))
        value: Tensor = head(place, features)
        return value

    return loss, calls


def test_mini_batches_are_used_in_turn() -> None:
    """Places 0, 1, 2, 0, … from each site's start; what the auxiliary network gets is of that very mini-batch.

    Once for every pick and every step, and once for the loss at the end.
    """
    model, calibration, head = prepared(Plain, "four")
    loss, calls = noted(head)
    greedy = Greedy(steps=1)
    pruned, reports = prune_stage(model, calibration, {"two": 4, "four": 2}, greedy, "four", loss, progress=False)
    assert [place for place, _ in calls] == [turn % 3 for turn in range(9)] + [turn % 3 for turn in range(5)]
    assert [len(features) for _, features in calls[:3]] == [8, 8, 4]
    # without any channel chosen, the reader answers its bias
    empty = {"two.weight": torch.zeros_like(convolution(model, "two").weight)}
    found: list[Tensor] = []
    handle = model.get_submodule("four").register_forward_hook(lambda m, i, o: found.append(o))
    functional_call(model, empty, (calibration.batches[0],))
    handle.remove()
    torch.testing.assert_close(calls[0][1], found[0], rtol=1e-5, atol=1e-5)
    # the last call sees the network as it comes back
    truth = seen(pruned, calibration.batches[calls[-1][0]], "four")[1]
    torch.testing.assert_close(calls[-1][1], truth, rtol=1e-4, atol=1e-4)
    assert all(bool(torch.isfinite(features).all()) for _, features in calls)
    assert [len(report.order) for report in reports] == [4, 2]
    assert convolution(pruned, "two").in_channels == 4


def test_as_many_mini_batches_as_the_memory_allows() -> None:
    """Without any, one is used; reconstruction does not depend on it."""
    model, calibration, head = prepared(Plain, "four", budget=0)
    loss, calls = noted(head)
    prune_stage(model, calibration, {"two": 2}, Greedy(), "four", loss, progress=False)
    assert {place for place, _ in calls} == {0}
    keep = {"two": 2, "three": 3, "four": 2}
    small, reports = prune_stage(model, calibration, keep, Greedy(), "four", None, progress=False)
    _, plenty, _ = prepared(Plain, "four")
    large, again = prune_stage(model, plenty, keep, Greedy(), "four", None, progress=False)
    assert [report.order for report in reports] == [report.order for report in again]
    for left, right in zip(small.state_dict().values(), large.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right)


def test_batch_norms_stay_frozen_in_training_networks() -> None:
    """A network that comes in training mode is pruned in evaluation mode and stays itself as it was."""
    model, calibration, head = prepared(Plain, "four")
    model.train()
    before: Mapping[str, Tensor] = copy.deepcopy(model.state_dict())
    keep = {"two": 3, "four": 2}
    trained, reports = prune_stage(model, calibration, keep, Greedy(), "four", head, progress=False)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    evaluated, again = prune_stage(model.eval(), calibration, keep, Greedy(), "four", head, progress=False)
    assert reports == again
    same_state(trained, evaluated)


def test_steps_lower_the_reconstruction_s_loss() -> None:
    """Descent on a quadratic: more steps leave less error of the readers on the fitted rows."""
    model, calibration, _ = prepared(Plain, "four")
    lasts = [
        prune_stage(model, calibration, {"three": 4}, Greedy(steps=steps), "four", None, progress=False)[1][0].last_loss
        for steps in (1, 10, 100)
    ]
    assert lasts[0] > lasts[1] > lasts[2] > 0.0


def test_a_further_reader_that_answers_a_constant_has_no_say() -> None:
    """Its energy is rounding; in the unit of the first reader that must not decide."""
    model = busy(Fork())
    head = convolution(model, "head")
    with torch.no_grad():
        head.weight.zero_()
    calibration = calibrate(model, images(20), Sampling(positions=6, batch=8), progress=False, shared=True)
    pruned, (report,) = prune_stage(model, calibration, {"next": 3}, Greedy(), "end", None, progress=False)
    slow = SlowStage(model, calibration, Greedy(), "end", None)
    order, losses = slow.site(["next"], 3)
    assert report.order == order
    assert report.first_loss == pytest.approx(losses[0], rel=1e-3)
    torch.testing.assert_close(
        convolution(pruned, "head").weight, torch.zeros_like(convolution(pruned, "head").weight), rtol=0.0, atol=1e-4
    )
