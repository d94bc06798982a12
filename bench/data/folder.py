"""Any image folder with ``train/`` and ``test/`` or ``val/``, one sub-folder a class; ImageNet is one of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torchvision.transforms import v2
from tqdm import tqdm

from bench.data.images import IMAGENET_MEAN, IMAGENET_STD, FileSplit, ImageSet, MemorySplit, Split, open_image
from bench.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
# sets up to this size are fingerprinted by content, larger ones by names and sizes
_CONTENT_LIMIT = 300_000_000
# inputs up to this side are held in memory
_MEMORY_SIDE = 64


def image_folder(root: Path, size: int, protocol: str, name: str | None = None, progress: bool = True) -> ImageSet:
    """The image folder ``root`` at input ``size``; ``protocol`` as in :class:`FileSplit`.

    Small inputs (at most 64x64) are read into memory, resized where they differ, and augmented CIFAR's way (pad 4, crop,
    mirror).  Raises :class:`UserError` for a missing folder, an empty class, different classes in the two splits, or a
    file that is no image.
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
    if size <= _MEMORY_SIDE:
        splits = [_read(files, size, progress) for files in (train_files, test_files)]
        protocol = f"{size}x{size}"
    else:
        splits = [FileSplit(files, size, protocol) for files in (train_files, test_files)]
    fingerprint = content_fingerprint(root, train_files + test_files)
    return ImageSet(name or root.resolve().name, fingerprint, tuple(classes), size, splits[0], splits[1], protocol)


def _list(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"{folder} has no class folders: make one sub-folder of images for each class")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not found:
            raise UserError(f"class folder {folder / name} has no images: add some or remove the folder")
        files += [(path, label) for path in found]
    return files, classes


def _read(files: list[tuple[Path, int]], size: int, progress: bool) -> MemorySplit:
    convert = v2.PILToTensor()
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for place, (path, _) in enumerate(tqdm(files, desc="reading images", disable=not progress, leave=False)):
        image = open_image(path)
        if image.size != (size, size):
            image = image.resize((size, size))
        images[place] = convert(image)
    labels = torch.tensor([label for _, label in files])
    return MemorySplit(images, labels, IMAGENET_MEAN, IMAGENET_STD, pad=4, mirror=True)


def content_fingerprint(root: Path, files: list[tuple[Path, int]]) -> str:
    sizes = [path.stat().st_size for path, _ in files]
    content = sum(sizes) <= _CONTENT_LIMIT
    hasher = hashlib.sha256(b"content" if content else b"names and sizes")
    for (path, _), length in zip(files, sizes, strict=True):
        hasher.update(f"{path.relative_to(root).as_posix()} {length}\n".encode())
        if content:
            hasher.update(path.read_bytes())
    return hasher.hexdigest()
