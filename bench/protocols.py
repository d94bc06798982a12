"""Protocols: how long a paper's networks are trained at each scale, and on how many images channels are chosen.

A script holds one table of them, keyed by scale and network; what fits first counts, so that special cases stand above
the general one.  Where the paper's schedule is too long for two cores, a shorter one stands under the scale, and the
paper's under :func:`as_published`, for who asks for it (``--paper-schedule``)::

    PROTOCOLS = {
        ("imagenet", ANY): Protocol(None, Schedule(10, 1e-5, 128), images=5000),
        (as_published("cifar10"), ANY): Protocol(Schedule(164, 0.1, 128), Schedule(16, 1e-3, 128), images=5000),
        (ANY, "vgg16_bn"): Protocol(cosine(16, 0.1, 128), cosine(2, 0.01, 128), images=5170),
        (ANY, ANY): ...
    }
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TypeVar

from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.rows import Setting
from bench.train.schedule import Schedule

# in a key: any scale (a folder of the user's has no other), any network
ANY = "*"
# what the suite trains small networks with, unless a table says otherwise: cosine(epochs, rate, batch)
cosine = partial(Schedule, weight_decay=5e-4, shape="cosine")


@dataclass(frozen=True)
class Protocol:
    """How a network is trained and pruned at a scale; a paper that needs more says it in a subclass.

    ``dense`` trains the dense network where the user gives no weights (None: published ones are loaded), ``tuning`` the
    pruned one, and channels are chosen on ``images`` training images at most.
    """

    dense: Schedule | None
    tuning: Schedule
    images: int


def as_published(scale: str) -> str:
    """The name in a table's key under which a scale has the paper's own schedule."""
    return f"{scale}, as published"


T = TypeVar("T")
P = TypeVar("P", bound=Protocol)


def lookup(table: Mapping[tuple[str, str], T], scale: str, recipe: Recipe) -> T:
    """The first entry whose key (scale, network's builder) fits, :data:`ANY` fitting everything.

    Raises :class:`UserError` where none does.
    """
    for (where, network), entry in table.items():
        if where in (scale, ANY) and network in (recipe.builder, ANY):
            return entry
    raise UserError(f"no protocol for {recipe.builder} at {scale}: add one to the script's table")


def protocol(table: Mapping[tuple[str, str], P], setting: Setting, recipe: Recipe) -> P:
    """The protocol of a setting: all trainings in mixed precision where it is asked for, no more images than there are.

    Raises :class:`UserError` where the table has none.
    """
    published = as_published(setting.scale)
    asked = setting.paper_schedule and any(where == published for where, _ in table)
    found = lookup(table, published if asked else setting.scale, recipe)
    values = {spec.name: getattr(found, spec.name) for spec in fields(found)}
    trainings = {name: replace(one, amp=setting.amp) for name, one in values.items() if isinstance(one, Schedule)}
    return replace(found, **trainings, images=min(found.images, setting.train_images))
