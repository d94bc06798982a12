"""Every criterion against a plain implementation on explicit arrays, or another library's solver."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Lasso

from bench.errors import UserError
from bench.pruning.moments import Moments
from bench.pruning.selection import SELECTIONS, Layer, select

Array = NDArray[np.float64]


class Problem:
    """Explicit inputs (rows x c*k, offset from zero), weights (n x c x kh x kw), responses, and their Layer."""

    def __init__(
        self, channels: int, kernel: tuple[int, int] = (3, 1), outputs: int = 4, rows: int = 300, seed: int = 0
    ):
        rng = np.random.default_rng(seed)
        size = kernel[0] * kernel[1]
        strength = np.repeat(rng.permutation(np.linspace(0.3, 2.0, channels)), size)
        self.size, self.channels = size, channels
        self.x = rng.standard_normal((rows, channels * size)) * strength + rng.uniform(-1, 1, channels * size)
        self.weight = rng.standard_normal((outputs, channels, *kernel))
        self.bias = rng.standard_normal(outputs)
        self.y = self.x @ self.weight.reshape(outputs, -1).T + self.bias + 0.3 * rng.standard_normal((rows, outputs))
        self.filters = rng.standard_normal((channels, 2, 3, 3))

    def layer(self, **options: str) -> Layer:
        moments = Moments(self.x.shape[1], self.y.shape[1])
        moments.add(torch.from_numpy(self.x), torch.from_numpy(self.y))
        return Layer(
            moments,
            torch.from_numpy(self.weight),
            torch.from_numpy(self.bias),
            torch.from_numpy(self.filters),
            options=options,
            zeros=torch.from_numpy((self.x == 0).reshape(len(self.x), self.channels, -1).mean((0, 2))),
        )

    def contributions(self) -> Array:
        """Z (channels x rows x outputs): what each channel adds to each response."""
        blocks = self.x.reshape(len(self.x), self.channels, self.size)
        weight = self.weight.reshape(-1, self.channels, self.size)
        return np.einsum("rck,nck->crn", blocks, weight)  # type: ignore[no-any-return]


def lasso_supports(design: Array, target: Array, intercept: bool) -> dict[int, list[list[int]]]:
    """scikit-learn's coordinate descent down a fine grid of penalties: for each count the supports of that size.

    There may be more than one, where a channel leaves the path again.
    """
    covariance = (design - design.mean(0)) if intercept else design
    largest = float(np.abs(covariance.T @ target).max()) / len(target)
    model = Lasso(alpha=1.0, fit_intercept=intercept, warm_start=True, tol=1e-9, max_iter=20_000)
    supports: dict[int, list[list[int]]] = {}
    for alpha in largest * np.geomspace(1.0, 1e-4, 400):
        support = np.flatnonzero(model.set_params(alpha=alpha).fit(design, target).coef_).tolist()
        if support not in supports.setdefault(len(support), []):
            supports[len(support)].append(support)
    return supports


@pytest.mark.parametrize("seed", range(4))
def test_lasso_equals_coordinate_descent_on_explicit_contributions(seed: int) -> None:
    """(rows * outputs) x c design, centred for each output: the support of scikit-learn's Lasso of the same size."""
    problem = Problem(10, seed=seed)
    z = problem.contributions()
    design = (z - z.mean(1, keepdims=True)).reshape(10, -1).T
    supports = lasso_supports(design, (problem.y - problem.y.mean(0)).reshape(-1), intercept=False)
    checked = [keep for keep in range(1, 10) if keep in supports]
    assert len(checked) >= 7
    assert sum(len(supports[keep]) == 1 for keep in checked) >= 6
    for keep in checked:
        assert select("lasso", problem.layer(), keep) in supports[keep], keep


@pytest.mark.parametrize("seed", range(3))
def test_scalar_intercept_equals_the_flattened_regression(seed: int) -> None:
    """One intercept for all outputs, as the authors' flattened Lasso has it."""
    problem = Problem(10, seed=seed)
    # the centring decides here: a large offset makes the two forms choose differently
    problem.y += np.array([9.0, -7.0, 5.0, -8.0])
    problem.x += 1.0
    design = problem.contributions().reshape(10, -1).T
    supports = lasso_supports(design, problem.y.reshape(-1), intercept=True)
    checked = [keep for keep in range(1, 10) if keep in supports]
    assert len(checked) >= 6
    for keep in checked:
        assert select("lasso", problem.layer(intercept="scalar"), keep) in supports[keep], keep
    assert any(
        select("lasso", problem.layer(), keep) != select("lasso", problem.layer(intercept="scalar"), keep)
        for keep in checked
    )


def orthogonal(strength: Array, slope: Array) -> Layer:
    """Uncorrelated channels (1x1, one output, weights 1) about zero: G = 2 diag(strength^2), b = 2 strength * slope."""
    channels = len(strength)
    x = np.vstack([np.diag(strength), -np.diag(strength)])
    y = np.concatenate([slope, -slope])[:, None]
    moments = Moments(channels, 1)
    moments.add(torch.from_numpy(x), torch.from_numpy(y))
    return Layer(moments, torch.ones(1, channels, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "keep"), [(30, 11), (540, 60), (540, 525)])
def test_lasso_on_orthogonal_channels_is_soft_thresholding(channels: int, keep: int) -> None:
    """Without correlation the channels enter by |b_i|, weakest energy or not, in wide layers as in small ones."""
    rng = np.random.default_rng(channels)
    target = rng.permutation(np.linspace(1.0, 5.0, channels))
    strength = 6.0 - target  # the largest |b| have the least energy
    layer = orthogonal(strength, rng.choice([-1.0, 1.0], channels) * target / strength)
    assert select("lasso", layer, keep) == sorted(np.argsort(-target)[:keep].tolist())


