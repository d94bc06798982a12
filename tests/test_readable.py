"""The tables and pages that people read: columns, differences, findings; a value traced through every format."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import commands, planning
from bench.claims import Claim
from bench.registry import Published
from bench.report import drawing, figures, findings, pages, render
from bench.report.cells import Cell, Point
from bench.report.load import Line
from bench.report.readable import cell_text, difference, macs_text, printed, readable
from bench.report.tables import build, long
from bench.rows import Paper
from bench.verdict import Verdict

ROOT = Path(__file__).parent.parent


def published(metric: str, value: str, unit: str, verified: bool = True) -> Published:
    """A value of a toy's registry."""
    cells = {
        **dict.fromkeys(Published.__dataclass_fields__, ""),
        **{"paper": "toy", "table": "T", "row": "r", "metric": metric, "unit": unit, "kind": "accuracy"},
    }
    return Published(**{**cells, "value": float(value), "printed": value, "tolerance": None, "verified": verified})


def cell(name: str, value: float, unit: str, half: float | None = None) -> Cell:
    return Cell(name, value, unit, *((None, None) if half is None else (value - half, value + half)), seeds=3, n=9980)


def line(name: str, cells: Sequence[Cell] = (), scale: str = "cifar10", **fields: Any) -> Line:
    """A row whose own scale is CIFAR-10."""
    common = {
        "paper": "toy", "table": "T", "order": 0, "own_scale": "cifar10", "analogue": scale != "cifar10", "ours": False,
        "claimed": None, "recipe": "net", "command": "", "shape": None, "steps": {}, "points": [], "links": {},
        "status": "ran",
    }  # fmt: skip
    return Line(**{**common, "name": name, "scale": scale, "cells": {one.metric: one for one in cells}, **fields})


SIZES = [cell("macs", 62_980_000, "MACs"), cell("speedup", 1.993, "x"), cell("params", 428_000, "")]
TOP1 = cell("top1_acc", 93.39, "%", 0.5)
INCREASE = cell("top1_err_increase", 3.71, "pp", 0.7)
CHANGE = cell("top1_change", -3.71, "pp", 0.7)


def test_beside_published_values_there_is_a_line_for_each() -> None:
    """Sizes, metric, ours, theirs, the difference in the published unit, the verdict; ours where nothing is printed."""
    dense = published("top1", "92.8", "%")
    lines = [
        line("dense", [TOP1], links={"top1_acc": dense}, verdicts={"top1_acc": Verdict("reproduced", "one run")}),
        line(
            "pruned",
            [*SIZES, TOP1, CHANGE, INCREASE],
            links={"top1_err_increase": published("increase", "2.0", "pp", verified=False)},
            verdicts={"top1_err_increase": Verdict("not reproduced", verified=False)},
            claimed=2.0,
        ),
        line("other", [*SIZES, TOP1, CHANGE, INCREASE], links={"top1_err_increase": published("increase", "4", "pp")}),
        line("best", [*SIZES, TOP1, CHANGE, INCREASE], ours=True),
        line("absent", status="not run (needs imagenet)", links={"top1_err_increase": published("i", "9", "pp")}),
    ]
    frame = readable(lines)
    assert list(frame.columns) == ["row", "MACs (speed-up)", "metric", "ours", "published", "difference", "verdict"]
    assert frame.to_numpy().tolist() == [
        ["dense", "", "top-1 (%)", "93.39 [92.89, 93.89]", "92.8 %", "+0.59", "reproduced (one run)"],
        [
            "pruned", "63.0 M (1.99x; claimed 2x)", "top-1 error increase (pp)", "+3.71 [+3.01, +4.41]", "2.0 pp†",
            "+1.71", "[not reproduced]",
        ],
        ["other", "63.0 M (1.99x)", "top-1 error increase (pp)", "+3.71 [+3.01, +4.41]", "4 pp", "-0.29", ""],
        ["best [beyond the paper]", "63.0 M (1.99x)", "top-1 error increase (pp)", "+3.71 [+3.01, +4.41]", "", "", ""],
        ["absent", "", "top-1 error increase (pp)", "", "9 pp", "", "not run (needs imagenet)"],
    ]  # fmt: skip


