"""Least squares from moments against NumPy's on the rows themselves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.pruning.moments import Moments
from bench.pruning.reconstruction import RIDGES, Sampled, columns_of, error, reconstruct, rescaled, solve, variance

Array = NDArray[np.float64]
FINITE = RIDGES[:-1]


def rows(count: int, columns: int, outputs: int, seed: int, noise: float = 0.5) -> tuple[Array, Array]:
    """Offset, correlated inputs and responses that depend on them; the rule is the same for every seed."""
    rule = np.random.default_rng(99)
    mix, weight = rule.standard_normal((columns, columns)), rule.standard_normal((columns, outputs))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, columns)) @ mix + 2.0
    return x, x @ weight - 4.0 + noise * rng.standard_normal((count, outputs))


def moments_of(x: Array, y: Array) -> Moments:
    found = Moments(x.shape[1], y.shape[1])
    found.add(torch.from_numpy(x), torch.from_numpy(y))
    return found


def ridge_regression(x: Array, y: Array, penalty: float) -> tuple[Array, Array]:
    """V and intercept that minimise |Y - X V - 1 b'|^2 + penalty |V|^2: least squares on augmented centred rows."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    tall = np.vstack([xc, np.sqrt(penalty) * np.eye(x.shape[1])])
    solution, *_ = np.linalg.lstsq(tall, np.vstack([yc, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)
    return solution, y.mean(0) - x.mean(0) @ solution


def penalty_of(x: Array, ridge: float) -> float:
    """In units of the mean diagonal of the centred X'X over all channels, kept or not."""
    return ridge * float(((x - x.mean(0)) ** 2).sum(0).mean())


def picked(x: Array, kept: list[int], size: int) -> Array:
    return x.reshape(len(x), -1, size)[:, kept].reshape(len(x), -1)


@settings(deadline=None, max_examples=25)
@given(
    kept=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
    kernel=st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    ridge=st.sampled_from([1e-9, 1e-4, 1e-1]),
    seed=st.integers(0, 1000),
)
def test_solution_equals_numpy(kept: list[int], kernel: tuple[int, int], ridge: float, seed: int) -> None:
    """Weights n x c' x kh x kw in the order of ``kept``, bias, and the error as a share of the variance."""
    kept = sorted(kept)
    size = kernel[0] * kernel[1]
    x, y = rows(120, 5 * size, 3, seed)
    found = reconstruct(Sampled(moments_of(x, y)), kept, kernel, ridges=(ridge,))
    xs = picked(x, kept, size)
    solution, bias = ridge_regression(xs, y, penalty_of(x, ridge))
    assert found.weight.shape == (3, len(kept), *kernel)
    np.testing.assert_allclose(found.weight.reshape(3, -1).T, solution, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.bias, bias, rtol=1e-5, atol=1e-5)
    left = float(((y - xs @ solution - bias) ** 2).sum()) / float(((y - y.mean(0)) ** 2).sum())
    assert found.error == pytest.approx(left, rel=1e-5, abs=1e-9)
    assert found.ridge == ridge
    assert found.held_out_error is None


def test_tiny_ridge_equals_ordinary_least_squares_with_an_intercept_column() -> None:
    """The textbook form: a column of ones beside X."""
    x, y = rows(200, 6, 2, seed=1)
    found = reconstruct(Sampled(moments_of(x, y)), range(2), (3, 1), ridges=(1e-14,))
    solution, *_ = np.linalg.lstsq(np.hstack([x, np.ones((200, 1))]), y, rcond=None)
    np.testing.assert_allclose(found.weight.reshape(2, -1).T, solution[:-1], rtol=1e-6)
    np.testing.assert_allclose(found.bias, solution[-1], rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), kept=st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
def test_error_equals_explicit_residuals(seed: int, kept: list[int]) -> None:
    """Any solution and any bias, not only the best ones."""
    x, y = rows(60, 8, 3, seed)
    rng = np.random.default_rng(seed + 1)
    solution, bias = rng.standard_normal((2 * len(kept), 3)), rng.standard_normal(3)
    found = error(moments_of(x, y), kept, torch.from_numpy(solution), torch.from_numpy(bias))
    assert found == pytest.approx(float(((y - picked(x, kept, 2) @ solution - bias) ** 2).sum()), rel=1e-9)


def test_variance_is_about_each_output_s_mean() -> None:
    x, y = rows(60, 4, 3, seed=3)
    assert variance(moments_of(x, y)) == pytest.approx(float(((y - y.mean(0)) ** 2).sum()), rel=1e-9)


@pytest.mark.parametrize("case", range(6))
def test_ridge_is_the_best_on_held_out_rows(case: int) -> None:
    """Few noisy rows need a large ridge, many need a small one; the choice is the argmin computed explicitly."""
    count, noise = [(22, 3.0), (22, 6.0), (30, 4.0), (60, 2.0), (800, 0.1), (40, 8.0)][case]
    x, y = rows(count, 20, 2, seed=10 + case, noise=noise)
    x_held, y_held = rows(50, 20, 2, seed=500 + case, noise=noise)
    kept = [0, 1, 3, 4]
    judged = {}
    for ridge in FINITE:
        solution, bias = ridge_regression(picked(x, kept, 4), y, penalty_of(x, ridge))
        judged[ridge] = float(((y_held - picked(x_held, kept, 4) @ solution - bias) ** 2).sum())
    best = min(judged, key=judged.__getitem__)
    found = reconstruct(Sampled(moments_of(x, y), (moments_of(x_held, y_held),)), kept, (2, 2), ridges=FINITE)
    assert found.ridge == best
    share = judged[best] / float(((y_held - y_held.mean(0)) ** 2).sum())
    assert found.held_out_error == pytest.approx(share, rel=1e-6)


def test_the_cases_above_need_different_ridges() -> None:
    """Otherwise they could not tell the argmin from a constant."""
    found = set()
    for case, (count, noise) in enumerate([(22, 3.0), (22, 6.0), (30, 4.0), (60, 2.0), (800, 0.1), (40, 8.0)]):
        x, y = rows(count, 20, 2, seed=10 + case, noise=noise)
        x_held, y_held = rows(50, 20, 2, seed=500 + case, noise=noise)
        sampled = Sampled(moments_of(x, y), (moments_of(x_held, y_held),))
        found.add(reconstruct(sampled, [0, 1, 3, 4], (2, 2), ridges=FINITE).ridge)
    assert len(found) >= 3


def test_where_nothing_can_judge_the_most_cautious_ridge_is_taken() -> None:
    x, y = rows(50, 4, 2, seed=0)
    for judges in ((), (Moments(4, 2),)):
        found = reconstruct(Sampled(moments_of(x, y), judges), [0, 1], (2, 1), ridges=(1e-3, 1.0, 7.0))
        assert found.ridge == 7.0
        assert found.held_out_error is None


def towards(x: Array, y: Array, penalty: float, prior: Array) -> tuple[Array, Array]:
    """V and intercept that minimise |Y - X V - 1 b'|^2 + penalty |V - prior|^2, on augmented centred rows."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    tall, aim = np.vstack([xc, np.sqrt(penalty) * np.eye(x.shape[1])]), np.vstack([yc, np.sqrt(penalty) * prior])
    solution, *_ = np.linalg.lstsq(tall, aim, rcond=None)
    return solution, y.mean(0) - x.mean(0) @ solution


def scaled_by_channel(x: Array, y: Array, weight: Array) -> Array:
    """``weight`` (n x c' x k) with the factors that fit best: NumPy's least squares on the channels' contributions,
    every row and output an equation."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    parts = xc.reshape(len(x), weight.shape[1], -1)
    design = np.stack([(parts[:, i] @ weight[:, i].T).ravel() for i in range(weight.shape[1])], 1)
    factors, *_ = np.linalg.lstsq(design, yc.ravel(), rcond=None)
    return weight * factors[None, :, None]


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0, math.inf])
def test_the_ridge_pulls_towards_the_old_weights_rescaled_by_channel(ridge: float) -> None:
    x, y = rows(40, 5 * 4, 3, seed=2)
    old = np.random.default_rng(1).standard_normal((3, 5, 2, 2))
    kept = [0, 2, 3]
    found = reconstruct(Sampled(moments_of(x, y)), kept, (2, 2), torch.from_numpy(old), ridges=(ridge,))
    xs = picked(x, kept, 4)
    prior = scaled_by_channel(xs, y, old[:, kept].reshape(3, 3, 4)).reshape(3, -1).T
    solution, bias = prior, y.mean(0) - xs.mean(0) @ prior
    if math.isfinite(ridge):
        solution, bias = towards(xs, y, penalty_of(x, ridge), prior)
    np.testing.assert_allclose(found.weight.reshape(3, -1).T, solution, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.bias, bias, rtol=1e-5, atol=1e-6)


def test_channels_that_say_nothing_keep_their_weights() -> None:
    """A dead channel and a copy of another one: the factors stay near one and finite."""
    x, y = rows(60, 4, 2, seed=3)
    x[:, 1], x[:, 3] = 5.0, x[:, 0]
    old = torch.ones(2, 4, 1, 1, dtype=torch.float64)
    found = rescaled(moments_of(x, y).centred(), old)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found[:, 1], old[:, 1])
    torch.testing.assert_close(found[:, 0], found[:, 3], rtol=1e-4, atol=1e-4)
    silent = Moments(4, 2)
    silent.add(torch.full((30, 4), 2.0), torch.from_numpy(y[:30]))
    torch.testing.assert_close(rescaled(silent.centred(), old), old)


