"""Row files read and joined with what the scripts declare; values aggregated over seeds, and judged."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.special import stdtrit

from bench import claims, registry, verdict
from bench.claims import Claim
from bench.errors import UserError
from bench.registry import Published
from bench.store import folder_name
from bench.verdict import Verdict

if TYPE_CHECKING:
    from bench.sizes import Decided

RAN = "ran"
# a folder of the user's may bear the name of one of these
KNOWN_SCALES = ("digits", "clutter", "scenes", "cifar10", "imagenet", "voc", "coco")
_POINTS = ("%", "pp", "points")
# the contrast of two rows that decides a claim by metric, and the sign that makes it positive where the first is better
CONTRASTS = {
    "top1": ("top1_difference", 1.0),
    "top5": ("top5_difference", 1.0),
    "map": ("map_voc07_difference", 1.0),
    "kl": ("kl_ratio", -1.0),
}
# differences are judged only where the dense network is about as good as the paper's
_CHANGES = ("err_increase", "change")


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


@dataclass(frozen=True)
class Declared:
    """What a script says of a row, beside what was measured.

    ``order`` is its place in the script, ``scale`` its own scale, ``claimed`` the speed-up that the paper states,
    ``published`` the links into the registry by metric, ``seeds`` those that are run unless the user names one,
    ``seeds_at`` those at scales that have others, ``release`` whether its network is kept beside the results.
    ``sizes`` decides the printed sizes of the registry that the row links to, which takes building its network.
    ``scales`` are those it is meant for (None: all), ``missing`` why it cannot run at all.
    """

    table: str
    name: str
    order: int
    scale: str
    ours: bool = False
    claimed: float | None = None
    published: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    release: bool = False
    seeds_at: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sizes: Callable[[Sequence[Published]], Sequence[Decided]] = field(default=lambda published: (), compare=False)
    scales: tuple[str, ...] | None = None
    missing: str | None = None

    def meant_for(self, scale: str, folder: bool) -> bool:
        """Whether it can run at a scale, or on a folder of the user's."""
        return self.missing is None and (folder or self.scales is None or scale in (*self.scales, self.scale))


# the rows of each paper by id
Declarations = Mapping[str, Mapping[str, Declared]]


@dataclass(frozen=True)
class Line:
    """One row in one setting.

    ``links`` are the published values by our metric, ``verdicts`` what the measured ones among them say; ``claim`` is
    what the row decides where it is the contrast of two others, ``decision`` the verdict on it; ``bases`` are the dense
    network's accuracy here and in the paper (%), where the row is about a change of it.  ``shape`` and ``steps`` are
    the row file's; ``sizes`` decides the printed sizes when it is asked.  ``scale`` names the data, and what else of
    the setting differs between the rows of the paper.  ``history``, ``widths`` (filters kept, by network and layer) and
    ``layers`` (reports of a reconstruction) are the row file's, as is ``drawn``: what else figures show
    (:data:`bench.rowfile.DRAWN`).  ``older`` says that other code measured it than what
    newer rows of the table were measured by.  ``command`` measures the row, ``table_command`` its whole table.
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
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    id: str = ""
    setting: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    layers: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    drawn: Mapping[str, Any] = field(default_factory=dict)
    older: bool = False
    table_command: str = ""
    claim: Claim | None = None
    decision: Verdict | None = None
    bases: tuple[float, float] | None = None
    sizes: Callable[[], Sequence[Decided]] = tuple

    @property
    def ran(self) -> bool:
        """Whether anything was measured."""
        return self.status == RAN

    @property
    def outcomes(self) -> list[str]:
        """What the row says: its status where it did not run, its claim's verdict, ``analogue``, or the verdicts."""
        if not self.ran:
            return [self.status]
        if self.decision is not None:
            return [f"{self.decision}{' (analogue)' if self.analogue else ''}"]
        return [verdict.ANALOGUE] if self.analogue else [str(found) for found in self.verdicts.values()]


