"""Boxes lie where the pixels are: what contradicts the image (size, orientation) is repaired or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from bench.data.detection import DetectionSet, detection_folder
from bench.data.frames import MISSTATED, SCALED, TURNED, Claim, _turned, frames
from bench.errors import UserError

WIDTH, HEIGHT = 120, 80
BOX = (70, 10, 100, 40)  # a white square on black: x1, y1, x2, y2


def photo(path: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A black image of ``size`` with the white square where BOX is in 120 x 80."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).resize(size).save(path, quality=95, exif=exif)
    return path


def white(path: Path, box: Any) -> float:
    """The share of white pixels in a box of the image as OpenCV loads it, less the share outside."""
    pixels = cv2.imread(str(path))[..., 0] > 128
    inside = np.zeros_like(pixels)
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    inside[y1:y2, x1:x2] = True
    return float(pixels[inside].mean() - pixels[~inside].mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_image(tmp_path: Path, orientation: int) -> None:
    path = photo(tmp_path / "a.jpg", orientation)
    turned = _turned(np.array([BOX], dtype=np.float64), (WIDTH, HEIGHT), orientation)
    assert white(path, turned[0]) > 0.95


def write_voc(
    root: Path, images: dict[str, tuple[Path, tuple[int, int] | None, list[tuple[int, ...]]]]
) -> DetectionSet:
    """A VOC folder: the last image is the test image; boxes are 1-based as in VOC."""
    for name in ("Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    names = list(images)
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{name}\n" for name in names[:-1]))
    (root / "ImageSets/Main/val.txt").write_text(f"{names[-1]}\n")
    for name, (_, stated, boxes) in images.items():
        size = "" if stated is None else "<size><width>{}</width><height>{}</height></size>".format(*stated)
        objects = "".join(
            f"<object><name>x</name><bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin>"
            f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for box in boxes
        )
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return detection_folder(root, 32, progress=False)


def check_mmdet(data: DetectionSet) -> None:
    """mmdet's dataset holds the same boxes and sizes."""
    for split in (data.train, data.test):
        dataset = split.dataset([], training=False)
        for place, own in enumerate(split.annotations):
            info = dataset.get_data_info(place)
            boxes = np.array([instance["bbox"] for instance in info["instances"]]).reshape(-1, 4)
            np.testing.assert_allclose(boxes, own.boxes.numpy(), atol=1e-3)
            assert (info["width"], info["height"]) == (own.width, own.height)


def edges(data: DetectionSet, place: int = 0) -> Any:
    """The first box of a training image by its edges (VOC gives first and last pixel)."""
    return data.train.annotations[place].boxes[0] + np.array([0, 0, 1, 1])


def test_a_set_whose_images_were_shrunk_after_labelling(tmp_path: Path) -> None:
    """Stated 1.5 times too large throughout; one image's boxes prove it, the others follow (their boxes fit both)."""
    files = {name: photo(tmp_path / f"JPEGImages/{name}.jpg") for name in "abc"}
    larger = tuple(round(1.5 * v) for v in BOX)
    proof = (150, 90, 178, 118)
    data = write_voc(
        tmp_path,
        {name: (file, (180, 120), [larger, proof] if name == "b" else [larger]) for name, file in files.items()},
    )
    for place, name in enumerate("ab"):
        assert white(files[name], edges(data, place)) > 0.95
        assert (data.train.annotations[place].width, data.train.annotations[place].height) == (WIDTH, HEIGHT)
    assert data.problems[SCALED] == 3
    check_mmdet(data)


def test_without_any_proof_it_is_refused(tmp_path: Path) -> None:
    files = {name: photo(tmp_path / f"JPEGImages/{name}.jpg") for name in "ab"}
    with pytest.raises(UserError, match=r"a\.xml states 180x120 but .* is 120x80") as caught:
        write_voc(tmp_path, {name: (file, (180, 120), [BOX]) for name, file in files.items()})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stated", [(HEIGHT, WIDTH), (90, 90)])
def test_width_and_height_swapped_or_false_while_the_boxes_are_right(tmp_path: Path, stated: tuple[int, int]) -> None:
    files = {name: photo(tmp_path / f"JPEGImages/{name}.jpg") for name in "ab"}
    data = write_voc(tmp_path, {name: (file, stated, [BOX]) for name, file in files.items()})
    assert white(files["a"], edges(data)) > 0.95
    assert data.problems[MISSTATED] == 2
    assert (data.train.annotations[0].width, data.train.annotations[0].height) == (WIDTH, HEIGHT)
    check_mmdet(data)


