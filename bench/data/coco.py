"""COCO's layout (annotations/*.json and folders of images): COCO 2017, or a user's folder with classes of its own.

Everything is read and checked here, from the raw JSON, before mmdet reads it again to train on it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.annotations import (
    TINY,
    ZERO,
    Annotation,
    DetectionSet,
    DetectionSplit,
    Pipeline,
    all_kinds,
    annotation,
    check_splits,
    clean,
    clean_instances,
    fingerprint,
    kept,
    metainfo,
    tally,
)
from bench.data.frames import Boxes, Claim, Frame, frames
from bench.errors import UserError

# what COCO 2017 needs, and the archive (cocodataset.org) each piece comes in
_PIECES = {
    "annotations/instances_train2017.json": "annotations_trainval2017.zip",
    "annotations/instances_val2017.json": "annotations_trainval2017.zip",
    "train2017": "train2017.zip",
    "val2017": "val2017.zip",
}
# the keys that mmdet and pycocotools read; a file without one of them fails in the middle of a run
_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
}


def find(root: Path) -> Path | None:
    """The folder of COCO 2017 in or below ``root``, or None."""
    return next((place for place in (root, root / "coco") if not _lacking(place)), None)


def missing(root: Path) -> str:
    """One line: what is missing of COCO 2017, and where to put it."""
    place = min((root / "coco", root), key=lambda place: len(_lacking(place)))
    lacking = _lacking(place)
    if len(lacking) == len(_PIECES):
        archives = ", ".join(dict.fromkeys(_PIECES.values()))
        return f"no COCO 2017 in {root}: unpack {archives} into {place}, or name the folder that holds them with --data"
    piece = next(iter(lacking), "nothing")
    return f"COCO 2017 in {place} lacks {piece}: unpack {_PIECES.get(piece, 'it')} there"


def _lacking(place: Path) -> list[str]:
    return [piece for piece in _PIECES if not (place / piece).exists()]


def coco_detection(root: Path, size: int, strict: bool = False, progress: bool = True) -> DetectionSet:
    """COCO 2017: trained on train2017, tested on val2017; 80 classes in the order of their ids.

    Raises :class:`UserError` where a piece is missing or an annotation is broken.
    """
    place = find(root)
    if place is None:
        raise UserError(missing(root))
    files = [place / "annotations" / f"instances_{part}2017.json" for part in ("train", "val")]
    return _detection("coco", place, files, size, strict, progress, published=True)


def coco_folder(root: Path, size: int, name: str, strict: bool = False, progress: bool = True) -> DetectionSet:
    """A folder of the user's: annotations/instances_train*.json, and instances_val*.json (else instances_test*.json).

    Images lie in the folder that the file is named after (``instances_train2017.json``: ``train2017``), in
    ``images/``, another ``train*/`` folder, or at ``file_name`` relative to ``root``.
    """
    folder = root / "annotations"
    listed = {part: sorted(folder.glob(f"instances_{part}*.json")) for part in ("train", "val", "test")}
    chosen = ("train", "val" if listed["val"] else "test")
    for part in chosen:
        if len(listed[part]) != 1:
            raise UserError(
                f"{folder} has {len(listed[part])} files instances_{part}*.json: it needs exactly one for training "
                "(train) and one for testing (val, else test)"
            )
    files = [listed[part][0] for part in chosen]
    return _detection(name, root, files, size, strict, progress)


def _detection(
    name: str, root: Path, files: list[Path], size: int, strict: bool, progress: bool, published: bool = False
) -> DetectionSet:
    contents = [_read(file) for file in files]
    categories, others = (_categories(content, file) for content, file in zip(contents, files, strict=True))
    if categories != others:
        odd = sorted(f"{number} {label}" for number, label in set(categories.items()) ^ set(others.items()))
        raise UserError(f"{files[0]} and {files[1]} have different categories ({odd[0]}): make them the same")
    problems: Counter[str] = Counter()
    folders = [
        _image_folder(root, file, content["images"][0]["file_name"])
        for content, file in zip(contents, files, strict=True)
    ]
    parts = [_Part(*part) for part in zip(contents, files, folders, strict=True)]
    objects = [_objects(part, list(categories)) for part in parts]
    claims = [
        _claim(part, image, of_image[image["id"]])
        for part, of_image in zip(parts, objects, strict=True)
        for image in part.content["images"]
    ]
    found = iter(frames(claims, published, progress))
    framed = [{image["id"]: next(found) for image in part.content["images"]} for part in parts]
    labels = {number: label for label, number in enumerate(categories)}
    annotations = [
        [
            _annotation(image, of_image[image["id"]], part, labels, its_frames[image["id"]], problems, strict)
            for image in part.content["images"]
        ]
        for part, of_image, its_frames in zip(parts, objects, framed, strict=True)
    ]
    check_splits(annotations[0], annotations[1], (files[0], files[1]))
    classes = tuple(categories.values())
    # the file's own boxes serve for COCO's evaluation only where they lie in the image as it is loaded
    splits = [
        DetectionSplit(
            images,
            [_builder(part.file, part.folder, classes, its_frames)],
            None if any(frame.moves for frame in its_frames.values()) else part.file,
        )
        for images, part, its_frames in zip(annotations, parts, framed, strict=True)
    ]
    print_of = fingerprint(root, files, [image.file for found in annotations for image in found])
    names = [file.stem.removeprefix("instances_") for file in files]
    protocol = f"{names[0]}, {names[1]}, {size}x{size}"
    counts = all_kinds(problems, [frame for its_frames in framed for frame in its_frames.values()])
    return DetectionSet(name, print_of, classes, size, splits[0], splits[1], protocol, "coco", counts)


@dataclass(frozen=True)
class _Part:
    """One annotation file, read, and the folder of its images."""

    content: dict[str, list[dict[str, Any]]]
    file: Path
    folder: Path


def _builder(
    file: Path, folder: Path, classes: tuple[str, ...], framed: dict[int, Frame]
) -> Callable[[Pipeline, bool], Any]:
    def build(pipeline: Pipeline, training: bool) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
            return _dataset_class()(
                framed=framed,
                metainfo=metainfo(classes),
                ann_file=str(file),
                data_prefix=dict(img=str(folder)),
                filter_cfg=dict(filter_empty_gt=True) if training else None,
                pipeline=pipeline,
                test_mode=not training,
            )

    return build


@functools.cache
def _dataset_class() -> Any:
    """mmdet's CocoDataset with cleaned boxes; made on first use, because importing mmdet takes seconds."""
    from bench.mmcv_ops import install

    install()
    from mmdet.datasets import CocoDataset  # type: ignore[import-untyped]
    from mmdet.datasets.api_wrappers import COCO  # type: ignore[import-untyped]

    class SortedCOCO(COCO):  # type: ignore[misc]
        def get_cat_ids(self, *args: Any, **kwargs: Any) -> list[int]:
            """In the order of our classes; the file's own order, which pycocotools keeps, may be another."""
            return sorted(super().get_cat_ids(*args, **kwargs))

    class CleanCocoDataset(CocoDataset):  # type: ignore[misc]
        COCOAPI = SortedCOCO

        def __init__(self, framed: dict[int, Frame], **arguments: Any) -> None:
            self.framed = framed
            super().__init__(**arguments)

        def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
            image = raw_data_info["raw_img_info"]
            frame = self.framed[image["img_id"]]
            # mmdet drops boxes outside the stated size; what counts is the frame that they were drawn in
            image = {**image, "width": frame.drawn[0], "height": frame.drawn[1]}
            info: dict[str, Any] = super().parse_data_info({**raw_data_info, "raw_img_info": image})
            boxes = np.array([instance["bbox"] for instance in info["instances"]], dtype=np.float64).reshape(-1, 4)
            moved = [
                {**instance, "bbox": box.tolist()}
                for instance, box in zip(info["instances"], frame.apply(boxes), strict=True)
            ]
            instances = clean_instances(moved, frame.width, frame.height)
            return {**info, "width": frame.width, "height": frame.height, "instances": instances}

        def filter_data(self) -> list[dict[str, Any]]:
            """mmdet's own filter asks whether an image had boxes before some were dropped."""
            infos: list[dict[str, Any]] = super().filter_data()
            return infos if self.test_mode else [info for info in infos if info["instances"]]

    return CleanCocoDataset


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The file's three lists, their keys and ids checked."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is no readable JSON ({error}): mend or replace it") from error
    for part, keys in _KEYS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{file} has no list {part!r}: it must be COCO's object detection format")
        seen = set()
        for place, entry in enumerate(entries, 1):
            what = f"{file}: entry {place} of {part}"
            if not isinstance(entry, dict) or type(entry.get("id")) is not int:
                raise UserError(f"{what} has no whole number as 'id': add one")
            what = f"{file}: {part} id {entry['id']}"
            if entry["id"] in seen:
                raise UserError(f"{what} occurs twice: make ids unique")
            seen.add(entry["id"])
            lacking = [key for key in keys if key not in entry]
            if lacking:
                raise UserError(f"{what} lacks {lacking[0]!r}: add it")
    for part in ("categories", "images"):
        if not content[part]:
            raise UserError(f"{file} has no {part}: add some")
    return {part: content[part] for part in _KEYS}


