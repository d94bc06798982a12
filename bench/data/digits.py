"""The embedded scale: scikit-learn's 1,797 real 8x8 scans of handwritten digits (Alpaydin & Kaynak, UCI 1998)."""

from __future__ import annotations

import hashlib

import torch
from torch.nn import functional as F

from bench.data.images import ImageSet, MemorySplit

TRAIN = 1437  # four fifths; the scans are ordered by writer, so a fixed permutation mixes them
SPLIT_SEED = 0


def digits_images(size: int) -> ImageSet:
    """1,437 training and 360 test images, upscaled to 3 x ``size`` x ``size``, always the same split."""
    from sklearn.datasets import load_digits  # a second and more, which most commands have no use for

    data = load_digits()
    raw = torch.from_numpy(data.images).float()[:, None] * (255.0 / 16.0)
    images = F.interpolate(raw, size=(size, size), mode="bilinear", align_corners=False)
    images = images.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    halves = [
        MemorySplit(images[part], labels[part], (0.5,) * 3, (0.5,) * 3, pad=size // 16, mirror=False)
        for part in (order[:TRAIN], order[TRAIN:])
    ]
    fingerprint = hashlib.sha256(data.images.tobytes() + data.target.tobytes() + order.numpy().tobytes()).hexdigest()
    return ImageSet(
        "digits", fingerprint, tuple("0123456789"), size, halves[0], halves[1], f"upscaled to {size}x{size}"
    )
