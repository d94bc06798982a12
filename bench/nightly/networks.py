"""The released networks of a night: each evaluated again, away from the night's own process, which outlives them."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import bench.data
from bench import children, evaluate, saved, threads
from bench.errors import UserError
from bench.planning import Job

# the verdict on a network that could not be evaluated, though its data are here
FAILED = "failed"
# one network is stopped after so many seconds
LIMIT = 600.0
# of its budget a night's rows leave so many minutes for each network, and no more than this share of it
_EACH, _SHARE = 1.0, 0.1


def found(results: Path, papers: Collection[str]) -> dict[str, Path]:
    """The folders of the networks that ``results`` release of these papers, by name."""
    recipes = sorted(path for key in papers for path in results.glob(f"{key}/networks/*/{saved.RECIPE}"))
    return {str(path.parent.relative_to(results)): path.parent for path in recipes}


def minutes(count: int, budget: float) -> float:
    """What the rows of a night leave of its budget for so many networks."""
    return min(_EACH * count, _SHARE * budget)


def told(name: str, verdict: str, words: str, top1: float | None = None) -> dict[str, Any]:
    """What became of one network, as the night's state holds it."""
    return {"network": name, "verdict": verdict, "words": words, "top1": top1}


def evaluated(
    server: ForkServerContext, folders: Mapping[str, Path], job: Job, seconds: float, say: Callable[[str], None]
) -> Generator[dict[str, Any], None, None]:
    """What became of each network, in their order, as soon as it is known; all together may take ``seconds``.

    They share a process, which asks once for data that are not here.  A crash or a hang costs one network; those behind
    it have the next process.
    """
    waiting, end = list(folders), time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        with _process(server, {name: folders[name] for name in waiting}, job) as (receiver, process):
            alive = True
            while waiting and alive:
                name = waiting.pop(0)
                say(f"released network {name}")
                patience = max(0.0, min(LIMIT, end - time.monotonic()))
                if receiver.poll(patience):
                    try:
                        yield receiver.recv()
                    except (EOFError, OSError):  # before its report, or within
                        alive = False
                        yield told(name, FAILED, children.death(process))
                elif patience < LIMIT:
                    alive, end, waiting = False, 0.0, [name, *waiting]
                else:
                    alive = False
                    yield told(name, FAILED, f"no end after {LIMIT / 60:.0f} minutes")
    yield from (told(name, evaluate.INCOMPARABLE, "no time was left") for name in waiting)


@contextlib.contextmanager
def _process(server: ForkServerContext, folders: dict[str, Path], job: Job) -> Iterator[tuple[Any, Any]]:
    """A process that evaluates the networks one after the other, and the end of the pipe that it reports to."""
    receiver, sender = server.Pipe(duplex=False)
    bare = replace(job, images={}, values={}, fitting=set())
    process: Any = server.Process(target=_work, args=(sender, folders, bare, threads.whole()))
    process.start()
    sender.close()
    try:
        yield receiver, process
    finally:
        children.stop(process)
        receiver.close()


def _work(sender: Any, folders: dict[str, Path], job: Job, count: int) -> None:
    children.begin(count, count)
    for name, folder in folders.items():
        sender.send(_one(name, folder, job))


def _one(name: str, folder: Path, job: Job) -> dict[str, Any]:
    try:
        (one,) = evaluate.evaluate([folder], job.data, job.device, progress=False)
        return told(name, one.verdict, one.words, one.record.value)
    except UserError as error:
        return told(name, evaluate.INCOMPARABLE if _lacks_data(folder, job) else FAILED, str(error))
    except Exception as error:  # a bug costs this network, not those after it
        traceback.print_exc(file=sys.stderr)
        return told(name, FAILED, f"{type(error).__name__}: {error}")


def _lacks_data(folder: Path, job: Job) -> bool:
    """Whether the data that the network was measured on are not here: no fault of the network's."""
    try:
        scale = saved.facts_of(folder)["setting"]["scale"]
    except (UserError, KeyError):
        return False
    return bench.data.find(scale, job.data) is None
