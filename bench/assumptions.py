"""What is assumed of a user's network and images, and whether the network's own accuracy says that it is wrong.

A classifier measured with another normalisation or another order of classes than it was trained with still gives
numbers.  So the normalisation is looked for where none is given, everything that was assumed is put into words, and the
dense network's accuracy is judged before anything is pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bench.data.folder import INTERPOLATIONS, PROTOCOLS
from bench.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageSet
from bench.errors import UserError
from bench.measure.statistics import proportion

# mean and standard deviation of red, green and blue, in 0 to 1, that networks are commonly trained with
NORMALISATIONS = {
    "ImageNet's": (IMAGENET_MEAN, IMAGENET_STD),
    "-1 to 1": ((0.5,) * 3, (0.5,) * 3),
    "0 to 1": ((0.0,) * 3, (1.0,) * 3),
    "0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "MNIST's": ((0.1307,) * 3, (0.3081,) * 3),
}
_OWN = "the training images' own"
# training images on which normalisations are compared, and the points by which another must beat ImageNet's
_TRIED, _POINTS = 300, 2.0
# an output without a class in the data
NO_CLASS = "-"


@dataclass(frozen=True)
class Inputs:
    """How a folder's images become inputs, and outputs classes.

    ``mean`` and ``std`` of red, green and blue in 0 to 1; None: looked for among :data:`NORMALISATIONS`.  ``classes``
    names the network's outputs in order (``-``: none of the data's); None: output i is the i-th folder in alphabetical
    order.  ``interpolation`` and ``protocol`` are those of the resize (None: bicubic; shorter side 256 of 224 and
    centre crop above 64 pixels, squashed to the input size up to there).
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    classes: tuple[str, ...] | None = None
    protocol: str | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise UserError("a mean without a standard deviation says nothing: give both --mean and --std, or neither")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            if len(values) != 3 or not all(np.isfinite(values)):
                raise UserError(f"--{what} needs three numbers, for red, green and blue (or one for all)")
            least, most = (0.0, 1.0) if what == "mean" else (1e-6, 2.0)
            if max(values) > most or min(values) < least:
                raise UserError(
                    f"--{what} is in units of 0 to 1 (divide by 255 what is in grey levels), and std above 0"
                )
        if self.interpolation not in (None, *INTERPOLATIONS):
            raise UserError(f"unknown interpolation {self.interpolation!r}: choose one of {', '.join(INTERPOLATIONS)}")
        if self.protocol not in (None, *PROTOCOLS):
            raise UserError(f"unknown protocol {self.protocol!r}: choose one of {', '.join(PROTOCOLS)}")
        named = [name for name in self.classes or () if name != NO_CLASS]
        if len(set(named)) < len(named):
            twice = next(name for name in named if named.count(name) > 1)
            raise UserError(f"--classes names {twice!r} twice: give each output one class")


def three(values: float | Sequence[float] | None) -> tuple[float, ...] | None:
    """One number or three as three."""
    if values is None:
        return None
    numbers = tuple(float(v) for v in ([values] if isinstance(values, int | float) else values))
    return numbers * 3 if len(numbers) == 1 else numbers


def read_classes(text: str) -> tuple[str, ...]:
    """Class names from a file (one a line) or from a list with commas.

    Raises :class:`UserError` for an unreadable file.
    """
    path = Path(text)
    try:
        if path.is_file():
            return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class names in {path} ({error})") from error
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2:
        raise UserError(
            f"--classes {text!r} is no file and no list with commas: name the classes in the outputs' order"
        )
    return names


def relabelled(data: ImageSet, classes: Sequence[str] | None, outputs: int) -> ImageSet:
    """``data`` with labels that are output numbers.  Raises :class:`UserError` where ``classes`` do not fit."""
    if len(data.classes) > outputs:
        raise UserError(
            f"the network must give one row of at least {len(data.classes)} logits for each image: the data have "
            f"{len(data.classes)} classes, the network {outputs} outputs"
        )
    if classes is None:
        return data
    missing = [name for name in data.classes if name not in classes]
    if missing:
        raise UserError(f"--classes does not name {missing[0]!r}, a class of the data: name all of them")
    if len(classes) > outputs:
        raise UserError(f"--classes names {len(classes)} outputs, the network has {outputs}: leave out what it has not")
    place = torch.tensor([list(classes).index(name) for name in data.classes])
    return replace(
        data, train=data.train.labelled(place[data.train.labels]), test=data.test.labelled(place[data.test.labels])
    )


@torch.no_grad()
def normalised(
    model: nn.Module, data: ImageSet, inputs: Inputs, device: str, seed: int, batch: int
) -> tuple[ImageSet, dict[str, Any]]:
    """``data`` as the network takes it, and what was assumed (JSON values).

    A normalisation that is not given is ImageNet's unless the network classifies training images clearly better (paired
    by image) under another common one, or under these images' own mean and deviation.
    """
    facts = {name: value for name, value in asdict(inputs).items() if name not in ("mean", "std")}
    facts["interpolation"], facts["protocol"] = data.interpolation, data.protocol
    facts["classes"] = list(inputs.classes or data.classes)
    facts["classes_from"] = "given" if inputs.classes else "assumed: the folders' alphabetical order"
    if inputs.mean is not None and inputs.std is not None:
        chosen, source = (inputs.mean, inputs.std), "given"
    else:
        chosen, source = _found(model, data, device, seed, batch)
    facts |= {"mean": list(chosen[0]), "std": list(chosen[1]), "normalisation": source}
    return data.normalised_by(*chosen), facts


