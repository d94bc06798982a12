"""How many channels each layer keeps: uniform, the paper's ratios, or driven by the layers' own error curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.errors import UserError
from bench.pruning.graph import Site


class MacModel:
    """Conv MACs of a network as a function of the channels kept at its sites.

    ``macs`` are the dense network's MACs by convolution (a module's name), ``channels`` the input channels of each
    site's reader.  A convolution costs in proportion to the channels that it reads and to the filters that it has.
    """

    def __init__(self, macs: Mapping[str, int], sites: Sequence[Site], channels: Mapping[str, int]) -> None:
        self.macs, self.channels = dict(macs), dict(channels)
        self.reads = {reader.reader: site.reader for site in sites for reader in site.readers}
        self.writes = {site.producer: site.reader for site in sites if site.producer is not None}
        self.dense = sum(self.macs.values())

    def total(self, keep: Mapping[str, int]) -> float:
        """Conv MACs when each site in ``keep`` (by reader) keeps that many channels, the others all."""
        return sum(self._cost(conv, keep) for conv in self.macs)

    def speedup(self, keep: Mapping[str, int]) -> float:
        """Dense over pruned conv MACs."""
        return self.dense / self.total(keep)

    def saving(self, reader: str, keep: Mapping[str, int]) -> float:
        """Conv MACs saved by removing one more channel at the site of ``reader``."""
        touched = {conv for table in (self.reads, self.writes) for conv, site in table.items() if site == reader}
        fewer = {**keep, reader: keep[reader] - 1}
        return sum(self._cost(conv, keep) - self._cost(conv, fewer) for conv in touched)

    def _cost(self, conv: str, keep: Mapping[str, int]) -> float:
        cost = float(self.macs[conv])
        for table in (self.reads, self.writes):
            site = table.get(conv)
            if site is not None:
                cost *= keep.get(site, self.channels[site]) / self.channels[site]
        return cost


def scaled(model: MacModel, ratios: Mapping[str, float], speedup: float) -> dict[str, int]:
    """Widths in proportion to ``ratios`` (by reader): the largest common factor whose speed-up reaches the target.

    Equal ratios give uniform widths; CP's 1 : 1.5 gives the paper's.  Nothing keeps less than one channel or more than
    all.  Raises :class:`UserError` where the target cannot be reached.
    """

    def widths(factor: float) -> dict[str, int]:
        return {
            reader: min(model.channels[reader], max(1, round(factor * ratio * model.channels[reader])))
            for reader, ratio in ratios.items()
        }

    low, high = 0.0, 1.0 / min(ratios.values())
    if model.speedup(widths(low)) < speedup:
        raise UserError(
            f"a speed-up of {speedup:g}x is out of reach: one channel everywhere gives "
            f"{model.speedup(widths(0.0)):.2f}x"
        )
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if model.speedup(widths(middle)) >= speedup else (low, middle)
    return widths(low)


def error_driven(model: MacModel, curves: Mapping[str, Sequence[float]], speedup: float) -> dict[str, int]:
    """Widths that spend the least error per MAC saved until the target is met (ours).

    ``curves[reader][k - 1]`` is the error with k channels kept.  Greedy: at each step the site whose next channels cost
    the least error per MAC saved loses one; a site's price is that of its cheapest run of removals, so that one dear
    channel in front of cheap ones does not block it.  Raises :class:`UserError` where the target cannot be reached.
    """
    keep = {reader: len(curve) for reader, curve in curves.items()}
    goal = model.dense / speedup
    total = model.total(keep)
    prices = {reader: _slopes(curve) for reader, curve in curves.items()}
    while total > goal:
        best, lowest = None, float("inf")
        for reader, kept in keep.items():
            if kept > 1:
                price = prices[reader][kept - 1] / model.saving(reader, keep)
                if price < lowest:
                    best, lowest = reader, price
        if best is None:
            raise UserError(
                f"a speed-up of {speedup:g}x is out of reach: one channel everywhere gives {model.dense / total:.2f}x"
            )
        total -= model.saving(best, keep)
        keep[best] -= 1
    return keep


def _slopes(curve: Sequence[float]) -> list[float]:
    """``slopes[k - 1]``: the least mean error per channel of any run of removals that starts from k channels."""
    slopes = [float("inf")]
    for kept in range(2, len(curve) + 1):
        slopes.append(min((curve[kept - 1 - m] - curve[kept - 1]) / m for m in range(1, kept)))
    return slopes
