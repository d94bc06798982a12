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

Reproduced here: Table 1 (VGG-16), Table 3 (ResNet-50), what of Table 2 can run, Figure 4 (criteria), the journal's
version (TPAMI); beyond the paper: the same criteria with and without the same rescaling, beside Channel Pruning's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench import zoo
from bench.chains import (
    Prune,
    dense,
    from_scratch,
    gmacs,
    measured,
    measured_chain,
    shape_of,
    trained,
    under_protocols,
)
from bench.cli import main
from bench.measure import macs
from bench.measure import steps as measuring
from bench.measure.protocols import PROTOCOLS
from bench.models.edits import Edit, NewOutputs, ReplaceHead
from bench.models.recipe import Recipe
from bench.pruning import steps as pruning
from bench.pruning import surgery
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import RESCALE, Method
from bench.rows import SIZE_ALONE, Chain, Paper, Row, Setting
from bench.steps import Kind, Source, Step, make_step
from bench.train import steps as training
from bench.train.schedule import Schedule

DEVIATIONS = [
    "Sampling: 10 draws of (position, one random output filter) from each of 10 images a class, as published, on "
    "ImageNet (100,000 rows). On sets of ten classes that would be 1,000 rows: 5,000 images of CIFAR-10, 720 of "
    "embedded data, spread evenly over the classes. A tenth of them is held out and judges the factors.",
    "Summing over all filters at each sampled position instead of drawing one is ours (`all filters`): the same in "
    "expectation, with less noise.",
    "Weights: torchvision's VGG-16 unless weights are given; the paper's are Caffe's.",
    "VGG-16's fine-tuning, from the authors' scripts: SGD, 1e-3, batch 128, weight decay 5e-4; one epoch after each "
    "layer, two with the rate divided by ten after the first behind conv1_2, conv2_2 and conv3_3, twelve after conv4_3 "
    "(divided after the fourth and the eighth). Biases decay too and learn at the rate of the weights (in the scripts "
    "they do not decay and learn twice as fast).",
    "ResNet-50's, from the authors' later code: both inner layers of a block are pruned, then one epoch at 1e-4; nine "
    "epochs at 1e-3 after the last block (divided after the third and the sixth).",
    "On CIFAR-10 and embedded data the schedules are shorter (`protocol`), and VGG-16 and ResNet-50 are those of "
    "Channel Pruning's page; their rows are analogues.",
    "ThiNet-GAP: pooling and fully connected layers give way to global average pooling when all layers are pruned, "
    "before the long fine-tuning; when the authors do it could not be read.",
    "ThiNet-Tiny also prunes conv5_3, which no convolution reads; how could not be read, so that its sizes alone are "
    "judged. SqueezeNet is torchvision's 1.0 on images of 227x227.",
    "ThiNet-WS (Table 2) is taken as ThiNet-Conv with the smallest weight sums removed and the same rescaling.",
    "Figure 4 is drawn in the paper for VGG-GAP on CUB-200; here for VGG-16 at four shares of kept filters in conv1_1 "
    "to conv4_3, all layers at once, nothing fine-tuned.",
    "Both resizings of the authors (256x256, or the shorter side 256) stand side by side in the table `Evaluation "
    "protocols`; the rows of the paper's tables are measured by the one that a run is given (`--protocol`).",
    "Table 4, how the networks were tuned on the new data set could not be read: 30 epochs at 1e-3 (a tenth after 20), "
    "batch 32, with fresh outputs. Its analogue moves from `clutter`, without the scans that `digits` is tested on, to "
    "`digits`.",
    "FLOPs are counted as the authors' FLOPs_and_size.py does, which takes the means and the scales of Caffe's batch "
    "norms along (without them ThiNet-30's 2.20 B would be 2.19). The README's 138.24 M parameters of VGG-16 come out "
    "as 138.34, as the paper has them.",
]

