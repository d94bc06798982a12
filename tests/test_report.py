"""The report on row files written by hand: every number here is computed by hand, no network is involved."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from bench.claims import COLUMNS as CLAIM_COLUMNS
from bench.claims import Claim
from bench.errors import UserError
from bench.metrics import size
from bench.registry import COLUMNS
from bench.report import drawing, figures, render
from bench.report.accept import accept
from bench.report.cells import Cell
from bench.report.glossary import metric
from bench.report.judging import _sigma, decide
from bench.report.load import Declared, Line, read
from bench.report.pages import About, write
from bench.report.tables import Table, build_all, long
from bench.rows import slug
from bench.store import row_path

PAPER, TABLE = "toy", "Table 1 (A & B_c)"
REGISTRY = [
    ("baseline", "VGG", "top1_acc", "90.0", "%", "higher", "0.5", "yes"),
    ("ours 2x", "VGG", "top1_acc", "92.5", "%", "higher", "0.5", "no"),
    ("ours 2x", "VGG", "params", "1.47", "M", "exact", "0.005", "yes"),
    ("ours 4x", "VGG", "top1_err_increase", "1.0", "pp", "lower", "0.5", "yes"),
    ("theirs", "VGG", "top1_acc", "88.0", "%", "higher", "0.5", "no"),
    ("theirs", "VGG", "params", "", "M", "exact", "", "yes"),
    ("sized", "VGG", "FLOPs", "30.94", "B", "exact", "0.005", "yes"),
    ("checked", "VGG", "MACs", "5.0", "M", "exact", "0.05", "yes"),
    ("several", "VGG", "top1_acc", "1", "%", "higher", "", "yes"),
    ("several", "ResNet", "top1_acc", "2", "%", "higher", "", "yes"),
]
SHAPE = {
    "recipe": "vgg16() at 224x224",
    "macs": {"conv": 3_391_000_000, "conv+fc": 3_500_000_000, "2x": 7_000_000_000},
    "dense_macs": {"conv": 15_346_630_656, "conv+fc": 15_470_264_320, "2x": 30_940_528_640},
    "params": 62_900_000,
    "dense_params": 138_357_544,
    "speedup": 4.5257,
}
PROVENANCE = {
    "code": "c0ffee" * 6 + "abcd",
    "source": "0" * 64,
    "versions": {"python": "3.11.7", "torch": "2.6.0"},
    "hardware": {"device": "cpu", "name": "Some CPU (2 cores)", "threads": 2, "system": "Linux"},
    "data": {"name": "digits", "fingerprint": "0123456789abcdef", "protocol": "8x8"},
    "date": "2025-03-01",
}


def record(name: str, value: float, unit: str = "%", **more: Any) -> dict[str, Any]:
    """One record of a row file."""
    return {"metric": name, "value": value, "unit": unit, "step": "key", **more}


def accuracies(*values: float) -> list[dict[str, Any]]:
    """Top-1 of one seed each, with an interval of 2 points on both sides."""
    return [
        record("top1_acc", value, low=value - 2, high=value + 2, n=360, seed=seed) for seed, value in enumerate(values)
    ]


class Runs:
    """A folder of row files, the script's declarations, and a registry beside it."""

    def __init__(self, place: Path) -> None:
        self.root, self.registry, self.count = place / "runs", place / "registry", 0
        self.declared: dict[str, Declared] = {}
        self.registry.mkdir()
        names = ("row", "model", "metric", "value", "unit", "direction", "tolerance", "verified")
        with (self.registry / f"{PAPER}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            for cells in REGISTRY:
                line = {"paper": PAPER, "table": TABLE, "dataset": "ImageNet", **dict(zip(names, cells, strict=True))}
                kinds = {
                    "params": {"kind": "size", "convention": "all"},
                    "FLOPs": {"kind": "size", "convention": "2x conv+fc"},
                    "MACs": {"kind": "check"},
                }
                kind = kinds.get(line["metric"], {"kind": "accuracy"})
                writer.writerow(line | kind)

    def row(
        self,
        name: str,
        records: list[dict[str, Any]],
        scale: str = "imagenet",
        published: dict[str, list[str]] | None = None,
        claimed: float | None = None,
        setting: dict[str, Any] | None = None,
        table: str = TABLE,
        **fields: Any,
    ) -> Path:
        """Declares a row and writes its file, at the paper's scale unless another is given."""
        row_id = f"{PAPER}/table-1/{slug(name) or 'x'}"
        if row_id not in self.declared or published is not None:
            order = len(self.declared)
            self.declared[row_id] = Declared(table, name, order, "imagenet", False, claimed, published or {}, (0, 1, 2))
        where = {
            "scale": scale,
            "folder": scale not in ("imagenet", "digits"),
            "data": {"name": scale, "fingerprint": "0123456789abcdef", "protocol": "8x8"},
            "seeds": [0, 1, 2],
            "weights": None,
            "device": "cpu",
            **(setting or {}),
        }
        value = {
            "id": row_id,
            "setting": where,
            "status": "ran",
            "shape": None,
            "recipe": "vgg16() at 32x32",
            "widths": {},
            "records": records,
            "steps": {"key": {"step": "s", "run": "m:run", "code": "0", "seconds": 1.0, "provenance": PROVENANCE}},
            **fields,
        }
        path = row_path(self.root, row_id, where)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    def claims(self, **fields: str) -> None:
        """One claim, that row A beats row B."""
        cells = {
            "claim": "a-beats-b",
            "paper": PAPER,
            "statement": "A beats B",
            "table": TABLE,
            "first": "A",
            "second": "B",
            "metric": "top1",
            "published": "1.5",
            "smallest": "0.5",
            "source": "Table 1",
            "verified": "yes",
        }
        with (self.registry / "claims.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, CLAIM_COLUMNS, restval="")
            writer.writeheader()
            writer.writerow({**cells, **fields})

    def lines(self) -> list[Line]:
        """All lines, in order."""
        return read(self.root, self.registry, {PAPER: self.declared})[PAPER]

    def about(self) -> dict[str, About]:
        """The paper and one without rows."""
        return {
            PAPER: About("A toy", "Nobody 2025", ["one", "two"], self.declared),
            "absent": About("No rows", "Nobody 2026", []),
        }

    def accept(self, results: Path, papers: list[str] | None = None, **options: Any) -> list[Path]:
        return accept(self.root, results, papers, {PAPER: self.declared}, **options)

    def table(self) -> Table:
        """The only table."""
        (table,) = build_all(self.lines(), self.published())
        return table

    def published(self) -> Any:
        """The registry's entries."""
        from bench import registry

        return registry.load(PAPER, self.registry)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """No rows yet."""
    return Runs(tmp_path)


def text_of(table: Table, row: str, column: str) -> str:
    """One cell of the table of all metrics."""
    frame = table.full
    return str(frame.loc[frame["row"] == row, column].item())


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
    assert row["claim"] == "A beats B" and row["verdict"] == expected and row["published"] == "1.5 pp"
    write(runs.root, runs.registry, runs.about())
    assert "A beats B" in (runs.root / PAPER / "README.md").read_text()
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
