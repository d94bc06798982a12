"""What a point says, on times that are made up: columns by hand, what is withheld, files."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.latency import report
from bench.latency.contestants import BACKWARD, FORWARD, Subject
from bench.latency.point import AGAIN, DENSE, OUT_OF_MEMORY, Measured, Point, Run
from bench.latency.report import Quoted
from bench.models.recipe import Recipe

RECIPE = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16}, (3, 16, 16))
SMALL = Subject("small", RECIPE.removed({"conv1": 4}))
# seconds: 8 ms dense, 4 in its best form; the pruned network 5 and 2
FOLDED = "[folded, channels-last]"
TIMES = {DENSE: 0.008, AGAIN: 0.008, f"{DENSE} {FOLDED}": 0.004, "small": 0.005, f"small {FOLDED}": 0.002}
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
    assert {record.metric for record in records} <= {"noise_floor"}
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
    assert records == []
    assert {entry["reason"] for entry in withheld} == {reason}
    small = report.rows(found, "wall", {})[1]
    assert small["ms"] is None and small["noise_floor"] is None


def test_outputs_that_changed_say_nothing() -> None:
    found = measured()
    found.runs[1].about["changed"] = {"small": "nan"}
    records, withheld = report.said(found, "wall")
    assert records == [] and {entry["reason"] for entry in withheld} == {report.CHANGED}
    assert f"{report.CHANGED}: these times are worth nothing" in report.notes(found)


def test_records_and_percentiles() -> None:
    """300 calls support p50, p90 and p95, but not p99, which needs 1,000."""
    records, withheld = report.said(measured(), "wall")
    assert not withheld
    by_name = {(record.metric, record.series): record for record in records}
    assert by_name["latency", "small"].value == pytest.approx(5.0, rel=0.01)
    assert by_name["speedup_over_dense", "small (best)"].value == pytest.approx(4.0, rel=0.01)
    assert by_name["speedup_over_dense (best)", "small (best)"].value == pytest.approx(2.0, rel=0.01)
    assert by_name["speedup_over_dense (best)", "small"].value == pytest.approx(0.8, rel=0.01)
    assert by_name["speedup_over_dense", "dense (best)"].value == pytest.approx(2.0, rel=0.01)
    assert len([name for name in by_name if name[0].startswith("speedup")]) == 5
    percents = {metric for metric, _ in by_name if metric.startswith("latency_p")}
    assert percents == {"latency_p50", "latency_p90", "latency_p95"}


def test_files_and_text(tmp_path: Path) -> None:
    found = measured()
    value = report.value_of(found, {})
    report.keep_samples(found, tmp_path)
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
    assert "| small | 4 | fp32 | forward | wall |" in text and "A/A (wall, as it is): " in text
    assert "net, compiled, nchw: no compiler" in text and "* other work" in text
    assert "efficiency of the saving" in text.splitlines()[0]


def test_two_machines_are_two_files(tmp_path: Path) -> None:
    found = measured()
    names = {}
    for device in (
        {"device": "cuda", "name": "NVIDIA H100 80GB HBM3", "threads": 16},
        {"device": "cpu", "name": "AMD EPYC (2 cores)", "threads": 2},
        {"device": "cpu", "name": "AMD EPYC (2 cores)", "threads": 1},
        None,
    ):
        found.first["hardware"] = device
        report.keep_samples(found, tmp_path)
        names[str(device)] = report.keep(found, report.value_of(found, {}), tmp_path).name
    key = found.point.key
    assert list(names.values()) == [
        f"net-batch-4-fp32-cpu--nvidia-h100-80gb-hbm3--{key}.json",
        f"net-batch-4-fp32-cpu--amd-epyc-2-cores-2-threads--{key}.json",
        f"net-batch-4-fp32-cpu--amd-epyc-2-cores-1-threads--{key}.json",
        f"net-batch-4-fp32-cpu--{key}.json",
    ]
    assert len(list(tmp_path.glob("*.safetensors"))) == 4 and not list(tmp_path.glob(".*"))


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


def test_a_network_with_rounded_widths_is_compared_with_the_one_it_was_rounded_from() -> None:
    rounded = Subject("small, rounded to 8", RECIPE.removed({"conv1": 8}))
    plain = measured({**TIMES, rounded.name: 0.004, f"{rounded.name} {FOLDED}": 0.0016})
    found = Measured(replace(plain.point, networks=(SMALL, rounded)), plain.first, plain.runs, "", 3.0)
    found.first["networks"][rounded.name] = {"macs": {"conv+fc": 3e6}, "best": BEST_FORM}
    _, small, row = report.rows(found, "wall", {})
    assert row["over_unrounded"] == pytest.approx(1.25, rel=0.01) and small["over_unrounded"] is None
    records, _ = report.said(found, "wall")
    (record,) = [one for one in records if one.metric == "speedup_over_small (best)"]
    assert record.series == f"{rounded.name} (best)" and record.value == pytest.approx(1.25, rel=0.01)


def test_a_gated_network_without_a_time_of_skipping_has_no_best_one() -> None:
    """As in the table of CUDA graphs: what is there is the masked network, which multiplies by zero."""
    gated = Subject("gated", RECIPE.gated(500))
    dense = {DENSE: 0.008, AGAIN: 0.008, f"{DENSE} {FOLDED}": 0.004}
    times = {"events": {**dense, "gated": 0.009, "gated [skipping]": 0.002}, "graph": {**dense, "gated": 0.007}}
    generator = np.random.default_rng(0)
    samples = {
        clock: {name: time * generator.lognormal(0, 0.001, (10, 2, 5)) for name, time in one.items()}
        for clock, one in times.items()
    }
    about = {"seconds": 1.0, "clocks": {clock: clocks()["wall"] for clock in times}, "changed": {}}
    point = Point(Subject("net", RECIPE), (gated,), 4, "cuda", "bf16")
    networks = {"net": {"macs": {"conv+fc": 8e6}}, "gated": {"macs": {"conv+fc+gates": 2e6}}}
    found = Measured(point, {"networks": networks}, [Run("X", samples, about=about)] * 3, "", 3.0)
    _, events = report.rows(found, "events", {})
    assert events["best_form"] == "skipping" and events["best_over_dense_best"] == pytest.approx(2.0, rel=0.01)
    assert events["theoretical"] == 4.0 and events["gflops_per_s"] == pytest.approx(8.0, rel=0.01)
    _, graph = report.rows(found, "graph", {})
    assert graph["best_form"] == "not known: skipping has no such time"
    assert graph["ms"] == pytest.approx(7.0, rel=0.01)
    assert [graph[name] for name in ("best_ms", "best_over_dense_best", "gflops_per_s")] == [None] * 3
    notes = " ".join(report.notes(found))
    assert "gated: timed on noise" in notes and "gates were in bf16 too" in notes
    # a masked network computes what is not counted: its FLOP a second would be too few
    masked = measured({**dense, "small": 0.005})
    masked.point = replace(masked.point, networks=(replace(gated, name="small"),))
    assert report.rows(masked, "wall", {})[1]["gflops_per_s"] is None


def layered(device: str, dense: float, small: float, sums: tuple[float, float]) -> Measured:
    """Times (ms) of two networks as they are, and what their layers sum up to."""
    clock = "events" if device == "cuda" else "wall"
    found = measured({DENSE: 1e-3 * dense, AGAIN: 1e-3 * dense, "small": 1e-3 * small})
    runs = [
        Run(device, {clock: run.samples["wall"]}, about={**run.about, "clocks": {clock: clocks()["wall"]}})
        for run in found.runs
    ]
    plain = {"folded": False, "layout": "nchw", "compiled": False, "skipped": False}
    for name, total in zip(("net", "small"), sums, strict=True):
        layers = [{"layer": "conv1", "ms": total, "macs": 1e6, "launches": 1}]
        found.first["networks"][name] |= {"layers": layers, "best_eager": plain}
    return Measured(replace(found.point, device=device), found.first, runs, "", 3.0)


@pytest.mark.parametrize(
    ("device", "sums", "reason"),
    [
        ("cpu", (8.0, 4.1), ""),
        ("cpu", (16.0, 8.0), ""),  # a processor's milliseconds move from process to process
        ("cpu", (8.0, 4.5), "one by one they gave 1.78x, the whole networks 2.00x"),
        ("cuda", (8.5, 4.3), ""),
        # a GPU that waits for the next layer to be started
        ("cuda", (80.0, 40.0), "they sum up to 80.00 ms, and dense takes 8.00 ms"),
    ],
)
def test_layers_that_do_not_agree_with_the_whole_say_nothing(
    device: str, sums: tuple[float, float], reason: str
) -> None:
    found, without = report.layer_by_layer(layered(device, 8.0, 4.0, sums))
    assert (len(found), len(without)) == ((0, 1) if reason else (1, 0))
    if reason:
        assert without == [f"small: nothing is said of its layers: {reason}"]
    else:
        assert found[0].startswith("small: layer by layer")
