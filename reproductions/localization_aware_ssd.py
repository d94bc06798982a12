"""Localization-aware Channel Pruning for Object Detection (Xie, Zhu, Zhao, Tao, Liu, Tao; arXiv 1911.02237v3).

SSD is pruned stage by stage (:class:`Staged`).  An auxiliary network (:class:`Auxiliary`) reads the layer at the end of
a stage, F, at the default boxes B that are matched with a ground-truth box G, C the smallest box around both:

    F_O  = RoIAlign(F, B) + RoIAlign(F, C)                     contextual RoIAlign (section 3.2)
    L_ac = cross-entropy(classes from F_O)                     L_ar = m (1 - GIoU(box from F_O, G))
    L_f  = L_a + L_c + L_r,  L_a = L_ac + L_ar                 trains the auxiliary network with the detector

and then the input channels of the stage's layers are picked greedily: channel after channel the one whose weights have
the largest gradient of reconstruction error plus alpha L_a, after each pick the kept weights move
(:mod:`bench.pruning.greedy`; Discrimination-aware Channel Pruning, Zhuang et al. 2018).  At last the network is
fine-tuned.

The publication's own tables could not be read: their cells stand empty.  Measured here is its claim, that the
localization terms help: the same pruning with and without them, and four other criteria at the same widths.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss, roi_align

from bench.chains import gmacs, shape_of
from bench.cli import main
from bench.data import BOXES
from bench.detection_chains import DetectorProtocol, Prune, measured_chain, worth
from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.models.ssd import SSD
from bench.protocols import ANY, cosine, protocol
from bench.pruning import detection_steps as pruning
from bench.pruning import surgery
from bench.pruning.calibration import Sampling
from bench.pruning.graph import Site
from bench.pruning.greedy import Greedy, prune_stage
from bench.pruning.layerwise import Method
from bench.pruning.steps import dense_sites
from bench.pruning.widths import MacModel, scaled
from bench.rows import Chain, Paper, Row, Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result
from bench.train import detection_steps as detection
from bench.train.detector import batches, fit_detector
from bench.train.schedule import Schedule

# Values that could not be found in the publication; the defaults' sources stand beside them
ALPHA = 1.0  # weight of L_a; DCP's published configurations use 1.0
LOCALIZATION = 50.0  # m of L_ar; from memory, and linsongxue/PowerfulLCP's factor
ROI = 7  # cells of the RoIAlign; a student's reproduction uses 7
SEGMENTS = 3  # auxiliary networks; DCP uses three for ResNets
GREEDY = Greedy(alpha=ALPHA, update="newton", lr=0.01, steps=1, last_steps=5)

DEVIATIONS = [
    "The tables of the publication could not be read by us: no mAP of it is known, so none is judged. Its abstract "
    "says that 70 % of the parameters of SSD with ResNet-50 go; the widths behind that are not published, so that no "
    "network of ours can be counted against it.",
    "alpha, m and the size of RoIAlign could not be found in the publication: alpha = 1.0 (DCP's configurations), "
    "m = 50 (from memory), 7x7 cells.",
    "L_a is a mean over the matched default boxes, not a sum: m = 50 with a sum over hundreds of boxes would leave "
    "nothing to the other terms. Default boxes with IoU > 0.5 to a ground-truth box are matched, as SSD does.",
    "The publication trains an auxiliary network and the model before every layer; here once for each of three "
    "segments of the backbone, in front of the selection of the segment's layers (the paper of DCP does so).",
    "The auxiliary classifier is DCP's (batch norm, ReLU, average pooling, linear) on RoIAlign's output; the box head, "
    "which no source describes, is one linear layer on all cells behind the same batch norm and ReLU, with SSD's box "
    "coding about the default box.",
    "Reconstruction target: the outputs of the network at the beginning of the stage (DCP's released code), not of the "
    "network before any training. Its loss and gradient are computed from second moments of sampled positions, "
    "exactly; only the auxiliary loss is back-propagated, on one mini-batch after the other of the calibration images.",
    "Update of the kept weights: the papers' gradient step. DCP's SGD at 0.01 diverges here in the layer behind "
    "conv4_3's analogue and leaves a tenth of the variance elsewhere, unless it runs for a whole pass after each pick; "
    "ours solves the reconstruction (Newton's step, from the moments) and moves by 1 % of the weights' length against "
    "L_a's gradient.",
    "Pruned are the filters of the backbone that one convolution produces alone: in VGG-16 all but those of the last "
    "layer (as in DCP), in ResNet-50 those inside the bottlenecks. conv4_3 is read by conv5_1 and by two heads: its "
    "channels are chosen for all three together.",
    "Every method keeps the same share of the filters everywhere, chosen so that the backbone's convolutions lose the "
    "stated share of their parameters; the publication's widths are not known. 70 % of all parameters of SSD-ResNet-50 "
    "cannot be reached inside the bottlenecks (they hold 55 % of them with 20 classes, 35 % with 80), so the share is "
    "that of the backbone.",
    "Comparison rows of ours: random and L1-norm (Li et al. 2017) keep the weights as they are; LASSO (Channel "
    "Pruning), ThiNet's greedy choice and exact elimination rebuild every reader by least squares. DCP and LCP train "
    "in each of three stages for half the epochs of the fine-tuning that all rows have (one of two epochs, 15 of 30 on "
    "VOC and COCO) before it; one row fine-tunes the random choice as long as both together.",
    "BCCD, where it was measured on, is Shenggan/BCCD_Dataset (MIT): 364 images of blood cells of 640x480 in three "
    "classes, in VOC's layout; `--scale` takes the path of its folder.",
    "DCP here means this pruning without the localization terms: RoIAlign of the default box alone, no box head.",
]


# --------------------------------------------------------------------------------------------------------------------
# The auxiliary network


def matched(defaults: Tensor, truth: Tensor, iou: float = 0.5) -> tuple[Tensor, Tensor]:
    """Default boxes (K x 4) that overlap a ground-truth box (k x 4) by more than ``iou``, and the box of each.

    Returns two index tensors of one length: into ``defaults`` and into ``truth``.
    """
    if not len(truth):
        empty = torch.zeros(0, dtype=torch.long, device=truth.device)
        return empty, empty
    best, which = box_iou(defaults, truth).max(1)
    chosen = (best > iou).nonzero().flatten()
    return chosen, which[chosen]


def enclosing(first: Tensor, second: Tensor) -> Tensor:
    """C, the smallest box that holds both (k x 4 each, corners)."""
    return torch.cat([torch.minimum(first[:, :2], second[:, :2]), torch.maximum(first[:, 2:], second[:, 2:])], dim=1)


def contextual_roi_align(features: Tensor, image: Tensor, boxes: Tensor, context: Tensor, scale: float) -> Tensor:
    """F_O = RoIAlign(F, B) + RoIAlign(F, C): the box with its surroundings (section 3.2), k x C x 7 x 7.

    ``features`` B x C x H x W; ``image`` (k) says which of them each box belongs to; ``boxes`` and ``context`` k x 4 in
    pixels of the input, ``scale`` cells of the map per pixel.
    """
    found: list[Tensor] = []
    for rois in (boxes, context):
        indexed = torch.cat([image[:, None].to(rois), rois], dim=1)
        found.append(roi_align(features, indexed, ROI, scale, sampling_ratio=2, aligned=True))
    return found[0] + found[1]


class Auxiliary(nn.Module):
    """L_a = L_ac + L_ar of the layer that it reads: cross-entropy, and m (1 - GIoU), means over the matched boxes.

    Without ``localization`` it is DCP's classifier on RoIAlign of the default box alone.
    """

    def __init__(self, net: SSD, position: str, localization: bool) -> None:
        super().__init__()
        channels = surgery.convolution(net, position).out_channels
        self.localization = localization
        self.norm = nn.BatchNorm2d(channels)
        self.classify = nn.Linear(channels, net.bbox_head.num_classes)
        self.locate = nn.Linear(channels * ROI * ROI, 4) if localization else None
        self.coder, self.side = net.bbox_head.bbox_coder, net.size
        self.register_buffer("defaults", net.default_boxes(), persistent=False)
        self.defaults: Tensor

    def forward(self, features: Tensor, samples: Sequence[Any]) -> dict[str, Tensor]:
        """``features`` B x C x H x W, the layer's output before any ReLU; ``samples`` mmdet's, with ground truth."""
        images, boxes, truths, labels = [], [], [], []
        for place, sample in enumerate(samples):
            truth = sample.gt_instances
            chosen, which = matched(self.defaults, truth.bboxes)
            images.append(torch.full_like(chosen, place))
            boxes.append(self.defaults[chosen])
            truths.append(truth.bboxes[which])
            labels.append(truth.labels[which])
        image, box, target, label = (torch.cat(parts) for parts in (images, boxes, truths, labels))
        if not len(image):
            # every parameter takes part, or processes that train together would wait for it
            unused = torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
            return {"loss_ac": (features.sum() + unused) * 0.0}
        scale = features.shape[-1] / self.side
        if self.locate is None:
            rois = torch.cat([image[:, None].to(box), box], dim=1)
            aligned = roi_align(features, rois, ROI, scale, sampling_ratio=2, aligned=True)
        else:
            aligned = contextual_roi_align(features, image, box, enclosing(box, target), scale)
        seen = torch.relu(self.norm(aligned))
        losses = {"loss_ac": nn.functional.cross_entropy(self.classify(seen.mean((2, 3))), label)}
        if self.locate is not None:
            predicted = self.coder.decode(box, self.locate(seen.flatten(1)))
            losses["loss_ar"] = LOCALIZATION * generalized_box_iou_loss(predicted, target).mean()  # 1 - GIoU
        return losses


# --------------------------------------------------------------------------------------------------------------------
# What is pruned: the backbone's sites, their widths, and the segments


def prunable_sites(recipe: Recipe) -> list[Site]:
    """Sites whose filters are the backbone's and are read in the backbone (by heads too, perhaps), in forward order."""
    return [
        site
        for site in dense_sites(recipe, shared=True)[1]
        if site.producer is not None
        and site.producer.startswith("backbone.")
        and site.reader.startswith("backbone.")
        and not (site.others and all(other.reader.startswith("backbone.") for other in site.others))
    ]


