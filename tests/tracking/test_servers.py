"""Sending: a server that works gets every run once, one that fails, hangs or drops costs five seconds and no run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.tracking.mirror import Run
from bench.tracking.tracker import Tracker

# what a command may wait for a server at its end, and what the ending of two processes may take on a busy machine
LONGEST, BUSY = 5.0, 1.0


def toy_run(number: int, value: float = 0.5) -> Run:
    """A run with something of everything."""
    return Run(
        f"run{number}",
        f"row {number}",
        "paper",
        "row",
        ["digits"],
        {"setting": {"seeds": [0, 1]}},
        [{"epoch": epoch, "1-dense/seed-0/loss": 1.0 / epoch} for epoch in (1, 2, 3)],
        {"top1": {"value": value, "n": 3}},
        {"tables/t": (["a", "b"], [[1, None], [0.1, "x"]])},
    )


RUNS = [toy_run(0), toy_run(1)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the offline runs."""
    root = tmp_path_factory.mktemp("out")
    tracker = Tracker(root, "offline")
    assert tracker.finish(RUNS) == (2, 0), tracker.errors
    return root


def count(folder: Path) -> int:
    return len(list((folder / "wandb").glob("offline-run-*")))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fails", "hangs", "drops"])
def test_a_bad_server_costs_at_most_five_seconds_and_nothing_is_lost(
    how: str, written: Path, served: Callable[[str], Any]
) -> None:
    server = served(how)
    tracker = Tracker(written, "online")
    folder = tracker.notes.of(RUNS[0].id)["folder"]
    tracker._send(RUNS[0].id, RUNS[0].digest, folder)  # as a row that ended long before the last
    assert server.asked.wait(60.0), "the server was never spoken to"
    begin = time.monotonic()
    assert tracker.finish(RUNS) == (2, 0)
    assert time.monotonic() - begin < LONGEST + BUSY
    assert not any(tracker.notes.is_sent(run, tracker.target) for run in RUNS)
    assert tracker.sender is not None
    assert tracker.sender.process.returncode is not None
    assert count(written) == 2


@pytest.mark.slow
def test_what_was_sent_is_not_sent_again_and_a_change_goes_to_the_same_run(
    written: Path, served: Callable[[str], Any]
) -> None:
    """The server has every value; the second time nothing of a run reaches it; no run has two ids."""
    server = served("works")
    first = Tracker(written, "online")
    assert first.finish(RUNS, 60.0) == (2, 2), first.errors
    assert set(server.runs) == {"run0", "run1"}
    for run in RUNS:
        assert server.summaries[run.id]["top1"] == run.summary["top1"]
        lines = [{name: line[name] for name in run.history[0]} for line in server.history[run.id][:3]]
        assert lines == run.history
        tables = [body for path, body in server.uploads.items() if f"/{run.id}/media/table" in path]
        assert [json.loads(body)["data"] for body in tables] == [run.tables["tables/t"][1]]
    sent = len(server.bodies)
    again = Tracker(written, "online")
    assert again.finish(RUNS, 60.0) == (2, 2)
    assert len(server.bodies) == sent
    changed = [RUNS[0], toy_run(1, 0.25)]
    third = Tracker(written, "online")
    assert third.finish(changed, 60.0) == (2, 2), third.errors
    assert set(server.runs[server.runs.index("run1") :]) <= {"run0", "run1"}
    assert server.summaries["run1"]["top1"]["value"] == 0.25
    assert count(written) == 2
    user = os.environ.get("USER", "")
    secrets = [os.environ["WANDB_API_KEY"], str(written), str(Path.home()), *([user] if len(user) > 4 else [])]
    assert not [secret for secret in secrets if any(secret.encode() in body for body in server.bodies)]
