"""What the choice for each image is worth: the same trained gates, held to one choice for all images.

FBS claims that which channels matter depends on the image (Gao et al. 2019, section 1).  Here the gates of a trained
network lose that freedom at evaluation, without further training: the k channels of the largest mean saliency on
training images win for every image, with the saliency that this image gives them or, further, with their mean.  What
that costs is what the choice is worth to this network; it is no verdict on static pruning, which is trained without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench.chains import gmacs
from bench.data.images import Split
from bench.gating.layer import gated_layers
from bench.gating.winners import winner_mask
from bench.measure import accuracy
from bench.measure.steps import missing_of
from bench.models.checkpoint import network
from bench.models.recipe import Recipe
from bench.rows import Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result

_BATCH = 256


@dataclass(frozen=True)
class Held:
    """The choice of the largest mean saliencies on ``images`` training images, drawn by ``seed``.

    With ``saliency`` the winners' saliencies are their means too, so that nothing looks at the image.
    """

    images: int
    seed: int
    saliency: bool = False


@torch.no_grad()
def mean_saliencies(model: nn.Module, split: Split, places: list[int], device: str) -> dict[str, Tensor]:
    """Of each gated layer (by name) the mean of g over the images at ``places``, C_out."""
    model = model.to(device).eval()
    sums = {name: torch.zeros(layer.out_channels, device=device) for name, layer in gated_layers(model).items()}

    def seen(gate: nn.Module, inputs: tuple[Tensor, ...], g: Tensor, *, name: str) -> None:
        sums[name] += g.sum(0)

    hooks = [layer.gate.register_forward_hook(partial(seen, name=name)) for name, layer in gated_layers(model).items()]
    try:
        for start in range(0, len(places), _BATCH):
            model(split.batch(places[start : start + _BATCH]).to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / len(places) for name, total in sums.items()}


@contextlib.contextmanager
def held(model: nn.Module, means: Mapping[str, Tensor], saliency: bool) -> Iterator[None]:
    """Within, the k channels of the largest ``means`` win in each gated layer, whatever the image."""

    def answer(gate: nn.Module, inputs: tuple[Tensor, ...], g: Tensor, *, mean: Tensor, wins: Tensor) -> Tensor:
        given = mean.expand_as(g) if saliency else g
        return given.masked_fill(~wins, float(given.min()) - 1.0)

    hooks = []
    for name, layer in gated_layers(model).items():
        wins = winner_mask(means[name][None], layer.k)[0]
        hooks.append(layer.gate.register_forward_hook(partial(answer, mean=means[name], wins=wins)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def run_held(context: Context, parents: list[Result], params: Held) -> Result:
    """The evaluation of a gated network whose choice is held."""
    model, _ = network(parents[0])
    train = context.data().train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(params.seed))
    means = mean_saliencies(model, train, order[: params.images].tolist(), context.device)
    test, of = context.data().test, missing_of(context.data())
    with held(model, means, params.saliency):
        outputs = accuracy.logits(model, test, context.device, workers=context.workers, progress=context.progress)
    found = accuracy.records(outputs, test.labels, params.seed, of, test.units)
    arrays = {"logits": outputs, "labels": test.labels}
    if test.units is not None:
        arrays["units"] = test.units
    return Result(records=found, arrays=arrays, facts={"of": of})


def held_choice(setting: Setting, recipe: Recipe, step: Step, params: Held) -> Step:
    """The step that evaluates a gated network whose choice is held."""
    what = "same channels and saliencies" if params.saliency else "same channels"
    name, work = f"{what}({step.name})", gmacs(recipe, setting.test_images + params.images, 1.0)
    return make_step(Kind.EVALUATE, name, run_held, params, [step], data=setting.data, device=setting.device, work=work)
