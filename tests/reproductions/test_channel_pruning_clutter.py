"""What the main job runs on clutter: networks, trainings, seeds, calibration, as literal tables."""

import pytest

from bench import planning
from bench.models.recipe import Recipe
from bench.rows import Row, Setting
from bench.steps import DataValue
from bench.train import steps as training
from bench.train.schedule import Schedule
from reproductions import channel_pruning as cp

NETWORKS = {
    "vgg16": Recipe("vgg16", {"num_classes": 10, "form": "cifar", "width": 0.25}, (3, 32, 32)),
    "resnet56": Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.5}, (3, 32, 32)),
}
DENSE = {
    "vgg16": Schedule(16, 0.002, 64, weight_decay=0.01, shape="cosine", clip=1.0, optimizer="AdamW"),
    "resnet56": Schedule(8, 0.1, 64, weight_decay=5e-4, shape="cosine"),
}
# (table, row): the seeds
SEEDS = {
    ("Table 1", "VGG-16 dense"): (0,),
    ("Table 4", "Ours (fine-tuned)"): (0,),
    ("Table 8", "ResNet-56 dense"): (0, 1, 2, 3, 4),
    ("Table 8", "Ours"): (0, 1, 2, 3, 4),
    ("Table 8", "Filter pruning"): (0,),
    ("Table 8", "Ours (fine-tuned)"): (0,),
    ("Figure 4", "conv2_1"): (0,),
}
# the study's rows, on the same networks
STUDY = {
    ("ResNet-56 at 2x", "dense"): (0,),
    ("ResNet-56 at 2x", "first k, uniform"): (0, 1, 2, 3, 4),
    ("ResNet-56 at 2x", "LASSO, uniform"): (0, 1, 2, 3, 4),
    ("ResNet-56 at 2x", "max response, uniform"): (0,),
    ("ResNet-56 at 2x", "exact, error-driven, full reconstruction"): (0,),
    ("What each part is worth", "2x: error-driven widths, with LASSO"): (0,),
    ("Claims", "cp-lasso-beats-first-k"): (0, 1, 2, 3, 4),
    ("Claims", "cp-lasso-beats-max-response"): (0,),
}
ROWS: dict[tuple[str, str], Row] = {
    (row.table.partition(" (")[0], row.name): row
    for paper in ("channel_pruning", "selection_study")
    for row in planning.papers()[paper].rows
}
WHERE = Setting("clutter", DataValue("plain", "training"), 10, 4191, 2000, "cpu", (0,), None)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_networks_and_how_they_are_trained(name: str) -> None:
    recipe = getattr(cp, name)("clutter", 10, False)
    assert recipe == NETWORKS[name]
    step = cp.dense(WHERE, recipe, 1)
    assert (step.run, step.params) == (training.run_trained, training.Training(DENSE[name], 1, recipe))


def test_the_figure_has_half_of_its_speed_ups() -> None:
    row = ROWS["Figure 4", "conv2_1"]
    assert row.chain is not None
    (step,) = row.chain(WHERE, NETWORKS["vgg16"]).records
    assert step.params.speedups == (1.5, 2.5, 4.0)


def test_fine_tuning_and_calibration() -> None:
    row = ROWS["Table 8", "Ours (fine-tuned)"]
    assert row.chain is not None
    (network,) = row.chain(WHERE, NETWORKS["resnet56"]).networks
    assert network.params == training.Training(Schedule(2, 0.005, 64, weight_decay=5e-4, shape="cosine"), 0)
    assert network.parents[0].params.images == 720


@pytest.mark.parametrize("place", list(SEEDS | STUDY), ids=lambda place: f"{place[0]}: {place[1]}")
def test_seeds(place: tuple[str, str]) -> None:
    """On clutter only: the same rows take their own seeds anywhere else."""
    row = ROWS[place]
    assert row.seeds_on("clutter") == (SEEDS | STUDY)[place]
    assert row.seeds_on("cifar10") == row.seeds_on("digits") == row.seeds
    assert row.scales is None or "clutter" in row.scales
