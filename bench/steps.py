"""Steps: named pure functions of their parents, parameters and seed, content-addressed by a key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import provenance
from bench.store import Result, digest


@dataclass
class Context:
    """What a step may use besides its parents: the data, the device, a folder for unfinished work, a memory.

    ``data()`` is an :class:`ImageSet` or a :class:`DetectionSet`, as the row's kind of data says.
    ``parents`` are the keys of the parents' results.  ``memory`` keeps large intermediate values (the original network's responses) between the steps of one process; it
    must hold nothing but pure functions of the key it is stored under.
    """

    data: Callable[[], Any]
    device: str
    progress: bool
    work: Path = Path()
    workers: int = 0
    weights_file: Path | None = None
    parents: tuple[str, ...] = ()
    memory: dict[Any, Any] = field(default_factory=dict)

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value under ``key``, made once; only the latest few are kept."""
        if key not in self.memory:
            while len(self.memory) >= 3:  # calibrations are large; the oldest goes
                self.memory.pop(next(iter(self.memory)))
            self.memory[key] = make()
        return self.memory[key]


@dataclass(frozen=True)
class Step:
    """One node of the graph.

    ``run(context, parents' results, parameters)`` must be a module-level function: the source of its module, and of
    all modules of ours that it imports, is part of the key.  ``params`` are JSON values and must hold the seed where
    there is one.  ``data`` is the data fingerprint (None for steps that read no data), ``work`` the expected cost in
    GMACs (for the plan's minutes).  ``trains`` marks the steps that all processes of a torchrun share; the others are
    the first process's alone.
    """

    name: str
    run: Callable[[Context, list[Result], dict[str, Any]], Result]
    parents: tuple[Step, ...]
    params: dict[str, Any]
    data: str | None
    device: str
    work: float = 0.0
    trains: bool = False

    @functools.cached_property
    def key(self) -> str:
        """sha256 of parents' keys, parameters, data fingerprint, source, torch version, device kind and threads."""
        return digest(
            {
                "name": self.run.__qualname__,
                "parents": [parent.key for parent in self.parents],
                "params": self.params,
                "data": self.data,
                "source": provenance.source_hash(self.run.__module__),
                "torch": torch.__version__,
                "device": self.device.split(":")[0],
                "threads": torch.get_num_threads(),
            }
        )[:32]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.key == other.key


def in_order(leaves: list[Step]) -> list[Step]:
    """All steps behind ``leaves``, each once, parents before children, in the order in which they are first needed."""
    found: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in found:
            for parent in step.parents:
                visit(parent)
            found[step.key] = step

    for leaf in leaves:
        visit(leaf)
    return list(found.values())
