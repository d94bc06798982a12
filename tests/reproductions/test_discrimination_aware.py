"""DCP's declarations against the paper and its supplement: every table here is typed from notes on them."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from bench import sizes
from bench.registry import load
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
    (T1, "VGGNet"): (("ThiNet", "WM", "WM+", "Random DCP", "DCP"), ("1.92", "wrong"), ("2.00", "exact")),
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
    weights = [9 * inputs * outputs for inputs, outputs in zip(widths, widths[1:], strict=False)]
    linear = 512 * 42 * 512
    flops = sum(w * c for w, c in zip(weights, cells, strict=True)) + linear
    flops += sum(outputs * c for outputs, c in zip(widths[1:], cells, strict=True)) + 512
    assert DECIDED[T4, "SphereNet-4", "SphereNet-4", "FLOPs"].value == Fraction(flops) == 164_613_632


def test_every_printed_size_is_decided_or_says_why_not() -> None:
    printed = [entry for entry in PUBLISHED if entry.kind == "size"]
    decided = {d.published: str(d.verdict) for d in DECIDED.values()}
    assert len(printed) == 118
    assert Counter(decided.values()) == {"exact": 52, "wrong": 16}
    left = Counter(entry.undecidable for entry in printed if entry not in decided)
    assert left == {"other method's network": 12, "network not published": 38}
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
