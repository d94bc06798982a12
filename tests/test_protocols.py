"""A table of protocols: what fits first counts; mixed precision; the paper's schedule; images are those there are."""

from dataclasses import dataclass, replace

import pytest

from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.protocols import ANY, Protocol, as_published, cosine, lookup, protocol
from bench.rows import Setting
from bench.steps import DataValue
from bench.train.schedule import Schedule, lasting, longer

TABLE = {
    ("digits", "vgg16"): Protocol(Schedule(1, 0.1), Schedule(11, 0.1), 720),
    ("digits", ANY): Protocol(Schedule(2, 0.1), Schedule(12, 0.1), 720),
    (ANY, "vgg16"): Protocol(None, Schedule(13, 0.1), 5000),
    ("imagenet", "resnet18"): Protocol(None, Schedule(14, 0.1), 5000),
}


def setting(scale: str, images: int = 1000, amp: bool = False) -> Setting:
    return Setting(scale, DataValue("plain", "training"), 10, images, 50, "cpu", (0,), None, amp)


@pytest.mark.parametrize(
    ("scale", "network", "epochs"),
    [("digits", "vgg16", 11), ("digits", "resnet18", 12), ("/a/folder", "vgg16", 13), ("imagenet", "resnet18", 14)],
)
def test_what_fits_first_counts(scale: str, network: str, epochs: int) -> None:
    assert protocol(TABLE, setting(scale), Recipe(network, {}, (3, 16, 16))).tuning.epochs == epochs
    # the general entry above hides the special one
    hidden = {(ANY, ANY): Protocol(None, Schedule(15, 0.1), 1), **TABLE}
    assert lookup(hidden, scale, Recipe(network, {}, (3, 16, 16))).tuning.epochs == 15


def test_where_nothing_fits_it_is_said() -> None:
    with pytest.raises(UserError, match="no protocol for resnet50 at cifar10"):
        lookup(TABLE, "cifar10", Recipe("resnet50", {}, (3, 16, 16)))


@pytest.mark.parametrize("scale", ["digits", "/a/folder"])
def test_mixed_precision_is_for_all_trainings_and_images_are_those_there_are(scale: str) -> None:
    recipe = Recipe("vgg16", {}, (3, 16, 16))
    plain, mixed = (protocol(TABLE, setting(scale, 100, amp), recipe) for amp in (False, True))
    assert (plain.tuning.amp, mixed.tuning.amp, plain.images, mixed.images) == (False, True, 100, 100)
    assert plain.dense == lookup(TABLE, scale, recipe).dense
    assert mixed.dense == (Schedule(1, 0.1, amp=True) if scale == "digits" else None)
    assert protocol(TABLE, setting(scale, 10_000), recipe).images == (720 if scale == "digits" else 5000)


@dataclass(frozen=True)
class Staged(Protocol):
    """What a paper adds: trainings, and what is none."""

    each: Schedule
    block: Schedule | None = None
    batch: int = 64


def test_mixed_precision_reaches_what_a_paper_adds() -> None:
    staged = Staged(Schedule(3, 0.1), Schedule(2, 0.1), 9, Schedule(1, 0.1))
    found = protocol({(ANY, ANY): staged}, setting("digits", amp=True), Recipe("vgg16", {}, (3, 16, 16)))
    trainings = [Schedule(epochs, 0.1, amp=True) for epochs in (3, 2, 1)]
    assert found == Staged(trainings[0], trainings[1], 9, trainings[2])


def test_the_paper_s_schedule_is_taken_where_it_is_asked_for_and_another_one_stands_beside_it() -> None:
    table = {
        (as_published("cifar10"), "vgg16"): Protocol(Schedule(160, 0.1), Schedule(40, 0.1), 9),
        ("cifar10", ANY): Protocol(Schedule(16, 0.1), Schedule(4, 0.1), 9),
        (ANY, ANY): Protocol(Schedule(3, 0.1), Schedule(2, 0.1), 9),
    }
    recipe = Recipe("vgg16", {}, (3, 16, 16))
    for scale, short, published in (("cifar10", 16, 160), ("digits", 3, 3)):
        here = setting(scale)
        found = [protocol(table, replace(here, paper_schedule=asked), recipe) for asked in (False, True)]
        assert [one.dense.epochs for one in found if one.dense] == [short, published]


def test_schedules() -> None:
    assert cosine(3, 0.02, 64) == Schedule(3, 0.02, 64, weight_decay=5e-4, shape="cosine")
    steps = Schedule(35, 0.01, 256, shape="steps", milestones=(20, 30))
    assert longer(steps, 3) == Schedule(105, 0.01, 256, shape="steps", milestones=(60, 90))
    # the paper's 36, 48 and 54 of 60; what is no whole epoch falls to the one before
    assert lasting(Schedule(140, 0.01, shape="steps", milestones=(84, 112, 126)), 60).milestones == (36, 48, 54)
    assert lasting(steps, 10) == Schedule(10, 0.01, 256, shape="steps", milestones=(5, 8))
