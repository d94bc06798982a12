"""Channel Pruning for Accelerating Very Deep Neural Networks (He, Zhang, Sun; ICCV 2017; arXiv 1707.06168).

Layer by layer, the input channels of a convolution are selected by LASSO so that the original network's responses can
still be computed from them, and the weights are rebuilt by least squares.  Inputs come from the network as pruned so
far, responses from the original one.  Reproduced here: Table 1 (VGG-16 at 2x, 4x, 5x), Table 4 (the same shapes from
scratch), Table 6 (ResNet-50), Table 8 (ResNet-56 on CIFAR-10), Figure 4 (single layers).  What selection, widths and
reconstruction are worth on their own, and what brings a pruned network back, are studies beside it
(``selection_study.py``, ``fine_tuning_study.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from bench.chains import Prune, dense, from_scratch, gmacs, measured_chain, shape_of
from bench.cli import main
from bench.models.recipe import Recipe
from bench.models.vgg import CONVS
from bench.pruning import steps as pruning
from bench.pruning import surgery
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.rows import SIZE_ALONE, Chain, Paper, Row, Setting
from bench.steps import Kind, Step, make_step
from bench.train.distillation import Distillation
from bench.train.schedule import Schedule
from bench.zoo import EMBEDDED, resnet50, resnet56, vgg16, vgg_layers

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
    "Max response: largest energy of a channel's contribution to the responses. As we remember it the paper ranks by "
    "the absolute weight sum of the filter instead; that criterion is available as `weight sum`.",
    "ResNet-56: inner channels only (filters of each block's first convolution), because the paper does not say how "
    "the basic block was treated; a uniform 50 % gives 1.993x, not 2x.",
    "Filter pruning (the paper's own implementation is not published): Li et al. 2017 on the same inner channels, the "
    "filters of the smallest absolute weight sum go, nothing is reconstructed.",
    "Fine-tuning of ResNet-56 on CIFAR-10: the paper's schedule is not known to us. Ours takes SGD, batch 128, a "
    "cosine from 0.01 to zero behind a short warm-up, weight decay 1e-4, 4 epochs for all rows, the dense network's "
    "control too; rows of 16 epochs take the tenth of the training epochs that the author names. Distilled "
    "(ours): a tenth of the loss from the labels, the rest from the dense network's outputs at temperature 4; the "
    "control has no teacher.",
    "On CIFAR-10 VGG-16 is the CIFAR form (one linear layer), half as wide, with batch norm, trained here for 16 "
    "epochs: its rows of Table 1 and Figure 4 are analogues. Fine-tuning takes two epochs there.",
    "Figure 4 is drawn for conv1_2 to conv4_2 (the set of layers is from memory); its speed-up is that of the one "
    "layer.",
]

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

# from the dense network, in fine_tuning_study.py too
SOFT = Distillation(temperature=4.0, weight=0.9)
# a tenth of the training epochs, as the author tells (the released code's issue 82); ResNet-56's are 164
TENTH = 16

# Paper: conv1_x to conv3_x keep r, conv4_x 1.5 r, conv5_x all (quoted in the released code's issue 30)
RATIOS = {name: 1.5 if name.startswith("conv4") else 1.0 for name in CONVS if not name.startswith("conv5")}

FIGURE4 = {
    "conv1_2": "conv2_1",
    "conv2_1": "conv2_2",
    "conv2_2": "conv3_1",
    "conv3_1": "conv3_2",
    "conv3_2": "conv3_3",
    "conv4_1": "conv4_2",
}
FIGURE4_CRITERIA = ("first k", "max response", "lasso", "exact")
FIGURE4_SPEEDUPS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)

TABLE1 = "Table 1 (VGG-16 alone)"
TABLE4 = "Table 4 (vs training from scratch, 4x)"
TABLE6 = "Table 6 (ResNet-50 2x)"
TABLE8 = "Table 8 (ResNet-56 CIFAR-10 2x)"
FIGURE = "Figure 4 (single layers of VGG-16)"
CRITERIA = "Criteria (VGG-16 on CIFAR-10)"


# --------------------------------------------------------------------------------------------------------------------
# The networks, at the paper's scale and at the others

# of the rows that train longest: the whole job on clutter takes less than ten minutes on two cores
NOT_ON_CLUTTER = ("digits", "cifar10", "imagenet")


VGG_SHAPE = vgg16("imagenet", 1000, False)
RESNET50_SHAPE = resnet50("imagenet", 1000, True)
RESNET56_SHAPE = resnet56("cifar10", 10, False)


def ratios(recipe: Recipe) -> dict[str, float]:
    """The paper's ratios by module name."""
    return {vgg_layers(recipe)[name]: ratio for name, ratio in RATIOS.items()}


