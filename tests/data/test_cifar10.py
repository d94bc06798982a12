"""CIFAR-10 from arrays with nearly all images: what is checked, what missing images do to intervals and verdicts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import bench.data
from bench.data import cifar10
from bench.data.cifar10 import cifar10_images
from bench.errors import UserError
from bench.measure.accuracy import compare, records, summary

Arrays = dict[str, np.ndarray]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A published set of 500 and 200 images."""
    monkeypatch.setattr(cifar10, "WHOLE", (500, 200))


def write(root: Path, change: Callable[[Arrays, Arrays], None] = lambda train, test: None) -> Path:
    """497 and 199 different images."""
    rng = np.random.default_rng(0)
    splits = []
    for count in (497, 199):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        splits.append({"images": images, "labels": (np.arange(count) % 10).astype(np.uint8)})
    change(*splits)
    root.mkdir(parents=True, exist_ok=True)
    for name, arrays in zip(("train", "test"), splits, strict=True):
        np.savez(root / f"{name}.npz", **arrays)
    return root


@pytest.mark.usefixtures("small")
def test_arrays_are_read_in_order_and_say_how_many_there_should_be(tmp_path: Path) -> None:
    root = write(tmp_path / "cifar10")
    assert bench.data.find("cifar10", tmp_path) == root
    data = cifar10_images(root)
    assert (data.name, len(data.classes), data.whole, data.test_of) == ("cifar10", 10, (500, 200), 200)
    assert (len(data.train), len(data.test)) == (497, 199)
    with np.load(root / "test.npz") as file:
        expected = (file["images"][7].transpose(2, 0, 1) / 255 - np.array([0.485, 0.456, 0.406])[:, None, None]) / (
            np.array([0.229, 0.224, 0.225])[:, None, None]
        )
    np.testing.assert_allclose(data.test.batch([7])[0].numpy(), expected, atol=1e-5)
    assert data.test.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def copy_one(train: Arrays, test: Arrays) -> None:
    test["images"][3] = train["images"][5]


def too_few(train: Arrays, test: Arrays) -> None:
    test.update({name: array[:196] for name, array in test.items()})  # 98 %


def wrong_shape(train: Arrays, test: Arrays) -> None:
    train["images"] = train["images"].transpose(0, 3, 1, 2)


def label_of_ten(train: Arrays, test: Arrays) -> None:
    test["labels"][0] = 10


def no_labels(train: Arrays, test: Arrays) -> None:
    del train["labels"]


def too_few_labels(train: Arrays, test: Arrays) -> None:
    train["labels"] = train["labels"][:-1]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (copy_one, r"test\.npz: image 3 is there twice"),
        (too_few, r"test\.npz has 196 images, CIFAR-10 200: at least 99% must be there"),
        (wrong_shape, r"train\.npz: images are uint8 \(497, 3, 32, 32\)"),
        (label_of_ten, r"test\.npz: labels go from 0 to 10"),
        (no_labels, r"train\.npz has no array"),
        (too_few_labels, r"train\.npz: labels are uint8 \(496,\)"),
    ],
)
def test_what_is_not_cifar10_is_told_in_one_line(
    tmp_path: Path, change: Callable[[Arrays, Arrays], None], told: str
) -> None:
    root = write(tmp_path, change)
    with pytest.raises(UserError, match=told) as caught:
        cifar10_images(root)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("length", [0, 100, 20_000])
def test_a_truncated_file_is_told_in_one_line(tmp_path: Path, length: int) -> None:
    root = write(tmp_path)
    path = root / "train.npz"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"train\.npz cannot be read") as caught:
        cifar10_images(root)
    assert "\n" not in str(caught.value)


def logits_of(right: int, images: int) -> torch.Tensor:
    """Logits of ``images`` images of class 0, the first ``right`` of them right."""
    found = torch.zeros(images, 3)
    found[:right, 0], found[right:, 1] = 1.0, 1.0
    return found


def test_intervals_hold_what_missing_images_could_change() -> None:
    """180 of 190 right and 10 images missing: the ends move to where all of these are wrong, or right."""
    labels = torch.zeros(190, dtype=torch.long)
    (plain,) = records(logits_of(180, 190), labels, 0)
    (wide,) = records(logits_of(180, 190), labels, 0, of=200)
    assert plain.low is not None and plain.high is not None
    assert (wide.value, wide.n, wide.of) == (plain.value, 190, 200)
    assert wide.low == pytest.approx(plain.low * 190 / 200)
    assert wide.high == pytest.approx((plain.high * 190 + 100 * 10) / 200)
    runs = [logits_of(180, 190), logits_of(176, 190)]
    (mean,) = summary(runs, labels, 200)
    assert mean.of == 200 and mean.networks == 2
    near, far = (
        {r.metric: r for r in compare([logits_of(170, 190)], [logits_of(180, 190)], labels, of)} for of in (None, 200)
    )
    change, wider = near["top1_change"], far["top1_change"]
    assert change.low is not None and change.high is not None
    assert (wider.low, wider.high) == pytest.approx(((change.low * 190 - 1000) / 200, (change.high * 190 + 1000) / 200))
    # turned about, not moved: an error's increase is the change with the other sign
    increase = far["top1_err_increase"]
    assert (increase.low, increase.high) == pytest.approx((-(wider.high or 0.0), -(wider.low or 0.0)))
    assert (far["kl"].low, far["kl"].high) == (near["kl"].low, near["kl"].high)
