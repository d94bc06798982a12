"""Any image folder with ``train/`` and ``test/`` or ``val/``, one sub-folder a class; ImageNet is one of them."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2
from tqdm import tqdm

from bench.data.images import IMAGENET_MEAN, IMAGENET_STD, FileSplit, ImageSet, MemorySplit, Split
from bench.data.pixels import look
from bench.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
# how a resized pixel is found, by PIL's names
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
PROTOCOLS = ("short256", "squash256", "squash")
# the count of test images whose pixels are those of a training image
IN_BOTH = "test images among the training images"
# sets up to this size (bytes of files) are read through when they are opened and fingerprinted by content, larger ones
# fingerprinted by names and sizes
_CONTENT_LIMIT = 300_000_000
# inputs up to this side are held in memory
_MEMORY_SIDE = 64

Files = list[tuple[Path, int]]


def image_folder(
    root: Path,
    size: int,
    protocol: str,
    name: str | None = None,
    progress: bool = True,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    interpolation: str = "bicubic",
    in_memory: bool = True,
) -> ImageSet:
    """The image folder ``root`` at input ``size``; ``protocol`` and ``interpolation`` as in :class:`FileSplit`.

    Small inputs (at most 64x64, unless ``in_memory`` is False) are read into memory, resized where they differ, and
    augmented CIFAR's way (pad 4, crop, mirror).  Every image of a set of at most 300 MB is decoded once: what had to be
    done to it is counted in ``problems``, and test images with the pixels of a training image are told on stderr.
    Raises :class:`UserError` for a missing folder, an empty class, different classes in the two splits, or a file that
    is no image or not one that can be read right.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}: give one with train/ and test/ (or val/), one sub-folder a class")
    test = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise UserError(f"{root} needs the folders train/ and test/ (or val/), one sub-folder a class")
    train_files, classes = _list(root / "train")
    test_files, test_classes = _list(test)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))[:3]
        raise UserError(
            f"{root}: train/ and {test.name}/ have different classes ({', '.join(odd)}): make them the same"
        )
    splits: list[Split]
    problems: Counter[str] = Counter()
    looked: list[list[bytes]] = []
    if size <= _MEMORY_SIDE and in_memory:
        read = [_read(files, size, interpolation, problems, progress) for files in (train_files, test_files)]
        splits = [
            MemorySplit(images, torch.tensor([label for _, label in files]), mean, std, pad=4, mirror=True)
            for (images, _), files in zip(read, (train_files, test_files), strict=True)
        ]
        looked = [digests for _, digests in read]
        protocol = f"{size}x{size}"
    else:
        splits = [FileSplit(files, size, protocol, mean, std, interpolation) for files in (train_files, test_files)]
        if _is_small(train_files + test_files):
            looked = [
                [_digest(image) for image in _look_through(files, problems, progress)]
                for files in (train_files, test_files)
            ]
    if looked:
        _count_common(looked[0], looked[1], train_files, test_files, problems)
    fingerprint = content_fingerprint(root, train_files + test_files)
    name = name or root.resolve().name
    return ImageSet(
        name, fingerprint, tuple(classes), size, splits[0], splits[1], protocol, dict(problems), interpolation
    )


def _list(folder: Path) -> tuple[Files, list[str]]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"{folder} has no class folders: make one sub-folder of images for each class")
    files: Files = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not found:
            raise UserError(f"class folder {folder / name} has no images: add some or remove the folder")
        files += [(path, label) for path in found]
    return files, classes


def _look_through(files: Files, problems: Counter[str], progress: bool) -> Iterator[Image.Image]:
    """The decoded images, one after the other; what was done to them is counted."""
    for path, _ in tqdm(files, desc="reading images", disable=not progress, leave=False):
        image, done = look(path)
        problems.update(done)
        yield image


def _read(
    files: Files, size: int, interpolation: str, problems: Counter[str], progress: bool
) -> tuple[torch.Tensor, list[bytes]]:
    """All images (N x 3 x size x size, uint8), resized where they differ, and the digests of their own pixels."""
    convert = v2.PILToTensor()
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    digests = []
    for place, image in enumerate(_look_through(files, problems, progress)):
        digests.append(_digest(image))
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling[interpolation.upper()])
        images[place] = convert(image)
    return images, digests


def _digest(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()


def _count_common(
    train: list[bytes], test: list[bytes], train_files: Files, test_files: Files, problems: Counter[str]
) -> None:
    """Counts test images that are training images, pixel by pixel, and says so: their accuracy is no test's."""
    known = {digest: path for digest, (path, _) in zip(train, train_files, strict=True)}
    common = [(path, known[digest]) for digest, (path, _) in zip(test, test_files, strict=True) if digest in known]
    if common:
        problems[IN_BOTH] = len(common)
        print(
            f"bench: notice: {len(common)} of {len(test)} test images are training images too, pixel by pixel "
            f"(first: {common[0][0]} is {common[0][1]}): the accuracy on them is no test's",
            file=sys.stderr,
        )


def _is_small(files: Files) -> bool:
    return sum(_size(path) for path, _ in files) <= _CONTENT_LIMIT


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"image {path} is missing: put it back or remove the link") from error


def content_fingerprint(root: Path, files: Files) -> str:
    """Hash of the files' content (of names and sizes for a large set), by path relative to ``root``."""
    sizes = [_size(path) for path, _ in files]
    content = sum(sizes) <= _CONTENT_LIMIT
    hasher = hashlib.sha256(b"content" if content else b"names and sizes")
    for (path, _), length in zip(files, sizes, strict=True):
        hasher.update(f"{path.relative_to(root).as_posix()} {length}\n".encode())
        if content:
            hasher.update(path.read_bytes())
    return hasher.hexdigest()
