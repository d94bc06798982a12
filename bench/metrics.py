"""What a measured value is called, how it is printed and shown, and what it means.

A metric is declared once, beside the code that measures it: a module's ``METRICS``.  Tables, figures and pages derive
from that.  A paper's own stand in its script and are handed over by :attr:`bench.rows.Paper.metrics`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from bench.errors import UserError

# the modules that declare metrics, in the order of a table's columns
DECLARING = (
    "bench.sizes",
    "bench.measure.dynamic",
    "bench.gating.steps",
    "bench.measure.accuracy",
    "bench.measure.protocols",
    "bench.measure.detection",
    "bench.measure.coco",
    "bench.pruning.steps",
    "bench.measure.memory",
    "bench.gating.timing",
    "bench.gating.measuring",
    "bench.gating.activity",
    "bench.latency.report",
)
CONTROL = "_control"


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    ``name`` is that of its records; one that ends with ``*`` stands for all that begin so.  ``heading`` is its short
    name, ``unit`` that of its values as it is shown, ``decimals`` those of a printed value (None: four digits; counts
    are printed with k, M or G).  ``better`` is ``higher``, ``lower`` or empty where neither is; ``signed`` values print
    their plus.  ``of`` says what the records' n counts.  A readable table leaves the metric out, to the CSV file, where
    it is not ``shown`` or where one of ``beside`` stands in it too, which says the same or more; a ``minor`` one is the
    first to go where columns are too many.  Dot plots show it in
    the ``panel`` 1 (changes in points; memory that is moved) or 2 (divergences; memory that is held), not at all for
    0: in each the metric that most rows have.  ``exact`` values are counted, not measured: any change of one on
    the same machine is a change.  Values up to ``rounding`` are rounding's.
    """

    name: str
    heading: str
    unit: str
    decimals: int | None
    meaning: str
    better: str = ""
    signed: bool = False
    count: bool = False
    of: str = "images"
    shown: bool = True
    minor: bool = False
    beside: tuple[str, ...] = ()
    panel: int = 0
    exact: bool = False
    rounding: float = 0.0

    @property
    def title(self) -> str:
        """The heading of a column: the short name and the unit."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    def number(self, value: float, plus: bool = True) -> str:
        """The value in text, without its unit; ``plus`` is False for spreads, which have no sign."""
        if self.count:
            return size(value)
        if self.decimals is None:
            return f"{value:.4g}"
        sign = "+" if self.signed and plus else ""
        text = f"{value:{sign}.{self.decimals}f}"
        # -0.00 and +0.00 would claim a direction that the digits do not show
        return text.lstrip("+-") if float(text) == 0 else text


def controlled(metric: Metric, panel: int = 0, beside: tuple[str, ...] = ()) -> Metric:
    """The same comparison, but with the dense network that was tuned as long as the pruned one."""
    return replace(
        metric,
        name=f"{metric.name}{CONTROL}",
        heading=f"{metric.heading}, tuned dense",
        meaning=metric.meaning.replace("the dense network", "the dense network tuned equally long"),
        panel=panel,
        beside=(*(f"{name}{CONTROL}" for name in metric.beside if name.endswith("_change")), *beside),
    )


def size(value: float) -> str:
    """A count in three digits with k, M or G (3.39 G, 62.9 M); below 1000 as it is."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            short = value / scale
            return f"{short:.{2 if abs(short) < 9.995 else 1 if abs(short) < 99.95 else 0}f} {suffix}"
    return f"{value:.3g}"


_papers: dict[str, Metric] = {}


@functools.cache
def _ours() -> dict[str, Metric]:
    return _by_name(metric for module in DECLARING for metric in importlib.import_module(module).METRICS)


def _by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for metric in metrics:
        if metric.name in found:
            raise UserError(f"the metric {metric.name!r} is declared twice: give one of them another name")
        found[metric.name] = metric
    return found


def declare(metrics: Iterable[Metric]) -> None:
    """Adds a paper's own metrics behind ours.  Raises :class:`UserError` where a name is taken by another metric."""
    for metric in metrics:
        if {**_ours(), **_papers}.get(metric.name, metric) != metric:
            raise UserError(f"the metric {metric.name!r} is declared twice: give one of them another name")
        _papers[metric.name] = metric


def declared() -> dict[str, Metric]:
    """All metrics by name, in the order of columns."""
    return {**_ours(), **_papers}


def find(name: str) -> Metric | None:
    """The metric of that name, or its family under that name; None for one that nobody declares."""
    known = declared()
    if name in known:
        return known[name]
    for family in known.values():
        if family.name.endswith("*") and name.startswith(family.name[:-1]):
            return replace(family, name=name, heading=f"{family.heading} {name[len(family.name) - 1 :]}")
    return None
