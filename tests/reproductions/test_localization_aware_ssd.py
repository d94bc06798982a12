"""Localization-aware pruning: auxiliary losses by loops from their definitions, widths of built networks, the plan."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bench import planning
from bench.data.annotations import DetectionSet, DetectionSplit
from bench.data.scenes import scenes_detection
from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.models.ssd import SSD, registry
from bench.planning import Job
from bench.pruning.surgery import convolution
from bench.steps import Context, Step, in_order
from bench.train.detection_steps import detector
from reproductions import localization_aware_ssd as lcp

registry()  # makes mmdet importable
from mmdet.structures import DetDataSample  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

SIZE, POSITION = 64, "backbone.features.17"  # 8 channels, 8x8 cells
TINY = Recipe("narrow_ssd", {"num_classes": 5, "size": SIZE, "widths": [4, 4, 6, 6, 8, 8, 8, 8]}, (3, SIZE, SIZE))
NARROW = Recipe("narrow_ssd", {"num_classes": 10, "size": 160}, (3, 160, 160))
VGG = Recipe("ssd300_vgg16", {"num_classes": 20}, (3, 300, 300))
RESNET = Recipe("ssd300_resnet50", {"num_classes": 20}, (3, 300, 300))

Box = list[float]


def sample(boxes: list[Box], labels: list[int]) -> Any:
    made = DetDataSample()
    made.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.long)
    )
    return made


# --------------------------------------------------------------------------------------------------------------------
# Slow versions, from the definitions


def area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def intersection(a: Box, b: Box) -> float:
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def enclosing(a: Box, b: Box) -> Box:
    return [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]


def giou(a: Box, b: Box) -> float:
    """IoU - (C - U) / C, with U = A + B - the intersection's area and C the area of the smallest box around both."""
    both = intersection(a, b)
    union, around = area(a) + area(b) - both, area(enclosing(a, b))
    return both / union - (around - union) / around


def matches(defaults: list[Box], truth: list[Box]) -> list[tuple[int, int]]:
    """(default box, ground truth) for each default box whose best IoU is above one half."""
    found = []
    for place, box in enumerate(defaults):
        overlaps = [intersection(box, t) / (area(box) + area(t) - intersection(box, t)) for t in truth]
        if overlaps and max(overlaps) > 0.5:
            found.append((place, overlaps.index(max(overlaps))))
    return found


def sampled(plane: Tensor, y: float, x: float) -> Tensor:
    """Bilinear value of C x H x W at cell centres (y, x); nothing beyond one cell outside the map."""
    height, width = plane.shape[1:]
    if not (-1.0 <= y <= height and -1.0 <= x <= width):
        return torch.zeros(len(plane))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    rows = [(math.floor(y), 1 - y % 1), (min(math.floor(y) + 1, height - 1), y % 1)]
    columns = [(math.floor(x), 1 - x % 1), (min(math.floor(x) + 1, width - 1), x % 1)]
    return torch.stack([plane[:, r, c] * wr * wc for r, wr in rows for c, wc in columns]).sum(0)


def aligned(plane: Tensor, box: Box, scale: float) -> Tensor:
    """RoIAlign by loops: C x 7 x 7 means of 2x2 samples; pixel p of the input lies at p * scale - 0.5 on the map."""
    left, top = box[0] * scale - 0.5, box[1] * scale - 0.5
    wide, tall = (box[2] - box[0]) * scale / 7, (box[3] - box[1]) * scale / 7
    cells = [
        sum(sampled(plane, top + (r + i) * tall, left + (c + j) * wide) for i in (0.25, 0.75) for j in (0.25, 0.75))
        for r in range(7)
        for c in range(7)
    ]
    return torch.stack(cells, dim=1).reshape(len(plane), 7, 7) / 4  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------------
# Boxes


@st.composite
def boxes(draw: st.DrawFn, least: int = 0) -> list[Box]:
    """Up to six boxes at whole and half pixels, so that some IoUs are exactly one half."""
    found = []
    for _ in range(draw(st.integers(least, 6))):
        x, y = (draw(st.integers(0, 40)) / 2 for _ in range(2))
        wide, tall = (draw(st.integers(1, 40)) / 2 for _ in range(2))
        found.append([x, y, x + wide, y + tall])
    return found


