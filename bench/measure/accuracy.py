"""Accuracy of classifiers: logits of every test image once, everything else from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench.data.images import Split
from bench.measure.statistics import (
    exact_ends,
    interval_of_change,
    interval_of_mean,
    interval_of_ratio,
    interval_of_share,
    spread,
)
from bench.measure.units import number
from bench.metrics import Metric, controlled
from bench.store import Record

# beside changes of top-1 those of top-5 go to the CSV file, and what says the same as an error goes there everywhere
_CHANGED = ("top1_change",)
_COMPARED = (
    Metric(
        "top1_change",
        "top-1 change",
        "pp",
        2,
        "Top-1 accuracy minus that of the dense network.",
        "higher",
        signed=True,
        panel=1,
    ),
    Metric(
        "top5_change",
        "top-5 change",
        "pp",
        2,
        "Top-5 accuracy minus that of the dense network.",
        "higher",
        signed=True,
        beside=_CHANGED,
    ),
    *(
        Metric(
            f"top{k}_err_increase",
            f"top-{k} error increase",
            "pp",
            2,
            f"Top-{k} error minus that of the dense network.",
            "lower",
            signed=True,
            beside=(f"top{k}_change", *(_CHANGED if k == 5 else ())),
        )
        for k in (1, 5)
    ),
    Metric(
        "agreement",
        "agreement",
        "%",
        2,
        "Share of test images for which the prediction equals that of the dense network.",
        "higher",
        minor=True,
    ),
    Metric(
        "kl",
        "KL",
        "nats",
        3,
        "KL divergence of the network's outputs from those of the dense network.",
        "lower",
        minor=True,
        panel=2,
    ),
)
METRICS = (
    Metric("top1_acc", "top-1", "%", 2, "Share of test images whose label is predicted.", "higher"),
    Metric(
        "top5_acc",
        "top-5",
        "%",
        2,
        "Share of test images with the label among five predictions.",
        "higher",
        beside=_CHANGED,
    ),
    Metric(
        "top1_err",
        "top-1 error",
        "%",
        2,
        "Share of test images whose label is not predicted.",
        "lower",
        beside=("top1_acc",),
    ),
    Metric(
        "top5_err",
        "top-5 error",
        "%",
        2,
        "Share of test images without the label among five predictions.",
        "lower",
        beside=("top5_acc", *_CHANGED),
    ),
    *_COMPARED,
    # of the comparisons with the network that was tuned as long the readable table keeps the change of top-1
    *(
        controlled(metric, 1) if metric.name == "top1_change" else controlled(metric, beside=_CHANGED)
        for metric in _COMPARED
    ),
    Metric(
        "top1_difference",
        "top-1 difference",
        "pp",
        2,
        "Top-1 accuracy, first method minus second.",
        "higher",
        signed=True,
        panel=1,
    ),
    Metric(
        "top5_difference",
        "top-5 difference",
        "pp",
        2,
        "Top-5 accuracy, first method minus second.",
        "higher",
        signed=True,
        beside=_CHANGED,
    ),
    Metric(
        "agreement_difference",
        "agreement difference",
        "pp",
        2,
        "Agreement with the dense network, first method minus second.",
        "higher",
        signed=True,
    ),
    Metric(
        "kl_difference",
        "KL difference",
        "nats",
        3,
        "KL from the dense network, first method minus second.",
        "lower",
        signed=True,
    ),
    Metric(
        "kl_ratio",
        "relative KL difference",
        "%",
        1,
        "KL of the first method relative to the second's, minus 100 %.",
        "lower",
        signed=True,
        panel=2,
    ),
)

# what one image can add to a mean: of right answers, of changes
SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)


@torch.no_grad()
def logits(
    model: nn.Module,
    split: Split,
    device: str,
    batch: int = 256,
    workers: int = 0,
    progress: bool = True,
    channels_last: bool = False,
) -> Tensor:
    """N x classes (float32) for all N images of ``split``, in order, in evaluation mode.

    ``channels_last``: the images have that layout on the CPU, where convolutions are a fifth faster in it; a network
    that views its maps as vectors (``x.view``) does not take it.
    """
    model = model.to(device).eval()
    layout = torch.channels_last if channels_last and device == "cpu" else torch.contiguous_format
    outputs = []
    total = -(-len(split) // batch)
    for images, _ in tqdm(
        split.on(device).batches(batch, workers), desc="evaluating", total=total, disable=not progress, leave=False
    ):
        outputs.append(model(images.to(device).contiguous(memory_format=layout)).float().cpu())
    return torch.cat(outputs)


def hits(outputs: Tensor, labels: Tensor, k: int) -> Tensor:
    """For each image (N, bool) whether the label is among the ``k`` largest logits."""
    return (outputs.topk(min(k, outputs.shape[1]), dim=1).indices == labels[:, None]).any(1)


def records(
    outputs: Tensor, labels: Tensor, seed: int | None, of: int | None = None, units: Tensor | None = None
) -> list[Record]:
    """Top-1 and, with more than five classes, top-5 accuracy (%) of one network, with exact intervals for new images.

    ``of`` is how many images the whole set has where some are missing: the interval holds what they could change.
    ``units`` (N) says which images are alike (:class:`bench.data.images.Split`): the intervals are for new units.
    """
    found = []
    for k in (1, 5) if outputs.shape[1] > 5 else (1,):
        right, count = hits(outputs, labels, k), len(labels)
        low, high = (100.0 * end for end in widened(exact_ends(right, units), count, of, *SHARE))
        value = 100.0 * int(right.sum()) / count
        found.append(Record(f"top{k}_acc", value, "%", low, high, count, seed, of=of, units=number(units)))
    return found


def widened(ends: tuple[float, float], images: int, of: int | None, least: float, most: float) -> tuple[float, float]:
    """An interval of a mean over ``images`` widened by what the missing ones of ``of`` could change.

    Each of them could have the value ``least`` or ``most``.
    """
    if of is None or of <= images:
        return ends
    missing = of - images
    return (ends[0] * images + least * missing) / of, (ends[1] * images + most * missing) / of


def summary(runs: list[Tensor], labels: Tensor, of: int | None = None, units: Tensor | None = None) -> list[Record]:
    """Accuracy (%), mean over the networks of several seeds, with intervals for new images and seeds.

    ``runs[s]`` are N x classes logits, each of another network; ``of`` and ``units`` as in :func:`records`.
    """
    found = []
    for k in (1, 5) if runs[0].shape[1] > 5 else (1,):
        right = torch.stack([hits(run, labels, k).double() for run in runs])
        found.append(_record(f"top{k}_acc", interval_of_share(right, units), "%", right, 100.0, of, SHARE, units))
    return found


def divergence(reference: Tensor, outputs: Tensor) -> Tensor:
    """KL(reference || outputs) in nats for each image (N), of the softmax distributions of two N x classes logits."""
    p, q = reference.double().log_softmax(1), outputs.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def compare(
    runs: list[Tensor],
    references: list[Tensor],
    labels: Tensor,
    of: int | None = None,
    units: Tensor | None = None,
) -> list[Record]:
    """Networks against their references on the same images, paired by image, mean over the seeds' runs.

    ``runs[s]`` and ``references[s]`` are N x classes logits.  Gives the change of top-1 and top-5 accuracy and of the
    errors (points), the agreement of the predictions (%), and the KL divergence from the reference's outputs (nats);
    95 % intervals for new images and, with several seeds, new seeds; ``of`` and ``units`` as in :func:`records` (the KL
    of missing images has no bound, so its interval is about the images that are here).
    """
    pairs = list(zip(runs, references, strict=True))
    found = []
    for k in (1, 5) if labels.numel() and runs[0].shape[1] > 5 else (1,):
        change = torch.stack([hits(run, labels, k).double() - hits(ref, labels, k).double() for run, ref in pairs])
        mean, low, high = interval_of_change(change, units)
        found.append(_record(f"top{k}_change", (mean, low, high), "pp", change, 100.0, of, CHANGE, units))
        found.append(_record(f"top{k}_err_increase", (-mean, -high, -low), "pp", change, 100.0, of, CHANGE, units))
    agree = torch.stack([(run.argmax(1) == ref.argmax(1)).double() for run, ref in pairs])
    found.append(_record("agreement", interval_of_share(agree, units), "%", agree, 100.0, of, SHARE, units))
    kl = torch.stack([divergence(ref, run) for run, ref in pairs])
    found.append(_record("kl", interval_of_mean(kl, units=units), "nats", kl, of=of, units=units))
    return found


def contrast(
    first: list[Tensor],
    second: list[Tensor],
    references: list[Tensor],
    labels: Tensor,
    of: int | None = None,
    units: Tensor | None = None,
) -> list[Record]:
    """What one method is worth against another: first minus second, paired by image and seed.

    Gives the differences of top-1 and top-5 accuracy (points), agreement with the reference (points) and KL (nats), and
    the ratio of the KL divergences minus one (%), with intervals as in :func:`compare`; no ratio to a KL of zero.
    """
    rows = list(zip(first, second, references, strict=True))
    found = []
    for k in (1, 5) if first[0].shape[1] > 5 else (1,):
        right = torch.stack([hits(a, labels, k).double() - hits(b, labels, k).double() for a, b, _ in rows])
        found.append(
            _record(f"top{k}_difference", interval_of_change(right, units), "pp", right, 100.0, of, CHANGE, units)
        )
    agree = torch.stack(
        [(a.argmax(1) == r.argmax(1)).double() - (b.argmax(1) == r.argmax(1)).double() for a, b, r in rows]
    )
    kl_first = torch.stack([divergence(r, a) for a, _, r in rows])
    kl_second = torch.stack([divergence(r, b) for _, b, r in rows])
    found += [
        _record("agreement_difference", interval_of_change(agree, units), "pp", agree, 100.0, of, CHANGE, units),
        _record(
            "kl_difference", interval_of_mean(kl_first - kl_second, units=units), "nats", kl_first, of=of, units=units
        ),
    ]
    if float(kl_second.mean()) > 0.0:
        mean, low, high = interval_of_ratio(kl_first, kl_second, units)
        found.append(_record("kl_ratio", (mean - 1.0, low - 1.0, high - 1.0), "%", kl_first, 100.0, of, units=units))
    return found


def _record(
    name: str,
    found: tuple[float, float, float],
    unit: str,
    values: Tensor,
    scale: float = 1.0,
    of: int | None = None,
    bounds: tuple[float, float] | None = None,
    units: Tensor | None = None,
) -> Record:
    """A mean over the seeds x images ``values`` with its interval, times ``scale``; ``bounds`` are one image's."""
    networks, images = values.shape
    value, low, high = found
    if bounds is not None:
        low, high = widened((low, high), images, of, *bounds)
    deviation = spread(values.double().mean(1).tolist())
    return Record(
        name,
        scale * value,
        unit,
        scale * low,
        scale * high,
        images,
        networks=networks,
        spread=None if deviation is None else scale * deviation,
        of=of,
        units=number(units),
    )
