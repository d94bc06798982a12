"""ThiNet's declarations against the paper and the authors' scripts: every table here is typed from notes on them."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from paper_rows import chain_of, path, schedules

from bench import chains, planning, runner, sizes
from bench.cli import main
from bench.measure import protocols
from bench.measure import steps as measuring
from bench.models.edits import NewOutputs, ReplaceHead
from bench.models.recipe import Recipe
from bench.planning import Job
from bench.protocols import ANY
from bench.pruning import steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.registry import find, load
from bench.rows import Chain, Paper, Row, Setting
from bench.steps import Source
from bench.store import Store, row_path, write_json
from bench.train import steps as training
from bench.train.schedule import Schedule
from reproductions import thinet

PUBLISHED = load("thinet", Path(thinet.__file__).parent / "registry")
ROWS = {(row.table, row.name): row for row in thinet.paper().rows}
FIGURE4 = "Figure 4 (selection criteria, VGG-GAP on CUB-200)"
# printed, in billions and millions: FLOPs count a multiplication and an addition, VGG's parameters no biases
SIZES = {
    ("Table 1 (VGG-16)", "Original"): ("30.94", "138.34"),
    ("Table 1 (VGG-16)", "ThiNet-Conv"): ("9.58", "131.44"),
    ("Table 1 (VGG-16)", "ThiNet-GAP"): ("9.34", "8.32"),
    ("Table 1 (VGG-16)", "ThiNet-Tiny"): ("2.01", "1.32"),
    ("Table 3 (ResNet-50)", "Original"): ("7.72", "25.56"),
    ("Table 3 (ResNet-50)", "ThiNet-70"): ("4.88", "16.94"),
    ("Table 3 (ResNet-50)", "ThiNet-50"): ("3.41", "12.38"),
    ("Table 3 (ResNet-50)", "ThiNet-30"): ("2.20", "8.66"),
}


def test_printed_sizes() -> None:
    """All sixteen come out."""
    decided = {(d.published.table, d.row, d.published.metric): d for d in sizes.of_paper(thinet.paper(), PUBLISHED)}
    for (table, row), (flops, params) in SIZES.items():
        for metric, printed in (("FLOPs", flops), ("params", params)):
            found = decided[table, row, metric]
            assert found.published.printed == printed and found.value is not None
            assert found.verdict.word == "exact", (table, row, metric, float(found.value))
    # two operations for each weight at each position, and two for each mean and each scale of the batch norms
    norms = 64 + 256 + 512 + 1024 + 2048 + sum(
        blocks * (2 * inner + outer)
        for blocks, inner, outer in ((3, 19, 256), (4, 38, 512), (6, 76, 1024), (3, 153, 2048))
    )  # fmt: skip
    flops = decided["Table 3 (ResNet-50)", "ThiNet-30", "FLOPs"].value
    assert flops == Fraction(2_194_985_078 + 2 * 2 * norms, 10**9) == Fraction(2_195_070_102, 10**9)
    reductions = {decided["Table 2 (VGG-16 vs other pruning methods)", "ThiNet-GAP", metric].verdict.word
                  for metric in ("params_reduction", "FLOPs_reduction")}  # fmt: skip
    assert reductions == {"exact"}
    assert decided["abstract", "ThiNet-Tiny", "model_size"].verdict.word == "exact"


def test_the_verdicts_on_sizes_stand_in_the_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a row that ran on other data only: they are about the network at its full size."""
    for name, row in thinet.paper().ids.items():
        if (row.table, row.name) in SIZES:
            where = {"scale": "imagenet"} if row.table.startswith("Table 1") else {"scale": "clutter", "seeds": [0]}
            value = {
                "id": name,
                "setting": where,
                "status": "not run (a test)",
                "shape": None,
                "records": [],
                "steps": {},
            }
            write_json(row_path(tmp_path, name, where), value)
    assert main(["tables", "thinet", "--format", "csv", "--from", str(tmp_path)]) == 0
    # a header in front of each table, an empty line between
    tables = [csv.DictReader(io.StringIO(text.strip())) for text in capsys.readouterr().out.split("\n\n")]
    found = [line for table in tables for line in table if line["metric"].startswith("printed_")]
    assert len(found) == 2 * len(SIZES)
    for line in found:
        printed = dict(zip(("printed_FLOPs", "printed_params"), SIZES[line["table"], line["row"]], strict=True))
        assert abs(float(line["value"]) - float(printed[line["metric"]])) <= 0.01
        assert (float(line["published"]), line["verdict"]) == (float(printed[line["metric"]]), "exact")
        assert (line["scale"], line["analogue"], line["verified"]) == ("imagenet", "False", "True")


