"""Channels with several readers: sites, walk, selection and reconstruction against explicit passes and brute force."""

import copy
import itertools
import operator
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bench.pruning.calibration import Calibration, Sampling, calibrate, error_curves
from bench.pruning.exact import eliminate
from bench.pruning.graph import Site, find_sites, trace
from bench.pruning.layerwise import Method, prune
from bench.pruning.moments import Moments
from bench.pruning.selection import Layer, select
from bench.pruning.surgery import convolution, remove_filters
from bench.pruning.walk import Walk
from bench.pruning.widths import MacModel

PLENTY = 1_000_000_000
READERS = ("next", "scores", "boxes")


class CoupledNorm(nn.Module):
    """Divides every channel by the norm over all channels: what SSD does to its first map."""

    keeps_channels = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        return self.weight[None, :, None, None] * x / (x.square().sum(1, keepdim=True).sqrt() + 0.1)


class Detector(nn.Module):
    """A map of 6 channels is read by the next convolution and by two heads, the first of them behind the norm.

    ``order`` says what is computed first: the next convolution on the map itself (``late``) or on the pooled map
    (``pooled``), the norm (``early``), or the norm in front of everything (``first``).
    """

    def __init__(self, order: str = "late") -> None:
        super().__init__()
        self.order = order
        self.stem = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(5)
        self.map = nn.Conv2d(5, 6, 3, padding=1)
        self.map_norm = nn.BatchNorm2d(6)
        self.coupled = CoupledNorm(6)
        self.next = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.next_norm = nn.BatchNorm2d(5)
        self.last = nn.Conv2d(5, 4, 1)
        self.scores = nn.Conv2d(6, 3, 3, padding=1)
        self.boxes = nn.Conv2d(6, 2, 1, bias=False)
        self.boxes_norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """N x 3 x H x W to three maps."""
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.map_norm(self.map(x)))
        if self.order == "first":
            x = self.coupled(x)
        early = self.coupled(x) if self.order == "early" else x
        y = F.max_pool2d(x, 2) if self.order == "pooled" else x
        y = self.last(F.relu(self.next_norm(self.next(y))))
        normed = self.coupled(x) if self.order in ("late", "pooled") else early
        return y, self.scores(normed), self.boxes_norm(self.boxes(x))


