"""Runs in processes of their own: torchrun against the plain run, rows that crash, the script that runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bench import processes
from bench.models.recipe import Recipe

HERE = Path(__file__).parent
# the toy's package of papers goes before the real one
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{HERE / 'toy'}{os.pathsep}{HERE.parent}",
    "OMP_NUM_THREADS": "1",
}


def bench(*arguments: str, nproc: int = 1, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"] if nproc > 1 else []
    command = [sys.executable, *launch, "-m", "bench", *arguments]
    where = HERE / "toy"  # with -m the working directory's packages come first
    return subprocess.run(
        command, cwd=where, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=timeout
    )


def records(out: Path) -> dict[str, dict[str, float]]:
    """The values of every row by metric, with those of its histories."""
    found = {}
    for path in (out / "toy" / "rows" / "digits").glob("*.json"):
        row = json.loads(path.read_text())
        found[row["id"]] = {f"{r['metric']} {r.get('seed')}": r["value"] for r in row["records"]}
    return found


@pytest.mark.slow
def test_a_crash_costs_one_row(tmp_path: Path) -> None:
    """A killed process and a bug: the rows around them are measured, the status is 1, the reasons are told."""
    out = tmp_path / "runs"
    done = bench("run", "toy", "--table", "Table 2", "--isolate", "--out", str(out), "--json")
    assert done.returncode == 1, done.stderr[-2000:]
    rows = {row["id"]: row for row in json.loads(done.stdout)["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "toy/table-2/dies": "failed",
        "toy/table-2/fails": "failed",
        "toy/table-2/ends-well": "ok",
    }
    assert rows["toy/table-2/dies"]["reason"] == "its process died of signal 9, as where memory runs out"
    assert "ZeroDivisionError" in rows["toy/table-2/fails"]["reason"]


@pytest.mark.slow
def test_rows_side_by_side_end_as_one_after_the_other(tmp_path: Path) -> None:
    """Three rows at once that share a training: it is made once, all values are the plain run's, a crash costs one."""
    plain, beside = tmp_path / "plain", tmp_path / "beside"
    arguments = ["run", "toy", "--scale", "digits", "--json"]
    assert bench(*arguments, "--table", "Table 1", "--out", str(plain)).returncode == 0
    done = bench(*arguments, "--jobs", "3", "--out", str(beside))
    assert done.returncode == 1, done.stderr[-2000:]
    assert [(row["id"], row["status"]) for row in json.loads(done.stdout)["rows"]] == [
        ("toy/table-1/dense", "ok"),
        ("toy/table-1/pruned", "ok"),
        ("toy/table-1/pruned-fine-tuned", "ok"),
        ("toy/table-2/dies", "failed"),
        ("toy/table-2/fails", "failed"),
        ("toy/table-2/ends-well", "ok"),
    ]
    values = records(beside)
    assert values.pop("toy/table-2/ends-well") == {"top1_acc None": 1.0}
    assert values == records(plain)
    steps, made = ({path.name for path in (root / "steps").iterdir()} for root in (plain, beside))
    assert steps < made and len(made) == len(steps) + 1
    assert not steps & {path.name.partition(".")[0] for path in (beside / "work").iterdir()}
    begun = [line for line in done.stderr.splitlines() if "] dense(" in line and "waiting" not in line]
    assert len(begun) == 1, begun  # the others wait for it


GIVEN = ["run", "toy", "--scale", "digits", "--json"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in ``w.safetensors``, the plain run with them in ``plain``, and in ``half`` what it was half-way."""
    place = tmp_path_factory.mktemp("given")
    recipe_state(place / "w.safetensors")
    plain = [*GIVEN, "--weights", str(place / "w.safetensors"), "--out", str(place / "plain")]
    done = bench(*plain, "--row", "table-1/pruned")
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.copytree(place / "plain", place / "half")
    assert bench(*plain, "--table", "Table 1").returncode == 0
    return place


@pytest.mark.slow
@pytest.mark.parametrize("start", ["empty", "half-filled"])
def test_torchrun_ends_as_the_plain_run_does(given: Path, tmp_path: Path, start: str) -> None:
    """Given weights, two processes: from nothing, or from a store that has all but what is trained.

    All that is not training is equal to the bit.  Training shares the batches, so its networks differ, and so do their
    batch norms' statistics; the rows are there, and what was trained is found again by the next launch.
    """
    plain, shared = given / "plain", tmp_path / "shared"
    if start == "half-filled":
        shutil.copytree(given / "half", shared)
    arguments = [*GIVEN, "--table", "Table 1", "--weights", str(given / "w.safetensors"), "--out", str(shared)]
    done = bench(*arguments, nproc=2)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = records(plain), records(shared)
    assert set(one) == set(two) == {f"toy/table-1/{name}" for name in ("dense", "pruned", "pruned-fine-tuned")}
    for name in ("toy/table-1/dense", "toy/table-1/pruned"):
        assert one[name] == two[name]
    tuned = "toy/table-1/pruned-fine-tuned"
    assert set(one[tuned]) == set(two[tuned])
    assert {k: v for k, v in one[tuned].items() if k.startswith(("macs", "params", "speedup"))} == {
        k: v for k, v in two[tuned].items() if k.startswith(("macs", "params", "speedup"))
    }
    assert list((shared / "work").iterdir()) == []
    if start == "half-filled":
        again = bench(*arguments, nproc=2)
        assert again.returncode == 0
        assert "fine-tuned(" not in again.stderr  # nothing is trained again
        assert records(shared) == two


def recipe_state(path: Path) -> None:
    """Weights of the toy's network."""
    torch.manual_seed(0)
    net = Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.25}, (3, 16, 16)).build()
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)


def test_threads_under_torchrun_are_those_of_the_plain_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun sets OMP_NUM_THREADS to 1 where the user has not; then the plain run's number is asked for."""
    asked: list[Any] = []

    def run(command: Any, env: dict[str, str], **_: Any) -> Any:
        asked.append(env)
        return subprocess.CompletedProcess(command, 0, "7\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(processes, "_user_s_own", lambda name: False)
    assert processes._plain_threads() == 7
    assert "OMP_NUM_THREADS" not in asked[0]
    monkeypatch.setattr(processes, "_user_s_own", lambda name: True)
    assert processes._plain_threads() == torch.get_num_threads()
    assert len(asked) == 1


def test_what_the_parent_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from a process that was started with the variable, and from one that set it itself."""
    script = "import os, time; os.environ['B'] = '1'; print(flush=True); time.sleep(60)"
    environment = {name: value for name, value in os.environ.items() if name not in ("A", "B")} | {"A": "1"}
    child = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        monkeypatch.setattr(os, "getppid", lambda: child.pid)
        if not Path(f"/proc/{child.pid}/environ").exists():
            pytest.skip("no /proc here")
        assert processes._user_s_own("A")
        assert not processes._user_s_own("B")
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_importing_the_module_that_runs_runs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import bench.__main__"], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
