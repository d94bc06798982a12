"""Pascal VOC's layout (Annotations/, ImageSets/Main/, JPEGImages/): the devkit of 2007 and 2012, or a user's folder.

Everything is read and checked here, from the raw XML, before mmdet reads it again to train on it.
"""

from __future__ import annotations

import contextlib
import functools
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
from tqdm import tqdm

from bench.data.annotations import (
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
    metainfo,
    tally,
)
from bench.data.frames import Boxes, Claim, Frame, frames
from bench.errors import UserError

# in the order of VOCinit.m of the devkit
# fmt: off
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
# what 07+12 needs, and the archive (host.robots.ox.ac.uk/pascal/VOC) each piece comes in
_PIECES = {
    "VOC2007/ImageSets/Main/trainval.txt": "VOCtrainval_06-Nov-2007.tar",
    "VOC2007/ImageSets/Main/test.txt": "VOCtest_06-Nov-2007.tar",
    "VOC2007/Annotations": "VOCtrainval_06-Nov-2007.tar",
    "VOC2007/JPEGImages": "VOCtrainval_06-Nov-2007.tar",
    "VOC2012/ImageSets/Main/trainval.txt": "VOCtrainval_11-May-2012.tar",
    "VOC2012/Annotations": "VOCtrainval_11-May-2012.tar",
    "VOC2012/JPEGImages": "VOCtrainval_11-May-2012.tar",
}
_SIDES = ("xmin", "ymin", "xmax", "ymax")
# bytes of an annotation file: the largest of VOC has 20,000
_LARGEST_XML = 1_000_000


@dataclass(frozen=True)
class _Raw:
    """One XML file as mmdet reads it: boxes k x 4 are int(float(text)) - 1."""

    image_id: str
    xml: Path
    image: Path
    stated: tuple[int, int] | None
    names: list[str]
    boxes: Boxes
    difficult: list[bool]


def find(root: Path) -> Path | None:
    """The devkit (the folder that holds VOC2007/ and VOC2012/) in or below ``root``, or None."""
    return next((place for place in _places(root) if not _lacking(place)), None)


def missing(root: Path) -> str:
    """One line: what is missing of VOC 2007+2012, and where to put it."""
    place = min(_places(root), key=lambda place: len(_lacking(place)))
    lacking = _lacking(place)
    if len(lacking) == len(_PIECES):
        place = root / "VOCdevkit"
        archives = ", ".join(dict.fromkeys(_PIECES.values()))
        return (
            f"no VOC 2007+2012 in {root}: unpack {archives} so that {place} holds VOC2007/ and VOC2012/, "
            "or name the folder with --data"
        )
    piece = next(iter(lacking), "nothing")
    return f"VOC 2007+2012 in {place} lacks {piece}: unpack {_PIECES.get(piece, 'it')} there"


def _places(root: Path) -> list[Path]:
    return [root, root / "voc", root / "VOCdevkit", root / "voc" / "VOCdevkit"]


def _lacking(place: Path) -> list[str]:
    return [piece for piece in _PIECES if not (place / piece).exists()]


def voc_detection(root: Path, size: int, strict: bool = False, progress: bool = True) -> DetectionSet:
    """VOC 07+12: trained on the trainval of 2007 and 2012, tested on the test of 2007; 20 classes.

    Raises :class:`UserError` where a piece is missing or an annotation is broken.
    """
    place = find(root)
    if place is None:
        raise UserError(missing(root))
    train = [(place / "VOC2007", "trainval"), (place / "VOC2012", "trainval")]
    test = [(place / "VOC2007", "test")]
    protocol = f"07+12 trainval, 07 test, {size}x{size}"
    return _detection("voc", place, train, test, CLASSES, size, protocol, strict, progress, published=True)


def voc_folder(root: Path, size: int, name: str, strict: bool = False, progress: bool = True) -> DetectionSet:
    """A folder of the user's: trained on trainval.txt (else train.txt), tested on test.txt (else val.txt).

    The classes are the names in the annotations of all listed images, sorted.  Without test.txt, val.txt is the test
    split and train.txt the training split, because trainval.txt usually contains val.txt.
    """
    names = ("trainval", "train") if _list_file(root, "test").is_file() else ("train", "trainval")
    train = next((part for part in names if _list_file(root, part).is_file()), None)
    test = next((part for part in ("test", "val") if _list_file(root, part).is_file()), None)
    if train is None or test is None:
        raise UserError(
            f"{root / 'ImageSets' / 'Main'} needs trainval.txt (or train.txt) and test.txt (or val.txt): lists of "
            "image names without extension, one a line"
        )
    protocol = f"{train}, {test}, {size}x{size}"
    return _detection(name, root, [(root, train)], [(root, test)], None, size, protocol, strict, progress)


