"""SSD's random crop (Liu et al. 2016, section 2.2) by mmdet's rules and draws, with a search of its own.

Most tries fail, a hundred for an image with several boxes; mmdet computes the overlaps of each with tensors of a few
numbers, which takes as long as a narrow network's training on the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# mmdet's: tries for one overlap that is asked for, the crop's least and largest height over width, the least union
_TRIES, _FLATTEST, _TALLEST, _LEAST_UNION = 50, 0.5, 2.0, np.float32(1e-6)
_WHOLE = 1


class MinIoUCrop:
    """Equal to mmdet's ``MinIoURandomCrop`` for images with boxes alone (no masks, no maps), draw for draw.

    The crop overlaps every box by one of ``min_ious``, or by anything, or is the whole image, each as often; its sides
    are ``min_crop_size`` of the image's at least.
    """

    def __init__(self, min_ious: Sequence[float], min_crop_size: float) -> None:
        self.modes, self.min_crop_size = (_WHOLE, *min_ious, 0), min_crop_size

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crops ``img`` (H x W x 3) and its ``gt_bboxes``; boxes whose centre is outside go, with labels and flags."""
        height, width = results["img"].shape[:2]
        boxes = results["gt_bboxes"]
        found = None
        while found is None:
            mode = np.random.choice(self.modes)
            if mode == _WHOLE:
                return results
            found = self._search(width, height, boxes.tensor.numpy(), mode)
        left, top, right, bottom = found
        if len(boxes):
            inside = _inside(boxes.tensor.numpy(), found)
            boxes = boxes[inside]
            boxes.translate_([-left, -top])
            boxes.clip_([bottom - top, right - left])
            results["gt_bboxes"] = boxes
            for name in ("gt_ignore_flags", "gt_bboxes_labels"):
                if results.get(name) is not None:
                    results[name] = results[name][inside]
        results["img"] = results["img"][top:bottom, left:right]
        results["img_shape"] = results["img"].shape[:2]
        return results

    def _search(self, width: int, height: int, boxes: Floats, least: float) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of a crop that overlaps all boxes (n x 4) by ``least`` IoU and holds a centre.

        None where no try finds one.
        """
        draw = np.random.uniform
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        for _ in range(_TRIES):
            across, down = draw(self.min_crop_size * width, width), draw(self.min_crop_size * height, height)
            if not _FLATTEST <= down / across <= _TALLEST:
                continue
            # mmdet names one bound, so that the other one is numpy's: 1
            left, top = draw(width - across), draw(height - down)
            crop = int(left), int(top), int(left + across), int(top + down)
            if crop[0] == crop[2] or crop[1] == crop[3]:
                continue
            if not len(boxes) or (_overlaps(crop, boxes, areas).min() >= least and _inside(boxes, crop).any()):
                return crop
        return None


def _overlaps(crop: tuple[int, int, int, int], boxes: Floats, areas: Floats) -> Floats:
    """IoU of a crop with each box, in the arithmetic of mmdet's ``bbox_overlaps``."""
    one = np.array(crop, np.float32)
    across = np.minimum(one[2], boxes[:, 2]) - np.maximum(one[0], boxes[:, 0])
    down = np.minimum(one[3], boxes[:, 3]) - np.maximum(one[1], boxes[:, 1])
    both = np.maximum(across, np.float32(0)) * np.maximum(down, np.float32(0))
    union = (one[2] - one[0]) * (one[3] - one[1]) + areas - both
    found: Floats = both / np.maximum(union, _LEAST_UNION)
    return found


def _inside(boxes: Floats, crop: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Which boxes have their centre within the crop."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    found: NDArray[np.bool_] = (x > crop[0]) & (y > crop[1]) & (x < crop[2]) & (y < crop[3])
    return found