@settings(deadline=None, max_examples=60)
@given(defaults=boxes(1), truth=boxes())
def test_matched_boxes_overlap_by_more_than_half(defaults: list[Box], truth: list[Box]) -> None:
    chosen, which = lcp.matched(torch.tensor(defaults), torch.tensor(truth).reshape(-1, 4))
    assert list(zip(chosen.tolist(), which.tolist(), strict=True)) == matches(defaults, truth)
    assert chosen.dtype == which.dtype == torch.long


def test_an_iou_of_one_half_is_no_match() -> None:
    defaults = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.9], [50, 50, 60, 60], [0, 0, 10, 5.1]])
    chosen, which = lcp.matched(defaults, torch.tensor([[0.0, 0, 10, 5], [51, 50, 60, 60]]))
    assert (chosen.tolist(), which.tolist()) == ([1, 2, 3], [0, 1, 0])


@settings(deadline=None, max_examples=40)
@given(first=boxes(1), second=boxes(1))
def test_the_enclosing_box_is_the_smallest_around_both(first: list[Box], second: list[Box]) -> None:
    count = min(len(first), len(second))
    found = lcp.enclosing(torch.tensor(first[:count]), torch.tensor(second[:count])).tolist()
    assert found == [enclosing(a, b) for a, b in zip(first, second, strict=False)]


def test_contextual_roi_align_by_loops() -> None:
    """F_O = RoIAlign(B) + RoIAlign(C) on the map of the box's own image; boxes inside, tiny and over the edge."""
    features = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    image = torch.tensor([2, 0, 1, 2])
    own = torch.tensor([[3.0, 4, 20, 30], [10, 10, 11, 12], [-6, 20, 25, 60], [0, 0, 40, 48]])
    around = lcp.enclosing(own, own.roll(1, 0))
    found = lcp.contextual_roi_align(features, image, own, around, 5 / 40)
    assert found.shape == (4, 2, 7, 7)
    for k in range(4):
        plane = features[int(image[k])]
        expected = aligned(plane, own[k].tolist(), 5 / 40) + aligned(plane, around[k].tolist(), 5 / 40)
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# The auxiliary network

TRUTH = ([[5.0, 8.0, 22.0, 23.0], [30.0, 30.0, 50.0, 62.0]], [3, 1])
OTHER = ([[18.0, 9.0, 36.0, 25.0]], [4])


def auxiliary_of(localization: bool) -> lcp.Auxiliary:
    """For the tiny SSD, in evaluation mode, with a batch norm far from the identity and weights that all matter."""
    torch.manual_seed(1)
    net = TINY.build()
    assert isinstance(net, SSD)
    made = lcp.Auxiliary(net, POSITION, localization).eval()
    with torch.no_grad():
        assert made.norm.running_mean is not None and made.norm.running_var is not None
        for value in (made.norm.weight, made.norm.bias, made.norm.running_mean):
            value.normal_()
        made.norm.running_var.uniform_(0.5, 2.0)
        if made.locate is not None:
            made.locate.weight.mul_(4.0)
    return made


def slow_losses(
    auxiliary: lcp.Auxiliary, features: Tensor, truths: list[tuple[list[Box], list[int]]]
) -> dict[str, float]:
    """Both losses box by box: cross-entropy by log-sum-exp, SSD's decoding (variances 0.1 and 0.2), GIoU by areas."""
    defaults = auxiliary.defaults.tolist()
    norm = auxiliary.norm
    entropies, distances = [], []
    for plane, (truth, labels) in zip(features, truths, strict=True):
        for place, which in matches(defaults, truth):
            box, target = defaults[place], truth[which]
            value = aligned(plane, box, features.shape[-1] / SIZE)
            if auxiliary.locate is not None:
                value = value + aligned(plane, enclosing(box, target), features.shape[-1] / SIZE)
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            value = (
                (value - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
            ).clamp(0)
            logits = (auxiliary.classify.weight @ value.mean((1, 2)) + auxiliary.classify.bias).tolist()
            entropies.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[labels[which]])
            if auxiliary.locate is not None:
                dx, dy, dw, dh = (auxiliary.locate.weight @ value.flatten() + auxiliary.locate.bias).tolist()
                wide, tall = box[2] - box[0], box[3] - box[1]
                x, y = (box[0] + box[2]) / 2 + 0.1 * dx * wide, (box[1] + box[3]) / 2 + 0.1 * dy * tall
                wide, tall = wide * math.exp(0.2 * dw), tall * math.exp(0.2 * dh)
                predicted = [x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2]
                distances.append(50.0 * (1.0 - giou(predicted, target)))
    assert len(entropies) > 5
    losses = {"loss_ac": sum(entropies) / len(entropies)}
    if distances:
        losses["loss_ar"] = sum(distances) / len(distances)
    return losses


