"""``bench doctor``: versions, devices, data sets, W&B."""

from __future__ import annotations

import argparse
import os
from importlib import metadata
from typing import Any

import torch

import bench.data
from bench import provenance
from bench.commands import Output
from bench.errors import UserError
from bench.mmcv_ops import install as install_ops
from bench.tracking import modes


def doctor(options: argparse.Namespace) -> Output:
    """Versions, devices, data sets, W&B."""
    root = bench.data.data_root(options.data)
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    installed = {
        name: _version(name) for name in ("wandb", "mmdet", "onedl-mmdetection", "mmengine", "mmcv", "onedl-mmcv")
    }
    value: dict[str, Any] = {
        "versions": provenance.versions(),
        "devices": {"cpu": provenance.hardware("cpu"), "cuda": cuda},
        "data": {
            scale: str(bench.data.find(scale, root)) if bench.data.find(scale, root) else None
            for scale in bench.data.SCALES
        },
        "wandb": {
            "version": installed["wandb"],
            "mode": os.environ.get("WANDB_MODE"),
            "server": modes.target().server,
            "login": modes.logged_in(),
        },
    }
    lines = [f"{name} {version}" for name, version in provenance.versions().items()]
    hardware = provenance.hardware("cpu")
    lines.append(f"cpu: {hardware['name']}, {hardware['threads']} threads")
    lines.append(f"cuda: {', '.join(cuda) or 'none'}")
    for scale in bench.data.SCALES:
        place = bench.data.find(scale, root)
        embedded = scale in bench.data.EMBEDDED
        found = "embedded" if embedded else str(place) if place else f"not found: {bench.data.missing(scale, root)}"
        lines.append(f"data {scale}: {found}")
    login = f"{'login' if modes.logged_in() else 'no login'} for {modes.target().server}"
    state = f"version {installed['wandb']}, {login}" if installed["wandb"] else "not installed"
    lines.append(f"wandb: {state}")
    try:
        install_ops()
        lines.append("detection: mmdet can be used")
    except UserError as error:
        lines.append(f"detection: {error}")
    for ours, theirs in (("onedl-mmengine", "mmengine"), ("onedl-mmcv", "mmcv"), ("onedl-mmdetection", "mmdet")):
        if _version(ours) and _version(theirs):
            lines.append(
                f"warning: {theirs} and {ours} are both installed and overwrite each other: pip uninstall {theirs}"
            )
    return value, "\n".join(lines), 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
