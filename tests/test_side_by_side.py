"""Which rows of a run begin first, and which beside others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.models.recipe import Recipe
from bench.planning import Planned
from bench.rows import Chain, Paper, Row
from bench.side_by_side import Needs, free, longest_first
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result, Store


@dataclass(frozen=True)
class Named:
    """What tells the steps of this test apart."""

    name: str


def run_named(context: Context, parents: list[Result], params: Named) -> Result:
    """Never run here."""
    return Result()


def step(name: str, *parents: Step, kind: Kind = Kind.TRAIN) -> Step:
    return make_step(kind, name, run_named, Named(name), list(parents), device="cpu")


def needs(name: str, *leaves: Step) -> Needs:
    row = Row("Table 1", name, "clutter")
    recipe = Recipe("x", {}, (3, 8, 8))
    return Needs(Planned(Paper("toy", "", "", [row], []), row, "clutter", recipe, Chain([], list(leaves))))


DENSE = step("dense")
PRUNED, WIDE, FRESH = step("pruned", DENSE), step("wide", DENSE), step("from scratch")
FRESH_AGAINST = step("from scratch against dense", FRESH, DENSE)
CLAIM = step("pruned against from scratch", PRUNED, FRESH)
TIMES = step("times", WIDE, kind=Kind.TIME)
# as a script has them
ROWS = [
    needs("dense", DENSE),
    needs("pruned", PRUNED),
    needs("wide", WIDE),
    needs("from scratch", FRESH, FRESH_AGAINST),
    needs("claim", CLAIM),
    needs("times", TIMES),
]
SECONDS = {
    one.key: seconds
    for one, seconds in {
        DENSE: 30.0, PRUNED: 10.0, WIDE: 50.0, FRESH: 60.0, FRESH_AGAINST: 1.0, CLAIM: 1.0, TIMES: 500.0,
    }.items()
}  # fmt: skip


def test_what_most_waits_for_begins_first() -> None:
    """All wait for dense; wide is 550 s with its times, from scratch 62 and pruned 11 with the claim; times: last."""
    assert longest_first(ROWS, SECONDS) == [0, 2, 3, 1, 4, 5]
    short = {**SECONDS, TIMES.key: 5.0}
    assert longest_first(ROWS, short) == [0, 3, 2, 1, 4, 5]
    # of equals the first
    equal = [needs(name, step(name)) for name in ("a", "b", "c")]
    assert longest_first(equal, {key: 1.0 for one in equal for key in one.needed}) == [0, 1, 2]
    assert longest_first([], {}) == []


def test_a_row_begins_beside_another_where_its_own_work_is_longer_than_what_it_waits_for(tmp_path: Path) -> None:
    """The network from scratch (60 s) needs the dense one (30 s) at its end; a pruned one needs it at its beginning."""
    store = Store(tmp_path)
    dense, pruned, wide, fresh, claim, times = ROWS

    def first(queue: list[Needs], running: list[Needs], seconds: dict[str, float] | None = SECONDS) -> Needs | None:
        place = free(queue, running, store, set(), seconds=seconds)
        return None if place is None else queue[place]

    assert first([pruned, wide, times, fresh], [dense]) is fresh
    assert first([pruned, wide, times, fresh], [dense], None) is None  # who measures anew waits
    assert first([pruned, wide, times], [dense]) is None
    slow = {**SECONDS, DENSE.key: 60.0}
    assert first([fresh], [dense], slow) is None  # it would wait
    assert first([times, fresh], [dense]) is fresh  # one that takes times never is beside another
    assert first([fresh], [times]) is None
    own, late = step("own"), step("late times", DENSE, kind=Kind.TIME)
    assert first([needs("late", own, late)], [dense], {**SECONDS, own.key: 900.0, late.key: 1.0}) is None
    # who needs nothing of the others comes before
    alone = needs("alone", step("alone"))
    assert first([fresh, alone], [dense], {**SECONDS, **dict.fromkeys(alone.needed, 1.0)}) is alone
    # what is stored is not waited for, and is no work
    store.save(DENSE.key, Result(), {})
    assert first([pruned, claim], [dense]) is pruned
    store.save(FRESH.key, Result(), {})
    assert first([fresh], [claim]) is fresh  # its 60 s are done, nothing of it is under way


@pytest.mark.parametrize("busy", [set(), {"dense"}, {"pruned"}, {"pruned", "from scratch"}])
def test_behind_is_what_is_made_from_busy_steps(busy: set[str]) -> None:
    steps = {one.name: one for one in (DENSE, PRUNED, FRESH, CLAIM)}
    expected = {
        "": set(),
        "dense": {"dense", "pruned", "pruned against from scratch"},
        "pruned": {"pruned", "pruned against from scratch"},
        "from scratch pruned": {"pruned", "from scratch", "pruned against from scratch"},
    }[" ".join(sorted(busy))]
    found = needs("claim", CLAIM).behind({steps[name].key for name in busy})
    assert found == {steps[name].key for name in expected}
