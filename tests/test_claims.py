"""The committed claims keep the schema, name rows that exist, and quote effects that the registry holds."""

import csv
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from bench import planning, registry
from bench.claims import COLUMNS, METRICS, load
from bench.errors import UserError

FOLDER = Path(__file__).parents[1] / "reproductions" / "registry"
CLAIMS = {claim.claim: claim for claim in load(FOLDER)}

# What each paper claims; ids are stable, because results are filed under them.
EXPECTED = {
    "channel_pruning": 7,
    "selection_study": 5,
    "thinet": 21,
    "fbs": 7,
    "localization_aware_ssd": 2,
    "discrimination_aware": 21,
    "versatile_filters": 7,  # 3, and 4 against narrowed networks
}
GOOD = {
    "claim": "toy-a-beats-b",
    "paper": "toy",
    "statement": "A beats B",
    "table": "Table 1",
    "first": "A",
    "second": "B",
    "second_table": "",
    "metric": "top1",
    "published": "1.2",
    "smallest": "0.5",
    "source": "Table 1",
    "verified": "yes",
}


def write(folder: Path, *rows: dict[str, str]) -> None:
    """The claims file of a folder with a registry of the paper "toy"."""
    (folder / "toy.csv").touch()
    with (folder / "claims.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_every_paper_s_claims_are_listed() -> None:
    assert Counter(claim.paper for claim in CLAIMS.values()) == EXPECTED
    # fmt: off
    needed = {
        "cp-lasso-beats-first-k", "cp-lasso-beats-max-response", "cp-enhanced-beats-plain", "cp-pruned-beats-scratch",
        "thinet-beats-weight-sum", "thinet-beats-apoz", "thinet-beats-random",
        "fbs-beats-slimming-2x", "fbs-beats-static-2x", "lcp-localization-helps", "lcp-beats-dcp",
        "dcp-beats-thinet-resnet56", "dcp-beats-cp-resnet56", "dcp-beats-weight-magnitude-resnet56",
        "dcp-beats-random-resnet56", "dcp-more-losses-help", "dcp-lambda-matters",
        "versatile-learned-masks-help", "versatile-own-masks-beat-shared", "versatile-orthogonality-helps",
    }
    # fmt: on
    assert needed <= CLAIMS.keys()
    assert {claim.metric for claim in CLAIMS.values()} <= METRICS.keys()


def test_claims_of_papers_with_a_script_name_its_rows() -> None:
    papers = planning.papers()
    for claim in CLAIMS.values():
        if claim.paper in papers:
            rows = {(row.table, row.name): row for row in papers[claim.paper].rows}
            first, second = rows[claim.table, claim.first], rows[claim.second_table, claim.second]
            assert first.missing is None and second.missing is None
            assert first.data == second.data and set(first.seeds) & set(second.seeds)


# (table of the second, row, metric, model) of both values in the registry; the better direction is the metric's own
CP1, FIGURE3 = "channel_pruning", "Figure 3a (M-CifarNet, CIFAR-10)"
FIGURE4 = "Figure 4 (selection criteria, VGG-GAP on CUB-200)"
TABLE4, TABLE6 = "Table 4 (vs training from scratch, 4x)", "Table 6 (ResNet-50 2x)"
LAMBDA = "Table 6 (lambda, ResNet-56, prune 30%, no fine-tuning)"
DCP1, DCP3 = "Table 1 (CIFAR-10)", "Table 3 (ResNet-50 ImageNet, rate 0.5)"
SOURCES = {
    "cp-pruned-beats-scratch": (
        (TABLE4, "Ours (fine-tuned)", "top5_err_increase"),
        (TABLE4, "from scratch", "top5_err_increase"),
    ),
    "cp-pruned-beats-scratch-uniform": (
        (TABLE4, "Ours (fine-tuned)", "top5_err_increase"),
        (TABLE4, "from scratch (uniformed)", "top5_err_increase"),
    ),
    "cp-pruned-beats-scratch-resnet56": (
        ("Table 8 (ResNet-56 CIFAR-10 2x)", "Ours (fine-tuned)", "top1_err_increase@2x"),
        ("Table 8 (ResNet-56 CIFAR-10 2x)", "From scratch", "top1_err_increase@2x"),
    ),
    "cp-lasso-beats-filter-pruning-resnet56": (
        ("Table 8 (ResNet-56 CIFAR-10 2x)", "Ours (fine-tuned)", "top1_err_increase@2x"),
        ("Table 8 (ResNet-56 CIFAR-10 2x)", "Filter pruning (fine-tuned, our impl.)", "top1_err_increase@2x"),
    ),
    "cp-enhanced-beats-plain": (
        (TABLE6, "Ours (enhanced)", "top5_err_increase@2x"),
        (TABLE6, "Ours", "top5_err_increase@2x"),
    ),
    "thinet-beats-weight-sum-vgg16": (
        ("Table 2 (VGG-16 vs other pruning methods)", "ThiNet-Conv", "top1_acc_change"),
        ("Table 2 (VGG-16 vs other pruning methods)", "ThiNet-WS", "top1_acc_change"),
    ),
    **{
        claim: (("Table 4 (transfer)", "ThiNet-GAP", "top1_acc"), ("Table 4 (transfer)", row, "top1_acc"))
        for claim, row in (
            ("thinet-pruned-before-beats-after", "FT & prune"),
            ("thinet-transfer-beats-scratch", "Train from scratch"),
        )
    },
    **{
        claim: ((FIGURE4, f"{first}, r = 0.5", "top1_acc"), (FIGURE4, f"{second}, r = 0.5", "top1_acc"))
        for claim, first, second in (
            ("thinet-beats-weight-sum", "ThiNet", "weight sum"),
            ("thinet-beats-apoz", "ThiNet", "APoZ"),
            ("thinet-rescaling-helps", "ThiNet", "ThiNet w/o w"),
            ("thinet-criterion-beats-weight-sum", "ThiNet w/o w", "weight sum"),
        )
    },
    "fbs-beats-slimming-resnet18": (
        ("Table 1", "FBS", "accelerated top-1 err"),
        ("Table 1", "Network Slimming (their impl.)", "accelerated top-1 err"),
    ),
    **{
        f"dcp-beats-{claim}-{model.replace('-', '').lower()}": (
            (DCP1, "DCP", "err_gap", model),
            (DCP1, row, "err_gap", model),
        )
        for model in ("ResNet-56", "VGGNet")
        for claim, row in (("thinet", "ThiNet"), ("cp", "CP"), ("weight-magnitude", "WM"), ("random", "Random DCP"))
    },
    "dcp-beats-thinet-resnet50": ((DCP3, "DCP", "top1_gap"), (DCP3, "ThiNet", "top1_gap")),
    "dcp-beats-cp-resnet50": ((DCP3, "DCP", "top5_gap"), (DCP3, "CP", "top5_gap")),
    "dcp-beats-weight-magnitude-resnet50": ((DCP3, "DCP", "top1_gap"), (DCP3, "WM", "top1_gap")),
    "dcp-more-losses-help": (
        ("Table S1 (number of losses, ResNet-56 2x)", "9 losses", "err_gap"),
        ("Table S1 (number of losses, ResNet-56 2x)", "3 losses", "err_gap"),
    ),
    "dcp-lambda-matters": ((LAMBDA, "lambda=1.0", "test_err"), (LAMBDA, "lambda=0 (L_M only)", "test_err")),
    "dcp-reconstruction-matters": ((LAMBDA, "lambda=1.0", "test_err"), (LAMBDA, "lambda=1.0 (L_S only)", "test_err")),
    "versatile-own-masks-beat-shared": (
        ("CIFAR-10 table", "MVNet-B s=4", "top-1"),
        ("CIFAR-10 table", "MVNet-A s=4", "top-1"),
    ),
}


def test_published_effects_are_differences_of_two_values_of_the_registry() -> None:
    assert {claim.claim for claim in CLAIMS.values() if claim.published is not None} == SOURCES.keys()
    for name, places in SOURCES.items():
        claim = CLAIMS[name]
        entries = registry.load(claim.paper, FOLDER)
        found = []
        for table, row, metric, *model in places:
            entry = registry.find(entries, table, row, metric, **({"model": model[0]} if model else {}))
            assert entry is not None
            # ThiNet-Conv's changes follow from verified values of another table
            found.append((Decimal(entry.printed), entry.direction, entry.verified))
        (first, direction, checked), (second, other_direction, also_checked) = found
        assert direction == other_direction
        gain = first - second if direction == "higher" else second - first
        assert claim.published == float(gain), name
        assert claim.verified is (checked and also_checked), name
        assert claim.smallest == min(0.5, float(gain) / 2)


def test_thinet_claims_nothing_of_networks_that_are_not_tuned() -> None:
    """Its Figure 4 draws tuned ones: what is measured without tuning is ours, and counts nowhere."""
    tables = [f"{network}: criteria with and without rescaling" for network in ("ResNet-56", "VGG-16 on CIFAR-10")]
    found = [claim for claim in CLAIMS.values() if claim.table in tables]
    assert len(found) == 2 * 6
    for claim in found:
        assert "nothing tuned" in claim.statement and claim.source.startswith("ours: ")
        assert (claim.verified, claim.published, claim.elsewhere) == (False, None, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claim": "A beats B"}, "claim 'A beats B' is no id"),
        ({"paper": "other"}, "paper 'other' has no registry file"),
        ({"statement": ""}, "statement is empty"),
        ({"second": ""}, "second is empty"),
        ({"second": "A"}, "a row is compared with itself"),
        ({"metric": "accuracy"}, "metric 'accuracy' is unknown"),
        ({"published": "-1"}, "published '-1' is no positive number"),
        ({"published": "0"}, "published '0' is no positive number"),
        ({"smallest": ""}, "smallest '' is no positive number"),
        ({"smallest": "0.6"}, "smallest 0.6 is above 0.5"),
        ({"published": "0.4"}, "smallest 0.5 is above 0.2"),
        ({"verified": "perhaps"}, "verified is 'perhaps'"),
        ({"claim": "toy-a-beats-b"}, "a second claim toy-a-beats-b"),
    ],
)
def test_a_wrong_cell_is_told_with_file_and_line(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    write(tmp_path, GOOD, GOOD | {"claim": "toy-second"} | changes)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'claims.csv'}, line 3: {message}")
    assert ";" in text and "\n" not in text


def test_a_wrong_header_and_an_absent_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"claims\.csv: no such file; "):
        load(tmp_path)
    (tmp_path / "claims.csv").write_text("claim,paper\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"claims\.csv, line 1: another header; make it claim,paper,"):
        load(tmp_path)
    (tmp_path / "claims.csv").write_text(",".join(COLUMNS) + "\na,b\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"claims\.csv, line 2: 2 cells instead of 12; "):
        load(tmp_path)


def test_the_second_table_is_the_first_where_none_is_named(tmp_path: Path) -> None:
    write(
        tmp_path, GOOD, GOOD | {"claim": "toy-other-table", "second_table": "Table 2", "published": "", "second": "A"}
    )
    first, second = load(tmp_path)
    assert first.second_table == "Table 1" and first.published == 1.2
    assert second.second_table == "Table 2" and second.published is None and second.smallest == 0.5
