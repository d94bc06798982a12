"""DCP's declarations against the paper and its supplement: every table here is typed from notes on them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paper_rows import chain_of, path, schedules
from torch.func import functional_call
from torch.nn import functional as F

from bench import planning, runner, sizes, zoo
from bench.claims import load as load_claims
from bench.contrasts import claim_row
from bench.data.images import MemorySplit
from bench.errors import UserError
from bench.models.checkpoint import checkpoint, network
from bench.models.recipe import Recipe
from bench.models.vgg19 import CONVS
from bench.planning import Job
from bench.pruning import discrimination_steps as steps
from bench.pruning.greedy import Greedy
from bench.pruning.steps import calibration_images
from bench.registry import find, load
from bench.steps import Context
from bench.store import Store
from bench.train import steps as training
from bench.train.schedule import Schedule
from reproductions import discrimination_aware as dcp

PUBLISHED = load("discrimination_aware", Path(dcp.__file__).parent / "registry")
PAPER = dcp.paper()
DECIDED = {(d.published.table, d.published.model, d.published.row, d.published.metric): d
           for d in sizes.of_paper(PAPER, PUBLISHED)}  # fmt: skip
T1, T3, T4 = "Table 1 (CIFAR-10)", "Table 3 (ResNet-50 ImageNet, rate 0.5)", "Table 4 (LFW)"
T7, S4, S5 = "Table 7 (epsilon, DCP-Adapt, VGGNet)", "Table S4 (complexity and time)", "Table S5 (CIFAR-10 complexity)"

# printed counts: parameters, FLOPs
COUNTS = {
    (S4, "ResNet-18"): {"0%": ("1.17e7", "1.81e9"), "30%": ("8.41e6", "1.32e9"), "50%": ("6.19e6", "9.76e8"),
                        "70%": ("4.01e6", "6.49e8")},
    (S4, "ResNet-50"): {"0%": ("2.56e7", "4.09e9"), "30%": ("1.70e7", "2.63e9"), "50%": ("1.24e7", "1.82e9"),
                        "70%": ("8.71e6", "1.18e9")},
    (S5, "ResNet-56"): {"0%": ("8.56e5", "1.26e8"), "30%": ("6.08e5", "9.13e7"), "50%": ("4.31e5", "6.32e7"),
                        "70%": ("2.71e5", "3.98e7")},
    (S5, "VGGNet"): {"0%": ("2.00e7", "3.98e8"), "30%": ("1.04e7", "1.99e8"), "40%": ("7.83e6", "1.47e8")},
}  # fmt: skip
SPHERENET = {"SphereNet-4": ("12.56M", "164.61M"), "DCP (prune 50%)": ("5.89M", "45.15M"),
             "DCP (prune 65%)": ("4.06M", "24.16M")}  # fmt: skip
# printed reductions: parameters, FLOPs, and whether each agrees with the built network's
REDUCTIONS = {
    (T1, "VGGNet"): (("ThiNet", "CP", "WM", "WM+", "Random DCP", "DCP"), ("1.92", "wrong"), ("2.00", "exact")),
    (T1, "ResNet-56"): (("ThiNet", "WM", "WM+", "Random DCP", "DCP"), ("1.97", "wrong"), ("1.99", "exact")),
    (T3, "ResNet-50"): (("ThiNet", "WM", "WM+", "DCP"), ("2.06", "exact"), ("2.25", "wrong")),
}
ADAPTED = {(T1, "VGGNet"): "DCP-Adapt", (T7, "VGGNet"): "eps=0.001"}


def verdict(table: str, model: str, row: str, metric: str) -> tuple[str, str]:
    found = DECIDED[table, model, row, metric]
    return found.published.printed, str(found.verdict)


def test_printed_counts() -> None:
    for (table, model), rates in COUNTS.items():
        for rate, (params, flops) in rates.items():
            assert verdict(table, model, f"rate {rate}", "params") == (params, "exact")
            assert verdict(table, model, f"rate {rate}", "FLOPs") == (flops, "exact")
    for row, (params, flops) in SPHERENET.items():
        assert verdict(T4, "SphereNet-4", row, "params") == (params, "exact")
        assert verdict(T4, "SphereNet-4", row, "FLOPs") == (flops, "exact")


def test_printed_reductions() -> None:
    """Those that do not come out were made of rounded counts."""
    for (table, model), (rows, params, flops) in REDUCTIONS.items():
        for row in rows:
            assert verdict(table, model, row, "params_reduction") == params
            assert verdict(table, model, row, "FLOPs_reduction") == flops
    for (table, model), row in ADAPTED.items():
        assert verdict(table, model, row, "params_reduction") == ("15.58", "wrong")
        assert verdict(table, model, row, "FLOPs_reduction") == ("2.86", "exact")
    assert DECIDED[T1, "VGGNet", "DCP", "params_reduction"].value == Fraction(20_040_522, 10_361_991)
    assert DECIDED[T1, "ResNet-56", "DCP", "params_reduction"].value == Fraction(855_578, 430_634)
    assert DECIDED[T1, "VGGNet", "DCP-Adapt", "params_reduction"].value == Fraction(20_040_522, 1_284_006)
    speedup = DECIDED[T3, "ResNet-50", "DCP", "FLOPs_reduction"].value
    assert speedup is not None and 2.24 < speedup < 2.245


def test_spherenet_by_hand() -> None:
    """Weights, and an addition for each output; maps of 56x48, 28x24, 14x12 and 7x6 cells."""
    widths, cells = (3, 64, 128, 256, 512), (2688, 672, 168, 42)
    weights = [9 * inputs * outputs for inputs, outputs in pairwise(widths)]
    linear = 512 * 42 * 512
    flops = sum(w * c for w, c in zip(weights, cells, strict=True)) + linear
    flops += sum(outputs * c for outputs, c in zip(widths[1:], cells, strict=True)) + 512
    assert DECIDED[T4, "SphereNet-4", "SphereNet-4", "FLOPs"].value == Fraction(flops) == 164_613_632


def test_every_printed_size_is_decided_or_says_why_not() -> None:
    printed = [entry for entry in PUBLISHED if entry.kind == "size"]
    decided = {d.published: str(d.verdict) for d in DECIDED.values()}
    assert len(printed) == 118
    assert Counter(decided.values()) == {"exact": 53, "wrong": 17}
    left = Counter(entry.undecidable for entry in printed if entry not in decided)
    assert left == {"other method's network": 10, "network not published": 38}
    assert not any(entry.undecidable for entry in decided)


@pytest.mark.parametrize(
    ("eta", "filters"),
    [("0.3", {16: 12, 32: 23, 64: 45}), ("0.5", {16: 8, 32: 16, 64: 32}), ("0.7", {16: 5, 32: 10, 64: 20})],
)
def test_a_layer_keeps_c_minus_the_floor_of_eta_c(eta: str, filters: dict[int, int]) -> None:
    kept = dcp.rate(dcp.RESNET56, eta)
    assert len(kept) == 27
    for stage, count in enumerate((16, 32, 64), start=1):
        assert {kept[name] for name in kept if name.startswith(f"layer{stage}")} == {filters[count]}
    wide = {"0.3": (45, 90, 180, 359), "0.5": (32, 64, 128, 256), "0.7": (20, 39, 77, 154)}[eta]
    kept = dcp.rate(dcp.RESNET50, eta)
    assert len(kept) == 32
    for stage, count in enumerate(wide, start=1):
        assert {kept[name] for name in kept if name.startswith(f"layer{stage}")} == {count}


# --------------------------------------------------------------------------------------------------------------------
# What is printed for each row

ROWS = {(row.table, row.name): row for row in PAPER.rows}
GIVEN = "Methods at 2x (ResNet-56 of He et al. 2016, CIFAR-10)"
T5, T6 = "Table 5 (pruning rates)", "Table 6 (lambda, ResNet-56, prune 30%, no fine-tuning)"
S1, S2 = "Table S1 (number of losses, ResNet-56 2x)", "Table S2 (pre-trained quality, ResNet-56 2x)"
ACCURACIES = {
    **{(T1, f"VGGNet, {name}"): (value,) for name, value in (
        ("baseline", 6.01), ("ThiNet", 0.14), ("CP", 0.32), ("Slimming", 0.19), ("WM", 0.38), ("WM+", 0.11),
        ("Random DCP", 0.14), ("DCP", -0.17), ("DCP-Adapt", -0.58))},
    **{(T1, f"ResNet-56, {name}"): (value,) for name, value in (
        ("baseline", 6.20), ("ThiNet", 0.82), ("CP", 1.0), ("WM", 0.56), ("WM+", 0.45), ("Random DCP", 0.63),
        ("DCP", 0.31), ("DCP-Adapt", -0.01))},
    (T3, "baseline"): (23.99, 7.07), (T3, "ThiNet"): (1.87, 1.12), (T3, "CP"): (1.40,), (T3, "WM"): (2.81, 1.62),
    (T3, "WM+"): (2.41, 1.28), (T3, "DCP"): (1.06, 0.61),
    (T5, "ResNet-18, eta=0%"): (30.36, 11.02), (T5, "ResNet-18, eta=30%"): (30.79, 11.14),
    (T5, "ResNet-18, eta=50%"): (32.65, 12.40), (T5, "ResNet-18, eta=70%"): (35.88, 14.32),
    (T5, "ResNet-50, eta=0%"): (23.99, 7.07), (T5, "ResNet-50, eta=30%"): (23.60, 6.93),
    (T5, "ResNet-50, eta=50%"): (25.05, 7.68), (T5, "ResNet-50, eta=70%"): (27.25, 8.87),
    **{(T6, f"lambda={name}"): (value,) for name, value in (
        ("0 (L_M only)", 12.24), ("0.001", 11.89), ("0.005", 11.24), ("0.01", 11.00), ("0.05", 9.74), ("0.1", 8.87),
        ("0.5", 8.11), ("1.0", 7.84), ("1.0 (L_S only)", 8.28))},
    (T7, "eps=0.1"): (12.68,), (T7, "eps=0.01"): (6.63,), (T7, "eps=0.001"): (5.43,),
    (S1, "3 losses"): (0.31,), (S1, "5 losses"): (0.27,), (S1, "7 losses"): (0.21,), (S1, "9 losses"): (0.20,),
    **{(S2, f"{epochs} epochs{name}"): (value,) for epochs, values in (
        (120, (10.57, 1.22, 1.39, 0.39)), (240, (6.51, 0.92, 1.02, 0.36)), (400, (6.20, 0.82, 1.00, 0.31)))
        for name, value in zip(("", " / ThiNet", " / CP", " / DCP"), values, strict=True)},
}  # fmt: skip


def test_every_row_is_judged_by_what_is_printed_for_it() -> None:
    found = {}
    for place, row in ROWS.items():
        if row.published:
            entries = []
            for name, metric, *model in row.published.values():
                entries.append(find(PUBLISHED, row.table, name, metric, **({"model": model[0]} if model else {})))
            found[place] = tuple(entry.value for entry in entries if entry is not None)
            gap = all(entry is not None and entry.unit == "pp" for entry in entries)
            assert all(("increase" in ours) == gap for ours in row.published)
    assert found == ACCURACIES


def test_the_adapted_widths_are_those_of_table_s6() -> None:
    """Printed are the inputs of each convolution; those behind the first are the filters of the one before."""
    printed = [entry for entry in PUBLISHED if entry.table == "Table S6 (DCP-Adapt VGGNet widths)"]
    names = [
        f"conv{stage}-{number}" for stage, count in ((1, 2), (2, 2), (3, 4), (4, 8)) for number in range(1, count + 1)
    ]
    assert [entry.row for entry in printed] == names and printed[0].value == 3
    assert [entry.value for entry in printed[1:]] == list(dcp.ADAPT)


def test_every_claim_of_the_paper_has_rows_that_can_run() -> None:
    claims = [claim for claim in load_claims(Path(dcp.__file__).parent / "registry") if claim.paper == PAPER.key]
    assert len(claims) == 21
    assert [claim_row(claim, PAPER.rows).missing for claim in claims] == [None] * 21


# --------------------------------------------------------------------------------------------------------------------
# Algorithm 1


@pytest.mark.parametrize(
    ("blocks", "losses", "behind"),
    [
        (27, 3, [7, 14, 21]),  # ResNet-56, ResNet-50 and ResNet-18 in the released code
        (16, 3, [5, 10, 15]),
        (8, 2, [3, 6]),
        (27, 5, [5, 10, 15, 20, 25]),
        (27, 7, [4, 8, 12, 16, 20, 24, 26]),  # none behind the last block
        (27, 9, [3, 6, 9, 12, 15, 18, 21, 24, 26]),
        (9, 1, [5]),  # ResNet-20, and VGGNet's convolutions
        (9, 2, [4, 8]),
        (9, 3, [3, 6, 8]),
        (16, 2, [6, 12]),
    ],
)
def test_places_of_the_losses(blocks: int, losses: int, behind: list[int]) -> None:
    assert steps.places(blocks, losses) == behind


def test_two_losses_do_not_share_a_block() -> None:
    """Of seven among nine blocks the released code would put four behind the eighth."""
    with pytest.raises(UserError, match="ask for fewer"):
        steps.places(9, 7)


GREEDY = Greedy(alpha=1.0, score="frobenius", lr=0.01, momentum=0.9, weight_decay=1e-4, steps=1)


def test_resnet_56_is_tuned_and_pruned_segment_by_segment() -> None:
    """Losses behind blocks 7, 14 and 21; half of each layer; O_b of the dense network; an epoch each, and 4."""
    (last,) = chain_of(ROWS[T1, "ResNet-56, DCP"], "cifar10").networks
    dense, *found = path(last)
    alone = Schedule(30, 0.1, 128, weight_decay=5e-4, nesterov=True, shape="cosine")
    recipe = Recipe("cifar_preact_resnet56", {"num_classes": 10}, (3, 32, 32))
    assert dense.params == training.Training(alone, 0, recipe)
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9)]
    each = Schedule(1, 0.02, 128, weight_decay=5e-4, nesterov=True, shape="cosine")
    expected: list[object] = []
    for stage, (first, end) in enumerate(((0, 7), (7, 14), (14, 21), (21, 27)), start=1):
        position = names[end - 1] if end < 27 else ""
        expected.append(steps.Tuning({position: 1.0} if position else {}, each, 0, stage))
        half = {"1": 8, "2": 16, "3": 32}
        keep = {f"{name}.conv1": half[name[5]] for name in names[first:end]}
        expected.append(steps.Selecting(position, keep, GREEDY, 512, 0, 128))
    final = Schedule(4, 0.05, 128, weight_decay=5e-4, nesterov=True, shape="cosine")
    assert [step.params for step in found] == [*expected, training.Training(final, 0)]
    for tuned, selected in zip(found[0:8:2], found[1:8:2], strict=True):
        assert selected.parents == (tuned, tuned, dense)


def test_resnet_56_with_given_weights() -> None:
    """He et al.'s network: one loss inside, the same rate, an epoch each and one, the dense network untouched."""
    weights = "0" * 64
    for name in ("baseline", "tuned as long", "ThiNet", "CP", "WM", "WM+", "Random DCP", "DCP"):
        (last,) = chain_of(ROWS[GIVEN, name], "cifar10", weights=weights).networks
        dense, *found = path(last)
        assert dense.params == training.Loading(Recipe("cifar_resnet56", {"num_classes": 10}, (3, 32, 32)), weights)
        epochs = [step.params.schedule.epochs for step in found if hasattr(step.params, "schedule")]
        others = {"baseline": [], "tuned as long": [3], "ThiNet": [3], "CP": [3], "WM": [3]}
        assert epochs == others.get(name, [1, 1, 1])
        rates = {step.params.schedule.lr for step in found if hasattr(step.params, "schedule")}
        assert rates == ({0.01} if found else set())
    (last,) = chain_of(ROWS[GIVEN, "DCP"], "cifar10", weights=weights).networks
    chosen = [step.params for step in path(last) if isinstance(step.params, steps.Selecting)]
    assert [(params.position, params.images) for params in chosen] == [("layer2.4", 256), ("", 256)]
    kept = {name: count for params in chosen for name, count in params.keep.items()}
    assert kept == {f"layer{stage}.{block}.conv1": 4 * 2**stage for stage in (1, 2, 3) for block in range(9)}


