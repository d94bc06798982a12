"""Image sets as the harness sees them: two splits of images and labels, with a fingerprint and a protocol."""

from __future__ import annotations

import abc
import copy
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench.data.augment import Augmentation, CropAndMirror, PadCropAndMirror, ResizedCropAndMirror, indices
from bench.data.pixels import open_image

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "FileSplit", "ImageSet", "MemorySplit", "Split", "open_image"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Split(Dataset[tuple[Tensor, Tensor]], abc.ABC):
    """Images and labels.  Indexing with a list of places gives a batch: images B x 3 x H x W (normalised) and labels B.

    ``labels`` are class numbers (N); ``mean`` and ``std`` (of red, green, blue, in 0 to 1) normalise the images;
    ``augmentation`` is what training does to an image, :mod:`bench.data.augment`.  ``units`` (N integers) says which
    images are alike because they show the same thing, a unit each: intervals are then about new units.  None: every
    image is its own.
    """

    labels: Tensor
    units: Tensor | None = None
    augmentation: Augmentation
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """The same images under another normalisation."""
        other = copy.copy(self)
        other.mean, other.std = mean, std
        return other

    def labelled(self, labels: Tensor) -> Self:
        """The same images under other class numbers (N)."""
        other = copy.copy(self)
        other.labels = labels
        return other

    def __len__(self) -> int:
        return len(self.labels)

    # whether the images are files, decoded when they are needed
    decodes: ClassVar[bool] = False

    def on(self, device: str) -> Self:
        """The same images, on ``device`` where they are held in memory: what is done to them is then done there."""
        return self

    @abc.abstractmethod
    def pixels(self, places: list[int]) -> Tensor:
        """Images at ``places`` without augmentation as 8-bit values, B x 3 x H x W."""

    @abc.abstractmethod
    def normalised(self, pixels: Tensor) -> Tensor:
        """8-bit images B x 3 x H x W as the network takes them (float32)."""

    def batch(self, places: list[int], augment: bool = False) -> Tensor:
        """Images at ``places`` as B x 3 x H x W, normalised; ``augment`` draws from torch's global generator.

        Raises :class:`UserError` naming a file that cannot be decoded.
        """
        if augment:
            return self.augmented(places, torch.rand(len(places), 3))
        return self.normalised(self.pixels(places))

    @abc.abstractmethod
    def augmented(self, places: list[int], draws: Tensor) -> Tensor:
        """The same with augmentation; ``draws`` are B x 3 random numbers in [0, 1)."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The content (where it is held in memory) and every parameter of what is done to it, but for augmentation."""

    def __getitem__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        return self.batch(places), self.labels[indices(places, self.labels.device)]

    def batches(self, size: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, without augmentation, the last batch as large as what is left."""
        places = list(range(len(self)))
        chunks = [places[i : i + size] for i in range(0, len(places), size)]
        workers = workers if self.decodes else 0
        return iter(DataLoader(self, sampler=chunks, batch_size=None, num_workers=workers))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ImageSet:
    """A data set: its public ``name`` and content ``fingerprint``, class names, input size, training and test split.

    ``problems`` counts, over both splits, the images that were not taken as they are (16 bits, turned by EXIF, ...),
    and the test images that are training images too.  ``interpolation`` is that of the resize.  ``whole`` is how many
    training and test images the published set has, where some are missing here.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    size: int
    train: Split
    test: Split
    protocol: str
    problems: dict[str, int] = field(default_factory=dict)
    interpolation: str = "bicubic"
    whole: tuple[int, int] | None = None

    @property
    def test_of(self) -> int:
        """How many test images the published set has."""
        return len(self.test) if self.whole is None else self.whole[1]

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageSet:
        """The same set under another normalisation."""
        return replace(self, train=self.train.normalised_by(mean, std), test=self.test.normalised_by(mean, std))


class MemorySplit(Split):
    """Small images held in memory (N x 3 x H x W, uint8); augmentation pads by ``pad``, crops and may mirror."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        pad: int,
        mirror: bool,
        units: Tensor | None = None,
    ) -> None:
        self.images, self.labels, self.units = images, labels, units
        self.augmentation = PadCropAndMirror(pad, mirror)
        self.mean, self.std = mean, std

    def on(self, device: str) -> Self:
        """The same images and labels, on ``device``."""
        other = copy.copy(self)
        other.images, other.labels = self.images.to(device), self.labels.to(device)
        return other

    def pixels(self, places: list[int]) -> Tensor:
        """The images at ``places``, where the images are."""
        return self.images[indices(places, self.images.device)]

    def augmented(self, places: list[int], draws: Tensor) -> Tensor:
        """Images at ``places``; black before normalisation is what the padding adds."""
        return self.normalised(self.augmentation(self.pixels(places), draws))

    def normalised(self, pixels: Tensor) -> Tensor:
        """8-bit images B x 3 x H x W as the network takes them (float32)."""
        mean, std = (_per_channel(values, pixels.device) for values in (self.mean, self.std))
        return (pixels.float() - mean) / std

    def describe(self) -> dict[str, Any]:
        """Hash of the pixels and labels, mean and deviation; the units' where images have some."""
        hasher = hashlib.sha256(self.images.numpy().tobytes())
        hasher.update(self.labels.numpy().tobytes())
        content = {"shape": list(self.images.shape), "content": hasher.hexdigest()}
        if self.units is not None:
            content["units"] = hashlib.sha256(self.units.numpy().tobytes()).hexdigest()
        return {**content, "mean": list(self.mean), "std": list(self.std)}


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Red, green and blue as 3 x 1 x 1, in 0 to 255; made once, because a GPU's work is waited for by each copy."""
    return (torch.tensor(values)[:, None, None] * 255.0).to(device)


class FileSplit(Split):
    """Image files decoded when they are needed, at 224x224 or another input size.

    ``protocol`` is ``short256`` (shorter side 256, centre crop), ``squash256`` (256x256, aspect not kept, centre crop)
    or ``squash`` (the input size itself, aspect not kept); ``interpolation`` a name of torchvision's
    ``InterpolationMode``.  Augmentation takes a random crop of the same resized image and mirrors (CP's and ThiNet's
    fine-tuning); that of :meth:`resized_crops` begins with the whole image.
    """

    decodes: ClassVar[bool] = True

    def __init__(
        self,
        files: list[tuple[Path, int]],
        size: int,
        protocol: str,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        interpolation: str = "bicubic",
    ) -> None:
        self.files, self.mean, self.std = files, mean, std
        self.labels = torch.tensor([label for _, label in files])
        self.size, self.augmentation = size, CropAndMirror(size)
        side = size if protocol == "squash" else round(size * 256 / 224)
        resize = v2.Resize(side if protocol == "short256" else (side, side), v2.InterpolationMode(interpolation))
        self.resize = v2.Compose([resize, v2.ToImage()])
        self.crop = v2.CenterCrop(size)

    def augmented(self, places: list[int], draws: Tensor) -> Tensor:
        """Augmented images at ``places``.  Raises :class:`UserError` naming a file that cannot be decoded."""
        look = self._whole if isinstance(self.augmentation, ResizedCropAndMirror) else self._resized
        cropped = [self.augmentation(look(place)[None], draws[i : i + 1]) for i, place in enumerate(places)]
        return self.normalised(torch.cat(cropped))

    def resized_crops(self) -> Self:
        """The same images, augmented as where networks are trained from fresh weights."""
        other = copy.copy(self)
        other.augmentation = ResizedCropAndMirror(self.size)
        return other

    def _whole(self, place: int) -> Tensor:
        return v2.functional.pil_to_tensor(open_image(self.files[place][0]))  # type: ignore[no-any-return]

    def _resized(self, place: int) -> Tensor:
        return self.resize(open_image(self.files[place][0])).as_subclass(Tensor)  # type: ignore[no-any-return]

    def describe(self) -> dict[str, Any]:
        """The transforms and the labels; the files' content is in the set's fingerprint."""
        labels = hashlib.sha256(self.labels.numpy().tobytes()).hexdigest()
        return {"transforms": [repr(self.resize), repr(self.crop), list(self.mean), list(self.std)], "labels": labels}

    def pixels(self, places: list[int]) -> Tensor:
        """Images at ``places`` without augmentation as 8-bit values, B x 3 x H x W: :meth:`normalised` makes inputs."""
        return torch.stack([self.crop(self._resized(place)) for place in places])

    def normalised(self, pixels: Tensor) -> Tensor:
        """8-bit images B x 3 x H x W as the network takes them (float32)."""
        scaled = v2.functional.to_dtype(pixels, torch.float32, scale=True)
        inputs: Tensor = v2.functional.normalize(scaled, list(self.mean), list(self.std))
        return inputs.as_subclass(Tensor)