def _detection(
    name: str,
    root: Path,
    train: list[tuple[Path, str]],
    test: list[tuple[Path, str]],
    classes: tuple[str, ...] | None,
    size: int,
    protocol: str,
    strict: bool,
    progress: bool,
    published: bool = False,
) -> DetectionSet:
    raws = [[raw for part in parts for raw in _read_list(*part, progress)] for parts in (train, test)]
    if classes is None:
        classes = tuple(sorted({name for part in raws for raw in part for name in raw.names}))
    problems: Counter[str] = Counter()
    every = [raw for part in raws for raw in part]
    claims = [Claim(str(raw.xml), raw.image, raw.stated, _edges(raw.boxes)) for raw in every]
    framed = {raw.image: frame for raw, frame in zip(every, frames(claims, published, progress), strict=True)}
    annotations = [[_annotation(raw, framed[raw.image], classes, problems, strict) for raw in part] for part in raws]
    lists = [_list_file(*part) for part in (*train, *test)]
    check_splits(annotations[0], annotations[1], (lists[0], lists[-1]))
    print_of = fingerprint(
        root,
        lists + [raw.xml for part in raws for raw in part],
        [raw.image for part in raws for raw in part],
    )
    splits = [
        DetectionSplit(found, [_builder(folder, part, classes, framed) for folder, part in parts])
        for found, parts in zip(annotations, (train, test), strict=True)
    ]
    counts = all_kinds(problems, framed.values())
    return DetectionSet(name, print_of, classes, size, splits[0], splits[1], protocol, "voc", counts)


def _edges(boxes: Boxes) -> Boxes:
    """Boxes by their first and last pixels as boxes by their edges."""
    edges: Boxes = boxes + np.array([0.0, 0.0, 1.0, 1.0])
    return edges


def _moved(boxes: Boxes, frame: Frame) -> Boxes:
    """Boxes by their first and last pixels, where they lie in the image as it is loaded."""
    moved: Boxes = frame.apply(_edges(boxes)) - np.array([0.0, 0.0, 1.0, 1.0]) if frame.moves else boxes
    return moved


def _builder(
    root: Path, part: str, classes: tuple[str, ...], framed: dict[Path, Frame]
) -> Callable[[Pipeline, bool], Any]:
    def build(pipeline: Pipeline, training: bool) -> Any:
        return _dataset_class()(
            framed={str(image): frame for image, frame in framed.items()},
            metainfo=metainfo(classes),
            data_root=str(root),
            ann_file=f"ImageSets/Main/{part}.txt",
            data_prefix=dict(sub_data_root=""),
            filter_cfg=dict(filter_empty_gt=True) if training else None,
            pipeline=pipeline,
            test_mode=not training,
        )

    return build


@functools.cache
def _dataset_class() -> Any:
    """mmdet's VOCDataset with cleaned boxes; made on first use, because importing mmdet takes seconds."""
    from bench.mmcv_ops import install

    install()
    from mmdet.datasets import VOCDataset  # type: ignore[import-untyped]

    class CleanVOCDataset(VOCDataset):  # type: ignore[misc]
        def __init__(self, framed: dict[str, Frame], **arguments: Any) -> None:
            self.framed = framed
            super().__init__(**arguments)

        def parse_data_info(self, img_info: dict[str, Any]) -> dict[str, Any]:
            info: dict[str, Any] = super().parse_data_info(img_info)
            frame = self.framed[str(Path(info["img_path"]))]
            boxes = np.array([instance["bbox"] for instance in info["instances"]], dtype=np.float64).reshape(-1, 4)
            moved = [
                {**instance, "bbox": box.tolist()}
                for instance, box in zip(info["instances"], _moved(boxes, frame), strict=True)
            ]
            instances = clean_instances(moved, frame.width - 1, frame.height - 1)
            return {**info, "width": frame.width, "height": frame.height, "instances": instances}

    return CleanVOCDataset