TABLE1, TABLE3 = "Table 1 (VGG-16)", "Table 3 (ResNet-50)"
TABLE2 = "Table 2 (VGG-16 vs other pruning methods)"
FIGURE4 = "Figure 4 (selection criteria, VGG-GAP on CUB-200)"
README_VGG, README_RESNET = "ThiNet_Code README (VGG-16, ratio 0.5)", "ThiNet_Code README (ResNet-50, ratio 0.7)"
TABLE4, BOTH = "Table 4 (transfer)", "Evaluation protocols"
CRITERIA = "ResNet-56: criteria with and without rescaling"
CRITERIA_VGG = "VGG-16 on CIFAR-10: criteria with and without rescaling"
WHEN = "ResNet-56: when to tune"

# conv1_1 to conv4_3 lose filters; conv5_x and the fully connected layers do not
PRUNED = [
    f"conv{stage}_{number}" for stage, count in ((1, 2), (2, 2), (3, 3), (4, 3)) for number in range(1, count + 1)
]
# ThiNet-Tiny's filters (its prototxt), conv1_1 to conv5_3
TINY = (16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 256)
# Figure 4: shares of the filters that stay
SHARES = (0.8, 0.6, 0.4, 0.2)

# --------------------------------------------------------------------------------------------------------------------
# The method, as published, and what stands beside it

THINET = Method("thinet", compensate=False, rebuild=RESCALE, outputs="one")
TPAMI = Method("thinet tpami", compensate=False, rebuild=RESCALE, outputs="one")
UNSCALED = Method("thinet", compensate=False, reconstruct=False, outputs="one")


def ranked(selection: str, rescaled: bool = False) -> Method:
    """A criterion that ranks channels, without a change of the weights or with ThiNet's rescaling."""
    if rescaled:
        return Method(selection, compensate=False, rebuild=RESCALE, outputs="one")
    return Method(selection, compensate=False, reconstruct=False)


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


def pruned(
    setting: Setting, recipe: Recipe, parent: Step, seed: int, method: Method, widths: pruning.Widths, alone: bool
) -> Step:
    """``parent`` with fewer filters; with ``alone`` the layers that are named are the only ones looked at."""
    images = min(protocol(setting.scale, recipe).images, setting.train_images)
    sampling = Sampling(positions=10, seed=seed)
    params = pruning.Pruning(method, widths, sampling, images, balanced=True, alone=alone)
    return pruning.pruned(parent, None, params, setting.data, gmacs(recipe, images, 4.0))


def edited(setting: Setting, parent: Step, edit: Edit, seed: int) -> Step:
    """``parent`` with an edit; what is new in it has weights from ``seed``."""
    return make_step(
        Kind.PRUNE, "edited", training.run_edited, training.Editing(edit, seed), [parent], device=setting.device
    )


@dataclass(frozen=True)
class Stage:
    """Layers (module names) that are pruned together, and the fine-tuning after them."""

    layers: tuple[str, ...]
    tuning: Schedule


def layer_by_layer(
    setting: Setting,
    recipe: Recipe,
    start: Step,
    seed: int,
    *,
    stages: Sequence[Stage],
    keep: Mapping[str, int],
    method: Method,
    last: Schedule,
    edit: ReplaceHead | None = None,
) -> Step:
    """The whole procedure: each stage's layers pruned in the network as it is by now, then tuned; at the end the long
    fine-tuning, of a new head too where one is asked for.

    The network after each stage is kept until the next one is there.
    """
    step = start

    def then(found: Step, what: str, transient: bool = True) -> Step:
        # named by what it does, not by all that came before; its weights may go once the next step is there
        return replace(found, name=f"{method.selection} {what} ({start.name}, seed {seed})", transient=transient)

    for number, stage in enumerate(stages):
        for name in stage.layers:
            small = pruned(setting, recipe, step, seed, method, pruning.Fixed({name: keep[name]}), alone=True)
            step = then(small, f"{name} to {keep[name]}")
        if number < len(stages) - 1:  # behind the last stage the long fine-tuning comes at once
            tuned = trained(setting, recipe, step, stage.tuning, seed, "tuned")
            step = then(tuned, f"tuned after {name}")
    if edit is not None:
        step = then(edited(setting, step, edit, seed), "with average pooling")
    return then(trained(setting, recipe, step, last, seed, "tuned"), "tuned at the end", transient=False)


