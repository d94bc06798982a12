"""All methods on the same network: which rows of all papers stand side by side, and which of them no other beats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report.cells import Cell
from bench.report.load import Line
from bench.report.tables import slug

# narrow networks and scans that all methods read: nothing to compare
_EMBEDDED = ("digits", "clutter", "scenes")
_SPEEDUPS, _COUNTS = ("dynamic_speedup", "speedup"), ("dynamic_macs", "macs")
_LEAST = 4
# speed-ups no further apart than this are one standing
_ALIKE = 1.15
# a network with a hundredth more MACs than another has as many
_AS_FEW = 0.99
# of the trainings in a row's history these are other networks': what it comes from, and dense ones tuned as long
_FROM, _BESIDE = "dense", "fine-tuned(dense"
_SPEED = re.compile(r",? ?\bat .*$|\b\d+(\.\d+)?x\b,? ?")


@dataclass(frozen=True)
class Entry:
    """One pruned network (over its seeds): the speed-up in MACs, top-1 and the MACs themselves."""

    line: Line
    speedup: float
    top1: Cell
    macs: Cell | None

    @property
    def method(self) -> str:
        """The row without its speed-up: what several entries have in common that differ in it."""
        return re.sub(r"\s+", " ", _SPEED.sub("", self.line.name)).strip(" ,") or self.line.name

    @property
    def dense(self) -> bool:
        """Whether it is the network that the others are pruned from, or that one trained longer."""
        return "dense" in self.line.name

    @property
    def epochs(self) -> int:
        """Epochs that its first seed was trained for after the dense network: fine-tuning, and sparse training too."""
        trainings = list(self.line.history.values())
        return sum(
            len(training["epochs"])
            for training in trainings
            if training["seed"] == trainings[0]["seed"]
            and not training["step"].startswith(_FROM)
            and (self.dense or not training["step"].startswith(_BESIDE))
        )


@dataclass(frozen=True)
class Group:
    """The entries of one network on one data set, starting from the same weights."""

    network: str
    scale: str
    entries: Sequence[Entry]

    @property
    def title(self) -> str:
        """Network and data in words, with the number of test images."""
        images = sorted({entry.top1.n for entry in self.entries if entry.top1.n})
        told = f", {' or '.join(f'{n:,}' for n in images)} test images" if images else ""
        return f"{self.network}, {self.scale}{told}"

    def name(self, entry: Entry) -> str:
        """The row's name, behind it its table's where its paper calls another network of that speed-up so too."""
        called, twins = _called(entry), sum(_called(other) == _called(entry) for other in self.entries)
        return called[1] if twins == 1 else f"{called[1]} ({entry.line.table.partition(' (')[0]})"

    @property
    def slug(self) -> str:
        """The title as a file name."""
        return slug(f"{self.network} {self.scale}")


def _called(entry: Entry) -> tuple[str, str, float]:
    return entry.line.paper, entry.line.name, round(entry.speedup, 2)


def groups(lines: Iterable[Line]) -> list[Group]:
    """The networks on which at least four pruned ones were measured, by name; a network that several rows show is one.

    Embedded data are left out, rows that are curves or contrasts, and those without top-1 or speed-up; and networks
    that were trained in the place of a dense one, for as long as their own ordinary network and not longer: how long
    both were trained would decide against those pruned from a network trained otherwise.
    """
    found: dict[tuple[str, ...], list[Entry]] = {}
    seen: dict[tuple[str, ...], set[Any]] = {}
    for line in lines:
        top1, data = line.cells.get("top1_acc"), line.setting.get("data") or {}
        speedup = next((line.cells[name] for name in _SPEEDUPS if name in line.cells), None)
        if not line.ran or top1 is None or speedup is None or line.setting.get("scale") in _EMBEDDED:
            continue
        weights = (line.setting.get("weights") or {}).get("sha256", "")
        trained = [one["step"] for one in line.history.values()]
        if trained and not weights and not any(step.startswith(_FROM) for step in trained):
            continue
        key = line.recipe, str(data.get("fingerprint")), str(data.get("protocol")), str(weights)
        evaluated: set[Any] = {name for name, step in line.steps.items() if step.get("kind") == "evaluate"}
        # measured twice, by two runs, it is still the same network: its outputs are as far from the dense one's
        kl = line.cells.get("kl")
        if kl is not None or speedup.value == 1.0:
            evaluated.add((speedup.value, top1.value, None if kl is None else kl.value))
        if evaluated & seen.setdefault(key, set()):
            continue
        seen[key] |= evaluated
        macs = next((line.cells[name] for name in _COUNTS if name in line.cells), None)
        found.setdefault(key, []).append(Entry(line, speedup.value, top1, macs))
    return [
        Group(key[0], entries[0].line.scale, [*_dense(entries), *(one for part in standings(entries) for one in part)])
        for key, entries in sorted(found.items())
        if sum(not entry.dense for entry in entries) >= _LEAST
    ]


def _dense(entries: Iterable[Entry]) -> list[Entry]:
    return sorted((entry for entry in entries if entry.dense), key=lambda one: (one.speedup, one.epochs))


def standings(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The pruned networks by speed-up, from the smallest: those within 15 % of a part's first together, best first."""
    parts: list[list[Entry]] = []
    for entry in sorted((entry for entry in entries if not entry.dense), key=lambda entry: entry.speedup):
        if parts and entry.speedup <= _ALIKE * parts[-1][0].speedup:
            parts[-1].append(entry)
        else:
            parts.append([entry])
    return [sorted(part, key=lambda entry: (-entry.top1.value, -entry.speedup)) for part in parts]


def speeds(part: Sequence[Entry]) -> str:
    """A standing in words: ``2.0x`` or ``1.9x to 2.1x``, and what of."""
    least, most = (f"{of(entry.speedup for entry in part):.1f}" for of in (min, max))
    return f"{f'{least}x' if least == most else f'{least}x to {most}x'} fewer MACs"


def front(entries: Sequence[Entry]) -> list[Entry]:
    """The pruned entries that no other beats: none trained no longer is more accurate at as few MACs (to a hundredth).

    By the values themselves: their intervals may lie on each other.  A dense network counts as not trained.
    """

    def beats(other: Entry, entry: Entry) -> bool:
        alike = other.dense or other.epochs <= entry.epochs
        return alike and other.speedup >= _AS_FEW * entry.speedup and other.top1.value > entry.top1.value

    return [entry for entry in entries if not entry.dense and not any(beats(other, entry) for other in entries)]
