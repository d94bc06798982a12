"""What makes a record repeatable: code, environment, hardware. No host names, users or absolute paths."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench import processes, threads

# import names of the packages that numbers depend on, and what they are installed as
DISTRIBUTIONS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "mmengine": "onedl-mmengine",
    "mmcv": "onedl-mmcv",
    "mmdet": "onedl-mmdetection",
    "torch_pruning": "torch-pruning",
    "sklearn": "scikit-learn",
    "numpy": "numpy",
    "numba": "numba",
    "scipy": "scipy",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "pycocotools": "pycocotools",
}
PACKAGES = tuple(DISTRIBUTIONS.values())


@functools.cache
def git_state() -> str | None:
    """The commit the code is at, with ``-dirty`` where files differ from it; None outside a checkout of our own.

    A repository around an installed package is somebody else's: ours is the one that tracks this very file.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        git("ls-files", "--error-unmatch", "bench/provenance.py")
        return git("rev-parse", "HEAD") + (
            "-dirty" if git("status", "--porcelain", "--", "bench", "reproductions") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(kind: str, device: str, packages: Iterable[str]) -> dict[str, Any]:
    """What of the environment the results of a kind of step depend on, for its key.

    ``packages`` are the import names that its code uses.  Training: versions, world size, TF32 on a GPU, threads on the
    CPU; pruning the same but for the world, because only the first process prunes; evaluation: versions and TF32; times
    also the device's name; what only loads, compares or counts: nothing.
    """
    if kind in ("load", "compare", "size"):
        return {}
    used = sorted({DISTRIBUTIONS[name] for name in packages if name in DISTRIBUTIONS})
    found: dict[str, Any] = {"versions": {name: versions()[name] for name in used}, "device": device.split(":")[0]}
    if device.startswith("cuda"):
        found["tf32"] = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
    elif kind != "evaluate":
        found["threads"] = threads.whole() if kind == "time" else torch.get_num_threads()
    if kind == "train":
        found["world"] = processes.launched()
    if kind == "time":
        found["name"] = hardware(device)["name"]
    return found


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
    """The device in words, the thread count and, of a processor, the instructions that torch uses.

    Processors of one name may differ in these, and then round otherwise.
    """
    found = {"device": device, "threads": torch.get_num_threads(), "system": platform.system()}
    if device.startswith("cuda"):
        return {**found, "name": torch.cuda.get_device_name()}
    return {**found, "name": _processor(), "capability": torch.backends.cpu.get_cpu_capability()}


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} ({os.cpu_count()} cores)"


def now() -> str:
    """Date and time (UTC) to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
