"""The report on row files written by hand: every number here is computed by hand, no network is involved."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from row_files import PAPER, SHAPE, TABLE, Runs, accuracies, record, text_of

from bench.claims import Claim
from bench.errors import UserError
from bench.metrics import size
from bench.report import render
from bench.report.cells import Cell
from bench.report.glossary import metric
from bench.report.judging import _sigma, decide
from bench.report.load import read
from bench.report.pages import write
from bench.report.tables import long


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """No rows yet."""
    return Runs(tmp_path)


def test_values_of_several_seeds_have_no_narrow_interval(runs: Runs) -> None:
    """92, 93, 95 of 2 points each: sd = sqrt(7/3); what seeds and images leave open is added, as an upper bound."""
    runs.row("dense", accuracies(92.0, 93.0, 95.0))
    cell = runs.lines()[0].cells["top1_acc"]
    assert cell.value == pytest.approx(280 / 3, abs=1e-12)
    assert cell.sd == pytest.approx((7 / 3) ** 0.5, abs=1e-12)
    assert cell.seeds == 3
    # Student's t for 2 degrees of freedom at 97.5 %: 4.302653
    assert cell.high is not None
    assert cell.high - cell.value == pytest.approx((4.302653**2 * 7 / 9 + 2**2) ** 0.5, abs=1e-5)


def test_what_was_measured_over_the_seeds_counts(runs: Runs) -> None:
    """Its own interval, the spread of single networks, and how many different ones there were."""
    over = record("top1_acc", 93.0, low=91.5, high=94.2, n=360, networks=3, spread=1.25)
    runs.row("dense", [*accuracies(92.0, 93.0, 94.0), over])
    cell = runs.lines()[0].cells["top1_acc"]
    assert (cell.value, cell.low, cell.high, cell.sd, cell.seeds) == (93.0, 91.5, 94.2, 1.25, 3)
    table = runs.table()
    assert text_of(table, "dense", "top-1 (%)") == "93.00 [91.50, 94.20]"
    assert any("of 3 seeds" in note and "new seeds" in note for note in table.notes)


def test_images_that_share_scans_are_told(runs: Runs) -> None:
    """Several seeds or one, measured over all or for each: the cell and a note say how many scans there are."""
    one = {"low": 91.0, "high": 95.0, "n": 2000, "units": 400}
    runs.row("over all", [record("top1_acc", 93.0, networks=3, **one)])
    runs.row("single", [record("top1_acc", 93.0, seed=0, **one)])
    runs.row("each", [record("top1_acc", 93.0 + seed, seed=seed, **one) for seed in (0, 1)])
    assert [line.cells["top1_acc"].units for line in runs.lines()] == [400, 400, 400]
    told = "These 2,000 images show 400 different scans, each several times: intervals are for new scans."
    assert runs.table().notes.count(told) == 1


def test_one_network_is_one_network(runs: Runs) -> None:
    """Given weights, evaluated once for all seeds: the interval of that network, and a verdict on one run."""
    over = record("top1_acc", 92.0, low=90.5, high=93.3, n=1000, networks=1)
    runs.row("dense", [*accuracies(92.0), over], published={"top1_acc": ["baseline", "top1_acc"]})
    line = runs.lines()[0]
    cell = line.cells["top1_acc"]
    assert (cell.seeds, cell.low, cell.high) == (1, 90.5, 93.3)
    assert line.verdicts["top1_acc"].stand_in
    assert any("of one network" in note for note in runs.table().notes)


def test_one_seed_keeps_its_interval(runs: Runs) -> None:
    """A single value is not given a spread."""
    runs.row("dense", accuracies(92.0))
    assert text_of(runs.table(), "dense", "top-1 (%)") == "92.00 [90.00, 94.00]"


def test_sizes_of_equal_networks_are_one_value(runs: Runs) -> None:
    """Sizes come once for each network: equal ones print as they are, different ones with their spread."""
    runs.row("same", [record("macs", 62_914_560, "MACs", convention="conv")] * 3)
    runs.row("other", [record("macs", value, "MACs", convention="conv") for value in (60e6, 64e6)])
    table = runs.table()
    assert text_of(table, "same", "MACs") == "62.9 M"
    assert text_of(table, "other", "MACs") == "62.0 M ± 2.83 M"


def test_two_values_of_one_seed_are_refused(runs: Runs) -> None:
    """Which of them counts could only be guessed."""
    path = runs.row("dense", [*accuracies(92.0), *accuracies(93.0)])
    with pytest.raises(UserError, match="two values of one seed") as told:
        runs.lines()
    assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(90.6, "reproduced"), (89.6, "inconclusive"), (92.0, "better"), (88.0, "not reproduced")],
)
def test_verdicts_at_the_paper_s_scale(runs: Runs, measured: float, expected: str) -> None:
    """The published 90.0 with a tolerance of 0.5, better above; three runs of spread 0.1."""
    records = [record("top1_acc", measured, low=measured - 1, high=measured + 1, n=9980, networks=3, spread=0.1)]
    runs.row("ours", records, published={"top1_acc": ["baseline", "top1_acc"]})
    table = runs.table()
    assert text_of(table, "ours", "verdict").partition(" (")[0] == expected
    assert any(
        note.startswith("Tolerance of the verdicts (at most half of the effect that a row is about): 0.5 pp (top-1).")
        for note in table.notes
    )
    colour = {"not reproduced": "bad", "inconclusive": "open"}.get(expected, "good")
    assert f'<span class="{colour}">{expected}' in render.html_page(table)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(90.6, "reproduced"), (89.6, "inconclusive"), (92.0, "better"), (88.0, "not reproduced")],
)
def test_a_published_error_is_what_the_accuracy_leaves(runs: Runs, measured: float, expected: str) -> None:
    """The same runs beside the published error of 10.0: what is left to 100, the interval turned, the same verdict."""
    records = [record("top1_acc", measured, low=measured - 1, high=measured + 2, n=9980, networks=3, spread=0.1)]
    runs.row("ours", records, published={"top1_err": ["erring", "test_err"]})
    runs.row("without", records)
    line, without = runs.lines()
    cell = line.cells["top1_err"]
    assert (cell.value, cell.low, cell.high) == pytest.approx((100 - measured, 98 - measured, 101 - measured))
    assert (cell.n, cell.seeds, cell.sd, cell.unit) == (9980, 3, 0.1, "%")
    assert str(line.verdicts["top1_err"]).partition(" (")[0] == expected
    assert "top1_err" not in without.cells
    assert text_of(runs.table(), "ours", "top-1 error (%)").startswith(f"{100 - measured:.2f} [")


def test_an_error_that_was_measured_itself_stays(runs: Runs) -> None:
    records = [record("top1_acc", 90.0, networks=1), record("top1_err", 11.0, networks=1)]
    runs.row("ours", records, published={"top1_err": ["erring", "test_err"]})
    assert runs.lines()[0].cells["top1_err"].value == 11.0


def test_a_value_that_nobody_verified_has_its_verdict_in_brackets_and_enters_no_count(runs: Runs) -> None:
    records = [record("top1_acc", 92.6, low=92.0, high=93.0, n=9980, networks=3, spread=0.1)]
    runs.row("ours", records, published={"top1_acc": ["ours 2x", "top1_acc"]})
    table = runs.table()
    assert text_of(table, "ours", "verdict") == "[reproduced]"
    assert "<span" not in render.html_page(table)
    write(runs.root, runs.registry, runs.about())
    assert "| [A toy](toy/README.md) | imagenet | 1 |" in (runs.root / "README.md").read_text()
    assert "reproduced |" not in (runs.root / "README.md").read_text()


@pytest.mark.parametrize(("dense", "expected"), [(89.0, "not reproduced"), (85.9, "inconclusive (other base)")])
def test_a_change_is_judged_where_the_dense_networks_are_alike(runs: Runs, dense: float, expected: str) -> None:
    """The paper's dense network has 90.0; 4.1 points below it is another base."""
    records = [
        record("top1_acc", dense - 3.0, low=80.0, high=92.0, networks=3, spread=0.1),
        record("top1_change", -3.0, "pp", low=-3.3, high=-2.7, networks=3, spread=0.1),
        record("top1_err_increase", 3.0, "pp", low=2.7, high=3.3, networks=3, spread=0.1),
    ]
    runs.row("ours", records, published={"top1_err_increase": ["ours 4x", "top1_err_increase"]})
    assert text_of(runs.table(), "ours", "verdict") == expected
    assert f"Dense network: {dense:.2f} % here, 90 % in the paper." in runs.table().notes


