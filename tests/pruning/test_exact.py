"""The backward elimination against brute force: NumPy refits the least squares with every candidate removed."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.pruning import exact
from bench.pruning.exact import eliminate, invert
from bench.pruning.moments import Centred, Moments

Array = NDArray[np.float64]


def problem(rows: int, channels: int, size: int, outputs: int, seed: int) -> tuple[Array, Array]:
    """Correlated inputs (rows x channels*size) of different strength with an offset, and responses (rows x outputs)."""
    rng = np.random.default_rng(seed)
    columns = channels * size
    mix = np.eye(columns) + 0.4 * rng.standard_normal((columns, columns)) / np.sqrt(columns)
    strength = np.repeat(rng.uniform(0.3, 2.0, channels), size)
    x = (rng.standard_normal((rows, columns)) @ mix) * strength + rng.uniform(-1, 1, columns)
    weight = rng.standard_normal((columns, outputs))
    return x, x @ weight + 0.5 * rng.standard_normal((rows, outputs)) + 3.0


def centred(x: Array, y: Array) -> Centred:
    moments = Moments(x.shape[1], y.shape[1])
    moments.add(torch.from_numpy(x), torch.from_numpy(y))
    return moments.centred()


def penalised_error(x: Array, y: Array, kept: list[int], size: int, penalty: float) -> float:
    """min over V of |Yc - Xc V|^2 + penalty |V|^2 on the kept channels, by least squares on the augmented rows."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    if not kept:
        return float((yc**2).sum())
    xs = xc[:, [c * size + k for c in kept for k in range(size)]]
    tall = np.vstack([xs, np.sqrt(penalty) * np.eye(xs.shape[1])])
    wide = np.vstack([yc, np.zeros((xs.shape[1], y.shape[1]))])
    solution, *_ = np.linalg.lstsq(tall, wide, rcond=None)
    return float(((wide - tall @ solution) ** 2).sum())


def penalty_of(x: Array, ridge: float) -> float:
    """The ridge in the data's own unit: times the mean diagonal of the centred X'X."""
    return ridge * float(((x - x.mean(0)) ** 2).sum(0).mean())


@pytest.mark.parametrize(("channels", "size", "outputs"), [(6, 1, 3), (8, 4, 2), (5, 9, 4), (12, 1, 1)])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_every_step_equals_brute_force(channels: int, size: int, outputs: int, ridge: float) -> None:
    """At each removal the channel is the cheapest of all candidates and the increase is the refitted difference."""
    x, y = problem(400, channels, size, outputs, seed=channels + size)
    result = eliminate(centred(x, y), channels, 1, ridge)
    penalty = penalty_of(x, ridge)
    alive = list(range(channels))
    for removed, increase in zip(result.order, result.increases, strict=True):
        now = penalised_error(x, y, alive, size, penalty)
        rises = {c: penalised_error(x, y, [a for a in alive if a != c], size, penalty) - now for c in alive}
        best = min(rises, key=rises.__getitem__)
        assert removed == best
        assert increase == pytest.approx(rises[best], rel=1e-6, abs=1e-9 * float((y**2).sum()))
        alive.remove(removed)
    assert alive == result.kept
    assert len(result.kept) == 1


@pytest.mark.parametrize(("channels", "size", "keep"), [(40, 9, 4), (60, 4, 3), (64, 1, 1)])
def test_long_eliminations_add_up_to_the_refitted_error(channels: int, size: int, keep: int) -> None:
    """Across pending products and fresh inversions: from the full fit, the increases lead to the refitted error."""
    x, y = problem(6 * channels * size, channels, size, 3, seed=1)
    ridge = 1e-5
    result = eliminate(centred(x, y), channels, keep, ridge)
    penalty = penalty_of(x, ridge)
    full = penalised_error(x, y, list(range(channels)), size, penalty)
    assert sorted([*result.order, *result.kept]) == list(range(channels))
    assert len(result.kept) == keep
    removed: list[int] = []
    total = full
    for step, (channel, increase) in enumerate(zip(result.order, result.increases, strict=True), start=1):
        removed.append(channel)
        total += increase
        if step % 13 == 0 or step == len(result.order):
            alive = [c for c in range(channels) if c not in removed]
            assert total == pytest.approx(penalised_error(x, y, alive, size, penalty), rel=1e-6)


