"""The threads of rows side by side: what is planned, what is computed with, and with what times are taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bench import provenance, runner, threads
from bench.planning import Job, Planned
from bench.rows import Paper, Row
from bench.steps import Context, Kind, make_step
from bench.store import Result, Store


@pytest.fixture
def eight() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def keyed(kind: str) -> int:
    """The threads in the key of a step of this kind."""
    count: int = provenance.environment(kind, "cpu", [])["threads"]
    return count


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("jobs", "share"), [(1, 8), (2, 4), (3, 2), (20, 1)])
def test_rows_share_what_times_have_alone(jobs: int, share: int) -> None:
    with threads.sharing(jobs):
        assert (torch.get_num_threads(), threads.whole()) == (share, 8)
        assert (keyed("train"), keyed("prune"), keyed("time")) == (share, share, 8)
        with threads.alone():
            assert (torch.get_num_threads(), keyed("time")) == (8, 8)
        with threads.sharing(1):  # as a command within a command
            assert torch.get_num_threads() == 8
        assert torch.get_num_threads() == share
    assert (torch.get_num_threads(), threads.whole(), keyed("time")) == (8, 8, 8)


@dataclass(frozen=True)
class Nothing:
    """No parameters."""


def run_counted(context: Context, parents: list[Result], params: Nothing) -> Result:
    """With how many threads it runs."""
    return Result(facts={"threads": torch.get_num_threads()})


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("kind", "count"), [(Kind.TRAIN, 4), (Kind.EVALUATE, 4), (Kind.TIME, 8)])
def test_a_row_beside_another_takes_its_times_with_all_threads(tmp_path: Path, kind: Kind, count: int) -> None:
    row = Row("Table 1", "a", "clutter")
    with threads.sharing(2):
        step = make_step(kind, "counted", run_counted, Nothing(), [], device="cpu")
        engine = runner.Engine(Job(tmp_path, device="cpu"), Store(tmp_path))
        engine._work(step, Planned(Paper("toy", "", "", [row], []), row, "clutter"))
        header = engine.store.header(step.key)
        assert header is not None and header["facts"]["threads"] == count
        assert header["provenance"]["hardware"]["threads"] == count
        assert torch.get_num_threads() == 4
