"""Runs points in processes of their own; each is kept as soon as it is finished, what is cut off loses the rest."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from bench import isolated
from bench.errors import UserError
from bench.latency import worker
from bench.latency.contestants import FORWARD, Subject
from bench.latency.point import OUT_OF_MEMORY, Effort, Measured, Point, Run, replicated

TIME_OVER = "the run's time was over"
# a process that takes longer than twice its measuring and so many seconds a point hangs: an interpreter of its own has
# to import everything, and a processor to try every form
OVERHEAD = {"cpu": 900.0, "cuda": 90.0}
HANGS = "its process hung"
# what the server imports besides the worker: what builds and runs the networks of suites, and asks CUDA nothing
PRELOADED = ("bench.latency.worker", "bench.models.vgg", "bench.models.resnet", "bench.gating.skip")
_SERVER_LOST = 255
# a form is compiled within so many seconds and a quarter of what is left of the run, or it has failed
_COMPILE_SECONDS = 120.0

Say = Callable[[str], None]
# tasks in one fresh process, within so many seconds: for each its value and its samples, or why there is none
Fresh = Callable[[list[dict[str, Any]], float], list["Answer"]]
Answer = tuple[dict[str, Any], dict[str, Any]] | str


def fresh(tasks: list[dict[str, Any]], seconds: float) -> list[Answer]:
    """Runs tasks (:mod:`bench.latency.worker`) in a process of their own, from its first import on.

    A task that was not reached, because the process died or its time was over, is answered with the reason.  Raises
    :class:`UserError` for a mistake of the user's and, where a process fails before its first task, RuntimeError with
    the process's own words.
    """
    return _answered(_started, tasks, seconds)


def forked(tasks: list[dict[str, Any]], seconds: float) -> list[Answer]:
    """The same in a process that a server forks, which has imported everything once.

    For a GPU that is lent for minutes: there imports can take longer than a point.  What differs between processes on a
    GPU (its context, its memory, its clocks) begins behind the fork; on the CPU, where places in memory matter, every
    process is a fresh one.
    """
    return _answered(_forked, tasks, seconds)


def _started(tasks: Path, words: Path, seconds: float) -> int | None:
    """The exit status of a new interpreter (minus a signal's number), None where its time was over."""
    with words.open("w") as errors:
        command = [sys.executable, "-m", "bench.latency.worker", str(tasks)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            return process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
            process.wait()


def serve() -> ForkServerContext:
    """The server of :func:`forked`, which begins to import where it is not running yet."""
    return isolated.started(list(PRELOADED))


def _forked(tasks: Path, words: Path, seconds: float) -> int | None:
    process = serve().Process(target=worker.child, args=(tasks, words))
    process.start()
    try:
        process.join(max(1.0, seconds))
        # 255: the server is gone, and whoever killed it has killed the point
        return -signal.SIGKILL if process.exitcode == _SERVER_LOST else process.exitcode
    finally:
        process.kill()
        process.join()


def _answered(launch: Callable[[Path, Path, float], int | None], tasks: list[dict[str, Any]],
              seconds: float) -> list[Answer]:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-latency-") as place:
        folder = Path(place)
        for number, task in enumerate(tasks):
            task["out"] = str(folder / str(number))
        (folder / "tasks.json").write_text(json.dumps(tasks))
        status = launch(folder / "tasks.json", folder / "stderr", seconds)
        words = (folder / "stderr").read_text() if (folder / "stderr").exists() else ""
        if status is not None and status > 0 and not (folder / "0.json").exists():
            raise RuntimeError(f"a measuring process failed:\n{words}")
        if "Traceback" in words:  # of a point that failed; its reason is kept with it
            print(words, file=sys.stderr)
        reason = TIME_OVER
        if status is not None and status >= 0:
            last = (words.strip().splitlines() or [""])[-1]
            reason = f"its process ended with status {status}: {last[:200]}"
        elif status is not None:
            reason = OUT_OF_MEMORY if status == -signal.SIGKILL else f"its process died of signal {-status}"
        return [_answer(folder / str(number), reason) for number in range(len(tasks))]


def _answer(path: Path, reason: str) -> Answer:
    place = path.with_suffix(".json")
    if not place.exists():
        return reason
    value = json.loads(place.read_text())
    if "error" in value:
        raise UserError(value["error"])
    samples = path.with_suffix(".safetensors")
    return value, dict(load_file(samples)) if samples.exists() else {}


@dataclass
class Campaign:
    """Measures chunks of points; ``seconds`` is the time of the whole run (None: as long as it takes).

    ``overhead`` are the seconds a point that a process may take beside its measuring before it is said to hang;
    ``built`` a folder for networks that were built, where processes share them; ``started`` is the run's begin.
    """

    effort: Effort
    seconds: float | None = None
    say: Say = print
    fresh: Fresh = fresh
    clock: Callable[[], float] = time.monotonic
    overhead: float = OVERHEAD["cpu"]
    built: Path | None = None
    started: float | None = None

    def __post_init__(self) -> None:
        if self.started is None:
            self.started = self.clock()

    @property
    def left(self) -> float:
        """Seconds left of the run's time."""
        assert self.started is not None
        return float("inf") if self.seconds is None else self.seconds - (self.clock() - self.started)

    def run(self, points: Sequence[Point]) -> list[Measured]:
        """Points that share their networks, measured in the same processes, one after the other in each."""
        if self.left <= 0:
            return [Measured(point, {}, [], TIME_OVER, reason=TIME_OVER) for point in points]
        self.say(
            f"{points[0].dense.name}: {len(points)} points, {1 + len(points[0].networks)} networks; trying the forms"
        )
        answers = self._ask([self._first(point) for point in points], 0.0)
        firsts = [{"failed": answer} if isinstance(answer, str) else _failed_first(answer[0]) for answer in answers]
        passes = 0

        def launch(numbers: Sequence[int], seconds: float) -> list[Run | str]:
            nonlocal passes
            passes += 1
            if self.left <= 0:
                return [TIME_OVER] * len(numbers)
            self.say(f"{points[0].dense.name}: process {passes}, {len(numbers)} points of at most {seconds:.0f} s")
            tasks = [_measuring(points[number], firsts[number], seconds, passes) for number in numbers]
            return [_run(answer) for answer in self._ask(tasks, seconds * len(numbers))]

        return replicated(points, firsts, launch, self.effort)

    def _ask(self, tasks: list[dict[str, Any]], measuring: float) -> list[Answer]:
        for task in tasks if self.built is not None else ():
            task["built"] = str(self.built)
        most = measuring * 2.0 + self.overhead * len(tasks)
        if self.left <= most:
            return self.fresh(tasks, self.left)
        return [HANGS if answer == TIME_OVER else answer for answer in self.fresh(tasks, most)]

    def _first(self, point: Point) -> dict[str, Any]:
        """The task that tries every form; the compiled ones are tried before, each in a process that may hang."""
        compiled: dict[str, list[dict[str, Any]]] = {}
        failed: dict[str, dict[str, str]] = {}
        for subject in (point.dense, *point.networks) if point.compiled else ():
            if subject.gated or point.mode != FORWARD:
                continue
            for layout in point.layouts:
                form = self._compiled(point, subject, layout)
                if isinstance(form, str):
                    failed.setdefault(subject.name, {})[f"compiled, {layout}"] = form
                else:
                    compiled.setdefault(subject.name, []).append(form)
        return {"kind": "first", "point": point.to_json(), "compiled": compiled, "failed": failed}

    def _compiled(self, point: Point, subject: Subject, layout: str) -> dict[str, Any] | str:
        """The compiled form in a layout, or why there is none."""
        if self.left <= 0:
            return TIME_OVER
        self.say(f"{subject.name}: compiling ({layout})")
        task = {"kind": "compile", "point": point.to_json(), "subject": subject.to_json(), "layout": layout}
        (answer,) = self.fresh([task], min(self.left / 4.0, _COMPILE_SECONDS))
        if isinstance(answer, str):
            return "not compiled within its time" if answer == TIME_OVER else answer
        value, _ = answer
        return str(value["failed"]) if value["failed"] else dict(value["form"])


def _failed_first(value: dict[str, Any]) -> dict[str, Any]:
    """The first process's value, ``failed`` where the dense network cannot be timed."""
    if "failed" in value:
        return value
    dense = next(iter(value["networks"].values()))
    return {**value, "failed": dense["failed"]} if "failed" in dense else value


def _measuring(point: Point, first: dict[str, Any], seconds: float, process: int) -> dict[str, Any]:
    """Of the dense network and of gated ones every form is timed: which is the fastest, each clock says for itself."""
    forms = {}
    for subject in (point.dense, *point.networks):
        entry = first["networks"][subject.name]
        if "forms" in entry:
            whole = subject.gated or subject is point.dense
            forms[subject.name] = entry["forms"] if whole else [entry["best"], entry["best_eager"]]
    return {
        "kind": "measure",
        "point": point.to_json(),
        "forms": forms,
        "twice": first["networks"][point.dense.name]["best"],
        "seconds": seconds,
        "process": process,
    }


def _run(answer: Answer) -> Run | str:
    if isinstance(answer, str):
        return answer
    value, arrays = answer
    if "failed" in value:
        return str(value["failed"])
    samples: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        clock, _, contestant = name.partition("/")
        samples.setdefault(clock, {})[contestant] = np.asarray(array)
    # safetensors sorts names; the clocks and contestants have their own order
    about = {name: part for name, part in value.items() if name not in ("failed_contestants", "device")}
    ordered = {clock: samples[clock] for clock in value["clocks"]}
    return Run(value["device"], ordered, value["failed_contestants"], about)
