"""Precision against recall of detectors, and the step that keeps the curves of a pruned one beside the dense one's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import rounded
from bench.data.annotations import DetectionSet
from bench.measure.detection import Array, MatchTable
from bench.measure.detection_steps import detections_of
from bench.rows import Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result

# 0, 0.01 ... 1: as quotients, so that a recall of exactly 3/10 reaches its point
RECALLS: Array = np.arange(101) / 100
# single classes are kept of sets that have no more of them: VOC's 20, not COCO's 80
_CLASSES = 20


@dataclass(frozen=True)
class PrecisionRecall:
    """No parameters: two evaluations say everything."""


def curves(table: MatchTable) -> dict[str, Array]:
    """The precision (0 to 1) of each class with objects at the 101 recalls 0, 0.01 ... 1, all images counted once.

    At a recall it is the best one at that recall or a higher one, 0 beyond the highest (the devkit's and COCO's rule,
    with which AP is the mean of these values or the area under them).
    """
    found = {}
    for name, one in zip(table.classes, table.matched, strict=True):
        objects = float(one.objects.sum())
        if objects == 0:
            continue
        hits = np.arange(1, len(one.hits) + 1)
        best = np.maximum.accumulate((hits / (one.hits + 1))[::-1])[::-1]
        place = np.searchsorted(hits / objects, RECALLS)
        found[name] = np.append(best, 0.0)[place]
    return found


def run_precision_recall(context: Context, parents: list[Result], params: PrecisionRecall) -> Result:
    """The curves of a pruned detector and of the dense one (parents: their evaluations); no records.

    Fact ``precision_recall``: for each of the two the mean over the classes with objects, ``of`` how many, and, of
    sets with 20 classes at most, the classes.
    """
    data: DetectionSet = context.data()
    networks: dict[str, Any] = {}
    for name, parent in zip(("pruned", "dense"), parents, strict=True):
        found = curves(MatchTable.build(detections_of(parent), data.test.annotations, data.classes))
        single = found if len(data.classes) <= _CLASSES else {}
        networks[name] = {
            "mean": rounded.text(np.mean(list(found.values()), axis=0)),
            "of": len(found),
            "classes": {label: rounded.text(curve) for label, curve in single.items()},
        }
    return Result(facts={"precision_recall": {"images": len(data.test), "networks": networks}})


def precision_recall(setting: Setting, run: Step, reference: Step) -> Step:
    """The curves of an evaluation (``run``) beside those of the dense detector's (``reference``)."""
    return make_step(
        Kind.COMPARE,
        f"precision and recall({run.name})",
        run_precision_recall,
        PrecisionRecall(),
        [run, reference],
        data=setting.data,
        device=setting.device,
    )
