"""The steps that measure detectors: detections with AP, and comparison of detections."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.data.annotations import DetectionSet
from bench.measure import detection as measure
from bench.measure.coco import coco_records
from bench.rows import Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result
from bench.train.detection_steps import detector
from bench.train.detector import detect

# how AP is averaged over recall: VOC 2007's eleven points and, since 2010, the area
MODES = ("11points", "area")


@dataclass(frozen=True)
class Detection:
    """``seed`` is that of the network, for its records."""

    seed: int


@dataclass(frozen=True)
class DetectionSummary:
    """No parameters: one evaluation for each network says everything."""


@dataclass(frozen=True)
class DetectionComparison:
    """``kind`` is ``change`` (from the dense network) or ``difference`` (between two methods).

    ``suffix`` goes behind the metrics.
    """

    kind: str = "change"
    suffix: str = ""


def run_detected(context: Context, parents: list[Result], params: Detection) -> Result:
    """Detections on the whole test split, and AP by VOC 2007's, VOC 2012's and COCO's definitions."""
    net, _ = detector(parents[0])
    data: DetectionSet = context.data()
    found = detect(net, data.test, context.device, workers=context.workers, progress=context.progress)
    truths, seed = data.test.annotations, params.seed
    records = [record for mode in MODES for record in measure.voc_records([found], truths, data.classes, [seed], mode)]
    records += coco_records(found, truths, data.classes, data.test.coco_json, seed)
    records += measure.class_records(found, truths, data.classes, MODES[0], seed)
    return Result(records=records, arrays=_pack(found), facts={"problems": data.problems})


def _pack(found: list[measure.Detections]) -> dict[str, Tensor]:
    """Detections of all images as four tensors; ``counts`` says how many belong to each image."""
    return {
        "boxes": torch.cat([image.boxes for image in found]),
        "scores": torch.cat([image.scores for image in found]),
        "labels": torch.cat([image.labels for image in found]),
        "counts": torch.tensor([len(image.scores) for image in found]),
    }


def _unpack(arrays: dict[str, Tensor]) -> list[measure.Detections]:
    counts = arrays["counts"].tolist()
    parts = [torch.split(arrays[name], counts) for name in ("boxes", "scores", "labels")]
    return [measure.Detections(*image) for image in zip(*parts, strict=True)]


def detections_of(result: Result) -> list[measure.Detections]:
    """What an evaluation (a result of :func:`run_detected`) found, image by image."""
    return _unpack(result.arrays)


def run_summarised(context: Context, parents: list[Result], params: DetectionSummary) -> Result:
    """VOC's mean AP over the networks of several seeds, from their detections."""
    data: DetectionSet = context.data()
    runs = [_unpack(parent.arrays) for parent in parents]
    truths = data.test.annotations
    return Result(records=[r for mode in MODES for r in measure.voc_summary(runs, truths, data.classes, mode)])


def run_compared(context: Context, parents: list[Result], params: DetectionComparison) -> Result:
    """Detections (first half of the parents) against their references (second half), paired by image."""
    data: DetectionSet = context.data()
    half = len(parents) // 2
    runs = [_unpack(parent.arrays) for parent in parents]
    found = [
        record
        for mode in MODES
        for record in measure.voc_compare(runs[:half], runs[half:], data.test.annotations, data.classes, mode)
    ]
    named = [replace(r, metric=r.metric.replace("change", params.kind) + params.suffix) for r in found]
    return Result(records=named)


def detected(setting: Setting, step: Step, seed: int, work: float) -> Step:
    """The evaluation of a detector."""
    name, params = f"detected({step.name})", Detection(seed)
    return make_step(
        Kind.EVALUATE, name, run_detected, params, [step], data=setting.data, device=setting.device, work=work, rate=9.0
    )


def summarised(setting: Setting, runs: list[Step]) -> Step:
    """The mean AP over these evaluations' networks."""
    name = f"summarised({runs[0].name}, {len(runs)} networks)"
    params = DetectionSummary()
    return make_step(Kind.COMPARE, name, run_summarised, params, runs, data=setting.data, device=setting.device)


def compared(
    setting: Setting, runs: list[Step], references: list[Step], kind: str = "change", suffix: str = ""
) -> Step:
    """The comparison of evaluations with their references, seed by seed.

    ``kind`` is ``change`` (from the dense network) or ``difference`` (between two methods); ``suffix`` goes behind the
    metrics.
    """
    name, parents = f"compared({runs[0].name}, {references[0].name}{_others(runs)})", [*runs, *references]
    params = DetectionComparison(kind, suffix)
    return make_step(Kind.COMPARE, name, run_compared, params, parents, data=setting.data, device=setting.device)


def _others(runs: list[Step]) -> str:
    return f" and {len(runs) - 1} more seeds" if len(runs) > 1 else ""
