"""Backward elimination of channels by the exact increase of the reconstruction error (ours, beyond the papers).

With C = (XX + ridge)^-1 over the channels still alive and V = C XY, removing channel i and solving the least squares
again raises the (ridge-penalised) error by exactly tr(V_i' C_ii^-1 V_i), and the block elimination
C <- C - C_:i C_ii^-1 C_i:, V <- V - C_:i C_ii^-1 V_i gives the solution without it: no channel is ever refitted.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def eliminate(moments: Centred | Sequence[Centred], channels: int, keep: int, ridge: float) -> Elimination:
    """Removes channels one by one until ``keep`` (at least 1) are left.

    ``moments`` are about the means, p = channels*k; ``ridge`` is in units of ``moments.scale``.  Where several layers
    read the same channels, their moments are a sequence and the increases are summed, each divided by its layer's YY.
    """
    readers = [moments] if isinstance(moments, Centred) else list(moments)
    weights = [1.0]
    if len(readers) > 1:
        weights = [reader.share for reader in readers]
    alive = torch.arange(channels, device=readers[0].xx.device)
    order: list[int] = []
    increases: list[float] = []
    while len(alive) > keep:
        # one round: invert, then eliminate until the refresh is due
        rounds = max(1, min(len(alive) - keep, int(_REFRESH * len(alive))))
        removed, rises = _round(readers, weights, channels, alive, rounds, ridge)
        order += [int(alive[i]) for i in removed]
        increases += rises
        mask = torch.ones(len(alive), dtype=torch.bool)
        mask[removed] = False
        alive = alive[mask.to(alive.device)]
    return Elimination(order, increases, sorted(int(i) for i in alive))


def _round(
    readers: Sequence[Centred], weights: Sequence[float], channels: int, alive: Tensor, steps: int, ridge: float
) -> tuple[list[int], list[float]]:
    """Eliminates ``steps`` channels of ``alive``; returns their places in ``alive`` and the increases."""
    states = [_State(reader, len(reader.xx) // channels, alive, ridge) for reader in readers]
    gone = torch.zeros(len(alive), dtype=torch.bool, device=alive.device)
    removed: list[int] = []
    increases: list[float] = []
    for _ in range(steps):
        scores = torch.stack([weight * state.scores() for weight, state in zip(weights, states, strict=True)]).sum(0)
        scores[gone] = torch.inf
        channel = int(scores.argmin())
        for state in states:
            state.remove(channel)
        gone[channel] = True
        removed.append(channel)
        increases.append(max(float(scores[channel]), 0.0))
    return removed, increases


class _State:
    """One reader's inverse C, solution V = C XY and diagonal blocks of C, between two inversions."""

    def __init__(self, moments: Centred, size: int, alive: Tensor, ridge: float) -> None:
        columns = (alive[:, None] * size + torch.arange(size, device=alive.device)).reshape(-1)
        self.size, self.channels = size, len(alive)
        self.inverse = invert(moments.xx[columns][:, columns], ridge * moments.scale)
        self.solution = self.inverse @ moments.xy[columns]
        view = self.inverse.reshape(self.channels, size, self.channels, size)
        index = torch.arange(self.channels, device=alive.device)
        self.diagonal = view[index, :, index, :].clone()  # channels x k x k
        self.pending: list[Tensor] = []  # factors U with C = inverse - sum U U'

    def scores(self) -> Tensor:
        """tr(V_i' C_ii^-1 V_i) for each channel."""
        blocks = self.solution.reshape(self.channels, self.size, -1)
        solved: Tensor = torch.linalg.solve(self.diagonal, blocks)
        return (blocks * solved).sum((1, 2))

    def remove(self, channel: int) -> None:
        """Block elimination of one channel."""
        here = slice(channel * self.size, (channel + 1) * self.size)
        column = self.inverse[:, here].clone()  # C_:i, p x k
        if self.pending:
            factors = torch.cat(self.pending, dim=1)
            column -= factors @ factors[here].T
        factor = torch.linalg.cholesky(self.diagonal[channel])
        update = torch.linalg.solve_triangular(factor, column.T, upper=False).T  # p x k, C_:i L'^-1
        self.solution -= update @ torch.linalg.solve_triangular(factor, self.solution[here], upper=False)
        per_channel = update.reshape(self.channels, self.size, self.size)
        self.diagonal -= per_channel @ per_channel.transpose(1, 2)
        self.diagonal[channel] = torch.eye(self.size, dtype=self.diagonal.dtype, device=self.diagonal.device)
        self.solution[here] = 0.0  # what is gone must not come back through later products
        self.pending.append(update)
        if sum(p.shape[1] for p in self.pending) >= _PENDING_COLUMNS:
            factors = torch.cat(self.pending, dim=1)
            self.inverse.addmm_(factors, factors.T, alpha=-1.0)
            self.pending = []


def invert(matrix: Tensor, ridge: float) -> Tensor:
    """(matrix + ridge I)^-1 of a symmetric positive semidefinite matrix; the ridge grows tenfold until it succeeds."""
    ridged = matrix.clone()
    while True:
        ridged.diagonal().copy_(matrix.diagonal() + ridge)
        factor, info = torch.linalg.cholesky_ex(ridged)
        if int(info) == 0:
            return torch.cholesky_inverse(factor)
        ridge = max(10.0 * ridge, 1e-12 * float(matrix.diagonal().abs().max()), torch.finfo(matrix.dtype).tiny)