def equal_share(recipe: Recipe, share: float) -> dict[str, int]:
    """Filters kept by producer: the same share everywhere, so that the backbone's convolutions lose ``share`` of their
    parameters."""
    net, sites = dense_sites(recipe, shared=True)[0], prunable_sites(recipe)
    params = {
        name: module.weight.numel()
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and name.startswith("backbone.")
    }
    channels = {site.reader: surgery.convolution(net, site.reader).in_channels for site in sites}
    keep = scaled(MacModel(params, sites, channels), dict.fromkeys(channels, 1.0), 1.0 / (1.0 - share))
    return {site.producer: keep[site.reader] for site in sites if site.producer is not None}


def segments(recipe: Recipe, count: int = SEGMENTS) -> list[tuple[str, list[str]]]:
    """The sites in ``count`` nearly equal parts: (the last reader, which the auxiliary network reads; producers)."""
    sites = prunable_sites(recipe)
    bounds = [round(part * len(sites) / count) for part in range(count + 1)]
    parts = [sites[first:last] for first, last in pairwise(bounds)]
    return [(part[-1].reader, [str(site.producer) for site in part]) for part in parts if part]


# --------------------------------------------------------------------------------------------------------------------
# Steps of one stage


@dataclass(frozen=True)
class AuxiliaryTraining:
    """Training with an auxiliary network at ``position``; ``localization`` adds L_r and the context to it."""

    position: str
    localization: bool
    schedule: Schedule
    seed: int
    augmenting: detection.Augmenting


