"""Responses of the original network, held in memory while they are few and in files beyond that.

A reader's responses are rows (samples) x columns (outputs), float32; a ResNet-50's at 50,000 rows are 8 GB.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from bench.store import disk_errors, write_json


class RowFile:
    """Rows x ``columns`` (float32) in a file, a temporary one without ``path``; read by slices of rows."""

    def __init__(self, columns: int, path: Path | None = None, length: int = 0) -> None:
        self.columns, self.length, self.path = columns, length, path
        self._file: IO[bytes]
        with disk_errors(path or Path(tempfile.gettempdir())):
            if path is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as this object)
            else:
                self._file = path.open("rb" if length else "w+b")

    def append(self, rows: Tensor) -> None:
        """Adds rows behind the last."""
        with disk_errors(self.path or Path(tempfile.gettempdir())):
            self._file.seek(4 * self.columns * self.length)
            self._file.write(rows.float().numpy().tobytes())
        self.length += len(rows)

    def flush(self) -> None:
        """Hands what was written to the system, so that another process finds it."""
        with disk_errors(self.path or Path(tempfile.gettempdir())):
            self._file.flush()

    def __len__(self) -> int:
        return self.length

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.length, self.columns

    def __getitem__(self, rows: slice) -> Tensor:
        first, last, step = rows.indices(self.length)
        assert step == 1
        values = bytearray(4 * self.columns * max(last - first, 0))
        self._file.seek(4 * self.columns * first)
        self._file.readinto(values)  # type: ignore[attr-defined]
        return torch.frombuffer(values, dtype=torch.float32).reshape(-1, self.columns) if values else self._none()

    def _none(self) -> Tensor:
        return torch.empty(0, self.columns)


Rows = Tensor | RowFile


def squares_about_mean(rows: Rows, added: Rows | None = None, chunk: int = 4096) -> float:
    """Sum of squares of ``rows`` (plus ``added``) about their column means."""
    if isinstance(rows, Tensor) and not isinstance(added, RowFile):
        whole = rows if added is None else rows + added
        return float((whole - whole.mean(0)).to(torch.float64).square().sum())
    places = [slice(first, first + chunk) for first in range(0, len(rows), chunk)]

    def part(place: slice) -> Tensor:
        return rows[place].double() if added is None else (rows[place] + added[place]).double()

    mean = sum((part(place).sum(0) for place in places), torch.zeros(())) / max(len(rows), 1)
    return float(sum((part(place) - mean).square().sum() for place in places))


class Spool:
    """Keeps up to ``limit`` bytes of rows in memory, and the rest in temporary files.

    With a ``folder`` all rows lie there, and what was finished in it before (by an interrupted run) is found again.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.left, self.folder = limit, folder
        if folder is not None:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def collect(self, name: str, count: int, columns: int) -> Collected:
        """A place for ``count`` rows to come."""
        size = 4 * count * columns
        if self.folder is None and size <= self.left:
            self.left -= size
            return Collected(None)
        return Collected(RowFile(columns, None if self.folder is None else self.folder / f"{name}.rows"))

    def finished(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The facts and small tensors that were stored under ``name`` by :meth:`finish`, or None."""
        if self.folder is None or not (self.folder / f"{name}.json").is_file():
            return None
        tensors = torch.load(self.folder / f"{name}.pt", weights_only=True)
        return json.loads((self.folder / f"{name}.json").read_text()), tensors

    def finish(self, name: str, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Marks the rows under ``name`` as complete."""
        if self.folder is not None:
            with disk_errors(self.folder):
                torch.save(tensors, self.folder / f"{name}.pt")
            write_json(self.folder / f"{name}.json", facts)

    def reopened(self, name: str, count: int, columns: int) -> RowFile:
        """Rows of an earlier run."""
        assert self.folder is not None
        return RowFile(columns, self.folder / f"{name}.rows", count)


class Collected:
    """Rows as they come, in memory (``file`` None) or in a file."""

    def __init__(self, file: RowFile | None) -> None:
        self.file, self.parts = file, list[Tensor]()

    def append(self, rows: Tensor) -> None:
        """Adds rows behind the last."""
        if self.file is None:
            self.parts.append(rows)
        else:
            self.file.append(rows)

    def done(self) -> Rows:
        """All of them."""
        if self.file is not None:
            self.file.flush()
            return self.file
        return torch.cat(self.parts)
