"""What FBS's gates look at: a study of ours on M-CifarNet, CIFAR-10.

FBS (Gao et al. 2019) says that which channels matter depends on the image.  Do trained gates choose by image, what is
that choice worth, and does it hang on where phi and rho start?
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial

from bench.chains import Prune, dense, gmacs
from bench.cli import main
from bench.gating import ablation, measuring
from bench.gating import steps as gating
from bench.gating.layer import PAPER, GateOptions
from bench.measure import steps as comparing
from bench.models.recipe import Recipe
from bench.protocols import protocol
from bench.rows import STUDY, Chain, Paper, Row, Setting
from bench.steps import Step
from reproductions.fbs import FBS, LAMBDA, OPTIONS, POINTS, PROTOCOLS, activity_of, at, chain, mcifarnet

DEVIATIONS = [
    "A study of ours: no paper prints these values. Networks, schedules and data are those of FBS's Figure 3a.",
    "The same channels for all images: the k of the largest mean saliency on training images, nothing trained again. "
    "It says whether these gates look at the image, not how static pruning would do.",
    "Starts: ours (phi zero, rho = |gamma| of the batch norm: gating changes nothing before training), the paper's "
    "(phi He normal, rho = 1: the channels' scales are learned anew at d = 1), and a third (ours: rho = |gamma|, "
    "phi He normal in units of it).",
    "The dense network behind the starts is that of FBS's Figure 3a as an H200 trained it, given as weights; the gates "
    "are trained on a processor, in bf16. The way to d = 0.5 is a short one there: d = 1, 0.7 and 0.5, two epochs each "
    "(an hour of two cores). The rate is the paper's 0.01; gradients are clipped to a norm of 1: without that the "
    "paper's start diverges under SGD (the official code's RMSProp with epsilon 1 damps large gradients).",
    "Chosen by image is a channel that wins for more than 1 % and for less than 99 % of the test images.",
]

CHOICE = "What the choice for each image is worth (M-CifarNet)"
START = "Where the gates start (M-CifarNet)"
# the third start
SCALED = GateOptions(phi="scaled")
# a way down that two cores go in an hour
SHORT = (1000, 700, 500)


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


@dataclass(frozen=True)
class ShortWay:
    """FBS through few densities, two epochs each, from a start of phi and rho."""

    options: GateOptions

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """The step at the last of :data:`SHORT`."""
        tuning = replace(protocol(PROTOCOLS, setting, recipe).tuning, epochs=2, lr=0.01, clip=1.0)
        work, step = gmacs(recipe, setting.train_images, 3.0 * tuning.epochs), parent
        for density in SHORT:
            step = gating.gated(step, density, tuning, seed, setting.data, work, LAMBDA, self.options)
        return step


def start_chain(setting: Setting, recipe: Recipe, *, theirs: Prune, ours: Prune) -> Chain:
    """What the paper's start of phi and rho is worth against ours, paired by image."""
    runs: tuple[list[Step], list[Step], list[Step]] = ([], [], [])
    for seed in setting.seeds:
        start = dense(setting, recipe, seed, protocol(PROTOCOLS, setting, recipe))
        made = (theirs(setting, recipe, start, seed), ours(setting, recipe, start, seed), start)
        for found, step in zip(runs, made, strict=True):
            found.append(measuring.measured(setting, recipe, step, seed))
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


def starts() -> list[Row]:
    """FBS at d = 0.5 by a short way, from three starts of phi and rho; the paper's paired with ours."""
    made = {
        "our start": ShortWay(OPTIONS),
        "the paper's start": ShortWay(PAPER),
        "phi in units of gamma": ShortWay(SCALED),
    }
    rows = [
        _row(START, f"{at(500)}, {name}", partial(chain, make=way, extra=activity_of)) for name, way in made.items()
    ]
    compared = partial(start_chain, theirs=made["the paper's start"], ours=made["our start"])
    return [*rows, _row(START, f"{at(500)}: the paper's start instead of ours", compared)]


def _row(table: str, name: str, tail: partial[Chain]) -> Row:
    return Row(table, name, "cifar10", dense=mcifarnet, chain=tail, seeds=(0,), scales=("digits", "cifar10"), ours=True)


def paper() -> Paper:
    """The study as the harness sees it."""
    rows = [*choices(), *starts()]
    answers = [
        (CHOICE, f"{at(500)}: channels for each image instead of the same for all"),
        (CHOICE, f"{at(500)}: saliencies for each image, of the same channels"),
        (START, f"{at(500)}: the paper's start instead of ours"),
    ]
    return Paper("gating_study", "What the gates of FBS look at", STUDY, rows, DEVIATIONS, answers=answers)


if __name__ == "__main__":
    raise SystemExit(main(["run", "gating_study", *sys.argv[1:]]))
