"""Rows in processes of their own (:mod:`bench.children`), forked from a server that has imported everything."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping, Set
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

from bench import children, planning
from bench.data import EMBEDDED
from bench.errors import UserError
from bench.planning import Job, Planned

# for the server: JSON pairs of a row's id and the embedded scale that it is planned at
ROWS = "BENCH_PRELOADED_ROWS"


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
    with children.environment({**(knows or {}), **asks, **finds}), children.deaf():
        forkserver.ensure_running()
    return found


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