@pytest.mark.parametrize("case", range(4))
def test_cross_validation_is_the_explicit_one(case: int) -> None:
    """Five folds: for each ridge the error on each fold of what the other folds give; then all rows are fitted."""
    count, noise = [(25, 4.0), (40, 6.0), (60, 1.0), (400, 0.3)][case]
    x, y = rows(count, 20, 2, seed=30 + case, noise=noise)
    old = np.random.default_rng(case).standard_normal((2, 5, 2, 2))
    kept, ridges = [0, 1, 3, 4], (1e-4, 1e-2, 1.0, 100.0)
    fold = np.arange(count) % 5
    sampled = Sampled(moments_of(x, y), tuple(moments_of(x[fold == f], y[fold == f]) for f in range(5)), crossed=True)
    found = reconstruct(sampled, kept, (2, 2), torch.from_numpy(old), ridges)
    xs, totals = picked(x, kept, 4), dict.fromkeys(ridges, 0.0)

    def fit(rows_: Array, ridge: float) -> tuple[Array, Array]:
        prior = scaled_by_channel(xs[rows_], y[rows_], old[:, kept].reshape(2, 4, 4)).reshape(2, -1).T
        return towards(xs[rows_], y[rows_], penalty_of(x[rows_], ridge), prior)

    for f in range(5):
        for ridge in ridges:
            solution, bias = fit(fold != f, ridge)
            totals[ridge] += float(((y[fold == f] - xs[fold == f] @ solution - bias) ** 2).sum())
    best = min(totals, key=totals.__getitem__)
    assert found.ridge == best
    np.testing.assert_allclose(found.weight.reshape(2, -1).T, fit(fold >= 0, best)[0], rtol=1e-4, atol=1e-6)
    spread = sum(float(((y[fold == f] - y[fold == f].mean(0)) ** 2).sum()) for f in range(5))
    assert found.held_out_error == pytest.approx(totals[best] / spread, rel=1e-5)