# (table, row): the accuracies that are printed for it
ACCURACIES = {
    ("Table 1 (VGG-16)", "Original"): (68.34, 88.44),
    ("Table 1 (VGG-16)", "ThiNet-Conv"): (69.80, 89.53),
    ("Table 1 (VGG-16)", "Train from scratch"): (67.00, 87.45),
    ("Table 1 (VGG-16)", "ThiNet-GAP"): (67.34, 87.92),
    ("Table 1 (VGG-16)", "ThiNet-Tiny"): (59.34, 81.97),
    ("Table 1 (VGG-16)", "SqueezeNet"): (57.67, 80.39),
    ("Table 3 (ResNet-50)", "Original"): (72.88, 91.14),
    ("Table 3 (ResNet-50)", "ThiNet-70"): (72.04, 90.67),
    ("Table 3 (ResNet-50)", "ThiNet-50"): (71.01, 90.02),
    ("Table 3 (ResNet-50)", "ThiNet-30"): (68.42, 88.30),
    ("ThiNet_Code README (VGG-16, ratio 0.5)", "VGG-16, original VGG16"): (71.50, 90.01),
    ("ThiNet_Code README (VGG-16, ratio 0.5)", "VGG-16, ThiNet_ICCV"): (69.80, 89.53),
    ("ThiNet_Code README (VGG-16, ratio 0.5)", "VGG-16, ThiNet_TPAMI"): (69.74, 89.41),
    ("ThiNet_Code README (ResNet-50, ratio 0.7)", "ResNet-50, original ResNet50"): (75.30, 92.20),
    ("ThiNet_Code README (ResNet-50, ratio 0.7)", "ResNet-50, ThiNet_ICCV"): (72.04, 90.67),
    ("ThiNet_Code README (ResNet-50, ratio 0.7)", "ResNet-50, ThiNet_TPAMI"): (74.03, 92.11),
    ("Table 2 (VGG-16 vs other pruning methods)", "ThiNet-WS"): (1.01, 0.69),
    ("Table 2 (VGG-16 vs other pruning methods)", "ThiNet-Conv"): (1.46, 1.09),
    ("Table 2 (VGG-16 vs other pruning methods)", "ThiNet-GAP"): (-1.00, -0.52),
    ("Table 4 (transfer)", "VGG-16"): (72.30,),
    ("Table 4 (transfer)", "FT & prune"): (66.90,),
    ("Table 4 (transfer)", "Train from scratch"): (44.27,),
    ("Table 4 (transfer)", "ThiNet-Conv"): (70.90,),
    ("Table 4 (transfer)", "ThiNet-GAP"): (69.43,),
    (FIGURE4, "original"): (71.18,),
    (FIGURE4, "weight sum"): (55.16,),
    (FIGURE4, "APoZ"): (63.81,),
    (FIGURE4, "ThiNet w/o w"): (65.65,),
    (FIGURE4, "ThiNet"): (66.90,),
}


def test_every_row_is_judged_by_what_is_printed_for_it() -> None:
    found = {}
    for place, row in ROWS.items():
        if row.published:
            entries = [find(PUBLISHED, row.table, *link) for link in row.published.values()]
            found[place] = tuple(entry.value for entry in entries if entry is not None)
            wanted = {"Table 2": ["top1_change", "top5_change"], "Table 4": ["top1_acc"], "Figure ": ["top1_acc"]}
            assert list(row.published) == wanted.get(place[0][:7], ["top1_acc", "top5_acc"])
    assert found == ACCURACIES


# --------------------------------------------------------------------------------------------------------------------
# Layer by layer

VGG = {"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12, "conv3_3": 14,
       "conv4_1": 17, "conv4_2": 19, "conv4_3": 21}  # fmt: skip
