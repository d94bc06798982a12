"""The step functions that evaluate and compare, on hand-made logits and detections whose sign is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bench.data.annotations import Annotation
from bench.data.images import ImageSet, MemorySplit
from bench.gating import measuring as gated
from bench.measure import detection_steps as boxes
from bench.measure import statistics
from bench.measure import steps as measuring
from bench.measure.detection import Detections
from bench.models.recipe import Recipe
from bench.steps import Context
from bench.store import Record, Result

LABELS = torch.tensor([0, 1, 2, 0])
OF_SEED_0 = [0, 1, 2, 1]  # three right
OF_SEED_1 = [0, 1, 2, 0]  # all right
DENSE = [0, 2, 0, 1]  # one right


def logits(classes: Sequence[int], margin: float = 2.0) -> Tensor:
    """Four images, six classes; the predicted class leads by ``margin``, the runners-up leave the last class out."""
    found = torch.zeros(len(classes), 6)
    found[:, 5] = -1.0
    found[torch.arange(len(classes)), list(classes)] = margin
    return found


def result(classes: Sequence[int], margin: float = 2.0, labels: Tensor = LABELS, of: int | None = None) -> Result:
    return Result(arrays={"logits": logits(classes, margin), "labels": labels}, facts={"of": of})


def context(data: Any = None) -> Context:
    return Context(lambda: data, "cpu", False)


def values(found: Result) -> dict[str, Record]:
    records = {record.metric: record for record in found.records}
    assert len(records) == len(found.records)
    return records


def test_a_change_is_the_network_minus_its_reference() -> None:
    """Three and four of four right, where the dense network has one: 50 and 75 points up."""
    runs = [result(OF_SEED_0), result(OF_SEED_1), result(DENSE), result(DENSE)]
    found = values(measuring.run_compared(context(), runs, measuring.Comparison()))
    assert found["top1_change"].value == pytest.approx(62.5)
    assert found["top1_err_increase"].value == pytest.approx(-62.5)
    assert found["agreement"].value == pytest.approx((50.0 + 25.0) / 2)
    assert found["top5_change"].value == pytest.approx(0.0)
    assert found["kl"].value > 0 and found["top1_change"].networks == 2
    swapped = values(measuring.run_compared(context(), runs[2:] + runs[:2], measuring.Comparison()))
    assert swapped["top1_change"].value == pytest.approx(-62.5)


def test_kl_is_from_the_reference_to_the_network() -> None:
    """Two images suffice: KL(reference || network) by hand, which the other direction is not."""
    runs = [result([0, 1, 2, 0], 1.0), result([0, 1, 2, 0], 3.0)]
    found = values(measuring.run_compared(context(), runs, measuring.Comparison()))
    ours, reference = (logits([0], margin).double().softmax(1)[0] for margin in (1.0, 3.0))
    expected = sum(float(p) * float((p / q).log()) for p, q in zip(reference, ours, strict=True))
    assert found["kl"].value == pytest.approx(expected)


def test_every_seed_is_compared_with_its_own_reference() -> None:
    runs = [result(OF_SEED_0), result(DENSE), result(OF_SEED_0), result(DENSE)]
    found = values(measuring.run_compared(context(), runs, measuring.Comparison()))
    assert (found["agreement"].value, found["top1_change"].value, found["kl"].value) == (100.0, 0.0, 0.0)


def test_what_a_control_is_compared_with_has_a_name_of_its_own() -> None:
    runs = [result(OF_SEED_0), result(DENSE)]
    found = values(measuring.run_compared(context(), runs, measuring.Comparison("_control")))
    assert found["top1_change_control"].value == pytest.approx(50.0)
    assert all(name.endswith("_control") for name in found)


def test_a_contrast_is_the_first_minus_the_second_about_the_reference() -> None:
    """The first has more right answers and is closer to the reference in every image."""
    first, second, reference = result(OF_SEED_1, 3.0), result(DENSE), result(OF_SEED_1, 4.0)
    found = values(measuring.run_contrasted(context(), [first, second, reference], measuring.Contrast()))
    assert found["top1_difference"].value == pytest.approx(75.0)
    assert found["agreement_difference"].value == pytest.approx(75.0)
    assert found["kl_difference"].value < 0 and found["kl_ratio"].value < 0
    runs = [first, second, second, first, reference, reference]  # two seeds that cancel
    assert values(measuring.run_contrasted(context(), runs, measuring.Contrast()))["top1_difference"].value == 0.0


def test_evaluations_become_the_points_of_curves() -> None:
    """Top-1 with its interval, under the curve's name at its place."""
    top1 = [Record("top1_acc", value, "%", value - 1, value + 1, 360, 0) for value in (90.0, 80.0, 70.0)]
    results = [Result(records=[one, Record("top5_acc", 99.0, "%")]) for one in top1]
    params = measuring.Curves(("lasso", "lasso", "first k"), (1.0, 2.0, 2.0))
    found = measuring.run_points(context(), results, params).records
    assert [(r.metric, r.value, r.low, r.high, r.series, r.x) for r in found] == [
        ("top1_acc", 90.0, 89.0, 91.0, "lasso", 1.0),
        ("top1_acc", 80.0, 79.0, 81.0, "lasso", 2.0),
        ("top1_acc", 70.0, 69.0, 71.0, "first k", 2.0),
    ]


