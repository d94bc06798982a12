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
from functools import partial

from bench import zoo
from bench.chains import gmacs, measured_chain, shape_of, trained
from bench.cli import main
from bench.measure import macs
from bench.models.recipe import Recipe
from bench.pruning import surgery
from bench.rows import Chain, Paper, Row, Setting
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
    "decay 1e-4, 130 epochs, divided by ten every 40.",
    "Learned masks: {0,1} and as many as nested masks (ceil(d/2)) unless the row says otherwise; the precursor's rows "
    "have s masks of {-1,+1}. Proxies are drawn within 0.1 of zero and kept within 1; their learning rate is the "
    "filters'. L_orth is the sum over the filters of |X X'/n - I|^2 / s^2 and weighs 1; the paper's weight, and "
    "whether its masks are {0,1}, could not be read.",
    "Filters and masks take turns on each mini-batch, so that learned masks train at twice the cost.",
    "FLOPs of learned masks are those of full filters (a mask saves nothing by itself); the precursor counts each "
    "product that several masks share once.",
    "On CIFAR-10 VGG-16 is the CIFAR form with batch norm at half of its width (the precursor's rows: at full width), "
    "10 epochs; at the embedded scale an eighth of the width, 4 epochs. All networks of a table train equally long.",
]

README, COCO, DRNET = "repo readme", "COCO readme", "quoted in DRNet T4"
NEURIPS, PRECURSOR = "NeurIPS ImageNet table", "CIFAR-10 table"
SPATIAL_TABLE = "Spatial filters and narrowed networks (VGG-16, CIFAR-10)"
CHANNEL_TABLE = "Channel windows and narrowed networks (VGG-16, CIFAR-10)"
LEARNED_TABLE = "Learned masks (VGG-16, CIFAR-10)"

# --------------------------------------------------------------------------------------------------------------------
# Networks

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


def narrowed(recipe: Recipe, options: Options, counted: str) -> Recipe:
    """The ordinary VGG-16 of the CIFAR form whose ``params`` or ``macs`` are nearest to the versatile network's.

    All layers keep the same share of their filters.
    """
    target = size_of(versatile(recipe, options), counted)
    low, high = 0.0, 1.0
    for _ in range(12):  # to 1/4096 of the width
        middle = (low + high) / 2.0
        low, high = (low, middle) if size_of(thin(recipe, middle), counted) > target else (middle, high)
    chosen = min((thin(recipe, share) for share in (low, high)), key=lambda r: abs(size_of(r, counted) - target))
    model = chosen.build("meta")
    return shape_of(
        recipe, {name: surgery.convolution(model, name).out_channels for name in zoo.vgg_layers(recipe).values()}
    )


def thin(recipe: Recipe, share: float) -> Recipe:
    """The network with this share of every convolution's filters, as a network of its own."""
    return replace(recipe, arguments={**recipe.arguments, "width": share * recipe.arguments["width"]})


def size_of(recipe: Recipe, counted: str) -> int:
    """Parameters, or multiply-accumulates of the convolutions."""
    found = macs.count(recipe.build("meta"), recipe.input_shape)
    return found.params if counted == "params" else found.total("conv")


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
# Chains


def schedule(scale: str, recipe: Recipe) -> Schedule:
    """How every network of a table is trained: the authors' on ImageNet, what the data are worth elsewhere."""
    if scale in zoo.EMBEDDED:
        return Schedule(epochs=4, lr=0.1, batch=64, weight_decay=5e-4, shape="cosine")
    if scale == "cifar10":
        return Schedule(epochs=10, lr=0.1, batch=128, weight_decay=5e-4, shape="cosine")
    lr = 0.01 if recipe.builder == "alexnet" else 0.1
    return Schedule(epochs=130, lr=lr, batch=256, weight_decay=1e-4, shape="steps", milestones=(40, 80, 120))


def ordinary(setting: Setting, recipe: Recipe, seed: int) -> Step:
    """The ordinary network, from scratch."""
    return trained(setting, recipe, None, schedule(setting.scale, recipe), seed, "ordinary")


def changed(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, change: Change, name: str) -> Step:
    """Another network trained from scratch as the ordinary one, which is not looked at."""
    return trained(setting, change(recipe), None, schedule(setting.scale, recipe), seed, name)