def test_sizes_are_judged_in_the_published_unit(runs: Runs) -> None:
    """1,472,000 parameters against 1.47 M; points against nats cannot be compared."""
    links = {"params": ["ours 2x", "params"], "kl": ["ours 4x", "top1_err_increase"]}
    runs.row("ours", [record("params", 1_472_000, ""), record("kl", 0.1, "nats")], published=links)
    line = runs.lines()[0]
    assert {name: str(found) for name, found in line.verdicts.items()} == {
        "params": "exact",
        "kl": "not comparable (nats with pp)",
    }
    assert text_of(runs.table(), "ours", "verdict") == "params: exact; KL: not comparable (nats with pp)"


def test_sizes_of_other_conventions_are_not_mixed(runs: Runs) -> None:
    """15.47 G conv+fc are 30.94 B in 2x, and conv alone is neither."""
    for name, convention, macs in (("a", "conv+fc", 15_470_264_320), ("b", "conv", 15_346_630_656)):
        counted = [record("macs", macs, "MACs", convention=convention)]
        runs.row(name, counted, published={"macs": ["sized", "FLOPs"]})
    found = [str(line.verdicts["macs"]) for line in runs.lines()]
    assert found == ["exact", "other convention"]


def test_a_check_of_our_own_arithmetic_is_no_verdict(runs: Runs) -> None:
    runs.row("a", [record("macs", 5.0e6, "MACs", convention="conv")], published={"macs": ["checked", "MACs"]})
    assert text_of(runs.table(), "a", "verdict") == "check agrees"
    write(runs.root, runs.registry, runs.about())
    assert "exact" not in (runs.root / "README.md").read_text().split("Verdicts are")[0]