def test_a_summary_is_the_mean_over_the_networks() -> None:
    runs = [result(OF_SEED_0), result(OF_SEED_1), result(DENSE)]
    found = values(measuring.run_summarised(context(), runs, measuring.Summary()))
    assert found["top1_acc"].value == pytest.approx((75 + 100 + 25) / 3)
    assert (found["top1_acc"].networks, found["top1_acc"].seed) == (3, None)


def test_missing_images_are_passed_on_to_what_is_compared() -> None:
    """Five of the published six images are missing nowhere: of is theirs in all that follows."""
    runs = [result(OF_SEED_0, of=5), result(DENSE, of=5)]
    for found in (
        measuring.run_compared(context(), runs, measuring.Comparison()),
        measuring.run_summarised(context(), runs, measuring.Summary()),
        measuring.run_contrasted(context(), [*runs, runs[1]], measuring.Contrast()),
    ):
        assert {record.of for record in found.records} == {5}


class Lookup(nn.Module):
    """Answers each image by the class that its first pixel's red names."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return logits(images[:, 0, 0, 0].round().long().tolist())


def lookup_set(train: Sequence[int], test: Sequence[int]) -> ImageSet:
    """Images whose pixels are their class number; no normalisation."""
    splits = [
        MemorySplit(
            torch.tensor(classes, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous(),
            LABELS, (0.0,) * 3, (1 / 255.0,) * 3, pad=1, mirror=True,
        )
        for classes in (train, test)
    ]  # fmt: skip
    return ImageSet("lookup", "f", tuple("abcdef"), 2, splits[0], splits[1], "2x2", whole=(4, 5))


def test_the_test_images_are_evaluated_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the training images nor augmented ones; the record bears the network's seed and what is missing."""
    monkeypatch.setattr(measuring, "network", lambda parent: (Lookup().train(), Recipe("lookup", {}, (3, 4, 4))))
    monkeypatch.setattr(MemorySplit, "augmented", lambda *_: pytest.fail("augmented"))
    # the split scales pixels by 255 and then by the deviation: class k stays k
    found = measuring.run_evaluated(context(lookup_set(DENSE, OF_SEED_0)), [Result()], measuring.Evaluation(7))
    top1 = values(found)["top1_acc"]
    assert (top1.value, top1.seed, top1.n, top1.of) == (75.0, 7, 4, 5)
    assert torch.equal(found.arrays["logits"], logits(OF_SEED_0))
    assert torch.equal(found.arrays["labels"], LABELS) and found.facts["of"] == 5


