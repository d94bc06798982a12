"""Saved networks evaluated again, and compared with what was recorded when they were measured.

A released network (:mod:`bench.released`) says which data it was measured on and what it predicted for each image; one
that ``bench prune`` saved says how its images become inputs and how many were right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import bench.data
from bench import assumptions, saved
from bench.assumptions import Inputs
from bench.data.folder import PROTOCOLS, image_folder
from bench.data.images import ImageSet
from bench.errors import UserError
from bench.measure import accuracy
from bench.measure.steps import missing_of
from bench.models.checkpoint import takes_channels_last
from bench.released import read_predictions
from bench.store import Record

# what other hardware's rounding may change: this share of the predictions, at least one
ROUNDING = 0.0005
SAME, DIFFERENT, INCOMPARABLE, NOTHING = "same", "different", "not compared", "nothing recorded"
# what must be known of a network that was released, and of one that was pruned
_RELEASED, _PRUNED = ("seed", "setting", "mean", "std", "top1", "predictions"), ("inputs", "records")


@dataclass(frozen=True)
class Recorded:
    """What was recorded of a network: its right answers among ``n`` test images (``of`` published ones).

    ``predictions`` are the classes (n), where they were kept.  ``same_data`` says whether the images are those here;
    None: nobody knows.
    """

    right: int
    n: int
    of: int
    predictions: Tensor | None
    same_data: bool | None


@dataclass(frozen=True)
class Found:
    """What one network does now: ``record`` is its top-1 accuracy, ``right`` how many images that is.

    ``changed`` counts the predictions (or, where they were not kept, right answers) that differ; None: not compared.
    ``verdict`` is ``same``, ``different``, ``not compared`` or ``nothing recorded``, ``words`` the same in words.
    """

    folder: Path
    label: str
    record: Record
    right: int
    recorded: Recorded | None
    changed: int | None
    verdict: str
    words: str

    def text(self) -> str:
        """For people, in three lines."""
        record = self.record
        here = f" of the {record.of:,} published" if record.of is not None else ""
        lines = [
            f"{self.folder} ({self.label})",
            f"  top-1 {record.value:.2f} % [{record.low:.2f}, {record.high:.2f}]: {self.right:,} right of "
            f"{record.n:,} test images{here}",
        ]
        if self.recorded is not None:
            share = 100.0 * self.recorded.right / self.recorded.n
            lines.append(
                f"  recorded {share:.2f} %: {self.recorded.right:,} right of {self.recorded.n:,}: {self.words}"
            )
        else:
            lines.append(f"  {self.words}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        known = self.recorded
        return {
            "folder": str(self.folder),
            "network": self.label,
            "top1": {**self.record.to_json(), "right": self.right},
            "recorded": None if known is None else {"right": known.right, "n": known.n, "of": known.of},
            "same_data": None if known is None else known.same_data,
            "changed": self.changed,
            "verdict": self.verdict,
            "words": self.words,
        }


def networks_in(folders: Sequence[Path]) -> list[Path]:
    """The saved networks that ``folders`` are, or hold.  Raises :class:`UserError` where there is none."""
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: name a saved network, or a folder with some, as results/")
        here = [folder] if saved.is_saved(folder) else [path.parent for path in sorted(folder.rglob(saved.RECIPE))]
        if not here:
            raise UserError(
                f"{folder} holds no saved network: name one of `bench prune`, or a folder with released ones"
            )
        found.update(dict.fromkeys(here))
    return list(found)


def status(found: Sequence[Found]) -> int:
    """The command's exit status: 1 where a network differs, else 2 where one could not be compared, else 0."""
    verdicts = {one.verdict for one in found}
    return 1 if DIFFERENT in verdicts else 2 if INCOMPARABLE in verdicts else 0


