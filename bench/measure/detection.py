"""Average precision of detectors as the PASCAL VOC devkit counts it, and its bootstrap over images.

mmdet matches.  :class:`MatchTable` keeps what matching gave, once per image and class, and reweights the images in
milliseconds, which is what a bootstrap needs.  COCO's AP is in :mod:`bench.measure.coco`.

The rules are the devkit's (VOCevaldet.m, 2007 and 2012): a detection belongs to the object of its class with which it
overlaps most, width and height counted as x2 - x1 + 1; with IoU >= 0.5 it is a hit, or a false positive where a better
scored one hit that object before; on a ``difficult`` object it counts as neither.  Three conventions are worth knowing:

* equal scores keep the order of the images, and within an image the order given (a stable sort);
* a detection that overlaps an ordinary and a difficult object equally belongs to the ordinary one (the devkit takes
  whichever is listed first);
* the eleven recalls are i x 0.1 in floating point, as in the Python ports of the devkit: a recall of exactly 3/10, 6/10
  or 7/10 lies just below its point.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bench.errors import UserError
from bench.measure.statistics import interval_of_statistic, spread
from bench.metrics import Metric, controlled
from bench.store import Record

Array = npt.NDArray[Any]

_YEARS = {"11points": "voc07", "area": "voc12"}
_RESAMPLES = 1000


_CHANGES = tuple(
    Metric(
        f"map_{year}_change",
        f"mAP change ({year.upper()})",
        "pp",
        2,
        f"mAP ({year.upper()}) minus that of the dense network, paired by image.",
        "higher",
        signed=True,
        # the two averages of AP move alike: the readable table keeps one
        beside=("map_voc07_change",) if year == "voc12" else (),
        panel=1 if year == "voc07" else 0,
    )
    for year in ("voc07", "voc12")
)
METRICS = (
    Metric(
        "map_voc07",
        "mAP (VOC07)",
        "%",
        2,
        "Mean over the classes of AP at IoU 0.5 by VOC 2007's eleven points; difficult objects do not count.",
        "higher",
    ),
    Metric(
        "map_voc12",
        "mAP (VOC12)",
        "%",
        2,
        "Mean over the classes of AP at IoU 0.5 by the area (VOC 2010 and later).",
        "higher",
    ),
    *_CHANGES,
    *(controlled(metric, 2 if metric.name == "map_voc07_change" else 0) for metric in _CHANGES),
    *(
        Metric(
            f"map_{year}_difference",
            f"mAP difference ({year.upper()})",
            "pp",
            2,
            f"mAP ({year.upper()}), first method minus second, paired by image and seed.",
            "higher",
            signed=True,
            beside=("map_voc07_difference",) if year == "voc12" else (),
            panel=1 if year == "voc07" else 0,
        )
        for year in ("voc07", "voc12")
    ),
    *(
        Metric(f"ap_{year} *", f"AP ({year.upper()})", "%", 2, "AP of one class.", "higher", shown=False)
        for year in ("voc07", "voc12")
    ),
)


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image.

    ``boxes`` is k x 4 (x1 y1 x2 y2, absolute pixels of the original image), ``scores`` k, ``labels`` k (int64, places
    in the set's classes).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Truth(Protocol):
    """Ground truth of one image: ``boxes`` k x 4 as in :class:`Detections`, ``labels`` k, ``difficult`` k (bool)."""

    @property
    def image_id(self) -> str | int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def boxes(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def difficult(self) -> Tensor: ...


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """mmdet and pycocotools print, log and warn as they load and work; nothing of it is for the user."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()  # asked for here: a new one would keep the redirected stdout
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class _Matched:
    """One class: the image of each detection that counts, best score first; the places of the hits among them; the
    number of objects, not difficult, of each image."""

    images: Array
    hits: Array
    objects: Array


