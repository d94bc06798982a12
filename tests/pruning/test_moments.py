"""Moments, patches and channel Grams against unfold and plain NumPy on all rows at once."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.pruning import moments as moments_module
from bench.pruning.moments import Moments, channel_gram, output_size, patches, sample_positions


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_patches_equal_unfold(data: st.DataObject) -> None:
    """For any kernel, stride, padding and dilation, the sampled rows are columns of torch's own im2col."""
    draw = data.draw
    pairs = {
        "kernel_size": draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), label="kernel"),
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), label="stride"),
        "padding": draw(st.tuples(st.integers(0, 3), st.integers(0, 3)), label="padding"),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2)), label="dilation"),
    }
    conv = nn.Conv2d(3, 5, **pairs, bias=False)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    x = torch.randn(2, 3, draw(st.integers(8, 11)), draw(st.integers(8, 11)), generator=generator)
    with torch.no_grad():
        response = conv(x)
    height, width = output_size(x.shape, conv)
    assert (height, width) == tuple(response.shape[-2:])
    positions = sample_positions(4, 2, height, width, generator)
    columns = F.unfold(x, conv.kernel_size, conv.dilation, pairs["padding"], conv.stride)  # images x p x places
    found = patches(x, positions, conv)
    assert found.shape == (8, columns.shape[1])
    for image in range(2):
        for place in range(4):
            row, column = positions[image, place].tolist()
            assert torch.equal(found[image * 4 + place], columns[image, :, row * width + column])
            torch.testing.assert_close(
                conv.weight.detach().flatten(1) @ found[image * 4 + place],
                response[image, :, row, column],
                rtol=1e-4,
                atol=1e-5,
            )


