"""What a user would pick instead: a study of our own on Channel Pruning's ResNet-56, CIFAR-10, nothing fine-tuned.

torch-pruning's pruners (magnitude and Taylor, global and uniform), as they come and with the batch norms' statistics
renewed, beside the paper's method and the best of ours, on the same weights and images at equal MACs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from bench.chains import gmacs
from bench.cli import main
from bench.models.recipe import Recipe
from bench.pruning import peers
from bench.rows import Chain, Paper, Row, Setting
from bench.steps import Step
from reproductions.channel_pruning import calibration, chain, inner, resnet56

DEVIATIONS = [
    "A study of ours: no paper prints these values. The network, the weights and the data are those of Channel "
    "Pruning's Table 8; the inner channels of the blocks are pruned, those of the residual stream stay.",
    "torch-pruning prunes by its own importance, globally or the same share of each layer, in 400 small steps until "
    "the conv MACs are those asked for to within 1 %; nothing is reconstructed. Renewed: batch norm statistics taken "
    "again on the calibration images, 64 at a time.",
    "Magnitude looks at no image: without renewed statistics it gives one network, whatever the seed.",
    "LASSO, uniform: Channel Pruning, half of the channels at 2x (1.993x). Exact, error-driven, full reconstruction: "
    "ours, as on Channel Pruning's page.",
]

TABLE = "What a user would pick instead (ResNet-56)"
SPEEDUPS = (2, 3, 4)
# importance, global, renewed statistics
PEERS = [
    (importance, everywhere, renewed)
    for importance in ("magnitude", "taylor")
    for everywhere in (False, True)
    for renewed in (False, True)
]


def by_peer(
    setting: Setting,
    recipe: Recipe,
    parent: Step,
    seed: int,
    *,
    importance: str,
    everywhere: bool,
    renewed: bool,
    speedup: float,
) -> Step:
    """The dense network pruned by torch-pruning."""
    images = min(calibration(setting.scale), setting.train_images)
    if importance == "magnitude" and not renewed:  # no image is looked at: one network whatever the seed
        images, seed = 0, 0
    params = peers.Peer(importance, everywhere, speedup, images, seed, renewed)
    return peers.peer(parent, params, setting.data, gmacs(recipe, images, 4.0))


def instead() -> list[Row]:
    """At each speed-up the paper's method, the best of ours, and torch-pruning's."""
    rows = [_row("dense", partial(chain, prune=None, tune=False))]
    for speedup in SPEEDUPS:
        lasso = partial(inner, selection="lasso", allocation="uniform", speedup=speedup)
        full = partial(inner, selection="exact", allocation="error-driven", full=True, speedup=speedup)
        rows.append(_row(f"{speedup}x LASSO, uniform", partial(chain, prune=lasso, tune=False)))
        name = f"{speedup}x exact, error-driven, full reconstruction"
        rows.append(_row(name, partial(chain, prune=full, tune=False), release=True))
        for importance, everywhere, renewed in PEERS:
            prune = partial(by_peer, importance=importance, everywhere=everywhere, renewed=renewed, speedup=speedup)
            words = [f"{speedup}x torch-pruning", importance, "global" if everywhere else "uniform"]
            words += ["renewed"] if renewed else []
            rows.append(_row(", ".join(words), partial(chain, prune=prune, tune=False)))
    return rows


def _row(name: str, row_chain: Callable[[Setting, Recipe], Chain], release: bool = False) -> Row:
    scales = ("cifar10",)
    return Row(TABLE, name, "cifar10", dense=resnet56, chain=row_chain, scales=scales, ours=True, release=release)


def paper() -> Paper:
    """The study as the harness sees it."""
    return Paper("selection_study", "What a user would pick instead", "a study of ours", instead(), DEVIATIONS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "selection_study", *sys.argv[1:]]))
