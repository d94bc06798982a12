"""One row in a process of its own, which may crash, hang or be killed without the night."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerContext
from typing import Any

from bench import memory, planning, runner
from bench.nightly.order import FRESH
from bench.planning import Job, Planned
from bench.steps import Kind, in_order
from bench.store import Store

CRASHED, HUNG = "crashed", "hung"
# the kinds of step whose results are checkpoints
_CHECKPOINTS = (Kind.LOAD, Kind.TRAIN, Kind.PRUNE)
# seconds that a process gets between the polite signal and the other one
_GRACE = 10.0


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


def context(papers: Iterable[str]) -> ForkServerContext:
    """A server that imports everything once and forks a clean process for each row."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["bench.nightly.child", *(f"reproductions.{key}" for key in papers)])
    return found


def run(
    server: ForkServerContext, entry: Planned, job: Job, measured: Iterable[str], limit: float, where: str = ""
) -> Report:
    """Runs a row at ``entry.scale``, at most ``limit`` seconds; ``measured`` are steps that this night has measured.

    On an interrupt the process is stopped too, and the interrupt goes on.
    """
    receiver, sender = server.Pipe(duplex=False)
    bare = replace(job, images={}, values={}, fitting=set(), scale=entry.scale, fresh=FRESH)
    process = server.Process(target=_work, args=(sender, entry.id, bare, tuple(measured), where))
    begin = time.monotonic()
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            return Report(entry.id, HUNG, f"no end after {limit / 60:.0f} minutes", (time.monotonic() - begin) / 60.0)
        report: Report = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        reason = f"its process died of signal {-code}" if code < 0 else f"its process ended with status {code}"
        if code == -signal.SIGKILL:
            reason += ", as where memory runs out"
        report = Report(entry.id, CRASHED, reason)
    finally:
        _stop(process)
        receiver.close()
    return replace(report, minutes=(time.monotonic() - begin) / 60.0)


def _stop(process: Any) -> None:
    """The process has ended afterwards: by itself, else by SIGTERM, else by SIGKILL."""
    process.join(0.5)
    for end in (process.terminate, process.kill):
        if process.is_alive():
            end()
            process.join(_GRACE)


def _work(sender: Any, name: str, job: Job, measured: tuple[str, ...], where: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what is stored is whole at any moment
    paper = planning.papers()[name.partition("/")[0]]
    (entry,) = planning.plan(paper, [paper.ids[name]], job)
    memory.settle()
    say: Callable[[str], None] = lambda text: print(f"{where}{name} {text}", file=sys.stderr, flush=True)  # noqa: E731
    engine = runner.Engine(job, Store(job.out), say)
    engine.there.update(measured)
    outcome = engine.run_row(entry)
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
