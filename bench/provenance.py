"""What makes a record repeatable: code, environment, hardware. No host names, users or absolute paths."""

from __future__ import annotations

import ast
import datetime
import functools
import hashlib
import importlib.util
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_OURS = ("bench", "reproductions")
PACKAGES = (
    "torch",
    "torchvision",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmdetection",
    "torch-pruning",
    "scikit-learn",
    "numpy",
    "numba",
    "scipy",
)


@functools.cache
def source_hash(module: str) -> str:
    """sha256 over the source of ``module`` and of all modules of ours that it imports, directly or not.

    A step's key holds it: results of code that has changed are not used again.
    """
    hasher = hashlib.sha256()
    for name in sorted(_closure(module)):
        hasher.update(name.encode())
        hasher.update(_source(name).encode())
    return hasher.hexdigest()


@functools.cache
def _closure(module: str) -> frozenset[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and _source(name):
            found.add(name)
            waiting += _imports(name)
    return frozenset(found)


@functools.cache
def _source(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return ""
    return Path(spec.origin).read_text() if spec is not None and spec.origin and spec.origin.endswith(".py") else ""


@functools.cache
def _imports(module: str) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # ``from bench.models import vgg`` names a module as well as a package
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in names if name.split(".")[0] in _OURS)


@functools.cache
def git_state() -> str | None:
    """The commit the code is at, with ``-dirty`` where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        state = subprocess.run(
            ["git", "status", "--porcelain", "--", "bench", "reproductions"],
            cwd=here.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return sha.stdout.strip() + ("-dirty" if state.stdout.strip() else "")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def hardware(device: str) -> dict[str, Any]:
    """The device in words, the thread count and the processor."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {"device": device, "name": name, "threads": torch.get_num_threads(), "system": platform.system()}


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} ({os.cpu_count()} cores)"


def today() -> str:
    """The date (UTC), ISO 8601."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
