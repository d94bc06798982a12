"""Row files that cannot be right are refused; which of them are published, and what is said of how they were made."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from row_files import PAPER, PROVENANCE, Runs, accuracies

from bench.errors import UserError


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """No rows yet."""
    return Runs(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"id": "toy/t/r", "setting": {"scale": "imagenet"}}'])
def test_unreadable_rows_are_told(runs: Runs, text: str) -> None:
    """In one line that names the file and what to do."""
    path = runs.row("a", [])
    path.write_text(text)
    with pytest.raises(UserError, match="remove it and run the row again") as told:
        runs.lines()
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_row_in_another_scale_s_folder_is_refused(runs: Runs) -> None:
    """Otherwise renaming a folder would turn an analogue into a reproduction."""
    path = runs.row("a", accuracies(90.0), scale="digits")
    path.parent.rename(path.parent.with_name("imagenet"))
    with pytest.raises(UserError, match="belongs into toy/rows/digits/"):
        runs.lines()


def test_a_row_in_another_row_s_place_is_refused(runs: Runs) -> None:
    path = runs.row("a", accuracies(90.0))
    other = runs.row("b", accuracies(80.0))
    other.write_text(path.read_text())
    with pytest.raises(UserError, match="belongs into toy/rows/imagenet/table-1--a--"):
        runs.lines()


@pytest.mark.parametrize(
    "change", [{"value": math.nan}, {"value": math.inf}, {"value": "abc"}, {"value": True}, {"high": "x"}, {"unit": 1}]
)
def test_what_is_no_number_is_told(runs: Runs, change: dict[str, Any]) -> None:
    """It was printed as nan, and called AMBIGUOUS beside a baseline."""
    runs.row("a", [{**accuracies(90.0)[0], **change}])
    with pytest.raises(UserError, match="is not a readable row file"):
        runs.lines()


def test_accept_copies_what_ran_and_keeps_what_was_measured(runs: Runs, tmp_path: Path) -> None:
    """A row that could not run never replaces a measured one."""
    results = tmp_path / "results"
    ran, blocked = runs.row("a", accuracies(90.0)), runs.row("b", [], status="not run (needs imagenet)", steps={})
    targets = [results / path.relative_to(runs.root) for path in (ran, blocked)]
    assert runs.accept(results) == targets
    assert json.loads(targets[0].read_text()) == json.loads(ran.read_text())
    row = json.loads(ran.read_text())
    ran.write_text(json.dumps({**row, "status": "not run (needs imagenet)", "records": [], "steps": {}}))
    assert runs.accept(results, [PAPER]) == []
    assert json.loads(targets[0].read_text()) == row
    ran.write_text(json.dumps({**row, "records": accuracies(91.0)}))
    assert runs.accept(results, [PAPER]) == targets[:1]
    assert json.loads(targets[0].read_text())["records"][0]["value"] == 91.0


def test_accept_takes_a_newer_reason_why_a_row_did_not_run(runs: Runs, tmp_path: Path) -> None:
    """In the place of an older one; where the row was measured in any setting, none."""
    results = tmp_path / "results"
    blocked = runs.row("b", [], status="not run (not implemented)", steps={}, setting={"data": None})
    runs.accept(results)
    kept = results / blocked.relative_to(runs.root)
    assert json.loads(kept.read_text())["status"] == "not run (not implemented)"
    blocked.write_text(blocked.read_text().replace("not implemented", "needs imagenet"))
    runs.accept(results)
    assert json.loads(kept.read_text())["status"] == "not run (needs imagenet)"


@pytest.mark.parametrize("code", [None, "0" * 40 + "-dirty"])
def test_accept_refuses_uncommitted_code(runs: Runs, tmp_path: Path, code: str | None) -> None:
    """Nothing is written then, not even the rows before it."""
    results = tmp_path / "results"
    runs.row("a", accuracies(90.0))
    steps = {"key": {"step": "s", "seconds": 1.0, "provenance": {**PROVENANCE, "code": code}}}
    path = runs.row("b", accuracies(90.0), steps=steps)
    with pytest.raises(UserError, match="run the row again") as told:
        runs.accept(results)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)
    assert not results.exists()
    assert len(runs.accept(results, allow_dirty=True)) == 2


def test_accept_names_what_is_missing(runs: Runs, tmp_path: Path) -> None:
    """No run, or not of that paper."""
    with pytest.raises(UserError, match="no rows in"):
        runs.accept(tmp_path / "results")
    runs.row("a", accuracies(90.0))
    with pytest.raises(UserError, match="no rows of 'other'"):
        runs.accept(tmp_path / "results", ["other"])


def test_two_settings_share_neither_file_nor_line(runs: Runs) -> None:
    """One seed beside three, other weights of one name, other data of one name: nothing overwrites or mixes."""
    three = runs.row("ours", accuracies(90.0, 91.0, 92.0))
    one = runs.row("ours", accuracies(70.0), setting={"seeds": [0]})
    assert three != one and three.exists()
    (line,) = runs.lines()
    assert line.cells["top1_acc"].seeds == 3  # of settings that differ in seeds the one with most of them
    given = [{"file": "w.pth", "sha256": letter * 64} for letter in "ab"]
    for weights, value in zip(given, (10.0, 72.5), strict=True):
        runs.row("ours", accuracies(value), scale="cifar", setting={"weights": weights})
        runs.row("dense", accuracies(value + 1), scale="cifar", setting={"weights": weights})
    runs.row("ours", accuracies(60.0), scale="cifar")
    found = {(line.name, line.scale): line.cells["top1_acc"].value for line in runs.lines() if "cifar" in line.scale}
    assert found == {
        ("ours", "cifar (no weights given)"): 60.0,
        ("ours", "cifar (given weights aaaaaaaa)"): 10.0,
        ("dense", "cifar (given weights aaaaaaaa)"): 11.0,
        ("ours", "cifar (given weights bbbbbbbb)"): 72.5,
        ("dense", "cifar (given weights bbbbbbbb)"): 73.5,
    }
    for letter in "cd":
        data = {"name": "mine", "fingerprint": letter * 64, "protocol": "short256"}
        runs.row("ours", accuracies(50.0), scale="mine", setting={"data": data})
    labels = sorted(line.scale for line in runs.lines() if "mine" in line.scale)
    assert labels == ["mine (data cccccccc)", "mine (data dddddddd)"]


def test_a_row_that_the_script_no_longer_has_is_not_published(runs: Runs, tmp_path: Path) -> None:
    results = tmp_path / "results"
    runs.row("kept", accuracies(90.0))
    gone = runs.row("gone", accuracies(80.0))
    assert len(runs.accept(results)) == 2
    del runs.declared[f"{PAPER}/table-1/gone"]
    assert [line.name for line in runs.lines()] == ["kept"]
    assert len(runs.accept(results)) == 1
    assert not (results / gone.relative_to(runs.root)).exists()


def test_rows_that_older_code_measured_are_marked(runs: Runs) -> None:
    def steps(code: str, date: str) -> dict[str, Any]:
        made = {**PROVENANCE, "date": date}
        return {"key": {"step": "s", "run": "m:run", "code": code, "seconds": 1.0, "provenance": made}}

    runs.row("old", accuracies(90.0), steps=steps("1", "2025-01-01"))
    runs.row("new", accuracies(91.0), steps=steps("2", "2025-02-01"))
    runs.row("same code", accuracies(92.0), steps=steps("2", "2025-01-01"))
    assert {line.name: line.older for line in runs.lines()} == {"old": True, "new": False, "same code": False}
    assert "Measured by older code than the newest row of this table: old." in runs.table().notes


def test_code_is_compared_with_code_that_begins_in_the_same_places(runs: Runs) -> None:
    """A training of another network reaches other code on the same day; a later hour's code is newer."""

    def steps(code: str, root: str, hour: int) -> dict[str, Any]:
        made = {**PROVENANCE, "date": f"2025-02-01T{hour:02}:00:00+00:00"}
        about = {"step": "s", "run": "m:run", "roots": ["m:run", root], "code": code, "seconds": 1.0}
        return {"key": {**about, "provenance": made}}

    runs.row("vgg", accuracies(90.0), steps=steps("9", "m:vgg", 1))
    runs.row("resnet, morning", accuracies(91.0), steps=steps("8", "m:resnet", 9))
    runs.row("resnet, evening", accuracies(92.0), steps=steps("1", "m:resnet", 21))
    assert [line.name for line in runs.lines() if line.older] == ["resnet, morning"]


