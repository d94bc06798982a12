"""Row files read and joined with what the scripts declare: the lines of the tables."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import claims, registry, verdict
from bench.claims import Claim
from bench.errors import UserError
from bench.registry import Published
from bench.report import chance
from bench.report.cells import Cell, Point, aggregate, with_errors
from bench.report.judging import bases_of, decide, judge_all
from bench.store import row_path
from bench.verdict import Verdict

if TYPE_CHECKING:
    from bench.sizes import Decided

RAN = "ran"
# what to do about a broken row file
AGAIN = "remove it and run the row again"
# a folder of the user's may bear the name of one of these
KNOWN_SCALES = ("digits", "clutter", "scenes", "cifar10", "imagenet", "voc", "coco")


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
    (:data:`bench.rowfile.DRAWN`); ``timed`` how times were taken.  ``older`` says that other code measured it than what
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
    sizes: Callable[[], Sequence[Decided]] = field(default=tuple, repr=False)
    timed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

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
    known = claims.by_id(folder)
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
        lines = chance.undecided(_marked(lines))
        found[paper] = sorted(lines, key=lambda line: (line.order, line.name, line.scale))
    return found


def row_files(root: Path, paper: str = "*") -> list[Path]:
    """The row files of a paper, or of all."""
    return sorted(root.glob(f"{paper}/rows/*/*.json"))


def content(path: Path, mend: str = AGAIN) -> dict[str, Any]:
    """A row file's JSON; ``mend`` is what a user should do about a broken one.

    Raises :class:`UserError` where it is none, holds what is no number where one belongs, or lies in the place of
    another row, scale or setting.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        own = row_path(path.parents[3], value["id"], value["setting"])
        if own.parts[-4:] != path.parts[-4:]:
            raise ValueError(f"it belongs into {'/'.join(own.parts[-4:])}")
        if missing := {"status", "shape", "records", "steps"} - set(value):
            raise ValueError(f"it has no {' or '.join(sorted(missing))}")
        for record in value["records"]:
            _check_record(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, error, mend) from None
    return value  # type: ignore[no-any-return]


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _check_record(record: Mapping[str, Any]) -> None:
    """Raises ValueError or KeyError unless a record says what was measured, in which unit, and a finite number."""
    for name in ("metric", "unit"):
        if not isinstance(record[name], str):
            raise ValueError(f"a record's {name} is {record[name]!r}")
    if (record.get("low") is None) != (record.get("high") is None):
        raise ValueError(f"{record['metric']} has one end of an interval")
    for name in ("value", *(one for one in ("low", "high", "x", "spread") if record.get(one) is not None)):
        number = record[name]
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"{name} of {record['metric']} is {number!r}, no number")


def _broken(path: Path, error: Exception, mend: str = AGAIN) -> UserError:
    return UserError(f"{path} is not a readable row file ({error!r}): {mend}")


def rank(value: Mapping[str, Any]) -> tuple[bool, int, str]:
    """Which of two settings of a row is shown: what ran, then more seeds, then the newer one."""
    dates = [step["provenance"]["date"] for step in value["steps"].values()]
    return value["status"] == RAN, len(value["setting"].get("seeds", ())), max(dates, default="")


_NO_WEIGHTS, _ELSEWHERE = "no weights given", "networks made elsewhere"
# what of a setting the name of its scale must tell where a paper's rows differ in it
_TELLING = ("data", "protocol", "weights", "device", "paper_schedule", "round")


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
        if "device" in differing and seen[base]["weights"] <= {_NO_WEIGHTS, _ELSEWHERE}:
            differing = [part for part in differing if part != "weights"]  # the device tells them apart
        if value["status"] != RAN:
            return base
        told = [text for part in differing if (text := _named(part, _told(value["setting"], part)))]
        return f"{base} ({', '.join(told)})" if told else base

    return label


def _base(value: Mapping[str, Any]) -> str:
    setting = value["setting"]
    known = setting["scale"] in KNOWN_SCALES and setting.get("folder", False)
    return f"folder {setting['scale']}" if known else str(setting["scale"])


def _named(part: str, told: str) -> str:
    """A part of a setting as it stands behind the scale; nothing for widths as they are and short schedules."""
    if part in ("round", "paper_schedule") and not told:
        return ""
    if part == "weights":
        return told if told in (_NO_WEIGHTS, _ELSEWHERE) else f"given weights {told}"
    return "the paper's schedule" if part == "paper_schedule" else f"{part} {told}"


def _told(setting: Mapping[str, Any], part: str) -> str:
    if part == "data":
        return str((setting.get("data") or {}).get("fingerprint", ""))[:8]
    if part == "protocol":  # those of ImageNet's evaluation; others follow from the network's input size
        protocol = str((setting.get("data") or {}).get("protocol", ""))
        return protocol if protocol in ("short256", "squash256") else ""
    if part == "weights":
        given = setting.get("weights")
        if given is None:
            return _ELSEWHERE if setting.get("networks") else _NO_WEIGHTS
        return str(given["sha256"] or given["file"])[:8]
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
        cells = with_errors(cells, links)
        ran = value["status"] == RAN
        claim = known.get(declared.name) if declared.table == claims.TABLE else None
        bases = bases_of(cells, links, published) if ran else None
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
            timed=value.get("timed", {}),
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
    if setting.get("networks"):
        parts += ["--networks", setting["networks"]]
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
    try:
        entry = registry.linked(published, table, where)
    except LookupError as error:
        raise UserError(f"{path}: {error}") from None
    if entry is None:
        row, metric, *_ = where
        raise UserError(f"{path}: no published {metric} of {row!r} in {table!r}; correct the link or the registry")
    return entry
