"""What can be decided before anything is run: the half-width and the power of the verdict on every published value.

The spread of one run is what the test images alone leave open, paired with the dense network (the stand-in of
:mod:`bench.verdict`).  A change of accuracy is a mean over images that were lost (-1) or gained (+1); with a share q of
such images it varies by sqrt(q / images).  q is taken for the effect of the row plus half of the dense network's
errors: of two networks of about that error, trained or pruned differently, about half of the mistakes are each one's
own.  Measured on CIFAR-10 (ResNet-56 at 2x, 7 % errors) the rule gives 4.8 %, and 3.5 % were found.  Runs that vary by
more, because seeds matter, lower the power.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import verdict
from bench.registry import Published
from bench.report.readable import mark

# test images (LFW: pairs of faces)
IMAGES = {
    "CIFAR-10": 10_000,
    "ImageNet": 50_000,
    "ImageNet ILSVRC2012 val": 50_000,
    "CUB-200": 5794,  # Wah et al. 2011
    "Indoor-67": 1340,  # Quattoni and Torralba 2009
    "LFW": 6000,  # Huang et al. 2007, the ten folds
}
# errors of the dense network (%), where the value itself does not tell them: the papers' baselines
ERRORS = {("CIFAR-10", 1): 6.5, ("ImageNet", 1): 28.0, ("ImageNet", 5): 9.5}
# AP is no mean over images.  Spread (points) of one detector trained again: 68.7, 68.72 and 69.33 mAP of one Faster
# R-CNN on VOC 2007, 36.7, 37.01 and 36.81 AP over IoU (the logs of yihui-he/py-faster-rcnn)
DETECTION_SPREADS = {"AP@[.5:.95]": 0.16}
DETECTION_SPREAD = 0.36
RUNS = (1, 3)
LEAST_POWER = 0.5


@dataclass(frozen=True)
class Power:
    """One published value: its tolerance, the spread assumed, and half-width and power for each of ``RUNS``.

    All but the power in the value's own unit.  ``sigma`` is None where the number of test images is not known.
    """

    published: Published
    sigma: float | None

    def half_width(self, runs: int) -> float | None:
        """How far the one-sided 95 % bound lies from the difference."""
        return None if self.sigma is None else verdict.half_width(self.sigma, runs)

    def power(self, runs: int) -> float | None:
        """Probability of ``reproduced`` or ``better`` where the procedures are equal."""
        return None if self.sigma is None else verdict.power(self.published, self.sigma, runs)

    def decidable(self, runs: int) -> bool:
        """Whether the power is at least one half."""
        found = self.power(runs)
        return found is not None and found >= LEAST_POWER


def of_values(published: Iterable[Published]) -> list[Power]:
    """The power of the verdicts on all accuracies that could be read."""
    return [Power(entry, spread(entry)) for entry in published if entry.kind == "accuracy" and entry.value is not None]


def spread(entry: Published) -> float | None:
    """The spread of one run about the procedure's mean, in the value's unit; None for a set of unknown size."""
    if "mAP" in entry.metric or entry.metric.startswith("AP@"):
        return DETECTION_SPREADS.get(entry.metric, DETECTION_SPREAD)
    images = IMAGES.get(entry.dataset)
    if images is None or entry.value is None:
        return None
    scale = 1.0 if entry.unit in ("%", "pp", "points") else 100.0
    effect = scale * (entry.effect or 0.0)
    changed = min((effect + _error(entry, scale) / 2.0) / 100.0, 1.0)
    return 100.0 / scale * math.sqrt(changed / images)


def _error(entry: Published, scale: float) -> float:
    """The dense network's errors (%): from the value where it is an accuracy or error, else the data's usual ones."""
    assert entry.value is not None
    name = entry.metric.replace("top-", "top")
    is_change = any(word in name for word in ("gap", "increase", "change", "delta", "drop", "loss"))
    if not is_change:
        value = scale * entry.value
        return value if "err" in name else 100.0 - value
    order = 5 if "top5" in name else 1
    return ERRORS.get((entry.dataset.split()[0], order), ERRORS["ImageNet", 1])


def text(found: Mapping[str, Sequence[Power]], rows: bool) -> str:
    """A table of the papers and data sets; with ``rows`` every value."""
    lines = []
    if rows:
        for powers in found.values():
            lines.append(f"{'published value':<86} {'limit':>6} {'half-width':>13} {'power':>11}")
            lines.append(f"{'':<86} {'':>6} {'1 run  3 runs':>13} {'1 run   3':>11}")
            for power in powers:
                entry = power.published
                value = f"{entry.metric} {entry.printed} {entry.unit}"
                name = f"{value}, {entry.row}, {entry.model}, {entry.table}"
                lines.append(f"{name[:84] + mark(entry):<86} {entry.limit:>6.2f} {_numbers(power)}")
            lines.append("")
    lines.append(
        f"{'':<24} {'data':<24} {'published':>9}  {'decidable with 1 run':>20}  {'with 3 runs':>11}  not counted"
    )
    total: dict[str, list[Power]] = {}
    for paper, powers in found.items():
        for name in sorted({_data(power.published) for power in powers}):
            chosen = [power for power in powers if _data(power.published) == name]
            total.setdefault(name, []).extend(chosen)
            lines.append(_counts(paper, name, chosen))
    if len(found) > 1:
        lines += [_counts("total", name, total[name]) for name in sorted(total)]
    lines += [
        "",
        "decidable: at least an even chance of `reproduced` where our procedure equals the paper's. Spread of a run:",
        "the noise of the test images, paired with the dense network; seeds that matter lower the power. Three runs",
        "have less of it than one because they estimate their spread and one run is given it. † not checked against",
        "the publication; ‡ reported by others than the paper's authors; neither is counted, nor is a bound decidable.",
    ]
    return "\n".join(lines)


def _numbers(power: Power) -> str:
    if power.sigma is None:
        return "test set of unknown size"
    widths = "  ".join(f"{power.half_width(runs):6.2f}" for runs in RUNS)
    return f"{widths} " + " ".join(f"{100 * (power.power(runs) or 0.0):4.0f} %" for runs in RUNS)


def _data(entry: Published) -> str:
    name = "ImageNet" if entry.dataset.startswith("ImageNet") else entry.dataset
    images = IMAGES.get(name)
    return f"{name} ({images:,})" if images else name


def _counts(paper: str, name: str, powers: Sequence[Power]) -> str:
    counted = [power for power in powers if power.published.counted]
    numbers = [sum(power.decidable(runs) for power in counted) for runs in RUNS]
    apart = len(powers) - len(counted)
    return f"{paper:<24} {name:<24} {len(counted):>9}  {numbers[0]:>20}  {numbers[1]:>11}  {apart or '':>12}"


def to_json(powers: Sequence[Power]) -> list[dict[str, Any]]:
    """One value for each published value."""
    return [
        {
            **{
                name: getattr(power.published, name)
                for name in (
                    "paper",
                    "table",
                    "row",
                    "model",
                    "dataset",
                    "metric",
                    "printed",
                    "unit",
                    "verified",
                    "origin",
                )
            },
            "limit": power.published.limit,
            "sigma": power.sigma,
            "half_width": {runs: power.half_width(runs) for runs in RUNS},
            "power": {runs: power.power(runs) for runs in RUNS},
            "decidable": {runs: power.decidable(runs) for runs in RUNS},
        }
        for power in powers
    ]
