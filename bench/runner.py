"""Runs rows: the steps that a row needs, each a cache hit or work, and what the row measured, written when whole."""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

import bench.data
from bench import claims, contrasts, memory, metrics, processes, provenance, rowfile
from bench.data.annotations import DetectionSet
from bench.data.identity import value_of
from bench.data.images import ImageSet
from bench.errors import UserError
from bench.models import weights
from bench.models.recipe import Recipe
from bench.pruning.rounding_steps import rounded_steps
from bench.rows import Chain, Paper, Row, Setting, match, row_id
from bench.steps import OWN, Context, DataValue, Kind, Source, Step, canonical, in_order
from bench.store import Result, Store, file_digest

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
Say = Callable[[str], None]


class Watch(Protocol):
    """Who is told of the rows as they run: id and setting when one begins, the file of what it measured at its end."""

    def began(self, name: str, setting: Mapping[str, Any]) -> None:
        """The work on a row begins."""

    def ended(self, file: Path | None) -> None:
        """It has ended; None for a row that failed."""


def default_device() -> str:
    """The device of a job that names none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Job:
    """What to run and where: the choices of one ``bench run``.

    ``reuse_times`` answers times from earlier runs of the same device; otherwise they are taken anew, as are steps of
    the kinds ``fresh``.  ``multiple`` rounds the widths that pruning leaves.
    """

    out: Path = Path("runs")
    data: Path = Path("data")
    scale: str | None = None
    device: str = "auto"
    seed: int | None = None
    weights: Path | None = None
    protocol: str = "short256"
    workers: int = 0
    amp: bool = False
    paper_schedule: bool = False
    progress: bool = True
    strict: bool = False
    reuse_times: bool = False
    fresh: frozenset[Kind] = frozenset()
    multiple: int | None = None
    images: dict[tuple[Source, int], ImageSet | DetectionSet] = field(default_factory=dict)
    values: dict[tuple[Source, int], DataValue] = field(default_factory=dict)
    fitting: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"unknown device {self.device!r}: choose auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("no CUDA device is available here: leave out --device, or choose cpu")
        if self.device == "auto":
            self.device = default_device()
        if self.multiple not in (None, 8, 16, 32):
            raise UserError("--round takes 8, 16 or 32")
        if self.weights is not None and not self.weights.is_file():
            raise UserError(f"no weights file {self.weights}: give the path of a state dict with --weights")


@dataclass(frozen=True)
class Planned:
    """A row in its setting: the chain of steps, or the reason why it cannot run here."""

    paper: Paper
    row: Row
    scale: str
    dense: Recipe | None = None
    chain: Chain | None = None
    size: int = 0
    reason: str | None = None
    setting: Setting | None = None

    @property
    def id(self) -> str:
        """The row's id."""
        return row_id(self.paper.key, self.row)


@dataclass(frozen=True)
class Outcome:
    """How a row ended: ``ok``, ``failed`` or ``skipped``, with the reason; the file that holds what it measured."""

    id: str
    status: str
    reason: str = ""
    file: Path | None = None


# --------------------------------------------------------------------------------------------------------------------
# Choosing and planning


@functools.cache
def papers() -> dict[str, Paper]:
    """Every paper script in ``reproductions`` (found, not listed), by name."""
    package = importlib.import_module("reproductions")
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            paper = importlib.import_module(f"reproductions.{module.name}").paper()
            metrics.declare(paper.metrics)
            found[paper.key] = paper
    registry = Path(package.__path__[0]) / "registry"
    known = claims.load(registry) if (registry / claims.FILE).exists() else []
    return {key: contrasts.with_claims(paper, known) for key, paper in found.items()}


def choose(
    names: Sequence[str], table: str | None, row: str | None, several: bool = False
) -> list[tuple[Paper, list[Row]]]:
    """The papers and rows that a command names; everything for no names.

    ``table`` is a beginning of names.  ``row`` is an id, an end of one or a name, else the beginning of one row's; with
    ``several`` of any number of rows.  Case is ignored.  Raises :class:`UserError` where nothing or too much matches.
    """
    known = papers()
    for name in names:
        if name not in known:
            raise UserError(f"unknown paper {name!r}: choose one of {', '.join(known)}")
    chosen = {key: {i: r for i, r in known[key].ids.items() if _in_table(r, table)} for key in names or known}
    if not any(chosen.values()):
        tables = dict.fromkeys(r.table for key in names or known for r in known[key].rows)
        raise UserError(f"unknown table {table!r}: {', '.join(names) or 'the papers'} have {', '.join(tables)}")
    if row is not None:
        found = match(row, {i: r.name for rows in chosen.values() for i, r in rows.items()})
        if not found:
            raise UserError(f"unknown row {row!r}: see `bench list {' '.join(names)}`".replace(" `", " `").rstrip())
        if len(found) > 1 and not several:
            raise UserError(f"{row!r} names {len(found)} rows, choose one: {', '.join(found)}")
        chosen = {key: {i: r for i, r in rows.items() if i in found} for key, rows in chosen.items()}
    return [(known[key], list(rows.values())) for key, rows in chosen.items() if rows]