WIDTHS = (32, 32, 64, 64, 128, 128, 128, 256, 256, 256)
# 10 images a class, ten draws each, one filter a position
PUBLISHED_METHOD = Method("thinet", compensate=False, rebuild="rescale", outputs="one")
EPOCH = Schedule(1, 1e-3, 128, weight_decay=5e-4)
TWO = Schedule(2, 1e-3, 128, weight_decay=5e-4, shape="steps", milestones=(1,))
TWELVE = Schedule(12, 1e-3, 128, weight_decay=5e-4, shape="steps", milestones=(4, 8))


@pytest.mark.parametrize(
    ("table", "name", "method", "head"),
    [
        ("Table 1 (VGG-16)", "ThiNet-Conv", PUBLISHED_METHOD, False),
        ("Table 1 (VGG-16)", "ThiNet-GAP", PUBLISHED_METHOD, True),
        ("Table 2 (VGG-16 vs other pruning methods)", "ThiNet-WS",
         replace(PUBLISHED_METHOD, selection="weight sum"), False),
        ("ThiNet_Code README (VGG-16, ratio 0.5)", "VGG-16, ThiNet_TPAMI",
         replace(PUBLISHED_METHOD, selection="thinet tpami"), False),
    ],
)  # fmt: skip
def test_vgg16_is_pruned_layer_by_layer(table: str, name: str, method: Method, head: bool) -> None:
    """conv1_1 to conv4_3: prune, an epoch (two behind conv1_2, conv2_2, conv3_3), the next; twelve behind the last."""
    (network,) = chain_of(ROWS[table, name], "imagenet").networks
    dense, *steps = path(network)
    assert dense.run is training.run_loaded
    expected: list[object] = []
    for (layer, place), width in zip(VGG.items(), WIDTHS, strict=True):
        widths = pruning.Fixed({f"features.{place}": width})
        sampling = Sampling(positions=10, seed=0)
        expected.append(pruning.Pruning(method, widths, sampling, 10_000, balanced=True, alone=True))
        if layer != "conv4_3":
            expected.append(training.Training(TWO if layer in ("conv1_2", "conv2_2", "conv3_3") else EPOCH, 0))
    if head:
        expected.append(training.Editing(ReplaceHead(), 0))
    expected.append(training.Training(TWELVE, 0))
    assert [step.params for step in steps] == expected
    # what lies between the dense network and the last may go
    assert [step.transient for step in steps] == [True] * (len(steps) - 1) + [False]


@pytest.mark.parametrize(
    ("name", "widths"),
    [("ThiNet-70", (44, 89, 179, 358)), ("ThiNet-50", (32, 64, 128, 256)), ("ThiNet-30", (19, 38, 76, 153))],
)
def test_resnet50_is_pruned_block_by_block(name: str, widths: tuple[int, ...]) -> None:
    """Both inner layers, then an epoch at 1e-4; nine at 1e-3 behind the last block."""
    (network,) = chain_of(ROWS["Table 3 (ResNet-50)", name], "imagenet").networks
    _, *steps = path(network)
    expected: list[object] = []
    for stage, count in enumerate((3, 4, 6, 3)):
        for block in range(count):
            for conv in ("conv1", "conv2"):
                kept = pruning.Fixed({f"layer{stage + 1}.{block}.{conv}": widths[stage]})
                sampling = Sampling(positions=10, seed=0)
                expected.append(pruning.Pruning(PUBLISHED_METHOD, kept, sampling, 10_000, balanced=True, alone=True))
            if (stage, block) != (3, 2):
                expected.append(training.Training(Schedule(1, 1e-4, 128, weight_decay=5e-4), 0))
    last = Schedule(9, 1e-3, 128, weight_decay=5e-4, shape="steps", milestones=(3, 6))
    assert [step.params for step in steps] == [*expected, training.Training(last, 0)]


