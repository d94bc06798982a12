"""What FBS's gates look at: a study of ours on M-CifarNet, CIFAR-10.

FBS (Gao et al. 2019) says that which channels matter depends on the image.  Do trained gates choose by image, and what
is that choice worth?
"""

from __future__ import annotations

import sys
from functools import partial

from bench.chains import dense
from bench.cli import main
from bench.gating import ablation, measuring
from bench.measure import steps as comparing
from bench.models.recipe import Recipe
from bench.protocols import protocol
from bench.rows import Chain, Paper, Row, Setting
from bench.steps import Step
from reproductions.fbs import FBS, POINTS, PROTOCOLS, at, mcifarnet

DEVIATIONS = [
    "A study of ours: no paper prints these values. Networks, schedules and data are those of FBS's Figure 3a.",
    "The same channels for all images: the k of the largest mean saliency on training images, nothing trained again. "
    "It says whether these gates look at the image, not how static pruning would do.",
]

CHOICE = "What the choice for each image is worth (M-CifarNet)"


def networks(setting: Setting, recipe: Recipe, density: int, seed: int) -> tuple[Step, Step]:
    """The dense network and FBS's at ``density``, from our start."""
    start = dense(setting, recipe, seed, protocol(PROTOCOLS, setting, recipe))
    return start, FBS(density)(setting, recipe, start, seed)


def choice_chain(setting: Setting, recipe: Recipe, *, density: int, saliency: bool) -> Chain:
    """What a trained network's choice for each image is worth, paired by image.

    Against the same channels for every image (:mod:`bench.gating.ablation`); with ``saliency`` that of the winners'
    saliencies, with the same channels in both.
    """
    images = protocol(PROTOCOLS, setting, recipe).images
    runs: tuple[list[Step], list[Step], list[Step]] = ([], [], [])
    for seed in setting.seeds:
        start, network = networks(setting, recipe, density, seed)
        free = measuring.measured(setting, recipe, network, seed)
        same, mean = (
            ablation.held_choice(setting, recipe, network, ablation.Held(images, seed, part)) for part in (False, True)
        )
        for found, step in zip(runs[:2], (same, mean) if saliency else (free, same), strict=True):
            found.append(step)
        runs[2].append(measuring.measured(setting, recipe, start, seed))
    return Chain([], [comparing.contrasted(*runs)])


def choices() -> list[Row]:
    """Whether the trained gates look at the image: held to one choice for all of them, at three densities."""
    compared = (
        ("channels for each image instead of the same for all", False),
        ("saliencies for each image, of the same channels", True),
    )
    return [
        _row(CHOICE, f"{at(density)}: {name}", partial(choice_chain, density=density, saliency=saliency))
        for density in POINTS
        for name, saliency in compared
    ]


def _row(table: str, name: str, tail: partial[Chain]) -> Row:
    return Row(table, name, "cifar10", dense=mcifarnet, chain=tail, seeds=(0,), ours=True)


def paper() -> Paper:
    """The study as the harness sees it."""
    return Paper("gating_study", "What the gates of FBS look at", "a study of ours", choices(), DEVIATIONS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "gating_study", *sys.argv[1:]]))
