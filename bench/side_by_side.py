"""Which rows may run at once: none that needs a step at which another is, and none beside one that takes times."""

from __future__ import annotations

from collections.abc import Sequence, Set

from bench.planning import Planned, steps_of
from bench.steps import Kind
from bench.store import Store


class Needs:
    """What a row's steps ask of the rows beside it: its keys ``needed``, and whether it is ``timed``."""

    def __init__(self, entry: Planned) -> None:
        self.kinds = {step.key: step.kind for step, _ in steps_of([entry])}
        self.needed = frozenset(self.kinds)
        self.timed = Kind.TIME in self.kinds.values()

    def missing(self, store: Store, fresh: Set[Kind], done: Set[str] = frozenset()) -> set[str]:
        """The keys of steps that are not stored, or of a ``fresh`` kind and not ``done``."""
        return {
            key for key, kind in self.kinds.items() if key not in done and (kind in fresh or store.header(key) is None)
        }


def free(
    queue: Sequence[Needs], running: Sequence[Needs], store: Store, fresh: Set[Kind], done: Set[str] = frozenset()
) -> int | None:
    """The place in the queue of the first row that can run beside the others.

    None while there is none, or while the first one waits for a quiet machine.  One row that waited for a step of
    another would keep a place from those that can work, or measure what the other measures.
    """
    if any(one.timed for one in running):
        return None
    busy = set[str]().union(*(one.missing(store, fresh, done) for one in running))
    found = next((place for place, one in enumerate(queue) if not one.needed & busy), None)
    return None if found is not None and queue[found].timed and running else found