def read(root: Path, folder: Path, declared: Declarations) -> dict[str, list[Line]]:
    """All rows under ``root`` that the scripts declare, by paper, in the scripts' order; ``folder`` holds the registry.

    One line for each row and setting; of settings that differ in the seeds alone the one with most of them, then the
    newest.  Raises :class:`UserError` for a row file that cannot be read, or that links to no published value or to
    several.
    """
    found: dict[str, list[Line]] = {}
    known = {claim.claim: claim for claim in claims.load(folder)} if (folder / claims.FILE).exists() else {}
    for paper, rows in declared.items():
        files = {path: value for path in row_files(root, paper) if (value := content(path))["id"] in rows}
        if not files:
            continue
        published = registry.load(paper, folder)
        labels = _labels(list(files.values()))
        chosen: dict[tuple[str, str], tuple[Path, dict[str, Any]]] = {}
        for path, value in files.items():
            place = value["id"], labels(value)
            if place not in chosen or rank(value) > rank(chosen[place][1]):
                chosen[place] = path, value
        lines = [
            _line(path, value, label, rows[value["id"]], published, known)
            for (_, label), (path, value) in chosen.items()
        ]
        lines = _marked(lines)
        found[paper] = sorted(lines, key=lambda line: (line.order, line.name, line.scale))
    return found


def row_files(root: Path, paper: str = "*") -> list[Path]:
    """The row files of a paper, or of all."""
    return sorted(root.glob(f"{paper}/rows/*/*.json"))


def content(path: Path) -> dict[str, Any]:
    """A row file's JSON.  Raises :class:`UserError` where it is none, or lies in another paper's or scale's folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        paper, scale = value["id"].split("/")[0], value["setting"]["scale"]
        if (paper, folder_name(scale)) != (path.parts[-4], path.parts[-2]):
            raise ValueError(f"it belongs to {paper} at {scale}")
        if missing := {"status", "shape", "records", "steps"} - set(value):
            raise ValueError(f"it has no {' or '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, error) from None
    return value  # type: ignore[no-any-return]


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a readable row file ({error!r}): remove it and run the row again")


def rank(value: Mapping[str, Any]) -> tuple[bool, int, str]:
    """Which of two settings of a row is shown: what ran, then more seeds, then the newer one."""
    dates = [step["provenance"]["date"] for step in value["steps"].values()]
    return value["status"] == RAN, len(value["setting"].get("seeds", ())), max(dates, default="")


# what of a setting the name of its scale must tell where a paper's rows differ in it
_TELLING = ("data", "protocol", "weights", "device", "round")


def _labels(files: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], str]:
    """Names for the settings: the data's name, and what the rows of one name differ in."""
    seen: dict[str, dict[str, set[str]]] = {}
    for value in files:
        if value["status"] == RAN:
            here = seen.setdefault(_base(value), {part: set() for part in _TELLING})
            for part in _TELLING:
                here[part].add(_told(value["setting"], part))

    def label(value: Mapping[str, Any]) -> str:
        base = _base(value)
        differing = [part for part in _TELLING if len(seen.get(base, {}).get(part, ())) > 1]
        if value["status"] != RAN:
            return base
        told = [f"{part} {_told(value['setting'], part)}" for part in differing]
        told = [text for text in told if text != "round "]  # of the widths as they are
        return f"{base} ({', '.join(told)})" if told else base

    return label


def _base(value: Mapping[str, Any]) -> str:
    setting = value["setting"]
    known = setting["scale"] in KNOWN_SCALES and setting.get("folder", False)
    return f"folder {setting['scale']}" if known else str(setting["scale"])


def _told(setting: Mapping[str, Any], part: str) -> str:
    if part == "data":
        return str((setting.get("data") or {}).get("fingerprint", ""))[:8]
    if part == "protocol":  # those of ImageNet's evaluation; others follow from the network's input size
        protocol = str((setting.get("data") or {}).get("protocol", ""))
        return protocol if protocol in ("short256", "squash256") else ""
    if part == "weights":
        given = setting.get("weights")
        return "none" if given is None else str(given["sha256"] or given["file"])[:8]
    return str(setting.get(part, ""))


