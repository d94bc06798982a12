"""ThiNet against plain implementations that convolve, loop over draws and solve on explicit rows."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.pruning import thinet
from bench.pruning.calibration import Sampling, calibrate
from bench.pruning.layerwise import Method, prune
from bench.pruning.moments import Moments, output_size, patches, sample_positions
from bench.pruning.reconstruction import Sampled
from bench.pruning.selection import Layer, select
from bench.pruning.steps import Fixed, Pruning, pruned, run_pruned
from bench.pruning.surgery import convolution
from bench.pruning.thinet import ChannelMoments, Draws
from bench.steps import DataValue, Kind, canonical, make_step

Array = NDArray[np.float64]


class Reader:
    """A random layer in float64: images behind a ReLU, weights, bias, sampled positions, and noisy responses."""

    def __init__(self, kernel: int, stride: int, channels: int = 7, outputs: int = 5, seed: int = 0) -> None:
        torch.manual_seed(100 * seed + kernel)
        self.conv = nn.Conv2d(channels, outputs, kernel, stride, padding=kernel // 2).double()
        strength = torch.linspace(0.8, 1.2, channels)[torch.randperm(channels)].double()
        mixed = torch.einsum("nchw,cd->ndhw", torch.randn(12, channels, 6, 6), torch.randn(channels, channels))
        self.images = F.relu(mixed.double() + 0.5) * strength[:, None, None]
        generator = torch.Generator().manual_seed(seed)
        size = output_size(self.images.shape, self.conv)
        self.positions = sample_positions(4, 12, *size, generator)
        with torch.no_grad():
            whole = self.conv(self.images) + 0.3 * torch.randn(12, outputs, *size)
        self.responses = self.at_positions(whole)

    def at_positions(self, maps: Tensor) -> Tensor:
        """Rows x outputs, by image and then position, one by one."""
        rows = [maps[i, :, r, c] for i, places in enumerate(self.positions.tolist()) for r, c in places]
        return torch.stack(rows)

    @torch.no_grad()
    def convolved(self, channels: Sequence[int]) -> Tensor:
        """What these channels add to the sampled responses, rows x outputs: one convolution."""
        index = list(channels)
        maps = F.conv2d(self.images[:, index], self.conv.weight[:, index], None, self.conv.stride, self.conv.padding)
        return self.at_positions(maps)

    @property
    def channels(self) -> int:
        return self.conv.in_channels

    def rows(self, filters: Tensor | None = None) -> tuple[Array, Array]:
        """x_hat (rows x c) and y_hat (rows) of all outputs, or of the one that is drawn for each position."""
        contributions = torch.stack([self.convolved([j]) for j in range(self.channels)], dim=-1)
        responses = self.responses - self.conv.bias.detach()
        if filters is None:
            return contributions.reshape(-1, self.channels).numpy(), responses.reshape(-1).numpy()
        x, y = [], []
        for row, output in enumerate(filters.tolist()):
            x.append(contributions[row, output])
            y.append(responses[row, output])
        return torch.stack(x).numpy(), torch.stack(y).numpy()

    def inputs(self) -> Tensor:
        return patches(self.images, self.positions, self.conv)

    def moments(self, rows: slice = slice(None)) -> Moments:
        inputs = self.inputs()[rows]
        found = Moments(inputs.shape[1], self.conv.out_channels)
        found.add(inputs, self.responses[rows])
        return found

    def draws(self, seed: int = 0, filters: Tensor | None = None) -> Draws:
        """Fed in two batches, all rows in one group."""
        weight, bias = self.conv.weight.detach(), self.conv.bias.detach()
        inputs = self.inputs()
        found = Draws(weight, bias, len(inputs), 1, seed)
        if filters is not None:
            found.filters = filters
        for part in (slice(0, 20), slice(20, None)):
            found.add(inputs[part], self.responses[part], [torch.ones(len(inputs[part]), dtype=torch.bool)])
        return found

    def layer(self, drawn: ChannelMoments | None = None) -> Layer:
        return Layer(self.moments(), self.conv.weight.detach(), self.conv.bias.detach(), drawn=drawn)


GEOMETRIES = [(3, 1), (1, 2)]


def brute_force(reader: Reader, filters: Tensor | None) -> list[int]:
    """Algorithm 1 as it stands: for each candidate j one convolution of T + {j}; the order in which channels go."""
    removed: list[int] = []
    while len(removed) < reader.channels - 1:
        best, least = -1, np.inf
        for j in range(reader.channels):
            if j in removed:
                continue
            sums = reader.convolved([*removed, j])
            value = float(sums.square().sum())
            if filters is not None:
                value = sum(float(sums[row, output]) ** 2 for row, output in enumerate(filters.tolist()))
            if value < least:
                best, least = j, value
        removed.append(best)
    return removed


@pytest.mark.parametrize(("kernel", "stride"), GEOMETRIES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outputs", ["all", "one"])
def test_the_greedy_choice_equals_one_convolution_for_each_candidate(
    kernel: int, stride: int, seed: int, outputs: str
) -> None:
    reader = Reader(kernel, stride, seed=seed)
    draws = reader.draws(seed) if outputs == "one" else None
    removed = brute_force(reader, None if draws is None else draws.filters)
    layer = reader.layer(None if draws is None else draws.found[0])
    for keep in range(1, reader.channels):
        gone = removed[: reader.channels - keep]
        assert select("thinet", layer, keep) == sorted(set(range(reader.channels)) - set(gone)), keep


def test_drawn_filters_decide() -> None:
    """Otherwise the test above would not see which of the two moments the criterion takes."""
    readers = [Reader(3, 1, seed=seed) for seed in range(4)]
    assert any(
        select("thinet", reader.layer(reader.draws().found[0]), keep) != select("thinet", reader.layer(), keep)
        for reader in readers
        for keep in (2, 3, 4)
    )


def journal(x: Array, y: Array, keep: int) -> list[int]:
    """The journal version, word by word: forward, the residual of each candidate alone, then all factors anew."""
    chosen: list[int] = []
    residual = y
    while len(chosen) < keep:
        lengths = {}
        for j in range(x.shape[1]):
            if j not in chosen:
                column = x[:, j]
                lengths[j] = np.linalg.norm(residual - (column @ residual) / (column @ column) * column)
        chosen.append(min(lengths, key=lengths.__getitem__))
        s = x[:, chosen]
        residual = y - s @ (np.linalg.pinv(s.T @ s) @ (s.T @ y))
    return chosen


@pytest.mark.parametrize(("kernel", "stride"), GEOMETRIES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outputs", ["all", "one"])
def test_the_journal_s_choice_equals_refitting_on_explicit_rows(
    kernel: int, stride: int, seed: int, outputs: str
) -> None:
    reader = Reader(kernel, stride, seed=seed)
    draws = reader.draws(seed) if outputs == "one" else None
    order = journal(*reader.rows(None if draws is None else draws.filters), reader.channels - 1)
    layer = reader.layer(None if draws is None else draws.found[0])
    for keep in range(1, reader.channels):
        assert select("thinet tpami", layer, keep) == sorted(order[:keep]), keep


def test_the_journal_s_choice_takes_copies_and_dead_channels_last() -> None:
    """Channels 1 and 4 are copies of 0 and 3, 2 is dead: the other four explain all that seven could."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 7))
    x[:, 1], x[:, 4], x[:, 2] = x[:, 0], -2.0 * x[:, 3], 0.0
    found = thinet.of_rows(torch.from_numpy(x), torch.from_numpy(x @ rng.uniform(0.5, 1.5, 7)))
    kept = thinet.forward(found.gram, found.target, 4)
    assert [sum(i in kept for i in group) for group in ((0, 1), (3, 4), (5,), (6,), (2,))] == [1, 1, 1, 1, 0]
    for keep in (5, 6, 7):
        assert len(set(thinet.forward(found.gram, found.target, keep))) == keep


