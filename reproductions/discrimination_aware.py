"""Discrimination-aware Channel Pruning for Deep Neural Networks (Zhuang et al.; NeurIPS 2018; arXiv 1810.11809).

Losses are put inside the network: behind some of its blocks a batch norm, ReLU, average pooling and a linear layer must
tell the classes.  Segment by segment, the network is fine-tuned with the loss at the segment's end (algorithm 1); then
the input channels of each of its layers are chosen by the gradient of

    L(W) = L_M(W) + lambda L_S^p(W)     L_M = |O_b - O|^2 / (2Q), L_S^p = the cross-entropy at the segment's end

    A = {}                                        (algorithm 2; bench.pruning.greedy.choose)
    until |A| = kappa, or |L_{t-1} - L_t| <= epsilon L_0 (DCP-Adapt):
        k = argmax_{j not in A} |dL/dW_j|_F;  A += k
        W_A follows the gradient of L             (one pass of SGD, everything else fixed)

and the pruned network is fine-tuned.  Reproduced: Tables 1, 3, 5, 6, 7, S1, S2, and every printed size that a built
network decides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

from torch import nn

from bench import zoo
from bench.chains import Prune, gmacs, loaded, measured_chain, shape_of, trained
from bench.cli import main
from bench.gating import steps as gating
from bench.models.recipe import Recipe
from bench.models.vgg19 import CONVS
from bench.pruning import steps as pruning
from bench.pruning import surgery
from bench.pruning.calibration import Sampling
from bench.pruning.discrimination_steps import (
    Segment,
    Selecting,
    Tuning,
    blocks,
    places,
    run_selected,
    run_tuned,
    segments,
)
from bench.pruning.greedy import Greedy
from bench.pruning.layerwise import RESCALE, Method
from bench.rows import SIZE_ALONE, Chain, Paper, Row, Setting
from bench.steps import Kind, Step, make_step
from bench.train.schedule import Schedule

DEVIATIONS = [
    "Table 1's reductions of the parameters are ratios of the rounded counts of Table S5: VGGNet 2.00e7 / 1.04e7 = "
    "1.92 (exactly 20,040,522 / 10,361,991 = 1.93), DCP-Adapt 2.00e7 / 1,284,006 = 15.58 (15.61). ResNet-56's 1.97 "
    "does not follow from Table S5 (8.56e5 / 4.31e5 = 1.99; exactly 855,578 / 430,634 = 1.99). Table 3's 2.25 is "
    "4.09e9 / 1.82e9 (exactly 4,089,184,256 / 1,822,031,872 = 2.24).",
    "SphereNet-4 is the four-layer network of SphereFace (Liu et al. 2017) on images of 112x96; the printed FLOPs add"
    " one for each output of a layer with a bias, and the pruned ones have fewer inputs of the fully connected layer "
    "too.",
    "MobileNet on 32x32 images is not described (where it strides, what of it is pruned): its sizes are not decided.",
    "Each iteration of the fine-tuning with a further loss takes both gradients at the same weights, as one step; in "
    "the paper (algorithm S1) two steps follow one another after one forward pass.",
    "Baseline of L_M: the network before any tuning, as in the paper; in the released code (`one-off`) the tuned one,"
    " which is tuned once with all losses and then pruned without further tuning. Its weights of the losses, ((p k + "
    "1) / (P k + 1))^2 and at least 0.01 for the loss behind block p k, are taken; its further division of the "
    "learning rates is not.",
    "Layers keep c - floor(eta c) channels (the released code); the paper's ceil(eta c) can only mean that.",
    "The losses stand behind blocks p k, k = blocks // (P + 1) + 1, as in the released code; where that runs past the"
    " last block (7 losses in ResNet-56) they are spread evenly. In VGGNet, which the code does not have, a loss "
    "reads a convolution's output.",
    "Channels are chosen on fixed, unaugmented training images, evenly over the classes: 512 of CIFAR-10, 128 of "
    "embedded data, 10,000 of ImageNet (the paper: all of CIFAR-10, 10,000 of ImageNet, augmented and drawn anew for "
    "each pass in the code).",
    "CIFAR-10: the dense networks are trained for 40 epochs (the paper: 400), and every pruned network for 24 in all:"
    " one before each selection, the rest at the end (the paper: 400 at the end). ImageNet: 20 epochs before each "
    "selection (the authors, in their issue 6) and as many at the end as make 140 in all (the paper: 60 at the end). "
    "ThiNet, CP, WM and slimming are tuned for the same sum of epochs in one go.",
    "ThiNet and CP select here as on their own pages (10 positions of 5,000 images), all layers in one walk.",
    "WM ranks filters by their sums of absolute weights; WM+ is taken as the same choice behind the tuning with the "
    "further losses, Random DCP as algorithm 2 with the channels in random order.",
    "Table 6 is measured behind the last selection, with nothing fine-tuned; all its rows are tuned with the losses "
    "before each selection.",
    "DCP-Adapt of ResNet-56: epsilon = 0.001, which the paper states for VGGNet.",
    "On embedded data the networks are a ResNet-20 of half the width and a VGG-19 of an eighth; rows there are "
    "analogues.",
]

TABLE1, TABLE3, TABLE5 = "Table 1 (CIFAR-10)", "Table 3 (ResNet-50 ImageNet, rate 0.5)", "Table 5 (pruning rates)"
TABLE2, TABLE4 = "Table 2 (MobileNet, prune 30%)", "Table 4 (LFW)"
TABLE6, TABLE7 = "Table 6 (lambda, ResNet-56, prune 30%, no fine-tuning)", "Table 7 (epsilon, DCP-Adapt, VGGNet)"
TABLE_S1, TABLE_S2 = "Table S1 (number of losses, ResNet-56 2x)", "Table S2 (pre-trained quality, ResNet-56 2x)"
TABLE_S3 = "Table S3 (MobileNet ImageNet)"
TABLE_S4, TABLE_S5 = "Table S4 (complexity and time)", "Table S5 (CIFAR-10 complexity)"
FIGURE_S1 = "Figure S1 (single block, ResNet-18, 30%)"
FIGURE_S2 = "Figure S2 (number of samples, ResNet-18, 30%; before final fine-tuning: inferred)"
LAMBDA20, LOSSES20 = "Lambda on ResNet-20 (prune 30%, no fine-tuning)", "Number of losses on ResNet-20 (2x)"

# lambda = 1; SGD of a layer's weights as in the released code, one pass after each pick
GREEDY = Greedy(alpha=1.0, lr=0.01, momentum=0.9, weight_decay=1e-4, steps=1)
RELEASED = replace(GREEDY, score="l21")


# --------------------------------------------------------------------------------------------------------------------
# What is pruned


def rate(recipe: Recipe, eta: str) -> dict[str, int]:
    """Filters kept by producer: c - floor(eta c) of every layer that only one convolution reads (the released code)."""
    model = recipe.build("meta" if ":" not in recipe.builder else "cpu")
    filters = {name: surgery.convolution(model, name).out_channels for name in pruning.prunable(recipe)[0]}
    return {name: count - int(Fraction(eta) * count) for name, count in filters.items()}


# --------------------------------------------------------------------------------------------------------------------
# Networks and protocols


def vggnet(scale: str, classes: int, given: bool) -> Recipe:
    """VGG-19 with batch norm on 32x32; an eighth of its width at the embedded scales."""
    width = {"width": 0.125} if scale in zoo.EMBEDDED else {}
    return Recipe("cifar_vgg19_bn", {"num_classes": classes, **width}, (3, 32, 32))


def resnet56(scale: str, classes: int, given: bool) -> Recipe:
    """The pre-activation ResNet-56 on 32x32; ResNet-20 stands for it at the embedded scales, at half its width."""
    if scale in zoo.EMBEDDED:
        return Recipe("cifar_preact_resnet20", {"num_classes": classes, "width": 0.5}, (3, 32, 32))
    return Recipe("cifar_preact_resnet56", {"num_classes": classes}, (3, 32, 32))


def resnet20(scale: str, classes: int, given: bool) -> Recipe:
    """The pre-activation ResNet-20."""
    return replace(resnet56("cifar10", classes, given), builder="cifar_preact_resnet20")


def resnet18(scale: str, classes: int, given: bool) -> Recipe:
    """Torchvision's ResNet-18."""
    return Recipe("resnet18", {"num_classes": classes}, (3, 224, 224))


