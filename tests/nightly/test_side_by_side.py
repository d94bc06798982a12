"""Rows of a night that run at once: simulated rows, which end when a timer says so, against the rules."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import DiskFull
from bench.models.recipe import Recipe
from bench.nightly import history, night, order
from bench.nightly.child import HUNG, Report
from bench.planning import Job, Planned
from bench.rows import Chain, Paper, Row
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result, Store

OK, FULL = "ok", "disk full"


@dataclass(frozen=True)
class Named:
    """What tells the steps of this test apart."""

    name: str


def run_named(context: Context, parents: list[Result], params: Named) -> Result:
    """Never run here."""
    return Result()


def step(name: str, kind: Kind = Kind.TRAIN) -> Step:
    return make_step(kind, name, run_named, Named(name), [], device="cpu", work=60.0, rate=1.0)


def planned(name: str, *steps: Step) -> Planned:
    row = Row("Table 1", name, "clutter")
    return Planned(Paper("toy", "", "", [row], []), row, "clutter", Recipe("x", {}, (3, 8, 8)), Chain([], list(steps)))


class Simulated:
    """A row that stores its steps after a while, then reports; it keeps a diary of who ran beside whom."""

    diary: list[tuple[str, dict[str, set[str]], frozenset[str]]]  # a row that begins, who uses its steps, who runs
    alive: set[str]
    ends: dict[str, list[str]]  # by row: the status of each attempt, "ok" without one
    longest = 0.04  # seconds

    def __init__(
        self,
        server: Any,
        entry: Planned,
        job: Job,
        measured: Iterable[str],
        limit: float,
        users: dict[str, set[str]],
        keeps: bool,
        where: str,
    ) -> None:
        self.receiver, self.sender = multiprocessing.Pipe(duplex=False)
        self.entry, self.job, self.left, self.measured = entry, job, limit, set(measured)
        self.diary.append((entry.id, users, frozenset(self.alive)))
        self.alive.add(entry.id)
        self.timer = threading.Timer(random.Random(entry.id).uniform(0.0, self.longest), self.sender.send, ["end"])
        self.timer.start()

    def report(self) -> Report | None:
        if not self.receiver.poll():
            return None
        attempts = self.ends.setdefault(self.entry.id, [])
        status = attempts.pop(0) if attempts else OK
        if status == FULL:
            self.stop()
            raise DiskFull("no space left on the disk")
        assert self.entry.chain is not None
        done = [one for one in self.entry.chain.records if one.key not in self.measured]
        store = Store(self.job.out)
        for one in done:
            store.save(one.key, Result(), {})
        self.stop()
        fresh = tuple(one.key for one in done if one.kind in order.FRESH) if status != "crashed" else ()
        return Report(self.entry.id, status, measured=fresh)

    def stop(self) -> None:
        self.timer.cancel()
        self.alive.discard(self.entry.id)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> type[Simulated]:
    Simulated.diary, Simulated.alive, Simulated.ends = [], set(), {}
    monkeypatch.setattr("bench.nightly.child.Running", Simulated)
    monkeypatch.setattr("bench.runner.LOOK", 0.01)
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: None)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    return Simulated


def run(out: Path, entries: list[Planned], jobs: int, budget: float | None = None) -> night.Night:
    job = Job(out, device="cpu")
    begun = night.begin(out, {})
    worths = {entry.id: float(len(entries) - place) for place, entry in enumerate(entries)}
    return night.run(begun, entries, worths, job, budget, out / "results", lambda text: None, jobs)


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_rules_hold(tmp_path: Path, simulated: type[Simulated], seed: int, jobs: int) -> None:
    """At most so many at once; none beside one that has a step of its own to do; what takes times runs alone."""
    draw = random.Random(seed)
    pool = [step(f"s{place}", Kind.TRAIN if place % 2 else Kind.EVALUATE) for place in range(10)]
    entries = []
    for place in range(12):
        timed = [step(f"time {place}", Kind.TIME)] if draw.random() < 0.2 else []
        entries.append(planned(f"r{place}", *draw.sample(pool, 2), step(f"own {place}"), *timed))
    done = run(tmp_path, entries, jobs)
    assert done.ended and not done.left and {report.status for report in done.rows.values()} == {OK}
    assert sorted(done.rows) == sorted(name for name, _, _ in simulated.diary) == sorted(one.id for one in entries)
    # each step that is measured anew is measured by one row
    keys = [key for report in done.rows.values() for key in report.measured]
    assert len(keys) == len(set(keys))
    steps = {entry.id: {one.key: one for one in entry.chain.records} for entry in entries if entry.chain}
    for place, (name, _, beside) in enumerate(simulated.diary):
        assert len(beside) < jobs
        alone = any(one.kind is Kind.TIME for one in steps[name].values())
        assert not (alone and beside)
        assert not any(one.kind is Kind.TIME for other in beside for one in steps[other].values())
        # of the rows that run, one at most needs a step that none had made which has ended
        ended = {other for other, _, _ in simulated.diary[:place]} - beside
        made = {key for other in ended for key in steps[other]}
        for other in beside:
            assert not (set(steps[name]) & set(steps[other])) - made
    if jobs > 1:
        assert any(beside for _, _, beside in simulated.diary)


def test_one_at_a_time_is_the_order(tmp_path: Path, simulated: type[Simulated]) -> None:
    entries = [planned(f"r{place}", step(f"s{place}")) for place in range(5)]
    run(tmp_path, entries, 1)
    assert [name for name, _, _ in simulated.diary] == [entry.id for entry in entries]


def test_what_ends_badly_is_tried_once_more_beside_the_others(tmp_path: Path, simulated: type[Simulated]) -> None:
    entries = [planned(f"r{place}", step(f"s{place}")) for place in range(4)]
    names = [entry.id for entry in entries]
    simulated.ends = {names[0]: [HUNG], names[1]: ["crashed", "failed"]}
    done = run(tmp_path, entries, 2)
    assert [done.rows[name].status for name in names] == [OK, "failed", OK, OK]
    assert [done.attempts[name] for name in names] == [2, 2, 1, 1]
    assert done.failed == [done.rows[names[1]]]


def test_the_budget_counts_what_is_left_of_it(tmp_path: Path, simulated: type[Simulated]) -> None:
    """A step of 60 GMACs on 4 threads at 1 GMAC/s each takes 15 seconds, which do not fit into 0.11 minutes."""
    long, short = step("long"), make_step(Kind.TRAIN, "short", run_named, Named("short"), [], device="cpu", work=0.0)
    entries = [planned("r0", long), planned("r1", short)]
    done = run(tmp_path, entries, 2, budget=0.11)
    assert set(done.rows) == {entries[1].id} and set(done.left) == {entries[0].id}


def test_a_row_waits_until_it_fits(tmp_path: Path, simulated: type[Simulated]) -> None:
    """15 seconds for the dense network, 15 for the first row's own step, 6 for a process: it fits behind the second."""
    work = {"device": "cpu", "rate": 1.0}
    dense = make_step(Kind.TRAIN, "dense", run_named, Named("dense"), [], work=120.0, **work)
    more = make_step(Kind.TRAIN, "more", run_named, Named("more"), [], work=120.0, **work)
    first, second = planned("r0", dense, more), planned("r1", dense)
    done = run(tmp_path / "a", [first, second], 1, budget=0.3)
    assert not done.rows and done.left == {first.id: 0.6, second.id: 0.35}
    done = run(tmp_path / "b", [first, second], 1, budget=0.4)
    assert set(done.rows) == {first.id, second.id}
    assert [name for name, _, _ in simulated.diary] == [second.id, first.id]


