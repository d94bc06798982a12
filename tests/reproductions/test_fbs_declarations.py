"""The declarations of FBS against the paper: every table here is typed from notes on it, not from the script."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.gating import activity, measuring, timing
from bench.gating import steps as gating
from bench.gating.edit import Gate
from bench.gating.layer import GateOptions
from bench.measure import steps as comparing
from bench.measure.latency import Protocol
from bench.models.recipe import Recipe
from bench.pruning import steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.registry import find, load
from bench.rows import Chain, Row, Setting
from bench.steps import DataValue, Kind, Step, in_order
from bench.train import steps as training
from bench.train.schedule import Schedule
from reproductions import fbs

PUBLISHED = load("fbs", Path(fbs.__file__).parent / "registry")
ROWS = {(row.table.partition(" (")[0], row.name): row for row in fbs.paper().rows}
IMAGES = {"digits": (1437, 360), "cifar10": (50_000, 10_000), "imagenet": (1_281_167, 50_000), "folder": (5170, 1017)}


def setting(scale: str, seeds: tuple[int, ...] = (0,), weights: str | None = None, amp: bool = False) -> Setting:
    train, test = IMAGES[scale]
    classes = 1000 if scale == "imagenet" else 10
    return Setting(scale, DataValue("plain", "training"), classes, train, test, "cpu", seeds, weights, amp)


def chain_of(row: Row, where: Setting) -> tuple[Chain, Recipe]:
    assert row.dense is not None and row.chain is not None
    recipe = row.dense(where.scale, where.classes, where.weights is not None)
    return row.chain(where, recipe), recipe


def path(step: Step) -> list[Step]:
    """The step and its first parents, the dense network first."""
    found = [step]
    while found[0].parents:
        found.insert(0, found[0].parents[0])
    return found


# --------------------------------------------------------------------------------------------------------------------
# Row to printed values

PRINTED: dict[tuple[str, str], dict[str, float]] = {
    ("Figure 3a", "dense"): {"top1_acc": 91.37, "top5_acc": 99.67},
    # at 2x the paper prints a lower bound; the speed-up is that of a rerun of the released code
    ("Figure 3a", "FBS at d=0.7"): {"top1_acc": 91.55, "dynamic_speedup": 2.0},
    ("Figure 3a", "FBS at d=0.5"): {
        "top1_acc": 90.59, "top5_acc": 99.65, "dynamic_speedup": 3.93, "weight_reduction": 2.37,
    },
    ("Baselines of Figure 3a", "NS at 2.01x"): {"top1_acc": 87.54},
    ("Baselines of Figure 3a", "NS + FBS at d=0.7"): {"top1_acc": 90.90},
    ("Baselines of Figure 3a", "NS + FBS at d=0.6, official widths"): {"dynamic_speedup": 3.22},
    # the baseline of its Table 1 is, by its text, the network at d = 1, and that much better than the plain one
    ("Table 1", "FBS at d=1"): {"top1_err": 29.29, "top5_err": 10.32, "top1_change": 1.73, "top5_change": 0.46},
    ("Table 1", "FBS at d=0.7"): {"top1_err": 31.54, "dynamic_speedup": 1.62},
    ("Table 1", "FBS at d=0.6"): {"top1_err": 31.83, "top5_err": 11.78, "dynamic_speedup": 1.98},
    ("Table 1", "NS at 1.39x"): {"top1_err": 32.79, "top5_err": 12.61, "dynamic_speedup": 1.39},
    ("Table 2", "dense"): {"top5_err": 10.1},
    ("Table 2", "NS + FBS at d=0.8"): {"top5_err_increase": 0.04},
    ("Table 2", "NS + FBS at d=0.7"): {"top5_err_increase": 0.52},
    ("Table 2", "NS + FBS at d=0.6"): {"top5_err_increase": 0.59},
}  # fmt: skip
CLAIMED = {
    ("Table 1", "FBS at d=0.7"): 1.62, ("Table 1", "FBS at d=0.6"): 1.98, ("Table 1", "NS at 1.39x"): 1.39,
    ("Table 2", "NS + FBS at d=0.8"): 3, ("Table 2", "NS + FBS at d=0.7"): 4, ("Table 2", "NS + FBS at d=0.6"): 5,
}  # fmt: skip
# of M-CifarNet, in millions: convolutions and classifier, and with the gates on top
DERIVED = {
    "d=1": (174.30, 174.68), "d=0.9": (142.82, 143.19), "d=0.8": (113.44, 113.79), "d=0.7": (86.50, 86.84),
    "d=0.6": (64.01, 64.33), "d=0.5": (43.97, 44.28), "d=0.4": (28.93, 29.23), "d=0.3": (16.65, 16.93),
    "d=0.2": (7.45, 7.71), "d=0.1": (2.05, 2.30),
}  # fmt: skip


def printed(row: Row) -> dict[str, float | None]:
    found = {}
    for metric, link in row.published.items():
        entry = find(PUBLISHED, row.table, *link)
        assert entry is not None
        found[metric] = entry.value
    return found


def test_every_row_is_judged_by_what_the_paper_prints_for_it() -> None:
    found = {place: printed(row) for place, row in ROWS.items() if row.published and "Derived" not in place[0]}
    assert found == PRINTED
    assert {place: row.claimed for place, row in ROWS.items() if row.claimed is not None} == CLAIMED
    derived = {name: printed(row) for (table, name), row in ROWS.items() if table == fbs.DERIVED["mcifarnet"]}
    assert derived == {name: dict(zip(("expected_macs", "expected_macs_gates"), values, strict=True))
                       for name, values in DERIVED.items()}  # fmt: skip


def test_rows_run_at_the_paper_s_scale_with_one_seed_but_where_its_claim_is_judged() -> None:
    for (table, name), row in ROWS.items():
        if row.missing is not None:
            continue
        own = "imagenet" if table.startswith("Table") else "digits" if table.startswith("Derived") else "cifar10"
        claim = name == "FBS at d=0.5" and "Figure 3a" in table
        assert (row.scale, row.seeds) == (own, (0, 1, 2) if claim else (0,)), (table, name)


# --------------------------------------------------------------------------------------------------------------------
# Training

DENSE = {
    "digits": Schedule(20, 0.05, 64, weight_decay=5e-4, shape="cosine"),
    "cifar10": Schedule(48, 0.1, 128, weight_decay=5e-4, shape="cosine"),
    "folder": Schedule(12, 0.05, 64, weight_decay=5e-4, shape="cosine"),
}
# of each density
TUNING = {
    "digits": Schedule(6, 0.02, 64, weight_decay=5e-4, shape="cosine"),
    "cifar10": Schedule(5, 0.02, 128, weight_decay=5e-4, shape="cosine"),
    "folder": Schedule(3, 0.02, 64, weight_decay=5e-4, shape="cosine"),
    # the paper: 35 epochs a density
    "imagenet": Schedule(35, 0.01, 256, weight_decay=1e-4, shape="steps", milestones=(20,)),
}
# epochs of what FBS is compared with: the dense network's and those of the six densities 1, 0.9 ... 0.5
LONGER = {"digits": 20 + 6 * 6, "cifar10": 48 + 6 * 5, "folder": 12 + 6 * 3}
LAMBDA, ZERO = 1e-8, GateOptions(phi="zero")
RESNET18_UNGATED = ("layer2.1.conv1", "layer2.1.conv2")
# of the official configurations
VGG_WIDTHS = (16, 48, 70, 110, 143, 170, 232, 378, 399, 413, 456, 435, 512)
CIFARNET_WIDTHS = (52, 64, 123, 128, 128, 182, 111, 192)


def gated(densities: tuple[int, ...], scale: str, seed: int, ungated: tuple[str, ...] = ()) -> list[gating.Gating]:
    return [gating.Gating(d, TUNING[scale], seed, LAMBDA, ZERO, ungated) for d in densities]


def down_to(density: int) -> tuple[int, ...]:
    return tuple(d for d in (1000, 900, 800, 700, 600, 500, 400, 300, 200) if d >= density)


def longer(schedule: Schedule, epochs: int) -> Schedule:
    """The same for ``epochs``; ImageNet's rate falls after 20 epochs of 35."""
    milestones = tuple(milestone * epochs // schedule.epochs for milestone in schedule.milestones)
    return Schedule(epochs, schedule.lr, schedule.batch, weight_decay=schedule.weight_decay, shape=schedule.shape,
                    milestones=milestones)  # fmt: skip


@pytest.mark.parametrize("scale", ["digits", "cifar10", "folder"])
@pytest.mark.parametrize("density", [1000, 700, 500, 200])
def test_a_density_is_trained_from_the_last_and_compared_with_a_dense_network_trained_as_long(
    scale: str, density: int
) -> None:
    row = ROWS["Figure 3a", f"FBS at d={density / 1000:g}"]
    chain, recipe = chain_of(row, setting(scale, (3,)))
    dense, *tail = path(chain.evaluations[0].parents[0])
    assert (dense.run, dense.params) == (training.run_trained, training.Training(DENSE[scale], 3, recipe))
    assert [step.run for step in tail] == [gating.run_gated] * len(tail)
    assert [step.params for step in tail] == gated(down_to(density), scale, 3)
    change, control = (step for step in chain.records if step.run is comparing.run_compared)
    assert change.parents == (chain.evaluations[0], chain.references[0])
    assert (change.params.suffix, control.params.suffix) == ("", "_control")
    assert control.parents[0] == chain.evaluations[0]
    (alone,) = path(control.parents[1].parents[0])
    assert alone.params == training.Training(longer(DENSE[scale], LONGER[scale]), 3, recipe)
    assert chain.references[0].parents == (dense,)


@pytest.mark.parametrize("density", [700, 500])
def test_the_network_that_is_released_is_that_of_the_row_with_rounded_weights(density: int) -> None:
    """It is named as the row's network, so that accepting the row keeps it; measured beside the dense one."""
    row = ROWS["Half precision", f"FBS at d={density / 1000:g}"]
    assert (row.release, row.ours, row.scales, row.published) == (True, True, ("cifar10",), {})
    chain, _ = chain_of(row, setting("cifar10"))
    whole, _ = chain_of(ROWS["Figure 3a", f"FBS at d={density / 1000:g}"], setting("cifar10"))
    (rounded,) = chain.networks
    assert (rounded.run, rounded.params) == (training.run_halved, training.Halving())
    assert rounded.parents == whole.evaluations[0].parents
    assert chain.evaluations[0].parents == (rounded,)
    (change,) = (step for step in chain.records if step.run is comparing.run_compared)
    assert change.parents == (chain.evaluations[0], whole.references[0])
    assert [place for place, other in ROWS.items() if other.release] == [
        ("Half precision", f"FBS at d={other}") for other in (0.7, 0.5)
    ]


def test_given_weights_are_gated_and_the_control_is_tuned_for_all_six_stages() -> None:
    for scale, weights in (("imagenet", None), ("cifar10", "sha")):
        row = ROWS["Figure 3a", "FBS at d=0.5"]
        chain, _ = chain_of(row, setting(scale, weights=weights))
        dense, *tail = path(chain.evaluations[0].parents[0])
        assert (dense.kind, dense.params.file) == (Kind.LOAD, weights)
        assert [step.params for step in tail] == gated(down_to(500), scale, 0)
        control = [step for step in chain.records if step.run is comparing.run_compared][1]
        start, tuned = path(control.parents[1].parents[0])
        assert start == dense
        epochs = 6 * TUNING[scale].epochs
        assert tuned.params == training.Training(longer(TUNING[scale], epochs), 0)


def test_the_row_that_is_trained_longer_is_that_control() -> None:
    chain, recipe = chain_of(ROWS["Figure 3a", "dense, trained longer"], setting("cifar10"))
    (network,) = path(chain.evaluations[0].parents[0])
    assert network.params == training.Training(longer(DENSE["cifar10"], 78), 0, recipe)
    (reference,) = path(chain.references[0].parents[0])
    assert reference.params == training.Training(DENSE["cifar10"], 0, recipe)


def test_mixed_precision_is_for_every_training() -> None:
    chain, _ = chain_of(ROWS["Figure 3a", "FBS at d=1"], setting("cifar10", amp=True))
    dense, stage = path(chain.evaluations[0].parents[0])
    control = [step for step in chain.records if step.run is comparing.run_compared][1]
    (alone,) = path(control.parents[1].parents[0])
    assert [step.params.schedule.amp for step in (dense, stage, alone)] == [True] * 3


def test_the_long_schedule_is_there_for_who_asks_for_it() -> None:
    asked = replace(setting("cifar10"), paper_schedule=True)
    chain, _ = chain_of(ROWS["Figure 3a", "FBS at d=0.9"], asked)
    dense, *stages = path(chain.evaluations[0].parents[0])
    # lr 0.01, divided by ten every 100 epochs, at most 300; 256 images a batch and an L2 term of 1e-4
    long = Schedule(300, 0.01, 256, weight_decay=1e-4, shape="steps", milestones=(100, 200))
    assert [step.params.schedule for step in (dense, *stages)] == [long] * 3
    control = [step for step in chain.records if step.run is comparing.run_compared][1]
    (alone,) = path(control.parents[1].parents[0])
    assert (alone.params.schedule.epochs, alone.params.schedule.milestones) == (2100, (700, 1400))
    slimming, _ = chain_of(ROWS["Baselines of Figure 3a", "NS at 2.01x"], asked)
    sparse = path(slimming.evaluations[0].parents[0])[1]
    assert sparse.params == gating.Sparse(long, 0, 1e-5)  # the official code's lambda


# --------------------------------------------------------------------------------------------------------------------
# Baselines at equal MACs

# printed or derived speed-ups at the MACs of three densities, with the stages of training down to them
POINTS = {"2.01x": (700, 4), "3.94x": (500, 6), "10.30x": (300, 8)}


@pytest.mark.parametrize("name", POINTS)
def test_baselines_have_the_macs_and_the_epochs_of_fbs(name: str) -> None:
    density, stages = POINTS[name]
    whole, part = (
        ROWS["Figure 3a", f"CP (LASSO) at {name}"],
        ROWS["Baselines of Figure 3a", f"exact selection at {name}"],
    )
    speedup = fbs.speedup_at(fbs.MCIFARNET, density)
    assert f"{speedup:.2f}x" == name
    for row, selection in ((whole, "lasso"), (part, "exact")):
        chain, _ = chain_of(row, setting("cifar10"))
        dense, pruned, tuned = path(chain.evaluations[0].parents[0])
        ratios = {f"conv{i}": 1.0 for i in range(7)}  # all filters but those that the classifier reads
        widths = pruning.Ratios(ratios, pytest.approx(speedup))  # type: ignore[arg-type]
        assert pruned.params == pruning.Pruning(Method(selection), widths, Sampling(positions=10, seed=0), 5000)
        assert tuned.params == training.Training(longer(TUNING["cifar10"], 5 * stages), 0)
        assert dense.params.schedule == DENSE["cifar10"]
        assert [s.params.suffix for s in chain.records if s.run is comparing.run_compared] == ["", "_control"]
    chain, _ = chain_of(ROWS["Baselines of Figure 3a", f"NS at {name}"], setting("cifar10"))
    dense, sparse, small, recovered = path(chain.evaluations[0].parents[0])
    assert sparse.params == gating.Sparse(TUNING["cifar10"], 0, 1e-4)
    assert small.params == gating.Slimming(pytest.approx(speedup), None)  # type: ignore[arg-type]
    # the training with the L1 term is one of the stages
    assert recovered.params == training.Training(longer(TUNING["cifar10"], 5 * (stages - 1)), 0)


def test_slimming_to_a_printed_speed_up_and_gates_in_the_slimmed_network() -> None:
    chain, _ = chain_of(ROWS["Baselines of Figure 3a", "NS at 1.19x"], setting("cifar10"))
    _, sparse, small, recovered = path(chain.evaluations[0].parents[0])
    assert (small.params, recovered.params.schedule.epochs) == (gating.Slimming(1.19), 5)
    for density in (700, 500):
        chain, _ = chain_of(ROWS["Baselines of Figure 3a", f"NS + FBS at d={density / 1000:g}"], setting("cifar10"))
        steps = path(chain.evaluations[0].parents[0])
        assert [step.key for step in steps[1:4]] == [sparse.key, small.key, recovered.key]
        assert [step.params for step in steps[4:]] == gated(down_to(density), "cifar10", 0)


# --------------------------------------------------------------------------------------------------------------------
# ImageNet


@pytest.mark.parametrize("density", [1000, 700, 600])
def test_resnet18_leaves_one_block_ungated(density: int) -> None:
    chain, recipe = chain_of(ROWS["Table 1", f"FBS at d={density / 1000:g}"], setting("imagenet"))
    assert recipe == Recipe("resnet18", {"num_classes": 1000}, (3, 224, 224))
    dense, *tail = path(chain.evaluations[0].parents[0])
    assert dense.kind is Kind.LOAD
    assert [step.params for step in tail] == gated(down_to(density), "imagenet", 0, RESNET18_UNGATED)


def test_resnet18_and_slimming() -> None:
    chain, _ = chain_of(ROWS["Table 1", "NS at 1.39x"], setting("imagenet"))
    _, sparse, small, recovered = path(chain.evaluations[0].parents[0])
    assert sparse.params == gating.Sparse(TUNING["imagenet"], 0, 1e-5)  # the official code's lambda
    assert (small.params, recovered.params.schedule.epochs) == (gating.Slimming(1.39), 35)


@pytest.mark.parametrize(("claimed", "density"), [(3, 800), (4, 700), (5, 600)])
def test_vgg16_is_slimmed_to_the_official_widths_and_gated(claimed: int, density: int) -> None:
    row = ROWS["Table 2", f"NS + FBS at d={density / 1000:g}"]
    assert row.claimed == claimed
    chain, recipe = chain_of(row, setting("imagenet"))
    assert recipe == Recipe("vgg16_bn", {"num_classes": 1000}, (3, 224, 224))
    _, sparse, small, recovered, *tail = path(chain.evaluations[0].parents[0])
    assert sparse.params.penalty == 1e-5
    assert small.params.speedup is None and tuple(small.params.keep.values()) == VGG_WIDTHS
    places = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]  # torchvision's VGG-16 with batch norm
    assert list(small.params.keep) == [f"features.{place}" for place in places]
    assert recovered.params.schedule.epochs == 35
    assert [step.params for step in tail] == gated(down_to(density), "imagenet", 0)