def test_an_analogue_has_no_verdicts_and_eight_columns_at_most() -> None:
    many = [*SIZES, TOP1, CHANGE, INCREASE, cell("top1_change_control", -3.0, "pp"), cell("agreement", 92.0, "%")]
    many += [cell("kl", 0.25, "nats"), cell("held_out_error", 39.0, "%"), cell("top5_acc", 99.0, "%")]
    many += [cell("latency_dense", 3.0, "ms"), cell("latency_skipped", 2.0, "ms")]
    lines = [line("a", many, "digits", links={"top1_err_increase": published("increase", "2.0", "pp")})]
    assert list(readable(lines).columns) == [
        "row", "MACs (speed-up)", "top-1 (%)", "top-1 change (pp)", "top-1 change, tuned dense (pp)",
        "reconstruction error (%)", "dense (ms)", "skipped (ms)",
    ]  # fmt: skip
    absent = line("b", [], "digits", status="not run (runs at cifar10)")
    assert readable([*lines, absent])["row"].tolist() == ["a"]
    assert "Not run (runs at cifar10): b." in build([*lines, absent], []).notes


def test_times_whose_turns_were_cut_off_are_named() -> None:
    """A row of two clocks, one of which was precise enough; older rows do not say."""
    how = {"clock": "wall clock, CPU", "stopped": "15 s are over; an interval is wider than 1 %"}
    fine = {"clock": "events, CUDA", "stopped": "precise enough"}
    times = [cell("latency_dense", 2.0, "ms")]
    cut_off = {"step": {"timing": how, "timing_events": fine}}
    lines = [line("a", times, timed=cut_off), line("b", times, timed={"step": {"timing": fine}}), line("c", times)]
    lines.append(line("d, batch 8", times, timed=cut_off))
    found = [note for note in build(lines, []).notes if "precise" in note]
    said = "a; d, batch 8: wall clock, CPU: 15 s are over; an interval is wider than 1 %"
    assert found == [f"Times that are less precise than was asked for: {said}."]


def test_a_table_in_which_nothing_ran_says_why() -> None:
    frame = readable([line("a", status="not run (needs CUB-200)"), line("b", status="not run (not supported yet)")])
    assert frame.to_numpy().tolist() == [["a", "not run (needs CUB-200)"], ["b", "not run (not supported yet)"]]


def test_curves_are_read_at_the_middle_of_their_speed_ups() -> None:
    points = [
        Point(series, x, cell("top1_err_increase", factor * x, "pp", 0.5))
        for series, factor in (("first k", 2.0), ("lasso", 1.0))
        for x in (1.25, 2.0, 4.0)
    ]
    frame = readable([line("conv1_2", points=points)])
    assert frame.to_dict("records") == [
        {"row": "conv1_2", "first k at 2x": "+4.00 [+3.50, +4.50] pp", "lasso at 2x": "+2.00 [+1.50, +2.50] pp"}
    ]


def test_differences_need_one_unit() -> None:
    assert difference(INCREASE, published("increase", "2.0", "points")) == pytest.approx(1.71)
    assert difference(TOP1, published("top1", "0.928", "")) == pytest.approx(0.0059)
    assert difference(cell("kl", 0.25, "nats"), published("x", "2.0", "pp")) is None


def test_sizes_of_rows_that_did_not_run_are_the_paper_s() -> None:
    shape = {"macs": {"conv": 3_391_000_000}, "speedup": 4.5257}
    assert macs_text(line("a", shape=shape, claimed=5.0, status="not run")) == "3.39 G (4.53x; claimed 5x)"
    gated = [cell("macs", 1e9, "MACs"), cell("dynamic_macs", 44_280_000, "MACs"), cell("dynamic_speedup", 3.94, "x")]
    assert macs_text(line("b", gated)) == "44.3 M (3.94x)"


def test_what_no_count_holds_is_marked_and_a_bound_is_called_one() -> None:
    entry = published("top1_acc", "87.54", "%")
    assert printed(entry) == "87.54 %"
    assert printed(replace(entry, verified=False)) == "87.54 %†"
    assert printed(replace(entry, origin="others", verified=False)) == "87.54 %‡"
    assert printed(replace(entry, origin="authors")) == "87.54 %"
    assert printed(replace(entry, note="lower bound", direction="higher")) == "at least 87.54 %"
    assert printed(replace(entry, note="lower bound", direction="lower")) == "at most 87.54 %"


def claim(statement: str, verified: bool = True) -> Claim:
    return Claim("c", "toy", statement, "T", "A", "B", "T", "top1", None, 0.5, "p. 1", verified)


