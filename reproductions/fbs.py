"""Dynamic Channel Pruning: Feature Boosting and Suppression (Gao et al.; ICLR 2019; arXiv 1810.05331).

Each convolution gets a gate that looks at the layer's input, keeps the k = ceil(d C) most salient output channels of
this image and scales them by their saliency (:func:`boosted_and_suppressed`).  A trained network is converted,
fine-tuned at d = 1, and then at one density after the other, each starting from the last (:class:`FBS`).  Reproduced
here: Figure 3a (M-CifarNet on CIFAR-10), Table 1 (ResNet-18), Table 2 (VGG-16), Table 3 (memory); beyond the paper: an
execution that really skips, its latency, and static baselines of the suite's own at equal MACs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import protocols
from bench.chains import Prune, compared_chain, dense, gmacs, halved, trained
from bench.cli import main
from bench.gating import activity, measuring, timing
from bench.gating import steps as gating
from bench.gating.layer import PAPER, GateOptions
from bench.measure import dynamic, latency
from bench.models.recipe import Recipe
from bench.models.vgg import batch_norm_convs
from bench.protocols import ANY, as_published, cosine, protocol
from bench.pruning import steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.rows import SIZE_ALONE, Chain, Paper, Row, Setting
from bench.steps import Kind, Step
from bench.train.schedule import Schedule, lasting, longer

DEVIATIONS = [
    "Optimiser: SGD with momentum 0.9; on CIFAR-10 a cosine from 0.02 in each density (the dense network: from 0.1), "
    "batch 128, weight decay 5e-4. The paper starts at 0.01 and, from memory, divides by ten every 100 epochs, with "
    "256 images a batch. The official code (deep-fry/mayo @7211a11) has RMSProp (decay 0.9, epsilon 1) at 0.01 times "
    "sqrt(batch / 256), times 0.16 every 200 epochs (trainers/cifarnet.yaml, exponential.yaml), `batch_size_per_gpu: "
    "256` (mayo/system.yaml) and an L2 term of `scale: 0.0001` (models/cifarnet.yaml). `--paper-schedule` takes the "
    "paper's rates, and this batch and weight decay, with SGD, for the dense network too, whose own schedule is not "
    "known.",
    "Weight decay is on all parameters, those of the gates (phi, rho) and beta too; the official code's L2 term is on "
    "the convolutions' filters alone (`weights_regularizer` in models/cifarnet.yaml; mayo/net/tf/gate/base.py, "
    "`_predictor`, has none).",
    "Epochs: at most 300 a density on CIFAR-10 and 35 on ImageNet in the paper; ours are in `PROTOCOLS` "
    "(CIFAR-10: 48 for the dense network, 5 a density), and the dense network we "
    "compare with (column `tuned dense`) is trained in one schedule for all the epochs of the chain down to d = 0.5, "
    "which is more than the chain to a higher density has and less than that to a lower one.",
    "Augmentation: the suite's (pad, crop, mirror); the official code distorts colours, mirrors, and standardises each "
    "image.",
    "phi starts at zero instead of He normal and rho at |gamma| of the batch norm instead of 1, so that gating changes "
    "nothing before training; the paper's start and the official code's are options of the gate, and `gating_study` "
    "compares ours with the paper's.",
    "Winners: exactly k, the first of equals; the official code drops equals at the threshold, so that dead gates "
    "leave fewer than k. Counted as active are all k winners, even those whose saliency is zero.",
    "Saliency: mean absolute value and a ReLU in every gate (equation 8). The official code averages with sign and has "
    "no ReLU in gates of layers without one (ResNet's second convolutions); both are options.",
    "beta is multiplied by pi (equation 6 and the paper's figure); the official code only masks it.",
    "The L1 term has lambda = 1e-8 over all saliencies (section 3.4); the released configurations have none.",
    "MACs: the layers at the densities of the masks really applied, input and output side, carried through dropout, "
    "pooling, flattening, and as a union through additions; the gates' products and multiplications on top; the last "
    "fully connected layer dense. The official documents' 57 M for d = 0.5 lose the masks at dropout; this count gives "
    "44.28 M, 3.94x.",
    "ResNet-18: every convolution is gated except block layer2.1, which is the only reading that gives both the "
    "paper's 1.62x at d = 0.7 and its 1.98x (at d = 0.6).",
    "Table 1's baseline errors of FBS (29.29 and 10.32) are judged at d = 1: the paper says that they are those of the "
    "network with gates that suppresses no channels, 1.73 and 0.46 points better than the plain one (so 31.02 and "
    "10.78), whose own errors are not in what we could read.",
    "ResNet-18's derived 1.35x (d = 0.8, block layer2.1 not gated) comes out as 1.3445x, which rounds to 1.34x: a "
    "check that differs, arithmetic of ours from the layer shapes, as the other derived values, which all agree.",
    "ResNet-18 and NS + FBS: the densities behind 1.98x and 3.22x (d = 0.6) are inferred from these numbers, so that "
    "they agree is a weaker test than the others.",
    "VGG-16: torchvision's with batch norm. It is slimmed to the widths of the official configuration (smallest "
    "gammas) and gated at d = 0.8, 0.7 and 0.6: 3.02x, 3.91x, 5.31x. The paper prints 3.01x and 5.23x for its 3x and "
    "5x.",
    "NS + FBS on M-CifarNet: the paper's 3.22x and 1.19x are those of the official widths (cifarnet_slim.yaml), at d = "
    "0.6 and ungated; ours slims to 1.19x by its own gammas.",
    "Network slimming: lambda = 1e-4 on small images (Liu et al. 2017), 1e-5 on ImageNet and with `--paper-schedule`; "
    "the official code has 1e-5 on CIFAR-10 too (`weight: 0.00001`, deep-fry/mayo @7211a11 "
    "models/override/prune/netslim.yaml, which models/gate/readme.md runs on cifar10). One global threshold, no "
    "iterations. At 3.94x on CIFAR-10 ours leaves conv6 one filter of 192 and the network at chance: to beat it says "
    "little, and what the larger lambda has to do with it was not measured.",
    "Table 3: the paper's definitions and values could not be read. Ours are in the metrics below; the values are our "
    "own.",
    "Skipped execution keeps fully connected layers dense, although their inputs count as sparse where they are "
    "(VGG-16's first one).",
]

# --------------------------------------------------------------------------------------------------------------------
# The algorithm: the gated layer, and a chain of densities

# thousandths; each from the last
DENSITIES = tuple(range(1000, 100, -100))
LAMBDA = 1e-8
OPTIONS = GateOptions(phi="zero")


def boosted_and_suppressed(
    x: Tensor,
    theta: Tensor,
    norm: Callable[[Tensor], Tensor],
    beta: Tensor,
    phi: Tensor,
    rho: Tensor,
    density: int,
    **conv: Any,
) -> Tensor:
    """The gated layer as the paper writes it (section 3), B x C x H x W to B x N x H' x W'.

    ``theta`` N x C x h x w are the filters, ``norm`` the batch norm without scale and shift, ``beta`` N the shift,
    ``phi`` N x C and ``rho`` N the gate's, ``density`` thousandths; ``conv`` is stride and padding.

    Nothing is run by it: the tests hold to it what is, :class:`bench.gating.layer.GatedConv2d`, which trains and must
    stand beside the networks that it belongs to, and :mod:`bench.gating.skip`, which computes the winners alone.
    """
    count = -(-density * len(beta) // 1000)
    images = []
    for image in x:
        subsampled = image.abs().mean((1, 2))  # ss(x): |x_c|_1 / HW, one number a channel
        saliency = torch.relu(phi @ subsampled + rho)  # g(x), equation 8
        winners = saliency.argsort(descending=True, stable=True)[:count]
        pi = torch.zeros_like(saliency)
        pi[winners] = saliency[winners]  # wta_k(g), equation 7, k = ceil(d N)
        shifted = norm(F.conv2d(image[None], theta, **conv)) + beta[:, None, None]
        images.append(pi[:, None, None] * shifted)  # equation 6: winners are boosted, the others suppressed
    return torch.cat(images)


def densities(last: int) -> tuple[int, ...]:
    """The densities that are trained on the way down to ``last``."""
    return (*(density for density in DENSITIES if density > last), last)


@dataclass(frozen=True)
class FBS:
    """Gated and trained at d = 1, then at every density down to ``density``, each from the last (section 3.4).

    ``ungated`` convolutions stay as they are; with ``inside`` the gates go into a network that is slimmed first.
    """

    density: int
    ungated: tuple[str, ...] = ()
    inside: Slimmed | None = None

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """The step at the end of the chain of densities."""
        how = protocol(PROTOCOLS, setting, recipe)
        work = gmacs(recipe, setting.train_images, 3.0 * how.tuning.epochs)
        step = parent if self.inside is None else self.inside(setting, recipe, parent, seed)
        for density in densities(self.density):
            step = gating.gated(step, density, how.tuning, seed, setting.data, work, LAMBDA, OPTIONS, self.ungated)
        return step


@dataclass(frozen=True)
class Halved:
    """FBS's network with its weights in half precision, so that it can be kept beside the results (ours)."""

    of: FBS

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """The step that rounds the network of the seed."""
        return halved(setting, self.of(setting, recipe, parent, seed))


