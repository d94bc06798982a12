"""The steps of gated networks: gating and training, slimming, and what is measured on them."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from bench.errors import UserError
from bench.gating.compact import Compact, dense
from bench.gating.convert import convert
from bench.gating.flow import Flow
from bench.gating.layer import GateOptions, gated_layers, saliency_l1, set_density
from bench.gating.skip import SkippedNetwork
from bench.gating.skipped import SkippedConv
from bench.measure import accuracy, dynamic, latency, macs, memory
from bench.measure.statistics import proportion
from bench.models.recipe import Recipe
from bench.pruning.slimming import gamma_l1, slim
from bench.steps import Context, Step
from bench.store import Record, Result
from bench.train.fit import Schedule, fit, seed_everything
from bench.train.steps import checkpoint, network

# masks of so many images are looked at for memory accesses
_MEMORY_IMAGES = 1280


def original(recipe: Recipe) -> Recipe:
    """The dense, ungated network behind a recipe."""
    return original(Recipe.from_json(recipe.arguments["base"])) if recipe.builder == "gated" else recipe.dense()


def gated_recipe(base: Recipe, density: int, options: GateOptions, ungated: tuple[str, ...]) -> Recipe:
    """The recipe of ``base`` with gates."""
    arguments = {"base": base.to_json(), "density": density, "options": asdict(options), "ungated": list(ungated)}
    return Recipe("gated", arguments, base.input_shape)


def _schedule(params: dict[str, Any]) -> Schedule:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in params["schedule"].items()}
    return Schedule(**values)


def _weighted(term: Any, weight: float, net: nn.Module) -> Tensor:
    value: Tensor = weight * term(net)
    return value


def run_gated(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Parent: a dense network, which gets gates, or a gated one at another density; trained at ``density``."""
    model, recipe = network(parents[0])
    facts: dict[str, Any] = {}
    if recipe.builder == "gated":
        set_density(model, params["density"])
        recipe = replace(recipe, arguments={**recipe.arguments, "density": params["density"]})
    else:
        seed_everything(params["seed"])
        options, ungated = GateOptions(**params["options"]), tuple(params["ungated"])
        facts = asdict(convert(model, params["density"], options, ungated))
        recipe = gated_recipe(recipe, params["density"], options, ungated)
    data = context.data()
    fit(
        model, data.train, _schedule(params), params["seed"], context.work, context.device, params["label"],
        context.workers, context.progress, partial(_weighted, saliency_l1, params["penalty"]),
    )  # fmt: skip
    return checkpoint(model, recipe, facts={"images": len(data.train), **facts})


