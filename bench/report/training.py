"""A figure of the trainings behind a table: loss and accuracy on the training images, epoch by epoch."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence

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

    One that ends in a row's own network is called as the row, the others (dense networks) as their steps.
    """
    found: dict[str, dict[str, Curve]] = {}
    seen: set[str] = set()
    for line in lines:
        if not line.ran:
            continue
        own = set(line.widths)
        seeds = [training["seed"] for training in line.history.values()]
        for key, training in line.history.items():
            if key in seen or training["seed"] != seeds[0]:
                continue
            seen.add(key)
            name = line.name if key in own else _step(training["step"])
            found[name if name not in found else f"{name} ({key[:4]})"] = {
                what: [(float(epoch["epoch"]), float(epoch[what])) for epoch in training["epochs"] if what in epoch]
                for what, _ in PANELS
            }
    return found


def told(lines: Sequence[Line]) -> set[str]:
    """The trainings behind these rows, by what their histories say: the same ones may stand behind several tables."""
    return {json.dumps(training, sort_keys=True) for line in lines if line.ran for training in line.history.values()}


def _step(name: str) -> str:
    """A step's name without its seed: ``dense(vgg16_bn)``."""
    return re.sub(r",? ?seed \d+", "", name).replace("()", "")


def figure(table: Table) -> Figure | None:
    """Loss and, where it is known, accuracy side by side.

    None where no row of the table ends in a training of more than an epoch.
    """
    found = histories(table.lines)
    curves = {name: told for name, told in found.items() if len(told["loss"]) > 1}
    if not any(line.name in curves for line in table.lines):
        return None
    shown = dict(list(curves.items())[: len(COLOURS)])
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
