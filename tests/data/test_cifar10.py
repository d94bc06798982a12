"""CIFAR-10 from arrays with nearly all images: what is checked, what missing images do to intervals and verdicts."""

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import bench.data
from bench.cli import main
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


def no_images(train: Arrays, test: Arrays) -> None:
    del test["images"]


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


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (too_few, "test.npz has 196 images, CIFAR-10 200"),
        (wrong_shape, "train.npz: images are uint8 (497, 3, 32, 32), not uint8 N x 32 x 32 x 3"),
        (label_of_ten, "test.npz: labels go from 0 to 10, CIFAR-10's from 0 to 9"),
        (no_labels, "train.npz has no array labels"),
        (no_images, "test.npz has no array images"),
        (too_few_labels, "train.npz: labels are uint8 (496,), not a number for each image"),
    ],
)
def test_broken_arrays_are_not_found_and_what_is_wrong_is_told(
    tmp_path: Path,
    change: Callable[[Arrays, Arrays], None],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By ``bench doctor``, and by whoever loads them; nothing is downloaded."""
    root = write(tmp_path / "cifar10", change)
    monkeypatch.setattr(cifar10, "_load", lambda *_: pytest.fail("a download was tried"))
    assert bench.data.find("cifar10", tmp_path) is None
    assert bench.data.needs("cifar10", tmp_path) == f"needs all of cifar10: {told}"
    line = f"{root} is not all of cifar10 ({told}): make its npz files again, or put cifar-10-batches-py there"
    with pytest.raises(UserError) as caught:
        bench.data.load("cifar10", tmp_path, 32, progress=False)
    assert str(caught.value) == f"no cifar10 in {tmp_path}: {line}"
    assert main(["doctor", "--data", str(tmp_path)]) == 0
    assert f"data cifar10: not found: {line}\n" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_coverage_and_plans_tell_broken_arrays_from_missing_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "cifar10", label_of_ten)
    told, data = "test.npz: labels go from 0 to 10, CIFAR-10's from 0 to 9", ["--data", str(tmp_path)]
    assert main(["coverage", "channel_pruning", *data, "--from", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{root} is not all of cifar10 ({told}): ")
    plan = ["run", "channel_pruning", "--row", "table-8/ours", "--plan", "--out", str(tmp_path / "runs")]
    assert main([*plan, *data]) == 0
    assert f"(needs all of cifar10: {told})" in capsys.readouterr().out
    write(tmp_path / "cifar10")
    assert main(["coverage", "channel_pruning", *data, "--from", str(tmp_path)]) == 0
    assert "is not all of" not in capsys.readouterr().out


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("length", [0, 100, 20_000])
def test_a_truncated_file_is_not_found(tmp_path: Path, length: int) -> None:
    root = write(tmp_path)
    path = root / "test.npz"
    path.write_bytes(path.read_bytes()[:length])
    assert cifar10.shortfall(root) == "test.npz cannot be read"


@pytest.mark.usefixtures("small")
def test_the_pixels_are_not_read_to_look_at_the_arrays(tmp_path: Path) -> None:
    """A damaged pixel is found when the images are loaded, not before."""
    root = write(tmp_path)
    path = root / "test.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert cifar10.shortfall(root) is None
    with pytest.raises(UserError, match=r"test\.npz cannot be read"):
        cifar10_images(root)


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


def test_a_server_is_asked_once_and_may_not_be_silent_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of a plan and each released network asked anew, of a server that had not answered."""
    asked: list[tuple[str, float | None]] = []

    class Offline:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            if download:
                asked.append((root, socket.getdefaulttimeout()))
            raise OSError("timed out") if download else RuntimeError("not found")

    monkeypatch.setattr(cifar10, "CIFAR10", Offline)
    for root in (tmp_path, tmp_path, tmp_path / "other"):
        with pytest.raises(UserError, match=r"could not be downloaded \(timed out\)"):
            cifar10_images(root)
    assert asked == [(str(tmp_path), 60.0), (str(tmp_path / "other"), 60.0)]
    assert socket.getdefaulttimeout() is None
