"""Claims to beat a network that was trained and does hardly better than chance: a training that failed is no rival.

One that was only pruned may well end at chance; that is what its criterion is worth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.report.load import Line

NEAR_CHANCE = "near chance"
# near chance is what has at most a fifth, or two points, more than guessing gives
_PART, _POINTS = 0.2, 2.0


def undecided(lines: Sequence[Line]) -> list[Line]:
    """A paper's lines; claims to beat a row that was trained and is near chance are undecided for that."""
    found = []
    for line in lines:
        weak = _weak_side(line, lines)
        if weak is not None and line.decision is not None:
            line = replace(
                line,
                decision=replace(line.decision, word="undecided", reason=f"{weak} was trained and is {NEAR_CHANCE}"),
            )
        found.append(line)
    return found


def _weak_side(line: Line, lines: Sequence[Line]) -> str | None:
    """The row that a claim says is beaten, with its accuracy, where that is near chance; else None.

    Where it was not measured in the claim's own setting, it is looked for on the same data in others.
    """
    if line.claim is None:
        return None
    side = line.claim.second_table or line.claim.table, line.claim.second
    rows = [other for other in lines if other.ran and (other.table, other.name) == side]
    found = [other for other in rows if other.scale == line.scale]
    found = found or [other for other in rows if other.setting.get("scale") == line.setting.get("scale")]
    weak = next((other for other in found if failed(other)), None)
    return None if weak is None else f"{weak.name}, {weak.cells['top1_acc'].value:.1f} %,"


def failed(line: Line) -> bool:
    """Whether the row's network was trained and is near chance."""
    return _trained(line) and _near_chance(line)


def _trained(line: Line) -> bool:
    """Whether anything but a dense network was trained for the row."""
    return any(not training["step"].startswith("dense") for training in line.history.values())


def _near_chance(line: Line) -> bool:
    top1, classes = line.cells.get("top1_acc"), re.search(r"num_classes=(\d+)", line.recipe)
    if top1 is None or classes is None:
        return False
    guess = 100.0 / int(classes[1])
    return top1.value <= guess + min(_PART * guess, _POINTS)
