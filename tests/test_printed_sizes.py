"""The page of a paper's printed sizes: every size with what ours is, or why it is not decided."""

import csv
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from bench.registry import Published
from bench.report import printed_sizes
from bench.report.coverage import METHOD, Coverage, Outcome
from bench.report.load import Declared
from bench.sizes import Decided
from bench.verdict import Verdict


def printed(row: str, metric: str, text: str, unit: str, verified: bool = True, kind: str = "size") -> Published:
    return Published(
        paper="toy", table="Table 1", row=row, model="Net", dataset="", metric=metric, value=float(text), unit=unit,
        kind=kind, convention="conv", protocol="", direction="exact", tolerance=None, source="p. 1",
        verified=verified, printed=text,
    )  # fmt: skip


RIGHT, WRONG = printed("half", "macs", "1.23", "G"), printed("half", "params", "4.5", "M")
OPEN, DOUBTFUL = printed("other", "macs", "9.9", "G"), printed("Net", "macs", "2.0", "G", verified=False)
ACCURACY = printed("half", "top1", "90.0", "%", kind="accuracy")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[str], list[Path]]:
    found = [
        Decided(RIGHT, "half", Fraction(12345, 10000), Verdict("exact")),
        Decided(WRONG, "half", Fraction(461, 100), Verdict("wrong")),
        Decided(DOUBTFUL, "dense", Fraction(2), Verdict("exact", verified=False)),
    ]
    rows = {"toy/half": Declared("Table 1", "half", 0, "imagenet", sizes=lambda published: found)}
    words = [(RIGHT, "exact"), (WRONG, "wrong"), (OPEN, METHOD), (DOUBTFUL, "exact"), (ACCURACY, METHOD)]
    outcomes = [Outcome(entry, word, word != METHOD) for entry, word in words]
    coverage = Coverage(outcomes, *(Counter() for _ in range(5)))
    text, files = printed_sizes.section(tmp_path, rows, [entry for entry, _ in words], coverage)
    return tmp_path, text, files


def test_the_page_counts_and_shows_the_wrong_ones(made: tuple[Path, list[str], list[Path]]) -> None:
    _, text, _ = made
    counts = "Of 4: 1 exact, 1 wrong, 1 no row of ours implements it, 1 [exact] ([all of them](tables/printed/Sizes.md)"
    assert any(line.startswith(counts) for line in text)
    rows = [line for line in text if line.startswith("| Table 1")]
    assert rows == ["| Table 1 | half (Net) | params | conv | 4.5 M | 4.610 | wrong |"]


def test_all_of_them_stand_in_a_file_of_their_own(made: tuple[Path, list[str], list[Path]]) -> None:
    """Two digits more than printed, the reason of an open one, a verdict on an unverified one in brackets."""
    folder, _, files = made
    page = (folder / "tables" / "printed" / "Sizes.md").read_text()
    assert "| Table 1 | half (Net) | macs | conv | 1.23 G | 1.2345 | exact |" in page
    assert "| Table 1 | other (Net) | macs | conv | 9.9 G |  | no row of ours implements it |" in page
    assert "| Table 1 | Net | macs | conv | 2.0 G† | 2.000 | [exact] |" in page
    assert "top1" not in page and page.count("| Table 1") == 4
    with files[1].open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], row["ours"], row["outcome"]) for row in rows] == [
        ("macs", "1.2345", "exact"),
        ("params", "4.61", "wrong"),
        ("macs", "", METHOD),
        ("macs", "2.0", "exact"),
    ]


def test_a_paper_without_printed_sizes_has_no_such_part(tmp_path: Path) -> None:
    rows = {"toy/half": Declared("Table 1", "half", 0, "imagenet")}
    coverage = Coverage([Outcome(ACCURACY, METHOD, False)], *(Counter() for _ in range(5)))
    assert printed_sizes.section(tmp_path, rows, [ACCURACY], coverage) == ([], [])
    assert list(tmp_path.iterdir()) == []
