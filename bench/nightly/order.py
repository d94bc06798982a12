"""Which rows a night runs, and in which order: the most valuable for each minute first, as long as the budget lasts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from bench import planning, registry
from bench.data import EMBEDDED, LABELS
from bench.errors import UserError
from bench.planning import Job, Planned
from bench.registry import Published
from bench.rows import Paper, Row
from bench.steps import Kind, Step
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


def planned(chosen: Iterable[tuple[Paper, Sequence[Row]]], job: Job) -> list[Planned]:
    """All rows in the night's setting; with the scale ``embedded`` each on embedded data of its kind.

    Rows of a paper of which none can run there are found with the reason.  Raises :class:`UserError` where no row of
    any paper runs.
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
    if all(entry.chain is None for entry in found) and errors:
        raise errors[0]
    return found


def _first(paper: Paper, rows: Sequence[Row], scales: Sequence[str | None], job: Job) -> list[Planned]:
    """The rows at the first of the scales that any of them is meant for."""
    for scale in scales[:-1]:
        if any(row.scales is None or scale in row.scales for row in rows if row.missing is None):
            return planning.plan(paper, rows, replace(job, scale=scale))
    return planning.plan(paper, rows, replace(job, scale=scales[-1]))


def worth(entry: Planned, published: Sequence[Published]) -> float:
    """What a night gains by a row: more at the scale of its paper, where verdicts fall."""
    row = entry.row
    links = [registry.linked(published, row.table, link) for link in row.published.values()]
    decided = sum(link is not None and link.verified for link in links) if entry.scale not in EMBEDDED else 0
    claim = row.table == "Claims"
    return _VALUE * decided + _CLAIM * claim + _RELEASE * row.release + _ROW


def in_order(candidates: Sequence[Candidate], store: Store | None, done: Set[str] = frozenset()) -> list[Candidate]:
    """The candidates by worth for each minute that they add; minutes count what is neither stored nor run before them.

    ``done`` are the steps that this night has behind it.
    """
    learned = planning.learned_costs(store)
    here = {step.key for entry in candidates for step in _needed(entry.entry)}
    stored = {key for key in here if store is not None and store.header(key) is not None}
    behind, seen, found, left = set(done), set[str](), list[Candidate](), list(candidates)
    while left:
        costs = [
            sum(
                planning.expected_seconds(step, learned)
                for step in _needed(one.entry)
                if step.key not in behind and (step.kind in FRESH or step.key not in stored)
            )
            / 60.0
            + _START
            for one in left
        ]

        def density(place: int, costs: Sequence[float] = costs) -> float:
            first = _FIRST if left[place].entry.row.table not in seen else 1.0
            return first * left[place].worth / costs[place]

        best = max(range(len(left)), key=density)
        chosen = replace(left.pop(best), minutes=costs[best])
        behind.update(step.key for step in _needed(chosen.entry))
        seen.add(chosen.entry.row.table)
        found.append(chosen)
    return found


def _needed(entry: Planned) -> list[Step]:
    return [step for step, _ in planning.steps_of([entry])]
