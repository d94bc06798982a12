"""What nights meet: a full disk, a clock that goes backwards, damaged checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench import apart, cli, provenance
from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.nightly import child, commands, history, night
from bench.nightly.child import Report
from bench.nightly.night import Night
from bench.planning import Planned
from bench.rows import Chain, Paper, Row
from bench.steps import Context, Kind, make_step
from bench.store import Result

HERE = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE / 'toy'}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Named:
    """What tells the steps of this test apart."""

    name: str


def run_named(context: Context, parents: list[Result], params: Named) -> Result:
    """Never run here."""
    return Result()


ROWS = {"toy/t/a": Report("toy/t/a", "crashed", "its process died of signal 9", 1.0)}


def test_on_a_full_disk_the_summary_is_still_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To the terminal, and to GitHub's page, which is on another disk."""
    step = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))

    def full(path: Path, text: str) -> None:
        raise UserError(f"no space left on the disk of {path}")

    monkeypatch.setattr(commands, "write_text", full)
    said: list[str] = []
    with pytest.raises(UserError, match="no space left"):
        commands._told(Night(1, {}, "c" * 40, "2026-01-01", ROWS, ended=True), tmp_path, None, said.append)
    (page,) = said
    assert page.startswith("# Night 1: 1 failed\n") and "died of signal 9" in page
    assert step.read_text() == page


def test_nights_are_counted_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second night is dated before the first."""
    for number, date in ((1, "2031-05-05T00:00:00+00:00"), (2, "2026-01-01T00:00:00+00:00")):
        monkeypatch.setattr(provenance, "now", lambda date=date: date)
        begun = night.begin(tmp_path, {})
        assert (begun.number, begun.date) == (number, date)
        night.keep(tmp_path, replace(begun, ended=True))
        metrics = {"top1_acc": [90.0 + number, None, None]}
        history.append(tmp_path, history.Entry(number, "toy/t/a", "s", "ok", 1.0, date, "c", "d", metrics))
    assert history.series(history.read(tmp_path), "toy/t/a", "top1_acc") == [(1, 91.0), (2, 92.0)]


def test_a_night_of_which_nothing_was_written_keeps_its_number(tmp_path: Path) -> None:
    """A full disk, or a kill before the first row ended, leaves a folder alone."""
    night.folder(tmp_path, 1).mkdir(parents=True)
    assert night.begin(tmp_path, {}).number == 1
    night.keep(tmp_path, replace(night.begin(tmp_path, {}), ended=True))
    night.folder(tmp_path, 2).mkdir()
    assert night.begin(tmp_path, {}).number == 2


def test_a_baseline_that_breaks_in_the_night_costs_the_comparison_alone(tmp_path: Path) -> None:
    broken = tmp_path / "base" / "toy" / "rows" / "digits" / "t--a.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    done = Night(1, {}, "c" * 40, "2026-01-01", {"toy/t/a": Report("toy/t/a", "ok")}, ended=True)
    value, page, status = commands._told(done, tmp_path, tmp_path / "base", lambda text: None)
    assert status == 1 and "t--a.json is not a readable row file" in value["not_compared"]
    assert page.startswith("# Night 1: not compared with the baseline\n")
    assert (night.folder(tmp_path, 1) / "summary.md").read_text() == page
    assert (night.folder(tmp_path, 1) / "junit.xml").exists()


def test_a_night_that_another_code_began_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "git_state", lambda: "a" * 40)
    night.keep(tmp_path, night.begin(tmp_path, {"scale": "clutter"}))
    assert night.begin(tmp_path, {"scale": "clutter"}).number == 1
    assert night.begin(tmp_path, {"scale": "digits"}).number == 2
    monkeypatch.setattr(provenance, "git_state", lambda: "b" * 40)
    assert night.begin(tmp_path, {"scale": "clutter"}).number == 2


def bench(out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The toy's two rows in a process of their own: their records by file, and what was said of the steps."""
    command = [sys.executable, "-m", "bench", "run", "toy", "--table", "Table 1", "--scale", "digits"]
    done = subprocess.run(
        [*command, "--out", str(out), *arguments],
        cwd=HERE / "toy",
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    files = sorted((out / "toy" / "rows").rglob("*.json"))
    return {file.name: json.loads(file.read_text())["records"] for file in files}, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_checkpoint_is_made_again_and_changes_no_number(tmp_path: Path, damage: str) -> None:
    """Every stored file of weights, one after the other: a flipped bit in its middle, or its end gone."""
    before, _ = bench(tmp_path)
    weights = sorted((tmp_path / "steps").rglob("*.safetensors"))
    assert len(weights) >= 3
    for path in weights:
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-10])
    after, said = bench(tmp_path)
    assert after == before
    assert "dense(cifar_resnet20, seed 0)" in said  # trained again, not taken as it was


def test_two_nights_at_once_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with night.alone(tmp_path):
        with pytest.raises(UserError, match="another night is at work in"), night.alone(tmp_path):
            pass
        with night.alone(tmp_path / "other"):
            pass
    with night.alone(tmp_path):
        pass


TWO = {name: Report(name, "ok", file=f"{name[-1]}.json") for name in ("toy/t/a", "toy/t/b")}


