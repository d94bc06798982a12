"""Least-squares reconstruction of a layer on its kept channels, and its exact error, from the moments alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.pruning.moments import Centred, Moments

# candidates for the ridge, in units of the mean diagonal of XX; the one with the least error on held-out rows is used
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Reconstruction:
    """New weights (n x c' x kh x kw) and bias (n), float64, with the ridge used and the errors they leave.

    ``error`` and ``held_out_error`` are fractions of the responses' variance, on the rows that were fitted and on rows
    of other training images (None without such rows).
    """

    weight: Tensor
    bias: Tensor
    ridge: float
    error: float
    held_out_error: float | None


def columns_of(kept: Sequence[int] | Tensor, size: int, device: torch.device | str = "cpu") -> Tensor:
    """The columns of X (of ``size`` = kh*kw per channel) that belong to the kept channels."""
    channels = torch.as_tensor(kept, dtype=torch.long, device=device)
    return (channels[:, None] * size + torch.arange(size, device=device)).reshape(-1)


def solve(moments: Centred, kept: Sequence[int] | Tensor, size: int, ridge: float) -> Tensor:
    """V (c'*k x n): the ridge regression of Y on the kept channels' inputs; ``ridge`` in units of ``moments.scale``."""
    columns = columns_of(kept, size, moments.xx.device)
    block, target = moments.xx[columns[:, None], columns], moments.xy[columns]
    amount = ridge * moments.scale
    while True:
        factor, info = torch.linalg.cholesky_ex(
            block + amount * torch.eye(len(block), dtype=block.dtype, device=block.device)
        )
        if int(info) == 0:
            return torch.cholesky_solve(target, factor)
        amount = max(10.0 * amount, 1e-12 * moments.scale)


def error(moments: Moments, kept: Sequence[int] | Tensor, solution: Tensor, bias: Tensor) -> float:
    """|Y - X V - 1 b'|^2 over all rows, from the moments: no pass over the data.

    ``solution`` is c'*k x n, ``bias`` n.  In units of YY (a sum of squares).
    """
    columns = columns_of(kept, len(solution) // len(torch.as_tensor(kept)), moments.xx.device)
    xx, xy, x_sum = moments.xx[columns[:, None], columns], moments.xy[columns], moments.x_sum[columns]
    fitted = (solution * (xx @ solution)).sum() - 2.0 * (solution * xy).sum() + moments.yy.sum()
    shift = 2.0 * (bias * (x_sum @ solution - moments.y_sum)).sum() + moments.count * bias.square().sum()
    return max(float(fitted + shift), 0.0)


def judged(
    rebuilt: Reconstruction, moments: Moments, kept: Sequence[int] | Tensor, held_out: Moments | None
) -> Reconstruction:
    """The same weights with their errors against the responses in ``moments`` and ``held_out``."""
    solution = rebuilt.weight.flatten(1).T
    shares = [
        error(rows, kept, solution, rebuilt.bias) / max(variance(rows), torch.finfo(torch.float64).tiny)
        for rows in (moments, held_out)
        if rows is not None and rows.count > 0
    ]
    return replace(rebuilt, error=shares[0], held_out_error=shares[1] if len(shares) > 1 else None)


def response_statistics(moments: Moments, kept: Sequence[int] | Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (n each) over the fitted rows of ``weight`` (n x c' x kh x kw) applied to the kept channels."""
    solution = weight.flatten(1).T
    columns = columns_of(kept, len(solution) // len(torch.as_tensor(kept)), moments.xx.device)
    centred = moments.centred(columns)
    squares = (solution * (centred.xx @ solution)).sum(0)
    return centred.x_mean @ solution, (squares / moments.count).clamp_min(0.0)


def variance(moments: Moments) -> float:
    """The responses' sum of squares about their means."""
    return max(float((moments.yy - moments.y_sum.square() / max(moments.count, 1)).sum()), 0.0)


def reconstruct(
    moments: Moments,
    kept: Sequence[int] | Tensor,
    kernel: tuple[int, int],
    held_out: Moments | None = None,
    ridges: Sequence[float] = RIDGES,
) -> Reconstruction:
    """Regresses Y on the kept channels with an intercept (CP, equation 2 (ii)); bias = mean Y - V' mean X.

    Y must include the layer's old bias.  Of ``ridges`` the one with the least error on ``held_out`` is taken, without
    such rows the first.
    """
    size = kernel[0] * kernel[1]
    columns = columns_of(kept, size, moments.xx.device)
    centred = moments.centred(columns)
    every = range(len(torch.as_tensor(kept)))
    best: tuple[float, float, Tensor, Tensor] | None = None
    usable = held_out is not None and held_out.count > 0
    for ridge in ridges if usable else ridges[:1]:
        solution = solve(centred, every, size, ridge)
        bias = centred.y_mean - centred.x_mean @ solution
        judged = error(held_out if held_out is not None and usable else moments, kept, solution, bias)
        if best is None or judged < best[0]:
            best = (judged, ridge, solution, bias)
    assert best is not None
    judged, ridge, solution, bias = best
    scale = max(variance(moments), torch.finfo(torch.float64).tiny)
    held = None
    if held_out is not None and usable:
        held = judged / max(variance(held_out), torch.finfo(torch.float64).tiny)
    outputs = solution.shape[1]
    weight = solution.T.reshape(outputs, -1, *kernel)
    return Reconstruction(weight, bias, ridge, error(moments, kept, solution, bias) / scale, held)
