"""Walks the steps that rows need: a cache hit or work, resuming where it stopped, and writes what the rows measured."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import bench.data
from bench import claims, contrasts, processes, provenance
from bench.data.annotations import DetectionSet
from bench.data.identity import value_of
from bench.data.images import ImageSet
from bench.errors import UserError
from bench.measure import macs
from bench.models.recipe import Recipe
from bench.rows import Chain, Paper, Row, Setting
from bench.steps import Context, DataValue, Kind, Step, canonical, in_order
from bench.store import Record, Result, Store, file_digest, write_json

# what one processor thread and a GPU do in training and evaluation, for the plan's minutes; measured, and rough
_GMACS_PER_SECOND = {"cpu": 40.0, "cuda": 4000.0}


@dataclass
class Job:
    """What to run and where: the choices of one ``bench run``."""

    out: Path = Path("runs")
    data: Path = Path("data")
    scale: str | None = None
    device: str = "auto"
    seed: int | None = None
    weights: Path | None = None
    protocol: str = "short256"
    workers: int = 0
    amp: bool = False
    progress: bool = True
    strict: bool = False
    images: dict[tuple[str, int], ImageSet | DetectionSet] = field(default_factory=dict)
    values: dict[tuple[str, int], DataValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"unknown device {self.device!r}: choose auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("no CUDA device is available here: leave out --device, or choose cpu")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.weights is not None and not self.weights.is_file():
            raise UserError(f"no weights file {self.weights}: give the path of a state dict with --weights")


@dataclass(frozen=True)
class Planned:
    """A row in its setting: the chain of steps, or the reason why it cannot run here."""

    row: Row
    scale: str
    dense: Recipe | None = None
    chain: Chain | None = None
    size: int = 0
    reason: str | None = None


def papers() -> dict[str, Paper]:
    """Every paper script in ``reproductions`` (found, not listed), by name."""
    package = importlib.import_module("reproductions")
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            paper = importlib.import_module(f"reproductions.{module.name}").paper()
            found[paper.key] = paper
    known = claims.load(Path(package.__path__[0]) / "registry")
    return {key: contrasts.with_claims(paper, known) for key, paper in found.items()}


def choose(names: Sequence[str], table: str | None, row: str | None) -> list[tuple[Paper, list[Row]]]:
    """The papers and rows that a command names; everything for no names.

    ``table`` and ``row`` are beginnings of names, case ignored.  Raises :class:`UserError` where nothing matches.
    """
    known = papers()
    for name in names:
        if name not in known:
            raise UserError(f"unknown paper {name!r}: choose one of {', '.join(known)}")
    chosen = []
    for key in names or known:
        rows = [r for r in known[key].rows if table is None or _matches(r.table, table)]
        if not rows and names:
            tables = ", ".join(dict.fromkeys(r.table for r in known[key].rows))
            raise UserError(f"unknown table {table!r}: {key} has {tables}")
        rows = [r for r in rows if row is None or _matches(r.name, row)]
        if not rows and names:
            raise UserError(f"unknown row {row!r}: see `bench list {key}`")
        if rows:
            chosen.append((known[key], rows))
    if not chosen:
        wanted = f"table {table!r}" if row is None else f"row {row!r}"
        raise UserError(f"unknown {wanted}: see `bench list`")
    return chosen


def _matches(name: str, wanted: str) -> bool:
    name, wanted = name.lower(), wanted.lower()
    # "Table 1" must not match "Table 10"
    return name == wanted or (name.startswith(wanted) and not name[len(wanted)].isalnum())


def plan(rows: Sequence[Row], job: Job) -> list[Planned]:
    """The rows in the job's setting, with their steps; data are read, nothing is run.

    Rows that are meant for other scales or for the other kind of data are left out.  Raises :class:`UserError` where
    none is left.
    """
    planned = []
    for row in rows:
        scale = job.scale or row.scale
        bench.data.check_scale(scale)
        meant = row.scales is None or scale in row.scales or scale not in bench.data.SCALES
        if meant and (job.scale is None or row.data == bench.data.kind(scale)):
            planned.append(_plan(row, scale, job))
    if not planned:
        raise UserError(
            f"none of these rows runs at {job.scale}, which has {bench.data.kind(job.scale or '')}: see `bench list`"
        )
    return planned


def _plan(row: Row, scale: str, job: Job) -> Planned:
    if row.missing is not None or row.chain is None or row.dense is None:
        return Planned(row, scale, reason=row.missing or "not implemented")
    size = row.dense(scale, 10, job.weights is not None).input_shape[1]
    if bench.data.find(scale, job.data) is None and scale != "cifar10":
        return Planned(row, scale, reason=bench.data.needs(scale, job.data))
    try:
        images = _images(job, scale, size)
    except UserError as error:
        if scale == "cifar10":
            return Planned(row, scale, reason="needs cifar10")
        raise error
    recipe = row.dense(scale, len(images.classes), job.weights is not None)
    setting = Setting(
        scale, _value(job, scale, size), len(images.classes), len(images.train), len(images.test), job.device,
        row.seeds if job.seed is None else (job.seed,), None if job.weights is None else file_digest(job.weights), job.amp,
    )  # fmt: skip
    return Planned(row, scale, recipe, row.chain(setting, recipe), size)


def _images(job: Job, scale: str, size: int) -> ImageSet | DetectionSet:
    if (scale, size) not in job.images:
        job.images[scale, size] = bench.data.load(scale, job.data, size, job.protocol, job.progress, job.strict)
    return job.images[scale, size]


def _value(job: Job, scale: str, size: int) -> DataValue:
    if (scale, size) not in job.values:
        job.values[scale, size] = value_of(_images(job, scale, size))
    return job.values[scale, size]


def steps_of(planned: Sequence[Planned]) -> list[tuple[Step, Planned]]:
    """All steps of the planned rows, each once, in order, with a row that needs it."""
    owner: dict[str, Planned] = {}
    leaves = []
    for entry in planned:
        if entry.chain is not None:
            here = [*entry.chain.networks, *entry.chain.records]
            leaves += here
            for step in in_order(here):
                owner.setdefault(step.key, entry)
    return [(step, owner[step.key]) for step in in_order(leaves)]


def expected_seconds(step: Step) -> float:
    """A rough duration of the step from its cost in GMACs."""
    rate = _GMACS_PER_SECOND[step.device.split(":")[0]] * (torch.get_num_threads() if step.device == "cpu" else 1)
    return step.work / rate


def run(
    paper: Paper, planned: Sequence[Planned], job: Job, store: Store, say: Callable[[str], None], command: str
) -> list[Path]:
    """Runs the planned rows of one paper and writes their row files; returns the files.

    A step that fails for a reason of the user's ends the run, but every row already complete is on disk.
    """
    todo = steps_of(planned)
    memory: dict[Any, Any] = {}
    done: set[str] = set()
    files = []
    if processes.is_main():
        files = [_write_row(paper, entry, job, store, command) for entry in planned if entry.chain is None]
    waiting = [entry for entry in planned if entry.chain is not None]
    for number, (step, entry) in enumerate(todo, start=1):
        _ensure(step, entry, job, store, memory, lambda text, n=number: say(f"[{n}/{len(todo)}] {text}"))  # type: ignore[misc]
        done.add(step.key)
        if not processes.is_main():
            continue
        for row in [w for w in waiting if {s.key for s in [*w.chain.networks, *w.chain.records]} <= done]:  # type: ignore[union-attr]
            files.append(_write_row(paper, row, job, store, command))
            waiting.remove(row)
    return files


def _ensure(
    step: Step, entry: Planned, job: Job, store: Store, memory: dict[Any, Any], say: Callable[[str], None]
) -> None:
    """The step is in the store afterwards: it was, or it is run now."""
    if store.load(step.key) is not None:
        return
    if not processes.is_main() and step.kind is not Kind.TRAIN:
        processes.start(job.device)
        processes.barrier()  # only training is shared; the first process does the rest
        return
    with store.lock(step.key) if processes.launched() == 1 else contextlib.nullcontext():
        if store.load(step.key) is not None:
            return
        say(step.name)
        context = Context(
            lambda: _images(job, entry.scale, entry.size), job.device, job.progress, store.work(step.key), job.workers,
            job.weights, tuple(parent.key for parent in step.parents), memory, step.name,
        )  # fmt: skip
        parents = [_result(store, parent) for parent in step.parents]
        begin = time.monotonic()
        result = step.run(context, parents, step.params)
        if processes.is_main():
            store.save(step.key, result, describe(step, entry, job, time.monotonic() - begin))
        processes.barrier()


def _result(store: Store, step: Step) -> Result:
    result = store.load(step.key)
    if result is None:
        raise UserError(f"the stored result of {step.name} has gone or is damaged: run the same command again")
    return result


def describe(step: Step, entry: Planned, job: Job, seconds: float) -> dict[str, Any]:
    """What is stored beside a step's result: what it was, and the provenance that makes it repeatable."""
    images = job.images.get((entry.scale, entry.size))
    return {
        "step": step.name,
        "params": canonical(step.params),
        "parents": [parent.key for parent in step.parents],
        "seconds": round(seconds, 2),
        "provenance": {
            "code": provenance.git_state(),
            "source": step.code.hash,
            "versions": provenance.versions(),
            "hardware": provenance.hardware(job.device),
            "data": None
            if images is None
            else {
                "name": images.name,
                "fingerprint": images.fingerprint,
                "protocol": images.protocol,
                **({"problems": images.problems} if isinstance(images, DetectionSet) else {}),
            },
            "date": provenance.today(),
        },
    }


