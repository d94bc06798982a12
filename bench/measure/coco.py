"""COCO's AP, AP50, AP75 and AP by size through mmdet's CocoMetric, unrounded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.measure.detection import Detections, Truth, quiet
from bench.metrics import Metric
from bench.store import Record

# the first six of COCOeval.stats
_NAMES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")


METRICS = (
    Metric("coco_ap", "COCO AP", "%", 2, "COCO's AP, the mean over IoU 0.50 to 0.95.", "higher"),
    Metric("coco_ap50", "AP50", "%", 2, "COCO's AP at IoU 0.50.", "higher", minor=True),
    Metric("coco_ap75", "AP75", "%", 2, "COCO's AP at IoU 0.75.", "higher", minor=True),
    *(
        Metric(
            f"coco_ap_{size[0]}", f"AP {size}", "%", 2, f"COCO's AP of objects {pixels} pixels.", "higher", shown=False
        )
        for size, pixels in (
            ("small", "below 32x32"),
            ("medium", "of 32x32 to 96x96"),
            ("large", "above 96x96"),
        )
    ),
)


def coco_ap(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    classes: Sequence[str],
    coco_json: Path | None = None,
) -> dict[str, float]:
    """AP, AP50, AP75, AP_S, AP_M, AP_L in 0 to 1; one whose size has no object is left out.

    ``detections[i]`` and ``truths[i]`` belong to the same image.  The objects are those of ``coco_json`` in the images
    ``truths[i].image_id``, else those of ``truths``: there a ``difficult`` object becomes a crowd, as in mmdet.  COCO's
    evaluation has no other ignored region that takes any number of detections, as VOC's difficult objects do.  It is
    more lenient: a detection is ignored where that share *of its own area* lies on the crowd, not where the IoU is
    that.  CocoMetric prepares objects and detections; pycocotools evaluates at most 100 detections an image and class,
    as on the COCO server, because CocoMetric rounds to three digits (and by default counts 1000 in all but the first
    value).

    Raises :class:`UserError` for a class or an image that ``coco_json`` does not have, ValueError where the numbers of
    images differ or are 0.
    """
    if len(detections) != len(truths) or not truths:
        raise ValueError(f"{len(detections)} images with detections and {len(truths)} with ground truth")
    from bench.mmcv_ops import install

    with quiet(), tempfile.TemporaryDirectory() as folder:
        install()
        from mmdet.evaluation.metrics import CocoMetric
        from pycocotools.cocoeval import COCOeval

        prefix = str(Path(folder) / "found")
        metric = CocoMetric(
            ann_file=None if coco_json is None else str(coco_json),
            proposal_nums=(1, 10, 100),
            format_only=True,
            outfile_prefix=prefix,
        )
        metric.dataset_meta = {"classes": tuple(classes)}
        if coco_json is None:
            images: list[Any] = list(range(len(truths)))
        else:
            # CocoMetric takes the file's order of the categories for that of the classes
            metric.cat_ids = _categories(metric._coco_api.cats, classes, coco_json)
            images = _images(metric._coco_api.imgs, truths, coco_json)
        metric.process({}, [_sample(*row) for row in zip(detections, truths, images, strict=True)])
        metric.compute_metrics(metric.results)
        found = json.loads(Path(f"{prefix}.bbox.json").read_text())
        evaluation = COCOeval(metric._coco_api, _results(metric._coco_api, found), "bbox")
        evaluation.params.imgIds, evaluation.params.catIds = images, metric.cat_ids
        evaluation.params.maxDets = metric.proposal_nums
        evaluation.params.iouThrs = metric.iou_thrs
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # COCOeval says -1 where there is nothing to find
    return {name: float(value) for name, value in zip(_NAMES, evaluation.stats, strict=False) if value >= 0}


def coco_records(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    classes: Sequence[str],
    coco_json: Path | None,
    seed: int | None,
) -> list[Record]:
    """``coco_ap``, ``coco_ap50``, ``coco_ap75``, ``coco_ap_s``, ``coco_ap_m``, ``coco_ap_l`` (%), without intervals."""
    values = coco_ap(detections, truths, classes, coco_json)
    return [
        Record(f"coco_{name.lower()}", 100.0 * value, "%", n=len(truths), seed=seed) for name, value in values.items()
    ]


def _sample(found: Detections, truth: Truth, image: Any) -> dict[str, Any]:
    """One image as CocoMetric reads it."""
    objects = zip(truth.boxes.tolist(), truth.labels.tolist(), truth.difficult.tolist(), strict=True)
    return {
        "img_id": image,
        "ori_shape": (truth.height, truth.width),
        "pred_instances": {
            "bboxes": found.boxes.detach().reshape(-1, 4),
            "scores": found.scores.detach(),
            "labels": found.labels,
        },
        "instances": [
            {"bbox": box, "bbox_label": label, "ignore_flag": int(difficult)} for box, label, difficult in objects
        ],
    }


def _categories(categories: dict[int, dict[str, Any]], classes: Sequence[str], file: Path) -> list[int]:
    """The category id of each class."""
    ids = {category["name"]: number for number, category in categories.items()}
    missing = [name for name in classes if name not in ids]
    if missing:
        raise UserError(f"{file} has no category {missing[0]!r}: add it, or test with the file the classes come from")
    return [ids[name] for name in classes]


def _images(images: dict[Any, Any], truths: Sequence[Truth], file: Path) -> list[Any]:
    """The file's image ids of ``truths``."""
    missing = [truth.image_id for truth in truths if truth.image_id not in images]
    if missing:
        raise UserError(f"{file} has no image with the id {missing[0]!r}: give the file that lists the test images")
    return [truth.image_id for truth in truths]


def _results(objects: Any, found: list[dict[str, Any]]) -> Any:
    """The detections as a COCO object; pycocotools' own ``loadRes`` refuses an empty list."""
    if found:
        return objects.loadRes(found)
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {"images": objects.dataset["images"], "categories": objects.dataset["categories"]}
    empty.createIndex()
    return empty
