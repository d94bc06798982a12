"""The steps that measure classifiers: evaluation, and comparison of evaluations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.data.images import ImageSet
from bench.errors import UserError
from bench.measure import accuracy
from bench.models.checkpoint import network, takes_channels_last
from bench.steps import Context, DataValue, Kind, Step, make_step
from bench.store import Result


@dataclass(frozen=True)
class Evaluation:
    """``seed`` is that of the network, for its records."""

    seed: int


@dataclass(frozen=True)
class Comparison:
    """``suffix`` goes behind the metrics: ``_control`` where the reference was trained as long."""

    suffix: str = ""


@dataclass(frozen=True)
class Summary:
    """No parameters: one evaluation for each network says everything."""


@dataclass(frozen=True)
class Curves:
    """Names of the curves and places on them, one for each evaluation: ``series`` and ``x``."""

    series: tuple[str, ...]
    x: tuple[float, ...]


@dataclass(frozen=True)
class Contrast:
    """No parameters: three evaluations for each seed say everything."""


def run_evaluated(context: Context, parents: list[Result], params: Evaluation) -> Result:
    """Logits of the whole test split, and top-1/top-5 accuracy."""
    model, recipe = network(parents[0])
    test = context.data().test
    outputs = accuracy.logits(
        model,
        test,
        context.device,
        workers=context.workers,
        progress=context.progress,
        channels_last=takes_channels_last(recipe),
    )
    if not bool(torch.isfinite(outputs).all()):
        raise UserError("the network's outputs are not finite: its weights are broken")
    of = missing_of(context.data())
    found = accuracy.records(outputs, test.labels, params.seed, of, test.units)
    arrays = {"logits": outputs, "labels": test.labels}
    if test.units is not None:
        arrays["units"] = test.units
    return Result(records=found, arrays=arrays, facts={"of": of})


def missing_of(data: ImageSet) -> int | None:
    """How many test images the published set has, where some are missing here."""
    return data.test_of if data.test_of > len(data.test) else None


def run_summarised(context: Context, parents: list[Result], params: Summary) -> Result:
    """Accuracy over the networks of several seeds, from their evaluations."""
    runs = [parent.arrays["logits"] for parent in parents]
    return Result(records=accuracy.summary(runs, *_images(parents[0])))


def run_compared(context: Context, parents: list[Result], params: Comparison) -> Result:
    """Evaluations (first half of the parents) against their references (second half), paired by image."""
    half = len(parents) // 2
    runs = [parent.arrays["logits"] for parent in parents]
    found = accuracy.compare(runs[:half], runs[half:], *_images(parents[0]))
    return Result(records=[replace(record, metric=record.metric + params.suffix) for record in found])


def run_points(context: Context, parents: list[Result], params: Curves) -> Result:
    """Top-1 accuracy of each evaluation as a point of a curve."""
    found = []
    for parent, series, x in zip(parents, params.series, params.x, strict=True):
        (top1,) = (record for record in parent.records if record.metric == "top1_acc")
        found.append(replace(top1, series=series, x=x))
    return Result(records=found)


def run_contrasted(context: Context, parents: list[Result], params: Contrast) -> Result:
    """One method's evaluations (first third) minus another's (second third), about references (last third)."""
    third = len(parents) // 3
    runs = [parent.arrays["logits"] for parent in parents]
    found = accuracy.contrast(runs[:third], runs[third : 2 * third], runs[2 * third :], *_images(parents[0]))
    return Result(records=found)


def _images(evaluation: Result) -> tuple[Tensor, int | None, Tensor | None]:
    """What an evaluation says of its test images: labels, how many the published set has, units."""
    return evaluation.arrays["labels"], evaluation.facts.get("of"), evaluation.arrays.get("units")


def evaluated(parent: Step, seed: int, data: DataValue, work: float) -> Step:
    """The step that evaluates ``parent``'s network on the test split."""
    name, params = f"evaluated({parent.name})", Evaluation(seed)
    return make_step(Kind.EVALUATE, name, run_evaluated, params, [parent], data=data, device=parent.device, work=work)


def summarised(runs: list[Step]) -> Step:
    """The step that gives the accuracy over these evaluations' networks."""
    name = f"summarised({runs[0].name}, {len(runs)} networks)"
    return make_step(Kind.COMPARE, name, run_summarised, Summary(), runs, device=runs[0].device)


def compared(runs: list[Step], references: list[Step], suffix: str = "") -> Step:
    """The step that compares evaluations with their references, seed by seed; ``suffix`` goes behind the metrics."""
    name = f"compared({runs[0].name}, {references[0].name}{_others(runs)})"
    parents = [*runs, *references]
    return make_step(Kind.COMPARE, name, run_compared, Comparison(suffix), parents, device=runs[0].device)


def points(runs: list[Step], series: list[str], x: list[float]) -> Step:
    """The step that makes evaluations the points of curves."""
    name, params = f"points({runs[0].name} and {len(runs) - 1} more)", Curves(tuple(series), tuple(x))
    return make_step(Kind.COMPARE, name, run_points, params, runs, device=runs[0].device)


def _others(runs: list[Step]) -> str:
    return f" and {len(runs) - 1} more seeds" if len(runs) > 1 else ""


def contrasted(first: list[Step], second: list[Step], references: list[Step]) -> Step:
    """The step that says what ``first`` is worth against ``second``, both measured against ``references``."""
    name, parents = f"contrasted({first[0].name}, {second[0].name})", [*first, *second, *references]
    return make_step(Kind.COMPARE, name, run_contrasted, Contrast(), parents, device=first[0].device)