@pytest.mark.parametrize("localization", [True, False])
def test_auxiliary_losses_by_loops(localization: bool) -> None:
    """L_ac and L_ar (m = 50) over three images, the middle one empty; DCP's variant reads B alone, no box head."""
    auxiliary = auxiliary_of(localization)
    assert (auxiliary.locate is not None) == localization
    assert any(name.startswith("locate") for name, _ in auxiliary.named_parameters()) == localization
    features = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    truths: list[tuple[list[Box], list[int]]] = [TRUTH, ([], []), OTHER]
    with torch.no_grad():
        found = auxiliary(features, [sample(*truth) for truth in truths])
        expected = slow_losses(auxiliary, features, truths)
    assert set(found) == ({"loss_ac", "loss_ar"} if localization else {"loss_ac"})
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


def test_boxes_that_do_not_meet_cost_more_than_m() -> None:
    """1 - GIoU is above 1 where the predicted box misses its target: by hand, for one box pushed away."""
    auxiliary = auxiliary_of(True)
    assert auxiliary.locate is not None
    nn.init.zeros_(auxiliary.locate.weight)
    with torch.no_grad():
        auxiliary.locate.bias.copy_(torch.tensor([30.0, 0.0, 0.0, 0.0]))  # three widths to the right
    box = auxiliary.defaults[4 * (8 * 2 + 2)].tolist()  # the smallest square of a cell inside the image
    found = auxiliary(torch.randn(1, 8, 8, 8), [sample([box], [0])])["loss_ar"]
    # 1 - GIoU = 1 + (4 - 2) / 4 for equal squares three sides apart; neighbours that match are pushed as far
    assert len(matches(auxiliary.defaults.tolist(), [box])) < 6
    assert float(found.detach()) == pytest.approx(50.0 * 1.5, rel=0.15)


def test_the_classification_loss_is_a_mean_of_cross_entropies() -> None:
    """Constant features: every box sees the same activations, so the loss is known without any RoIAlign."""
    auxiliary = auxiliary_of(False)
    values = torch.randn(8)
    inside = [[20.0, 20.0, 36.0, 36.0], [24.0, 30.0, 42.0, 48.0]]
    truths = [sample(inside, [2, 0])]
    features = values[None, :, None, None].expand(1, 8, 8, 8)
    seen = F.relu(auxiliary.norm(values[None, :, None, None])).flatten()
    logits = F.linear(seen, auxiliary.classify.weight, auxiliary.classify.bias)
    labels = [[2, 0][which] for _, which in matches(auxiliary.defaults.tolist(), inside)]
    expected = F.cross_entropy(logits.expand(len(labels), -1), torch.tensor(labels))
    torch.testing.assert_close(auxiliary(features, truths)["loss_ac"], expected)


@pytest.mark.parametrize("localization", [True, False])
def test_images_without_objects_cost_nothing(localization: bool) -> None:
    """Nothing, or nothing that matches: a zero that can be back-propagated, in training too."""
    auxiliary = auxiliary_of(localization).train()
    features = torch.randn(2, 8, 8, 8, requires_grad=True)
    for truths in ([([], []), ([], [])], [([], []), ([[1.0, 1.0, 2.0, 2.0]], [0])]):
        total = torch.stack(list(auxiliary(features, [sample(*truth) for truth in truths]).values())).sum()
        assert float(total.detach()) == 0.0
        features.grad = None
        total.backward()
        assert features.grad is not None and not bool(features.grad.any())


@pytest.mark.parametrize("localization", [True, False])
def test_every_parameter_takes_part_without_objects(localization: bool) -> None:
    """DistributedDataParallel waits for the gradient of every parameter, also in a process whose batch is empty."""
    auxiliary = auxiliary_of(localization).train()
    losses = auxiliary(torch.randn(1, 8, 8, 8, requires_grad=True), [sample([], [])])
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, parameter in auxiliary.named_parameters() if parameter.grad is None]
    assert not without


# --------------------------------------------------------------------------------------------------------------------
# Widths and segments


def backbone_parameters(recipe: Recipe) -> int:
    """Weights of the backbone's convolutions in the network that the recipe builds."""
    model = recipe.build("meta")
    convs = [m for name, m in model.named_modules() if name.startswith("backbone.") and isinstance(m, nn.Conv2d)]
    return sum(conv.weight.numel() for conv in convs)


