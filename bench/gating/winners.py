"""k-winners-take-all with exactly k winners (Gao et al. 2019, equation 7); densities are in thousandths."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import UserError

WHOLE = 1000


def winner_count(density: int, channels: int) -> int:
    """k = ceil(d C) for d = ``density`` / 1000, in integers: ceil(0.5000000000000001 * 10) would be 6.

    Raises :class:`UserError` unless the density is between 1 and 1000.
    """
    if not 1 <= density <= WHOLE:
        raise UserError(f"a density of {density} thousandths is not between 1 and {WHOLE}")
    return -(-density * channels // WHOLE)


def winners(scores: Tensor, k: int) -> Tensor:
    """Indices (B x k) of the k largest of each row of ``scores`` (B x C), largest first; of equals the first ones."""
    if k == scores.shape[1]:
        return torch.arange(k, device=scores.device).expand(len(scores), k)
    return scores.argsort(dim=1, descending=True, stable=True)[:, :k]


def winner_mask(scores: Tensor, k: int) -> Tensor:
    """The same as a mask (B x C, bool) with exactly k ones in each row."""
    if k == scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, winners(scores, k), True)


def strict_mask(scores: Tensor, k: int) -> Tensor:
    """The official code's rule: scores above the (k + 1)-th largest win, so that ties at the threshold all lose."""
    if k == scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.topk(k + 1, dim=1).values[:, -1:]
    return scores > threshold