def test_a_full_disk_ends_the_night(tmp_path: Path, simulated: type[Simulated]) -> None:
    """Each row would fail of it, twice, and be behind the night when the same command goes on."""
    entries = [planned(f"r{place}", step(f"s{place}")) for place in range(4)]
    simulated.ends = {entries[1].id: [FULL]}
    with pytest.raises(DiskFull, match="no space left"):
        run(tmp_path, entries, 1)
    assert [name for name, _, _ in simulated.diary] == [entry.id for entry in entries[:2]]
    kept = night.begin(tmp_path, {})
    assert (kept.number, list(kept.rows), kept.ended) == (1, [entries[0].id], False)
    # and goes on when there is space again
    assert set(run(tmp_path, entries, 1).rows) == {entry.id for entry in entries}


def test_a_row_is_told_who_uses_its_steps(tmp_path: Path, simulated: type[Simulated]) -> None:
    """So that weights on the way go when all that is made from them in this night is stored, and not before."""
    way = step("way")
    ends = [
        make_step(Kind.PRUNE, f"end {place}", run_named, Named(f"end {place}"), [way], device="cpu", work=1.0, rate=1.0)
        for place in range(2)
    ]
    entries = [planned(f"r{place}", end) for place, end in enumerate(ends)]
    run(tmp_path, entries, 1)
    assert [users for _, users, _ in simulated.diary] == [{way.key: {end.key for end in ends}}] * 2