@dataclass(frozen=True)
class StageSelection:
    """Greedy selection of ``keep`` filters by producer, on ``images`` training images."""

    position: str
    localization: bool
    keep: Mapping[str, int]
    greedy: Greedy
    images: int
    sampling: Sampling


def run_auxiliary(context: Context, parents: list[Result], params: AuxiliaryTraining) -> Result:
    """Trains an auxiliary network and the model pruned so far with L_f = L_a + L_c + L_r."""
    net, recipe = detection.detector(parents[0])
    torch.manual_seed(params.seed)
    auxiliary = Auxiliary(net, params.position, params.localization)
    history = fit_detector(
        net,
        context.data().train,
        params.schedule,
        params.seed,
        context.work,
        context.device,
        context.label,
        auxiliary=auxiliary,
        position=params.position,
        mirror=params.augmenting.mirror,
        zoom_out=params.augmenting.zoom_out,
        workers=context.workers,
        progress=context.progress,
    )
    return checkpoint(net, recipe, arrays=dict(auxiliary.state_dict()), facts={"history": history})


def run_selected(context: Context, parents: list[Result], params: StageSelection) -> Result:
    """Greedy selection of the segment's layers, with the auxiliary network that the parent has trained."""
    net, recipe = detection.detector(parents[0])
    auxiliary = Auxiliary(net, params.position, params.localization)
    auxiliary.load_state_dict(parents[0].arrays)
    auxiliary.to(context.device).eval().requires_grad_(False)
    train = context.data().train
    usable = [place for place, truth in enumerate(train.annotations) if bool((~truth.difficult).any())]
    drawn = pruning.calibration_places(params.images, len(usable), params.sampling.seed)
    places = [usable[place] for place in drawn]
    calibration = pruning.calibration_of(context, net, params.sampling, list(params.keep), places)
    samples = [
        [sample.to(context.device) for sample in batch]
        for _, batch in batches(train, net.size, places, calibration.sampling.batch, boxes=True)
    ]
    reader_of = {site.producer: site.reader for site in calibration.sites}
    keep = {reader_of[producer]: count for producer, count in params.keep.items()}

    def loss(batch: int, features: Tensor) -> Tensor:
        return torch.stack(list(auxiliary(features, samples[batch]).values())).sum()

    pruned, reports = prune_stage(net, calibration, keep, params.greedy, params.position, loss, context.progress)
    facts = {"layers": [asdict(report) for report in reports]}
    return checkpoint(pruned.cpu(), recipe.removed(params.keep), facts=facts)


