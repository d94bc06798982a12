"""CIFAR-10 (Krizhevsky 2009) through torchvision, which downloads and checks it, and the committed table's subset."""

from __future__ import annotations

import hashlib
import socket
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from bench.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageSet, MemorySplit
from bench.errors import UserError
from bench.store import disk_errors

SUBSET_PER_BATCH, SUBSET_TEST = 1034, 1017
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# the training and test images as arrays, where the original archive is not at hand, and how many there should be
NPZ, WHOLE = ("train.npz", "test.npz"), (50_000, 10_000)
LEAST_SHARE = 0.99
# a server that says nothing for so many seconds has failed
_SILENT = 60.0
# why nothing could be downloaded, by folder: a process asks once
_refused: dict[Path, str] = {}


def _load(root: Path, train: bool) -> CIFAR10:
    try:
        return CIFAR10(str(root), train=train, download=False)
    except RuntimeError:
        pass
    if (root := root.resolve()) in _refused:
        raise UserError(_refused[root])
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENT)
    try:
        return CIFAR10(str(root), train=train, download=True)
    except Exception as error:  # the download layer raises many kinds; all mean the same to the user
        _refused[root] = (
            f"CIFAR-10 is not in {root} and could not be downloaded ({error}): "
            "put cifar-10-batches-py there, or name its folder with --data"
        )
        raise UserError(_refused[root]) from error
    finally:
        socket.setdefaulttimeout(before)


def cifar10_images(root: Path) -> ImageSet:
    """Training and test images at 32x32: 50,000 and 10,000 of torchvision's, else what ``root``'s npz files hold.

    Raises :class:`UserError` where they cannot be had or are not CIFAR-10.
    """
    if not (root / "cifar-10-batches-py").is_dir() and all((root / name).is_file() for name in NPZ):
        return _from_npz(root)
    splits, hasher = [], hashlib.sha256()
    for train in (True, False):
        data = _load(root, train)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        hasher.update(data.data.tobytes() + bytes(data.targets))
        splits.append(MemorySplit(images, torch.tensor(data.targets), IMAGENET_MEAN, IMAGENET_STD, pad=4, mirror=True))
    classes = tuple(data.classes)
    return ImageSet("cifar10", hasher.hexdigest(), classes, 32, splits[0], splits[1], "32x32")


def _from_npz(root: Path) -> ImageSet:
    """``train.npz`` and ``test.npz`` with ``images`` (N x 32 x 32 x 3, uint8, RGB) and ``labels`` (N): most of it.

    No image may be there twice, and at least 99 % of both splits must be there; how many are missing is said in every
    record (``of``).
    """
    splits, hasher = [], hashlib.sha256()
    seen: set[bytes] = set()
    for name, whole in zip(NPZ, WHOLE, strict=True):
        images, labels = _read_npz(root / name)
        if (problem := _count_problem(len(images), whole)) is not None:
            raise UserError(
                f"{root / name} has {problem}: at least {LEAST_SHARE:.0%} must be there, or run them as an image "
                "folder of their own with --scale"
            )
        for place, image in enumerate(images):
            digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            if digest in seen:
                raise UserError(
                    f"{root / name}: image {place} is there twice (in it or in {NPZ[0]}): remove the copies"
                )
            seen.add(digest)
        hasher.update(images.tobytes() + labels.astype(np.uint8).tobytes())
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        targets = torch.from_numpy(labels.astype(np.int64))
        splits.append(MemorySplit(pixels, targets, IMAGENET_MEAN, IMAGENET_STD, pad=4, mirror=True))
    return ImageSet("cifar10", hasher.hexdigest(), CLASSES, 32, splits[0], splits[1], "32x32", whole=WHOLE)


def shortfall(root: Path) -> str | None:
    """In a few words what is wrong with ``root``'s npz files, by their headers and labels; None where nothing is.

    The pixels are left unread.  The archive, where it is there, is torchvision's to check.
    """
    if (root / "cifar-10-batches-py").is_dir():
        return None
    for name, whole in zip(NPZ, WHOLE, strict=True):
        try:
            shape, labels = _head(root / name)
        except KeyError as error:
            return f"{name} has no array {_array(error)}"
        except _UNREADABLE:
            return f"{name} cannot be read"
        problem = _problem(*shape, labels)
        if problem is not None:
            return f"{name}: {problem}"
        if (problem := _count_problem(len(labels), whole)) is not None:
            return f"{name} has {problem}"
    return None


_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def _head(path: Path) -> tuple[tuple[tuple[int, ...], np.dtype[Any]], NDArray[Any]]:
    """Shape and type of the images, and the labels, of one file.  Raises KeyError and ``_UNREADABLE``."""
    with zipfile.ZipFile(path) as archive, archive.open("images.npy") as stream:
        version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)  # type: ignore[no-untyped-call]
    with np.load(path, allow_pickle=False) as file:
        return (shape, kind), file["labels"]


def _array(error: KeyError) -> str:
    """The name of the array that a file lacks."""
    return next((name for name in ("images", "labels") if name in str(error)), str(error))


def _read_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]:
    """Images and labels of one file, checked.  Raises :class:`UserError` in one line."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except KeyError as error:
        raise UserError(f"{path} has no array {_array(error)}: it needs images and labels") from error
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}): make it again") from error
    problem = _problem(images.shape, images.dtype, labels)
    if problem is not None:
        raise UserError(f"{path}: {problem}: make it again")
    return images, labels


def _problem(shape: tuple[int, ...], kind: np.dtype[Any], labels: NDArray[Any]) -> str | None:
    """What is wrong with images of this shape and type and their labels."""
    if shape[1:] != (32, 32, 3) or kind != np.uint8:
        return f"images are {kind} {shape}, not uint8 N x 32 x 32 x 3"
    if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        return f"labels are {labels.dtype} {labels.shape}, not a number for each image"
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES):
        return f"labels go from {labels.min()} to {labels.max()}, CIFAR-10's from 0 to 9"
    return None


def _count_problem(count: int, whole: int) -> str | None:
    """What is wrong with so many images of ``whole``."""
    return f"{count:,} images, CIFAR-10 {whole:,}" if not LEAST_SHARE * whole <= count <= whole else None


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
