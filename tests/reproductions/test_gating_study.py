"""The study of FBS's gates against literal tables: which networks are compared, from which start, by which images."""

from __future__ import annotations

import pytest
from paper_rows import chain_of, path

from bench.gating import ablation, activity, measuring
from bench.gating import steps as gating
from bench.gating.layer import GateOptions
from bench.measure import steps as comparing
from bench.steps import Step
from bench.train.schedule import Schedule
from reproductions import gating_study as study

ROWS = {(row.table.partition(" (")[0], row.name): row for row in study.paper().rows}
CHOICE, START = "What the choice for each image is worth", "Where the gates start"
TUNING = Schedule(5, 0.02, 128, weight_decay=5e-4, shape="cosine")
DOWN = {700: (1000, 900, 800, 700), 500: (1000, 900, 800, 700, 600, 500)}
# phi and rho of the paper: He normal and 1; ours: zero, so that rho is |gamma|
PAPER, OURS = GateOptions(phi="he"), GateOptions(phi="zero")


def gates(network: Step) -> list[gating.Gating]:
    return [step.params for step in path(network) if step.run is gating.run_gated]


def trained(density: int, options: GateOptions) -> list[gating.Gating]:
    return [gating.Gating(d, TUNING, 0, 1e-8, options, ()) for d in DOWN[density]]


def test_rows_and_scales() -> None:
    assert sorted({row.table for row in study.paper().rows}) == [study.CHOICE, study.START]
    assert {name for table, name in ROWS if table == START} == {
        "d=0.5, our start",
        "d=0.5, the paper's start",
        "d=0.5, phi in units of gamma",
        "d=0.5: the paper's start instead of ours",
    }
    assert sum(table == CHOICE for table, _ in ROWS) == 6
    assert {(row.scale, row.seeds, row.ours) for row in ROWS.values()} == {("cifar10", (0,), True)}


@pytest.mark.parametrize("density", [700, 500])
def test_the_choice_for_each_image_is_held_in_two_steps(density: int) -> None:
    names = ("channels for each image instead of the same for all", "saliencies for each image, of the same channels")
    contrasts = []
    for name in names:
        (contrast,) = chain_of(ROWS[CHOICE, f"d={density / 1000:g}: {name}"], "cifar10").records
        contrasts.append(contrast.parents)
    (free, same, dense), (same_again, mean, dense_again) = contrasts
    assert (same_again, dense_again) == (same, dense)
    (network,) = free.parents
    assert (free.run, gates(network)) == (measuring.run_measured, trained(density, OURS))
    assert same.parents == mean.parents == (network,) and dense.parents == (path(network)[0],)
    assert [(step.run, step.params) for step in (same, mean)] == [
        (ablation.run_held, ablation.Held(5000, 0, saliency)) for saliency in (False, True)
    ]


def test_the_short_way_goes_through_three_densities_of_two_epochs() -> None:
    short = Schedule(2, 0.01, 128, weight_decay=5e-4, shape="cosine", clip=1.0)
    ended = {}
    starts = {"our start": OURS, "the paper's start": PAPER, "phi in units of gamma": GateOptions(phi="scaled")}
    for name, options in starts.items():
        made = chain_of(ROWS[START, f"d=0.5, {name}"], "cifar10")
        (ended[name],) = made.evaluations[0].parents
        (looked,) = (step for step in made.records if step.run is activity.run_activity)
        assert looked.parents == (ended[name],)
        assert [step.params.suffix for step in made.records if step.run is comparing.run_compared] == [""]
        assert gates(ended[name]) == [gating.Gating(d, short, 0, 1e-8, options, ()) for d in (1000, 700, 500)]
    (contrast,) = chain_of(ROWS[START, "d=0.5: the paper's start instead of ours"], "cifar10").records
    theirs, ours, dense = (step.parents[0] for step in contrast.parents)
    assert (theirs, ours) == (ended["the paper's start"], ended["our start"])
    assert path(theirs)[0] == path(ours)[0] == dense