@pytest.mark.parametrize(("kernel", "stride"), GEOMETRIES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("outputs", ["all", "one"])
def test_factors_equal_least_squares_on_explicit_rows(kernel: int, stride: int, seed: int, outputs: str) -> None:
    reader = Reader(kernel, stride, seed=seed)
    draws = reader.draws(seed) if outputs == "one" else None
    x, y = reader.rows(None if draws is None else draws.filters)
    drawn = () if draws is None else draws.found
    for kept in ([0, 2, 3, 6], [5], list(range(7))):
        expected = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
        sampled = Sampled(reader.moments())
        weight, bias = reader.conv.weight.detach(), reader.conv.bias.detach()
        found, rebuilt = thinet.rescale(sampled, kept, weight, bias, drawn)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(rebuilt.weight, weight[:, kept] * torch.from_numpy(expected)[:, None, None])
        assert torch.equal(rebuilt.bias, bias)


def test_factors_of_dead_and_copied_channels_are_the_smallest_solution() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, 5))
    x[:, 2], x[:, 4] = 0.0, 3.0 * x[:, 1]
    y = rng.standard_normal(50)
    found = thinet.factors(thinet.of_rows(torch.from_numpy(x), torch.from_numpy(y)), range(5))
    np.testing.assert_allclose(found.numpy(), np.linalg.lstsq(x, y, rcond=None)[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_errors_are_those_of_all_outputs_on_rows_that_gave_no_factor(drawn: bool, crossed: bool) -> None:
    """Held-out rows judge the factors of the fitted ones, a fold those of the other folds."""
    reader = Reader(3, 1, channels=4)
    weight, bias, kept = reader.conv.weight.detach(), reader.conv.bias.detach(), [0, 1, 3]
    inputs, count = reader.inputs(), len(reader.responses)
    parts = [slice(first, first + 16) for first in (0, 16, 32)] if crossed else [slice(40, None)]
    fitted = slice(None) if crossed else slice(0, 40)
    flags = [torch.zeros(count, dtype=torch.bool) for _ in (fitted, *parts)]
    for flag, part in zip(flags, (fitted, *parts), strict=True):
        flag[part] = True
    draws = Draws(weight, bias, count, len(flags), seed=5)
    draws.add(inputs, reader.responses, flags)
    sampled = Sampled(reader.moments(fitted), tuple(reader.moments(part) for part in parts), crossed)
    _, rebuilt = thinet.rescale(sampled, kept, weight, bias, draws.found if drawn else ())

    x, y = (torch.from_numpy(part) for part in reader.rows(draws.filters if drawn else None))
    owner = torch.arange(count) if drawn else torch.arange(count).repeat_interleave(5)  # of each row: its position
    contributions = torch.stack([reader.convolved([j]) for j in kept], dim=-1)

    def lost(fit: Tensor, judge: Tensor) -> tuple[float, float]:
        """Squared error on the positions ``judge`` with factors from the positions ``fit``, and the variance."""
        rows = fit[owner]
        scales = np.linalg.lstsq(x[rows][:, kept].numpy(), y[rows].numpy(), rcond=None)[0]
        answers = contributions[judge] @ torch.from_numpy(scales) + bias
        wanted = reader.responses[judge]
        return float((wanted - answers).square().sum()), float((wanted - wanted.mean(0)).square().sum())

    left, spread = lost(flags[0], flags[0])
    assert rebuilt.error == pytest.approx(left / spread, rel=1e-8)
    pairs = [lost(~flag if crossed else flags[0], flag) for flag in flags[1:]]
    assert rebuilt.held_out_error == pytest.approx(sum(a for a, _ in pairs) / sum(b for _, b in pairs), rel=1e-8)


# --------------------------------------------------------------------------------------------------------------------
# One output filter a position


@pytest.mark.parametrize(("kernel", "stride"), GEOMETRIES)
def test_drawn_moments_equal_a_loop_over_the_draws(kernel: int, stride: int) -> None:
    """Per image and draw: a position and one filter, its patch times that filter, channel by channel."""
    reader = Reader(kernel, stride, seed=2)
    draws = reader.draws(seed=9)
    padded = F.pad(reader.images, [kernel // 2] * 4)
    gram, target, energy = np.zeros((7, 7)), np.zeros(7), 0.0
    filters = iter(draws.filters.tolist())
    row = 0
    for image, places in enumerate(reader.positions.tolist()):
        for top, left in places:
            output = next(filters)
            weight = reader.conv.weight.detach()[output]
            patch = padded[image, :, top * stride : top * stride + kernel, left * stride : left * stride + kernel]
            x = np.array([float((patch[j] * weight[j]).sum()) for j in range(7)])
            y = float(reader.responses[row, output] - reader.conv.bias.detach()[output])
            gram, target, energy = gram + np.outer(x, x), target + x * y, energy + y * y
            row += 1
    found = draws.found[0]
    np.testing.assert_allclose(found.gram.numpy(), gram, rtol=1e-10)
    np.testing.assert_allclose(found.target.numpy(), target, rtol=1e-8, atol=1e-9)
    assert found.energy == pytest.approx(energy)


@pytest.mark.parametrize(("kernel", "stride"), GEOMETRIES)
def test_the_mean_over_every_filter_is_the_sum_over_all_filters_by_their_number(kernel: int, stride: int) -> None:
    """Uniform draws are independent, so the expectation is the mean over what each row may draw: counted out."""
    reader = Reader(kernel, stride, seed=3)
    every = [reader.draws(filters=torch.full((48,), output)).found[0] for output in range(5)]
    whole = thinet.channel_moments(reader.moments(), reader.conv.weight.detach(), reader.conv.bias.detach())
    torch.testing.assert_close(sum(found.gram for found in every) / 5, whole.gram / 5)
    torch.testing.assert_close(sum(found.target for found in every) / 5, whole.target / 5)
    assert sum(found.energy for found in every) == pytest.approx(whole.energy)
    x, y = reader.rows()  # and that is the one of the explicit rows
    np.testing.assert_allclose(whole.gram.numpy(), x.T @ x, rtol=1e-10)
    np.testing.assert_allclose(whole.target.numpy(), x.T @ y, rtol=1e-9, atol=1e-9)
    assert whole.energy == pytest.approx(float(y @ y))


def test_filters_are_drawn_uniformly_row_by_row_from_the_seed() -> None:
    weight, bias = torch.zeros(8, 2, 1, 1), torch.zeros(8)
    filters = Draws(weight, bias, 40_000, 1, seed=7).filters
    assert torch.equal(filters, Draws(weight, bias, 40_000, 1, seed=7).filters)
    assert not torch.equal(filters, Draws(weight, bias, 40_000, 1, seed=8).filters)
    pairs = torch.bincount(8 * filters[:-1:2] + filters[1::2], minlength=64).double()  # of rows that follow each other
    assert float(((pairs - 312.5).square() / 312.5).sum()) < 112.0  # 63 degrees of freedom: probability 1.4e-4


# --------------------------------------------------------------------------------------------------------------------
# Whole networks


class Net(nn.Module):
    """Two prunable layers with batch norms and pooling; the last reader has a bias and no norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(7)
        self.middle = nn.Conv2d(7, 8, 3, padding=1)
        self.middle_norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x 8 x 8 to N x 5 x 2 x 2."""
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(x))), 2)
        return self.last(F.relu(self.middle_norm(self.middle(x))))  # type: ignore[no-any-return]


def busy(model: nn.Module, seed: int) -> nn.Module:
    """Random biases and batch norms, so that forgetting one of them shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.3)
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.5)
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def seen(model: nn.Module, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Input and output of a module in the plain forward pass, in float64."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: found.append((inputs[0].double(), output.double()))
    )
    model.eval()(x)
    handle.remove()
    return found[0]


def scale_of(norm: nn.BatchNorm2d | None, outputs: int) -> Tensor:
    if norm is None:
        return torch.ones(outputs, dtype=torch.float64)
    assert norm.running_var is not None
    return (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().double()


def slow_rows(
    conv: nn.Conv2d, norm: nn.BatchNorm2d | None, x: Tensor, wanted: Tensor, positions: Tensor, filters: Tensor | None
) -> tuple[Array, Array, list[int]]:
    """x_hat, y_hat and each row's image, by one convolution for each channel and a loop over the draws.

    ``x`` is the reader's input in the pruned network, ``wanted`` its response behind the norm in the original one.
    """
    scale = scale_of(norm, conv.out_channels)[:, None, None]
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    offset = bias.double()
    if norm is not None:
        assert norm.running_mean is not None
        offset = norm.bias.detach().double() + (offset - norm.running_mean) * scale[:, 0, 0]
    weight = conv.weight.detach().double()
    maps = [
        scale * F.conv2d(x[:, j : j + 1], weight[:, j : j + 1], None, conv.stride, conv.padding)
        for j in range(conv.in_channels)
    ]
    rows, answers, owners, place = [], [], [], 0
    for image, places in enumerate(positions.tolist()):
        for row, column in places:
            for output in range(conv.out_channels) if filters is None else [int(filters[place])]:
                rows.append([float(m[image, output, row, column]) for m in maps])
                answers.append(float(wanted[image, output, row, column] - offset[output]))
                owners.append(image)
            place += 1
    return np.array(rows), np.array(answers), owners


def plain_backward(x: Array, keep: int) -> list[int]:
    alive, total = list(range(x.shape[1])), np.zeros(len(x))
    while len(alive) > keep:
        gone = min(alive, key=lambda j: float(np.linalg.norm(total + x[:, j])))
        alive.remove(gone)
        total = total + x[:, gone]
    return alive


def cut(model: nn.Module, producer: str, norm: str, reader: str, kept: list[int]) -> None:
    """The filters of the producer, its norm's entries and the reader's input channels that stay, by indexing."""
    for module in (convolution(model, producer), model.get_submodule(norm)):
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.dim():
                tensor.data = tensor.data[kept].clone()
        if isinstance(module, nn.Conv2d):
            module.out_channels = len(kept)
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(kept)
    conv = convolution(model, reader)
    conv.weight.data, conv.in_channels = conv.weight.data[:, kept].clone(), len(kept)


@pytest.mark.parametrize("outputs", ["all", "one"])
@pytest.mark.parametrize("selection", ["thinet", "thinet tpami"])
@pytest.mark.parametrize("rescaled", [True, False])
def test_pruning_with_factors_equals_the_slow_procedure(outputs: str, selection: str, rescaled: bool) -> None:
    """Layer after layer: rows by convolution, greedy on rows, least squares on rows, removal by indexing."""
    model = busy(Net(), seed=1)
    before = copy.deepcopy(model.state_dict())
    x = images(40)
    sampling = Sampling(positions=5, batch=16, held_out=0.25, least_held_out=5, seed=2)
    calibration = calibrate(model, x, sampling, progress=False)
    method = Method(selection, rebuild="rescale", outputs=outputs)
    if not rescaled:
        method = Method(selection, reconstruct=False, outputs=outputs)
    pruned, reports = prune(model, calibration, {"middle": 4, "last": 5}, method, progress=False)

    slow = copy.deepcopy(model)
    sites = [("stem", "stem_norm", "middle", "middle_norm", 4), ("middle", "middle_norm", "last", None, 5)]
    for place, (producer, norm, reader, behind, keep) in enumerate(sites):
        conv = convolution(slow, reader)
        own = None if behind is None else slow.get_submodule(behind)
        assert own is None or isinstance(own, nn.BatchNorm2d)
        filters = None
        if outputs == "one":  # the draws themselves are taken as they are; what is made of them is not
            filters = Draws(conv.weight, torch.zeros(len(conv.weight)), 200, 1, 1000 * sampling.seed + place).filters
        wanted = seen(model, x, reader if behind is None else behind)[1]
        positions = calibration.responses[reader].positions
        rows, answers, owners = slow_rows(conv, own, seen(slow, x, reader)[0], wanted, positions, filters)
        fitted = calibration.fitted[owners].numpy()
        assert 0 < fitted.sum() < len(fitted)
        rows, answers = rows[fitted], answers[fitted]
        kept = plain_backward(rows, keep) if selection == "thinet" else sorted(journal(rows, answers, keep))
        factors = np.linalg.lstsq(rows[:, kept], answers, rcond=None)[0] if rescaled else np.ones(keep)
        cut(slow, producer, norm, reader, kept)
        with torch.no_grad():
            conv.weight.mul_(torch.from_numpy(factors).float()[:, None, None])
        assert reports[place].kept == kept
        assert reports[place].unknowns == (keep if rescaled else conv.weight[0].numel())
    expected, found = slow.state_dict(), pruned.state_dict()
    assert set(expected) == set(found)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
        if "norm" in key or "bias" in key:  # factors are for weights alone
            assert torch.equal(found[key], value)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), slow.eval()(x), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("selection", ["random", "weight sum", "apoz", "lasso"])
def test_every_criterion_can_be_followed_by_the_factors(selection: str) -> None:
    """The channels are those that the criterion keeps with any reconstruction; the factors lower the error."""
    model = busy(Net(), seed=4)
    calibration = calibrate(model, images(60), Sampling(positions=6, held_out=0.0, folds=0), progress=False)
    keep = {"middle": 4}
    _, (plain,) = prune(model, calibration, keep, Method(selection, reconstruct=False), progress=False)
    _, (scaled,) = prune(model, calibration, keep, Method(selection, rebuild="rescale"), progress=False)
    _, (drawn,) = prune(model, calibration, keep, Method(selection, rebuild="rescale", outputs="one"), progress=False)
    assert plain.kept == scaled.kept == drawn.kept
    assert scaled.error < plain.error  # the least squares of all outputs has the least of these
    assert scaled.error < drawn.error
    assert plain.held_out_error is scaled.held_out_error is None


class Heads(nn.Module):
    """Channels of one map with two readers of different size, one behind pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 4, 3, padding=1)
        self.second = nn.Conv2d(6, 9, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """N x 3 x H x W to two maps."""
        x = F.relu(self.map(x))
        return self.first(F.max_pool2d(x, 2)), self.second(x)


@pytest.mark.parametrize("outputs", ["all", "one"])
def test_channels_with_several_readers_are_chosen_for_all_and_every_reader_gets_its_factors(outputs: str) -> None:
    model = busy(Heads(), seed=6)
    x = images(50)
    calibration = calibrate(model, x, Sampling(positions=8, held_out=0.0, folds=0, seed=1), progress=False, shared=True)
    method = Method("thinet", rebuild="rescale", outputs=outputs)
    pruned, reports = prune(model, calibration, {"first": 3}, method, progress=False)
    found = []
    for name in ("first", "second"):
        conv = convolution(model, name)
        filters = Draws(conv.weight, torch.zeros(len(conv.weight)), 400, 1, 1000).filters if outputs == "one" else None
        inputs, wanted = seen(model, x, name)
        positions = calibration.responses[name].positions
        found.append(slow_rows(conv, None, inputs, wanted, positions, filters)[:2])
    # each reader's rows are divided by the energy of its responses
    energies = [float(answers @ answers) for _, answers in found]
    if outputs == "all":
        energies = [
            float(calibration.responses[name].response[:].double().square().sum()) for name in ("first", "second")
        ]
    weighted = [rows / energy**0.5 for (rows, _), energy in zip(found, energies, strict=True)]
    kept = plain_backward(np.concatenate(weighted), 3)
    assert [report.kept for report in reports] == [kept, kept]
    for name, (rows, answers) in zip(("first", "second"), found, strict=True):
        factors = np.linalg.lstsq(rows[:, kept], answers, rcond=None)[0]
        expected = convolution(model, name).weight[:, kept] * torch.from_numpy(factors).float()[:, None, None]
        torch.testing.assert_close(convolution(pruned, name).weight, expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Options


def test_new_options_change_no_older_step() -> None:
    """What a step's key holds of the older parameters is what it was; the new options are in it where they are used."""
    older = Pruning(Method("thinet", compensate=False), Fixed({"a": 3}), Sampling(positions=4), 128)
    assert canonical(older) == {
        "type": "Pruning",
        "method": {"type": "Method", "selection": "thinet", "compensate": False},
        "widths": {"type": "Fixed", "keep": {"a": 3}},
        "sampling": {"type": "Sampling", "positions": 4},
        "images": 128,
    }
    method = canonical(Method("thinet", rebuild="rescale", outputs="one"))
    assert method == {"type": "Method", "selection": "thinet", "rebuild": "rescale", "outputs": "one"}


def test_steps_that_differ_in_the_options_have_names_and_keys_of_their_own() -> None:
    data = DataValue("plain", "training")
    parent = make_step(Kind.EVALUATE, "dense", run_pruned, Fixed({}), device="cpu")
    methods = [
        Method("thinet"),
        Method("thinet", rebuild="rescale"),
        Method("thinet", rebuild="rescale", outputs="one"),
    ]
    params = [Pruning(method, Fixed({"a": 3}), Sampling(), 20) for method in methods]
    steps = [pruned(parent, None, each, data, 1.0, "a to 3") for each in params]
    assert [step.name for step in steps] == [
        "pruned(thinet, a to 3, seed 0, dense)",
        "pruned(thinet, a to 3, rescale, seed 0, dense)",
        "pruned(thinet, a to 3, rescale, one filter a position, seed 0, dense)",
    ]
    others = [replace(params[0], balanced=True), replace(params[0], alone=True)]
    steps += [pruned(parent, None, each, data, 1.0) for each in others]
    assert len({step.key for step in steps}) == 5


def test_options_that_do_not_go_together_are_user_errors() -> None:
    with pytest.raises(UserError, match=r"unknown rebuild 'full': choose one of least squares, rescale"):
        Method(rebuild="full")
    with pytest.raises(UserError, match=r"unknown outputs 'two': choose one of all, one"):
        Method(outputs="two")
    with pytest.raises(UserError, match="rectify follows the least squares"):
        Method(rebuild="rescale", rectify=2)
    with pytest.raises(UserError, match="nothing is rebuilt"):
        Method(rebuild="rescale", reconstruct=False)