def test_the_released_code_tunes_once() -> None:
    """With all losses, weighed by their place (two layers a block, and one); the tuned network is the baseline; norms
    are summed over outputs, and squares are not halved.
    """
    (last,) = chain_of(ROWS[T1, "ResNet-56, DCP, one-off"], "cifar10").networks
    _, tuned, *selected, final = path(last)
    weights = {"layer1.6": (15 / 43) ** 2, "layer2.4": (29 / 43) ** 2, "layer3.2": 1.0}
    assert tuned.params.weights == pytest.approx(weights)
    assert tuned.params.schedule.epochs == 4 and final.params.schedule.epochs == 4
    assert [step.params.position for step in selected] == [*weights, ""]
    assert all(step.parents[1:] == (tuned, tuned) for step in selected)
    assert {step.params.greedy for step in selected} == {replace(GREEDY, score="l21", reconstruction=2.0)}


@pytest.mark.parametrize(
    ("network", "losses", "weights"),
    [
        (dcp.RESNET50, 3, [(16 / 46) ** 2, (31 / 46) ** 2, 1.0]),  # three layers a block
        (dcp.RESNET18, 2, [(7 / 13) ** 2, 1.0]),
        (dcp.VGGNET, 2, [(7 / 13) ** 2, 1.0]),
    ],
)
def test_the_released_code_s_weights_of_the_losses(network: Recipe, losses: int, weights: list[float]) -> None:
    assert list(dcp.weights_of(network, losses).values()) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("scale", "staged", "at_once"),
    [
        ("clutter", [2, 2, 2, 2, 3], [11]),
        ("cifar10", [1, 1, 1, 1, 4], [8]),
        ("imagenet", [20, 20, 20, 20, 60], [60]),  # on top, as in the paper
    ],
)
def test_methods_without_stages_are_tuned_as_long_in_one_go(scale: str, staged: list[int], at_once: list[int]) -> None:
    table, prefix = (T3, "") if scale == "imagenet" else (T1, "ResNet-56, ")
    more = () if scale == "imagenet" else ("Random DCP", "tuned as long")
    for name in ("ThiNet", "CP", "WM", "WM+", "DCP", *more):
        (last,) = chain_of(ROWS[table, prefix + name], scale).networks
        found = [step.params.schedule.epochs for step in path(last)[1:] if hasattr(step.params, "schedule")]
        assert found == (staged if name in ("WM+", "DCP", "Random DCP") else at_once), name


