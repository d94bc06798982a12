"""A baseline: row files as the results hold them, with the class predicted for each test image beside them.

``<folder>/<paper>/rows/<scale>/<name>.json`` and, a byte or two an image, ``<folder>/<paper>/predictions/<scale>/
<name>.safetensors`` with one tensor for each network that the row evaluated, by the name of the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.errors import UserError
from bench.report.accept import Chosen
from bench.steps import Kind
from bench.store import Store, disk_errors, make_folder

_TOP1 = "top1_acc"


def evaluations(row: Mapping[str, Any]) -> dict[str, str]:
    """The keys of the steps that evaluated the row's own networks, by name."""
    own = {record["step"] for record in row["records"] if record["metric"] == _TOP1 and record.get("seed") is not None}
    return {about["step"]: key for key, about in row["steps"].items() if about["kind"] == "evaluate" and key in own}


def predicted(row: Mapping[str, Any], store: Store) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """Predicted classes, labels and units (each: images) of the row's evaluations, by name, as far as they are stored.

    Outputs that are no logits of labelled images are left out.
    """
    found = {}
    for name, key in evaluations(row).items():
        result = store.load(key)
        if result is not None and {"logits", "labels"} <= set(result.arrays):
            found[name] = result.arrays["logits"].argmax(1), result.arrays["labels"], result.arrays.get("units")
    return found


def write(folder: Path, chosen: Chosen, store: Store) -> list[Path]:
    """Writes the predictions of accepted rows (their files' places in ``folder``, and contents); returns the files."""
    written = []
    for target, row in chosen:
        path = predictions_path(target)
        tensors = {
            name: classes.to(torch.uint8 if int(classes.max()) < 256 else torch.int16)
            for name, (classes, _, _) in predicted(row, store).items()
        }
        if not tensors:
            with disk_errors(path):
                path.unlink(missing_ok=True)  # an older row's
            continue
        make_folder(path.parent)
        with disk_errors(path):
            save_file(tensors, path)
            path.chmod(0o644)
        written.append(path)
    return written


def read(row_file: Path) -> dict[str, Tensor]:
    """The predictions (images, int64) beside a row file, by name; none where there is no file.

    Raises :class:`UserError` for a damaged one.
    """
    path = predictions_path(row_file)
    if not path.exists():
        return {}
    try:
        return {name: classes.long() for name, classes in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): check it out again, or accept a new baseline") from None


def predictions_path(row_file: Path) -> Path:
    """Where the predictions of a row file are."""
    paper, scale = row_file.parents[2], row_file.parent.name
    return paper / "predictions" / scale / f"{row_file.stem}.safetensors"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the makings of two rows: commit, packages, data, device, in words."""
    found = []
    for title, of in (("commit", _commits), ("packages", _packages), ("data", _data), ("device", _devices)):
        old, new = of(before), of(now)
        if old != new:
            found.append(f"{title}: {_told(sorted(old - new))} before, {_told(sorted(new - old))} now")
    return found


def timed_on(row: Mapping[str, Any]) -> set[str]:
    """On what the row's times were taken, in words."""
    return {_device(one["provenance"]["hardware"]) for one in row["steps"].values() if one["kind"] == Kind.TIME.value}


def made_on(row: Mapping[str, Any]) -> set[str]:
    """On what the networks behind the row were made; of rows that older code wrote, on what any of its steps ran."""
    if "made_on" in row:
        return {_device(one) for one in row["made_on"]}
    return _devices(row)


def _told(parts: Sequence[str]) -> str:
    return " ".join(parts) if parts else "nothing else"


def _provenances(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [about["provenance"] for about in row["steps"].values()]


def _commits(row: Mapping[str, Any]) -> set[str]:
    return {
        str(one["code"])[:12] + ("-dirty" if str(one["code"]).endswith("-dirty") else "") for one in _provenances(row)
    }


def _packages(row: Mapping[str, Any]) -> set[str]:
    return {f"{name} {version}" for one in _provenances(row) for name, version in one["versions"].items()}


def _data(row: Mapping[str, Any]) -> set[str]:
    data = row["setting"].get("data") or {}
    return {f"{data.get('name')} {str(data.get('fingerprint'))[:12]}"}


def _devices(row: Mapping[str, Any]) -> set[str]:
    return {_device(one["hardware"]) for one in _provenances(row)}


def _device(hardware: Mapping[str, Any]) -> str:
    return f"{hardware['name']} with {hardware['threads']} threads"
