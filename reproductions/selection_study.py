"""What selection, widths and reconstruction are worth: a study of our own on Channel Pruning's ResNet-56, CIFAR-10.

At 2x, 3x and 4x, nothing fine-tuned: six criteria of selection, each at uniform and at error-driven widths and with the
paper's least squares; the full reconstruction (every reader refitted, targets rectified) with LASSO and with the exact
selection; and what a user would pick instead, torch-pruning's pruners (magnitude and Taylor, global and uniform), as
they come and with the batch norms' statistics renewed. All on the same weights and images, at equal conv MACs. At last,
which reading of what the paper leaves open about the basic block comes near its own number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from bench.chains import Prune, dense, gmacs, worth
from bench.cli import main
from bench.models.recipe import Recipe
from bench.protocols import protocol
from bench.pruning import peers
from bench.pruning import steps as pruning
from bench.rows import STUDY, Chain, Paper, Row, Setting
from bench.steps import Step
from bench.zoo import resnet56
from reproductions.channel_pruning import PROTOCOLS, ChannelPruning, chain, error_driven, inner_uniform

DEVIATIONS = [
    "A study of ours: no paper prints these values. The network, the weights and the data are those of Channel "
    "Pruning's Table 8; the inner channels of the blocks are pruned, those of the residual stream stay.",
    "Criteria: the first k; the largest response (energy of a channel's contribution to the responses); the absolute "
    "weight sum of the producing filter; ThiNet's greedy choice, its Gram summed over all output filters; LASSO; exact "
    "elimination by the reconstruction error (ours). All are followed by the same least squares.",
    "Uniform: half of the channels at 2x (1.993x), the same share of each layer at 3x and 4x. Error-driven (ours): "
    "widths from each layer's reconstruction error, measured once for a sampling seed.",
    "Full reconstruction (ours): every reader refitted, those that keep all their channels too, and the targets of the "
    "least squares rectified twice.",
    "torch-pruning prunes by its own importance, globally or the same share of each layer, in 400 small steps until "
    "the conv MACs are those asked for to within 1 %, or one step of its pruner beyond (its uniform ratios give 4.63x "
    "for 4x); nothing is reconstructed. Renewed: batch norm statistics taken again on the calibration images, 64 at a "
    "time.",
    "Magnitude looks at no image: without renewed statistics it gives one network, whatever the seed.",
    "Readings of Table 8: LASSO with least squares at 2x in six ways that the paper leaves open for the basic block.",
]

SPEEDUPS = (2, 3, 4)
SELECTIONS = ("first k", "max response", "weight sum", "thinet", "lasso", "exact")
UNIFORM, DRIVEN = "uniform", "error-driven"
WORTH = "What each part is worth (ResNet-56)"
# what the page says first: selection, widths, reconstruction
ANSWERS = [
    (WORTH, f"{speedup}x: {part}")
    for speedup in (2, 4)
    for part in (
        "LASSO instead of weight sum, at uniform widths",
        "error-driven widths, with LASSO",
        "full reconstruction, with LASSO",
    )
]
READINGS = "Readings of Table 8 (ResNet-56 at 2x)"
# a network's layers and how much each keeps beside the others
Reading = Callable[[Recipe], dict[str, float]]
# the blocks that change the number of channels, and the first
STAGE_FIRST = ("layer1.0", "layer2.0", "layer3.0")


def table(speedup: int) -> str:
    """The name of the table of one speed-up."""
    return f"ResNet-56 at {speedup}x"


@dataclass(frozen=True)
class Method:
    """One of ours or of the papers': criterion, allocation of the widths, and whether the reconstruction is full."""

    selection: str
    widths: str = UNIFORM
    full: bool = False

    @property
    def name(self) -> str:
        """As it stands in a row."""
        written = self.selection.replace("lasso", "LASSO").replace("thinet", "ThiNet")
        return f"{written}, {self.widths}{', full reconstruction' if self.full else ''}"

    def prune(self, speedup: int) -> ChannelPruning:
        """The pruning by it."""
        widths = error_driven if self.widths == DRIVEN else inner_uniform
        return ChannelPruning(widths, speedup, self.selection, full=self.full)


LASSO, EXACT = Method("lasso"), Method("exact")
LASSO_DRIVEN, EXACT_DRIVEN = Method("lasso", DRIVEN), Method("exact", DRIVEN)
LASSO_FULL, EXACT_FULL = Method("lasso", DRIVEN, full=True), Method("exact", DRIVEN, full=True)
METHODS = [
    *(Method(selection, widths) for widths in (UNIFORM, DRIVEN) for selection in SELECTIONS),
    LASSO_FULL,
    EXACT_FULL,
]
# what is worth something, the method with it, and the method without
COMPARISONS = [
    *((f"LASSO instead of {m.name.partition(',')[0]}, at uniform widths", LASSO, m) for m in METHODS[:4]),
    ("exact selection instead of LASSO, at uniform widths", EXACT, LASSO),
    ("exact selection instead of LASSO, at error-driven widths", EXACT_DRIVEN, LASSO_DRIVEN),
    ("exact selection instead of LASSO, with full reconstruction", EXACT_FULL, LASSO_FULL),
    ("error-driven widths, with LASSO", LASSO_DRIVEN, LASSO),
    ("error-driven widths, with exact selection", EXACT_DRIVEN, EXACT),
    ("full reconstruction, with LASSO", LASSO_FULL, LASSO_DRIVEN),
    ("full reconstruction, with exact selection", EXACT_FULL, EXACT_DRIVEN),
    ("all three: exact, error-driven, full against LASSO, uniform", EXACT_FULL, LASSO),
]
# importance, global, renewed statistics
PEERS = [
    (importance, everywhere, renewed)
    for importance in ("magnitude", "taylor")
    for everywhere in (False, True)
    for renewed in (False, True)
]