def learned(
    setting: Setting, recipe: Recipe, parent: Step, seed: int, *, masks: Masks, orthogonality: float = 1.0
) -> Step:
    """Filters and masks trained in turns from scratch, each mini-batch twice."""
    how = schedule(setting.scale, recipe)
    params = training.Masked(masked(recipe, masks), how, seed, orthogonality)
    work = gmacs(recipe, setting.train_images, 6.0 * how.epochs)
    owner, count = "own" if masks.own else "shared", masks.count or "ceil(d/2)"
    name = f"learned({count} {owner} masks, orthogonality {orthogonality:g}, seed {seed})"
    return make_step(Kind.TRAIN, name, training.run_masked, params, data=setting.data, device=setting.device, work=work)


def chain(setting: Setting, recipe: Recipe, *, make: Callable[..., Step] | None) -> Chain:
    """The network that ``make`` gives, measured and compared with the ordinary one of the same seed."""
    return measured_chain(setting, recipe, dense=ordinary, prune=make, tuning=None)


# --------------------------------------------------------------------------------------------------------------------
# Rows

VGG16, VGG16_BN = zoo.vgg16("imagenet", 1000, False), vgg16("imagenet", 1000, False)
RESNET50, ALEXNET = resnet50("imagenet", 1000, False), alexnet("imagenet", 1000, False)
ON_IMAGES, ON_SMALL = ("imagenet",), ("clutter", "cifar10")
# at the embedded scale three, on CIFAR-10, where each takes an hour, one
ONCE: tuple[int, ...] = (0,)
THRICE = {"clutter": (0, 1, 2)}
ACCURACIES = ("top1_acc", "top5_acc")


def versatile_row(options: Options, name: str) -> Callable[[Setting, Recipe], Chain]:
    """The chain of a network with fixed secondary filters."""
    return partial(chain, make=partial(changed, change=partial(versatile, options=options), name=name))


def narrow_row(options: Options, counted: str) -> Callable[[Setting, Recipe], Chain]:
    """The chain of an ordinary network that is narrowed to the size of a versatile one."""
    change = partial(narrowed, options=options, counted=counted)
    return partial(chain, make=partial(changed, change=change, name=f"narrowed by {counted}"))


def readme() -> list[Row]:
    """VGG-16 on ImageNet; of its sizes nothing is printed that could be read."""
    rows = []
    for name, options in (("baseline", None), ("spatial", SPATIAL), ("spatial+channel", BOTH)):
        links = {ours: (name, printed) for ours, printed in zip(ACCURACIES, ("top-1", "top-5"), strict=True)}
        shape = VGG16_BN if options is None else versatile(VGG16_BN, options)
        row_chain = partial(chain, make=None) if options is None else versatile_row(options, name)
        rows.append(Row(README, name, "imagenet", shape, None, vgg16, row_chain, links, seeds=ONCE, scales=ON_IMAGES))
    shape = versatile(VGG16_BN, RELEASED)
    name = "spatial+channel, windows of the released code"
    row_chain = versatile_row(RELEASED, name)
    ours = Row(README, name, "imagenet", shape, None, vgg16, row_chain, seeds=ONCE, scales=ON_IMAGES, ours=True)
    return [*rows, ours]


def neurips() -> list[Row]:
    """ResNet-50 and AlexNet on ImageNet, from memory."""
    rows = []
    for network, dense, shape in (("ResNet-50", resnet50, RESNET50), ("AlexNet", alexnet, ALEXNET)):
        for name, options in (("original", None), ("spatial", SPATIAL), ("spatial+channel", BOTH)):
            own = shape if options is None else versatile(shape, options)
            row_chain = partial(chain, make=None) if options is None else versatile_row(options, name)
            # ResNet-50 with both is quoted elsewhere
            links = {} if network == "AlexNet" or name == "spatial+channel" else {
                "top1_err": (name, "top-1 err"), "top5_err": (name, "top-5 err"),
            }  # fmt: skip
            sizes = {"memory": [(name, "memory", "AlexNet")]} if network == "AlexNet" else {}
            row = Row(
                NEURIPS, f"{network}, {name}", "imagenet", own, None, dense, row_chain, links, sizes,
                seeds=ONCE, scales=ON_IMAGES,
            )  # fmt: skip
            rows.append(row)
    return rows


def drnet() -> list[Row]:
    """ResNet-50 with both, as a later paper quotes it."""
    name = "Versatile-ResNet-50 (spatial+channel)"
    links = {"top1_acc": (name, "top-1"), "top5_acc": (name, "top-5")}
    sizes = {"params": [(name, "params")], "macs": [(name, "FLOPs")]}
    row_chain = versatile_row(BOTH, "spatial+channel")
    shape = versatile(RESNET50, BOTH)
    return [Row(DRNET, name, "imagenet", shape, None, resnet50, row_chain, links, sizes, seeds=ONCE, scales=ON_IMAGES)]