def test_findings_are_three_sentences_without_what_nobody_verified() -> None:
    contrast = cell("top1_difference", 3.6, "pp", 0.8)
    lines = [
        line("dense", [TOP1], verdicts={name: Verdict("reproduced") for name in ("top1_acc", "top5_acc")}),
        line("half", [CHANGE], verdicts={"top1_err_increase": Verdict("not reproduced", verified=False)}),
        line("a", [contrast], claim=claim("A beats B"), decision=Verdict("holds")),
        line("b", [contrast], claim=claim("C beats D", False), decision=Verdict("does not hold", verified=False)),
        line("elsewhere", [cell("top1_change", -50.0, "pp", 1.0)], "digits"),
    ]
    assert findings.sentences(lines, {"exact": 13, "wrong": 1}) == [
        "Reproduced: dense (T); printed sizes: 13 come out exactly, 1 come out otherwise.",
        "Claim that holds: A beats B. On what nobody could check in the publication, and so in no count: values: "
        "1 [not reproduced]; claims: 1 [does not hold].",
        "Largest effect: top-1 difference +3.60 [+2.80, +4.40] pp, A against B (T, cifar10).",
    ]
    assert findings.sentences(lines[4:], {}) == [
        "No published accuracy that could be verified has been measured on the paper's data yet.",
        "None of its claims that could be verified has been decided on its own data yet.",
        "(On other data than the paper's.) Largest effect: top-1 change -50.00 [-51.00, -49.00] pp, "
        "elsewhere (T, digits).",
    ]


@pytest.mark.parametrize("others", [0, 1])
def test_a_paper_whose_values_could_not_be_read_gets_no_verdict_and_says_why(others: int) -> None:
    unread = replace(published("mAP", "1", "%", verified=False), value=None)
    lines = [line("pruned", links={"map": unread}), line("dense", links={"map": unread})][: 2 - others]
    lines += [line("read", links={"map": published("mAP", "77.5", "%")})] * others
    (first, *_) = findings.sentences(lines, {})
    none = "None of the paper's accuracies could be read, so no verdict on them is possible, whatever is measured."
    assert (first == none) is (others == 0)


def test_a_study_says_that_it_is_one() -> None:
    lines = [line("a", [CHANGE], ours=True), line("c", claim=claim("A beats B"), decision=Verdict("holds"))]
    assert findings.sentences(lines, {})[:2] == [
        "A study of ours: no paper prints these values.",
        "Claim that holds: A beats B.",
    ]
    assert findings.sentences(lines[:1], {})[1] == "No claim is tied to it."


def test_claims_of_other_networks_are_told() -> None:
    away = replace(claim("C beats D"), source="Figure 4; there VGG-GAP on CUB-200, here ResNet-56")
    near = replace(claim("A beats B"), source="Table 1: where 2 is printed")
    lines = [line(one.statement, claim=one, decision=Verdict("holds")) for one in (near, away)]
    other = " claimed of another network or other data)"
    assert findings.sentences(lines, {})[1] == f"Claims that hold: A beats B; C beats D (1 of them{other}."
    assert findings.sentences(lines[1:], {})[1] == f"Claim that holds: C beats D ({other.strip()}."
    assert findings.sentences(lines[:1], {})[1] == "Claim that holds: A beats B."


def test_a_study_answers_its_question_first() -> None:
    lines = [
        line("first", [TOP1, CHANGE], ours=True),
        line("second", [cell("top1_difference", 0.04, "pp", 0.27)], ours=True),
        line("another", [cell("top1_difference", 9.0, "pp", 0.5)], ours=True),
    ]
    last = findings.sentences(lines, {}, [("T", "second"), ("T", "first"), ("T", "not measured"), ("U", "another")])[2]
    change = cell_text(CHANGE)
    second = "second: top-1 difference +0.04 [-0.23, +0.31] pp"
    assert last == f"Measured: {second}; first: top-1 change {change} pp (cifar10)."
    both = [lines[1], line("second", [cell("top1_difference", 1.0, "pp", 0.5)], "elsewhere", ours=True)]
    assert findings.sentences(both, {}, [("T", "second")])[2] == f"Measured: {second} (cifar10)."
    both = [replace(one, analogue=True) for one in both]
    told = findings.sentences(both, {}, [("T", "second")])[2]
    assert told.endswith(f"Measured: {second} (cifar10). second: top-1 difference +1.00 [+0.50, +1.50] pp (elsewhere).")
    assert "Largest effect: top-1 difference +9.00" in findings.sentences(lines, {}, [("T", "not measured")])[2]


