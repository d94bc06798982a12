"""Channel Pruning for Accelerating Very Deep Neural Networks (He, Zhang, Sun; ICCV 2017; arXiv 1707.06168).

Layer by layer, from the first to the last, a convolution loses input channels, and with them go the filters that make
them.  X_i are the inputs of channel i in the network *as pruned so far*, Y the responses of the *original* network
(section 3.2), W_i the channel's weights, c' the channels that may stay:

    beta = argmin |Y - sum_i beta_i X_i W_i'|^2 + lambda |beta|_1,  |beta|_0 <= c'      bench.pruning.selection.lasso
    W    = argmin |Y - sum_{i: beta_i != 0} X_i W_i'|^2                      bench.pruning.reconstruction.reconstruct

first which channels, by LASSO, then the weights of those that stay, by least squares (section 3.1);
:func:`bench.pruning.layerwise.prune` walks through the layers.  On a residual branch Y makes good what the shortcut has
lost, and a sampler in front of the branch picks the channels that its first convolution reads (section 3.3).

Reproduced here: Table 1 (VGG-16 at 2x, 4x, 5x), Table 4 (the same shapes from scratch), Table 6 (ResNet-50), Table 8
(ResNet-56 on CIFAR-10), Figure 4 (single layers).  What selection, widths and reconstruction are worth on their own,
and what brings a pruned network back, are studies beside it (``selection_study.py``, ``fine_tuning_study.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from bench.chains import Prune, dense, from_scratch, gmacs, measured_chain, shape_of
from bench.cli import main
from bench.models.recipe import Recipe
from bench.models.vgg import CONVS
from bench.protocols import ANY, Protocol, cosine, protocol
from bench.pruning import steps as pruning
from bench.pruning import surgery
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.rows import SIZE_ALONE, Chain, Paper, Row, Setting
from bench.steps import Step
from bench.train.distillation import Distillation
from bench.train.schedule import Schedule
from bench.zoo import TRAINING, resnet50, resnet56, vgg16, vgg_layers

DEVIATIONS = [
    "LASSO: the paper raises lambda until at most c' channels are left, the released code bisects it on 400 sampled "
    "rows and stops within 10 % above c'; ours walks the whole LASSO path (LARS) on the Gram matrix of all rows and "
    "takes exactly c'. One intercept per output instead of the code's single one.",
    "The norm constraint |W_i| = 1 and the alternation of LASSO and least squares are left out, as in the released "
    "code.",
    "The old bias is part of the regression target; the released code drops it in plain channel pruning.",
    "Least squares: the paper has no ridge. Ours pulls towards the layer's old weights, one factor a channel refitted "
    "(ThiNet's small least squares), by a ridge from 1e-6 to 1e4 of the mean squared input or without end (the old "
    "weights themselves), chosen for each layer on held-out training images; fewer than 100 images are cross-validated "
    "in five parts. 10 positions for each image, drawn for each image; the released code shares them in a batch of 10.",
    "Calibration images come from the training split (5,000 on ImageNet); the released sampling layer names the "
    "validation list.",
    "Widths: the paper gives the ratio 1 : 1.5 of shallow to deep layers and leaves conv5 alone; we scale both until "
    "the conv-MAC speed-up is met. The released widths are rows of their own: they give 2.129x, 3.868x and 4.525x.",
    "Fine-tuning on ImageNet: SGD, 1e-5, batch 128, 10 epochs, no weight decay (paper, from memory); the released "
    "solver runs 20 epochs.",
    "Weights: torchvision's VGG-16 and ResNet-50 v1.5 unless weights are given; the paper's are Caffe's (ResNet-50 v1, "
    "stride in the first 1x1).",
    "Batch norm is folded into the layer in front of it everywhere, so that LASSO weighs each output by its "
    "(gamma / sigma)^2; the released code does so for ResNet-56, but prunes ResNet-50 unmerged (`res.bn`).",
    "Readers that keep all channels are not refitted, but by `full` (ours). How plain Channel Pruning went through a "
    "network is not released: lib/net.py (ethanhe42/channel-pruning @1d66cff) calls its `dictionary_kernel` in `R3` "
    "alone, in between factorisations. Below it `dictionary` (lib/decompose.py) would refit them: at rank == c it "
    "selects nothing and still solves the least squares. It matters where layers before were pruned: for what reads "
    "conv1_2, conv2_2, conv3_3 and conv4_3 of VGG-16 at the released 2x and 4x, branch2b in eight of ResNet-50's 16 "
    "blocks, and each block's first convolution in ResNet-56.",
    "Table 6: `Ours` differs from `Ours (enhanced)` by the shortcut's error alone. Both have samplers, without which "
    "the released widths cannot be made; whether the paper's `enhanced` means samplers too is not known to us.",
    "Max response: largest energy of a channel's contribution to the responses. As we remember it the paper ranks by "
    "the absolute weight sum of the filter instead, as the released code's `pruning_kernel` does; that criterion is "
    "available as `weight sum`.",
    "ResNet-56: inner channels only (filters of each block's first convolution), because the paper does not say how "
    "the basic block was treated; a uniform 50 % gives 1.993x, not 2x.",
    "Filter pruning: Li et al. 2017 on the same inner channels, the filters of the smallest absolute weight sum go, "
    "nothing is reconstructed. So does the released code (ethanhe42/channel-pruning @1d66cff lib/net.py, "
    "`pruning_kernel`, chosen by `kernelname` in lib/cfgs.py), of which nothing released calls it.",
    "Fine-tuning of ResNet-56 on CIFAR-10: the paper's schedule is not known to us. Ours takes SGD, batch 128, a "
    "cosine from 0.01 to zero behind a short warm-up, weight decay 1e-4, 4 epochs for all rows, the dense network's "
    "control too; rows of 16 epochs take the tenth of the training epochs that the author names. Distilled "
    "(ours): a tenth of the loss from the labels, the rest from the dense network's outputs at temperature 4; the "
    "control has no teacher. From scratch trains as the dense network does, 164 epochs; a row of ours takes 8, twice "
    "those of fine-tuning at half the MACs, and a cosine from 0.1.",
    "On CIFAR-10 VGG-16 is the CIFAR form (one linear layer), half as wide, with batch norm, trained here for 16 "
    "epochs: its rows of Table 1 and Figure 4 are analogues. Fine-tuning takes two epochs there.",
    "Figure 4 is drawn for six layers, each named after the convolution that loses filters (conv1_2, conv2_1, conv2_2, "
    "conv3_1, conv3_2, conv4_1); the inputs are chosen for the convolution behind it (conv2_1, conv2_2, conv3_1, "
    "conv3_2, conv3_3, conv4_2), and the speed-up is that one's. That the paper shows layers from conv1_2 to conv4_2 "
    "is from memory; which of the two it names is not known to us, nor whether conv3_3 is among them.",
]

# --------------------------------------------------------------------------------------------------------------------
# Protocols

# (scale, network): training of the dense network (that of all papers on these networks), fine-tuning, calibration
PROTOCOLS = {
    # the paper's fine-tuning; as many images as the authors
    ("imagenet", ANY): Protocol(TRAINING["imagenet", ANY], Schedule(10, 1e-5, 128), images=5000),
    ("digits", "vgg16"): Protocol(TRAINING["digits", "vgg16"], cosine(3, 0.005, 64), images=720),
    ("digits", ANY): Protocol(TRAINING["digits", ANY], cosine(3, 0.005, 64), images=720),
    ("clutter", "vgg16"): Protocol(TRAINING["clutter", "vgg16"], cosine(2, 0.005, 64), images=720),
    ("clutter", ANY): Protocol(TRAINING["clutter", ANY], cosine(2, 0.005, 64), images=720),
    # an eighth of the training epochs, from a tenth of its rate
    (ANY, "vgg16_bn"): Protocol(TRAINING[ANY, "vgg16_bn"], cosine(2, 0.01, 128), images=5170),
    # the rate by fine_tuning_study.py, the epochs by what two cores do in an hour or two for all rows of Table 8; as
    # many images as the subset of CIFAR-10 has
    ("cifar10", ANY): Protocol(TRAINING[ANY, ANY], cosine(4, 0.01, 128, weight_decay=1e-4), images=5170),
    # the last rate and the batch of the dense network's own training (its published recipe: 0.1, 0.01, 0.001; 128)
    (ANY, ANY): Protocol(TRAINING[ANY, ANY], cosine(1, 1e-3, 128, weight_decay=1e-4), images=5170),
}
# a tenth of ResNet-56's 164 epochs of training, as the author tells (the released code's issue 82)
TENTH = 16
# twice the epochs of the fine-tuned rows, for half the MACs; ours
BRIEFLY = cosine(8, 0.1, 128)
# fine-tuning with the dense network as teacher (ours)
SOFT = Distillation(temperature=4.0, weight=0.9)
# of the rows that train longest: the whole job on clutter takes less than ten minutes on two cores
NOT_ON_CLUTTER = ("digits", "cifar10", "imagenet")

# --------------------------------------------------------------------------------------------------------------------
# Widths

VGG_SHAPE = vgg16("imagenet", 1000, False)
RESNET50_SHAPE = resnet50("imagenet", 1000, True)
RESNET56_SHAPE = resnet56("cifar10", 10, False)

# Paper: conv1_x to conv3_x keep r, conv4_x 1.5 r, conv5_x all (quoted in the released code's issue 30)
RATIOS = {name: 1.5 if name.startswith("conv4") else 1.0 for name in CONVS if not name.startswith("conv5")}

# Exact released widths (filters left).  2x and 4x: yihui-he/py-faster-rcnn@fe6ae69 models/pascal_voc/VGGx{2,4};
# 5x: yihui-he/channel-pruning@4e1c4cc temp/channel_pruning.prototxt
# fmt: off
RELEASED_VGG: dict[int, dict[str, int]] = {
    2: {"conv1_1": 11, "conv2_1": 55, "conv3_1": 148, "conv3_2": 104, "conv4_1": 221, "conv4_2": 421},
    4: {"conv1_1": 12, "conv2_1": 21, "conv3_1": 73, "conv3_2": 58, "conv4_1": 121, "conv4_2": 166},
    5: {
        "conv1_1": 24, "conv1_2": 22, "conv2_1": 41, "conv2_2": 51, "conv3_1": 108, "conv3_2": 89, "conv3_3": 111,
        "conv4_1": 184, "conv4_2": 276, "conv4_3": 228,
    },
}
# Inputs of branch2a (sampler), outputs of 2a and of 2b, block by block (same repository, temp/resnet-50-cp.prototxt)
RELEASED_RESNET50: list[tuple[int, int, int]] = [
    (35, 64, 55), (101, 51, 39), (97, 50, 37),
    (144, 128, 106), (205, 105, 72), (198, 105, 72), (288, 128, 110),
    (278, 256, 225), (418, 209, 147), (407, 204, 158), (423, 212, 155), (412, 211, 148), (595, 256, 213),
    (606, 512, 433), (1222, 512, 437), (1147, 512, 440),
]
# fmt: on
RESNET50_BLOCKS = (3, 4, 6, 3)


def vgg_ratios(recipe: Recipe, speedup: float) -> pruning.Ratios:
    """The paper's ratios of VGG-16's layers, scaled until the conv MACs meet the speed-up."""
    return pruning.Ratios({vgg_layers(recipe)[name]: ratio for name, ratio in RATIOS.items()}, speedup)


def vgg_released(recipe: Recipe, speedup: float) -> pruning.Fixed:
    """The released widths of VGG-16, scaled to the recipe's width factor."""
    factor, layers = recipe.arguments.get("width", 1.0), vgg_layers(recipe)
    return pruning.Fixed({layers[name]: max(1, round(n * factor)) for name, n in RELEASED_VGG[round(speedup)].items()})


