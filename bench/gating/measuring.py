"""The steps that measure gated networks: accuracy and MACs for each image, memory, skipped against masked execution."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.chains import gmacs
from bench.errors import UserError
from bench.gating.flow import Flow
from bench.gating.layer import gated_layers
from bench.gating.skip import SkippedNetwork
from bench.measure import accuracy, dynamic, memory
from bench.measure.statistics import proportion
from bench.measure.steps import missing_of
from bench.measure.units import firsts
from bench.metrics import Metric
from bench.models.checkpoint import network
from bench.models.recipe import Recipe
from bench.rows import Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Record, Result

METRICS = (
    Metric(
        "winner_flips",
        "winners flipped",
        "%",
        2,
        "Share of test images for which rounding (float32) makes another channel win in some layer, skipped against "
        "masked execution.",
        "lower",
    ),
    Metric(
        "skipped_top1_change",
        "top-1, skipped minus masked",
        "pp",
        2,
        "Top-1 accuracy of the skipped execution minus that of the masked one.",
        "higher",
        signed=True,
    ),
    Metric(
        "skipped_agreement",
        "agreement, skipped and masked",
        "%",
        2,
        "Share of test images for which both executions predict the same.",
        "higher",
    ),
    Metric(
        "skipped_float64_difference",
        "difference in float64",
        "",
        None,
        "Largest difference of the logits of both executions in float64, relative to the largest logit.",
        "lower",
        minor=True,
        rounding=1e-9,
    ),
)

# masks of so many images are looked at for memory accesses
_MEMORY_IMAGES = 1280


@dataclass(frozen=True)
class Measuring:
    """``seed`` is that of the network, for its records."""

    seed: int


@dataclass(frozen=True)
class MemoryMeasuring:
    """Memory at the batch sizes ``batches``; ``seed`` is that of the network."""

    batches: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Skipping:
    """Skipped against masked execution on the first ``images`` test images."""

    images: int


def run_measured(context: Context, parents: list[Result], params: Measuring) -> Result:
    """Any network on the whole test split: logits, accuracy and error, MACs for each image."""
    model, recipe = network(parents[0])
    test = context.data().test
    outputs, counted = dynamic.measure(model, test, context.device, 256, context.workers, context.progress)
    if not bool(torch.isfinite(outputs).all()):
        raise UserError("the network's outputs are not finite: its weights are broken")
    of = missing_of(context.data())
    found = accuracy.records(outputs, test.labels, params.seed, of, test.units)
    for record in list(found):
        assert record.low is not None and record.high is not None
        metric = record.metric.replace("acc", "err")
        low, high = 100.0 - record.high, 100.0 - record.low
        found.append(replace(record, metric=metric, value=100.0 - record.value, low=low, high=high))
    whole = dynamic.expected(recipe.base.build("meta"), recipe.input_shape)
    found += counted.records(params.seed, len(test), whole)
    arrays = {"logits": outputs, "labels": test.labels, "macs": counted.totals}
    if test.units is not None:
        arrays["units"] = test.units
    return Result(
        records=found,
        arrays=arrays,
        facts={"layers": counted.table(), "of": of},
    )


@torch.no_grad()
def run_memory(context: Context, parents: list[Result], params: MemoryMeasuring) -> Result:
    """Memory accesses and peak memory at the batch sizes ``batches``, from the masks of the first test images."""
    model, recipe = network(parents[0])
    model = model.to(context.device)
    flow = Flow(model, recipe.input_shape)
    test = context.data().test
    count = min(len(test), _MEMORY_IMAGES)
    parts: list[dict[str, Tensor]] = []
    if gated_layers(model):
        for start in range(0, count, 256):
            places = list(range(start, min(start + 256, count)))
            model(test.batch(places).to(context.device))
            parts.append({name: mask.cpu() for name, mask in dynamic.applied(model).items()})
    winners = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    return Result(records=memory.records(flow, winners, params.batches, params.seed))


@torch.no_grad()
def run_skipped(context: Context, parents: list[Result], params: Skipping) -> Result:
    """Skipped against masked execution on the first ``images`` test images (one of each unit), one at a time.

    Records: the share of images for which rounding (float32) makes another channel win somewhere, what that does to the
    accuracy (paired), and the largest difference of the logits in float64, relative to the largest logit.
    """
    model, _ = network(parents[0])
    model = model.to(context.device).eval()
    test = context.data().test
    places = firsts(len(test), test.units)[: params.images]
    labels = test.labels[places]
    skipping = SkippedNetwork(model, together=False)
    masked, skipped, flips = [], [], 0
    for place in places:
        image = test.batch([place]).to(context.device)
        masked.append(model(image).float().cpu())
        winners = dynamic.applied(model)
        skipped.append(skipping(image).float().cpu())
        flips += any(
            set(layer.last.tolist()) != set(winners[name][0].nonzero()[:, 0].tolist())
            for name, layer in skipping.layers.items()
            if layer.last is not None
        )
    low, high = proportion(flips, len(places))
    found = [Record("winner_flips", 100.0 * flips / len(places), "%", 100.0 * low, 100.0 * high, len(places))]
    for record in accuracy.compare([torch.cat(skipped)], [torch.cat(masked)], labels):
        if record.metric in ("top1_change", "agreement"):
            found.append(replace(record, metric=f"skipped_{record.metric}"))
    exact = copy.deepcopy(model).double()
    images = test.batch(places[:64]).to(context.device).double()
    difference = (SkippedNetwork(exact)(images) - exact(images)).abs().max() / exact(images).abs().max()
    found.append(Record("skipped_float64_difference", float(difference), "", n=len(images)))
    return Result(records=found)


def measured(setting: Setting, recipe: Recipe, step: Step, seed: int) -> Step:
    """The step that measures accuracy and MACs of a step's network."""
    work = gmacs(recipe, setting.test_images, 1.0)
    return _evaluated(setting, f"measured({step.name})", run_measured, Measuring(seed), step, work)


def memory_of(setting: Setting, recipe: Recipe, step: Step, seed: int, batches: tuple[int, ...]) -> Step:
    """The step that counts memory accesses and peak memory of a step's network at these batch sizes."""
    work = gmacs(recipe, min(_MEMORY_IMAGES, setting.test_images), 1.0)
    return _evaluated(setting, f"memory({step.name})", run_memory, MemoryMeasuring(batches, seed), step, work)


def skip_checked(setting: Setting, recipe: Recipe, step: Step, images: int) -> Step:
    """The step that checks skipped against masked execution of a step's network on ``images`` images at most."""
    images = min(images, setting.test_images)
    work = gmacs(recipe, images, 2.0)
    return _evaluated(setting, f"skipped({step.name})", run_skipped, Skipping(images), step, work)


def _evaluated(setting: Setting, name: str, run: Any, params: Any, parent: Step, work: float) -> Step:
    return make_step(Kind.EVALUATE, name, run, params, [parent], data=setting.data, device=setting.device, work=work)