def _categories(content: dict[str, list[dict[str, Any]]], file: Path) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    names = {entry["id"]: entry["name"] for entry in sorted(content["categories"], key=lambda entry: entry["id"])}
    for number, name in names.items():
        if not isinstance(name, str) or not name:
            raise UserError(f"{file}: categories id {number} has {name!r} as 'name': write a text")
        if list(names.values()).count(name) > 1:
            raise UserError(f"{file}: the category name {name!r} occurs twice: make names unique")
    return names


def _image_folder(root: Path, file: Path, first: Any) -> Path:
    """Where the images of ``file`` are: the first place that holds its ``first`` image, else the usual one."""
    part = file.stem.removeprefix("instances_")
    stem = next(stem for stem in ("train", "val", "test") if part.startswith(stem))
    others = sorted(path for path in root.glob(f"{stem}*") if path.is_dir())
    places = [root / part, root / "images" / part, root / "images", *others, root]
    return next((place for place in places if (place / str(first)).is_file()), root / part)


def _objects(part: _Part, category_ids: list[int]) -> dict[int, list[dict[str, Any]]]:
    """The checked annotations by image id, without those that are to be ignored (mmdet leaves them out, too)."""
    content, file = part.content, part.file
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        what = f"{file}: annotations id {entry['id']}"
        if type(entry["image_id"]) is not int or entry["image_id"] not in objects:
            raise UserError(f"{what} names image_id {entry['image_id']!r}, which no image has: mend or remove it")
        if type(entry["category_id"]) is not int or entry["category_id"] not in category_ids:
            raise UserError(
                f"{what} names category_id {entry['category_id']!r}, which no category has: mend or remove it"
            )
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
            raise UserError(f"{what} has {box!r} as 'bbox': write four numbers, x, y, width and height")
        if not _number(entry["area"]):
            raise UserError(f"{what} has {entry['area']!r} as 'area': write a number")
        if entry["iscrowd"] not in (0, 1):
            raise UserError(f"{what} has {entry['iscrowd']!r} as 'iscrowd': write 0 or 1")
        if not entry.get("ignore", False):
            objects[entry["image_id"]].append(entry)
    return objects