def vgg_uniform(recipe: Recipe, speedup: float) -> pruning.Fixed:
    """The same share of all of VGG-16's layers but the last."""
    shares = {module: 1.0 for name, module in vgg_layers(recipe).items() if name != "conv5_3"}
    return pruning.Fixed(pruning.ratio_widths(recipe, shares, speedup))


def resnet50_released(recipe: Recipe, speedup: float) -> pruning.Fixed:
    """The released 2x widths of ResNet-50 and of its samplers; elsewhere the same fractions, stage by stage."""
    blocks = recipe.arguments.get("blocks", RESNET50_BLOCKS)
    base = round(64 * recipe.arguments.get("width", 1.0))
    keep, first, inputs = {}, 0, base
    for stage, count in enumerate(blocks):
        full = 64 * 2**stage
        for index in range(count):
            sampled, inner, last = RELEASED_RESNET50[first + min(index, RESNET50_BLOCKS[stage] - 1)]
            full_inputs = 64 if stage == index == 0 else full * (2 if index == 0 else 4)
            name, planes = f"layer{stage + 1}.{index}", base * 2**stage
            keep[f"{name}.conv1:in"] = max(1, round(inputs * sampled / full_inputs))
            keep[f"{name}.conv1"] = max(1, round(planes * inner / full))
            keep[f"{name}.conv2"] = max(1, round(planes * last / full))
            inputs = 4 * planes
        first += RESNET50_BLOCKS[stage]
    return pruning.Fixed(keep)