def speedup_at(recipe: Recipe, density: int, ungated: tuple[str, ...] = ()) -> float:
    """Dense MACs over those of the gated network with its gates, from the densities alone."""
    counted = dynamic.expected(recipe.gated(density, PAPER, ungated).build("meta"), recipe.input_shape)
    return counted.dense / float(counted.totals[0])


# --------------------------------------------------------------------------------------------------------------------
# What it is compared with


@dataclass(frozen=True)
class Slimmed:
    """Network slimming (Liu et al. 2017): one training with an L1 term on the gammas, the smallest go, then recovery.

    To a ``speedup``, to the widths ``keep`` of the whole network, or to the MACs of FBS at ``density``, and then
    trained as long as the chain down to it.
    """

    speedup: float | None = None
    keep: Mapping[str, int] | None = None
    density: int | None = None

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """The step that trains the slimmed network on."""
        how = protocol(PROTOCOLS, setting, recipe)
        speedup, keep, times = self.speedup, self.keep, 1
        if self.density is not None:
            # the training with the L1 term is one of them
            speedup, times = speedup_at(recipe, self.density), len(densities(self.density)) - 1
        if keep is not None:
            factor = recipe.arguments.get("width", 1.0)
            keep = {name: max(1, round(width * factor)) for name, width in keep.items()}
        sparse = gating.Sparse(how.tuning, seed, how.sparsity)
        work = gmacs(recipe, setting.train_images, 3.0 * how.tuning.epochs)
        small = gating.slimmed(parent, sparse, gating.Slimming(speedup, keep), setting.data, work)
        step = trained(setting, recipe, small, longer(how.tuning, times), seed, "recovered")
        return replace(step, work=step.work / (speedup or 2.0))  # the plan's minutes are those of a smaller network


