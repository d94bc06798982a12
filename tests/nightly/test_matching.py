"""A night against a baseline: what it measured, and every row that it was asked for and has not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from baselines import put, row, top1

from bench import planning
from bench.errors import UserError
from bench.nightly import commands, night
from bench.nightly.check import check, text
from bench.nightly.child import Report
from bench.nightly.compared import Word
from bench.nightly.night import Night
from bench.rows import Paper, Row

ASKED = {"papers": ["toy"], "scale": "clutter", "seed": None, "device": "cpu", "weights": None}


class Folders:
    """A baseline and a run's folder, with the rows of a night."""

    def __init__(self, place: Path) -> None:
        self.base, self.runs = place / "base", place / "runs"
        self.reports: dict[str, Report] = {}

    def measured(self, name: str, before: int | None = 1800, now: int | None = 1800, **setting: Any) -> None:
        """A row of the baseline, and of the night, each unless None; ``setting`` is the night's."""
        for root, right in ((self.base, before), (self.runs, now)):
            if right is not None:
                value = row([top1(right)], f"toy/t/{name}")
                value["setting"] |= setting if root == self.runs else {}
                path = put(root, value)
        if now is not None:
            self.reports[f"toy/t/{name}"] = Report(f"toy/t/{name}", "ok", file=str(path))

    def night(self, **more: Any) -> Night:
        fields = {"arguments": ASKED, "commit": "c", "date": "2026-01-01", "ended": True, **more}
        return Night(1, rows=self.reports, **fields)

    def words(self, done: Night) -> dict[str, Word]:
        return {found.id: found.word for found in check(self.runs, self.base, done)}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_what_was_not_measured_is_missing_with_the_reason(folders: Folders) -> None:
    for name in ("gone", "unable", "failed", "left"):
        folders.measured(name, now=None)
    folders.measured("same")
    folders.reports["toy/t/failed"] = Report("toy/t/failed", "crashed", "its process died of signal 9")
    folders.measured("digits", now=None)
    done = folders.night(
        not_run={"toy/t/unable": "needs clutter: it is damaged"},
        elsewhere={"toy/t/digits": "runs at digits alone"},
        left={"toy/t/left": 5.0},
    )
    found = {one.id: one for one in check(folders.runs, folders.base, done)}
    assert {name: one.word for name, one in found.items()} == {
        "toy/t/gone": Word.MISSING,
        "toy/t/unable": Word.MISSING,
        "toy/t/failed": Word.MISSING,
        "toy/t/same": Word.SAME,
    }
    assert found["toy/t/gone"].missing == "no script has this row at this scale any more"
    assert found["toy/t/unable"].missing == "cannot run any more: needs clutter: it is damaged"
    assert found["toy/t/failed"].missing == "crashed: its process died of signal 9"


def put_at(folders: Folders, name: str, before: str, now: str) -> None:
    """A row of the baseline at one scale, of the night at another."""
    for root, scale in ((folders.base, before), (folders.runs, now)):
        value = row([top1(1800)], f"toy/t/{name}")
        value["setting"]["scale"] = scale
        path = put(root, value)
    folders.reports[f"toy/t/{name}"] = Report(f"toy/t/{name}", "ok", file=str(path))


def test_a_row_that_moved_to_another_scale_is_missing(folders: Folders) -> None:
    """Unless the baseline has it there too, or the night was asked for the other scale alone."""
    put_at(folders, "a", "clutter", "digits")
    night_ = folders.night(arguments={**ASKED, "scale": "embedded"})
    (found,) = check(folders.runs, folders.base, night_)
    assert found.missing == "was measured on digits instead: accept a new baseline"
    assert folders.words(folders.night(arguments={**ASKED, "scale": "digits"})) == {}
    put_at(folders, "a", "digits", "digits")
    assert [one.word for one in check(folders.runs, folders.base, night_)] == [Word.SAME]


def test_a_row_that_is_not_meant_for_its_baseline_s_data_any_more_is_missing(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the night leaves out because its paper's other rows run on other data is not."""
    folders.measured("a", now=None)
    done = folders.night(elsewhere={"toy/t/a": "runs at digits alone"})
    for scales, words in ((("digits",), {"toy/t/a": Word.MISSING}), (("clutter", "digits"), {}), (None, {})):
        paper = Paper("toy", "", "", [Row("T", "a", "cifar10", scales=scales)], [])
        monkeypatch.setattr(planning, "scripts", lambda paper=paper: ({"toy": paper}, {}))
        assert folders.words(done) == words


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, {"toy/t/a": Word.MISSING}),
        ({"papers": []}, {"toy/t/a": Word.MISSING}),
        ({"papers": ["other"]}, {}),
        ({"scale": "digits"}, {}),
        ({"scale": "embedded"}, {"toy/t/a": Word.MISSING}),
        # the user's folder of that name holds other data
        ({"scale": "/data/clutter"}, {}),
        # no script has it, so nobody knows its own scale
        ({"scale": None}, {"toy/t/a": Word.MISSING}),
        # the baseline is another device's, or of no weights
        ({"device": "cuda"}, {"toy/t/a": Word.OTHER}),
        ({"weights": "f" * 64}, {"toy/t/a": Word.OTHER}),
    ],
)
def test_what_the_night_was_not_asked_for_is_not_missing(
    folders: Folders, asked: dict[str, Any], words: dict[str, Word]
) -> None:
    folders.measured("a", now=None)
    assert folders.words(folders.night(arguments={**ASKED, **asked})) == words