def _in_table(row: Row, wanted: str | None) -> bool:
    if wanted is None:
        return True
    name, wanted = row.table.lower(), wanted.lower()
    # "Table 1" must not match "Table 10"
    return name == wanted or (name.startswith(wanted) and not name[len(wanted)].isalnum())


def plan(paper: Paper, rows: Sequence[Row], job: Job) -> list[Planned]:
    """The rows of a paper in the job's setting, with their steps; data are read, nothing is run.

    Rows that are meant for other scales or for the other kind of data are left out.  Raises :class:`UserError` where
    none is left, and for weights that fit no network.
    """
    planned = []
    for row in rows:
        scale = job.scale or row.scale
        if job.scale is not None:
            bench.data.check_scale(scale)
        meant = row.scales is None or scale in row.scales or scale not in bench.data.SCALES
        if meant and (job.scale is None or row.data == bench.data.kind(scale)):
            planned.append(_plan(paper, row, scale, job))
    if not planned:
        raise UserError(
            f"none of these rows runs at {job.scale}, which has {bench.data.kind(job.scale or '')}: see `bench list`"
        )
    return planned


def _plan(paper: Paper, row: Row, scale: str, job: Job) -> Planned:
    if row.missing is not None or row.chain is None or row.dense is None:
        return Planned(paper, row, scale, reason=row.missing or "not implemented")
    if scale not in bench.data.SCALES and not Path(scale).is_dir():
        return Planned(paper, row, scale, reason=f"needs {scale}: give its folder by --scale")
    size = row.dense(scale, 10, job.weights is not None).input_shape[1]
    if bench.data.find(scale, job.data) is None and scale != "cifar10":
        return Planned(paper, row, scale, reason=bench.data.needs(scale, job.data))
    try:
        images = _images(job, scale, size)
    except UserError as error:
        # files that are there and are wrong are told as they are
        if scale == "cifar10" and bench.data.find(scale, job.data) is None:
            return Planned(paper, row, scale, reason=bench.data.needs(scale, job.data))
        raise error
    recipe = row.dense(scale, len(images.classes), job.weights is not None)
    setting = _setting(row, scale, size, OWN, job)
    for name, source in row.further(scale).items():
        other = source.scale or scale
        if bench.data.find(other, job.data) is None:
            return Planned(paper, row, scale, reason=bench.data.needs(other, job.data))
        if source.protocol in (None, _images(job, scale, size, source).protocol):
            further = {**setting.further, name: _setting(row, scale, size, source, job)}
            setting = replace(setting, further=further)
    chain = row.chain(setting, recipe)
    if job.multiple is not None:
        chain = rounded_chain(chain, job.multiple)
    _check_weights(chain, job)
    return Planned(paper, row, scale, recipe, chain, size, setting=setting)


def _setting(row: Row, scale: str, size: int, source: Source, job: Job) -> Setting:
    """The job's setting of a row at ``scale``, on its own data or on those of another source."""
    images = _images(job, scale, size, source)
    return Setting(
        source.scale or scale,
        _value(job, scale, size, source),
        len(images.classes),
        len(images.train),
        len(images.test),
        job.device,
        row.seeds_on(scale) if job.seed is None else (job.seed,),
        None if job.weights is None else file_digest(job.weights),
        job.amp,
        job.paper_schedule,
    )


def rounded_chain(chain: Chain, multiple: int) -> Chain:
    """The chain with the widths that its prunings leave rounded."""
    parts = [chain.networks, chain.records, chain.evaluations, chain.references]
    every = iter(rounded_steps([step for part in parts for step in part], multiple))
    return Chain(*[[next(every) for _ in part] for part in parts])


def _check_weights(chain: Chain, job: Job) -> None:
    """Raises :class:`UserError` where the user's weights do not fit a network that a step gives them to."""
    if job.weights is None:
        return
    for step in in_order([*chain.networks, *chain.records]):
        if step.kind is Kind.LOAD and (name := str(canonical(step.params.recipe))) not in job.fitting:
            weights.load(step.params.recipe.build(), job.weights)
            job.fitting.add(name)


