"""Row files read, values aggregated over seeds, joined with the published ones and judged."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from bench import registry, verdict
from bench.errors import UserError
from bench.registry import Published

RAN = "ran"
# how many of our units (counts; percent or points; ratios) one published unit holds
_COUNTS = {"": 1.0, "MACs": 1.0, "k": 1e3, "M": 1e6, "1e8": 1e8, "G": 1e9, "GMACs": 1e9, "B": 1e9}
_POINTS = ("%", "pp", "points")


@dataclass(frozen=True)
class Cell:
    """One metric of one row.

    ``low`` and ``high`` bound the 95 % interval (None: exact).  Over several seeds ``value`` is the mean, ``sd`` the
    sample standard deviation and the interval Student's t for the mean; ``seeds`` is their number (1 for one value).
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


@dataclass(frozen=True)
class Point:
    """One point of a curve: ``cell`` at ``x`` (a speed-up) on the curve ``series``."""

    series: str
    x: float
    cell: Cell


@dataclass(frozen=True)
class Line:
    """One row at one scale.

    ``links`` are the published values by our metric, ``verdicts`` what the measured ones among them say; ``data`` is
    the row file as read (shape, steps, command).
    """

    paper: str
    table: str
    name: str
    order: int
    scale: str
    own_scale: str
    analogue: bool
    ours: bool
    claimed: float | None
    status: str
    recipe: str
    command: str
    shape: Mapping[str, Any] | None
    steps: Mapping[str, Mapping[str, Any]]
    cells: Mapping[str, Cell]
    points: Sequence[Point]
    links: Mapping[str, Published]
    verdicts: Mapping[str, str] = field(default_factory=dict)

    @property
    def ran(self) -> bool:
        """Whether anything was measured."""
        return self.status == RAN

    @property
    def outcomes(self) -> list[str]:
        """The verdicts on this row: its status where it did not run, ``analogue``, or one for each published value."""
        if not self.ran:
            return [self.status]
        return ["analogue"] if self.analogue else list(self.verdicts.values())


def read(root: Path, folder: Path) -> dict[str, list[Line]]:
    """All rows under ``root`` by paper, in the order of the papers' scripts; ``folder`` holds the registry.

    Raises :class:`UserError` for a row file that cannot be read, or that links to no published value or to several.
    """
    found: dict[str, list[Line]] = {}
    for path in sorted(root.glob("*/rows/*/*.json")):
        paper = path.parts[-4]
        if paper not in found:
            found[paper] = []
            published = registry.load(paper, folder)
        found[paper].append(_line(path, published))
    for lines in found.values():
        lines.sort(key=lambda line: (line.order, line.name, line.scale))
    return found


def content(path: Path) -> dict[str, Any]:
    """A row file's JSON.  Raises :class:`UserError` where it is none, or lies in another paper's or scale's folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if (value["paper"], value["scale"]) != (path.parts[-4], path.parts[-2]):
            raise ValueError(f"it belongs to {value['paper']} at {value['scale']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, error) from None
    return value  # type: ignore[no-any-return]


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a readable row file ({error!r}): remove it and run the row again")


def _line(path: Path, published: Sequence[Published]) -> Line:
    value = content(path)
    try:
        table, name = value["table"], value["row"]
        cells, points = aggregate(value["records"])
        # another scale's label is an analogue, whatever the file says: data of one kind only in a column
        analogue = bool(value["analogue"]) or value["scale"] != value["own_scale"]
        links = {metric: _linked(path, published, table, where) for metric, where in value["published"].items()}
        ran = value["status"] == RAN
        return Line(
            value["paper"], table, name, int(value["order"]), value["scale"], value["own_scale"], analogue,
            bool(value["ours"]), value["claimed_speedup"], str(value["status"]), value.get("recipe", ""),
            value["command"], value["shape"], value["steps"], cells, points, links,
            {m: judge(cells[m], entry, analogue) for m, entry in links.items() if ran and m in cells},
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, error) from None


def _linked(path: Path, published: Sequence[Published], table: str, where: Sequence[str]) -> Published:
    """The published value that a row links to: [row, metric], and the model where a table prints several."""
    row, metric, *model = where
    try:
        entry = registry.find(published, table, row, metric, **({"model": model[0]} if model else {}))
    except LookupError as error:
        raise UserError(f"{path}: {error}") from None
    if entry is None:
        raise UserError(f"{path}: no published {metric} of {row!r} in {table!r}; correct the link or the registry")
    return entry


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
    for (label, given, x), values in curves.items():
        match = re.fullmatch(r"(.+?) \((.+)\)", label) if given is None else None
        name, series = (match[1], match[2]) if match else (label, given or "")
        points.append(Point(series, x, _cell(name, values)))
    return {name: _cell(name, values) for name, values in plain.items()}, points


def _cell(name: str, records: Sequence[Mapping[str, Any]]) -> Cell:
    seeds = [record["seed"] for record in records if record.get("seed") is not None]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{name} has two values of one seed")
    first = records[0]
    values = [record["value"] for record in records]
    unit, n, convention = first["unit"], first.get("n"), first.get("convention")
    # one value as it is; so are sizes, which have no seed but one value for each network, where all are the same
    if len(values) == 1 or (not seeds and len(set(values)) == 1):
        return Cell(name, values[0], unit, first.get("low"), first.get("high"), None, 1, n, convention)
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * sd / math.sqrt(len(values))
    return Cell(name, mean, unit, mean - half, mean + half, sd, len(values), n, convention)


def judge(cell: Cell, published: Published, analogue: bool) -> str:
    """The verdict on a measured value, converted into the published one's unit; says so where that is impossible."""
    factor = _factor(cell, published)
    if published.value is None and not analogue:
        return "no published value"
    if factor is None and not analogue:
        return f"not comparable ({cell.unit or 'count'} with {published.unit or 'count'})"
    value, low, high = (None if v is None else v / (factor or 1.0) for v in (cell.value, cell.low, cell.high))
    assert value is not None
    return verdict.verdict(value, low, high, published, analogue=analogue)


def _factor(cell: Cell, published: Published) -> float | None:
    if cell.metric in ("macs", "params") or cell.unit == "MACs":
        return _COUNTS.get(published.unit)
    if cell.unit == published.unit or (cell.unit in _POINTS and published.unit in _POINTS):
        return 1.0
    return None