def test_vggnet_with_two_losses_has_three_stages() -> None:
    for name, epochs in {"DCP": [2, 2, 2, 3], "WM": [9], "tuned as long": [9]}.items():
        (last,) = chain_of(ROWS[T1, f"VGGNet, {name}"], "clutter").networks
        assert [step.params.schedule.epochs for step in path(last)[1:] if hasattr(step.params, "schedule")] == epochs


@pytest.mark.parametrize(("asked", "epochs"), [(False, [5, 18]), (True, [100, 400])])
def test_slimming_has_a_quarter_before_the_removal(asked: bool, epochs: list[int]) -> None:
    """Of 23 epochs: VGGNet has two losses, so three stages of one and 20."""
    (slim,) = chain_of(ROWS[T1, "VGGNet, Slimming"], "cifar10", paper_schedule=asked).networks
    assert [step.params.schedule.epochs for step in path(slim)[1:] if hasattr(step.params, "schedule")] == epochs


def test_the_paper_s_schedule_on_cifar_10() -> None:
    """400 epochs divided by ten behind 160 and 240, dense and at the end of all methods; channels by all images."""
    paper_s = Schedule(400, 0.1, 128, weight_decay=1e-4, nesterov=True, shape="steps", milestones=(160, 240))
    # a quarter of the released code's 100 epochs (0.1, divided by ten behind 40 and 60) before each selection
    before = replace(paper_s, epochs=25, milestones=(10, 15))
    (last,) = chain_of(ROWS[T1, "ResNet-56, DCP"], "cifar10", paper_schedule=True).networks
    dense, *found = path(last)
    assert dense.params.schedule == last.params.schedule == paper_s
    assert [step.params.schedule for step in found[0:8:2]] == [before] * 4
    assert {step.params.images for step in found[1:8:2]} == {50_000}
    (last,) = chain_of(ROWS[T1, "ResNet-56, DCP, one-off"], "cifar10", paper_schedule=True).networks
    assert path(last)[1].params.schedule == replace(paper_s, epochs=100, milestones=(40, 60))
    for name in ("ThiNet", "CP", "WM"):
        (last,) = chain_of(ROWS[T1, f"ResNet-56, {name}"], "cifar10", paper_schedule=True).networks
        assert last.params.schedule == paper_s
    (last,) = chain_of(ROWS[T1, "ResNet-56, tuned as long"], "cifar10", paper_schedule=True).networks
    assert last.params.schedule == replace(paper_s, epochs=500, milestones=(200, 300))
    (slim,) = chain_of(ROWS[T1, "VGGNet, Slimming"], "cifar10", paper_schedule=True).networks
    assert [step.params.schedule for step in path(slim)[1::2]] == [
        replace(before, epochs=100, milestones=(40, 60)),
        paper_s,
    ]
    # elsewhere no other schedule stands beside the first
    for scale in ("clutter", "imagenet"):
        row = ROWS[T1, "ResNet-56, DCP"] if scale == "clutter" else ROWS[T3, "DCP"]
        assert len({chain_of(row, scale, paper_schedule=asked).networks[0].key for asked in (False, True)}) == 1