def _place(job: Job, scale: str, size: int, source: Source) -> tuple[Source, int]:
    """Under what data are kept: everything that says which they are."""
    return Source(source.scale or scale, source.protocol or job.protocol, source.apart), size


def _images(job: Job, scale: str, size: int, source: Source = OWN) -> ImageSet | DetectionSet:
    place = _place(job, scale, size, source)
    if place not in job.images:
        name, protocol = str(place[0].scale), str(place[0].protocol)
        job.images[place] = bench.data.load(name, job.data, size, protocol, job.progress, job.strict, source.apart)
    return job.images[place]


def _value(job: Job, scale: str, size: int, source: Source) -> DataValue:
    place = _place(job, scale, size, source)
    if place not in job.values:
        job.values[place] = value_of(_images(job, scale, size, source))
    return replace(job.values[place], source=source)


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


# --------------------------------------------------------------------------------------------------------------------
# Running


class Engine:
    """Runs planned rows one after the other on one store; under torchrun every process walks the same steps."""

    def __init__(self, job: Job, store: Store, say: Say = lambda text: None) -> None:
        self.job, self.store, self.say = job, store, say
        self.memory: dict[Source, dict[Any, Any]] = {}
        self.failures: dict[str, str] = {}  # by the step's key: it is not tried again in this run
        self.there: set[str] = set()  # looked at in this run, or made by it
        self.made: set[str] = set()  # made by this run
        self.users: dict[str, set[str]] = {}  # the steps of this run that each step is a parent of

    def run_row(self, entry: Planned) -> Outcome:
        """The row's steps are run where they are not stored, and its file is written when all are there.

        What goes wrong costs this row: a mistake of the user's is told in the reason, of a bug the traceback is
        printed.
        """
        if entry.chain is None:
            return Outcome(entry.id, SKIPPED, entry.reason or "", self._not_run(entry))
        leaves = [*entry.chain.networks, *entry.chain.records]
        todo = self._missing(leaves)
        for number, step in enumerate(todo, start=1):
            failure = self._ensure(step, entry, f"[{number}/{len(todo)}] ")
            if failure is not None:
                return Outcome(entry.id, FAILED, failure)
        if processes.is_main():
            for step in in_order(leaves):  # a run that was killed may have left some
                self._shed(step)
        try:
            file = rowfile.write(self.store, entry, description(entry, self.job)) if processes.is_main() else None
        except ValueError as error:  # a bug of the script's costs its row, not the pages
            return Outcome(entry.id, FAILED, str(error))
        return Outcome(entry.id, OK, file=file)

    def _missing(self, leaves: list[Step]) -> list[Step]:
        """The steps that are not stored, of ``leaves`` and of what these need for it, parents first.

        What a stored step was made of need not be there any more, but its description must, which row files repeat.
        The first process looks, the others are told.
        """
        found: dict[str, Step] = {}
        seen: set[tuple[str, bool]] = set()

        def visit(step: Step, needed: bool) -> None:
            if (step.key, needed) in seen:
                return
            seen.add((step.key, needed))
            there = self._found(step) if needed else self.store.header(step.key) is not None
            for parent in step.parents:
                visit(parent, not there)
            if not there:
                found.setdefault(step.key, step)

        if processes.is_main():
            for leaf in leaves:
                visit(leaf, True)
        keys = processes.told(list(found))
        every = {step.key: step for step in in_order(leaves)}
        return [every[key] for key in keys]

    def _found(self, step: Step) -> bool:
        """Whether nothing is to be done for a step; what speaks against looking is told when it is tried."""
        try:
            return step.key not in self.failures and self._stored(step)
        except UserError:
            return False

    def _not_run(self, entry: Planned) -> Path | None:
        return rowfile.write_reason(self.store, entry, _label(entry, self.job)) if processes.is_main() else None

    def _ensure(self, step: Step, entry: Planned, where: str) -> str | None:
        """The step is in the store afterwards: it was, or it is run now.  Returns what went wrong instead.

        The first process decides between hit and work and tells the others; whatever was done, all meet once at the
        end.
        """
        with contextlib.ExitStack() as held:
            decision = "" if not processes.is_main() else self._decide(step, held, where)
            decision = processes.told(decision)
            if decision != "work":
                return decision or None
            failure: str | None = None
            try:
                if processes.is_main() or step.kind is Kind.TRAIN:
                    if processes.is_main():
                        self.say(f"{where}{step.name}")
                    self._work(step, entry)
            except UserError as error:
                failure = str(error)
            except Exception as error:  # a bug costs the row, not those after it
                traceback.print_exc(file=sys.stderr)
                failure = f"{type(error).__name__}: {error}"
            failure = processes.agreed(failure)
            if failure is not None:
                self.failures[step.key] = failure
            elif processes.is_main():
                self._shed(step)
            return failure

    def _shed(self, child: Step) -> None:
        """The weights of transient parents go, where all that is made from them in this run is stored."""
        for parent in child.parents:
            if parent.transient and all(self.store.header(key) for key in self.users.get(parent.key, ())):
                self.store.shed(parent.key)
                self.there.discard(parent.key)

    def _decide(self, step: Step, held: contextlib.ExitStack, where: str) -> str:
        """Empty for a hit, ``work``, or why the step cannot be had."""
        if step.key in self.failures:
            return f"{step.name} failed: {self.failures[step.key]}"
        try:
            if self._stored(step):
                return ""
            waiting = lambda: self.say(f"{where}{step.name}: another run is at it, waiting")  # noqa: E731
            held.enter_context(self.store.lock(step.key, waiting))
            return "" if self._stored(step) else "work"
        except UserError as error:
            return str(error)

    def _stored(self, step: Step) -> bool:
        """Whether the result can be used: it is whole, and no time that another run took."""
        if step.key in self.there:
            return True
        if step.kind in self.job.fresh or (step.kind is Kind.TIME and not self.job.reuse_times):
            return False
        if self.store.load(step.key) is None:
            return False
        self.there.add(step.key)
        return True

    def _work(self, step: Step, entry: Planned) -> None:
        job, store = self.job, self.store
        context = Context(
            lambda: _images(job, entry.scale, entry.size, step.source),
            job.device,
            job.progress,
            store.work(step.key),
            job.workers,
            job.weights,
            tuple(parent.key for parent in step.parents),
            self.memory.setdefault(step.source, {}),
            step.name,
        )
        parents = [_result(store, parent) for parent in step.parents]
        begin = time.monotonic()
        result = step.run(context, parents, step.params)
        if processes.is_main():
            store.save(step.key, result, self._about(step, entry, time.monotonic() - begin))
        self.there.add(step.key)
        self.made.add(step.key)

    def _about(self, step: Step, entry: Planned, seconds: float) -> dict[str, Any]:
        """What is stored beside a step's result: what it was, and the provenance that makes it repeatable."""
        return {
            "step": step.name,
            "kind": step.kind.value,
            "run": step.run_name,
            "params": canonical(step.params),
            "parents": [parent.key for parent in step.parents],
            "code": step.code.hash,
            "roots": sorted(step.roots),
            "work": step.work,
            "seconds": round(seconds, 2),
            "provenance": {
                "code": provenance.git_state(),
                "source": step.code.hash,
                "versions": provenance.versions(),
                "hardware": {**provenance.hardware(self.job.device), "processes": processes.launched()},
                "data": _data(entry, self.job, step.source),
                "date": provenance.now(),
            },
        }