def test_both_protocols_measure_the_same_networks() -> None:
    """One step a protocol; in it each network and its dense one, evaluated on the data under that protocol."""
    row = ROWS["Evaluation protocols", "ThiNet-Conv"]
    found = chain_of(row, "imagenet")
    (own,) = chain_of(ROWS["Table 1 (VGG-16)", "ThiNet-Conv"], "imagenet").networks
    assert [step.key for step in found.networks] == [own.key]
    assert [step.params for step in found.records] == [protocols.Under("short256"), protocols.Under("squash256")]
    for step, name in zip(found.records, ("short256", "squash256"), strict=True):
        pruned, dense = step.parents
        assert (pruned.source, dense.source) == (Source(name), Source(name))
        assert (pruned.parents[0].key, dense.parents[0].run) == (own.key, training.run_loaded)
    assert row.further("imagenet") == {name: Source(protocol=name) for name in ("short256", "squash256")}
    assert (row.scales, row.published) == (("imagenet",), {})


def test_table_4_prunes_on_one_data_set_and_tunes_on_the_other() -> None:
    """Which data each step reads: `own` are the row's, `clutter` those of before."""

    def told(name: str) -> list[tuple[str, str | None]]:
        kinds = {training.run_trained: "train", training.run_edited: "edit", pruning.run_pruned: "prune"}
        (network,) = chain_of(ROWS["Table 4 (transfer)", name], "digits").networks
        return [(kinds[step.run], step.source.scale) for step in path(network)]

    layers = [("prune", "clutter"), ("train", "clutter")] * 10
    assert told("VGG-16") == [("train", "clutter"), ("edit", None), ("train", "own")]
    assert told("ThiNet-Conv") == [("train", "clutter"), *layers, ("edit", None), ("train", "own")]
    gap = [("train", "clutter"), *layers[:-1], ("edit", None), layers[-1], ("edit", None), ("train", "own")]
    assert told("ThiNet-GAP") == gap
    assert told("FT & prune") == [*told("VGG-16"), *((kind, "own") for kind, _ in layers)]
    assert told("Train from scratch") == [("train", "own")]
    for name in ("VGG-16", "FT & prune", "Train from scratch", "ThiNet-Conv", "ThiNet-GAP"):
        row = ROWS["Table 4 (transfer)", name]
        assert row.further("digits") == {"source": Source("clutter", apart="digits")}
        assert row.further("CUB-200") == {"source": Source("imagenet")}
        (network,) = chain_of(row, "digits").networks
        edits = [step.params.edit for step in path(network) if step.run is training.run_edited]
        fresh = {
            "Train from scratch": [],
            "FT & prune": [ReplaceHead(10)],
            "ThiNet-GAP": [ReplaceHead(), NewOutputs(10)],
        }
        assert edits == fresh.get(name, [NewOutputs(10)])
        evaluation = chain_of(row, "digits").evaluations[0]
        assert (evaluation.parents[0].key, evaluation.source) == (network.key, Source("own"))


def test_networks_are_moved_as_the_author_tunes_vgg_gap() -> None:
    """3,948 iterations of 188 an epoch, a tenth of the rate behind 1,316 and 2,632."""
    (network,) = chain_of(ROWS[FIGURE4, "original"], "imagenet").networks
    dense, edited, moved = path(network)
    assert dense.run is training.run_loaded and edited.params == training.Editing(ReplaceHead(1000), 0)
    epochs, milestones = 3948 // 188, (1316 // 188, 2632 // 188)
    schedule = Schedule(epochs, 1e-3, 32, weight_decay=5e-4, shape="steps", milestones=milestones)
    assert moved.params == training.Training(schedule, 0)


@pytest.mark.parametrize("scale", ["clutter", "cifar10"])
def test_shorter_schedules_elsewhere(scale: str) -> None:
    (network,) = chain_of(ROWS["Table 1 (VGG-16)", "ThiNet-Conv"], scale).networks
    tunings = [step.params.schedule for step in path(network)[1:] if isinstance(step.params, training.Training)]
    each = {
        "clutter": Schedule(1, 0.002, 64, weight_decay=5e-4),
        "cifar10": Schedule(1, 0.005, 128, weight_decay=5e-4),
    }[scale]
    last = {
        "clutter": Schedule(4, 0.005, 64, weight_decay=5e-4, shape="cosine"),
        "cifar10": Schedule(6, 0.01, 128, weight_decay=5e-4, shape="cosine"),
    }[scale]
    images = {"clutter": 720, "cifar10": 5000}[scale]
    assert tunings == [each] * 9 + [last]
    prunings = [step.params for step in path(network)[1:] if isinstance(step.params, pruning.Pruning)]
    assert [params.images for params in prunings] == [images] * 10


