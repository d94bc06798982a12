"""The ratios of a run against the committed ones: what was fast against a plain reference may not become slow unseen.

``BENCH_RATIOS=FILE`` writes the ratios of a run as such a file, with what measured them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.provenance import git_state, hardware, now

RATIOS = Path(__file__).parent / "ratios.json"
# each is of one run on one machine, but vector units, caches and threads change ratios from machine to machine
LEAST = 0.25


@pytest.fixture
def kept_up(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Callable[[str, float], None]:
    """Keeps a ratio by its name in the benchmark's record; it must be at least :data:`LEAST` of the committed one."""

    def check(name: str, ratio: float) -> None:
        benchmark.extra_info[name] = ratio
        key = f"{request.node.name}: {name}"
        if path := os.environ.get("BENCH_RATIOS"):
            _write(Path(path), key, ratio)
            return
        committed = json.loads(RATIOS.read_text())["ratios"]
        assert key in committed, f"{RATIOS.name} has no ratio {key!r}: measure it, BENCH_RATIOS={RATIOS}"
        assert ratio >= LEAST * committed[key], f"{key}: {ratio:.3g}, once {committed[key]:.3g}"

    return check


def _write(path: Path, key: str, ratio: float) -> None:
    found = json.loads(path.read_text())["ratios"] if path.exists() else {}
    ratios = dict(sorted({**found, key: float(f"{ratio:.3g}")}.items()))
    about = {"device": hardware("cpu"), "code": git_state(), "date": now()}
    path.write_text(json.dumps({**about, "ratios": ratios}, indent=1) + "\n")
