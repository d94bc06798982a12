"""The published values: one CSV file per paper, read with a strict schema.

The ``value`` column holds the text as printed: a decimal number, with a leading ``~`` where the paper says "about" and
a suffix k, M, G or B where it prints one (``140M`` with an empty unit is 140,000,000). An empty value is one that is
known to exist and could not be read. A value and its tolerance are in the row's own unit, suffix resolved.

Direction: ``higher`` or ``lower`` is better, or ``exact``: counts, sizes, their reductions, computed checks, settings.

Tolerance, by one rule for all papers:
* accuracies, errors, mAP and their differences: 0.5 points on ImageNet, COCO and VOC, 1.0 points on all other data
  (0.005 and 0.01 where the row is printed as a fraction);
* exact: empty (0) for integer counts and settings, else half of the last printed digit;
* memory that is not a computed check: one unit of the last printed digit, because these papers truncate;
* times: empty, and never compared in absolute terms; measured speed-ups: empty, so only the last printed digit and our
  interval count.

A key is (table, row, model, dataset, metric, convention): one printed row can be counted by several conventions.
"""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from bench.errors import UserError

COLUMNS = (
    *("paper", "table", "row", "model", "dataset", "metric", "value", "unit", "convention", "protocol"),
    *("direction", "tolerance", "source", "verified"),
)
DIRECTIONS = ("higher", "lower", "exact")
_PRINTED = re.compile(r"~?(?P<number>[+-]?\d+(?:\.\d+)?(?:e[+-]?\d{1,2})?)(?P<suffix>[kMGB]?)")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


def _decimal(printed: str) -> tuple[Decimal, Decimal] | None:
    """The number and one unit of its last printed digit, suffix resolved; None where the text is no number."""
    match = _PRINTED.fullmatch(printed)
    if match is None:
        return None
    number = Decimal(match["number"])
    scale = _SCALE[match["suffix"]]
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)  # only NaN and infinity have another exponent, and the pattern admits neither
    return number * scale, Decimal(1).scaleb(exponent) * scale


@dataclass(frozen=True)
class Published:
    """One published value; the fields are the columns of the file, and ``printed`` is the value's text as printed."""

    paper: str
    table: str
    row: str
    model: str
    dataset: str
    metric: str
    value: float | None
    unit: str
    convention: str
    protocol: str
    direction: str
    tolerance: float | None
    source: str
    verified: bool
    printed: str

    @property
    def last_digit(self) -> float:
        """Half of the last printed digit, in the row's unit; 0 where nothing was printed."""
        parsed = _decimal(self.printed)
        return 0.0 if parsed is None else float(parsed[1] / 2)


def _entry(cells: dict[str, str], paper: str) -> Published:
    """One checked row; raises ValueError with what is wrong and what to do."""
    value = _decimal(cells["value"])
    if value is None and cells["value"]:
        raise ValueError(f"value {cells['value']!r} is not a number; write it as printed (93.84, ~1, 14.73M) or none")
    tolerance = _decimal(cells["tolerance"])
    if tolerance is None and cells["tolerance"]:
        raise ValueError(f"tolerance {cells['tolerance']!r} is not a number; write one in the row's unit or nothing")
    if tolerance is not None and tolerance[0] < 0:
        raise ValueError(f"tolerance {cells['tolerance']!r} is negative; write a positive number or nothing")
    if cells["direction"] not in DIRECTIONS:
        raise ValueError(f"direction {cells['direction']!r} is unknown; use one of {', '.join(DIRECTIONS)}")
    if cells["verified"] not in ("yes", "no"):
        raise ValueError(f"verified is {cells['verified']!r}; write yes or no")
    if cells["paper"] != paper:
        raise ValueError(f"paper {cells['paper']!r} is not the file's; write {paper}")
    return Published(
        value=None if value is None else float(value[0]),
        tolerance=None if tolerance is None else float(tolerance[0]),
        verified=cells["verified"] == "yes",
        printed=cells["value"],
        **{name: cells[name] for name in COLUMNS if name not in ("value", "tolerance", "verified")},
    )


def load(paper: str, folder: Path) -> list[Published]:
    """All published values of ``folder/<paper>.csv``, in its order; UserError where the file breaks the schema."""
    path = folder / f"{paper}.csv"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such registry file; check the paper's name or write the file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    header = tuple(next(reader, []))
    if header != COLUMNS:
        missing = [name for name in COLUMNS if name not in header]
        wrong = f"column {', '.join(missing)} is missing" if missing else "unknown, repeated or reordered columns"
        raise UserError(f"{path}, line 1: {wrong}; make the header {','.join(COLUMNS)}")
    entries: list[Published] = []
    lines: dict[tuple[str, ...], int] = {}
    for cells in reader:
        try:
            if len(cells) != len(COLUMNS):
                raise ValueError(f"{len(cells)} cells instead of {len(COLUMNS)}; quote cells that contain a comma")
            entry = _entry(dict(zip(COLUMNS, cells, strict=True)), paper)
            key = (entry.table, entry.row, entry.model, entry.dataset, entry.metric, entry.convention)
            first = lines.setdefault(key, reader.line_num)
            if first != reader.line_num:
                raise ValueError(f"same table, row, model, dataset, metric and convention as line {first}; remove one")
        except ValueError as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from None
        entries.append(entry)
    return entries


def find(entries: Iterable[Published], table: str, row: str, metric: str, **where: str) -> Published | None:
    """The one entry of that table, row and metric, or None.

    ``where`` narrows by further columns (``model="VGGNet"``): some tables print several networks under one row name.
    Raises LookupError where more than one entry matches: the caller has to say which one it means.
    """
    wanted = {"table": table, "row": row, "metric": metric, **where}
    found = [entry for entry in entries if all(getattr(entry, name) == text for name, text in wanted.items())]
    if len(found) > 1:
        raise LookupError(f"{len(found)} published values match {wanted}; narrow by model, dataset or convention")
    return found[0] if found else None
