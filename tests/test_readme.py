"""The README's table is the committed one: every number in it is found in results/."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "results" / "selection_study" / "tables" / "cifar10" / "What_a_user_would_pick_instead_ResNet-56.csv"
COLUMNS = {"conv MACs": "speedup", "top-1 change": "top1_change", "agreement": "agreement", "KL": "kl"}


def readme_rows() -> list[dict[str, str]]:
    """The cells of the README's table of results, by heading."""
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def measured() -> dict[str, dict[str, str]]:
    with TABLE.open(newline="") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("row", readme_rows(), ids=lambda row: row["method"])
def test_the_table_is_the_committed_one(row: dict[str, str]) -> None:
    found = measured()[row["method"]]
    for heading, metric in COLUMNS.items():
        numbers = [float(text) for text in re.findall(r"[-+]?\d+\.\d+", row[heading])]
        names = [metric] if len(numbers) == 1 else [metric, f"{metric}_low", f"{metric}_high"]
        for number, name in zip(numbers, names, strict=True):
            decimals = len(re.findall(r"\.(\d+)", row[heading])[0])
            assert number == pytest.approx(float(found[name]), abs=0.5001 * 10**-decimals), (row["method"], name)


def test_the_table_has_the_rows_that_the_text_speaks_of() -> None:
    names = {row["method"] for row in readme_rows()}
    assert {"2x LASSO, uniform", "2x exact, error-driven, full reconstruction"} <= names
    assert len([name for name in names if "torch-pruning" in name]) == 8 and len(names) == 10
