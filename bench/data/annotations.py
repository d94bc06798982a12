"""Ground truth of detection sets: boxes are cleaned by one rule here, and mmdet's own datasets see the same boxes."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.data.folder import content_fingerprint
from bench.data.frames import Boxes, Frame
from bench.errors import UserError
from bench.store import digest, file_digest

# what may be wrong with a box: the first is clipped, the others are dropped
OUTSIDE, ZERO, NOWHERE, TINY = "outside image", "zero area", "wholly outside", "under one pixel"
_SENTENCES = {
    OUTSIDE: "reaches outside its image",
    ZERO: "has zero area",
    NOWHERE: "lies wholly outside its image",
    TINY: "is less than one pixel wide or high",
}
# annotation tools round coordinates; a box this far outside (pixels) is clipped without a word
_ROUNDING = 0.5

Kinds = npt.NDArray[np.str_]
Pipeline = list[dict[str, Any]]


@dataclass(frozen=True)
class Annotation:
    """The objects of one image, cleaned, as mmdet's dataset gives them (absolute pixels, x1 y1 x2 y2).

    ``image_id`` is mmdet's: the stem in VOC, the integer id in COCO.  ``boxes`` is k x 4 (float32), ``labels`` k
    (places in the set's classes), ``difficult`` k (bool: VOC's ``difficult``, COCO's ``iscrowd``).  In VOC, x2 and y2
    are the last pixel that belongs to the object; in COCO they are its continuous right and lower edge.
    """

    image_id: str | int
    file: Path
    width: int
    height: int
    boxes: Tensor
    labels: Tensor
    difficult: Tensor


class DetectionSplit:
    """The images of one split; it may join several of mmdet's datasets (VOC 2007 and 2012).

    ``builders`` make these datasets from a pipeline and the flag ``training``.  ``coco_json`` is the COCO file where
    the data came in that layout, else None.
    """

    def __init__(
        self,
        annotations: list[Annotation],
        builders: Sequence[Callable[[Pipeline, bool], Any]],
        coco_json: Path | None = None,
    ) -> None:
        self.annotations, self.builders, self.coco_json = annotations, tuple(builders), coco_json

    def __len__(self) -> int:
        return len(self.annotations)

    def dataset(self, pipeline: Pipeline, training: bool) -> Any:
        """mmdet's VOCDataset or CocoDataset, or a ConcatDataset of them, with this pipeline of transforms.

        ``training`` leaves out images without boxes; otherwise all are there, in the order of ``annotations``.
        """
        parts = [build(pipeline, training) for build in self.builders]
        if len(parts) == 1:
            return parts[0]
        from mmdet.datasets import ConcatDataset  # type: ignore[import-untyped]

        return ConcatDataset(parts, ignore_keys=["dataset_type"])


@dataclass(frozen=True)
class DetectionSet:
    """A detection set: what :class:`bench.data.images.ImageSet` is for classification.

    ``size`` is the network's input side.  ``layout`` is ``voc`` or ``coco``.  ``problems`` counts, over both splits,
    the boxes that were clipped ("outside image") or dropped ("zero area", "wholly outside", "under one pixel"), and the
    images whose stated size or orientation had to be repaired (see :mod:`bench.data.frames`).
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    size: int
    train: DetectionSplit
    test: DetectionSplit
    protocol: str
    layout: str
    problems: dict[str, int]


def clean(boxes: Boxes, right: float, bottom: float) -> tuple[Boxes, Kinds]:
    """Clips boxes (k x 4, x1 y1 x2 y2) to 0..``right`` x 0..``bottom`` and says what is wrong with each.

    Returns the clipped boxes (k x 4, in the same order) and k kinds: "" (sound), "outside image" (clipped), or "zero
    area" and "wholly outside", whose boxes are to be dropped.
    """
    clipped = np.clip(boxes, 0.0, np.array([right, bottom, right, bottom]))
    sound = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    left = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    outside = (np.abs(clipped - boxes) > _ROUNDING).any(axis=1)
    return clipped, np.select([~sound, ~left, outside], [ZERO, NOWHERE, OUTSIDE], "")


def kept(kinds: Kinds) -> npt.NDArray[np.bool_]:
    """Which boxes of these kinds stay (k)."""
    return np.isin(kinds, ["", OUTSIDE])


def clean_instances(instances: list[dict[str, Any]], right: float, bottom: float) -> list[dict[str, Any]]:
    """mmdet's instances of one image with :func:`clean` applied to their boxes."""
    boxes = np.array([instance["bbox"] for instance in instances], dtype=np.float64).reshape(-1, 4)
    clipped, kinds = clean(boxes, right, bottom)
    return [
        {**instance, "bbox": box.tolist()}
        for instance, box, stays in zip(instances, clipped, kept(kinds), strict=True)
        if stays
    ]


def tally(kinds: Kinds, problems: Counter[str], describe: Callable[[int], str], strict: bool) -> None:
    """Counts the kinds in ``problems``; with ``strict``, the first is a :class:`UserError` (``describe`` names it)."""
    for place in np.flatnonzero(kinds != ""):
        kind = str(kinds[place])
        if strict:
            raise UserError(
                f"{describe(int(place))} {_SENTENCES[kind]}: mend it, or run without --strict-data to have it clipped "
                "or dropped"
            )
        problems[kind] += 1


def annotation(
    image_id: str | int,
    file: Path,
    size: tuple[int, int],
    boxes: Boxes,
    labels: Sequence[int],
    difficult: Sequence[bool],
    kinds: Kinds,
) -> Annotation:
    """The :class:`Annotation` of an image of ``size`` (width, height), from clipped boxes and their kinds."""
    stays = torch.from_numpy(kept(kinds))
    return Annotation(
        image_id,
        file,
        *size,
        torch.from_numpy(boxes).float()[stays],
        torch.tensor(labels, dtype=torch.int64)[stays],
        torch.tensor(difficult, dtype=torch.bool)[stays],
    )


def all_kinds(problems: Counter[str], frames: Iterable[Frame]) -> dict[str, int]:
    """The counts of boxes, a zero for every kind that did not occur, and of the images whose frame was repaired."""
    repairs = Counter(frame.repair for frame in frames if frame.repair)
    return {**{kind: problems[kind] for kind in _SENTENCES}, **dict(sorted(repairs.items()))}


def check_splits(train: list[Annotation], test: list[Annotation], places: tuple[Path, Path]) -> None:
    """Raises :class:`UserError` where a split has no objects, or an image is in both; ``places`` name the splits."""
    for part, place in zip((train, test), places, strict=True):
        if not any(len(image.labels) for image in part):
            raise UserError(f"{place} gives no usable objects: list images that have some")
    both = {image.file for image in train} & {image.file for image in test}
    if both:
        raise UserError(f"image {min(both)} is in both {places[0]} and {places[1]}: remove it from one of them")


def fingerprint(root: Path, annotation_files: Sequence[Path], images: Sequence[Path]) -> str:
    """Hash of annotation files (content) and images (content, or names and sizes of a large set), by relative path."""
    texts = {file.relative_to(root).as_posix(): file_digest(file) for file in annotation_files}
    return digest([texts, content_fingerprint(root, [(image, 0) for image in images])])


def metainfo(classes: tuple[str, ...]) -> dict[str, Any]:
    """mmdet's ``metainfo``: the class names and a colour for each."""
    hues = [colorsys.hsv_to_rgb(place / len(classes), 0.8, 0.9) for place in range(len(classes))]
    return {"classes": classes, "palette": [tuple(round(255 * part) for part in hue) for hue in hues]}
