"""Chains of steps of detectors: train, fine-tune, evaluate, compare with the dense one, say what a choice is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.chains import gmacs, loaded
from bench.measure import detection_steps as measuring
from bench.measure.pictures import pictures
from bench.measure.precision_recall import precision_recall
from bench.models.recipe import Recipe
from bench.protocols import Protocol
from bench.rows import Chain, Setting
from bench.steps import Step
from bench.train import detection_steps as training
from bench.train.schedule import Schedule

# (setting, dense recipe, dense step, seed) to the step that prunes
Prune = Callable[[Setting, Recipe, Step, int], Step]
DENSE_SEED = 0  # one dense network; seeds are those of the selection


@dataclass(frozen=True)
class DetectorProtocol(Protocol):
    """A protocol with the augmentation of all its trainings: SSD's, unless it says otherwise."""

    augmenting: training.Augmenting = field(default_factory=training.Augmenting)


def dense(setting: Setting, recipe: Recipe, how: DetectorProtocol) -> Step:
    """The dense detector: the user's weights, or trained here, a whole one from ImageNet's backbone."""
    if setting.weights is not None or how.dense is None:
        return loaded(setting, recipe)
    return training.trained(
        setting,
        recipe,
        None,
        how.dense,
        DENSE_SEED,
        "dense",
        work=gmacs(recipe, setting.train_images, 3.0 * how.dense.epochs),
        augmenting=how.augmenting,
        backbone=recipe.builder != "narrow_ssd",
    )


def tuned(setting: Setting, recipe: Recipe, parent: Step, seed: int, how: DetectorProtocol, schedule: Schedule) -> Step:
    """Fine-tuning of ``parent``'s detector."""
    work = gmacs(recipe, setting.train_images, 3.0 * schedule.epochs)
    label = f"fine-tuned {schedule.epochs} epochs"
    return training.trained(setting, recipe, parent, schedule, seed, label, work=work, augmenting=how.augmenting)


def measured(setting: Setting, recipe: Recipe, step: Step, seed: int) -> Step:
    """Detections and AP of a step's detector."""
    return measuring.detected(setting, step, seed, gmacs(recipe, setting.test_images, 1.0))


def measured_chain(
    setting: Setting,
    recipe: Recipe,
    how: DetectorProtocol,
    *,
    prune: Prune | None,
    tuning: Schedule | None,
    pictured: bool = False,
) -> Chain:
    """A row: dense, pruned (or not), fine-tuned (or not), compared with the dense detector on the same images.

    After fine-tuning also compared with the dense detector tuned equally long.  Of a pruned detector's first seed
    figures get the curves of precision and recall and, with ``pictured``, a few images with their boxes.
    """
    start = dense(setting, recipe, how)
    reference = measured(setting, recipe, start, DENSE_SEED)
    if prune is None and tuning is None:
        return Chain([start], [reference], [reference], [reference])
    networks, seeds = [], setting.seeds if prune is not None else (DENSE_SEED,)
    for seed in seeds:
        step = start if prune is None else prune(setting, recipe, start, seed)
        networks.append(step if tuning is None else tuned(setting, recipe, step, seed, how, tuning))
    runs = [measured(setting, recipe, step, seed) for step, seed in zip(networks, seeds, strict=True)]
    records = [*runs, *([measuring.summarised(setting, runs)] if len(runs) > 1 else [])]
    records.append(measuring.compared(setting, runs, [reference] * len(runs)))
    if tuning is not None and prune is not None:
        as_long = tuned(setting, recipe, start, DENSE_SEED, how, tuning)
        control = measured(setting, recipe, as_long, DENSE_SEED)
        records.append(measuring.compared(setting, runs, [control] * len(runs), suffix="_control"))
    if prune is not None:
        records.append(precision_recall(setting, runs[0], reference))
        records += [pictures(setting, runs[0], reference)] if pictured else []
    return Chain(networks, records, runs, [reference] * len(runs))


def worth(
    setting: Setting,
    recipe: Recipe,
    how: DetectorProtocol,
    *,
    first: Prune,
    second: Prune,
    tuning: Schedule | None,
) -> Chain:
    """What one method is worth against another, paired by image and seed."""
    runs: tuple[list[Step], list[Step]] = ([], [])
    for seed in setting.seeds:
        for place, prune in enumerate((first, second)):
            step = prune(setting, recipe, dense(setting, recipe, how), seed)
            if tuning is not None:
                step = tuned(setting, recipe, step, seed, how, tuning)
            runs[place].append(measured(setting, recipe, step, seed))
    return Chain([], [measuring.compared(setting, *runs, kind="difference")])
