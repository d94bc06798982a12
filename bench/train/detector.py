"""Training and running detectors: mmdet's own transforms and data samples, our loop, batches of one size.

Pixels leave the pipeline as mmdet loads them (BGR, uint8) and become RGB here; the network normalises them itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bench.data.annotations import DetectionSplit
from bench.data.augment import draw_seed
from bench.measure.detection import Detections
from bench.models.capture import captured
from bench.models.ssd import SSD
from bench.train.cropping import MinIoUCrop
from bench.train.fit import History, train
from bench.train.schedule import Schedule

# OpenCV's own threads compete with torch's for the same cores
cv2.setNumThreads(1)

Batch = tuple[Tensor, list[Any]]


def training_pipeline(model: SSD, mirror: bool, zoom_out: float) -> list[Any]:
    """SSD's data augmentation (Liu et al., 2.2 and 3.6) as mmdet has it: zoom out, crop by IoU, resize, flip, colours.

    ``zoom_out`` is the largest expansion (4 in the paper, 1 for none); ``mirror`` flips half of the images.
    """
    steps: list[Any] = [dict(type="LoadImageFromFile"), dict(type="mmdet.LoadAnnotations", with_bbox=True)]
    if zoom_out > 1:
        steps.append(dict(type="mmdet.Expand", mean=list(model.mean), to_rgb=True, ratio_range=(1, zoom_out)))
    steps += [
        MinIoUCrop(min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
        dict(type="mmdet.Resize", scale=(model.size, model.size), keep_ratio=False),
        dict(type="mmdet.RandomFlip", prob=0.5 if mirror else 0.0),
        dict(
            type="mmdet.PhotoMetricDistortion",
            brightness_delta=32,
            contrast_range=(0.5, 1.5),
            saturation_range=(0.5, 1.5),
            hue_delta=18,
        ),
        dict(type="mmdet.PackDetInputs"),
    ]
    return steps


def plain_pipeline(size: int, boxes: bool = False) -> list[dict[str, Any]]:
    """Load and resize; with ``boxes`` the ground truth is resized too (for gradients, not for evaluation)."""
    load = [dict(type="mmdet.LoadAnnotations", with_bbox=True)] if boxes else []
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    return [
        dict(type="LoadImageFromFile"),
        *load,
        dict(type="mmdet.Resize", scale=(size, size), keep_ratio=False),
        dict(type="mmdet.PackDetInputs", meta_keys=keys),
    ]


class Batches(Dataset[Batch]):
    """An mmdet dataset that gives a whole batch for a list of places: RGB pixels B x 3 x H x W and B data samples.

    mmdet's augmentation draws from NumPy's and Python's generators; they are seeded from (``seed``, epoch, place) for
    each image, so that it is the same in whatever process and batch it is made.  ``epoch`` is set by the training.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, places: Sequence[int]) -> Batch:
        items = [self._item(int(place)) for place in places]
        pixels = torch.stack([item["inputs"] for item in items])[:, [2, 1, 0]]
        samples = [item["data_samples"] for item in items]
        for sample in samples:
            # what the head asks of a batch: nothing is padded
            sample.set_metainfo(dict(pad_shape=sample.img_shape, batch_input_shape=sample.img_shape))
            for instances in (sample.gt_instances, sample.ignored_instances):
                if "bboxes" in instances:  # as tensors: the head's losses know no box classes
                    instances.bboxes = instances.bboxes.tensor
        return pixels, samples

    def _item(self, place: int) -> Any:
        mixed = draw_seed(self.seed, self.epoch, place) % 2**32
        random.seed(mixed)
        np.random.seed(mixed)
        return self.dataset[place]


class Detector(BaseModel):  # type: ignore[misc]
    """A detector with SSD's loss, in the form that mmengine's Runner calls.

    With ``auxiliary`` the loss of an auxiliary network is added: it gets the output of the module ``position`` and the
    data samples, and both are trained (localization-aware and discrimination-aware pruning).
    """

    def __init__(self, net: SSD, auxiliary: nn.Module | None = None, position: str | None = None) -> None:
        super().__init__()
        self.net, self.auxiliary, self.position = net, auxiliary, position

    def forward(self, pixels: Tensor, samples: list[Any], mode: str = "loss") -> Any:  # type: ignore[override]
        """Pixels B x 3 x H x W and mmdet's samples: the losses by name, or the maps for any other mode."""
        images = self.net.normalised(pixels)
        if self.auxiliary is None or self.position is None:
            maps = self.net(images)
            return self.net.loss(maps, samples) if mode == "loss" else maps
        with captured(self.net, self.position) as seen:
            maps = self.net(images)
        losses = {f"auxiliary_{name}": value for name, value in self.auxiliary(seen[0], samples).items()}
        return {**self.net.loss(maps, samples), **losses}


def fit_detector(
    net: SSD,
    split: DetectionSplit,
    schedule: Schedule,
    seed: int,
    work: Path,
    device: str,
    label: str,
    *,
    auxiliary: nn.Module | None = None,
    position: str | None = None,
    mirror: bool = True,
    zoom_out: float = 4.0,
    workers: int = 0,
    progress: bool = True,
) -> History:
    """Trains ``net`` (and ``auxiliary``) in place, on the CPU and in evaluation mode afterwards.

    Returns the history.
    """
    data = Batches(split.dataset(training_pipeline(net, mirror, zoom_out), training=True), seed)
    # augmentation is as slow as the narrow network's training: always in a process of its own
    workers = max(1, workers)
    history = train(Detector(net, auxiliary, position), data, schedule, seed, work, device, label, workers, progress)
    net.cpu().eval()
    if auxiliary is not None:
        auxiliary.cpu().eval()
    return history


def batches(
    split: DetectionSplit, size: int, places: Sequence[int], batch: int, boxes: bool = False, workers: int = 0
) -> Iterator[Batch]:
    """Images at ``places`` of ``split`` in this order, resized only; ``boxes`` also resizes the ground truth."""
    data = Batches(split.dataset(plain_pipeline(size, boxes), training=False), 0)
    chunks = [list(places[i : i + batch]) for i in range(0, len(places), batch)]
    return iter(DataLoader(data, sampler=chunks, batch_size=None, num_workers=workers))  # type: ignore[arg-type]


@torch.no_grad()
def detect(
    net: SSD, split: DetectionSplit, device: str, batch: int = 32, workers: int = 0, progress: bool = True
) -> list[Detections]:
    """What ``net`` finds in every image of ``split``, in order, after NMS, in the pixels of the original images."""
    net = net.to(device).eval()
    found = []
    total = -(-len(split) // batch)
    everything = batches(split, net.size, range(len(split)), batch, workers=workers)
    for pixels, samples in tqdm(everything, desc="detecting", total=total, disable=not progress, leave=False):
        for image in net.detections(net(net.normalised(pixels.to(device))), samples):
            found.append(Detections(image.bboxes.float().cpu(), image.scores.float().cpu(), image.labels.cpu()))
    return found
