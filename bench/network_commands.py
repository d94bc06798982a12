"""The commands about one network: ``bench macs | latency | prune | evaluate``.

Every one returns (JSON value, text, exit status).
"""

from __future__ import annotations

import argparse
import os
import sys

from bench import evaluate as evaluating
from bench import planning
from bench.commands import Output, registry_folder
from bench.errors import UserError
from bench.latency import command as timing
from bench.measure import macs as counting
from bench.models.builders import BUILDERS
from bench.models.recipe import Recipe, network_of
from bench.planning import Job


def macs(options: argparse.Namespace) -> Output:
    """MACs and parameters of a model, or of a row at the paper's own shape."""
    sys.path.insert(0, os.getcwd())  # a network of the user's own is built by the user's code
    if options.size == 0:
        raise UserError("--size 0 is no image: give 1 or more")
    if options.model in BUILDERS or ":" in options.model:
        sides = {"cifar": 32, "mcifar": 32, "ssd300": 300, "narrow_ssd": 160}
        known = (side for name, side in sides.items() if options.model.startswith(name))
        side = options.size or next(known, 224)
        if options.model not in BUILDERS:
            network_of(options.model)
        recipe = Recipe(options.model, {}, (3, side, side))
        shapes = [(options.model, recipe)]
    else:
        found = planning.choose([], None, options.model, several=True)
        shapes = []
        for row in (row for _, rows in found for row in rows):
            own = row.own_shape()
            if own is not None and own not in [shape for _, shape in shapes]:  # rows of one shape say the same
                shapes.append((f"{row.table}: {row.name}", own))
        if not shapes:
            raise UserError(f"{options.model!r} has no shape of the paper's own: its widths come from the data")
    value, lines = [], []
    for name, shape in shapes:
        device = "meta" if shape.builder in BUILDERS else "cpu"
        count = counting.count(shape.build(device), shape.input_shape)
        dense = counting.count(shape.base.build(device), shape.input_shape)
        total, convolutions = count.total(options.convention), count.total("conv")
        speedup = dense.total("conv") / convolutions if convolutions else None
        value.append(
            {
                "name": name,
                "convention": options.convention,
                "macs": total,
                "params": count.params,
                "conv_speedup": speedup,
            }
        )
        faster = "no convolutions" if speedup is None else f"{speedup:.3f}x in conv MACs"
        lines.append(f"{name}: {total:,} MACs ({options.convention}), {count.params:,} parameters, {faster}")
    return value, "\n".join(lines), 0


def latency(options: argparse.Namespace) -> Output:
    """Times networks and what was pruned from them."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    return timing.run(timing.request_of(options), registry_folder(), say)


def evaluate(options: argparse.Namespace) -> Output:
    """Evaluates saved networks again and compares with what was recorded."""
    sys.path.insert(0, os.getcwd())  # a network of the user's own is built by the user's code

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = evaluating.evaluate(
        evaluating.networks_in(options.folder),
        options.data,
        Job(device=options.device).device,
        options.batch,
        options.workers,
        not options.json and sys.stderr.isatty(),
        say,
    )
    return [one.to_json() for one in found], "\n".join(one.text() for one in found), evaluating.status(found)
