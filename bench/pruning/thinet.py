"""ThiNet (Luo, Wu and Lin, ICCV 2017; TPAMI 2019): which channels go, and one factor for each of those that stay.

Of a reader with weights W and bias b the rows are x_hat (c: what each channel adds to one output at one position,
X_i W_fi') and y_hat = y - b: without pruning y_hat is the sum of x_hat.  The paper draws one random output filter f for
each sampled position (:class:`Draws`); summed over all n filters (:func:`channel_moments`) the moments are n times that
in expectation, with less noise.  Both choices and the factors need nothing but G = R'R and R'y_hat of these rows R,
about zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.pruning.moments import Moments, channel_gram
from bench.pruning.reconstruction import Reconstruction, Sampled, error, variance

OUTPUTS = ("all", "one")
# filters are drawn apart from what else is drawn from a layer's seed
_APART = 1 << 30
# a channel whose energy outside the span of the chosen ones is a smaller share than this lies within it
_IN_SPAN = 1e-12


@dataclass(frozen=True)
class ChannelMoments:
    """``gram`` c x c = R'R, ``target`` c = R'y_hat and ``energy`` |y_hat|^2 of some rows, float64, about zero."""

    gram: Tensor
    target: Tensor
    energy: float

    def __add__(self, other: ChannelMoments) -> ChannelMoments:
        return ChannelMoments(self.gram + other.gram, self.target + other.target, self.energy + other.energy)

    def __sub__(self, other: ChannelMoments) -> ChannelMoments:
        return ChannelMoments(self.gram - other.gram, self.target - other.target, self.energy - other.energy)


def of_rows(contributions: Tensor, responses: Tensor) -> ChannelMoments:
    """The moments of rows that are there: x_hat (rows x c) and y_hat (rows)."""
    x, y = contributions.to(torch.float64), responses.to(torch.float64)
    return ChannelMoments(x.T @ x, x.T @ y, float(y.square().sum()))


def channel_moments(moments: Moments, weight: Tensor, bias: Tensor) -> ChannelMoments:
    """The moments of the rows of all output filters at every position, from a reader's second moments.

    ``weight`` is n x c x kh x kw, ``bias`` n; the responses in ``moments`` include it.
    """
    gram, target = channel_gram(moments.raw(), weight)
    b = bias.to(gram)
    sums = moments.x_sum.reshape(weight.shape[1], -1)
    target = target - (sums * torch.einsum("n,nck->ck", b, weight.to(gram).flatten(2))).sum(1)
    energy = moments.yy.sum() - 2.0 * b @ moments.y_sum + moments.count * b.square().sum()
    return ChannelMoments(gram, target, float(energy))


class Draws:
    """One random output filter at each sampled position, as published, in one pass: moments by group of rows.

    ``weight`` n x c x kh x kw and ``bias`` n of the reader; ``rows`` positions are to come, in ``groups`` groups that
    may overlap (those that are fitted, those of each judge).  ``filters`` (rows) are drawn uniformly from ``seed``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: int, groups: int, seed: int) -> None:
        self.weight, self.bias = weight.to(torch.float64), bias.to(torch.float64)
        generator = torch.Generator().manual_seed(seed + _APART)
        self.filters = torch.randint(len(weight), (rows,), generator=generator)
        nothing = self.weight.new_zeros(0, weight.shape[1])
        self.found = [of_rows(nothing, nothing[:, 0]) for _ in range(groups)]
        self._row = 0

    def add(self, inputs: Tensor, responses: Tensor, groups: Sequence[Tensor]) -> None:
        """The next rows: the reader's inputs (rows x p), its responses (rows x n) and flags for each group."""
        filters = self.filters[self._row : self._row + len(inputs)].to(inputs.device)
        self._row += len(inputs)
        weight = self.weight[filters].flatten(2)  # rows x c x k
        x = (inputs.to(torch.float64).reshape(weight.shape) * weight).sum(2)
        y = responses[torch.arange(len(filters), device=filters.device), filters].to(torch.float64) - self.bias[filters]
        for place, mask in enumerate(groups):
            if bool(mask.any()):
                self.found[place] = self.found[place] + of_rows(x[mask], y[mask])


