"""Training of filters and masks in turns, and the step that does it (Wang et al., journal version)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from bench.data.augment import Augmented
from bench.errors import UserError
from bench.metrics import Metric
from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.processes import launched
from bench.steps import Context
from bench.store import Record, Result
from bench.train.fit import Classifier, seed_everything, train
from bench.train.schedule import Schedule
from bench.versatile.edit import exported
from bench.versatile.learned import learned_layers, network_orthogonality, orthogonality, signs

METRICS = (
    Metric(
        "mask_bits",
        "mask bits",
        "bits",
        None,
        "Bits of the learned masks, beside the parameters.",
        "lower",
        count=True,
        exact=True,
    ),
    Metric(
        "mask_overlap",
        "mask overlap",
        "",
        4,
        "Mean of L_orth over the layers, of the masks as signs: 0 where any two masks of a layer are orthogonal, which "
        "is to agree in half of their entries.",
    ),
)


@dataclass(frozen=True)
class Masked:
    """Training of ``recipe``'s network from fresh weights; L_orth of its masks counts ``weight`` times."""

    recipe: Recipe
    schedule: Schedule
    seed: int
    weight: float


class Alternating(Classifier):
    """Each mini-batch twice: the filters (and all else) step by the task's loss with the masks as they are, then the
    masks by the task's loss with the new filters plus ``weight`` times L_orth.
    """

    def __init__(self, net: nn.Module, weight: float) -> None:
        super().__init__(net)
        self.weight = weight
        layers = learned_layers(net)
        if not layers or any(layer.exported for layer in layers):
            raise UserError("the network has no masks that could be learned")
        self.proxies = [layer.proxies for layer in layers]
        masks = {id(proxies) for proxies in self.proxies}
        self.others = [parameter for parameter in net.parameters() if id(parameter) not in masks]

    def train_step(self, data: tuple[Tensor, Tensor], optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Both turns; the losses are those of the filters' turn."""
        losses = self._turn(data, optim_wrapper, self.others, self.proxies)
        self.penalty = self._orthogonality
        self._turn(data, optim_wrapper, self.proxies, self.others)
        self.penalty = None
        for proxies in self.proxies:  # one that ran far from zero would never turn again
            proxies.data.clamp_(-1.0, 1.0)
        return losses

    def _orthogonality(self, net: nn.Module) -> Tensor:
        return self.weight * network_orthogonality(net)

    def _turn(
        self,
        data: tuple[Tensor, Tensor],
        optim_wrapper: OptimWrapper,
        moving: Iterable[Tensor],
        still: Iterable[Tensor],
    ) -> dict[str, Tensor]:
        for parameter in still:  # without a gradient the optimiser leaves it alone
            parameter.requires_grad_(False)
        for parameter in moving:
            parameter.requires_grad_(True)
        losses: dict[str, Tensor] = super().train_step(data, optim_wrapper)
        return losses


def run_masked(context: Context, parents: list[Result], params: Masked) -> Result:
    """No parent: a network with learned masks, trained in turns, its masks fixed at the end.

    Raises :class:`UserError` under torchrun: the turns are those of one process.
    """
    if launched() > 1:
        raise UserError("learned masks are trained in one process: run this row without torchrun")
    seed_everything(params.seed)
    model = params.recipe.build()
    split = context.data().train
    data = Augmented(split.on(context.device), params.seed)
    workers = context.workers if split.decodes else 0
    turns = Alternating(model, params.weight)
    history = train(
        turns,
        data,
        params.schedule,
        params.seed,
        context.work,
        context.device,
        context.label,
        workers,
        context.progress,
    )
    model.requires_grad_(True).cpu().eval()
    layers = learned_layers(model)
    for layer in layers:
        layer.export()
    overlap = [float(orthogonality(signs(layer))) for layer in layers]
    records = [
        Record("mask_bits", float(sum(layer.fixed.numel() for layer in layers)), "bits", seed=params.seed),
        Record("mask_overlap", statistics.fmean(overlap), "", seed=params.seed),
    ]
    facts = {"images": len(split), "history": history}
    return checkpoint(model, exported(params.recipe), records=records, facts=facts)