@pytest.mark.parametrize("epochs", [120, 240, 400])
def test_table_s2_trains_the_dense_network_for_so_many_of_the_paper_s_epochs(epochs: int) -> None:
    """10.57 % behind 120 at a rate of 0.1, 6.51 % behind 80 more at 0.01: the divisions are not moved."""
    (last,) = chain_of(ROWS[S2, f"{epochs} epochs / DCP"], "cifar10").networks
    schedule = Schedule(epochs, 0.1, 128, weight_decay=1e-4, nesterov=True, shape="steps", milestones=(160, 240))
    assert path(last)[0].params.schedule == schedule


@pytest.mark.parametrize(
    "name", ["ResNet-56, DCP", "ResNet-56, DCP, one-off", "ResNet-56, WM+", "ResNet-56, CP", "VGGNet, Slimming"]
)
def test_mixed_precision_reaches_every_training(name: str) -> None:
    for amp in (False, True):
        assert {one.amp for one in schedules(chain_of(ROWS[T1, name], "cifar10", amp=amp))} == {amp}


def test_on_imagenet_the_tuning_at_the_end_is_the_paper_s() -> None:
    """60 epochs, divided by ten behind 36, 48 and 54, of ResNet-18 with its three segments too."""
    schedule = Schedule(60, 0.01, 256, weight_decay=1e-4, nesterov=True, shape="steps", milestones=(36, 48, 54))
    for place in ((T3, "DCP"), (T3, "ThiNet"), (T5, "ResNet-18, eta=50%")):
        assert chain_of(ROWS[place], "imagenet").networks[0].params.schedule == schedule


