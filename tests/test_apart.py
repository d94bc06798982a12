"""Rows of a run in processes of their own: simulated ones, which end when a timer says so, against the rules."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench import apart
from bench.errors import DiskFull
from bench.models.recipe import Recipe
from bench.planning import Job, Planned
from bench.rows import Chain, Paper, Row
from bench.runner import FAILED, OK, Outcome
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result, Store


@dataclass(frozen=True)
class Named:
    """What tells the steps of this test apart."""

    name: str


def run_named(context: Context, parents: list[Result], params: Named) -> Result:
    """Never run here."""
    return Result()


def step(name: str, *parents: Step, kind: Kind = Kind.TRAIN, seconds: float = 60.0, transient: bool = False) -> Step:
    made = make_step(kind, name, run_named, Named(name), list(parents), device="cpu", work=seconds, rate=1.0)
    return made if not transient else type(made)(**{**vars(made), "transient": True})


def planned(name: str, *steps: Step) -> Planned:
    row = Row("Table 1", name, "clutter")
    return Planned(Paper("toy", "", "", [row], []), row, "clutter", Recipe("x", {}, (3, 8, 8)), Chain([], list(steps)))


class Process:
    """A row that stores its steps after a while and answers; ``ends`` says how those end that do not end well."""

    def __init__(self, server: Server, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.server, self.sender, self.name, self.keys = server, args[0], args[1], args[3]
        self.users, self.beside_others = args[6:]
        self.exitcode: int | None = None

    def start(self) -> None:
        self.server.diary.append((self.name, frozenset(self.server.alive)))
        self.server.found[self.name] = {key for key in self.keys if self.server.store.header(key) is not None}
        self.server.alive[self.name] = self
        self.timer = threading.Timer(self.server.longest * random.Random(self.name).random(), self._end)
        self.timer.start()

    def _end(self) -> None:
        end = self.server.ends.get(self.name, OK)
        if end == "dies":
            self.exitcode = -9
            self.sender.close()
            return
        for key in self.keys if end == OK else ():
            with self.server.store.lock(key):
                if self.server.store.header(key) is None:
                    self.server.made.append(key)
                    self.server.store.save(key, Result(), {})
        self.sender.send(DiskFull("no space left") if end == "full" else Outcome(self.name, end))

    def join(self, timeout: float | None = None) -> None:
        self.timer.cancel()
        self.server.alive.pop(self.name, None)

    def is_alive(self) -> bool:
        return False

    def terminate(self) -> None:
        """Nobody asks: it is not alive."""

    kill = terminate


class Server:
    """In the place of a fork server."""

    def __init__(self, out: Path) -> None:
        self.store, self.diary, self.made = Store(out), list[tuple[str, frozenset[str]]](), list[str]()
        self.alive: dict[str, Process] = {}
        self.found: dict[str, set[str]] = {}  # by row: what was stored when it began
        self.ends: dict[str, str] = {}
        self.longest = 0.04

    def Pipe(self, duplex: bool) -> Any:
        receiver, sender = multiprocessing.Pipe(duplex)
        sender.close, self.close = (lambda: None), sender.close  # type: ignore[method-assign]
        return receiver, sender

    def Process(self, target: Callable[..., None], args: tuple[Any, ...]) -> Process:
        process = Process(self, target, args)
        process.sender = _Sender(args[0], self.close)
        return process


class _Sender:
    """A row's end of the pipe: its starter's copy of it is the same here."""

    def __init__(self, sender: Any, close: Callable[[], None]) -> None:
        self.send, self.close = sender.send, close


def run(server: Server, entries: list[Planned], jobs: int, watch: Any = None) -> list[Outcome]:
    job = Job(server.store.root, device="cpu")
    return apart.run(entries, job, server, lambda text: None, watch, jobs)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "LOOK", 0.01)


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_rules_hold(tmp_path: Path, seed: int, jobs: int) -> None:
    """At most so many at once, times alone, outcomes in the order of the rows.

    Beside another that makes what it needs a row begins only where its other work takes longer.
    """
    draw = random.Random(seed)
    pool = [step(f"s{place}", seconds=draw.uniform(1.0, 100.0)) for place in range(8)]
    entries = []
    for place in range(12):
        timed = [step(f"time {place}", kind=Kind.TIME)] if draw.random() < 0.2 else []
        entries.append(planned(f"r{place}", *draw.sample(pool, 2), step(f"own {place}", seconds=0.5), *timed))
    server = Server(tmp_path)
    assert [(one.id, one.status) for one in run(server, entries, jobs)] == [(entry.id, OK) for entry in entries]
    assert len(server.made) == len(set(server.made))
    work = {e.id: {one.key: one.work for one in e.chain.records} for e in entries if e.chain}
    timed_rows = {e.id for e in entries if e.chain and any(one.kind is Kind.TIME for one in e.chain.records)}
    for name, beside in server.diary:
        assert len(beside) < jobs and not (name in timed_rows and beside) and not timed_rows & beside
    for name, beside in server.diary:
        left = set(work[name]) - server.found[name]
        busy = left & set[str]().union(*(work[other] for other in beside))
        own = left - busy
        assert not busy or sum(work[name][key] for key in own) > sum(work[name][key] for key in busy)
    if jobs == 1:
        assert [name for name, _ in server.diary] == [entry.id for entry in entries]
    else:
        assert any(beside for _, beside in server.diary)
        assert {name for name, _ in server.diary[len(entries) - len(timed_rows) :]} == timed_rows


def test_the_most_work_begins_first(tmp_path: Path) -> None:
    """So that no long row is left for the end, when nothing runs beside it."""
    entries = [
        planned(f"r{place}", step(f"s{place}", seconds=seconds)) for place, seconds in enumerate([5, 50, 20, 70])
    ]
    server = Server(tmp_path)
    run(server, entries, 2)
    assert [name for name, _ in server.diary] == [entries[place].id for place in (3, 1, 2, 0)]


def test_a_row_begins_beside_the_one_that_makes_what_it_needs_late(tmp_path: Path) -> None:
    """All rows compare with the dense network (30 s): another one, of 60 s, does not wait for it."""
    dense = step("dense", seconds=30.0)
    other = step("other", seconds=60.0)
    compared = make_step(Kind.COMPARE, "compared", run_named, Named("compared"), [other, dense], device="cpu")
    entries = [planned("dense", dense), planned("other", other, compared)]
    server = Server(tmp_path)
    run(server, entries, 2)
    first, second = server.diary
    assert first == (entries[0].id, frozenset()) and second == (entries[1].id, frozenset({entries[0].id}))


def test_times_are_taken_in_every_run(tmp_path: Path) -> None:
    """A stored time is no reason for a row to begin beside another that takes it."""
    time = step("time", kind=Kind.TIME)
    entries = [planned("a", time), planned("b", time)]
    server = Server(tmp_path)
    run(server, entries, 2)
    server.diary.clear()
    run(server, entries, 2)
    assert [beside for _, beside in server.diary] == [frozenset(), frozenset()]


def test_a_death_costs_its_row_and_a_full_disk_the_run(tmp_path: Path) -> None:
    entries = [planned(f"r{place}", step(f"s{place}")) for place in range(4)]
    server = Server(tmp_path)
    server.ends = {entries[0].id: "dies", entries[2].id: FAILED}
    found = run(server, entries, 2)
    assert [one.status for one in found] == [FAILED, OK, FAILED, OK]
    assert found[0].reason == "its process died of signal 9, as where memory runs out"
    server = Server(tmp_path / "full")
    server.ends, server.longest = {entries[0].id: "full"}, 0.5
    with pytest.raises(DiskFull, match="no space left"):
        run(server, entries, 2)
    assert not server.alive and len(server.diary) <= 3  # the others were stopped, no more begun


def test_weights_on_the_way_go_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While rows run beside each other another may need them; each is told who uses its steps."""
    way = step("way", transient=True)
    ends = [step(f"end {place}", way) for place in range(2)]
    entries = [planned(f"r{place}", end) for place, end in enumerate(ends)]
    start = Process.start
    for jobs, shed in ((1, False), (2, True)):
        server = Server(tmp_path / str(jobs))
        seen: list[tuple[Any, bool]] = []

        def begin(process: Process, seen: list[tuple[Any, bool]] = seen) -> None:
            seen.append((process.users, process.beside_others))
            start(process)

        monkeypatch.setattr(Process, "start", begin)
        run(server, entries, jobs)
        assert seen == [({way.key: {end.key for end in ends}}, jobs > 1)] * 2
        header = server.store.header(way.key)
        assert header is not None and bool(header.get("shed")) == shed  # one after the other each row sheds by itself


def test_who_watches_is_told_of_one_row_at_a_time(tmp_path: Path) -> None:
    class Watch:
        told: list[str]

        def began(self, name: str, setting: Any) -> None:
            self.told.append(f"began {name}")

        def ended(self, file: Path | None) -> None:
            self.told.append("ended")

    entries = [planned(f"r{place}", step(f"s{place}")) for place in range(4)]
    for jobs in (1, 3):
        watch = Watch()
        watch.told = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bench.runner.description", lambda entry, job: {})
            run(Server(tmp_path / str(jobs)), entries, jobs, watch)
        assert watch.told[1::2] == ["ended"] * 4
        assert sorted(watch.told[::2]) == [f"began {entry.id}" for entry in entries]
