"""Claims that were measured against a network that does no better than chance: to beat it says little."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.report.load import Line

# at chance is what has no more than this times what guessing gives
_NEAR = 1.5


def undecided(lines: Sequence[Line]) -> list[Line]:
    """A paper's lines; claims with a row at chance, in whatever setting it was measured, are undecided for that."""
    found = []
    for line in lines:
        weak = _weak_side(line, lines)
        if weak is not None and line.decision is not None:
            line = replace(line, decision=replace(line.decision, word="undecided", reason=f"{weak} is at chance"))
        found.append(line)
    return found


def _weak_side(line: Line, lines: Sequence[Line]) -> str | None:
    """Which row of a claim's is at chance, with its accuracy; None where neither is, or none was measured."""
    if line.claim is None:
        return None
    second = line.claim.second_table or line.claim.table
    sides = {(line.claim.table, line.claim.first), (second, line.claim.second)}
    for other in lines:
        same = other.setting.get("scale") == line.setting.get("scale")
        if same and other.ran and (other.table, other.name) in sides and _at_chance(other):
            return f"{other.name}, {other.cells['top1_acc'].value:.1f} %,"
    return None


def _at_chance(line: Line) -> bool:
    top1, classes = line.cells.get("top1_acc"), re.search(r"num_classes=(\d+)", line.recipe)
    return top1 is not None and classes is not None and top1.value <= _NEAR * 100.0 / int(classes[1])
