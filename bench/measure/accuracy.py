"""Accuracy of classifiers: logits of every test image once, everything else from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench.data.images import Split
from bench.measure.statistics import interval_of_mean, wilson
from bench.store import Record


@torch.no_grad()
def logits(
    model: nn.Module, split: Split, device: str, batch: int = 256, workers: int = 0, progress: bool = True
) -> Tensor:
    """N x classes (float32) for all N images of ``split``, in order, in evaluation mode."""
    model = model.to(device).eval()
    outputs = []
    total = -(-len(split) // batch)
    for images, _ in tqdm(
        split.batches(batch, workers), desc="evaluating", total=total, disable=not progress, leave=False
    ):
        outputs.append(model(images.to(device)).float().cpu())
    return torch.cat(outputs)


def hits(outputs: Tensor, labels: Tensor, k: int) -> Tensor:
    """For each image (N, bool) whether the label is among the ``k`` largest logits."""
    return (outputs.topk(min(k, outputs.shape[1]), dim=1).indices == labels[:, None]).any(1)


def records(outputs: Tensor, labels: Tensor, seed: int | None) -> list[Record]:
    """Top-1 and, with more than five classes, top-5 accuracy (%) with Wilson intervals."""
    found = []
    for k in (1, 5) if outputs.shape[1] > 5 else (1,):
        right, count = int(hits(outputs, labels, k).sum()), len(labels)
        low, high = wilson(right, count)
        found.append(Record(f"top{k}_acc", 100.0 * right / count, "%", 100.0 * low, 100.0 * high, count, seed))
    return found


def divergence(reference: Tensor, outputs: Tensor) -> Tensor:
    """KL(reference || outputs) in nats for each image (N), of the softmax distributions of two N x classes logits."""
    p, q = reference.double().log_softmax(1), outputs.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def compare(runs: list[Tensor], references: list[Tensor], labels: Tensor, seed: int = 0) -> list[Record]:
    """Networks against their references on the same images, paired by image, mean over the seeds' runs.

    ``runs[s]`` and ``references[s]`` are N x classes logits.  Gives the change of top-1 and top-5 accuracy and of the
    errors (points), the agreement of the predictions (%), and the KL divergence from the reference's outputs (nats);
    95 % intervals from a bootstrap over images and seeds.
    """
    pairs = list(zip(runs, references, strict=True))
    found = []
    for k in (1, 5) if labels.numel() and runs[0].shape[1] > 5 else (1,):
        change = torch.stack([hits(run, labels, k).double() - hits(ref, labels, k).double() for run, ref in pairs])
        mean, low, high = interval_of_mean(100.0 * change, seed)
        found.append(Record(f"top{k}_change", mean, "pp", low, high, len(labels)))
        found.append(Record(f"top{k}_err_increase", -mean, "pp", -high, -low, len(labels)))
    agree = torch.stack([(run.argmax(1) == ref.argmax(1)).double() for run, ref in pairs])
    kl = torch.stack([divergence(ref, run) for run, ref in pairs])
    for name, values, unit in (("agreement", 100.0 * agree, "%"), ("kl", kl, "nats")):
        mean, low, high = interval_of_mean(values, seed)
        found.append(Record(name, mean, unit, low, high, len(labels)))
    return found


def contrast(
    first: list[Tensor], second: list[Tensor], references: list[Tensor], labels: Tensor, seed: int = 0
) -> list[Record]:
    """What one method is worth against another: first minus second, paired by image and seed.

    Gives the differences of top-1 accuracy (points), agreement with the reference (points) and KL (nats), and the ratio
    of the KL divergences minus one (%), with bootstrap intervals as in :func:`compare`.
    """
    rows = list(zip(first, second, references, strict=True))
    top1 = torch.stack([hits(a, labels, 1).double() - hits(b, labels, 1).double() for a, b, _ in rows])
    agree = torch.stack(
        [(a.argmax(1) == r.argmax(1)).double() - (b.argmax(1) == r.argmax(1)).double() for a, b, r in rows]
    )
    kl_first = torch.stack([divergence(r, a) for a, _, r in rows])
    kl_second = torch.stack([divergence(r, b) for _, b, r in rows])
    found = []
    for name, values, unit in (
        ("top1_difference", 100.0 * top1, "pp"),
        ("agreement_difference", 100.0 * agree, "pp"),
        ("kl_difference", kl_first - kl_second, "nats"),
    ):
        mean, low, high = interval_of_mean(values, seed)
        found.append(Record(name, mean, unit, low, high, len(labels)))
    mean, low, high = interval_of_mean(kl_first, seed, over=kl_second)
    found.append(Record("kl_ratio", 100.0 * (mean - 1.0), "%", 100.0 * (low - 1.0), 100.0 * (high - 1.0), len(labels)))
    return found