def resnet50(scale: str, classes: int, given: bool) -> Recipe:
    """Torchvision's ResNet-50, with the stride in the 3x3 convolution."""
    return Recipe("resnet50", {"num_classes": classes}, (3, 224, 224))


@dataclass(frozen=True)
class Protocol:
    """Tuning before a selection; all tuning (its epochs count those before selections too); images to choose on."""

    each: Schedule
    all: Schedule
    images: int
    batch: int = 128


def protocol(scale: str) -> Protocol:
    """The authors' on ImageNet, what two cores can do elsewhere."""
    if scale == "imagenet":
        each = Schedule(20, 0.01, 256, weight_decay=1e-4, nesterov=True)
        return Protocol(each, replace(each, epochs=140, shape="steps"), 10_000)
    batch = 64 if scale in zoo.EMBEDDED else 128
    each = Schedule(1, 0.02, batch, weight_decay=5e-4, nesterov=True, shape="cosine")
    whole = replace(each, epochs=6 if scale in zoo.EMBEDDED else 24, lr=0.05)
    return Protocol(each, whole, 128 if scale in zoo.EMBEDDED else 512, batch)


def left(whole: Schedule, used: int) -> Schedule:
    """What is left of all tuning for the end; steps at 60, 80 and 90 per cent of it (the paper's 36, 48, 54 of 60).

    Raises ValueError where nothing is left.
    """
    epochs = whole.epochs - used
    if epochs < 1:
        raise ValueError(f"{used} epochs before the selections leave nothing of {whole.epochs}")
    milestones = tuple(epochs * part // 10 for part in (6, 8, 9)) if whole.shape == "steps" else ()
    return replace(whole, epochs=epochs, milestones=milestones)


def dense(setting: Setting, recipe: Recipe, seed: int, *, epochs: int | None = None) -> Step:
    """The dense network: given, torchvision's, or trained; with ``epochs`` by the paper's schedule of that length."""
    if setting.weights is not None or setting.scale == "imagenet":
        return loaded(setting, recipe)
    schedule = Schedule(40, 0.1, 128, weight_decay=5e-4, nesterov=True, shape="cosine")
    if setting.scale in zoo.EMBEDDED:
        schedule = replace(schedule, epochs=8, batch=64)
    if epochs is not None:  # 400 epochs: divided by ten behind 160 and 240
        milestones = (epochs * 2 // 5, epochs * 3 // 5)
        schedule = Schedule(epochs, 0.1, 128, weight_decay=1e-4, nesterov=True, shape="steps", milestones=milestones)
    return trained(setting, recipe, None, schedule, seed, "dense")


# --------------------------------------------------------------------------------------------------------------------
# Methods: each gives the pruned network, tuned for as many epochs as all others


@dataclass(frozen=True)
class Variant:
    """How to prune, with ``losses`` inside.

    ``staged``: tuned before each selection, O_b of the dense network (the paper); else tuned once, O_b of the tuned one
    (the released code).  ``magnitude`` ranks filters by their weights in place of algorithm 2 (WM+).  Without ``tune``
    it ends behind the last selection.
    """

    losses: int = 3
    staged: bool = True
    greedy: Greedy = GREEDY
    magnitude: bool = False
    tune: bool = True


def discriminate(
    setting: Setting, recipe: Recipe, parent: Step, seed: int, *, eta: str, variant: Variant = Variant()
) -> Step:
    """Algorithm 1: segment by segment, tuned before each selection (or once), and at the end."""
    how, used, step, heads = protocol(setting.scale), 0, parent, parent
    keep = rate(recipe, "0" if variant.greedy.epsilon is not None else eta)
    parts = [part for part in segments(recipe, variant.losses) if part.producers]
    for number, part in enumerate(parts, start=1):
        if variant.staged or number == 1:
            inside = {part.position: 1.0} if part.position else {}
            if not variant.staged:
                inside = weights_of(recipe, variant.losses)
            schedule = how.each if variant.staged else replace(how.each, epochs=how.each.epochs * len(parts))
            used += schedule.epochs
            step = heads = make_step(
                Kind.TRAIN,
                f"tuned with losses {number}({variant.losses} losses, seed {seed}, {parent.name})",
                run_tuned,
                Tuning(inside, schedule, seed),
                [step],
                data=setting.data,
                device=setting.device,
                work=gmacs(recipe, setting.train_images, 3.0 * schedule.epochs),
            )
        here = {name: keep[name] for name in part.producers}
        step = selected(setting, recipe, (step, heads, parent if variant.staged else heads), here, part, seed, variant)
    if not variant.tune:
        return step
    return trained(setting, recipe, step, left(how.all, used), seed, "fine-tuned")


def weights_of(recipe: Recipe, losses: int) -> dict[str, float]:
    """The released code's weights of the losses inside, by position."""
    names = blocks(recipe)
    ends = places(len(names), losses)
    return {names[end - 1]: max(0.01, ((end + 1) / (ends[-1] + 1)) ** 2) for end in ends}


def selected(
    setting: Setting,
    recipe: Recipe,
    parents: tuple[Step, Step, Step],
    keep: dict[str, int],
    part: Segment,
    seed: int,
    variant: Variant,
) -> Step:
    """The selection in a segment: the network, the step with the classifiers, the baseline of L_M."""
    how = protocol(setting.scale)
    images = min(how.images, setting.train_images)
    if variant.magnitude:
        return ranked(setting, recipe, parents[0], seed, MAGNITUDE, keep)
    # two passes of a part of the network for each channel, forward and backward
    passes = 2.0 * sum(keep.values()) * 3.0 / (variant.losses + 1) / 2.0
    return make_step(
        Kind.PRUNE,
        f"{variant.greedy.score} behind {part.position or 'the network'}({parents[0].name})",
        run_selected,
        Selecting(part.position, keep, variant.greedy, images, seed, how.batch),
        parents,
        data=setting.data,
        device=setting.device,
        work=gmacs(recipe, images, passes),
    )


MAGNITUDE = Method("weight sum", compensate=False, reconstruct=False)
THINET = Method("thinet", compensate=False, rebuild=RESCALE, outputs="one")
LASSO = Method("lasso")


def ranked(setting: Setting, recipe: Recipe, parent: Step, seed: int, method: Method, keep: Mapping[str, int]) -> Step:
    """One walk through the layers in ``keep`` by another paper's criterion."""
    images = min(720 if setting.scale in zoo.EMBEDDED else 5000, setting.train_images)
    sampling = Sampling(positions=10, seed=seed)
    params = pruning.Pruning(method, pruning.Fixed(keep), sampling, images, balanced=True, alone=True)
    return pruning.pruned(parent, None, params, setting.data, gmacs(recipe, images, 4.0))


def in_one_walk(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, eta: str, method: Method) -> Step:
    """All layers by another paper's criterion, then all tuning in one go."""
    small = ranked(setting, recipe, parent, seed, method, rate(recipe, eta))
    return trained(setting, recipe, small, left(protocol(setting.scale).all, 0), seed, "fine-tuned")


def slimmed(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, speedup: float) -> Step:
    """Network slimming to ``speedup``: a quarter of all tuning with the L1 term (1e-4), the rest behind the removal."""
    whole = protocol(setting.scale).all
    sparse = gating.Sparse(replace(whole, epochs=whole.epochs // 4), seed, 1e-4)
    work = gmacs(recipe, setting.train_images, 3.0 * sparse.schedule.epochs)
    step = make_step(
        Kind.TRAIN, f"sparse({parent.name})", gating.run_sparse, sparse, [parent],
        data=setting.data, device=setting.device, work=work,
    )  # fmt: skip
    small = gating.Slimming(speedup)
    step = make_step(Kind.PRUNE, f"slimmed({step.name})", gating.run_slimmed, small, [step], device=setting.device)
    return trained(setting, recipe, step, left(whole, sparse.schedule.epochs), seed, "recovered")


def tuned_alone(setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
    """The dense network, tuned as long as the pruned ones."""
    return trained(setting, recipe, parent, left(protocol(setting.scale).all, 0), seed, "tuned as long")


def chain(setting: Setting, recipe: Recipe, *, make: Prune | None, epochs: int | None = None) -> Chain:
    """The network that ``make`` gives, measured and compared with the dense one (trained for ``epochs``)."""
    return measured_chain(setting, recipe, dense=partial(dense, epochs=epochs), prune=make, tuning=None)


# --------------------------------------------------------------------------------------------------------------------
# Shapes at the paper's scale


def sphere4() -> nn.Module:
    """SphereNet-4 (SphereFace, Liu et al. 2017): four 3x3 convolutions of stride 2 on 3 x 112 x 96, 512 features."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256), (256, 512)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.PReLU(outputs)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 7 * 6, 512))


VGGNET = vggnet("cifar10", 10, False)
RESNET56 = resnet56("cifar10", 10, False)
RESNET18 = resnet18("imagenet", 1000, False)
RESNET50 = resnet50("imagenet", 1000, False)
SPHERE = Recipe("reproductions.discrimination_aware:sphere4", {}, (3, 112, 96))
# Table S6: the input channels of conv1-2 to conv4-8, hence the filters of conv1-1 to conv4-7
ADAPT = (56, 64, 128, 115, 199, 177, 123, 52, 59, 46, 31, 37, 37, 44, 31)


def pruned_shape(recipe: Recipe, eta: str) -> Recipe:
    """The network at a pruning rate, first channels kept."""
    return shape_of(recipe, rate(recipe, eta))


def sphere_shape(eta: str) -> Recipe:
    """SphereNet-4 at a pruning rate: all four convolutions, the last one's channels as inputs of the linear layer."""
    filters = {f"{2 * place}": count for place, count in enumerate((64, 128, 256, 512))}
    return shape_of(SPHERE, {name: count - int(Fraction(eta) * count) for name, count in filters.items()})


ADAPTED = shape_of(VGGNET, dict(zip(CONVS, ADAPT, strict=False)))

# --------------------------------------------------------------------------------------------------------------------
# Rows

# the embedded job: one seed, and of Table 1 alone what takes minutes
ONCE = {"clutter": (0,)}
EMBEDDED_VGG = ("baseline", "WM", "DCP")
SHORT = ("digits", "cifar10", "imagenet")
GAP = {"top1_err_increase": "err_gap"}


def links(metrics: Mapping[str, str], row: str, *model: str) -> dict[str, tuple[str, ...]]:
    """Our metrics to those that the registry has for a row (of a model)."""
    return {ours: (row, printed, *model) for ours, printed in metrics.items()}


def counts(row: str, *model: str) -> dict[str, list[tuple[str, ...]]]:
    """A row's printed sizes where a table has counts."""
    return {"macs": [(row, "FLOPs", *model)], "params": [(row, "params", *model)]}


def reductions(row: str, *model: str) -> dict[str, list[tuple[str, ...]]]:
    """A row's printed sizes where a table has ratios to the dense network."""
    return {"speedup": [(row, "FLOPs_reduction", *model)], "params_reduction": [(row, "params_reduction", *model)]}


def methods(eta: str, losses: int) -> dict[str, Prune]:
    """The methods of Tables 1 and 3 that keep c - floor(eta c) filters everywhere."""
    plain = Variant(losses)
    return {
        "ThiNet": partial(in_one_walk, eta=eta, method=THINET),
        "CP": partial(in_one_walk, eta=eta, method=LASSO),
        "WM": partial(in_one_walk, eta=eta, method=MAGNITUDE),
        "WM+": partial(discriminate, eta=eta, variant=replace(plain, magnitude=True)),
        "Random DCP": partial(discriminate, eta=eta, variant=replace(plain, greedy=replace(GREEDY, score="random"))),
        "DCP": partial(discriminate, eta=eta, variant=plain),
    }


def adaptive(epsilon: float, losses: int) -> Prune:
    """DCP-Adapt: as many channels as the loss asks for."""
    return partial(discriminate, eta="0", variant=Variant(losses, greedy=replace(GREEDY, epsilon=epsilon)))


Network = Callable[[str, int, bool], Recipe]


def table1() -> list[Row]:
    """Both networks on CIFAR-10: the dense ones, other methods, DCP and DCP-Adapt; the released code's way (ours)."""
    rows = []
    networks: tuple[tuple[str, Network, Recipe, str, int, Recipe | None], ...] = (
        ("VGGNet", vggnet, VGGNET, "0.3", 2, ADAPTED),
        ("ResNet-56", resnet56, RESNET56, "0.5", 3, None),
    )
    for model, make_dense, recipe, eta, losses, adapted in networks:

        def row(
            name: str,
            make: Prune | None,
            shape: Recipe | None,
            model: str = model,
            net: Network = make_dense,
            **more: Any,
        ) -> Row:
            link = links(GAP, name, model) if make is not None else links({"top1_err": "test_err"}, name, model)
            tail = partial(chain, make=make)
            full = Row(TABLE1, f"{model}, {name}", "cifar10", shape, None, net, tail, link, seeds_at=ONCE)
            here = not more.get("ours") and (model != "VGGNet" or name in EMBEDDED_VGG)
            return replace(full, scales=None if here else SHORT[:2], **more)

        small = pruned_shape(recipe, eta)
        rows.append(row("baseline", None, recipe))
        rows.append(row("tuned as long", tuned_alone, recipe, published={}, ours=True))
        for name, make in methods(eta, losses).items():
            # CP's rows of the paper are of CP's own networks
            rows.append(row(name, make, small, sizes={} if name == "CP" else reductions(name, model)))
        if model == "VGGNet":
            rows.append(row("Slimming", partial(slimmed, speedup=2.04), None))
        sizes = {} if adapted is None else reductions("DCP-Adapt", model)
        rows.append(row("DCP-Adapt", adaptive(0.001, losses), adapted, sizes=sizes))
        code = Variant(losses, staged=False, greedy=RELEASED)
        one_off = partial(discriminate, eta=eta, variant=code)
        rows.append(row("DCP, one-off", one_off, small, published={}, ours=True))
    return rows


def imagenet() -> list[Row]:
    """Tables 3 and 5: ResNet-18 and ResNet-50 on ImageNet."""
    rows = []
    gaps = {"top1_err_increase": "top1_gap", "top5_err_increase": "top5_gap"}
    errors = {"top1_err": "top1_err", "top5_err": "top5_err"}
    base = partial(chain, make=None)
    small = pruned_shape(RESNET50, "0.5")
    rows.append(
        Row(TABLE3, "baseline", "imagenet", RESNET50, None, resnet50, base, links(errors, "baseline"), scales=SHORT[2:])
    )
    for name, make in methods("0.5", 3).items():
        link = links({"top5_err_increase": "top5_gap"} if name == "CP" else gaps, name)
        if name == "Random DCP":  # of CIFAR-10's table alone
            continue
        sizes = {} if name == "CP" else reductions(name)
        tail = partial(chain, make=make)
        rows.append(Row(TABLE3, name, "imagenet", small, None, resnet50, tail, link, sizes, scales=("imagenet",)))
    for model, net, recipe, losses in (("ResNet-18", resnet18, RESNET18, 2), ("ResNet-50", resnet50, RESNET50, 3)):
        for eta in ("0", "0.3", "0.5", "0.7"):
            name = f"eta={100 * Fraction(eta)}%"
            choose = None if eta == "0" else partial(discriminate, eta=eta, variant=Variant(losses))
            tail, link = partial(chain, make=choose), links(errors, name, model)
            shape = pruned_shape(recipe, eta)
            row = Row(TABLE5, f"{model}, {name}", "imagenet", shape, None, net, tail, link, scales=("imagenet",))
            rows.append(row)
    return rows


LAMBDAS: dict[str, Greedy] = {
    "lambda=0 (L_M only)": replace(GREEDY, alpha=0.0),
    **{
        f"lambda={value}": replace(GREEDY, alpha=float(value))
        for value in ("0.001", "0.005", "0.01", "0.05", "0.1", "0.5", "1.0")
    },
    "lambda=1.0 (L_S only)": replace(GREEDY, reconstruction=0.0),
}


def ablations() -> list[Row]:
    """Tables 6, 7, S1 and S2; the trends of Tables 6 and S1 on ResNet-20 (ours)."""
    rows = []
    for name, greedy in LAMBDAS.items():
        variant = Variant(3, greedy=greedy, tune=False)
        tail = partial(chain, make=partial(discriminate, eta="0.3", variant=variant))
        shape: Recipe | None = pruned_shape(RESNET56, "0.3")
        link = links({"top1_err": "test_err"}, name)
        rows.append(Row(TABLE6, name, "cifar10", shape, None, resnet56, tail, link, scales=SHORT[:2]))
        rows.append(Row(LAMBDA20, name, "cifar10", None, None, resnet20, tail, ours=True, scales=("cifar10",)))
    for epsilon in (0.1, 0.01, 0.001):
        name, tail = f"eps={epsilon:g}", partial(chain, make=adaptive(epsilon, 2))
        known = epsilon == 0.001  # the widths of the others are not printed
        sizes = reductions(name) if known else {}
        link, shape = links({"top1_err": "test_err"}, name), ADAPTED if known else None
        rows.append(Row(TABLE7, name, "cifar10", shape, None, vggnet, tail, link, sizes, scales=SHORT[:2]))
    for losses in (3, 5, 7, 9):
        name = f"{losses} losses"
        tail = partial(chain, make=partial(discriminate, eta="0.5", variant=Variant(losses)))
        shape = pruned_shape(RESNET56, "0.5")
        rows.append(Row(TABLE_S1, name, "cifar10", shape, None, resnet56, tail, links(GAP, name), scales=("cifar10",)))
        rows.append(Row(LOSSES20, name, "cifar10", None, None, resnet20, tail, ours=True, scales=("cifar10",)))
    rows.append(
        Row(LOSSES20, "baseline", "cifar10", None, None, resnet20, partial(chain, make=None), ours=True,
            scales=("cifar10",))
    )  # fmt: skip
    for epochs in (120, 240, 400):
        made: dict[str, Prune | None] = {
            "": None,
            **{name: methods("0.5", 3)[name] for name in ("ThiNet", "CP", "DCP")},
        }
        for method, make in made.items():
            name = f"{epochs} epochs / {method}" if method else f"{epochs} epochs"
            tail = partial(chain, make=make, epochs=epochs)
            link = links(GAP, name) if method else links({"top1_err": "baseline_err"}, name)
            rows.append(Row(TABLE_S2, name, "cifar10", None, None, resnet56, tail, link, scales=("cifar10",)))
    return rows


def complexity() -> list[Row]:
    """Tables S4 and S5: sizes of all networks at all rates; Table 4: those of SphereNet-4."""
    rows = []
    for table, scale, model, recipe, etas in (
        (TABLE_S4, "imagenet", "ResNet-18", RESNET18, ("0", "0.3", "0.5", "0.7")),
        (TABLE_S4, "imagenet", "ResNet-50", RESNET50, ("0", "0.3", "0.5", "0.7")),
        (TABLE_S5, "cifar10", "ResNet-56", RESNET56, ("0", "0.3", "0.5", "0.7")),
        (TABLE_S5, "cifar10", "VGGNet", VGGNET, ("0", "0.3", "0.4")),
    ):
        for eta in etas:
            name = f"rate {100 * Fraction(eta)}%"
            shape = pruned_shape(recipe, eta)
            sizes = counts(name, model)
            rows.append(Row(table, f"{model}, {name}", scale, shape, missing=SIZE_ALONE, sizes=sizes))
    for name, eta in (("SphereNet-4", "0"), ("DCP (prune 50%)", "0.5"), ("DCP (prune 65%)", "0.65")):
        sizes = counts(name, "SphereNet-4")
        rows.append(Row(TABLE4, name, "LFW", partial(sphere_shape, eta), missing=SIZE_ALONE, sizes=sizes))
    return rows


def not_run() -> list[Row]:
    """What cannot be made here."""
    rows = []
    reason = "MobileNet on 32x32 images is not described, and DCP of depthwise convolutions neither"
    for table, scale, names in (
        (TABLE2, "cifar10", ("baseline", "WM", "WM+", "Random DCP", "DCP")),
        (TABLE_S3, "imagenet", ("baseline", "ThiNet", "WM", "DCP")),
    ):
        what = reason if table == TABLE2 else "DCP of depthwise convolutions is not described"
        for model in ("MobileNet v1", "MobileNet v2"):
            rows += [Row(table, f"{model}, {name}", scale, missing=what) for name in names]
    faces = "other methods' networks; its data (CASIA-WebFace, LFW) are not supported"
    rows += [Row(TABLE4, name, "LFW", missing=faces) for name in ("FaceNet", "DeepFace", "VGG")]
    curves = "digitised curves of single blocks, and of the number of images, on ImageNet: no row implements them yet"
    rows += [Row(table, "curves", "imagenet", missing=curves) for table in (FIGURE_S1, FIGURE_S2)]
    return rows


def paper() -> Paper:
    """The paper as the harness sees it."""
    rows = [*table1(), *imagenet(), *ablations(), *complexity(), *not_run()]
    title = "Discrimination-aware Channel Pruning for Deep Neural Networks"
    return Paper("discrimination_aware", title, "Zhuang et al.; NeurIPS 2018; arXiv 1810.11809", rows, DEVIATIONS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "discrimination_aware", *sys.argv[1:]]))