@dataclass(frozen=True)
class Static:
    """Channel pruning at uniform widths to the MACs of FBS at ``density``, trained as long as the chain down to it."""

    selection: str
    density: int

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """The step that tunes the pruned network."""
        how, (producers, _) = protocol(PROTOCOLS, setting, recipe), pruning.prunable(recipe)
        widths = pruning.Ratios(dict.fromkeys(producers, 1.0), speedup_at(recipe, self.density))
        params = pruning.Pruning(Method(self.selection), widths, Sampling(positions=10, seed=seed), how.images)
        small = pruning.pruned(parent, None, params, setting.data, gmacs(recipe, how.images, 4.0))
        schedule = longer(how.tuning, len(densities(self.density)))
        step = trained(setting, recipe, small, schedule, seed, "tuned")
        return replace(step, work=step.work / widths.speedup)


def longer_dense(setting: Setting, recipe: Recipe, start: Step, seed: int) -> Step:
    """What FBS is compared with: the dense network trained in one schedule for all the epochs of the chain to d = 0.5.

    Given weights are trained on for as many as the chain has.
    """
    how, stages = protocol(PROTOCOLS, setting, recipe), len(densities(500))
    if start.kind is Kind.LOAD or how.dense is None:
        return trained(setting, recipe, start, longer(how.tuning, stages), seed, "tuned")
    schedule = lasting(how.dense, how.dense.epochs + stages * how.tuning.epochs)
    return trained(setting, recipe, None, schedule, seed, "dense, longer")


