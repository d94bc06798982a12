"""The steps that give a classifier: weights from a file, or training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.data.images import FileSplit
from bench.models import weights
from bench.models.checkpoint import checkpoint, network
from bench.models.edits import Edit
from bench.models.recipe import Recipe
from bench.steps import Context
from bench.store import Result
from bench.train.distillation import Distillation, distil
from bench.train.fit import fit, seed_everything
from bench.train.schedule import Schedule


@dataclass(frozen=True)
class Loading:
    """``file`` is the digest of the user's weights file; None for torchvision's pretrained ones."""

    recipe: Recipe
    file: str | None = None


@dataclass(frozen=True)
class Training:
    """``recipe`` is that of a network with fresh weights; None where the parent's network is trained on."""

    schedule: Schedule
    seed: int
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Distilling:
    """Fine-tuning of the first parent's network, with the second's as its teacher."""

    schedule: Schedule
    distillation: Distillation
    seed: int


@dataclass(frozen=True)
class Editing:
    """``edit`` is made to the parent's network; what is new in it has weights from ``seed``."""

    edit: Edit
    seed: int


@dataclass(frozen=True)
class Halving:
    """Weights are rounded to IEEE 754's half precision: 11 significant bits, as small a file as half the size."""


def run_edited(context: Context, parents: list[Result], params: Editing) -> Result:
    """The parent's network with an edit; the weights that stay are kept."""
    model, recipe = network(parents[0])
    seed_everything(params.seed)
    params.edit.apply(model, recipe.input_shape)
    return checkpoint(model, recipe.edited(params.edit))


def run_halved(context: Context, parents: list[Result], params: Halving) -> Result:
    """The parent's network with its weights rounded to half precision, and computed in single.

    Raises ValueError where a weight is larger than half precision has.
    """
    model, recipe = network(parents[0])
    rounded = {
        name: value.half().float() if value.is_floating_point() else value for name, value in parents[0].state.items()
    }
    for name, value in rounded.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} does not fit into half precision")
    model.load_state_dict(rounded)
    return checkpoint(model, recipe)


def run_loaded(context: Context, parents: list[Result], params: Loading) -> Result:
    """A dense network with weights from a file, or torchvision's pretrained ones."""
    recipe = params.recipe
    model = recipe.build()
    if params.file is not None:
        assert context.weights_file is not None
        weights.load(model, context.weights_file)
    elif recipe.builder not in weights.PRETRAINED and ":" in recipe.builder:
        pass  # a network of the user's own comes with its weights
    else:
        weights.load_pretrained(model, recipe.builder, context.progress)
    return checkpoint(model, recipe)


def run_trained(context: Context, parents: list[Result], params: Training) -> Result:
    """Training: of fresh weights (no parent) or of the parent's network (fine-tuning)."""
    if params.recipe is None:
        model, recipe = network(parents[0])
    else:
        recipe = params.recipe
        seed_everything(params.seed)
        model = recipe.build()
    data = context.data()
    history = fit(
        model,
        data.train,
        params.schedule,
        params.seed,
        context.work,
        context.device,
        context.label,
        context.workers,
        context.progress,
    )
    return checkpoint(model, recipe, facts={"images": len(data.train), "history": history})


def run_scratch(context: Context, parents: list[Result], params: Training) -> Result:
    """No parent: fresh weights trained as by :func:`run_trained`, image files by crops of random size and shape."""
    data = context.data()
    if isinstance(data.train, FileSplit):
        data = replace(data, train=data.train.resized_crops())
    return run_trained(replace(context, data=lambda: data), parents, params)


def run_distilled(context: Context, parents: list[Result], params: Distilling) -> Result:
    """Fine-tuning of the first parent's network on the labels and on the outputs of the second's."""
    model, recipe = network(parents[0])
    teacher, _ = network(parents[1])
    data = context.data()
    history = distil(
        model,
        teacher,
        data.train,
        params.schedule,
        params.distillation,
        params.seed,
        context.work,
        context.device,
        context.label,
        context.workers,
        context.progress,
    )
    return checkpoint(model, recipe, facts={"images": len(data.train), "history": history})
