"""CIFAR-10 (Krizhevsky 2009) through torchvision, which downloads and checks it, and the subset of the committed table."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from PIL import Image
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from bench.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageSet, MemorySplit
from bench.errors import UserError
from bench.store import disk_errors

SUBSET_PER_BATCH, SUBSET_TEST = 1034, 1017


def _load(root: Path, train: bool) -> CIFAR10:
    try:
        return CIFAR10(str(root), train=train, download=False)
    except RuntimeError:
        pass
    try:
        return CIFAR10(str(root), train=train, download=True)
    except Exception as error:  # the download layer raises many kinds; all mean the same to the user
        raise UserError(
            f"CIFAR-10 is not in {root} and could not be downloaded ({error}): "
            "put cifar-10-batches-py there, or name its folder with --data"
        ) from error


def cifar10_images(root: Path) -> ImageSet:
    """50,000 training and 10,000 test images at 32x32.  Raises :class:`UserError` where they cannot be had."""
    splits, hasher = [], hashlib.sha256()
    for train in (True, False):
        data = _load(root, train)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        hasher.update(data.data.tobytes() + bytes(data.targets))
        splits.append(MemorySplit(images, torch.tensor(data.targets), IMAGENET_MEAN, IMAGENET_STD, pad=4, mirror=True))
    classes = tuple(data.classes)
    return ImageSet("cifar10", hasher.hexdigest(), classes, 32, splits[0], splits[1], "32x32")


def write_subset(root: Path, destination: Path, progress: bool = True) -> dict[str, int]:
    """Writes the first 1,034 images of each of the five training batches and the first 1,017 test images as PNG files.

    ``destination`` becomes an image folder; files are numbered in the order of the batches.  Returns the counts.
    """
    counts = {}
    for split, train in (("train", True), ("test", False)):
        data = _load(root, train)
        starts = range(0, len(data.data), 10_000)
        length = SUBSET_PER_BATCH if train else SUBSET_TEST
        places = [start + offset for start in starts for offset in range(length)]
        with disk_errors(destination):
            for number, place in enumerate(tqdm(places, desc=f"writing {split}", disable=not progress, leave=False)):
                folder = destination / split / data.classes[data.targets[place]]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(data.data[place]).save(folder / f"{number:05d}.png")
        counts[split] = len(places)
    return counts
