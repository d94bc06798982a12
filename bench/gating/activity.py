"""The step that says which channels gates choose: how often each wins, over all test images and class by class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench import rounded
from bench.chains import gmacs
from bench.data.images import Split
from bench.errors import UserError
from bench.gating.layer import gated_layers
from bench.measure import dynamic
from bench.metrics import Metric
from bench.models.checkpoint import network
from bench.models.recipe import Recipe
from bench.rows import Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Record, Result

METRICS = (
    Metric(
        "chosen_channels",
        "channels chosen by image",
        "%",
        1,
        "Share of the gated channels that win for more than 1 % and for less than 99 % of the test images; the others "
        "are as good as always or never there, as in static pruning.",
        "higher",
    ),
)
# wins for no more than this share of the images, or for all but this share, are no choice by image
_SELDOM = 0.01
# a row file keeps the channels of so many classes
_CLASSES = 20


@dataclass(frozen=True)
class Activity:
    """No parameters: the network and the test images say everything."""


@torch.no_grad()
def wins(
    model: nn.Module, split: Split, classes: int, device: str, batch: int = 256, workers: int = 0, progress: bool = True
) -> dict[str, Tensor]:
    """For each gated layer, in the network's order: of the images of each class, for how many each channel wins.

    ``classes`` x channels, float64, counted from the masks that were applied.
    """
    model = model.to(device).eval()
    found = {
        name: torch.zeros(classes, layer.out_channels, dtype=torch.float64)
        for name, layer in gated_layers(model).items()
    }
    total = -(-len(split) // batch)
    for images, labels in tqdm(
        split.on(device).batches(batch, workers), "looking at gates", total, disable=not progress, leave=False
    ):
        model(images.to(device))
        for name, mask in dynamic.applied(model).items():
            found[name].index_add_(0, labels.cpu(), mask.cpu().double())
    return found


def run_activity(context: Context, parents: list[Result], params: Activity) -> Result:
    """The share of the test images for which each channel of a gated network is a winner.

    The record is the share of channels whose winning depends on the image.

    Fact ``activity``: for every gated layer its channels' shares, and those of the last layer for the images of each
    class that the test split shows (of the first 20 classes).  Gao et al. 2019 draw such maps: channels that all
    classes use, that none uses, and that some use.
    """
    model, _ = network(parents[0])
    data = context.data()
    found = wins(model, data.test, len(data.classes), context.device, 256, context.workers, context.progress)
    if not found:
        raise UserError("the network has no gates: give one that was made by FBS")
    images = data.test.labels.bincount(minlength=len(data.classes)).double()
    last, counted = list(found.items())[-1]
    shown = [place for place in range(len(data.classes)) if images[place]][:_CLASSES]
    activity = {
        "images": len(data.test),
        "layers": {name: rounded.text(won.sum(0) / len(data.test)) for name, won in found.items()},
        "by_class": {
            "layer": last,
            "classes": len(data.classes),
            "shares": {data.classes[place]: rounded.text(counted[place] / images[place]) for place in shown},
        },
    }
    shares = torch.cat([won.sum(0) / len(data.test) for won in found.values()])
    chosen = 100.0 * float(((shares > _SELDOM) & (shares < 1.0 - _SELDOM)).double().mean())
    return Result(records=[Record("chosen_channels", chosen, "%")], facts={"activity": activity})


def activity_of(setting: Setting, recipe: Recipe, step: Step) -> Step:
    """The step that looks at the channels of a step's gated network."""
    return make_step(
        Kind.EVALUATE,
        f"activity({step.name})",
        run_activity,
        Activity(),
        [step],
        data=setting.data,
        device=setting.device,
        work=gmacs(recipe, setting.test_images, 1.0),
    )
