"""The step that keeps what figures of a few test images show: true boxes, the dense detector's and the pruned one's.

Row files are published with the results.  The images themselves are kept, small and grey, only where the suite drew
them (the embedded scenes); of anybody's data there are the boxes alone.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from bench.data.annotations import Annotation, DetectionSet
from bench.measure.detection import Detections
from bench.measure.detection_steps import detections_of
from bench.rows import Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Result

# the one detection set that the suite draws itself
OWN = "scenes"
# a thumbnail's longer side in pixels, and the distance of its grey levels: noise does not compress
_SIDE, _GREYS = 96, 17
# boxes of one image and network that are kept, those with the highest scores
_MOST = 20


@dataclass(frozen=True)
class Pictures:
    """The first ``images`` test images with an object to find, boxes from ``score`` on; ``thumbnails`` keeps pixels."""

    images: int = 4
    score: float = 0.5
    thumbnails: bool = False


def run_pictures(context: Context, parents: list[Result], params: Pictures) -> Result:
    """Fact ``pictures`` from the evaluations of a pruned detector and of the dense one; no records.

    Boxes are x1 y1 x2 y2 in whole pixels of the original image.
    """
    data: DetectionSet = context.data()
    pruned, dense = (detections_of(parent) for parent in parents)
    shown = []
    for place in places(data.test.annotations, params.images):
        truth = data.test.annotations[place]
        image: dict[str, Any] = {"width": truth.width, "height": truth.height}
        if params.thumbnails:
            image["thumbnail"] = thumbnail(truth)
        ordinary = ~truth.difficult
        image["truth"] = boxes(truth.boxes[ordinary], truth.labels[ordinary], data.classes)
        for name, found in (("dense", dense[place]), ("pruned", pruned[place])):
            image[name] = confident(found, params.score, data.classes)
        shown.append(image)
    return Result(facts={"pictures": {"score": params.score, "images": shown}})


def places(truths: list[Annotation], count: int) -> list[int]:
    """The first ``count`` images that have an object which is not difficult: nothing of the results chooses them."""
    return [place for place, truth in enumerate(truths) if bool((~truth.difficult).any())][:count]


def confident(found: Detections, score: float, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """The detections with a score of at least ``score``, the best first, 20 at most."""
    order: list[int] = found.scores.argsort(descending=True, stable=True).tolist()[:_MOST]
    kept = [place for place in order if float(found.scores[place]) >= score]
    shown = boxes(found.boxes[kept], found.labels[kept], classes)
    scores = found.scores[kept].tolist()
    return [{**box, "score": round(value, 2)} for box, value in zip(shown, scores, strict=True)]


def boxes(corners: Tensor, labels: Tensor, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """``corners`` k x 4 and the class of each (k) as plain values."""
    whole = corners.round().int().tolist()
    return [
        {"class": classes[label], "box": " ".join(map(str, box))}
        for box, label in zip(whole, labels.tolist(), strict=True)
    ]


def thumbnail(truth: Annotation) -> str:
    """The image in sixteen greys, at most 96 pixels a side, as a PNG in base64: the same pixels on every machine."""
    with Image.open(truth.file) as image:
        grey = image.convert("L")
    grey.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    out = io.BytesIO()
    grey.point([_GREYS * round(value / _GREYS) for value in range(256)]).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def pictures(setting: Setting, run: Step, reference: Step) -> Step:
    """The pictures of an evaluation (``run``) beside the dense detector's (``reference``)."""
    params = Pictures(thumbnails=setting.scale == OWN)
    return make_step(
        Kind.COMPARE,
        f"pictures({run.name})",
        run_pictures,
        params,
        [run, reference],
        data=setting.data,
        device=setting.device,
    )