def backward(gram: Tensor, keep: int) -> list[int]:
    """Algorithm 1: the channels that stay, where the one that keeps |sum over T of x_hat|^2 least joins T, one by one.

    With s the sum over T, |s + x_j|^2 = |s|^2 + 2 s'x_j + G_jj: the costs take 2 G_j when j has gone, O(c^2) in all.
    """
    cost = gram.diagonal().clone()
    alive = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    for _ in range(len(gram) - keep):
        removed = int(torch.where(alive, cost, torch.inf).argmin())
        alive[removed] = False
        cost = cost + 2.0 * gram[removed]
    return [int(i) for i in alive.nonzero().flatten()]


def forward(gram: Tensor, target: Tensor, keep: int) -> list[int]:
    """The journal's choice: the channel that alone explains most of the residual joins S, and y is fitted on S anew.

    The gain of channel j is (x_j'r)^2 / x_j'x_j.  Rows of ``basis`` are R'q for an orthonormal basis q of the span of S
    (a Cholesky factor of G, made as it is needed), so the refit takes one product off R'r: O(c k^2) in all.
    """
    energy = gram.diagonal()
    along = target.clone()  # R'r
    alive = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    basis = gram.new_zeros(keep, len(gram))
    for step in range(keep):
        gain = torch.where(energy > 0.0, along.square() / energy, 0.0)
        chosen = int(torch.where(alive, gain, -1.0).argmax())
        alive[chosen] = False
        column = gram[chosen] - basis[:step, chosen] @ basis[:step]
        if float(column[chosen]) > _IN_SPAN * float(energy[chosen]):  # else it adds nothing, and the fit is as it was
            basis[step] = column / column[chosen].sqrt()
            along = along - basis[step] * (along[chosen] / column[chosen].sqrt())
    return [int(i) for i in (~alive).nonzero().flatten()]


def factors(moments: ChannelMoments, kept: Sequence[int]) -> Tensor:
    """One factor (c') for each kept channel: (G_SS)^-1 R_S'y, the least squares without intercept of y on x_hat.

    The smallest solution where channels are dead or copies of each other.
    """
    index = torch.as_tensor(kept, dtype=torch.long, device=moments.gram.device)
    inverse: Tensor = torch.linalg.pinv(moments.gram[index[:, None], index], hermitian=True)
    return inverse @ moments.target[index]


def rescale(
    sampled: Sampled, kept: Sequence[int], weight: Tensor, bias: Tensor, drawn: Sequence[ChannelMoments] = ()
) -> tuple[Tensor, Reconstruction]:
    """ThiNet's reconstruction: the factors (c') of the kept channels, and the reader that they give.

    ``weight`` n x c x kh x kw, ``bias`` n, which stays.  ``drawn`` are the moments of the paper's rows, of the fitted
    images and of each judge; without them the factors are fitted to all outputs.  The errors are those of all outputs,
    as of the other reconstructions; where the judges are folds, each is judged by the factors of the others.
    """
    old = weight[:, torch.as_tensor(kept, dtype=torch.long, device=weight.device)]

    def moments_of(place: int, rows: Moments) -> ChannelMoments:
        return drawn[place] if drawn else channel_moments(rows, weight, bias)

    def lost(rows: Moments, scales: Tensor) -> float:
        return error(rows, kept, (old * scales[:, None, None]).flatten(1).T, bias)

    whole = moments_of(0, sampled.fitted)
    found = factors(whole, kept)
    tiny = torch.finfo(torch.float64).tiny
    left = lost(sampled.fitted, found) / max(variance(sampled.fitted), tiny)
    judged = spread = 0.0
    judges = 0
    for place, judge in enumerate(sampled.judges, 1):
        if not judge.count:
            continue
        rows = judge.transient()
        others = factors(whole - moments_of(place, rows), kept) if sampled.crossed else found
        judged += lost(rows, others)
        spread += variance(rows)
        judges += 1
    held_out = judged / max(spread, tiny) if judges else None
    return found, Reconstruction(old * found[:, None, None], bias, torch.inf, left, held_out)
