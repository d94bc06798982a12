"""ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression (Luo et al.; ICCV 2017; arXiv 1707.06342).

A layer's filters are judged by what the *next* layer makes of them.  With x_hat_c what channel c adds to one output of
that layer (one random filter at one random position) and y_hat = y - b = sum_c x_hat_c, the set T of removed channels
is to keep the sum over the samples of (sum_{c in T} x_hat_c)^2 small (equation 6): greedily, channel after channel
(algorithm 1).  The channels that stay are then scaled by least squares (equation 7), each by one factor, in the next
layer's weights.  Layer by layer, with an epoch of fine-tuning after each and a long one at the end.

    T = {}; s = 0                                 bench.pruning.thinet.backward, on G = R'R: costs += 2 G[j]
    repeat C (1 - r) times:
        j = argmin |s + x_hat_j|^2;  T += j;  s += x_hat_j
    w = (X_S' X_S)^-1 X_S' y                      bench.pruning.thinet.factors

Reproduced here: Table 1 (VGG-16), Table 3 (ResNet-50), what of Table 2 can run, Table 4 (transfer), Figure 4
(criteria, by the numbers of its author's script), the journal's version (TPAMI); beyond the paper: the same criteria
with and without the same rescaling, nothing tuned, beside Channel Pruning's.

y is what the next layer answers in the network as it is by then: so in the released code, and here wherever one layer
is pruned at a time.  A walk through several layers takes the dense network's responses instead, as Channel Pruning's
does: so in the tables of criteria.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bench import protocols, zoo
from bench.chains import (
    Prune,
    compared_chain,
    dense,
    edited,
    filters,
    from_scratch,
    gmacs,
    measured,
    measured_chain,
    pruned_by,
    shape_of,
    trained,
    under_protocols,
)
from bench.cli import main
from bench.measure import steps as measuring
from bench.measure.protocols import PROTOCOLS as RESIZINGS
from bench.models.edits import NewOutputs, ReplaceHead
from bench.models.recipe import Recipe
from bench.models.vgg import CONVS
from bench.protocols import ANY, cosine, protocol
from bench.pruning import steps as pruning
from bench.pruning.layerwise import RESCALE, Method
from bench.rows import SIZE_ALONE, Chain, Paper, Row, Setting, counts, links, reductions
from bench.sizes import size
from bench.steps import Source, Step
from bench.train.schedule import Schedule, longer
from bench.zoo import TRAINING, Network, resnet50, resnet56, vgg16, vgg_layers

DEVIATIONS = [
    "Sampling: 10 draws of (position, one random output filter) from each of 10 images a class, as published, on "
    "ImageNet (100,000 rows). On sets of ten classes that would be 1,000 rows: 5,000 images of CIFAR-10, 720 of "
    "embedded data, spread evenly over the classes. A tenth of them is held out and judges the factors.",
    "Summing over all filters at each sampled position instead of drawing one is ours (`all filters`): the same in "
    "expectation, with less noise.",
    "Responses: the tables of criteria walk through all layers at once and fit the factors to the dense network's "
    "responses, as Channel Pruning does; so do, within a stage, the rows of `when to tune`. The released code takes "
    "inputs and responses from one network, pruned as far as it is by then, and so do the rows of the paper's tables "
    "and those called `responses of the pruned network`. Factors fitted to the dense network also make up for what the "
    "layers before have lost.",
    "Batch norm: a drawn filter's row and response are taken behind its batch norm, so that each filter weighs by its "
    "(gamma / sigma)^2; the released code for ResNet-50 takes the convolution's own output. The paper's VGG-16 has no "
    "batch norm.",
    "Least squares (`…, least squares`): Channel Pruning's full regression on the same channels. As in ThiNet's own "
    "step a residual branch is fitted to its own responses; Channel Pruning's compensation of what the shortcut has "
    "lost (its section 3.3) is left out, so that on ResNet-56 these rows stand below that page's.",
    "Journal version: forward selection of the filters that stay, with a refit at every step (TPAMI 2019).",
    "Weights: torchvision's VGG-16 and ResNet-50 v1.5 unless weights are given; the paper's are Caffe's (ResNet-50 v1, "
    "stride in the first 1x1), whose sizes stand beside both.",
    "VGG-16's fine-tuning, from the authors' scripts: SGD, 1e-3, batch 128, weight decay 5e-4; one epoch after each "
    "layer, two with the rate divided by ten after the first behind conv1_2, conv2_2 and conv3_3, twelve after conv4_3 "
    "(divided after the fourth and the eighth). Biases decay too and learn at the rate of the weights (in the scripts "
    "they do not decay and learn twice as fast).",
    "ResNet-50's, from the authors' later code: both inner layers of a block are pruned, then one epoch at 1e-4; nine "
    "epochs at 1e-3 after the last block (divided after the third and the sixth).",
    "On CIFAR-10 and embedded data the schedules are shorter (`PROTOCOLS`), and VGG-16 and ResNet-50 are those of "
    "Channel Pruning's page; their rows are analogues.",
    "ThiNet-GAP on ImageNet: pooling and fully connected layers give way to global average pooling when all layers are "
    "pruned, before the long fine-tuning; when the authors do it could not be read.",
    "ThiNet-Tiny also prunes conv5_3, which no convolution reads; how could not be read, so that its sizes alone are "
    "judged. SqueezeNet is torchvision's 1.0 on images of 227x227.",
    "ThiNet-WS (Table 2) is taken as ThiNet-Conv with the smallest weight sums removed and the same rescaling.",
    "Figure 4: its values are those of the author's plotting script (CNN_Toolbox) at r = 0.9 to 0.1, by the shares of "
    "FLOPs that it draws them over; its weight sum is that of absolute weights. A random choice's 7.96 at r = 0.5, "
    "between 66.66 and 58.18, looks like a typing error, and no row is judged by it. The curves are of tuned networks: "
    "they start at the 71.18 of VGG-GAP tuned on CUB-200, and ThiNet's 66.90 at r = 0.5 is Table 4's `FT & prune`. The "
    "paper's words on it could not be read (a note on it tells that four runs are averaged), so that the tuning is "
    "taken from ThiNet's on ImageNet, every point a procedure of its own, channels chosen on all training images "
    "(10,000 at most). The rows stand at r = 0.5, the curves (one seed) at r = 0.8, 0.5 and 0.2.",
    "Both resizings of the authors (256x256, or the shorter side 256) stand side by side in the table `Evaluation "
    "protocols`; the rows of the paper's tables are measured by the one that a run is given (`--protocol`). Table 2's "
    "+1.46 and +1.09 of ThiNet-Conv are the differences of two accuracies of Table 1 that probably are of two "
    "resizings: the authors' README has its 69.80 beside 71.50 (-1.70; their script reads images whose shorter side is "
    "256), and 68.34 seems to be of 256x256, as ThiNet-GAP's 67.34 is. Our row measures both networks under one, so "
    "that these differences, which are a check of ours, cannot be expected to come out.",
    "Table 4: `FT & prune`, as Figure 4, puts average pooling in the place of the fully connected layers, tunes on the "
    "new data set and prunes there. The first tuning is the author's (fine-tune-avg-vgg16): 21 epochs, 1e-3, divided "
    "after the 7th and the 14th, batch 32, weight decay 5e-4, images of 256x256 (`--protocol squash256`); there the "
    "fresh layer learns, and decays, ten times as fast, here as the others. How the other networks were moved could "
    "not be read: by the same schedule here, with fresh outputs. The analogues of both move from `clutter`, without "
    "the scans that `digits` is tested on, to `digits`.",
    "FLOPs are counted as the authors' FLOPs_and_size.py does, which takes the means and the scales of Caffe's batch "
    "norms along (without them ThiNet-30's 2.20 B would be 2.19). The README's 138.24 M parameters of VGG-16 come out "
    "as 138.34, as the paper has them.",
]

# --------------------------------------------------------------------------------------------------------------------
# The algorithm: selection and rescaling, layer by layer

THINET = Method("thinet", compensate=False, rebuild=RESCALE, outputs="one")
TPAMI = replace(THINET, selection="thinet tpami")

# conv1_1 to conv4_3 lose filters; conv5_x and the fully connected layers do not
PRUNED = [name for name in CONVS if not name.startswith("conv5")]
# behind the last layer of a block of VGG-16 is tuned for longer
ENDS = ("conv1_2", "conv2_2", "conv3_3")


def stages(recipe: Recipe, how: Protocol) -> list[tuple[list[str], Schedule]]:
    """What is pruned together, and the tuning after it: VGG-16 layer by layer, ResNet-50 block by block."""
    if recipe.builder.startswith("vgg16"):
        names = vgg_layers(recipe)
        return [([names[layer]], (layer in ENDS and how.block) or how.each) for layer in PRUNED]
    blocks: dict[str, list[str]] = {}
    for name in pruning.prunable(recipe)[0]:
        blocks.setdefault(name.rpartition(".")[0], []).append(name)
    return [(names, how.each) for names in blocks.values()]


def widths(recipe: Recipe, share: float) -> dict[str, int]:
    """int(share x filters) of VGG-16's conv1_1 to conv4_3 or of a ResNet's inner layers (the authors' generator)."""
    if recipe.builder.startswith("vgg16"):
        names = [vgg_layers(recipe)[name] for name in PRUNED]
    else:
        names = pruning.prunable(recipe)[0]
    # the share is written in decimals: 0.7 of 10 filters are 7
    return {name: max(1, int(round(share * count, 6))) for name, count in filters(recipe, names).items()}


@dataclass(frozen=True)
class ThiNet:
    """The whole procedure, to a ``share`` of the filters: each stage's layers pruned in the network as it is by now,
    then tuned; at the end the long fine-tuning.

    With ``gap`` average pooling takes the place of VGG-16's fully connected layers in front of it (ThiNet-GAP).
    """

    share: float = 0.5
    method: Method = THINET
    gap: bool = False

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """The step at the end; the network after each stage is kept until the next one is there."""
        how, keep, step = protocol(PROTOCOLS, setting, recipe), widths(recipe, self.share), parent

        def then(found: Step, what: str, transient: bool = True) -> Step:
            # named by what it does, not by all that came before; its weights may go once the next step is there
            name = f"{self.method.selection} {what} ({parent.name}, seed {seed})"
            return replace(found, name=name, transient=transient)

        parts = stages(recipe, how)
        for number, (names, tuning) in enumerate(parts, start=1):
            for name in names:
                small = pruned_by(setting, recipe, step, seed, self.method, {name: keep[name]}, how.images)
                step = then(small, f"{name} to {keep[name]}")
            if number < len(parts):  # behind the last stage the long fine-tuning comes at once
                step = then(trained(setting, recipe, step, tuning, seed, "tuned"), f"tuned after {names[-1]}")
        if self.gap:
            step = then(edited(setting, step, ReplaceHead(), seed), "with average pooling")
        return then(trained(setting, recipe, step, how.tuning, seed, "tuned"), "tuned at the end", transient=False)


# --------------------------------------------------------------------------------------------------------------------
# Protocols

constant = partial(Schedule, batch=128, weight_decay=5e-4)
by_steps = partial(Schedule, batch=128, weight_decay=5e-4, shape="steps")
# the author's, of VGG-GAP on CUB-200 (fine-tune-avg-vgg16: 3,948 iterations, 188 an epoch)
MOVING = by_steps(21, 1e-3, batch=32, milestones=(7, 14))


@dataclass(frozen=True)
class Protocol(protocols.Protocol):
    """``tuning`` comes at the end, ``each`` after a stage, ``block`` (None: ``each``) after the last layer of a block
    of VGG-16; ``moving`` tunes on another data set (Table 4, Figure 4).
    """

    each: Schedule
    block: Schedule | None = None
    moving: Schedule = MOVING


# the authors', on ImageNet and on images as large: scripts of VGG-16, later code of ResNet-50
VGG16_TUNING = Protocol(
    None, by_steps(12, 1e-3, milestones=(4, 8)), 10_000, constant(1, 1e-3), by_steps(2, 1e-3, milestones=(1,))
)
RESNET50_TUNING = Protocol(None, by_steps(9, 1e-3, milestones=(3, 6)), 10_000, constant(1, 1e-4))
# ours, for two cores: the paper has neither CIFAR-10 nor embedded data, so that no schedule of its stands beside them
SMALL = Protocol(TRAINING[ANY, ANY], cosine(6, 0.01, 128), 5000, constant(1, 0.005))
EMBEDDED = Protocol(None, cosine(4, 0.005, 64), 720, constant(1, 0.002, batch=64), moving=cosine(4, 0.005, 64))
# (scale, network): training of the dense network (that of all papers on these networks), tuning at the end, images to
# choose on, tuning after each stage
PROTOCOLS = {
    ("imagenet", "vgg16"): VGG16_TUNING,
    ("imagenet", ANY): RESNET50_TUNING,
    **{
        (scale, network): replace(EMBEDDED, dense=TRAINING[scale, network])
        for scale in zoo.EMBEDDED
        for network in ("vgg16", ANY)
    },
    (ANY, "vgg16_bn"): replace(SMALL, dense=TRAINING[ANY, "vgg16_bn"]),
    ("cifar10", ANY): SMALL,
    # a folder of the user's, at 224x224
    (ANY, "resnet50"): replace(RESNET50_TUNING, dense=TRAINING[ANY, ANY]),
    (ANY, "vgg16"): replace(VGG16_TUNING, dense=TRAINING[ANY, ANY]),
    (ANY, ANY): SMALL,
}

# --------------------------------------------------------------------------------------------------------------------
# What it is compared with: other criteria, with and without the same rescaling, all layers at once


def ranked(selection: str, rescaled: bool = False) -> Method:
    """A criterion that ranks channels, without a change of the weights or with ThiNet's rescaling."""
    return replace(THINET, selection=selection) if rescaled else Method(selection, compensate=False, reconstruct=False)


UNSCALED = replace(ranked("thinet"), outputs="one")
# every criterion without and with the same rescaling, the variants, and the two that rebuild by full least squares
METHODS: dict[str, Method] = {
    "random": ranked("random"),
    "random, rescaled": ranked("random", rescaled=True),
    "weight sum": ranked("weight sum"),
    "weight sum, rescaled": ranked("weight sum", rescaled=True),
    "APoZ": ranked("apoz"),
    "APoZ, rescaled": ranked("apoz", rescaled=True),
    "ThiNet, without rescaling": UNSCALED,
    "ThiNet": THINET,
    "ThiNet, all filters": replace(THINET, outputs="all"),
    "ThiNet, journal version": TPAMI,
    "ThiNet, least squares": Method("thinet", compensate=False),
    "LASSO, least squares": Method("lasso", compensate=False),
    "exact, least squares": Method("exact", compensate=False),
}
# those of Figure 4, and the shares of the filters that stay in its curves here
FIGURE4_METHODS = {name: METHODS[name] for name in ("random", "weight sum", "APoZ")}
FIGURE4_METHODS |= {"ThiNet w/o w": UNSCALED, "ThiNet": THINET}
SHARES = (0.8, 0.5, 0.2)


@dataclass(frozen=True)
class AtOnce:
    """All layers in one walk, nothing fine-tuned: what a criterion is worth.

    Inputs come from the network as pruned so far, responses from the dense one.
    """

    method: Method
    share: float = 0.5

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """The step that prunes."""
        images, keep = protocol(PROTOCOLS, setting, recipe).images, widths(recipe, self.share)
        return pruned_by(setting, recipe, parent, seed, self.method, keep, images, alone=False)


def one_by_one(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, method: Method) -> Step:
    """Half of the filters of each layer, nothing fine-tuned; inputs and responses come from the network as it is by
    then, as in the released code.  Only the last network is kept.
    """
    images, keep, step = protocol(PROTOCOLS, setting, recipe).images, widths(recipe, 0.5), parent
    work = gmacs(recipe, images, 1.0)  # of a layer alone, where a whole walk is planned otherwise
    for name, count in keep.items():
        small = pruned_by(setting, recipe, step, seed, method, {name: count}, images)
        words = f"{method.selection} {name} to {count}, responses of the pruned network ({parent.name}, seed {seed})"
        step = replace(small, name=words, transient=True, work=work)
    return replace(step, transient=False)


def by_stage(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, at_the_end: bool) -> Step:
    """The inner layers of one stage after the other, with an epoch after each stage, or with as many at the end."""
    how, keep, step = protocol(PROTOCOLS, setting, recipe), widths(recipe, 0.5), parent
    names = list(dict.fromkeys(name.partition(".")[0] for name in keep))
    for stage in names:
        here = {name: count for name, count in keep.items() if name.startswith(f"{stage}.")}
        step = pruned_by(setting, recipe, step, seed, THINET, here, how.images)
        if not at_the_end:
            step = trained(setting, recipe, step, how.each, seed, "tuned")
    return trained(setting, recipe, step, longer(how.each, len(names)), seed, "tuned") if at_the_end else step


def fresh_gap(setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
    """ThiNet-GAP's shape from fresh weights on the row's data; ``parent`` is not used."""
    shape = shape_of(recipe, widths(recipe, 0.5)).edited(ReplaceHead())
    scale = setting.scale if setting.scale in zoo.EMBEDDED else "imagenet"
    return trained(setting, shape, None, zoo.from_scratch(scale, recipe), seed, "from scratch")


# --------------------------------------------------------------------------------------------------------------------
# From the dense network to a row


def start(setting: Setting, recipe: Recipe, seed: int) -> Step:
    """The dense network."""
    return dense(setting, recipe, seed, protocol(PROTOCOLS, setting, recipe))


def chain(setting: Setting, recipe: Recipe, *, make: Prune | None) -> Chain:
    """The network that ``make`` gives, measured and compared with the dense one."""
    return measured_chain(setting, recipe, dense=start, prune=make, tuning=None)


def layer_by_layer(setting: Setting, recipe: Recipe, *, method: Method) -> Chain:
    """The network of :func:`one_by_one`, measured and compared with the dense one.

    Without the reconstruction's error: the last step knows that of the last layer only.
    """
    starts = [start(setting, recipe, seed) for seed in setting.seeds]
    networks = [
        one_by_one(setting, recipe, parent, seed, method=method)
        for parent, seed in zip(starts, setting.seeds, strict=True)
    ]
    return compared_chain(setting, recipe, starts, networks)


# Table 4 and Figure 4: what the dense network was trained on, by its name among the further data of a row
SOURCE = "source"


def transferred(
    setting: Setting, recipe: Recipe, seed: int, *, make: Prune | None = None, pooled: bool = False
) -> Step:
    """The source's dense network, or what ``make`` makes of it there, with fresh outputs tuned on the row's data.

    With ``pooled`` these stand behind average pooling, in the place of all fully connected layers (VGG-GAP).
    """
    source, how = setting.further[SOURCE], protocol(PROTOCOLS, setting, recipe)
    theirs = vgg16(source.scale, source.classes, source.weights is not None)
    found = start(source, theirs, seed)
    if make is not None:
        found = make(source, theirs, found, seed)
    edit = ReplaceHead(setting.classes) if pooled else NewOutputs(setting.classes)
    fresh = replace(edited(setting, found, edit, seed), name=f"fresh outputs({found.name})")
    return trained(setting, recipe, fresh, how.moving, seed, "moved")


def moved(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, make: Prune) -> Step:
    """Pruned by ``make`` on the source, then moved; the moved dense network ``parent`` is not used."""
    return transferred(setting, recipe, seed, make=make)


vgg_gap = partial(transferred, pooled=True)


def pruned_there(setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
    """VGG-GAP, pruned and tuned on the row's data; the moved dense network ``parent`` is not used."""
    return ThiNet()(setting, recipe, vgg_gap(setting, recipe, seed), seed)


def curves(setting: Setting, recipe: Recipe) -> Chain:
    """Figure 4: top-1 of each criterion, pruned and tuned, at three speed-ups; VGG-GAP's at 1."""
    seed = setting.seeds[0]
    whole = vgg_gap(setting, recipe, seed)
    networks, series, places = [], [], []
    for name, method in FIGURE4_METHODS.items():
        networks += [whole, *(ThiNet(share, method)(setting, recipe, whole, seed) for share in SHARES)]
        series += [name] * (1 + len(SHARES))
        small = [shape_of(recipe, widths(recipe, share)) for share in SHARES]
        places += [1.0, *(round(float(size(shape, "speedup", "conv")), 2) for shape in small)]
    runs = [measured(setting, recipe, network, seed) for network in networks]
    return Chain([], [measuring.points(runs, series, places)])


# --------------------------------------------------------------------------------------------------------------------
# Rows

TABLE1, TABLE3 = "Table 1 (VGG-16)", "Table 3 (ResNet-50)"
TABLE2 = "Table 2 (VGG-16 vs other pruning methods)"
FIGURE4 = "Figure 4 (selection criteria, VGG-GAP on CUB-200)"
README_VGG, README_RESNET = "ThiNet_Code README (VGG-16, ratio 0.5)", "ThiNet_Code README (ResNet-50, ratio 0.7)"
TABLE4, BOTH = "Table 4 (transfer)", "Evaluation protocols"

# ThiNet-Tiny's filters (its prototxt), conv1_1 to conv5_3
TINY = (16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 256)
NOT_READ = "how conv5_3 was pruned could not be read"

VGG16 = vgg16("imagenet", 1000, False)
RESNET50 = resnet50("imagenet", 1000, True)  # Caffe's: the stride in the first 1x1
CONV = shape_of(VGG16, widths(VGG16, 0.5))
GAP = CONV.edited(ReplaceHead())
TINY_SHAPE = shape_of(VGG16, dict(zip(vgg_layers(VGG16).values(), TINY, strict=True))).edited(ReplaceHead())
SQUEEZENET = Recipe("torchvision.models:squeezenet1_0", {}, (3, 227, 227))
RESNETS = {share: shape_of(RESNET50, widths(RESNET50, share)) for share in (0.7, 0.5, 0.3)}

# the embedded job: one seed, and neither a row that trains longest nor what another table shows as well
ONCE = {"clutter": (0,)}
SHORT = ("digits", "cifar10", "imagenet")
ACCURACIES = {"top1_acc": "top1_acc", "top5_acc": "top5_acc"}
CHANGES = {"top1_change": "top1_acc_change", "top5_change": "top5_acc_change"}


def row(
    table: str, name: str, network: Network, shape: Recipe, make: Prune | None, printed: str = "", **more: Any
) -> Row:
    """A row on ImageNet of the network that ``make`` gives, ``shape`` at its own scale.

    The registry's row of that name (or ``printed``) has its accuracy, FLOPs and parameters, unless ``more`` differs.
    """
    theirs, tail = printed or name, partial(chain, make=make)
    fields = {"published": links(ACCURACIES, theirs), "sizes": counts(theirs), "chain": tail, **more}
    return Row(table, name, "imagenet", shape, dense=network, **fields)


def table1() -> list[Row]:
    """VGG-16: the original, ThiNet-Conv, its shape from scratch, ThiNet-GAP, ThiNet-Tiny, SqueezeNet."""
    scratch = partial(from_scratch, widths=partial(widths, share=0.5))
    return [
        row(TABLE1, name, vgg16, shape, make, seeds_at=ONCE, **more)
        for name, shape, make, more in (
            ("Original", VGG16, None, {}),
            ("ThiNet-Conv", CONV, ThiNet(), {}),
            ("Train from scratch", CONV, None, {"chain": scratch, "scales": SHORT}),
            ("ThiNet-GAP", GAP, ThiNet(gap=True), {}),
            ("ThiNet-Tiny", TINY_SHAPE, None, {"chain": None, "missing": NOT_READ}),
            ("SqueezeNet", SQUEEZENET, None, {"chain": None, "missing": SIZE_ALONE}),
        )
    ]


def table2() -> list[Row]:
    """VGG-16 against other methods, as changes from each one's own dense network: what of it can run."""
    rows = []
    for name, shape, make, scales in (
        ("ThiNet-WS", CONV, ThiNet(method=ranked("weight sum", rescaled=True)), SHORT),
        ("ThiNet-Conv", CONV, ThiNet(), None),
        ("ThiNet-GAP", GAP, ThiNet(gap=True), None),
    ):
        # ThiNet-Conv's reductions follow from Table 1 and are a check of ours
        printed = {} if name == "ThiNet-Conv" else reductions(name)
        more: dict[str, Any] = {"published": links(CHANGES, name), "sizes": printed, "seeds_at": ONCE}
        rows.append(row(TABLE2, name, vgg16, shape, make, scales=scales, **more))
    others, reason = ("APoZ-1", "APoZ-2", "Taylor-1", "Taylor-2"), "its widths or its method could not be read"
    return [*rows, *(Row(TABLE2, name, "imagenet", missing=reason) for name in others)]


def table3() -> list[Row]:
    """ResNet-50 on Caffe's graph, 70, 50 and 30 % of the inner filters kept."""
    made: dict[str, tuple[Recipe, Prune | None]] = {"Original": (RESNET50, None)}
    made |= {f"ThiNet-{100 * share:.0f}": (shape, ThiNet(share)) for share, shape in RESNETS.items()}
    return [row(TABLE3, name, resnet50, shape, make, scales=SHORT) for name, (shape, make) in made.items()]


def table4() -> list[Row]:
    """Pruned on one data set and tuned on another, against pruned on the other and against from scratch."""
    found: dict[str, Prune | None] = {
        "VGG-16": None,
        "FT & prune": pruned_there,
        "Train from scratch": fresh_gap,
        "ThiNet-Conv": partial(moved, make=ThiNet()),
        "ThiNet-GAP": partial(moved, make=ThiNet(gap=True)),
    }
    same: dict[str, Any] = {"dense": vgg16, "scales": ("digits",), "further": elsewhere}
    rows = []
    for name, make in found.items():
        tail = partial(measured_chain, dense=transferred, prune=make, tuning=None)
        rows.append(Row(TABLE4, name, "CUB-200", chain=tail, published={"top1_acc": (name, "top1_acc")}, **same))
    left = {"ThiNet-Tiny": NOT_READ, "AlexNet": "another network, without pruning"}
    return [*rows, *(Row(TABLE4, name, "CUB-200", missing=reason) for name, reason in left.items())]


def elsewhere(scale: str) -> dict[str, Source]:
    """What the networks of Table 4 and Figure 4 learn first: ImageNet, for `digits` the same scans in clutter."""
    return {SOURCE: Source("clutter", apart=scale) if scale == "digits" else Source("imagenet")}


def figure4() -> list[Row]:
    """VGG-GAP tuned on the row's data, what the criteria make of it there at half of the filters, and the curves."""
    found: dict[str, Prune | None] = {"original": None}
    found |= {name: ThiNet(method=method) for name, method in FIGURE4_METHODS.items()}
    # one seed on digits, where a row takes a minute or two and the curves ten
    same: dict[str, Any] = {"dense": vgg16, "scales": ("digits",), "further": elsewhere, "seeds_at": {"digits": (0,)}}
    rows = []
    for name, make in found.items():
        printed = name if make is None else f"{name}, r = 0.5"
        # what is printed for a random choice there looks like a typing error
        judged = {} if name == "random" else {"top1_acc": (printed, "top1_acc")}
        tail = partial(measured_chain, dense=vgg_gap, prune=make, tuning=None)
        rows.append(Row(FIGURE4, name, "CUB-200", chain=tail, published=judged, **same))
    return [*rows, Row(FIGURE4, "curves", "CUB-200", chain=curves, seeds=(0,), **same)]


def journal() -> list[Row]:
    """The authors' later README: both networks measured again, and the journal version."""
    return [
        # the row says which of the two tables it belongs to, whose ids are alike
        row(table, f"{model}, {name}", network, shape, make, name, scales=SHORT)
        for table, model, name, network, shape, make in (
            (README_VGG, "VGG-16", "original VGG16", vgg16, VGG16, None),
            (README_VGG, "VGG-16", "ThiNet_ICCV", vgg16, CONV, ThiNet()),
            (README_VGG, "VGG-16", "ThiNet_TPAMI", vgg16, CONV, ThiNet(method=TPAMI)),
            (README_RESNET, "ResNet-50", "original ResNet50", resnet50, RESNET50, None),
            (README_RESNET, "ResNet-50", "ThiNet_ICCV", resnet50, RESNETS[0.7], ThiNet(0.7)),
            (README_RESNET, "ResNet-50", "ThiNet_TPAMI", resnet50, RESNETS[0.7], ThiNet(0.7, TPAMI)),
        )
    ]


def criteria() -> list[Row]:
    """Every criterion without and with the same rescaling, at half of the inner filters, nothing fine-tuned.

    And whether it is worth to tune in between.
    """
    every = {"dense": partial(chain, make=None)}
    every |= {name: partial(chain, make=AtOnce(method)) for name, method in METHODS.items()}
    afresh = {
        f"{name}, responses of the pruned network": partial(layer_by_layer, method=METHODS[name])
        for name in ("weight sum, rescaled", "ThiNet")
    }
    when = {
        "an epoch after each stage": partial(chain, make=partial(by_stage, at_the_end=False)),
        "as many epochs at the end": partial(chain, make=partial(by_stage, at_the_end=True)),
    }
    same: dict[str, Any] = {"seeds_at": ONCE, "ours": True}
    return [
        Row(table, name, "cifar10", dense=network, chain=tail, **same, scales=scales)
        for table, network, tails, scales in (
            ("ResNet-56: criteria with and without rescaling", resnet56, every | afresh, None),
            ("VGG-16 on CIFAR-10: criteria with and without rescaling", vgg16, every, SHORT),
            ("ResNet-56: when to tune", resnet56, when, None),
        )
        for name, tail in tails.items()
    ]


def resizings() -> list[Row]:
    """The networks whose change has another sign under another resizing, by both of them."""
    same: dict[str, Any] = {"scales": SHORT[2:], "ours": True, "further": resized}
    rows = []
    for name, network, shape, make in (
        ("VGG-16", vgg16, VGG16, None),
        ("ThiNet-Conv", vgg16, CONV, ThiNet()),
        ("ThiNet-GAP", vgg16, GAP, ThiNet(gap=True)),
        ("ResNet-50", resnet50, RESNET50, None),
        ("ThiNet-70", resnet50, RESNETS[0.7], ThiNet(0.7)),
    ):
        tail = partial(under_protocols, dense=start, prune=make)
        rows.append(Row(BOTH, name, "imagenet", shape, dense=network, chain=tail, **same))
    return rows


def resized(scale: str) -> dict[str, Source]:
    """The row's own data under each protocol."""
    return {name: Source(protocol=name) for name in RESIZINGS}


def abstract() -> list[Row]:
    """The size of ThiNet-Tiny in the abstract."""
    sizes = {"memory": [("ThiNet-Tiny", "model_size")]}
    return [Row("abstract", "ThiNet-Tiny", "imagenet", TINY_SHAPE, missing=SIZE_ALONE, sizes=sizes)]


def paper() -> Paper:
    """The paper as the harness sees it."""
    tables = (table1, table2, table3, table4, figure4, journal, criteria, resizings, abstract)
    title = "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression"
    rows = [one for table in tables for one in table()]
    return Paper("thinet", title, "Luo, Wu, Lin; ICCV 2017; arXiv 1707.06342", rows, DEVIATIONS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "thinet", *sys.argv[1:]]))
