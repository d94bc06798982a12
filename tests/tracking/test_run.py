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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import saved
from bench.tracking import mirror, tracker
from bench.tracking.tracker import Tracker

ROOT = Path(__file__).parents[2]
ROW = "toy/table-1/pruned-fine-tuned"
KEY = "feedfacefeedfacefeedfacefeedfacefeedface"


def bench(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with the toy paper in the place of the real ones."""
    found = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'toy'}{os.pathsep}{ROOT}"} | environment
    found["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=cwd, env=found, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with ``--wandb offline``, with a key in the environment."""
    folder = tmp_path_factory.mktemp("toy")
    arguments = ("run", "toy", "--row", ROW, "--wandb", "offline", "--device", "cpu")
    done = bench(*arguments, cwd=folder, WANDB_API_KEY=KEY, WANDB_NAME="another", WANDB_RUN_ID="another")
    assert done.returncode == 0, done.stderr
    assert "W&B" not in done.stderr
    return folder / "runs"


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
    assert len(trained) == 3
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
def test_a_run_ends_well_beside_a_server_that_hangs_and_sync_sends_what_is_left_once(
    out: Path, served: Callable[[str], Any]
) -> None:
    server = served("hangs")
    arguments = ("run", "toy", "--row", ROW, "--wandb", "online", "--device", "cpu")
    done = bench(*arguments, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    assert f"W&B: 2 of 2 runs did not reach {server.url}" in done.stderr
    assert "run `bench sync`" in done.stderr
    server.how = "works"
    for said in ("2 runs: 2 sent, 0 unchanged, 0 left\n", "2 runs: 0 sent, 2 unchanged, 0 left\n"):
        done = bench("sync", cwd=out.parent)
        assert (done.stdout, done.returncode) == (said, 0), done.stderr
        assert set(server.runs) == set(folders(out))
    assert sum(path.startswith("/artifact/") for path in server.uploads) == 2


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