# --------------------------------------------------------------------------------------------------------------------
# Protocols and networks, at the paper's scale and at the others


@dataclass(frozen=True)
class Protocol(protocols.Protocol):
    """``tuning`` is that of each density, ``sparsity`` network slimming's lambda (Liu et al. 2017: 1e-4)."""

    sparsity: float = 1e-4


# rates and epochs are the paper's of each density, from memory; batch and weight decay the official code's
PUBLISHED = Schedule(300, 0.01, 256, weight_decay=1e-4, shape="steps", milestones=(100, 200))
# (scale, network): training of the dense network, of each density, images that the static methods look at
PROTOCOLS = {
    ("digits", ANY): Protocol(cosine(20, 0.05, 64), cosine(6, 0.02, 64), images=720),
    # how the paper's dense network was trained is not known to us; network slimming's lambda is the official code's
    (as_published("cifar10"), ANY): Protocol(PUBLISHED, PUBLISHED, images=5000, sparsity=1e-5),
    # shortened to what a GPU does in minutes and two cores in a night
    ("cifar10", ANY): Protocol(cosine(48, 0.1, 128), cosine(5, 0.02, 128), images=5000),
    # network slimming's lambda is the official code's
    ("imagenet", ANY): Protocol(
        None, Schedule(35, 0.01, 256, weight_decay=1e-4, shape="steps", milestones=(20,)), images=5000, sparsity=1e-5
    ),
    (ANY, ANY): Protocol(cosine(12, 0.05, 64), cosine(3, 0.02, 64), images=5000),
}


def mcifarnet(scale: str, classes: int, given: bool) -> Recipe:
    """M-CifarNet at 32x32; half its width at 16x16 on digits."""
    if scale == "digits":
        return Recipe("mcifarnet", {"num_classes": classes, "width": 0.5, "side": 16}, (3, 16, 16))
    return Recipe("mcifarnet", {"num_classes": classes}, (3, 32, 32))


def resnet18(scale: str, classes: int, given: bool) -> Recipe:
    """ResNet-18; a quarter of its width at 16x16 on digits, a stem for small images on them."""
    if scale == "digits":
        return Recipe("resnet18", {"num_classes": classes, "width": 0.25, "small_input": True}, (3, 16, 16))
    if scale == "imagenet":
        return Recipe("resnet18", {"num_classes": classes}, (3, 224, 224))
    return Recipe("resnet18", {"num_classes": classes, "small_input": True}, (3, 32, 32))


def vgg16(scale: str, classes: int, given: bool) -> Recipe:
    """VGG-16 with batch norm: the CIFAR form on small images, a quarter of its width on digits."""
    if scale == "imagenet":
        return Recipe("vgg16_bn", {"num_classes": classes}, (3, 224, 224))
    width = {"width": 0.25} if scale == "digits" else {}
    return Recipe("vgg16_bn", {"num_classes": classes, "form": "cifar", **width}, (3, 32, 32))


# --------------------------------------------------------------------------------------------------------------------
# From the dense network to a row


def chain(
    setting: Setting,
    recipe: Recipe,
    *,
    make: Prune | None,
    control: bool = False,
    extra: Callable[[Setting, Recipe, Step, Step, int], list[Step]] | None = None,
    keep: bool = False,
) -> Chain:
    """A network measured against the dense one it came from and, with ``control``, against one trained as long as FBS.

    ``extra(setting, recipe, dense, network, seed)`` adds steps of the first seed; ``keep`` names the row's network as
    one that can be kept.
    """
    starts, networks, controls = [], [], []
    for seed in setting.seeds:
        start = dense(setting, recipe, seed, protocol(PROTOCOLS, setting, recipe))
        starts.append(start)
        networks.append(start if make is None else make(setting, recipe, start, seed))
        controls += [longer_dense(setting, recipe, start, seed)] if control else []
    compare, measure = make not in (None, longer_dense), measuring.measured
    found = compared_chain(setting, recipe, starts, networks, controls, compare=compare, measure=measure)
    more = [] if extra is None else extra(setting, recipe, starts[0], networks[0], setting.seeds[0])
    return replace(found, networks=found.networks if keep else [], records=[*found.records, *more])


