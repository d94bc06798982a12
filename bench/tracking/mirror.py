"""What is sent to W&B, as plain JSON values: a run for each row and setting, and one for each paper.

All of it comes from row files, step descriptions, tables and figures, so that it can be made again at any time.  Files
are named relative to the output folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.report.load import Line
from bench.report.tables import Table, long, slug
from bench.saved import RECIPE, WEIGHTS
from bench.store import Store, digest, file_digest

# larger networks stay in the store (bytes)
LARGEST = 100_000_000
# of a step in the configuration, beside what its row file says
_OF_A_STEP = ("step", "kind", "run", "params", "parents", "code", "seconds", "provenance")
_LONGEST_TAG = 64
EPOCH = "epoch"


@dataclass(frozen=True)
class Run:
    """One W&B run.

    ``history`` holds one dictionary of values a line, in order; ``tables`` a table each as (columns, rows), ``images``
    a picture's file each; ``files`` are those of the network's artifact, by their names in it, and ``made`` the JSON
    files among them, which are written when the run is.
    """

    id: str
    name: str
    group: str
    kind: str
    tags: list[str]
    config: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """What tells this content from any other; of files their own digests."""
        return digest(self.to_json())


def row_run_id(name: str, setting: Mapping[str, Any]) -> str:
    """The id of a row's run: the same for the same row and setting, whatever was measured."""
    return digest({"row": name, "setting": dict(setting)})[:16]


def run_name(name: str, setting: Mapping[str, Any]) -> str:
    """What W&B calls a row's run."""
    return f"{name.partition('/')[2]} ({setting['scale']})"


def of_row(root: Path, value: Mapping[str, Any], line: Line | None) -> Run:
    """The run of a row file's ``value`` in the output folder ``root``; ``line`` has the verdicts, where they are known.

    The configuration holds the setting, the recipe, and every step behind the row with its key, parameters (schedules)
    and provenance; the history its trainings by epoch and seed; the summary its records, each whole.
    """
    store = Store(root)
    trainings = _trainings(value.get("history", {}))
    chain = _chain(store, value)
    config = {
        "row": value["id"],
        "setting": value["setting"],
        "recipe": value.get("recipe", ""),
        "shape": value["shape"],
        "widths": value.get("widths", {}),
        "code": value.get("code", ""),
        "steps": value["steps"],
        "chain": chain,
        "trainings": {name: key for key, name in trainings.items()},
    }
    summary = records_by_name(value["records"])
    verdicts: dict[str, str] = {}
    if line is not None:
        config |= {"table": line.table, "name": line.name, "command": line.command, "analogue": line.analogue}
        verdicts = {name: str(found) for name, found in line.verdicts.items()}
        if line.decision is not None:
            verdicts["claim"] = str(line.decision)
    summary["verdicts"] = verdicts
    network = _network(store, value)
    return Run(
        id=row_run_id(value["id"], value["setting"]),
        name=run_name(value["id"], value["setting"]),
        group=value["id"].partition("/")[0],
        kind="row",
        tags=_tags(value["setting"], line),
        config=config,
        history=_history(value.get("history", {}), trainings),
        summary=summary,
        **network,
    )


def of_paper(root: Path, paper: str, title: str, tables: Sequence[Table], figures: Iterable[Path]) -> Run:
    """The run of a paper: each table as people read it and with every value unrounded, the figures, the verdicts."""
    found: dict[str, tuple[list[str], list[list[Any]]]] = {}
    verdicts: list[list[Any]] = []
    for table in tables:
        place = f"{slug(table.scale)}/{table.slug}"
        found[f"tables/{place}"] = (
            list(table.frame.columns),
            [[str(text) for text in row] for row in table.frame.values],
        )
        rows = long(table)
        found[f"values/{place}"] = list(rows[0]), [list(row.values()) for row in rows]
        verdicts += [[row[name] for name in _VERDICT] for row in rows if row["verdict"]]
    found["verdicts"] = list(_VERDICT), verdicts
    images = {f"figures/{slug(path.parent.name)}/{path.stem}": path for path in figures}
    decided = [one for table in tables for line in table.lines for one in _words(line)]
    scales = sorted({table.scale for table in tables if table.ran})
    return Run(
        id=f"paper-{slug(paper)}",
        name=title,
        group=paper,
        kind="paper",
        tags=_cut(["paper", *scales]),
        config={"paper": paper, "title": title, "scales": scales},
        summary={"verdict_counts": dict(sorted(Counter(decided).items()))},
        tables=found,
        images={name: path.relative_to(root).as_posix() for name, path in images.items()},
        digests={name: file_digest(path) for name, path in images.items()},
    )


