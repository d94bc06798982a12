"""The order of a night: worth for each minute, steps that rows share counted once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import planning
from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.nightly import order
from bench.nightly.order import Candidate
from bench.planning import Planned
from bench.registry import Published, load
from bench.rows import Chain, Paper, Row, row_id
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


def test_a_row_pays_for_what_a_row_that_was_left_would_have_made(monkeypatch: Any) -> None:
    """Budget 20: ``big`` (30) is left; ``small`` needs its dense network (12) and is not taken for 2 minutes."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    dense = step("dense", 12.0)
    big = Candidate(entry("big", dense, step("big", 18.0, dense)), 100.0)
    small = Candidate(entry("small", dense, step("small", 2.0, dense)), 1.0)
    other = Candidate(entry("other", step("other", 7.0)), 0.1)
    ordered = order.in_order([big, small, other], None)
    assert [(one.entry.row.name, round(one.minutes, 1)) for one in ordered] == [
        ("big", 30.1),
        ("small", 2.1),
        ("other", 7.1),
    ]

    def within(budget: float | None, jobs: int = 1) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        costs = order.Costs([one.entry for one in ordered], None)
        taken, left = order.within(ordered, costs, budget, jobs)
        told = [[(one.entry.row.name, round(one.minutes, 1)) for one in part] for part in (taken, left)]
        return told[0], told[1]

    assert within(None) == ([("big", 30.1), ("small", 2.1), ("other", 7.1)], [])
    assert within(20.0) == ([("small", 14.1)], [("big", 18.1), ("other", 7.1)])
    # two at once: 14.1 minutes take 7.05 of the night's
    assert within(20.0, 2) == ([("small", 14.1), ("other", 7.1)], [("big", 18.1)])
    assert within(5.0) == ([], [("big", 30.1), ("small", 14.1), ("other", 7.1)])