# --------------------------------------------------------------------------------------------------------------------
# Networks and protocols

Network = Callable[[str, int, bool], Recipe]


def ssd_vgg16(scale: str, classes: int, given: bool) -> Recipe:
    """SSD300-VGG16 on VOC and COCO and with the user's weights; else a narrow SSD of the same pattern, from scratch."""
    if scale == "scenes":
        return Recipe("narrow_ssd", {"num_classes": classes, "size": 160}, (3, 160, 160))
    if scale in ("voc", "coco") or given:
        return Recipe("ssd300_vgg16", {"num_classes": classes}, (3, 300, 300))
    return Recipe("narrow_ssd", {"num_classes": classes, "size": 240}, (3, 240, 240))


def ssd_resnet50(scale: str, classes: int, given: bool) -> Recipe:
    """SSD300-ResNet-50."""
    return Recipe("ssd300_resnet50", {"num_classes": classes}, (3, 300, 300))


by_steps = partial(Schedule, batch=64, weight_decay=5e-4, shape="steps")
by_adamw = partial(Schedule, batch=16, weight_decay=1e-4, shape="cosine", clip=10.0, optimizer="AdamW")
# digits must not be mirrored, and scenes hold several sizes already
PLAIN = detection.Augmenting(mirror=False, zoom_out=1.0)
# (scale, network): training of the dense detector, fine-tuning (a stage is trained for half as long), calibration
PROTOCOLS = {
    # mmdet's configurations: 24 epochs over ten (VOC) or five (COCO) repetitions
    ("voc", ANY): DetectorProtocol(by_steps(240, 1e-3, milestones=(160, 200)), cosine(30, 1e-3, 32), images=128),
    ("coco", ANY): DetectorProtocol(by_steps(120, 2e-3, milestones=(80, 100)), cosine(30, 1e-3, 32), images=128),
    ("scenes", ANY): DetectorProtocol(by_adamw(30, 4e-3), by_adamw(2, 5e-4), images=128, augmenting=PLAIN),
    (ANY, ANY): DetectorProtocol(by_adamw(40, 4e-3), by_adamw(2, 5e-4), images=128),
}


