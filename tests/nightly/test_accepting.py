"""A baseline from a folder of runs: of nights the last one, whole; what it replaces goes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from baselines import IMAGES, evaluation, put, row, top1

from bench import planning
from bench.errors import UserError
from bench.nightly import baseline, commands, night
from bench.nightly.child import Report
from bench.nightly.night import Night
from bench.report.load import Declared, content, row_files
from bench.rows import Paper, Row
from bench.store import Store, sole

NAMES = ("toy/t/a", "toy/t/b", "toy/t/c")
LABELS = torch.zeros(IMAGES, dtype=torch.long)


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Declared]]:
    known = {
        "toy": {name: Declared("T", name[-1], place, "clutter") for place, name in enumerate(NAMES)},
        "other": {"other/t/a": Declared("T", "a", 0, "clutter")},
    }
    monkeypatch.setattr(commands, "declared", lambda: known)
    return known


class Folders:
    """Runs with an evaluation that all rows share, and a baseline."""

    def __init__(self, place: Path) -> None:
        self.runs, self.base = place / "runs", place / "base"
        evaluation(Store(self.runs), LABELS, LABELS)

    def measured(self, name: str, right: int = 1800, root: Path | None = None, **setting: Any) -> Path:
        value = row([top1(right)], name)
        value["setting"] |= setting
        return put(root or self.runs, value)

    def accepted(self, name: str, **setting: Any) -> Path:
        """A row of the baseline with its predictions."""
        path = self.measured(name, 1000, self.base, **setting)
        baseline.write(self.base, [(path, content(path))], Store(self.runs))
        return path

    def night(self, number: int, rows: dict[str, Path | str], **more: Any) -> None:
        """A night of rows that ended well, with their files, or badly, with the reason."""
        reports = {
            name: Report(name, "failed", end) if isinstance(end, str) else Report(name, "ok", file=str(end))
            for name, end in rows.items()
        }
        more = {"ended": True, "arguments": {}, **more}
        night.keep(self.runs, Night(number, commit="c", date="2026-01-01", rows=reports, **more))

    def accept(self, *papers: str, without: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
        given = {"source": self.runs, "baseline": self.base, "paper": list(papers), "without": list(without)}
        value, text, status = commands.accept(argparse.Namespace(**given))
        assert status == 0
        return value, text

    def based(self) -> dict[str, float]:
        """The accuracies of the baseline by its files' names."""
        return {path.name.split("--")[1]: content(path)["records"][0]["value"] for path in row_files(self.base)}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def data(fingerprint: str) -> dict[str, Any]:
    return {"name": "clutter", "fingerprint": fingerprint}


def test_it_is_of_the_last_night_alone(folders: Folders) -> None:
    """A row of the night before, and one of other data, are still in the folder."""
    folders.measured("toy/t/a", 100, data=data("old"))
    older = folders.measured("toy/t/b", 100)
    folders.night(1, {"toy/t/b": older})
    folders.night(2, {"toy/t/a": folders.measured("toy/t/a")}, left={"toy/t/c": 5.0, "other/t/a": 5.0})
    value, text = folders.accept()
    assert folders.based() == {"a": 90.0}
    assert value["left"] == ["toy/t/c"] and "for 1 planned rows the night had no time: 1 are missing" in text
    assert [Path(path).name for path in value["predictions"]] == [
        path.with_suffix(".safetensors").name for path in row_files(folders.base)
    ]


def test_what_the_night_had_no_time_for_stays_as_it_was(folders: Folders) -> None:
    folders.accepted("toy/t/b")
    folders.night(1, {"toy/t/a": folders.measured("toy/t/a")}, left={"toy/t/b": 5.0, "toy/t/c": 5.0})
    _, text = folders.accept()
    assert folders.based() == {"a": 90.0, "b": 50.0}
    assert "for 2 planned rows the night had no time: 1 are missing, 1 stay as they were" in text


