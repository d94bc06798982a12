"""The random crop against mmdet's own: equal draws, equal crops, equal boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bench import mmcv_ops
from bench.train.cropping import MinIoUCrop

mmcv_ops.install()  # before mmdet

from mmdet.datasets.transforms import MinIoURandomCrop  # noqa: E402
from mmdet.structures.bbox import HorizontalBoxes  # noqa: E402

CHOICES = {"min_ious": (0.1, 0.3, 0.5, 0.7, 0.9), "min_crop_size": 0.3}


def image(seed: int, count: int, width: int, height: int) -> dict[str, Any]:
    """Pixels that tell their places, boxes of all sizes, among them one of no area and one across the border."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    corners = draw.uniform(0.0, 1.0, (count, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    if count > 3:
        boxes[0, 2:] = boxes[0, :2]
        boxes[1] += 5.0
        boxes[2] = np.round(boxes[2])
    return {
        "img": np.stack([y % 256, x % 256, (y // 256) * 16 + x // 256], 2).astype(np.uint8),
        "img_shape": (height, width),
        "gt_bboxes": HorizontalBoxes(torch.from_numpy(boxes)),
        "gt_bboxes_labels": np.arange(count),
        "gt_ignore_flags": draw.random(count) < 0.3,
    }


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (300, 500), (3, 2)])
def test_it_is_mmdet_s(count: int, width: int, height: int) -> None:
    kinds = set()
    for seed in range(10):
        ours, theirs = (image(seed, count, width, height) for _ in range(2))
        np.random.seed(seed)
        expected = MinIoURandomCrop(**CHOICES).transform(theirs)
        next_draw = np.random.random()
        np.random.seed(seed)
        found = MinIoUCrop(**CHOICES)(ours)
        assert np.random.random() == next_draw
        assert found["img_shape"] == expected["img_shape"]
        np.testing.assert_array_equal(found["img"], expected["img"])
        assert torch.equal(found["gt_bboxes"].tensor, expected["gt_bboxes"].tensor)
        for name in ("gt_bboxes_labels", "gt_ignore_flags"):
            np.testing.assert_array_equal(found[name], expected[name])
        kinds.add(found["img_shape"] == (height, width))
    assert kinds == {True, False} or (width, height) == (3, 2)


def test_what_a_crop_keeps() -> None:
    """From the definition: it overlaps every box by the IoU that was asked for, kept are boxes of inner centres."""
    crop = MinIoUCrop(min_ious=(0.3,), min_crop_size=0.3)
    crop.modes = (0.3,)
    for seed in range(40):
        np.random.seed(seed)
        before = image(seed, 1, 200, 200)
        (box,) = before["gt_bboxes"].tensor.numpy().astype(float)
        if (box[2] - box[0]) * (box[3] - box[1]) < 8000.0:
            continue  # hardly any crop overlaps a small one as much
        after = crop(before)
        top, left = after["img"][0, 0, :2].astype(int)
        bottom, right = top + after["img_shape"][0], left + after["img_shape"][1]
        across, down = min(right, box[2]) - max(left, box[0]), min(bottom, box[3]) - max(top, box[1])
        both = max(across, 0.0) * max(down, 0.0)
        assert both / ((right - left) * (bottom - top) + np.prod(box[2:] - box[:2]) - both) >= 0.3 - 1e-6
        assert left < (box[0] + box[2]) / 2 < right and top < (box[1] + box[3]) / 2 < bottom
        expected = [max(box[0] - left, 0), max(box[1] - top, 0), min(box[2], right) - left, min(box[3], bottom) - top]
        np.testing.assert_allclose(after["gt_bboxes"].tensor.numpy()[0], expected, atol=1e-3)
