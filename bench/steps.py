"""Steps: named pure functions of their parents, typed parameters and seed, content-addressed by a key."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench import code, provenance
from bench.models.recipe import Recipe
from bench.store import Result, digest

P = TypeVar("P")


class Kind(enum.StrEnum):
    """What a step does.  The kind says which part of the data and of the environment its key holds."""

    LOAD = "load"  # weights from a file
    TRAIN = "train"
    PRUNE = "prune"
    EVALUATE = "evaluate"
    COMPARE = "compare"  # arithmetic on evaluations
    TIME = "time"
    SIZE = "size"


# GMACs a second that one thread of a processor does in such steps, measured on two cores; a step may state its own
RATES = {Kind.TRAIN: 40.0, Kind.EVALUATE: 25.0, Kind.PRUNE: 9.0, Kind.TIME: 20.0}


@dataclass(frozen=True)
class Source:
    """Where data of a job come from, where they are not the row's own.

    Another ``scale`` (None: the row's); another ``protocol`` of ImageNet's evaluation (None: the job's); without what
    shows the same as the test images of the scale ``apart``.
    """

    scale: str | None = None
    protocol: str | None = None
    apart: str | None = None


OWN = Source()


@dataclass(frozen=True)
class DataValue:
    """The data as one value: content, protocol, size and transforms; ``training`` has the augmentation too.

    ``source`` says where a step finds them; it is no part of a key, which holds what they are.
    """

    plain: str
    training: str
    source: Source = OWN


@dataclass
class Context:
    """What a step may use besides its parents: the data, the device, a folder for unfinished work, a memory.

    ``data()`` is an :class:`ImageSet` or a :class:`DetectionSet`, as the row's kind of data says.  ``label`` names the
    step for people.  ``parents`` are the keys of the parents' results.  ``memory`` keeps large intermediate values (the
    original network's responses) between the steps of one process; it must hold nothing but pure functions of the key
    it is stored under.
    """

    data: Callable[[], Any]
    device: str
    progress: bool
    work: Path = Path()
    workers: int = 0
    weights_file: Path | None = None
    parents: tuple[str, ...] = ()
    memory: dict[Any, Any] = field(default_factory=dict)
    label: str = ""

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value under ``key``, made once; only the latest few are kept."""
        if key not in self.memory:
            while len(self.memory) >= 3:  # calibrations are large; the oldest goes
                self.memory.pop(next(iter(self.memory)))
            self.memory[key] = make()
        return self.memory[key]


@dataclass(frozen=True, eq=False)
class Step:
    """One node of the graph; :func:`make_step` makes it.

    ``run(context, parents' results, params)`` must stand at the top level of a file: what it reaches is part of the
    key.  ``params`` is a frozen dataclass and holds the seed where there is one.  ``data`` is the value of the data as
    this kind of step reads them (None for steps that read none), ``source`` where they come from; ``work`` the expected
    cost in GMACs and ``rate`` how many of them a thread does in a second (for the plan's minutes).
    ``name`` is for people; ``origin`` names the network that a chain of like steps started from.  The weights of a
    ``transient`` step go once all steps of the run that are made from it are stored.
    """

    kind: Kind
    name: str
    run: Callable[..., Result]
    params: Any
    parents: tuple[Step, ...]
    data: str | None
    device: str
    work: float = 0.0
    origin: str = ""
    rate: float = 0.0
    transient: bool = False
    source: Source = OWN

    @property
    def run_name(self) -> str:
        """The function as ``module:name``."""
        return code.root_of(self.run)

    @property
    def roots(self) -> set[str]:
        """Where the code begins that the result can depend on: the function, its parameters' types, builders."""
        roots = {self.run_name}
        for part in _parts(self.params):
            roots.add(code.root_of(type(part)))
            if isinstance(part, Recipe):
                roots.add(f"{part.factory.module}:{part.factory.name}")
        return roots

    @functools.cached_property
    def code(self) -> code.Code:
        """The code that the result can depend on."""
        return code.reached(self.roots)

    @functools.cached_property
    def key(self) -> str:
        """Hash of function, parents' keys, parameters, data, code and what of the environment the kind depends on."""
        return digest(
            {
                "run": self.run_name,
                "parents": [parent.key for parent in self.parents],
                "params": canonical(self.params),
                "data": self.data,
                "code": self.code.hash,
                "environment": provenance.environment(self.kind.value, self.device, self.code.packages),
            }
        )[:32]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.key == other.key


def make_step(
    kind: Kind,
    name: str,
    run: Callable[[Context, list[Result], P], Result],
    params: P,
    parents: Iterable[Step] = (),
    *,
    data: DataValue | None = None,
    device: str,
    work: float = 0.0,
    origin: str = "",
    rate: float | None = None,
) -> Step:
    """A step whose parameters are of the type that its function takes."""
    value = None if data is None else data.training if kind is Kind.TRAIN else data.plain
    rate = RATES.get(kind, 0.0) if rate is None else rate
    source = OWN if data is None else data.source
    return Step(kind, name, run, params, tuple(parents), value, device, work, origin, rate, source=source)


def canonical(value: Any) -> Any:
    """Parameters as plain JSON values: a field with its default is left out, so that a new one changes no old key."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        filled = {
            spec.name: canonical(getattr(value, spec.name))
            for spec in dataclasses.fields(value)
            if getattr(value, spec.name) != _default(spec)
        }
        if isinstance(value, Recipe):  # the name of its builder may come to stand for another function
            filled["factory"] = canonical(value.factory)
        return {"type": type(value).__qualname__, **filled}
    if isinstance(value, Mapping):
        return {str(name): canonical(inner) for name, inner in sorted(value.items())}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [canonical(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be a step's parameter: use numbers, strings, frozen dataclasses")


def _default(spec: dataclasses.Field[Any]) -> Any:
    if spec.default_factory is not dataclasses.MISSING:
        return spec.default_factory()
    return spec.default


def _parts(value: Any) -> Iterator[Any]:
    """All dataclasses in the parameters."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for spec in dataclasses.fields(value):
            yield from _parts(getattr(value, spec.name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _parts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _parts(inner)


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