@pytest.mark.parametrize(("asked", "status"), [(True, 1), (False, 0)])
def test_a_baseline_of_nothing_alike_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: bool, status: int
) -> None:
    """Rows of another device or other seeds: the project's own baseline may be of other data, a chosen one may not."""
    monkeypatch.setattr(commands.checking, "check", lambda runs, base, files: [])
    done = Night(1, {}, "c" * 40, "2026-01-01", TWO, ended=True)
    value, page, found = commands._told(done, tmp_path, tmp_path / "base", lambda text: None, asked)
    assert found == status and value["not_compared"] == "it holds none of these rows in the same setting"
    assert page.startswith("# Night 1: not compared with the baseline\n")


@pytest.mark.parametrize(
    ("budget", "spent", "done", "changed", "number"),
    [
        ("90", 0.5, "a", False, 1),
        ("90", 89.99, "a", False, 2),
        ("90", 0.5, "a", True, 2),
        ("90", 0.5, "ab", False, 2),  # no row is left: the next command is to measure some
        (None, 0.5, "a", False, 1),
        (None, 0.5, "ab", False, 2),
    ],
)
def test_which_stopped_nights_go_on(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    budget: str | None,
    spent: float,
    done: str,
    changed: bool,
    number: int,
) -> None:
    """One with a row and time left, and the same steps; ``-dirty`` alone does not say that the code is the same."""
    monkeypatch.setattr(provenance, "git_state", lambda: "a" * 40 + "-dirty")
    rows = [Row("Table 1", name, "clutter") for name in ("a", "b")]
    paper = Paper("toy", "", "", rows, [])
    label = ["before"]

    def planned(chosen: Any, job: Any) -> list[Planned]:
        recipe = Recipe("x", {}, (3, 8, 8))
        steps = [
            make_step(Kind.TRAIN, row.name, run_named, Named(row.name + label[0]), [], device="cpu") for row in rows
        ]
        return [Planned(paper, row, "clutter", recipe, Chain([], [one])) for row, one in zip(rows, steps, strict=True)]

    begun: list[Night] = []

    def run(night_: Night, *more: Any) -> Night:
        begun.append(night_)
        night_.rows.update({f"toy/table-1/{name}": Report(f"toy/table-1/{name}", "ok") for name in done})
        night_.minutes = spent
        night.keep(tmp_path, night_)
        return night_

    monkeypatch.setattr(commands.planning, "choose", lambda *names, **more: [])
    monkeypatch.setattr(commands.order, "planned", planned)
    monkeypatch.setattr(commands, "load_registry", lambda *where: [])
    monkeypatch.setattr(commands, "write_pages", lambda out: [])
    monkeypatch.setattr(commands.night, "run", run)
    options = cli._parser().parse_args(
        ["nightly", "toy", "--out", str(tmp_path), "--wandb", "disabled", *(["--budget", budget] if budget else [])]
    )
    commands.nightly(options)
    if changed:
        label[0] = "after"
    commands.nightly(options)
    assert [one.number for one in begun] == [1, number]
    monkeypatch.setattr(commands.processes, "launched", lambda: 2)
    with pytest.raises(UserError, match="leave out torchrun"):
        commands.nightly(options)


FINE = Night(1, {}, "c" * 40, "2026-01-01", {"toy/t/a": Report("toy/t/a", "ok")}, ended=True)


def test_a_page_of_githubs_that_cannot_be_written_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "gone" / "step.md"))
    said: list[str] = []
    _, page, status = commands._told(FINE, tmp_path, None, said.append)
    (line,) = said
    assert status == 0 and "No such file or directory" in line and "\n" not in line
    assert (night.folder(tmp_path, 1) / "summary.md").read_text() == page
    assert (night.folder(tmp_path, 1) / "junit.xml").exists()


def test_a_bug_in_the_comparison_costs_the_comparison_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def check(*arguments: Any) -> Any:
        raise KeyError("top1_acc")

    monkeypatch.setattr(commands.checking, "check", check)
    value, page, status = commands._told(FINE, tmp_path, tmp_path / "base", lambda text: None, asked=False)
    assert status == 1 and value["not_compared"] == "KeyError: 'top1_acc'"
    assert (night.folder(tmp_path, 1) / "summary.md").read_text() == page


class Broken:
    """The end of a pipe whose other end died while it sent, and a process that lingers."""

    exitcode = None

    def poll(self) -> bool:
        return True

    def recv(self) -> None:
        raise OSError("got end of file during message")

    def close(self) -> None:
        pass

    def join(self, seconds: float) -> None:
        """A join without a limit would wait for ever."""

    def is_alive(self) -> bool:
        return False

    def terminate(self) -> None:
        pass

    kill = terminate


def test_a_process_that_dies_while_it_reports_or_lingers_costs_its_row() -> None:
    row = object.__new__(child.Running)
    row.id, row.begin, row.limit, row.receiver, row.process = "toy/t/a", time.monotonic(), 60.0, Broken(), Broken()
    report = row.report()
    assert report is not None
    assert (report.status, report.reason) == ("crashed", "its process said nothing and did not end")
    outcome = apart._received(Broken(), Broken(), "toy/t/a")
    assert (outcome.status, outcome.reason) == ("failed", "its process said nothing and did not end")
