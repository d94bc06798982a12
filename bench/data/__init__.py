"""Data sets by scale: embedded digits, clutter and scenes, folders, CIFAR-10, ImageNet, VOC, COCO."""

from __future__ import annotations

import os
from pathlib import Path

from bench.data import coco, detection, known, scenes, voc
from bench.data.annotations import DetectionSet
from bench.data.cifar10 import NPZ, cifar10_images
from bench.data.clutter import clutter_images
from bench.data.digits import digits_images
from bench.data.folder import image_folder
from bench.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageSet
from bench.errors import UserError

SCALES = ("digits", "clutter", "scenes", "cifar10", "imagenet", "voc", "coco")
# what the images come with: class labels, or boxes
LABELS, BOXES = "labels", "boxes"
EMBEDDED = ("digits", "clutter", "scenes")


def kind(scale: str) -> str:
    """``labels`` for classification data, ``boxes`` for detection data."""
    if scale in SCALES:
        return BOXES if scale in ("scenes", "voc", "coco") else LABELS
    return LABELS if detection.layout_of(Path(scale)) is None else BOXES


def data_root(given: Path | None) -> Path:
    """Where data sets are looked for: ``--data``, else ``$BENCH_DATA``, else ``data``."""
    return given if given is not None else Path(os.environ.get("BENCH_DATA", "data"))


def find(scale: str, root: Path) -> Path | None:
    """The folder that holds all the data of ``scale``, or None where they are absent (embedded data need none)."""
    if scale in EMBEDDED:
        return Path()
    if scale not in SCALES:
        return Path(scale) if Path(scale).is_dir() else None
    return next((place for place in _places(scale, root) if known.shortfall(scale, place) is None), None)


def missing(scale: str, root: Path) -> str:
    """What to put where so that :func:`find` finds the data of ``scale``, or what a folder like them lacks."""
    if (broken := flawed(scale, root)) is not None:
        return known.advice(scale, *broken)
    if scale in ("voc", "coco"):
        return voc.missing(root) if scale == "voc" else coco.missing(root)
    if scale == "cifar10":
        return f"put cifar-10-batches-py into {root}, or cifar10/{{train,test}}.npz, or let `bench run` download it"
    place = root / "imagenet"
    return f"put train/ and val/ (one folder a class) into {place}, or name the folder that holds them with --data"


def needs(scale: str, root: Path) -> str:
    """Why a row at ``scale`` cannot run, in a few words: nothing is there, or what the folder that is there lacks."""
    broken = flawed(scale, root)
    return f"needs {scale}" if broken is None else f"needs all of {scale}: {broken[1]}"


def flawed(scale: str, root: Path) -> tuple[Path, str] | None:
    """The first folder that looks like ``scale`` and is not all of it, with what it lacks in a few words."""
    for place in _places(scale, root):
        if (lacking := known.shortfall(scale, place)) is not None:
            return place, lacking
    return None


def _places(scale: str, root: Path) -> list[Path]:
    """The folders below ``root`` that look like ``scale``, complete or not."""
    if scale in ("voc", "coco"):
        place = voc.find(root) if scale == "voc" else coco.find(root)
        return [] if place is None else [place]
    if scale == "cifar10":
        places = [root, root / "cifar10"]
        archives = [place for place in places if (place / "cifar-10-batches-py").is_dir()]
        return archives + [place for place in places if all((place / name).is_file() for name in NPZ)]
    if scale == "imagenet":
        return [place for place in (root / "imagenet", root / "ILSVRC2012", root) if (place / "train").is_dir()]
    return []


def normalisation(scale: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (of red, green, blue, in 0 to 1) by which :func:`load` normalises labelled images."""
    own = {"digits": 0.5, "clutter": 0.25}
    return ((0.5,) * 3, (own[scale],) * 3) if scale in own else (IMAGENET_MEAN, IMAGENET_STD)


def check_scale(scale: str) -> None:
    """Raises :class:`UserError` unless ``scale`` is a known one or an existing folder."""
    if scale not in SCALES and not Path(scale).is_dir():
        raise UserError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}, or give a folder of images")


def load(
    scale: str,
    root: Path,
    size: int,
    protocol: str = "short256",
    progress: bool = True,
    strict: bool = False,
    apart: str | None = None,
) -> ImageSet | DetectionSet:
    """The data of ``scale`` at input ``size``; ``protocol`` is that of ImageNet's evaluation (see FileSplit).

    ``strict`` makes boxes that are empty or leave their image an error.  ``apart`` leaves out of ``clutter``, which
    shows the scans of ``digits``, those that ``digits`` is tested on.  Raises :class:`UserError` where the data are
    missing or broken, or nothing is known of what two sets share.
    """
    check_scale(scale)
    if apart is not None:
        if (scale, apart) != ("clutter", "digits"):
            raise UserError(f"what {scale} shares with {apart} is not known: leave it whole")
        return clutter_images(size, apart=True)
    if scale == "digits":
        return digits_images(size)
    if scale == "clutter":
        return clutter_images(size)
    if scale == "scenes":
        return scenes.scenes_detection(size, progress)
    place = find(scale, root)
    if scale == "cifar10" and (place is not None or flawed(scale, root) is None):
        return cifar10_images(place or root)  # where nothing is there, it is downloaded
    if place is None:
        raise UserError(f"no {scale} in {root}: {missing(scale, root)}")
    if scale in ("voc", "coco"):
        read = voc.voc_detection if scale == "voc" else coco.coco_detection
        return read(place, size, strict, progress)
    if kind(scale) == BOXES:
        return detection.detection_folder(place, size, None, strict, progress)
    return image_folder(place, size, protocol, name=scale if scale == "imagenet" else None, progress=progress)
