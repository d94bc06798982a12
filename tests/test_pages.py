"""Figures and pages of row files written by hand."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from row_files import PAPER, PROVENANCE, SHAPE, Runs, accuracies, record, text_of

from bench.report import drawing, figures
from bench.report.pages import write
from bench.report.tables import build_all, long


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """No rows yet."""
    return Runs(tmp_path)


def curve(*speedups: float) -> list[dict[str, Any]]:
    """Two series of a metric at these speed-ups."""
    return [
        record(
            "top1_err_increase",
            factor * x,
            "pp",
            series=name,
            x=x,
            low=factor * x - 0.5,
            high=factor * x + 0.5,
            seed=0,
        )
        for name, factor in (("first k", 2.125), ("lasso", 0.1))
        for x in speedups
    ]


def test_curves_are_drawn_and_written(runs: Runs, tmp_path: Path) -> None:
    """The points of the CSV are the records; the picture is one."""
    for layer in ("conv1_2", "conv2_1"):
        runs.row(layer, curve(1.25, 2.0, 4.0))
    (picture, vector, points), said = figures.draw(runs.table(), tmp_path / "figures")
    assert said == []
    assert vector.read_text().startswith("<?xml") and "conv1_2" in vector.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 5000
    rows = list(csv.DictReader(points.open()))
    assert len(rows) == 12
    found = {(row["row"], row["series"], float(row["x"])): (float(row["value"]), float(row["low"])) for row in rows}
    assert found["conv2_1", "first k", 4.0] == (8.5, 8.0)
    assert found["conv1_2", "lasso", 1.25] == (0.125, -0.375)
    assert {row["metric"] for row in rows} == {"top1_err_increase"}
    assert text_of(runs.table(), "conv1_2", "curve") == "6 points"
    told = {
        (one["row"], one["curve"], one["at"]): (one["value"], one["low"]) for one in long(runs.table()) if one["curve"]
    }
    assert told == found


def test_labels_of_curves_do_not_overlap() -> None:
    """They are moved apart as little as needed and stay below the top."""
    assert drawing.spread([0.1, 0.5], 0.1) == [0.1, 0.5]
    assert drawing.spread([0.1, 0.125], 0.25) == pytest.approx([0.1, 0.35])
    assert drawing.spread([0.95, 0.97, 0.99], 0.1) == pytest.approx([0.8, 0.9, 1.0])


def test_dot_plots_need_four_lines(runs: Runs, tmp_path: Path) -> None:
    """Fewer are read faster in the table."""
    for number in range(4):
        if number:
            assert figures.draw(runs.table(), tmp_path / "figures") == ([], [])
        values = [record("top1_change", -number, "pp", low=-number - 1, high=0.5), record("kl", 0.1 * number, "nats")]
        runs.row(f"row {number}", values, published={"top1_err_increase": ["ours 4x", "top1_err_increase"]})
    (picture, _), _ = figures.draw(runs.table(), tmp_path / "figures")
    assert picture.stat().st_size > 5000
    # an increase of the error by 1.0 is a change of the accuracy by -1.0
    assert figures.published_value(runs.lines(), "top1_change") == (-1.0, "published")
    assert figures.published_value(runs.lines(), "kl") is None


def test_figures_are_the_same_every_time(runs: Runs, tmp_path: Path) -> None:
    """So that committed results change only with the numbers."""
    runs.row("conv1_2", curve(1.25, 2.0))
    first, second = (figures.draw(runs.table(), tmp_path / name)[0] for name in ("a", "b"))
    assert [path.suffix for path in first] == [".png", ".svg", ".csv"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_pages_link_only_to_files(runs: Runs) -> None:
    """Every relative link of the pages and of the index leads somewhere, also with a space in the scale's name."""
    for scale in ("imagenet", "my data"):
        runs.row("dense", accuracies(90.0, 91.0), scale, published={"top1_acc": ["baseline", "top1_acc"]})
        runs.row("conv1_2", curve(1.25, 2.0), scale)
    runs.row("ours", [], status="not run (needs imagenet)", steps={}, shape=SHAPE)
    written = write(runs.root, runs.registry, runs.about())
    pages = [path for path in written if path.name == "README.md"]
    assert len(pages) == 2
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    # of each scale four formats, a picture in two forms and its points; in the index the paper, by findings and rows
    assert len(links) == 2 * 7 + 3
    for page, link in links:
        assert (page.parent / unquote(link)).is_file(), link
    for path in written:
        assert path.suffix == ".png" or path.read_text().endswith("\n")
    text = pages[0].read_text()
    for part in (
        "1. one",
        "2. two",
        "bench run toy --table 'Table 1 (A & B_c)'",
        "digits (fingerprint 0123456789ab, 8x8)",
        "2025-03-01",
        "Some CPU (2 cores) (cpu), 2 threads",
        "torch 2.6.0",
        PROVENANCE["code"],
        "**top-1 (%)**",
    ):
        assert str(part) in text
    assert "**KL" not in text
    index = (runs.root / "README.md").read_text()
    assert "| paper | scale | rows | inconclusive | analogue | not run |" in index
    assert "| [A toy](toy/README.md) | imagenet | 3 | 1 |  | 1 |" in index
    assert "- No rows" in index
    before = {path: path.read_bytes() for path in written}
    stale = runs.root / PAPER / "tables" / "imagenet" / "Table_0.md"
    stale.write_text("old")
    assert write(runs.root, runs.registry, runs.about()) == written
    assert {path: path.read_bytes() for path in written} == before
    assert not stale.exists()