def test_vggnet_has_two_losses_and_slimming_reaches_the_printed_macs() -> None:
    (last,) = chain_of(ROWS[T1, "VGGNet, WM+"], "cifar10").networks
    steps_ = path(last)[1:-1]
    tunings, choices = steps_[0::2], steps_[1::2]
    assert [list(step.params.weights) for step in tunings] == [[CONVS[5]], [CONVS[11]], []]
    assert [list(step.params.widths.keep) for step in choices] == [
        list(CONVS[:5]),
        list(CONVS[5:11]),
        list(CONVS[11:15]),
    ]
    assert {step.params.method.selection for step in choices} == {"weight sum"}
    (slim,) = chain_of(ROWS[T1, "VGGNet, Slimming"], "cifar10").networks
    assert slim.parents[0].params.speedup == 2.04


def test_lambda_and_the_number_of_losses_vary_alone() -> None:
    lambdas = {f"lambda={value}": {"alpha": float(value)} for value in ("0.001", "0.005", "0.01", "0.05", "0.1", "0.5")}
    lambdas |= {
        "lambda=0 (L_M only)": {"alpha": 0.0},
        "lambda=1.0": {},
        "lambda=1.0 (L_S only)": {"reconstruction": 0.0},
    }
    for name, values in lambdas.items():
        (last,) = chain_of(ROWS[T6, name], "cifar10").networks
        found = path(last)[1:]
        assert isinstance(last.params, steps.Selecting) and len(found) == 8
        greedy = {step.params.greedy for step in found if isinstance(step.params, steps.Selecting)}
        assert greedy == {replace(GREEDY, **values)}
    ends = set()
    for losses in (3, 5, 7, 9):
        (last,) = chain_of(ROWS[S1, f"{losses} losses"], "cifar10").networks
        tunings = [step.params for step in path(last) if isinstance(step.params, steps.Tuning)]
        assert [len(params.weights) for params in tunings] == [*([1] * losses), 0]
        assert [params.stage for params in tunings] == list(range(1, losses + 2))
        ends.add((last.params.schedule, *{params.schedule for params in tunings}))
    assert len(ends) == 1