def _claim(part: _Part, image: dict[str, Any], objects: list[dict[str, Any]]) -> Claim:
    """What the file says of one image, checked."""
    file, folder = part.file, part.folder
    what = f"{file}: images id {image['id']}"
    name, width, height = image["file_name"], image["width"], image["height"]
    if not isinstance(name, str) or not name or Path(name).is_absolute():
        raise UserError(f"{what} has {name!r} as 'file_name': write a path relative to the folder of images")
    if not (type(width) is int and type(height) is int and min(width, height) > 0):
        raise UserError(f"{what} has {width!r} x {height!r} as 'width' and 'height': write whole numbers of pixels")
    if not (folder / name).is_file():
        raise UserError(f"image {folder / name} ({what}) is missing: put it there or remove it from the file")
    return Claim(what, folder / name, (width, height), _edges(objects))


def _edges(objects: list[dict[str, Any]]) -> Boxes:
    sizes = np.array([entry["bbox"] for entry in objects], dtype=np.float64).reshape(-1, 4)
    return np.concatenate([sizes[:, :2], sizes[:, :2] + sizes[:, 2:]], axis=1)


def _annotation(
    image: dict[str, Any],
    objects: list[dict[str, Any]],
    part: _Part,
    labels: dict[int, int],
    frame: Frame,
    problems: Counter[str],
    strict: bool,
) -> Annotation:
    name = image["file_name"]
    sizes = np.array([entry["bbox"][2:] for entry in objects], dtype=np.float64).reshape(-1, 2)
    boxes, kinds = clean(frame.apply(_edges(objects)), frame.width, frame.height)
    # mmdet's CocoDataset drops these too
    areas = np.array([entry["area"] for entry in objects], dtype=np.float64)
    thin = (sizes < 1).any(axis=1)
    kinds = np.where(kept(kinds), np.select([areas <= 0, thin], [ZERO, TINY], kinds), kinds)

    def describe(place: int) -> str:
        return f"{part.file}: annotations id {objects[place]['id']} (image {name})"

    tally(kinds, problems, describe, strict)
    places = [labels[entry["category_id"]] for entry in objects]
    crowds = [bool(entry["iscrowd"]) for entry in objects]
    return annotation(image["id"], part.folder / name, (frame.width, frame.height), boxes, places, crowds, kinds)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