def test_the_page_of_a_stopped_run_shows_what_is_there_and_says_what_is_missing(runs: Runs) -> None:
    """Of a table that was begun, the rows without a file that can run there; tables without any by name."""
    paths = [runs.row(f"row {n}", accuracies(90.0 + n), scale="digits") for n in range(5)]
    runs.row("other", accuracies(1.0), scale="digits", table="Table 2 (later)").unlink()
    for path in paths[2:]:
        path.unlink()
    (paths[2].parent / f".{paths[2].name}.4711").write_text('{"id": "toy')  # killed while it was written
    able = f"{PAPER}/table-1/"
    runs.declared[f"{able}row-3"] = replace(runs.declared[f"{able}row-3"], scales=("cifar10",))
    runs.declared[f"{able}row-4"] = replace(runs.declared[f"{able}row-4"], missing="not implemented")
    write(runs.root, runs.registry, runs.about())
    page = (runs.root / PAPER / "README.md").read_text()
    assert "| row 1 | 91.00 [89.00, 93.00] |" in page
    assert "Not measured here yet, 1 of 3 rows: row 2.\n" in page
    assert "No row of these tables has been run yet: Table 2 (later).\n" in page
    runs.row("row 2", accuracies(92.0), scale="digits", setting={"seeds": [0]})
    write(runs.root, runs.registry, runs.about())
    assert "Not measured here yet" not in (runs.root / PAPER / "README.md").read_text()


def test_a_claim_that_is_not_measured_yet_goes_by_its_statement(runs: Runs) -> None:
    runs.claims()
    runs.row("a-beats-b", accuracies(1.0), table="Claims").unlink()
    runs.row("c-beats-d", accuracies(1.0), table="Claims")
    write(runs.root, runs.registry, runs.about())
    page = (runs.root / PAPER / "README.md").read_text()
    assert "Not measured here yet, 1 of 2 rows: A beats B.\n" in page


def test_tables_stand_in_the_script_s_order_by_data_whatever_they_were_measured_on(runs: Runs) -> None:
    """Settings of one data set stand beside each other in each table; another data set is another group."""
    for name, table, scale, device in (
        ("a", "Table 2", "imagenet", "cuda"),
        ("b", "Table 10", "imagenet", "cpu"),
        ("c", "Figure 1", "imagenet", "cuda"),
        ("d", "Table 10", "imagenet", "cuda"),
        ("e", "Figure 1", "digits", "cpu"),
        ("f", "Table 2", "digits", "cpu"),
    ):
        runs.row(name, accuracies(1.0), scale, setting={"device": device}, table=table)
    assert [(table.scale, table.name) for table in build_all(runs.lines(), runs.published())] == [
        ("digits", "Table 2"),
        ("digits", "Figure 1"),
        ("imagenet (device cuda)", "Table 2"),
        ("imagenet (device cpu)", "Table 10"),
        ("imagenet (device cuda)", "Table 10"),
        ("imagenet (device cuda)", "Figure 1"),
    ]


def test_the_page_says_what_was_done_to_images_and_to_boxes(runs: Runs) -> None:
    def steps(problems: dict[str, int]) -> dict[str, Any]:
        made = {**PROVENANCE, "data": {**PROVENANCE["data"], "problems": problems}}  # type: ignore[dict-item]
        return {"key": {"step": "s", "run": "m:run", "code": "0", "seconds": 1.0, "provenance": made}}

    runs.row("images", accuracies(90.0), steps=steps({"turned by EXIF": 3, "scaled to 8 bits": 0}))
    runs.row("boxes", accuracies(90.0), scale="voc", steps=steps({"outside image": 2, "zero area": 0}))
    write(runs.root, runs.registry, runs.about())
    page = (runs.root / PAPER / "README.md").read_text()
    assert "8x8; images not taken as they are: 3 turned by EXIF)" in page
    assert "8x8; boxes clipped or dropped: 2 outside image)" in page
