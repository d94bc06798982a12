"""VOC AP against the devkit's rules written out in loops, COCO AP against pycocotools on JSON files, intervals against
the binomial distribution."""

import contextlib
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detections import Image, devkit, draw, found, image
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats

from bench.errors import UserError
from bench.measure.coco import coco_ap, coco_records
from bench.measure.detection import (
    Detections,
    MatchTable,
    class_records,
    voc_compare,
    voc_records,
    voc_summary,
)

CLASSES = ("cat", "dog", "emu", "yak")  # no image ever has a yak
MODES = ("11points", "area")
COCO_NAMES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 8), ties=st.booleans())
def test_the_table_equals_the_devkit(mode: str, seed: int, images: int, ties: bool) -> None:
    """Duplicates, difficult objects, equal scores, an image without objects, one without detections, no class."""
    detections, truths = draw(seed, images, ties)
    expected = {name: devkit(detections, truths, label, mode) for label, name in enumerate(CLASSES)}
    known = [value for value in expected.values() if value is not None]
    mean, per_class = MatchTable.build(detections, truths, CLASSES).ap(mode)
    assert expected["yak"] is None
    assert per_class == pytest.approx(expected, abs=1e-9)
    if known:
        assert mean == pytest.approx(sum(known) / len(known), abs=1e-9)
    else:
        assert math.isnan(mean)


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_other_iou_thresholds(threshold: float) -> None:
    detections, truths = draw(3, images=12)
    expected = [devkit(detections, truths, label, "area", threshold) for label in range(4)]
    assert expected != [devkit(detections, truths, label, "area") for label in range(4)]
    table = MatchTable.build(detections, truths, CLASSES, threshold)
    assert list(table.ap("area")[1].values()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_found_is_zero(mode: str) -> None:
    _, truths = draw(1)
    nothing = [found([], [], [])] * len(truths)
    expected = {"cat": 0.0, "dog": 0.0, "emu": 0.0, "yak": None}
    assert MatchTable.build(nothing, truths, CLASSES).ap(mode) == (0.0, expected)


def test_coordinates_count_the_last_pixel() -> None:
    """Pixels 0..9 by 0..9 against 0..9 by 0..4: IoU 50/100 with the devkit's +1, 36/81 without."""
    truths, detections = [image([[0, 0, 9, 9]], [0])], [found([[0, 0, 9, 4]], [0.9], [0])]
    assert MatchTable.build(detections, truths, ["cat"]).ap("area")[0] == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_equal_scores_keep_the_order_of_images_and_detections(mode: str) -> None:
    """Forty equal scores, more than an unstable sort leaves in place; false positives before the hit or behind."""
    box, away = [0, 0, 50, 50], [200, 200, 250, 250]
    empty = [image([], [])] * 39
    wrong, right = found([away], [0.5], [0]), found([box], [0.5], [0])
    first = MatchTable.build([right, *[wrong] * 39], [image([box], [0]), *empty], ["cat"])
    last = MatchTable.build([*[wrong] * 39, right], [*empty, image([box], [0])], ["cat"])
    assert first.ap(mode)[0] == pytest.approx(1.0) and last.ap(mode)[0] == pytest.approx(1 / 40)
    inside = found([away] * 39 + [box], [0.5] * 40, [0] * 40)
    assert MatchTable.build([inside], [image([box], [0])], ["cat"]).ap(mode)[0] == pytest.approx(1 / 40)


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_weights_are_repetitions_of_images(mode: str, seed: int) -> None:
    """Equal to the AP of the literally repeated list; equal scores between images included, within an image not."""
    detections, truths = draw(seed)
    rng = np.random.default_rng(seed)
    kept = []
    for one in detections:
        distinct = torch.tensor(rng.permutation(30)[: len(one.scores)] / 30)
        kept.append(Detections(one.boxes, distinct, one.labels))
    weights = rng.integers(0, 4, len(truths))
    weights[rng.integers(len(truths))] = 2  # never an empty list
    places = np.repeat(np.arange(len(truths)), weights)
    repeated, objects = [kept[i] for i in places], [truths[i] for i in places]
    expected = {name: devkit(repeated, objects, label, mode) for label, name in enumerate(CLASSES)}
    known = [value for value in expected.values() if value is not None]
    mean, per_class = MatchTable.build(kept, truths, CLASSES).ap(mode, weights)
    assert per_class == pytest.approx(expected, abs=1e-9)
    assert mean == pytest.approx(sum(known) / len(known) if known else math.nan, abs=1e-9, nan_ok=True)


def test_nothing_is_printed(capfd: Any) -> None:
    detections, truths = draw(5)
    MatchTable.build(detections, truths, CLASSES)
    coco_ap(detections, truths, CLASSES)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_importing_the_measures_loads_no_mmdet() -> None:
    code = "import bench.measure.coco, sys; assert not {'mmdet', 'mmcv', 'mmengine'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_is_fast_enough_for_a_bootstrap() -> None:
    """200 images, 10 classes, 100 detections an image: 5 ms, the best of ten."""
    rng = np.random.default_rng(0)
    detections, truths = [], []
    for _ in range(200):
        corner = rng.uniform(0, 250, (100, 2))
        boxes, labels = np.hstack([corner, corner + 40]), rng.integers(0, 10, 100)
        detections.append(found(boxes, rng.random(100), labels))
        truths.append(image(boxes[:4] + 2, labels[:4]))
    table = MatchTable.build(detections, truths, [str(i) for i in range(10)])
    weights = rng.integers(0, 3, 200)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        table.ap("11points", weights)
        times.append(time.perf_counter() - start)
    assert min(times) < 5e-3


def test_wrong_arguments() -> None:
    detections, truths = draw(2)
    with pytest.raises(ValueError, match="choose one of 11points, area"):
        MatchTable.build(detections, truths, CLASSES).ap("voc07")
    for measure in (lambda d, t: MatchTable.build(d, t, CLASSES), lambda d, t: coco_ap(d, t, CLASSES)):
        with pytest.raises(ValueError, match="5 images with detections and 6"):
            measure(detections[:-1], truths)
        with pytest.raises(ValueError, match="0 images"):
            measure([], [])
    with pytest.raises(UserError, match="no test image has an object"):
        voc_records([[found([], [], [])]], [image([], [])], CLASSES, [0], "area")


# intervals


def present(hits: int, images: int) -> tuple[list[Detections], list[Image]]:
    """One object an image, found exactly in the first ``hits``: the area AP is the share of the images found."""
    box = [10, 10, 60, 60]
    one, none = found([box], [0.9], [0]), found([], [], [])
    return [one] * hits + [none] * (images - hits), [image([box], [0])] * images


def binomial(share: float, images: int) -> list[float]:
    """The 2.5 and 97.5 % quantiles, in hundredths, of the share of images in a resample."""
    return [100 * float(q) / images for q in stats.binom.ppf([0.025, 0.975], images, share)]


def test_interval_of_a_proportion() -> None:
    detections, truths = present(150, 200)
    records = voc_records([detections, detections], truths, ["cat"], [4, None], "area")
    for record, seed in zip(records, (4, None), strict=True):
        assert (record.metric, record.unit, record.n, record.seed) == ("map_voc12", "%", 200, seed)
        assert record.value == pytest.approx(75.0)
        assert [record.low, record.high] == pytest.approx(binomial(0.75, 200), abs=1.0)
    (one,) = class_records(detections, truths, ["cat", "dog"], "area", 7)
    assert (one.metric, one.seed, one.value) == ("ap_voc12 (cat)", 7, pytest.approx(75.0))
    assert (one.low, one.high) == (records[0].low, records[0].high)


def test_perfect_detections_leave_the_doubt_of_forty_images() -> None:
    """One image of forty has the dog; about a third of the resamples lack it, and their mean is over cats alone."""
    box = [10, 10, 60, 60]
    detections, truths = [found([box], [0.9], [0])] * 39, [image([box], [0])] * 39
    detections, truths = [*detections, found([box], [0.9], [1])], [*truths, image([box], [1])]
    (record,) = voc_records([detections], truths, ["cat", "dog"], [0], "11points")
    assert (record.metric, record.value) == ("map_voc07", pytest.approx(100.0))
    # 1.96 sqrt(2.3) / 42.3, as if one image had been lost and one gained
    assert (record.low, record.high) == (pytest.approx(100.0 - 7.027, abs=1e-2), pytest.approx(100.0))
    rare = class_records(detections, truths, ["cat", "dog"], "11points", 0)[1]
    assert rare.metric == "ap_voc07 (dog)" and rare.value == pytest.approx(100.0)


def test_a_comparison_is_paired_by_image() -> None:
    """The run loses 20 of the 150 images the reference finds: -10 points, as uncertain as 20 in 200, no more."""
    reference, truths = present(150, 200)
    run, _ = present(130, 200)
    (record,) = voc_compare([run], [reference], truths, ["cat"], "area")
    low, high = (-end for end in reversed(binomial(0.1, 200)))
    assert (record.metric, record.unit, record.n, record.seed) == ("map_voc12_change", "pp", 200, None)
    assert record.value == pytest.approx(-10.0)
    assert [record.low, record.high] == pytest.approx([low, high], abs=1.0)
    (same,) = voc_compare([run, run], [run, run], truths, ["cat"], "11points")
    assert (same.metric, same.value, same.networks) == ("map_voc07_change", 0.0, 2)
    # no width of zero from 200 images: about 3 in 200 may change
    assert (same.low, same.high) == pytest.approx((-1.5, 1.5), abs=0.05)


def test_a_comparison_counts_the_seeds_spread() -> None:
    """Changes 0 and -100 of two seeds: one degree of freedom, 12.7 standard errors of 50, cut at what is possible."""
    good, truths = present(50, 50)
    bad, _ = present(0, 50)
    (record,) = voc_compare([good, bad], [good, good], truths, ["cat"], "area")
    assert (record.value, record.low, record.high) == pytest.approx((-50.0, -100.0, 100.0))
    assert record.spread == pytest.approx(100 / 2**0.5)
    (mean,) = voc_summary([good, bad], truths, ["cat"], "area")
    assert (mean.metric, mean.value, mean.low, mean.high) == ("map_voc12", 50.0, 0.0, 100.0)


# COCO


def direct(objects: dict[str, Any], results: list[dict[str, Any]], folder: Path) -> dict[str, float]:
    """pycocotools on files, with its own defaults; an empty list of results, which it cannot read, as an empty set."""
    (folder / "objects.json").write_text(json.dumps(objects))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "objects.json"))
        if results:
            dt = truth.loadRes(str(folder / "results.json"))
        else:
            (folder / "results.json").write_text(json.dumps({**objects, "annotations": []}))
            dt = COCO(str(folder / "results.json"))
        evaluation = COCOeval(truth, dt, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(COCO_NAMES, evaluation.stats, strict=False) if value != -1}