def test_rows_of_a_script_that_cannot_be_imported_are_not_missing_too(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The night has a failed row that stands for the script; the other papers' rows are compared."""
    folders.measured("a", now=None)
    folders.measured("b")
    for scale in ("clutter", "embedded", None):
        done = folders.night(arguments={**ASKED, "papers": [], "scale": scale})
        monkeypatch.setattr(planning, "scripts", lambda: ({}, {"toy": RuntimeError("a typo")}))
        assert folders.words(done) == {"toy/t/b": Word.SAME}
        monkeypatch.setattr(planning, "scripts", lambda: ({}, {}))
        assert folders.words(done) == {"toy/t/a": Word.MISSING, "toy/t/b": Word.SAME}


def test_other_choices_are_named_and_compared_with_nothing(folders: Folders) -> None:
    folders.measured("device", now=100, device="cuda")
    folders.measured("amp", now=100, amp=True)
    folders.measured("unasked", chosen_device=True)
    found = {one.id: one for one in check(folders.runs, folders.base, folders.night())}
    assert found["toy/t/unasked"].word is Word.SAME
    assert found["toy/t/device"].word is Word.OTHER and not found["toy/t/device"].failed
    assert found["toy/t/device"].other == "device cpu before, cuda now"
    assert found["toy/t/amp"].other == "amp none before, True now"
    assert "OTHER SETTING: toy/t/amp (clutter): amp none before, True now" in text(list(found.values()))


@pytest.mark.parametrize(("seed", "word"), [(None, Word.MISSING), (1, Word.OTHER)])
def test_other_seeds_are_missing_unless_somebody_named_one(folders: Folders, seed: int | None, word: Word) -> None:
    folders.measured("a", seeds=[1])
    (found,) = check(folders.runs, folders.base, folders.night(arguments={**ASKED, "seed": seed}))
    assert found.word is word and "seeds [0] before, [1] now" in text([found])


def test_of_a_row_that_failed_an_older_file_is_not_compared(folders: Folders) -> None:
    """The night's row crashed; the file of the night before, on other data, is still there."""
    folders.measured("a")
    folders.reports["toy/t/a"] = Report("toy/t/a", "crashed", "its process died of signal 9")
    assert folders.words(folders.night()) == {"toy/t/a": Word.MISSING}


def test_a_folder_is_compared_wherever_it_is(folders: Folders, tmp_path: Path) -> None:
    """The night wrote its files elsewhere, or by a path that was another folder's."""
    folders.measured("a")
    report = folders.reports["toy/t/a"]
    moved = Path("runs", *Path(str(report.file)).parts[-4:])
    folders.reports["toy/t/a"] = Report("toy/t/a", "ok", file=str(moved))
    assert folders.words(folders.night()) == {"toy/t/a": Word.SAME}


def options(folders: Folders) -> argparse.Namespace:
    return argparse.Namespace(out=folders.runs, baseline=folders.base, json=True)


def test_the_check_is_of_the_last_night(folders: Folders) -> None:
    folders.measured("a", now=1000)
    first = folders.night()
    night.keep(folders.runs, first)
    value, said, status = commands.check(options(folders))
    assert (value[0]["word"], status) == ("WORSE", 1)
    # the second one failed: what the first measured counts no more
    second = Night(2, ASKED, "c", "2026-01-02", {"toy/t/a": Report("toy/t/a", "failed", "no such file")}, ended=True)
    night.keep(folders.runs, second)
    value, said, status = commands.check(options(folders))
    assert (value[0]["word"], status) == ("MISSING", 1) and "failed: no such file" in said
    # the third one began and ended by a kill
    night.folder(folders.runs, 3).mkdir()
    with pytest.raises(UserError, match=r"night 3 .* was stopped before its first row ended"):
        commands.check(options(folders))
    # what it did is there, but cut off
    (night.folder(folders.runs, 3) / night.STATE).write_text('{"number": 3, "rows"')
    with pytest.raises(UserError, match=r"00003.night\.json is not readable: remove "):
        commands.check(options(folders))


def test_a_check_of_nothing_alike_fails(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    folders.measured("a", now=None)
    night.keep(folders.runs, folders.night(arguments={**ASKED, "scale": "digits"}))
    value, said, status = commands.check(options(folders))
    reason = "the baseline is not compared: it holds none of these rows in the same setting"
    assert (value, status, said) == ([], 1, reason) and capsys.readouterr().err == f"{reason}\n"


def test_a_night_tells_failed_rows_once(folders: Folders) -> None:
    folders.measured("a")
    folders.measured("b", now=None)
    folders.measured("c", now=None)
    folders.measured("d", device="cuda")
    folders.reports["toy/t/b"] = Report("toy/t/b", "failed", "no such file")
    value, page, status = commands._told(folders.night(), folders.runs, folders.base, lambda text: None)
    assert status == 1 and page.startswith("# Night 1: 1 failed, 1 missing of the baseline\n")
    assert {one["row"]: one["word"] for one in value["check"]} == {
        "toy/t/a": "SAME",
        "toy/t/c": "MISSING",
        "toy/t/d": "OTHER SETTING",
    }
    assert "- 1 rows (device cpu before, cuda now): toy/t/d" in page