def _annotation(raw: _Raw, frame: Frame, classes: tuple[str, ...], problems: Counter[str], strict: bool) -> Annotation:
    def describe(place: int) -> str:
        return f"{raw.xml}: object {place + 1} ({raw.names[place]})"

    labels = []
    for place, name in enumerate(raw.names):
        if name not in classes:
            raise UserError(f"{describe(place)} is of none of the {len(classes)} classes: rename or remove it")
        labels.append(classes.index(name))
    size = (frame.width, frame.height)
    boxes, kinds = clean(_moved(raw.boxes, frame), frame.width - 1, frame.height - 1)
    tally(kinds, problems, describe, strict)
    return annotation(raw.image_id, raw.image, size, boxes, labels, raw.difficult, kinds)


def _list_file(root: Path, part: str) -> Path:
    return root / "ImageSets" / "Main" / f"{part}.txt"


def _read_list(root: Path, part: str, progress: bool) -> list[_Raw]:
    file = _list_file(root, part)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file} ({error}): it lists image names, one a line") from error
    if not lines:
        raise UserError(f"{file} is empty: list image names without extension, one a line")
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line or line != line.strip():
            raise UserError(f"{file}, line {number} is blank or has blanks around the name: remove them")
        if line in seen:
            raise UserError(f"{file}, line {number}: image {line} is listed twice: remove one")
        seen.add(line)
    return [_read(root, name, file) for name in tqdm(lines, f"reading {part}", disable=not progress, leave=False)]


def _read(root: Path, name: str, source: Path) -> _Raw:
    image, xml = root / "JPEGImages" / f"{name}.jpg", root / "Annotations" / f"{name}.xml"
    if not image.is_file():
        other = next((path for path in image.parent.glob(f"{name}.*")), None)
        if other is not None:
            raise UserError(f"image {other} of {source} is no .jpg file: convert it to {image.name}")
        raise UserError(f"image {image} of {source} is missing: put it there or remove its line")
    if not xml.is_file():
        raise UserError(f"annotation {xml} of {source} is missing: put it there or remove its line")
    if xml.stat().st_size > _LARGEST_XML:
        raise UserError(f"{xml} of {source} has more than {_LARGEST_XML / 1e6:g} MB, which no annotation has: mend it")
    content = xml.read_bytes()
    if _declares_entities(content):  # entities of entities grow without bound
        raise UserError(f"{xml} of {source} defines entities, which no annotation needs: remove them")
    try:
        root_element = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{xml} is malformed XML ({error}): mend it or remove its line from {source}") from error
    size = root_element.find("size")
    stated = None if size is None else (_whole(size, "width", xml, "size"), _whole(size, "height", xml, "size"))
    names, boxes, difficult = [], [], []
    for number, element in enumerate(root_element.findall("object"), 1):
        names.append(_text(element, "name", xml, f"object {number}"))
        what = f"object {number} ({names[-1]})"
        difficult.append(element.find("difficult") is not None and _whole(element, "difficult", xml, what) != 0)
        box = element.find("bndbox")
        if box is None:
            raise UserError(f"{xml}: {what} has no <bndbox>: add one or remove the object")
        boxes.append([_whole(box, side, xml, what, cut=True) - 1 for side in _SIDES])
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return _Raw(name, xml, image, stated, names, array, difficult)


def _declares_entities(content: bytes) -> bool:
    """Whether XML, in whatever encoding, declares an entity; what cannot be read is malformed, which is told later."""
    found = []

    def declared(name: str, *_: Any) -> None:
        found.append(name)
        raise ValueError(name)  # before it is used

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = declared
    with contextlib.suppress(ValueError, LookupError, expat.ExpatError):
        parser.Parse(content, True)
    return bool(found)


def _text(element: ElementTree.Element, tag: str, file: Path, what: str) -> str:
    found = element.find(tag)
    if found is None or not found.text:
        raise UserError(f"{file}: {what} has no <{tag}>: add it")
    return found.text


def _whole(element: ElementTree.Element, tag: str, file: Path, what: str, cut: bool = False) -> int:
    """The whole number in ``tag``; ``cut`` takes the whole part of a decimal one, as mmdet does with coordinates."""
    text = _text(element, tag, file, what)
    try:
        return int(float(text)) if cut else int(text)
    except (ValueError, OverflowError):
        raise UserError(f"{file}: {what} has {text!r} as <{tag}>: write a number") from None
