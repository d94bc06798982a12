"""Rows in processes of their own: forked from a server that has imported everything, and gone when their starter is."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

from tqdm import tqdm

from bench import memory, planning, threads
from bench.data import EMBEDDED
from bench.errors import UserError
from bench.planning import Job, Planned

# for the server: JSON pairs of a row's id and the embedded scale that it is planned at
ROWS = "BENCH_PRELOADED_ROWS"
# seconds that a process gets between the polite signal and the other one
_GRACE = 10.0


def server(module: str, wanted: Iterable[tuple[str, str]]) -> ForkServerContext:
    """A server that imports a module and what rows need once, from now on, and forks a clean process for each of them.

    ``wanted`` are the ids and scales of the rows.
    """
    # one row of each paper and scale: those of a paper share data and code
    rows = {(name.partition("/")[0], scale): name for name, scale in wanted if scale in EMBEDDED}
    knows = {ROWS: json.dumps([(name, scale) for (_, scale), name in rows.items()])}
    return started([module, "bench.preloaded"], knows)


def started(modules: list[str], knows: Mapping[str, str] | None = None) -> ForkServerContext:
    """A server, running from now on, that imports ``modules`` once, with ``knows`` in its environment."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(modules)
    # modules ask CUDA when they are imported whether there is any, and who asked it itself cannot be forked
    asks = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    # the server finds the packages that this process found, not those of the working directory
    finds = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "PYTHONSAFEPATH": "1"}
    with _environment({**(knows or {}), **asks, **finds}), _deaf():
        forkserver.ensure_running()
    return found


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started within does not hear Ctrl-C, which reaches every process of a terminal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def begin(count: int, of: int) -> None:
    """What a row's process does first: it takes ``count`` threads ``of`` so many, and its starter decides when it ends.

    Ctrl-C reaches every process of a terminal, and one of them has to say so; a starter that is killed says nothing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what is stored is whole at any moment
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    # of threads alone: the one that it would make for processes is a semaphore, left behind by who is terminated
    tqdm.set_lock(threading.RLock())
    threads.take(count, of)
    memory.settle()


def _end_with(starter: Any) -> None:
    starter.join()
    os._exit(1)


def planned(name: str, job: Job, keys: Set[str]) -> Planned:
    """A row as its process plans it.

    Raises :class:`UserError` where it is not what its starter planned, steps with ``keys``: what the code that was
    imported gives would be stored as of the code that is read.
    """
    paper = planning.scripts()[0][name.partition("/")[0]]
    (entry,) = planning.plan(paper, [paper.ids[name]], job)
    if {step.key for step, _ in planning.steps_of([entry])} != keys:
        raise UserError(
            "the code, the data or the packages have changed since this run began: run the same command again"
        )
    return entry


def stop(process: Any) -> None:
    """The process has ended afterwards: by itself, else by SIGTERM, else by SIGKILL."""
    process.join(0.5)
    for end in (process.terminate, process.kill):
        if process.is_alive():
            end()
            process.join(_GRACE)


def death(process: Any) -> str:
    """How a process ended that said nothing, in words."""
    process.join(_GRACE)
    code = process.exitcode
    if code is None:
        return "its process said nothing and did not end"
    memory = ", as where memory runs out" if code == -signal.SIGKILL else ""
    return f"its process died of signal {-code}{memory}" if code < 0 else f"its process ended with status {code}"
