"""Cells of a table: the records of one metric, of several seeds, as one value with an interval and a spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy.special import stdtrit


@dataclass(frozen=True)
class Cell:
    """One metric of one row.

    ``low`` and ``high`` bound the 95 % interval (None: exact).  ``seeds`` is the number of different networks behind
    the value.  With one the interval is about that network on new images; with several it is about new seeds too,
    ``value`` is their mean and ``sd`` the standard deviation of one of them on the same images (None where it was not
    kept).  ``of`` is how many of the ``n`` images the published set has, where some are missing here;
    ``units`` how many different things the images show, where several show the same one.
    """

    metric: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    seeds: int = 1
    n: int | None = None
    convention: str | None = None
    of: int | None = None
    units: int | None = None


@dataclass(frozen=True)
class Point:
    """One point of a curve: ``cell`` at ``x`` (a speed-up) on the curve ``series``."""

    series: str
    x: float
    cell: Cell


def aggregate(records: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Cell], list[Point]]:
    """Cells by metric and points of curves, from a row file's records, several seeds as one.

    Raises ValueError where a metric has two values of one seed.
    """
    plain: dict[str, list[Mapping[str, Any]]] = {}
    curves: dict[tuple[str, str | None, float], list[Mapping[str, Any]]] = {}
    for record in records:
        if record.get("x") is None:
            plain.setdefault(record["metric"], []).append(record)
        else:
            curves.setdefault((record["metric"], record.get("series"), float(record["x"])), []).append(record)
    points = []
    for (name, series, x), values in curves.items():
        points.append(Point(series or "", x, _cell(name, values)))
    return {name: _cell(name, values) for name, values in plain.items()}, points


def with_errors(cells: Mapping[str, Cell], wanted: Iterable[str]) -> dict[str, Cell]:
    """``cells`` and, of the ``wanted`` error rates (``top1_err``, ``top5_err``), what the accuracies leave to 100 %."""
    found = dict(cells)
    for name in wanted:
        accuracy = cells.get(f"{name.removesuffix('_err')}_acc") if name.endswith("_err") else None
        if name not in found and accuracy is not None:
            low, high = (None if end is None else 100.0 - end for end in (accuracy.high, accuracy.low))
            found[name] = replace(accuracy, metric=name, value=100.0 - accuracy.value, low=low, high=high)
    return found


def _cell(name: str, records: Sequence[Mapping[str, Any]]) -> Cell:
    """One cell from the records of a metric: one for each network, and what was found over all of them."""
    single = [record for record in records if record.get("seed") is not None]
    if len({record["seed"] for record in single}) < len(single):
        raise ValueError(f"{name} has two values of one seed")
    over = [record for record in records if record.get("seed") is None]
    first = records[0]
    unit, n, convention = first["unit"], first.get("n"), first.get("convention")
    of, units = first.get("of"), first.get("units")
    values = [record["value"] for record in single or over]
    if len(over) == 1:  # measured over all networks, in one comparison
        (record,) = over
        # older records do not say over how many networks they are: 0
        networks = int(record.get("networks") or len(single))
        sd = record.get("spread", statistics.stdev(values) if len(values) > 1 else None)
        return Cell(
            name,
            record["value"],
            unit,
            record.get("low"),
            record.get("high"),
            sd,
            networks,
            record.get("n"),
            convention,
            record.get("of"),
            record.get("units"),
        )
    # one value as it is; so are sizes, which have no seed but one value for each network, where all are the same
    if len(values) == 1 or (not single and len(set(values)) == 1):
        return Cell(name, values[0], unit, first.get("low"), first.get("high"), None, 1, n, convention, of, units)
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    if any(record.get("low") is None for record in single or over):
        return Cell(name, mean, unit, None, None, sd, len(values), n, convention, of, units)
    seeds = float(stdtrit(len(values) - 1, 0.975)) * sd / math.sqrt(len(values))
    # what one network's images leave open is open for the mean of networks on the same images: an upper bound
    images = max(_half(record) for record in single or over)
    half = math.hypot(seeds, images)
    least, most = (0.0, 100.0) if unit == "%" and min(values) >= 0.0 else (-math.inf, math.inf)
    low, high = max(mean - half, least), min(mean + half, most)
    return Cell(name, mean, unit, low, high, sd, len(values), n, convention, of, units)


def _half(record: Mapping[str, Any]) -> float:
    return 0.0 if record.get("low") is None else (record["high"] - record["low"]) / 2.0
