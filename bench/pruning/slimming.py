"""Network slimming (Liu et al. 2017): an L1 term on the batch norms' gammas, then the channels with the smallest go.

The gammas of all prunable layers are ranked together, so the widths come out of the training; filters and everything
that depends on them are removed physically.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.pruning import surgery
from bench.pruning.graph import Site, find_sites, trace
from bench.pruning.widths import MacModel


def gamma_l1(model: nn.Module) -> Tensor:
    """sum |gamma| over all batch norms: the term that the network's loss gets, times its weight."""
    terms = [m.weight.abs().sum() for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.weight is not None]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def norms_of(model: nn.Module, sites: Sequence[Site]) -> dict[str, nn.BatchNorm2d]:
    """For each site's reader the batch norm behind the producer, whose gammas judge the channels that it reads."""
    graph = trace(model)
    behind = {}
    for node in graph.nodes:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        if node.op == "call_module" and user is not None and user.op == "call_module":
            module = model.get_submodule(str(user.target))
            if isinstance(module, nn.BatchNorm2d):
                behind[str(node.target)] = module
    return {site.reader: behind[site.producer] for site in sites if site.producer in behind}


def slimmed_widths(
    gammas: Mapping[str, Tensor], model: MacModel, speedup: float | None, keep: Mapping[str, int] | None = None
) -> dict[str, list[int]]:
    """The channels that stay, by reader, ascending.

    With ``speedup``: the smallest |gamma| of all layers goes first until conv MACs have fallen that far; one channel a
    layer stays.  With ``keep``: so many of each layer.  Raises :class:`UserError` where the speed-up is out of reach.
    """
    if keep is not None:
        return {
            reader: sorted(g.abs().argsort(descending=True, stable=True)[: keep.get(reader, len(g))].tolist())
            for reader, g in gammas.items()
        }
    assert speedup is not None
    kept = {reader: set(range(len(g))) for reader, g in gammas.items()}
    ranked = sorted(
        (float(value), reader, place) for reader, g in gammas.items() for place, value in enumerate(g.abs())
    )
    for _, reader, place in ranked:
        if model.speedup({name: len(channels) for name, channels in kept.items()}) >= speedup:
            break
        if len(kept[reader]) > 1:
            kept[reader].remove(place)
    reached = model.speedup({name: len(channels) for name, channels in kept.items()})
    if reached < speedup:
        raise UserError(f"a speed-up of {speedup:g}x is out of reach: one channel everywhere gives {reached:.2f}x")
    return {reader: sorted(channels) for reader, channels in kept.items()}


@torch.no_grad()
def slim(
    original: nn.Module,
    input_shape: Sequence[int],
    conv_macs: Mapping[str, int],
    speedup: float | None = None,
    keep: Mapping[str, int] | None = None,
) -> tuple[nn.Module, dict[str, int]]:
    """A smaller copy of ``original`` and the filters left in each producer (by name) that lost some.

    ``conv_macs`` are the dense MACs by convolution; ``keep`` gives filters by producer in place of a ``speedup``.
    """
    model = copy.deepcopy(original)
    sites = [site for site in find_sites(model, trace(model)) if site.producer is not None]
    norms = norms_of(model, sites)
    sites = [site for site in sites if site.reader in norms]
    if not sites:
        raise UserError("no convolution has channels of its own with a batch norm behind it: nothing can be slimmed")
    gammas = {reader: norm.weight.detach() for reader, norm in norms.items()}
    mac_model = MacModel(conv_macs, sites, {reader: len(gamma) for reader, gamma in gammas.items()})
    producers = {site.reader: str(site.producer) for site in sites}
    wanted = None if keep is None else {r: keep[p] for r, p in producers.items() if p in keep}
    chosen = slimmed_widths(gammas, mac_model, speedup, wanted)
    widths = {}
    for reader, kept in chosen.items():
        gone = sorted(set(range(len(gammas[reader]))) - set(kept))
        if gone:
            surgery.remove_filters(model, input_shape, producers[reader], gone)
            widths[producers[reader]] = len(kept)
    return model, widths