def test_table_3_measures_the_memory_of_dense_and_gated_networks() -> None:
    expected = {
        "VGG-16 dense": ("vgg16_bn", ()),
        "VGG-16 NS + FBS at d=0.8": ("vgg16_bn", down_to(800)),
        "VGG-16 NS + FBS at d=0.6": ("vgg16_bn", down_to(600)),
        "ResNet-18 dense": ("resnet18", ()),
        "ResNet-18 FBS at d=0.6": ("resnet18", down_to(600)),
    }
    assert [name for table, name in ROWS if table == "Table 3"] == list(expected)
    for name, (builder, densities) in expected.items():
        chain, recipe = chain_of(ROWS["Table 3", name], setting("imagenet"))
        (memory,) = (step for step in chain.records if step.run is measuring.run_memory)
        assert recipe.builder == builder and memory.params == measuring.MemoryMeasuring((1, 128), 0)
        steps = path(memory.parents[0])
        assert tuple(step.params.density for step in steps if step.run is gating.run_gated) == densities
        assert any(step.run is gating.run_slimmed for step in steps) == ("NS" in name)
        blocks = {step.params.ungated for step in steps if step.run is gating.run_gated}
        assert blocks == ({RESNET18_UNGATED} if builder == "resnet18" and densities else {()} if densities else set())


