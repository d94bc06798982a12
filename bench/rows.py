"""Rows: one line of a published table each, and the steps that measure it in a given setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.data import LABELS
from bench.models.recipe import Recipe
from bench.steps import DataValue, Step

# why a row does not run whose network is only counted
SIZE_ALONE = "its size alone is judged, without data"


@dataclass(frozen=True)
class Setting:
    """Where a row runs: the scale, its data (value, classes, image counts), device, seeds, the user's weights.

    ``weights`` is the digest of the user's weights file, None without one.
    """

    scale: str
    data: DataValue
    classes: int
    train_images: int
    test_images: int
    device: str
    seeds: tuple[int, ...]
    weights: str | None
    amp: bool = False


@dataclass(frozen=True)
class Chain:
    """What a row measures: the networks at the end of its chain (one per seed) and the steps whose records it shows.

    ``evaluations`` (one per seed) and the dense network's ``references`` are what another row can be contrasted with.
    """

    networks: list[Step]
    records: list[Step]
    evaluations: list[Step] = field(default_factory=list)
    references: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    ``scale`` is the row's own; elsewhere it is an analogue.  ``shape`` is the pruned network at the paper's own shape
    (or what makes it, where that takes time) and ``claimed`` the speed-up that the paper states, for the size columns.  ``dense(scale, classes, given)`` is the
    dense network's recipe at a scale (``given``: the user brings weights).  ``chain`` makes the steps.  ``published``
    maps our metrics to (row, metric) of the same table in the registry, and ``sizes`` our metrics of :mod:`bench.sizes` to
    all printed sizes that the network ``sized`` (``shape`` where there is none) decides without data, each as (row, metric)
    or (row, metric, model) of that table.  ``missing`` says why a row cannot run yet.
    ``seeds`` are run unless the user names one; ``scales`` (None: all) are those it is meant for, besides folders;
    ``ours`` marks a row beyond the paper.  ``data`` is what its images come with, ``labels`` or ``boxes``.
    """

    table: str
    name: str
    scale: str
    shape: Recipe | Callable[[], Recipe] | None = None
    claimed: float | None = None
    dense: Callable[[str, int, bool], Recipe] | None = None
    chain: Callable[[Setting, Recipe], Chain] | None = None
    published: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    sizes: Mapping[str, Sequence[tuple[str, ...]]] = field(default_factory=dict)
    sized: Recipe | None = None
    missing: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    scales: tuple[str, ...] | None = None
    ours: bool = False
    data: str = LABELS

    def own_shape(self) -> Recipe | None:
        """The pruned network at the paper's own shape."""
        return self.shape() if callable(self.shape) else self.shape


@dataclass(frozen=True)
class Paper:
    """One publication: its key (the script's name), title, reference, tables in order, rows, and numbered deviations."""

    key: str
    title: str
    reference: str
    rows: list[Row]
    deviations: list[str]
