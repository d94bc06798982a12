"""The declared metrics as reports ask for them: by name, in order, in words."""

from __future__ import annotations

from bench import metrics
from bench.metrics import Metric


def metric(name: str, unit: str = "") -> Metric:
    """The metric of that name; one that nobody declares is printed with its own name and ``unit``."""
    return metrics.find(name) or Metric(name, name.replace("_", " "), unit, None, "")


def position(name: str) -> tuple[int, str]:
    """A sort key: the order of the declarations, unknown metrics behind by name."""
    names = list(metrics.declared())
    return (names.index(name) if name in names else len(names), name)


def meanings(names: set[str]) -> list[str]:
    """One line for each of these metrics that is declared: name, unit, meaning, better direction."""
    lines = []
    for name in sorted(names & set(metrics.declared()), key=position):
        known = metric(name)
        better = f" {known.better.capitalize()} is better." if known.better else ""
        lines.append(f"**{known.title}** (`{name}`): {known.meaning}{better}")
    return lines