def _write_row(paper: Paper, entry: Planned, job: Job, store: Store, command: str) -> Path:
    """Writes ``<out>/<paper>/rows/<scale>/<table>--<row>.json``: all that a report needs to know of the row."""
    row = entry.row
    images = job.images.get((entry.scale, entry.size))
    label = images.name if images is not None else Path(entry.scale).name
    value: dict[str, Any] = {
        "paper": paper.key,
        "table": row.table,
        "row": row.name,
        "order": next((i for i, known in enumerate(paper.rows) if known is row), len(paper.rows)),
        "scale": label,
        "own_scale": row.scale,
        "analogue": entry.scale != row.scale,
        "ours": row.ours,
        "claimed_speedup": row.claimed,
        "status": "ran" if entry.chain is not None else f"not run ({entry.reason})",
        "published": {metric: list(where) for metric, where in row.published.items()},
        "command": command,
        "shape": _sizes(shape) if (shape := row.own_shape()) is not None else None,
        "records": [],
        "steps": {},
    }
    if entry.chain is not None:
        value["recipe"] = _label(entry.dense)
        value["records"] = _size_records(entry, store)
        for step in dict.fromkeys([*entry.chain.networks, *entry.chain.records]):
            header = store.header(step.key)
            assert header is not None
            value["steps"][step.key] = {k: header[k] for k in ("step", "seconds", "provenance")}
            value["records"] += [{**record, "step": step.key} for record in header["records"]]
        value["widths"] = {
            step.key: (store.header(step.key) or {})["recipe"]["widths"] for step in entry.chain.networks
        }
    name = "".join(c if c.isalnum() or c in "-." else "_" for c in f"{row.table}--{row.name}")
    path = store.root / paper.key / "rows" / label / f"{name}.json"
    # a row that cannot run here leaves what was measured before as it is
    if entry.chain is not None or not path.exists():
        write_json(path, value)
    return path