def memory_of(setting: Setting, recipe: Recipe, start: Step, network: Step, seed: int) -> list[Step]:
    """Memory accesses and peak at batch 1 and 128."""
    return [measuring.memory_of(setting, recipe, network, seed, batches=(1, 128))]


def activity_of(setting: Setting, recipe: Recipe, start: Step, network: Step, seed: int) -> list[Step]:
    """Which channels the gates choose."""
    return [activity.activity_of(setting, recipe, network)]


# of five processes together: a batch of eight takes a second a round
PROTOCOL = latency.Protocol(seconds=30.0)


def execution(setting: Setting, recipe: Recipe, start: Step, network: Step, seed: int) -> list[Step]:
    """Skipped against masked execution of a trained network, and its latency on one image."""
    timed = timing.timed(setting, recipe, network.name, timing.Timing(1, PROTOCOL), [start, network])
    return [measuring.skip_checked(setting, recipe, network, images=1000), timed]


def fresh_latency(setting: Setting, recipe: Recipe, *, density: int, batch: int) -> Chain:
    """M-CifarNet with fresh weights: dense, masked and skipped, interleaved."""
    params = timing.Timing(batch, PROTOCOL, recipe.gated(density, PAPER), setting.seeds[0])
    return Chain([], [timing.timed(setting, recipe, f"d={density / 1000:g}, batch {batch}", params)])


def sizes(setting: Setting, recipe: Recipe, *, shape: Recipe, name: str) -> Chain:
    """MACs that the densities alone tell, at the paper's own shape."""
    return Chain([], [gating.sized(f"{recipe.builder}, {name}", shape, setting.device)])


# --------------------------------------------------------------------------------------------------------------------
# Rows

# not on clutter, whose images are too large for a chain of nine trainings within minutes
SCALES = ("digits", "cifar10", "imagenet")
FIGURE3 = "Figure 3a (M-CifarNet, CIFAR-10)"
BASELINES = "Baselines of Figure 3a (M-CifarNet, CIFAR-10)"
TABLE1, TABLE2, TABLE3 = "Table 1", "Table 2", "Table 3 (memory)"
HALF = "Half precision (M-CifarNet)"
LATENCY, SKIPPED = "Latency (M-CifarNet)", "Skipped execution (M-CifarNet)"
DERIVED = {"mcifarnet": "Derived: M-CifarNet", "resnet18": "Derived: ResNet-18", "vgg16_bn": "Derived: VGG-16 slimmed"}

# ResNet-18's block b22 is not gated in the configuration of the paper's time (deep-fry/mayo before 1687a46)
UNGATED_RESNET18 = ("layer2.1.conv1", "layer2.1.conv2")
# deep-fry/mayo models/vgg16_compact.yaml
SLIMMED_VGG16 = dict(
    zip(batch_norm_convs().values(), (16, 48, 70, 110, 143, 170, 232, 378, 399, 413, 456, 435, 512), strict=True)
)
# deep-fry/mayo models/cifarnet_slim.yaml
SLIMMED_WIDTHS = dict(zip([f"conv{i}" for i in range(8)], (52, 64, 123, 128, 128, 182, 111, 192), strict=True))
# VGG-16's three points: the density behind each printed speed-up
VGG16_DENSITIES = {3: 800, 4: 700, 5: 600}
# densities whose MACs the static methods are given
POINTS = (700, 500, 300)

MCIFARNET = mcifarnet("cifar10", 10, False)
RESNET18 = resnet18("imagenet", 1000, False)
VGG16 = vgg16("imagenet", 1000, False)
SLIMMED = VGG16.removed(SLIMMED_VGG16)
SLIMMED_MCIFARNET = MCIFARNET.removed(SLIMMED_WIDTHS)

# what is printed of a row: our metric to (row, metric) of the registry
Printed = Mapping[str, tuple[str, str]]