# the backbone's convolutions whose filters one convolution makes alone and another of the backbone reads
BLOCKS = [f"backbone.layer{stage}.{b}" for stage, count in ((1, 3), (2, 4), (3, 6)) for b in range(count)]
PRUNABLE = {
    "narrow": [f"backbone.features.{i}" for i in (0, 3, 7, 10, 14, 17, 21)],
    "vgg16": [f"backbone.features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31)],
    "resnet50": [f"{block}.conv{i}" for block in BLOCKS for i in (1, 2)],
}
RECIPES = {"narrow": NARROW, "vgg16": VGG, "resnet50": RESNET}


@pytest.mark.parametrize(("name", "share"), [("narrow", 0.5), ("narrow", 0.7), ("vgg16", 0.5), ("resnet50", 0.7)])
def test_the_backbone_loses_the_stated_share(name: str, share: float) -> None:
    """Counted on the built networks: at least the share, and less with one more filter everywhere; equal shares."""
    recipe = RECIPES[name]
    dense, keep = backbone_parameters(recipe), lcp.equal_share(recipe, share)
    assert list(keep) == PRUNABLE[name]
    model = recipe.build("meta")
    filters = {producer: convolution(model, producer).out_channels for producer in keep}
    lost = 1 - backbone_parameters(recipe.removed(keep)) / dense
    more = {producer: min(count + 1, filters[producer]) for producer, count in keep.items()}
    assert 1 - backbone_parameters(recipe.removed(more)) / dense < share <= lost < share + 0.02
    # one factor rounds to every width
    low = max((count - 0.5) / filters[producer] for producer, count in keep.items())
    high = min((count + 0.5) / filters[producer] for producer, count in keep.items())
    assert low <= high


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("count", [1, 3])
def test_segments_cover_every_site_once_and_in_order(name: str, count: int) -> None:
    found = lcp.segments(RECIPES[name], count)
    assert len(found) == count
    assert [producer for _, producers in found for producer in producers] == PRUNABLE[name]
    lengths = [len(producers) for _, producers in found]
    assert max(lengths) - min(lengths) <= 1
    for position, producers in found:  # the auxiliary network reads the convolution behind the segment's last filters
        conv = convolution(RECIPES[name].build("meta"), position)
        assert conv.in_channels == convolution(RECIPES[name].build("meta"), producers[-1]).out_channels
        assert position.startswith("backbone.") and position not in producers
    if name != "resnet50" and count == 3:  # a chain: the last reader is the next segment's first producer
        assert [position for position, _ in found[:-1]] == [producers[0] for _, producers in found[1:]]


# --------------------------------------------------------------------------------------------------------------------
# The paper


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> list[planning.Planned]:
    job = Job(out=tmp_path_factory.mktemp("runs"), scale="scenes", device="cpu", progress=False)
    return planning.plan(lcp.paper(), lcp.paper().rows, job)


def test_every_row_plans_at_scenes(planned: list[planning.Planned]) -> None:
    """All but the publication's own tables, which are for VOC and COCO; each has a chain and something to show."""
    paper = lcp.paper()
    assert paper.key == "localization_aware_ssd" and paper.deviations == lcp.DEVIATIONS
    own = [row for row in paper.rows if row.published]
    assert len({(row.table, row.name) for row in paper.rows}) == len(paper.rows)
    assert {entry.row.name for entry in planned} == {row.name for row in paper.rows if row not in own}
    for entry in planned:
        assert entry.reason is None and entry.chain is not None and entry.chain.records
        assert entry.dense is not None and entry.dense.input_shape == (3, 160, 160)
        assert len(entry.chain.networks) in (0, len(entry.row.seeds))


def test_work_is_shared_between_the_rows(planned: list[planning.Planned]) -> None:
    """One dense training; three auxiliary networks for a method and seed, on at most 128 images a pick."""
    steps = [step for step, _ in planning.steps_of(planned)]
    assert [step.name for step in steps].count("dense(seed 0)") == 1
    auxiliary = [step for step in steps if step.run is lcp.run_auxiliary]
    assert len(auxiliary) == 3 * 3 * 2  # segments, seeds, LCP and DCP
    for step in steps:
        assert getattr(step.params, "images", 0) <= 128


@pytest.mark.parametrize("row", ["LCP", "DCP"])
def test_stages_follow_one_another(planned: list[planning.Planned], row: str) -> None:
    """Dense, then train and select three times; together the selections keep what equal shares keep."""
    entry = next(e for e in planned if e.row.name == row)
    assert entry.chain is not None
    keep = lcp.equal_share(NARROW, 0.5)
    for seed, network in zip((0, 1, 2), entry.chain.networks, strict=True):
        chain: list[Step] = in_order([network])
        assert [step.run.__name__ for step in chain] == ["run_trained", *["run_auxiliary", "run_selected"] * 3]
        assert [step.parents for step in chain] == [(), *((step,) for step in chain[:-1])]
        assert {step.params.localization for step in chain[1:]} == {row == "LCP"}
        assert {k: v for step in chain[2::2] for k, v in step.params.keep.items()} == keep
        assert [step.params.position for step in chain[1::2]] == [step.params.position for step in chain[2::2]]
        assert chain[2].params.sampling.seed == chain[1].params.seed == seed


def test_rows_of_the_publication_build_at_their_own_shape() -> None:
    """Classes and input of VOC and COCO; the pruned SSD-VGG16 loses half its backbone, conv4_3's three readers too."""
    shapes = {(row.table, row.name): row.own_shape() for row in lcp.paper_tables()}
    assert len(shapes) == 6
    for (table, name), shape in shapes.items():
        assert shape is not None and shape.input_shape == (3, 300, 300)
        assert shape.arguments["num_classes"] == (80 if table.startswith("COCO") else 20)
        assert shape.builder == ("ssd300_vgg16" if "VGG16" in table else "ssd300_resnet50")
        assert list(shape.widths) == ([] if name == "baseline" else PRUNABLE[shape.builder.removeprefix("ssd300_")])
    pruned = shapes["VOC2007 SSD-VGG16", "pruned"]
    assert pruned is not None
    assert 0.5 <= 1 - backbone_parameters(pruned) / backbone_parameters(VGG) < 0.51
    model, width = pruned.build("meta"), pruned.widths["backbone.features.21"]
    for reader in ("backbone.features.24", "bbox_head.cls_convs.0.0", "bbox_head.reg_convs.0.0"):
        assert convolution(model, reader).in_channels == width < 512


# --------------------------------------------------------------------------------------------------------------------
# One stage, on a few scenes


@pytest.mark.parametrize("localization", [True, False])
def test_one_stage_prunes_what_it_should(tmp_path: Path, localization: bool) -> None:
    """The auxiliary step trains both networks, the selection removes the segment's filters; both are repeatable."""
    recipe = replace(TINY, arguments={**TINY.arguments, "num_classes": 10})
    whole = scenes_detection(SIZE, progress=False)
    (build,) = whole.train.builders
    train = DetectionSplit(
        whole.train.annotations[:6], [lambda pipeline, training: build(pipeline, training).get_subset(list(range(6)))]
    )
    data: DetectionSet = replace(whole, train=train)
    torch.manual_seed(0)
    parent = checkpoint(recipe.build(), recipe)
    producers = ["backbone.features.7", "backbone.features.10", "backbone.features.14"]
    how = lcp.PROTOCOLS["scenes", "*"]
    schedule = replace(how.tuning, epochs=1, batch=3)
    learn = lcp.AuxiliaryTraining(POSITION, localization, schedule, 0, how.augmenting)
    keep = dict(zip(producers, (3, 4, 5), strict=True))
    sampling = lcp.Sampling(positions=20, batch=3, seed=0)
    select = lcp.StageSelection(POSITION, localization, keep, lcp.Greedy(), 5, sampling)
    states = []
    for attempt in ("a", "b"):
        context = Context(lambda: data, "cpu", False, tmp_path / attempt)
        trained = lcp.run_auxiliary(context, [parent], learn)
        assert trained.arrays["classify.weight"].shape == (10, 8)
        assert ("locate.weight" in trained.arrays) == localization
        assert not torch.equal(trained.state["backbone.features.0.weight"], parent.state["backbone.features.0.weight"])
        result = lcp.run_selected(context, [trained], select)
        net, pruned = detector(result)
        assert pruned.widths == keep
        states.append(torch.cat([value.flatten().double() for value in result.state.values()]))
    assert torch.equal(states[0], states[1])
    assert [convolution(net, name).out_channels for name in producers] == [3, 4, 5]
    assert [len(layer["order"]) for layer in result.facts["layers"]] == [3, 4, 5]
    # what lies outside the segment is untouched
    for name in ("backbone.features.0.weight", "bbox_head.cls_convs.1.0.weight", "backbone.features.21.weight"):
        assert torch.equal(result.state[name], trained.state[name])
    for layer in result.facts["layers"]:
        assert math.isfinite(layer["first_loss"]) and math.isfinite(layer["last_loss"])
