"""Rows: one line of a published table each, and the steps that measure it in a given setting."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.data import LABELS
from bench.metrics import Metric
from bench.models.recipe import Recipe
from bench.steps import DataValue, Source, Step

# why a row does not run whose network is only counted
SIZE_ALONE = "its size alone is judged, without data"


@dataclass(frozen=True)
class Setting:
    """Where a row runs: the scale, its data (value, classes, image counts), device, seeds, the user's weights.

    ``weights`` is the digest of the user's weights file, None without one; with ``paper_schedule`` networks are trained
    as long as the paper says where that was shortened (:mod:`bench.protocols`).  ``further`` are the settings of the
    further data that the row asks for, by its names for them: steps that are given their data read those.
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
    paper_schedule: bool = False
    further: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Chain:
    """What a row measures: the networks at the end of its chain (one per seed) and the steps whose records it shows.

    ``evaluations`` (one per seed) and the dense network's ``references`` are what another row can be contrasted with.
    """

    networks: list[Step]
    records: list[Step]
    evaluations: list[Step] = field(default_factory=list)
    references: list[Step] = field(default_factory=list)


def nothing_further(scale: str) -> Mapping[str, Source]:
    """No further data, as most rows need none."""
    return {}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    ``scale`` is the row's own; elsewhere it is an analogue.  ``shape`` is the pruned network at the paper's own shape
    (or what makes it, where that takes time) and ``claimed`` the speed-up that the paper states, for the size columns.
    ``dense(scale, classes, given)`` is the dense network's recipe at a scale (``given``: the user brings weights).
    ``chain`` makes the steps.  ``published`` maps our metrics to (row, metric) of the same table in the registry, or to
    (row, metric, model) where it prints several networks, and ``sizes`` our metrics of :mod:`bench.sizes` to all
    printed sizes that the network ``sized`` (``shape`` where there is none) decides without data, each as (row, metric)
    or (row, metric, model) of that table.  ``missing`` says why a row cannot run yet.  ``seeds`` are run unless the
    user names one, at a scale where they would take too long those of ``seeds_at``; ``scales`` (None: all) are those it
    is meant for, besides folders; ``ours`` marks a row beyond the paper.  ``data`` is what its images come with,
    ``labels`` or ``boxes``.  ``release`` says that the network of its first seed, measured at the row's own scale, is
    kept beside the accepted results.  ``further(scale)`` names further data that its chain needs there
    (:class:`Setting`): another data set, or the same under another protocol, which is left out where the data know no
    protocols.
    """

    table: str
    name: str
    scale: str
    shape: Recipe | Callable[[], Recipe] | None = None
    claimed: float | None = None
    dense: Callable[[str, int, bool], Recipe] | None = None
    chain: Callable[[Setting, Recipe], Chain] | None = None
    published: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Mapping[str, Sequence[tuple[str, ...]]] = field(default_factory=dict)
    sized: Recipe | None = None
    missing: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    seeds_at: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scales: tuple[str, ...] | None = None
    ours: bool = False
    data: str = LABELS
    release: bool = False
    further: Callable[[str], Mapping[str, Source]] = nothing_further

    def seeds_on(self, scale: str) -> tuple[int, ...]:
        """The seeds that are run at a scale unless the user names one."""
        return self.seeds_at.get(scale, self.seeds)

    def own_shape(self) -> Recipe | None:
        """The pruned network at the paper's own shape."""
        return self.shape() if callable(self.shape) else self.shape


# the reference of what no paper prints
STUDY = "a study of ours"


@dataclass(frozen=True)
class Paper:
    """One publication: its key (the script's name), title, reference, tables in order, rows, numbered deviations.

    ``metrics`` are declared here where nothing else measures them; ``answers`` are the tables and names of the rows
    that answer its question where no printed value does, which its page gives first.
    """

    key: str
    title: str
    reference: str
    rows: list[Row]
    deviations: list[str]
    metrics: Sequence[Metric] = ()
    answers: Sequence[tuple[str, str]] = ()

    @property
    def ids(self) -> dict[str, Row]:
        """The rows by their stable ids, ``paper/table/row``, in the script's order.

        Raises ValueError where two rows have one id.
        """
        found: dict[str, Row] = {}
        for row in self.rows:
            name = row_id(self.key, row)
            if name in found:
                raise ValueError(f"two rows of {self.key} have the id {name}: name one of them differently")
            found[name] = row
        return found


def links(metrics: Mapping[str, str], row: str, *model: str) -> dict[str, tuple[str, ...]]:
    """``published`` of a row: our metrics, by ``metrics`` to the registry's, of its row (of a model)."""
    return {ours: (row, printed, *model) for ours, printed in metrics.items()}


def counts(row: str, *model: str) -> dict[str, list[tuple[str, ...]]]:
    """``sizes`` of a row whose table prints FLOPs and parameters."""
    return {"macs": [(row, "FLOPs", *model)], "params": [(row, "params", *model)]}


def reductions(row: str, *model: str) -> dict[str, list[tuple[str, ...]]]:
    """``sizes`` of a row whose table prints how many times fewer they are than the dense network's."""
    return {"speedup": [(row, "FLOPs_reduction", *model)], "params_reduction": [(row, "params_reduction", *model)]}


def slug(name: str) -> str:
    """Lower case, letters, digits and dots; ``plus`` for a plus sign at the end, hyphens for the rest."""
    return re.sub(r"[^a-z0-9.]+", "-", re.sub(r"[+]$", " plus", name.lower())).strip("-.")


def row_id(paper: str, row: Row) -> str:
    """``channel_pruning/table-8/ours-fine-tuned``: what stands in brackets behind a table's name is no part of it."""
    return f"{paper}/{slug(re.sub(r' *[(].*[)]$', '', row.table))}/{slug(row.name)}"


def match(text: str, names: Mapping[str, str]) -> list[str]:
    """The ids that ``text`` names, out of ``names`` (id to the row's name).

    The rows whose id, end of the id or name it is; where there is none, those whose id, end or name begins with it.
    """
    wanted = text.lower().strip("/")
    known = {key: (key, key.partition("/")[2], key.rpartition("/")[2], name.lower()) for key, name in names.items()}
    exact = [key for key, forms in known.items() if wanted in forms]
    if not wanted:  # with which every name begins
        return []
    return exact or [key for key, forms in known.items() if any(form.startswith(wanted) for form in forms)]