@pytest.mark.parametrize(
    ("scale", "setting", "expected"),
    [
        ("imagenet", {}, "bench run toy --row toy/table-1/ours"),
        ("digits", {}, "bench run toy --row toy/table-1/ours --scale digits"),
        ("imagenet", {"seeds": [0]}, "bench run toy --row toy/table-1/ours --seed 0"),
        (
            "my set",
            {"weights": {"file": "w.pth", "sha256": "a" * 64}},
            "bench run toy --row toy/table-1/ours --scale 'my set' --weights w.pth",
        ),
        (
            "imagenet",
            {"data": {"name": "imagenet", "fingerprint": "f", "protocol": "squash256"}, "amp": True},
            "bench run toy --row toy/table-1/ours --protocol squash256 --amp",
        ),
    ],
)
def test_the_command_of_a_row_names_its_setting(runs: Runs, scale: str, setting: dict[str, Any], expected: str) -> None:
    """And the parser of the command line reads it back."""
    from bench.cli import _parser

    runs.row("ours", accuracies(90.0), scale=scale, setting=setting)
    (line,) = runs.lines()
    assert line.command == expected
    options = _parser().parse_args(shlex.split(line.command)[1:])
    assert options.row == line.id and options.paper == [PAPER]
    assert options.seed == (0 if setting.get("seeds") == [0] else None)
    assert options.protocol == ("squash256" if "protocol squash256" in expected.replace("--", "") else "short256")
    assert options.amp == bool(setting.get("amp"))
