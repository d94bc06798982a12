"""Learning Versatile Filters for Efficient Convolutional Neural Networks (Wang et al.; NeurIPS 2018; arXiv 2109.09310).

A stored filter f (d x d x c) gives several *secondary* filters, each with an output map and a bias of its own:

    spatial   M_i o f, i = 1 ... ceil(d/2), M_i = 1 on the centred square of side d - 2(i-1)
    channel   windows of c_hat consecutive channels that move by g: n_c = (c - c_hat)/g + 1
    learned   M_j o f with binary masks M_j, by a straight-through estimator and under orthogonality (journal version)

so that n maps need ceil(n / (s n_c)) stored filters.  The layers are bench.versatile.layer and bench.versatile.learned,
the training of filters and masks in turns bench.versatile.training; here is what the paper makes of them.

Reproduced here: sizes and FLOPs of VGG-16, ResNet-50 and AlexNet, their trainings from scratch, the learned masks of
the precursor's table; beyond the paper: ordinary networks narrowed to the same parameters, and to the same FLOPs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from bench import zoo
from bench.chains import Prune, filters, gmacs, measured_chain, shape_of, trained
from bench.claims import TABLE
from bench.cli import main
from bench.models.recipe import Recipe
from bench.protocols import ANY, Protocol, cosine, protocol
from bench.rows import Chain, Paper, Row, Setting, links
from bench.sizes import size
from bench.steps import Kind, Step, make_step
from bench.train.schedule import Schedule
from bench.versatile import training
from bench.versatile.edit import Learned, Versatile
from bench.versatile.layer import Options
from bench.versatile.learned import Masks

DEVIATIONS = [
    "The paper's tables could not be read: the sizes and accuracies are those of the authors' READMEs and of a paper "
    "that quotes them. AlexNet's, and ResNet-50's errors, are recollections and count nowhere; VGG-16's sizes are "
    "derived from the layers' shapes and are checks of ours.",
    "FLOPs are multiply-adds, each secondary filter counted in full at the size of its own mask, whatever is executed. "
    "This, the graph (ResNet-50 v1.5) and the number of stored filters are inferred from the printed sizes, which "
    "they give exactly.",
    "Channel windows of ResNet-50: two, which move by g = c/16 channels. g could not be read; 3.0 B FLOPs come out "
    "with c/16 and not with 1 (3.17 B). The same is taken for VGG-16 and AlexNet.",
    "A window of the input meets the same channels of the filter, as in the paper; in the released code it always "
    "meets the first ones (`released`).",
    "VGG-16 is trained with batch norm (at the README's learning rate of 0.1 it needs it); which of the two the "
    "authors trained could not be read. Its first fully connected layer is versatile too, as a 7x7 convolution.",
    "Training from scratch as in the released code: SGD at 0.1 (AlexNet, ours: 0.01), momentum 0.9, batch 256, weight "
    "decay 1e-4, 130 epochs, divided by ten every 40; crops of random size and shape (torchvision's RandomResizedCrop) "
    "and mirroring, as in its imagenet-vcnn.py (iamhankai/Versatile-Filters @1dbb858); on ImageNet, where no row has "
    "been run.",
    "Learned masks: {0,1} and as many as nested masks (ceil(d/2)) unless the row says otherwise; the precursor's rows "
    "have s masks of {-1,+1}. Proxies are drawn within 0.1 of zero and kept within 1; their learning rate is the "
    "filters'. L_orth is the precursor's (iamhankai/Full-Stack-Filters @c8bf607 mask_conv.py, `ortho_loss`): the sum "
    "over the layers of the mean square of X X'/n - I, X all masks of a layer (those shared, or those of all filters); "
    "of {0,1} masks X are the signs, whose diagonal of X X'/n is 1. It weighs 1: the weight, and whether the journal "
    "version's masks are {0,1}, could not be read.",
    "Filters and masks take turns on each mini-batch, so that learned masks train at twice the cost.",
    "FLOPs of learned masks are those of full filters (a mask saves nothing by itself); the precursor counts each "
    "product that several masks share once.",
    "On CIFAR-10 VGG-16 is the CIFAR form with batch norm at half of its width (the precursor's rows: at full width), "
    "5 epochs of SGD at 0.1 (batch 128, weight decay 5e-4, cosine), one seed; at the embedded scale an eighth of the "
    "width, 4 epochs of AdamW at 0.003 (batch 64, weight decay 0.01, gradients clipped to 1, cosine), three seeds. All "
    "networks of a table see each image equally often.",
]

# --------------------------------------------------------------------------------------------------------------------
# The networks with secondary filters, and their training

# the network that is trained in the place of the ordinary one
Change = Callable[[Recipe], Recipe]

SPATIAL, CHANNEL, BOTH = Options(), Options(spatial=False, windows=2), Options(windows=2)
RELEASED = Options(windows=2, channels="released")


def versatile(recipe: Recipe, options: Options) -> Recipe:
    """The network with secondary filters; VGG-16's first fully connected layer is a convolution of its 7x7 map."""
    large_vgg = recipe.builder.startswith("vgg16") and recipe.input_shape[1] == 224
    linears = {"classifier.0": 7} if large_vgg else {}
    # AlexNet's last layer, whose outputs are the classes, stays
    skipped = ("fc8",) if recipe.builder == "alexnet" and options.windows > 1 else ()
    return recipe.edited(Versatile(options, skipped, linears))


