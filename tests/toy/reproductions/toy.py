"""A paper of four small rows on digits, and of rows that end badly."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from bench.chains import gmacs, loaded, measured_chain, trained
from bench.models.recipe import Recipe
from bench.pruning import steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.rows import Chain, Paper, Row, Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Record, Result
from bench.train.schedule import Schedule

TABLE = "Table 1"
ONCE = Schedule(epochs=2, lr=0.02, batch=256)


@dataclass(frozen=True)
class Bad:
    """How a row ends."""

    how: str


def run_bad(context: Context, parents: list[Result], params: Bad) -> Result:
    """Dies of a signal, or divides by zero; ends well for anything else."""
    if params.how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    value = 1.0 / (params.how != "fails")
    return Result(records=[Record("top1_acc", value, "%")])


def network(scale: str, classes: int, given: bool) -> Recipe:
    """A narrow ResNet-20 without batch norm's dependence on a process's share: as small as it gets."""
    return Recipe("cifar_resnet20", {"num_classes": classes, "width": 0.25}, (3, 16, 16))


def dense(setting: Setting, recipe: Recipe, seed: int) -> Step:
    """The user's weights, or trained here."""
    if setting.weights is not None:
        return loaded(setting, recipe)
    return trained(setting, recipe, None, ONCE, seed, "dense")


def prune(setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
    """Exact selection to 1.5x."""
    producers, _ = pruning.prunable(recipe)
    widths = pruning.Ratios(dict.fromkeys(producers, 1.0), 1.5)
    params = pruning.Pruning(Method("exact"), widths, Sampling(positions=4, seed=seed), 128)
    return pruning.pruned(parent, None, params, setting.data, gmacs(recipe, 128, 4.0))


def bad(how: str) -> Row:
    """A row of one step."""

    def chain(setting: Setting, recipe: Recipe) -> Chain:
        return Chain([], [make_step(Kind.SIZE, how, run_bad, Bad(how), device=setting.device)])

    return Row("Table 2", how, "digits", dense=network, chain=chain, seeds=(0,))


def good(name: str, pruned: bool, tuning: Schedule | None) -> Row:
    """A row measured by the shared chain."""

    def chain(setting: Setting, recipe: Recipe) -> Chain:
        return measured_chain(setting, recipe, dense=dense, prune=prune if pruned else None, tuning=tuning)

    return Row(TABLE, name, "digits", dense=network, chain=chain, seeds=(0,))


def paper() -> Paper:
    """The paper as the harness sees it."""
    rows = [
        good("dense", False, None),
        good("pruned", True, None),
        good("pruned, fine-tuned", True, ONCE),
        bad("dies"),
        bad("fails"),
        bad("ends well"),
    ]
    return Paper("toy", "A toy", "nobody", rows, [])