def coco() -> list[Row]:
    """Faster R-CNN's ResNet-50, whose sizes are those of the network on ImageNet."""
    reason = "Faster R-CNN is not built here; its backbone's size alone is judged"
    rows = []
    for name, options in (
        ("baseline", None),
        ("Versatile-v1 (spatial)", SPATIAL),
        ("Versatile-v2 (spatial+channel)", BOTH),
    ):
        shape = RESNET50 if options is None else versatile(RESNET50, options)
        sizes = {"memory": [(name, "memory")], "macs": [(name, "FLOPs")]}
        rows.append(Row(COCO, name, "coco", shape, missing=reason, sizes=sizes))
    return rows


def precursor() -> list[Row]:
    """Learned masks of {-1,+1} on CIFAR-10 (MVNet): A shares them among a layer's filters, B does not."""
    full = partial(vgg16, width=1.0)
    shape = full("cifar10", 10, False)
    rows = []
    for name, masks in (
        ("Original", None),
        ("MVNet-A s=4", Masks(4, own=False, alphabet="{-1,+1}")),
        ("MVNet-B s=4", Masks(4, own=True, alphabet="{-1,+1}")),
        ("MVNet-B s=64", Masks(64, own=True, alphabet="{-1,+1}")),
    ):
        own = shape if masks is None else masked(shape, masks)
        make = None if masks is None else partial(learned, masks=masks)
        sizes = {"memory": [(name, "memory")], "macs": [(name, "multiplications")]}
        # an eighth of the width has too few filters for 64 masks
        scales = ("cifar10",) if name.endswith("64") else ON_SMALL
        row = Row(
            PRECURSOR, name, "cifar10", own, None, full, partial(chain, make=make), {"top1_acc": (name, "top-1")},
            sizes, seeds=ONCE, seeds_at=THRICE, scales=scales,
        )  # fmt: skip
        rows.append(row)
    return rows


def small(table: str, name: str, row_chain: Callable[[Setting, Recipe], Chain]) -> Row:
    """A row of ours, on CIFAR-10 and the embedded scale."""
    return Row(
        table, name, "cifar10", dense=vgg16, chain=row_chain, seeds=ONCE, seeds_at=THRICE, scales=ON_SMALL, ours=True
    )


def narrowed_networks() -> list[Row]:
    """The versatile networks, their ordinary twin, and ordinary networks as small, which the paper does not have."""
    return [
        small(SPATIAL_TABLE, "ordinary", partial(chain, make=None)),
        small(SPATIAL_TABLE, "spatial", versatile_row(SPATIAL, "spatial")),
        small(SPATIAL_TABLE, "narrowed to the parameters of spatial", narrow_row(SPATIAL, "params")),
        small(SPATIAL_TABLE, "narrowed to the MACs of spatial", narrow_row(SPATIAL, "macs")),
        small(CHANNEL_TABLE, "channel", versatile_row(CHANNEL, "channel")),
        small(CHANNEL_TABLE, "spatial+channel", versatile_row(BOTH, "spatial+channel")),
        small(CHANNEL_TABLE, "narrowed to the parameters of spatial+channel", narrow_row(BOTH, "params")),
        small(CHANNEL_TABLE, "narrowed to the MACs of spatial+channel", narrow_row(BOTH, "macs")),
    ]


def learned_masks() -> list[Row]:
    """Learned masks against the nested ones, at equal numbers of filters."""
    rows = [small(LEARNED_TABLE, "fixed masks", versatile_row(SPATIAL, "spatial"))]
    for name, masks, weight in (
        ("learned masks", Masks(), 1.0),
        ("learned masks, without orthogonality", Masks(), 0.0),
        ("learned masks, shared", Masks(own=False), 1.0),
    ):
        make = partial(learned, masks=masks, orthogonality=weight)
        rows.append(small(LEARNED_TABLE, name, partial(chain, make=make)))
    return rows


def paper() -> Paper:
    """The paper as the harness sees it."""
    rows = [*readme(), *neurips(), *drnet(), *coco(), *narrowed_networks(), *learned_masks(), *precursor()]
    title = "Learning Versatile Filters for Efficient Convolutional Neural Networks"
    reference = "Wang, Xu, Xu, Xu, Tao; NeurIPS 2018; arXiv 2109.09310"
    return Paper("versatile_filters", title, reference, rows, DEVIATIONS, training.METRICS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "versatile_filters", *sys.argv[1:]]))
