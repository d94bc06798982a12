"""Row files by hand for the nights' tests: a baseline and a run of one row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bench.nightly.check import RowCheck, check
from bench.store import Record, Result, Store, row_path

PROVENANCE = {
    "code": "a" * 40,
    "versions": {"torch": "2.9.1"},
    "hardware": {"name": "a processor", "threads": 2},
    "date": "2026-01-01T00:00:00+00:00",
}
IMAGES = 2000
ID = "toy/table-1/pruned"


def row(records: list[dict[str, Any]], name: str = ID, **provenance: Any) -> dict[str, Any]:
    """A row file of one evaluation."""
    return {
        "id": name,
        "setting": {"scale": "clutter", "seeds": [0], "device": "cpu", "data": {"name": "clutter", "fingerprint": "f"}},
        "status": "ran",
        "shape": None,
        "records": [{**record, "step": "key"} for record in records],
        "steps": {
            "key": {"step": "evaluated(net)", "kind": "evaluate", "provenance": {**PROVENANCE, **provenance}},
        },
    }


def put(root: Path, value: dict[str, Any]) -> Path:
    """Writes a row file to its place in a folder."""
    path = row_path(root, value["id"], value["setting"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def top1(right: int) -> dict[str, Any]:
    """An accuracy over 2,000 images with its normal interval."""
    share = right / IMAGES
    half = 196.0 * (share * (1 - share) / IMAGES) ** 0.5
    value = 100.0 * share
    return Record("top1_acc", value, "%", value - half, value + half, IMAGES, 0).to_json()


def bare(name: str, value: float, unit: str = "") -> dict[str, Any]:
    """A value without an interval."""
    return Record(name, value, unit).to_json()


def ranged(value: float, half: float, name: str = "latency_dense", unit: str = "ms") -> dict[str, Any]:
    """A value with an interval of ``half`` on both sides."""
    return Record(name, value, unit, value - half, value + half).to_json()


def evaluation(store: Store, classes: torch.Tensor, labels: torch.Tensor) -> None:
    """Stores the row's evaluation with these predictions."""
    logits = torch.nn.functional.one_hot(classes, 10).float()
    store.save("key", Result(arrays={"logits": logits, "labels": labels}), {})


def both(tmp_path: Path, before: dict[str, Any], now: dict[str, Any]) -> RowCheck:
    """The one row of a baseline against the same row of a run."""
    put(tmp_path / "base", before)
    put(tmp_path / "runs", now)
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    return found