def test_the_trends_on_resnet20_are_short() -> None:
    """8 epochs of a ResNet-20, one before each selection on 512 images, 3 at the end of Table S1's; nothing else."""
    wanted = {
        "lambda=0 (L_M only)": {"alpha": 0.0},
        "lambda=0.05": {"alpha": 0.05},
        "lambda=1.0": {},
        "lambda=1.0 (L_S only)": {"reconstruction": 0.0},
    }
    table = "Lambda on ResNet-20 (prune 30%, no fine-tuning)"
    assert [name for place, name in ROWS if place == table] == list(wanted)
    for name, values in wanted.items():
        row = ROWS[table, name]
        assert row.seeds == (0, 1, 2)
        for last in chain_of(row, "cifar10").networks:
            first, *rest = path(last)
            assert first.params.recipe.builder == "cifar_preact_resnet20" and first.params.schedule.epochs == 8
            picks = [step.params for step in rest if isinstance(step.params, steps.Selecting)]
            tuned = [step.params.schedule.epochs for step in rest if isinstance(step.params, steps.Tuning)]
            # 16, 32 and 64 channels of which floor(0.3 c) go, in segments of three, three, two blocks and one
            assert [Counter(one.keep.values()) for one in picks] == [{12: 3}, {23: 3}, {45: 2}, {45: 1}]
            assert {(one.greedy, one.images) for one in picks} == {(replace(GREEDY, **values), 512)}
            assert tuned == [1, 1, 1, 1] and len(rest) == 8
    table = "Number of losses on ResNet-20 (2x)"
    assert [name for place, name in ROWS if place == table] == ["1 loss", "2 losses", "3 losses", "baseline"]
    ends = {
        "1 loss": ["layer2.1"],
        "2 losses": ["layer2.0", "layer3.1"],
        "3 losses": ["layer1.2", "layer2.2", "layer3.1"],
    }
    for name, positions in ends.items():
        *stages, last = path(chain_of(ROWS[table, name], "cifar10").networks[0])
        inside = [list(step.params.weights) for step in stages if isinstance(step.params, steps.Tuning)]
        assert inside == [*([end] for end in positions), []]
        assert last.params.schedule.epochs == 3