# --------------------------------------------------------------------------------------------------------------------
# Skipped execution, latency, sizes


@pytest.mark.parametrize("density", [500, 300])
def test_skipped_execution_is_of_the_trained_network(density: int) -> None:
    chain, _ = chain_of(ROWS["Skipped execution", f"FBS at d={density / 1000:g}"], setting("cifar10"))
    network, dense = chain.evaluations[0].parents[0], chain.references[0].parents[0]
    check, timed = chain.records[-2:]
    assert (check.run, check.params, check.parents) == (measuring.run_skipped, measuring.Skipping(1000), (network,))
    # the dense network first: speed-ups are over it
    assert (timed.run, timed.kind, timed.parents) == (timing.run_latency, Kind.TIME, (dense, network))
    assert timed.params.batch == 1 and network.params.density == density
    assert (timed.params.protocol, timed.params.processes) == (Protocol(seconds=30.0), 5)


def test_latency_is_of_the_whole_mcifarnet_with_fresh_weights() -> None:
    expected = {f"d={d / 1000:g}, batch 1": (d, 1) for d in (1000, 700, 500, 300, 200)}
    expected |= {f"d={d / 1000:g}, batch 8": (d, 8) for d in (500, 300)}
    assert [name for table, name in ROWS if table == "Latency"] == list(expected)
    for name, (density, batch) in expected.items():
        chain, recipe = chain_of(ROWS["Latency", name], setting("digits"))
        (step,) = chain.records
        assert recipe == Recipe("mcifarnet", {"num_classes": 10}, (3, 32, 32))
        assert (step.kind, step.parents, step.params.batch) == (Kind.TIME, (), batch)
        assert (step.params.protocol, step.params.processes) == (Protocol(seconds=30.0), 5)
        assert step.params.recipe == recipe.edited(Gate(density))


