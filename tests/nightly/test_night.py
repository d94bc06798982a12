"""Whole nights on the toy paper, in processes of their own: failures, a second night, a regression, SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench.nightly import baseline, history
from bench.store import Store

HERE = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE / 'toy'}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("GITHUB_STEP_SUMMARY", None)
IDS = {f"toy/table-{table}/{name}" for table, name in ((1, "dense"), (1, "pruned"), (1, "pruned-fine-tuned"))}
BAD = {"toy/table-2/dies": "crashed", "toy/table-2/fails": "failed"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench", *arguments]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    where = HERE / "toy"  # with -m the working directory's packages come first
    return subprocess.run(
        command(*arguments),
        cwd=where,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def night(out: Path, *more: str, **environment: str) -> tuple[dict[str, Any], int]:
    done = bench("nightly", "toy", "--scale", "digits", "--out", str(out), "--json", *more, **environment)
    assert done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout), done.returncode


def measured(out: Path) -> dict[str, Any]:
    files = sorted((out / "toy" / "rows").rglob("*.json"))
    return {file.name: json.loads(file.read_text())["records"] for file in files}


@pytest.mark.slow
def test_two_nights(tmp_path: Path) -> None:
    """Two rows end badly and cost themselves alone; the second night trains nothing and measures everything anew.

    Two rows at once: what they share is made, and measured, by one of them.
    """
    out, step = tmp_path / "runs", tmp_path / "step.md"
    first, status = night(out, "--jobs", "2", GITHUB_STEP_SUMMARY=str(step))
    rows = first["night"]["rows"]
    assert status == 1
    assert {name: rows[name]["status"] for name in BAD} == BAD
    assert {name for name, row in rows.items() if row["status"] == "ok"} == IDS | {"toy/table-2/ends-well"}
    assert {first["night"]["attempts"][name] for name in BAD} == {2}
    assert "died of signal 9" in rows["toy/table-2/dies"]["reason"]
    page = (out / "nightly" / "00001" / "summary.md").read_text()
    assert page == step.read_text() and page.startswith("# Night 1: 2 failed\n")
    suite = ElementTree.parse(out / "nightly" / "00001" / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("errors")) == ("6", "2")
    before = measured(out)

    # what was measured becomes the baseline, predictions beside it
    base = tmp_path / "base"
    shutil.copytree(out / "toy" / "rows", base / "toy" / "rows")
    chosen = [(path, json.loads(path.read_text())) for path in (base / "toy" / "rows").rglob("*.json")]
    assert len(baseline.write(base, chosen, Store(out))) == 3

    second, status = night(out, "--baseline", str(base), "--jobs", "2")
    rows = second["night"]["rows"]
    assert second["night"]["number"] == 2 and status == 1  # the two bad rows, and nothing else
    assert {row["word"] for row in second["check"] if row["row"] in IDS} == {"SAME"}
    for name in IDS:
        assert rows[name]["made"] == 0 and rows[name]["reused"] > 0
    # each step is measured once a night, by the row that comes first
    keys = [key for name in IDS for key in rows[name]["measured"]]
    assert len(keys) == len(set(keys)) >= 6
    assert measured(out) == before
    assert [one.night for one in history.read(out) if one.row == "toy/table-1/dense"] == [1, 2]

    # a regression: the baseline was right where the network is wrong
    name = next(path for path, _ in chosen if "table-1--pruned--" in path.name)
    row = json.loads(name.read_text())
    for record in row["records"]:
        if record["metric"] == "top1_acc":
            record["value"] = 100.0
    name.write_text(json.dumps(row))
    baseline.predictions_path(name).unlink()
    done = bench("check", "--out", str(out), "--baseline", str(base), "--json")
    words = {row["row"]: row["word"] for row in json.loads(done.stdout)}
    assert done.returncode == 1 and words["toy/table-1/pruned"] == "WORSE" and words["toy/table-1/dense"] == "SAME"


@pytest.mark.slow
def test_a_regression_planted_in_a_script_is_caught_and_named(tmp_path: Path) -> None:
    """A training's rate is made so small that it learns nothing: the row that had learned most is worse, by code."""
    project, out, base = tmp_path / "toy", tmp_path / "runs", tmp_path / "base"
    shutil.copytree(HERE / "toy", project, ignore=shutil.ignore_patterns("__pycache__"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        path = {"PYTHONPATH": f"{project}{os.pathsep}{HERE.parent}"}
        return subprocess.run(
            command(*arguments), cwd=project, env={**ENVIRONMENT, **path}, capture_output=True, text=True, check=False
        )

    asked = ["nightly", "toy", "--scale", "digits", "--out", str(out), "--json"]
    assert run(*asked).returncode == 1  # of the two rows that end badly
    accepted = run("accept", "--from", str(out), "--baseline", str(base), "--without", *BAD)
    assert accepted.returncode == 0, accepted.stderr
    script = project / "reproductions" / "toy.py"
    script.write_text(script.read_text().replace("lr=0.02", "lr=1e-7"))
    second = json.loads(run(*asked, "--baseline", str(base)).stdout)
    found = {row["row"]: row for row in second["check"]}
    # of two epochs the dense network has hardly more than chance, which the change need not be told from
    assert {found[name]["word"] for name in IDS} <= {"WORSE", "AMBIGUOUS"}
    tuned = found["toy/table-1/pruned-fine-tuned"]
    assert tuned["word"] == "WORSE"
    assert "networks: made by other code or with other parameters" in tuned["differs"]
    page = (out / "nightly" / "00002" / "summary.md").read_text()
    worse = sum(row["word"] == "WORSE" for row in second["check"])
    assert page.startswith(f"# Night 2: 2 failed, {worse} worse than the baseline\n")
    assert "networks: made by other code or with other parameters" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_night_that_is_stopped_goes_on(tmp_path: Path, name: str) -> None:
    """After the first row.  Of SIGTERM it is gone within 30 seconds and tells what it has; the same command goes on."""
    out = tmp_path / "runs"
    arguments = ["nightly", "toy", "--scale", "digits", "--out", str(out)]
    process = subprocess.Popen(
        command(*arguments), cwd=HERE / "toy", env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    state = out / "nightly" / "00001" / "night.json"
    deadline = time.monotonic() + 300
    while not (state.exists() and json.loads(state.read_text())["rows"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.Signals[name])
    begin = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == (130 if name == "SIGTERM" else -signal.SIGKILL) and time.monotonic() - begin < 30
    done = json.loads(state.read_text())["rows"]
    assert done and set(done) != IDS | set(BAD) | {"toy/table-2/ends-well"}
    if name == "SIGTERM":
        assert "Stopped before its end" in (out / "nightly" / "00001" / "summary.md").read_text()
    ended, _ = night(out)
    assert ended["night"]["number"] == 1 and ended["night"]["ended"]
    assert set(ended["night"]["rows"]) == IDS | set(BAD) | {"toy/table-2/ends-well"}
    # what it had done is not done again
    assert all(ended["night"]["rows"][row] == report for row, report in done.items())
    assert len(history.read(out)) == 6


@pytest.mark.slow
def test_rows_side_by_side_find_what_their_starter_planned(tmp_path: Path) -> None:
    """On two threads, one a row: their number is part of the keys, and the starter was once planning with both."""
    out = ["--scale", "digits", "--jobs", "2", "--out", str(tmp_path / "runs")]
    two = {"OMP_NUM_THREADS": "2"}
    table = ["toy", "--table", "Table 1", *out]
    assert bench("run", *table, **two).returncode == 0
    plan = json.loads(bench("run", *table, "--plan", "--json", **two).stdout)
    assert plan["steps"] and all(step["cached"] for step in plan["steps"])
    headers = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "steps").glob("*/step.json")]
    assert len(headers) == len(plan["steps"])  # nothing was made twice
    threads = {(one["kind"], one["provenance"]["hardware"]["threads"]) for one in headers}
    assert threads == {(kind, 1) for kind in ("train", "prune", "evaluate", "compare")}
    # a night has the same keys: of its rows only the measurements are left
    night_ = json.loads(bench("nightly", "toy", *out, "--plan", "--json", **two).stdout)
    minutes = {row["row"]: row["minutes"] for row in night_["rows"]}
    assert all(minutes[name] < 0.2 for name in IDS)


def in_session(number: int) -> list[int]:
    """The processes of a session that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            if int(session) == number and state != "Z":
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see which processes are alive")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("what", [["nightly", "toy"], ["run", "toy", "--table", "Table 1"]])
def test_no_process_outlives_its_starter(tmp_path: Path, name: str, what: list[str]) -> None:
    """Ctrl-C reaches all of a terminal's processes, SIGTERM and SIGKILL the first alone; no row prints a traceback."""
    arguments = [*what, "--scale", "digits", "--jobs", "2", "--out", str(tmp_path / "runs")]
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen(
            command(*arguments),
            cwd=HERE / "toy",
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        deadline = time.monotonic() + 300
        while "[1/" not in errors.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(in_session(process.pid)) >= 3  # the command, the fork server, a row
        if name == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.Signals[name])
        process.wait(30)
    deadline = time.monotonic() + 15
    while in_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert in_session(process.pid) == []
    said = errors.read_text()
    assert "Traceback" not in said and "resource_tracker" not in said
    if name != "SIGKILL":
        assert process.returncode == 130 and "stopped" in said


@pytest.mark.slow
def test_a_budget_leaves_the_rest_and_says_so(tmp_path: Path) -> None:
    """The plan of a night: the rows that fit, and those for which no time is left; a budget of nothing is a mistake."""
    out = str(tmp_path / "runs")
    done = bench("nightly", "toy", "--scale", "digits", "--out", out, "--budget", "0.35", "--plan", "--json")
    plan = json.loads(done.stdout)
    assert {row["row"] for row in plan["rows"]} == IDS | set(BAD) | {"toy/table-2/ends-well"}
    assert {row["fits"] for row in plan["rows"]} == {True, False}
    minutes = sum(row["minutes"] for row in plan["rows"] if row["fits"])
    assert plan["minutes"] == pytest.approx(minutes) and minutes <= 0.35
    assert bench("nightly", "toy", "--budget", "0", "--out", out).returncode == 2
    assert bench("nightly", "toy", "--jobs", "0", "--out", out).returncode == 2
