"""Data sets by scale: embedded digits, image folders, CIFAR-10, ImageNet."""

from __future__ import annotations

import os
from pathlib import Path

from bench.data.cifar10 import cifar10_images
from bench.data.digits import digits_images
from bench.data.folder import image_folder
from bench.data.images import ImageSet
from bench.errors import UserError

SCALES = ("digits", "cifar10", "imagenet")


def data_root(given: Path | None) -> Path:
    """Where data sets are looked for: ``--data``, else ``$BENCH_DATA``, else ``data``."""
    return given if given is not None else Path(os.environ.get("BENCH_DATA", "data"))


def find(scale: str, root: Path) -> Path | None:
    """The folder that holds the data of ``scale``, or None where it is absent (``digits`` needs none)."""
    places = {
        "digits": [Path()],
        "cifar10": [root, root / "cifar10"],
        "imagenet": [root / "imagenet", root / "ILSVRC2012", root],
    }.get(scale, [Path(scale)])
    marks = {"digits": "", "cifar10": "cifar-10-batches-py"}
    for place in places:
        if scale == "digits" or (place / marks.get(scale, "train")).is_dir():
            return place
    return None


def check_scale(scale: str) -> None:
    """Raises :class:`UserError` unless ``scale`` is a known one or an existing folder."""
    if scale not in SCALES and not Path(scale).is_dir():
        raise UserError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}, or give an image folder")


def load(scale: str, root: Path, size: int, protocol: str = "short256", progress: bool = True) -> ImageSet:
    """The data of ``scale`` at input ``size``; ``protocol`` is that of ImageNet's evaluation (see FileSplit).

    Raises :class:`UserError` where the data are missing or broken.
    """
    check_scale(scale)
    if scale == "digits":
        return digits_images(size)
    place = find(scale, root)
    if scale == "cifar10":
        return cifar10_images(place or root)
    if place is None:
        raise UserError(
            f"no ImageNet in {root}: put train/ and val/ (one folder a class) into {root / 'imagenet'}, or name the folder that holds them with --data"
        )
    return image_folder(place, size, protocol, name=scale if scale == "imagenet" else None, progress=progress)
