"""A folder of row files written by hand, the declarations of their script, and a registry beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from bench.claims import COLUMNS as CLAIM_COLUMNS
from bench.registry import COLUMNS
from bench.report.accept import accept
from bench.report.load import Declared, Line, read
from bench.report.pages import About
from bench.report.tables import Table, build_all
from bench.rows import slug
from bench.store import row_path

PAPER, TABLE = "toy", "Table 1 (A & B_c)"
REGISTRY = [
    ("baseline", "VGG", "top1_acc", "90.0", "%", "higher", "0.5", "yes"),
    ("erring", "VGG", "test_err", "10.0", "%", "lower", "0.5", "yes"),
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
                    "MACs": {"kind": "check", "origin": "ours"},
                }
                kind = kinds.get(line["metric"], {"kind": "accuracy"})
                writer.writerow({"origin": "paper"} | line | kind)

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


def text_of(table: Table, row: str, column: str) -> str:
    """One cell of the table of all metrics."""
    frame = table.full
    return str(frame.loc[frame["row"] == row, column].item())
