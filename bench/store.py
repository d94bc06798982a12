"""The store: steps and row files on disk, written atomically, checked when read. It is the only truth.

``<out>/steps/<key>/`` holds one step's result, ``<out>/<paper>/rows/*.json`` what a paper's rows measured.  A step is
written into a temporary folder and renamed, so that a run killed at any moment leaves either all of it or nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.errors import DiskFull, UserError

_UNWRITABLE = "cannot write to {}: choose another folder"


@dataclass(frozen=True)
class Record:
    """One measured value.

    ``low`` and ``high`` bound the 95 % interval in the value's own ``unit`` (None: exact); ``n`` is the number of
    images or rows behind it, ``of`` how many the published set has where some are missing here; ``units`` how many
    different things these images show, where several show the same one (None: each its own): the interval is then for
    new units; ``seed`` is None for a value over several seeds; ``convention`` says how MACs are counted; ``x`` places a
    value on the curve ``series`` (a speed-up of a criterion, a density).  ``networks`` is the number of different
    networks (seeds) that a mean is over: with 1 the interval is about that network on new images, with more about new
    seeds too, and ``spread`` is the standard deviation of the networks' values on the same images.
    """

    metric: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seed: int | None = None
    convention: str | None = None
    x: float | None = None
    series: str | None = None
    of: int | None = None
    networks: int | None = None
    spread: float | None = None
    units: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values without the empty fields."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class Result:
    """What a step gives: a checkpoint (recipe and state), records, arrays, and JSON facts (widths, reports, curves)."""

    recipe: dict[str, Any] | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Store:
    """The steps under ``root``; several processes may read and write it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("steps", "work"):
            make_folder(root / folder)

    def folder(self, key: str) -> Path:
        """Where the step ``key`` is, or would be."""
        return self.root / "steps" / key

    def work(self, key: str) -> Path:
        """A folder for a step's unfinished work (training checkpoints); removed once the step is stored."""
        return self.root / "work" / key

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """One process at a time computes a step and uses its folder for work; the others wait and then find it.

        ``waiting`` is called once where another process has it.  The lock file goes with the lock.
        """
        path = self.root / "work" / f"{key}.lock"
        with disk_errors(self.root):
            handle = _locked(path, waiting)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # still locked: whoever waits on this file sees that it has gone
            os.close(handle)

    def locked(self, key: str) -> bool:
        """Whether some process works on the step."""
        try:
            handle = os.open(self.root / "work" / f"{key}.lock", os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def stored(self) -> list[str]:
        """The steps that are there."""
        return sorted(path.name for path in (self.root / "steps").iterdir() if path.is_dir())

    def header(self, key: str) -> dict[str, Any] | None:
        """The step's description and timing, or None where it is absent, unreadable or not what was written."""
        try:
            header: dict[str, Any] = json.loads((self.folder(key) / "step.json").read_text())
            # those that older code wrote have no seal
            whole = header.get("complete") and ("seal" not in header or header["seal"] == _seal(header))
        except (OSError, ValueError, AttributeError):
            return None
        return header if whole else None

    def behind(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The headers of these steps and of all that they were made from, by key, as far as they are there."""
        found: dict[str, dict[str, Any]] = {}
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            header = None if key in found else self.header(key)
            if header is not None:
                found[key] = header
                waiting += header["parents"]
        return found

    def load(self, key: str) -> Result | None:
        """A stored result; None where it is absent or where its files are not those that were written."""
        header, folder = self.header(key), self.folder(key)
        if header is None or header.get("shed"):
            return None
        try:
            for name, digest in header["files"].items():
                if file_digest(folder / name) != digest:
                    return None
            state = load_file(folder / "state.safetensors") if "state.safetensors" in header["files"] else {}
            arrays = load_file(folder / "arrays.safetensors") if "arrays.safetensors" in header["files"] else {}
        except (OSError, SafetensorError):
            return None
        records = [Record(**record) for record in header["records"]]
        return Result(header["recipe"], state, records, arrays, header["facts"])

    def shed(self, key: str) -> None:
        """Removes the tensors of a step; its description stays, and :meth:`load` finds no result any more."""
        header = self.header(key)
        if header is not None:
            if not header.get("shed"):
                write_json(self.folder(key) / "step.json", _sealed({**header, "shed": True}))
            # also where it was done before: who was killed in between left the files
            for name in header["files"]:
                (self.folder(key) / name).unlink(missing_ok=True)

    def save(self, key: str, result: Result, about: Mapping[str, Any]) -> None:
        """Stores a result under ``key`` with its description ``about``.  Raises :class:`UserError` on a full disk."""
        with disk_errors(self.root):
            temporary = Path(tempfile.mkdtemp(prefix=f"{key[:12]}-", dir=self.root / "work"))
            try:
                files = {}
                for name, tensors in (("state", result.state), ("arrays", result.arrays)):
                    if tensors:
                        path = temporary / f"{name}.safetensors"
                        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
                        files[path.name] = file_digest(path)
                header = {
                    **about,
                    "complete": True,
                    "files": files,
                    "recipe": result.recipe,
                    "records": [record.to_json() for record in result.records],
                    "facts": result.facts,
                }
                _write_synced(temporary / "step.json", json.dumps(_sealed(header), indent=1, allow_nan=False))
                target = self.folder(key)
                if target.exists():  # a corrupt predecessor
                    shutil.rmtree(target)
                temporary.chmod(0o755)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(self.work(key), ignore_errors=True)


def _sealed(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header with its digest, by which :meth:`Store.header` sees that nobody has written in it."""
    plain = json.loads(json.dumps(header, allow_nan=False))  # as it is read: keys are words
    return {**plain, "seal": _seal(plain)}


def _seal(header: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in header.items() if name != "seal"})


@contextlib.contextmanager
def sole(path: Path, problem: str) -> Iterator[None]:
    """Within, this process alone has the lock ``path``.  Raises :class:`UserError` of ``problem`` where another has."""

    def refuse() -> None:
        raise UserError(problem)

    make_folder(path.parent)
    with disk_errors(path):
        handle = _locked(path, refuse)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _locked(path: Path, waiting: Callable[[], None] | None) -> int:
    """A handle on the file, which nobody else has locked; the file may have been removed while we waited for it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                    waiting = None
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically.  Raises :class:`UserError` where the place cannot be written."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically.  Raises :class:`UserError` where the place cannot be written."""
    make_folder(path.parent)
    with disk_errors(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            _write_synced(temporary, text)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def folder_name(scale: str) -> str:
    """A scale's or data set's name as the name of a folder, which cannot lead out of it."""
    return re.sub(r"[^A-Za-z0-9. _-]+", "_", scale).strip(". ") or "data"


def row_path(root: Path, name: str, setting: Mapping[str, Any]) -> Path:
    """``<root>/<paper>/rows/<scale>/<table>--<row>--<setting>.json``; without more than a scale no setting's digest."""
    paper, table, row = name.split("/")
    scale = folder_name(setting["scale"])
    tail = "" if len(setting) == 1 else f"--{digest(dict(setting))[:8]}"
    return root / paper / "rows" / scale / f"{table}--{row}{tail}.json"


def network_path(root: Path, name: str) -> Path:
    """``<root>/<paper>/networks/<table>--<row>``: where the released network of a row is."""
    paper, table, row = name.split("/")
    return root / paper / "networks" / f"{table}--{row}"


def file_digest(path: Path) -> str:
    """The file's sha256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """sha256 (hexadecimal) of a JSON value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """The folder is there afterwards.  Raises :class:`UserError` where it cannot be made."""
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # a file system that makes no folders, as /proc
        raise UserError(_UNWRITABLE.format(folder)) from error


def check_writable(folder: Path) -> None:
    """Raises :class:`UserError` unless files can be made in ``folder``, which is made where it is missing."""
    make_folder(folder)
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * 4096)
        file.flush()


@contextlib.contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turns the disk's refusals into one line that says what to do; what was stored before stays."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        code = getattr(error, "errno", None)
        # safetensors and torch's writer wrap the system's error in their own
        full = "No space left" in str(error) or "PytorchStreamWriter failed" in str(error)
        if full or code in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left on the disk of {place}: free some and run the same command again") from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(_UNWRITABLE.format(place)) from error
        raise