def test_boxes_that_need_the_false_size_are_refused(tmp_path: Path) -> None:
    files = {name: photo(tmp_path / f"JPEGImages/{name}.jpg") for name in "ab"}
    with pytest.raises(UserError, match=r"states 80x120, which its boxes need, but .* is 120x80"):
        write_voc(tmp_path, {name: (file, (HEIGHT, WIDTH), [(10, 90, 40, 118)]) for name, file in files.items()})


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_photos_labelled_as_they_are_stored(tmp_path: Path, orientation: int) -> None:
    files = {name: photo(tmp_path / f"JPEGImages/{name}.jpg", orientation) for name in "ab"}
    data = write_voc(tmp_path, {name: (file, (WIDTH, HEIGHT), [BOX]) for name, file in files.items()})
    assert white(files["a"], edges(data)) > 0.95
    assert data.problems[TURNED] == 2
    check_mmdet(data)


def test_photos_labelled_upright_are_left_alone(tmp_path: Path) -> None:
    files = {name: photo(tmp_path / f"JPEGImages/{name}.jpg", 6) for name in "ab"}
    upright = tuple(int(v) for v in _turned(np.array([BOX], dtype=np.float64), (WIDTH, HEIGHT), 6)[0])
    data = write_voc(tmp_path, {name: (file, (HEIGHT, WIDTH), [upright]) for name, file in files.items()})
    assert white(files["a"], edges(data)) > 0.95
    assert not any(data.problems.values())


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_an_orientation_that_no_size_tells_is_refused(tmp_path: Path, orientation: int) -> None:
    files = {name: photo(tmp_path / f"JPEGImages/{name}.jpg", orientation) for name in "ab"}
    with pytest.raises(UserError, match="EXIF orientation"):
        write_voc(tmp_path, {name: (file, (WIDTH, HEIGHT), [BOX]) for name, file in files.items()})


def test_coco_boxes_are_moved_for_mmdet_and_for_coco_s_evaluation(tmp_path: Path) -> None:
    """A file whose boxes do not lie in the images as loaded must not serve as the truth of the evaluation."""
    (tmp_path / "annotations").mkdir()
    for number, part in enumerate(("train", "val"), 1):
        photo(tmp_path / part / "a.jpg", size=(60, 40))
        content = {
            "images": [{"id": number, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
            "categories": [{"id": 1, "name": "x"}],
            "annotations": [
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [70, 10, 30, 30],
                    "area": 900,
                    "iscrowd": 0,
                }
            ],
        }
        (tmp_path / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    data = detection_folder(tmp_path, 32, strict=True, progress=False)
    assert data.train.annotations[0].boxes.tolist() == [[35, 5, 50, 20]]
    assert white(tmp_path / "train/a.jpg", data.train.annotations[0].boxes[0]) > 0.9
    assert data.problems[SCALED] == 2 and data.test.coco_json is None
    check_mmdet(data)


def test_a_rounding_is_no_contradiction_and_a_published_set_is_taken_as_it_is_loaded(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.jpg")
    boxes = np.array([BOX], dtype=np.float64)
    near, plain = frames([Claim("a", path, (WIDTH + 1, HEIGHT), boxes), Claim("a", path, None, boxes)], progress=False)
    assert (near.repair, plain.repair, near.moves, plain.moves) == (MISSTATED, "", False, False)
    mirrored = photo(tmp_path / "b.jpg", 2)
    frame = frames([Claim("b", mirrored, (WIDTH, HEIGHT), boxes)], published=True, progress=False)[0]
    assert not frame.moves


def deep(path: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 3000, np.uint16)).save(path)


def clear(path: Path) -> None:
    Image.new("RGBA", (WIDTH, HEIGHT), (9, 9, 9, 100)).save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)


@pytest.mark.parametrize(("write", "named"), [(deep, "8 bits"), (clear, "transparent"), (turned, "upright")])
def test_images_that_mmdet_would_show_wrong_are_refused(tmp_path: Path, write: Any, named: str) -> None:
    write(tmp_path / "a.png")
    with pytest.raises(UserError, match=named):
        frames([Claim("a", tmp_path / "a.png", (WIDTH, HEIGHT), np.zeros((0, 4)))], progress=False)
    Image.new("RGBA", (WIDTH, HEIGHT), (9, 9, 9, 255)).save(tmp_path / "b.png")
    assert frames([Claim("b", tmp_path / "b.png", None, np.zeros((0, 4)))], progress=False)[0].repair == ""
