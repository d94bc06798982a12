"""The figure of accuracy against MACs: its points by hand, from row files and a registry written here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bench.registry import COLUMNS, load
from bench.report import figures
from bench.report.load import Declared, read
from bench.report.tables import build_all

TABLE = "Figure 3"
PUBLISHED = [
    ("dense net", "top-1", "91.4", "%", "higher", "yes"),
    ("FBS half", "top-1", "90.6", "%", "higher", "no"),
    ("FBS half", "speed-up", "4", "x", "exact", "yes"),
    ("NS at 2x", "top-1", "87.5", "%", "higher", "yes"),
    ("both at 90.50% top-1", "speed-up", "3.2", "x", "higher", "yes"),
]


DECLARED: dict[str, Declared] = {}


def row(root: Path, order: int, name: str, speedup: float, top1: float, published: dict[str, Any], scale: str) -> None:
    records = [
        {"metric": "top1_acc", "value": top1, "unit": "%", "low": top1 - 1, "high": top1 + 1, "n": 360, "seed": 0},
        {"metric": "dynamic_speedup", "value": speedup, "unit": "x", "seed": 0},
    ]
    row_id = f"toy/figure-3/{order}"
    DECLARED[row_id] = Declared(TABLE, name, order, "cifar10", published=published)
    value = {
        "id": row_id,
        "setting": {"scale": scale},
        "status": "ran",
        "shape": None,
        "records": records,
        "steps": {},
        "recipe": "net",
    }
    path = root / "toy" / "rows" / scale / f"figure-3--{order}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("scale", ["digits", "cifar10"])
def test_points_and_figure(tmp_path: Path, scale: str) -> None:
    registry = tmp_path / "registry"
    registry.mkdir()
    with (registry / "toy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for r, m, v, u, d, verified in PUBLISHED:
            kind = {"kind": "size", "convention": "conv+fc+gates"} if u == "x" else {"kind": "accuracy"}
            cells = {"paper": "toy", "table": TABLE, "row": r, "model": "M", "dataset": "C", "metric": m, "value": v}
            writer.writerow(
                {**cells, "unit": u, "direction": d, "source": "s", "verified": verified, "origin": "paper", **kind}
            )
    root = tmp_path / "runs"
    row(root, 0, "dense", 1.0, 95.0, {"top1_acc": ["dense net", "top-1"]}, scale)
    row(
        root,
        1,
        "FBS at d=0.5",
        4.0,
        94.0,
        {"top1_acc": ["FBS half", "top-1"], "dynamic_speedup": ["FBS half", "speed-up"]},
        scale,
    )
    row(root, 2, "FBS at d=0.3", 10.0, 90.0, {}, scale)
    row(root, 3, "NS at 2.01x", 2.0, 92.0, {"top1_acc": ["NS at 2x", "top-1"]}, scale)
    row(root, 4, "both at d=0.5", 5.0, 91.0, {"dynamic_speedup": ["both at 90.50% top-1", "speed-up"]}, scale)
    lines = read(root, registry, {"toy": DECLARED})["toy"]
    measured = [(series, x, cell.value) for series, x, cell in figures.trade_off_points(lines)]
    assert measured == [("dense", 100, 95), ("FBS", 25, 94), ("FBS", 10, 90), ("NS", 50, 92), ("both", 20, 91)]
    quoted = [("dense", 100, 91.4, True), ("FBS", 25, 90.6, False), ("NS", 50, 87.5, True), ("both", 31.25, 90.5, True)]
    assert figures.published_points(lines) == quoted
    (table,) = build_all(lines, load("toy", registry))
    figure = figures._trade_off(table)
    panels = figure.axes
    # an analogue's published values have a panel of their own
    assert len(panels) == (2 if scale == "digits" else 1)
    texts = {text.get_text() for text in panels[-1].texts}
    assert {"91.4", "90.6†", "87.5", "90.5"} == texts
    files, _ = figures.draw(table, tmp_path / "figures")
    assert [file.name for file in files] == ["Figure_3.png", "Figure_3.svg"]


def test_a_few_points_are_read_in_the_table(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    registry.mkdir()
    with (registry / "toy.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(COLUMNS)
    for order in range(3):
        row(tmp_path / "runs", order, f"FBS at d={order}", 1.0 + order, 90.0, {}, "digits")
    lines = read(tmp_path / "runs", registry, {"toy": DECLARED})["toy"]
    (table,) = build_all(lines, [])
    assert figures.draw(table, tmp_path / "figures") == ([], [])