def alike(recipe: Recipe) -> dict[str, float]:
    """The inner channels of all blocks, the same share of each."""
    producers, _ = pruning.prunable(recipe)
    return dict.fromkeys(producers, 1.0)


def spared(recipe: Recipe, blocks: tuple[str, ...]) -> dict[str, float]:
    """The same, but for ``blocks``, which keep all."""
    return {name: share for name, share in alike(recipe).items() if name.rpartition(".")[0] not in blocks}


def by_stage(recipe: Recipe, factor: float) -> dict[str, float]:
    """The last stage keeps ``factor`` times the share of the first, the middle one the geometric mean."""
    return {name: factor ** ((int(name[len("layer")]) - 1) / 2) for name in alike(recipe)}


def sampled(recipe: Recipe) -> dict[str, float]:
    """The blocks' inputs too, through channel samplers, as the released ResNet-50 has them (section 3.3)."""
    return {f"{name}:in": 1.0 for name in alike(recipe)} | alike(recipe)


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
    images = protocol(PROTOCOLS, setting, recipe).images
    if importance == "magnitude" and not renewed:  # no image is looked at: one network whatever the seed
        images, seed = 0, 0
    params = peers.Peer(importance, everywhere, speedup, images, seed, renewed)
    return peers.peer(parent, params, setting.data, gmacs(recipe, images, 4.0))


def at(speedup: int) -> list[Row]:
    """The dense network, every method at this speed-up, and torch-pruning's."""
    # at the embedded scales, which are there to show the machinery, 2x
    scales = None if speedup == 2 else ("cifar10",)
    rows = [_row(speedup, "dense", None, scales)]
    for method in METHODS:
        row = _row(speedup, method.name, method.prune(speedup), scales)
        rows.append(replace(row, release=method == EXACT_FULL))
    for importance, everywhere, renewed in PEERS:
        prune = partial(by_peer, importance=importance, everywhere=everywhere, renewed=renewed, speedup=speedup)
        words = ["torch-pruning", importance, "global" if everywhere else UNIFORM, *(["renewed"] if renewed else [])]
        rows.append(_row(speedup, ", ".join(words), prune, ("cifar10",)))
    return rows


def read(recipe: Recipe, speedup: float, *, reading: Reading) -> pruning.Ratios:
    """The widths at a speed-up under one reading of what the paper leaves open about the basic block."""
    return pruning.Ratios(reading(recipe), speedup)


def readings() -> list[Row]:
    """Which reading of the paper's Table 8 comes near the 2.0 points that it reports before fine-tuning."""
    return [
        Row(
            READINGS,
            name,
            "cifar10",
            dense=resnet56,
            chain=partial(chain, prune=ChannelPruning(partial(read, reading=reading), 2), tune=False),
            scales=("cifar10",),
            ours=True,
        )
        for name, reading in (
            ("all inner channels alike", alike),
            ("first block of each stage spared", partial(spared, blocks=STAGE_FIRST)),
            ("first and last block spared", partial(spared, blocks=("layer1.0", "layer3.8"))),
            ("the last stage keeps 1.5 times as much", partial(by_stage, factor=1.5)),
            ("the first stage keeps 1.5 times as much", partial(by_stage, factor=1 / 1.5)),
            ("samplers in front of the blocks too", sampled),
        )
    ]


def what_each_part_is_worth() -> list[Row]:
    """Each choice against the choice without it, paired by image and seed."""
    return [
        Row(
            WORTH,
            f"{speedup}x: {name}",
            "cifar10",
            dense=resnet56,
            chain=partial(worth, dense=dense, first=a.prune(speedup), second=b.prune(speedup)),
            scales=None if speedup == 2 else ("cifar10",),
            ours=True,
        )
        for speedup in SPEEDUPS
        for name, a, b in COMPARISONS
    ]


def _row(speedup: int, name: str, prune: Prune | None, scales: tuple[str, ...] | None) -> Row:
    row_chain: Callable[[Setting, Recipe], Chain] = partial(chain, prune=prune, tune=False)
    return Row(table(speedup), name, "cifar10", dense=resnet56, chain=row_chain, scales=scales, ours=True)


def seeds_on_clutter(row: Row) -> tuple[int, ...]:
    """Five for the two rows of the first claim, one for the rest: the embedded job takes less than ten minutes."""
    claimed = (table(2), LASSO.name), (table(2), Method("first k").name)
    return (0, 1, 2, 3, 4) if (row.table, row.name) in claimed else (0,)


def paper() -> Paper:
    """The study as the harness sees it."""
    rows = [*(row for speedup in SPEEDUPS for row in at(speedup)), *what_each_part_is_worth(), *readings()]
    rows = [replace(row, seeds_at={"clutter": seeds_on_clutter(row)}) for row in rows]
    title = "What selection, widths and reconstruction are worth"
    return Paper("selection_study", title, STUDY, rows, DEVIATIONS, answers=ANSWERS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "selection_study", *sys.argv[1:]]))
