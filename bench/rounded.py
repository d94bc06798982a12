"""Rows of shares as text: row files keep the curves and maps that figures draw, a line each, to three decimals."""

from __future__ import annotations

from collections.abc import Iterable


def text(values: Iterable[float]) -> str:
    """``0.5 0.333 1``: finite values to three decimals, a space between."""
    return " ".join(f"{round(float(value), 3):g}" for value in values)


def values(line: str) -> list[float]:
    """What :func:`text` wrote."""
    return [float(part) for part in line.split()]