def _label(entry: Planned, job: Job) -> str:
    images = job.images.get(_place(job, entry.scale, entry.size, OWN))
    return images.name if images is not None else Path(entry.scale).name


def _data(entry: Planned, job: Job, source: Source = OWN) -> dict[str, Any] | None:
    images = job.images.get(_place(job, entry.scale, entry.size, source))
    if images is None:
        return None
    problems = {"problems": images.problems} if images.problems or isinstance(images, DetectionSet) else {}
    return {"name": images.name, "fingerprint": images.fingerprint, "protocol": images.protocol, **problems}


def description(entry: Planned, job: Job) -> dict[str, Any]:
    """The setting of a row that can run, as its file holds it."""
    assert entry.setting is not None
    further = {name: _data(entry, job, one.data.source) for name, one in entry.setting.further.items()}
    given = None if job.weights is None else {"file": job.weights.name, "sha256": entry.setting.weights}
    return {
        "scale": _label(entry, job),
        "folder": entry.scale not in bench.data.SCALES,
        "data": _data(entry, job),
        "seeds": list(entry.setting.seeds),
        "weights": given,
        "device": job.device,
        **({"further": further} if further else {}),
        **({"amp": True} if job.amp else {}),
        **({"paper_schedule": True} if job.paper_schedule else {}),
        **({"round": job.multiple} if job.multiple is not None else {}),
        **({"strict": True} if job.strict else {}),
        **({"chosen_device": True} if job.device != default_device() else {}),
    }


