"""What training does to an image, by loops; and which sets are padded, cropped and mirrored, and which not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import transforms

from bench.data import cifar10
from bench.data.augment import Augmented, CropAndMirror, PadCropAndMirror, ResizedCropAndMirror
from bench.data.digits import digits_images
from bench.data.folder import image_folder
from bench.data.images import IMAGENET_MEAN, IMAGENET_STD, FileSplit, MemorySplit, Split

JUST_BELOW = 1.0 - 1e-9


def pixels(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


# the first two numbers place the crop, with 2 * pad + 1 equally likely places each way; the third mirrors or not
DRAWS = torch.tensor(
    [[0.0, 0.0, 0.9], [JUST_BELOW, JUST_BELOW, 0.9], [0.5, 0.5, 0.9], [0.0, JUST_BELOW, 0.4999], [0.79, 0.21, 0.5]],
    dtype=torch.float64,
)
# rows and columns by which the crop is moved against the image, and whether it is mirrored
MOVED = [(-2, -2, False), (2, 2, False), (0, 0, False), (-2, 2, True), (1, -1, False)]


@pytest.mark.parametrize("mirror", [True, False])
def test_pad_crop_and_mirror_by_loops(mirror: bool) -> None:
    images = pixels(5, 6)
    found = PadCropAndMirror(2, mirror)(images, DRAWS)
    assert found.shape == images.shape
    for image, (down, right, flipped), crop in zip(images, MOVED, found, strict=True):
        for row in range(6):
            for column in range(6):
                place = row + down, (5 - column if flipped and mirror else column) + right
                inside = 0 <= place[0] < 6 and 0 <= place[1] < 6
                expected = image[:, place[0], place[1]] if inside else torch.zeros(3, dtype=torch.uint8)
                assert torch.equal(crop[:, row, column], expected)


def test_crop_and_mirror_by_slices() -> None:
    """Out of 6x9 a crop of 4x4: three places down, six across."""
    images = pixels(5, 9)[:, :, :6]
    corners = [(0, 0), (2, 5), (1, 3), (0, 5), (2, 1)]
    found = CropAndMirror(4)(images, DRAWS)
    for image, (top, left), (_, _, flipped), crop in zip(images, corners, MOVED, found, strict=True):
        expected = image[:, top : top + 4, left : left + 4]
        assert torch.equal(crop, expected.flip(2) if flipped else expected)


def by_torchvision(image: torch.Tensor, size: int, draw: float) -> torch.Tensor:
    """The references' RandomResizedCrop and RandomHorizontalFlip, by the older classes with every parameter said."""
    torch.manual_seed(int(draw * 2**53))
    box = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    bilinear = transforms.InterpolationMode.BILINEAR
    crop = transforms.functional.resized_crop(image, *box, [size, size], bilinear, antialias=True)
    return transforms.functional.hflip(crop) if float(torch.rand(1)) < 0.5 else crop


def assert_same_picture(found: torch.Tensor, expected: torch.Tensor) -> None:
    """But for a grey level, by which torchvision's two ways to interpolate 8-bit values may differ."""
    assert found.shape == expected.shape and int((found.int() - expected.int()).abs().max()) <= 1


def test_crops_of_random_size_and_shape_are_torchvision_s() -> None:
    """An image's draws alone say which; what else is drawn in the process is not disturbed."""
    images = pixels(40, 30)[:, :, :20]
    draws = torch.rand(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = ResizedCropAndMirror(16)(images, draws)
    assert torch.equal(torch.get_rng_state(), before)
    assert (found.shape, found.dtype) == ((40, 3, 16, 16), torch.uint8)
    for image, draw, crop in zip(images, draws[:, 0].tolist(), found, strict=True):
        assert_same_picture(crop, by_torchvision(image, 16, draw))
    assert torch.equal(ResizedCropAndMirror(16)(images[3:5], draws[3:5]), found[3:5])
    defaults = transforms.RandomResizedCrop(16)
    assert (defaults.scale, defaults.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))


def test_from_fresh_weights_files_are_cropped_out_of_the_whole_image(tmp_path: Path) -> None:
    """Not out of the one that was resized for the test; the split that was given stays as it is."""
    image = pixels(1, 60)[0, :, :40]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    split = FileSplit([(tmp_path / "a.png", 0)], 16, "squash256", (0.0,) * 3, (1.0,) * 3)
    other = split.resized_crops()
    assert told(split)[0] == CropAndMirror(16) and told(other)[0] == ResizedCropAndMirror(16)
    draws = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = (other.augmented([0, 0, 0], draws) * 255.0).round().to(torch.uint8)
    for draw, crop in zip(draws[:, 0].tolist(), found, strict=True):
        assert_same_picture(crop, by_torchvision(image, 16, draw))
    assert torch.equal(other.batch([0]), split.batch([0]))


# --------------------------------------------------------------------------------------------------------------------
# Which set gets what


def told(split: Split) -> tuple[object, tuple[float, ...], tuple[float, ...]]:
    return split.augmentation, tuple(split.mean), tuple(split.std)


