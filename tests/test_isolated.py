"""The server that rows' processes are forked from: what it is told to know, and that it minds no row that fails."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench import isolated, planning
from bench.planning import Job
from bench.rows import Paper, Row


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """The server's own number of threads is not that of the tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_server_knows_a_row_of_each_paper_and_embedded_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their data are drawn; those of a folder or of CIFAR-10 are read by who needs them."""
    monkeypatch.setenv(isolated.ROWS, "")
    rows = [("a", "x", "digits"), ("a", "y", "clutter"), ("a", "z", "cifar10"), ("b", "x", "digits"), ("b", "y", "/me")]
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: begun.append(os.environ[isolated.ROWS]))
    begun = list[str]()
    found = isolated.server("bench.apart", [(f"{paper}/table-1/{name}", scale) for paper, name, scale in rows])
    assert found.get_start_method() == "forkserver"
    assert json.loads(os.environ[isolated.ROWS]) == [
        ["a/table-1/x", "digits"],
        ["a/table-1/y", "clutter"],
        ["b/table-1/x", "digits"],
    ]
    assert begun == [os.environ[isolated.ROWS]]  # it begins when it knows what to read


def test_a_row_that_cannot_be_planned_is_left_to_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import preloaded  # knows all papers from here on

    asked = []

    def plan(paper: Paper, rows: list[Row], job: Job) -> list[Any]:
        asked.append((paper.key, rows[0].name, job.scale, job.device))
        raise RuntimeError("no data")

    papers = planning.papers()
    ids = {key: next(iter(papers[key].ids)) for key in ("fbs", "thinet")}
    monkeypatch.setattr(planning, "plan", plan)
    monkeypatch.setenv(isolated.ROWS, json.dumps([[ids["fbs"], "digits"], [ids["thinet"], "clutter"]]))
    preloaded.warm()
    names = {key: papers[key].ids[name].name for key, name in ids.items()}
    assert asked == [("fbs", names["fbs"], "digits", "cpu"), ("thinet", names["thinet"], "clutter", "cpu")]
    assert torch.get_num_threads() == 1
