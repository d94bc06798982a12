"""Known sets are known by what they hold: a folder that only looks like one is none, and gets no verdicts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bench.data
from bench.cli import main
from bench.data import known
from bench.errors import UserError


def imagenet(root: Path, classes: int, validation: int, prefix: str = "n") -> Path:
    """Folders as ImageNet's with empty files for images, spread over the classes."""
    for number in range(classes):
        for part in ("train", "val"):
            (root / part / f"{prefix}{number:08d}").mkdir(parents=True)
    for number in range(validation):
        (root / "val" / f"{prefix}{number % classes:08d}" / f"{number}.JPEG").touch()
    return root


def devkit(root: Path, test: int, trainval: int, later: int) -> Path:
    for name, count in (
        ("VOC2007/ImageSets/Main/test.txt", test),
        ("VOC2007/ImageSets/Main/trainval.txt", trainval),
        ("VOC2012/ImageSets/Main/trainval.txt", later),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{number:06d}\n" for number in range(count)))
    for year in ("VOC2007", "VOC2012"):
        for part in ("Annotations", "JPEGImages"):
            (root / year / part).mkdir()
    return root


def coco(root: Path, images: int, classes: int) -> Path:
    for part in ("annotations", "train2017", "val2017"):
        (root / part).mkdir(parents=True)
    for part in ("train", "val"):
        value = {"images": [{}] * images, "categories": [{}] * classes, "annotations": []}
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(value))
    return root


def test_imagenet_has_a_thousand_wordnet_classes_and_fifty_thousand_validation_images(tmp_path: Path) -> None:
    whole = imagenet(tmp_path / "whole" / "imagenet", 1000, 50_000)
    assert known.shortfall("imagenet", whole) is None
    assert bench.data.find("imagenet", tmp_path / "whole") == whole
    few = imagenet(tmp_path / "few", 10, 20)
    assert known.shortfall("imagenet", few) == "train/ has 10 of 1,000 WordNet classes among 10 folders"
    names = imagenet(tmp_path / "names", 1000, 1000, prefix="class")
    assert known.shortfall("imagenet", names) == "train/ has 0 of 1,000 WordNet classes among 1,000 folders"
    (whole / "val" / "n00000999" / "49999.JPEG").unlink()
    known._imagenet.cache_clear()
    assert known.shortfall("imagenet", whole) == "val/ has 49,999 of 50,000 images"


def test_voc_and_coco_are_counted_too(tmp_path: Path) -> None:
    assert known.shortfall("voc", devkit(tmp_path / "a", 4952, 5011, 11_540)) is None
    assert "lists 6 of 4,952" in (known.shortfall("voc", devkit(tmp_path / "b", 6, 5011, 11_540)) or "")
    assert "lists 3 of 11,540" in (known.shortfall("voc", devkit(tmp_path / "c", 4952, 5011, 3)) or "")
    assert known.shortfall("coco", coco(tmp_path / "d", 5000, 80)) is None
    assert "40 of 5,000 images and 3 of 80" in (known.shortfall("coco", coco(tmp_path / "e", 40, 3)) or "")
    (tmp_path / "e" / "annotations" / "instances_val2017.json").write_text("{")
    known._coco.cache_clear()
    assert "cannot be read" in (known.shortfall("coco", tmp_path / "e") or "")


@pytest.mark.parametrize("scale", ["imagenet", "voc", "coco"])
def test_a_folder_that_only_looks_like_the_set_is_refused_in_one_line(tmp_path: Path, scale: str) -> None:
    make = {
        "imagenet": lambda: imagenet(tmp_path / "imagenet", 10, 20),
        "voc": lambda: devkit(tmp_path / "VOCdevkit", 6, 6, 6),
        "coco": lambda: coco(tmp_path / "coco", 6, 2),
    }
    make[scale]()
    assert bench.data.find(scale, tmp_path) is None
    with pytest.raises(UserError) as caught:
        bench.data.load(scale, tmp_path, 224, progress=False)
    text = str(caught.value)
    assert "\n" not in text and "--scale" in text and f"is not {scale}" in text
    assert bench.data.needs(scale, tmp_path).startswith(f"needs all of {scale}: ")
    assert bench.data.needs(scale, tmp_path / "nowhere") == f"needs {scale}"


def test_ten_invented_classes_earn_no_verdict_on_imagenet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table 6 on 20 + 20 invented images of 10 classes came out ``better`` once."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(10):
            place = tmp_path / "data" / "imagenet" / part / f"n{label:08d}"
            place.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(place / f"{number}.JPEG")
    data = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(["run", "channel_pruning", "--table", "Table 6", *data, "--plan"]) == 0
    assert "needs all of imagenet: train/ has 10 of 1,000 WordNet classes" in capsys.readouterr().out
    assert main(["run", "channel_pruning", "--table", "Table 6", "--scale", "imagenet", "--row", "Ours", *data]) == 2
    assert main(["doctor", "--data", str(tmp_path / "data")]) == 0
    assert "imagenet is not imagenet (train/ has 10 of 1,000" in capsys.readouterr().out
