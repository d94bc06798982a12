"""``bench run --wandb`` and ``bench sync`` as a user meets them, on a paper of small rows."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import saved
from bench.tracking import mirror, tracker
from bench.tracking.tracker import Tracker

ROOT = Path(__file__).parents[2]
ROW = "toy/table-1/pruned"
KEY = "feedfacefeedfacefeedfacefeedfacefeedface"


# one process for all commands, because each would import torch anew; the servers are arguments
SCRIPT = """
import contextlib, io, json, os, sys
from bench.cli import main
said = []
def bench(server, *arguments):
    os.environ["WANDB_BASE_URL"] = server
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    said.append([status, out.getvalue(), err.getvalue()])
row = ("run", "toy", "--device", "cpu", "--row", sys.argv[1], "--wandb")
bench(sys.argv[2], *row, "offline")
bench(sys.argv[2], *row, "online")
bench(sys.argv[3], "sync")
bench(sys.argv[3], "sync")
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Commands:
    """What the commands gave, each its exit status, output and errors, and the servers that they spoke to."""

    out: Path
    offline: list[Any]
    hanging: list[Any]
    synced: list[Any]
    again: list[Any]
    hangs: Any
    works: Any


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, serving: Callable[[str], Any]) -> Iterator[Commands]:
    """A row run with ``--wandb offline`` and again online beside a server that hangs; then ``bench sync`` twice."""
    folder = tmp_path_factory.mktemp("toy")
    path = os.pathsep.join([str(ROOT / "tests" / "toy"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "WANDB_API_KEY": KEY, "WANDB_NAME": "another"}
    with serving("hangs") as hangs, serving("works") as works:
        command = [sys.executable, "-c", SCRIPT, ROW, hangs.url, works.url]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield Commands(folder / "runs", *json.loads(done.stdout), hangs, works)


@pytest.fixture(scope="module")
def out(commands: Commands) -> Path:
    """The folder of the runs."""
    return commands.out


def folders(out: Path) -> dict[str, Path]:
    """The offline runs by their ids."""
    return {path.name.split("-", 3)[3]: path for path in (out / "wandb").glob("offline-run-*")}


@pytest.mark.slow
def test_an_offline_run_read_back_equals_the_store(out: Path, offline: Callable[[Path], dict[str, Any]]) -> None:
    (path,) = (out / "toy" / "rows").glob("*/*.json")
    value = json.loads(path.read_text())
    steps = {path.parent.name: json.loads(path.read_text()) for path in (out / "steps").glob("*/step.json")}
    written = folders(out)
    assert set(written) == {mirror.row_run_id(ROW, value["setting"]), "paper-toy"}
    back = offline(written[mirror.row_run_id(ROW, value["setting"])])
    assert (back["run"].run_group, back["run"].host) == ("toy", "-")
    assert back["tags"] == ["digits", "cpu"]

    # every record of the row file stands in the summary, and every record of the steps in the row file
    kept = [record for record in back["summary"].values() if isinstance(record, dict) and "metric" in record]
    assert sorted(map(json.dumps, kept)) == sorted(map(json.dumps, value["records"]))
    measured = [{**record, "step": key} for key in value["steps"] for record in steps[key]["records"]]
    assert all(record in kept for record in measured)

    # every epoch of every training, by its seed
    trained = {key: step for key, step in steps.items() if "history" in step["facts"]}
    assert trained
    names = back["config"]["trainings"]
    assert set(names.values()) == set(trained)
    for name, key in names.items():
        assert name.endswith(f"/seed-{trained[key]['params'].get('seed', 0)}")
        seen = [
            {"epoch": line["epoch"], **{part: line[f"{name}/{part}"] for part in ("loss", "lr", "accuracy")}}
            for line in back["history"]
        ]
        assert seen == trained[key]["facts"]["history"]

    # the configuration: keys, parameters and provenance of every step behind the row
    assert back["config"]["steps"] == value["steps"]
    assert set(value["steps"]) < set(back["config"]["chain"]) <= set(steps)
    for key, about in back["config"]["chain"].items():
        assert about == {name: steps[key][name] for name in about}
        assert {"params", "parents", "provenance"} <= set(about)


@pytest.mark.slow
def test_the_artifact_is_the_network(out: Path, tmp_path: Path, offline: Callable[[Path], dict[str, Any]]) -> None:
    (back,) = (back for back in map(offline, folders(out).values()) if back["files"])
    for name, path in back["files"].items():
        assert not Path(path).is_absolute()
        (tmp_path / name).write_bytes((out / path).read_bytes())
    key = next(iter(back["config"]["widths"]))
    model = saved.load(tmp_path)
    stored = saved.load_file(out / "steps" / key / "state.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert set(model.state_dict()) == set(stored)


@pytest.mark.slow
def test_nothing_of_the_machine_or_its_user_is_in_the_files(
    out: Path, offline: Callable[[Path], dict[str, Any]]
) -> None:
    long = [KEY, str(out), str(Path.home()), str(ROOT), os.getcwd(), sys.executable, "another"]
    short = [socket.gethostname(), getpass.getuser()]
    for folder in folders(out).values():
        for path in (path for path in folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            for secret in [*long, *(name for name in short if len(name) > 4)]:
                assert secret.encode() not in content, f"{secret} in {path.name}"
        # a short name may stand in random bytes; as a word of a record it may not
        words = set(re.findall(r"[\w.-]+", offline(folder)["text"]))
        assert not words & set(short)


@pytest.mark.slow
def test_a_run_ends_well_beside_a_server_that_hangs_and_sync_sends_what_is_left_once(commands: Commands) -> None:
    assert commands.offline[0] == 0
    assert "W&B" not in commands.offline[2]
    assert commands.hanging[0] == 0
    assert f"W&B: 2 of 2 runs did not reach {commands.hangs.url}" in commands.hanging[2]
    assert "run `bench sync`" in commands.hanging[2]
    assert commands.hanging[1] == commands.offline[1]
    assert commands.synced[:2] == [0, "2 runs: 2 sent, 0 unchanged, 0 left\n"], commands.synced[2]
    assert commands.again[:2] == [0, "2 runs: 0 sent, 2 unchanged, 0 left\n"], commands.again[2]
    assert set(commands.works.runs) == set(folders(commands.out))
    assert sum(path.startswith("/artifact/") for path in commands.works.uploads) == 2
    assert not any(secret.encode() in body for body in commands.works.bodies for secret in (KEY, str(commands.out)))


@pytest.mark.slow
def test_the_load_is_sampled_while_a_row_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: Callable[[Path], dict[str, Any]]
) -> None:
    """And a row that fails leaves nothing."""
    monkeypatch.setattr(tracker, "WATCHED_AFTER", 0.0)
    run = mirror.Run("run0", "row", "toy", "row", ["digits"], {}, summary={"a": {"value": 1}})
    kept = Tracker(tmp_path, "offline")
    for name in ("failed", "run0"):
        kept.began(name, name, "toy")
        until = time.monotonic() + 60.0
        while not list((tmp_path / "wandb").glob(f"offline-run-*-{name}")) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.5)
        kept.ended(name, lambda name=name: run if name == "run0" else None)  # type: ignore[misc]
    assert kept.finish([run]) == (1, 0), kept.errors
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    back = offline(folder)
    assert back["stats"] >= 1
    assert back["summary"]["a"] == {"value": 1}