ORDERS = ("late", "pooled", "early", "first")


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
                count = module.num_features
                module.weight.copy_(0.5 + torch.rand(count, generator=generator))
                module.bias.copy_(0.5 * torch.randn(count, generator=generator))
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(0.3 * torch.randn(count, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(count, generator=generator))
    return model.eval()


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def seen(model: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and outputs of modules in the plain forward pass."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = (inputs[0].clone(), output.clone())

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    model.eval()(x)
    for handle in handles:
        handle.remove()
    return found


def shared_site(model: nn.Module) -> Site:
    (site,) = [site for site in find_sites(model, trace(model), shared=True) if site.others]
    return site


# --- sites ---


def test_readers_of_one_map_are_one_site() -> None:
    """Beside the shared site, the sites with one reader are those of a network without heads."""
    model = Detector()
    graph = trace(model)
    found = find_sites(model, graph, shared=True)
    assert [(s.reader, s.producer, s.batch_norm) for s in found] == [
        ("map", "stem", "map_norm"),
        ("next", "map", "next_norm"),
        ("last", "next", None),
    ]
    assert [len(s.others) for s in found] == [0, 2, 0]
    assert [(s.reader, s.producer, s.batch_norm, s.rectified) for s in found[1].readers] == [
        ("next", "map", "next_norm", True),
        ("scores", "map", None, False),
        ("boxes", "map", "boxes_norm", False),
    ]
    assert all(s.others == () for s in found[1].others)
    assert [node.op for node in graph.nodes if node.target == "coupled"] == ["call_module"]


@pytest.mark.parametrize("order", ORDERS)
def test_the_first_reader_in_forward_order_leads(order: str) -> None:
    assert [reader.reader for reader in shared_site(Detector(order)).readers] == list(READERS)


def test_without_shared_every_reader_stands_alone() -> None:
    found = find_sites(Detector(), trace(Detector()))
    assert [(s.reader, s.producer) for s in found] == [
        ("map", "stem"),
        ("next", None),
        ("last", "next"),
        ("scores", None),
        ("boxes", None),
    ]
    assert all(site.others == () and site.readers == (site,) for site in found)


class Fork(nn.Module):
    """A map read by two convolutions and, if given, by something else."""

    def __init__(self, also: "Also | None") -> None:
        super().__init__()
        self.also = also
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.map = nn.Conv2d(4, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 3, 1)
        self.right = nn.Conv2d(4, 2, 3)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[object, ...]:
        """N x 3 x H x W to two maps and what else is made of the shared one."""
        base = F.relu(self.stem(x))
        x = F.relu(self.map(base))
        return self.left(x), self.right(x), None if self.also is None else self.also(self, (x, base))


Also = Callable[[Fork, tuple[Tensor, Tensor]], object]
ELSE: dict[str, Also] = {
    "output": lambda fork, maps: maps[0],
    "addition": lambda fork, maps: operator.add(*maps),
    "concatenation": lambda fork, maps: torch.cat(maps, 1),
    "linear": lambda fork, maps: fork.linear(F.adaptive_avg_pool2d(maps[0], 1).flatten(1)),
    "grouped": lambda fork, maps: fork.grouped(maps[0]),
    "reader called twice": lambda fork, maps: fork.left(F.max_pool2d(maps[0], 2)),
    "softmax over channels": lambda fork, maps: torch.softmax(maps[0], 1),
}


def test_a_fork_is_a_shared_site() -> None:
    """The control of the cases below: nothing but the two convolutions."""
    assert [reader.reader for reader in shared_site(Fork(None)).readers] == ["left", "right"]


@pytest.mark.parametrize("what", list(ELSE))
def test_no_group_where_anything_else_reads_the_channels(what: str) -> None:
    model = Fork(ELSE[what])
    graph = trace(model)
    assert find_sites(model, graph, shared=True) == find_sites(model, graph)
    assert all(site.producer != "map" for site in find_sites(model, graph, shared=True))


def test_no_group_behind_a_producer_that_is_called_twice() -> None:
    """Its filters also make the input of its own second call, or another map."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.map = nn.Conv2d(4, 4, 3, padding=1)
            self.left = nn.Conv2d(4, 3, 1)
            self.right = nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.map(F.relu(self.map(F.relu(self.stem(x)))))
            return self.left(x), self.right(x)

    model = Twice()
    assert all(site.producer != "map" for site in find_sites(model, trace(model), shared=True))


# --- walk ---


@pytest.mark.parametrize("budget", [0, PLENTY])
@pytest.mark.parametrize("order", ORDERS)
def test_late_readers_see_what_a_forward_pass_gives_them(order: str, budget: int) -> None:
    """Before and after filters have gone, whatever of the map was kept meanwhile."""
    model = busy(Detector(order))
    x = images(5)
    walk = Walk(model, trace(model), [x[:3], x[3:]], "cpu", budget)
    list(walk.visit("map"))

    def check(width: int) -> None:
        for batch, (inputs, shortcut) in zip((x[:3], x[3:]), walk.visit_all(READERS), strict=True):
            assert shortcut is None
            truth = seen(model, batch, READERS)
            for name, value in zip(READERS, inputs, strict=True):
                assert value.shape[1] == width
                torch.testing.assert_close(value, truth[name][0], rtol=1e-5, atol=1e-6)

    check(6)
    remove_filters(model, (3, 8, 8), "map", [1, 4])
    walk.select(READERS, torch.tensor([0, 2, 3, 5]))
    check(4)
    check(4)
    list(walk.visit("last"))
    truth = seen(model, x[3:], ["last", "scores"])
    for inputs, _ in walk.visit_all(["last"]):
        last = inputs[0]
    torch.testing.assert_close(last, truth["last"][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [0, PLENTY])
@pytest.mark.parametrize("order", ORDERS)
def test_values_behind_a_pruned_map_go_on_as_in_a_forward_pass(order: str, budget: int) -> None:
    """A walk that goes on to the next layer and to the heads themselves: kept values must be of the pruned network."""
    model = busy(Detector(order))
    x = images(4)
    walk = Walk(model, trace(model), [x], "cpu", budget)
    list(walk.visit_all(READERS))
    remove_filters(model, (3, 8, 8), "map", [0, 5])
    walk.select(READERS, torch.tensor([1, 2, 3, 4]))
    for name in ("last", "scores", "boxes"):
        ((value, _),) = list(walk.visit(name))
        torch.testing.assert_close(value, seen(model, x, [name])[name][0], rtol=1e-5, atol=1e-6)


# --- criteria ---


def random_layer(seed: int, channels: int, kernel: tuple[int, int], outputs: int, rows: int) -> tuple[Layer, Tensor]:
    """A layer of random rows, with X (rows x p), Y (rows x n) behind each other in the second value."""
    generator = torch.Generator().manual_seed(seed)
    columns = channels * kernel[0] * kernel[1]
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    x = x + torch.randn(columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, channels, *kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    scale = 10.0 ** float(torch.randint(-2, 3, (1,), generator=generator))
    y = scale * (x @ weight.flatten(1).T + bias + noise)
    moments = Moments(columns, outputs)
    moments.add(x, y)
    return Layer(moments, scale * weight, scale * bias), torch.cat([x, y], 1)


shapes = st.lists(
    st.tuples(st.sampled_from([(1, 1), (2, 1), (2, 3)]), st.integers(1, 3), st.integers(25, 40)), min_size=2, max_size=3
)


def rows_of(layer: Layer, rows: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    if centred:
        rows = rows - rows.mean(0)
    columns = layer.weight[0].numel()
    return rows[:, :columns], rows[:, columns:]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), channels=st.integers(2, 4), readers=shapes, centred=st.booleans())
def test_gram_of_several_readers_is_the_sum_of_shares(
    seed: int, channels: int, readers: list[tuple[tuple[int, int], int, int]], centred: bool
) -> None:
    """Explicit contributions Z_i = X_i W_i', each reader's products over its |Y|^2; about zero, Y less the bias."""
    built = [random_layer(seed + i, channels, *reader) for i, reader in enumerate(readers)]
    layers = [layer for layer, _ in built]
    first = Layer(layers[0].moments, layers[0].weight, layers[0].bias, others=tuple(layers[1:]))
    gram = torch.zeros(channels, channels, dtype=torch.float64)
    target = torch.zeros(channels, dtype=torch.float64)
    for layer, rows in built:
        x, y = rows_of(layer, rows, centred)
        per_channel = x.reshape(len(x), channels, -1)
        parts = [per_channel[:, i] @ layer.weight[:, i].flatten(1).T for i in range(channels)]
        for i in range(channels):
            wanted = y if centred else y - layer.bias
            target[i] += (parts[i] * wanted).sum() / y.square().sum()
            for j in range(channels):
                gram[i, j] += (parts[i] * parts[j]).sum() / y.square().sum()
    found = first.gram(centred)
    torch.testing.assert_close(found[0], gram, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found[1], target, rtol=1e-8, atol=1e-10)


def ridge_error(x: Tensor, y: Tensor, columns: list[int], amount: float) -> float:
    """The least of |y - x v|^2 + amount |v|^2 on some columns, by an explicit least squares."""
    if not columns:
        return float(y.square().sum())
    stacked = torch.cat([x[:, columns], amount**0.5 * torch.eye(len(columns), dtype=x.dtype)])
    wanted = torch.cat([y, torch.zeros(len(columns), y.shape[1], dtype=y.dtype)])
    solution = torch.linalg.lstsq(stacked, wanted).solution
    return float((wanted - stacked @ solution).square().sum())


def brute_force(
    readers: Sequence[tuple[Tensor, Tensor]], channels: int, keep: int, ridge: float
) -> tuple[list[int], list[float]]:
    """Backward elimination that refits every reader for every candidate; rows (X, Y) are about their means."""
    alive, order, increases = list(range(channels)), [], []

    def cost(kept: list[int]) -> float:
        total = 0.0
        for x, y in readers:
            size = x.shape[1] // channels
            columns = [i * size + j for i in kept for j in range(size)]
            amount = ridge * float(x.square().sum(0).mean())
            total += ridge_error(x, y, columns, amount) / float(y.square().sum())
        return total

    while len(alive) > keep:
        now = cost(alive)
        rises = {i: cost([j for j in alive if j != i]) - now for i in alive}
        gone = min(rises, key=rises.__getitem__)
        alive.remove(gone)
        order.append(gone)
        increases.append(rises[gone])
    return order, increases


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000), channels=st.integers(2, 6), readers=shapes, ridge=st.sampled_from([1e-6, 1e-3, 1e-1])
)
def test_elimination_over_several_readers_is_the_brute_force_s(
    seed: int, channels: int, readers: list[tuple[tuple[int, int], int, int]], ridge: float
) -> None:
    """Same order, same increases, although the readers' units differ by orders of magnitude."""
    built = [random_layer(seed + i, channels, *reader) for i, reader in enumerate(readers)]
    moments = [layer.moments.centred() for layer, _ in built]
    found = eliminate(moments, channels, 1, ridge)
    order, increases = brute_force([rows_of(layer, rows, True) for layer, rows in built], channels, 1, ridge)
    assert found.order == order
    assert found.increases == pytest.approx(increases, rel=1e-5, abs=1e-9)
    assert found.kept == [i for i in range(channels) if i not in order]
    layers = [layer for layer, _ in built]
    first = Layer(layers[0].moments, layers[0].weight, layers[0].bias, ridge=ridge, others=tuple(layers[1:]))
    assert select("exact", first, 1) == found.kept


def test_a_list_of_one_is_one() -> None:
    """A single reader's increases stay sums of squares, not shares."""
    layer, rows = random_layer(3, 4, (2, 1), 2, 30)
    _, y = rows_of(layer, rows, True)
    alone, listed = (eliminate(m, 4, 1, 1e-4) for m in (layer.moments.centred(), [layer.moments.centred()]))
    assert alone == listed
    twice = eliminate([layer.moments.centred()] * 2, 4, 1, 1e-4)
    assert twice.order == alone.order
    shares = [2.0 * increase / float(y.square().sum()) for increase in alone.increases]
    assert twice.increases == pytest.approx(shares, rel=1e-9)


def test_a_reader_that_answers_a_constant_has_no_say() -> None:
    """A head with weights of zero: what rounding leaves of its responses must not outweigh the other reader."""
    layer, rows = random_layer(5, 5, (1, 1), 2, 40)
    alone = eliminate(layer.moments.centred(), 5, 1, 1e-4)
    shares = [increase / float(layer.moments.centred().yy.sum()) for increase in alone.increases]
    for bias in (0.0, 0.3, -1.7, 4.6):
        constant = Moments(5, 2)
        constant.add(rows[:, :5], torch.full((40, 2), bias, dtype=torch.float64))
        found = eliminate([layer.moments.centred(), constant.centred()], 5, 1, 1e-4)
        assert found.order == alone.order
        assert found.increases == pytest.approx(shares, rel=1e-6)


# --- the walk through a network ---


def explicit_rows(
    model: nn.Module, x: Tensor, name: str, positions: Tensor, folded_norm: str | None
) -> tuple[Tensor, Tensor]:
    """Inputs (rows x p) of a convolution and its responses, batch norm included, at positions; by ``F.unfold``."""
    conv = convolution(model, name)
    value, response = seen(model, x, [name])[name]
    if folded_norm is not None:
        response = seen(model, x, [folded_norm])[folded_norm][1]
    unfolded = F.unfold(value, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
    inputs, outputs = [], []
    for image, places in enumerate(positions.tolist()):
        for row, column in places:
            inputs.append(unfolded[image, :, row * response.shape[3] + column])
            outputs.append(response[image, :, row, column])
    return torch.stack(inputs).double(), torch.stack(outputs).double()


def fitted_rows(calibration: Calibration) -> Tensor:
    return calibration.fitted.repeat_interleave(calibration.sampling.positions)


NORMS = {"next": "next_norm", "scores": None, "boxes": "boxes_norm"}


@pytest.mark.parametrize(
    ("order", "selection", "budget"),
    [
        ("late", "lasso", PLENTY),
        ("late", "exact", 0),
        ("pooled", "thinet", PLENTY),
        ("early", "exact", PLENTY),
        ("first", "lasso", PLENTY),
        ("first", "exact", 0),
    ],
)
def test_every_reader_is_fitted_on_the_pruned_network_s_own_inputs(order: str, selection: str, budget: int) -> None:
    """Against a least squares with intercept on rows taken from plain forward passes of both networks."""
    model = busy(Detector(order))
    before = copy.deepcopy(model.state_dict())
    x = images(60)
    sampling = Sampling(positions=8, batch=16, held_out=0.2, budget=budget, seed=1)
    calibration = calibrate(model, x, sampling, progress=False, shared=True)
    keep = {"map": 4, "next": 4}
    method = Method(selection, ridges=(1e-10,))
    pruned, reports = prune(model, calibration, keep, method, progress=False)
    assert [(r.reader, r.producer, r.channels, len(r.kept)) for r in reports] == [
        ("map", "stem", 5, 4),
        ("next", "map", 6, 4),
        ("scores", "map", 6, 4),
        ("boxes", "map", 6, 4),
    ]
    assert reports[1].kept == reports[2].kept == reports[3].kept
    fitted = fitted_rows(calibration)
    for report in reports[1:]:
        positions = calibration.responses[report.reader].positions
        inputs, answers = explicit_rows(pruned, x, report.reader, positions, NORMS[report.reader])
        _, wanted = explicit_rows(model, x, report.reader, positions, NORMS[report.reader])
        ones = torch.ones(len(inputs), 1, dtype=torch.float64)
        design = torch.cat([inputs, ones], 1)
        solution = torch.linalg.lstsq(design[fitted], wanted[fitted]).solution
        torch.testing.assert_close(answers, design @ solution, rtol=1e-3, atol=1e-3)
        conv = convolution(pruned, report.reader)
        weight = conv.weight.detach().double()
        norm = NORMS[report.reader]
        if norm is not None:
            batch_norm = pruned.get_submodule(norm)
            deviation = torch.sqrt(batch_norm.running_var + batch_norm.eps)  # type: ignore[operator, arg-type]
            scale = batch_norm.weight / deviation  # type: ignore[operator]
            weight = weight * scale.detach().double()[:, None, None, None]
        torch.testing.assert_close(weight.flatten(1).T, solution[:-1], rtol=1e-3, atol=1e-3)
        for rows, error in ((fitted, report.error), (~fitted, report.held_out_error)):
            spread = (wanted[rows] - wanted[rows].mean(0)).square().sum()
            assert error == pytest.approx(
                float((wanted[rows] - design[rows] @ solution).square().sum() / spread), rel=1e-3
            )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(convolution(pruned, "last").weight, convolution(model, "last").weight)


def test_shared_channels_are_chosen_for_all_readers() -> None:
    """Brute force on all readers' own rows; a head alone would have chosen otherwise."""
    model = busy(Detector(), seed=3)
    x = images(60)
    sampling = Sampling(positions=8, batch=16, held_out=0.0)
    calibration = calibrate(model, x, sampling, progress=False, shared=True)
    pruned, reports = prune(model, calibration, {"next": 2}, Method("exact"), progress=False)
    rows = []
    for name in READERS:
        inputs, answers = explicit_rows(model, x, name, calibration.responses[name].positions, NORMS[name])
        rows.append((inputs - inputs.mean(0), answers - answers.mean(0)))
    order, _ = brute_force(rows, 6, 2, 1e-4)
    assert reports[0].kept == sorted(set(range(6)) - set(order))
    alone = [sorted(set(range(6)) - set(brute_force([pair], 6, 2, 1e-4)[0])) for pair in rows]
    assert any(kept != reports[0].kept for kept in alone)  # otherwise this test could not fail
    kept = reports[0].kept
    torch.testing.assert_close(convolution(pruned, "map").weight, convolution(model, "map").weight[kept])


@pytest.mark.parametrize(
    ("selection", "order"), [("random", "late"), ("weight sum", "late"), ("random", "first"), ("weight sum", "pooled")]
)
def test_without_reconstruction_removal_is_slicing(selection: str, order: str) -> None:
    """Every tensor of the pruned network is the original's, without the channels that have gone."""
    model = busy(Detector(order))
    calibration = calibrate(model, images(20), Sampling(positions=6, batch=8), progress=False, shared=True)
    keep = {"map": 3, "next": 4, "last": 2}
    method = Method(selection, reconstruct=False)
    pruned, reports = prune(model, calibration, keep, method, progress=False)
    kept = {report.reader: report.kept for report in reports}
    assert {name: len(channels) for name, channels in kept.items()} == {**keep, "scores": 4, "boxes": 4}
    if selection == "weight sum":
        for reader, producer in (("map", "stem"), ("next", "map"), ("last", "next")):
            # the channels that the producer reads have been pruned by then
            read = kept.get(producer, [0, 1, 2])
            sums = convolution(model, producer).weight[:, read].abs().sum((1, 2, 3))
            assert kept[reader] == sorted(sums.topk(len(kept[reader])).indices.tolist())
    expected = {
        "stem": (kept["map"], None),
        "map": (kept["next"], kept["map"]),
        "next": (kept["last"], kept["next"]),
        "last": (None, kept["last"]),
        "scores": (None, kept["next"]),
        "boxes": (None, kept["next"]),
    }
    state = model.state_dict()
    for name, (filters, channels) in expected.items():
        conv, new = convolution(model, name), convolution(pruned, name)
        rows = slice(None) if filters is None else filters
        columns = slice(None) if channels is None else channels
        assert torch.equal(new.weight, conv.weight[rows][:, columns])
        assert (new.bias is None) == (conv.bias is None)
        if new.bias is not None and conv.bias is not None:
            assert torch.equal(new.bias, conv.bias[rows])
    for name, filters in (("stem_norm", kept["map"]), ("map_norm", kept["next"]), ("next_norm", kept["last"])):
        for key in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(pruned.state_dict()[f"{name}.{key}"], state[f"{name}.{key}"][filters])
    assert torch.equal(pruned.state_dict()["coupled.weight"], state["coupled.weight"][kept["next"]])
    assert torch.equal(pruned.state_dict()["boxes_norm.bias"], state["boxes_norm.bias"])


@pytest.mark.parametrize("order", ORDERS)
def test_errors_without_reconstruction_are_the_pruned_network_s(order: str) -> None:
    model = busy(Detector(order))
    x = images(20)
    sampling = Sampling(positions=6, batch=8, held_out=0.3, least_held_out=1)
    calibration = calibrate(model, x, sampling, progress=False, shared=True)
    pruned, reports = prune(model, calibration, {"next": 3}, Method("random", reconstruct=False), progress=False)
    fitted = fitted_rows(calibration)
    for report in reports:
        positions = calibration.responses[report.reader].positions
        _, answers = explicit_rows(pruned, x, report.reader, positions, NORMS[report.reader])
        _, wanted = explicit_rows(model, x, report.reader, positions, NORMS[report.reader])
        for rows, error in ((fitted, report.error), (~fitted, report.held_out_error)):
            spread = (wanted[rows] - wanted[rows].mean(0)).square().sum()
            assert error == pytest.approx(float((wanted[rows] - answers[rows]).square().sum() / spread), rel=1e-3)


def test_random_choices_depend_on_the_seed_alone() -> None:
    model = busy(Detector())
    kept = []
    for seed in (0, 0, 1, 2, 3):
        sampling = Sampling(positions=4, seed=seed)
        calibration = calibrate(model, images(8), sampling, progress=False, shared=True)
        _, reports = prune(model, calibration, {"next": 3}, Method("random", reconstruct=False), progress=False)
        kept.append(tuple(reports[0].kept))
    assert kept[0] == kept[1]
    assert len(set(kept)) > 1


@pytest.mark.parametrize("order", ["late", "pooled"])
def test_error_curves_of_shared_sites_are_the_brute_force_s(order: str) -> None:
    """The sum over the readers of what each loses, as shares of its own variance; all rows over fitted rows."""
    model = busy(Detector(order))
    x = images(40)
    calibration = calibrate(model, x, Sampling(positions=10, batch=16, held_out=0.25), progress=False, shared=True)
    curves = error_curves(model, calibration, 1e-4, progress=False)
    assert set(curves) == {"map", "next", "last"}
    assert [len(curves[name]) for name in ("map", "next", "last")] == [5, 6, 5]
    for curve in curves.values():
        assert curve[-1] == 0.0
        assert all(fewer >= more for fewer, more in itertools.pairwise(curve))
    fitted = fitted_rows(calibration)
    rows = []
    for name in READERS:
        inputs, answers = explicit_rows(model, x, name, calibration.responses[name].positions, NORMS[name])
        inputs, answers = inputs[fitted], answers[fitted]
        rows.append((inputs - inputs.mean(0), answers - answers.mean(0)))
    _, increases = brute_force(rows, 6, 1, 1e-4)
    expected = [sum(increases[: 6 - kept]) for kept in range(1, 7)]
    assert curves["next"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert curves["next"][0] <= len(READERS)


# --- MACs ---


def counted(model: nn.Module, x: Tensor) -> dict[str, int]:
    """MACs of every convolution, counted at its outputs in a forward pass of one image."""
    macs = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            _, output = seen(model, x, [name])[name]
            macs[name] = output.numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]
    return macs


@pytest.mark.parametrize("keep", [{}, {"next": 2}, {"map": 3, "next": 4, "last": 1}, {"map": 1, "last": 4}])
def test_macs_with_several_readers_are_those_of_the_pruned_network(keep: dict[str, int]) -> None:
    model = busy(Detector("pooled"))
    sites = find_sites(model, trace(model), shared=True)
    channels = {site.reader: convolution(model, site.reader).in_channels for site in sites}
    macs = MacModel(counted(model, images(1)), sites, channels)

    def real(widths: dict[str, int]) -> int:
        pruned = copy.deepcopy(model)
        for reader, producer in (("map", "stem"), ("next", "map"), ("last", "next")):
            remove_filters(pruned, (3, 8, 8), producer, range(widths.get(reader, channels[reader]), channels[reader]))
        return sum(counted(pruned, images(1)).values())

    assert macs.total(keep) == pytest.approx(real(keep), rel=1e-12)
    assert macs.speedup(keep) == pytest.approx(real({}) / real(keep), rel=1e-12)
    full = {**channels, **keep}
    for reader, kept in full.items():
        if kept > 1:
            saved = real(full) - real({**full, reader: kept - 1})
            assert macs.saving(reader, full) == pytest.approx(saved, rel=1e-9)