def test_from_scratch_the_shape_is_trained_as_torchvision_trains_its_references() -> None:
    """90 epochs on ImageNet, VGG without batch norm at 0.01; elsewhere as the dense network."""
    row = ROWS["Table 1 (VGG-16)", "Train from scratch"]
    (network,) = chain_of(row, "imagenet").networks
    recipe = row.own_shape()
    reference = Schedule(90, 0.01, 256, weight_decay=1e-4, shape="steps", milestones=(30, 60))
    assert (network.params, network.parents) == (training.Training(reference, 0, recipe), ())
    (small,) = chain_of(row, "cifar10").networks
    assert small.params.schedule == Schedule(16, 0.1, 128, weight_decay=5e-4, shape="cosine")
    assert row.scales == ("digits", "cifar10", "imagenet")


def test_the_embedded_job_takes_one_seed() -> None:
    for (table, name), row in ROWS.items():
        if row.chain is not None and (row.scales is None or "clutter" in row.scales):
            assert row.seeds_on("clutter") == (0,), (table, name)


# --------------------------------------------------------------------------------------------------------------------
# Criteria

NOTHING = {"compensate": False, "reconstruct": False}
CRITERIA = {
    "random": Method("random", **NOTHING),
    "random, rescaled": replace(PUBLISHED_METHOD, selection="random"),
    "weight sum": Method("weight sum", **NOTHING),
    "weight sum, rescaled": replace(PUBLISHED_METHOD, selection="weight sum"),
    "APoZ": Method("apoz", **NOTHING),
    "APoZ, rescaled": replace(PUBLISHED_METHOD, selection="apoz"),
    "ThiNet, without rescaling": Method("thinet", outputs="one", **NOTHING),
    "ThiNet": PUBLISHED_METHOD,
    "ThiNet, all filters": Method("thinet", compensate=False, rebuild="rescale"),
    "ThiNet, journal version": replace(PUBLISHED_METHOD, selection="thinet tpami"),
    "ThiNet, least squares": Method("thinet", compensate=False),
    "LASSO, least squares": Method("lasso", compensate=False),
    "exact, least squares": Method("exact", compensate=False),
}

AFRESH = {
    "weight sum, rescaled, responses of the pruned network": CRITERIA["weight sum, rescaled"],
    "ThiNet, responses of the pruned network": PUBLISHED_METHOD,
}


@pytest.mark.parametrize("name", AFRESH)
def test_responses_of_the_pruned_network(name: str) -> None:
    """Each layer is pruned in the network that the one before has left; no error is told, the last step knows one's."""
    found = chain_of(ROWS["ResNet-56: criteria with and without rescaling", name], "cifar10", (0, 1, 2))
    layers = [(f"layer{stage}.{block}.conv1", 8 << stage - 1) for stage in (1, 2, 3) for block in range(9)]
    for network, seed in zip(found.networks, (0, 1, 2), strict=True):
        dense, *steps = path(network)
        assert [step.params for step in steps] == [
            pruning.Pruning(
                AFRESH[name],
                pruning.Fixed({layer: count}),
                Sampling(positions=10, seed=seed),
                5000,
                balanced=True,
                alone=True,
            )
            for layer, count in layers
        ]
        assert [step.transient for step in steps] == [True] * 26 + [False]
        assert dense.run is training.run_trained and dense.key in {one.parents[0].key for one in found.references}
    assert not any(record.run is pruning.run_pruned for record in found.records)