@pytest.mark.parametrize("pending", [1, 27, 288])
def test_choices_are_the_cheapest_all_along(pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often pending products are applied to the inverse, choices and sums are those of brute force."""
    monkeypatch.setattr(exact, "_PENDING_COLUMNS", pending)
    channels, size, ridge = 40, 9, 1e-5
    x, y = problem(1200, channels, size, 3, seed=2)
    result = eliminate(centred(x, y), channels, 3, ridge)
    gram, cross = centred(x, y).xx.numpy(), centred(x, y).xy.numpy()
    penalty = penalty_of(x, ridge)

    def fitted(kept: list[int]) -> float:
        """What the ridge regression on the kept channels explains, by NumPy's solver on the normal equations."""
        columns = [c * size + k for c in kept for k in range(size)]
        block = gram[np.ix_(columns, columns)] + penalty * np.eye(len(columns))
        return float((cross[columns] * np.linalg.solve(block, cross[columns])).sum())

    for step in (2, 9, 10, 35, 36):
        alive = [c for c in range(channels) if c not in result.order[:step]]
        explained = {c: fitted([a for a in alive if a != c]) for c in alive}
        assert result.order[step] == max(explained, key=explained.__getitem__)
        rise = fitted(alive) - max(explained.values())
        assert result.increases[step] == pytest.approx(rise, rel=1e-5)


def test_one_round_past_the_pending_columns() -> None:
    """140 channels of 9: the first round removes 35, past the 288 pending columns, with one inverse."""
    channels, size, ridge = 140, 9, 1e-4
    x, y = problem(1400, channels, size, 2, seed=3)
    result = eliminate(centred(x, y), channels, 140 - 35, ridge)
    penalty = penalty_of(x, ridge)
    full = penalised_error(x, y, list(range(channels)), size, penalty)
    left = penalised_error(x, y, result.kept, size, penalty)
    assert full + sum(result.increases) == pytest.approx(left, rel=1e-6)


def test_keeping_all_removes_nothing() -> None:
    x, y = problem(50, 4, 1, 2, seed=0)
    result = eliminate(centred(x, y), 4, 4, 1e-4)
    assert (result.order, result.increases, result.kept) == ([], [], [0, 1, 2, 3])


def test_duplicates_and_dead_channels_go_first_at_no_cost() -> None:
    """A copy of a channel and a channel of zeros carry nothing: they are the first two to go, almost for free."""
    x, y = problem(300, 6, 4, 3, seed=4)
    copied = x[:, 8:12]
    x = np.hstack([x, copied, np.zeros((300, 4))])
    result = eliminate(centred(x, y), 8, 3, 1e-9)
    assert 7 in result.order[:2]
    assert set(result.order[:2]) in ({7, 6}, {7, 2})
    assert sum(result.increases[:2]) < 1e-6 * float(((y - y.mean(0)) ** 2).sum())


@pytest.mark.parametrize("ridge", [0.0, 1e-14, 1e-8, 1e-4])
def test_nearly_singular_inputs_stay_finite(ridge: float) -> None:
    """Fewer rows than columns, duplicates and dead channels: every number is finite and no increase negative."""
    rng = np.random.default_rng(5)
    half = rng.standard_normal((30, 40))
    x = np.hstack([half, half + 1e-9 * rng.standard_normal(half.shape), np.zeros((30, 20))])
    y = rng.standard_normal((30, 3))
    result = eliminate(centred(x, y), 25, 1, ridge)
    assert sorted([*result.order, *result.kept]) == list(range(25))
    assert np.isfinite(result.increases).all()
    assert min(result.increases) >= 0.0


@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_inputs_that_are_all_zero_stay_finite(ridge: float) -> None:
    """A dead layer: nothing costs anything."""
    x, y = np.zeros((20, 12)), np.random.default_rng(0).standard_normal((20, 2))
    result = eliminate(centred(x, y), 4, 1, ridge)
    assert np.isfinite(result.increases).all()
    assert max(result.increases) <= 1e-9
    assert len(result.kept) == 1


def test_invert_equals_numpy_and_raises_the_ridge_only_where_it_must() -> None:
    rng = np.random.default_rng(6)
    a = rng.standard_normal((20, 8))
    matrix = a.T @ a
    ours = invert(torch.from_numpy(matrix), 0.5).numpy()
    np.testing.assert_allclose(ours, np.linalg.inv(matrix + 0.5 * np.eye(8)), rtol=1e-9)
    singular = torch.ones(3, 3, dtype=torch.float64)
    inverse = invert(singular, 0.0)
    assert bool(torch.isfinite(inverse).all())
    assert torch.equal(singular, torch.ones(3, 3, dtype=torch.float64))