def released_vgg(speedup: int, recipe: Recipe) -> dict[str, int]:
    """The released widths, by module name, scaled to the recipe's width factor."""
    factor = recipe.arguments.get("width", 1.0)
    return {vgg_layers(recipe)[name]: max(1, round(kept * factor)) for name, kept in RELEASED_VGG[speedup].items()}


def released_resnet50(recipe: Recipe) -> dict[str, int]:
    """The released widths of ResNet-50 by module name; at other depths and widths the fractions of the same stage."""
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
    return keep


# --------------------------------------------------------------------------------------------------------------------
# Training, sampling and fine-tuning: the paper's on ImageNet, what fits the data elsewhere


def tuning_schedule(scale: str, recipe: Recipe, amp: bool) -> Schedule:
    """Fine-tuning after pruning."""
    if scale == "imagenet":
        return Schedule(epochs=10, lr=1e-5, batch=128, amp=amp)
    if scale in EMBEDDED:
        return Schedule(epochs=2 if scale == "clutter" else 3, lr=0.005, batch=64, weight_decay=5e-4, shape="cosine")
    if recipe.builder == "vgg16_bn":  # an eighth of the training epochs, from a tenth of its rate
        return Schedule(epochs=2, lr=0.01, batch=128, weight_decay=5e-4, shape="cosine", amp=amp)
    if scale == "cifar10":  # the rate by fine_tuning_study.py; what two cores do in an hour and a half for all rows
        return Schedule(epochs=4, lr=0.01, batch=128, weight_decay=1e-4, shape="cosine", amp=amp)
    # the last rate and the batch of the dense network's own training (its published recipe: 0.1, 0.01, 0.001; 128)
    return Schedule(epochs=1, lr=1e-3, batch=128, weight_decay=1e-4, shape="cosine", amp=amp)


def calibration(scale: str) -> int:
    """Calibration images: 5,000 on ImageNet as the authors, 720 of embedded data, else at most 5,170 (the subset's)."""
    return {"imagenet": 5000, "digits": 720, "clutter": 720}.get(scale, 5170)


# --------------------------------------------------------------------------------------------------------------------
# Chains of steps


def pruned(
    setting: Setting,
    recipe: Recipe,
    parent: Step,
    seed: int,
    selection: str,
    widths: pruning.Widths,
    samplers: tuple[str, ...] = (),
    compensate: bool = True,
    full: bool = False,
    reconstruct: bool = True,
    target: str = "",
) -> Step:
    """Channel pruning of ``parent``; ``target`` names the widths in plans.

    ``compensate`` is the paper's enhancement for residual branches (section 3.3); ``full`` also refits the readers that
    keep all channels and rectifies the targets twice (ours).  Without ``reconstruct`` the old weights stay.
    """
    images = min(calibration(setting.scale), setting.train_images)
    if selection == "weight sum" and not reconstruct and setting.weights is not None:
        seed = 0  # no image has a say: one dense network gives one pruned network, whatever the seed
    sampling = Sampling(positions=10, seed=seed)
    method = Method(selection, compensate=compensate, reconstruct=reconstruct, refit=full, rectify=2 if full else 0)
    curves = None
    if isinstance(widths, pruning.ErrorDriven):
        measuring_curves = pruning.CurveMeasuring(sampling, images, samplers)
        curves = pruning.curves(parent, measuring_curves, setting.data, gmacs(recipe, images, 3.0))
    params = pruning.Pruning(method, widths, sampling, images, samplers)
    return pruning.pruned(parent, curves, params, setting.data, gmacs(recipe, images, 4.0), target)


def chain(
    setting: Setting,
    recipe: Recipe,
    *,
    prune: Prune | None,
    tune: bool,
    epochs: int | None = None,
    distillation: Distillation | None = None,
) -> Chain:
    """A row before or after fine-tuning: of so many ``epochs`` (None: the scale's), with the dense network as teacher
    where there is a ``distillation``.
    """
    tuning = tuning_schedule(setting.scale, recipe, setting.amp) if tune else None
    if tuning is not None and epochs is not None:
        tuning = replace(tuning, epochs=epochs)
    return measured_chain(setting, recipe, dense=dense, prune=prune, tuning=tuning, distillation=distillation)


