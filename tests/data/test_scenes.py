"""The embedded scenes: the same bytes each time, scans of their own split, boxes where the digits are, two layouts."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data import scenes
from bench.data.detection import DetectionSet, detection_folder
from bench.data.digits import digits_images
from bench.errors import UserError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own with a copy of the user's scenes, whose folder is named by the sources that drew them."""
    place, drawn = tmp_path_factory.mktemp("cache"), scenes._cached(False)
    shutil.copytree(drawn, place / "pruning-bench" / drawn.name)
    return place


@pytest.fixture
def data(cache: Path, monkeypatch: pytest.MonkeyPatch) -> DetectionSet:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return scenes.scenes_detection(160, progress=False)


def few(folder: Path, seed: int = 3, write: Callable[..., None] = scenes.write_scenes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, seed, train=12, test=6, progress=False)
    return folder


def test_two_writes_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    one, two, other = few(tmp_path / "1"), few(tmp_path / "2"), few(tmp_path / "3", seed=4)
    files = sorted(path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file())
    assert len(files) == 18 * 3 + 4  # two copies of the image, an XML file; two lists, two JSON files
    assert filecmp.cmpfiles(one, two, files, shallow=False) == (files, [], [])
    same = filecmp.cmpfiles(one, other, files, shallow=False)[0]
    assert sorted(same) == ["voc/ImageSets/Main/test.txt", "voc/ImageSets/Main/trainval.txt"]


def test_the_set_is_as_described(data: DetectionSet) -> None:
    assert (len(data.train), len(data.test), data.classes, data.size) == (400, 200, tuple("0123456789"), 160)
    assert not any(data.problems.values())
    for split in (data.train, data.test):
        labels = torch.cat([image.labels for image in split.annotations])
        assert labels.bincount(minlength=10).min() > 20
        difficult = torch.cat([image.difficult for image in split.annotations])
        assert 0.03 < difficult.float().mean() < 0.15
        boxes = torch.cat([image.boxes for image in split.annotations])
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        longest = sides.amax(dim=1)[~difficult]
        assert (longest.min(), longest.max()) == (17, 80)
        aspect = sides[:, 0] / sides[:, 1]
        assert aspect.min() < 0.4 and aspect.max() > 1.1
        for image in split.annotations:
            assert 1 <= len(image.labels) <= 5 and not image.difficult[0]
            assert Image.open(image.file).size == (image.width, image.height) == (160, 160)


def test_overlaps_are_limited(data: DetectionSet) -> None:
    overlaps = []
    for image in data.train.annotations:
        one, other = image.boxes[:, None], image.boxes[None]
        sides = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2]) + 1
        both = sides.clamp(min=0).prod(dim=-1)
        areas = (image.boxes[:, 2:] - image.boxes[:, :2] + 1).prod(dim=1)
        iou = both / (areas[:, None] + areas[None] - both)
        overlaps += iou[~torch.eye(len(iou), dtype=torch.bool)].tolist()
    assert 0.1 < max(overlaps) <= 0.15


def test_training_and_test_scans_are_those_of_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the generator draws from, against the splits of the embedded classification set: no scan in both."""
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    original = scenes._scene

    def spy(generator, scans, labels, side):  # type: ignore[no-untyped-def]
        if not drawn or drawn[-1][0] is not scans:
            drawn.append((scans, labels))
        return original(generator, scans, labels, side)

    monkeypatch.setattr(scenes, "_scene", spy)
    few(tmp_path)
    splits = digits_images(8)
    for (scans, labels), split in zip(drawn, (splits.train, splits.test), strict=True):
        assert np.array_equal((scans * (255 / 16)).round(), split.images[:, 0].numpy())  # type: ignore[attr-defined]
        assert np.array_equal(labels, split.labels.numpy())


def test_boxes_are_where_the_digits_were_painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and last row and column that painting changed, against the XML read back."""
    painted: list[list[int]] = []
    original = scenes._paint

    def spy(generator, canvas, found, opacity):  # type: ignore[no-untyped-def]
        before = canvas.copy()
        original(generator, canvas, found, opacity)
        rows, columns = np.nonzero((canvas != before).any(axis=2))
        painted.append([columns.min(), rows.min(), columns.max(), rows.max()])

    monkeypatch.setattr(scenes, "_paint", spy)
    read = detection_folder(few(tmp_path) / "voc", 160, progress=False)
    boxes = [box for split in (read.train, read.test) for image in split.annotations for box in image.boxes.tolist()]
    assert len(boxes) > 30
    assert boxes == painted


def test_both_layouts_agree_through_mmdet(data: DetectionSet) -> None:
    """VOC's x2 is the last pixel inside, COCO's the edge behind it: they differ by one and by nothing else."""
    folder = data.train.annotations[0].file.parents[2]
    other = detection_folder(folder / "coco", 160, progress=False)
    assert other.classes == data.classes and not any(other.problems.values())
    for voc, coco in ((data.train, other.train), (data.test, other.test)):
        sets = voc.dataset([], training=False), coco.dataset([], training=False)
        assert len(sets[0]) == len(sets[1]) == len(voc)
        for place in range(len(voc)):
            one, two = (dataset.get_data_info(place) for dataset in sets)
            assert int(one["img_id"]) == two["img_id"]
            assert Path(one["img_path"]).read_bytes() == Path(two["img_path"]).read_bytes()
            shifted = [[x1, y1, x2 + 1, y2 + 1] for x1, y1, x2, y2 in (i["bbox"] for i in one["instances"])]
            assert shifted == [i["bbox"] for i in two["instances"]]
            for key in ("bbox_label", "ignore_flag"):
                assert [i[key] for i in one["instances"]] == [i[key] for i in two["instances"]]


def test_the_cache_is_used_again(data: DetectionSet, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "write_scenes", lambda *args, **kwargs: pytest.fail("drawn again"))
    assert scenes.scenes_detection(160, progress=False).fingerprint == data.fingerprint
    assert [path.name[:7] for path in (cache / "pruning-bench").iterdir()] == ["scenes-"]


def test_another_process_may_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def slow(folder: Path, seed: int, progress: bool) -> None:
        monkeypatch.setattr(scenes, "write_scenes", lambda folder, seed, progress: few(folder))
        scenes._cached(False)  # the other one
        few(folder)

    monkeypatch.setattr(scenes, "write_scenes", slow)
    found = scenes.scenes_detection(160, progress=False)
    assert len(found.train) == 12
    assert len(list((tmp_path / "pruning-bench").iterdir())) == 1


def test_a_killed_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def killed(folder: Path, seed: int, progress: bool) -> None:
        (folder / "voc").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "write_scenes", killed)
    with pytest.raises(KeyboardInterrupt):
        scenes.scenes_detection(160, progress=False)
    assert list((tmp_path / "pruning-bench").iterdir()) == []


def test_a_cache_that_cannot_be_written_and_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        scenes.scenes_detection(160, progress=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scenes, "write_scenes", lambda folder, seed, progress: few(folder))
    folder = scenes._cached(False)
    (folder / "voc" / "Annotations" / "000002.xml").unlink()
    with pytest.raises(UserError, match=rf"remove {folder}.*000002\.xml"):
        scenes.scenes_detection(160, progress=False)