def _line(
    path: Path,
    value: dict[str, Any],
    label: str,
    declared: Declared,
    published: Sequence[Published],
    known: Mapping[str, Claim],
) -> Line:
    try:
        cells, points = aggregate(value["records"])
        setting = value["setting"]
        # other data than the paper's are an analogue, whatever they are called; so are rounded widths
        analogue = setting["scale"] != declared.scale or bool(setting.get("folder") or setting.get("round"))
        links = {m: _linked(path, published, declared.table, where) for m, where in declared.published.items()}
        ran = value["status"] == RAN
        claim = known.get(declared.name) if declared.table == claims.TABLE else None
        bases = _bases(cells, links, published) if ran else None
        return Line(
            path.parts[-4],
            declared.table,
            declared.name,
            declared.order,
            label,
            declared.scale,
            analogue,
            declared.ours,
            declared.claimed,
            str(value["status"]),
            value.get("recipe", ""),
            command(value["id"], setting, declared),
            value["shape"],
            value["steps"],
            cells,
            points,
            links,
            {} if analogue or not ran else judge_all(cells, links, bases),
            value["id"],
            setting,
            value.get("history", {}),
            value.get("widths", {}),
            value.get("layers", {}),
            value.get("drawn", {}),
            table_command=command(value["id"], setting, declared, whole=True),
            claim=claim,
            decision=decide(claim, cells) if ran and claim is not None else None,
            bases=bases,
            sizes=partial(declared.sizes, published),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, error) from None


def command(name: str, setting: Mapping[str, Any], declared: Declared, whole: bool = False) -> str:
    """The command that measures a row (the ``whole`` table) in a setting; folders and files by their last name."""
    parts = ["bench", "run", name.partition("/")[0], *(["--table", declared.table] if whole else ["--row", name])]
    if setting["scale"] != declared.scale or setting.get("folder"):
        parts += ["--scale", setting["scale"]]
    own = declared.seeds if setting.get("folder") else declared.seeds_at.get(setting["scale"], declared.seeds)
    seeds = setting.get("seeds", list(own))
    if tuple(seeds) != own and len(seeds) == 1:
        parts += ["--seed", str(seeds[0])]
    given = setting.get("weights")
    if given is not None:
        parts += ["--weights", given["file"]]
    if _told(setting, "protocol") == "squash256":
        parts += ["--protocol", "squash256"]
    if setting.get("amp"):
        parts.append("--amp")
    if setting.get("paper_schedule"):
        parts.append("--paper-schedule")
    if setting.get("round"):
        parts += ["--round", str(setting["round"])]
    if setting.get("strict"):
        parts.append("--strict-data")
    # a machine without a GPU takes the processor unasked, one that has one does not
    if setting.get("device") == "cuda" or setting.get("chosen_device"):
        parts += ["--device", setting["device"]]
    return shlex.join(parts)


def _marked(lines: Sequence[Line]) -> list[Line]:
    """The lines, with those marked that were measured by other code than the newest line of their table was.

    Code is compared with code that begins in the same places: a function whose parameters hold another network reaches
    other code, and is none the older for it.
    """

    def place(line: Line, step: Mapping[str, Any]) -> tuple[str, ...]:
        return (line.scale, line.table, step.get("run", ""), *step.get("roots", ()))

    newest: dict[tuple[str, ...], tuple[str, str]] = {}
    for line in lines:
        for step in line.steps.values():
            made = step["provenance"]["date"], step["code"]
            newest[place(line, step)] = max(newest.get(place(line, step), made), made)
    return [
        replace(line, older=any(newest[place(line, step)][1] != step["code"] for step in line.steps.values()))
        for line in lines
    ]


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
    for (name, series, x), values in curves.items():
        points.append(Point(series or "", x, _cell(name, values)))
    return {name: _cell(name, values) for name, values in plain.items()}, points


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


def judge_all(
    cells: Mapping[str, Cell], links: Mapping[str, Published], bases: tuple[float, float] | None
) -> dict[str, Verdict]:
    """The verdicts on the measured values that are linked to published ones, by metric."""
    return {
        name: found
        for name, entry in links.items()
        if name in cells and (found := judge(cells, name, entry, bases)) is not None
    }


