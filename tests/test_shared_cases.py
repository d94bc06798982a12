"""Self-contained inputs on which a fault was seen once: each script exits 1 while its fault is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("BENCH_SHARED", ROOT.parent / "shared")) / "cases"
CASES = ["03", "04", "09", "10", "11", "13", "14", "21"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_fault_is_gone(case: str) -> None:
    script = FOLDER / f"case_{case}.py"
    if not script.is_file():
        pytest.skip(f"{script.name} is not in {FOLDER}: set BENCH_SHARED to the folder that holds cases/")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
