"""The published values: one CSV file per paper, read with a strict schema.

The ``value`` column holds the text as printed: a decimal number, with a leading ``~`` where the paper says "about" and
a suffix k, M, G or B where it prints one (``140M`` with an empty unit is 140,000,000). An empty value is one that is
known to exist and could not be read. Value, tolerance and effect are in the row's own unit, suffix resolved.

``kind`` says what decides the value (:data:`KINDS`), ``convention`` how a size is counted (:data:`CONVENTIONS`, for
sizes only); what else has to be said of a value stands in ``note``, in words. A size whose network cannot be built has
a note that begins with one of :data:`UNDECIDABLE`, an accuracy of which only a bound is printed one that begins with
:data:`BOUND`.

Direction: ``higher`` or ``lower`` is better, or ``exact``: counts, sizes, their reductions, computed checks, settings.

Tolerance, by one rule for all papers:
* differences (changes, gaps, increases, drops): 0.5 points; accuracies, errors and mAP: 0.5 points on ImageNet, COCO
  and VOC, 1.0 points on all other data (0.01 where the row is printed as a fraction);
* sizes: empty (0) for integer counts, else half of the last printed digit (:meth:`Published.agrees` decides them);
* times and trained sizes: empty.

Effect: the difference that the row is about: the absolute value of a change, gap or increase; for an accuracy or error
its distance from the baseline that the same table prints for the same network and data, or that the note names
(``baseline 92.07``); empty where there is none. No verdict may tolerate more than half of it (:attr:`Published.limit`).

``origin`` says whose value it is (:data:`ORIGINS`), ``verified`` that it was read in the publication, in its authors'
own files, or in a source that quotes it and is named (``secondary: ...``).

A key is (table, row, model, dataset, metric, convention): one printed row can be counted by several conventions.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from bench.errors import UserError

COLUMNS = (
    *("paper", "table", "row", "model", "dataset", "metric", "value", "unit", "kind", "convention", "note", "protocol"),
    *("direction", "tolerance", "effect", "source", "verified", "origin"),
)
DIRECTIONS = ("higher", "lower", "exact")
KINDS = {
    "accuracy": "accuracies, errors, mAP, their changes and gaps: decided by a trained network on images",
    "size": "MACs, parameters, memory of the weights, their reductions and speed-ups: decided by the network",
    "time": "milliseconds and realised speed-ups: decided by a machine",
    "trained": "sizes that only somebody's trained network has: realised dynamic MACs, weights active over a test set",
    "width": "channels of a layer",
    "setting": "hyper-parameters",
    "check": "our own arithmetic; never called published",
}
ORIGINS = {
    "paper": "printed in the publication, its supplement or its later version",
    "authors": "in the authors' own files: their repository, releases or logs",
    "others": "reported by others: a run of theirs, or what their paper prints",
    "ours": "our own arithmetic: checks",
}
CONVENTIONS = {
    "conv": "MACs of the convolutions",
    "conv+fc": "MACs of the convolutions and fully connected layers",
    "conv+fc+bias": "MACs of both, and an addition for each output of those that have a bias",
    "2x conv+fc": "a multiplication and an addition for each of these MACs",
    "2x conv+fc+norms": "the same, and for each mean and each scale of a batch norm, once (ThiNet's FLOPs_and_size.py)",
    "conv+fc+gates": "mean MACs at the densities of the masks, with what the gates cost (bench.measure.dynamic)",
    "conv+fc+gates, masks lost at dropout": "the same, but layers behind a dropout read all channels",
    "conv+fc+gates, masks lost at pools": "the same, but layers behind a pooling or flattening read all channels",
    "all": "all parameters: weights, biases, scales and shifts of norms",
    "weights": "weights of convolutions and fully connected layers, without biases and norms",
    "fp32 weights": "these weights at 4 bytes each, in MiB, whatever the unit is called",
    "unstated": "not stated, and no count of ours gives the printed numbers",
}
# exact conversions: what a value by the first becomes by the second; ratios stay what they are
_FACTORS = {
    ("conv+fc", "2x conv+fc"): Fraction(2),
    ("2x conv+fc", "conv+fc"): Fraction(1, 2),
    ("weights", "fp32 weights"): Fraction(4, 2**20),
    ("fp32 weights", "weights"): Fraction(2**20, 4),
}
# why no network of ours can decide a size: what its note then begins with
UNDECIDABLE = ("other method's network", "network not published", "follows from a rounded value")
# "at most 3.83 points below": the value itself is not printed, and is this one or a better one
BOUND = "lower bound"
# how many counts one unit holds
UNITS = {"": 1, "MACs": 1, "k": 10**3, "M": 10**6, "1e8": 10**8, "G": 10**9, "GMACs": 10**9, "B": 10**9}
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


class OtherConvention(ValueError):
    """Two sizes are counted in ways that cannot be converted into each other."""


def converted(value: Fraction, given: str, wanted: str, *, ratio: bool = False) -> Fraction:
    """A size counted by the convention ``given``, in counts (MiB for fp32 weights), by the convention ``wanted``.

    ``ratio`` says that it is one of two such sizes.  Raises :class:`OtherConvention` where no exact conversion exists.
    """
    if given not in CONVENTIONS or wanted not in CONVENTIONS:
        raise ValueError(f"unknown convention {given!r} or {wanted!r}: use one of {', '.join(CONVENTIONS)}")
    factor = Fraction(1) if given == wanted else _FACTORS.get((given, wanted))
    if factor is None or "unstated" in (given, wanted):
        raise OtherConvention(f"other convention: {given} cannot be converted into {wanted}")
    return value if ratio else value * factor


@dataclass(frozen=True, kw_only=True)
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
    kind: str = "accuracy"
    convention: str
    note: str = ""
    protocol: str
    direction: str
    tolerance: float | None
    effect: float | None = None
    source: str
    verified: bool
    origin: str = "paper"
    printed: str

    @property
    def counted(self) -> bool:
        """Whether a verdict on it enters a count: somebody could read it, and others than the authors do not say it."""
        return self.verified and self.origin != "others"

    @property
    def quoted(self) -> bool:
        """Whether it was read where another source quotes it."""
        return self.source.startswith("secondary")

    @property
    def last_digit(self) -> float:
        """Half of the last printed digit, in the row's unit; 0 where nothing was printed."""
        parsed = _decimal(self.printed)
        return 0.0 if parsed is None else float(parsed[1] / 2)

    @property
    def limit(self) -> float:
        """The tolerance of a verdict, in the row's unit: at most half the effect, at least half the last digit."""
        tolerance = self.tolerance or 0.0
        if self.effect:
            tolerance = min(tolerance, self.effect / 2.0)
        return max(tolerance, self.last_digit)

    @property
    def bound(self) -> bool:
        """Whether the published value may also be a better one: the paper prints a bound."""
        return self.note.startswith(BOUND)

    @property
    def undecidable(self) -> str | None:
        """Why no network of ours can decide this size; None where one could."""
        return next((reason for reason in UNDECIDABLE if self.note.startswith(reason)), None)

    def agrees(self, value: float | Fraction) -> bool:
        """Whether ``value`` (in the row's unit) rounded or cut to the printed digits is what was printed.

        A value printed with ``~`` agrees within one unit of its last digit.  Raises ValueError where none was printed.
        """
        parsed = _decimal(self.printed)
        if parsed is None:
            raise ValueError(f"no published value of {self.metric} for {self.row} in {self.table}")
        number, digit = parsed
        # a float as it would be written: 16.945 is meant, not its binary neighbour
        exact = value if isinstance(value, Fraction) else Fraction(repr(value))
        if self.printed.startswith("~"):
            return abs(exact - Fraction(number)) <= Fraction(digit)
        steps = exact / Fraction(digit)
        cut = int(steps)  # towards zero
        rounded = int(abs(steps) + Fraction(1, 2)) * (1 if steps >= 0 else -1)
        return int(number / digit) in (cut, rounded)


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
    effect = _decimal(cells["effect"])
    if cells["effect"] and (effect is None or effect[0] < 0):
        raise ValueError(f"effect {cells['effect']!r} is no positive number; write one in the row's unit or nothing")
    if cells["kind"] not in KINDS:
        raise ValueError(f"kind {cells['kind']!r} is unknown; use one of {', '.join(KINDS)}")
    if cells["convention"] and cells["convention"] not in CONVENTIONS:
        raise ValueError(
            f"convention {cells['convention']!r} is unknown; use one of {', '.join(CONVENTIONS)}, other words are a "
            "note"
        )
    if cells["kind"] in ("size", "trained") and not cells["convention"]:
        raise ValueError(f"a {cells['kind']} without a convention; use one of {', '.join(CONVENTIONS)}")
    if cells["direction"] not in DIRECTIONS:
        raise ValueError(f"direction {cells['direction']!r} is unknown; use one of {', '.join(DIRECTIONS)}")
    if cells["verified"] not in ("yes", "no"):
        raise ValueError(f"verified is {cells['verified']!r}; write yes or no")
    if cells["origin"] not in ORIGINS:
        raise ValueError(f"origin {cells['origin']!r} is unknown; use one of {', '.join(ORIGINS)}")
    if (cells["origin"] == "ours") != (cells["kind"] == "check"):
        raise ValueError(f"kind {cells['kind']!r} of origin {cells['origin']!r}; checks, and nothing else, are ours")
    if cells["paper"] != paper:
        raise ValueError(f"paper {cells['paper']!r} is not the file's; write {paper}")
    return Published(
        value=None if value is None else float(value[0]),
        tolerance=None if tolerance is None else float(tolerance[0]),
        effect=None if effect is None else float(effect[0]),
        verified=cells["verified"] == "yes",
        printed=cells["value"],
        **{name: cells[name] for name in COLUMNS if name not in ("value", "tolerance", "effect", "verified")},
    )


