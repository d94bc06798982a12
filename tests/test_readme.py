"""The README's table is the committed one: every number in it is found in results/."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "results" / "selection_study" / "tables" / "cifar10" / "ResNet-56_at_2x.csv"
COLUMNS = {"conv MACs": "speedup", "top-1 change": "top1_change", "agreement": "agreement", "KL": "kl"}


def readme_rows() -> list[dict[str, str]]:
    """The cells of the README's table of results, by heading."""
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def measured() -> dict[tuple[str, str], dict[str, str]]:
    """The committed values by row and metric."""
    with TABLE.open(newline="") as file:
        return {(line["row"], line["metric"]): line for line in csv.DictReader(file)}


@pytest.mark.parametrize("row", readme_rows(), ids=lambda row: row["method"])
def test_the_table_is_the_committed_one(row: dict[str, str]) -> None:
    for heading, metric in COLUMNS.items():
        found = measured()[row["method"], metric]
        numbers = [float(text) for text in re.findall(r"[-+]?\d+\.\d+", row[heading])]
        names = ["value"] if len(numbers) == 1 else ["value", "low", "high"]
        for number, name in zip(numbers, names, strict=True):
            decimals = len(re.findall(r"\.(\d+)", row[heading])[0])
            assert number == pytest.approx(float(found[name]), abs=0.5001 * 10**-decimals), (row["method"], name)


def test_the_table_is_short_and_has_the_rows_that_the_text_speaks_of() -> None:
    names = [row["method"] for row in readme_rows()]
    assert len(names) == len(set(names)) <= 10
    assert {"first k, uniform", "LASSO, uniform", "exact, error-driven, full reconstruction"} <= set(names)
    assert any("torch-pruning" in name for name in names)


def test_its_figure_is_there() -> None:
    (figure,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert (ROOT / figure).is_file()
