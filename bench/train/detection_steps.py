"""The steps of detectors: training and fine-tuning, layer-by-layer pruning, detection with AP, comparison."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from bench.data.annotations import DetectionSet
from bench.measure import detection as measure
from bench.measure.coco import coco_records
from bench.models import weights
from bench.models.recipe import Recipe
from bench.models.ssd import SSD
from bench.pruning import surgery
from bench.pruning.calibration import Calibration, Sampling, calibrate
from bench.pruning.layerwise import Method, prune
from bench.rows import Setting
from bench.steps import Context, Step
from bench.store import Result
from bench.train.detector import batches, detect, fit_detector
from bench.train.fit import Schedule, seed_everything
from bench.train.steps import checkpoint, network

# how AP is averaged over recall: VOC 2007's eleven points and, since 2010, the area
MODES = ("11points", "area")


def detector(result: Result) -> tuple[SSD, Recipe]:
    """The detector of a result, on the CPU in evaluation mode, and its recipe."""
    net, recipe = network(result)
    assert isinstance(net, SSD)
    return net, recipe


def schedule_of(params: dict[str, Any]) -> Schedule:
    """The schedule in a step's parameters."""
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in params["schedule"].items()}
    return Schedule(**settings)


def run_trained(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Training from fresh (or ImageNet's) weights, or fine-tuning of the parent's network."""
    if parents:
        net, recipe = detector(parents[0])
    else:
        recipe = Recipe.from_json(params["recipe"])
        seed_everything(params["seed"])
        built = recipe.build()
        assert isinstance(built, SSD)
        net = built
        if params["backbone"]:
            weights.load_backbone(net, recipe.builder, context.progress)
    data: DetectionSet = context.data()
    fit_detector(
        net, data.train, schedule_of(params), params["seed"], context.work, context.device, params["label"],
        mirror=params["mirror"], zoom_out=params["zoom_out"], workers=context.workers, progress=context.progress,
    )  # fmt: skip
    return checkpoint(net, recipe, facts={"images": len(data.train), "problems": data.problems})


def calibration_places(count: int, total: int, seed: int) -> list[int]:
    """Places of ``count`` of ``total`` training images, drawn without replacement."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].tolist()


def calibration_of(
    context: Context, net: SSD, params: dict[str, Any], producers: list[str], places: list[int]
) -> Calibration:
    """Outputs of ``net`` at the readers of the ``producers``' channels, on training images at ``places``, resized only."""
    data: DetectionSet = context.data()
    sampling = Sampling(**params["sampling"])
    images = [
        net.normalised(pixels)
        for pixels, _ in batches(data.train, net.size, places, sampling.batch, workers=context.workers)
    ]
    return calibrate(
        net, images, sampling, context.device, lambda site: site.producer in producers, context.progress, shared=True
    )


def run_pruned(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Layer-by-layer pruning of the parent's network to ``keep`` filters (by producer): CP, ThiNet, exact, rankings."""
    net, recipe = detector(parents[0])
    places = calibration_places(params["images"], len(context.data().train), params["sampling"]["seed"])
    calibration = calibration_of(context, net, params, list(params["keep"]), places)
    reader_of = {site.producer: site.reader for site in calibration.sites}
    keep = {reader_of[producer]: count for producer, count in params["keep"].items()}
    pruned, reports = prune(net, calibration, keep, Method(**params["method"]), context.progress)
    facts = {"layers": [report.to_json() for report in reports]}
    biases = (*recipe.biases, *surgery.structure(net, pruned)[1])
    smaller = replace(recipe, widths={**recipe.widths, **params["keep"]}, biases=biases)
    return checkpoint(pruned.cpu(), smaller, facts=facts)


def run_detected(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Detections on the whole test split, and AP by VOC 2007's, VOC 2012's and COCO's definitions."""
    net, _ = detector(parents[0])
    data: DetectionSet = context.data()
    found = detect(net, data.test, context.device, workers=context.workers, progress=context.progress)
    truths, seed = data.test.annotations, params["seed"]
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


def run_compared(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Detections (first half of the parents) against their references (second half), paired by image."""
    data: DetectionSet = context.data()
    half = len(parents) // 2
    runs = [_unpack(parent.arrays) for parent in parents]
    found = [
        record
        for mode in MODES
        for record in measure.voc_compare(runs[:half], runs[half:], data.test.annotations, data.classes, mode)
    ]
    named = [replace(r, metric=r.metric.replace("change", params["kind"]) + params["suffix"]) for r in found]
    return Result(records=named)


# --------------------------------------------------------------------------------------------------------------------
# Steps


def trained(
    setting: Setting, recipe: Recipe, parent: Step | None, schedule: Schedule, seed: int, label: str, *, work: float,
    mirror: bool, zoom_out: float, backbone: bool = False,
) -> Step:  # fmt: skip
    """Training (no parent) or fine-tuning of ``parent``; ``backbone`` starts from ImageNet's weights."""
    params: dict[str, Any] = {
        "schedule": asdict(schedule), "seed": seed, "label": label, "mirror": mirror, "zoom_out": zoom_out,
        "backbone": backbone,
    }  # fmt: skip
    if parent is None:
        params["recipe"] = recipe.to_json()
    name = f"{label}(seed {seed})" if parent is None else f"{label}({parent.name})"
    parents = () if parent is None else (parent,)
    return Step(name, run_trained, parents, params, setting.data, setting.device, work, trains=True)


def detected(setting: Setting, step: Step, seed: int, work: float) -> Step:
    """The evaluation of a detector."""
    return Step(f"detected({step.name})", run_detected, (step,), {"seed": seed}, setting.data, setting.device, work)


def compared(
    setting: Setting, runs: list[Step], references: list[Step], kind: str = "change", suffix: str = ""
) -> Step:
    """The comparison of evaluations with their references, seed by seed.

    ``kind`` is ``change`` (from the dense network) or ``difference`` (between two methods); ``suffix`` goes behind the
    metrics.
    """
    name, parents = f"compared({runs[0].name}, {references[0].name})", (*runs, *references)
    return Step(name, run_compared, parents, {"kind": kind, "suffix": suffix}, setting.data, setting.device)