def judge(
    cells: Mapping[str, Cell], name: str, published: Published, bases: tuple[float, float] | None = None
) -> Verdict | None:
    """The verdict on the measured ``name`` of a row; None where there is nothing to judge.

    Nothing is judged where no value could be read, for times, and for sizes that were realised by somebody's training.
    Sizes that the network decides are judged by :mod:`bench.sizes`.  Values whose units do not belong together are
    ``not comparable``.
    """
    cell = cells[name]
    if published.value is None or published.kind in ("time", "trained", "width", "setting"):
        return None
    if published.kind in ("size", "check"):
        return _judge_size(cell, published)
    factor = 1.0 if cell.unit == published.unit else 100.0 if published.unit == "" else 1.0
    if cell.unit != published.unit and not (cell.unit in _POINTS and published.unit in (*_POINTS, "")):
        return Verdict("not comparable", f"{cell.unit or 'count'} with {published.unit or 'count'}")
    if bases is not None and abs(bases[0] - bases[1]) > verdict.LARGEST_BASE_DIFFERENCE and _is_change(name):
        return Verdict("inconclusive", verdict.OTHER_BASE, verified=published.verified)
    least = 100.0 / cell.n if cell.n else 0.0
    sigma = _sigma(cells, name)
    if sigma is None:
        return Verdict("not comparable", "no interval")
    return verdict.of_value(
        cell.value / factor,
        published,
        sigma=sigma / factor,
        runs=max(cell.seeds, 1) if cell.sd is not None else 1,
        least_sigma=least / factor,
        slack=_missing(cell) / factor,
    )


def _is_change(name: str) -> bool:
    return any(word in name for word in _CHANGES)


def _sigma(cells: Mapping[str, Cell], name: str) -> float | None:
    """The spread of one run: measured over three or more, else the images' noise, paired with the dense network."""
    cell = cells[name]
    if cell.sd is not None and cell.seeds >= verdict.LEAST_RUNS:
        return cell.sd
    paired = name.replace("_acc", "_change").replace("_err", "_change") if not _is_change(name) else name
    chosen = cells.get(paired, cell)
    if chosen.low is None or chosen.high is None:
        chosen = cell
    if chosen.low is None or chosen.high is None:
        return None
    # the interval was widened by what missing images could change, which the verdict adds itself
    return max((chosen.high - chosen.low) / 2.0 - _missing(chosen), 0.0) / 1.959964


def _missing(cell: Cell) -> float:
    """What the missing test images could change, in points."""
    return 0.0 if not cell.of or not cell.n or cell.of <= cell.n else 100.0 * (cell.of - cell.n) / cell.of


def _judge_size(cell: Cell, published: Published) -> Verdict:
    """A count of ours against a printed one, in its unit and convention."""
    factor = registry.UNITS.get(published.unit, None) if cell.unit in ("", "MACs") else 1
    if factor is None or (factor == 1 and cell.unit not in ("", "MACs", published.unit)):
        return Verdict("not comparable", f"{cell.unit or 'count'} with {published.unit or 'count'}")
    value = Fraction(cell.value) if float(cell.value).is_integer() else Fraction(repr(cell.value))
    given = _convention(cell)
    if given and published.convention and given != published.convention:
        try:
            value = registry.converted(value, given, published.convention, ratio=cell.unit == "x")
        except registry.OtherConvention:
            return Verdict(verdict.OTHER_CONVENTION, verified=published.verified)
    agrees = published.agrees(value / factor)
    if published.kind == "check":
        return Verdict("check agrees" if agrees else "check differs")
    return Verdict("exact" if agrees else "wrong", verified=published.verified)


def _convention(cell: Cell) -> str:
    """Our records' convention as the registry names it; parameters are all parameters."""
    if cell.convention is None:
        return "all" if cell.metric == "params" else ""
    return {"2x": "2x conv+fc"}.get(cell.convention, cell.convention)


def _bases(
    cells: Mapping[str, Cell], links: Mapping[str, Published], published: Sequence[Published]
) -> tuple[float, float] | None:
    """The dense network's accuracy (%) here and in the paper, for the change that the row is linked by."""
    for name, entry in links.items():
        if not _is_change(name):
            continue
        k = name.split("_")[0]
        accuracy, change = cells.get(f"{k}_acc"), cells.get(f"{k}_change")
        theirs = registry.base_of(entry, published)
        if accuracy is not None and change is not None and theirs is not None:
            return accuracy.value - change.value, theirs
    return None


def decide(claim: Claim, cells: Mapping[str, Cell]) -> Verdict | None:
    """The verdict on a claim from the contrast of its two rows; None where the contrast was not measured."""
    name, sign = CONTRASTS[claim.metric]
    cell = cells.get(name)
    if cell is None or cell.low is None or cell.high is None:
        return None
    low, high = sorted((sign * cell.low, sign * cell.high))
    found = verdict.of_claim(sign * cell.value, low, high, claim.smallest, claim.published)
    return replace(found, verified=claim.verified)