def _label(recipe: Recipe | None) -> str:
    if recipe is None:
        return ""
    arguments = ", ".join(f"{name}={value}" for name, value in recipe.arguments.items())
    return f"{recipe.builder}({arguments}) at {recipe.input_shape[1]}x{recipe.input_shape[2]}"


def _sizes(shape: Recipe) -> dict[str, Any]:
    """Exact sizes at the paper's own shape, pruned and dense, from the ``meta`` device."""
    pruned = macs.count(shape.build("meta"), shape.input_shape)
    dense = macs.count(shape.dense().build("meta"), shape.input_shape)
    return {
        "recipe": _label(shape),
        "macs": {convention: pruned.total(convention) for convention in macs.CONVENTIONS},
        "dense_macs": {convention: dense.total(convention) for convention in macs.CONVENTIONS},
        "params": pruned.params,
        "dense_params": dense.params,
        "speedup": dense.total("conv") / pruned.total("conv"),
    }


def _size_records(entry: Planned, store: Store) -> list[dict[str, Any]]:
    """MACs, parameters and theoretical speed-up of the networks that were really made, one set per seed."""
    assert entry.chain is not None
    found = []
    for step in entry.chain.networks:
        header = store.header(step.key)
        assert header is not None and header["recipe"] is not None
        recipe = Recipe.from_json(header["recipe"])
        device = "cpu" if ":" in recipe.builder else "meta"
        pruned = macs.count(recipe.build(device), recipe.input_shape)
        dense = macs.count(recipe.dense().build(device), recipe.input_shape)
        for record in (
            Record("macs", pruned.total("conv"), "MACs", convention="conv"),
            Record("params", pruned.params, ""),
            Record("speedup", dense.total("conv") / pruned.total("conv"), "x", convention="conv"),
        ):
            found.append({**record.to_json(), "step": step.key})
    return found