def row(
    table: str,
    name: str,
    network: Callable[[str, int, bool], Recipe],
    make: Prune | None,
    published: Printed | None = None,
    **more: Any,
) -> Row:
    """A row whose network ``make`` makes of the dense one; ``more`` goes to :func:`chain`, the rest to :class:`Row`."""
    tail = partial(chain, make=make, **{key: more.pop(key) for key in ("control", "extra", "keep") if key in more})
    own = "imagenet" if table in (TABLE1, TABLE2, TABLE3) else "cifar10"
    fields = {"seeds": (0,), "published": published or {}, **more}
    return Row(table, name, own, dense=network, chain=tail, **fields)


def at(density: int) -> str:
    """A density as it stands in names."""
    return f"d={density / 1000:g}"


def fbs_row(table: str, density: int, published: Printed | None = None, **more: Any) -> Row:
    """M-CifarNet at a density: three seeds where the paper's claim is judged, one along the curve."""
    seeds = (0, 1, 2) if density == 500 else (0,)
    name = f"FBS at {at(density)}"
    return row(table, name, mcifarnet, FBS(density), published, control=True, seeds=seeds, **more)


def baseline_row(table: str, label: str, make: Prune, density: int, published: Printed | None = None) -> Row:
    """A static method on M-CifarNet at the MACs of a density."""
    name = f"{label} at {speedup_at(MCIFARNET, density):.2f}x"
    return row(table, name, mcifarnet, make, published, control=True, ours=not published)


def figure3() -> list[Row]:
    """M-CifarNet's curve, and static pruning by CP at three points of equal MACs."""
    quoted = {"top1_acc": ("dense baseline", "top-1"), "top5_acc": ("dense baseline", "top-5")}
    documented = {"macs": [("dense baseline (docs)", "MACs")]}
    printed: dict[int, dict[str, Any]] = {
        700: {
            "published": {"top1_acc": ("FBS at 2x", "top-1"), "dynamic_speedup": ("FBS d=0.7 (rerun)", "speed-up")},
            "sized": MCIFARNET.gated(700, PAPER),
            "sizes": {"speedup": [("FBS d=0.7 (rerun)", "speed-up")]},
            "extra": activity_of,
        },
        500: {
            "published": {
                "top1_acc": ("FBS d=0.5 (Figure 3b)", "top-1"),
                "top5_acc": ("FBS d=0.5 (Figure 3b)", "top-5"),
                "dynamic_speedup": ("FBS at 90.50% top-1", "speed-up"),
                "weight_reduction": ("FBS d=0.5 (Figure 3b)", "weight reduction"),
            },
            "sized": MCIFARNET.gated(500, PAPER),
            "sizes": {
                "speedup": [("FBS at 90.50% top-1", "speed-up"), ("FBS d=0.5 (rerun)", "speed-up")],
                "macs": [("FBS d=0.5 gate50 (docs)", "MACs")],
                "params_growth": [("FBS d=0.5 (rerun)", "params")],
            },
            "extra": activity_of,
        },
    }
    return [
        row(FIGURE3, "dense", mcifarnet, None, quoted, sized=MCIFARNET, sizes=documented),
        row(FIGURE3, "dense, trained longer", mcifarnet, longer_dense, ours=True),
        *(fbs_row(FIGURE3, density, **printed.get(density, {})) for density in DENSITIES),
        *(baseline_row(FIGURE3, "CP (LASSO)", Static("lasso", density), density) for density in POINTS),
    ]


def baselines() -> list[Row]:
    """What the suite can run itself of the methods that the paper compares with, at the MACs of three densities."""
    # Figure 3a: NS alone holds 90.50 % up to 1.19x, which is where FBS starts from
    least = Slimmed(1.19)
    printed = {"speedup": [("NS at 90.50% top-1", "speed-up")]}
    at_2x = {"top1_acc": ("NS at 2x", "top-1")}
    both_at_2x = {"top1_acc": ("NS+FBS at 2x", "top-1")}
    return [
        row(BASELINES, "dense", mcifarnet, None, ours=True),
        *(fbs_row(BASELINES, density) for density in POINTS),
        baseline_row(BASELINES, "NS", Slimmed(density=700), 700, at_2x),
        *(baseline_row(BASELINES, "NS", Slimmed(density=density), density) for density in POINTS[1:]),
        row(BASELINES, "NS at 1.19x", mcifarnet, least, ours=True, sized=SLIMMED_MCIFARNET, sizes=printed),
        row(BASELINES, f"NS + FBS at {at(700)}", mcifarnet, FBS(700, inside=least), both_at_2x),
        row(BASELINES, f"NS + FBS at {at(500)}", mcifarnet, FBS(500, inside=least), ours=True),
        *(baseline_row(BASELINES, "exact selection", Static("exact", density), density) for density in POINTS),
    ]


