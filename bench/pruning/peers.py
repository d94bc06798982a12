"""What a user would pick instead: torch-pruning's own pruners (Fang et al., CVPR 2023) on the same network and data.

Nothing is reconstructed: channels go by an importance until the conv MACs have fallen far enough.  Where asked, the
batch norms' statistics are renewed on the calibration images afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from bench.data.stream import ImageStream
from bench.errors import UserError
from bench.models.checkpoint import checkpoint, network
from bench.pruning import surgery
from bench.pruning.graph import find_sites, trace
from bench.pruning.steps import calibration_images, mac_model
from bench.steps import Context, DataValue, Kind, Step, make_step
from bench.store import Result

IMPORTANCES = {
    "magnitude": torch_pruning.importance.GroupMagnitudeImportance,  # L2 norms over the coupled weights
    "taylor": torch_pruning.importance.GroupTaylorImportance,  # |w dL/dw|, Molchanov et al. (2019)
}
# the pruner takes so many equal steps towards no channel at all, and is stopped on the way, as soon as the MACs are
# those asked for to within 1 %: half of the channels everywhere is 1.993x
_STEPS, _NEAR = 400, 0.99


@dataclass(frozen=True)
class Peer:
    """``importance`` one of IMPORTANCES, over all layers together (``everywhere``) or the same share of each.

    ``images`` training images, drawn by ``seed``, give Taylor's gradients and the ``renewed`` statistics.
    """

    importance: str
    everywhere: bool
    speedup: float
    images: int
    seed: int
    renewed: bool = False


def run_peer(context: Context, parents: list[Result], params: Peer) -> Result:
    """Parent: the dense network.  A smaller one, without reconstruction."""
    model, recipe = network(parents[0])
    model = model.to(context.device)
    data = context.data()
    images = calibration_images(data, params.images, params.seed, 64, context.workers, context.progress)
    if params.importance == "taylor":
        places = [place for chunk in images.chunks for place in chunk]
        gradients(model, images, data.train.labels[torch.tensor(places)], context)
    sites = [site for site in find_sites(model, trace(model)) if site.producer is not None]
    producers = {str(site.producer): site.reader for site in sites}
    cost = mac_model(model, recipe, sites)

    def kept() -> dict[str, int]:
        return {name: surgery.convolution(model, name).out_channels for name in producers}

    full = kept()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        torch.zeros(1, *recipe.input_shape, device=context.device),
        importance=IMPORTANCES[params.importance](),
        global_pruning=params.everywhere,
        pruning_ratio=1.0,
        max_pruning_ratio=1.0 - 1.0 / min(full.values()),  # one channel stays
        iterative_steps=_STEPS,
        # the channels that the other methods here prune too; those of a residual stream stay
        ignored_layers=[m for n, m in model.named_modules() if isinstance(m, _PRUNABLE) and n not in producers],
    )
    for _ in range(_STEPS):
        if cost.speedup({producers[name]: count for name, count in kept().items()}) >= _NEAR * params.speedup:
            break
        pruner.step()
    else:
        raise UserError(f"a speed-up of {params.speedup:g}x is out of reach of torch-pruning's pruner")
    model.zero_grad(set_to_none=True)
    if params.renewed:
        renew(model, images, context)
    widths = {name: count for name, count in kept().items() if count < full[name]}
    return checkpoint(model.cpu().eval(), recipe.removed(widths))


_PRUNABLE = (nn.Conv2d, nn.Linear)


def gradients(model: nn.Module, images: ImageStream, labels: Tensor, context: Context) -> None:
    """Leaves in ``model`` the gradients of the mean cross-entropy over all ``images`` (in evaluation mode)."""
    model.eval().zero_grad()
    for batch, targets in zip(images, torch.split(labels, len(images.chunks[0])), strict=True):
        batch, targets = batch.to(context.device), targets.to(context.device)
        loss = F.cross_entropy(model(batch), targets, reduction="sum") / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def renew(model: nn.Module, images: ImageStream, context: Context) -> None:
    """The batch norms' statistics become the means over all batches of ``images``; leaves evaluation mode on.

    Every layer's statistics are taken behind layers that normalise each batch by itself, as in training.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    for batch in tqdm(images, "renewing statistics", disable=not context.progress, leave=False):
        model(batch.to(context.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def peer(parent: Step, params: Peer, data: DataValue, work: float) -> Step:
    """The step that prunes the dense network with torch-pruning."""
    where = "global" if params.everywhere else "uniform"
    name = f"torch-pruning({params.importance}, {where} {params.speedup:g}x{', renewed' if params.renewed else ''}, "
    return make_step(
        Kind.PRUNE, f"{name}{parent.name})", run_peer, params, [parent], data=data, device=parent.device, work=work
    )
