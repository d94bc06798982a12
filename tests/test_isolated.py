"""The server that rows' processes are forked from: what it is told to know, and that it minds no row that fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench import isolated, planning
from bench.errors import UserError
from bench.planning import Job
from bench.rows import Paper, Row, row_id


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """The server's own number of threads is not that of the tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_server_knows_a_row_of_each_paper_and_embedded_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their data are drawn; those of a folder or of CIFAR-10 are read by who needs them."""
    monkeypatch.delenv(isolated.ROWS, raising=False)
    rows = [("a", "x", "digits"), ("a", "y", "clutter"), ("a", "z", "cifar10"), ("b", "x", "digits"), ("b", "y", "/me")]
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: begun.append(os.environ[isolated.ROWS]))
    begun = list[str]()
    found = isolated.server("bench.apart", [(f"{paper}/table-1/{name}", scale) for paper, name, scale in rows])
    assert found.get_start_method() == "forkserver"
    (known,) = begun
    assert json.loads(known) == [
        ["a/table-1/x", "digits"],
        ["a/table-1/y", "clutter"],
        ["b/table-1/x", "digits"],
    ]
    assert isolated.ROWS not in os.environ


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


def test_the_server_starts_deaf_and_finds_what_its_starter_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks the driver's library for GPUs, not CUDA, which could not be used in a forked process afterwards."""
    seen: dict[str, Any] = {}

    def begin() -> None:
        names = ("PYTORCH_NVML_BASED_CUDA_CHECK", "PYTHONSAFEPATH", "PYTHONPATH")
        seen.update({name: os.environ[name] for name in names}, ctrl_c=signal.getsignal(signal.SIGINT))

    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", begin)
    monkeypatch.setenv(isolated.ROWS, "")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = signal.getsignal(signal.SIGINT)
    isolated.server("bench.apart", [])
    assert seen["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1" and seen["PYTHONSAFEPATH"] == "1"
    assert seen["PYTHONPATH"].split(os.pathsep) == [path or os.getcwd() for path in sys.path]
    assert seen["ctrl_c"] is signal.SIG_IGN and signal.getsignal(signal.SIGINT) is before
    assert os.environ["PYTHONPATH"] == "/mine" and "PYTHONSAFEPATH" not in os.environ


@pytest.mark.parametrize("nvml", [True, False])
def test_what_the_server_imports_does_not_ask_cuda_itself(nvml: bool) -> None:
    """The driver's library says that there is a GPU; whoever asks CUDA for the number of devices ends the process."""
    if not torch.backends.cuda.is_built():
        pytest.skip("this torch knows no CUDA")
    script = """
import sys, torch
torch.cuda._device_count_nvml = lambda: 1
def asked(): sys.exit("CUDA was asked")
torch._C._cuda_getDeviceCount = asked
import importlib
import bench.apart, bench.nightly.child, bench.preloaded
from bench.latency.campaign import PRELOADED
for name in PRELOADED: importlib.import_module(name)
print("imported", torch.cuda.is_initialized())
"""
    row = next(iter(planning.papers()["thinet"].ids))
    environment = {
        **os.environ,
        isolated.ROWS: json.dumps([[row, "digits"]]),
        "PYTORCH_NVML_BASED_CUDA_CHECK": str(int(nvml)),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    if nvml:
        assert (done.returncode, done.stdout) == (0, "imported False\n"), done.stderr[-2000:]
    else:  # or this test could not fail
        assert done.returncode == 1 and "CUDA was asked" in done.stderr


def test_a_row_that_is_not_what_its_starter_planned_is_refused() -> None:
    """An edit while a run of hours is under way: what the old code gives is not stored as the new code's."""
    paper, job = planning.papers()["thinet"], Job(scale="digits", device="cpu", progress=False)
    name = next(row_id(paper.key, row) for row, _ in planning.meant(paper.rows, job) if row.missing is None)
    (entry,) = planning.plan(paper, [paper.ids[name]], job)
    keys = {step.key for step, _ in planning.steps_of([entry])}
    assert isolated.planned(name, job, keys).id == name
    for other in (keys - {min(keys)}, keys | {"0" * 64}, set[str]()):
        with pytest.raises(UserError, match="changed since this run began"):
            isolated.planned(name, job, other)