def half_precision() -> list[Row]:
    """Networks of Figure 3a to take home: M-CifarNet and its gates take 5.8 MB in single precision."""
    kept: dict[str, Any] = {"scales": ("cifar10",), "ours": True, "release": True}
    return [
        replace(row(HALF, f"FBS at {at(density)}", mcifarnet, Halved(FBS(density)), keep=True), **kept)
        for density in (700, 500)
    ]


def table1() -> list[Row]:
    """ResNet-18 on ImageNet.  FBS's baseline errors are those of its gated network at d = 1 (section 4)."""
    theirs = "Network Slimming (their impl.)"
    better = "FBS d=1 over the plain network"
    at_1000 = {
        "top1_err": ("FBS", "baseline top-1 err"),
        "top5_err": ("FBS", "baseline top-5 err"),
        "top1_change": (better, "top-1 accuracy increase"),
        "top5_change": (better, "top-5 accuracy increase"),
    }
    at_700 = {"top1_err": ("FBS d=0.7", "top-1 err"), "dynamic_speedup": ("FBS d=0.7", "MAC saving")}
    at_600, slim = (
        {
            "top1_err": (name, "accelerated top-1 err"),
            "top5_err": (name, "accelerated top-5 err"),
            "dynamic_speedup": (name, "MAC saving"),
        }
        for name in ("FBS", theirs)
    )
    sizes_700 = {"macs": [("FBS d=0.7", "MACs")], "speedup": [("FBS d=0.7", "MAC saving")]}
    sizes_600 = {"speedup": [("FBS", "MAC saving")]}

    def gated(density: int, claimed: float | None, printed: Printed, printed_sizes: Any) -> Row:
        name, sized = f"FBS at {at(density)}", RESNET18.gated(density, PAPER, UNGATED_RESNET18)
        make = FBS(density, UNGATED_RESNET18)
        return row(TABLE1, name, resnet18, make, printed, claimed=claimed, sized=sized, sizes=printed_sizes)

    return [
        row(TABLE1, "dense", resnet18, None, shape=RESNET18),
        gated(1000, None, at_1000, {}),
        gated(700, 1.62, at_700, sizes_700),
        gated(600, 1.98, at_600, sizes_600),
        row(TABLE1, "NS at 1.39x", resnet18, Slimmed(1.39), slim, claimed=1.39),
    ]


def slimmed_vgg(density: int) -> FBS:
    """VGG-16 slimmed to the official widths, then FBS."""
    return FBS(density, inside=Slimmed(keep=SLIMMED_VGG16))


def table2() -> list[Row]:
    """VGG-16 on ImageNet: slimmed, then FBS at three densities."""
    rows = [row(TABLE2, "dense", vgg16, None, {"top5_err": ("baseline", "top-5 err")}, shape=VGG16)]
    for claimed, density in VGG16_DENSITIES.items():
        printed = {"top5_err_increase": ("FBS", f"top-5 error increase at {claimed}x")}
        rows.append(row(TABLE2, f"NS + FBS at {at(density)}", vgg16, slimmed_vgg(density), printed, claimed=claimed))
    return rows


def table3() -> list[Row]:
    """Memory accesses and peak memory, from the masks."""
    return [
        row(TABLE3, "VGG-16 dense", vgg16, None, extra=memory_of),
        *(
            row(TABLE3, f"VGG-16 NS + FBS at {at(density)}", vgg16, slimmed_vgg(density), extra=memory_of)
            for density in (800, 600)
        ),
        row(TABLE3, "ResNet-18 dense", resnet18, None, extra=memory_of),
        row(TABLE3, f"ResNet-18 FBS at {at(600)}", resnet18, FBS(600, UNGATED_RESNET18), extra=memory_of),
    ]


