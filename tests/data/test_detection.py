"""Detection folders: mmdet reads the boxes we read, devkits are found, and broken data are told before training."""

from __future__ import annotations

import importlib
import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.data import coco, voc
from bench.data.annotations import Annotation, clean
from bench.data.detection import DetectionSet, detection_folder, layout_of
from bench.errors import UserError

SHARED = Path(os.environ.get("BENCH_SHARED", Path(__file__).parents[2].parent / "shared"))
BCCD = SHARED / "data" / "bccd" / "BCCD"
SIZE = (60, 40)  # of every image drawn here: width, height
Object = tuple[str, tuple[Any, Any, Any, Any], int]
# train: floats are cut, 1 is subtracted; a box without area, one reaching out on two sides, one wholly outside
TRAIN: dict[str, list[Object]] = {
    "a": [("dog", (1, 1, 10, 20), 0), ("cat", ("5.9", "6.2", "30.99", "40.0"), 1)],
    "b": [("dog", (7, 9, 7, 30), 0), ("ant", (0, 5, 70, 39), 0), ("dog", (61, 3, 65, 9), 0)],
    "c": [("cat", (9, 9, 9, 9), 0)],
    "d": [],
}
TEST: dict[str, list[Object]] = {"e": [("cat", (2, 3, 4, 5), 0)], "f": []}


def draw(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path, "JPEG")


