"""Test images that are alike: several of one scan, one unit.  Intervals are then about new units, not new images.

With as many images in every unit the mean over the images is the mean over the units of their means, and those are
independent: what :mod:`bench.measure.statistics` says of images it says of units.  A share of right answers keeps its
exact interval at the effective sample size (Korn and Graubard 1998): n divided by the design effect, the variance among
units' means over that of as many independent images.
"""

from __future__ import annotations

import torch
from scipy import special
from torch import Tensor


def number(units: Tensor | None) -> int | None:
    """How many units there are; None where each image is its own."""
    return None if units is None else len(torch.unique(units))


def firsts(images: int, units: Tensor | None) -> list[int]:
    """The places of independent images: the first of each unit, in order; all ``images`` without units."""
    if units is None:
        return list(range(images))
    seen: dict[int, int] = {}
    for place, unit in enumerate(units.tolist()):
        seen.setdefault(unit, place)
    return list(seen.values())


def by_unit(values: Tensor, units: Tensor | None) -> Tensor:
    """Means over each unit's images (seeds x units) of ``values`` (seeds x images); None: ``values`` as they are.

    ``units`` (images) are whole numbers, one a unit.  Raises ValueError where units have different numbers of images.
    """
    if units is None:
        return values
    if len(units) != values.shape[1]:
        raise ValueError(f"{len(units)} units' numbers for {values.shape[1]} images")
    _, places, sizes = torch.unique(units, return_inverse=True, return_counts=True)
    if int(sizes.min()) != int(sizes.max()):
        raise ValueError("units of different sizes: give every unit as many test images")
    sums = torch.zeros(len(values), len(sizes), dtype=torch.float64)
    means: Tensor = sums.index_add_(1, places, values.double()) / sizes[0]
    return means


def effective_size(means: Tensor, images: int) -> float:
    """How many independent images say as much about a share as these ``images``, of which ``means`` (units) are right.

    Korn and Graubard's (1998): n / design effect, corrected for the degrees of freedom, never more than n.  All or
    none right says nothing about how alike a unit's images are: then a unit counts once.
    """
    count, share = len(means), float(means.double().mean())
    if count < 2 or share in (0.0, 1.0):
        return float(count)
    among = float(means.double().var()) / count
    independent = share * (1.0 - share) / images
    quantiles = float(special.stdtrit(images - 1, 0.975)) / float(special.stdtrit(count - 1, 0.975))
    # no spread among units at all: at least as good as independent images
    return images * min(1.0, independent / among * quantiles**2) if among > 0.0 else float(images)


def effective_proportion(means: Tensor, images: int) -> tuple[float, float]:
    """The 95 % interval of one network's share of right answers at the effective sample size (both ends in [0, 1]).

    Clopper and Pearson's, which beta quantiles give for numbers that are not whole too.
    """
    size, share = effective_size(means, images), float(means.double().mean())
    right = share * size
    low = 0.0 if share == 0.0 else float(special.betaincinv(right, size - right + 1.0, 0.025))
    high = 1.0 if share == 1.0 else float(special.betaincinv(right + 1.0, size - right, 0.975))
    return low, high
