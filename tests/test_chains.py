"""The wiring of a row: which networks are made, from what, and what is compared with what, in order."""

from dataclasses import replace
from functools import partial

import pytest

from bench.chains import evaluations, loaded, measured, measured_chain, trained, worth
from bench.measure import steps as measuring
from bench.measure.steps import Comparison, Evaluation
from bench.models.recipe import Recipe
from bench.pruning import steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.rows import Setting
from bench.steps import DataValue, Step
from bench.train import steps as training
from bench.train.distillation import Distillation
from bench.train.schedule import Schedule
from bench.train.steps import Training

RECIPE = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 16, 16))
DENSE = Schedule(epochs=8, lr=0.05, batch=64)
TUNING = Schedule(epochs=3, lr=0.005, batch=64)


def setting(weights: str | None) -> Setting:
    return Setting("digits", DataValue("plain", "training"), 10, 100, 50, "cpu", (0, 1, 2), weights)


def dense(where: Setting, recipe: Recipe, seed: int) -> Step:
    """Weights that were given, or a training."""
    if where.weights is not None:
        return loaded(where, recipe)
    return trained(where, recipe, None, DENSE, seed, "dense")


def prune(where: Setting, recipe: Recipe, parent: Step, seed: int, selection: str = "lasso") -> Step:
    widths = pruning.Fixed({"layer1.0.conv1": 8})
    params = pruning.Pruning(Method(selection), widths, Sampling(seed=seed), 50)
    return pruning.pruned(parent, None, params, where.data, 1.0)


def seeds_of(steps: list[Step]) -> list[int]:
    return [step.params.seed for step in steps if isinstance(step.params, Evaluation)]


def by_run(steps: list[Step], run: object) -> list[Step]:
    return [step for step in steps if step.run is run]


def test_given_weights_are_one_network_however_many_seeds_there_are() -> None:
    made = measured_chain(setting("sha"), RECIPE, dense=dense, prune=None, tuning=None)
    assert seeds_of(made.records) == [0]
    (summary,) = by_run(made.records, measuring.run_summarised)
    assert len(summary.parents) == 1
    assert len(made.networks) == 1
    # another row is contrasted seed by seed all the same
    assert [step.key for step in made.evaluations] == [made.evaluations[0].key] * 3


def test_every_seed_trains_its_own_dense_network() -> None:
    made = measured_chain(setting(None), RECIPE, dense=dense, prune=None, tuning=None)
    assert seeds_of(made.records) == [0, 1, 2]
    trainings = [step.parents[0] for step in made.evaluations]
    assert [(step.run, step.params.seed, step.params.schedule) for step in trainings] == [
        (training.run_trained, seed, DENSE) for seed in (0, 1, 2)
    ]


def test_fresh_weights_on_imagenet_and_these_alone_are_trained_with_resized_crops() -> None:
    for scale, fresh in (("imagenet", training.run_scratch), ("cifar10", training.run_trained)):
        where = replace(setting(None), scale=scale)
        first = trained(where, RECIPE, None, DENSE, 0, "dense")
        assert (first.run, first.params) == (fresh, Training(DENSE, 0, RECIPE))
        assert trained(where, RECIPE, first, TUNING, 0, "tuned").run is training.run_trained


@pytest.mark.parametrize("weights", ["sha", None])
def test_a_pruned_row_is_compared_with_the_dense_network_it_came_from(weights: str | None) -> None:
    made = measured_chain(setting(weights), RECIPE, dense=dense, prune=prune, tuning=None)
    (comparison,) = by_run(made.records, measuring.run_compared)
    runs, references = comparison.parents[:3], comparison.parents[3:]
    assert [run.parents[0].run for run in runs] == [pruning.run_pruned] * 3
    assert [run.parents[0].params.sampling.seed for run in runs] == [0, 1, 2]
    assert [run.parents[0].parents[0].key for run in runs] == [reference.parents[0].key for reference in references]
    assert comparison.params == Comparison("")
    assert tuple(made.evaluations) == runs and tuple(made.references) == references


@pytest.mark.parametrize("weights", ["sha", None])
def test_a_tuned_row_tunes_the_pruned_network_and_has_a_control_that_is_tuned_as_long(weights: str | None) -> None:
    made = measured_chain(setting(weights), RECIPE, dense=dense, prune=prune, tuning=TUNING)
    first, control = by_run(made.records, measuring.run_compared)
    for run, seed in zip(first.parents[:3], (0, 1, 2), strict=True):
        tuned = run.parents[0]
        assert isinstance(tuned.params, Training)
        assert (tuned.run, tuned.params.schedule, tuned.params.seed) == (training.run_trained, TUNING, seed)
        assert tuned.parents[0].run is pruning.run_pruned
    # the change is from the untuned dense network; the control is the dense network with the same tuning
    assert all(
        reference.parents[0].key == dense(setting(weights), RECIPE, seed).key
        for reference, seed in zip(first.parents[3:], (0, 1, 2), strict=True)
    )
    assert first.parents[:3] == control.parents[:3]
    for reference, seed in zip(control.parents[3:], (0, 1, 2), strict=True):
        tuned = reference.parents[0]
        assert (tuned.params.schedule, tuned.params.seed) == (TUNING, seed)
        assert tuned.parents[0].key == dense(setting(weights), RECIPE, seed).key
    assert (first.params, control.params) == (Comparison(""), Comparison("_control"))


def test_the_dense_network_of_the_seed_teaches_the_pruned_one_and_the_control_has_no_teacher() -> None:
    where, soft = setting(None), Distillation(4.0, 0.9)
    made = measured_chain(where, RECIPE, dense=dense, prune=prune, tuning=TUNING, distillation=soft)
    ordinary = measured_chain(where, RECIPE, dense=dense, prune=prune, tuning=TUNING)
    for network, plain, seed in zip(made.networks, ordinary.networks, (0, 1, 2), strict=True):
        assert (network.run, network.params) == (training.run_distilled, training.Distilling(TUNING, soft, seed))
        assert network.parents == (plain.parents[0], dense(where, RECIPE, seed))
    controls = [by_run(chain.records, measuring.run_compared)[1].parents[3:] for chain in (made, ordinary)]
    assert controls[0] == controls[1]


def test_what_a_choice_is_worth_is_first_minus_second() -> None:
    made = worth(setting("sha"), RECIPE, dense=dense, first=partial(prune, selection="exact"), second=prune)
    (step,) = made.records
    assert step.run is measuring.run_contrasted
    pruned = [parent.parents[0] for parent in step.parents]
    assert [one.params.method.selection for one in pruned[:6]] == ["exact"] * 3 + ["lasso"] * 3
    assert [one.params.sampling.seed for one in pruned[:6]] == [0, 1, 2, 0, 1, 2]
    assert [one.key for one in pruned[6:]] == [loaded(setting("sha"), RECIPE).key] * 3


def test_evaluations_come_in_the_order_of_the_seeds() -> None:
    a, b = (trained(setting(None), RECIPE, None, DENSE, seed, "dense") for seed in (0, 1))
    every, different = evaluations(setting(None), RECIPE, [a, b, a], measured)
    assert [step.parents[0].key for step in every] == [a.key, b.key, a.key]
    assert [step.parents[0].key for step in different] == [a.key, b.key]
    assert seeds_of(different) == [0, 1]
