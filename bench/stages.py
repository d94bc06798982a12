"""Finished stages of a long command, kept in its output folder until it is done, so that the same command goes on.

A stage belongs to the command's key (a hash of all inputs); stages of another key are never used, and are cleared.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.store import disk_errors, file_digest, write_json

Stage = tuple[dict[str, Any], dict[str, Tensor]]


class Stopped(KeyboardInterrupt):
    """An interrupt, with what is true of the work so far."""


class Stages:
    """The stages in ``folder`` that belong to ``key``; each is facts (JSON values) and tensors."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        if self._key() != key:
            self.clear()
            write_json(folder / "key.json", key)

    def _key(self) -> str | None:
        try:
            value = json.loads((self.folder / "key.json").read_text())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, str) else None

    def get(self, name: str) -> Stage | None:
        """A stored stage, or None where it is absent or its file is not the one that was written."""
        try:
            header = json.loads((self.folder / f"{name}.json").read_text())
            if header["digest"] is None:
                return header["facts"], {}
            path = self.folder / header["file"]
            return (header["facts"], load_file(path)) if file_digest(path) == header["digest"] else None
        except (OSError, ValueError, KeyError, SafetensorError):
            return None

    def put(self, name: str, facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Stores a stage in place of an earlier one of this name; a kill leaves the earlier or the new one."""
        path, other = (self.folder / f"{name}-{turn}.safetensors" for turn in (0, 1))
        stored = self.get_header(name)
        if stored is not None and stored.get("file") == path.name:
            path, other = other, path
        if tensors:
            with disk_errors(self.folder):
                save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, path)
        digest = file_digest(path) if tensors else None
        write_json(self.folder / f"{name}.json", {"facts": facts, "file": path.name, "digest": digest})
        other.unlink(missing_ok=True)

    def get_header(self, name: str) -> dict[str, Any] | None:
        """What is known of a stage without its tensors."""
        try:
            header: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        return header

    def remember(self, name: str, make: Callable[[], Stage]) -> Stage:
        """The stage ``name``, made and stored where it is absent."""
        stored = self.get(name)
        if stored is None:
            stored = make()
            self.put(name, *stored)
        return stored

    def kept(self) -> str:
        """What an interrupted command leaves, in words."""
        layers = self.get_header("layers")
        answered = len([*(self.folder / "responses").glob("*.json")])
        parts = [
            "the dense network's accuracy" if self.get_header("dense") else "",
            f"the responses of {answered} layers" if answered else "",
            "the error curves" if self.get_header("curves") else "",
            f"the network behind {layers['facts']['done']} layers" if layers else "",
        ]
        found = ", ".join(part for part in parts if part)
        if not found:
            return "stopped before anything was finished; the same command starts anew"
        return f"stopped; {found} kept in {self.folder}; the same command goes on behind that"

    def clear(self) -> None:
        """Removes everything, once the command is done or its inputs have changed."""
        shutil.rmtree(self.folder, ignore_errors=True)
