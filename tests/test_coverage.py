"""Coverage counted by hand on invented values, and on the committed registries without any run."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.cli import main
from bench.registry import Published, papers
from bench.report import coverage

FOLDER = Path(__file__).parents[1] / "reproductions" / "registry"


def published(
    row: str,
    kind: str = "accuracy",
    printed: str = "90.0",
    verified: bool = True,
    note: str = "",
    origin: str = "paper",
    source: str = "",
) -> Published:
    """A published value of the invented paper; rows differ by name."""
    return Published(
        paper="toy",
        table="Table 1",
        row=row,
        model="",
        dataset="CIFAR-10",
        metric="top1_acc",
        unit="%",
        kind=kind,
        value=float(printed) if printed else None,
        convention="conv" if kind == "size" else "",
        note=note,
        protocol="",
        direction="exact" if kind == "size" else "higher",
        tolerance=1.0,
        source=source,
        verified=verified,
        origin=origin,
        printed=printed,
    )


def line(verdict: object, entry: Published, ran: bool = True, analogue: bool = False) -> Any:
    """What coverage reads of a row that ran, or did not."""
    verdicts = {"top1_acc": verdict} if ran else {}
    return SimpleNamespace(ran=ran, analogue=analogue, links={"top1_acc": entry}, verdicts=verdicts)


def test_every_value_has_one_outcome_and_checks_have_none() -> None:
    measured = [published(name) for name in ("same", "less", "more", "noisy", "other", "unlike", "no worse")]
    texts = (
        "reproduced (one run)",
        "not reproduced",
        "better",
        "inconclusive (5 runs would settle it)",
        "inconclusive (other base)",
        "not comparable (ms with %)",
        "inconclusive (the paper prints a bound)",
    )
    unmeasured = [published(name) for name in ("no data", "no GPU", "no row", "elsewhere", "skipped")]
    doubtful = [published("doubtful", verified=False), published("doubtful too", verified=False)]
    theirs = [published("rerun", origin="others"), published("heard of", verified=False, origin="others")]
    sizes = [
        published("counted", "size", origin="authors", source="secondary: a survey"),
        published("miscounted", "size"),
        published("otherwise", "size"),
        published("theirs", "size", note="other method's network; of a survey"),
        published("later", "size"),
        published("doubtful size", "size", verified=False),
    ]
    rest = [
        published("unread", printed=""),
        published("ours", "check"),
        published("slow", "time"),
        published("w", "width"),
    ]
    lines = [line(text, entry) for text, entry in zip(texts, measured, strict=True)]
    lines += [line("reproduced", unmeasured[3], analogue=True), line("reproduced", unmeasured[4], ran=False)]
    lines += [line("[better]", doubtful[0]), line("[not reproduced]", theirs[0])]
    sized = {sizes[0]: "exact", sizes[1]: "wrong", sizes[2]: "other convention", sizes[5]: "[wrong]"}
    scales = {unmeasured[0]: "imagenet", unmeasured[1]: "voc", unmeasured[3]: "imagenet", unmeasured[4]: "digits"}
    absent = {"imagenet": "data", "voc": "GPU", "digits": "not run"}.__getitem__
    everything = [*measured, *unmeasured, *doubtful, *theirs, *sizes, *rest]
    found = coverage.of_paper(everything, sized, scales, lines, absent)

    assert found.decided("accuracy") == {"reproduced": 1, "not reproduced": 1, "better": 1}
    assert found.open("accuracy") == {
        "power": 1,
        "bound": 1,
        "other base": 1,
        "not comparable (ms with %)": 1,
        "data": 2,
        "GPU": 1,
        "method": 1,
        "not run": 1,
    }
    assert found.in_brackets("accuracy", others=False) == {"better": 1}
    assert found.in_brackets("accuracy", others=True) == {"not reproduced": 1}
    assert found.decided("size") == {"exact": 1, "wrong": 1}
    assert found.open("size") == {"other convention": 1, "other method's network": 1, "method": 1}
    assert found.in_brackets("size", others=False) == {"wrong": 1}
    assert found.kinds == {"accuracy": 16, "size": 6, "check": 1, "time": 1, "width": 1}
    assert found.counted == {"accuracy": 12, "size": 5, "check": 1, "time": 1, "width": 1}
    assert (found.others, found.quoted) == ({"accuracy": 2}, {"size": 1})
    assert found.unread == {"accuracy": 1}
    for kind in coverage.JUDGED:
        assert found.decided(kind).total() + found.open(kind).total() == found.counted[kind]

    shown = coverage.text({"toy": found})
    assert shown.splitlines()[1].split()[:4] == ["toy", "accuracy", "12", "3"]
    apart = "2 accuracy unverified [better 1], 2 accuracy of others [not reproduced 1], 1 accuracy unread"
    assert f"{apart}, 1 size unverified [wrong 1]" in shown
    assert "1 check" in shown and "GPU: its data are at hand, a GPU is not" in shown
    assert "total" not in shown
    twice = coverage.text({"one": found, "two": found})
    assert twice.count("\ntotal ") == 1 and "24        6" in twice

    # on the page a study, which nobody printed anything of, has no line; what stands apart is explained
    page = coverage.markdown({"study": coverage.EMPTY, "toy": found}, {"toy": "A toy"})
    assert [line.split(" | ")[0] for line in page if line.startswith("| ") and " | accuracies" in line] == [
        "| A toy",
        "| **all papers**",
    ]
    assert "could read (1 sizes in a source that quotes them)." in page[-1]
    assert "; *bound*: measured, and no worse than the bound that is printed" in page[-1]
    assert "*unverified*: not checked against the publication; *of others*: reported by others" in page[-1]
    assert "*time*: milliseconds" in page[-1] and "*setting*" not in page[-1]

    value = json.loads(json.dumps(coverage.to_json(found)))
    assert value["kinds"]["accuracy"] == {
        "read": 16,
        "counted": 12,
        "of_others": 2,
        "quoted": 0,
        "unread": 1,
        "decided": dict(found.decided("accuracy")),
        "open": dict(found.open("accuracy")),
        "in_brackets": {"better": 1, "not reproduced": 1},
    }
    assert len(value["values"]) == 22
    assert Counter(entry["outcome"] for entry in value["values"] if entry["decided"])["wrong"] == 2


def test_a_value_that_several_rows_link_to_counts_once_by_the_first_that_ran() -> None:
    entry = published("twice")
    lines = [line("better", entry, analogue=True), line("not reproduced", entry), line("reproduced", entry)]
    found = coverage.of_paper([entry], {}, {}, lines, lambda scale: "data")
    assert found.decided("accuracy") == {"not reproduced": 1}


def test_an_empty_paper_is_covered() -> None:
    assert coverage.of_paper([], {}, {}, [], lambda scale: "data") == coverage.EMPTY
    assert "apart: nothing" in coverage.text({"toy": coverage.EMPTY})


def test_the_command_covers_all_registries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a run and without data: all sizes of the two papers are decided, no accuracy is."""
    arguments = ["coverage", "--from", str(tmp_path), "--data", str(tmp_path), "--json"]
    assert main(arguments) == 0
    value = json.loads(capsys.readouterr().out)
    assert list(value["papers"]) == papers(FOLDER) and len(value["papers"]) >= 6
    assert value["papers"]["channel_pruning"]["kinds"]["size"]["decided"] == {"exact": 2}
    assert value["papers"]["fbs"]["kinds"]["size"]["decided"] == {"exact": 9}
    for paper in value["papers"].values():
        assert paper["kinds"]["accuracy"]["decided"] == {}
        assert set(paper["kinds"]["accuracy"]["open"]) <= {"data", "method"}
        for kind in coverage.JUDGED:
            counts = paper["kinds"][kind]
            assert sum([*counts["decided"].values(), *counts["open"].values()]) == counts["counted"]
    for kind in coverage.JUDGED:
        for count in ("read", "counted"):
            assert value["total"][kind][count] == sum(p["kinds"][kind][count] for p in value["papers"].values())
    assert main(["coverage", "fbs", "--from", str(tmp_path), "--data", str(tmp_path)]) == 0
    assert "exact 9" in capsys.readouterr().out


def test_an_unknown_paper_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coverage", "nothing"]) == 2
    assert "unknown paper 'nothing': choose one of channel_pruning, " in capsys.readouterr().err