def test_a_gated_network_is_measured_on_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors mirror accuracies with their intervals; the speed-up is over the network before gates and removal."""
    data, asked = lookup_set(DENSE, OF_SEED_0), []

    class Counted:
        """Made-up MACs."""

        totals = torch.ones(4)

        def records(self, seed: int, images: int, whole: Any) -> list[Record]:
            asked.append((seed, images, whole))
            return []

        def table(self) -> list[Any]:
            return []

    def measure(model: Any, split: Any, *rest: Any) -> tuple[Tensor, Counted]:
        asked.append(split)
        return logits(OF_SEED_0), Counted()

    recipe = Recipe("cifar_resnet20", {"num_classes": 6}, (3, 16, 16)).removed({"layer1.0.conv1": 4})
    monkeypatch.setattr(gated, "network", lambda parent: (None, recipe))
    monkeypatch.setattr(gated.dynamic, "measure", measure)
    found = values(gated.run_measured(context(data), [Result()], gated.Measuring(5)))
    accuracy, error = found["top1_acc"], found["top1_err"]
    assert (accuracy.value, error.value, error.seed, error.of) == (75.0, 25.0, 5, 5)
    assert (error.low, error.high) == (100 - (accuracy.high or 0), 100 - (accuracy.low or 0))
    split, (seed, images, whole) = asked
    assert split is data.test and (seed, images) == (5, 4)
    assert whole.dense == 10_137_600 + 64 * 6  # ResNet-20 at 16x16, whole


def test_skipped_execution_is_compared_with_the_masked_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked network has one right answer, the skipped one three: 50 points more; two in four agree."""

    class Masked(nn.Module):
        """Answers by the image's number, which is its pixel."""

        answers = DENSE

        def forward(self, images: Tensor) -> Tensor:
            places = images[:, 0, 0, 0].round().long().tolist()
            return logits([self.answers[place] for place in places]).to(images)

    class Skipped(Masked):
        """Other answers; no gated layers."""

        layers: ClassVar[dict[str, Any]] = {}
        answers = OF_SEED_0

        def __init__(self, model: nn.Module, together: bool = True) -> None:
            super().__init__()

    monkeypatch.setattr(gated, "network", lambda parent: (Masked(), None))
    monkeypatch.setattr(gated, "SkippedNetwork", Skipped)
    found = values(gated.run_skipped(context(lookup_set([9] * 4, range(4))), [Result()], gated.Skipping(100)))
    assert found["skipped_top1_change"].value == pytest.approx(50.0)
    assert found["skipped_agreement"].value == pytest.approx(50.0)
    assert (found["winner_flips"].value, found["winner_flips"].n) == (0.0, 4)
    few = values(gated.run_skipped(context(lookup_set([9] * 4, range(4))), [Result()], gated.Skipping(2)))
    assert few["skipped_top1_change"].n == 2