def masked(recipe: Recipe, masks: Masks) -> Recipe:
    """The network with learned masks."""
    return recipe.edited(Learned(masks))


def in_its_place(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, change: Change, name: str) -> Step:
    """Another network trained from scratch as the ordinary one, which is not looked at."""
    return trained(setting, change(recipe), None, schedule(setting, recipe), seed, name)


def learned(
    setting: Setting, recipe: Recipe, parent: Step, seed: int, *, masks: Masks, orthogonality: float = 1.0
) -> Step:
    """Filters and masks trained in turns from scratch, each mini-batch twice."""
    how = schedule(setting, recipe)
    params = training.Masked(masked(recipe, masks), how, seed, orthogonality)
    work = gmacs(recipe, setting.train_images, 6.0 * how.epochs)
    owner, count = "own" if masks.own else "shared", masks.count or "ceil(d/2)"
    name = f"learned({count} {owner} masks, orthogonality {orthogonality:g}, seed {seed})"
    return make_step(Kind.TRAIN, name, training.run_masked, params, data=setting.data, device=setting.device, work=work)


# --------------------------------------------------------------------------------------------------------------------
# Protocols and networks, at the paper's scale and at the others

released = partial(Schedule, batch=256, weight_decay=1e-4, shape="steps", milestones=(40, 80, 120))


def alike(how: Schedule) -> Protocol:
    """The ordinary network and all that stand in its place trained in the same way; no images choose anything."""
    return Protocol(how, how, images=0)


# (scale, network): the training from fresh weights
PROTOCOLS = {
    # chosen on the ordinary network's training images: with SGD at 0.1 one seed of three stayed at chance
    **{
        (scale, ANY): alike(cosine(4, 0.003, 64, weight_decay=0.01, clip=1.0, optimizer="AdamW"))
        for scale in zoo.EMBEDDED
    },
    # ours: neither the paper's schedule on CIFAR-10 nor its precursor's could be read, none can stand beside it
    ("cifar10", ANY): alike(cosine(5, 0.1, 128)),
    # the released code, on ImageNet; AlexNet's rate is ours
    (ANY, "alexnet"): alike(released(130, 0.01)),
    (ANY, ANY): alike(released(130, 0.1)),
}


def schedule(setting: Setting, recipe: Recipe) -> Schedule:
    """How every network of a table is trained."""
    return protocol(PROTOCOLS, setting, recipe).tuning


def vgg16(scale: str, classes: int, given: bool, width: float = 0.5) -> Recipe:
    """VGG-16 with batch norm: torchvision's on large images, the CIFAR form elsewhere."""
    if scale in zoo.EMBEDDED or scale == "cifar10":
        width = width if scale == "cifar10" else 0.125
        return Recipe("vgg16_bn", {"num_classes": classes, "form": "cifar", "width": width}, (3, 32, 32))
    return Recipe("vgg16_bn", {"num_classes": classes}, (3, 224, 224))


def resnet50(scale: str, classes: int, given: bool) -> Recipe:
    """ResNet-50 v1.5: the stride in the 3x3."""
    return zoo.resnet50(scale, classes, False)


def alexnet(scale: str, classes: int, given: bool) -> Recipe:
    """Caffe's AlexNet."""
    return Recipe("alexnet", {"num_classes": classes}, (3, 227, 227))


# --------------------------------------------------------------------------------------------------------------------
# What it is compared with: ordinary networks as small, which the paper does not have


def narrowed(recipe: Recipe, options: Options, counted: str) -> Recipe:
    """The ordinary VGG-16 of the CIFAR form whose ``params`` or ``macs`` are nearest to the versatile network's.

    All layers keep the same share of their filters.
    """

    def count(one: Recipe) -> Fraction:
        return size(one, counted, "all" if counted == "params" else "conv")

    target, low, high = count(versatile(recipe, options)), 0.0, 1.0
    for _ in range(12):  # to 1/4096 of the width
        middle = (low + high) / 2.0
        low, high = (low, middle) if count(thin(recipe, middle)) > target else (middle, high)
    chosen = min((thin(recipe, share) for share in (low, high)), key=lambda one: abs(count(one) - target))
    return shape_of(recipe, filters(chosen, zoo.vgg_layers(recipe).values()))