def skipped_rows() -> list[Row]:
    """The execution that skips: what rounding changes and how fast it is, on trained gates and on the whole network."""
    trained_gates = [
        row(SKIPPED, f"FBS at {at(density)}", mcifarnet, FBS(density), extra=execution, ours=True)
        for density in (500, 300)
    ]
    timed = []
    for density, batch in [(density, 1) for density in (1000, 700, 500, 300, 200)] + [(500, 8), (300, 8)]:
        name, tail = f"{at(density)}, batch {batch}", partial(fresh_latency, density=density, batch=batch)
        timed.append(
            Row(LATENCY, name, "cifar10", dense=partial(unchanged, MCIFARNET), chain=tail, seeds=(0,), ours=True)
        )
    return trained_gates + timed


def derived() -> list[Row]:
    """The MACs that densities alone tell, at the paper's own shapes: checks that need no data."""
    found: list[tuple[Recipe, str, Recipe, Printed]] = []
    for density in (*DENSITIES, 100):
        links = {"expected_macs": (at(density), "MACs"), "expected_macs_gates": (at(density), "MACs with gates")}
        found.append((MCIFARNET, at(density), MCIFARNET.gated(density, PAPER), links))
    for density in (800, 700, 650, 600):
        for ungated, rule in (((), "all gated"), (UNGATED_RESNET18, "b22 not gated")):
            name = f"{at(density)}, {rule}"
            links = {} if (density, rule) == (650, "b22 not gated") else {"expected_speedup": (name, "MAC saving")}
            found.append((RESNET18, name, RESNET18.gated(density, PAPER, ungated), links))
    found.append((VGG16, "slimmed", SLIMMED, {"expected_macs": ("slimmed", "MACs")}))
    for density in VGG16_DENSITIES.values():
        links = {"expected_macs": ("slimmed d=0.6, masks kept", "MACs")} if density == 600 else {}
        found.append((VGG16, f"slimmed, {at(density)}", SLIMMED.gated(density, PAPER), links))
    rows = []
    for whole, name, shape, printed in found:
        network, tail = partial(unchanged, whole), partial(sizes, shape=shape, name=name)
        # a size needs no data, so its own scale is the embedded one
        rows.append(Row(DERIVED[whole.builder], name, "digits", None, None, network, tail, printed, seeds=(0,)))
    return [replace(one, ours=not one.published) for one in rows]


def unchanged(whole: Recipe, scale: str, classes: int, given: bool) -> Recipe:
    """The same network at every scale."""
    return whole


def sizes_alone() -> list[Row]:
    """Networks of which only the printed sizes are judged: those of the official documents, and another's baseline."""
    both = f"NS + FBS at {at(600)}, official widths"
    best, found = ("NS+FBS at 90.50% top-1", "speed-up"), ("slimmed + FBS d=0.6", "MACs")
    cifarnet, vgg = SLIMMED_MCIFARNET.gated(600, PAPER), SLIMMED.gated(600, PAPER)
    rows = [
        Row(BASELINES, both, "cifar10", published={"dynamic_speedup": best}, sized=cifarnet, sizes={"speedup": [best]}),
        Row("docs", f"slimmed, {at(600)}", "imagenet", sized=vgg, sizes={"macs": [found]}),
        Row("reproduction 63days", "dense", "cifar10", sized=MCIFARNET, sizes={"macs": [("baseline", "MACs")]}),
    ]
    return [replace(one, missing=SIZE_ALONE) for one in rows]


def paper() -> Paper:
    """The paper as the harness sees it."""
    tables = (figure3, half_precision, baselines, table1, table2, table3, skipped_rows, derived, sizes_alone)
    rows = [replace(one, scales=one.scales or SCALES) for table in tables for one in table()]
    title = "Dynamic Channel Pruning: Feature Boosting and Suppression"
    return Paper("fbs", title, "Gao, Zhao, Dudziak, Mullins, Xu; ICLR 2019; arXiv 1810.05331", rows, DEVIATIONS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "fbs", *sys.argv[1:]]))
