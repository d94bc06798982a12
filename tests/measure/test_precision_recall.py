"""Curves of precision and recall against scikit-learn's on detections that are matched here in loops, and by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve

from bench import rounded
from bench.measure.detection import Detections, MatchTable
from bench.measure.detection_steps import _pack
from bench.measure.precision_recall import PrecisionRecall, curves, run_precision_recall
from bench.steps import Context
from bench.store import Result

CLASSES = ("cat", "dog", "yak")  # no image has a yak


def truth(boxes: Any, labels: Any, difficult: Any) -> Any:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return SimpleNamespace(
        boxes=corners, labels=torch.tensor(labels).long(), difficult=torch.tensor(difficult, dtype=torch.bool)
    )


def found(boxes: Any, scores: Any, labels: Any) -> Detections:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(corners, torch.tensor(scores, dtype=torch.float32), torch.tensor(labels).long())


def drawn(seed: int) -> tuple[list[Detections], list[Any]]:
    """Objects at places of a coarse grid, some difficult; detections lie on them or on nothing, scores all differ."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(12):
        cells = rng.permutation(16)[:4]
        corners = np.stack([cells % 4, cells // 4], 1) * 50.0
        objects = np.hstack([corners, corners + 39])
        truths.append(truth(objects, rng.integers(0, 2, 4), rng.random(4) < 0.2))
        chosen = rng.integers(0, 16, 9)
        corners = np.stack([chosen % 4, chosen // 4], 1) * 50.0 + rng.integers(-2, 3, (9, 2))
        detections.append(found(np.hstack([corners, corners + 39]), rng.random(9), rng.integers(0, 3, 9)))
    return detections, truths


def flags(detections: list[Detections], truths: list[Any], label: int) -> tuple[list[int], list[float], int]:
    """Hit or not and score of every detection of a class that counts, and the number of its objects."""
    rows = [
        (float(score), place, box)
        for place, one in enumerate(detections)
        for box, score, kind in zip(one.boxes.tolist(), one.scores, one.labels, strict=True)
        if kind == label
    ]
    taken: set[tuple[int, int]] = set()
    hits, scores = [], []
    for score, place, box in sorted(rows, key=lambda row: -row[0]):
        match = None
        for number, (other, kind) in enumerate(zip(truths[place].boxes.tolist(), truths[place].labels, strict=True)):
            wide, tall = (40 - abs(box[axis] - other[axis]) for axis in (0, 1))  # all boxes are 40 pixels wide
            common = max(wide, 0) * max(tall, 0)
            if kind == label and common / (3200 - common) >= 0.5:
                match = number
        if match is not None and truths[place].difficult[match]:
            continue
        hits.append(int(match is not None and (place, match) not in taken))
        taken |= {(place, match)} if match is not None else set()
        scores.append(score)
    total = sum(int(((one.labels == label) & ~one.difficult).sum()) for one in truths)
    return hits, scores, total


@pytest.mark.parametrize("seed", range(4))
def test_curves_are_scikit_learn_s(seed: int) -> None:
    """Its curve is about what was detected: recall shrinks by the objects that were not."""
    detections, truths = drawn(seed)
    table = MatchTable.build(detections, truths, CLASSES)
    given = curves(table)
    assert list(given) == ["cat", "dog"]
    for label, name in enumerate(given):
        hits, scores, total = flags(detections, truths, label)
        assert 0 < sum(hits) < total
        precision, recall, _ = precision_recall_curve(hits, scores)
        reached = recall[:-1] * sum(hits) / total  # without its point at recall 0
        expected = [max(precision[:-1][reached >= n / 100 - 1e-12], default=0.0) for n in range(101)]
        np.testing.assert_allclose(given[name], expected, atol=1e-12)
        # the eleven points of VOC 2007 are among them
        assert given[name][::10].mean() == pytest.approx(np.mean([expected[10 * n] for n in range(11)]))


HAND = [truth([[0, 0, 39, 39], [50, 0, 89, 39]], [0, 0], [False, False]), truth([[0, 0, 39, 39]], [1], [False])]


def hand(*scores: float) -> Result:
    """A hit, a miss and a hit of the first class; a hit of the second one unless its score is 0."""
    first = found([[0, 0, 39, 39], [0, 100, 39, 139], [50, 0, 89, 39]], scores[:3], [0, 0, 0])
    second = found([[0, 0, 39, 39]], [scores[3]], [1]) if scores[3] else found([], [], [])
    return Result(arrays=_pack([first, second]))


def run(classes: tuple[str, ...]) -> dict[str, Any]:
    test = SimpleNamespace(annotations=HAND, __len__=lambda self: 2)
    data = SimpleNamespace(test=type("Test", (), {"annotations": test.annotations, "__len__": test.__len__})())
    data.classes = classes
    context = Context(lambda: data, "cpu", False, Path("nowhere"))
    parents = [hand(0.9, 0.8, 0.7, 0.0), hand(0.9, 0.7, 0.8, 0.5)]
    fact: dict[str, Any] = run_precision_recall(context, parents, PrecisionRecall()).facts["precision_recall"]
    return fact


def test_the_step_by_hand() -> None:
    """Pruned: hit, miss, hit of two, and nothing of the other class; dense: all found before anything wrong is."""
    fact = run(CLASSES)
    assert fact["images"] == 2 and list(fact["networks"]) == ["pruned", "dense"]
    pruned, dense = fact["networks"]["pruned"], fact["networks"]["dense"]
    assert rounded.values(pruned["classes"]["cat"]) == [1.0] * 51 + [0.667] * 50
    assert rounded.values(pruned["classes"]["dog"]) == [0.0] * 101
    assert rounded.values(pruned["mean"]) == [0.5] * 51 + [0.333] * 50
    assert (pruned["of"], list(pruned["classes"])) == (2, ["cat", "dog"])
    assert rounded.values(dense["mean"]) == [1.0] * 101


def test_of_many_classes_only_the_mean_is_kept() -> None:
    fact = run((*CLASSES, *(f"class {n}" for n in range(77))))
    assert [network["classes"] for network in fact["networks"].values()] == [{}, {}]
    assert rounded.values(fact["networks"]["pruned"]["mean"]) == [0.5] * 51 + [0.333] * 50