def test_sizes_are_of_the_density_that_the_row_names() -> None:
    found = {}
    for (table, name), row in ROWS.items():
        if table.startswith("Derived"):
            chain, _ = chain_of(row, setting("digits"))
            (step,) = in_order(chain.records)
            shape = step.params.recipe
            gate = shape.last("gate")
            found[table, name] = (gate and gate.density, gate.ungated if gate else (), shape.builder)
            assert sorted(shape.widths.values()) == (sorted(VGG_WIDTHS) if "VGG" in table else [])
    expected = {("Derived: M-CifarNet", name): (round(1000 * float(name[2:])), (), "mcifarnet") for name in DERIVED}
    for d in (800, 700, 650, 600):
        expected["Derived: ResNet-18", f"d={d / 1000:g}, all gated"] = (d, (), "resnet18")
        expected["Derived: ResNet-18", f"d={d / 1000:g}, b22 not gated"] = (d, RESNET18_UNGATED, "resnet18")
    expected["Derived: VGG-16 slimmed", "slimmed"] = (None, (), "vgg16_bn")
    for d in (800, 700, 600):
        expected["Derived: VGG-16 slimmed", f"slimmed, d={d / 1000:g}"] = (d, (), "vgg16_bn")
    assert found == expected


def test_the_official_widths_of_the_slimmed_mcifarnet() -> None:
    row = ROWS["Baselines of Figure 3a", "NS + FBS at d=0.6, official widths"]
    assert row.sized is not None
    assert row.sized.widths == {f"conv{i}": width for i, width in enumerate(CIFARNET_WIDTHS)}
    assert row.sized.last("gate") == Gate(600)


# --------------------------------------------------------------------------------------------------------------------
# What figures show


def test_channels_are_looked_at_in_two_rows_of_figure_3a_once_a_row() -> None:
    """At the densities 0.7 and 0.5, of the first seed's network; at the end, so that nothing before it moves."""
    found = {}
    for (table, name), row in ROWS.items():
        if row.chain is None:
            continue
        chain, _ = chain_of(row, setting("digits", row.seeds))
        steps = [step for step in chain.records if step.run is activity.run_activity]
        if steps:
            assert steps == chain.records[-1:]
            found[table, name] = steps[0].parents == chain.evaluations[0].parents
    assert found == {("Figure 3a", "FBS at d=0.7"): True, ("Figure 3a", "FBS at d=0.5"): True}
