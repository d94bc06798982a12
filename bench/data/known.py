"""Known data sets are known by what they hold, not by the name of their folder.

A folder that does not hold all of a set is no such set: run it as a folder of its own, and its results are an analogue.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

from bench.data import cifar10

# ILSVRC2012: Russakovsky et al. 2015, table 2
IMAGENET_CLASSES, IMAGENET_VALIDATION = 1000, 50_000
# VOC: the devkits' lists; test of 2007, trainval of 2007 and 2012
VOC_IMAGES = {
    "VOC2007/ImageSets/Main/test.txt": 4952,
    "VOC2007/ImageSets/Main/trainval.txt": 5011,
    "VOC2012/ImageSets/Main/trainval.txt": 11_540,
}
COCO_CLASSES, COCO_VALIDATION = 80, 5000
_SYNSET = re.compile(r"n\d{8}")


def shortfall(scale: str, place: Path) -> str | None:
    """In a few words what the folder ``place`` lacks of the set ``scale``; None where it holds it all.

    Counts are read from the lists and folders, images are not opened.
    """
    check = _CHECKS.get(scale)
    return None if check is None else check(place.resolve())


def advice(scale: str, place: Path, lacking: str) -> str:
    """One line: why ``place`` is not ``scale``, and what to do."""
    if scale == "cifar10":
        return f"{place} is not all of cifar10 ({lacking}): make its npz files again, or put cifar-10-batches-py there"
    own = place / "VOC2007" if scale == "voc" else place
    return (
        f"{place} is not {scale} ({lacking}): complete it, or run it as a folder of its own with --scale {own} "
        "(an analogue, without verdicts)"
    )


@functools.cache
def _imagenet(place: Path) -> str | None:
    for part in ("train", "val"):
        folder = place / part
        found = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
        synsets = sum(_SYNSET.fullmatch(entry.name) is not None for entry in found)
        if synsets != IMAGENET_CLASSES or len(found) != IMAGENET_CLASSES:
            return f"{part}/ has {synsets:,} of {IMAGENET_CLASSES:,} WordNet classes among {len(found):,} folders"
        if part == "val":
            images = sum(not image.name.startswith(".") for entry in found for image in entry.iterdir())
            if images != IMAGENET_VALIDATION:
                return f"val/ has {images:,} of {IMAGENET_VALIDATION:,} images"
    return None


@functools.cache
def _voc(place: Path) -> str | None:
    for name, wanted in VOC_IMAGES.items():
        try:
            listed = sum(bool(line.strip()) for line in (place / name).read_text().splitlines())
        except (OSError, UnicodeDecodeError):
            return f"{name} cannot be read"
        if listed != wanted:
            return f"{name} lists {listed:,} of {wanted:,} images"
    return None


@functools.cache
def _coco(place: Path) -> str | None:
    path = place / "annotations" / "instances_val2017.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        images, classes = len(value["images"]), len(value["categories"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.name} cannot be read"
    if (images, classes) != (COCO_VALIDATION, COCO_CLASSES):
        return f"{path.name} has {images:,} of {COCO_VALIDATION:,} images and {classes:,} of {COCO_CLASSES:,} classes"
    return None


_CHECKS: dict[str, Callable[[Path], str | None]] = {
    "imagenet": _imagenet,
    "voc": _voc,
    "coco": _coco,
    "cifar10": cifar10.shortfall,
}