# --------------------------------------------------------------------------------------------------------------------
# Protocols: how long is tuned, and on how many images channels are chosen


@dataclass(frozen=True)
class Protocol:
    """Fine-tuning after a stage, after the last layer of a block of VGG-16, at the end; images to sample."""

    each: Schedule
    block: Schedule
    last: Schedule
    images: int


def protocol(scale: str, recipe: Recipe) -> Protocol:
    """The authors' on ImageNet and on images as large, what the data are worth elsewhere."""
    large = scale == "imagenet" or recipe.input_shape[1] == 224
    if large and "resnet" in recipe.builder:
        each = Schedule(epochs=1, lr=1e-4, batch=128, weight_decay=5e-4)
        last = Schedule(epochs=9, lr=1e-3, batch=128, weight_decay=5e-4, shape="steps", milestones=(3, 6))
        return Protocol(each, each, last, 10_000)
    if large:
        each = Schedule(epochs=1, lr=1e-3, batch=128, weight_decay=5e-4)
        block = Schedule(epochs=2, lr=1e-3, batch=128, weight_decay=5e-4, shape="steps", milestones=(1,))
        last = Schedule(epochs=12, lr=1e-3, batch=128, weight_decay=5e-4, shape="steps", milestones=(4, 8))
        return Protocol(each, block, last, 10_000)
    if scale in zoo.EMBEDDED:
        each = Schedule(epochs=1, lr=0.002, batch=64, weight_decay=5e-4)
        last = Schedule(epochs=4, lr=0.005, batch=64, weight_decay=5e-4, shape="cosine")
        return Protocol(each, each, last, 720)
    each = Schedule(epochs=1, lr=0.005, batch=128, weight_decay=5e-4)
    last = Schedule(epochs=6, lr=0.01, batch=128, weight_decay=5e-4, shape="cosine")
    return Protocol(each, each, last, 5000)


def vgg_stages(scale: str, recipe: Recipe) -> list[Stage]:
    """VGG-16 layer by layer, conv1_1 to conv4_3."""
    names, how = zoo.vgg_layers(recipe), protocol(scale, recipe)
    ends = ("conv1_2", "conv2_2", "conv3_3")
    return [Stage((names[layer],), how.block if layer in ends else how.each) for layer in PRUNED]


def resnet_stages(scale: str, recipe: Recipe) -> list[Stage]:
    """ResNet-50 block by block, both inner layers of each."""
    producers, _ = pruning.prunable(recipe)
    blocks = dict.fromkeys(name.rpartition(".")[0] for name in producers)
    each = protocol(scale, recipe).each
    return [Stage((f"{block}.conv1", f"{block}.conv2"), each) for block in blocks]


# --------------------------------------------------------------------------------------------------------------------
# Widths


def of_vgg(recipe: Recipe, share: float = 0.5) -> dict[str, int]:
    """conv1_1 to conv4_3 keep this share of their filters."""
    return _shares(recipe, [zoo.vgg_layers(recipe)[name] for name in PRUNED], share)


def of_resnet(recipe: Recipe, share: float) -> dict[str, int]:
    """The two inner layers of each block keep int(share x filters), as in the authors' generator."""
    return _shares(recipe, pruning.prunable(recipe)[0], share)


def tiny(recipe: Recipe) -> dict[str, int]:
    """ThiNet-Tiny's filters."""
    return dict(zip(zoo.vgg_layers(recipe).values(), TINY, strict=True))


def _shares(recipe: Recipe, names: Sequence[str], share: float) -> dict[str, int]:
    model = recipe.build("meta")
    filters = {name: surgery.convolution(model, name).out_channels for name in names}
    # the share is written in decimals: 0.7 of 10 filters are 7
    return {name: max(1, int(round(share * count, 6))) for name, count in filters.items()}


# --------------------------------------------------------------------------------------------------------------------
# Chains


