"""Accuracy, agreement and divergence against plain NumPy, image by image."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from bench.data.images import MemorySplit
from bench.measure.accuracy import compare, contrast, divergence, hits, logits, records
from bench.store import Record

Array = NDArray[np.float64]


def scores(images: int, classes: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((images, classes)).astype(np.float32) * 2.0)


def labels_of(images: int, classes: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(classes, size=images))


def plain_hits(outputs: Tensor, labels: Tensor, k: int) -> Array:
    """One image at a time: is the label among the k best."""
    found = [int(label) in np.argsort(-row)[:k] for row, label in zip(outputs.numpy(), labels, strict=True)]
    return np.array(found, dtype=np.float64)


def plain_kl(reference: Tensor, outputs: Tensor) -> Array:
    """sum p log(p / q) with softmax written out."""
    p, q = (np.exp(t.double().numpy()) for t in (reference, outputs))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return (p * np.log(p / q)).sum(1)  # type: ignore[no-any-return]


def by_name(found: list[Record]) -> dict[str, Record]:
    named = {record.metric: record for record in found}
    assert len(named) == len(found)
    return named


@pytest.mark.parametrize("k", [1, 3, 5, 40])
def test_hits_equal_a_plain_ranking(k: int) -> None:
    outputs, labels = scores(70, 8, 0), labels_of(70, 8, 1)
    assert hits(outputs, labels, k).double().numpy().tolist() == plain_hits(outputs, labels, k).tolist()


class Means(nn.Module):
    """Logits that tell the image: its mean, and whether dropout or batch statistics were on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 3."""
        return self.drop(self.norm(x)).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("images", "batch"), [(300, 256), (256, 256), (7, 3), (5, 100)])
def test_logits_of_every_image_in_order(images: int, batch: int) -> None:
    """The last batch may be partial; the network is in evaluation mode; one image at a time gives the same."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 4, 4), dtype=torch.uint8, generator=generator)
    split = MemorySplit(pixels, torch.zeros(images, dtype=torch.long), (0.5,) * 3, (0.25,) * 3, pad=1, mirror=True)
    found = logits(Means().train(), split, "cpu", batch=batch, progress=False)
    expected = ((pixels.double() / 255.0 - 0.5) / 0.25).mean((2, 3))
    assert found.shape == (images, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_records_of_a_last_partial_batch_count_every_image() -> None:
    """Top-1 and top-5 with their exact intervals; top-5 only where it means something."""
    outputs, labels = scores(301, 9, 2), labels_of(301, 9, 3)
    found = by_name(records(outputs, labels, seed=4))
    assert set(found) == {"top1_acc", "top5_acc"}
    for k in (1, 5):
        record, p = found[f"top{k}_acc"], plain_hits(outputs, labels, k).mean()
        assert record.value == pytest.approx(100.0 * p)
        right = round(301 * p)  # Clopper and Pearson's ends are quantiles of beta distributions
        ends = (
            100 * stats.beta.ppf(0.025, right, 301 - right + 1),
            100 * stats.beta.ppf(0.975, right + 1, 301 - right),
        )
        assert (record.low, record.high) == pytest.approx(ends)
        assert (record.unit, record.n, record.seed) == ("%", 301, 4)
    assert [r.metric for r in records(outputs[:, :5], labels % 5, None)] == ["top1_acc"]


def test_divergence_equals_the_definition() -> None:
    first, second = scores(20, 6, 4), scores(20, 6, 5)
    np.testing.assert_allclose(divergence(first, second).numpy(), plain_kl(first, second), rtol=1e-9)
    assert float(divergence(first, first).abs().max()) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("classes", [4, 9])
def test_compare_equals_plain_means(classes: int) -> None:
    """Mean over images and seeds of paired differences; signs of the error increase turned."""
    labels = labels_of(120, classes, 0)
    references = [scores(120, classes, s) for s in (1, 2)]
    runs = [r + 0.7 * scores(120, classes, 10 + i) for i, r in enumerate(references)]
    found = by_name(compare(runs, references, labels))
    pairs = list(zip(runs, references, strict=True))
    ks = (1, 5) if classes > 5 else (1,)
    for k in ks:
        change = 100.0 * np.mean([plain_hits(a, labels, k) - plain_hits(r, labels, k) for a, r in pairs])
        up, down = found[f"top{k}_change"], found[f"top{k}_err_increase"]
        assert up.value == pytest.approx(change)
        assert down.value == pytest.approx(-change)
        assert (down.low, down.high) == (-up.high, -up.low)  # type: ignore[operator]
        assert up.unit == down.unit == "pp"
    agreement = 100.0 * np.mean([a.argmax(1).numpy() == r.argmax(1).numpy() for a, r in pairs])
    assert found["agreement"].value == pytest.approx(agreement)
    assert found["kl"].value == pytest.approx(np.mean([plain_kl(r, a) for a, r in pairs]))
    assert set(found) == {f"top{k}_{m}" for k in ks for m in ("change", "err_increase")} | {"agreement", "kl"}
    for record in found.values():
        assert record.low is not None
        assert record.high is not None
        assert record.low < record.value < record.high
        assert record.n == 120


def test_compare_gives_the_interval_of_paired_differences() -> None:
    """One seed, many images: the normal approximation of the differences, much narrower than of two accuracies."""
    labels = labels_of(6000, 10, 0)
    reference = scores(6000, 10, 1)
    run = reference + 0.3 * scores(6000, 10, 2)
    change = plain_hits(run, labels, 1) - plain_hits(reference, labels, 1)
    record = by_name(compare([run], [reference], labels))["top1_change"]
    half = 100.0 * 1.96 * change.std() / np.sqrt(6000)
    assert record.low == pytest.approx(100.0 * change.mean() - half, abs=0.15 * half)
    assert record.high == pytest.approx(100.0 * change.mean() + half, abs=0.15 * half)


def test_contrast_equals_plain_means() -> None:
    labels = labels_of(150, 7, 0)
    references = [scores(150, 7, s) for s in (1, 2, 3)]
    first = [r + 0.4 * scores(150, 7, 20 + i) for i, r in enumerate(references)]
    second = [r + 0.9 * scores(150, 7, 30 + i) for i, r in enumerate(references)]
    found = by_name(contrast(first, second, references, labels))
    rows = list(zip(first, second, references, strict=True))
    top1 = np.mean([plain_hits(a, labels, 1) - plain_hits(b, labels, 1) for a, b, _ in rows])

    def same(a: Tensor, b: Tensor) -> Array:
        return (a.argmax(1) == b.argmax(1)).double().numpy()

    agree = np.mean([same(a, r) - same(b, r) for a, b, r in rows])
    one, two = np.mean([plain_kl(r, a) for a, _, r in rows]), np.mean([plain_kl(r, b) for _, b, r in rows])
    assert found["top1_difference"].value == pytest.approx(100.0 * top1)
    assert found["agreement_difference"].value == pytest.approx(100.0 * agree)
    assert found["kl_difference"].value == pytest.approx(one - two)
    assert found["kl_ratio"].value == pytest.approx(100.0 * (one / two - 1.0))
    assert found["kl_ratio"].high is not None
    assert found["kl_ratio"].high < 0.0
    top5 = np.mean([plain_hits(a, labels, 5) - plain_hits(b, labels, 5) for a, b, _ in rows])
    assert found["top5_difference"].value == pytest.approx(100.0 * top5)
    assert len(found) == 5
    assert {record.networks for record in found.values()} == {3}


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_layout_of_the_images_changes_no_output(channels_last: bool) -> None:
    """But for rounding; and the network sees what was asked for."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3)
    seen = []
    conv.register_forward_pre_hook(lambda module, args: seen.append(args[0].stride()))
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randint(256, (7, 3, 8, 8), dtype=torch.uint8)
    split = MemorySplit(images, torch.zeros(7, dtype=torch.long), (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False)
    found = logits(net, split, "cpu", 4, progress=False, channels_last=channels_last)
    strides = {(192, 1, 24, 3)} if channels_last else {(192, 64, 8, 1)}
    assert set(seen) == strides
    expected = torch.nn.functional.conv2d((images / 255.0 - 0.5) / 0.25, conv.weight, conv.bias).relu().mean((2, 3))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
