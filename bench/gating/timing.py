"""The step that times gated networks: dense, masked and skipped, in turns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.chains import gmacs
from bench.gating import turns
from bench.gating.fresh import normalise
from bench.gating.skip import SkippedNetwork
from bench.measure import dynamic, latency
from bench.metrics import Metric
from bench.models.checkpoint import network
from bench.models.recipe import Recipe
from bench.rows import Setting
from bench.steps import Context, Kind, Step, make_step
from bench.store import Record, Result
from bench.train.fit import seed_everything

_METRICS = (
    *(
        Metric(
            f"latency_{name}",
            heading,
            "ms",
            3,
            f"Median time of the {meaning}, interleaved with the others.",
            "lower",
            of="calls",
            minor=name in ("folded", "masked"),
        )
        for name, heading, meaning in (
            ("dense", "dense", "dense network"),
            (
                "folded",
                "dense, folded",
                "dense network in channels-last layout, its batch norms folded into the filters",
            ),
            ("masked", "masked", "gated network that multiplies by zero"),
            ("skipped", "skipped", "gated network that computes the winners only"),
        )
    ),
    Metric(
        "theoretical_speedup",
        "theoretical",
        "x",
        2,
        "MACs of the dense network divided by those of the gated one on the images that were timed.",
        "higher",
        minor=True,
    ),
    Metric(
        "realised_speedup",
        "realised",
        "x",
        2,
        "Time of the dense network divided by that of the skipped one, paired in rounds, of several fresh processes.",
        "higher",
        of="calls",
    ),
    Metric(
        "realised_over_folded",
        "realised, over folded",
        "x",
        2,
        "The same over the dense network in channels-last layout with its batch norms folded.",
        "higher",
        of="calls",
    ),
    *(
        Metric(
            f"realised_{name}",
            f"{name}, over dense",
            "x",
            2,
            f"Time of the dense network divided by that of the {name} one, paired as the skipped one's.",
            "higher",
            minor=True,
            of="calls",
            shown=False,
        )
        for name in ("folded", "masked")
    ),
    Metric(
        "realised_share",
        "realised / theoretical",
        "%",
        1,
        "Realised speed-up divided by the theoretical one.",
        "higher",
        minor=True,
        of="calls",
    ),
    *(
        Metric(f"time_share_{part}", heading, "%", 1, f"Share of the skipped network's time {meaning}.", minor=True)
        for part, heading, meaning in (
            ("gates", "time: gates", "spent on saliencies and winners"),
            ("gather", "time: gather", "spent on gathering the active weights"),
            ("convolution", "time: convolutions", "spent on convolutions, saliencies times responses, and ReLU"),
            ("rest", "time: rest", "spent outside of gated layers"),
        )
    ),
    Metric(
        "machine_load",
        "load",
        "",
        2,
        "Runnable processes for each processor around the timing (one minute's mean, this one included): above 1 the "
        "times are disturbed.",
        minor=True,
    ),
)
# of which network's time which one's is a share, and what that is called
_RATIOS = (
    ("dense", "skipped", "realised_speedup"),
    ("folded", "skipped", "realised_over_folded"),
    ("dense", "folded", "realised_folded"),
    ("dense", "masked", "realised_masked"),
)
# on a GPU the same calls by other clocks too
_CLOCKS = (("_events", "GPU events", "The GPU's own clock."), ("_graph", "CUDA graph", "The calls as one CUDA graph."))
METRICS = _METRICS + tuple(
    replace(
        metric,
        name=f"{metric.name}{suffix}",
        heading=f"{metric.heading}, {words}",
        meaning=f"{metric.meaning} {how}",
        shown=False,
    )
    for suffix, words, how in _CLOCKS
    for metric in _METRICS
    if metric.of == "calls"
)


@dataclass(frozen=True)
class Timing:
    """Times at a ``batch`` size by a ``protocol`` that ``processes`` share.

    ``recipe`` (fresh weights of ``seed``) where it has no parents.
    """

    batch: int
    protocol: latency.Protocol
    recipe: Recipe | None = None
    seed: int = 0
    processes: int = 5


@torch.no_grad()
def run_latency(context: Context, parents: list[Result], params: Timing) -> Result:
    """Dense, dense with folded batch norm in channels-last layout, masked and skipped, in turns, on test images.

    Parents: the dense and the gated network; without them both are built from ``recipe`` with fresh weights.  Records:
    the latencies, the skipped network's speed-up over both dense ones, the theoretical speed-up on the same images
    (MACs), and what share of it is realised; where the skipped network's time goes.
    """
    if parents:
        (plain, _), (gated, recipe) = network(parents[0]), network(parents[1])
    else:
        assert params.recipe is not None
        recipe = params.recipe
        seed_everything(params.seed)
        plain = recipe.base.build().eval()
        gated = copy.deepcopy(plain)
        recipe.apply(gated)
        normalise(gated, context.data().train.batch(list(range(64))))
    plain, gated = plain.to(context.device).eval(), gated.to(context.device).eval()
    skipping = SkippedNetwork(gated).to(context.device)
    test, batch = context.data().test, params.batch
    count = min(len(test), 64 * batch) // batch
    inputs = [test.batch(list(range(batch * i, batch * (i + 1)))).to(context.device) for i in range(count)]
    counter = dynamic.Counter(gated, recipe.input_shape)
    for x in inputs:
        reference = gated(x)
        counter.add(dynamic.applied(gated), len(x))
        if not (_difference(skipping(x), reference) <= 0.01 or same_in_float64(gated, x)):
            raise RuntimeError("the skipped network does not compute what the masked one does")
    whole = dynamic.expected(recipe.base.build("meta"), recipe.input_shape)
    theory = whole.dense / float(counter.result().totals.mean())
    found = [Record("theoretical_speedup", theory, "x", convention=dynamic.CONVENTION)]
    runs, shares = turns.in_processes(
        plain, gated, inputs, params.protocol, params.processes, context.device, context.progress
    )
    arrays: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for run, suffix in zip(runs, ("", "_events", "_graph"), strict=False):
        arrays |= {f"seconds_{name}{suffix}": run.samples(name) for name in turns.NAMES}
        for name in turns.NAMES:
            one, calls = run.milliseconds(name), arrays[f"seconds_{name}{suffix}"].numel()
            found.append(Record(f"latency_{name}{suffix}", one.value, "ms", one.low, one.high, calls))
        for over, name, metric in _RATIOS:
            one = run.ratio(over, name)
            found.append(Record(metric + suffix, one.value, "x", one.low, one.high, one.rounds))
            if metric == "realised_speedup":
                low, high = (None if end is None else 100.0 / theory * end for end in (one.low, one.high))
                found.append(Record(f"realised_share{suffix}", 100.0 / theory * one.value, "%", low, high, one.rounds))
        facts[f"timing{suffix}"] = run.facts()
    found.append(Record("machine_load", runs[0].load(), ""))
    found += [Record(f"time_share_{part}", value, "%") for part, value in shares.items()]
    return Result(records=found, arrays=arrays, facts=facts)


def _difference(found: Tensor, reference: Tensor) -> float:
    """The largest, relative to the largest reference."""
    return float((found - reference).abs().max() / reference.abs().max())


def same_in_float64(gated: nn.Module, x: Tensor) -> bool:
    """Whether skipped execution computes there what masked execution does.

    In float32 rounding makes another channel win in one image of some hundred, with other outputs; here it does not.
    """
    exact, images = copy.deepcopy(gated).double(), x.double()
    return _difference(SkippedNetwork(exact)(images), exact(images)) <= 1e-6


def timed(setting: Setting, recipe: Recipe, what: str, params: Timing, parents: Sequence[Step] = ()) -> Step:
    """The step that times the networks of ``parents`` (dense, gated), or those that ``params`` describe."""
    work = gmacs(recipe, 4000, 1.0)
    return make_step(
        Kind.TIME, f"latency({what})", run_latency, params, parents, data=setting.data, device=setting.device, work=work
    )
