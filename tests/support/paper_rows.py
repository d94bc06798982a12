"""What the tests of the papers' declarations share: a row's chain of steps at a scale, and the way to a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.rows import Chain, Row, Setting
from bench.steps import DataValue, Source, Step
from bench.train.schedule import Schedule

IMAGES = {"digits": 1437, "clutter": 4191, "cifar10": 50_000, "imagenet": 1_281_167}


def setting(scale: str, seeds: tuple[int, ...] = (0,), data: str = "own", **choices: Any) -> Setting:
    """The setting at a scale; ``data`` name the data in their source, ``choices`` are other fields of the setting."""
    classes = 1000 if scale == "imagenet" else 10
    value = DataValue(data, f"{data}, augmented", Source(data))
    return replace(Setting(scale, value, classes, IMAGES[scale], 2000, "cpu", seeds, None), **choices)


def chain_of(row: Row, scale: str, seeds: tuple[int, ...] = (0,), **choices: Any) -> Chain:
    """The row's steps at a scale, its further data beside its own."""
    assert row.dense is not None and row.chain is not None
    further = {
        name: setting(source.scale or scale, seeds, source.protocol or str(source.scale), **choices)
        for name, source in row.further(scale).items()
    }
    where = setting(scale, seeds, further=further, **choices)
    return row.chain(where, row.dense(scale, where.classes, where.weights is not None))


def path(step: Step) -> list[Step]:
    """The step and its first parents, the dense network first."""
    found = [step]
    while found[0].parents:
        found.insert(0, found[0].parents[0])
    return found


def schedules(chain: Chain) -> list[Schedule]:
    """Those of all trainings behind a chain."""
    found, waiting, seen = [], [*chain.networks, *chain.records], set()
    while waiting:
        step = waiting.pop()
        if id(step) not in seen:
            seen.add(id(step))
            waiting += step.parents
            found += [step.params.schedule] if hasattr(step.params, "schedule") else []
    return found