def whole(
    setting: Setting,
    recipe: Recipe,
    parent: Step,
    seed: int,
    *,
    stages: Callable[[str, Recipe], list[Stage]],
    widths: Callable[[Recipe], dict[str, int]],
    method: Method = THINET,
    edit: ReplaceHead | None = None,
) -> Step:
    """A row of Table 1 or 3: layer by layer."""
    last = protocol(setting.scale, recipe).last
    keep = widths(recipe)
    steps = stages(setting.scale, recipe)
    return layer_by_layer(setting, recipe, parent, seed, stages=steps, keep=keep, method=method, last=last, edit=edit)


def at_once(
    setting: Setting,
    recipe: Recipe,
    parent: Step,
    seed: int,
    *,
    widths: Callable[[Recipe], dict[str, int]],
    method: Method,
) -> Step:
    """All layers in one walk, nothing fine-tuned: what a criterion is worth."""
    return pruned(setting, recipe, parent, seed, method, pruning.Fixed(widths(recipe)), alone=False)


def by_stage(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, at_the_end: bool) -> Step:
    """The inner layers of one stage after the other, with an epoch after each stage, or with as many at the end."""
    keep, each, step = of_resnet(recipe, 0.5), protocol(setting.scale, recipe).each, parent
    stages = list(dict.fromkeys(name.partition(".")[0] for name in keep))
    for stage in stages:
        widths = pruning.Fixed({name: count for name, count in keep.items() if name.startswith(f"{stage}.")})
        step = pruned(setting, recipe, step, seed, THINET, widths, alone=True)
        if not at_the_end:
            step = trained(setting, recipe, step, each, seed, "tuned")
    if at_the_end:
        step = trained(setting, recipe, step, replace(each, epochs=each.epochs * len(stages)), seed, "tuned")
    return step


def chain(setting: Setting, recipe: Recipe, *, make: Prune | None) -> Chain:
    """The network that ``make`` gives, measured and compared with the dense one."""
    return measured_chain(setting, recipe, dense=dense, prune=make, tuning=None)


def protocols(setting: Setting, recipe: Recipe, *, make: Prune | None) -> Chain:
    """The network that ``make`` gives and the dense one, measured by both resizings of the authors."""
    return under_protocols(setting, recipe, dense=dense, prune=make)


# Table 4: what the dense network was trained on, by its name among the further data of a row
SOURCE = "source"


def transferred(setting: Setting, recipe: Recipe, seed: int, *, make: Prune | None = None) -> Step:
    """The source's dense network, or what ``make`` makes of it there, with fresh outputs tuned on the row's data."""
    source = setting.further[SOURCE]
    theirs = zoo.vgg16(source.scale, source.classes, source.weights is not None)
    found = dense(source, theirs, seed)
    if make is not None:
        found = make(source, theirs, found, seed)
    fresh = replace(edited(setting, found, NewOutputs(setting.classes), seed), name=f"fresh outputs({found.name})")
    return trained(setting, recipe, fresh, moving(setting.scale, recipe), seed, "moved")


def moving(scale: str, recipe: Recipe) -> Schedule:
    """How a network is tuned on a new data set."""
    if scale in zoo.EMBEDDED:
        return protocol(scale, recipe).last
    return Schedule(epochs=30, lr=1e-3, batch=32, weight_decay=5e-4, shape="steps", milestones=(20,))


def transfer(setting: Setting, recipe: Recipe, *, make: Prune | None) -> Chain:
    """A row of Table 4, compared with the dense network that was moved to the row's data."""
    return measured_chain(setting, recipe, dense=transferred, prune=make, tuning=None)


def moved(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, make: Prune) -> Step:
    """Pruned by ``make`` on the source, then moved; the moved dense network ``parent`` is not used."""
    return transferred(setting, recipe, seed, make=make)


