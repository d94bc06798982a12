"""What a store can do without: steps of older code that no row shows, and what killed runs left behind."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

from bench import code
from bench.store import Store, disk_errors


def collect(store: Store, needed: Collection[str], dry_run: bool = False) -> tuple[list[str], int]:
    """Removes steps that are neither behind the ``needed`` ones nor made by today's code, and the work of no step.

    What some process works on stays, and so does a step that a later run would find.  Returns the names of what went
    (or would) and its size in bytes.
    """
    kept = store.behind(needed)
    stale = [key for key in store.stored() if key not in kept and not _current(store, key)]
    gone: list[Path] = [store.folder(key) for key in stale if not store.locked(key)]
    work = sorted((store.root / "work").iterdir())
    # a result is written into a folder with the beginning of its key
    busy = {path.stem[:12] for path in work if path.suffix == ".lock" and store.locked(path.stem)}
    for path in work:
        key = path.name.removesuffix(".lock")
        if key[:12] not in busy and (path.suffix == ".lock" or not _resumable(path)):
            gone.append(path)
    size = sum(_size(path) for path in gone)
    if not dry_run:
        for path in gone:
            with disk_errors(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return [path.name for path in gone], size


def _current(store: Store, key: str) -> bool:
    """Whether the code of today would make the step as it was made."""
    header = store.header(key)
    return header is not None and "roots" in header and code.reached(header["roots"]).hash == header["code"]


def _resumable(path: Path) -> bool:
    """Whether a folder of unfinished work holds a checkpoint that a training goes on from."""
    return (path / "checkpoint.pth").is_file()


def _size(path: Path) -> int:
    """In bytes, of what has not gone in the meantime."""
    found = 0
    for part in [path, *path.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            found += part.stat().st_size if part.is_file() else 0
    return found