def test_units_go_with_the_evaluation_into_every_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of two scans each: what is compared later takes the scans from the first evaluation."""
    data, units = lookup_set(DENSE, OF_SEED_0), torch.tensor([4, 9, 9, 4])
    data.test.units = units
    monkeypatch.setattr(measuring, "network", lambda parent: (Lookup(), Recipe("lookup", {}, (3, 4, 4))))
    evaluation = measuring.run_evaluated(context(data), [Result()], measuring.Evaluation(0))
    assert torch.equal(evaluation.arrays["units"], units)
    other = result(DENSE)
    found = [
        evaluation,
        measuring.run_summarised(context(), [evaluation, other], measuring.Summary()),
        measuring.run_compared(context(), [evaluation, other], measuring.Comparison()),
        measuring.run_contrasted(context(), [evaluation, other, other], measuring.Contrast()),
    ]
    for step in found:
        assert step.records and {record.units for record in step.records} == {2}
    # right: 1, 1, 1, 0, of the reference 1, 0, 0, 0: no change in one scan (first and last image), two in the other
    change = values(found[2])["top1_change"]
    means = torch.tensor([[0.0 + 0.0, 1.0 + 1.0]]) / 2.0
    assert change.value == pytest.approx(50.0)
    assert (change.value, change.low, change.high) == pytest.approx(
        tuple(100.0 * end for end in statistics.interval_of_change(means))
    )
    plain = measuring.run_evaluated(context(lookup_set(DENSE, OF_SEED_0)), [Result()], measuring.Evaluation(0))
    assert "units" not in plain.arrays and {record.units for record in plain.records} == {None}


def test_skipped_execution_takes_one_image_of_each_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = lookup_set([9] * 4, range(4)), []

    class Seen(nn.Module):
        layers: ClassVar[dict[str, Any]] = {}

        def forward(self, images: Tensor) -> Tensor:
            seen.append(int(images.flatten()[0].round()))
            return logits([0] * len(images))

    monkeypatch.setattr(gated, "network", lambda parent: (Seen(), None))
    monkeypatch.setattr(gated, "SkippedNetwork", lambda model, together=True: Seen())
    data.test.units = torch.tensor([4, 4, 9, 9])
    found = values(gated.run_skipped(context(data), [Result()], gated.Skipping(100)))
    assert set(seen) == {0, 2} and found["skipped_agreement"].n == 2


# --------------------------------------------------------------------------------------------------------------------
# Detections

OBJECTS = [[10.0, 10.0, 40.0, 40.0], [50.0, 50.0, 90.0, 80.0]]


def image(place: int) -> Annotation:
    return Annotation(
        f"{place:06d}", Path(f"{place}.png"), 100, 100, torch.tensor([OBJECTS[place]]), torch.tensor([0]),
        torch.tensor([False]),
    )  # fmt: skip


DATA = SimpleNamespace(test=SimpleNamespace(annotations=[image(0), image(1)]), classes=("thing",))


def detections(*found: list[list[float]]) -> Result:
    """Boxes of each image, all of the one class, with a score of 0.9."""
    one = [
        Detections(torch.tensor(b).reshape(-1, 4), torch.full((len(b),), 0.9), torch.zeros(len(b)).long())
        for b in found
    ]
    return Result(arrays=boxes._pack(one))


BOTH, NONE = detections([OBJECTS[0]], [OBJECTS[1]]), detections([], [])


def test_a_detector_s_change_is_the_network_minus_its_reference() -> None:
    """Both objects found, where the dense network finds none: mean AP from 0 to 100."""
    found = values(boxes.run_compared(context(DATA), [BOTH, NONE], boxes.DetectionComparison()))
    assert {name: record.value for name, record in found.items()} == {
        "map_voc07_change": pytest.approx(100.0),
        "map_voc12_change": pytest.approx(100.0),
    }
    swapped = values(boxes.run_compared(context(DATA), [NONE, BOTH], boxes.DetectionComparison()))
    assert swapped["map_voc07_change"].value == pytest.approx(-100.0)


def test_a_difference_of_detectors_and_a_control_have_names_of_their_own() -> None:
    found = values(boxes.run_compared(context(DATA), [BOTH, NONE], boxes.DetectionComparison("difference")))
    assert found["map_voc07_difference"].value == pytest.approx(100.0)
    named = boxes.DetectionComparison("change", "_control")
    assert "map_voc07_change_control" in values(boxes.run_compared(context(DATA), [BOTH, NONE], named))
    # seeds in pairs: the first half are the networks, the second their references
    pairs = [BOTH, NONE, BOTH, NONE]
    same = values(boxes.run_compared(context(DATA), pairs, boxes.DetectionComparison()))
    assert same["map_voc07_change"].value == pytest.approx(0.0)


def test_a_summary_of_detectors_is_the_mean_over_the_networks() -> None:
    found = values(boxes.run_summarised(context(DATA), [BOTH, NONE], boxes.DetectionSummary()))
    assert found["map_voc07"].value == pytest.approx(50.0)


def test_detections_come_back_image_by_image() -> None:
    packed = detections([OBJECTS[0]], [], OBJECTS[::-1])
    assert [len(one.scores) for one in boxes._unpack(packed.arrays)] == [1, 0, 2]
    assert boxes._unpack(packed.arrays)[2].boxes.tolist() == OBJECTS[::-1]