def thin(recipe: Recipe, share: float) -> Recipe:
    """The network with this share of every convolution's filters, as a network of its own."""
    return replace(recipe, arguments={**recipe.arguments, "width": share * recipe.arguments["width"]})


# --------------------------------------------------------------------------------------------------------------------
# From the ordinary network to a row


def ordinary(setting: Setting, recipe: Recipe, seed: int) -> Step:
    """The ordinary network, from scratch whatever weights are given."""
    return trained(setting, recipe, None, schedule(setting, recipe), seed, "ordinary")


def chain(setting: Setting, recipe: Recipe, *, make: Prune | None) -> Chain:
    """The network that ``make`` gives, measured and compared with the ordinary one of the same seed."""
    return measured_chain(setting, recipe, dense=ordinary, prune=make, tuning=None)


# --------------------------------------------------------------------------------------------------------------------
# Rows

README, COCO, DRNET = "repo readme", "COCO readme", "quoted in DRNet T4"
NEURIPS, PRECURSOR = "NeurIPS ImageNet table", "CIFAR-10 table"
SPATIAL_TABLE = "Spatial filters and narrowed networks (VGG-16, CIFAR-10)"
CHANNEL_TABLE = "Channel windows and narrowed networks (VGG-16, CIFAR-10)"
LEARNED_TABLE = "Learned masks (VGG-16, CIFAR-10)"

VGG16_BN = vgg16("imagenet", 1000, False)
RESNET50, ALEXNET = resnet50("imagenet", 1000, False), alexnet("imagenet", 1000, False)
ON_IMAGES, ON_SMALL = ("imagenet",), ("clutter", "cifar10")
# at the embedded scale three, on CIFAR-10, where each takes an hour, one
ONCE: tuple[int, ...] = (0,)
THRICE = {"clutter": (0, 1, 2)}
ACCURACIES = {"top1_acc": "top-1", "top5_acc": "top-5"}
ERRORS = {"top1_err": "top-1 err", "top5_err": "top-5 err"}


def secondary(options: Options, name: str) -> Prune:
    """What makes the network with fixed secondary filters."""
    return partial(in_its_place, change=partial(versatile, options=options), name=name)


def narrow(options: Options, counted: str) -> Prune:
    """What makes an ordinary network that is narrowed to the size of a versatile one."""
    change = partial(narrowed, options=options, counted=counted)
    return partial(in_its_place, change=change, name=f"narrowed by {counted}")


def large(
    table: str, name: str, network: zoo.Network, whole: Recipe, options: Options | None, label: str, **more: Any
) -> Row:
    """A row on ImageNet: the network ``whole``, with secondary filters where there are ``options`` (``label``)."""
    shape, make = (whole, None) if options is None else (versatile(whole, options), secondary(options, label))
    tail = partial(chain, make=make)
    return Row(table, name, "imagenet", shape, dense=network, chain=tail, seeds=ONCE, scales=ON_IMAGES, **more)


def readme() -> list[Row]:
    """VGG-16 on ImageNet; of its sizes nothing is printed that could be read."""
    rows = []
    for name, options in (
        ("baseline", None),
        ("spatial", SPATIAL),
        ("spatial+channel", BOTH),
        ("spatial+channel, windows of the released code", RELEASED),
    ):
        ours = options is RELEASED
        printed = {} if ours else links(ACCURACIES, name)
        rows.append(large(README, name, vgg16, VGG16_BN, options, name, published=printed, ours=ours))
    return rows


def neurips() -> list[Row]:
    """ResNet-50 and AlexNet on ImageNet, from memory."""
    rows = []
    for name, options in (("original", None), ("spatial", SPATIAL), ("spatial+channel", BOTH)):
        # ResNet-50 with both is quoted elsewhere
        printed = {} if options is BOTH else links(ERRORS, name)
        rows.append(large(NEURIPS, f"ResNet-50, {name}", resnet50, RESNET50, options, name, published=printed))
    for name, options in (("original", None), ("spatial", SPATIAL), ("spatial+channel", BOTH)):
        memory = {"memory": [(name, "memory", "AlexNet")]}
        rows.append(large(NEURIPS, f"AlexNet, {name}", alexnet, ALEXNET, options, name, sizes=memory))
    return rows


def drnet() -> list[Row]:
    """ResNet-50 with both, as a later paper quotes it."""
    name = "Versatile-ResNet-50 (spatial+channel)"
    sizes = {"params": [(name, "params")], "macs": [(name, "FLOPs")]}
    printed = links(ACCURACIES, name)
    return [large(DRNET, name, resnet50, RESNET50, BOTH, "spatial+channel", published=printed, sizes=sizes)]


