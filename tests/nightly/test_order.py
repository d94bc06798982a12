"""The order of a night: worth for each minute, steps that rows share counted once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import planning
from bench.models.recipe import Recipe
from bench.nightly import order
from bench.nightly.order import Candidate
from bench.planning import Planned
from bench.registry import Published, load
from bench.rows import Chain, Paper, Row
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result, Store


@dataclass(frozen=True)
class Named:
    """What tells the steps of this test apart."""

    name: str


def run_named(context: Context, parents: list[Result], params: Named) -> Result:
    """Never run here."""
    return Result()


def step(name: str, minutes: float, *parents: Step, kind: Kind = Kind.TRAIN) -> Step:
    """A step of so many planned minutes."""
    return make_step(kind, name, run_named, Named(name), parents, device="cpu", work=60.0 * minutes, rate=1.0)


def entry(name: str, *steps: Step, table: str = "Table 1") -> Planned:
    row = Row(table, name, "clutter")
    return Planned(Paper("toy", "", "", [row], []), row, "clutter", Recipe("x", {}, (3, 8, 8)), Chain([], list(steps)))


def test_the_cheap_and_the_worthy_come_first(monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    shared = step("shared", 10.0)
    rows = [
        Candidate(entry("dear", step("dear", 30.0)), 1.0),
        Candidate(entry("worthy", step("worthy", 30.0)), 20.0),
        Candidate(entry("first of two", shared, step("a", 1.0, shared)), 1.0),
        Candidate(entry("second of two", shared, step("b", 1.0, shared)), 1.0),
        Candidate(entry("other table", step("c", 10.0), table="Table 2"), 1.0),
    ]
    found = order.in_order(rows, None)
    assert [one.entry.row.name for one in found] == ["worthy", "other table", "first of two", "second of two", "dear"]
    # the second pays for its own step alone
    assert [round(one.minutes, 2) for one in found] == [30.1, 10.1, 11.1, 1.1, 30.1]


def test_stored_checkpoints_cost_nothing_and_measurements_do(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    trained = step("trained", 60.0)
    measured = step("measured", 2.0, trained, kind=Kind.EVALUATE)
    store = Store(tmp_path)
    for one in (trained, measured):
        store.save(one.key, Result(), {})
    (found,) = order.in_order([Candidate(entry("row", measured), 1.0)], store)
    assert round(found.minutes, 2) == 2.1
    # what this night has behind it is not measured twice
    (again,) = order.in_order([Candidate(entry("row", measured), 1.0)], store, {measured.key})
    assert round(again.minutes, 2) == 0.1


def test_what_a_row_is_worth() -> None:
    """A verified published value 10, at the paper's own data only; a claim 5; a released network 3; any row 1."""
    fields: dict[str, Any] = dict.fromkeys(Published.__dataclass_fields__)
    published = [
        Published(**{**fields, "table": "Table 1", "row": "A", "metric": "top1", "verified": True}),
        Published(**{**fields, "table": "Table 1", "row": "B", "metric": "top1", "verified": False}),
    ]

    def worth(scale: str, **more: Any) -> float:
        row = Row(more.pop("table", "Table 1"), "x", "cifar10", **more)
        return order.worth(Planned(Paper("toy", "", "", [row], []), row, scale), published)

    linked = {"published": {"top1_acc": ("A", "top1")}}
    assert worth("cifar10", **linked) == 11.0
    assert worth("clutter", **linked) == 1.0
    assert worth("cifar10", published={"top1_acc": ("B", "top1")}) == 1.0
    assert worth("clutter", table="Claims") == 6.0
    assert worth("cifar10", release=True) == 4.0


def test_every_row_of_the_papers_has_a_worth() -> None:
    """At its own scale: ten for each verified value that its links name, whatever their form, and what else it is."""
    folder = Path(__file__).parents[2] / "reproductions" / "registry"
    for key, paper in planning.papers().items():
        published = load(key, folder)
        for row in paper.rows:
            verified = 0
            for name, metric, *model in row.published.values():
                (entry,) = [
                    one
                    for one in published
                    if (one.table, one.row, one.metric) == (row.table, name, metric) and model in ([], [one.model])
                ]
                verified += entry.verified
            own = row.scale not in ("digits", "clutter", "scenes")
            expected = 10.0 * verified * own + 5.0 * (row.table == "Claims") + 3.0 * row.release + 1.0
            assert order.worth(Planned(paper, row, row.scale), published) == expected


def test_embedded_takes_each_row_to_the_data_of_its_kind(monkeypatch: Any) -> None:
    asked = []

    def plan(paper: Paper, rows: list[Row], job: Any) -> list[Planned]:
        asked.append((job.scale, [row.name for row in rows]))
        return [Planned(paper, row, job.scale) for row in rows]

    monkeypatch.setattr(order.planning, "plan", plan)
    rows = [Row("T", "a", "cifar10"), replace(Row("T", "b", "voc"), data="boxes")]
    found = order.planned([(Paper("toy", "", "", rows, []), rows)], order.Job(scale="embedded", device="cpu"))
    assert asked == [("clutter", ["a"]), ("scenes", ["b"])] and len(found) == 2