def with_dead_and_copied_channels() -> Problem:
    """Channels 1 and 4 are zero, 6 and 7 copies of 0 and 2 (weights too)."""
    problem = Problem(8, seed=3)
    blocks = problem.x.reshape(len(problem.x), 8, problem.size)
    blocks[:, [1, 4]] = 0.0
    blocks[:, [6, 7]] = blocks[:, [0, 2]]
    problem.weight[:, [6, 7]] = problem.weight[:, [0, 2]]
    problem.y = problem.contributions().sum(0) + problem.bias
    return problem


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("awkward", [False, True])
def test_every_count_is_met(name: str, awkward: bool) -> None:
    """Sorted, different channels within range, for each keep, whatever the inputs."""
    problem = with_dead_and_copied_channels() if awkward else Problem(8, seed=1)
    layer = problem.layer()
    for keep in range(1, 9):
        kept = select(name, layer, keep)
        assert len(kept) == keep
        assert kept == sorted(set(kept))
        assert set(kept) <= set(range(8))
    if awkward and name in ("lasso", "exact", "thinet", "max response", "thinet tpami", "apoz"):
        assert not {1, 4} & set(select(name, layer, 4))


@pytest.mark.parametrize("name", SELECTIONS)
def test_inputs_that_are_all_zero_still_give_the_count(name: str) -> None:
    problem = Problem(5, rows=20)
    problem.x[:] = 0.0
    assert len(select(name, problem.layer(), 3)) == 3


def test_apoz_without_a_count_is_a_user_error() -> None:
    layer = Problem(5).layer()
    with pytest.raises(UserError, match="zeros that are counted"):
        select("apoz", Layer(layer.moments, layer.weight, layer.bias), 3)


@pytest.mark.parametrize("seed", range(5))
def test_thinet_equals_the_plain_greedy(seed: int) -> None:
    """Algorithm 1 with arrays: add to T the channel that keeps the sum over T smallest; raw values, no intercept."""
    problem = Problem(9, seed=seed)
    z = problem.contributions()
    removed: list[int] = []
    total = np.zeros_like(z[0])
    while len(removed) < 8:
        costs = {j: float(((total + z[j]) ** 2).sum()) for j in range(9) if j not in removed}
        best = min(costs, key=costs.__getitem__)
        removed.append(best)
        total = total + z[best]
        assert select("thinet", problem.layer(), 9 - len(removed)) == sorted(set(range(9)) - set(removed))


def test_max_response_ranks_by_energy_about_the_mean() -> None:
    problem = Problem(9, seed=5)
    problem.x[:, : problem.size] += 50.0  # a large mean is no energy
    z = problem.contributions()
    energy = ((z - z.mean(1, keepdims=True)) ** 2).sum((1, 2))
    for keep in range(1, 9):
        assert select("max response", problem.layer(), keep) == sorted(np.argsort(-energy)[:keep].tolist())


def test_weight_sum_ranks_producer_filters_or_the_reader_behind_a_stream() -> None:
    problem = Problem(9, seed=6)
    layer = problem.layer()
    producer = np.abs(problem.filters).sum((1, 2, 3))
    reader = np.abs(problem.weight).sum((0, 2, 3))
    stream = Layer(layer.moments, layer.weight, layer.bias)
    for keep in range(1, 9):
        assert select("weight sum", layer, keep) == sorted(np.argsort(-producer)[:keep].tolist())
        assert select("weight sum", stream, keep) == sorted(np.argsort(-reader)[:keep].tolist())


def test_exact_finds_the_best_pair_where_backward_elimination_is_exhaustive() -> None:
    """Removing one channel of nine: brute force over all refits."""
    problem = Problem(9, seed=7)
    xc, yc = problem.x - problem.x.mean(0), problem.y - problem.y.mean(0)
    errors = []
    for out in range(9):
        columns = [c * problem.size + k for c in range(9) if c != out for k in range(problem.size)]
        solution, *_ = np.linalg.lstsq(xc[:, columns], yc, rcond=None)
        errors.append(float(((yc - xc[:, columns] @ solution) ** 2).sum()))
    assert select("exact", problem.layer(), 8) == [c for c in range(9) if c != int(np.argmin(errors))]


def test_first_k() -> None:
    assert select("first k", Problem(6).layer(), 4) == [0, 1, 2, 3]


def test_random_is_seeded_and_uniform() -> None:
    """Every pair of five channels about equally often over 1,000 seeds, and the same for the same seed."""
    base = Problem(5).layer()
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for seed in range(1000):
        layer = Layer(base.moments, base.weight, base.bias, seed=seed)
        kept = select("random", layer, 2)
        assert kept == select("random", layer, 2)
        counts[(kept[0], kept[1])] += 1
    statistic = sum((count - 100.0) ** 2 / 100.0 for count in counts.values())
    assert statistic < 33.7  # 9 degrees of freedom: exceeded with a probability of 1e-4


def test_unknown_names_and_impossible_counts_are_user_errors() -> None:
    layer = Problem(5).layer()
    with pytest.raises(UserError, match=r"unknown selection 'best'.*lasso"):
        select("best", layer, 2)
    for keep in (0, -1, 6):
        with pytest.raises(UserError, match=f"cannot keep {keep} of 5"):
            select("lasso", layer, keep)


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_layer_is_not_changed(name: str) -> None:
    """Criteria are compared on the same moments: none may write into them."""
    layer = Problem(6).layer()
    before = [t.clone() for t in (layer.moments.xx, layer.moments.xy, layer.moments.x_sum, layer.weight)]
    select(name, layer, 3)
    after = (layer.moments.xx, layer.moments.xy, layer.moments.x_sum, layer.weight)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