@pytest.mark.parametrize(
    ("low", "high", "scale", "expected"),
    [
        (0.4, 1.2, "imagenet", "holds"),
        (-1.2, 0.1, "imagenet", "does not hold"),
        (-0.2, 1.2, "imagenet", "undecided"),
        (0.4, 1.2, "digits", "holds (analogue)"),
    ],
)
def test_claims_are_rows_of_the_page(runs: Runs, low: float, high: float, scale: str, expected: str) -> None:
    """A's top-1 beats B's, printed with 1.5 points; the contrast's interval decides."""
    runs.claims()
    runs.row(
        "a-beats-b",
        [record("top1_difference", (low + high) / 2, "pp", low=low, high=high, networks=3)],
        scale,
        table="Claims",
    )
    (line,) = runs.lines()
    assert line.claim is not None and line.outcomes == [expected]
    table = runs.table()
    (row,) = table.frame.to_dict("records")
    assert row["claim"] == "A beats B" and row["verdict"] == expected and row["difference as printed"] == "1.5 pp"
    write(runs.root, runs.registry, runs.about())
    assert "A beats B" in (runs.root / PAPER / "README.md").read_text()
    # the printed effect lies outside of the interval; half of it is 0.7, the smallest effect of interest 0.5
    needed = any("of interest): A against B 6 (had 3)." in note for note in table.notes)
    assert needed == (expected == "undecided")
    counted = "| holds |" in (runs.root / "README.md").read_text()
    assert counted == (expected == "holds")