def test_a_page_says_where_weights_and_networks_of_other_machines_come_from() -> None:
    made = {"data": None, "date": "2026-01-01", "versions": {}, "code": "c",
            "hardware": {"name": "CPU", "device": "cpu", "threads": 1, "system": "Linux"}}  # fmt: skip
    known, unknown = ({"file": f"{digit}.pth", "sha256": digit * 64} for digit in "ab")
    lines = [
        line(name, steps={"s": {"provenance": made}}, setting={"weights": given})
        for name, given in (("x", known), ("y", unknown))
    ]
    told = pages._provenance("cifar10", lines, {"a" * 64: "trained by somebody"})
    weights = "- Weights: a.pth (SHA-256 aaaaaaaaaaaa...): trained by somebody; b.pth (SHA-256 bbbbbbbbbbbb...)"
    assert told[2] == weights

    def commands(command: str) -> str:
        table = SimpleNamespace(lines=[line("x", table_command=command)])
        return "\n".join(pages._commands([table]))  # type: ignore[list-item]

    assert "another machine trained" in commands("bench run fbs --networks runs_gpu")
    assert "another machine trained" not in commands("bench run fbs")


def test_a_claim_that_answers_goes_by_the_rows_that_it_compares() -> None:
    one = line("a-beats-b", [cell("top1_difference", 0.04, "pp", 0.27)], claim=claim("A beats B"), analogue=True)
    told = findings.sentences([one], {}, [("T", "a-beats-b")])[2]
    first, second = claim("A beats B").first, claim("A beats B").second
    assert told.endswith(f"Measured: {first} against {second}: top-1 difference +0.04 [-0.23, +0.31] pp (cifar10).")


@pytest.mark.parametrize("paper", planning.papers().values(), ids=lambda paper: paper.key)
def test_the_answers_are_rows(paper: Paper) -> None:
    assert set(paper.answers) <= {(row.table, row.name) for row in paper.rows}
    assert paper.answers or not paper.key.endswith("_study")


def test_one_value_is_the_same_in_every_format() -> None:
    links = {"top1_acc": published("top1", "92.8", "%")}
    table = build([line("dense", [TOP1], links=links, verdicts={"top1_acc": Verdict("reproduced")})], [])
    shown = "93.39 [92.89, 93.89]"
    assert f"| dense | {shown} | 92.8 % | +0.59 | reproduced |" in render.markdown(table)
    cell = r"\begin{tabular}[t]{@{}r@{}}93.39\\ {\scriptsize {[}92.89, 93.89{]}}\end{tabular}"
    assert rf"dense & {cell} & 92.8 \% & +0.59 & reproduced \\" in render.latex(table)
    assert f"<td>dense</td><td>{shown}</td><td>92.8 %</td><td>+0.59</td>" in render.html_page(table)
    (row,) = csv.DictReader(io.StringIO(render.csv_text(table)))
    assert (row["metric"], float(row["value"]), row["published"], row["verdict"]) == (
        "top1_acc", 93.39, "92.8", "reproduced",
    )  # fmt: skip


