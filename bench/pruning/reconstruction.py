"""Least-squares reconstruction of a layer on its kept channels, and its exact error, from the moments alone.

The ridge pulls towards the layer's old weights, rescaled channel by channel (:func:`rescaled`), not towards zero: with
few rows the data say little, and the old weights are the best guess there is.  Without end the ridge gives them
unchanged, so the choice among ridges contains the choice to leave the weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.pruning.moments import Centred, Moments, channel_gram

# candidates for the ridge, in units of the mean diagonal of XX; the one with the least error on held-out rows is used.
# The last one is the rescaled old weights themselves, so the grid ends where the error does.
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, math.inf)
_BLOCK_ROWS = 1024
# keeps the scales of channels that are copies of each other at one where the rows cannot tell them apart
_SCALE_RIDGE = 1e-9


@dataclass(frozen=True)
class Reconstruction:
    """New weights (n x c' x kh x kw) and bias (n), float64, with the ridge used and the errors they leave.

    ``error`` and ``held_out_error`` are fractions of the responses' variance, on the rows that were fitted and on rows
    that were not: of held-out images, or, by cross-validation, of each fold's images with the weights fitted on the
    other folds (None without either).  A ridge of infinity means the old weights, rescaled.
    """

    weight: Tensor
    bias: Tensor
    ridge: float
    error: float
    held_out_error: float | None


@dataclass(frozen=True)
class Sampled:
    """A layer's moments: ``fitted``, and ``judges`` to choose the ridge by.

    ``judges`` are held-out images that ``fitted`` does not contain (at most one entry), or, where ``crossed``, the
    folds that ``fitted`` is made of.
    """

    fitted: Moments
    judges: tuple[Moments, ...] = ()
    crossed: bool = False

    def usable(self) -> Iterator[Moments]:
        """The judges that hold any rows, one at a time."""
        return (judge.transient() for judge in self.judges if judge.count)

    def pairs(self, columns: Tensor) -> Iterator[tuple[Moments, Moments]]:
        """What to fit, of the inputs ``columns`` alone, and what to judge it by, of all inputs.

        The held-out rows; or each fold in turn by the others.
        """
        for judge in self.judges:
            if judge.count:
                train = self.fitted.of(columns)
                yield train.remove(judge.of(columns)) if self.crossed else train, judge.transient()

    def shares(self, weight: Tensor, bias: Tensor, kept: Sequence[int] | Tensor) -> tuple[float, float | None]:
        """Errors of given weights on the fitted rows and on all judges' rows, as fractions of their variance."""
        solution = weight.flatten(1).T
        found = error(self.fitted, kept, solution, bias) / _at_least_tiny(variance(self.fitted))
        pairs = [(error(judge, kept, solution, bias), variance(judge)) for judge in self.usable()]
        if not pairs:
            return found, None
        return found, sum(left for left, _ in pairs) / _at_least_tiny(sum(whole for _, whole in pairs))


def columns_of(kept: Sequence[int] | Tensor, size: int, device: torch.device | str = "cpu") -> Tensor:
    """The columns of X (of ``size`` = kh*kw per channel) that belong to the kept channels."""
    channels = torch.as_tensor(kept, dtype=torch.long, device=device)
    return (channels[:, None] * size + torch.arange(size, device=device)).reshape(-1)


def solve(
    moments: Centred, kept: Sequence[int] | Tensor, size: int, ridge: float, prior: Tensor | None = None
) -> Tensor:
    """V (c'*k x n): the ridge regression of Y on the kept channels' inputs, |Y - X V|^2 + ridge |V - prior|^2.

    ``ridge`` is in units of ``moments.scale``; ``prior`` c'*k x n (None: zero).  An infinite ridge gives the prior.
    """
    columns = columns_of(kept, size, moments.xx.device)
    every = len(columns) == len(moments.xx)  # kept channels are in ascending order: nothing is to be picked
    block, target = (moments.xx, moments.xy) if every else (moments.xx[columns[:, None], columns], moments.xy[columns])
    if prior is None:
        prior = torch.zeros_like(target)
    if math.isinf(ridge):
        return prior
    return prior + _solve(block, target - block @ prior, ridge * moments.scale, 1e-12 * moments.scale)


def _solve(matrix: Tensor, target: Tensor, amount: float, least: float) -> Tensor:
    """(matrix + amount I)^-1 target; the amount grows where rounding has left the matrix indefinite."""
    while True:
        factor = matrix.mT.contiguous().mT  # a copy in LAPACK's order of memory, in which it is factorised in place
        factor.diagonal().add_(amount)
        info = torch.empty((), dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        if int(info) == 0:
            return torch.cholesky_solve(target, factor)
        amount = max(10.0 * amount, least)


def rescaled(moments: Centred, weight: Tensor) -> Tensor:
    """``weight`` (n x c' x kh x kw) with one factor a_i for each channel: ThiNet's small least squares.

    The factors minimise |Y - sum_i a_i X_i W_i'|^2 over the rows in ``moments`` (about the means, of the kept
    channels): c' unknowns for all outputs together, so few rows are enough.  Channels that say nothing keep the factor
    1.
    """
    gram, target = channel_gram(moments, weight)
    unit = float(gram.diagonal().mean())
    if not unit > 0.0:
        return weight
    ones = torch.ones(len(gram), 1, dtype=gram.dtype, device=gram.device)
    factors = ones + _solve(gram, target[:, None] - gram @ ones, _SCALE_RIDGE * unit, _SCALE_RIDGE * unit)
    return weight * factors[None, :, :, None]


def error(moments: Moments, kept: Sequence[int] | Tensor, solution: Tensor, bias: Tensor) -> float:
    """|Y - X V - 1 b'|^2 over all rows, from the moments: no pass over the data.

    ``solution`` is c'*k x n, ``bias`` n.  In units of YY (a sum of squares).
    """
    columns = columns_of(kept, len(solution) // len(torch.as_tensor(kept)), solution.device)
    if (rows := moments.rows()) is not None:  # few rows, not multiplied: X'X would be much larger than they are
        return float((rows[1] - rows[0][:, columns] @ solution - bias).square().sum())
    xy, x_sum = moments.xy[columns], moments.x_sum[columns]
    quadratic = solution.new_zeros(())
    for first in range(0, len(columns), _BLOCK_ROWS):  # some rows of XX at a time
        part = slice(first, first + _BLOCK_ROWS)
        quadratic += (solution[part] * (moments.xx[columns[part][:, None], columns] @ solution)).sum()
    fitted = quadratic - 2.0 * (solution * xy).sum() + moments.yy.sum()
    shift = 2.0 * (bias * (x_sum @ solution - moments.y_sum)).sum() + moments.count * bias.square().sum()
    return max(float(fitted + shift), 0.0)


def judged(rebuilt: Reconstruction, sampled: Sampled, kept: Sequence[int] | Tensor) -> Reconstruction:
    """Weights that no row was used for, with their errors against the responses in ``sampled``."""
    found, held_out = sampled.shares(rebuilt.weight, rebuilt.bias, kept)
    return replace(rebuilt, error=found, held_out_error=held_out)


def response_statistics(moments: Moments, kept: Sequence[int] | Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (n each) over the fitted rows of ``weight`` (n x c' x kh x kw) applied to the kept channels."""
    solution = weight.flatten(1).T
    columns = columns_of(kept, len(solution) // len(torch.as_tensor(kept)), moments.xx.device)
    centred = moments.centred(columns)
    squares = (solution * (centred.xx @ solution)).sum(0)
    return centred.x_mean @ solution, (squares / moments.count).clamp_min(0.0)


def variance(moments: Moments) -> float:
    """The responses' sum of squares about their means."""
    if (rows := moments.rows()) is not None:
        return float((rows[1] - rows[1].mean(0)).square().sum())
    return max(float((moments.yy - moments.y_sum.square() / max(moments.count, 1)).sum()), 0.0)


def _at_least_tiny(value: float) -> float:
    return max(value, torch.finfo(torch.float64).tiny)


class _Regression:
    """The solutions of one set of rows for any ridge; ``old`` are the kept channels' weights (None: towards zero).

    ``moments`` are of the kept channels' inputs, and are used up.
    """

    def __init__(self, moments: Moments, size: int, old: Tensor | None) -> None:
        self.centred = moments.centred_in_place()
        self.every, self.size = range(len(self.centred.xx) // size), size
        self.prior = None if old is None else rescaled(self.centred, old).flatten(1).T

    def at(self, ridge: float) -> tuple[Tensor, Tensor]:
        """V (c'*k x n) and the bias (n) = mean Y - V' mean X."""
        solution = solve(self.centred, self.every, self.size, ridge, self.prior)
        return solution, self.centred.y_mean - self.centred.x_mean @ solution


def reconstruct(
    sampled: Sampled,
    kept: Sequence[int] | Tensor,
    kernel: tuple[int, int],
    weight: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
    reported: Sampled | None = None,
) -> Reconstruction:
    """Regresses Y on the kept channels with an intercept (CP, equation 2 (ii)); bias = mean Y - V' mean X.

    Y must include the layer's old bias.  ``weight`` (n x c x kh x kw) are the old weights, towards which the ridge
    pulls (None: towards zero, plain ridge regression).  Of ``ridges`` the one with the least error on the judges' rows
    is taken; where nothing can judge (a single image), the last one, which is the most cautious.  ``reported`` holds
    the responses that the errors are told of, where the targets in ``sampled`` are others; same rows.
    """
    size = kernel[0] * kernel[1]
    old = None if weight is None else weight[:, torch.as_tensor(kept, dtype=torch.long, device=weight.device)]
    columns = columns_of(kept, size, sampled.fitted.y_sum.device)
    told = sampled if reported is None else reported
    totals = dict.fromkeys(ridges, 0.0)
    shares = dict.fromkeys(ridges, 0.0)
    spread = 0.0
    judges = 0
    nothing = (None for judge in sampled.judges if judge.count)
    others: Iterator[Moments | None] = nothing if reported is None else told.usable()
    for (train, judge), other in zip(sampled.pairs(columns), others, strict=True):
        regression = _Regression(train, size, old)
        for ridge in ridges:
            solution, bias = regression.at(ridge)
            totals[ridge] += error(judge, kept, solution, bias)
            shares[ridge] += error(other, kept, solution, bias) if other is not None else 0.0
        spread += variance(judge if other is None else other)
        judges += 1
    ridge = min(ridges, key=totals.__getitem__) if judges else ridges[-1]
    solution, bias = _Regression(sampled.fitted.of(columns), size, old).at(ridge)
    left = error(told.fitted, kept, solution, bias) / _at_least_tiny(variance(told.fitted))
    held_out = (shares if reported is not None else totals)[ridge] / _at_least_tiny(spread) if judges else None
    return Reconstruction(solution.T.reshape(solution.shape[1], -1, *kernel), bias, ridge, left, held_out)