def sampling(seed: int) -> Sampling:
    """100 positions of each image: ten rows per unknown in the widest layer of scenes; mini-batches of 16 for L_a."""
    return Sampling(positions=100, batch=16, seed=seed)


# --------------------------------------------------------------------------------------------------------------------
# From the dense detector to a row


def stage_epochs(how: DetectorProtocol) -> int:
    """How long the auxiliary network and the detector are trained in each stage."""
    return max(1, how.tuning.epochs // 2)


@dataclass(frozen=True)
class Staged:
    """Localization-aware pruning, or without ``localization`` discrimination-aware: segment by segment."""

    localization: bool
    share: float = 0.5

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """Each segment: the auxiliary network and the detector trained together, then the selection of its layers."""
        how, keep, step = protocol(PROTOCOLS, setting, recipe), equal_share(recipe, self.share), parent
        schedule = replace(how.tuning, epochs=stage_epochs(how), amp=False)
        label = "LCP" if self.localization else "DCP"
        for number, (position, producers) in enumerate(segments(recipe), start=1):
            learn = AuxiliaryTraining(position, self.localization, schedule, seed, how.augmenting)
            step = make_step(
                Kind.TRAIN,
                f"{label} auxiliary {number}(seed {seed})",
                run_auxiliary,
                learn,
                [step],
                data=setting.data,
                device=setting.device,
                work=gmacs(recipe, setting.train_images, 3.0 * schedule.epochs),
                rate=detection.RATE,
            )
            here = {producer: keep[producer] for producer in producers}
            choose = StageSelection(position, self.localization, here, GREEDY, how.images, sampling(seed))
            step = make_step(
                Kind.PRUNE,
                f"{label} selected {number}(seed {seed})",
                run_selected,
                choose,
                [step],
                data=setting.data,
                device=setting.device,
                # two passes of a third of the network over one mini-batch for each channel picked
                work=gmacs(recipe, choose.sampling.batch, 2.0 * sum(here.values())),
                rate=18.0,
            )
        return step


@dataclass(frozen=True)
class OneWalk:
    """All layers in one walk: a criterion of Channel Pruning's or ThiNet's family, or a ranking."""

    selection: str
    reconstruct: bool = True
    share: float = 0.5

    def __call__(self, setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
        """The step that prunes ``parent``'s detector."""
        images, keep = protocol(PROTOCOLS, setting, recipe).images, equal_share(recipe, self.share)
        method = Method(self.selection, reconstruct=self.reconstruct)
        params = pruning.DetectorPruning(keep, method, images, sampling(seed))
        return pruning.layer_by_layer(setting, parent, params, gmacs(recipe, images, 3.0))


def chain(
    setting: Setting, recipe: Recipe, *, prune: Prune | None, tune: bool, stages: int = 0, pictured: bool = False
) -> Chain:
    """A row before or after fine-tuning, which takes the epochs of so many ``stages`` beside the protocol's.

    ``pictured``: with boxes of some images.
    """
    how = protocol(PROTOCOLS, setting, recipe)
    tuning = replace(how.tuning, epochs=how.tuning.epochs + stages * stage_epochs(how)) if tune else None
    return measured_chain(setting, recipe, how, prune=prune, tuning=tuning, pictured=pictured)


def terms_worth(setting: Setting, recipe: Recipe, *, tune: bool) -> Chain:
    """LCP minus DCP at the same widths, seeds and images."""
    how = protocol(PROTOCOLS, setting, recipe)
    return worth(setting, recipe, how, first=LCP, second=DCP, tuning=how.tuning if tune else None)


# --------------------------------------------------------------------------------------------------------------------
# Rows

CRITERIA = "Criteria at equal widths (SSD-VGG16)"
WORTH = "What the localization terms are worth (SSD-VGG16)"
LCP, DCP = Staged(localization=True), Staged(localization=False)
RANDOM = OneWalk("random", reconstruct=False)
# after fine-tuning, of these a few images are shown with their boxes
PICTURED = (RANDOM, LCP)
METHODS: list[tuple[str, Prune, tuple[int, ...]]] = [
    ("random", RANDOM, (0, 1, 2)),
    ("L1 norm", OneWalk("weight sum", reconstruct=False), (0,)),
    ("LASSO, least squares", OneWalk("lasso"), (0,)),
    ("ThiNet, least squares", OneWalk("thinet"), (0,)),
    ("exact, least squares", OneWalk("exact"), (0,)),
    ("DCP", DCP, (0, 1, 2)),
    ("LCP", LCP, (0, 1, 2)),
]


def whole(network: Network, scale: str, classes: int) -> Recipe:
    """A detector at the paper's own shape."""
    return network(scale, classes, False)


def pruned_shape(network: Network, scale: str, classes: int, share: float) -> Recipe:
    """The same with equal shares of its filters gone."""
    recipe = network(scale, classes, False)
    return shape_of(recipe, equal_share(recipe, share))


def paper_tables() -> list[Row]:
    """The publication's tables (cells unread): SSD on VGG-16 and ResNet-50, VOC and COCO, dense and pruned."""
    rows = []
    for table, scale, network, classes, share in (
        ("VOC2007 SSD-VGG16", "voc", ssd_vgg16, 20, 0.5),
        ("VOC2007 SSD-ResNet-50", "voc", ssd_resnet50, 20, 0.7),
        ("COCO SSD-ResNet-50", "coco", ssd_resnet50, 80, 0.7),
    ):
        metric = "map_voc07" if scale == "voc" else "coco_ap"
        shape, smaller = partial(whole, network, scale, classes), partial(pruned_shape, network, scale, classes, share)
        tail = partial(chain, prune=None, tune=False)
        rows.append(
            Row(table, "baseline", scale, shape, None, network, tail, {metric: ("baseline", "mAP")}, seeds=(0,))
        )
        tail = partial(chain, prune=Staged(localization=True, share=share), tune=True, pictured=True)
        rows.append(Row(table, "pruned", scale, smaller, None, network, tail, {metric: ("pruned", "mAP")}))
    return [replace(one, data=BOXES, scales=("voc", "coco")) for one in rows]


def criteria() -> list[Row]:
    """Half of the backbone's parameters gone, by every criterion, before and after two epochs of fine-tuning."""
    shape, half = partial(whole, ssd_vgg16, "voc", 20), partial(pruned_shape, ssd_vgg16, "voc", 20, 0.5)
    rows: list[tuple[str, Prune | None, bool, int, tuple[int, ...]]] = [
        ("dense", None, False, 0, (0,)),
        ("dense, fine-tuned", None, True, 0, (0,)),
        *((name, prune, False, 0, seeds) for name, prune, seeds in METHODS),
        *((f"{name}, fine-tuned", prune, True, 0, seeds) for name, prune, seeds in METHODS),
        ("random, fine-tuned as long as LCP's stages", RANDOM, True, SEGMENTS, (0, 1, 2)),
    ]
    return [
        Row(
            CRITERIA,
            name,
            "voc",
            shape if prune is None else half,
            dense=ssd_vgg16,
            chain=partial(chain, prune=prune, tune=tune, stages=stages, pictured=tune and prune in PICTURED),
            seeds=seeds,
            ours=True,
            data=BOXES,
        )
        for name, prune, tune, stages, seeds in rows
    ]


def localization_worth() -> list[Row]:
    """What the localization terms are worth, before and after fine-tuning."""
    return [
        Row(WORTH, name, "voc", dense=ssd_vgg16, chain=partial(terms_worth, tune=tune), ours=True, data=BOXES)
        for name, tune in (("LCP minus DCP", False), ("LCP minus DCP, fine-tuned", True))
    ]


def paper() -> Paper:
    """The paper as the harness sees it."""
    rows = [*criteria(), *localization_worth(), *paper_tables()]
    title = "Localization-aware Channel Pruning for Object Detection"
    answers = [(row.table, row.name) for row in localization_worth()]
    return Paper("localization_aware_ssd", title, "Xie et al.; arXiv 1911.02237v3", rows, DEVIATIONS, answers=answers)


if __name__ == "__main__":
    raise SystemExit(main(["run", "localization_aware_ssd", *sys.argv[1:]]))