def fresh_gap(setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
    """ThiNet-GAP's shape from fresh weights on the row's data; ``parent`` is not used."""
    shape = shape_of(recipe, of_vgg(recipe)).edited(ReplaceHead())
    scale = setting.scale if setting.scale in zoo.EMBEDDED else "imagenet"
    return trained(setting, shape, None, zoo.from_scratch(scale, recipe), seed, "from scratch")


def curves(setting: Setting, recipe: Recipe) -> Chain:
    """Figure 4: top-1 of each criterion at four speed-ups, the dense network's at 1."""
    seed = setting.seeds[0]
    start = dense(setting, recipe, seed)
    reference = measured(setting, recipe, start, seed)
    runs, series, places = [], [], []
    for name in FIGURE4_METHODS:
        runs.append(reference)
        series.append(name)
        places.append(1.0)
        for share in SHARES:
            small = at_once(
                setting, recipe, start, seed, widths=partial(of_vgg, share=share), method=FIGURE4_METHODS[name]
            )
            runs.append(measured(setting, recipe, small, seed))
            series.append(name)
            places.append(round(speedup(recipe, of_vgg(recipe, share)), 2))
    return Chain([], [measuring.points(runs, series, places)])


def speedup(recipe: Recipe, keep: Mapping[str, int]) -> float:
    """Dense conv MACs over those at these widths."""
    dense_, pruned = (macs.count(one.build("meta"), one.input_shape) for one in (recipe, shape_of(recipe, keep)))
    return dense_.total("conv") / pruned.total("conv")


# --------------------------------------------------------------------------------------------------------------------
# Rows

VGG16 = zoo.vgg16("imagenet", 1000, False)
RESNET50 = zoo.resnet50("imagenet", 1000, True)  # Caffe's: the stride in the first 1x1
CONV = shape_of(VGG16, of_vgg(VGG16))
GAP = CONV.edited(ReplaceHead())
TINY_SHAPE = shape_of(VGG16, tiny(VGG16)).edited(ReplaceHead())
SQUEEZENET = Recipe("torchvision.models:squeezenet1_0", {}, (3, 227, 227))
FIGURE4_METHODS = {
    "random": ranked("random"),
    "weight sum": ranked("weight sum"),
    "APoZ": ranked("apoz"),
    "ThiNet w/o w": UNSCALED,
    "ThiNet": THINET,
}
# the embedded job: one seed, and no row that trains longest
ONCE = {"clutter": (0,)}
SHORT = ("digits", "cifar10", "imagenet")

by_layer = partial(whole, stages=vgg_stages, widths=of_vgg)


def table1() -> list[Row]:
    """VGG-16: the original, ThiNet-Conv, its shape from scratch, ThiNet-GAP, ThiNet-Tiny, SqueezeNet."""

    def row(name: str, shape: Recipe, row_chain: Callable[[Setting, Recipe], Chain] | None, **more: object) -> Row:
        links = {metric: (name, metric) for metric in ("top1_acc", "top5_acc")}
        sizes = {"macs": [(name, "FLOPs")], "params": [(name, "params")]}
        plain = Row(TABLE1, name, "imagenet", shape, None, zoo.vgg16, row_chain, links, sizes, seeds_at=ONCE)
        return replace(plain, **more)  # type: ignore[arg-type]

    return [
        row("Original", VGG16, partial(chain, make=None)),
        row("ThiNet-Conv", CONV, partial(chain, make=by_layer)),
        row("Train from scratch", CONV, partial(from_scratch, widths=of_vgg), scales=SHORT),
        row("ThiNet-GAP", GAP, partial(chain, make=partial(by_layer, edit=ReplaceHead()))),
        row("ThiNet-Tiny", TINY_SHAPE, None, missing="how conv5_3 was pruned could not be read"),
        row("SqueezeNet", SQUEEZENET, None, missing=SIZE_ALONE),
    ]


def table2() -> list[Row]:
    """VGG-16 against other methods, as changes from each one's own dense network: what of it can run."""
    changes = ("top1", "top5")
    rows = []
    for name, make in (
        ("ThiNet-WS", partial(by_layer, method=ranked("weight sum", rescaled=True))),
        ("ThiNet-Conv", by_layer),
        ("ThiNet-GAP", partial(by_layer, edit=ReplaceHead())),
    ):
        links = {f"{top}_change": (name, f"{top}_acc_change") for top in changes}
        sizes = {"params_reduction": [(name, "params_reduction")], "speedup": [(name, "FLOPs_reduction")]}
        shape = GAP if name == "ThiNet-GAP" else CONV
        # ThiNet-Conv's reductions follow from Table 1 and are a check of ours
        printed = {} if name == "ThiNet-Conv" else sizes
        tail = partial(chain, make=make)
        rows.append(Row(TABLE2, name, "imagenet", shape, None, zoo.vgg16, tail, links, printed, seeds_at=ONCE))
    reason = "its widths or its method could not be read"
    return [
        *rows,
        *(Row(TABLE2, name, "imagenet", missing=reason) for name in ("APoZ-1", "APoZ-2", "Taylor-1", "Taylor-2")),
    ]


def table3() -> list[Row]:
    """ResNet-50 on Caffe's graph, 70, 50 and 30 % of the inner filters kept."""
    rows = []
    for name, share in (("Original", None), ("ThiNet-70", 0.7), ("ThiNet-50", 0.5), ("ThiNet-30", 0.3)):
        links = {metric: (name, metric) for metric in ("top1_acc", "top5_acc")}
        sizes = {"macs": [(name, "FLOPs")], "params": [(name, "params")]}
        make, shape = None, RESNET50
        if share is not None:
            make = partial(whole, stages=resnet_stages, widths=partial(of_resnet, share=share))
            shape = shape_of(RESNET50, of_resnet(RESNET50, share))
        tail = partial(chain, make=make)
        row = Row(TABLE3, name, "imagenet", shape, None, zoo.resnet50, tail, links, sizes, scales=SHORT)
        rows.append(row)
    return rows


def journal() -> list[Row]:
    """The authors' later README: both networks measured again, and the journal version."""
    rows = []
    for table, network, dense_shape, shape, stages, widths, names in (
        (README_VGG, zoo.vgg16, VGG16, CONV, vgg_stages, of_vgg, ("original VGG16", "ThiNet_ICCV", "ThiNet_TPAMI")),
        (
            README_RESNET, zoo.resnet50, RESNET50, shape_of(RESNET50, of_resnet(RESNET50, 0.7)), resnet_stages,
            partial(of_resnet, share=0.7), ("original ResNet50", "ThiNet_ICCV", "ThiNet_TPAMI"),
        ),
    ):  # fmt: skip
        for name, method in zip(names, (None, THINET, TPAMI), strict=True):
            make = None if method is None else partial(whole, stages=stages, widths=widths, method=method)
            links = {metric: (name, metric) for metric in ("top1_acc", "top5_acc")}
            sizes = {"macs": [(name, "FLOPs")], "params": [(name, "params")]}
            own = dense_shape if method is None else shape
            tail = partial(chain, make=make)
            # the row says which of the two tables it belongs to, whose ids are alike
            ours = f"{'VGG-16' if table == README_VGG else 'ResNet-50'}, {name}"
            rows.append(Row(table, ours, "imagenet", own, None, network, tail, links, sizes, scales=SHORT))
    return rows


def figure4() -> list[Row]:
    """The criteria of Figure 4 at half of the filters, and their curves."""
    rows = [
        Row(
            FIGURE4,
            name,
            "CUB-200",
            dense=zoo.vgg16,
            chain=partial(chain, make=partial(at_once, widths=of_vgg, method=method)),
            seeds_at=ONCE,
        )
        for name, method in FIGURE4_METHODS.items()
    ]
    return [*rows, Row(FIGURE4, "curves", "CUB-200", dense=zoo.vgg16, chain=curves, seeds=(0,))]


def criteria() -> list[Row]:
    """Every criterion without and with the same rescaling, at half of the inner filters, nothing fine-tuned.

    And whether it is worth to tune in between.
    """
    rows = []
    for table, network, widths in (
        (CRITERIA, zoo.resnet56, partial(of_resnet, share=0.5)),
        (CRITERIA_VGG, zoo.vgg16, of_vgg),
    ):
        rows.append(Row(table, "dense", "cifar10", dense=network, chain=partial(chain, make=None), ours=True))
        for name, method in METHODS.items():
            make = partial(at_once, widths=widths, method=method)
            rows.append(Row(table, name, "cifar10", dense=network, chain=partial(chain, make=make), ours=True))
    for name, late in (("an epoch after each stage", False), ("as many epochs at the end", True)):
        tail = partial(chain, make=partial(by_stage, at_the_end=late))
        rows.append(Row(WHEN, name, "cifar10", dense=zoo.resnet56, chain=tail, ours=True))
    return [replace(row, seeds_at=ONCE) for row in rows]


def abstract() -> list[Row]:
    """The size of ThiNet-Tiny in the abstract."""
    sizes = {"memory": [("ThiNet-Tiny", "model_size")]}
    return [Row("abstract", "ThiNet-Tiny", "imagenet", TINY_SHAPE, missing=SIZE_ALONE, sizes=sizes)]


def both_protocols() -> list[Row]:
    """The networks whose change has another sign under another resizing, by both of them."""
    resnet = partial(whole, stages=resnet_stages, widths=partial(of_resnet, share=0.7))
    rows = []
    for name, network, shape, make in (
        ("VGG-16", zoo.vgg16, VGG16, None),
        ("ThiNet-Conv", zoo.vgg16, CONV, by_layer),
        ("ThiNet-GAP", zoo.vgg16, GAP, partial(by_layer, edit=ReplaceHead())),
        ("ResNet-50", zoo.resnet50, RESNET50, None),
        ("ThiNet-70", zoo.resnet50, shape_of(RESNET50, of_resnet(RESNET50, 0.7)), resnet),
    ):
        tail = partial(protocols, make=make)
        row = Row(BOTH, name, "imagenet", shape, None, network, tail, scales=("imagenet",), ours=True, further=resized)
        rows.append(row)
    return rows


def resized(scale: str) -> dict[str, Source]:
    """The row's own data under each protocol."""
    return {name: Source(protocol=name) for name in PROTOCOLS}


def table4() -> list[Row]:
    """Pruned on one data set and tuned on another, against pruned on the other and against from scratch."""
    found: dict[str, Prune | None] = {
        "VGG-16": None,
        "FT & prune": partial(by_layer, edit=ReplaceHead()),
        "Train from scratch": fresh_gap,
        "ThiNet-Conv": partial(moved, make=by_layer),
        "ThiNet-GAP": partial(moved, make=partial(by_layer, edit=ReplaceHead())),
    }
    rows = []
    for name, make in found.items():
        tail, links = partial(transfer, make=make), {"top1_acc": (name, "top1_acc")}
        row = Row(TABLE4, name, "CUB-200", None, None, zoo.vgg16, tail, links, scales=("digits",), further=elsewhere)
        rows.append(row)
    tiny_reason = "how conv5_3 was pruned could not be read"
    rows.append(Row(TABLE4, "ThiNet-Tiny", "CUB-200", missing=tiny_reason))
    rows.append(Row(TABLE4, "AlexNet", "CUB-200", missing="another network, without pruning"))
    return rows


def elsewhere(scale: str) -> dict[str, Source]:
    """What the networks of Table 4 are trained on first: ImageNet, for `digits` the same scans in clutter."""
    return {SOURCE: Source("clutter", apart=scale) if scale == "digits" else Source("imagenet")}


def paper() -> Paper:
    """The paper as the harness sees it."""
    rows = [
        *(*table1(), *table2(), *table3(), *table4(), *figure4(), *journal()),
        *(*criteria(), *both_protocols(), *abstract()),
    ]
    title = "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression"
    return Paper("thinet", title, "Luo, Wu, Lin; ICCV 2017; arXiv 1707.06342", rows, DEVIATIONS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "thinet", *sys.argv[1:]]))