def test_few_rows_stay_near_old_weights_that_are_right() -> None:
    """Ten rows, twenty unknowns, loud noise: a ridge far above a hundredth wins and beats small ones towards zero."""
    rule = np.random.default_rng(4)
    old = rule.standard_normal((2, 5, 2, 2))
    x, x_held = rule.standard_normal((10, 20)), rule.standard_normal((4000, 20))
    truth = old.reshape(2, 20).T
    y, y_held = (v @ truth + 6.0 * rule.standard_normal((len(v), 2)) for v in (x, x_held))
    sampled = Sampled(moments_of(x, y), (moments_of(x_held, y_held),))
    towards_old = reconstruct(sampled, range(5), (2, 2), torch.from_numpy(old))
    towards_zero = reconstruct(sampled, range(5), (2, 2), ridges=RIDGES[:5])
    assert towards_old.ridge >= 1.0
    assert towards_old.held_out_error is not None
    assert towards_zero.held_out_error is not None
    assert towards_old.held_out_error < 0.8 * towards_zero.held_out_error


def test_singular_inputs_stay_finite() -> None:
    """Copied and dead columns without any ridge: the fit is as good as without the copies."""
    x, y = rows(80, 4, 2, seed=2)
    wide = np.hstack([x, x, np.zeros((80, 2))])
    found = solve(moments_of(wide, y).centred(), range(10), 1, 0.0)
    xc, yc = wide - wide.mean(0), y - y.mean(0)
    solution, *_ = np.linalg.lstsq(xc, yc, rcond=None)
    best = float(((yc - xc @ solution) ** 2).sum())
    assert float(((yc - xc @ found.numpy()) ** 2).sum()) == pytest.approx(best, rel=1e-4)


def test_inputs_that_are_all_zero_leave_the_mean() -> None:
    """A dead layer is reconstructed by its bias alone."""
    _, y = rows(40, 4, 2, seed=4)
    found = reconstruct(Sampled(moments_of(np.zeros((40, 4)), y)), [0, 1], (2, 1))
    np.testing.assert_allclose(found.bias, y.mean(0), rtol=1e-9)
    assert float(found.weight.abs().max()) <= 1e-9
    assert found.error == pytest.approx(1.0, rel=1e-9)


def test_columns_of_a_channel_are_contiguous() -> None:
    assert columns_of([2, 0], 3).tolist() == [6, 7, 8, 0, 1, 2]
