"""Discrimination-aware Channel Pruning for Deep Neural Networks (Zhuang et al.; NeurIPS 2018).

The printed sizes, decided from built networks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from fractions import Fraction

from torch import nn

from bench.chains import shape_of
from bench.cli import main
from bench.models.recipe import Recipe
from bench.models.vgg19 import CONVS
from bench.pruning import steps as pruning
from bench.pruning import surgery
from bench.rows import SIZE_ALONE, Paper, Row

DEVIATIONS = [
    "Table 1's reductions of the parameters are ratios of the rounded counts of Table S5: VGGNet 2.00e7 / 1.04e7 = 1.92 "
    "(exactly 20,040,522 / 10,361,991 = 1.93), DCP-Adapt 2.00e7 / 1,284,006 = 15.58 (15.61). ResNet-56's 1.97 does "
    "not follow from Table S5 (8.56e5 / 4.31e5 = 1.99; exactly 855,578 / 430,634 = 1.99). Table 3's 2.25 is 4.09e9 / "
    "1.82e9 (exactly 4,089,184,256 / 1,822,003,200 = 2.24).",
    "SphereNet-4 is the four-layer network of SphereFace (Liu et al. 2017) on images of 112x96; the printed FLOPs add "
    "one for each output of a layer with a bias, and the pruned ones have fewer inputs of the fully connected layer "
    "too.",
    "MobileNet on 32x32 images is not described (where it strides, what of it is pruned): its sizes are not decided.",
]

TABLE1, TABLE3 = "Table 1 (CIFAR-10)", "Table 3 (ResNet-50 ImageNet, rate 0.5)"
TABLE4, TABLE7 = "Table 4 (LFW)", "Table 7 (epsilon, DCP-Adapt, VGGNet)"
TABLE_S4, TABLE_S5 = "Table S4 (complexity and time)", "Table S5 (CIFAR-10 complexity)"


# --------------------------------------------------------------------------------------------------------------------
# Shapes


def rate(recipe: Recipe, eta: str) -> dict[str, int]:
    """Filters kept by producer: c - floor(eta c) of every layer that only one convolution reads (the released code)."""
    model = recipe.build("meta" if ":" not in recipe.builder else "cpu")
    filters = {name: surgery.convolution(model, name).out_channels for name in pruning.prunable(recipe)[0]}
    return {name: count - int(Fraction(eta) * count) for name, count in filters.items()}


def sphere4() -> nn.Module:
    """SphereNet-4 (SphereFace, Liu et al. 2017): four 3x3 convolutions of stride 2 on 3 x 112 x 96, 512 features."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256), (256, 512)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.PReLU(outputs)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 7 * 6, 512))


VGGNET = Recipe("cifar_vgg19_bn", {}, (3, 32, 32))
RESNET56 = Recipe("cifar_preact_resnet56", {}, (3, 32, 32))
RESNET18 = Recipe("resnet18", {}, (3, 224, 224))
RESNET50 = Recipe("resnet50", {}, (3, 224, 224))
SPHERE = Recipe("reproductions.discrimination_aware:sphere4", {}, (3, 112, 96))
# Table S6: the input channels of conv1-2 to conv4-8, hence the filters of conv1-1 to conv4-7
ADAPT = (56, 64, 128, 115, 199, 177, 123, 52, 59, 46, 31, 37, 37, 44, 31)


def pruned_shape(recipe: Recipe, eta: str) -> Recipe:
    """The network at a pruning rate, first channels kept."""
    return shape_of(recipe, rate(recipe, eta))


def adapted_shape() -> Recipe:
    """DCP-Adapt's VGGNet."""
    return shape_of(VGGNET, dict(zip(CONVS, ADAPT, strict=False)))


def sphere_shape(eta: str) -> Recipe:
    """SphereNet-4 at a pruning rate: all four convolutions, the last one's channels as inputs of the linear layer."""
    filters = {f"{2 * place}": count for place, count in enumerate((64, 128, 256, 512))}
    return shape_of(SPHERE, {name: count - int(Fraction(eta) * count) for name, count in filters.items()})


