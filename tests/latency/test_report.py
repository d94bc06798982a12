"""What a point says, on times that are made up: columns by hand, what is withheld, files."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.latency import report
from bench.latency.contestants import BACKWARD, FORWARD, Subject
from bench.latency.point import AGAIN, BEST, DENSE, OUT_OF_MEMORY, Measured, Point, Run
from bench.latency.report import Quoted
from bench.models.recipe import Recipe

RECIPE = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16}, (3, 16, 16))
SMALL = Subject("small", RECIPE.removed({"conv1": 4}))
# seconds: 8 ms dense, 4 in its best form; the pruned network 5 and 2
TIMES = {DENSE: 0.008, AGAIN: 0.008, f"{DENSE} {BEST}": 0.004, "small": 0.005, f"small {BEST}": 0.002}
BEST_FORM = {"folded": True, "layout": "nhwc", "compiled": False, "skipped": False}


def clocks(unstable: str | None = None) -> dict[str, Any]:
    return {"wall": {"labels": ["other work"], "unstable": unstable}}


def measured(
    times: dict[str, float] | None = None,
    noise: float = 0.001,
    mode: str = FORWARD,
    unstable: str | None = None,
    processes: int = 3,
    rounds: int = 10,
) -> Measured:
    generator = np.random.default_rng(0)
    runs = [
        Run(
            "cpu",
            {"wall": {n: t * generator.lognormal(0, noise, (rounds, 2, 5)) for n, t in (times or TIMES).items()}},
            about={"seconds": 1.0, "clocks": clocks(unstable), "changed": {}},
        )
        for _ in range(processes)
    ]
    networks = {
        "net": {"macs": {"conv+fc": 8e6}, "best": BEST_FORM, "failed_forms": {"compiled, nchw": "no compiler"}},
        "small": {"macs": {"conv+fc": 2e6}, "best": BEST_FORM},
    }
    point = Point(Subject("net", RECIPE), (SMALL,), 4, "cpu", mode=mode)
    return Measured(point, {"networks": networks}, runs, "precise enough", 3.0)


def test_columns_by_hand() -> None:
    quoted = {("small", FORWARD, 4): Quoted(2.5, "a paper", False)}
    dense, small = report.rows(measured(), "wall", quoted)
    assert small["dense_ms"] == pytest.approx(8.0, rel=0.01) and small["dense_best_ms"] == pytest.approx(4.0, rel=0.01)
    assert small["ms"] == pytest.approx(5.0, rel=0.01) and small["best_ms"] == pytest.approx(2.0, rel=0.01)
    assert small["theoretical"] == 4.0
    found = [small[n] for n in ("over_dense", "best_over_dense", "over_dense_best", "best_over_dense_best")]
    assert found == pytest.approx([1.6, 4.0, 0.8, 2.0], rel=0.01)
    assert small["efficiency"] == pytest.approx(50.0, rel=0.01)  # 2x of 4x
    assert small["gflops_per_s"] == pytest.approx(2 * 2e6 * 4 / 0.002 / 1e9, rel=0.01)
    assert small["best_form"] == "folded, channels-last" and small["published"] == "2.50x†"
    assert dense["best_over_dense"] == pytest.approx(2.0, rel=0.01) and dense["efficiency"] is None
    assert dense["theoretical"] == 1.0 and dense["over_dense"] is None and dense["published"] is None


def test_forward_and_backward_is_three_passes() -> None:
    _, small = report.rows(measured(mode=BACKWARD), "wall", {})
    assert small["gflops_per_s"] == pytest.approx(3 * 2 * 2e6 * 4 / 0.002 / 1e9, rel=0.01)


def test_nothing_is_said_whose_interval_is_wide() -> None:
    found = measured(noise=0.5, rounds=3)
    _, small = report.rows(found, "wall", {})
    assert small["ms"] is None and small["over_dense"] is None and small["efficiency"] is None
    records, withheld = report.said(found, "wall")
    assert {record.metric for record in records} <= {"noise_floor", "latency_p50"}
    assert all("% wide" in entry["reason"] for entry in withheld) and len(withheld) == 5 + 3 + 2


def test_one_process_says_nothing() -> None:
    _, withheld = report.said(measured(processes=1), "wall")
    assert {entry["reason"] for entry in withheld} == {"seen in one process only"}


def test_a_speed_up_below_the_noise_floor_is_withheld() -> None:
    found = measured({**TIMES, "small": 0.008})
    _, withheld = report.said(found, "wall")
    reasons = {(entry["metric"], entry["series"]): entry["reason"] for entry in withheld}
    assert list(reasons) == [("speedup_over_dense", "small")]
    assert "no difference beyond the noise floor" in reasons["speedup_over_dense", "small"]


def test_a_throttled_gpu_says_nothing() -> None:
    reason = "the GPU was throttled for 25 % of the time"
    found = measured(unstable=reason)
    records, withheld = report.said(found, "wall")
    assert {record.metric for record in records if "_p" not in record.metric} == {"noise_floor"}
    assert {entry["reason"] for entry in withheld} == {reason}
    assert report.rows(found, "wall", {})[1]["ms"] is None


def test_records_and_percentiles() -> None:
    """300 calls support p50, p90 and p95, but not p99, which needs 1,000."""
    records, withheld = report.said(measured(), "wall")
    assert not withheld
    by_name = {(record.metric, record.series): record for record in records}
    assert by_name["latency", "small"].value == pytest.approx(5.0, rel=0.01)
    assert by_name["speedup_over_dense", f"small {BEST}"].value == pytest.approx(4.0, rel=0.01)
    assert by_name["speedup_over_dense (best)", f"small {BEST}"].value == pytest.approx(2.0, rel=0.01)
    assert (f"speedup_over_{DENSE}", f"{DENSE} {BEST}") in by_name
    percents = {metric for metric, _ in by_name if metric.startswith("latency_p")}
    assert percents == {"latency_p50", "latency_p90", "latency_p95"}


def test_files_and_text(tmp_path: Path) -> None:
    found = measured()
    value = report.value_of(found, {})
    path = report.keep(found, value, tmp_path)
    stored = json.loads(path.read_text())
    assert stored["processes"] == 3 and stored["not_measured"] is None and stored["records"] == value["records"]
    samples = load_file(tmp_path / stored["samples"])
    assert len(samples) == 3 * 5
    assert np.array_equal(samples[f"2/wall/{DENSE}"], found.runs[2].samples["wall"][DENSE])
    text = report.text_of([value])
    report.write_summary(text, [value], tmp_path, "table")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [row["network"] for row in rows] == ["net", "small"]
    assert float(rows[1]["efficiency"]) == value["rows"][1]["efficiency"]
    assert "| small | 4 | fp32 | forward | wall |" in text and "A/A (wall): " in text
    assert "net, compiled, nchw: no compiler" in text and "* other work" in text
    assert "efficiency of the saving" in text.splitlines()[0]


def test_what_could_not_be_measured_is_told(tmp_path: Path) -> None:
    point = measured().point
    found = Measured(point, {"networks": {"net": {"failed": OUT_OF_MEMORY}}}, [], OUT_OF_MEMORY, reason=OUT_OF_MEMORY)
    value = report.value_of(found, {})
    assert value["not_measured"] == OUT_OF_MEMORY and value["records"] == value["rows"] == []
    assert json.loads(report.keep(found, value, tmp_path).read_text())["samples"] is None
    assert "net: out of memory" in report.text_of([value])


def test_a_network_that_did_not_fit_is_a_line_of_its_own() -> None:
    found = measured({name: seconds for name, seconds in TIMES.items() if not name.startswith("small")})
    found.first["networks"]["small"] = {"failed": OUT_OF_MEMORY}
    _, small = report.rows(found, "wall", {})
    assert small["network"] == "small: out of memory" and "ms" not in small
    assert "| small: out of memory | 4 |" in report.markdown(report.rows(found, "wall", {}))


def test_a_record_says_which_weights_and_not_where_they_lie() -> None:
    """The same network timed from two checkouts is one point, in one file; the processes still get the whole path."""
    recipe = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 32, 32))
    points = [
        Point(Subject("dense", recipe), (Subject("net", recipe.gated(500), f"{place}/networks/net"),), 1, "cpu")
        for place in ("/a/checkout", "/another/one")
    ]
    assert points[0].key == points[1].key and points[0].about() == points[1].about()
    assert points[0].about()["networks"][0]["weights"] == "net"
    assert points[0].to_json()["networks"][0]["weights"] == "/a/checkout/networks/net"
    assert Point.from_json(points[0].to_json()) == points[0]


def test_no_committed_result_names_a_place_on_a_machine() -> None:
    results = Path(__file__).parents[2] / "results"
    files = [*results.rglob("*.json"), *results.rglob("*.csv"), *results.rglob("*.md")]
    assert len(files) > 300
    found = [path.name for path in files if re.search(r"(?:^|[\"' (])/(?:home|root|tmp|work|Users)/", path.read_text())]
    assert found == []
