"""Image sets as the harness sees them: two splits of images and labels, with a fingerprint and a protocol."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Split(Dataset[tuple[Tensor, Tensor]], abc.ABC):
    """Images and labels.  Indexing with a list of places gives a batch: images B x 3 x H x W (normalised) and labels B.

    ``labels`` are class numbers (N).
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def batch(self, places: list[int], augment: bool) -> Tensor:
        """Images at ``places`` as B x 3 x H x W, normalised; ``augment`` draws from torch's global generator."""

    def __getitem__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        return self.batch(places, augment=False), self.labels[torch.as_tensor(places)]

    def batches(self, size: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, without augmentation, the last batch as large as what is left."""
        places = list(range(len(self)))
        chunks = [places[i : i + size] for i in range(0, len(places), size)]
        return iter(DataLoader(self, sampler=chunks, batch_size=None, num_workers=workers))  # type: ignore[arg-type]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """A split with its training augmentation on."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        return self.split.batch(places, augment=True), self.split.labels[torch.as_tensor(places)]


@dataclass(frozen=True)
class ImageSet:
    """A data set: its public ``name`` and content ``fingerprint``, class names, input size, training and test split."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    size: int
    train: Split
    test: Split
    protocol: str


class MemorySplit(Split):
    """Small images held in memory (N x 3 x H x W, uint8); augmentation pads by ``pad``, crops and may mirror."""

    def __init__(
        self, images: Tensor, labels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], pad: int, mirror: bool
    ) -> None:
        self.images, self.labels, self.pad, self.mirror = images, labels, pad, mirror
        self.mean = torch.tensor(mean)[:, None, None] * 255.0
        self.std = torch.tensor(std)[:, None, None] * 255.0

    def batch(self, places: list[int], augment: bool) -> Tensor:
        """Images at ``places``; black before normalisation is what the padding adds."""
        chosen = self.images[torch.as_tensor(places)]
        if augment:
            chosen = self._augment(chosen)
        return (chosen.float() - self.mean) / self.std

    def _augment(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        if self.pad:
            padded = torch.nn.functional.pad(images, [self.pad] * 4)
            top = torch.randint(2 * self.pad + 1, (count, 1)) + torch.arange(height)
            left = torch.randint(2 * self.pad + 1, (count, 1)) + torch.arange(width)
            rows = torch.arange(count)[:, None, None]
            # channels-last in memory, in which the networks here train 12 to 27 % faster on the CPU (2 cores, AVX-512)
            images = padded.permute(0, 2, 3, 1)[rows, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)
        if self.mirror:
            flip = torch.rand(count) < 0.5
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        return images


class FileSplit(Split):
    """Image files decoded when they are needed, at 224x224 or another input size.

    ``protocol`` is ``short256`` (shorter side 256, centre crop) or ``squash256`` (256x256, aspect not kept, centre crop);
    augmentation takes a random crop of the same resized image and mirrors (CP's and ThiNet's fine-tuning).
    """

    def __init__(self, files: list[tuple[Path, int]], size: int, protocol: str) -> None:
        self.files = files
        self.labels = torch.tensor([label for _, label in files])
        side = round(size * 256 / 224)
        resize = v2.Resize(side if protocol == "short256" else (side, side), v2.InterpolationMode.BICUBIC)
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.plain = v2.Compose([resize, v2.CenterCrop(size), *finish])
        self.augmented = v2.Compose([resize, v2.RandomCrop(size), v2.RandomHorizontalFlip(), *finish])

    def batch(self, places: list[int], augment: bool) -> Tensor:
        """Images at ``places``.  Raises :class:`UserError` naming a file that cannot be decoded."""
        transform = self.augmented if augment else self.plain
        return torch.stack([transform(open_image(self.files[place][0])) for place in places])


def open_image(path: Path) -> Image.Image:
    """The decoded RGB image.  Raises :class:`UserError` naming a file that is missing or no image."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing: put it back or remove it from the list") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image {path} cannot be decoded ({error}): replace or remove the file") from error
