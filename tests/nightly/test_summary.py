"""What a night says of itself, on hand-made nights."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from bench.nightly import summary
from bench.nightly.check import RowCheck
from bench.nightly.child import Report
from bench.nightly.compared import Compared, Word
from bench.nightly.drift import Drift
from bench.nightly.night import Night

NIGHT = Night(
    7,
    {},
    "c" * 40,
    "2026-01-01T00:00:00+00:00",
    rows={
        "toy/t/a": Report("toy/t/a", "ok", "", 1.0, None, 2, 0, ("k1", "k2")),
        "toy/t/b": Report("toy/t/b", "crashed", "its process died of signal 9 <&> \x00\n", 0.5),
        "toy/t/c": Report("toy/t/c", "hung", "no end after 10 minutes", 10.0),
    },
    attempts={"toy/t/a": 1, "toy/t/b": 2, "toy/t/c": 2},
    planned={"toy/t/a": 0.9},
    left={"toy/t/d": 44.0},
    not_run={"toy/t/e": "needs imagenet", "toy/t/f": "needs imagenet"},
    minutes=12.0,
    ended=True,
)
WORSE = RowCheck("toy/t/a", "clutter", [Compared("top1_acc", 90.0, 80.0, 0.5, Word.WORSE)], "", ("commit: x, y",))


def test_a_night_of_two_failures_and_a_regression() -> None:
    page = summary.markdown(NIGHT, [WORSE], [("toy/t/a", "kl", 3, Drift(3, "up", 1.0, 2.0))], ["x changed"], "base")
    assert page.startswith("# Night 7: 2 failed, 1 worse than the baseline, 1 drifting, data changed\n")
    order = ["Rows that failed", "Worse than the baseline base", "Slow drifts", "Data changed", "## Rows\n", "Left for"]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert "- toy/t/b: crashed (2 attempts): its process died of signal 9 &lt;&amp;&gt;" in page
    assert "| toy/t/a | ok | 1.0 | 0.9 | 2 reused, 0 made | 2 anew |" in page
    assert "- toy/t/d (about 44 minutes)" in page and "- toy, 2 rows: needs imagenet" in page
    assert summary.status(NIGHT, [WORSE]) == 1


def test_a_fine_night() -> None:
    fine = Night(1, {}, None, "d", rows={"toy/t/a": NIGHT.rows["toy/t/a"]}, ended=True)
    same = RowCheck("toy/t/a", "clutter", [Compared("top1_acc", 90.0, 90.0, 0.5, Word.SAME)])
    page = summary.markdown(fine, [same], [], [], "base")
    assert page.startswith("# Night 1: fine\n") and "Against the baseline base: 1 SAME." in page
    assert "image by image" not in page and summary.status(fine, []) == 0
    fallen = [replace(same, unpaired=why) for why in ("other images", "no predictions", "other images")]
    page = summary.markdown(fine, [same, *fallen], [], [], "base")
    assert "\n\n- 2 rows not compared image by image (other images), but by the intervals\n- 1 row not" in page
    # beside a row that failed, too
    page = summary.markdown(fine, [WORSE, fallen[0]], [], [], "base")
    assert "\n\n- 1 row not compared image by image (other images), but by the intervals" in page
    different = Night(1, {}, None, "d", networks=[{"network": "n", "verdict": "different", "words": "w", "top1": 1.0}])
    assert summary.status(different, []) == 1


def test_a_night_that_was_compared_with_nothing_says_so() -> None:
    fine = Night(1, {}, None, "d", rows={"toy/t/a": NIGHT.rows["toy/t/a"]}, ended=True)
    page = summary.markdown(fine, [], [], [], None)
    assert page.startswith("# Night 1: fine, compared with no baseline\n") and "**Compared with no baseline:**" in page


def test_what_is_excused_and_what_is_in_another_setting_are_counted_and_named() -> None:
    fine = Night(1, {}, None, "d", rows={"toy/t/a": NIGHT.rows["toy/t/a"]}, ended=True)
    excused = [
        RowCheck(f"toy/t/{why[-8:]}", "clutter", [Compared("top1_acc", 90.0, 80.0, 0.5, Word.AMBIGUOUS, excuse=why)])
        for why in ("other hardware", "other packages", "another hour of the machine")
    ]
    others = [RowCheck(f"toy/t/{name}", "clutter", other="device cuda before, cpu now") for name in "bc"]
    page = summary.markdown(fine, [*excused, *others], [], [], "base")
    assert "base: 3 AMBIGUOUS, 2 OTHER SETTING (2 beside networks or times of other hardware or packages)." in page
    assert (
        "## In another setting than the baseline base\n\n- 2 rows (device cuda before, cpu now): toy/t/b, toy/t/c"
        in page
    )
    assert summary.status(fine, [*excused, *others]) == 0


def test_a_night_that_was_stopped_says_what_it_did_not_reach() -> None:
    """Of all rows that can run, not of those that did; what is left was not left for want of time."""
    stopped = replace(NIGHT, ended=False)
    page = summary.markdown(stopped, [], [], [], "base")
    assert page.startswith("# Night 7: stopped, 2 failed\n") and "1 of 4 rows ran" in page
    assert "## Not reached\n" in page and "want of time" not in page
    (case,) = [case for case in ElementTree.fromstring(summary.junit(stopped, [])) if case.get("name") == "t/d"]
    (skipped,) = case.findall("skipped")
    assert skipped.get("message") == "the night was stopped before it"


def test_released_networks_that_cannot_be_evaluated_are_counted_and_said_once() -> None:
    networks = [
        {"network": f"n{place}", "verdict": "not compared", "words": "needs cifar10", "top1": None}
        for place in range(3)
    ] + [{"network": "m", "verdict": "same", "words": "same", "top1": 1.0}]
    night = Night(1, {}, None, "d", networks=networks, ended=True)
    page = summary.markdown(night, [], [], [], "base")
    assert "## Released networks: 1 of 4 evaluated again" in page
    assert page.count("needs cifar10") == 1 and "- 3 not compared: needs cifar10" in page
    suite = ElementTree.fromstring(summary.junit(night, []))
    assert (suite.get("tests"), suite.get("skipped"), suite.get("failures")) == ("4", "3", "0")
    worse = Night(1, {}, None, "d", networks=[{"network": "n", "verdict": "different", "words": "w", "top1": 1.0}])
    assert ElementTree.fromstring(summary.junit(worse, [])).get("failures") == "1"


def test_a_night_that_could_not_be_compared_says_so_and_is_not_fine() -> None:
    fine = Night(1, {}, None, "d", rows={"toy/t/a": NIGHT.rows["toy/t/a"]}, ended=True)
    page = summary.markdown(fine, [], [], [], "base", "a file is broken")
    assert page.startswith("# Night 1: not compared with the baseline\n") and "a file is broken." in page
    assert summary.status(fine, [], "a file is broken") == 1


def test_junit_counts_what_pytest_and_github_read() -> None:
    suite = ElementTree.fromstring(summary.junit(NIGHT, [WORSE]))
    counts = {name: int(suite.get(name, "-1")) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 6, "failures": 1, "errors": 2, "skipped": 3}
    assert len(suite) == 6
    assert sum(case.find("error") is not None for case in suite) == 2
    (failure,) = [case for case in suite if case.find("failure") is not None]
    assert (failure.get("classname"), failure.get("name"), failure.get("time")) == ("toy", "t/a", "60.0")
    # what was in the baseline and was not run at all is a case of its own
    gone = RowCheck("toy/t/z", "clutter", missing="was not run")
    assert ElementTree.fromstring(summary.junit(NIGHT, [gone])).get("tests") == "7"
    # and what cannot run any more is one failure, not skipped beside it
    row = RowCheck("toy/t/e", "clutter", missing="cannot run any more")
    unable = ElementTree.fromstring(summary.junit(NIGHT, [row]))
    assert (unable.get("tests"), unable.get("skipped"), unable.get("failures")) == ("6", "2", "1")


def test_a_released_network_that_failed_fails_the_night() -> None:
    """It is neither the same nor one whose data are missing."""
    networks = [
        {"network": "toy/networks/n", "verdict": "failed", "words": "ValueError: <x>", "top1": None},
        {"network": "toy/networks/m", "verdict": "same", "words": "same", "top1": 90.0},
    ]
    night = Night(1, {}, None, "d", networks=networks, ended=True)
    page = summary.markdown(night, [], [], [], "base")
    assert page.startswith("# Night 1: 1 released networks failed\n") and summary.status(night, []) == 1
    assert "## Released networks: 1 of 2 evaluated again and compared\n" in page
    assert "- toy/networks/n: failed: ValueError: &lt;x&gt;" in page
    suite = ElementTree.fromstring(summary.junit(night, []))
    assert [suite.get(name) for name in ("tests", "errors", "failures", "skipped")] == ["2", "1", "0", "0"]


def test_what_is_not_run_is_one_line_for_each_paper_and_reason() -> None:
    why = {"a/t/x": "runs at digits alone", "a/t/y": "runs at digits alone", "b/t/x": "needs voc", "a/t/z": "needs voc"}
    page = summary.markdown(Night(1, {}, None, "d", not_run=why, ended=True), [], [], [], "base")
    lines = page.partition("## Not run here\n\n")[2].splitlines()
    assert lines == ["- a, 2 rows: runs at digits alone", "- b, 1 rows: needs voc", "- a, 1 rows: needs voc"]
