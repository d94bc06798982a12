"""For all tests: nothing is mirrored to W&B unless a test asks for it; the files that take longest come first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["WANDB_MODE"] = "disabled"

# The files that take a minute or more with their slow tests, the longest first: where several processes share the
# files, none begins one of them when the others have nothing left to do.
LONG = (
    "test_processes.py",
    "nightly/test_night.py",
    "test_shared_cases.py",
    "measure/test_statistics.py",
    "test_code.py",
    "reproductions/test_thinet.py",
    "test_adopted.py",
    "reproductions/test_fbs.py",
    "test_readable.py",
    "test_runner.py",
    "test_cli.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of the long files first; a file's tests, and the other files, keep their order."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))