def inner_uniform(recipe: Recipe, speedup: float) -> pruning.Widths:
    """ResNet-56: half of each block's inner channels at 2x (1.993x), else the same share of them."""
    producers, _ = pruning.prunable(recipe)
    if speedup != 2:
        return pruning.Ratios(dict.fromkeys(producers, 1.0), speedup)
    model = recipe.build("meta")
    return pruning.Fixed({name: surgery.convolution(model, name).out_channels // 2 for name in producers})


def error_driven(recipe: Recipe, speedup: float) -> pruning.ErrorDriven:
    """Each layer keeps what its reconstruction error asks for (ours)."""
    return pruning.ErrorDriven(speedup)


def sampled_readers(widths: pruning.Fixed | pruning.Ratios) -> tuple[str, ...]:
    """The convolutions behind a channel sampler: those whose inputs have a width of their own."""
    names = widths.keep if isinstance(widths, pruning.Fixed) else widths.ratios
    return tuple(name.removesuffix(":in") for name in names if name.endswith(":in"))


# --------------------------------------------------------------------------------------------------------------------
# From the dense network to a row


@dataclass(frozen=True)
class ChannelPruning:
    """A network pruned to ``widths(recipe, speedup)``.

    ``selection`` is the criterion; without ``reconstruct`` the old weights stay.  ``compensate`` is the paper's
    enhancement for residual branches (section 3.3); ``full`` also refits the readers that keep all channels (which the
    released least squares can do) and rectifies the targets twice (ours).  ``target`` names the widths in plans.
    """

    widths: Callable[[Recipe, float], pruning.Widths]
    speedup: float
    selection: str = "lasso"
    reconstruct: bool = True
    compensate: bool = True
    full: bool = False
    target: str = ""

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """The step that prunes ``parent``'s network; the seed is that of the images and positions."""
        if self.selection == "weight sum" and not self.reconstruct and setting.weights is not None:
            seed = 0  # no image has a say: one dense network gives one pruned network, whatever the seed
        images, sampling = protocol(PROTOCOLS, setting, recipe).images, Sampling(positions=10, seed=seed)
        widths, curves = self.widths(recipe, self.speedup), None
        samplers: tuple[str, ...] = ()
        if isinstance(widths, pruning.ErrorDriven):
            measuring = pruning.CurveMeasuring(sampling, images)
            curves = pruning.curves(parent, measuring, setting.data, gmacs(recipe, images, 3.0))
        else:
            samplers = sampled_readers(widths)
        method = Method(self.selection, compensate=self.compensate, reconstruct=self.reconstruct)
        if self.full:
            method = replace(method, refit=True, rectify=2)
        params = pruning.Pruning(method, widths, sampling, images, samplers)
        return pruning.pruned(parent, curves, params, setting.data, gmacs(recipe, images, 4.0), self.target)

    def keep(self, recipe: Recipe) -> Mapping[str, int]:
        """The widths by module name, where the data have no say in them."""
        widths = self.widths(recipe, self.speedup)
        if isinstance(widths, pruning.Fixed):
            return widths.keep
        assert isinstance(widths, pruning.Ratios)
        return pruning.ratio_widths(recipe, dict(widths.ratios), self.speedup)


def chain(
    setting: Setting,
    recipe: Recipe,
    *,
    prune: Prune | None,
    tune: bool,
    epochs: int | None = None,
    distillation: Distillation | None = None,
) -> Chain:
    """A row before or after fine-tuning, compared with the dense network.

    It is tuned for ``epochs`` (None: the protocol's), and has the dense network as teacher with ``distillation``.
    """
    how = protocol(PROTOCOLS, setting, recipe)
    start, tuning = partial(dense, how=how), how.tuning if tune else None
    if tuning is not None and epochs is not None:
        tuning = replace(tuning, epochs=epochs)
    return measured_chain(setting, recipe, dense=start, prune=prune, tuning=tuning, distillation=distillation)


def single_layer(setting: Setting, recipe: Recipe, *, producer: str) -> Chain:
    """Figure 4: the filters of one layer (the paper's name), pruned alone by four criteria."""
    how, seed = protocol(PROTOCOLS, setting, recipe), setting.seeds[0]
    reader = vgg_layers(recipe)[dict(pairwise(CONVS))[producer]]
    # every point is an evaluation: half of them keep the whole job on clutter short
    speedups = FIGURE4_SPEEDUPS[1::2] if setting.scale == "clutter" else FIGURE4_SPEEDUPS
    params = pruning.SingleLayer(reader, FIGURE4_CRITERIA, speedups, Sampling(positions=10, seed=seed), how.images)
    work = gmacs(recipe, setting.test_images, 4.0 * len(speedups)) + gmacs(recipe, how.images, 1.0)
    return Chain([], [pruning.single_layer(dense(setting, recipe, seed, how), params, setting.data, work)])


# --------------------------------------------------------------------------------------------------------------------
# Rows

TABLE1 = "Table 1 (VGG-16 alone)"
TABLE4 = "Table 4 (vs training from scratch, 4x)"
TABLE6 = "Table 6 (ResNet-50 2x)"
TABLE8 = "Table 8 (ResNet-56 CIFAR-10 2x)"
FIGURE = "Figure 4 (single layers of VGG-16)"
CRITERIA = "Criteria (VGG-16 on CIFAR-10)"
FILTERS_TUNED = "Filter pruning (fine-tuned, our impl.)"

SPEEDUPS = (2, 4, 5)
AT_RATIOS = {speedup: ChannelPruning(vgg_ratios, speedup) for speedup in SPEEDUPS}
AT_RELEASE = {speedup: ChannelPruning(vgg_released, speedup, target=f"released {speedup}x") for speedup in SPEEDUPS}
UNIFORM_4X = ChannelPruning(vgg_uniform, 4)
RESNET50_PLAIN = ChannelPruning(resnet50_released, 2, compensate=False)
RESNET50_ENHANCED = ChannelPruning(resnet50_released, 2)
RESNET56_LASSO = ChannelPruning(inner_uniform, 2)
# Li et al., ICLR 2017: the filters of the smallest weight sum go, the rest stays
RESNET56_FILTERS = ChannelPruning(inner_uniform, 2, "weight sum", reconstruct=False)
RESNET56_BEST = ChannelPruning(error_driven, 2, "exact", full=True)
# what a row measures: the pruned network, the fine-tuned one, or its shape from fresh weights
PRUNED, TUNED, SCRATCH = "pruned", "fine-tuned", "from scratch"

FIGURE4 = ("conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv4_1")
FIGURE4_CRITERIA = ("first k", "max response", "lasso", "exact")
FIGURE4_SPEEDUPS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)

Network = Callable[[str, int, bool], Recipe]
# each network's own scale and shape
OWN: dict[Network, tuple[str, Recipe]] = {
    vgg16: ("imagenet", VGG_SHAPE),
    resnet50: ("imagenet", RESNET50_SHAPE),
    resnet56: ("cifar10", RESNET56_SHAPE),
}


def row(
    table: str,
    name: str,
    network: Network,
    prune: ChannelPruning | None,
    stage: str,
    printed: tuple[str, str] | None,
    scales: tuple[str, ...] | None = None,
) -> Row:
    """One of the paper's rows, the dense network's without ``prune``.

    ``printed`` is the registry's row and metric; what stands behind an @ is no part of our metric's name.
    """
    scale, whole = OWN[network]
    shape, claimed, tail = whole, None, partial(chain, prune=prune, tune=stage == TUNED)
    if prune is not None:
        shape, claimed = shape_of(whole, prune.keep(whole)), prune.speedup
        if stage == SCRATCH:
            tail = partial(from_scratch, widths=prune.keep, label=name.lower())
    published = {} if printed is None else {printed[1].partition("@")[0]: printed}
    return Row(table, name, scale, shape, claimed, network, tail, published, scales=scales)


def our_row(
    table: str,
    name: str,
    network: Network,
    prune: ChannelPruning | None,
    stage: str,
    scales: tuple[str, ...] | None = None,
) -> Row:
    """A row beyond the paper, on CIFAR-10."""
    tail = partial(chain, prune=prune, tune=stage == TUNED)
    return Row(table, name, "cifar10", dense=network, chain=tail, scales=scales, ours=True)


def table1() -> list[Row]:
    """VGG-16 at 2x, 4x and 5x, at the paper's ratios and at the released widths, before and after fine-tuning."""
    rows = [row(TABLE1, "VGG-16 dense", vgg16, None, PRUNED, ("baseline", "top5_acc"))]
    for speedup in SPEEDUPS:
        for stage, label in ((PRUNED, "without fine-tune"), (TUNED, "fine-tuned")):
            printed = (f"Ours ({label})", f"top5_err_increase@{speedup}x")
            for words, prune in (("", AT_RATIOS[speedup]), (" released widths", AT_RELEASE[speedup])):
                rows.append(row(TABLE1, f"VGG-16 {speedup}x{words}, {label}", vgg16, prune, stage, printed))
    return rows


def table4() -> list[Row]:
    """The 4x shape trained from scratch, as released and with the same share everywhere."""
    return [
        row(TABLE4, name, vgg16, prune, stage, (name, "top5_err_increase"), scales)
        for name, prune, stage, scales in (
            ("from scratch", AT_RELEASE[4], SCRATCH, NOT_ON_CLUTTER),
            ("from scratch (uniformed)", UNIFORM_4X, SCRATCH, NOT_ON_CLUTTER),
            ("Ours (no fine-tune)", AT_RELEASE[4], PRUNED, None),
            ("Ours (fine-tuned)", AT_RELEASE[4], TUNED, None),
        )
    ]


def table6() -> list[Row]:
    """ResNet-50 at the released 2x widths: plain, with compensation of the residual branch, and fine-tuned."""
    return [
        row(TABLE6, name, resnet50, prune, stage, (name, "top5_err_increase@2x"), NOT_ON_CLUTTER)
        for name, prune, stage in (
            ("Ours", RESNET50_PLAIN, PRUNED),
            ("Ours (enhanced)", RESNET50_ENHANCED, PRUNED),
            ("Ours (enhanced, fine-tuned)", RESNET50_ENHANCED, TUNED),
        )
    ]


def table8() -> list[Row]:
    """ResNet-56 on CIFAR-10, half of the inner channels: LASSO and filter pruning before and after fine-tuning, and
    from scratch.  Beside them the best of ours: exact selection, error-driven widths, the full reconstruction.
    """
    increase, best = "top1_err_increase@2x", "Exact, error-driven, full reconstruction"
    return [
        row(TABLE8, "ResNet-56 dense", resnet56, None, PRUNED, ("baseline", "top1_acc")),
        row(TABLE8, "Ours", resnet56, RESNET56_LASSO, PRUNED, ("Ours", increase)),
        row(TABLE8, "Ours (fine-tuned)", resnet56, RESNET56_LASSO, TUNED, ("Ours (fine-tuned)", increase)),
        row(TABLE8, "Filter pruning", resnet56, RESNET56_FILTERS, PRUNED, None),  # printed after fine-tuning alone
        row(TABLE8, FILTERS_TUNED, resnet56, RESNET56_FILTERS, TUNED, (FILTERS_TUNED, increase)),
        # from scratch needs the full training set
        row(
            TABLE8, "From scratch", resnet56, RESNET56_LASSO, SCRATCH, ("From scratch", increase), ("digits", "cifar10")
        ),
        our_row(TABLE8, best, resnet56, RESNET56_BEST, PRUNED),
        our_row(TABLE8, f"{best} (fine-tuned)", resnet56, RESNET56_BEST, TUNED, NOT_ON_CLUTTER),
        briefly_from_scratch(),
        *tuned_otherwise(best),
    ]


def briefly_from_scratch() -> Row:
    """Table 8's shape from scratch in an hour of a processor core instead of half a day."""
    name = f"From scratch ({BRIEFLY.epochs} epochs)"
    tail = partial(from_scratch, widths=RESNET56_LASSO.keep, label=name.lower(), schedule=BRIEFLY)
    return replace(our_row(TABLE8, name, resnet56, None, SCRATCH, ("cifar10",)), chain=tail)


def tuned_otherwise(best: str) -> list[Row]:
    """Table 8 with the dense network as teacher, for a tenth of the training epochs (for a GPU), and at 3x."""
    only, increase = ("cifar10",), "top1_err_increase@2x"
    lasso_3x, best_3x = replace(RESNET56_LASSO, speedup=3), replace(RESNET56_BEST, speedup=3)
    found = []
    for name, prune, epochs, soft, printed in (
        (f"{best} (fine-tuned, distilled)", RESNET56_BEST, None, SOFT, ""),
        ("Ours (fine-tuned, 16 epochs)", RESNET56_LASSO, TENTH, None, "Ours (fine-tuned)"),
        ("Filter pruning (fine-tuned, 16 epochs)", RESNET56_FILTERS, TENTH, None, FILTERS_TUNED),
        (f"{best} (fine-tuned, 16 epochs)", RESNET56_BEST, TENTH, None, ""),
        (f"{best} (fine-tuned, distilled, 16 epochs)", RESNET56_BEST, TENTH, SOFT, ""),
        ("LASSO at 3x (fine-tuned)", lasso_3x, None, None, ""),
        (f"{best} at 3x (fine-tuned, distilled)", best_3x, None, SOFT, ""),
    ):
        tail = partial(chain, prune=prune, tune=True, epochs=epochs, distillation=soft)
        if printed:
            made = row(TABLE8, name, resnet56, prune, TUNED, (printed, increase), only)
        else:
            made = our_row(TABLE8, name, resnet56, prune, TUNED, only)
        found.append(replace(made, chain=tail, release=soft is not None and epochs is None))
    return found


def figure4() -> list[Row]:
    """Single layers of VGG-16 pruned alone: first k, max response, LASSO and exact selection at several speed-ups."""
    return [
        Row(FIGURE, name, "imagenet", VGG_SHAPE, None, vgg16, partial(single_layer, producer=name), seeds=(0,))
        for name in FIGURE4
    ]


def criteria() -> list[Row]:
    """VGG-16's CIFAR form at the paper's ratios by LASSO, first k and max response, before and after fine-tuning."""
    only = ("cifar10",)
    return [our_row(CRITERIA, "dense, fine-tuned", vgg16, None, TUNED, only)] + [
        our_row(CRITERIA, f"{speedup}x {words}{label}", vgg16, ChannelPruning(vgg_ratios, speedup, name), stage, only)
        for stage, label in ((PRUNED, ""), (TUNED, ", fine-tuned"))
        for speedup in SPEEDUPS
        for name, words in (("first k", "first k"), ("max response", "max response"), ("lasso", "LASSO"))
    ]


def released_code() -> list[Row]:
    """The two counts that the released code holds: of VGG-16, and of ResNet-50 on images of 256x256."""
    large = replace(RESNET50_SHAPE, input_shape=(3, 256, 256))
    return [
        Row("released code", name, "imagenet", shape, missing=SIZE_ALONE, sizes={"macs": [printed]})
        for name, shape, printed in (
            ("VGG-16", VGG_SHAPE, ("VGG-16", "conv_MACs (224x224)")),
            ("ResNet-50 at 256x256", large, ("ResNet-50", "conv_MACs")),
        )
    ]


def not_yet() -> list[Row]:
    """The paper's tables whose method is not implemented."""
    reason = "method not implemented yet"
    return [
        Row("Table 2 (combined with factorisation)", "Our 3C", "imagenet", missing=reason),
        Row("Table 5 (Faster R-CNN)", "2x and 4x", "voc", missing=reason),
        Row("Table 7 (Xception-50 2x)", "Ours", "imagenet", missing=reason),
    ]


def seeds_on_clutter(one: Row) -> tuple[int, ...]:
    """Five where the study of the selection takes five, whose networks these are; one for the rest.

    So that the whole job takes less than ten minutes on two cores.
    """
    shared = (TABLE8, "ResNet-56 dense"), (TABLE8, "Ours")
    return (0, 1, 2, 3, 4) if (one.table, one.name) in shared else (0,)


def paper() -> Paper:
    """The paper as the harness sees it."""
    tables = (table1, table4, table6, table8, figure4, criteria, released_code, not_yet)
    rows = [one for table in tables for one in table()]
    rows = [replace(one, seeds_at={"clutter": seeds_on_clutter(one)}) for one in rows]
    title = "Channel Pruning for Accelerating Very Deep Neural Networks"
    return Paper("channel_pruning", title, "He, Zhang, Sun; ICCV 2017; arXiv 1707.06168", rows, DEVIATIONS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "channel_pruning", *sys.argv[1:]]))