def by_ratio(
    setting: Setting, recipe: Recipe, parent: Step, seed: int, *, speedup: float, selection: str = "lasso"
) -> Step:
    """At the paper's layer ratios, by LASSO unless another criterion is named."""
    return pruned(setting, recipe, parent, seed, selection, pruning.Ratios(ratios(recipe), speedup))


def by_release(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, speedup: int) -> Step:
    """LASSO at the released widths of VGG-16."""
    return pruned(
        setting,
        recipe,
        parent,
        seed,
        "lasso",
        pruning.Fixed(released_vgg(speedup, recipe)),
        target=f"released {speedup}x",
    )


def resnet50_release(setting: Setting, recipe: Recipe, parent: Step, seed: int, *, compensate: bool) -> Step:
    """LASSO at the released widths of ResNet-50, with channel samplers."""
    widths = released_resnet50(recipe)
    samplers = tuple(name.removesuffix(":in") for name in widths if name.endswith(":in"))
    return pruned(setting, recipe, parent, seed, "lasso", pruning.Fixed(widths), samplers, compensate)


def inner(
    setting: Setting,
    recipe: Recipe,
    parent: Step,
    seed: int,
    *,
    selection: str,
    allocation: str,
    speedup: float,
    full: bool = False,
    reconstruct: bool = True,
) -> Step:
    """ResNet-56: the filters of each block's first convolution, at uniform or error-driven widths."""
    producers, _ = pruning.prunable(recipe)
    if allocation == "error-driven":
        widths: pruning.Widths = pruning.ErrorDriven(speedup)
    elif speedup == 2:  # the paper's case: half of the channels, 1.993x
        widths = pruning.Fixed(_half(recipe))
    else:
        widths = pruning.Ratios(dict.fromkeys(producers, 1.0), speedup)
    return pruned(setting, recipe, parent, seed, selection, widths, full=full, reconstruct=reconstruct)


def single_layer(setting: Setting, recipe: Recipe, *, reader: str) -> Chain:
    """Figure 4: the input of the layer ``reader`` (the paper's name) pruned alone by four criteria."""
    seed = setting.seeds[0]
    images = min(calibration(setting.scale), setting.train_images)
    name = vgg_layers(recipe)[reader]
    # every point is an evaluation: half of them keep the whole job on clutter short
    speedups = FIGURE4_SPEEDUPS[1::2] if setting.scale == "clutter" else FIGURE4_SPEEDUPS
    params = pruning.SingleLayer(name, FIGURE4_CRITERIA, speedups, Sampling(positions=10, seed=seed), images)
    work = gmacs(recipe, setting.test_images, 4.0 * len(speedups)) + gmacs(recipe, images, 1.0)
    start = dense(setting, recipe, seed)
    step = make_step(
        Kind.PRUNE,
        f"single layer({name})",
        pruning.run_single_layer,
        params,
        [start],
        data=setting.data,
        device=setting.device,
        work=work,
    )
    return Chain([], [step])


# --------------------------------------------------------------------------------------------------------------------
# Rows


def table1() -> list[Row]:
    """VGG-16 at 2x, 4x and 5x, at the paper's ratios and at the released widths, before and after fine-tuning."""
    rows = [
        _vgg_row(
            TABLE1, "VGG-16 dense", {"top5_acc": ("baseline", "top5_acc")}, chain=partial(chain, prune=None, tune=False)
        )
    ]
    for speedup in (2, 4, 5):
        for tune, label in ((False, "without fine-tune"), (True, "fine-tuned")):
            link = {"top5_err_increase": (f"Ours ({label})", f"top5_err_increase@{speedup}x")}
            for released in (False, True):
                prune = partial(by_release if released else by_ratio, speedup=speedup)
                name = f"VGG-16 {speedup}x{' released widths' if released else ''}, {label}"
                keep = released_vgg(speedup, VGG_SHAPE) if released else _ratio_widths(speedup)
                rows.append(_vgg_row(TABLE1, name, link, partial(chain, prune=prune, tune=tune), keep, speedup))
    return rows


def table4() -> list[Row]:
    """The 4x shape trained from scratch, as released and with the same share everywhere."""
    released, uniform = partial(released_vgg, 4), partial(_uniform_vgg, 4)
    rows = []
    for name, widths in (("from scratch", released), ("from scratch (uniformed)", uniform)):
        link = {"top5_err_increase": (name, "top5_err_increase")}
        row_chain = partial(from_scratch, widths=widths, label=name)
        row = _vgg_row(TABLE4, name, link, row_chain, widths(VGG_SHAPE), 4)
        rows.append(replace(row, scales=NOT_ON_CLUTTER))
    for tune, name in ((False, "Ours (no fine-tune)"), (True, "Ours (fine-tuned)")):
        link = {"top5_err_increase": (name, "top5_err_increase")}
        prune = partial(by_release, speedup=4)
        rows.append(_vgg_row(TABLE4, name, link, partial(chain, prune=prune, tune=tune), released(VGG_SHAPE), 4))
    return rows


