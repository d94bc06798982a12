"""Data sets: fixed splits, protocols against PIL, augmentation, and what broken folders are told."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import bench.data
from bench.data.cifar10 import SUBSET_PER_BATCH, SUBSET_TEST, write_subset
from bench.data.folder import image_folder
from bench.data.images import IMAGENET_MEAN, IMAGENET_STD, FileSplit
from bench.errors import UserError


def folder(
    root: Path, size: tuple[int, int] = (32, 32), count: int = 3, parts: tuple[str, ...] = ("train", "test")
) -> Path:
    """An image folder of two classes with random PNG files; ``size`` is width, height."""
    generator = np.random.default_rng(0)
    for part in parts:
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


def test_digits_are_scikit_learn_s_scans_in_a_fixed_split() -> None:
    data = bench.data.load("digits", Path(), 8)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert len(data.classes) == 10
    scans = {array.tobytes() for array in np.round(load_digits().images * 255 / 16).astype(np.uint8)}
    for split in (data.train, data.test):
        first = (split.batch([0])[0, 0] * 127.5 + 127.5).round().to(torch.uint8).numpy()
        assert first.tobytes() in scans
    again = bench.data.load("digits", Path(), 8)
    assert again.fingerprint == data.fingerprint
    assert torch.equal(again.test.labels, data.test.labels)


def test_small_folders_are_read_as_they_are(tmp_path: Path) -> None:
    data = image_folder(folder(tmp_path), 32, "short256", progress=False)
    assert data.classes == ("cat", "dog")
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = np.asarray(Image.open(tmp_path / "test" / "dog" / "1.png")).astype(np.float64) / 255
    expected = (pixels - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(data.test.batch([4])[0].numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_a_fingerprint_changes_with_a_pixel_and_not_with_the_place(tmp_path: Path) -> None:
    first = image_folder(folder(tmp_path / "a"), 32, "short256", progress=False)
    second = image_folder(folder(tmp_path / "b"), 32, "short256", progress=False)
    assert first.fingerprint == second.fingerprint
    image = Image.open(tmp_path / "b" / "train" / "cat" / "0.png")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(tmp_path / "b" / "train" / "cat" / "0.png")
    assert image_folder(tmp_path / "b", 32, "short256", progress=False).fingerprint != first.fingerprint


@pytest.mark.parametrize(("protocol", "resized"), [("short256", (512, 256)), ("squash256", (256, 256))])
def test_imagenet_protocols_equal_pil(tmp_path: Path, protocol: str, resized: tuple[int, int]) -> None:
    """Bicubic resize (shorter side 256, or 256x256 without keeping the aspect), then the centre 224x224."""
    path = tmp_path / "wide.png"
    gradient = np.linspace(0, 255, 600, dtype=np.uint8)
    Image.fromarray(np.broadcast_to(gradient[None, :, None], (300, 600, 3)).copy()).save(path)
    image = Image.open(path).resize(resized, Image.Resampling.BICUBIC)
    left, top = (resized[0] - 224) // 2, (resized[1] - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224))).astype(np.float64) / 255
    expected = ((pixels - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    found = FileSplit([(path, 0)], 224, protocol).batch([0])[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)  # one grey level is 0.0175


def test_val_serves_as_test_and_the_last_batch_is_partial(tmp_path: Path) -> None:
    data = image_folder(folder(tmp_path, parts=("train", "val")), 32, "short256", progress=False)
    sizes = [len(labels) for _, labels in data.test.batches(4)]
    assert sizes == [4, 2]


def test_augmentation_shifts_and_mirrors_real_pixels(tmp_path: Path) -> None:
    """Every augmented image is a crop of the zero-padded image or of its mirror image."""
    data = image_folder(folder(tmp_path, count=1), 32, "short256", progress=False)
    pixels = np.asarray(Image.open(tmp_path / "train" / "cat" / "0.png")).transpose(2, 0, 1)
    padded = np.pad(pixels, ((0, 0), (4, 4), (4, 4)))
    crops = {padded[:, i : i + 32, j : j + 32].tobytes() for i in range(9) for j in range(9)}
    crops |= {
        np.ascontiguousarray(padded[:, i : i + 32, j : j + 32][:, :, ::-1]).tobytes()
        for i in range(9)
        for j in range(9)
    }
    mean, std = np.array(IMAGENET_MEAN)[:, None, None], np.array(IMAGENET_STD)[:, None, None]
    draws = torch.rand(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = set()
    for image in data.train.augmented([0] * 40, draws).numpy():
        crop = np.round((image * std + mean) * 255).astype(np.uint8).tobytes()
        assert crop in crops
        seen.add(crop)
    assert len(seen) > 20


def _empty_class(root: Path) -> None:
    (root / "train" / "zebra").mkdir()
    (root / "test" / "zebra").mkdir()


def _corrupt(root: Path) -> None:
    (root / "test" / "cat" / "0.png").write_bytes(b"not an image")


def _truncated(root: Path) -> None:
    path = root / "test" / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:200])


def _other_classes(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "wolf")


def _no_test(root: Path) -> None:
    (root / "test").rename(root / "exam")


@pytest.mark.parametrize(
    ("breakage", "named"),
    [
        (_empty_class, "zebra"),
        (_corrupt, "0.png"),
        (_truncated, "0.png"),
        (_other_classes, "wolf"),
        (_no_test, "test/"),
    ],
)
def test_a_broken_folder_gets_one_line_that_names_the_place(
    tmp_path: Path, breakage: Callable[[Path], None], named: str
) -> None:
    breakage(folder(tmp_path))
    with pytest.raises(UserError, match=named) as caught:
        image_folder(tmp_path, 32, "short256", progress=False)
    assert "\n" not in str(caught.value)


def test_unknown_scales_and_missing_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="digits, clutter, scenes, cifar10, imagenet, voc, coco"):
        bench.data.load("cifar11", tmp_path, 32)
    with pytest.raises(UserError, match="--data"):
        bench.data.load("imagenet", tmp_path, 224)


def test_the_cifar10_subset_is_the_first_of_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small fake of torchvision's CIFAR-10 with the original number of images."""

    class Fake:
        classes = tuple("abcdefghij")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            count = 50_000 if train else 10_000
            self.data = np.zeros((count, 1, 1, 3), dtype=np.uint8)
            self.data[:, 0, 0, 0], self.data[:, 0, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
            self.targets = [i % 10 for i in range(count)]

    monkeypatch.setattr("bench.data.cifar10.CIFAR10", Fake)
    counts = write_subset(tmp_path, tmp_path / "subset", progress=False)
    assert counts == {"train": 5 * SUBSET_PER_BATCH, "test": SUBSET_TEST} == {"train": 5170, "test": 1017}
    # file 1034 is the first image of the second batch, number 10,000 of the set, of class "a"
    pixel = Image.open(tmp_path / "subset" / "train" / "a" / "01034.png").getpixel((0, 0))
    assert pixel == (10_000 // 256, 10_000 % 256, 0)
    assert len(list((tmp_path / "subset").rglob("*.png"))) == 5170 + 1017


def test_cifar10_is_read_through_torchvision_s_own_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with files of the right names and wrong contents is refused, and told what to do."""

    def offline(self: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", offline)
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (place / name).write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="cifar-10-batches-py"):
        bench.data.load("cifar10", tmp_path, 32)