def run_sparse(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Network slimming, first half: the parent trained on with the L1 term on its gammas."""
    model, recipe = network(parents[0])
    data = context.data()
    fit(
        model, data.train, _schedule(params), params["seed"], context.work, context.device, "slimming",
        context.workers, context.progress, partial(_weighted, gamma_l1, params["penalty"]),
    )  # fmt: skip
    return checkpoint(model, recipe, facts={"images": len(data.train)})


def run_slimmed(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Network slimming, second half: the channels with the smallest gammas removed, to a speed-up or to fixed widths."""
    model, recipe = network(parents[0])
    counted = macs.count(recipe.build("meta" if ":" not in recipe.builder else "cpu"), recipe.input_shape)
    smaller, widths = slim(model, recipe.input_shape, counted.conv, params["speedup"], params["keep"])
    return checkpoint(smaller, replace(recipe, widths={**recipe.widths, **widths}), facts={"widths": widths})


def run_measured(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Any network on the whole test split: logits, accuracy and error, MACs for each image."""
    model, recipe = network(parents[0])
    test = context.data().test
    outputs, counted = dynamic.measure(model, test, context.device, 256, context.workers, context.progress)
    if not bool(torch.isfinite(outputs).all()):
        raise UserError("the network's outputs are not finite: its weights are broken")
    found = accuracy.records(outputs, test.labels, params["seed"])
    for record in list(found):
        assert record.low is not None and record.high is not None
        mirrored = (100.0 - record.value, 100.0 - record.high, 100.0 - record.low)
        metric = record.metric.replace("acc", "err")
        found.append(Record(metric, mirrored[0], "%", mirrored[1], mirrored[2], record.n, record.seed))
    whole = dynamic.expected(original(recipe).build("meta"), recipe.input_shape)
    found += counted.records(params["seed"], len(test), whole)
    return Result(
        records=found, arrays={"logits": outputs, "labels": test.labels, "macs": counted.totals},
        facts={"layers": counted.table()},
    )  # fmt: skip


def run_expected(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """MACs that the densities alone tell, on ``meta``: no data, no weights."""
    recipe = Recipe.from_json(params["recipe"])
    counted = dynamic.expected(recipe.build("meta"), recipe.input_shape)
    whole = dynamic.expected(original(recipe).build("meta"), recipe.input_shape)
    mean = float(counted.totals[0])
    return Result(
        records=[
            Record("expected_macs", float(counted.macs.sum()), "MACs", convention="conv+fc"),
            Record("expected_macs_gates", mean, "MACs", convention=dynamic.CONVENTION),
            Record("expected_speedup", whole.dense / mean, "x", convention=dynamic.CONVENTION),
        ],
        facts={"layers": counted.table()},
    )  # fmt: skip


@torch.no_grad()
def run_memory(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Memory accesses and peak memory at the batch sizes ``batches``, from the masks of the first test images."""
    model, recipe = network(parents[0])
    model = model.to(context.device)
    flow = Flow(model, recipe.input_shape)
    test = context.data().test
    count = min(len(test), _MEMORY_IMAGES)
    parts: list[dict[str, Tensor]] = []
    if gated_layers(model):
        for start in range(0, count, 256):
            places = list(range(start, min(start + 256, count)))
            model(test.batch(places, augment=False).to(context.device))
            parts.append({name: mask.cpu() for name, mask in dynamic.applied(model).items()})
    winners = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    return Result(records=memory.records(flow, winners, tuple(params["batches"]), params["seed"]))


@torch.no_grad()
def run_skipped(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Skipped against masked execution on the first ``images`` test images, one at a time.

    Records: the share of images for which rounding (float32) makes another channel win somewhere, what that does to the
    accuracy (paired), and the largest difference of the logits in float64, relative to the largest logit.
    """
    model, _ = network(parents[0])
    model = model.to(context.device).eval()
    test = context.data().test
    places = list(range(min(params["images"], len(test))))
    labels = test.labels[: len(places)]
    skipping = SkippedNetwork(model)
    masked, skipped, flips = [], [], 0
    for place in places:
        image = test.batch([place], augment=False).to(context.device)
        masked.append(model(image).float().cpu())
        winners = dynamic.applied(model)
        skipped.append(skipping(image).float().cpu())
        flips += any(
            set(layer.last.tolist()) != set(winners[name][0].nonzero()[:, 0].tolist())
            for name, layer in skipping.layers.items()
            if layer.last is not None
        )
    low, high = proportion(flips, len(places))
    found = [Record("winner_flips", 100.0 * flips / len(places), "%", 100.0 * low, 100.0 * high, len(places))]
    for record in accuracy.compare([torch.cat(skipped)], [torch.cat(masked)], labels):
        if record.metric in ("top1_change", "agreement"):
            found.append(replace(record, metric=f"skipped_{record.metric}"))
    exact = copy.deepcopy(model).double()
    images = test.batch(places[:64], augment=False).to(context.device).double()
    difference = (SkippedNetwork(exact)(images) - exact(images)).abs().max() / exact(images).abs().max()
    found.append(Record("skipped_float64_difference", float(difference), "", n=len(images)))
    return Result(records=found)


@torch.no_grad()
def run_latency(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Dense, dense with folded batch norm in channels-last layout, masked and skipped network, interleaved, on test images.

    Parents: the dense and the gated network; without them both are built from ``recipe`` with fresh weights.  Records: the
    latencies, the skipped network's speed-up over both dense ones, the theoretical speed-up on the same images (MACs), and
    what share of it is realised; where the skipped network's time goes.
    """
    if parents:
        (plain, _), (gated, recipe) = network(parents[0]), network(parents[1])
    else:
        recipe = Recipe.from_json(params["recipe"])
        seed_everything(params["seed"])
        plain = original(recipe).build().eval()
        gated = copy.deepcopy(plain)
        options = GateOptions(**recipe.arguments["options"])
        convert(gated, recipe.arguments["density"], options, recipe.arguments["ungated"])
        _normalise(gated, context.data().train.batch(list(range(64)), augment=False))
    plain, gated = plain.to(context.device).eval(), gated.to(context.device).eval()
    skipping = SkippedNetwork(gated).to(context.device)
    networks: dict[str, latency.Network] = {
        "dense": plain, "folded": _channels_last(fuse(plain)), "masked": gated, "skipped": skipping,
    }  # fmt: skip
    test, batch = context.data().test, params["batch"]
    count = min(len(test), 64 * batch) // batch
    inputs = [
        test.batch(list(range(batch * i, batch * (i + 1))), augment=False).to(context.device) for i in range(count)
    ]
    counter = dynamic.Counter(gated, recipe.input_shape)
    for x in inputs:
        reference = gated(x)
        counter.add(dynamic.applied(gated), len(x))
        if float((skipping(x) - reference).abs().max()) > 0.05 * float(reference.abs().max()):
            raise RuntimeError("the skipped network does not compute what the masked one does")
    whole = dynamic.expected(original(recipe).build("meta"), recipe.input_shape)
    theory = whole.dense / float(counter.result().totals.mean())
    timings = latency.interleaved(
        networks, inputs, latency.Protocol(**params["protocol"]), context.device, context.progress
    )
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
            "clock": timing.clock, "stopped": timing.stopped, "machine": timing.telemetry,
            "percentiles": {name: timing.percentiles(name) for name in networks},
        }  # fmt: skip
    load = max(timings[0].telemetry[when]["load"][0] for when in ("before", "after"))
    found.append(Record("machine_load", load / timings[0].telemetry["before"]["processors"], ""))
    if batch == 1 and context.device == "cpu":
        shares = time_shares(skipping, inputs)
        found += [Record(f"time_share_{part}", value, "%") for part, value in shares.items()]
    return Result(records=found, arrays=arrays, facts=facts)


def _channels_last(model: nn.Module) -> latency.Network:
    """``model`` in channels-last layout, the images brought into it as part of the call."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: model(x.contiguous(memory_format=torch.channels_last))


def _normalise(model: nn.Module, images: Tensor) -> None:
    """Gives a gated network with fresh weights the statistics of some images, as training would."""
    layers = gated_layers(model).values()
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    model.train()(images)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum


@torch.inference_mode()
def time_shares(skipping: SkippedNetwork, inputs: list[Tensor], rounds: int = 3) -> dict[str, float]:
    """Where the skipped network's time goes on single images (CPU), in percent: gates, gathering, convolving, the rest."""
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


def gated(
    parent: Step, density: int, schedule: Schedule, seed: int, data: str, work: float, penalty: float,
    options: GateOptions, ungated: tuple[str, ...] = (),
) -> Step:  # fmt: skip
    """The step that trains ``parent``'s network at a density (thousandths), with gates put in where it has none."""
    # named after the network that the gates were put into, not after all densities on the way
    start = parent.name.removeprefix("gated(").partition(", ")[2].removesuffix(")")
    name = f"gated(d={density / 1000:g}, {start if parent.run is run_gated else parent.name})"
    params = {
        "density": density, "schedule": asdict(schedule), "seed": seed, "penalty": penalty,
        "options": asdict(options), "ungated": list(ungated), "label": f"d={density / 1000:g}",
    }  # fmt: skip
    return Step(name, run_gated, (parent,), params, data, parent.device, work, trains=True)


def measured(parent: Step, seed: int, data: str, work: float) -> Step:
    """The step that measures accuracy and MACs of ``parent``'s network."""
    return Step(f"measured({parent.name})", run_measured, (parent,), {"seed": seed}, data, parent.device, work)