def test_positions_are_uniform_inside_and_differ_between_images() -> None:
    """Chi-squared over a 4 x 5 map; a shared draw for all images would give equal images."""
    positions = sample_positions(50, 400, 4, 5, torch.Generator().manual_seed(0))
    assert positions.shape == (400, 50, 2)
    counts = torch.bincount((positions[..., 0] * 5 + positions[..., 1]).flatten(), minlength=20).double()
    assert len(counts) == 20
    statistic = float(((counts - 1000.0) ** 2 / 1000.0).sum())
    assert statistic < 50.0  # 19 degrees of freedom: exceeded with a probability of 1e-4
    assert not torch.equal(positions[0], positions[1])
    again = sample_positions(50, 400, 4, 5, torch.Generator().manual_seed(0))
    assert torch.equal(positions, again)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_moments_equal_numpy_whatever_the_batching(data: st.DataObject) -> None:
    """Rows come in chunks of any size and the buffer is flushed at any time; NumPy sees all rows at once."""
    draw = data.draw
    p, n = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda chunks: sum(chunks) > 0))
    buffer = draw(st.sampled_from([1, 200, 10**9]))
    block = draw(st.sampled_from([1, 3, 512]))  # rows in which XX, computed by half, is completed
    peeks = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    x = (rng.standard_normal((sum(sizes), p)) + 2.0).astype(np.float32)
    y = (3.0 * rng.standard_normal((sum(sizes), n)) - 1.0).astype(np.float32)
    found = Moments(p, n)
    first = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments_module, "_BUFFER", buffer)
        patch.setattr(moments_module, "_BLOCK_ROWS", block)
        for size, peek in zip(sizes, peeks, strict=True):
            found.add(torch.from_numpy(x[first : first + size]), torch.from_numpy(y[first : first + size]))
            first += size
            if peek:
                np.testing.assert_allclose(found.xx, x[:first].T.astype(np.float64) @ x[:first], rtol=1e-5, atol=1e-5)
        assert torch.equal(found.xx, found.xx.T)
    x, y = x.astype(np.float64), y.astype(np.float64)
    rows = len(x)
    assert found.count == rows
    np.testing.assert_allclose(found.xx, x.T @ x, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.xy, x.T @ y, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.yy, (y**2).sum(0), rtol=1e-10)
    np.testing.assert_allclose(found.x_sum, x.sum(0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.y_sum, y.sum(0), rtol=1e-10, atol=1e-10)
    about = found.centred()
    joint = np.cov(np.hstack([x, y]).T, bias=True).reshape(p + n, p + n) * rows
    np.testing.assert_allclose(about.xx, joint[:p, :p], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(about.xy, joint[:p, p:], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(about.yy, joint[p:, p:].diagonal(), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(about.x_mean, x.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(about.y_mean, y.mean(0), rtol=1e-10, atol=1e-12)
    assert about.scale == pytest.approx((float(joint[:p, :p].diagonal().mean()) or 1.0), rel=1e-6, abs=1e-8)
    raw = found.raw()
    np.testing.assert_allclose(raw.xx, x.T @ x, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(raw.yy, (y**2).sum(0), rtol=1e-10)
    assert float(raw.x_mean.abs().sum() + raw.y_mean.abs().sum()) == 0.0


def test_reading_in_between_loses_nothing() -> None:
    """The sums may be read before the last row has come."""
    x = torch.arange(12.0).reshape(6, 2)
    y = torch.arange(6.0).reshape(6, 1)
    found = Moments(2, 1)
    found.add(x[:2], y[:2])
    assert found.x_sum.tolist() == [2.0, 4.0]
    found.add(x[2:], y[2:])
    assert found.x_sum.tolist() == [30.0, 36.0]
    assert found.xy.flatten().tolist() == [110.0, 125.0]


@settings(deadline=None, max_examples=25)
@given(
    channels=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    outputs=st.integers(1, 4),
    centre=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_channel_gram_equals_explicit_contributions(
    channels: int, kernel: tuple[int, int], outputs: int, centre: bool, seed: int
) -> None:
    """G_ij = <Z_i, Z_j> and b_i = <Z_i, Y> with Z_i = X_i W_i' written out (about the means, where asked)."""
    rng = np.random.default_rng(seed)
    size, rows = kernel[0] * kernel[1], 15
    x = rng.standard_normal((rows, channels * size)) + 1.0
    y = rng.standard_normal((rows, outputs)) - 2.0
    weight = rng.standard_normal((outputs, channels, *kernel))
    found = Moments(channels * size, outputs)
    found.add(torch.from_numpy(x), torch.from_numpy(y))
    gram, target = channel_gram(found.centred() if centre else found.raw(), torch.from_numpy(weight))
    contributions = []
    for channel in range(channels):
        z = x[:, channel * size : (channel + 1) * size] @ weight[:, channel].reshape(outputs, size).T
        contributions.append(z - z.mean(0) if centre else z)
    wanted = y - y.mean(0) if centre else y
    for i, zi in enumerate(contributions):
        assert float(target[i]) == pytest.approx(float((zi * wanted).sum()), rel=1e-8, abs=1e-8)
        for j, zj in enumerate(contributions):
            assert float(gram[i, j]) == pytest.approx(float((zi * zj).sum()), rel=1e-8, abs=1e-8)


def test_constant_inputs_have_a_positive_scale() -> None:
    """Rounding about the mean must not make the unit of the ridge negative: no ridge would help then."""
    for seed in range(20):
        x = torch.rand(1, 8, generator=torch.Generator().manual_seed(seed)).expand(997, -1)
        found = Moments(8, 1)
        found.add(x, torch.ones(997, 1))
        assert found.centred().scale > 0.0


def test_rows_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows come, only what fits the buffer is held."""
    monkeypatch.setattr(moments_module, "_BUFFER", 8 * 10 * 4 * 5)  # five chunks of 10 x 4
    found = Moments(4, 2)
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    for _ in range(60):
        x, y = torch.randn(10, 4), torch.randn(10, 2)
        alive += [weakref.ref(x), weakref.ref(y)]
        found.add(x, y)
        del x, y
        most = max(most, sum(reference() is not None for reference in alive))
    assert most <= 2 * 5
    assert found.count == 600


def test_wide_responses_are_let_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 1x1 convolution of few inputs and many outputs: the responses count in the buffer as the inputs do."""
    monkeypatch.setattr(moments_module, "_BUFFER", 8 * 10 * 101 * 5)  # five chunks of 10 x (1 + 100)
    found = Moments(1, 100)
    alive: list[weakref.ref[Tensor]] = []
    for _ in range(60):
        y = torch.randn(10, 100)
        alive.append(weakref.ref(y))
        found.add(torch.randn(10, 1), y)
        del y
    assert sum(reference() is not None for reference in alive) <= 5


def test_rows_given_are_never_changed() -> None:
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    copies = x.clone(), y.clone()
    found = Moments(3, 2)
    found.add(x, y)
    found.centred()
    found.add(x, y)
    assert float(found.x_sum.sum()) == pytest.approx(2.0 * float(x.sum()))
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["inputs", "responses"])
def test_broken_activations_are_a_user_error(value: float, where: str) -> None:
    x, y = torch.ones(4, 3), torch.ones(4, 2)
    (x if where == "inputs" else y)[2, 1] = value
    found = Moments(3, 2)
    found.add(x, y)
    with pytest.raises(UserError, match="not finite"):
        found.centred()


def test_no_rows_are_a_user_error() -> None:
    with pytest.raises(UserError, match="no rows"):
        Moments(3, 2).centred()


def test_retargeted_moments_equal_moments_of_the_new_targets() -> None:
    """New targets for the same rows, in chunks: as if they had been there from the start; the old ones stay."""
    rng = np.random.default_rng(0)
    x, y, new = rng.standard_normal((20, 4)), rng.standard_normal((20, 3)), rng.standard_normal((20, 3)) + 1.0
    found = Moments(4, 3)
    found.add(torch.from_numpy(x), torch.from_numpy(y))
    other = found.retargeted()
    for first in (0, 7, 14):
        rows = slice(first, min(first + 7, 20))
        other.add_targets(torch.from_numpy(x[rows]), torch.from_numpy(new[rows]))
    np.testing.assert_allclose(other.xx, x.T @ x, rtol=1e-10)
    np.testing.assert_allclose(other.xy, x.T @ new, rtol=1e-10)
    np.testing.assert_allclose(other.yy, (new**2).sum(0), rtol=1e-10)
    np.testing.assert_allclose(other.x_sum, x.sum(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(other.y_sum, new.sum(0), rtol=1e-10)
    np.testing.assert_allclose(other.centred().yy, ((new - new.mean(0)) ** 2).sum(0), rtol=1e-10)
    assert other.count == 20
    np.testing.assert_allclose(found.xy, x.T @ y, rtol=1e-10)
    np.testing.assert_allclose(found.yy, (y**2).sum(0), rtol=1e-10)


@pytest.mark.parametrize("flushed", [False, True])
def test_moments_of_some_inputs_less_some_rows(flushed: bool) -> None:
    """Against the rows themselves: what is fitted where a fold is left out; the ridge's unit is that of all inputs."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(60, 7, generator=generator) + 1.0, torch.randn(60, 2, generator=generator) - 2.0
    columns = torch.tensor([1, 2, 6])
    whole, part = Moments(7, 2), Moments(7, 2)
    for first in range(0, 60, 20):
        whole.add(x[first : first + 20], y[first : first + 20])
    part.add(x[20:40], y[20:40])
    if flushed:
        assert torch.isfinite(whole.xx).all() and torch.isfinite(part.xx).all()
    left = whole.of(columns).remove(part.of(columns))
    rows = [*range(20), *range(40, 60)]
    a, b = x[rows].double(), y[rows].double()
    assert left.count == 40
    torch.testing.assert_close(left.xx, a[:, columns].T @ a[:, columns])
    torch.testing.assert_close(left.xy, a[:, columns].T @ b)
    torch.testing.assert_close(left.yy, b.square().sum(0))
    found = left.centred_in_place()
    centred = a - a.mean(0)
    torch.testing.assert_close(found.xx, centred[:, columns].T @ centred[:, columns])
    torch.testing.assert_close(found.xy, centred[:, columns].T @ (b - b.mean(0)))
    assert found.unit == pytest.approx(float(centred.square().sum(0).mean()))
    # nothing has changed in what it came from
    torch.testing.assert_close(whole.xx, x.double().T @ x.double())
    torch.testing.assert_close(whole.x_sum, x.double().sum(0))
    assert (whole.count, part.count) == (60, 20)