def papers(folder: Path) -> list[str]:
    """The papers with a registry file, by name."""
    return sorted(path.stem for path in folder.glob("*.csv") if path.stem != "claims")


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


def origins(folder: Path) -> dict[str, str]:
    """Where weight files come from, by their SHA-256: ``folder/weights/origins.csv``, empty where there is none."""
    path = folder / "weights" / "origins.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["sha256"]: row["origin"] for row in csv.DictReader(file)}


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


def linked(entries: Iterable[Published], table: str, link: Sequence[str]) -> Published | None:
    """The entry that a row's link names in its table: (row, metric), or (row, metric, model); as :func:`find`."""
    row, metric, *model = link
    return find(entries, table, row, metric, **({"model": model[0]} if model else {}))


# how the tables call the dense network that a change, a gap or an increase starts from
BASELINES = ("baseline", "Original", "original", "ResNet-50 original", "dense", "base")


def base_of(entry: Published, entries: Iterable[Published]) -> float | None:
    """The accuracy (%) of the dense network that a published change starts from; None where the table prints none.

    Of the same table, model and data set; an error becomes an accuracy.
    """
    order = "top5" if "top5" in entry.metric or "top-5" in entry.metric else "top1"
    for other in entries:
        same = (other.table, other.model, other.dataset) == (entry.table, entry.model, entry.dataset)
        if not same or other.row not in BASELINES or other.value is None or other.kind != "accuracy":
            continue
        name = other.metric.replace("top-", "top")
        if "gap" in name or "increase" in name or "change" in name:
            continue
        if name.startswith(order) or (order == "top1" and name in ("test_err", "baseline_err")):
            return 100.0 - other.value if "err" in name else other.value
    return None