def of_pruned(root: Path, model: str, asked: Mapping[str, Any], value: Mapping[str, Any]) -> Run:
    """The run of a user's own network in the folder ``root``: sizes, records, layers and the network.

    Nothing of the data, neither where they are nor what their classes are called.
    """
    sizes = {name: value[name] for name in ("macs", "params", "conv_speedup", "layers")}
    records = {
        **{f"dense/{name}": record for name, record in records_by_name(value["dense_records"]).items()},
        **records_by_name(value["records"]),
    }
    weights, files, made = root / WEIGHTS, {}, {}
    if weights.is_file() and weights.stat().st_size <= LARGEST:
        files = {WEIGHTS: WEIGHTS}
        made = {RECIPE: {"recipe": value["recipe"], "weights": file_digest(weights), "facts": {}}}
    return Run(
        id=digest({"model": model, "asked": dict(asked), "recipe": value["recipe"]})[:16],
        name=f"{model} {asked['speedup']:g}x",
        group="prune",
        kind="prune",
        tags=_cut([str(asked["method"]), str(asked["device"])]),
        config={"model": model, **asked, **sizes, "recipe": value["recipe"]},
        summary=records,
        files=files,
        made=made,
    )


_VERDICT = ("table", "row", "scale", "metric", "value", "published", "published_unit", "verified", "verdict")


def records_by_name(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The records, each whole, under names that tell them apart: metric, seed, series, x; equal names are numbered."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        parts = [record["metric"]]
        parts += [f"seed-{record['seed']}"] if record.get("seed") is not None else []
        parts += [slug(str(record["series"]))] if record.get("series") is not None else []
        parts += [f"x-{record['x']:g}"] if record.get("x") is not None else []
        name = base = "/".join(parts)
        number = 1
        while name in found:
            number += 1
            name = f"{base}/{number}"
        found[name] = dict(record)
    return found


def _trainings(history: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Short names of the trainings by their steps' keys: number, kind and seed; of one kind for all seeds."""
    kinds: dict[tuple[str, int], set[Any]] = {}
    names = {}
    for key, training in history.items():
        what = re.sub(r"seed \d+", "seed", training["step"])
        nth = 0
        while training["seed"] in kinds.get((what, nth), ()):
            nth += 1
        kinds.setdefault((what, nth), set()).add(training["seed"])
        number = list(kinds).index((what, nth)) + 1
        names[key] = f"{number}-{slug(training['step'].partition('(')[0])}/seed-{training['seed']}"
    return names


def _history(history: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """One line for each epoch, with the values of all trainings in it."""
    lines: dict[Any, dict[str, Any]] = {}
    for key, training in history.items():
        for number, epoch in enumerate(training["epochs"], start=1):
            line = lines.setdefault(epoch.get(EPOCH, number), {})
            line |= {f"{names[key]}/{name}": value for name, value in epoch.items() if name != EPOCH}
    return [{EPOCH: epoch, **lines[epoch]} for epoch in sorted(lines)]


def _chain(store: Store, value: Mapping[str, Any]) -> dict[str, Any]:
    """Every step behind the row that the store still describes, parents first."""
    found: dict[str, Any] = {}

    def visit(key: str) -> None:
        header = store.header(key)
        if key in found or header is None:
            return
        for parent in header["parents"]:
            visit(parent)
        found[key] = {name: header[name] for name in _OF_A_STEP if name in header}

    for key in value["steps"]:
        visit(key)
    return found


def _network(store: Store, value: Mapping[str, Any]) -> dict[str, Any]:
    """The first seed's network as files that :mod:`bench.saved` reads; nothing where it has gone or is too large."""
    key = next(iter(value.get("widths", {})), None)
    header = None if key is None else store.header(key)
    name = "state.safetensors"
    if key is None or header is None or header.get("shed") or header["recipe"] is None or name not in header["files"]:
        return {}
    weights = store.folder(key) / name
    if not weights.is_file() or weights.stat().st_size > LARGEST:
        return {}
    facts = {"row": value["id"], "setting": value["setting"], "step": key, "provenance": header["provenance"]}
    return {
        "files": {WEIGHTS: weights.relative_to(store.root).as_posix()},
        "made": {RECIPE: {"recipe": header["recipe"], "weights": header["files"][name], "facts": facts}},
    }


def _tags(setting: Mapping[str, Any], line: Line | None) -> list[str]:
    """Scale, device and verdicts."""
    return _cut([str(setting["scale"]), str(setting["device"]), *([] if line is None else _words(line))])


def _words(line: Line) -> list[str]:
    """The verdicts of a line without their reasons; those on unverified values in brackets; what an analogue is."""
    if not line.ran:
        return []
    found = [line.decision] if line.decision is not None else list(line.verdicts.values())
    words = [one.word if one.verified else f"[{one.word}]" for one in found]
    return [*words, *(["analogue"] if line.analogue else [])]


def _cut(tags: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags if tag))