def evaluate(
    folders: Sequence[Path],
    data: Path | None,
    device: str,
    batch: int = 256,
    workers: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[Found]:
    """Evaluates each saved network of ``folders`` on its test images and compares with what was recorded.

    ``data`` is where data sets are found (``bench.data.data_root``), of a network of ``bench prune`` its image folder.
    All networks are built and all data found before the first is evaluated.  Raises :class:`UserError` for a damaged
    network, missing data, and outputs that are no numbers.
    """
    if batch < 1:
        raise UserError(f"--batch {batch} holds no image: give at least 1")
    sets: dict[Any, ImageSet] = {}
    prepared = []
    for folder in folders:
        facts = saved.facts_of(folder)
        model = saved.load(folder)
        lacking = [name for name in (_RELEASED if "row" in facts else _PRUNED) if name not in facts]
        if lacking:
            raise UserError(
                f"{folder / saved.RECIPE} does not say what the network was measured on (it has no {lacking[0]}): "
                "save it again"
            )
        read = _released if "row" in facts else _own
        prepared.append((folder, facts, model, *read(folder, facts, data, sets, progress)))
    found = []
    for number, (folder, facts, model, images, recorded) in enumerate(prepared, start=1):
        say(f"[{number}/{len(prepared)}] {folder}")
        fast = takes_channels_last(saved.recipe_of(folder))
        outputs = accuracy.logits(model, images.test, device, batch, workers, progress, fast)
        if bool(outputs.isnan().any()):
            raise UserError(f"the network in {folder} has outputs that are no numbers: its weights are broken")
        found.append(_compared(folder, facts, images, recorded, outputs))
        model.cpu()
    return found


def _released(
    folder: Path, facts: dict[str, Any], data: Path | None, sets: dict[Any, ImageSet], progress: bool
) -> tuple[ImageSet, Recorded]:
    """The data that a released network was measured on, and what was recorded."""
    setting, top1 = facts["setting"], facts["top1"]
    scale, size = setting["scale"], saved.recipe_of(folder).input_shape[1]
    protocol = setting["data"]["protocol"]
    known = {"protocol": protocol} if protocol in PROTOCOLS else {}
    if (scale, size, protocol) not in sets:
        images = bench.data.load(scale, bench.data.data_root(data), size, progress=progress, **known)
        if not isinstance(images, ImageSet):
            raise UserError(f"{folder}: a detector is not evaluated here: run its row, {facts['row']}")
        sets[scale, size, protocol] = images
    images = sets[scale, size, protocol].normalised_by(tuple(facts["mean"]), tuple(facts["std"]))
    same = images.fingerprint == setting["data"]["fingerprint"]
    of = top1["n"] if top1["of"] is None else top1["of"]
    predictions = read_predictions(folder, facts["predictions"])
    return images, Recorded(top1["right"], top1["n"], of, predictions, same)


def _own(
    folder: Path, facts: dict[str, Any], data: Path | None, sets: dict[Any, ImageSet], progress: bool
) -> tuple[ImageSet, Recorded | None]:
    """The user's image folder as `bench prune` took it, and what it recorded; None where it stopped before that."""
    if data is None:
        raise UserError(f"{folder} was saved by `bench prune`: give its image folder with --data")
    assumed = facts["inputs"]
    if "mean" not in assumed:
        raise UserError(f"{folder} was pruned with an image set of your own code: evaluate it from there")
    recipe = saved.recipe_of(folder)
    protocol = assumed["protocol"] if assumed["protocol"] in PROTOCOLS else None
    classes = tuple(assumed["classes"]) if assumed["classes_from"] == "given" else None
    inputs = Inputs(tuple(assumed["mean"]), tuple(assumed["std"]), assumed["interpolation"], classes, protocol)
    key = (data, recipe.input_shape[1], assumed["protocol"], inputs.interpolation)
    if key not in sets:
        sets[key] = image_folder(
            data,
            recipe.input_shape[1],
            protocol or "short256",
            progress=progress,
            interpolation=inputs.interpolation or "bicubic",
            in_memory=protocol is None,
        )
    images = sets[key].normalised_by(tuple(assumed["mean"]), tuple(assumed["std"]))
    outputs = len(assumed["classes"]) if classes is None else max(len(classes), len(images.classes))
    images = assumptions.relabelled(images, classes, outputs)
    record = next((record for record in facts["records"] if record["metric"] == "top1_acc"), None)
    if record is None:
        return images, None
    fingerprint = facts.get("data", {}).get("fingerprint")
    same = None if fingerprint is None else fingerprint == images.fingerprint
    n = record["n"]
    return images, Recorded(round(record["value"] * n / 100.0), n, n, None, same)


def _compared(
    folder: Path, facts: dict[str, Any], images: ImageSet, recorded: Recorded | None, outputs: Tensor
) -> Found:
    labels = images.test.labels
    label = f"{facts['row']}, seed {facts['seed']}, {facts['setting']['scale']}" if "row" in facts else images.name
    (top1, *_) = accuracy.records(outputs, labels, facts.get("seed"), missing_of(images))
    right = int(accuracy.hits(outputs, labels, 1).sum())
    if recorded is None:
        return Found(folder, label, top1, right, None, None, NOTHING, "nothing was recorded to compare with")
    changed, verdict, words = judge(recorded, outputs.argmax(1), right, images.test_of)
    return Found(folder, label, top1, right, recorded, changed, verdict, words)


def judge(recorded: Recorded, predicted: Tensor, right: int, of: int) -> tuple[int | None, str, str]:
    """How many predictions differ, the verdict, and its words.

    ``predicted`` are the classes (N) predicted now, ``right`` of them right; ``of`` is how many images the published
    set has.  On the recorded images predictions are compared one by one, or right answers where no predictions were
    kept.  On other images of the same published set (some are missing here or there) the right answers must lie
    between what the missing ones leave possible.
    """
    n = len(predicted)
    allowed = max(1, int(ROUNDING * n))
    what = "predictions"
    if recorded.same_data and recorded.predictions is not None and len(recorded.predictions) == n:
        changed = int((recorded.predictions != predicted).sum())
    elif recorded.predictions is None and recorded.same_data is not False and recorded.n == n:
        what = "right answers"
        changed = abs(right - recorded.right)
    elif recorded.predictions is not None and recorded.of == of:
        least, most = recorded.right - (of - n), recorded.right + (of - recorded.n)
        words = f"the images are not exactly those recorded, {max(least, 0):,} to {min(most, n):,} right agree with it"
        agrees = least - allowed <= right <= most + allowed
        return None, SAME if agrees else DIFFERENT, f"{SAME if agrees else DIFFERENT} ({words})"
    else:
        return None, INCOMPARABLE, f"{INCOMPARABLE}: the images here are not those recorded"
    if changed == 0:
        return 0, SAME, SAME
    if changed <= allowed:
        return changed, SAME, f"same up to {changed} {what if changed > 1 else what[:-1]}"
    return changed, DIFFERENT, f"different in {changed:,} {what}"
