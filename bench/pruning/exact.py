"""Backward elimination of channels by the exact increase of the reconstruction error (ours, beyond the papers).

With C = (XX + ridge)^-1 over the channels still alive and V = C XY, removing channel i and solving the least squares
again raises the (ridge-penalised) error by exactly tr(V_i' C_ii^-1 V_i), and the block elimination
C <- C - C_:i C_ii^-1 C_i:, V <- V - C_:i C_ii^-1 V_i gives the solution without it: no channel is ever refitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.pruning.moments import Centred

# The elimination is a rank-k update of C for each channel.  Done at once it is bound by memory; gathered for this many
# columns it is one matrix product, and only what the next step reads (blocks on the diagonal, V) is kept up to date.
_PENDING_COLUMNS = 288
# C is inverted afresh when this share of the channels alive at the last inversion has gone: rounding cannot pile up.
_REFRESH = 0.25


@dataclass(frozen=True)
class Elimination:
    """The order in which channels were removed (first removed first) and the error's increase at each removal.

    ``increases`` has the unit of YY (a sum of squares over the sampled rows), one entry per entry of ``order``.
    """

    order: list[int]
    increases: list[float]
    kept: list[int]


def eliminate(moments: Centred, channels: int, keep: int, ridge: float) -> Elimination:
    """Removes channels one by one until ``keep`` (at least 1) are left.

    ``moments`` are about the means, p = channels*k; ``ridge`` is in units of ``moments.scale``.
    """
    size = len(moments.xx) // channels
    alive = torch.arange(channels, device=moments.xx.device)
    order: list[int] = []
    increases: list[float] = []
    while len(alive) > keep:
        # one round: invert, then eliminate until the refresh is due
        rounds = max(1, min(len(alive) - keep, int(_REFRESH * len(alive))))
        removed, rises = _round(moments, alive, size, rounds, ridge)
        order += [int(alive[i]) for i in removed]
        increases += rises
        mask = torch.ones(len(alive), dtype=torch.bool)
        mask[removed] = False
        alive = alive[mask.to(alive.device)]
    return Elimination(order, increases, sorted(int(i) for i in alive))


def _round(moments: Centred, alive: Tensor, size: int, steps: int, ridge: float) -> tuple[list[int], list[float]]:
    """Eliminates ``steps`` channels of ``alive``; returns their places in ``alive`` and the increases."""
    columns = (alive[:, None] * size + torch.arange(size, device=alive.device)).reshape(-1)
    inverse = invert(moments.xx[columns][:, columns], ridge * moments.scale)
    solution = inverse @ moments.xy[columns]
    channels = len(alive)
    view = inverse.reshape(channels, size, channels, size)
    index = torch.arange(channels, device=alive.device)
    diagonal = view[index, :, index, :].clone()  # channels x k x k
    pending: list[Tensor] = []  # factors U with C = inverse - sum U U'
    gone = torch.zeros(channels, dtype=torch.bool, device=alive.device)
    removed: list[int] = []
    increases: list[float] = []
    for _ in range(steps):
        blocks = solution.reshape(channels, size, -1)
        solved = torch.linalg.solve(diagonal, blocks)
        scores = (blocks * solved).sum((1, 2))
        scores[gone] = torch.inf
        channel = int(scores.argmin())
        here = slice(channel * size, (channel + 1) * size)
        column = inverse[:, here].clone()  # C_:i, p x k
        if pending:
            factors = torch.cat(pending, dim=1)
            column -= factors @ factors[here].T
        factor = torch.linalg.cholesky(diagonal[channel])
        update = torch.linalg.solve_triangular(factor, column.T, upper=False).T  # p x k, C_:i L'^-1
        solution -= update @ torch.linalg.solve_triangular(factor, blocks[channel], upper=False)
        per_channel = update.reshape(channels, size, size)
        diagonal -= per_channel @ per_channel.transpose(1, 2)
        diagonal[channel] = torch.eye(size, dtype=diagonal.dtype, device=diagonal.device)
        solution[here] = 0.0
        gone[channel] = True
        # what is gone must not come back through later products
        pending.append(update)
        if sum(p.shape[1] for p in pending) >= _PENDING_COLUMNS:
            factors = torch.cat(pending, dim=1)
            inverse.addmm_(factors, factors.T, alpha=-1.0)
            pending = []
        removed.append(channel)
        increases.append(max(float(scores[channel]), 0.0))
    return removed, increases


def invert(matrix: Tensor, ridge: float) -> Tensor:
    """(matrix + ridge I)^-1 of a symmetric positive semidefinite matrix; the ridge grows tenfold until it succeeds."""
    ridged = matrix.clone()
    while True:
        ridged.diagonal().copy_(matrix.diagonal() + ridge)
        factor, info = torch.linalg.cholesky_ex(ridged)
        if int(info) == 0:
            return torch.cholesky_inverse(factor)
        ridge = max(10.0 * ridge, 1e-12 * float(matrix.diagonal().abs().max()), torch.finfo(matrix.dtype).tiny)