def test_what_no_night_will_measure_again_goes(
    folders: Folders, declared: dict[str, dict[str, Declared]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """b is meant for other data now, no script has c; d, which is meant for them, and e, with a script, had no turn."""
    declared["toy"] |= {f"toy/t/{name}": Declared("T", name, 9, "clutter") for name in "de"}
    for name in ("b", "c", "d", "e"):
        folders.accepted(f"toy/t/{name}")
    meant = {"a": None, "b": ("digits",), "d": ("digits", "clutter"), "e": None}
    rows = [Row("T", name, "clutter", scales=scales) for name, scales in meant.items()]
    monkeypatch.setattr(planning, "scripts", lambda: ({"toy": Paper("toy", "", "", rows, [])}, {}))
    asked = {"papers": [], "scale": "embedded"}
    folders.night(1, {"toy/t/a": folders.measured("toy/t/a")}, arguments=asked, left={"toy/t/e": 5.0})
    value, text = folders.accept()
    assert folders.based() == {"a": 90.0, "d": 50.0, "e": 50.0}
    assert sorted(Path(path).name.split("--")[1] for path in value["removed"]) == ["b", "c"]
    assert "2 older ones went" in text
    left = sorted(path.stem.split("--")[1] for path in folders.base.glob("toy/predictions/*/*.safetensors"))
    assert left == ["a", "d", "e"]


def test_of_another_night_nothing_is_known(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night of digits alone says nothing of clutter's rows."""
    folders.accepted("toy/t/c")
    paper = Paper("toy", "", "", [Row("T", "a", "clutter")], [])
    monkeypatch.setattr(planning, "scripts", lambda: ({"toy": paper}, {}))
    folders.night(1, {"toy/t/a": folders.measured("toy/t/a")}, arguments={"papers": [], "scale": "digits"})
    folders.accept()
    assert folders.based() == {"a": 90.0, "c": 50.0}


def test_a_failed_row_that_no_script_has_can_be_left_out(folders: Folders) -> None:
    """It stood for a script that could not be imported, or has another name since; its file may have gone."""
    folders.night(1, {"toy/t/a": folders.measured("toy/t/a"), "toy/script/import": "RuntimeError: a typo"})
    with pytest.raises(UserError, match="--without toy/script/import"):
        folders.accept()
    folders.accept(without=("toy/script/import",))
    assert folders.based() == {"a": 90.0}


def test_rows_that_failed_are_left_out_only_by_name(folders: Folders) -> None:
    folders.night(1, {"toy/t/a": folders.measured("toy/t/a"), "toy/t/b": "no such file"})
    with pytest.raises(UserError, match=r"1 rows failed in night 1 .* --without toy/t/b"):
        folders.accept()
    assert not folders.base.exists()
    folders.accept(without=("toy/t/b",))
    assert folders.based() == {"a": 90.0}
    with pytest.raises(UserError, match="no script has this row"):
        folders.accept(without=("toy/t/b", "toy/t/z"))


def test_a_night_that_has_not_ended_is_refused(folders: Folders) -> None:
    path = folders.measured("toy/t/a")
    folders.night(1, {"toy/t/a": path}, ended=False)
    with pytest.raises(UserError, match=r"night 1 in .* was stopped"):
        folders.accept()
    folders.night(1, {"toy/t/a": path})
    with sole(folders.runs / "nightly" / "lock", ""), pytest.raises(UserError, match="a night is at work"):
        folders.accept()
    night.folder(folders.runs, 2).mkdir()
    with pytest.raises(UserError, match=r"night 2 in .* was stopped before its first row"):
        folders.accept()
    assert not folders.base.exists()


def test_a_night_of_other_papers_and_one_whose_files_have_gone_are_refused(folders: Folders) -> None:
    path = folders.measured("toy/t/a")
    folders.measured("other/t/a")
    folders.night(1, {"toy/t/a": path})
    with pytest.raises(UserError, match="no measured rows of other"):
        folders.accept("other")
    path.unlink()
    with pytest.raises(UserError, match="has gone, which night 1 wrote"):
        folders.accept()


def test_predictions_that_have_gone_refuse_the_row_before_anything_is_written(folders: Folders) -> None:
    """A baseline without them would compare accuracies by their wide intervals."""
    folders.night(1, {"toy/t/a": folders.measured("toy/t/a")})
    Store(folders.runs).shed("key")
    with pytest.raises(UserError, match=r"the predictions of evaluated\(net\) are not in"):
        folders.accept()
    assert not folders.base.exists()


@pytest.mark.parametrize("made", ["toy/README.md", "steps/key/step.json"])
def test_results_and_runs_are_no_baseline(folders: Folders, made: str) -> None:
    folders.measured("toy/t/a")
    (folders.base / made).parent.mkdir(parents=True)
    (folders.base / made).write_text("")
    with pytest.raises(UserError, match="no baseline: name a folder of its own"):
        folders.accept()


def test_what_it_replaces_goes_with_its_predictions(folders: Folders) -> None:
    """Other data and other seeds, and what no script has any more; not another device, nor another paper's rows."""
    stays = [
        folders.accepted("toy/t/a", device="cuda"),
        folders.accepted("toy/t/b"),
        folders.accepted("other/t/gone"),
    ]
    goes = [
        folders.accepted("toy/t/a", data=data("old")),
        folders.accepted("toy/t/a", seeds=[0, 1, 2]),
        folders.accepted("toy/t/gone"),
    ]
    assert len({*stays, *goes}) == 6
    folders.night(1, {"toy/t/a": folders.measured("toy/t/a")})
    value, text = folders.accept()
    (new,) = map(Path, value["rows"])
    assert set(row_files(folders.base)) == {new, *stays} and set(map(Path, value["removed"])) == set(goes)
    assert set(folders.base.glob("*/predictions/*/*")) == {baseline.predictions_path(path) for path in (new, *stays)}
    assert "3 older ones went" in text


def test_a_folder_without_nights_is_accepted_as_it_is(folders: Folders) -> None:
    folders.measured("toy/t/a")
    folders.measured("toy/t/b")
    folders.measured("other/t/a")
    folders.accept("toy")
    assert folders.based() == {"a": 90.0, "b": 90.0}
    value, _ = folders.accept()
    assert len(value["rows"]) == 3