def test_the_sign_of_a_divergence_is_turned(runs: Runs) -> None:
    """A KL 20 % [10, 30] smaller is an effect in the first row's favour."""
    runs.claims(metric="kl", published="", smallest="5")
    runs.row("a-beats-b", [record("kl_ratio", -20.0, "%", low=-30.0, high=-10.0)], table="Claims")
    decision = runs.lines()[0].decision
    assert decision is not None and (decision.word, decision.low, decision.high) == ("holds", 10.0, 30.0)


def test_a_dagger_marks_what_nobody_checked(runs: Runs) -> None:
    """In every format, with its footnote; a checked value has none."""
    runs.row("dense", accuracies(90.0), published={"top1_acc": ["baseline", "top1_acc"]})
    assert text_of(runs.table(), "dense", "published") == "top-1 90.0 %"
    assert not any(note.startswith("†") for note in runs.table().notes)
    runs.row("ours", accuracies(92.0), published={"top1_acc": ["ours 2x", "top1_acc"]})
    table = runs.table()
    assert text_of(table, "ours", "published") == "top-1 92.5 %†"
    assert "92.5 %†" in render.markdown(table)
    assert "92.5 %†" in render.html_page(table)
    assert r"92.5 \%$^\dagger$" in render.latex(table)
    assert any(note.startswith("†") for note in table.notes)


def test_an_analogue_is_quoted_in_its_own_column_and_never_judged(runs: Runs) -> None:
    """However close the values are."""
    runs.row("ours", accuracies(92.5), scale="digits", published={"top1_acc": ["ours 2x", "top1_acc"]})
    table = runs.table()
    assert "published" not in table.full.columns
    assert text_of(table, "ours", "published (imagenet)") == "top-1 92.5 %†"
    assert text_of(table, "ours", "verdict") == "analogue"
    assert "<span" not in render.html_page(table)
    quoted = "; the published value is quoted in the CSV and HTML files, not compared."
    quoted = f"analogue: measured on digits, not on imagenet{quoted}"
    assert quoted in table.notes
    (row,) = long(table)
    assert (row["published"], row["quoted"], row["published_unit"], row["verified"]) == (None, 92.5, "%", False)
    assert "verdict" not in table.frame.columns


def test_another_label_is_an_analogue_whatever_the_file_says(runs: Runs) -> None:
    """A subset of the paper's data is not the paper's data, and neither is a folder that bears its name."""
    runs.row("ours", accuracies(92.5), scale="imagenet-subset")
    runs.row("theirs", accuracies(92.5), scale="imagenet", setting={"folder": True})
    runs.row("real", accuracies(92.5), scale="imagenet")
    assert [(line.scale, line.analogue) for line in runs.lines()] == [
        ("imagenet-subset", True),
        ("folder imagenet", True),
        ("imagenet", False),
    ]


def test_the_csv_is_unrounded(runs: Runs) -> None:
    """Every digit of the record comes back, and no thousands are shortened."""
    value, low = 91.23456789012345, 89.98765432109876
    runs.row("ours", [record("top1_acc", value, low=low, high=93.5, n=360, seed=0), record("params", 1_472_001, "")])
    size_, accuracy = csv.DictReader(io.StringIO(render.csv_text(runs.table())))
    assert (accuracy["row"], accuracy["metric"], accuracy["unit"]) == ("ours", "top1_acc", "%")
    assert float(accuracy["value"]) == value
    assert float(accuracy["low"]) == low
    assert (accuracy["n"], accuracy["seeds"], accuracy["seeds_of_the_run"]) == ("360", "1", "0 1 2")
    assert (size_["metric"], size_["value"], size_["low"]) == ("params", "1472001", "")


