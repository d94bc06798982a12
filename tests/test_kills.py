"""Kills at random moments and runs at once on one store: the numbers end as an undisturbed run's, none are half.

Children are forked, so that a kill costs no import.  The steps are small, write tensors, and take a few milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import planning, runner
from bench.models.recipe import Recipe
from bench.planning import Job
from bench.rows import Chain, Paper, Row, Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Record, Result, Store

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    """A forked child has no pool of threads and would wait for the parent's; the number is also in the keys."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Draw:
    """What is added to the parents' sum."""

    seed: int


def run_draw(context: Context, parents: list[Result], params: Draw) -> Result:
    """A seeded vector plus the parents' vectors; notes that it ran."""
    time.sleep(0.004)
    total = torch.randn(20_000, generator=torch.Generator().manual_seed(params.seed))
    for parent in parents:
        total = total + parent.state["v"]
    with (context.work.parent.parent / "ran.txt").open("a") as file:
        file.write(f"{params.seed}\n")
    return Result(state={"v": total}, records=[Record("top1_acc", float(total.sum()), "%")])


def network(scale: str, classes: int, given: bool) -> Recipe:
    return Recipe("cifar_resnet20", {"num_classes": classes, "width": 0.25}, (3, 8, 8))


def draw(seed: int, *parents: Step) -> Step:
    return make_step(Kind.PRUNE, f"draw {seed}", run_draw, Draw(seed), parents, device="cpu")


def paper() -> Paper:
    """Five rows that share a beginning."""

    def row(number: int) -> Row:
        def chain(setting: Setting, recipe: Recipe) -> Chain:
            step = draw(1, draw(0))
            for seed in range(10 * number, 10 * number + 4):
                step = draw(seed, step)
            return Chain([], [step])

        return Row("Table 1", f"row {number}", "digits", dense=network, chain=chain, seeds=(0,))

    return Paper("kills", "Kills", "nobody", [row(number) for number in range(1, 6)], [])


PAPER = paper()


def run(out: Path) -> None:
    job = Job(out=out, scale="digits", progress=False)
    found = runner.run(planning.plan(PAPER, PAPER.rows, job), job, Store(out))
    assert {outcome.status for outcome in found} == {"ok"}, found


def rows(out: Path) -> dict[str, Any]:
    """Every row's records, read with a parser that refuses what is cut off."""
    files = sorted((out / "kills" / "rows").rglob("*.json"))
    return {file.name: json.loads(file.read_text())["records"] for file in files}


def test_twenty_kills_change_no_number(tmp_path: Path) -> None:
    begin = time.monotonic()
    run(tmp_path / "whole")
    duration = time.monotonic() - begin
    generator = random.Random(0)
    for _ in range(20):
        process = FORK.Process(target=run, args=(tmp_path / "killed",))
        process.start()
        time.sleep(generator.uniform(0.0, duration))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        # whatever is there is whole: every step that counts as stored loads, and every row file is one
        store = Store(tmp_path / "killed")
        assert all(store.load(key) is not None for key in store.stored())
        rows(tmp_path / "killed")
    run(tmp_path / "killed")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 5


def test_two_runs_at_once_do_each_step_once(tmp_path: Path) -> None:
    run(tmp_path / "alone")
    started = [FORK.Process(target=run, args=(tmp_path / "both",)) for _ in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]
    assert rows(tmp_path / "both") == rows(tmp_path / "alone")
    ran = (tmp_path / "both" / "ran.txt").read_text().split()
    assert sorted(ran) == sorted((tmp_path / "alone" / "ran.txt").read_text().split())
    assert [path.name for path in (tmp_path / "both" / "work").iterdir()] == []  # no locks, no unfinished work


def test_a_lock_is_one_process_s_and_leaves_nothing(tmp_path: Path) -> None:
    """Many processes add to a counter under the lock, which each removes: no two are ever inside, none is lost."""

    def add(times: int) -> None:
        store = Store(tmp_path)
        for _ in range(times):
            with store.lock("key"):
                value = int((tmp_path / "count").read_text())
                time.sleep(0.0005)
                (tmp_path / "count").write_text(str(value + 1))

    (tmp_path / "count").write_text("0")
    started = [FORK.Process(target=add, args=(40,)) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert (tmp_path / "count").read_text() == "160"
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif("BENCH_KILLS" not in os.environ, reason="ten minutes of starting anew: set BENCH_KILLS=1")
def test_twenty_kills_of_real_rows(tmp_path: Path) -> None:
    """Training, pruning and evaluation on digits: killed 20 times wherever it is, then the same records to the bit."""
    here = Path(__file__).parent
    options: dict[str, Any] = {"cwd": here / "toy"}  # with -m the working directory's packages come first
    options["env"] = {**os.environ, "PYTHONPATH": f"{here / 'toy'}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}

    def command(out: str) -> list[str]:
        return [sys.executable, "-m", "bench", "run", "toy", "--table", "Table 1", "--out", str(tmp_path / out)]

    begin = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True, **options)
    duration = time.monotonic() - begin
    generator = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
        time.sleep(generator.uniform(0.3, 1.0) * duration)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command("killed"), check=True, capture_output=True, **options)

    def measured(out: str) -> dict[str, Any]:
        files = sorted((tmp_path / out / "toy" / "rows").rglob("*.json"))
        return {file.name: json.loads(file.read_text())["records"] for file in files}

    assert len(measured("whole")) == 3
    assert measured("killed") == measured("whole")