def test_every_criterion_without_and_with_the_same_rescaling() -> None:
    """At half of the inner filters of ResNet-56 and of conv1_1 to conv4_3 of VGG-16, three seeds."""
    for network in ("ResNet-56", "VGG-16 on CIFAR-10"):
        table = f"{network}: criteria with and without rescaling"
        names = [name for where, name in ROWS if where == table]
        assert names == ["dense", *CRITERIA, *(AFRESH if network == "ResNet-56" else ())]
        for name, method in CRITERIA.items():
            row = ROWS[table, name]
            assert (row.scale, row.seeds, row.ours) == ("cifar10", (0, 1, 2), True)
            for step, seed in zip(chain_of(row, "cifar10", (0, 1, 2)).networks, (0, 1, 2), strict=True):
                params = step.params
                assert (params.method, params.images, params.balanced, params.alone) == (method, 5000, True, False)
                assert params.sampling == Sampling(positions=10, seed=seed)
                half = {16: 8, 32: 16, 64: 32} if network == "ResNet-56" else {32: 16, 64: 32, 128: 64, 256: 128}
                assert set(params.widths.keep.values()) == set(half.values())
                assert len(params.widths.keep) == (27 if network == "ResNet-56" else 10)


# the author's names of Figure 4's criteria, and those of the rows above
FIGURE4_CRITERIA = {name: name for name in ("random", "weight sum", "APoZ", "ThiNet w/o w", "ThiNet")}
FIGURE4_CRITERIA["ThiNet w/o w"] = "ThiNet, without rescaling"


def test_figure_4_prunes_vgg_gap_layer_by_layer_and_tunes_it() -> None:
    """ThiNet's network is Table 4's `FT & prune`, 66.90 in both; the others differ by the criterion alone."""
    (there,) = chain_of(ROWS["Table 4 (transfer)", "FT & prune"], "digits").networks
    (whole,) = chain_of(ROWS[FIGURE4, "original"], "digits").networks
    for name, other in FIGURE4_CRITERIA.items():
        found = chain_of(ROWS[FIGURE4, name], "digits")
        (network,) = found.networks
        assert (network.key == there.key) is (name == "ThiNet")
        expected = [
            replace(step.params, method=CRITERIA[other]) if step.run is pruning.run_pruned else step.params
            for step in path(there)
        ]
        assert [step.params for step in path(network)] == expected
        # compared with VGG-GAP, which all start from
        assert [one.parents[0].key for one in found.references] == [whole.key]
        assert path(network)[2].key == whole.key
        row = ROWS[FIGURE4, name]
        assert (row.scales, row.seeds, row.seeds_on("digits")) == (("digits",), (0, 1, 2), (0,))
        assert row.further("CUB-200") == {"source": Source("imagenet")}


def test_figure_4_has_five_curves_of_vgg_gap_and_three_shares() -> None:
    (step,) = chain_of(ROWS[FIGURE4, "curves"], "digits").records
    assert step.run is measuring.run_points
    assert step.params.series == tuple(name for name in FIGURE4_CRITERIA for _ in range(4))
    (whole,) = chain_of(ROWS[FIGURE4, "original"], "digits").networks
    for place, (name, run) in enumerate(zip(step.params.series, step.parents, strict=True)):
        network = run.parents[0]
        if place % 4 == 0:
            assert step.params.x[place] == 1.0 and network.key == whole.key
        else:
            share = (0.8, 0.5, 0.2)[place % 4 - 1]
            prunings = [one.params for one in path(network) if one.run is pruning.run_pruned]
            assert {params.method for params in prunings} == {CRITERIA[FIGURE4_CRITERIA[name]]}
            # of the first layer's 16 filters, a quarter of VGG-16's
            assert prunings[0].widths.keep == {"features.0": int(16 * share + 1e-9)} and len(prunings) == 10
            assert network.run is training.run_trained
    assert list(step.params.x[1:4]) == sorted(step.params.x[1:4])


def _macs(share: float) -> int:
    """MACs of VGG-16's convolutions, ten of thirteen of which keep the share of their filters, counted by hand."""
    filters = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    sides = [224, 224, 112, 112, 56, 56, 56, 28, 28, 28, 14, 14, 14]
    kept = [int(share * n + 1e-9) if place < 10 else n for place, n in enumerate(filters)]
    return sum(9 * a * b * side**2 for a, b, side in zip([3, *kept], kept, sides, strict=False))


