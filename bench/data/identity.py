"""The data as one value for the keys of steps: content, protocol, size, transforms, and the code that reads them."""

from __future__ import annotations

import hashlib
from typing import Any

from bench import code
from bench.data.annotations import DetectionSet
from bench.data.images import ImageSet
from bench.steps import DataValue, canonical
from bench.store import digest

_AUGMENT = ("bench.data.augment",)


def value_of(data: ImageSet | DetectionSet) -> DataValue:
    """The value of a data set.  Its name and the folder it lies in are no part of it."""
    return _images(data) if isinstance(data, ImageSet) else _boxes(data)


def _images(data: ImageSet) -> DataValue:
    splits = [data.train.describe(), data.test.describe()]
    plain: dict[str, Any] = {
        "classes": len(data.classes),
        "size": data.size,
        "protocol": data.protocol,
        "splits": splits,
        # files are read when they are needed; what is in memory has been hashed itself
        "files": None if all("content" in split for split in splits) else data.fingerprint,
        "code": code.reached({code.root_of(type(split)) for split in (data.train, data.test)}, without=_AUGMENT).hash,
    }
    augmentation = data.train.augmentation
    training = [plain, canonical(augmentation), code.reached([code.root_of(type(augmentation))]).hash]
    return DataValue(digest(plain), digest(training))


def _boxes(data: DetectionSet) -> DataValue:
    """The cleaned boxes count, and the code by which mmdet's data sets come to the same ones."""
    hasher = hashlib.sha256()
    for split in (data.train, data.test):
        for truth in split.annotations:
            hasher.update(f"{truth.image_id} {truth.width} {truth.height} {len(truth.labels)}\n".encode())
            for tensor in (truth.boxes, truth.labels, truth.difficult):
                hasher.update(tensor.numpy().tobytes())
    roots = [code.root_of(type(data.train)), f"bench.data.{data.layout}:_builder"]
    value = digest(
        {
            "files": data.fingerprint,
            "classes": list(data.classes),
            "size": data.size,
            "protocol": data.protocol,
            "boxes": hasher.hexdigest(),
            "code": code.reached(roots).hash,
        }
    )
    return DataValue(value, value)  # a detector's augmentation is a parameter of its training
