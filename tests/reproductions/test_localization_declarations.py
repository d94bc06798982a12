"""The declarations of localization-aware pruning: tables typed from notes on the paper and its stated deviations."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.data import BOXES
from bench.measure import detection_steps as measuring
from bench.measure import pictures, precision_recall
from bench.models.recipe import Recipe
from bench.pruning import detection_steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.greedy import Greedy
from bench.pruning.layerwise import Method
from bench.registry import find, load
from bench.rows import Chain, Row, Setting
from bench.steps import DataValue, Kind, Step
from bench.train import detection_steps as detection
from bench.train.schedule import Schedule
from reproductions import localization_aware_ssd as lcp

PUBLISHED = load("localization_aware_ssd", Path(lcp.__file__).parent / "registry")
ROWS = {(row.table, row.name): row for row in lcp.paper().rows}
CRITERIA, WORTH = "Criteria at equal widths (SSD-VGG16)", "What the localization terms are worth (SSD-VGG16)"
# classes, training and test images
IMAGES = {"scenes": (10, 600, 200), "voc": (20, 16_551, 4952), "coco": (80, 118_287, 5000), "folder": (3, 205, 87)}


def setting(scale: str, seeds: tuple[int, ...] = (0, 1, 2), weights: str | None = None, amp: bool = False) -> Setting:
    classes, train, test = IMAGES[scale]
    return Setting(scale, DataValue("plain", "training"), classes, train, test, "cpu", seeds, weights, amp)


def chain_of(row: Row, where: Setting) -> tuple[Chain, Recipe]:
    assert row.dense is not None and row.chain is not None
    recipe = row.dense(where.scale, where.classes, where.weights is not None)
    return row.chain(where, recipe), recipe


def path(step: Step) -> list[Step]:
    """The step and its first parents, the dense network first."""
    found = [step]
    while found[0].parents:
        found.insert(0, found[0].parents[0])
    return found


# from scratch or from ImageNet's backbone (mmdet: 24 epochs over ten, or five, repetitions; steps at 2/3 and 5/6)
DENSE = {
    "scenes": Schedule(30, 4e-3, 16, weight_decay=1e-4, shape="cosine", clip=10.0, optimizer="AdamW"),
    "folder": Schedule(40, 4e-3, 16, weight_decay=1e-4, shape="cosine", clip=10.0, optimizer="AdamW"),
    "voc": Schedule(240, 1e-3, 64, weight_decay=5e-4, shape="steps", milestones=(160, 200)),
    "coco": Schedule(120, 2e-3, 64, weight_decay=5e-4, shape="steps", milestones=(80, 100)),
}


def tuning(scale: str, epochs: int) -> Schedule:
    if scale in ("voc", "coco"):
        return Schedule(epochs, 1e-3, 32, weight_decay=5e-4, shape="cosine")
    return Schedule(epochs, 5e-4, 16, weight_decay=1e-4, shape="cosine", clip=10.0, optimizer="AdamW")


# of the last fine-tuning; each of three stages has half as many
EPOCHS = {"scenes": 2, "folder": 2, "voc": 30, "coco": 30}
# digits must not be mirrored, and scenes hold several sizes already; SSD's own elsewhere
AUGMENTING = {
    scale: detection.Augmenting(mirror=scale != "scenes", zoom_out=1.0 if scale == "scenes" else 4.0) for scale in DENSE
}
METHODS = {
    "random": (Method("random", reconstruct=False), (0, 1, 2)),
    "L1 norm": (Method("weight sum", reconstruct=False), (0,)),
    "LASSO, least squares": (Method("lasso"), (0,)),
    "ThiNet, least squares": (Method("thinet"), (0,)),
    "exact, least squares": (Method("exact"), (0,)),
}
STAGED = {"DCP": False, "LCP": True}  # with the localization terms


def sampling(seed: int) -> Sampling:
    return Sampling(positions=100, batch=16, seed=seed)


def test_unread_tables_are_linked_to_their_empty_cells() -> None:
    """VOC by its eleven points, COCO by its own AP; nothing was read, so nothing is judged."""
    found = {}
    for (table, name), row in ROWS.items():
        for metric, link in row.published.items():
            entry = find(PUBLISHED, table, *link)
            assert entry is not None and entry.value is None
            found[table, name] = (metric, *link, row.scale, row.seeds)
    seeds = {"baseline": (0,), "pruned": (0, 1, 2)}
    assert found == {
        (table, name): (metric, name, "mAP", scale, seeds[name])
        for table, metric, scale in (
            ("VOC2007 SSD-VGG16", "map_voc07", "voc"),
            ("VOC2007 SSD-ResNet-50", "map_voc07", "voc"),
            ("COCO SSD-ResNet-50", "coco_ap", "coco"),
        )
        for name in seeds
    }


def test_every_method_has_a_row_before_and_after_fine_tuning() -> None:
    expected = {"dense": (0,), "dense, fine-tuned": (0,), "random, fine-tuned as long as LCP's stages": (0, 1, 2)}
    for name, (_, seeds) in METHODS.items():
        expected |= {name: seeds, f"{name}, fine-tuned": seeds}
    for name in STAGED:
        expected |= {name: (0, 1, 2), f"{name}, fine-tuned": (0, 1, 2)}
    assert {name: row.seeds for (table, name), row in ROWS.items() if table == CRITERIA} == expected
    for row in ROWS.values():
        assert row.data == BOXES and row.ours == (row.table in (CRITERIA, WORTH))
        assert row.scale == ("coco" if row.table.startswith("COCO") else "voc")


@pytest.mark.parametrize("scale", list(DENSE))
def test_the_dense_detector(scale: str) -> None:
    """One for all seeds; the whole SSD300 starts from ImageNet's backbone, the narrow one from scratch."""
    chain, recipe = chain_of(ROWS[CRITERIA, "dense"], setting(scale, (0,)))
    (step,) = chain.networks
    large = scale in ("voc", "coco")
    side = {"scenes": 160, "folder": 240}.get(scale, 300)
    assert (recipe.builder, recipe.input_shape) == ("ssd300_vgg16" if large else "narrow_ssd", (3, side, side))
    assert (step.kind, step.run) == (Kind.TRAIN, detection.run_trained)
    assert step.params == detection.DetectorTraining(DENSE[scale], 0, AUGMENTING[scale], recipe, backbone=large)
    given, whole = chain_of(ROWS[CRITERIA, "dense"], setting(scale, (0,), weights="sha"))
    assert (given.networks[0].kind, given.networks[0].params.file) == (Kind.LOAD, "sha")
    assert whole.builder == ("narrow_ssd" if scale == "scenes" else "ssd300_vgg16")


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_criterion_in_one_walk(name: str, tuned: bool) -> None:
    method, seeds = METHODS[name]
    chain, recipe = chain_of(ROWS[CRITERIA, f"{name}, fine-tuned" if tuned else name], setting("scenes", seeds))
    keep = lcp.equal_share(recipe, 0.5)
    for run, seed in zip(chain.evaluations, seeds, strict=True):
        dense, pruned, *tail = path(run.parents[0])
        assert (pruned.run, pruned.parents) == (pruning.run_pruned, (dense,))
        assert pruned.params == pruning.DetectorPruning(keep, method, 128, sampling(seed))
        check_tail(tail, "scenes", seed, 2 if tuned else 0)
    check_comparisons(chain, "scenes", 2 if tuned else 0)


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("scale", ["scenes", "voc"])
def test_pruning_in_stages(name: str, tuned: bool, scale: str) -> None:
    chain, recipe = chain_of(ROWS[CRITERIA, f"{name}, fine-tuned" if tuned else name], setting(scale))
    keep, stages = lcp.equal_share(recipe, 0.5), lcp.segments(recipe, 3)
    for run, seed in zip(chain.evaluations, (0, 1, 2), strict=True):
        _, *steps = path(run.parents[0])
        for (position, producers), learn, select in zip(stages, steps[0:6:2], steps[1:6:2], strict=True):
            schedule = tuning(scale, EPOCHS[scale] // 2)
            assert (learn.kind, learn.run, select.kind, select.run) == (
                Kind.TRAIN, lcp.run_auxiliary, Kind.PRUNE, lcp.run_selected,
            )  # fmt: skip
            expected = lcp.AuxiliaryTraining(position, STAGED[name], schedule, seed, AUGMENTING[scale])
            assert learn.params == expected
            greedy = Greedy(alpha=1.0, update="newton", lr=0.01, steps=1, last_steps=5)
            here = {producer: keep[producer] for producer in producers}
            assert select.params == lcp.StageSelection(position, STAGED[name], here, greedy, 128, sampling(seed))
        check_tail(steps[6:], scale, seed, EPOCHS[scale] if tuned else 0)
    check_comparisons(chain, scale, EPOCHS[scale] if tuned else 0)


def test_m_and_the_cells_of_the_roi_are_those_of_the_notes() -> None:
    assert (lcp.LOCALIZATION, lcp.ROI, lcp.ALPHA, lcp.SEGMENTS) == (50.0, 7, 1.0, 3)


def check_tail(tail: list[Step], scale: str, seed: int, epochs: int) -> None:
    """Fine-tuning, or none for 0 epochs."""
    expected = detection.DetectorTraining(tuning(scale, epochs), seed, AUGMENTING[scale])
    assert [step.params for step in tail] == ([expected] if epochs else [])


def check_comparisons(chain: Chain, scale: str, epochs: int) -> None:
    """With the dense network; after fine-tuning also with the dense one tuned as long."""
    comparisons = [step for step in chain.records if step.run is measuring.run_compared]
    expected = [measuring.DetectionComparison("change"), measuring.DetectionComparison("change", "_control")]
    assert [step.params for step in comparisons] == (expected if epochs else expected[:1])
    count = len(chain.evaluations)
    for step in comparisons:
        assert step.parents[:count] == tuple(chain.evaluations)
    dense = path(chain.evaluations[0].parents[0])[0]
    for reference in (*comparisons[0].parents[count:], *chain.references):
        assert reference.parents == (dense,)
    if epochs:
        for control in comparisons[1].parents[count:]:
            start, tuned = path(control.parents[0])
            assert start == dense
            check_tail([tuned], scale, 0, epochs)


def test_one_random_row_is_tuned_as_long_as_the_stages_and_the_fine_tuning_together() -> None:
    """Two epochs, and one for each of three stages; its control too."""
    chain, _ = chain_of(ROWS[CRITERIA, "random, fine-tuned as long as LCP's stages"], setting("scenes"))
    for run, seed in zip(chain.evaluations, (0, 1, 2), strict=True):
        _, pruned, *tail = path(run.parents[0])
        assert pruned.params.method == Method("random", reconstruct=False)
        check_tail(tail, "scenes", seed, 5)
    check_comparisons(chain, "scenes", 5)


# of "random, fine-tuned as long as LCP's stages": three stages of half the epochs of fine-tuning, and these
AS_LONG = {"scenes": 3 * 1 + 2, "folder": 3 * 1 + 2, "voc": 3 * 15 + 30, "coco": 3 * 15 + 30}


@pytest.mark.parametrize("scale", AS_LONG)
def test_it_is_as_long_as_the_stages_at_every_scale(scale: str) -> None:
    chain, _ = chain_of(ROWS[CRITERIA, "random, fine-tuned as long as LCP's stages"], setting(scale, (0,)))
    (tuned,) = path(chain.evaluations[0].parents[0])[2:]
    assert tuned.params.schedule == tuning(scale, AS_LONG[scale])
    staged, _ = chain_of(ROWS[CRITERIA, "LCP, fine-tuned"], setting(scale, (0,)))
    trainings = [step for step in path(staged.evaluations[0].parents[0])[1:] if step.kind is Kind.TRAIN]
    assert sum(step.params.schedule.epochs for step in trainings) == AS_LONG[scale]


def test_the_dense_network_tuned_is_compared_with_itself_before() -> None:
    chain, _ = chain_of(ROWS[CRITERIA, "dense, fine-tuned"], setting("scenes", (0,)))
    dense, *tail = path(chain.evaluations[0].parents[0])
    check_tail(tail, "scenes", 0, 2)
    (comparison,) = (step for step in chain.records if step.run is measuring.run_compared)
    assert comparison.parents == (chain.evaluations[0], chain.references[0])
    assert chain.references[0].parents == (dense,)


@pytest.mark.parametrize(("name", "tuned"), [("LCP minus DCP", False), ("LCP minus DCP, fine-tuned", True)])
def test_what_the_terms_are_worth_is_lcp_minus_dcp(name: str, tuned: bool) -> None:
    assert [name for table, name in ROWS if table == WORTH] == ["LCP minus DCP", "LCP minus DCP, fine-tuned"]
    chain, _ = chain_of(ROWS[WORTH, name], setting("scenes"))
    (step,) = chain.records
    assert (step.run, step.params) == (measuring.run_compared, measuring.DetectionComparison("difference"))
    assert len(step.parents) == 6
    tail = ", fine-tuned" if tuned else ""
    twins = [chain_of(ROWS[CRITERIA, f"{method}{tail}"], setting("scenes"))[0] for method in ("LCP", "DCP")]
    for place, run in enumerate(step.parents):
        _, *steps = path(run.parents[0])
        assert {one.params.localization for one in steps[:6]} == {place < 3}
        assert {one.params.seed for one in steps[0:6:2]} == {place % 3}
        check_tail(steps[6:], "scenes", place % 3, 2 if tuned else 0)
        assert run in twins[place // 3].evaluations


@pytest.mark.parametrize(
    ("table", "scale", "share"),
    [("VOC2007 SSD-VGG16", "voc", 0.5), ("VOC2007 SSD-ResNet-50", "voc", 0.7), ("COCO SSD-ResNet-50", "coco", 0.7)],
)
def test_the_publication_s_rows_prune_the_stated_share_by_lcp(table: str, scale: str, share: float) -> None:
    chain, recipe = chain_of(ROWS[table, "pruned"], setting(scale, (0,)))
    steps = path(chain.evaluations[0].parents[0])
    selected = [step for step in steps if step.run is lcp.run_selected]
    assert {k: v for step in selected for k, v in step.params.keep.items()} == lcp.equal_share(recipe, share)
    assert {step.params.localization for step in selected} == {True}
    check_tail(steps[7:], scale, 0, 30)
    baseline, _ = chain_of(ROWS[table, "baseline"], setting(scale, (0,)))
    assert baseline.networks == [steps[0]]


def test_mixed_precision_is_for_every_training() -> None:
    chain, _ = chain_of(ROWS[CRITERIA, "random, fine-tuned"], setting("scenes", (0,), amp=True))
    dense, _, tuned = path(chain.networks[0])
    assert (dense.params.schedule.amp, tuned.params.schedule.amp) == (True, True)


@pytest.mark.parametrize("scale", ["scenes", "voc", "folder"])
def test_what_figures_show_is_of_the_first_seed_beside_the_dense_detector(scale: str) -> None:
    """Curves of every pruned detector; boxes of three tuned ones of the comparison and of the publication's own."""
    curves, boxes = set(), set()
    for (table, name), row in ROWS.items():
        chain, _ = chain_of(row, setting(scale, row.seeds))
        for step in chain.records:
            if step.run is precision_recall.run_precision_recall:
                curves.add((table, name))
                assert step.parents == (chain.evaluations[0], chain.references[0])
            elif step.run is pictures.run_pictures:
                boxes.add((table, name))
                assert step.parents == (chain.evaluations[0], chain.references[0])
                assert step.params == pictures.Pictures(4, 0.5, thumbnails=scale == "scenes")
    pruned = {(table, name) for table, name in ROWS if table != WORTH and name not in ("baseline", "dense")}
    assert curves == pruned - {(CRITERIA, "dense, fine-tuned")}
    tuned = ("random, fine-tuned", "LCP, fine-tuned", "random, fine-tuned as long as LCP's stages")
    assert boxes == {(CRITERIA, name) for name in tuned} | {place for place in pruned if place[1] == "pruned"}
