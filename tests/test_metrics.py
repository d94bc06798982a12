"""Metrics are declared once: all that are measured, in committed results and in the code's own records."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import metrics, planning
from bench.errors import UserError
from bench.metrics import Metric
from bench.report.glossary import meanings, metric, position

ROOT = Path(__file__).parent.parent
# counts are shown without the unit that their records have
UNITS = {"MACs": ""}


@pytest.fixture(autouse=True, scope="module")
def papers_metrics() -> None:
    """Papers declare metrics of their own, as they are found."""
    planning.papers()


def committed() -> dict[str, set[str]]:
    """The units of every metric in the committed rows."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "results").glob("*/rows/*/*.json"):
        for record in json.loads(path.read_text())["records"]:
            found.setdefault(record["metric"], set()).add(record["unit"])
    return found


def test_every_committed_value_is_of_a_declared_metric_and_unit() -> None:
    found = committed()
    assert len(found) > 40
    for name, units in found.items():
        known = metrics.find(name)
        assert known is not None, name
        assert {UNITS.get(unit, unit) for unit in units} == {known.unit}, name


def recorded() -> Iterator[tuple[str, str]]:
    """Names of metrics that stand whole in the code that makes records, and where."""
    for path in sorted((ROOT / "bench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Record", "_record"):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield first.value, str(path.relative_to(ROOT))


def test_every_record_s_metric_is_declared() -> None:
    found = dict(recorded())
    assert {"macs", "held_out_error", "dynamic_macs", "winner_flips", "kl_ratio"} <= set(found)
    assert [name for name in found if metrics.find(name) is None] == []


def test_every_metric_says_what_it_means() -> None:
    for name, known in metrics.declared().items():
        assert name == known.name
        assert known.heading and known.meaning.endswith("."), name
        assert known.better in ("higher", "lower", "")
        assert known.of in ("images", "held-out images", "rows", "calls")
        for other in known.beside:
            assert metrics.find(other) is not None, (name, other)


# what a table leaves to its CSV file, and beside what: top-1 says it too, an error says what an accuracy says
BESIDE = {
    "top5_acc": {"top1_change"},
    "top1_err": {"top1_acc"},
    "top5_err": {"top5_acc", "top1_change"},
    "top5_change": {"top1_change"},
    "top1_err_increase": {"top1_change"},
    "top5_err_increase": {"top5_change", "top1_change"},
    "top5_difference": {"top1_change"},
    "map_voc12_change": {"map_voc07_change"},
    "map_voc12_difference": {"map_voc07_difference"},
    "top5_change_control": {"top1_change", "top1_change_control"},
    "top1_err_increase_control": {"top1_change", "top1_change_control"},
    "top5_err_increase_control": {"top5_change_control", "top1_change", "top1_change_control"},
    "agreement_control": {"top1_change"},
    "kl_control": {"top1_change"},
    "map_voc12_change_control": {"map_voc07_change_control"},
}
HIDDEN = {
    "dynamic_macs_p5", "dynamic_macs_p50", "dynamic_macs_p95", "gate_share", "weight_reduction",
    "coco_ap_s", "coco_ap_m", "coco_ap_l", "ap_voc07 *", "ap_voc12 *",
    "top5_acc_short256", "top5_acc_squash256", "top5_change_short256", "top5_change_squash256",
    # a GPU's other clocks
    *(
        f"{name}{clock}"
        for clock in ("_events", "_graph")
        for name in (
            "latency_dense", "latency_folded", "latency_masked", "latency_skipped",
            "realised_speedup", "realised_over_folded", "realised_share", "realised_folded", "realised_masked",
        )
    ),
    # what nights compare, beside the milliseconds that tables show
    "realised_folded", "realised_masked",
}  # fmt: skip
PANELS = {
    "top1_change": 1, "top1_change_control": 1, "top1_difference": 1, "map_voc07_change": 1, "map_voc07_difference": 1,
    "kl": 2, "kl_ratio": 2, "map_voc07_change_control": 2,
    # memory that is moved, memory that is held
    "memory_activations_batch128": 1, "memory_peak_batch128": 2,
}  # fmt: skip


def test_what_a_readable_table_and_a_dot_plot_show() -> None:
    known = metrics._ours().values()  # whatever papers have declared of their own by now
    assert {one.name: set(one.beside) for one in known if one.beside} == BESIDE
    assert {one.name for one in known if not one.shown} == HIDDEN
    assert {one.name: one.panel for one in known if one.panel} == PANELS


def test_what_is_counted_and_not_measured() -> None:
    """Of the shape of a network alone; what depends on images or masks is measured."""
    found = {name for name, known in metrics.declared().items() if known.exact}
    counted = {"macs", "params", "speedup", "expected_macs", "expected_macs_gates", "expected_speedup", "mask_bits"}
    assert found == counted
    assert [name for name, known in metrics.declared().items() if known.rounding] == ["skipped_float64_difference"]


def test_a_family_stands_for_all_that_begin_like_it() -> None:
    one = metric("ap_voc07 (person)")
    assert (one.name, one.title, one.number(12.345)) == ("ap_voc07 (person)", "AP (VOC07) (person) (%)", "12.35")
    assert metrics.find("ap_voc10 (person)") is None
    assert metric("new_thing", "s").title == "new thing (s)"


def test_a_paper_declares_its_own_behind_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_papers", {})
    mine = Metric("verification_acc", "verification", "%", 2, "Share of pairs that are told right.", "higher")
    metrics.declare([mine])
    metrics.declare([mine])  # a script that is imported again
    assert metric("verification_acc") == mine
    assert position("verification_acc") == (len(metrics.declared()) - 1, "verification_acc")
    assert position("nobody's") > position("verification_acc") > position("skipped_float64_difference")
    assert meanings({"verification_acc"}) == [
        "**verification (%)** (`verification_acc`): Share of pairs that are told right. Higher is better."
    ]
    for name in ("verification_acc", "top1_acc"):
        with pytest.raises(UserError, match="declared twice"):
            metrics.declare([Metric(name, "other", "%", 2, "Something else.")])
