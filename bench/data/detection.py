"""Detection sets as the harness sees them, and any VOC- or COCO-format folder of the user's."""

from __future__ import annotations

from pathlib import Path

from bench.data.annotations import Annotation, DetectionSet, DetectionSplit
from bench.data.coco import coco_folder
from bench.data.voc import voc_folder
from bench.errors import UserError

__all__ = ["Annotation", "DetectionSet", "DetectionSplit", "detection_folder", "layout_of"]

_VOC = ("Annotations", "ImageSets/Main", "JPEGImages")


def layout_of(root: Path) -> str | None:
    """``voc`` for a folder with Annotations/, ImageSets/Main/ and JPEGImages/, ``coco`` with annotations/*.json."""
    if all((root / part).is_dir() for part in _VOC):
        return "voc"
    if any((root / "annotations").glob("*.json")):
        return "coco"
    return None


def detection_folder(
    root: Path, size: int, name: str | None = None, strict: bool = False, progress: bool = True
) -> DetectionSet:
    """The folder ``root`` for a network with input side ``size``; class names come from the annotations.

    Boxes of zero area or outside their image are dropped or clipped and counted in ``problems``; with ``strict`` they
    are errors.  Raises :class:`UserError` naming the file and the object for anything else that is broken.
    """
    layout = layout_of(root)
    if layout is None:
        raise UserError(
            f"{root} is no detection folder: give one with {'/, '.join(_VOC)}/ (VOC), or with "
            "annotations/instances_train*.json (COCO)"
        )
    read = {"voc": voc_folder, "coco": coco_folder}[layout]
    return read(root, size, name or root.resolve().name, strict, progress)