def test_the_shares_of_figure_4_are_told_by_their_flops() -> None:
    """The author's script has the shares of FLOPs; those of filters follow, to a few hundredths of a per cent."""
    found = [entry for entry in PUBLISHED if entry.table == FIGURE4 and entry.row != "original"]
    assert len(found) == 5 * 9
    for entry in found:
        name, _, share = entry.row.partition(", r = ")
        assert name in FIGURE4_CRITERIA
        stated = float(entry.note.partition(" % of the FLOPs")[0])
        assert 100 * _macs(float(share)) / _macs(1.0) == pytest.approx(stated, abs=0.03)
    (wrong,) = [entry for entry in found if not entry.verified]
    assert (wrong.row, wrong.printed) == ("random, r = 0.5", "7.96") and "typing error" in wrong.note
    assert ROWS[FIGURE4, "random"].published == {}


# --------------------------------------------------------------------------------------------------------------------
# A chain that is killed


EPOCHS = thinet.Protocol(Schedule(1, 0.1, 64), Schedule(2, 0.01, 64), images=720, each=Schedule(1, 0.01, 64))


def _short(out: Path) -> Path:
    """Four blocks of a small bottleneck network on digits, an epoch after each and two at the end; the row's file."""
    torch.set_num_threads(1)  # a forked child has no pool of threads

    def dense(scale: str, classes: int, given: bool) -> Recipe:
        shape = {"num_classes": classes, "width": 0.125, "blocks": [1, 1, 1, 1]}
        return Recipe("bottleneck_resnet", shape, (3, 16, 16))

    def chain(where: Setting, recipe: Recipe) -> Chain:
        last = thinet.ThiNet()(where, recipe, thinet.start(where, recipe, 0), 0)
        return Chain([last], [chains.measured(where, recipe, last, 0)])

    row = Row("Table 1", "short", "imagenet", None, None, dense, chain, seeds=(0,))
    paper, job = Paper("toy", "A toy", "nobody", [row], []), Job(out=out, scale="digits", device="cpu", progress=False)
    (outcome,) = runner.run(planning.plan(paper, [row], job), job, Store(out))
    assert outcome.file is not None
    return outcome.file


@pytest.mark.slow
def test_a_killed_chain_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed -9 whenever another two steps are there; what is stored is not done again, and no number differs."""
    monkeypatch.setattr(thinet, "PROTOCOLS", {(ANY, ANY): EPOCHS})
    before = torch.get_num_threads()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    file = _short(whole)
    steps = killed / "steps"
    for count in (2, 4, 6):
        process = multiprocessing.get_context("fork").Process(target=_short, args=(killed,))
        process.start()
        while process.is_alive() and len(list(steps.glob("*/step.json"))) < count:
            time.sleep(0.01)
        assert process.is_alive()
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    made = {path.name: path.stat().st_ino for path in steps.iterdir()}
    assert 6 <= len(made) < len(list((whole / "steps").iterdir()))
    again = json.loads(_short(killed).read_text())
    assert made.items() <= {path.name: path.stat().st_ino for path in steps.iterdir()}.items()
    once = json.loads(file.read_text())
    assert again["records"] == once["records"]
    (end,) = once["widths"]
    for name in ("state.safetensors", "arrays.safetensors"):
        for kept in (whole / "steps").glob(f"*/{name}"):
            assert kept.read_bytes() == (steps / kept.parent.name / name).read_bytes()
    # of the chain's networks the first and the last are left
    networks = {path.parent.name for path in steps.glob("*/state.safetensors")}
    assert len(networks) == 2 and end in networks
    torch.set_num_threads(before)


def test_the_places_of_figure_4_are_the_speed_ups() -> None:
    expected = [1.0, *(_macs(1.0) / _macs(share) for share in (0.8, 0.5, 0.2))]
    (step,) = chain_of(ROWS[FIGURE4, "curves"], "imagenet").records
    assert step.params.x == pytest.approx(expected * 5, abs=0.005)


def test_mixed_precision_reaches_every_training() -> None:
    for place in (("Table 1 (VGG-16)", "ThiNet-GAP"), ("ResNet-56: when to tune", "as many epochs at the end")):
        for amp in (False, True):
            assert {one.amp for one in schedules(chain_of(ROWS[place], "cifar10", amp=amp))} == {amp}


def test_a_curve_has_each_place_once() -> None:
    (points,) = chain_of(ROWS[FIGURE4, "curves"], "digits").records
    places = list(zip(points.params.series, points.params.x, strict=True))
    assert len(places) == len(set(places)) == 5 * (1 + 3)
