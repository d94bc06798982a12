"""``bench list``: at once, without torch, and never out of date."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import cache, listing, planning

_SCRIPT = """
import sys
from bench.cli import main
assert main(["list", "channel_pruning"]) == 0
loaded = {"torch", "mmengine", "mmdet", "numpy", "sklearn"} & set(sys.modules)
assert not loaded, loaded
"""


def test_the_list_waits_for_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a second, once the list of these sources is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = listing.index()
    rows = planning.papers()["channel_pruning"].ids
    assert [row["id"] for row in made["channel_pruning"]["rows"]] == list(rows)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False, env=os.environ
        )
        times.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
    assert min(times) < 1.0
    assert "table-8/ours-fine-tuned  Ours (fine-tuned)  [own scale cifar10]" in done.stdout


def test_other_sources_have_another_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is known by the content of the sources; what cannot be read is made again; old ones go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(listing, "_made", lambda: {"made": len(list(tmp_path.rglob("*.json")))})
    for number in range(12):
        monkeypatch.setattr(cache, "sources", lambda n=number: f"{n}")
        assert listing.index() == listing.index()
    kept = list((tmp_path / "pruning-bench").glob("index-*.json"))
    assert len(kept) == 8
    monkeypatch.setattr(cache, "sources", lambda: "fresh")
    listing.index()
    (last,) = set((tmp_path / "pruning-bench").glob("index-*.json")) - set(kept)
    last.write_text("{")
    assert "made" in listing.index()
    json.loads(last.read_text())