def test_mixed_precision_and_the_paper_s_schedule_are_told_where_rows_differ(runs: Runs) -> None:
    """The precision by a footnote that names rows, the schedule by the scale, so that two of them are two tables."""
    top1 = [record("top1_acc", 90.0, "%", low=89.0, high=91.0)]
    runs.row("plain", top1)
    assert not any("mixed precision" in note for note in runs.table().notes)
    runs.row("mixed", top1, setting={"amp": True})
    (note,) = (note for note in runs.table().notes if "mixed precision" in note)
    assert note.endswith(": mixed.")
    runs.row("long", top1, setting={"paper_schedule": True})
    assert {line.scale.partition(" (")[2] for line in runs.lines()} == {"", "the paper's schedule)"}


def test_latex_is_escaped(runs: Runs) -> None:
    """Percent, underscore, ampersand and braces in names, a bracket at a line's start, and the minus sign."""
    runs.row("[53] 50% & conv3_1 {x} #1 $", [record("top1_change", -0.5, "pp", low=-0.75, high=0.25)])
    text = render.latex(runs.table())
    assert r"{[}53{]} 50\% \& conv3\_1 \{x\} \#1 \$" in text
    assert r"$-$0.50\\ {\scriptsize {[}$-$0.75, +0.25{]}}" in text
    assert re.search(r"(?<!\\)%", text) is None
    for command in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert command in text


def test_markdown_and_html_are_escaped(runs: Runs) -> None:
    """A bar would open a column, an angle bracket a tag."""
    runs.row("a|b <i>", accuracies(90.0))
    assert r"a\|b \<i>" in render.markdown(runs.table())
    assert "a|b &lt;i&gt;" in render.html_page(runs.table())


def test_rows_that_did_not_run_stay_with_their_sizes(runs: Runs) -> None:
    """The sizes at the paper's own shape need no data."""
    runs.row("dense", accuracies(90.0))
    runs.row(
        "ours",
        [],
        status="not run (needs imagenet)",
        steps={},
        shape=SHAPE,
        claimed=5.0,
        published={"top1_acc": ["ours 2x", "top1_acc"]},
    )
    table = runs.table()
    assert text_of(table, "ours", "claimed") == "5x"
    assert text_of(table, "ours", "real (own shape)") == "4.526x"
    assert text_of(table, "ours", "MACs (own shape)") == "3.39 G"
    assert text_of(table, "ours", "params (own shape)") == "62.9 M"
    assert text_of(table, "ours", "top-1 (%)") == ""
    assert text_of(table, "ours", "verdict") == "not run (needs imagenet)"


def test_columns_that_say_the_same_twice_are_left_out(runs: Runs) -> None:
    """An error's increase beside the change, unless it is what was published; all stay in the CSV."""
    both = [
        record("top1_change", -1.2, "pp", low=-1.4, high=-1.0),
        record("top1_err_increase", 1.2, "pp", low=1.0, high=1.4),
        record("top5_acc", 99.0),
    ]
    runs.row("a", [*both, record("kl_control", 0.1, "nats")])
    assert list(runs.table().full.columns) == ["row", "top-1 change (pp)", "verdict"]
    assert {value["metric"]: value["value"] for value in long(runs.table())}["kl_control"] == 0.1
    runs.row("b", both, published={"top1_err_increase": ["ours 4x", "top1_err_increase"]})
    assert "top-1 error increase (pp)" in runs.table().full.columns
    assert text_of(runs.table(), "b", "verdict") == "reproduced (one run)"


def test_unknown_metrics_are_printed(runs: Runs) -> None:
    """With their own name and four digits."""
    runs.row("a", [record("gate_rate", 0.123456, "share")])
    assert text_of(runs.table(), "a", "gate rate (share)") == "0.1235"