def coco() -> list[Row]:
    """Faster R-CNN's ResNet-50, whose sizes are those of the network on ImageNet."""
    reason = "Faster R-CNN is not built here; its backbone's size alone is judged"
    rows = []
    for name, shape in (
        ("baseline", RESNET50),
        ("Versatile-v1 (spatial)", versatile(RESNET50, SPATIAL)),
        ("Versatile-v2 (spatial+channel)", versatile(RESNET50, BOTH)),
    ):
        sizes = {"memory": [(name, "memory")], "macs": [(name, "FLOPs")]}
        rows.append(Row(COCO, name, "coco", shape, missing=reason, sizes=sizes))
    return rows


def small(table: str, name: str, network: zoo.Network, make: Prune | None, **more: Any) -> Row:
    """A row on CIFAR-10 and the embedded scale."""
    fields = {"seeds": ONCE, "seeds_at": THRICE, "scales": ON_SMALL, **more}
    return Row(table, name, "cifar10", dense=network, chain=partial(chain, make=make), **fields)


def narrowed_networks() -> list[Row]:
    """The versatile networks, their ordinary twin, and ordinary networks as small, which the paper does not have."""
    return [
        small(table, name, vgg16, make, ours=True)
        for table, name, make in (
            (SPATIAL_TABLE, "ordinary", None),
            (SPATIAL_TABLE, "spatial", secondary(SPATIAL, "spatial")),
            (SPATIAL_TABLE, "narrowed to the parameters of spatial", narrow(SPATIAL, "params")),
            (SPATIAL_TABLE, "narrowed to the MACs of spatial", narrow(SPATIAL, "macs")),
            (CHANNEL_TABLE, "channel", secondary(CHANNEL, "channel")),
            (CHANNEL_TABLE, "spatial+channel", secondary(BOTH, "spatial+channel")),
            (CHANNEL_TABLE, "narrowed to the parameters of spatial+channel", narrow(BOTH, "params")),
            (CHANNEL_TABLE, "narrowed to the MACs of spatial+channel", narrow(BOTH, "macs")),
        )
    ]


def learned_masks() -> list[Row]:
    """Learned masks against the nested ones, at equal numbers of filters."""
    return [
        small(LEARNED_TABLE, name, vgg16, make, ours=True)
        for name, make in (
            ("fixed masks", secondary(SPATIAL, "spatial")),
            ("learned masks", partial(learned, masks=Masks())),
            ("learned masks, without orthogonality", partial(learned, masks=Masks(), orthogonality=0.0)),
            ("learned masks, shared", partial(learned, masks=Masks(own=False))),
        )
    ]


def precursor() -> list[Row]:
    """Learned masks of {-1,+1} on CIFAR-10 (MVNet): A shares them among a layer's filters, B does not."""
    full, signs = partial(vgg16, width=1.0), "{-1,+1}"
    whole = full("cifar10", 10, False)
    rows = []
    for name, masks in (
        ("Original", None),
        ("MVNet-A s=4", Masks(4, own=False, alphabet=signs)),
        ("MVNet-B s=4", Masks(4, own=True, alphabet=signs)),
        ("MVNet-B s=64", Masks(64, own=True, alphabet=signs)),
    ):
        shape, make = (whole, None) if masks is None else (masked(whole, masks), partial(learned, masks=masks))
        sizes = {"memory": [(name, "memory")], "macs": [(name, "multiplications")]}
        # an eighth of the width has too few filters for 64 masks
        scales = ("cifar10",) if name.endswith("64") else ON_SMALL
        printed = {"top1_acc": (name, "top-1")}
        more = {"shape": shape, "published": printed, "sizes": sizes, "scales": scales}
        rows.append(small(PRECURSOR, name, full, make, **more))
    return rows


def paper() -> Paper:
    """The paper as the harness sees it."""
    rows = [*readme(), *neurips(), *drnet(), *coco(), *narrowed_networks(), *learned_masks(), *precursor()]
    title = "Learning Versatile Filters for Efficient Convolutional Neural Networks"
    reference = "Wang, Xu, Xu, Xu, Tao; NeurIPS 2018; arXiv 2109.09310"
    worth = ("spatial-beats-narrowed-parameters", "both-beats-narrowed-parameters")
    masks = ("own-masks-beat-shared", "learned-masks-help", "orthogonality-helps")
    answers = [(TABLE, f"versatile-{what}") for what in (*worth, *masks)]
    return Paper("versatile_filters", title, reference, rows, DEVIATIONS, training.METRICS, answers)


if __name__ == "__main__":
    raise SystemExit(main(["run", "versatile_filters", *sys.argv[1:]]))