def write_voc(root: Path, lists: dict[str, dict[str, list[Object]]], stated: tuple[int, int] | None = SIZE) -> Path:
    """A VOC folder; ``lists`` maps the names of image sets to images and their objects."""
    for name in ("Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for part, images in lists.items():
        (root / "ImageSets/Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in images))
        for name, objects in images.items():
            draw(root / "JPEGImages" / f"{name}.jpg")
            size = "" if stated is None else "<size><width>{}</width><height>{}</height></size>".format(*stated)
            text = "".join(
                f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
                f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
                for label, box, difficult in objects
            )
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    return root


def coco_parts() -> dict[str, dict[str, Any]]:
    """The contents of two COCO files; categories, images and annotations are not in the order of their ids."""
    categories = [{"id": 7, "name": "ant"}, {"id": 2, "name": "dog"}, {"id": 4, "name": "cat"}]

    def image(number: int) -> dict[str, Any]:
        return {"id": number, "file_name": f"{number}.jpg", "width": SIZE[0], "height": SIZE[1]}

    def entry(number: int, image_id: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
        given = {"id": number, "image_id": image_id, "category_id": category, "bbox": box}
        return {**given, "area": box[2] * box[3], "iscrowd": 0, **more}

    train = [
        entry(30, 9, 7, [1.5, 2.25, 10.5, 20]),
        entry(11, 9, 2, [0, 0, 60, 40], iscrowd=1),
        entry(12, 9, 4, [50, 30, 20, 5]),  # reaches out on the right
        entry(13, 9, 4, [5, 5, 0, 8]),  # no area
        entry(14, 5, 2, [70, 5, 5, 8]),  # wholly outside: the image is left without boxes
        entry(15, 2, 2, [3, 4, 0.5, 9]),  # less than a pixel wide
        entry(16, 2, 2, [3, 4, 5, 9], area=0),
        entry(17, 2, 7, [3, 4, 6, 9], ignore=1),
        entry(18, 2, 4, [0.2, 10, 60.1, 30]),  # a rounding beyond the edge
    ]
    return {
        "train": {"images": [image(9), image(5), image(2), image(6)], "annotations": train, "categories": categories},
        "val": {"images": [image(1)], "annotations": [entry(1, 1, 4, [1, 2, 3, 4])], "categories": categories[::-1]},
    }


def write_coco(root: Path, parts: dict[str, dict[str, Any]], suffix: str = "") -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part, content in parts.items():
        (root / "annotations" / f"instances_{part}{suffix}.json").write_text(json.dumps(content))
        for image in content["images"]:
            draw(root / f"{part}{suffix}" / f"{image['id']}.jpg")
    return root


def read(root: Path, strict: bool = False) -> DetectionSet:
    return detection_folder(root, 32, strict=strict, progress=False)


def rows(annotations: list[Annotation]) -> list[Any]:
    """Annotations as plain values."""
    return [
        (a.image_id, str(a.file), a.width, a.height, a.boxes.tolist(), a.labels.tolist(), a.difficult.tolist())
        for a in annotations
    ]


def mmdet_rows(dataset: Any) -> list[Any]:
    """The same of what mmdet's dataset holds."""
    found = []
    for place in range(len(dataset)):
        parts = getattr(dataset, "datasets", None)
        index, inner = dataset._get_ori_dataset_idx(place) if parts else (0, place)
        info = (parts[index] if parts else dataset).get_data_info(inner)
        boxes = np.array([i["bbox"] for i in info["instances"]], dtype=np.float32).reshape(-1, 4).tolist()
        labels = [i["bbox_label"] for i in info["instances"]]
        ignored = [bool(i["ignore_flag"]) for i in info["instances"]]
        size = (info["width"], info["height"])
        found.append((info["img_id"], str(Path(info["img_path"])), *size, boxes, labels, ignored))
    return found


def test_a_voc_folder_is_read_as_written(tmp_path: Path) -> None:
    data = read(write_voc(tmp_path, {"trainval": TRAIN, "test": TEST}))
    assert (data.classes, data.layout, data.size, data.name) == (("ant", "cat", "dog"), "voc", 32, tmp_path.name)
    images = tmp_path / "JPEGImages"
    assert rows(data.train.annotations) == [
        ("a", str(images / "a.jpg"), 60, 40, [[0, 0, 9, 19], [4, 5, 29, 39]], [2, 1], [False, True]),
        ("b", str(images / "b.jpg"), 60, 40, [[0, 4, 59, 38]], [0], [False]),
        ("c", str(images / "c.jpg"), 60, 40, [], [], []),
        ("d", str(images / "d.jpg"), 60, 40, [], [], []),
    ]
    assert [a.image_id for a in data.test.annotations] == ["e", "f"]
    assert data.problems == {"zero area": 2, "outside image": 1, "wholly outside": 1, "under one pixel": 0}
    first = data.train.annotations[2]
    assert first.boxes.shape == (0, 4) and (first.boxes.dtype, first.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("stated", [SIZE, None, (0, 0), (20, 90)])
def test_mmdet_s_voc_dataset_sees_the_same(tmp_path: Path, stated: tuple[int, int] | None) -> None:
    """Also without <size>, and with one that boxes reach beyond: the image itself is measured then."""
    data = read(write_voc(tmp_path, {"trainval": TRAIN, "test": TEST}, stated))
    expected = rows(data.train.annotations)
    assert expected[1][4] == [[0, 4, 59, 38]]
    assert mmdet_rows(data.train.dataset([], training=False)) == expected
    assert mmdet_rows(data.test.dataset([], training=False)) == rows(data.test.annotations)
    assert mmdet_rows(data.train.dataset([], training=True)) == expected[:2]
    assert data.train.dataset([], training=True).metainfo["classes"] == data.classes


def test_a_coco_folder_is_read_as_written(tmp_path: Path) -> None:
    data = read(write_coco(tmp_path, coco_parts()))
    assert (data.classes, data.layout) == (("dog", "cat", "ant"), "coco")  # in the order of the ids 2, 4, 7
    images = tmp_path / "train"
    boxes = [[1.5, 2.25, 12, 22.25], [0, 0, 60, 40], [50, 30, 60, 35]]
    assert rows(data.train.annotations) == [
        (9, str(images / "9.jpg"), 60, 40, boxes, [2, 0, 1], [False, True, False]),
        (5, str(images / "5.jpg"), 60, 40, [], [], []),
        (2, str(images / "2.jpg"), 60, 40, [[np.float32(0.2), 10, 60, 40]], [1], [False]),
        (6, str(images / "6.jpg"), 60, 40, [], [], []),
    ]
    assert data.problems == {"zero area": 2, "outside image": 1, "wholly outside": 1, "under one pixel": 1}
    assert data.test.coco_json == tmp_path / "annotations" / "instances_val.json"


def test_mmdet_s_coco_dataset_sees_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read(write_coco(tmp_path, coco_parts()))
    expected = rows(data.train.annotations)
    assert mmdet_rows(data.train.dataset([], training=False)) == expected
    assert mmdet_rows(data.test.dataset([], training=False)) == rows(data.test.annotations)
    assert mmdet_rows(data.train.dataset([], training=True)) == [expected[0], expected[2]]
    assert "loading annotations" not in capsys.readouterr().out


def test_a_pipeline_of_mmdet_s_gives_these_boxes(tmp_path: Path) -> None:
    data = read(write_voc(tmp_path, {"trainval": TRAIN, "test": TEST}))
    pipeline = [dict(type=f"mmdet.{name}") for name in ("LoadAnnotations", "PackDetInputs")]
    pipeline[0]["with_bbox"] = True
    data.train.dataset([], training=True)  # registers mmdet's transforms
    import mmdet.datasets.transforms  # noqa: F401

    item = data.train.dataset([dict(type="LoadImageFromFile"), *pipeline], training=True)[0]
    assert tuple(item["inputs"].shape) == (3, 40, 60)
    assert item["data_samples"].gt_instances.bboxes.tensor.tolist() == [[0, 0, 9, 19]]
    assert item["data_samples"].ignored_instances.bboxes.tensor.tolist() == [[4, 5, 29, 39]]


@given(
    st.lists(st.tuples(*[st.integers(-30, 90).map(lambda v: v / 2)] * 4), max_size=8),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_clean_equals_a_plain_loop(boxes: list[tuple[float, ...]], right: int, bottom: int) -> None:
    expected = []
    for x1, y1, x2, y2 in boxes:
        inside = (min(max(x1, 0), right), min(max(y1, 0), bottom), min(max(x2, 0), right), min(max(y2, 0), bottom))
        beyond = max(-x1, -y1, -x2, -y2, x1 - right, x2 - right, y1 - bottom, y2 - bottom)
        if x2 <= x1 or y2 <= y1:
            expected.append("zero area")
        elif inside[2] <= inside[0] or inside[3] <= inside[1]:
            expected.append("wholly outside")
        else:
            expected.append((inside, "outside image" if beyond > 0.5 else ""))
    clipped, kinds = clean(np.array(boxes, dtype=np.float64).reshape(-1, 4), right, bottom)
    found = [
        (tuple(box), str(kind)) if kind in ("", "outside image") else str(kind)
        for box, kind in zip(clipped, kinds, strict=True)
    ]
    assert found == expected


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def in_xml(old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    return lambda root: edit(root / "Annotations" / "a.xml", old, new, count)


def in_list(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "ImageSets/Main/trainval.txt").write_text(text) and None


def to_png(root: Path) -> None:
    (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/a.png")


def both(root: Path) -> None:
    (root / "ImageSets/Main/test.txt").write_text("e\na\n")


def no_size_and_no_image(root: Path) -> None:
    edit(root / "Annotations/a.xml", "<width>60</width>", "<width>5</width>")
    (root / "JPEGImages/a.jpg").write_bytes(b"nothing")


def in_utf_16(root: Path) -> None:
    path = root / "Annotations" / "a.xml"
    text = path.read_text().replace("<annotation>", '<!DOCTYPE a [<!ENTITY b "b">]><annotation>')
    path.write_bytes(f'<?xml version="1.0" encoding="UTF-16"?>{text}'.encode("utf-16"))


VOC_BREAKAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "malformed": (in_xml("</object>", ""), ["Annotations/a.xml", "malformed XML"]),
    "entities": (
        in_xml("<annotation>", '<!DOCTYPE a [<!ENTITY b "b"><!ENTITY c "&b;&b;">]><annotation>'),
        ["Annotations/a.xml", "defines entities"],
    ),
    "entities in UTF-16": (in_utf_16, ["Annotations/a.xml", "defines entities"]),
    "too large": (in_xml("</annotation>", " " * 1_000_000 + "</annotation>"), ["Annotations/a.xml", "more than 1 MB"]),
    "not xml": (lambda r: (r / "Annotations/a.xml").write_bytes(b"\xff\x00\x01") and None, ["Annotations/a.xml"]),
    "no xml": (lambda r: (r / "Annotations/a.xml").unlink(), ["Annotations/a.xml", "missing", "trainval.txt"]),
    "no image": (lambda r: (r / "JPEGImages/a.jpg").unlink(), ["JPEGImages/a.jpg", "missing", "trainval.txt"]),
    "png": (to_png, ["JPEGImages/a.png", "no .jpg"]),
    "no name": (in_xml("<name>cat</name>", ""), ["a.xml", "object 2", "<name>"]),
    "empty name": (in_xml("<name>cat</name>", "<name/>"), ["a.xml", "object 2", "<name>"]),
    "no box": (in_xml("bndbox", "box", 2), ["a.xml", "object 1 (dog)", "<bndbox>"]),
    "no side": (in_xml("<ymin>6.2</ymin>", ""), ["a.xml", "object 2 (cat)", "<ymin>"]),
    "no number": (in_xml("30.99", "wide"), ["a.xml", "object 2 (cat)", "'wide'", "<xmax>"]),
    "nan": (in_xml("30.99", "nan"), ["a.xml", "object 2 (cat)", "'nan'", "<xmax>"]),
    "inf": (in_xml("30.99", "inf"), ["a.xml", "object 2 (cat)", "'inf'", "<xmax>"]),
    "difficult": (in_xml("<difficult>1", "<difficult>yes"), ["a.xml", "object 2 (cat)", "'yes'", "<difficult>"]),
    "size": (in_xml("<width>60", "<width>wide"), ["a.xml", "size", "'wide'", "<width>"]),
    "unreadable image": (no_size_and_no_image, ["JPEGImages/a.jpg", "cannot be decoded"]),
    "empty list": (in_list(""), ["trainval.txt", "empty"]),
    "blank line": (in_list("a\n\nb\n"), ["trainval.txt", "line 2", "blank"]),
    "per-class list": (in_list("a  1\nb -1\n"), ["a  1.jpg", "trainval.txt", "missing"]),
    "listed twice": (in_list("a\nb\na\n"), ["trainval.txt", "line 3", "image a ", "twice"]),
    "no objects": (in_list("d\n"), ["trainval.txt", "no usable objects"]),
    "in both": (both, ["JPEGImages/a.jpg", "trainval.txt", "test.txt"]),
    "no lists": (lambda r: (r / "ImageSets/Main/test.txt").unlink(), ["ImageSets/Main", "test.txt"]),
}


def one_line(caught: pytest.ExceptionInfo[UserError], named: list[str]) -> None:
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in named if part not in message] == [], message


@pytest.mark.parametrize("breakage", VOC_BREAKAGES)
def test_broken_voc_data_get_one_line(tmp_path: Path, breakage: str) -> None:
    root = write_voc(tmp_path, {"trainval": TRAIN, "test": TEST})
    read(root)
    break_it, named = VOC_BREAKAGES[breakage]
    break_it(root)
    with pytest.raises(UserError) as caught:
        read(root)
    one_line(caught, named)


def in_coco(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def set_in(part: str, place: int, **values: Any) -> Callable[[Path], None]:
    return in_coco(lambda content: content[part][place].update(values))


def drop_in(part: str, place: int, key: str) -> Callable[[Path], None]:
    return in_coco(lambda content: content[part][place].pop(key))


def append(part: str, entry: dict[str, Any]) -> Callable[[Path], None]:
    return in_coco(lambda content: content[part].append(entry))


JSON = "instances_train.json"
COCO_BREAKAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no json": (lambda r: edit(r / "annotations" / JSON, "{", "<"), [JSON, "JSON"]),
    "a list": (lambda r: (r / "annotations" / JSON).write_text("[]") and None, [JSON, "categories"]),
    "no images list": (in_coco(lambda c: c.pop("images")), [JSON, "'images'"]),
    "dangling image": (set_in("annotations", 0, image_id=77), [JSON, "annotations id 30", "image_id 77"]),
    "image id of a list": (set_in("annotations", 0, image_id=[9]), [JSON, "annotations id 30", "image_id [9]"]),
    "dangling category": (set_in("annotations", 1, category_id=3), [JSON, "annotations id 11", "category_id 3"]),
    "annotation twice": (set_in("annotations", 1, id=30), [JSON, "annotations id 30", "twice"]),
    "image twice": (set_in("images", 1, id=9), [JSON, "images id 9", "twice"]),
    "category twice": (set_in("categories", 1, id=7), [JSON, "categories id 7", "twice"]),
    "name twice": (set_in("categories", 1, name="ant"), [JSON, "'ant'", "twice"]),
    "no id": (drop_in("annotations", 2, "id"), [JSON, "entry 3 of annotations", "'id'"]),
    "id of a text": (set_in("images", 2, id="2"), [JSON, "entry 3 of images", "'id'"]),
    "no area": (drop_in("annotations", 2, "area"), [JSON, "annotations id 12", "'area'"]),
    "no crowd": (drop_in("annotations", 2, "iscrowd"), [JSON, "annotations id 12", "'iscrowd'"]),
    "no width": (drop_in("images", 1, "width"), [JSON, "images id 5", "'width'"]),
    "width of 0": (set_in("images", 1, width=0), [JSON, "images id 5", "0 x 40"]),
    "three numbers": (set_in("annotations", 2, bbox=[1, 2, 3]), [JSON, "annotations id 12", "[1, 2, 3]"]),
    "nan": (set_in("annotations", 2, bbox=[1, 2, 3, float("nan")]), [JSON, "annotations id 12", "nan"]),
    "area of a text": (set_in("annotations", 2, area="9"), [JSON, "annotations id 12", "'9'", "'area'"]),
    "crowd of 2": (set_in("annotations", 2, iscrowd=2), [JSON, "annotations id 12", "'iscrowd'"]),
    "no image": (lambda r: (r / "train/5.jpg").unlink(), ["train/5.jpg", JSON, "images id 5", "missing"]),
    "no first image": (lambda r: (r / "train/9.jpg").unlink(), ["train/9.jpg", JSON, "images id 9", "missing"]),
    "absolute": (set_in("images", 0, file_name="/9.jpg"), [JSON, "images id 9", "/9.jpg"]),
    "other categories": (append("categories", {"id": 9, "name": "elk"}), [JSON, "instances_val.json", "9 elk"]),
    "no categories": (in_coco(lambda c: c.update(categories=[])), [JSON, "no categories"]),
    "no images": (in_coco(lambda c: c.update(images=[], annotations=[])), [JSON, "no images"]),
    "no objects": (in_coco(lambda c: c.update(annotations=[])), [JSON, "no usable objects"]),
    "no test file": (lambda r: (r / "annotations/instances_val.json").unlink(), ["annotations", "0 files", "val"]),
    "two train files": (lambda r: (r / "annotations/instances_train2.json").touch(), ["annotations", "2 files"]),
}


@pytest.mark.parametrize("breakage", COCO_BREAKAGES)
def test_broken_coco_data_get_one_line(tmp_path: Path, breakage: str) -> None:
    root = write_coco(tmp_path, coco_parts())
    read(root)
    break_it, named = COCO_BREAKAGES[breakage]
    break_it(root)
    with pytest.raises(UserError) as caught:
        read(root)
    one_line(caught, named)


@pytest.mark.parametrize(
    ("box", "sentence"),
    [((7, 9, 7, 30), "zero area"), ((0, 5, 30, 39), "reaches outside"), ((61, 3, 65, 9), "wholly outside")],
)
def test_strict_voc_data_name_the_object(tmp_path: Path, box: tuple[int, int, int, int], sentence: str) -> None:
    sound: dict[str, list[Object]] = {"a": [("dog", (1, 1, 60, 40), 0)]}
    root = write_voc(tmp_path, {"trainval": sound, "test": TEST})
    assert not any(read(root, strict=True).problems.values())
    write_voc(root, {"trainval": {"a": [*sound["a"], ("dog", box, 0)]}})
    with pytest.raises(UserError) as caught:
        read(root, strict=True)
    one_line(caught, ["Annotations/a.xml", "object 2 (dog)", sentence, "--strict-data"])


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(12, "reaches outside"), (13, "zero area"), (14, "wholly outside"), (15, "one pixel"), (16, "zero area")],
)
def test_strict_coco_data_name_the_object(tmp_path: Path, number: int, sentence: str) -> None:
    parts = coco_parts()
    parts["train"]["annotations"] = [e for e in parts["train"]["annotations"] if e["id"] in (30, 18, number)]
    root = write_coco(tmp_path, parts)
    with pytest.raises(UserError) as caught:
        read(root, strict=True)
    one_line(caught, [JSON, f"annotations id {number}", sentence, "--strict-data"])


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (("trainval", "test"), ("trainval", "test")),
        (("train", "val", "trainval", "test"), ("trainval", "test")),
        (("train", "val"), ("train", "val")),
        (("train", "val", "trainval"), ("train", "val")),  # trainval contains val
        (("train", "test"), ("train", "test")),
    ],
)
def test_which_lists_are_the_splits(tmp_path: Path, present: tuple[str, ...], chosen: tuple[str, str]) -> None:
    lists = {part: {f"{part}{n}": [("cat", (1, 1, 9, 9), 0)] for n in range(2)} for part in present}
    data = read(write_voc(tmp_path, lists))  # type: ignore[arg-type]
    assert [split.annotations[0].image_id for split in (data.train, data.test)] == [f"{part}0" for part in chosen]


@pytest.mark.parametrize("place", ["train", "images/train", "images", "training", "train_images", "."])
def test_where_coco_images_may_lie(tmp_path: Path, place: str) -> None:
    root = write_coco(tmp_path / "x", coco_parts())
    (root / place).parent.mkdir(exist_ok=True)
    for image in list((root / "train").iterdir()):
        (root / place).mkdir(exist_ok=True)
        image.rename(root / place / image.name)
    assert {a.file.parent for a in read(root).train.annotations} == {root / place}


def test_layouts(tmp_path: Path) -> None:
    assert layout_of(tmp_path) is None
    assert layout_of(write_voc(tmp_path / "v", {"trainval": TRAIN})) == "voc"
    assert layout_of(write_coco(tmp_path / "c", coco_parts())) == "coco"
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    one_line(caught, [str(tmp_path), "Annotations/", "ImageSets/Main/", "JPEGImages/", "annotations/"])


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_a_fingerprint_changes_with_a_box_and_not_with_the_place(tmp_path: Path, layout: str) -> None:
    prints = []
    for folder in ("one", "two"):
        if layout == "voc":
            write_voc(tmp_path / folder, {"trainval": TRAIN, "test": TEST})
        else:
            write_coco(tmp_path / folder, coco_parts())
        prints.append(read(tmp_path / folder).fingerprint)
    assert prints[0] == prints[1]
    if layout == "voc":
        edit(tmp_path / "two/Annotations/a.xml", "<xmax>10<", "<xmax>11<")
    else:
        edit(tmp_path / "two/annotations/instances_train.json", "[1.5,", "[1.6,")
    prints.append(read(tmp_path / "two").fingerprint)
    draw(next((tmp_path / "two").rglob("*.jpg")), (61, 40))
    prints.append(read(tmp_path / "two").fingerprint)
    assert len(set(prints)) == 3


def devkit(root: Path) -> Path:
    write_voc(
        root / "VOC2007",
        {
            "trainval": {"000005": [("person", (1, 1, 20, 20), 0)], "000007": []},
            "test": {"000001": [("dog", (3, 3, 30, 30), 1)]},
        },
    )
    write_voc(root / "VOC2012", {"trainval": {"2008_000002": [("aeroplane", (2, 2, 20, 20), 0)]}})
    return root


@pytest.mark.parametrize("place", [".", "voc", "VOCdevkit", "voc/VOCdevkit"])
def test_the_devkit_is_found(tmp_path: Path, place: str) -> None:
    root = devkit(tmp_path / place)
    assert voc.find(tmp_path) == root
    assert len(voc.voc_detection(tmp_path, 300, progress=False).train) == 3


def test_the_devkit_s_years_are_joined(tmp_path: Path) -> None:
    data = voc.voc_detection(devkit(tmp_path), 300, progress=False)
    assert [a.image_id for a in data.train.annotations] == ["000005", "000007", "2008_000002"]
    assert (len(data.classes), len(data.test)) == (20, 1)
    assert [a.labels.tolist() for a in data.train.annotations] == [[14], [], [0]]
    joined = data.train.dataset([], training=False)
    assert type(joined).__name__ == "ConcatDataset"
    assert mmdet_rows(joined) == rows(data.train.annotations)
    assert joined.metainfo["classes"] == data.classes
    assert len(data.train.dataset([], training=True)) == 2
    from mmdet.datasets import VOCDataset

    assert VOCDataset.METAINFO["classes"] == voc.CLASSES


def test_an_unknown_class_in_the_devkit(tmp_path: Path) -> None:
    edit(devkit(tmp_path) / "VOC2012/Annotations/2008_000002.xml", "aeroplane", "airplane")
    with pytest.raises(UserError) as caught:
        voc.voc_detection(tmp_path, 300, progress=False)
    one_line(caught, ["VOC2012/Annotations/2008_000002.xml", "object 1 (airplane)", "20 classes"])


def test_missing_pieces_of_voc(tmp_path: Path) -> None:
    assert voc.find(tmp_path) is None
    assert all(part in voc.missing(tmp_path) for part in ("VOCdevkit", "VOC2007/", "VOC2012/", "--data"))
    (devkit(tmp_path / "VOCdevkit") / "VOC2007/ImageSets/Main/test.txt").unlink()
    assert voc.find(tmp_path) is None
    message = voc.missing(tmp_path)
    assert "VOC2007/ImageSets/Main/test.txt" in message and "VOCtest_06-Nov-2007.tar" in message
    with pytest.raises(UserError, match="VOCtest_06-Nov-2007"):
        voc.voc_detection(tmp_path, 300, progress=False)


def test_coco_2017_is_found_and_its_missing_pieces_named(tmp_path: Path) -> None:
    assert coco.find(tmp_path) is None
    assert all(part in coco.missing(tmp_path) for part in ("train2017.zip", "annotations_trainval2017.zip", "--data"))
    root = write_coco(tmp_path / "coco", coco_parts(), "2017")
    assert coco.find(tmp_path) == coco.find(root) == root
    data = coco.coco_detection(tmp_path, 300, progress=False)
    assert (data.name, len(data.train), data.test.annotations[0].file) == ("coco", 4, root / "val2017" / "1.jpg")
    (root / "val2017").rename(root / "val")
    assert "val2017.zip" in coco.missing(tmp_path)
    with pytest.raises(UserError, match=r"val2017\.zip"):
        coco.coco_detection(tmp_path, 300, progress=False)


def test_importing_the_data_does_not_import_mmdet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh import of the package where importing mmdet fails."""
    for name in [name for name in sys.modules if name.split(".")[0] == "bench"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("mmdet", "mmcv"):
        monkeypatch.setitem(sys.modules, name, None)
    assert importlib.import_module("bench.data.scenes").scenes_detection is not None
    assert importlib.import_module("bench.data.detection").voc_folder is not voc.voc_folder


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"no BCCD data set in {BCCD}: set BENCH_SHARED")
def test_real_microscope_images() -> None:
    """BCCD: its 364 images and two boxes without area, counted here from the XML text alone."""
    data = read(BCCD)
    names: Counter[str] = Counter()
    flat = []
    for file in sorted((BCCD / "Annotations").glob("*.xml")):
        for element in ElementTree.parse(file).iter("object"):
            sides = [float(element.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
            names[str(element.findtext("name"))] += 1
            if sides[0] == sides[2] or sides[1] == sides[3]:
                flat.append(file.stem)
                names[str(element.findtext("name"))] -= 1
    assert flat == ["BloodImage_00338", "BloodImage_00343"]
    assert (len(data.train), len(data.test), data.classes) == (292, 72, ("Platelets", "RBC", "WBC"))
    assert data.problems == {"zero area": 2, "outside image": 0, "wholly outside": 0, "under one pixel": 0}
    found = torch.cat([a.labels for split in (data.train, data.test) for a in split.annotations])
    assert dict(zip(data.classes, found.bincount().tolist(), strict=True)) == dict(names)
    assert mmdet_rows(data.test.dataset([], training=False)) == rows(data.test.annotations)
    with pytest.raises(UserError, match=r"BloodImage_00338\.xml: object 13 \(RBC\) has zero area"):
        read(BCCD, strict=True)
