"""Channel selection behind one interface: which input channels of a layer to keep, from its moments and weights.

``select(name, layer, keep)`` returns the kept channels, sorted.  Three papers compare these criteria, so they live
here: CP's LASSO, exact elimination (ours), ThiNet's greedy choices, and the baselines first k, max response, weight
sum, random and APoZ.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError
from bench.pruning.exact import eliminate
from bench.pruning.moments import Moments, channel_gram
from bench.pruning.thinet import ChannelMoments, backward, channel_moments, forward


@dataclass(frozen=True)
class Layer:
    """What a criterion may look at.

    ``moments`` of the reader's inputs and target responses; ``weight`` n x c x kh x kw of the reader (batch norm
    folded); ``bias`` n of the reader, which the responses include; ``filters`` c x … of the producer, or None where the
    channels come from a stream; ``ridge`` for the exact elimination, in units of the mean diagonal of XX; ``seed`` for
    the random choice.  ``others`` are further readers of the same channels: then each reader's Gram is divided by its
    YY and the criteria see the sum.  ``drawn`` are the moments of ThiNet's rows where one output filter was drawn for
    each position: what looks at G about zero then sees those.  ``zeros`` (c) are the shares of zeros behind the
    channels' ReLU, for APoZ alone.
    """

    moments: Moments
    weight: Tensor
    bias: Tensor
    filters: Tensor | None = None
    ridge: float = 1e-4
    seed: int = 0
    options: dict[str, str] = field(default_factory=dict)
    others: tuple[Layer, ...] = ()
    drawn: ChannelMoments | None = None
    zeros: Tensor | None = None

    def gram(self, centred: bool) -> tuple[Tensor, Tensor]:
        """G (c x c) and b (c) of all readers, about the means or about zero.

        About zero, b is against the responses less the reader's bias, which no channel gives.
        """
        found = [reader._gram(centred) for reader in (self, *self.others)]
        if not self.others:
            return found[0][0], found[0][1]
        gram = torch.stack([share * g for g, _, share in found]).sum(0)
        target = torch.stack([share * b for _, b, share in found]).sum(0)
        return gram, target

    def _gram(self, centred: bool) -> tuple[Tensor, Tensor, float]:
        """G, b and 1 / YY of this reader alone (0 for constant responses); means are taken off G and b, not off XX."""
        moments = self.moments
        if not centred:
            found = self.drawn if self.drawn is not None else channel_moments(moments, self.weight, self.bias)
            total = found.energy if self.drawn is not None else float(moments.yy.sum())
            return found.gram, found.target, 1.0 / total if total > 0.0 else 0.0
        gram, target = channel_gram(moments.raw(), self.weight)
        outputs, channels = self.weight.shape[:2]
        w = self.weight.to(gram).reshape(outputs, channels, -1)
        x_mean = (moments.x_sum / moments.count).reshape(channels, -1)
        means = torch.einsum("ck,nck->cn", x_mean, w)  # of each channel's contribution to each output
        gram = gram - moments.count * means @ means.T
        target = target - means @ moments.y_sum
        total = float((moments.yy - moments.y_sum.square() / moments.count).clamp_min(0.0).sum())
        return gram, target, 1.0 / total if total > 1e-12 * float(moments.yy.sum()) else 0.0

    @property
    def channels(self) -> int:
        """c, the number of input channels."""
        return self.weight.shape[1]


def lasso(layer: Layer, keep: int) -> list[int]:
    """CP, equation 2 (i): the first point of the LASSO path with ``keep`` non-zero coefficients.

    LARS walks the whole path on the centred channel Gram, so the requested count is met exactly.  With the option
    ``intercept=scalar`` the authors' form is used: one intercept for all outputs (G - N n m m').  Where the path ends
    early (dead or collinear channels), the channels with the largest energy G_ii fill up.
    """
    # a second and more to import, which commands that select nothing have no use for
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    if layer.options.get("intercept", "per-output") == "scalar" and not layer.others:
        raw = layer.moments.raw()
        gram, target = channel_gram(raw, layer.weight)
        total = layer.moments.count * layer.weight.shape[0]
        w = layer.weight.to(torch.float64).reshape(layer.weight.shape[0], layer.channels, -1)
        sums = (layer.moments.x_sum.reshape(layer.channels, -1) * w.sum(0)).sum(1)
        gram = gram - torch.outer(sums, sums) / total
        target = target - sums * layer.moments.y_sum.sum() / total
    else:
        gram, target = layer.gram(centred=True)
    energy = gram.diagonal().clamp_min(0.0)
    scale = float(energy.mean()) or 1.0
    with warnings.catch_warnings():
        # LARS warns where channels are collinear and stops; the fill below deals with it
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, _, path = lars_path_gram(
            (target / scale).cpu().numpy(),
            (gram / scale).cpu().numpy(),
            n_samples=layer.moments.count,
            method="lasso",
            max_iter=8 * layer.channels,
        )
    counts = (path != 0).sum(axis=0)
    reached = np.flatnonzero(counts >= keep)
    chosen = np.flatnonzero(path[:, reached[0] if len(reached) else -1])
    return _fill(chosen.tolist(), energy, keep)


def exact(layer: Layer, keep: int) -> list[int]:
    """Backward elimination by the exact increase of the reconstruction error (ours, see ``bench.pruning.exact``)."""
    moments = [reader.moments.centred() for reader in (layer, *layer.others)]
    return eliminate(moments, layer.channels, keep, layer.ridge).kept


def thinet(layer: Layer, keep: int) -> list[int]:
    """ThiNet, algorithm 1: greedily add to the removed set T the channel that keeps |sum_T Z_j|^2 least.

    On raw moments (no intercept).  Where no filters were drawn (``layer.drawn``) the Gram is summed over all output
    filters instead of one random filter per position: the same in expectation, with less noise.  O(c^2) in all.
    """
    gram, _ = layer.gram(centred=False)
    return backward(gram, keep)


def thinet_tpami(layer: Layer, keep: int) -> list[int]:
    """ThiNet's journal version: greedily add to S the channel that explains most of what S leaves of the responses.

    On the same moments as :func:`thinet`; all factors are fitted anew after each channel.  O(c k^2) in all.
    """
    return forward(*layer.gram(centred=False), keep)


def first_k(layer: Layer, keep: int) -> list[int]:
    """The first ``keep`` channels (CP, figure 4: the naive baseline)."""
    return list(range(keep))


def max_response(layer: Layer, keep: int) -> list[int]:
    """The channels whose contributions to the responses have the largest energy, G_ii about the means."""
    gram, _ = layer.gram(centred=True)
    return _fill([], gram.diagonal(), keep)


def weight_sum(layer: Layer, keep: int) -> list[int]:
    """The channels whose producing filters have the largest sum of absolute weights (Li et al. 2017).

    Behind a stream, where no single filter produces a channel, the reader's own weights on the channel are summed.
    """
    if layer.filters is not None:
        return _fill([], layer.filters.to(torch.float64).abs().flatten(1).sum(1), keep)
    return _fill([], layer.weight.to(torch.float64).abs().sum((0, 2, 3)), keep)


def random(layer: Layer, keep: int) -> list[int]:
    """A uniformly random choice, from ``layer.seed``."""
    generator = torch.Generator().manual_seed(layer.seed)
    return sorted(torch.randperm(layer.channels, generator=generator)[:keep].tolist())


def apoz(layer: Layer, keep: int) -> list[int]:
    """The channels that are zero least often behind their ReLU (Hu et al. 2016, average percentage of zeros).

    Raises :class:`UserError` where no zeros were counted.
    """
    if layer.zeros is None:
        raise UserError("apoz needs zeros that are counted while the network runs: it works within a pruning alone")
    return _fill([], 1.0 - layer.zeros, keep)


SELECTIONS: dict[str, Callable[[Layer, int], list[int]]] = {
    "lasso": lasso,
    "exact": exact,
    "thinet": thinet,
    "first k": first_k,
    "max response": max_response,
    "weight sum": weight_sum,
    "random": random,
    "thinet tpami": thinet_tpami,
    "apoz": apoz,
}


def select(name: str, layer: Layer, keep: int) -> list[int]:
    """The ``keep`` channels that the criterion ``name`` keeps, sorted.

    Raises :class:`UserError` for an unknown criterion or an impossible count.
    """
    if name not in SELECTIONS:
        raise UserError(f"unknown selection {name!r}: choose one of {', '.join(SELECTIONS)}")
    if not 1 <= keep <= layer.channels:
        raise UserError(f"cannot keep {keep} of {layer.channels} channels: ask for 1 to {layer.channels}")
    if keep == layer.channels:
        return list(range(keep))
    return SELECTIONS[name](layer, keep)


def _fill(chosen: list[int], energy: Tensor, keep: int) -> list[int]:
    """``chosen`` cut or filled to ``keep`` channels by decreasing ``energy``; ties go to the lower index."""
    others = [int(i) for i in torch.argsort(energy, descending=True, stable=True) if int(i) not in set(chosen)]
    ranked = sorted(chosen, key=lambda i: (-float(energy[i]), i)) + others
    return sorted(ranked[:keep])