# --------------------------------------------------------------------------------------------------------------------
# Rows


def _sizes(row: str, model: str) -> Mapping[str, list[tuple[str, ...]]]:
    """A row's printed sizes where a table has counts."""
    return {"macs": [(row, "FLOPs", model)], "params": [(row, "params", model)]}


def _reductions(row: str, model: str) -> Mapping[str, list[tuple[str, ...]]]:
    """A row's printed sizes where a table has ratios to the dense network."""
    return {"speedup": [(row, "FLOPs_reduction", model)], "params_reduction": [(row, "params_reduction", model)]}


def table4() -> list[Row]:
    """SphereNet-4 on LFW: its sizes."""
    rows = []
    for name, eta in (("SphereNet-4", "0"), ("DCP (prune 50%)", "0.5"), ("DCP (prune 65%)", "0.65")):
        sizes = _sizes(name, "SphereNet-4")
        rows.append(Row(TABLE4, name, "LFW", lambda eta=eta: sphere_shape(eta), missing=SIZE_ALONE, sizes=sizes))
    return rows


def complexity() -> list[Row]:
    """Tables S4 and S5: sizes of all networks at all rates."""
    rows = []
    for table, scale, model, recipe, etas in (
        (TABLE_S4, "imagenet", "ResNet-18", RESNET18, ("0", "0.3", "0.5", "0.7")),
        (TABLE_S4, "imagenet", "ResNet-50", RESNET50, ("0", "0.3", "0.5", "0.7")),
        (TABLE_S5, "cifar10", "ResNet-56", RESNET56, ("0", "0.3", "0.5", "0.7")),
        (TABLE_S5, "cifar10", "VGGNet", VGGNET, ("0", "0.3", "0.4")),
    ):
        for eta in etas:
            sizes = _sizes(f"rate {100 * Fraction(eta)}%", model)
            shape = pruned_shape(recipe, eta)
            name = f"{model}, rate {100 * Fraction(eta)}%"
            rows.append(Row(table, name, scale, shape, missing=SIZE_ALONE, sizes=sizes))
    return rows


def sizes_alone() -> list[Row]:
    """Tables 1, 3 and 7."""
    rows = []
    for table, scale, model, recipe, eta, names in (
        (TABLE1, "cifar10", "VGGNet", VGGNET, "0.3", ("ThiNet", "WM", "WM+", "Random DCP", "DCP")),
        (TABLE1, "cifar10", "ResNet-56", RESNET56, "0.5", ("ThiNet", "WM", "WM+", "Random DCP", "DCP")),
        (TABLE3, "imagenet", "ResNet-50", RESNET50, "0.5", ("ThiNet", "WM", "WM+", "DCP")),
    ):
        shape = pruned_shape(recipe, eta)
        for name in names:
            label = name if table == TABLE3 else f"{model}, {name}"
            rows.append(Row(table, label, scale, shape, missing=SIZE_ALONE, sizes=_reductions(name, model)))
    for table, name, printed in ((TABLE1, "VGGNet, DCP-Adapt", "DCP-Adapt"), (TABLE7, "eps=0.001", "eps=0.001")):
        sizes = _reductions(printed, "VGGNet")
        rows.append(Row(table, name, "cifar10", adapted_shape(), missing=SIZE_ALONE, sizes=sizes))
    return rows


def paper() -> Paper:
    """The paper as the harness sees it."""
    title = "Discrimination-aware Channel Pruning for Deep Neural Networks"
    rows = [*sizes_alone(), *table4(), *complexity()]
    return Paper("discrimination_aware", title, "Zhuang et al.; NeurIPS 2018; arXiv 1810.11809", rows, DEVIATIONS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "discrimination_aware", *sys.argv[1:]]))
