"""A night's released networks: simulated processes that report, die or hang, and what is said of each network."""

from __future__ import annotations

import math
import os
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any

import pytest

from bench import evaluate
from bench.errors import UserError
from bench.nightly import networks
from bench.planning import Job

NAMES = ["toy/networks/a", "toy/networks/b", "toy/networks/c", "toy/networks/d", "toy/networks/e"]
FOLDERS = {name: Path(name) for name in NAMES}
JOB = Job(device="cpu")


class Process:
    """Reports what ``ends`` says of each of its networks, ``same`` without it; dies or hangs where it says so."""

    ends: dict[str, str]
    started: list[list[str]]

    def __init__(self, target: Any, args: tuple[Any, ...]) -> None:
        self.sender, self.folders, *_ = args
        self.exitcode: int | None = None

    def start(self) -> None:
        self.started.append(list(self.folders))
        self.mine = connection.Connection(os.dup(self.sender.fileno()), readable=False)
        for name in self.folders:
            how = self.ends.get(name, "same")
            if how == "hangs":
                return
            if how == "dies":
                self.exitcode = -9
                break
            self.mine.send(networks.told(name, how, how))
        self.mine.close()

    def join(self, seconds: float | None = None) -> None:
        pass

    def is_alive(self) -> bool:
        return self.exitcode is None

    def terminate(self) -> None:
        self.exitcode = -15
        self.mine.close()

    kill = terminate


class Server:
    """Makes simulated processes."""

    Process = Process

    @staticmethod
    def Pipe(duplex: bool) -> tuple[Any, Any]:
        return Pipe(duplex)


@pytest.fixture
def simulated() -> type[Process]:
    Process.ends, Process.started = {}, []
    return Process


def run(seconds: float) -> list[tuple[str, str, str]]:
    found = networks.evaluated(Server, FOLDERS, JOB, seconds, lambda text: None)  # type: ignore[arg-type]
    return [(one["network"][-1], one["verdict"], one["words"]) for one in found]


def test_a_crash_or_a_hang_costs_one_network(simulated: type[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    """The others share a process, those behind the one that was lost the next."""
    monkeypatch.setattr(networks, "LIMIT", 0.06)
    simulated.ends = {NAMES[1]: "dies", NAMES[3]: "hangs"}
    assert run(math.inf) == [
        ("a", "same", "same"),
        ("b", "failed", "its process died of signal 9, as where memory runs out"),
        ("c", "same", "same"),
        ("d", "failed", "no end after 0 minutes"),
        ("e", "same", "same"),
    ]
    assert simulated.started == [NAMES, NAMES[2:], NAMES[4:]]


def test_what_no_time_is_left_for_is_not_compared(simulated: type[Process]) -> None:
    simulated.ends = {NAMES[1]: "hangs"}
    late = [(name[-1], evaluate.INCOMPARABLE, "no time was left") for name in NAMES]
    assert run(0.1) == [("a", "same", "same"), *late[1:]]
    assert simulated.started == [NAMES]
    assert run(0.0) == late and simulated.started == [NAMES]
    assert run(-60.0) == late


@pytest.mark.parametrize(
    ("error", "there", "verdict", "words"),
    [
        (UserError("no imagenet in data"), False, "not compared", "no imagenet in data"),
        (UserError("outputs that are no numbers"), True, "failed", "outputs that are no numbers"),
        (ValueError("shapes"), True, "failed", "ValueError: shapes"),
    ],
)
def test_missing_data_are_no_fault_of_a_network_and_all_else_is(
    monkeypatch: pytest.MonkeyPatch, error: Exception, there: bool, verdict: str, words: str
) -> None:
    def failing(*arguments: Any, **more: Any) -> Any:
        raise error

    monkeypatch.setattr(networks.evaluate, "evaluate", failing)
    monkeypatch.setattr(networks.saved, "facts_of", lambda folder: {"setting": {"scale": "imagenet"}})
    monkeypatch.setattr(networks.bench.data, "find", lambda scale, root: Path() if there else None)
    assert networks._one("n", Path("n"), JOB) == {"network": "n", "verdict": verdict, "words": words, "top1": None}


def test_a_network_of_which_nothing_can_be_read_has_failed(tmp_path: Path) -> None:
    assert networks._one("n", tmp_path, JOB)["verdict"] == "failed"


def test_a_night_evaluates_the_networks_of_its_papers(tmp_path: Path) -> None:
    for name in ("a/networks/x", "a/networks/y", "b/networks/z", "c/rows"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "recipe.json").touch()
    assert networks.found(tmp_path, {"a", "c"}) == {
        "a/networks/x": tmp_path / "a/networks/x",
        "a/networks/y": tmp_path / "a/networks/y",
    }
    assert networks.found(tmp_path / "none", {"a"}) == {}


@pytest.mark.parametrize(("count", "budget", "expected"), [(0, 90.0, 0.0), (7, 90.0, 7.0), (7, 20.0, 2.0)])
def test_what_rows_leave_for_them(count: int, budget: float, expected: float) -> None:
    """A minute each, a tenth of the budget at most."""
    assert networks.minutes(count, budget) == expected
