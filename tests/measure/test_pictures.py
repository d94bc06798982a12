"""What row files keep of a few test images: which images, which boxes, and pixels of the suite's own ones alone."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data.annotations import Annotation
from bench.measure.detection import Detections
from bench.measure.detection_steps import _pack
from bench.measure.pictures import Pictures, confident, pictures, run_pictures
from bench.rows import Setting
from bench.steps import Context, DataValue, Kind, make_step
from bench.store import Result

CLASSES = ("cat", "dog")
# image 0 has nothing, image 2 only a difficult object
DIFFICULT: list[list[bool]] = [[], [False, True], [True], [False], [False], [False], [False]]


def annotations(folder: Path) -> list[Annotation]:
    """Images of 64 x 32 pixels, each of another brightness; object k at (10 k, 5), 9 pixels wide and high."""
    found = []
    for place, flags in enumerate(DIFFICULT):
        pixels = np.full((32, 64, 3), 30 * place, np.uint8)
        pixels[:, 32:] += 8
        Image.fromarray(pixels).save(folder / f"{place}.png")
        boxes = torch.tensor([[10.0 * k, 5.0, 10.0 * k + 9, 14.0] for k in range(len(flags))]).reshape(-1, 4)
        difficult = torch.tensor(flags, dtype=torch.bool)
        labels = torch.arange(len(flags)) % 2
        found.append(Annotation(place, folder / f"{place}.png", 64, 32, boxes, labels, difficult))
    return found


def detected(score: float) -> Result:
    """In every image a cat with this score and a dog with one half of it; boxes tell the image."""
    every = [
        Detections(
            torch.tensor([[1.4, 2.0, 20.0 + place, 30.6], [0.0, 0.0, 5.0, 5.0]]),
            torch.tensor([score / 2, score]),
            torch.tensor([1, 0]),
        )
        for place in range(len(DIFFICULT))
    ]
    return Result(arrays=_pack(every))


def run(folder: Path, params: Pictures) -> dict[str, Any]:
    data = SimpleNamespace(test=SimpleNamespace(annotations=annotations(folder)), classes=CLASSES)
    context = Context(lambda: data, "cpu", False, folder)
    found: dict[str, Any] = run_pictures(context, [detected(0.6), detected(1.0)], params).facts["pictures"]
    return found


def test_the_first_images_with_something_to_find_and_confident_boxes(tmp_path: Path) -> None:
    found = run(tmp_path, Pictures(images=3, score=0.5))
    assert found["score"] == 0.5
    first, *others = found["images"]
    assert first == {
        "width": 64,
        "height": 32,
        "truth": [{"class": "cat", "box": "0 5 9 14"}],  # the dog is difficult
        "dense": [
            {"class": "cat", "box": "0 0 5 5", "score": 1.0},
            {"class": "dog", "box": "1 2 21 31", "score": 0.5},
        ],
        "pruned": [{"class": "cat", "box": "0 0 5 5", "score": 0.6}],
    }
    assert [image["dense"][1]["box"] for image in others] == ["1 2 23 31", "1 2 24 31"]  # images 3 and 4


def test_many_boxes_are_cut_to_the_best_twenty() -> None:
    scores = torch.linspace(0.9, 0.6, 50)[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    found = Detections(torch.zeros(50, 4), scores, torch.zeros(50, dtype=torch.int64))
    kept = [box["score"] for box in confident(found, 0.5, CLASSES)]
    assert kept == [round(float(score), 2) for score in sorted(scores.tolist(), reverse=True)[:20]]


def test_thumbnails_are_small_and_grey(tmp_path: Path) -> None:
    found = run(tmp_path, Pictures(images=4, thumbnails=True))
    for place, image in zip((1, 3, 4, 5), found["images"], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["thumbnail"]))))
        assert pixels.shape == (32, 64)
        # of sixteen greys the nearest
        for half, value in ((pixels[:, :32], 30 * place), (pixels[:, 32:], 30 * place + 8)):
            assert set(half.ravel().tolist()) == {min(range(0, 256, 17), key=lambda grey: abs(grey - value))}


def test_noise_of_the_largest_size_keeps_a_row_file_small(tmp_path: Path) -> None:
    """Four images of the scenes' size, worse than they are, and the most boxes: below 60 kB as they are written."""
    every = annotations(tmp_path)
    rng = np.random.default_rng(0)
    for one in every:
        noise = rng.normal(120, 10, (160, 160, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).save(one.file)
    many = Detections(torch.full((30, 4), 159.0), torch.full((30,), 0.9), torch.zeros(30, dtype=torch.int64))
    data = SimpleNamespace(test=SimpleNamespace(annotations=every), classes=CLASSES)
    parent = Result(arrays=_pack([many] * len(every)))
    context = Context(lambda: data, "cpu", False, tmp_path)
    fact = run_pictures(context, [parent, parent], Pictures(thumbnails=True)).facts["pictures"]
    (side,) = {Image.open(io.BytesIO(base64.b64decode(one["thumbnail"]))).size for one in fact["images"]}
    assert side == (96, 96)
    assert len(json.dumps(fact, indent=1)) < 60_000


@pytest.mark.parametrize(("scale", "kept"), [("scenes", True), ("voc", False), ("coco", False), ("a/scenes", False)])
def test_pixels_are_kept_of_the_suite_s_own_images_alone(scale: str, kept: bool, tmp_path: Path) -> None:
    where = Setting(scale, DataValue("plain", "training"), 2, 4, 4, "cpu", (0,), None)
    parent = make_step(Kind.EVALUATE, "e", run_pictures, Pictures(), device="cpu")
    step = pictures(where, parent, parent)
    assert step.params.thumbnails is kept and step.data == "plain"
    assert all(("thumbnail" in image) is kept for image in run(tmp_path, step.params)["images"])