@pytest.mark.slow
def test_the_committed_pages_are_those_of_the_committed_rows(tmp_path: Path) -> None:
    """Written again from the row files they are the same to the byte; no table has more than eight columns.

    Pictures are there already: those that show what they should are left as they are, which their digests say.
    """
    results, committed = tmp_path / "results", ROOT / "results"
    for path in committed.glob("*/*"):
        if path.name in ("rows", "networks"):
            shutil.copytree(path, results / path.relative_to(committed))
    pictures = {path.relative_to(committed) for path in committed.rglob("*") if path.suffix in (".png", ".svg")}
    for path in (*pictures, *(path.relative_to(committed) for path in committed.glob("latency/*.json"))):
        (results / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(committed / path, results / path)
    written = {path.relative_to(results) for path in commands.write_pages(results)}
    assert len(written) > 40
    assert {path for path in written if path.suffix in (".png", ".svg")} == pictures
    for path in written:
        if path.suffix == ".png":  # its bytes depend on the drawing program, its digest on what it shows alone
            assert drawing.digest_of(committed / path) == drawing.digest_of(results / path) is not None, path
        if path.suffix in (".png", ".svg"):
            continue
        assert (committed / path).read_text() == (results / path).read_text(), path
        if path.suffix == ".md" and path != Path("README.md"):
            rows = [row for row in (results / path).read_text().splitlines() if row.startswith("|")]
            assert max((len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows), default=0) <= 8, path


def test_rows_over_other_numbers_of_seeds_are_marked() -> None:
    """What most rows are over is said once below the table; where all are alike nothing is marked or said."""

    def over(name: str, seeds: int, **fields: Any) -> Line:
        return line(name, [Cell("top1_acc", 90.0, "%", 89.0, 91.0, seeds=seeds)], **fields)

    rows = [over("a", 3), over("b", 3), over("c", 1), over("given weights", 0, ours=True), over("d", 3)]
    studied = build([replace(row, ours=True) for row in rows], [])
    assert list(studied.frame["row"]) == ["a", "b", "c [1 seed]", "given weights [1 seed]", "d"]
    assert "Rows without a mark are over 3 seeds." in studied.notes
    beside = [replace(row, links={"top1_acc": published("top1", "92.8", "%")}) for row in rows[:3]] + rows[3:]
    assert list(build(beside, []).frame["row"]) == [
        "a",
        "b",
        "c [1 seed]",
        "given weights [beyond the paper, 1 seed]",
        "d",
    ]
    alike = build(rows[:2], [])
    assert list(alike.frame["row"]) == ["a", "b"] and not any("mark" in note for note in alike.notes)


def test_our_own_arithmetic_is_never_called_published() -> None:
    check = replace(published("MACs", "63", "M"), kind="check")
    table = build([line("a", SIZES, links={"macs": check})], [])
    assert "expected (our arithmetic)" in table.frame.columns and "published" not in table.frame.columns
    both = build(
        [line("a", SIZES, links={"macs": check}), line("b", SIZES, links={"macs": published("MACs", "63", "M")})], []
    )
    assert "published" in both.frame.columns


def test_a_claim_s_verdict_stands_with_the_contrast_that_decides_it() -> None:
    """In the CSV file beside its published effect; the other contrasts have none."""
    claim = Claim("a-b", "toy", "A beats B", "T", "A", "B", "", "kl", None, 5.0, "somewhere", True)
    contrast = [cell("top1_difference", 0.3, "pp", 0.5), cell("kl_ratio", -12.0, "%", 2.0)]
    row = line("a-b", contrast, table="Claims", claim=claim, decision=Verdict("holds"))
    found = {one["metric"]: one for one in long(build([row], []))}
    assert {name: one["verdict"] for name, one in found.items()} == {"top1_difference": None, "kl_ratio": "holds"}
    assert {(one["first"], one["second"], one["smallest_of_interest"]) for one in found.values()} == {("A", "B", 5.0)}
    printed = replace(row, claim=replace(claim, metric="top1", published=1.5, verified=False))
    found = {one["metric"]: one for one in long(build([printed], []))}
    top1 = found["top1_difference"]
    assert (top1["published"], top1["published_unit"], top1["verified"], top1["verdict"]) == (1.5, "pp", False, "holds")
    assert found["kl_ratio"]["verdict"] is None and found["kl_ratio"]["published"] is None


def test_the_figure_of_claims_shows_what_decides_them() -> None:
    """A panel for each kind of contrast that decides some, each claim in its own."""
    claim = Claim("a-b", "toy", "A beats B", "T", "A", "B", "", "top5", None, 0.5, "somewhere", True)
    contrast = [
        cell("top1_difference", 7.0, "pp", 0.5),
        cell("top5_difference", 0.3, "pp", 0.5),
        cell("kl_ratio", -12.0, "%", 2.0),
    ]
    rows = [
        line(f"c{n}", contrast, table="Claims", claim=replace(claim, metric=metric, statement=f"claim {n}"))
        for n, metric in enumerate(["top5", "top5", "top5", "kl"])
    ]
    table = build(rows, [])
    assert figures._panels(table.lines) == ["top5_difference", "kl_ratio"]
    first, second = figures._dots(table, ["top5_difference", "kl_ratio"]).axes
    assert [text.get_text() for text in first.texts] == ["+0.30"] * 3
    assert [text.get_text() for text in second.texts] == ["-12.0"]


def test_weights_that_were_given_are_no_reproduction_of_a_training() -> None:
    """Said beside the row, where nothing was trained for it."""
    top1 = {"top1_acc": published("top1", "92.8", "%")}
    verdicts = {"top1_acc": Verdict("reproduced")}
    given: dict[str, Any] = {"links": top1, "verdicts": verdicts, "setting": {"weights": {"file": "w", "sha256": "0"}}}
    training = {"k": {"step": "fine-tuned(dense)", "seed": 0, "epochs": []}}
    rows = [line("dense", [TOP1], **given), line("tuned", [TOP1], history=training, **given)]
    assert findings.sentences(rows, {})[0] == "Reproduced: dense (T, weights given); tuned (T)."
