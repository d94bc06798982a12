"""``bench latency``: what is timed, for how long, and what is written."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import began, processes, provenance
from bench.errors import UserError
from bench.latency import report, sensitivity, staircase, suite
from bench.latency.campaign import OVERHEAD, TIME_OVER, Campaign, forked, fresh, serve
from bench.latency.contestants import FORWARD, LAYOUTS
from bench.latency.point import MOST_SECONDS, Effort, Point
from bench.latency.suite import Where
from bench.rows import slug

FOLDER = "latency"
DEFAULT_BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 32, 128)}
# a suite's time in minutes, where it has to fit a lent machine
MINUTES = {"gpu": 9.0, "cpu": 12.0}
# fresh processes a point: on a CPU they differ by more (places in memory) than a process's own rounds do, so that many
# short ones say more in the same time
PROCESSES = {"cpu": 10, "cuda": 5}
# how a measuring process begins, as records say it
LAUNCHES = {"cpu": ("fresh interpreter", fresh), "cuda": ("forked from a server", forked)}


@dataclass(frozen=True)
class Request:
    """What the command line asked for; None where it left something to us."""

    names: Sequence[str]
    device: str
    suite: str | None = None
    batches: Sequence[int] | None = None
    dtypes: Sequence[str] | None = None
    layouts: Sequence[str] = LAYOUTS
    mode: str = FORWARD
    compiled: bool = False
    multiple: int | None = None
    staircase: str | None = None
    sensitivity: bool = False
    size: int | None = None
    weights: str | None = None
    seconds: float | None = None
    processes: int | None = None
    minutes: float | None = None
    out: Path = Path("runs")


def run(request: Request, registry: Path, say: Callable[[str], None]) -> tuple[Any, str, int]:
    """Times what was asked for; the JSON value, the text and the exit status (1 where nothing could be timed).

    Raises :class:`UserError` for a mistake, before anything is timed.
    """
    _check(request)
    folder = request.out / FOLDER
    if request.sensitivity:
        return _sensitivity(request, folder, say)
    if request.staircase is not None:
        return _staircase(request, folder, say)
    launched, launch = LAUNCHES[request.device]
    if launch is forked:
        serve()  # while it imports, the points are planned
    chunks = _chunks(request, registry / FOLDER)
    quoted = suite.quoted(registry / FOLDER, registry)
    most = max(3, request.processes or PROCESSES[request.device])
    least = min(3, most)
    seconds = request.seconds or MOST_SECONDS[request.device]
    minutes = request.minutes or MINUTES.get(request.suite or "", math.inf)
    if request.suite == "gpu":  # many points in a short time: three processes, each a few seconds a point
        most, seconds = max(3, request.processes or 3), request.seconds or 12.0
    effort = Effort(seconds, least, most)
    limit = None if math.isinf(minutes) else 60.0 * minutes
    values: list[dict[str, Any]] = []
    text, broken = "", False
    with tempfile.TemporaryDirectory(prefix="bench-networks-") as place:
        built = Path(place) if request.device == "cuda" else None
        campaign = Campaign(
            effort, limit, say, launch, overhead=OVERHEAD[request.device], built=built, started=began.AT
        )
        for chunk in chunks:
            try:
                for one in campaign.run(chunk):
                    report.keep_samples(one, folder)
                    value = {**report.value_of(one, quoted), "launched": launched}
                    if one.runs or one.reason != TIME_OVER:  # of what was not begun there is nothing to keep
                        value["file"] = str(report.keep(one, value, folder))
                    values.append(value)
                name = request.suite or slug("-".join(request.names))[:60]
                text = report.text_of(values)
                report.write_summary(text, values, folder, f"{name}-{request.device}")
            except UserError:
                raise
            except Exception:  # a bug costs its chunk: a machine that is lent for minutes measures the others
                traceback.print_exc()
                broken = True
    status = 0 if any(value["not_measured"] is None for value in values) and not broken else 1
    shown = [{name: part for name, part in value.items() if name != "runs"} for value in values]
    return shown, f"{text}\n\nwritten: {folder}", status


def _check(request: Request) -> None:
    if processes.launched() > 1:
        raise UserError("bench latency starts its own processes: leave out torchrun")
    kinds = sum([bool(request.names), request.suite is not None, request.sensitivity])
    if kinds != 1:
        raise UserError("name a paper, a row, a model or a saved network, or give --suite, or --sensitivity")
    if request.processes is not None and request.processes < 2:
        raise UserError("an interval needs at least two processes: give --processes 3 or more")
    for option, number in (("seconds", request.seconds), ("minutes", request.minutes)):
        if number is not None and not 0.0 < number < math.inf:
            raise UserError(f"--{option} {number:g} is no time: give a number above 0")
    if request.seconds is not None and request.device == "cpu" and request.seconds > MOST_SECONDS["cpu"]:
        raise UserError(f"a point takes at most {MOST_SECONDS['cpu']:.0f} s on the CPU: give --seconds up to that")
    if request.multiple is not None and request.multiple not in (8, 16, 32):
        raise UserError("--round takes 8, 16 or 32")
    given = {
        "--dtype": request.dtypes is not None,
        "--mode": request.mode != FORWARD,
        "--compile": request.compiled,
        "--round": request.multiple is not None,
        "--staircase": request.staircase is not None,
        "--size": request.size is not None,
        "--weights": request.weights is not None,
    }
    ignored = [option for option, is_given in given.items() if is_given]
    if request.suite is not None and ignored:
        raise UserError(f"a suite says itself what it times: leave out {', '.join(ignored)}, or name the networks")
    if request.suite == "gpu" and request.device != "cuda":
        raise UserError("the suite gpu needs a CUDA device, and none is available here: choose --suite cpu")


def _where(request: Request) -> Where:
    dtypes = tuple(request.dtypes or (("tf32", "bf16") if request.device == "cuda" else ("fp32",)))
    batches = tuple(request.batches or DEFAULT_BATCHES[request.device])
    return Where(batches, dtypes, request.device, tuple(request.layouts), request.mode, request.compiled)


def _chunks(request: Request, folder: Path) -> list[list[Point]]:
    where = _where(request)
    if request.suite is not None:
        return suite.suite(request.suite, folder, where, request.batches)
    found = [one for name in request.names for one in suite.subjects(name, request.size, request.weights)]
    return suite.grouped(found, where, request.multiple)


def _staircase(request: Request, folder: Path, say: Callable[[str], None]) -> tuple[Any, str, int]:
    assert request.staircase is not None
    where = _where(request)
    suite.check(where)
    found = [one for name in request.names for one in suite.subjects(name, request.size, request.weights)]
    if len(found) != 1:
        raise UserError(f"--staircase looks at one network, and {' '.join(request.names)!r} names {len(found)}")
    values, texts = [], []
    for batch in where.batches:
        for dtype in where.dtypes:
            say(f"{found[0].name}, {request.staircase}: batch {batch}, {dtype}")
            seconds = request.seconds or MOST_SECONDS[request.device]
            stairs = staircase.measured(found[0], request.staircase, batch, dtype, request.device, seconds)
            hardware = provenance.hardware(request.device)
            stem = slug(f"staircase-{found[0].name}-{request.staircase}-b{batch}-{dtype}-{request.device}")
            stem = "--".join([stem, *report.hardware_slug(hardware)])
            staircase.keep(stairs, folder / stem, hardware)
            values.append({**stairs.to_json(), "file": str(folder / f"{stem}.csv")})
            texts.append(f"{stairs.name}: {stairs.advice()}")
    return values, "\n".join([*texts, f"written: {folder}"]), 0


def _sensitivity(request: Request, folder: Path, say: Callable[[str], None]) -> tuple[Any, str, int]:
    found = sensitivity.tried(10, request.device, say=say)
    name = "-".join(["sensitivity", request.device, *report.hardware_slug(provenance.hardware(request.device))])
    path = sensitivity.keep(found, request.device, folder / f"{name}.json")
    return found, f"{sensitivity.text(found)}\nwritten: {path}", 0 if sensitivity.passed(found) else 1


def request_of(options: Any) -> Request:
    """The request of parsed options."""
    device = options.device
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available here: leave out --device, or choose cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sys.path.insert(0, os.getcwd())  # MODULE:FACTORY of the user's own

    def words(text: str | None) -> tuple[str, ...] | None:
        return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())

    batches = words(options.batch)
    if batches is not None and not all(text.isdigit() for text in batches):
        raise UserError(f"--batch {options.batch!r} is no list of numbers: give e.g. 1,8,32")
    return Request(
        options.name,
        device,
        options.suite,
        None if batches is None else [int(text) for text in batches],
        words(options.dtype),
        words(options.layout) or LAYOUTS,
        options.mode,
        options.compile,
        options.round,
        options.staircase,
        options.sensitivity,
        options.size,
        None if options.weights is None else str(options.weights.resolve()),
        options.seconds,
        options.processes,
        options.minutes,
        options.out,
    )
