"""The steps of layer-by-layer pruning: error curves, a pruned network, and single-layer curves (records only)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.data.images import ImageSet
from bench.data.stream import ImageStream
from bench.measure import accuracy, macs
from bench.models.recipe import Recipe
from bench.pruning import surgery
from bench.pruning.calibration import Calibration, Sampling, accumulate, calibrate, error_curves, norm_behind
from bench.pruning.fold import folded, unfold
from bench.pruning.graph import Site, find_sites, trace
from bench.pruning.layerwise import Method, prune
from bench.pruning.reconstruction import reconstruct
from bench.pruning.selection import Layer, select
from bench.pruning.walk import Walk
from bench.pruning.widths import MacModel, error_driven, scaled
from bench.steps import Context, Step
from bench.store import Record, Result, digest
from bench.train.steps import checkpoint, network

# the ridge of the exact elimination, in units of the mean diagonal of XX; the reconstruction's is chosen per layer
ELIMINATION_RIDGE = 1e-4


def calibration_images(
    data: ImageSet, count: int | None, seed: int, batch: int, workers: int = 0, progress: bool = False
) -> ImageStream:
    """``count`` training images (all for None) without augmentation, drawn without replacement, in batches."""
    total = len(data.train)
    if count is None or count >= total:
        places = list(range(total))
    else:
        places = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return ImageStream(data.train, places, batch, workers, progress)


def mac_model(model: nn.Module, recipe: Recipe, sites: list[Site]) -> MacModel:
    """Conv MACs of the dense network as a function of the channels kept at ``sites``."""
    counted = macs.count(recipe.build("meta") if ":" not in recipe.builder else model, recipe.input_shape)
    channels = {site.reader: surgery.convolution(model, site.reader).in_channels for site in sites}
    return MacModel(counted.conv, sites, channels)


def _calibration(context: Context, parents: list[Result], params: dict[str, Any], model: nn.Module) -> Calibration:
    """The original network's responses, shared by the steps of this process that sample alike."""
    sampling, count = Sampling(**params["sampling"]), params["images"]

    def make() -> Calibration:
        images = calibration_images(context.data(), count, sampling.seed, sampling.batch)
        return calibrate(model, images, sampling, context.device, progress=context.progress)

    return context.remember(("calibration", context.parents[0], str(params["sampling"]), count), make)  # type: ignore[no-any-return]


