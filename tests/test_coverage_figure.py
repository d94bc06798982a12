"""The index's picture: its bars by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench.registry import Published
from bench.report import coverage_figure
from bench.report.coverage import Coverage, Outcome


def value(kind: str, verified: bool = True) -> Published:
    cells = {**dict.fromkeys(Published.__dataclass_fields__, ""), "kind": kind, "value": 1.0, "tolerance": None}
    return Published(**{**cells, "verified": verified, "origin": "paper"})  # type: ignore[arg-type]


def outcomes(kind: str, *texts: str) -> list[Outcome]:
    return [Outcome(value(kind), text, text in ("reproduced", "exact", "wrong")) for text in texts]


def test_bars_are_the_verified_values_by_verdict(tmp_path: Path) -> None:
    """What nobody verified is in no bar, and a paper without values has none."""
    found = [*outcomes("accuracy", "reproduced", "data", "method"), *outcomes("size", "exact", "exact", "wrong")]
    found.append(Outcome(value("accuracy", verified=False), "reproduced", decided=True))
    nothing = Counter[str]()
    coverages = {"toy": Coverage(found, *5 * [nothing]), "study": Coverage([], *5 * [nothing])}
    assert coverage_figure.counted(coverages, {"toy": "A toy"}) == [
        ("A toy: accuracies", {"reproduced": 1, "not decided": 2}),
        ("A toy: sizes", {"exact": 2, "wrong": 1}),
    ]
    written = coverage_figure.draw(coverages, {}, tmp_path / "coverage.png")
    assert [path.name for path in written] == ["coverage.png", "coverage.svg"]
    first = [path.read_bytes() for path in written]
    assert first[0].startswith(b"\x89PNG") and len(first[0]) > 5000
    for path in written:
        path.unlink()
    assert [path.read_bytes() for path in coverage_figure.draw(coverages, {}, tmp_path / "coverage.png")] == first