def _found(
    model: nn.Module, data: ImageSet, device: str, seed: int, batch: int
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], str]:
    total = len(data.train)
    places = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:_TRIED].tolist()
    chunks = [places[first : first + batch] for first in range(0, len(places), batch)]
    unit = data.train.normalised_by((0.0,) * 3, (1.0,) * 3)
    candidates = dict(NORMALISATIONS)
    sums, right = torch.zeros(2, 3, dtype=torch.float64), {name: list[Tensor]() for name in [*candidates, _OWN]}
    pixels = 0
    for chunk in chunks:
        images = unit.batch(chunk)
        sums += torch.stack([images.double().sum((0, 2, 3)), images.double().square().sum((0, 2, 3))])
        pixels += images[:, 0].numel()
    mean = sums[0] / pixels
    std = (sums[1] / pixels - mean.square()).clamp_min(1e-6).sqrt()
    candidates[_OWN] = tuple(mean.tolist()), tuple(std.tolist())  # type: ignore[assignment]
    model = model.to(device).eval()
    for chunk in chunks:
        images, labels = unit.batch(chunk), data.train.labels[torch.tensor(chunk)]
        for name, (centre, spread) in candidates.items():
            shifted = (images - torch.tensor(centre)[:, None, None]) / torch.tensor(spread)[:, None, None]
            right[name].append(model(shifted.to(device)).argmax(1).cpu() == labels)
    hits = {name: torch.cat(parts) for name, parts in right.items()}
    usual = next(iter(candidates))
    best = max(hits, key=lambda name: int(hits[name].sum()))
    shares = {name: 100.0 * float(found.double().mean()) for name, found in hits.items()}
    gained, lost = int((hits[best] & ~hits[usual]).sum()), int((hits[usual] & ~hits[best]).sum())
    # McNemar's test at three standard deviations: chance alone must not move the default
    if gained - lost <= 3.0 * np.sqrt(gained + lost) or shares[best] < shares[usual] + _POINTS:
        return candidates[usual], f"assumed: {usual} ({shares[usual]:.1f} % of {len(places)} training images right)"
    return candidates[best], (
        f"found: {best} ({shares[best]:.1f} % of {len(places)} training images right, {shares[usual]:.1f} % with "
        f"{usual})"
    )


def in_words(facts: dict[str, Any], outputs: int) -> str:
    """One line about what :func:`normalised` assumed."""
    numbers = [", ".join(f"{value:.4g}" for value in facts[name]) for name in ("mean", "std")]
    return (
        f"inputs: mean {numbers[0]}, std {numbers[1]} ({facts['normalisation']}); resize {facts['protocol']}, "
        f"{facts['interpolation']}; {outputs} outputs, classes {facts['classes_from']}"
    )


def warnings(outputs: Tensor, labels: Tensor, inputs: Inputs, classes: Sequence[str]) -> list[str]:
    """What the dense network's logits (N x outputs) on the test images (labels N, output numbers) say against it."""
    found = []
    count, width = len(labels), outputs.shape[1]
    predicted = outputs.argmax(1)
    right = int((predicted == labels).sum())
    if width != len(classes) and inputs.classes is None:
        found.append(
            f"the network has {width} outputs, the data {len(classes)} classes; class i is taken to be output i: give "
            "the outputs' classes in order with --classes"
        )
    guess = max(1.0 / len(classes), float(torch.bincount(labels).max()) / count)
    # of a few images no accuracy lies clearly above chance
    if proportion(right, count)[0] <= guess and right / count < (1.0 + guess) / 2.0:
        found.append(
            f"the dense network is right on {100.0 * right / count:.1f} % of the test images, no better than guessing "
            f"({100.0 * guess:.1f} %): are the weights its own, and --mean, --std, --classes and --size those of its "
            "training?"
        )
    order = _other_order(predicted, labels, width)
    if order is not None:
        mapping, there, here = order
        moved = [(label, output) for label, output in mapping.items() if label != output]
        names = list(inputs.classes or classes)
        text = ", ".join(f"{names[label]} = output {output}" for label, output in moved[:4])
        found.append(
            f"with its outputs in another order ({text}{', ...' if len(moved) > 4 else ''}) the dense network would be "
            f"right on {there:.1f} % instead of {here:.1f} % of the test images: give the order with --classes"
        )
    return found


def _other_order(predicted: Tensor, labels: Tensor, width: int) -> tuple[dict[int, int], float, float] | None:
    """The order of outputs that suits half of the images best, if it is clearly better on the other half.

    Returns it (output by label) with the accuracies (%) under it and as given, on the half that did not choose it.
    """
    half = torch.arange(len(labels)) % 2 == 0
    present = torch.unique(labels)
    table = np.zeros((len(present), width))
    rows = torch.searchsorted(present, labels)
    np.add.at(table, (rows[half].numpy(), predicted[half].numpy()), 1.0)
    table[np.arange(len(present)), present.numpy()] += 0.5  # ties stay as they are
    chosen = linear_sum_assignment(table, maximize=True)[1]
    there = torch.as_tensor(chosen)[rows[~half]] == predicted[~half]
    here = labels[~half] == predicted[~half]
    gained, lost, rest = int((there & ~here).sum()), int((here & ~there).sum()), max(int((~half).sum()), 1)
    if gained - lost <= 3.0 * np.sqrt(gained + lost) or gained - lost < 0.1 * rest:
        return None
    mapping = dict(zip(present.tolist(), chosen.tolist(), strict=True))
    return mapping, 100.0 * float(there.double().mean()), 100.0 * float(here.double().mean())