def test_published_rows_that_no_line_quotes_are_listed(runs: Runs) -> None:
    """With their dagger; those in the table are not listed again, and sizes stand in a part of their own."""
    runs.row("dense", accuracies(90.0), published={"top1_acc": ["baseline", "top1_acc"]})
    table = runs.table()
    assert "theirs (VGG, ImageNet): top1_acc 88.0 %†" in table.unlinked
    assert not any(row.startswith("baseline") for row in table.unlinked)
    assert "- theirs (VGG, ImageNet): top1_acc 88.0 %†\n" in render.markdown(table)
    assert "theirs (VGG, ImageNet)" in render.latex(table)


def test_links_must_find_one_value(runs: Runs) -> None:
    """A link to nothing or to two models is told with the file; the model makes it one."""
    runs.row("a", accuracies(1.0), published={"top1_acc": ["several", "top1_acc"]})
    with pytest.raises(UserError, match="2 published values match"):
        runs.lines()
    runs.row("a", accuracies(1.0), published={"top1_acc": ["several", "top1_acc", "ResNet"]})
    assert runs.lines()[0].links["top1_acc"].value == 2.0
    runs.row("a", accuracies(1.0), published={"top1_acc": ["nobody", "top1_acc"]})
    with pytest.raises(UserError, match="no published top1_acc of 'nobody'"):
        runs.lines()


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.391e9, "3.39 G"), (62_914_560, "62.9 M"), (138_357_544, "138 M"), (9.996e6, "10.0 M"), (950, "950")],
)
def test_sizes_are_printed_in_three_digits(value: float, text: str) -> None:
    """As the papers print them."""
    assert size(value) == text


def test_numbers_have_the_metric_s_form() -> None:
    """Signs for changes, none for a zero, three decimals for divergences."""
    assert metric("top1_change").number(0.5) == "+0.50"
    assert metric("top1_change").number(-0.001) == "0.00"
    assert metric("kl").number(0.12345) == "0.123"
    assert metric("speedup").number(2) == "2.000"


# --------------------------------------------------------------------------------------------------------------------
# Settings


def test_the_spread_of_two_runs_is_the_images_noise() -> None:
    """Two runs may agree by chance: their spread counts from three on."""
    for seeds, expected in ((1, 1.0), (2, 1.0), (3, 9.0)):
        cell = Cell("top1_acc", 90.0, "%", 90.0 - 1.959964, 90.0 + 1.959964, 9.0, seeds, 360)
        assert _sigma({"top1_acc": cell}, "top1_acc") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric_", "contrast", "value"),
    [
        ("top1", "top1_difference", 2.0),
        ("top5", "top5_difference", 2.0),
        ("map", "map_voc07_difference", 2.0),
        ("kl", "kl_ratio", -20.0),
    ],
)
def test_a_claim_is_decided_by_the_contrast_of_its_metric(metric_: str, contrast: str, value: float) -> None:
    """All others stand beside it and say the opposite."""
    claim = Claim("a-b", PAPER, "A beats B", TABLE, "A", "B", TABLE, metric_, None, 0.5, "p. 1", True)
    names = (
        "top1_difference",
        "top5_difference",
        "map_voc07_difference",
        "map_voc07_change",
        "top1_change",
        "kl_ratio",
    )
    cells = {
        name: Cell(name, right, "pp", right - 0.1, right + 0.1)
        for name in names
        for right in [value if name == contrast else (20.0 if name == "kl_ratio" else -5.0)]
    }
    assert str(decide(claim, cells)) == "holds"


def test_an_analogue_has_no_verdicts(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    links = {"top1_acc": ["baseline", "top1_acc"]}
    runs.row("A", accuracies(90.0), published=links)
    runs.row("A", accuracies(90.0), scale="digits", published=links)
    lines = read(runs.root, runs.registry, {PAPER: runs.declared})[PAPER]
    assert {line.scale: set(line.verdicts) for line in lines} == {"imagenet": {"top1_acc"}, "digits": set()}