def run_curves(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Parent: the dense network.  Facts: for each prunable reader the error with 1 … c channels kept."""
    model, _ = network(parents[0])
    calibration = _calibration(context, parents, params, model)
    curves = error_curves(model, calibration, ELIMINATION_RIDGE, params["samplers"], context.progress)
    return Result(facts={"curves": curves})


def run_pruned(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """Parents: the dense network and, for error-driven widths, its curves.  A pruned, reconstructed checkpoint."""
    model, recipe = network(parents[0])
    calibration = _calibration(context, parents, params, model)
    sites = [site for site in calibration.sites if site.producer is not None or site.reader in params["samplers"]]
    keep = _widths(params["widths"], mac_model(model, recipe, sites), sites, parents)
    settings: dict[str, Any] = params["method"]
    method = Method(**settings)
    pruned, reports = prune(model, calibration, keep, method, context.progress)
    by_reader = {site.reader: site for site in sites}
    widths = dict(recipe.widths)
    for report in reports:
        producer = by_reader[report.reader].producer
        if len(report.kept) < report.channels and producer is not None:
            widths[producer] = len(report.kept)
    samplers, biases = surgery.structure(model, pruned)  # of the stream, also where one sampler follows another
    held_out = [report.held_out_error for report in reports if report.held_out_error is not None]
    found = []
    if held_out:
        error = 100.0 * sum(held_out) / len(held_out)
        rows = int((~calibration.fitted).sum()) * calibration.sampling.positions
        found.append(Record("held_out_error", error, "%", n=rows, seed=calibration.sampling.seed))
    facts = {"layers": [report.to_json() for report in reports], "keep": keep}
    smaller = replace(recipe, widths=widths, samplers=samplers, biases=(*recipe.biases, *biases))
    return checkpoint(pruned.cpu(), smaller, records=found, facts=facts)


def _widths(wanted: dict[str, Any], model: MacModel, sites: list[Site], parents: list[Result]) -> dict[str, int]:
    """Channels kept by reader.

    ``wanted["kind"]`` is ``fixed`` (``keep`` by producer, for a sampler by its reader with ``:in`` behind), ``ratios`` (``ratios``
    by the same names, scaled to ``speedup``) or ``error-driven`` (to ``speedup``).
    """
    reader_of = {site.producer or f"{site.reader}:in": site.reader for site in sites}
    if wanted["kind"] == "fixed":
        return {reader_of[name]: count for name, count in wanted["keep"].items()}
    if wanted["kind"] == "ratios":
        ratios = {reader_of[name]: ratio for name, ratio in wanted["ratios"].items()}
        return scaled(model, ratios, wanted["speedup"])
    allowed = {reader_of[name] for name in wanted["among"]} if wanted.get("among") else set(reader_of.values())
    curves = {reader: curve for reader, curve in parents[1].facts["curves"].items() if reader in allowed}
    return error_driven(model, curves, wanted["speedup"])


@torch.no_grad()
def run_single_layer(context: Context, parents: list[Result], params: dict[str, Any]) -> Result:
    """One layer pruned alone by several criteria to several speed-ups of that layer (CP, figure 4).

    Parent: the dense network.  Speed-up s keeps c/s input channels of ``reader``.  Facts: ``curves[criterion]`` lists
    (speed-up, channels kept, top-k error increase in points, low, high) for k = 1 and 5.
    """
    model, _ = network(parents[0])
    data = context.data()
    sampling = Sampling(**params["sampling"])
    images = calibration_images(data, params["images"], sampling.seed, sampling.batch)
    calibration = calibrate(
        model, images, sampling, context.device, lambda site: site.reader == params["reader"], context.progress
    )
    site = calibration.sites[0]
    assert site.producer is not None
    conv, norm = surgery.convolution(model, site.reader), norm_behind(model, site)
    walk = Walk(model, trace(model), calibration.batches, context.device, sampling.budget)
    moments, held_out = accumulate(calibration, walk, site, conv, compensate=False)
    weight, bias = folded(conv, norm)
    layer = Layer(moments, weight, bias, surgery.convolution(model, site.producer).weight, seed=sampling.seed)
    dense = accuracy.logits(model, data.test, context.device, workers=context.workers, progress=context.progress)
    found = []
    for criterion in params["selections"]:
        for speedup in params["speedups"]:
            keep = max(1, round(conv.in_channels / speedup))
            kept = select(criterion, layer, keep)
            rebuilt = reconstruct(moments, kept, conv.kernel_size, held_out)  # type: ignore[arg-type]
            pruned = copy.deepcopy(model)
            # the other channels' weights are zero: the same outputs as removal, because only this reader sees them
            whole = torch.zeros_like(weight)
            whole[:, kept] = rebuilt.weight
            unfold(surgery.convolution(pruned, site.reader), norm_behind(pruned, site), whole, rebuilt.bias)
            outputs = accuracy.logits(
                pruned, data.test, context.device, workers=context.workers, progress=context.progress
            )
            for record in accuracy.compare([outputs], [dense], data.test.labels):
                if record.metric.endswith("err_increase") or record.metric == "kl":
                    metric = f"{record.metric} ({criterion})"
                    found.append(replace(record, metric=metric, x=conv.in_channels / keep, seed=sampling.seed))
    return Result(records=found)


def prunable(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Names for widths in a recipe's network: producers whose filters can go, and readers that could get a sampler.

    Samplers are offered to 1x1 convolutions that begin a residual branch.
    """
    model, sites = _dense_sites(recipe)
    samplers = [
        site.reader
        for site in sites
        if site.producer is None and site.branch_end is not None
        and surgery.convolution(model, site.reader).kernel_size == (1, 1)
    ]  # fmt: skip
    return [site.producer for site in sites if site.producer is not None], samplers


def ratio_widths(recipe: Recipe, ratios: dict[str, float], speedup: float) -> dict[str, int]:
    """Widths by producer in proportion to ``ratios``, scaled until conv MACs reach ``speedup``."""
    model, sites = _dense_sites(recipe)
    chosen = {site.producer: site.reader for site in sites if site.producer in ratios}
    keep = scaled(
        mac_model(model, recipe, [site for site in sites if site.producer in ratios]),
        {reader: ratios[producer] for producer, reader in chosen.items() if producer is not None},
        speedup,
    )
    return {producer: keep[reader] for producer, reader in chosen.items() if producer is not None}


def dense_macs(recipe: Recipe) -> int:
    """Conv and fc MACs of the recipe's dense network for one image, counted once in a process."""
    key = digest(recipe.dense().to_json())
    if key not in _COUNTED:
        _COUNTED[key] = macs.count(recipe.dense().build("meta"), recipe.input_shape).total("conv+fc")
    return _COUNTED[key]


_COUNTED: dict[str, int] = {}
_SITES: dict[str, tuple[nn.Module, list[Site]]] = {}


def _dense_sites(recipe: Recipe) -> tuple[nn.Module, list[Site]]:
    """The dense network (on ``meta`` where it is one of ours) and its sites, found once in a process."""
    key = digest(recipe.dense().to_json())
    if key not in _SITES:
        model = recipe.dense().build("meta" if ":" not in recipe.builder else "cpu")
        _SITES[key] = model, find_sites(model, trace(model))
    return _SITES[key]


def curves(
    dense: Step, sampling: dict[str, Any], images: int | None, samplers: list[str], data: str, work: float
) -> Step:
    """The step that measures the dense network's error curves."""
    params = {"sampling": sampling, "images": images, "samplers": samplers}
    return Step(f"curves(seed {sampling['seed']})", run_curves, (dense,), params, data, dense.device, work)


def pruned(
    dense: Step, error_curves_: Step | None, method: dict[str, Any], widths: dict[str, Any], sampling: dict[str, Any],
    images: int | None, samplers: list[str], data: str, work: float,
) -> Step:  # fmt: skip
    """The step that prunes the dense network layer by layer."""
    params = {"method": method, "widths": widths, "sampling": sampling, "images": images, "samplers": samplers}
    target = f"{widths['speedup']:g}x" if "speedup" in widths else "fixed widths"
    extra = ", full" if method["rectify"] else ""
    name = f"pruned({method['selection']}, {target if widths['kind'] == 'fixed' else widths['kind'] + ' ' + target}{extra}, seed {sampling['seed']})"
    parents = (dense,) if error_curves_ is None else (dense, error_curves_)
    return Step(name, run_pruned, parents, params, data, dense.device, work)
