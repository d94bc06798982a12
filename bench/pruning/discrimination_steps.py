"""The steps of discrimination-aware pruning: where the losses stand, tuning with them, selection in front of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.augment import draw_seed
from bench.errors import UserError
from bench.models.checkpoint import checkpoint, network
from bench.models.recipe import Recipe
from bench.models.vgg19 import CONVS
from bench.pruning.discrimination import prune_segment
from bench.pruning.graph import find_sites, trace
from bench.pruning.greedy import Greedy
from bench.pruning.steps import calibration_images
from bench.steps import Context
from bench.store import Result
from bench.train.auxiliary import Heads, fit_with_heads
from bench.train.fit import seed_everything
from bench.train.schedule import Schedule


@dataclass(frozen=True)
class Segment:
    """Layers pruned together: the module whose output the loss reads ("": the network's), the producers pruned."""

    position: str
    producers: tuple[str, ...]


def blocks(recipe: Recipe) -> list[str]:
    """The residual blocks, or VGGNet's convolutions, by module name in forward order."""
    if "vgg" in recipe.builder:
        return list(CONVS)
    names = [name for name, _ in recipe.build("meta").named_modules()]
    return [name for name in names if re.fullmatch(r"layer\d+\.\d+", name)]


def places(count: int, losses: int) -> list[int]:
    """Behind how many of ``count`` blocks each of ``losses`` stands (the released code's ``cal_pivot``).

    Raises :class:`UserError` where two would stand behind the same block.
    """
    size = count // (losses + 1) + 1
    found = [min(size * number, count - 1) for number in range(1, losses + 1)]
    if len(set(found)) < losses:
        raise UserError(f"{losses} losses do not find a block each among {count}: ask for fewer")
    return found


def segments(recipe: Recipe, losses: int) -> list[Segment]:
    """``losses`` segments and the one in front of the network's own loss; a layer is in the segment of its reader."""
    names = blocks(recipe)
    ends = places(len(names), losses)
    model = recipe.build("meta")
    found: list[list[str]] = [[] for _ in range(losses + 1)]
    for site in find_sites(model, trace(model)):
        if site.producer is not None:
            block = next(at for at, name in enumerate(names) if f"{site.reader}.".startswith(f"{name}."))
            found[sum(block >= end for end in ends)].append(site.producer)
    positions = [*(names[end - 1] for end in ends), ""]
    return [Segment(name, tuple(producers)) for name, producers in zip(positions, found, strict=True)]


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning with L_f and, times ``weights`` by position, the losses inside.

    ``stage`` tells tunings of one network apart: each has an order of the images and an augmentation of its own.
    """

    weights: Mapping[str, float]
    schedule: Schedule
    seed: int
    stage: int = 1


@dataclass(frozen=True)
class Selecting:
    """Algorithm 2 for the producers in ``keep`` (filters left) by the loss at ``position``, on ``images`` images."""

    position: str
    keep: Mapping[str, int]
    greedy: Greedy
    images: int
    seed: int
    batch: int = 128


def run_tuned(context: Context, parents: list[Result], params: Tuning) -> Result:
    """The parent's network, tuned with the losses inside; their classifiers are the result's arrays."""
    net, recipe = network(parents[0])
    data = context.data()
    seed = draw_seed(params.seed, params.stage) % 2**32
    seed_everything(seed)
    heads = Heads(net, list(params.weights), recipe.input_shape, len(data.classes))
    history = fit_with_heads(
        net,
        heads,
        params.weights,
        data.train,
        params.schedule,
        seed,
        context.work,
        context.device,
        context.label,
        context.workers,
        context.progress,
    )
    return checkpoint(net, recipe, arrays=dict(heads.state_dict()), facts={"history": history})


def run_selected(context: Context, parents: list[Result], params: Selecting) -> Result:
    """Parents: the network, the step that trained the classifiers, the baseline of L_M."""
    net, recipe = network(parents[0])
    baseline, _ = network(parents[2])
    data = context.data()
    images = calibration_images(data, params.images, params.seed, params.batch, balanced=True)
    labels = [data.train.labels[torch.as_tensor(chunk)].to(context.device) for chunk in images.chunks]
    head: nn.Module = nn.Identity()
    if params.position:
        heads = Heads(net, [params.position], recipe.input_shape, len(data.classes))
        heads.load_state_dict({name: parents[1].arrays[name] for name in heads.state_dict()})
        head = heads.at(params.position).to(context.device).eval().requires_grad_(False)

    def loss(batch: int, features: Tensor) -> Tensor:
        return F.cross_entropy(head(features), labels[batch])

    greedy = replace(params.greedy, seed=params.seed)
    pruned, reports = prune_segment(
        net, baseline, images, params.keep, greedy, params.position, loss, context.device, progress=context.progress
    )
    widths = {report.producer: len(report.order) for report in reports if len(report.order) < report.channels}
    facts = {"layers": [asdict(report) for report in reports]}
    return checkpoint(pruned.cpu(), recipe.removed(widths), facts=facts)