def table6() -> list[Row]:
    """ResNet-50 at the released 2x widths: plain, with compensation of the residual branch, and fine-tuned."""
    shape = shape_of(RESNET50_SHAPE, released_resnet50(RESNET50_SHAPE))
    rows = []
    for name, compensate, tune in (
        ("Ours", False, False),
        ("Ours (enhanced)", True, False),
        ("Ours (enhanced, fine-tuned)", True, True),
    ):
        prune = partial(resnet50_release, compensate=compensate)
        link = {"top5_err_increase": (name, "top5_err_increase@2x")}
        tail = partial(chain, prune=prune, tune=tune)
        rows.append(Row(TABLE6, name, "imagenet", shape, 2.0, resnet50, tail, link, scales=NOT_ON_CLUTTER))
    return rows


def table8() -> list[Row]:
    """ResNet-56 on CIFAR-10, half of the inner channels: LASSO and filter pruning (Li et al., ICLR 2017: the filters of
    the smallest weight sum go, the rest stays), before and after fine-tuning, and from scratch.  Beside them the best
    of ours: exact selection, error-driven widths, the full reconstruction; tuned on the labels, and with the dense
    network as teacher.  All tuned for 4 epochs, and once more for a tenth of the training's.
    """
    half = shape_of(RESNET56_SHAPE, _half(RESNET56_SHAPE))
    lasso = partial(inner, selection="lasso", allocation="uniform", speedup=2)
    filters = partial(inner, selection="weight sum", allocation="uniform", speedup=2, reconstruct=False)
    best = partial(inner, selection="exact", allocation="error-driven", speedup=2, full=True)
    untouched = partial(chain, prune=None, tune=False)
    base = {"top1_acc": ("baseline", "top1_acc")}
    rows = [Row(TABLE8, "ResNet-56 dense", "cifar10", RESNET56_SHAPE, None, resnet56, untouched, base)]
    for name, row_chain in (
        ("Ours", partial(chain, prune=lasso, tune=False)),
        ("Ours (fine-tuned)", partial(chain, prune=lasso, tune=True)),
        ("Filter pruning", partial(chain, prune=filters, tune=False)),
        ("Filter pruning (fine-tuned, our impl.)", partial(chain, prune=filters, tune=True)),
        ("From scratch", partial(from_scratch, widths=_half)),
    ):
        # the paper prints filter pruning after fine-tuning alone
        link = {} if name == "Filter pruning" else {"top1_err_increase": (name, "top1_err_increase@2x")}
        # from scratch needs the full training set
        scales: tuple[str, ...] | None = ("digits", "cifar10") if name == "From scratch" else None
        rows.append(Row(TABLE8, name, "cifar10", half, 2.0, resnet56, row_chain, link, scales=scales))
    for tune in (False, True):
        name = f"Exact, error-driven, full reconstruction{' (fine-tuned)' if tune else ''}"
        row_chain = partial(chain, prune=best, tune=tune)
        scales = NOT_ON_CLUTTER if tune else None
        rows.append(Row(TABLE8, name, "cifar10", dense=resnet56, chain=row_chain, ours=True, scales=scales))
    name = "Exact, error-driven, full reconstruction (fine-tuned, distilled)"
    taught = partial(chain, prune=best, tune=True, distillation=SOFT)
    rows.append(
        Row(TABLE8, name, "cifar10", dense=resnet56, chain=taught, ours=True, scales=("cifar10",), release=True)
    )
    return [*rows, *_tenth(half, lasso, filters, best), *_at_3x()]


def _tenth(half: Recipe, lasso: Prune, filters: Prune, best: Prune) -> list[Row]:
    """Table 8 tuned for a tenth of the training epochs: for a GPU, or half a day on two cores."""
    rows = []
    for name, prune, printed, soft in (
        ("Ours (fine-tuned, 16 epochs)", lasso, "Ours (fine-tuned)", None),
        ("Filter pruning (fine-tuned, 16 epochs)", filters, "Filter pruning (fine-tuned, our impl.)", None),
        ("Exact, error-driven, full reconstruction (fine-tuned, 16 epochs)", best, "", None),
        ("Exact, error-driven, full reconstruction (fine-tuned, distilled, 16 epochs)", best, "", SOFT),
    ):
        row_chain = partial(chain, prune=prune, tune=True, epochs=TENTH, distillation=soft)
        row = Row(TABLE8, name, "cifar10", dense=resnet56, chain=row_chain, scales=("cifar10",))
        if printed:
            link = {"top1_err_increase": (printed, "top1_err_increase@2x")}
            rows.append(replace(row, shape=half, claimed=2.0, published=link))
        else:
            rows.append(replace(row, ours=True))
    return rows


