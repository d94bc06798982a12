"""Which rows may run at once, and which begin first: none does what another is at, times are taken alone."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence, Set

from bench.planning import Planned, steps_of
from bench.steps import Kind
from bench.store import Store


class Needs:
    """What a row's steps ask of the rows beside it: its keys ``needed``, and whether it is ``timed``."""

    def __init__(self, entry: Planned) -> None:
        self.steps = [step for step, _ in steps_of([entry])]
        self.kinds = {step.key: step.kind for step in self.steps}
        self.needed = frozenset(self.kinds)
        self.timed = Kind.TIME in self.kinds.values()

    def missing(self, store: Store, fresh: Set[Kind], done: Set[str] = frozenset()) -> set[str]:
        """The keys of steps that are not stored, or of a ``fresh`` kind and not ``done``."""
        return {
            key for key, kind in self.kinds.items() if key not in done and (kind in fresh or store.header(key) is None)
        }

    def behind(self, busy: Set[str]) -> set[str]:
        """The ``busy`` steps that the row needs, and all that it makes from them."""
        found = set[str]()
        for step in self.steps:  # parents come first
            if step.key in busy or any(parent.key in found for parent in step.parents):
                found.add(step.key)
        return found


class Loads:
    """What rows bring into a run: a row's own work is that of the steps that no row before it has.

    Rows that need one of these wait for it.
    """

    def __init__(self, needs: Sequence[Needs], seconds: Mapping[str, float]) -> None:
        seen, own = set[str](), list[Set[str]]()
        for one in needs:
            own.append(one.needed - seen)
            seen |= one.needed
        self.own = [sum(seconds[key] for key in keys) for keys in own]
        self._waiting = [[other for other, one in enumerate(needs) if one.needed & keys] for keys in own]

    def behind(self, place: int, left: Container[int]) -> float:
        """Seconds of a row's own work and of that of the rows in ``left`` that wait for it."""
        return self.own[place] + sum(self.own[k] for k in self._waiting[place] if k != place and k in left)


def longest_first(needs: Sequence[Needs], seconds: Mapping[str, float]) -> list[int]:
    """The places of the rows in the order in which they begin: first what the most work belongs to or waits for.

    Rows that take times come last: they wait for a quiet machine.
    """
    loads, every = Loads(needs, seconds), range(len(needs))
    return sorted(every, key=lambda place: (not needs[place].timed, loads.behind(place, every)), reverse=True)


def free(
    queue: Sequence[Needs],
    running: Sequence[Needs],
    store: Store,
    fresh: Set[Kind],
    done: Set[str] = frozenset(),
    seconds: Mapping[str, float] | None = None,
) -> int | None:
    """The place in the queue of the first row that can run beside the others.

    None while there is none, or while the first one waits for a quiet machine.  One row that waited for a step of
    another would keep a place from those that can work, or measure what the other measures.  With the ``seconds`` of
    steps, which says that nothing stored is measured again, a row begins all the same where no other can and its work
    without these steps takes longer than they do.
    """
    if any(one.timed for one in running):
        return None
    busy = set[str]().union(*(one.missing(store, fresh, done) for one in running))
    found = next((place for place, one in enumerate(queue) if not one.needed & busy), None)
    if found is None and seconds is not None:
        found = next((k for k, one in enumerate(queue) if _has_time(one, busy, store, fresh, seconds)), None)
    return None if found is not None and queue[found].timed and running else found


def _has_time(one: Needs, busy: Set[str], store: Store, fresh: Set[Kind], seconds: Mapping[str, float]) -> bool:
    """Whether the steps that others are at are likely to be stored before the row needs them."""
    before = one.missing(store, fresh) - one.behind(busy)
    return not one.timed and sum(seconds[key] for key in before) > sum(seconds[key] for key in one.needed & busy)
