"""Ground truth and detections drawn at random, and VOC's AP by the devkit's rules written out in loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.measure.detection import Detections


@dataclass(frozen=True)
class Image:
    """Ground truth of one image, of the attributes that the measures read."""

    image_id: int
    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    width: int = 300
    height: int = 300


def image(boxes: Any, labels: Any, difficult: Any = None, image_id: int = 0) -> Image:
    difficult = [False] * len(labels) if difficult is None else difficult
    return Image(
        image_id,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(difficult, dtype=torch.bool),
    )


def found(boxes: Any, scores: Any, labels: Any) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def draw(seed: int, images: int = 6, ties: bool = False) -> tuple[list[Detections], list[Image]]:
    """Random objects, some difficult, and detections: shifted copies of them, some with another class, and clutter.

    Image 0 has no objects, image 1 no detections; the last class has detections but no objects.
    """
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for index in range(images):
        count = 0 if index == 0 else rng.integers(1, 6)
        corner = rng.uniform(0, 170, (count, 2))
        boxes = np.hstack([corner, corner + rng.choice([20, 60, 110], (count, 1)) * rng.uniform(0.9, 1.1, (count, 2))])
        labels = rng.integers(0, 3, count)
        truths.append(image(boxes, labels, rng.random(count) < 0.3, image_id=index))

        copies = rng.integers(0, count, 2 * count) if count else np.zeros(0, int)
        size = np.tile(boxes[copies, 2:] - boxes[copies, :2], 2)
        near = boxes[copies] + rng.uniform(-0.25, 0.25, (len(copies), 4)) * size
        corner = rng.uniform(0, 180, (4, 2))
        clutter = np.hstack([corner, corner + rng.uniform(8, 118, (4, 2))])
        kinds = np.where(rng.random(len(copies)) < 0.8, labels[copies] if count else 0, 3)
        every, kinds = np.vstack([near, clutter]), np.concatenate([kinds, rng.integers(0, 4, 4)])
        scores = rng.random(len(every))
        if index == 1:
            every, scores, kinds = every[:0], scores[:0], kinds[:0]
        detections.append(found(every, np.round(scores, 1) if ties else scores, kinds))
    return detections, truths


def devkit(
    detections: Sequence[Detections], truths: Sequence[Image], label: int, mode: str, threshold: float = 0.5
) -> float | None:
    """AP of one class by the rules of VOCevaldet.m: one detection after the other, one object after the other."""
    rows = [
        (float(score), index, box)
        for index, one in enumerate(detections)
        for box, score, kind in zip(one.boxes.tolist(), one.scores, one.labels.tolist(), strict=True)
        if kind == label
    ]
    rows.sort(key=lambda row: -row[0])  # Python's sort is stable
    objects = {
        index: [
            [box, difficult, False]
            for box, kind, difficult in zip(t.boxes.tolist(), t.labels.tolist(), t.difficult.tolist(), strict=True)
            if kind == label
        ]
        for index, t in enumerate(truths)
    }
    total = sum(not difficult for group in objects.values() for _, difficult, _ in group)
    if total == 0:
        return None
    recalls, precisions, hits, misses = [], [], 0, 0
    for _, index, (x1, y1, x2, y2) in rows:
        best, match = -math.inf, None
        for entry in objects[index]:
            a1, b1, a2, b2 = entry[0]
            width, height = min(x2, a2) - max(x1, a1) + 1, min(y2, b2) - max(y1, b1) + 1
            if width > 0 and height > 0:
                common = width * height
                union = (x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1) - common
                if common / union > best:
                    best, match = common / union, entry
        if match is not None and best >= threshold:
            if not match[1]:
                hits, misses = (hits, misses + 1) if match[2] else (hits + 1, misses)
                match[2] = True
        else:
            misses += 1
        recalls.append(hits / total)
        precisions.append(hits / max(hits + misses, 1))
    if mode == "11points":
        above = [
            [p for r, p in zip(recalls, precisions, strict=True) if r >= point] for point in np.arange(0.0, 1.1, 0.1)
        ]
        return sum(max(values, default=0.0) for values in above) / 11
    area, before = 0.0, 0.0
    for place, recall in enumerate(recalls):
        area += (recall - before) * max(precisions[place:])
        before = recall
    return area