def _at_3x() -> list[Row]:
    """Beyond the paper: LASSO and the best of ours at 3x, fine-tuned as at 2x."""
    lasso = partial(inner, selection="lasso", allocation="uniform", speedup=3)
    best = partial(inner, selection="exact", allocation="error-driven", speedup=3, full=True)
    return [
        Row(
            TABLE8,
            name,
            "cifar10",
            dense=resnet56,
            chain=partial(chain, prune=prune, tune=True, distillation=soft),
            ours=True,
            scales=("cifar10",),
            release=soft is not None,
        )
        for name, prune, soft in (
            ("LASSO at 3x (fine-tuned)", lasso, None),
            ("Exact, error-driven, full reconstruction at 3x (fine-tuned, distilled)", best, SOFT),
        )
    ]


def figure4() -> list[Row]:
    """Single layers of VGG-16 pruned alone: first k, max response, LASSO and exact selection at several speed-ups."""
    return [
        _vgg_row(FIGURE, producer, {}, partial(single_layer, reader=reader), seeds=(0,))
        for producer, reader in FIGURE4.items()
    ]


def criteria() -> list[Row]:
    """VGG-16's CIFAR form at the paper's ratios by LASSO, first k and max response, before and after fine-tuning."""
    rows = [Row(CRITERIA, "dense, fine-tuned", "cifar10", dense=vgg16, chain=partial(chain, prune=None, tune=True))]
    for tune in (False, True):
        for speedup in (2, 4, 5):
            for selection in ("first k", "max response", "lasso"):
                name = f"{speedup}x {selection.replace('lasso', 'LASSO')}{', fine-tuned' if tune else ''}"
                prune = partial(by_ratio, speedup=speedup, selection=selection)
                rows.append(Row(CRITERIA, name, "cifar10", dense=vgg16, chain=partial(chain, prune=prune, tune=tune)))
    return [replace(row, ours=True, scales=("cifar10",)) for row in rows]


def _vgg_row(
    table: str,
    name: str,
    published: dict[str, tuple[str, str]],
    chain: Callable[[Setting, Recipe], Chain],
    keep: Mapping[str, int] | None = None,
    claimed: float | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> Row:
    shape = shape_of(VGG_SHAPE, keep or {})
    return Row(table, name, "imagenet", shape, claimed, vgg16, chain, published, seeds=seeds)


def _ratio_widths(speedup: float) -> dict[str, int]:
    return pruning.ratio_widths(VGG_SHAPE, ratios(VGG_SHAPE), speedup)


def _uniform_vgg(speedup: float, recipe: Recipe) -> dict[str, int]:
    shares = {module: 1.0 for name, module in vgg_layers(recipe).items() if name != "conv5_3"}
    return pruning.ratio_widths(recipe, shares, speedup)


def _half(recipe: Recipe) -> dict[str, int]:
    producers, _ = pruning.prunable(recipe)
    model = recipe.build("meta")
    return {name: surgery.convolution(model, name).out_channels // 2 for name in producers}


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


def seeds_on_clutter(row: Row) -> tuple[int, ...]:
    """Five where the study of the selection takes five, whose networks these are; one for the rest.

    So that the whole job takes less than ten minutes on two cores.
    """
    shared = (TABLE8, "ResNet-56 dense"), (TABLE8, "Ours")
    return (0, 1, 2, 3, 4) if (row.table, row.name) in shared else (0,)


def paper() -> Paper:
    """The paper as the harness sees it."""
    rows = [
        *table1(),
        *table4(),
        *table6(),
        *table8(),
        *figure4(),
        *criteria(),
        *released_code(),
        *not_yet(),
    ]
    rows = [replace(row, seeds_at={"clutter": seeds_on_clutter(row)}) for row in rows]
    title = "Channel Pruning for Accelerating Very Deep Neural Networks"
    return Paper("channel_pruning", title, "He, Zhang, Sun; ICCV 2017; arXiv 1707.06168", rows, DEVIATIONS)


if __name__ == "__main__":
    raise SystemExit(main(["run", "channel_pruning", *sys.argv[1:]]))
