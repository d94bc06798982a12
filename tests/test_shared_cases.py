"""Self-contained inputs on which the suite once was wrong, kept outside the project: each exits 1 while it still is.

They are looked for in the folder that BENCH_SHARED names, or in ``shared`` beside the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("BENCH_SHARED", ROOT.parent / "shared")) / "cases"
CASES = ["01", "03", "04", "09", "10", "11", "13", "14", "15", "21", "23"]


@pytest.mark.slow
@pytest.mark.parametrize("number", CASES)
def test_the_fault_is_gone(number: str, tmp_path: Path) -> None:
    script = FOLDER / f"case_{number}.py"
    if not script.is_file():
        pytest.skip(f"{script} is not here: set BENCH_SHARED to the folder that holds cases/")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
