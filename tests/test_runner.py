"""The graph of cached steps: shared work runs once, nothing measured is lost, a killed run ends where it would have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import runner
from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.rows import Chain, Paper, Row
from bench.runner import Job
from bench.steps import Context, DataValue, Kind, Step, in_order, make_step
from bench.store import Record, Result, Store

CALLS: list[str] = []


@dataclass(frozen=True)
class Number:
    """A number and how the step behaves."""

    name: str
    number: float
    fails: bool = False


def run_number(context: Context, parents: list[Result], params: Number) -> Result:
    """Adds its own number to its parents'."""
    CALLS.append(params.name)
    if params.fails:
        raise UserError("the user broke it")
    total = params.number + sum(parent.facts["total"] for parent in parents)
    return Result(records=[Record("top1_acc", total, "%", total, total, 1)], facts={"total": total})


DATA = DataValue("plain", "training")


def step(
    name: str,
    number: float,
    *parents: Step,
    fails: bool = False,
    kind: Kind = Kind.TRAIN,
    data: DataValue = DATA,
    device: str = "cpu",
    label: str = "",
) -> Step:
    params = Number(name, number, fails)
    return make_step(kind, label or name, run_number, params, parents, data=data, device=device)


def tiny(scale: str, classes: int, given: bool) -> Recipe:
    return Recipe("cifar_resnet20", {"num_classes": classes, "width": 0.25}, (3, 8, 8))


def paper(*rows: tuple[str, list[Step]]) -> Paper:
    def chain(steps: list[Step]) -> Any:
        return lambda setting, recipe: Chain([], steps)

    made = [Row("Table 1", name, "imagenet", None, None, tiny, chain(steps), seeds=(0,)) for name, steps in rows]
    return Paper("toy", "A toy", "nobody", made, [])


def run(paper_: Paper, out: Path) -> list[Path]:
    job = Job(out=out, scale="digits", progress=False)
    return runner.run(paper_, runner.plan(paper_.rows, job), job, Store(out), lambda text: None, "bench run toy")


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def values(files: list[Path]) -> dict[str, list[float]]:
    rows = [json.loads(file.read_text()) for file in files]
    return {row["row"]: [record["value"] for record in row["records"]] for row in rows}


def test_shared_steps_run_once_and_finished_ones_not_again(tmp_path: Path) -> None:
    dense = step("dense", 1.0)
    toy = paper(("first", [step("a", 10.0, dense)]), ("second", [step("b", 20.0, dense), step("a", 10.0, dense)]))
    assert values(run(toy, tmp_path)) == {"first": [11.0], "second": [21.0, 11.0]}
    assert sorted(CALLS) == ["a", "b", "dense"]
    CALLS.clear()
    assert values(run(toy, tmp_path)) == {"first": [11.0], "second": [21.0, 11.0]}
    assert CALLS == []


def test_rows_that_are_complete_survive_a_failure(tmp_path: Path) -> None:
    dense = step("dense", 1.0)
    toy = paper(("good", [step("a", 10.0, dense)]), ("bad", [step("b", 20.0, dense, fails=True)]))
    with pytest.raises(UserError, match="broke"):
        run(toy, tmp_path)
    files = sorted((tmp_path / "toy" / "rows" / "digits").iterdir())
    assert values(files) == {"good": [11.0]}
    mended = paper(("good", [step("a", 10.0, dense)]), ("bad", [step("b", 20.0, dense)]))
    CALLS.clear()
    run(mended, tmp_path)
    assert CALLS == ["b"]


def test_damaged_results_are_made_again(tmp_path: Path) -> None:
    dense = step("dense", 1.0)
    toy = paper(("only", [step("a", 10.0, dense)]))
    run(toy, tmp_path)
    (tmp_path / "steps" / dense.key / "step.json").write_text("{")
    CALLS.clear()
    assert values(run(toy, tmp_path)) == {"only": [11.0]}
    assert CALLS == ["dense"]


def test_order_puts_parents_first() -> None:
    a = step("a", 1.0)
    b, c = step("b", 1.0, a), step("c", 1.0, a)
    d = step("d", 1.0, b, c)
    names = [s.name for s in in_order([d, c])]
    assert names == ["a", "b", "c", "d"]


def test_rows_that_cannot_run_say_why_and_keep_what_was_measured(tmp_path: Path) -> None:
    toy = paper(("only", [step("a", 10.0)]))
    run(toy, tmp_path)
    job = Job(out=tmp_path, data=tmp_path / "nowhere", progress=False)
    files = runner.run(toy, runner.plan(toy.rows, job), job, Store(tmp_path), lambda text: None, "bench run toy")
    assert json.loads(files[0].read_text())["status"] == "not run (needs imagenet)"
    measured = tmp_path / "toy" / "rows" / "digits"
    assert values(sorted(measured.iterdir())) == {"only": [10.0]}


def test_row_files_name_no_place_of_this_machine(tmp_path: Path) -> None:
    files = run(paper(("only", [step("a", 10.0)])), tmp_path)
    text = files[0].read_text()
    assert str(tmp_path) not in text
    assert os.path.expanduser("~") not in text
    provenance_ = next(iter(json.loads(text)["steps"].values()))["provenance"]
    assert provenance_["versions"]["torch"] == torch.__version__.split("+")[0]
    assert provenance_["hardware"]["threads"] == torch.get_num_threads()


def test_papers_are_found_and_every_published_link_exists() -> None:
    """Discovery needs no list; each row's links point at one value of the registry."""
    from bench.commands import registry_folder
    from bench.registry import find, load

    for key, found in runner.papers().items():
        entries = load(key, registry_folder())
        names = [(row.table, row.name) for row in found.rows]
        assert len(names) == len(set(names))
        for row in found.rows:
            for link in row.published.values():
                assert find(entries, row.table, link[0], link[1]) is not None, (row.name, link)


_ROW = [
    "-m",
    "bench",
    "run",
    "channel_pruning",
    "--table",
    "Table 8",
    "--row",
    "Ours",
    "--scale",
    "digits",
    "--seed",
    "0",
]


@pytest.mark.slow
def test_kill_minus_nine_at_any_moment_changes_no_number(tmp_path: Path) -> None:
    """Killed three times, in training, in pruning, wherever it is; the same command then ends with the same records."""
    whole = [sys.executable, *_ROW, "--out", str(tmp_path / "whole")]
    begin = time.monotonic()
    subprocess.run(whole, check=True, capture_output=True)
    duration = time.monotonic() - begin
    killed = [sys.executable, *_ROW, "--out", str(tmp_path / "killed")]
    for share in (0.5, 0.4, 0.3):
        process = subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(share * duration)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(killed, check=True, capture_output=True)

    def records(folder: str) -> dict[str, Any]:
        rows = sorted((tmp_path / folder / "channel_pruning" / "rows" / "digits").glob("*.json"))
        assert len(rows) == 2
        return {row.name: json.loads(row.read_text())["records"] for row in rows}

    assert records("whole") == records("killed")
