"""Runs planned rows: each step a cache hit or work, and what a row measured, written when whole."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import bench.data
from bench import memory, processes, provenance, rowfile, threads
from bench.data.annotations import DetectionSet
from bench.errors import DiskFull, UserError
from bench.planning import (
    Job,
    Planned,
    default_device,
    images_of,
    images_read,
    steps_of,
)
from bench.steps import OWN, Context, Kind, Source, Step, canonical, in_order
from bench.store import Result, Store

# seconds between two looks at what rows that run at once have stored
LOOK = 5.0
OK, FAILED, SKIPPED = "ok", "failed", "skipped"
Say = Callable[[str], None]


class Watch(Protocol):
    """Who is told of the rows as they run: id and setting when one begins, the file of what it measured at its end."""

    def began(self, name: str, setting: Mapping[str, Any]) -> None:
        """The work on a row begins."""

    def ended(self, file: Path | None) -> None:
        """It has ended; None for a row that failed."""


@dataclass(frozen=True)
class Outcome:
    """How a row ended: ``ok``, ``failed`` or ``skipped``, with the reason; the file that holds what it measured."""

    id: str
    status: str
    reason: str = ""
    file: Path | None = None


class Engine:
    """Runs planned rows one after the other on one store; under torchrun every process walks the same steps."""

    def __init__(self, job: Job, store: Store, say: Say = lambda text: None) -> None:
        self.job, self.store, self.say = job, store, say
        self.memory: dict[Source, dict[Any, Any]] = {}
        self.failures: dict[str, str] = {}  # by the step's key: it is not tried again in this run
        self.there: set[str] = set()  # looked at in this run, or made by it
        self.made: set[str] = set()  # made by this run
        self.users: dict[str, set[str]] = {}  # the steps of this run that each step is a parent of
        self.gone: set[str] = set()  # results that another run has shed since they were looked at
        self.keeps = False  # the weights of transient steps stay: rows that run beside this one may need them

    def run_row(self, entry: Planned) -> Outcome:
        """The row's steps are run where they are not stored, and its file is written when all are there.

        What goes wrong costs this row: a mistake of the user's is told in the reason, of a bug the traceback is
        printed.
        """
        if entry.chain is None:
            return Outcome(entry.id, SKIPPED, entry.reason or "", self._not_run(entry))
        leaves = [*entry.chain.networks, *entry.chain.records]
        failure = self._run(leaves, entry)
        if failure is not None and processes.told(bool(self.gone)):  # is made once more
            self.there -= self.gone
            self.gone.clear()
            self.failures = {key: why for key, why in self.failures.items() if why != failure}
            failure = self._run(leaves, entry)
        if failure is not None:
            return Outcome(entry.id, FAILED, failure)
        if processes.is_main():
            for step in in_order(leaves):  # a run that was killed may have left some
                self.shed(step)
        try:
            file = rowfile.write(self.store, entry, description(entry, self.job)) if processes.is_main() else None
        except ValueError as error:  # a bug of the script's costs its row, not the pages
            return Outcome(entry.id, FAILED, str(error))
        return Outcome(entry.id, OK, file=file)

    def _run(self, leaves: list[Step], entry: Planned) -> str | None:
        """All that ``leaves`` need is stored afterwards; else why not."""
        todo = self._missing(leaves)
        for number, step in enumerate(todo, start=1):
            failure = self._ensure(step, entry, f"[{number}/{len(todo)}] ")
            if failure is not None:
                return failure
        return None

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
                if isinstance(error, DiskFull) and processes.launched() == 1:
                    raise  # the rows after it would fail of it too
                failure = str(error)
            except Exception as error:  # a bug costs the row, not those after it
                traceback.print_exc(file=sys.stderr)
                failure = f"{type(error).__name__}: {error}"
            failure = processes.agreed(failure)
            if failure is not None:
                self.failures[step.key] = failure
            elif processes.is_main():
                self.shed(step)
            return failure

    def shed(self, child: Step) -> None:
        """The weights of transient parents go, where all that is made from them in this run is stored."""
        if self.keeps:
            return
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
            lambda: images_of(job, entry.scale, entry.size, step.source),
            job.device,
            job.progress,
            store.work(step.key),
            job.workers,
            job.weights,
            tuple(parent.key for parent in step.parents),
            self.memory.setdefault(step.source, {}),
            step.name,
        )
        parents = [self._result(parent) for parent in step.parents]
        begin = time.monotonic()
        with threads.alone() if step.kind is Kind.TIME else contextlib.nullcontext():
            result = step.run(context, parents, step.params)
            about = self._about(step, entry, time.monotonic() - begin)
        if processes.is_main():
            store.save(step.key, result, about)
        self.there.add(step.key)
        self.made.add(step.key)

    def _result(self, step: Step) -> Result:
        result = self.store.load(step.key)
        if result is None:
            self.gone.add(step.key)
            raise UserError(f"the stored result of {step.name} has gone or is damaged: run the same command again")
        return result

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
                "data": data_of(entry, self.job, step.source),
                "date": provenance.now(),
            },
        }


def _label(entry: Planned, job: Job) -> str:
    images = images_read(job, entry)
    return images.name if images is not None else Path(entry.scale).name


def data_of(entry: Planned, job: Job, source: Source = OWN) -> dict[str, Any] | None:
    """Name, fingerprint and protocol of a planned row's data, or of another source's; what was wrong with them."""
    images = images_read(job, entry, source)
    if images is None:
        return None
    problems = {"problems": images.problems} if images.problems or isinstance(images, DetectionSet) else {}
    return {"name": images.name, "fingerprint": images.fingerprint, "protocol": images.protocol, **problems}


def description(entry: Planned, job: Job) -> dict[str, Any]:
    """The setting of a row that can run, as its file holds it."""
    assert entry.setting is not None
    further = {name: data_of(entry, job, one.data.source) for name, one in entry.setting.further.items()}
    given = None if job.weights is None else {"file": job.weights.name, "sha256": entry.setting.weights}
    return {
        "scale": _label(entry, job),
        "folder": entry.scale not in bench.data.SCALES,
        "data": data_of(entry, job),
        "seeds": list(entry.setting.seeds),
        "weights": given,
        "device": job.device,
        **({"further": further} if further else {}),
        **({"amp": True} if job.amp else {}),
        **({"paper_schedule": True} if job.paper_schedule else {}),
        **({"round": job.multiple} if job.multiple is not None else {}),
        **({"networks": job.networks.name} if job.networks is not None else {}),
        **({"strict": True} if job.strict else {}),
        **({"chosen_device": True} if job.device != default_device() else {}),
    }


def users_of(planned: Sequence[Planned]) -> dict[str, set[str]]:
    """Which steps of these rows are made from which: the children's keys by the parent's."""
    found: dict[str, set[str]] = {}
    for step, _ in steps_of(planned):
        for parent in step.parents:
            found.setdefault(parent.key, set()).add(step.key)
    return found


def run(
    planned: Sequence[Planned], job: Job, store: Store, say: Say = lambda text: None, watch: Watch | None = None
) -> list[Outcome]:
    """Runs the rows one after the other in this process; every row ends in one outcome."""
    memory.settle()
    engine = Engine(job, store, say)
    engine.users = users_of(planned)
    found = []
    for number, entry in enumerate(planned, start=1):
        where = f"[row {number}/{len(planned)}] {entry.id}"
        engine.say = lambda text, where=where: say(f"{where} {text}")  # type: ignore[misc]
        with watched(watch, entry, job) as done:
            found.append(engine.run_row(entry))
            done.append(found[-1])
        if found[-1].status == FAILED and processes.is_main():
            say(f"{entry.id}: failed: {found[-1].reason}")
    return found


@contextlib.contextmanager
def watched(watch: Watch | None, entry: Planned, job: Job) -> Iterator[list[Outcome]]:
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


def tidied(planned: Sequence[Planned], job: Job) -> None:
    """The weights of steps on the way go now: while rows ran at once, another might have needed them."""
    engine = Engine(job, Store(job.out))
    engine.users = users_of(planned)
    for step, _ in steps_of(planned):
        if engine.store.header(step.key) is not None:
            engine.shed(step)
