"""Which rows a night runs, and in which order: the most valuable for each minute first, as long as the budget lasts."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from bench import planning, registry
from bench.data import EMBEDDED, LABELS
from bench.errors import UserError
from bench.planning import Job, Planned
from bench.registry import Published
from bench.rows import Paper, Row
from bench.steps import Kind
from bench.store import Store

# a scale that is no data set: each row on the embedded data of its kind, the first that its paper is meant for
EMBEDDED_SCALE = "embedded"
_IMAGES, _BOXES = ("clutter", "digits"), ("scenes",)
# measured anew every night, whatever an earlier one stored
FRESH = frozenset({Kind.EVALUATE, Kind.COMPARE, Kind.TIME, Kind.SIZE})
# what a row is worth: a published value that it can decide, a claim, a released network, anything that it measures;
# a table's first row counts more, so that a short night sees something of every table
_VALUE, _CLAIM, _RELEASE, _ROW, _FIRST = 10.0, 5.0, 3.0, 1.0, 3.0
# a row takes at least this long (minutes): its process
_START = 0.1


@dataclass(frozen=True)
class Candidate:
    """A row that can run, what it is worth, and its minutes after those before it in the order."""

    entry: Planned
    worth: float
    minutes: float = 0.0


@dataclass(frozen=True)
class Unplannable(Planned):
    """A row for which the plan itself failed, with the reason: no row of this night that ends well."""


@dataclass(frozen=True)
class Elsewhere(Planned):
    """A row that is meant for other embedded data than the night takes for its paper, with the reason."""


def chosen(names: Sequence[str]) -> tuple[list[tuple[Paper, list[Row]]], list[Planned]]:
    """The rows of these papers (all for none), and for each script that cannot be imported a row that stands for it."""
    known, broken = planning.scripts()
    sound = [name for name in names if name not in broken]
    stand_ins = list[Planned]()
    for name, error in broken.items():
        if not names or name in names:
            traceback.print_exception(error, file=sys.stderr)
            row = Row("Script", "import", "")
            stand_ins.append(Unplannable(Paper(name, "", "", [row], []), row, "", reason=_words(error)))
    asked = bool(known) and bool(sound or not names)  # without names all papers are
    return planning.choose(sound, None, None, known=known) if asked else [], stand_ins


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def planned(chosen: Iterable[tuple[Paper, Sequence[Row]]], job: Job) -> list[Planned]:
    """All rows in the night's setting; with the scale ``embedded`` each on embedded data of its kind.

    Rows of a paper of which none can run there are found with the reason, as are rows for other embedded data than the
    night takes for their paper.  Where a plan fails, its row is :class:`Unplannable`.  Raises :class:`UserError` where
    no row of any paper runs.
    """
    found, errors = list[Planned](), list[UserError]()
    for paper, rows in chosen:
        groups: list[tuple[tuple[str | None, ...], list[Row]]] = [((job.scale,), list(rows))]
        if job.scale == EMBEDDED_SCALE:
            groups = [
                (_IMAGES, [row for row in rows if row.data == LABELS]),
                (_BOXES, [row for row in rows if row.data != LABELS]),
            ]
        for scales, group in groups:
            if group:
                try:
                    found += _first(paper, group, scales, job)
                except UserError as error:
                    errors.append(error)
                    found += [Planned(paper, row, scales[0] or row.scale, reason=str(error)) for row in group]
    if errors and all(entry.chain is None and not isinstance(entry, Unplannable) for entry in found):
        raise errors[0]
    return found


def _first(paper: Paper, rows: Sequence[Row], scales: Sequence[str | None], job: Job) -> list[Planned]:
    """The rows at the first of the scales that any of them is meant for; those for other ones are not run."""
    runs = [row for row in rows if row.missing is None]
    meant = [scale for scale in scales if any(row.scales is None or scale in row.scales for row in runs)]
    scale = meant[0] if meant else scales[-1]
    found = _plan(paper, rows, replace(job, scale=scale))
    for row in rows:
        others = [other for other in scales if other != scale and row.scales is not None and other in row.scales]
        if others and scale not in (row.scales or ()):
            reason = row.missing or f"runs at {' and '.join(map(str, others))} alone"
            found.append(Elsewhere(paper, row, str(others[0]), reason=reason))
    return found


def _plan(paper: Paper, rows: Sequence[Row], job: Job) -> list[Planned]:
    """The rows in the job's setting; where that fails, each is planned on its own and costs itself.

    Raises the :class:`UserError` of :func:`planning.plan` where it is that of every row.
    """
    try:
        found = planning.plan(paper, rows, job)
        planning.steps_of(found)  # their keys are made as late as that
        return found
    except Exception as error:
        failed = error
    alone = [_alone(paper, row, scale, job) for row, scale in planning.meant(rows, job)]
    unplannable = any(isinstance(entry, Unplannable) for entry in alone)
    if isinstance(failed, UserError):  # a data set that is damaged, of which other rows need nothing
        if not unplannable and all(entry.chain is None for entry in alone):
            raise failed
    elif not unplannable:  # else it is told of the row that it is met in
        traceback.print_exception(failed, file=sys.stderr)
    return alone


def _alone(paper: Paper, row: Row, scale: str, job: Job) -> Planned:
    try:
        (found,) = planning.plan(paper, [row], job)
        planning.steps_of([found])
        return found
    except UserError as error:
        return Planned(paper, row, scale, reason=str(error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return Unplannable(paper, row, scale, reason=_words(error))


def worth(entry: Planned, published: Sequence[Published]) -> float:
    """What a night gains by a row: more at the scale of its paper, where verdicts fall."""
    row = entry.row
    links = [registry.linked(published, row.table, link) for link in row.published.values()]
    decided = sum(link is not None and link.counted for link in links) if entry.scale not in EMBEDDED else 0
    claim = row.table == "Claims"
    return _VALUE * decided + _CLAIM * claim + _RELEASE * row.release + _ROW


class Costs:
    """What each row adds to those before it, in minutes: its steps that are neither stored nor run before it.

    ``done`` are steps that this night has behind it.  The threads are those of the moment that this is made.
    """

    def __init__(self, entries: Iterable[Planned], store: Store | None, done: Set[str] = frozenset()) -> None:
        learned = planning.learned_costs(store)
        self._store = store
        self._steps = {entry.id: [step for step, _ in planning.steps_of([entry])] for entry in entries}
        every = {step.key: step for steps in self._steps.values() for step in steps}
        self._seconds = {key: planning.expected_seconds(step, learned) for key, step in every.items()}
        self._fresh = {key for key, step in every.items() if step.kind in FRESH}
        self._stored = {key for key in every if self._is_stored(key)}
        self._behind = set(done)

    def minutes(self, entry: Planned) -> float:
        """What the row takes now, with the start of its process."""
        return sum(self.seconds(step.key) for step in self._steps[entry.id]) / 60.0 + _START

    def seconds(self, key: str) -> float:
        """What a step of the night takes now."""
        paid = key in self._behind or (key not in self._fresh and key in self._stored)
        return 0.0 if paid else self._seconds[key]

    def spent(self, entry: Planned, jobs: int) -> float:
        """What the row takes of a night of ``jobs`` rows at once: all of its minutes where it takes times, alone."""
        alone = any(step.kind is Kind.TIME for step in self._steps[entry.id])
        return self.minutes(entry) / (1 if alone else jobs)

    def assume(self, entry: Planned) -> None:
        """From now on as if the row had run."""
        self._behind.update(step.key for step in self._steps[entry.id])

    def look(self, entry: Planned, measured: Set[str]) -> None:
        """After the row has ended, well or not: what of it is stored, and ``measured`` this night, costs no more."""
        keys = {step.key for step in self._steps[entry.id]}
        self._stored |= {key for key in keys if self._is_stored(key)}
        self._behind |= keys & measured

    def _is_stored(self, key: str) -> bool:
        return self._store is not None and self._store.header(key) is not None


def in_order(candidates: Sequence[Candidate], store: Store | None, done: Set[str] = frozenset()) -> list[Candidate]:
    """The candidates by worth for each minute that they add to those before them.

    ``done`` are the steps that this night has behind it.
    """
    costs = Costs([one.entry for one in candidates], store, done)
    seen, found, left = set[str](), list[Candidate](), list(candidates)
    while left:
        minutes = [costs.minutes(one.entry) for one in left]

        def density(place: int, minutes: Sequence[float] = minutes) -> float:
            first = _FIRST if left[place].entry.row.table not in seen else 1.0
            return first * left[place].worth / minutes[place]

        best = max(range(len(left)), key=density)
        chosen = replace(left.pop(best), minutes=minutes[best])
        costs.assume(chosen.entry)
        seen.add(chosen.entry.row.table)
        found.append(chosen)
    return found


def within(
    ordered: Sequence[Candidate], costs: Costs, budget: float | None, jobs: int
) -> tuple[list[Candidate], list[Candidate]]:
    """The rows that a night of ``budget`` minutes runs, ``jobs`` at once, in their order, and those that it leaves.

    As the night does, the first row that still fits is taken; a row pays for what those that were left would have made.
    """
    taken, left, spent = list[Candidate](), list(ordered), 0.0
    while left:
        now = [replace(one, minutes=costs.minutes(one.entry)) for one in left]
        place = next((k for k, one in enumerate(now) if budget is None or spent + one.minutes <= budget), None)
        if place is None:
            return taken, now
        taken.append(now[place])
        spent += costs.spent(now[place].entry, jobs)
        costs.assume(left.pop(place).entry)
    return taken, []