def test_a_second_attempt_is_planned_with_what_it_measures_again(
    tmp_path: Path, simulated: type[Simulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one measured for half a minute (8 threads, 1 GMAC/s each) and failed behind that."""
    measured = make_step(Kind.EVALUATE, "long", run_named, Named("long"), [], device="cpu", work=240.0, rate=1.0)
    (entry,) = entries = [planned("r", measured)]
    simulated.ends = {entry.id: ["failed", "failed"]}
    done = run(tmp_path, entries, 1)
    assert done.planned == {entry.id: 0.6}


def test_what_a_night_does_not_run_is_told_by_kind(tmp_path: Path, simulated: type[Simulated]) -> None:
    """Rows that cannot run here, rows for other embedded data, and rows whose plan failed, which alone are failed."""
    one = planned("r", step("s"))
    kinds = {"unable": Planned, "digits": order.Elsewhere, "bug": order.Unplannable}
    rows = {name: Row("Table 1", name, "clutter") for name in kinds}
    others = [kinds[name](Paper("toy", "", "", [row], []), row, "clutter", reason=name) for name, row in rows.items()]
    done = run(tmp_path, [one, *others], 1)
    assert done.not_run == {"toy/table-1/unable": "unable"} and done.elsewhere == {"toy/table-1/digits": "digits"}
    assert {name: report.status for name, report in done.rows.items()} == {one.id: OK, "toy/table-1/bug": "failed"}


def test_an_interrupt_stops_all(tmp_path: Path, simulated: type[Simulated], monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [planned(f"r{place}", step(f"s{place}")) for place in range(3)]
    monkeypatch.setattr(simulated, "longest", 60.0)
    sent: list[float] = []

    def interrupt() -> None:
        while len(simulated.diary) < 2:  # both have begun
            time.sleep(0.01)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, entries, 2)
    assert time.monotonic() - sent[0] < 10.0 and not simulated.alive
    assert len(simulated.diary) == 2
    kept = night.begin(tmp_path, {})
    assert not kept.ended and kept.number == 1


def test_a_second_attempt_must_fit_too(tmp_path: Path, simulated: type[Simulated]) -> None:
    """0.35 minutes planned: they fit at first, and behind an attempt that took its time they do not."""
    (entry,) = entries = [
        planned("r", make_step(Kind.EVALUATE, "m", run_named, Named("m"), [], device="cpu", work=120.0, rate=1.0))
    ]
    simulated.ends = {entry.id: ["crashed", "ok"]}
    done = run(tmp_path, entries, 1, budget=0.3503)  # 0.02 seconds to spare, a row takes up to 0.04
    assert (done.rows[entry.id].status, done.attempts[entry.id]) in (("crashed", 1), (OK, 2))
    told = list[str]()
    night_ = night.begin(tmp_path / "b", {})
    rows = night._Rows(
        [order.Candidate(entry, 1.0)],
        order.Costs([entry], Store(tmp_path / "b")),
        Job(tmp_path / "b", device="cpu"),
        Store(tmp_path / "b"),
        night_,
        1,
        told.append,
        {},
    )
    simulated.ends = {entry.id: ["crashed", "ok"]}
    assert rows.some_left(1.0)
    while not (found := rows.wait(0.1)):
        pass
    assert [(report.status, tries) for report, tries in found] == [("crashed", 1)] and "given up" in told[0]
    assert not rows.some_left(0.1)


@pytest.mark.parametrize(("budget", "seconds"), [(None, 4 * 3600.0), (100.0, 6300.0), (1000.0, 4 * 3600.0)])
def test_a_hanging_row_does_not_outlive_its_budget_by_much(
    tmp_path: Path, simulated: type[Simulated], budget: float | None, seconds: float
) -> None:
    """An hour is planned and four are waited, but no more than five minutes behind the night's own end."""
    entry = planned(
        "r", make_step(Kind.TRAIN, "m", run_named, Named("m"), [], device="cpu", work=8.0 * 3594.0, rate=1.0)
    )
    job, store = Job(tmp_path, device="cpu"), Store(tmp_path)
    rows = night._Rows(
        [order.Candidate(entry, 1.0)], order.Costs([entry], store), job, store, night.begin(tmp_path, {}), 1, print, {}
    )
    assert rows.some_left(budget)
    ((_, _, running),) = rows.running.values()
    assert running.left == pytest.approx(seconds)
    rows.stop()


def test_a_row_that_is_kept_is_in_the_history(
    tmp_path: Path, simulated: type[Simulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the night between the two: a row whose line is not written is run again."""
    entries = [planned(f"r{place}", step(f"s{place}")) for place in range(2)]
    append = history.append

    def stopped(out: Path, line: history.Entry) -> None:
        if line.row == entries[1].id:
            raise KeyboardInterrupt
        append(out, line)

    monkeypatch.setattr(history, "append", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, entries, 1)
    monkeypatch.setattr(history, "append", append)
    run(tmp_path, entries, 1)
    assert {line.row for line in history.read(tmp_path)} == {entry.id for entry in entries}


def test_the_budget_counts_what_earlier_parts_of_the_night_took(tmp_path: Path, simulated: type[Simulated]) -> None:
    begun = replace(night.begin(tmp_path, {}), minutes=50.0)
    entries = [planned("r", step("s"))]
    night.run(begun, entries, {entries[0].id: 1.0}, Job(tmp_path, device="cpu"), 50.1, tmp_path / "results", print, 1)
    assert not begun.rows and begun.minutes >= 50.0
    begun = replace(night.begin(tmp_path, {}), minutes=50.0)
    night.run(begun, entries, {entries[0].id: 1.0}, Job(tmp_path, device="cpu"), 51.0, tmp_path / "results", print, 1)
    assert set(begun.rows) == {entries[0].id}


@pytest.mark.parametrize(
    ("jobs", "budget", "long", "first"),
    [
        (2, None, 60.0, "chain"),  # with what waits for it half of all work: begun last it would run alone
        (2, 900.0, 60.0, "chain"),
        (2, None, 40.0, "r0"),  # 80 of 200: there is time
        (1, None, 60.0, "r0"),  # nothing would run beside it
        (2, 50.0, 60.0, "r0"),  # no time for all rows: the most valuable first
    ],
)
def test_a_long_chain_of_little_worth_is_not_left_for_the_end(
    tmp_path: Path, simulated: type[Simulated], jobs: int, budget: float | None, long: float, first: str
) -> None:
    """Ten rows of twelve minutes, and last a network of ``long`` minutes that as long a row waits for."""

    def lasting(name: str, minutes: float, *parents: Step) -> Step:
        work = 8 * 60.0 * minutes
        return make_step(Kind.TRAIN, name, run_named, Named(name), parents, device="cpu", work=work, rate=1.0)

    dense = lasting("dense", long)
    entries = [planned(f"r{place}", lasting(f"s{place}", 12.0)) for place in range(10)]
    entries += [planned("chain", dense), planned("end", lasting("end", long, dense))]
    run(tmp_path, entries, jobs, budget)
    assert simulated.diary[0][0] == f"toy/table-1/{first}"


def test_the_budget_counts_what_passed_since_the_command_began(tmp_path: Path, simulated: type[Simulated]) -> None:
    """An hour of planning leaves nothing of 50 minutes."""
    entries, begun = [planned("r", step("s"))], night.begin(tmp_path, {})
    job, worths = Job(tmp_path, device="cpu"), {entries[0].id: 1.0}
    night.run(begun, entries, worths, job, 50.0, tmp_path / "results", print, 1, time.monotonic() - 3600.0)
    assert not begun.rows and begun.minutes == pytest.approx(60.0, abs=0.1)


def test_rows_leave_time_for_the_released_networks() -> None:
    assert night.for_rows(None, 7) is None
    assert [night.for_rows(90.0, 0), night.for_rows(90.0, 7), night.for_rows(20.0, 7)] == [90.0, 83.0, 18.0]


def test_a_row_that_would_take_the_networks_time_is_left(
    tmp_path: Path, simulated: type[Simulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.35 minutes planned; of 0.38 a tenth is kept back."""
    folders: dict[str, Path] = {}
    monkeypatch.setattr(night.networks, "found", lambda results, papers: folders)
    monkeypatch.setattr(night.networks, "evaluated", lambda server, found, *more: (one for one in ()))
    (entry,) = entries = [
        planned("r", make_step(Kind.TRAIN, "m", run_named, Named("m"), [], device="cpu", work=120.0, rate=1.0))
    ]
    assert set(run(tmp_path / "a", entries, 1, budget=0.38).rows) == {entry.id}
    folders.update({f"toy/networks/{name}": Path(name) for name in "abcdefg"})
    done = run(tmp_path / "b", entries, 1, budget=0.38)
    assert not done.rows and done.left == {entry.id: 0.35}


def test_a_night_that_is_stopped_at_its_networks_has_ended(
    tmp_path: Path, simulated: type[Simulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed there writes nothing more: the next command would go on with it and measure nothing."""
    names = ["toy/networks/a", "toy/networks/b"]
    monkeypatch.setattr(night.networks, "found", lambda results, papers: {name: Path(name) for name in names})
    seen: list[night.Night | None] = []

    def evaluated(server: Any, folders: Any, job: Job, seconds: float, say: Any) -> Any:
        assert list(folders) == names and 90 * 60 < seconds < 95 * 60
        yield night.networks.told(names[0], "same", "same", 90.0)
        seen.append(night._read(tmp_path, 1))
        raise KeyboardInterrupt

    monkeypatch.setattr(night.networks, "evaluated", evaluated)
    with pytest.raises(KeyboardInterrupt, match="begins the next night"):
        run(tmp_path, [planned("r", step("s"))], 1, budget=90.0)
    (before,) = seen
    kept = night._read(tmp_path, 1)
    assert before is not None and before.ended and kept is not None and kept.ended
    assert [(one["verdict"], one["words"]) for one in kept.networks] == [
        ("same", "same"),
        ("not compared", "the night was stopped before it"),
    ]
    assert night.begin(tmp_path, {}).number == 2


def test_a_row_without_a_plan_has_failed(tmp_path: Path, simulated: type[Simulated]) -> None:
    """It is no row that cannot run here; the others run."""
    good = planned("good", step("s"))
    row = Row("Table 1", "bad", "clutter")
    bad = order.Unplannable(Paper("toy", "", "", [row], []), row, "clutter", reason="KeyError: 'x'")
    away = Planned(bad.paper, Row("Table 1", "away", "voc"), "voc", reason="needs voc")
    begun, worths = night.begin(tmp_path, {}), {good.id: 1.0}
    night.run(begun, [bad, good, away], worths, Job(tmp_path, device="cpu"), None, tmp_path / "results", print)
    assert {name: report.status for name, report in begun.rows.items()} == {
        "toy/table-1/bad": "failed",
        "toy/table-1/good": "ok",
    }
    assert [(one.id, one.reason) for one in begun.failed] == [("toy/table-1/bad", "KeyError: 'x'")]
    assert begun.not_run == {"toy/table-1/away": "needs voc"}
    assert [(one.row, one.status) for one in history.read(tmp_path)] == [(bad.id, "failed"), (good.id, "ok")]