@dataclass(frozen=True)
class MatchTable:
    """Detections matched once with the objects of ``images`` images, for APs in which images count several times."""

    images: int
    classes: tuple[str, ...]
    matched: tuple[_Matched, ...]

    @classmethod
    def build(
        cls, detections: Sequence[Detections], truths: Sequence[Truth], classes: Sequence[str], iou: float = 0.5
    ) -> MatchTable:
        """Matches by mmdet; ``detections[i]`` and ``truths[i]`` belong to the same image.

        Raises ValueError where the numbers of images differ or are 0.
        """
        match = _image_by_image(_matching())
        found, objects = _as_one_image(detections, truths, len(classes))
        matched = []
        for label, rows in enumerate(found):
            ordinary = objects["bboxes"][objects["labels"] == label]
            difficult = objects["bboxes_ignore"][objects["labels_ignore"] == label]
            hit, miss = (flags[0] > 0 for flags in match(rows, ordinary, difficult, iou))
            order = np.argsort(-rows[:, 5])
            order = order[(hit | miss)[order]]
            counts = np.bincount(ordinary[:, 4].astype(int), minlength=len(truths))
            matched.append(_Matched(rows[order, 4].astype(int), np.flatnonzero(hit[order]), counts.astype(float)))
        return cls(len(truths), tuple(classes), tuple(matched))

    def ap(self, mode: str, weights: Array | None = None) -> tuple[float, dict[str, float | None]]:
        """Mean AP (NaN without any object) and the AP of each class (0 to 1; None for one without objects).

        ``mode`` is ``11points`` (VOC 2007) or ``area`` (VOC 2010 and later); another one raises ValueError.  Image i
        counts ``weights[i]`` times.  With whole weights this is the AP of the list in which the images are repeated, as
        long as no hit and false positive of one image and class have the same score.
        """
        _check_mode(mode)
        weights = np.ones(self.images) if weights is None else np.asarray(weights, dtype=float)
        values = [_ap(one, weights, mode) for one in self.matched]
        known = [value for value in values if value is not None]
        mean = math.fsum(known) / len(known) if known else math.nan
        return mean, dict(zip(self.classes, values, strict=True))


def _ap(one: _Matched, weights: Array, mode: str) -> float | None:
    """AP of one class.  Precision falls at false positives and recall stays: only the places of the hits matter."""
    objects = float(one.objects @ weights)
    if objects == 0:
        return None
    weight = weights[one.images]
    seen, hits = np.cumsum(weight)[one.hits], np.cumsum(weight[one.hits])
    recall = hits / objects
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
    if mode == "area":
        return float(np.diff(recall, prepend=0.0) @ best)
    at = np.searchsorted(recall, np.arange(11) * 0.1)
    return float(best[at[at < len(best)]].sum() / 11)


def voc_records(
    runs: Sequence[Sequence[Detections]],
    truths: Sequence[Truth],
    classes: Sequence[str],
    seeds: Sequence[int | None],
    mode: str,
) -> list[Record]:
    """Mean AP (%) of each run with its 95 % interval for new images.

    Raises :class:`UserError` where the set has no object to find.
    """
    name, records = f"map_{_check_mode(mode)}", []
    for run, seed in zip(runs, seeds, strict=True):
        table = MatchTable.build(run, truths, classes)
        draws = np.array([[table.ap(mode, weights)[0]] for weights in _resamples(len(truths))])
        records.append(_record(name, [_mean(table, mode)], "%", draws, len(truths), seed))
    return records


def voc_summary(
    runs: Sequence[Sequence[Detections]], truths: Sequence[Truth], classes: Sequence[str], mode: str
) -> list[Record]:
    """The mean AP (%) over the networks of several seeds, with its 95 % interval for new images and seeds.

    Raises :class:`UserError` where the set has no object to find.
    """
    tables = [MatchTable.build(run, truths, classes) for run in runs]
    draws = np.array([[table.ap(mode, weights)[0] for table in tables] for weights in _resamples(len(truths))])
    name = f"map_{_check_mode(mode)}"
    return [_record(name, [_mean(table, mode) for table in tables], "%", draws, len(truths), None)]


def class_records(
    detections: Sequence[Detections], truths: Sequence[Truth], classes: Sequence[str], mode: str, seed: int | None
) -> list[Record]:
    """AP (%) of each class that has objects, with its 95 % interval for new images."""
    table = MatchTable.build(detections, truths, classes)
    values = table.ap(mode)[1]
    draws = [table.ap(mode, weights)[1] for weights in _resamples(len(truths))]
    return [
        _record(
            f"ap_{_YEARS[mode]} ({name})",
            [value],
            "%",
            np.array([[draw[name]] for draw in draws], dtype=float),  # None, a resample without the class, becomes NaN
            len(truths),
            seed,
        )
        for name, value in values.items()
        if value is not None
    ]


def voc_compare(
    runs: Sequence[Sequence[Detections]],
    references: Sequence[Sequence[Detections]],
    truths: Sequence[Truth],
    classes: Sequence[str],
    mode: str,
) -> list[Record]:
    """The change of the mean AP (points) of networks against their references, mean over the seeds' runs.

    ``runs[s]`` and ``references[s]`` saw the same images.  95 % interval for new images and, with several seeds, new
    seeds: a bootstrap sample of the images is the same for all networks (:mod:`bench.measure.statistics`).
    Raises :class:`UserError` where the set has no object to find.
    """
    # a reference that serves several seeds is matched and resampled once
    distinct = {id(run): MatchTable.build(run, truths, classes) for run in (*runs, *references)}
    pairs = [(id(run), id(reference)) for run, reference in zip(runs, references, strict=True)]
    values = {key: _mean(table, mode) for key, table in distinct.items()}
    draws = []
    for weights in _resamples(len(truths)):
        drawn = {key: table.ap(mode, weights)[0] for key, table in distinct.items()}
        draws.append([drawn[run] - drawn[reference] for run, reference in pairs])
    changes = [values[run] - values[reference] for run, reference in pairs]
    return [_record(f"map_{_YEARS[mode]}_change", changes, "pp", np.array(draws), len(truths), None)]


