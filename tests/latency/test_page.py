"""What was timed, accepted and shown: the page says what the points say, and can be made again from them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.errors import UserError
from bench.latency import page, sensitivity

ROW = {"batch": 8, "dtype": "fp32", "mode": "forward", "clock": "wall", "noise_floor": 1.5}
POINT: dict[str, Any] = {
    "point": {"mode": "forward", "dtype": "fp32"},
    "name": "net, batch 8, fp32, cpu",
    "device": {"device": "cpu", "name": "Some CPU (2 cores)", "threads": 2, "versions": {"torch": "2.14.1"}},
    "code": "c" * 40,
    "date": "2026-11-01T00:00:00+00:00",
    "not_measured": None,
    "records": [
        {"clock": "wall", "metric": "speedup_over_dense", "series": "small", "low": 1.5, "high": 1.7},
        {"clock": "wall", "metric": "speedup_over_dense", "series": "small (best)", "low": 3.9, "high": 4.1},
        {"clock": "wall", "metric": "speedup_over_dense (best)", "series": "small", "low": 0.7, "high": 0.9},
        {"clock": "wall", "metric": "speedup_over_dense (best)", "series": "small (best)", "low": 1.98, "high": 2.02},
        {"clock": "wall", "metric": "latency_p50", "series": "small", "value": 2.0},
    ],
    "networks": {
        "net": {"layers": [{"ms": 50.0}, {"ms": 30.0}]},
        "small": {"layers": [{"ms": 40.5}]},
        "other": {"layers": [{"ms": 70.0}]},
    },
    "notes": ["A/A (wall): 1.0010; smaller changes than 1.5 % are not said"],
    "why": ["small: layer by layer 80.0 ms became 40.5 ms (1.98x)", "other: layer by layer 80.0 ms became 70.0 ms"],
    "rows": [
        {**ROW, "network": "net", "best_ms": 4.0, "best_form": "folded, nhwc", "theoretical": 1.0},
        {
            **ROW,
            "network": "small",
            "best_ms": 2.0,
            "best_form": "folded",
            "theoretical": 4.0,
            "over_dense": 1.6,
            "best_over_dense": 4.0,
            "best_over_dense_best": 2.0,
            "efficiency": 50.0,
            "published": "2.50x†",
        },
        {**ROW, "network": "odd", "best_ms": None, "best_form": "folded", "theoretical": 3.0},
    ],
    "launched": "fresh interpreter",
    "samples": "net.safetensors",
    "file": "/home/someone/runs/latency/net.json",
}


def runs(place: Path, **changes: Any) -> Path:
    folder = place / "runs"
    (folder / "latency").mkdir(parents=True, exist_ok=True)
    (folder / "latency" / "net.json").write_text(json.dumps({**POINT, **changes}))
    return folder


def test_the_page_says_what_the_point_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values by hand; a dash where nothing may be said; nothing of the machine that measured but what it is."""
    results = tmp_path / "results"
    monkeypatch.setattr(sensitivity, "git_state", lambda: "d" * 40)
    sensitivity.keep([{"noise_floor": 1.0, "rounds": 20, "unchanged": [1.0, 0.99, 1.01, "same"],
                       "slowed": [0.91, 0.9, 0.92, "slower"]}], "cpu",
                     runs(tmp_path) / "latency" / "sensitivity-cpu.json")  # fmt: skip
    accepted = page.accept(tmp_path / "runs", results)
    assert [path.name for path in accepted] == ["net.json", "sensitivity-cpu.json"]
    files = page.write(results)
    text = files[0].read_text()
    head, small = (
        next(line for line in text.splitlines() if line.startswith(f"| {name} ")) for name in ("net", "small")
    )
    assert head == "| net | folded, nhwc (4 ms) | 1.00x | – | – | – | – | – |"
    assert small == (
        "| small | folded (2 ms) | 4.00x | 1.60x [1.50, 1.70] | 4.00x [3.90, 4.10] | 2.00x [1.98, 2.02] | 50 | 2.50x† |"
    )
    assert "| odd | folded | 3.00x | – | – | – | – | – |" in text
    assert "## Some CPU (2 cores) (cpu, 2 threads)" in text and POINT["why"][0] in text and "1.5 % are not said" in text
    # a network without a speed-up that is said has nothing said of its layers
    assert "other: layer by layer" not in text
    assert "c" * 40 in text and "someone" not in "".join(path.read_text() for path in [*accepted, *files])
    rows = list(csv.DictReader(files[1].open()))
    assert [(row["device"], row["network"], row["efficiency"]) for row in rows][1] == (
        "Some CPU (2 cores) (cpu, 2 threads)",
        "small",
        "50.0",
    )
    assert [rows[1][name] for name in ("over_dense_low", "over_dense_high", "weights", "code")] == [
        "1.5",
        "1.7",
        "fresh",
        "c" * 40,
    ]
    assert rows[2]["over_dense_low"] == "" and rows[1]["notes"] == POINT["notes"][0]
    before = {path: path.read_bytes() for path in files}
    assert {path: path.read_bytes() for path in page.write(results)} == before
    assert page.link(results)[2].startswith("[1 points](latency/README.md)")