def test_the_embedded_job_runs_table_1_with_one_seed() -> None:
    here = [place for place, row in ROWS.items() if row.chain and (row.scales is None or "clutter" in row.scales)]
    names = ("baseline", "tuned as long", "ThiNet", "CP", "WM", "WM+", "Random DCP", "DCP", "DCP-Adapt")
    vgg = [(T1, f"VGGNet, {name}") for name in ("baseline", "tuned as long", "WM", "DCP")]
    assert here == [*vgg, *((T1, f"ResNet-56, {name}") for name in names)]
    assert all(row.seeds_on("clutter") == (0,) for (table, _), row in ROWS.items() if table == T1)


# --------------------------------------------------------------------------------------------------------------------
# The steps


def test_a_segment_from_data_to_a_smaller_network(tmp_path: Path) -> None:
    """Tuning moves network and classifier; the selection reads the classifier, the labels and the dense network."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    train = MemorySplit(pixels, torch.arange(40) % 4, (0.5,) * 3, (0.5,) * 3, 1, False)
    data = SimpleNamespace(train=train, classes=("a", "b", "c", "d"))
    recipe = Recipe("cifar_preact_resnet20", {"num_classes": 4, "width": 0.25}, (3, 8, 8))
    dense = checkpoint(recipe.build(), recipe)
    context = Context(lambda: data, "cpu", False, tmp_path, label="test")
    tuning = steps.Tuning({"layer1.2": 1.0}, Schedule(1, 0.05, 20), 3)
    tuned = steps.run_tuned(context, [dense], tuning)
    assert {name.partition(".")[0] for name in tuned.arrays} == {"layer1/2"}
    assert all(not torch.equal(dense.state[f"layer{s}.2.conv2.weight"], tuned.state[f"layer{s}.2.conv2.weight"])
               for s in (1, 2, 3))  # fmt: skip
    assert float(tuned.arrays["layer1/2.norm.weight"].std()) > 0.0
    again, other = (
        steps.run_tuned(Context(lambda: data, "cpu", False, tmp_path / name, label="test"), [dense], params)
        for name, params in (("again", tuning), ("other", replace(tuning, stage=2)))
    )
    assert all(torch.equal(tuned.state[name], again.state[name]) for name in tuned.state)
    # another stage sees the images in another order, cropped and mirrored otherwise
    assert not torch.equal(tuned.state["conv1.weight"], other.state["conv1.weight"])
    (epoch,) = tuned.facts["history"]
    assert epoch["loss"] == pytest.approx(epoch["loss_f"] + epoch["loss_layer1/2"], rel=1e-5)
    assert min(epoch["loss_f"], epoch["loss_layer1/2"]) > 0.5  # of four classes, hardly learned: about ln 4
    params = steps.Selecting("layer1.2", {"layer1.0.conv1": 2, "layer1.2.conv1": 3}, dcp.GREEDY, 24, 3, 10)
    small = steps.run_selected(context, [tuned, tuned, dense], params)
    net, smaller = network(small)
    assert smaller.widths == {"layer1.0.conv1": 2, "layer1.2.conv1": 3}
    # the first layer's loss without channels, by hand on the same images
    images = calibration_images(data, 24, 3, 10, balanced=True)
    model, _ = network(tuned)
    original, _ = network(dense)
    total = 0.0
    for x, places in zip(images, images.chunks, strict=True):
        maps: dict[str, torch.Tensor] = {}
        hooks = [
            net_.get_submodule(name).register_forward_hook(lambda m, i, o, key=key, into=maps: into.update({key: o}))
            for net_, name, key in (
                (model, "layer1.0.conv2", "now"), (original, "layer1.0.conv2", "then"), (model, "layer1.2", "end"))
        ]  # fmt: skip
        with torch.no_grad():
            original(x)
            functional_call(model, {"layer1.0.conv2.weight": torch.zeros(4, 4, 3, 3)}, (x,))
        for hook in hooks:
            hook.remove()
        head = {name.partition("/2.")[2]: value for name, value in tuned.arrays.items()}
        mean, var = head["norm.running_mean"], head["norm.running_var"]
        seen = F.batch_norm(maps["end"], mean, var, head["norm.weight"], head["norm.bias"])
        logits = seen.relu().mean((2, 3)) @ head["linear.weight"].T + head["linear.bias"]
        loss = F.cross_entropy(logits, train.labels[places]) + F.mse_loss(maps["now"], maps["then"]) / 2.0
        total += len(places) / 24 * float(loss)
    assert small.facts["layers"][0]["first_loss"] == pytest.approx(total, rel=1e-4)
    assert [len(layer["order"]) for layer in small.facts["layers"]] == [2, 3]
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 4)


@pytest.mark.slow
def test_rows_of_both_selections_reach_their_row_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From data to row files and a page, with an epoch for each stage: what each row keeps, layer by layer."""
    once = Schedule(1, 0.05, 64)
    short = dcp.Protocol(once, replace(once, epochs=5), images=20, each=once, batch=20, walk=80)
    monkeypatch.setattr(dcp, "PROTOCOLS", {(zoo.ANY, zoo.ANY): short})
    job = Job(out=tmp_path, scale="digits", device="cpu", seed=0, progress=False)
    names = ("DCP", "DCP-Adapt", "ThiNet")
    chosen = [ROWS[T1, f"ResNet-56, {name}"] for name in names]
    outcomes = runner.run(planning.plan(PAPER, chosen, job), job, Store(tmp_path))
    assert {outcome.status for outcome in outcomes} == {runner.OK}, outcomes
    for name, outcome in zip(names, outcomes, strict=True):
        assert outcome.file is not None
        found = json.loads(outcome.file.read_text())
        (widths,) = found["widths"].values()
        inner = [count for layer, count in widths.items() if layer.endswith("conv1")]
        if name != "DCP-Adapt":  # of ResNet-20 at half of its width (8, 16, 32) half is left
            assert Counter(inner) == {4: 3, 8: 3, 16: 3}, name
        # errors of a reconstruction: the choice by gradients has none
        kept = [len(reports) for reports in found["layers"].values()]
        assert kept == ([9] if name == "ThiNet" else []), name
        measured = {record["metric"] for record in found["records"]}
        assert {"top1_acc", "top1_change", "speedup"} <= measured, name