def as_json(
    detections: Sequence[Detections], truths: Sequence[Image], ids: Sequence[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO's objects and results; ``ids[label]`` is the category of a class, difficult objects are crowds."""
    objects: dict[str, Any] = {
        "images": [{"id": t.image_id, "width": 300, "height": 300, "file_name": ""} for t in truths],
        "categories": sorted(({"id": i, "name": n} for i, n in zip(ids, CLASSES, strict=True)), key=lambda c: c["id"]),
        "annotations": [],
    }
    for t in truths:
        for (x1, y1, x2, y2), label, difficult in zip(
            t.boxes.tolist(), t.labels.tolist(), t.difficult.tolist(), strict=True
        ):
            entry = {"id": len(objects["annotations"]) + 1, "image_id": t.image_id, "category_id": ids[label]}
            size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(difficult)}
            objects["annotations"].append({**entry, **size})
    results = [
        {"image_id": t.image_id, "category_id": ids[k], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": s}
        for t, d in zip(truths, detections, strict=True)
        for (x1, y1, x2, y2), s, k in zip(d.boxes.tolist(), d.scores.tolist(), d.labels.tolist(), strict=True)
    ]
    return objects, results


@pytest.mark.parametrize("seed", range(8))
def test_coco_ap_equals_pycocotools(seed: int, tmp_path: Path) -> None:
    """From ground truth in memory, and from a file whose categories and images have other ids and another order."""
    detections, truths = draw(seed, images=10 + seed, ties=seed % 2 == 1)
    expected = direct(*as_json(detections, truths, (1, 2, 3, 4)), tmp_path)
    assert set(expected) == set(COCO_NAMES) and 0.05 < expected["AP"] < 0.95
    assert coco_ap(detections, truths, CLASSES) == pytest.approx(expected, abs=1e-6)

    named = [Image(900 - 7 * t.image_id, t.boxes, t.labels, t.difficult) for t in truths]
    objects, results = as_json(detections, named, (40, 7, 23, 11))
    expected = direct(objects, results, tmp_path)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(objects))
    assert coco_ap(detections, named, CLASSES, path) == pytest.approx(expected, abs=1e-6)
    # a part of the file's images: as if it had no others
    part = json.loads(json.dumps(objects))
    part["images"] = part["images"][:4]
    kept = {entry["id"] for entry in part["images"]}
    part["annotations"] = [a for a in part["annotations"] if a["image_id"] in kept]
    expected = direct(part, [r for r in results if r["image_id"] in kept], tmp_path)
    assert coco_ap(detections[:4], named[:4], CLASSES, path) == pytest.approx(expected, abs=1e-6)


def test_coco_ap_without_detections_or_without_objects(tmp_path: Path) -> None:
    _, truths = draw(4, images=12)
    nothing = [found([], [], [])] * len(truths)
    expected = direct(*as_json(nothing, truths, (1, 2, 3, 4)), tmp_path)
    assert coco_ap(nothing, truths, CLASSES) == expected == dict.fromkeys(COCO_NAMES, 0.0)
    detections, _ = draw(4, images=12)
    assert coco_ap(detections, [image([], [], image_id=i) for i in range(12)], CLASSES) == {}
    small = [image([[0, 0, 20, 20]], [0])]
    assert coco_ap([found([[0, 0, 20, 20]], [0.5], [0])], small, CLASSES) == dict.fromkeys(
        ("AP", "AP50", "AP75", "AP_S"), pytest.approx(1.0)
    )


def test_coco_ap_counts_a_hundred_detections_an_image(tmp_path: Path) -> None:
    """The only hit is number 101: beyond the server's limit, within CocoMetric's own of 1000."""
    box, away = [0.0, 0.0, 50.0, 50.0], [200.0, 200.0, 250.0, 250.0]
    detections = [found([away] * 100 + [box], np.linspace(1, 0.1, 101), [0] * 101)]
    truths = [image([box], [0])]
    expected = direct(*as_json(detections, truths, (1, 2, 3, 4)), tmp_path)
    assert coco_ap(detections, truths, CLASSES) == expected
    assert expected["AP50"] == 0.0


def test_a_difficult_object_ignores_any_number_of_detections_and_in_coco_any_part_of_it() -> None:
    """Three detections on the difficult box cost nothing; a small one inside it (IoU 1/4) costs only in VOC."""
    easy, hard, part = [0, 0, 99, 99], [150, 150, 249, 249], [150, 150, 199, 199]
    truths = [image([easy, hard], [0, 0], [False, True])]
    upon = [found([hard] * 3 + [easy], [0.9, 0.8, 0.7, 0.6], [0] * 4)]
    assert MatchTable.build(upon, truths, ["cat"]).ap("area")[0] == pytest.approx(1.0)
    assert coco_ap(upon, truths, ["cat"])["AP"] == pytest.approx(1.0)
    within = [found([part, easy], [0.9, 0.6], [0] * 2)]
    assert MatchTable.build(within, truths, ["cat"]).ap("area")[0] == pytest.approx(0.5)
    assert coco_ap(within, truths, ["cat"])["AP"] == pytest.approx(1.0)


def test_coco_records() -> None:
    detections, truths = draw(6, images=12)
    values, records = coco_ap(detections, truths, CLASSES), coco_records(detections, truths, CLASSES, None, 2)
    names = ("coco_ap", "coco_ap50", "coco_ap75", "coco_ap_s", "coco_ap_m", "coco_ap_l")
    assert tuple(record.metric for record in records) == names
    for record, name in zip(records, COCO_NAMES, strict=True):
        assert (record.value, record.unit, record.n, record.seed) == (100 * values[name], "%", 12, 2)


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    detections, truths = draw(6)
    objects, _ = as_json(detections, truths, (1, 2, 3, 4))
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({**objects, "categories": objects["categories"][:2]}))
    with pytest.raises(UserError, match="no category 'emu'"):
        coco_ap(detections, truths, CLASSES, path)
    path.write_text(json.dumps({**objects, "images": objects["images"][:3]}))
    with pytest.raises(UserError, match="no image with the id 3"):
        coco_ap(detections, truths, CLASSES, path)