def test_what_a_machine_tells_apart_stands_with_its_points(tmp_path: Path) -> None:
    """Only beside those of the same machine."""
    folder = runs(tmp_path) / "latency"
    entry = {"noise_floor": 1.0, "rounds": 20, "unchanged": [1.0, 0.99, 1.01, "same"]}
    for name, machine, ratio in (("cpu", POINT["device"], 0.9), ("cuda", {"device": "cuda", "name": "X"}, 0.7)):
        tries = [{**entry, "slowed": [ratio, ratio - 0.01, ratio + 0.01, "slower"]}]
        about = {"text": "", "code": "c" * 40, "date": "2026-11-01T00:00:00", "entries": tries, "device": machine}
        (folder / f"sensitivity-{name}.json").write_text(json.dumps(about))
    page.accept(tmp_path / "runs", tmp_path / "results")
    text = page.write(tmp_path / "results")[0].read_text()
    assert "caught 1 of 1 (mean ratio 0.900" in text and "0.700" not in text


def test_weights_and_layouts_stand_beside_the_times(tmp_path: Path) -> None:
    subjects = {"dense": {"name": "net", "weights": None}, "networks": [{"name": "small", "weights": "pruned"}]}
    point = {**POINT["point"], **subjects, "layouts": ["nhwc"], "compiled": True}
    page.accept(runs(tmp_path, point=point), tmp_path / "results")
    files = page.write(tmp_path / "results")
    said = "Weights: small: pruned (the others fresh); inputs: noise; best of the layout nhwc alone."
    assert said in files[0].read_text()
    rows = list(csv.DictReader(files[1].open()))
    assert [(row["weights"], row["compiled"], row["layouts"]) for row in rows[:2]] == [
        ("fresh", "True", "nhwc"),
        ("pruned", "True", "nhwc"),
    ]


def test_layers_that_gave_another_ratio_than_the_whole_are_not_shown(tmp_path: Path) -> None:
    """1.6x where the whole networks' interval is 1.98 to 2.02."""
    networks = {**POINT["networks"], "small": {"layers": [{"ms": 50.0}]}}
    page.accept(runs(tmp_path, networks=networks), tmp_path / "results")
    assert "layer by layer" not in page.write(tmp_path / "results")[0].read_text()


def test_a_rounded_network_stands_beside_the_one_it_was_rounded_from(tmp_path: Path) -> None:
    name = "small, rounded to 8"
    row = {**ROW, "network": name, "best_form": "folded", "theoretical": 3.5, "over_unrounded": 1.1}
    record = {"clock": "wall", "metric": "speedup_over_small (best)", "series": f"{name} (best)"}
    records = [*POINT["records"], {**record, "value": 1.1, "low": 1.08, "high": 1.12}]
    page.accept(runs(tmp_path, rows=[*POINT["rows"], row], records=records), tmp_path / "results")
    text = page.write(tmp_path / "results")[0].read_text()
    # eight columns at most: the best form over the dense network as it is goes first, and is in the CSV file
    assert "| small, rounded to 8 | folded | 3.50x | – | – | 1.10x [1.08, 1.12] | – | – |" in text
    assert "best over dense as it is" not in text.partition("| net ")[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"code": "c" * 40 + "-dirty"}, "not committed"),
        ({"code": None}, "not committed"),
        ({"rows": None, "notes": None}, ""),
    ],
)
def test_what_may_not_be_accepted_leaves_nothing(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    if said:
        folder = runs(tmp_path, **changes)
    else:
        folder = runs(tmp_path)
        (folder / "latency" / "net.json").write_text('{"point": {}}')
        said = "no point of `bench latency`"
    with pytest.raises(UserError, match=said):
        page.accept(folder, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_nothing_was_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert page.write(tmp_path) == [] and page.link(tmp_path) == []
    assert main(["accept", "latency", "--from", str(tmp_path), "--to", str(tmp_path / "results")]) == 2
    assert "no latency in" in capsys.readouterr().err


def test_the_command_accepts_points_and_writes_the_index(tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert main(["accept", "latency", "--from", str(runs(tmp_path)), "--to", str(results)]) == 0
    assert (results / "latency" / "README.md").is_file()
    assert "[1 points](latency/README.md)" in (results / "README.md").read_text()
