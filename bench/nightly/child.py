"""One row in a process of its own, which may crash, hang or be killed without the night."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerContext
from typing import Any

import torch

from bench import children, isolated, runner, threads
from bench.errors import DiskFull, UserError
from bench.nightly.order import FRESH
from bench.planning import Job, Planned, steps_of
from bench.steps import Kind, in_order
from bench.store import Store

CRASHED, HUNG = "crashed", "hung"
# the kinds of step whose results are checkpoints
_CHECKPOINTS = (Kind.LOAD, Kind.TRAIN, Kind.PRUNE)


@dataclass(frozen=True)
class Report:
    """How one row ended.

    ``status`` is the runner's (``ok``, ``failed``, ``skipped``), ``crashed`` or ``hung``; ``reused`` and ``made`` count
    the checkpoints that were there and that this night made, ``measured`` are the keys of the steps that it measured.
    """

    id: str
    status: str
    reason: str = ""
    minutes: float = 0.0
    file: str | None = None
    reused: int = 0
    made: int = 0
    measured: tuple[str, ...] = ()


class Running:
    """A row at ``entry.scale`` in a process of its own, on as many threads as this one has, from now on.

    ``measured`` are steps that this night has measured; the row may take ``limit`` seconds.  ``users`` are the steps of
    the night that its steps are parents of; ``keeps``: the weights of steps on the way stay, because rows that run
    beside this one may need them.
    """

    def __init__(
        self,
        server: ForkServerContext,
        entry: Planned,
        job: Job,
        measured: Iterable[str],
        limit: float,
        users: Mapping[str, set[str]],
        keeps: bool = False,
        where: str = "",
    ) -> None:
        self.id, self.begin, self.limit = entry.id, time.monotonic(), limit
        self.receiver, sender = server.Pipe(duplex=False)
        bare = replace(job, images={}, values={}, fitting=set(), scale=entry.scale, fresh=FRESH)
        share = torch.get_num_threads(), threads.whole()
        keys = frozenset(step.key for step, _ in steps_of([entry]))
        work = (sender, entry.id, bare, keys, tuple(measured), share, users, keeps, where)
        self.process: Any = server.Process(target=_work, args=work)
        self.process.start()
        sender.close()

    @property
    def left(self) -> float:
        """Seconds until it is taken for hanging; at least 0."""
        return max(0.0, self.begin + self.limit - time.monotonic())

    def report(self) -> Report | None:
        """How it ended, after which there is no process any more; None while it runs within its limit.

        Raises the :class:`DiskFull` that ended it.
        """
        if not self.receiver.poll():
            if self.left:
                return None
            found: Report | DiskFull = Report(self.id, HUNG, f"no end after {self.limit / 60:.0f} minutes")
        else:
            try:
                found = self.receiver.recv()
            except (EOFError, OSError):  # before its report, or within
                found = Report(self.id, CRASHED, children.death(self.process))
        self.stop()
        if isinstance(found, DiskFull):
            raise found
        return replace(found, minutes=(time.monotonic() - self.begin) / 60.0)

    def stop(self) -> None:
        """The process has ended afterwards: by itself, else by SIGTERM, else by SIGKILL."""
        children.stop(self.process)
        self.receiver.close()


def _work(
    sender: Any,
    name: str,
    job: Job,
    keys: frozenset[str],
    measured: tuple[str, ...],
    share: tuple[int, int],
    users: dict[str, set[str]],
    keeps: bool,
    where: str,
) -> None:
    children.begin(*share)
    say: Callable[[str], None] = lambda text: print(f"{where}{name} {text}", file=sys.stderr, flush=True)  # noqa: E731
    try:
        entry = isolated.planned(name, job, keys)
        engine = runner.Engine(job, Store(job.out), say)
        engine.there.update(measured)
        engine.users, engine.keeps = users, keeps
        outcome = engine.run_row(entry)
    except DiskFull as error:
        sender.send(error)
        return
    except UserError as error:
        sender.send(Report(name, runner.FAILED, str(error)))
        return
    steps = [] if entry.chain is None else in_order([*entry.chain.networks, *entry.chain.records])
    checkpoints = [step for step in steps if step.kind in _CHECKPOINTS]
    made = sum(step.key in engine.made for step in checkpoints)
    sender.send(
        Report(
            name,
            outcome.status,
            outcome.reason,
            0.0,
            None if outcome.file is None else str(outcome.file),
            len(checkpoints) - made,
            made,
            tuple(step.key for step in steps if step.kind in FRESH and step.key in engine.made),
        )
    )
