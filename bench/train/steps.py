"""The steps that every paper shares: a dense network, training, evaluation, comparison of evaluations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.errors import UserError
from bench.measure import accuracy
from bench.models import weights
from bench.models.recipe import Recipe
from bench.steps import Context, Step
from bench.store import Result
from bench.train.fit import Schedule, fit, seed_everything


def checkpoint(model: nn.Module, recipe: Recipe, **more: Any) -> Result:
    """A result that holds a network: its recipe and its state."""
    return Result(recipe=recipe.to_json(), state=dict(model.state_dict()), **more)


def network(result: Result) -> tuple[nn.Module, Recipe]:
    """The network of a result, on the CPU in evaluation mode, and its recipe."""
    if result.recipe is None:
        raise ValueError("this step gave no network")
    recipe = Recipe.from_json(result.recipe)
    model = recipe.build()
    model.load_state_dict(result.state)
    return model.eval(), recipe


def run_loaded(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """A dense network with weights from a file, or torchvision's pretrained ones."""
    recipe = Recipe.from_json(params["recipe"])
    model = recipe.build()
    if params["file"] is not None:
        assert context.weights_file is not None
        weights.load(model, context.weights_file)
    elif recipe.builder not in weights.PRETRAINED and ":" in recipe.builder:
        pass  # a network of the user's own comes with its weights
    else:
        weights.load_pretrained(model, recipe.builder, context.progress)
    return checkpoint(model, recipe)


def run_trained(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Training: of fresh weights (no parent) or of the parent's network (fine-tuning)."""
    if parents:
        model, recipe = network(parents[0])
    else:
        recipe = Recipe.from_json(params["recipe"])
        seed_everything(params["seed"])
        model = recipe.build()
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in params["schedule"].items()}
    data = context.data()
    fit(
        model, data.train, Schedule(**settings), params["seed"], context.work, context.device, params["label"],
        context.workers, context.progress,
    )  # fmt: skip
    return checkpoint(model, recipe, facts={"images": len(data.train)})


def run_evaluated(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Logits of the whole test split, and top-1/top-5 accuracy."""
    model, _ = network(parents[0])
    test = context.data().test
    outputs = accuracy.logits(model, test, context.device, workers=context.workers, progress=context.progress)
    if not bool(torch.isfinite(outputs).all()):
        raise UserError("the network's outputs are not finite: its weights are broken")
    found = accuracy.records(outputs, test.labels, params["seed"])
    return Result(records=found, arrays={"logits": outputs, "labels": test.labels})


def run_summarised(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Accuracy over the networks of several seeds, from their evaluations."""
    runs = [parent.arrays["logits"] for parent in parents]
    return Result(records=accuracy.summary(runs, parents[0].arrays["labels"]))


def run_compared(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Evaluations (first half of the parents) against their references (second half), paired by image."""
    half = len(parents) // 2
    runs = [parent.arrays["logits"] for parent in parents]
    found = accuracy.compare(runs[:half], runs[half:], parents[0].arrays["labels"])
    return Result(records=[replace(record, metric=record.metric + params["suffix"]) for record in found])


def run_contrasted(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """One method's evaluations (first third) minus another's (second third), about references (last third)."""
    third = len(parents) // 3
    runs = [parent.arrays["logits"] for parent in parents]
    return Result(
        records=accuracy.contrast(runs[:third], runs[third : 2 * third], runs[2 * third :], parents[0].arrays["labels"])
    )


def evaluated(parent: Step, seed: int, data: str, work: float) -> Step:
    """The step that evaluates ``parent``'s network on the test split."""
    return Step(f"evaluated({parent.name})", run_evaluated, (parent,), {"seed": seed}, data, parent.device, work)


def summarised(runs: list[Step]) -> Step:
    """The step that gives the accuracy over these evaluations' networks."""
    return Step(f"summarised({runs[0].name})", run_summarised, tuple(runs), {}, None, runs[0].device)


def compared(runs: list[Step], references: list[Step], suffix: str = "") -> Step:
    """The step that compares evaluations with their references, seed by seed; ``suffix`` goes behind the metrics."""
    parents = (*runs, *references)
    return Step(f"compared({runs[0].name})", run_compared, parents, {"suffix": suffix}, None, runs[0].device)


def contrasted(first: list[Step], second: list[Step], references: list[Step]) -> Step:
    """The step that says what ``first`` is worth against ``second``, both measured against ``references``."""
    name = f"contrasted({first[0].name}, {second[0].name})"
    return Step(name, run_contrasted, (*first, *second, *references), {}, None, first[0].device)
