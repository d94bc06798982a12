"""A figure of the trainings behind a table: loss and accuracy on the training images, epoch by epoch."""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.report.drawing import COLOURS, MARKERS, TITLE, legend
from bench.report.load import Line
from bench.report.tables import Table

Curve = list[tuple[float, float]]
# what a history says of an epoch, and how it is called
PANELS = (("loss", "training loss"), ("accuracy", "accuracy on training images (%)"))
_WRAP = 55


def histories(lines: Sequence[Line]) -> dict[str, dict[str, Curve]]:
    """The trainings of the first seed by name, each once: what its history says by the number of the epoch.

    One that ends in a row's own network is called as the row; those that its pruning alternated with go before it, in
    one curve.  The others (dense networks, mostly) are called by what was done, one thing after the other.
    """
    found: dict[str, dict[str, Curve]] = {}
    seen: set[str] = set()
    for line in lines:
        if not line.ran or not line.history:
            continue
        seed = next(iter(line.history.values()))["seed"]
        first = {key: training for key, training in line.history.items() if training["seed"] == seed}
        own = [key for key in first if key in line.widths]
        # a step's name holds those of the steps that it comes from
        stages = {key: _before(first, key) for key in own}
        inside = {stage for keys in stages.values() for stage in keys}
        for key, training in first.items():
            if key in seen or key in inside:
                continue
            seen.add(key)
            name = line.name if key in own else done(training["step"])
            epochs = [epoch for stage in [*stages.get(key, ()), key] for epoch in first[stage]["epochs"]]
            found[_free(name, found)] = {
                what: [(float(place), float(epoch[what])) for place, epoch in enumerate(epochs, 1) if what in epoch]
                for what, _ in PANELS
            }
    return found


def _before(trainings: Mapping[str, Mapping[str, Any]], last: str) -> list[str]:
    """The trainings between prunings that end in ``last``, the first one first; the dense network's is none of them."""
    name = trainings[last]["step"]
    found = [
        key
        for key, training in trainings.items()
        if key != last and training["step"] in name and not training["step"].startswith("dense")
    ]
    return sorted(found, key=lambda key: len(trainings[key]["step"]))


def _free(name: str, taken: Collection[str]) -> str:
    """``name``, with a number behind it where it is taken."""
    numbers = (f"{name} ({number})" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbers if other not in taken)


def done(step: str) -> str:
    """A step's name in words: ``dense, fine-tuned`` of ``fine-tuned(dense(vgg16_bn, seed 0))``."""
    # what was done stands in front of each bracket, with what it is known by behind it; the last done is the outermost
    names = re.sub(r"\([^()]*\)(?=\()", "", step)  # of "from scratch (20 epochs)(net, seed 0)" the number
    outer, *inner = names.split("(")[:-1] or [names]
    words = [outer.strip()]
    for part in inner:
        *known, word = (text.strip() for text in part.split(","))
        words[-1] = " ".join([words[-1], *(text for text in known if "=" in text)])  # a density
        words.append(word)
    return ", ".join(word for word in reversed(words) if word)


def told(lines: Sequence[Line]) -> set[str]:
    """The trainings behind these rows, by what their histories say: the same ones may stand behind several tables."""
    return {json.dumps(training, sort_keys=True) for line in lines if line.ran for training in line.history.values()}


def figure(table: Table) -> Figure | None:
    """Loss and, where it is known, accuracy side by side.

    None where no row of the table ends in a training of more than an epoch.
    """
    found = histories(table.lines)
    curves = {name: told for name, told in found.items() if len(told["loss"]) > 1}
    if not any(line.name in curves for line in table.lines):
        return None
    # where there are more than colours, dense networks and stages between prunings go first
    rows = {line.name for line in table.lines}
    kept = sorted(curves, key=lambda name: name not in rows)[: len(COLOURS)]
    shown = {name: told for name, told in curves.items() if name in kept}
    figure = Figure(figsize=(7.5, 3.9))
    # detectors have no accuracy while they are trained
    known = [(what, title) for what, title in PANELS if any(told[what] for told in shown.values())]
    panels = figure.subplots(1, len(known), squeeze=False)[0]
    for axes, (what, title) in zip(panels, known, strict=True):
        for number, (name, told) in enumerate(shown.items()):
            xs, values = zip(*told[what], strict=True) if told[what] else ((), ())
            label = textwrap.fill(name, _WRAP)
            axes.plot(xs, values, color=COLOURS[number], marker=MARKERS[number], markersize=3.5, label=label)
        axes.set_ylabel(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(curves) > len(shown):
        left = len(curves) - len(shown)
        said = f"{left} trainings more are" if left > 1 else "1 training more is"
        panels[0].set_title(f"{said} not drawn", fontsize=8, color="#333333")
    legend(figure, panels[0])
    where = f"{table.scale}{' (analogue)' if table.analogue else ''}"
    figure.suptitle(textwrap.fill(f"{table.name}, {where}: the first seed's trainings", TITLE), fontsize=11)
    return figure
