"""The steps of detectors that prune layer by layer, and what they share with other prunings of detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bench.data.annotations import DetectionSet
from bench.models.checkpoint import checkpoint
from bench.models.ssd import SSD
from bench.pruning import surgery
from bench.pruning.calibration import Calibration, Sampling, calibrate
from bench.pruning.layerwise import Method, prune
from bench.rows import Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result
from bench.train.detection_steps import detector
from bench.train.detector import batches


@dataclass(frozen=True)
class DetectorPruning:
    """``keep`` filters by producer, chosen by ``method`` on ``images`` training images."""

    keep: Mapping[str, int]
    method: Method
    images: int
    sampling: Sampling


def calibration_places(count: int, total: int, seed: int) -> list[int]:
    """Places of ``count`` of ``total`` training images, drawn without replacement."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].tolist()


def calibration_of(
    context: Context, net: SSD, sampling: Sampling, producers: Sequence[str], places: Sequence[int]
) -> Calibration:
    """Outputs of ``net`` at the readers of the ``producers``' channels, on resized training images at ``places``."""
    data: DetectionSet = context.data()
    images = [
        net.normalised(pixels)
        for pixels, _ in batches(data.train, net.size, places, sampling.batch, workers=context.workers)
    ]
    return calibrate(
        net, images, sampling, context.device, lambda site: site.producer in producers, context.progress, shared=True
    )


def run_pruned(context: Context, parents: list[Result], params: DetectorPruning) -> Result:
    """Layer-by-layer pruning of the parent's network: CP, ThiNet, exact, rankings."""
    net, recipe = detector(parents[0])
    places = calibration_places(params.images, len(context.data().train), params.sampling.seed)
    calibration = calibration_of(context, net, params.sampling, list(params.keep), places)
    reader_of = {site.producer: site.reader for site in calibration.sites}
    keep = {reader_of[producer]: count for producer, count in params.keep.items()}
    pruned, reports = prune(net, calibration, keep, params.method, context.progress)
    facts = {"layers": [report.to_json() for report in reports]}
    smaller = recipe.removed(params.keep).biased(surgery.structure(net, pruned)[1])
    return checkpoint(pruned.cpu(), smaller, facts=facts)


def layer_by_layer(setting: Setting, parent: Step, params: DetectorPruning, work: float) -> Step:
    """The step that prunes ``parent``'s detector in one walk through its layers."""
    name = f"pruned({params.method.selection}, seed {params.sampling.seed})"
    return make_step(
        Kind.PRUNE, name, run_pruned, params, [parent], data=setting.data, device=setting.device, work=work
    )