def _result(store: Store, step: Step) -> Result:
    result = store.load(step.key)
    if result is None:
        raise UserError(f"the stored result of {step.name} has gone or is damaged: run the same command again")
    return result


def run(
    planned: Sequence[Planned], job: Job, store: Store, say: Say = lambda text: None, watch: Watch | None = None
) -> list[Outcome]:
    """Runs the rows one after the other in this process; every row ends in one outcome."""
    memory.settle()
    engine = Engine(job, store, say)
    for step, _ in steps_of(planned):
        for parent in step.parents:
            engine.users.setdefault(parent.key, set()).add(step.key)
    found = []
    for number, entry in enumerate(planned, start=1):
        where = f"[row {number}/{len(planned)}] {entry.id}"
        engine.say = lambda text, where=where: say(f"{where} {text}")  # type: ignore[misc]
        with _watched(watch, entry, job) as done:
            found.append(engine.run_row(entry))
            done.append(found[-1])
        if found[-1].status == FAILED and processes.is_main():
            say(f"{entry.id}: failed: {found[-1].reason}")
    return found


@contextlib.contextmanager
def _watched(watch: Watch | None, entry: Planned, job: Job) -> Iterator[list[Outcome]]:
    """Tells ``watch`` of a row that can run: that it begins, and how it ended, which the caller puts into the list."""
    done: list[Outcome] = []
    if watch is None or entry.chain is None:
        yield done
        return
    watch.began(entry.id, description(entry, job))
    try:
        yield done
    finally:
        watch.ended(done[0].file if done else None)


def run_isolated(
    planned: Sequence[Planned], job: Job, say: Say = lambda text: None, watch: Watch | None = None
) -> list[Outcome]:
    """Runs each row in a process of its own, so that a crash costs one row; a fork server imports everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.runner", *(f"reproductions.{key}" for key in _keys(planned))])
    bare = replace(job, images={}, values={}, fitting=set())
    found = []
    for number, entry in enumerate(planned, start=1):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_in_child, args=(sender, entry.id, bare, f"[row {number}/{len(planned)}] "))
        with _watched(watch, entry, job) as done:
            process.start()
            sender.close()
            try:
                found.append(receiver.recv())
            except EOFError:
                process.join()
                code = process.exitcode or 0
                reason = f"its process died of signal {-code}" if code < 0 else f"its process ended with status {code}"
                found.append(Outcome(entry.id, FAILED, reason))
            process.join()
            done.append(found[-1])
        if found[-1].status == FAILED:
            say(f"{entry.id}: failed: {found[-1].reason}")
    return found


def _keys(planned: Sequence[Planned]) -> list[str]:
    return list(dict.fromkeys(entry.paper.key for entry in planned))


def _in_child(sender: Any, name: str, job: Job, where: str) -> None:
    paper = papers()[name.partition("/")[0]]
    (entry,) = plan(paper, [paper.ids[name]], job)
    store = Store(job.out)
    memory.settle()
    engine = Engine(job, store, lambda text: print(f"{where}{name} {text}", file=sys.stderr, flush=True))
    sender.send(engine.run_row(entry))


# --------------------------------------------------------------------------------------------------------------------
# What a plan says

# how many threads' work a GPU does: rough, until the store knows better
_GPU_THREADS = 100


def expected_seconds(step: Step, learned: Mapping[tuple[str, str], float]) -> float:
    """The step's duration: its cost in GMACs times what a GMAC of such steps took in this store, else elsewhere."""
    device = step.device.split(":")[0]
    if (step.run_name, device) in learned:
        return learned[step.run_name, device] * (step.work or 1.0)
    threads = _GPU_THREADS if device == "cuda" else torch.get_num_threads()
    return step.work / (step.rate * threads) if step.rate else 0.0


def learned_costs(store: Store | None) -> dict[tuple[str, str], float]:
    """Seconds a GMAC (a step, where its cost is 0) by function and device: the median over the steps stored."""
    found: dict[tuple[str, str], list[float]] = {}
    for key in store.stored() if store is not None else []:
        header = store.header(key) if store is not None else None
        if header is not None and "run" in header:
            device = header["provenance"]["hardware"]["device"].split(":")[0]
            found.setdefault((header["run"], device), []).append(header["seconds"] / (header["work"] or 1.0))
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}
