"""Rows that run in processes of their own, some of them side by side, so that a crash costs one row."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from typing import Any

import torch

from bench import children, isolated, threads
from bench.errors import DiskFull, UserError
from bench.planning import Job, Planned, expected_seconds, learned_costs, steps_of
from bench.runner import FAILED, LOOK, Engine, Outcome, Say, Watch, tidied, users_of, watched
from bench.side_by_side import Needs, free, longest_first
from bench.steps import Kind
from bench.store import Store


def run(
    planned: Sequence[Planned],
    job: Job,
    server: ForkServerContext,
    say: Say = lambda text: None,
    watch: Watch | None = None,
    jobs: int = 1,
) -> list[Outcome]:
    """Runs each row in a process of its own, which ``server`` forks, so that a crash costs one row.

    ``jobs`` rows run at once, each on the threads of this process, those with the most work first as far as they need
    nothing of each other; rows that take times run alone.  The outcomes are in the order of the rows.
    """
    bare, store = replace(job, images={}, values={}, fitting=set()), Store(job.out)
    # times are taken anew in every run
    fresh = job.fresh if job.reuse_times else job.fresh | {Kind.TIME}
    needs = [Needs(entry) for entry in planned]
    users = users_of(planned)
    found: dict[int, Outcome] = {}
    learned = learned_costs(store)
    seconds = {step.key: expected_seconds(step, learned) for step, _ in steps_of(planned)}
    queue = longest_first(needs, seconds) if jobs > 1 else list(range(len(planned)))
    running: dict[Any, tuple[int, Any, contextlib.ExitStack, list[Outcome]]] = {}
    try:
        while queue or running:
            beside = [needs[place] for place, *_ in running.values()]
            first = None
            if len(running) < jobs:
                first = free([needs[place] for place in queue], beside, store, fresh, seconds=seconds)
            if first is not None:
                place = queue.pop(first)
                entry = planned[place]
                receiver, sender = server.Pipe(duplex=False)
                where = f"[row {place + 1}/{len(planned)}] "
                own = {key: users[key] for key in needs[place].needed if key in users}
                share = torch.get_num_threads(), threads.whole()
                arguments = (sender, entry.id, bare, needs[place].needed, where, share, own, jobs > 1)
                process = server.Process(target=_in_child, args=arguments)
                told = contextlib.ExitStack()
                # who watches is told of one row at a time: of rows that run at once when they have ended
                done = told.enter_context(watched(watch, entry, job)) if jobs == 1 else []
                process.start()
                sender.close()
                running[receiver] = (place, process, told, done)
                continue
            # what a row in the queue waits for may be stored before the row that makes it ends
            for ready in connection.wait(list(running), None if jobs == 1 else LOOK):
                place, process, told, done = running.pop(ready)
                outcome = found[place] = _received(ready, process, planned[place].id)
                if jobs > 1:
                    done = told.enter_context(watched(watch, planned[place], job))
                done.append(outcome)
                told.close()
                if outcome.status == FAILED:
                    say(f"{outcome.id}: failed: {outcome.reason}")
    finally:
        for _, process, told, _ in running.values():
            children.stop(process)
            told.close()
    if jobs > 1:
        tidied(planned, job)
    return [found[place] for place in range(len(planned))]


def _received(receiver: Any, process: Any, name: str) -> Outcome:
    """What a row's process said at its end, or how it died.  Raises the :class:`DiskFull` that ended it."""
    try:
        outcome: Outcome | DiskFull = receiver.recv()
    except (EOFError, OSError):  # before its report, or within
        outcome = Outcome(name, FAILED, children.death(process))
    children.stop(process)
    if isinstance(outcome, DiskFull):
        raise outcome
    return outcome


def _in_child(
    sender: Any,
    name: str,
    job: Job,
    keys: frozenset[str],
    where: str,
    share: tuple[int, int],
    users: dict[str, set[str]],
    beside_others: bool,
) -> None:
    children.begin(*share)
    try:
        entry = isolated.planned(name, job, keys)
        engine = Engine(job, Store(job.out), lambda text: print(f"{where}{name} {text}", file=sys.stderr, flush=True))
        engine.users, engine.keeps = users, beside_others
        sender.send(engine.run_row(entry))
    except DiskFull as error:
        sender.send(error)
    except UserError as error:
        sender.send(Outcome(name, FAILED, str(error)))
