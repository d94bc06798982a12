"""One point: a dense network and what was pruned from it, at one batch size, number format and device.

The contestants take turns in fresh processes (:mod:`bench.latency.worker`).  A first process tries every form and looks
at the layers; those after it time the dense network as it is and in every form, two of these twice (A/A), and each
pruned network as it is and in the form that was its best in the first process, in an order of their own.  Processes
follow until every speed-up's interval is narrow enough or the point's time is over; which condition was not met is kept
with the point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.latency.contestants import AS_IT_IS, FORWARD, Form, Subject
from bench.latency.interval import WIDEST, Estimate, estimate, judge, noise_floor

# contestants: a network's name, with a form in brackets where it is not as it is, and a suffix where it is timed twice
DENSE, TWICE, BEST = "dense", ", again", "(best)"
AGAIN = f"{DENSE}{TWICE}"
# calls by each clock, of all processes together, that a contestant needs before its point is precise enough
LEAST_CALLS = 100
# seconds of measuring a point may take on a processor, all processes together
MOST_SECONDS = {"cpu": 90.0, "cuda": 30.0}
OUT_OF_MEMORY = "out of memory"
_PLAIN = ("batch", "device", "dtype", "mode", "compiled", "layers", "seed")


def contestant(label: str, form: Form) -> str:
    """The name under which a network (``dense``, or a pruned one's) is timed in a form."""
    return label if form == AS_IT_IS else f"{label} [{form.name}]"


def form_of(label: str, name: str) -> str:
    """The form's name of a network's contestant."""
    return name.removeprefix(label).strip(" []") or AS_IT_IS.name


@dataclass(frozen=True)
class Effort:
    """How long is measured: at least ``least`` and at most ``most`` processes of ``seconds`` / ``most`` each.

    ``precision`` is the width of a speed-up's interval (a share) at which no further process is started.
    """

    seconds: float = 90.0
    least: int = 3
    most: int = 5
    precision: float = 0.01


@dataclass(frozen=True)
class Point:
    """What is timed where.  ``mode`` is one of ``MODES``; ``layers``: whether each layer's time is taken too."""

    dense: Subject
    networks: tuple[Subject, ...]
    batch: int
    device: str
    dtype: str = "fp32"
    mode: str = FORWARD
    layouts: tuple[str, ...] = ("nchw", "nhwc")
    compiled: bool = False
    layers: bool = True
    seed: int = 0

    @property
    def name(self) -> str:
        """In words."""
        mode = "" if self.mode == FORWARD else f", {self.mode}"
        return f"{self.dense.name}, batch {self.batch}, {self.dtype}, {self.device}{mode}"

    @property
    def key(self) -> str:
        """A short digest of all that defines it, for the names of its files."""
        return hashlib.sha256(repr(sorted(self.about().items())).encode()).hexdigest()[:10]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {
            "dense": self.dense.to_json(),
            "networks": [subject.to_json() for subject in self.networks],
            "layouts": list(self.layouts),
            **plain,
        }

    def about(self) -> dict[str, Any]:
        """The same for records: no place on this machine is in it."""
        networks = [subject.about() for subject in self.networks]
        return {**self.to_json(), "dense": self.dense.about(), "networks": networks}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Point:
        """The inverse of :meth:`to_json`."""
        subjects = tuple(Subject.from_json(one) for one in value["networks"])
        plain = {name: value[name] for name in _PLAIN}
        return cls(Subject.from_json(value["dense"]), subjects, layouts=tuple(value["layouts"]), **plain)


@dataclass
class Run:
    """What one process measured of a point.

    ``samples[clock][contestant]``: seconds, rounds x 2 x calls; ``failed`` contestants with the reason; ``about`` the
    machine, the stop, the checks.
    """

    device: str
    samples: dict[str, dict[str, NDArray[np.float64]]]
    failed: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def rounds(self, clock: str, name: str) -> NDArray[np.float64]:
        """One observation a round: the mean of the medians of its two turns."""
        return np.asarray(np.median(self.samples[clock][name], axis=2).mean(axis=1))


@dataclass
class Measured:
    """A point with all its runs and what its first process found.

    ``stopped`` says why no further process was started, ``reason`` why there is nothing, if so.
    """

    point: Point
    first: dict[str, Any]
    runs: list[Run]
    stopped: str
    seconds: float = 0.0
    reason: str | None = None

    @property
    def clocks(self) -> list[str]:
        """The clocks that every process read."""
        found = [list(run.samples) for run in self.runs]
        return [clock for clock in found[0] if all(clock in clocks for clocks in found)] if found else []

    def names(self, clock: str) -> list[str]:
        """The contestants that every process timed by a clock."""
        found = [list(run.samples[clock]) for run in self.runs]
        return [name for name in found[0] if all(name in names for names in found)]

    def latency(self, clock: str, name: str) -> Estimate:
        """In ms."""
        return estimate([1e3 * run.rounds(clock, name) for run in self.runs])

    def speedup(self, clock: str, over: str, name: str) -> Estimate:
        """How many times faster ``name`` is than ``over``, paired in rounds."""
        return estimate([ratios(run, clock, over, name) for run in self.runs])

    def twice(self, clock: str) -> list[str]:
        """The contestants that were timed against themselves."""
        names = self.names(clock)
        return [name for name in names if f"{name}{TWICE}" in names]

    def floor(self, clock: str) -> float:
        """The noise floor, the largest of what was timed against itself; infinite where nothing was."""
        floors = [noise_floor(self.speedup(clock, name, f"{name}{TWICE}")) for name in self.twice(clock)]
        return max(floors, default=float("inf"))

    def timed(self, label: str, clock: str | None = None) -> list[str]:
        """The contestants that are a network in one of its forms, by a clock or by any."""
        names = dict.fromkeys(name for one in self.clocks if clock in (None, one) for name in self.names(one))
        return [n for n in names if n == label or (n.startswith(f"{label} [") and not n.endswith(TWICE))]

    def untimed(self, clock: str, label: str) -> list[str]:
        """The forms of a network that other clocks timed and this one did not."""
        here = self.timed(label, clock)
        return [form_of(label, name) for name in self.timed(label) if name not in here]

    def best(self, clock: str, label: str) -> str | None:
        """The contestant that is a network's fastest form by a clock; None where one of its forms was not timed."""
        names = self.timed(label, clock)
        if not names or self.untimed(clock, label):
            return None
        return min(names, key=lambda name: self.latency(clock, name).value)

    def verdict(self, clock: str, over: str, name: str, widest: float = WIDEST) -> str:
        """What may be said of a speed-up."""
        return judge(self.speedup(clock, over, name), self.floor(clock), widest)


def ratios(run: Run, clock: str, over: str, name: str) -> NDArray[np.float64]:
    """One a round of one process.  Both were timed in turns by the same clock on the same device, or this is a bug."""
    return run.rounds(clock, over) / run.rounds(clock, name)


def same_device(runs: Sequence[Run]) -> None:
    """Raises ValueError where times of different devices would be put together: CPU and GPU are never compared."""
    devices = {run.device for run in runs}
    if len(devices) > 1:
        raise ValueError(f"times of different devices cannot be compared: {', '.join(sorted(devices))}")


# of the points with these numbers, for so many seconds each, in one fresh process: a run, or why there is none
Launch = Callable[[Sequence[int], float], Sequence[Run | str]]


def replicated(
    points: Sequence[Point], firsts: Sequence[dict[str, Any]], launch: Launch, effort: Effort
) -> list[Measured]:
    """Fresh processes, each measuring all points that are not finished, until every point is.

    A point is finished when its speed-ups are precise enough, its time is over, it has had ``effort.most`` processes,
    or one of them could not measure it.
    """
    found = [Measured(point, first, [], "") for point, first in zip(points, firsts, strict=True)]
    for one in found:
        one.reason = one.first.get("failed")
        one.stopped = one.reason or ""
    while waiting := [number for number, one in enumerate(found) if not one.stopped]:
        for number, run in zip(waiting, launch(waiting, effort.seconds / effort.most), strict=True):
            found[number].stopped = after(found[number], run, effort)
    return found


def after(measured: Measured, run: Run | str, effort: Effort) -> str:
    """Adds a run; why the point is finished now, empty where it is not.

    Seconds of measuring are those that the runs say they took (``about["seconds"]``).
    """
    if isinstance(run, str):
        measured.reason = run if len(measured.runs) < 2 else None
        return run
    measured.runs.append(run)
    same_device(measured.runs)
    measured.seconds += float(run.about["seconds"])
    count, unmet = len(measured.runs), _unmet(measured, effort)
    if count >= effort.least and not unmet:
        return "precise enough"
    if count >= effort.most:
        return f"{count} processes; {unmet}"
    # an interval needs the least number of processes; another one must fit
    if count >= effort.least and measured.seconds * (count + 1) / count > effort.seconds:
        return f"{effort.seconds:g} s are over; {unmet}"
    return ""


def _unmet(measured: Measured, effort: Effort) -> str:
    """What is missing in words: speed-ups whose intervals are too wide, calls; empty where nothing is."""
    wide, few = [], []
    for clock in measured.clocks:
        for name in measured.names(clock):
            few.append((sum(run.samples[clock][name].size for run in measured.runs), name, clock))
            if name != DENSE:
                width = measured.speedup(clock, DENSE, name).width
                if width > effort.precision:
                    wide.append((width, name, clock))
    found = []
    if wide:
        width, name, clock = max(wide)
        text = "there is no interval yet" if width == float("inf") else f"{100 * width:.1f} % wide"
        found.append(
            f"{len(wide)} intervals are wider than {100 * effort.precision:g} %, that of {name} ({clock}) is {text}"
        )
    if few and min(few)[0] < LEAST_CALLS:
        calls, name, clock = min(few)
        found.append(f"fewer than {LEAST_CALLS} calls: {calls} of {name} ({clock})")
    return "; ".join(found)
