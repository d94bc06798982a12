"""A run against a baseline, row by row and value by value (:mod:`bench.nightly.compared`).

Milliseconds are those of a machine's hour: an unchanged network takes half as long again while neighbours compute, and
no interval within a run sees that.  So a row that has ratios of its times is compared by these; the times of others are
compared in units of the first one of their clock, the dense network's, which was taken in turns with them; that one
itself fails no night.

Another processor, another number of threads or another version of a package rounds otherwise: it trains other networks,
as another seed does.  Beside such a baseline a value of these networks is better or worse only where there are seeds
enough to tell by how much they differ, and a size only by more than 5 %; a time only on the same hardware.  Packages
excuse nothing where the code that makes the networks, or a parameter of it, is another one too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import metrics
from bench.errors import UserError
from bench.measure.statistics import interval_of_change
from bench.nightly import baseline, compared, makings, matching
from bench.nightly.compared import FAILING, PAIRED, Compared, Place, Word
from bench.nightly.night import Night
from bench.report.cells import Cell
from bench.report.load import RAN, content, row_files
from bench.store import Store
from bench.verdict import LEAST_RUNS

# by so much sizes may differ that follow from data on other hardware
_SIZES = 0.05
_HARDWARE, _PACKAGES, _HOUR = "other hardware", "other packages", "another hour of the machine"
_HOW = "timed in another way"
# the excuses of networks that were made, and of times that were taken, elsewhere
ELSEWHERE = (_HARDWARE, _PACKAGES)


@dataclass(frozen=True)
class RowCheck:
    """One row: its values, and where one failed what differs in how the two were made.

    ``missing`` says why there are none; ``other`` in which choices the row is another one than the baseline's;
    ``unpaired`` why its accuracies were compared by their intervals alone, not image by image.
    """

    id: str
    scale: str
    compared: Sequence[Compared] = ()
    missing: str = ""
    differs: Sequence[str] = field(default_factory=tuple)
    other: str = ""
    unpaired: str = ""

    @property
    def word(self) -> Word:
        """The worst word of its values; of a row without any nothing can be told."""
        if self.missing:
            return Word.MISSING
        return Word.OTHER if self.other else compared.worst([one.word for one in self.compared])

    @property
    def reason(self) -> str:
        """Why nothing was compared; empty where something was."""
        return self.missing or self.other or ("" if self.compared else "nothing to compare")

    @property
    def failed(self) -> bool:
        """Whether it makes the exit status 1."""
        return self.word in FAILING


def measured(base: Path) -> dict[Path, dict[str, Any]]:
    """The measured rows of a baseline by their files.

    Raises :class:`UserError` where it holds none, or an unreadable one.
    """
    mend = f"check it out again, or make the baseline anew by `bench accept --baseline {base}`"
    files = {path: value for path in row_files(base) if (value := content(path, mend))["status"] == RAN}
    if not files:
        found = "no measured rows in" if base.is_dir() else "no folder"
        raise UserError(f"{found} {base}: make a baseline by `bench accept --from RUNS --baseline {base}`")
    return files


def check(runs: Path, base: Path, done: Night | None = None) -> list[RowCheck]:
    """Each row of the baseline ``base`` against the same row and setting in ``runs``.

    With the night ``done`` what it measured is compared.  A row of the baseline that it was asked for and has not is
    missing; what it had no time for, and what it was not asked for, is left out.  Raises :class:`UserError` where the
    baseline holds no measured row, or an unreadable one.
    """
    store = Store(runs) if (runs / "steps").is_dir() else None
    found = []
    rows = measured(base)
    held = {(before["id"], before["setting"]["scale"]) for before in rows.values()}
    for path, before in rows.items():
        if done is None:
            match = matching.in_run(before, runs, path.relative_to(base))
        elif (one := matching.in_night(before, done, runs, held)) is not None:
            match = one
        else:
            continue
        if match.now is not None:
            found.append(_row(path, before, match.now, store))
        else:
            name, scale = before["id"], before["setting"]["scale"]
            found.append(RowCheck(name, scale, missing=match.missing, other=match.other))
    return found


def _row(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], store: Store | None) -> RowCheck:
    old, new = compared.judged(before), compared.judged(now)
    paired = _paired(path, before, now, store)
    unpaired = paired if isinstance(paired, str) and any(place[0] in PAIRED for place in old) else ""
    by_ratio = {compared.ratio_s_clock(cell) for place, cell in old.items() if place in new}
    old = {
        place: cell for place, cell in old.items() if (clock := compared.clock(cell)) is None or clock not in by_ratio
    }
    drift = _drifts(old, new)
    firsts = set(drift)
    excuses = _Excuses(before, now)
    # what no script declares any more: nobody knows which way is better
    gone = {one["metric"]: one["value"] for one in before["records"] if metrics.find(one["metric"]) is None}
    found = [Compared(metric, value, None, 0.0, Word.MISSING) for metric, value in gone.items()]
    for place, cell in old.items():
        clock = compared.clock(cell)
        first = next((one for one in firsts if compared.clock(old[one]) == clock), None)
        known_before = compared.scaled(cell, drift[first]) if first is not None and place != first else cell
        pair = None
        if not isinstance(paired, str) and place[0] in PAIRED and place[2] is None:
            pair = (PAIRED[place[0]] * paired[0], *paired[1:])
        one = compared.compare(known_before, new.get(place), pair, place)
        if place in firsts:
            one = one.excused(_HOUR)
        found.append(one.excused(excuses.of(cell, one)))
    differs = makings.differences(before, now)
    return RowCheck(before["id"], before["setting"]["scale"], found, "", differs, unpaired=unpaired)


def _drifts(old: Mapping[Place, Cell], new: Mapping[Place, Cell]) -> dict[Place, float]:
    """The first time of each clock, and how many times as slow the machine is by it."""
    found: dict[Place, float] = {}
    seen = set[str]()
    for place, cell in old.items():
        clock = compared.clock(cell)
        if clock is not None and clock not in seen and place in new:
            seen.add(clock)
            found[place] = new[place].value / cell.value
    return found


class _Excuses:
    """Why a value may differ though neither the code nor a parameter changed."""

    def __init__(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        self.timed = "" if makings.processes(before) == makings.processes(now) else _HOW
        if not makings.alike(makings.timed_on(before), makings.timed_on(now)):
            self.timed = _HARDWARE
        self.made = _PACKAGES if makings.other_packages(before, now) else ""
        if not makings.alike(makings.made_on(before), makings.made_on(now)):
            self.made = _HARDWARE
        self.few = len(before["setting"].get("seeds", ())) < LEAST_RUNS

    def of(self, cell: Cell, one: Compared) -> str:
        """The reason that holds for a value; empty for none."""
        if compared.is_time(cell):
            return self.timed
        if compared.exact(cell):  # widths that follow from the data may be others by a channel or so
            return self.made if abs(one.difference or 0.0) <= _SIZES * abs(cell.value) else ""
        return self.made if self.few else ""


def _paired(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], store: Store | None
) -> tuple[float, float, int] | str:
    """Mean change of top-1 (points), half its 95 % interval and the number of changed predictions.

    Else why there is none: the two rows did not classify the same images, or the predictions were not kept.
    """
    if store is None:
        return "the run keeps no predictions"
    same = [(row["setting"].get("data") or {}).get("fingerprint") for row in (before, now)]
    if same[0] != same[1]:
        return "other images"
    kept = baseline.read(path)
    if not kept:
        return "the baseline keeps no predictions"
    fresh = baseline.predicted(now, store)
    if set(fresh) != set(kept):
        return "other networks than the baseline's, or predictions that are gone"
    if any(len(kept[name]) != len(fresh[name][0]) for name in kept):
        return "another number of images"
    labels, units = next(iter(fresh.values()))[1:]
    right_now = torch.stack([classes == labels for classes, _, _ in fresh.values()]).double()
    right_before = torch.stack([kept[name] == labels for name in fresh]).double()
    changed = sum(int((kept[name] != fresh[name][0]).sum()) for name in fresh)
    mean, low, high = interval_of_change(right_now - right_before, units)
    return 100.0 * mean, 50.0 * (high - low), changed


def text(found: Sequence[RowCheck]) -> str:
    """For people: what failed with its figures and what differs, then how many rows came to what."""
    lines = []
    for row in sorted(found, key=lambda one: not one.failed):
        if row.word is Word.SAME:
            continue
        lines.append(f"{row.word}: {row.id} ({row.scale})" + (f": {row.reason}" if row.reason else ""))
        lines += [f"  {compared.in_words(one)}" for one in row.compared if one.word is not Word.SAME]
        if row.failed and not row.missing:
            lines += [f"  {part}" for part in row.differs or ("the code, packages, data and device are the same",)]
    lines += unpaired(found)
    counts = {word: sum(row.word is word for row in found) for word in Word}
    lines.append(", ".join(f"{count} {word}" for word, count in counts.items() if count))
    return "\n".join(lines)


def unpaired(found: Sequence[RowCheck]) -> list[str]:
    """Which accuracies were compared by their intervals alone, which see less: a line for each reason."""
    reasons = Counter(row.unpaired for row in found if row.unpaired)
    return [
        f"{count} {'row' if count == 1 else 'rows'} not compared image by image ({reason}), but by the intervals"
        for reason, count in reasons.items()
    ]


def to_json(found: Sequence[RowCheck]) -> list[dict[str, Any]]:
    """For machines."""
    return [
        {
            "row": row.id,
            "scale": row.scale,
            "word": row.word,
            "missing": row.missing,
            "other": row.other,
            "unpaired": row.unpaired,
            "differs": list(row.differs),
            "metrics": [compared.to_json(one) for one in row.compared],
        }
        for row in found
    ]