def test_what_a_failed_row_stored_costs_no_more(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    trained, measured = step("trained", 5.0), step("measured", 1.0, kind=Kind.EVALUATE)
    row = entry("row", trained, measured)
    store = Store(tmp_path)
    costs = order.Costs([row], store)
    assert round(costs.minutes(row), 1) == 6.1
    costs.look(row, set())
    assert round(costs.minutes(row), 1) == 6.1
    for one in (trained, measured):
        store.save(one.key, Result(), {})
    costs.look(row, set())  # stored, but measured by no row of this night
    assert round(costs.minutes(row), 1) == 1.1
    costs.look(row, {measured.key})
    assert round(costs.minutes(row), 1) == 0.1


def test_what_a_row_is_worth() -> None:
    """A verified published value 10, at the paper's own data only; a claim 5; a released network 3; any row 1."""
    fields: dict[str, Any] = dict.fromkeys(Published.__dataclass_fields__)
    published = [
        Published(**{**fields, "table": "Table 1", "row": "A", "metric": "top1", "verified": True}),
        Published(**{**fields, "table": "Table 1", "row": "B", "metric": "top1", "verified": False}),
        Published(**{**fields, "table": "Table 1", "row": "C", "metric": "top1", "verified": True, "origin": "others"}),
    ]

    def worth(scale: str, **more: Any) -> float:
        row = Row(more.pop("table", "Table 1"), "x", "cifar10", **more)
        return order.worth(Planned(Paper("toy", "", "", [row], []), row, scale), published)

    linked = {"published": {"top1_acc": ("A", "top1")}}
    assert worth("cifar10", **linked) == 11.0
    assert worth("clutter", **linked) == 1.0
    assert worth("cifar10", published={"top1_acc": ("B", "top1")}) == 1.0
    assert worth("cifar10", published={"top1_acc": ("C", "top1")}) == 1.0
    assert worth("clutter", table="Claims") == 6.0
    assert worth("cifar10", release=True) == 4.0


def test_every_row_of_the_papers_has_a_worth() -> None:
    """At its own scale: ten for each value of its links that is the paper's and verified, and what else it is."""
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
                verified += entry.verified and entry.origin != "others"
            own = row.scale not in ("digits", "clutter", "scenes")
            expected = 10.0 * verified * own + 5.0 * (row.table == "Claims") + 3.0 * row.release + 1.0
            assert order.worth(Planned(paper, row, row.scale), published) == expected


def test_embedded_takes_each_row_to_the_data_of_its_kind(monkeypatch: Any) -> None:
    """Rows with labels to clutter, those of a paper that has none there to digits; rows with boxes to scenes."""
    asked = []

    def plan(paper: Paper, rows: list[Row], job: Any) -> list[Planned]:
        asked.append((paper.key, job.scale, [row.name for row in rows]))
        return [Planned(paper, row, scale, chain=Chain([], [])) for row, scale in planning.meant(rows, job)]

    monkeypatch.setattr(order.planning, "plan", plan)
    rows = [
        Row("T", "a", "cifar10"),
        replace(Row("T", "b", "voc"), data="boxes"),
        Row("T", "c", "cifar10", scales=("digits",)),
    ]
    rows.append(Row("T", "f", "cifar10", scales=("cifar10",)))  # on no embedded data
    small = [Row("T", "d", "cifar10", scales=("digits", "cifar10")), Row("T", "e", "imagenet", missing="a size")]
    papers = [(Paper("toy", "", "", rows, []), rows), (Paper("small", "", "", small, []), small)]
    found = order.planned(papers, order.Job(scale="embedded", device="cpu"))
    assert asked == [("toy", "clutter", ["a", "c", "f"]), ("toy", "scenes", ["b"]), ("small", "digits", ["d", "e"])]
    assert [(entry.id, entry.scale, entry.reason) for entry in found] == [
        ("toy/t/a", "clutter", None),
        ("toy/t/c", "digits", "runs at digits alone"),
        ("toy/t/b", "scenes", None),
        ("small/t/d", "digits", None),
        ("small/t/e", "digits", None),
    ]


def test_a_paper_that_cannot_run_is_named_with_the_reason(monkeypatch: Any) -> None:
    """It was left out in silence once; where nothing can run the night does not begin."""

    def plan(paper: Paper, rows: list[Row], job: Any) -> list[Planned]:
        if paper.key == "large":
            raise UserError("images of 32x32, not 224x224")
        return [Planned(paper, row, job.scale, chain=Chain([], [])) for row in rows]

    monkeypatch.setattr(order.planning, "plan", plan)
    large, small = [Row("T", "a", "cifar10"), Row("T", "b", "cifar10")], [Row("T", "c", "cifar10")]
    papers = [(Paper("large", "", "", large, []), large), (Paper("small", "", "", small, []), small)]
    found = order.planned(papers, order.Job(scale="embedded", device="cpu"))
    assert [(entry.id, entry.reason) for entry in found if entry.chain is None] == [
        ("large/t/a", "images of 32x32, not 224x224"),
        ("large/t/b", "images of 32x32, not 224x224"),
    ]
    with pytest.raises(UserError, match="32x32"):
        order.planned(papers[:1], order.Job(scale="embedded", device="cpu"))


def test_a_data_set_that_is_damaged_costs_the_rows_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned together they all fail of it."""

    def plan(paper: Paper, rows: list[Row], job: Any) -> list[Planned]:
        if any(row.scale == "cifar10" for row in rows):
            raise UserError("train.npz is damaged")
        return [Planned(paper, row, row.scale, chain=Chain([], [])) for row in rows]

    monkeypatch.setattr(order.planning, "plan", plan)
    rows = [Row("T", "a", "cifar10"), Row("T", "b", "imagenet")]
    found = order.planned([(Paper("toy", "", "", rows, []), rows)], order.Job(device="cpu"))
    assert [(entry.id, entry.reason) for entry in found] == [("toy/t/a", "train.npz is damaged"), ("toy/t/b", None)]


def test_every_paper_has_its_night_on_embedded_data() -> None:
    """No paper is left out, and no row of one stands for it with an error."""
    chosen = [(paper, paper.rows) for paper in planning.papers().values()]
    found = order.planned(chosen, order.Job(scale="embedded", device="cpu"))
    scales = {
        paper.key: {entry.scale for entry in found if entry.paper.key == paper.key and entry.chain is not None}
        for paper, _ in chosen
    }
    assert scales == {
        "channel_pruning": {"clutter"},
        "discrimination_aware": {"clutter"},
        "fbs": {"digits"},
        "fine_tuning_study": set(),  # on CIFAR-10 alone
        "gating_study": {"digits"},
        "localization_aware_ssd": {"scenes"},
        "selection_study": {"clutter"},
        "thinet": {"clutter"},
        "versatile_filters": {"clutter"},
    }


def test_a_row_that_takes_times_has_the_night_for_itself(monkeypatch: Any) -> None:
    """Budget 12, two at once: 6 minutes beside another take 3 of it, 6 minutes with times all 6."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr(order, "_START", 0.0)
    rows = [
        Candidate(entry(name, step(name, 6.0, kind=kind)), 1.0)
        for name, kind in (("a", Kind.TIME), ("b", Kind.TRAIN), ("c", Kind.TRAIN))
    ]
    costs = order.Costs([one.entry for one in rows], None)
    assert [costs.spent(one.entry, 2) for one in rows] == [6.0, 3.0, 3.0]
    taken, left = order.within(rows, costs, 12.0, 2)
    # behind a (6) and b (3) three are left, c asks for 6
    assert ([one.entry.row.name for one in taken], [one.entry.row.name for one in left]) == (["a", "b"], ["c"])


def test_a_bug_in_one_row_costs_that_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The night began with a traceback once, and without a row; a plain mistake of a row's is a reason as before."""

    def plan(paper: Paper, rows: list[Row], job: Any) -> list[Planned]:
        for row in rows:
            if row.name == "bug":
                raise KeyError("stage5")
        if [row.name for row in rows] == ["weights"]:
            raise UserError("weights that fit no network")
        return [Planned(paper, row, job.scale, chain=Chain([], [])) for row in rows]

    monkeypatch.setattr(order.planning, "plan", plan)
    rows = [Row("T", name, "digits") for name in ("a", "bug", "weights", "b")]
    found = order.planned([(Paper("toy", "", "", rows, []), rows)], order.Job(scale="digits", device="cpu"))
    assert [(entry.row.name, entry.reason, isinstance(entry, order.Unplannable)) for entry in found] == [
        ("a", None, False),
        ("bug", "KeyError: 'stage5'", True),
        ("weights", "weights that fit no network", False),
        ("b", None, False),
    ]
    assert capsys.readouterr().err.count("Traceback") == 1
    # with nothing else to run the night says so in its summary
    (alone,) = order.planned([(Paper("toy", "", "", rows[1:2], []), rows[1:2])], order.Job(scale="digits"))
    assert isinstance(alone, order.Unplannable)


def test_a_bug_that_no_row_has_alone_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows are planned one by one, and the traceback is in the log."""

    def plan(paper: Paper, rows: list[Row], job: Any) -> list[Planned]:
        if len(rows) > 1:
            raise KeyError("together")
        return [Planned(paper, row, job.scale, chain=Chain([], [])) for row in rows]

    monkeypatch.setattr(order.planning, "plan", plan)
    rows = [Row("T", name, "digits") for name in ("a", "b")]
    found = order.planned([(Paper("toy", "", "", rows, []), rows)], order.Job(scale="digits", device="cpu"))
    assert [(entry.row.name, entry.reason) for entry in found] == [("a", None), ("b", None)]
    assert "KeyError: 'together'" in capsys.readouterr().err


def test_two_rows_of_one_id_cost_their_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = planning.importlib.import_module

    def doubled(name: str) -> Any:
        if name == "reproductions.fbs":
            rows = [Row("T", "a", "digits"), Row("T", "a", "digits")]
            return SimpleNamespace(paper=lambda: Paper("fbs", "", "", rows, []))
        return imported(name)

    with monkeypatch.context() as patched:
        patched.setattr(planning.importlib, "import_module", doubled)
        known, broken = planning.scripts.__wrapped__()
    assert "fbs" not in known and list(broken) == ["fbs"] and "two rows of fbs" in str(broken["fbs"])


def test_a_key_that_cannot_be_made_costs_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are made when they are asked for, behind the plan."""
    good, bad = entry("good", step("s", 1.0)), entry("bad", step("x", 1.0))
    object.__setattr__(bad.chain.records[0], "params", object())  # type: ignore[union-attr]
    known = {one.row.name: one for one in (good, bad)}
    monkeypatch.setattr(order.planning, "plan", lambda paper, rows, job: [known[row.name] for row in rows])
    rows = [good.row, bad.row]
    found = order.planned([(Paper("toy", "", "", rows, []), rows)], order.Job(scale="clutter", device="cpu"))
    assert [isinstance(one, order.Unplannable) for one in found] == [False, True]


def test_a_script_that_cannot_be_imported_costs_its_paper(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a night, whose summary says so; other commands raise what the script did."""
    imported = planning.importlib.import_module

    def broken(name: str) -> Any:
        if name == "reproductions.fbs":
            raise RuntimeError("a typo")
        return imported(name)

    everything = set(planning.papers())
    with monkeypatch.context() as patched:
        patched.setattr(planning.importlib, "import_module", broken)
        found = planning.scripts.__wrapped__()
    monkeypatch.setattr(planning, "scripts", lambda: found)
    assert set(found[0]) == everything - {"fbs"}
    with pytest.raises(RuntimeError, match="a typo"):
        planning.papers()

    def chosen(*names: str) -> tuple[set[str], list[tuple[str, str | None]]]:
        rows, failed = order.chosen(names)
        assert all(isinstance(one, order.Unplannable) for one in failed)
        return {paper.key for paper, _ in rows}, [(one.id, one.reason) for one in failed]

    failed = [("fbs/script/import", "RuntimeError: a typo")]
    assert chosen() == (everything - {"fbs"}, failed)
    assert "RuntimeError: a typo" in capsys.readouterr().err
    assert chosen("fbs") == (set(), failed)
    assert chosen("thinet") == ({"thinet"}, [])
    with pytest.raises(UserError, match="unknown paper"):
        chosen("nothing")


def test_rows_for_other_embedded_data_than_their_papers_are_told() -> None:
    """Of ThiNet and DCP, whose other rows take clutter: they were neither run nor named."""
    job, papers = order.Job(scale="embedded", device="cpu"), planning.papers()
    for key in ("thinet", "discrimination_aware"):
        rows = papers[key].rows
        digits = {row_id(key, row) for row in rows if row.scales is not None and "digits" in row.scales}
        digits -= {row_id(key, row) for row in rows if row.scales is None or "clutter" in row.scales or row.missing}
        found = order.planned([(papers[key], rows)], job)
        told = {entry.id for entry in found if entry.reason == "runs at digits alone"}
        assert told and told == digits
        assert {entry.id for entry in found if isinstance(entry, order.Elsewhere)} == told
        assert len({entry.id for entry in found}) == len(found)
