"""A baseline: row files as the results hold them, with the class predicted for each test image beside them.

``<folder>/<paper>/rows/<scale>/<name>.json`` and, a byte or two an image, ``<folder>/<paper>/predictions/<scale>/
<name>.safetensors`` with one tensor for each network that the row evaluated, by the name of the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.errors import UserError
from bench.nightly import settings
from bench.report.accept import Chosen
from bench.report.load import RAN, content, row_files
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


def check_place(folder: Path) -> None:
    """Raises :class:`UserError` where a folder is no place for a baseline: it holds a run, or results with pages."""
    if (folder / "steps").is_dir() or any(folder.glob("*/README.md")):
        raise UserError(f"{folder} holds a run or results with their pages, no baseline: name a folder of its own")


def write(folder: Path, chosen: Chosen, store: Store) -> list[Path]:
    """Writes the predictions of accepted rows (their files' places in ``folder``, and contents); returns the files.

    Raises :class:`UserError`, before anything is written, where an evaluation of one of them is not in the store: its
    accuracies could never be compared image by image.
    """
    written, found = [], [(predictions_path(target), _small(row, store)) for target, row in chosen]
    for path, tensors in found:
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


def _small(row: Mapping[str, Any], store: Store) -> dict[str, Tensor]:
    """The classes that a row predicts, as they are kept."""
    found = predicted(row, store)
    gone = [name for name, key in evaluations(row).items() if name not in found and store.load(key) is None]
    if gone:
        raise UserError(
            f"{row['id']}: the predictions of {', '.join(gone)} are not in {store.root}: run the row again there"
        )
    return {
        name: classes.to(torch.uint8 if int(classes.max()) < 256 else torch.int16)
        for name, (classes, _, _) in found.items()
    }


def clear(folder: Path, chosen: Chosen, dropped: Callable[[Mapping[str, Any]], bool] = lambda row: False) -> None:
    """Removes what accepted rows, which are written, replace, and predictions whose row has gone, of their papers.

    Rows that are ``dropped`` go too: no night would measure them, and each would miss them.  A row replaces one of
    other data or seeds, not one that somebody chose to run otherwise, on another device for one.
    """
    targets = {target for target, _ in chosen}
    replaced = [_same(row) for _, row in chosen if row["status"] == RAN]
    for paper in sorted({row["id"].partition("/")[0] for _, row in chosen}):
        for path in row_files(folder, paper):
            row = content(path)
            if path not in targets and (_same(row) in replaced or dropped(row)):
                with disk_errors(path):
                    path.unlink()
        left = {predictions_path(path) for path in row_files(folder, paper)}
        for path in folder.glob(f"{paper}/predictions/*/*.safetensors"):
            if path not in left:
                with disk_errors(path):
                    path.unlink()


def _same(row: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """What two files of a row share where one replaces the other."""
    return row["id"], row["setting"]["scale"], settings.chosen(row)


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
