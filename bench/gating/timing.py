"""The step that times gated networks: dense, masked and skipped, in turns."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from bench.chains import gmacs
from bench.gating.compact import Compact, dense
from bench.gating.fresh import normalise
from bench.gating.skip import SkippedNetwork
from bench.gating.skipped import SkippedConv
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
        "Time of the dense network divided by that of the skipped one, paired in interleaved rounds.",
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
    """Times at a ``batch`` size by a ``protocol``; ``recipe`` (fresh weights of ``seed``) where it has no parents."""

    batch: int
    protocol: latency.Protocol
    recipe: Recipe | None = None
    seed: int = 0


@torch.no_grad()
def run_latency(context: Context, parents: list[Result], params: Timing) -> Result:
    """Dense, dense with folded batch norm in channels-last layout, masked and skipped, interleaved, on test images.

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
    networks: dict[str, latency.Network] = {
        "dense": plain,
        "folded": _channels_last(fuse(plain)),
        "masked": gated,
        "skipped": skipping,
    }
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
    timings = latency.interleaved(networks, inputs, params.protocol, context.device, context.progress)
    found = [Record("theoretical_speedup", theory, "x", convention=dynamic.CONVENTION)]
    arrays: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for timing, suffix in zip(timings, ("", "_events", "_graph"), strict=False):
        for record in timing.records("dense"):
            if record.metric.startswith("latency"):
                found.append(replace(record, metric=record.metric + suffix))
        for over, metric in (("dense", "realised_speedup"), ("folded", "realised_over_folded")):
            value, low, high = timing.ratio(over, "skipped")
            rounds = len(timing.blocks("skipped"))
            found.append(Record(metric + suffix, value, "x", low, high, rounds))
            if over == "dense":
                share = 100.0 / theory
                found.append(Record(f"realised_share{suffix}", share * value, "%", share * low, share * high, rounds))
        arrays |= {f"seconds_{name}{suffix}": samples for name, samples in timing.samples.items()}
        facts[f"timing{suffix}"] = {
            "clock": timing.clock,
            "stopped": timing.stopped,
            "machine": timing.telemetry,
            "percentiles": {name: timing.percentiles(name) for name in networks},
        }
    load = max(timings[0].telemetry[when]["load"][0] for when in ("before", "after"))
    found.append(Record("machine_load", load / timings[0].telemetry["before"]["processors"], ""))
    if batch == 1 and context.device == "cpu":
        shares = time_shares(skipping, inputs)
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


def _channels_last(model: nn.Module) -> latency.Network:
    """``model`` in channels-last layout, the images brought into it as part of the call."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: model(x.contiguous(memory_format=torch.channels_last))


@torch.inference_mode()
def time_shares(skipping: SkippedNetwork, inputs: list[Tensor], rounds: int = 3) -> dict[str, float]:
    """Where the skipped network's time goes on single images (CPU), in per cent: gates, gathering, convolving, rest."""
    spent = dict.fromkeys(("gates", "gather", "convolution", "rest"), 0)
    for x in [x for _ in range(rounds) for x in inputs]:
        values: list[Any] = [None] * skipping.slots
        values[0] = x.contiguous(memory_format=torch.channels_last)
        for run, target, sources, splits in skipping.program:
            begin = time.perf_counter_ns()
            if not splits:
                values[target] = run(*[values[source] for source in sources])
                spent["rest"] += time.perf_counter_ns() - begin
                continue
            layer: SkippedConv = run.__self__  # type: ignore[attr-defined]
            value: Tensor | Compact = values[sources[0]]
            index, g = layer.choose(value)
            gated = time.perf_counter_ns()
            filters = layer.gather(value, index, g)
            gathered = time.perf_counter_ns()
            values[target] = layer.convolve(value, index, g, *filters)
            spent["gates"] += gated - begin
            spent["gather"] += gathered - gated
            spent["convolution"] += time.perf_counter_ns() - gathered
        dense(values[skipping.output])
    total = sum(spent.values())
    return {part: 100.0 * nanoseconds / total for part, nanoseconds in spent.items()}


def timed(setting: Setting, recipe: Recipe, what: str, params: Timing, parents: Sequence[Step] = ()) -> Step:
    """The step that times the networks of ``parents`` (dense, gated), or those that ``params`` describe."""
    work = gmacs(recipe, 4000, 1.0)
    return make_step(
        Kind.TIME, f"latency({what})", run_latency, params, parents, data=setting.data, device=setting.device, work=work
    )
