"""What follows from the sources and takes seconds to find, remembered by their hash in the user's cache folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_KEPT = 8  # answers of other versions of the sources


def remembered(name: str, given: str, make: Callable[[], Any], kept: int = _KEPT) -> Any:
    """``make()``, which gives JSON values, or what it gave before for these sources and for ``given``, its input.

    The newest ``kept`` answers of that name stay.
    """
    digest = hashlib.sha256(f"{sources()}\n{given}".encode()).hexdigest()[:16]
    place = folder() / f"{name}-{digest}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(place.read_text())
    made = make()
    with contextlib.suppress(OSError):  # where it cannot be written the next call is as slow as this one
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{os.getpid()}")
        temporary.write_text(json.dumps(made))
        temporary.replace(place)
        old = sorted(place.parent.glob(f"{name}-*.json"), key=lambda path: path.stat().st_mtime)
        for path in old[:-kept]:
            path.unlink()
    return made


def folder() -> Path:
    """Where answers are kept."""
    # the XDG specification: an empty value counts as none
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pruning-bench"


@functools.cache
def sources() -> str:
    """A hash of the harness and of the papers' scripts, as the process found them."""
    hasher = hashlib.sha256()
    for package in ("bench", "reproductions"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            hasher.update(f"{package}/{path.relative_to(root).as_posix()}\n".encode())
            hasher.update(path.read_bytes())
    return hasher.hexdigest()[:16]