def test_digits_are_moved_by_a_pixel_and_never_mirrored() -> None:
    """1,437 for training and the other 360 of scikit-learn's 1,797 for the test, each digit with its label."""
    data = digits_images(16)
    assert told(data.train) == told(data.test) == (PadCropAndMirror(1, False), (0.5,) * 3, (0.5,) * 3)
    assert told(digits_images(32).train)[0] == PadCropAndMirror(2, False)
    assert isinstance(data.train, MemorySplit) and isinstance(data.test, MemorySplit)
    assert (len(data.train), len(data.test)) == (1437, 360)
    whole = load_digits()
    assert (
        torch.bincount(torch.cat([data.train.labels, data.test.labels])).tolist() == np.bincount(whole.target).tolist()
    )
    raw = {tuple(image.flatten().tolist()): int(label) for image, label in zip(whole.images, whole.target, strict=True)}
    assert len(raw) == 1797  # no digit is there twice, so that the splits have none in common if all are found
    # an upscaled image's brightness tells where it came from: bilinear interpolation by two keeps the mean
    means = {label: [] for label in range(10)}  # type: ignore[var-annotated]
    for image, label in zip(whole.images, whole.target, strict=True):
        means[int(label)].append(image.mean() * 255 / 16)
    for split in (data.train, data.test):
        for image, label in zip(split.images[:40], split.labels[:40].tolist(), strict=True):
            assert min(abs(float(image[0].float().mean()) - mean) for mean in means[label]) < 1.0
    seen = [tuple(image.flatten().tolist()) for split in (data.train, data.test) for image in split.images[:, 0]]
    assert len(set(seen)) == 1797


CIFAR = (PadCropAndMirror(4, True), IMAGENET_MEAN, IMAGENET_STD)


def test_cifar10_is_padded_by_four_and_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(root: Path, train: bool) -> SimpleNamespace:
        generator = np.random.default_rng(int(train))
        count = 6 if train else 4
        images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(data=images, targets=list(range(count)), classes=list(cifar10.CLASSES))

    monkeypatch.setattr(cifar10, "_load", fake)
    data = cifar10.cifar10_images(tmp_path)
    assert told(data.train) == told(data.test) == CIFAR
    assert (len(data.train), len(data.test), data.train.labels.tolist()) == (6, 4, [0, 1, 2, 3, 4, 5])
    assert isinstance(data.train, MemorySplit)
    assert torch.equal(data.train.images[5, :, 3, 7], torch.from_numpy(fake(tmp_path, True).data[5, 3, 7]))
    # as arrays the same set is the same
    for name, train in (("train.npz", True), ("test.npz", False)):
        part = fake(tmp_path, train)
        np.savez(tmp_path / name, images=part.data, labels=np.asarray(part.targets))
    monkeypatch.setattr(cifar10, "WHOLE", (6, 4))
    arrays = cifar10.cifar10_images(tmp_path)
    assert told(arrays.train) == CIFAR and isinstance(arrays.train, MemorySplit)
    assert torch.equal(arrays.train.images, data.train.images)


def test_a_folder_of_small_images_is_augmented_as_cifar10_and_large_ones_are_cropped(tmp_path: Path) -> None:
    for part, shade in (("train", 10), ("test", 90)):
        for label, name in enumerate(("a", "b")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), (shade + label,) * 3).save(tmp_path / part / name / "0.png")
    small = image_folder(tmp_path, 32, "short256", progress=False)
    assert told(small.train) == told(small.test) == CIFAR
    assert isinstance(small.train, MemorySplit) and isinstance(small.test, MemorySplit)
    assert small.train.images[:, 0, 0, 0].tolist() == [10, 11] and small.train.labels.tolist() == [0, 1]
    assert small.test.images[:, 0, 0, 0].tolist() == [90, 91] and small.test.labels.tolist() == [0, 1]
    large = image_folder(tmp_path, 96, "short256", progress=False)
    assert told(large.train) == (CropAndMirror(96), IMAGENET_MEAN, IMAGENET_STD)
    assert isinstance(large.train, FileSplit) and isinstance(large.test, FileSplit)
    assert [path.parts[-3] for path, _ in large.train.files] == ["train", "train"]
    assert [path.parts[-3] for path, _ in large.test.files] == ["test", "test"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_held_on_the_gpu_are_those_of_the_cpu() -> None:
    """Augmented, normalised, with their labels, and without anything that is decided by the GPU's generator."""
    labels = torch.arange(6)
    split = MemorySplit(pixels(6, 8), labels, IMAGENET_MEAN, IMAGENET_STD, pad=2, mirror=True)
    there = split.on("cuda")
    for epoch in (0, 3):
        ours, theirs = Augmented(split, 5), Augmented(there, 5)
        ours.epoch = theirs.epoch = epoch
        for places in ([3, 0, 5], [1]):
            (images, targets), (images_, targets_) = ours[places], theirs[places]
            assert images_.device.type == targets_.device.type == "cuda"
            torch.testing.assert_close(images_.cpu(), images)
            assert torch.equal(targets_.cpu(), targets)
    assert split.images.device.type == "cpu"


def test_only_images_in_memory_move_to_the_device(tmp_path: Path) -> None:
    """``meta`` stands for a device: the copy lies there, and the split that was given stays where it was."""
    split = MemorySplit(pixels(6, 8), torch.arange(6), IMAGENET_MEAN, IMAGENET_STD, pad=2, mirror=True)
    there = split.on("meta")
    assert (there.images.device.type, there.labels.device.type, split.images.device.type) == ("meta", "meta", "cpu")
    files = FileSplit([(tmp_path / "absent.png", 1)], 8, "short256")
    assert files.on("meta") is files
