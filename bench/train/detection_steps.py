"""The steps that give a detector by training."""

from __future__ import annotations

from dataclasses import dataclass

from bench.data.annotations import DetectionSet
from bench.models import weights
from bench.models.checkpoint import checkpoint, network
from bench.models.recipe import Recipe
from bench.models.ssd import SSD
from bench.rows import Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result
from bench.train.detector import fit_detector
from bench.train.fit import seed_everything
from bench.train.schedule import Schedule


@dataclass(frozen=True)
class Augmenting:
    """SSD's augmentation: ``mirror`` flips half of the images, ``zoom_out`` is the largest expansion (1 for none)."""

    mirror: bool = True
    zoom_out: float = 4.0


@dataclass(frozen=True)
class DetectorTraining:
    """``recipe`` is that of a network with fresh weights (None: the parent's network is trained on).

    ``backbone`` starts from ImageNet's weights.
    """

    schedule: Schedule
    seed: int
    augmenting: Augmenting = Augmenting()
    recipe: Recipe | None = None
    backbone: bool = False


# GMACs a second of one thread: decoding and augmenting take their share
RATE = 13.0


def detector(result: Result) -> tuple[SSD, Recipe]:
    """The detector of a result, on the CPU in evaluation mode, and its recipe."""
    net, recipe = network(result)
    assert isinstance(net, SSD)
    return net, recipe


def run_trained(context: Context, parents: list[Result], params: DetectorTraining) -> Result:
    """Training from fresh (or ImageNet's) weights, or fine-tuning of the parent's network."""
    if params.recipe is None:
        net, recipe = detector(parents[0])
    else:
        recipe = params.recipe
        seed_everything(params.seed)
        built = recipe.build()
        assert isinstance(built, SSD)
        net = built
        if params.backbone:
            weights.load_backbone(net, recipe.builder, context.progress)
    data: DetectionSet = context.data()
    history = fit_detector(
        net,
        data.train,
        params.schedule,
        params.seed,
        context.work,
        context.device,
        context.label,
        mirror=params.augmenting.mirror,
        zoom_out=params.augmenting.zoom_out,
        workers=context.workers,
        progress=context.progress,
    )
    return checkpoint(net, recipe, facts={"images": len(data.train), "problems": data.problems, "history": history})


def trained(
    setting: Setting,
    recipe: Recipe,
    parent: Step | None,
    schedule: Schedule,
    seed: int,
    label: str,
    *,
    work: float,
    augmenting: Augmenting,
    backbone: bool = False,
) -> Step:
    """Training (no parent) or fine-tuning of ``parent``; ``backbone`` starts from ImageNet's weights."""
    params = DetectorTraining(schedule, seed, augmenting, recipe if parent is None else None, backbone)
    name = f"{label}(seed {seed})" if parent is None else f"{label}({parent.name})"
    return make_step(
        Kind.TRAIN,
        name,
        run_trained,
        params,
        () if parent is None else (parent,),
        data=setting.data,
        device=setting.device,
        work=work,
        rate=RATE,
    )