def _resamples(images: int) -> Iterator[Array]:
    """Draws with replacement: how often each image counts (``images``)."""
    generator = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        yield np.bincount(generator.integers(images, size=images), minlength=images)


def _record(name: str, values: Sequence[float], unit: str, draws: Array, n: int, seed: int | None) -> Record:
    """In hundredths; ``draws`` are resamples x seeds, those without any object (NaN) are left out."""
    mean, low, high = interval_of_statistic(values, draws, n)
    least = 0.0 if unit == "%" else -1.0  # an AP, or a difference of two
    low, high = max(low, least), min(high, 1.0)
    deviation = spread(values)
    return Record(
        name,
        100.0 * mean,
        unit,
        100.0 * low,
        100.0 * high,
        n,
        seed,
        networks=len(values),
        spread=None if deviation is None else 100.0 * deviation,
    )


def _mean(table: MatchTable, mode: str) -> float:
    value = table.ap(mode)[0]
    if math.isnan(value):
        raise UserError("no test image has an object that is not difficult: add annotated images to the test split")
    return value


def _check_mode(mode: str) -> str:
    """The name of the mode's year."""
    if mode not in _YEARS:
        raise ValueError(f"unknown mode {mode!r}: choose one of {', '.join(_YEARS)}")
    return _YEARS[mode]


def _matching() -> Any:
    """mmdet's matching of one image, loaded when first needed: mmdet takes seconds to import."""
    from bench.mmcv_ops import install

    with quiet():
        install()
        from mmdet.evaluation.functional.mean_ap import tpfp_default
    return tpfp_default


def _as_one_image(
    detections: Sequence[Detections], truths: Sequence[Truth], classes: int
) -> tuple[list[Array], dict[str, Array]]:
    """All images as one.

    Returns the detections of each class (n x 6: box, image, rank) and mmdet's annotation with boxes of five columns
    (box, image), both in the order of the images.  The rank stands for the score, so that equal scores have an order.
    """
    if len(detections) != len(truths) or not truths:
        raise ValueError(f"{len(detections)} images with detections and {len(truths)} with ground truth")
    boxes, labels = _stack([d.boxes for d in detections], [d.labels for d in detections])
    scores = np.concatenate([d.scores.detach().cpu().double().numpy() for d in detections])
    rank = np.empty(len(scores))
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores), 0, -1)
    rows = np.column_stack([boxes, rank])
    objects, names = _stack([t.boxes for t in truths], [t.labels for t in truths])
    difficult = np.concatenate([t.difficult.cpu().numpy().astype(bool) for t in truths])
    annotation = {
        "bboxes": objects[~difficult],
        "labels": names[~difficult],
        "bboxes_ignore": objects[difficult],
        "labels_ignore": names[difficult],
    }
    return [rows[labels == label] for label in range(classes)], annotation


def _stack(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Array, Array]:
    """Boxes of all images with the image's place as a fifth column, and their labels."""
    arrays = [b.detach().cpu().double().numpy().reshape(-1, 4) for b in boxes]
    images = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    return np.column_stack([np.concatenate(arrays), images]), np.concatenate([one.cpu().numpy() for one in labels])


def _image_by_image(match: Any) -> Callable[..., tuple[Array, Array]]:
    """mmdet's matching of one image, applied to each of the images that :func:`_as_one_image` joined."""

    def tpfp(found: Array, objects: Array, difficult: Array, iou: float) -> tuple[Array, Array]:
        hit, miss = np.zeros((1, len(found)), np.float32), np.zeros((1, len(found)), np.float32)
        for image in np.unique(found[:, 4]):
            rows, own, hard = (_span(array[:, 4], image) for array in (found, objects, difficult))
            hit[:, rows], miss[:, rows] = match(
                found[rows][:, [0, 1, 2, 3, 5]],
                objects[own, :4],
                difficult[hard, :4],
                iou,
                use_legacy_coordinate=True,
            )
        return hit, miss

    return tpfp


def _span(images: Array, image: float) -> slice:
    """Where ``image`` stands in the ascending ``images``."""
    return slice(int(np.searchsorted(images, image, "left")), int(np.searchsorted(images, image, "right")))
