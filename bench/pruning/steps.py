"""The steps of layer-by-layer pruning: error curves, a pruned network, and single-layer curves (records only)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from bench.data.images import ImageSet
from bench.data.stream import ImageStream
from bench.measure import accuracy, macs
from bench.measure.steps import missing_of
from bench.metrics import Metric
from bench.models.checkpoint import checkpoint, network, takes_channels_last
from bench.models.recipe import Recipe
from bench.pruning import surgery
from bench.pruning.apoz import counted
from bench.pruning.calibration import Calibration, Sampling, accumulate, calibrate, error_curves, norm_behind
from bench.pruning.fold import folded, unfold
from bench.pruning.graph import Site, find_sites, trace
from bench.pruning.layerwise import RESCALE, Method, prune
from bench.pruning.reconstruction import reconstruct
from bench.pruning.selection import Layer, select
from bench.pruning.walk import Walk
from bench.pruning.widths import MacModel, error_driven, scaled
from bench.steps import RATES, Context, DataValue, Kind, Step, make_step
from bench.store import Record, Result, digest

METRICS = (
    Metric(
        "held_out_error",
        "reconstruction error",
        "%",
        2,
        "Share of the responses' variance that the layers which lose channels miss, on training rows held out from the "
        "fit; mean over these layers.",
        "lower",
        of="rows",
    ),
)

# the ridge of the exact elimination, in units of the mean diagonal of XX; the reconstruction's is chosen per layer
ELIMINATION_RIDGE = 1e-4


@dataclass(frozen=True)
class Fixed:
    """``keep`` filters by producer; a sampler's by its reader with ``:in`` behind."""

    keep: Mapping[str, int]


@dataclass(frozen=True)
class Ratios:
    """Widths in proportion to ``ratios`` (names as in :class:`Fixed`), scaled until conv MACs reach ``speedup``."""

    ratios: Mapping[str, float]
    speedup: float


@dataclass(frozen=True)
class ErrorDriven:
    """Widths that the error curves choose for ``speedup``."""

    speedup: float


Widths = Fixed | Ratios | ErrorDriven


@dataclass(frozen=True)
class CurveMeasuring:
    """Error curves of the readers behind a producer and of the ``samplers``, on ``images`` training images."""

    sampling: Sampling
    images: int | None
    samplers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pruning:
    """How a network is pruned to which ``widths``, on ``images`` training images (None: all); who gets samplers.

    ``balanced`` images are spread evenly over the classes.  With ``alone`` the network is asked for the responses of
    the layers named in ``widths`` only, where it is pruned a few layers at a time (other positions are drawn then).
    """

    method: Method
    widths: Widths
    sampling: Sampling
    images: int | None
    samplers: tuple[str, ...] = ()
    balanced: bool = False
    alone: bool = False


@dataclass(frozen=True)
class SingleLayer:
    """The layer ``reader`` pruned alone by each of ``selections`` to each of ``speedups``."""

    reader: str
    selections: tuple[str, ...]
    speedups: tuple[float, ...]
    sampling: Sampling
    images: int | None


def calibration_images(
    data: ImageSet,
    count: int | None,
    seed: int,
    batch: int,
    workers: int = 0,
    progress: bool = False,
    balanced: bool = False,
) -> ImageStream:
    """``count`` training images (all for None) without augmentation, drawn without replacement, in batches.

    ``balanced``: as many of each class, but for one where ``count`` is no multiple and for classes that have fewer.
    """
    total = len(data.train)
    if count is None or count >= total:
        places = list(range(total))
    else:
        places = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
        if balanced:  # the first of each class that is drawn goes before the second of any, and so on
            labels, drawn = data.train.labels.tolist(), Counter[int]()
            turns = {}
            for place in places:
                turns[place] = drawn[labels[place]]
                drawn[labels[place]] += 1
            places.sort(key=turns.__getitem__)
        places = places[:count]
    return ImageStream(data.train, places, batch, workers, progress)


def mac_model(model: nn.Module, recipe: Recipe, sites: list[Site]) -> MacModel:
    """Conv MACs of the dense network as a function of the channels kept at ``sites``."""
    counted = macs.count(recipe.build("meta") if ":" not in recipe.builder else model, recipe.input_shape)
    channels = {site.reader: surgery.convolution(model, site.reader).in_channels for site in sites}
    return MacModel(counted.conv, sites, channels)


def _calibration(
    context: Context,
    sampling: Sampling,
    count: int | None,
    model: nn.Module,
    balanced: bool = False,
    names: tuple[str, ...] | None = None,
) -> Calibration:
    """The original network's responses, shared by the steps of this process that sample alike.

    ``names`` (as in :class:`Fixed`) are the layers that are asked (None: all).
    """

    def make() -> Calibration:
        images = calibration_images(context.data(), count, sampling.seed, sampling.batch, balanced=balanced)
        wanted = (lambda site: True) if names is None else (lambda site: _name(site) in names)
        return calibrate(model, images, sampling, context.device, wanted, context.progress)

    key = ("calibration", context.parents[0], sampling, count, balanced, names)
    return context.remember(key, make)  # type: ignore[no-any-return]


def _name(site: Site) -> str:
    """A site in :class:`Fixed`: its producer, or its reader with ``:in`` behind."""
    return site.producer or f"{site.reader}:in"


def run_curves(context: Context, parents: list[Result], params: CurveMeasuring) -> Result:
    """Parent: the dense network.  Facts: for each prunable reader the error with 1 … c channels kept."""
    model, _ = network(parents[0])
    calibration = _calibration(context, params.sampling, params.images, model)
    curves = error_curves(model, calibration, ELIMINATION_RIDGE, params.samplers, context.progress)
    return Result(facts={"curves": curves})


def run_pruned(context: Context, parents: list[Result], params: Pruning) -> Result:
    """Parents: the dense network and, for error-driven widths, its curves.  A pruned, reconstructed checkpoint."""
    model, recipe = network(parents[0])
    names = _names(params.widths) if params.alone else None
    calibration = _calibration(context, params.sampling, params.images, model, params.balanced, names)
    sites = [site for site in calibration.sites if site.producer is not None or site.reader in params.samplers]
    keep = _keep(params.widths, mac_model(model, recipe, sites), sites, parents)
    pruned, reports = prune(model, calibration, keep, params.method, context.progress)
    widths = {
        report.producer: len(report.kept)
        for report in reports
        if len(report.kept) < report.channels and report.producer is not None
    }
    samplers, biases = surgery.structure(model, pruned)  # of the stream, also where one sampler follows another
    # layers that lose channels only: a method that also refits the others would be averaged over other layers
    held_out = [
        report.held_out_error
        for report in reports
        if report.held_out_error is not None and len(report.kept) < report.channels
    ]
    found = []
    if held_out:
        error = 100.0 * sum(held_out) / len(held_out)
        rows = sum(int(flags.sum()) for flags in calibration.judges) * calibration.sampling.positions
        found.append(Record("held_out_error", error, "%", n=rows, seed=calibration.sampling.seed))
    facts = {"layers": [report.to_json() for report in reports], "keep": keep}
    smaller = recipe.sampled(samplers).removed(widths).biased(biases)
    return checkpoint(pruned.cpu(), smaller, records=found, facts=facts)


def _names(wanted: Widths) -> tuple[str, ...] | None:
    """The layers that the widths name, or None where they are still to be chosen."""
    if isinstance(wanted, ErrorDriven):
        return None
    return tuple(sorted(wanted.keep if isinstance(wanted, Fixed) else wanted.ratios))


def _keep(wanted: Widths, model: MacModel, sites: list[Site], parents: list[Result]) -> dict[str, int]:
    """Channels kept by reader."""
    reader_of = {_name(site): site.reader for site in sites}
    if isinstance(wanted, Fixed):
        return {reader_of[name]: count for name, count in wanted.keep.items()}
    if isinstance(wanted, Ratios):
        return scaled(model, {reader_of[name]: ratio for name, ratio in wanted.ratios.items()}, wanted.speedup)
    allowed = set(reader_of.values())
    curves = {reader: curve for reader, curve in parents[1].facts["curves"].items() if reader in allowed}
    return error_driven(model, curves, wanted.speedup)


@torch.no_grad()
def run_single_layer(context: Context, parents: list[Result], params: SingleLayer) -> Result:
    """One layer pruned alone by several criteria to several speed-ups of that layer (CP, figure 4).

    Parent: the dense network.  Speed-up s keeps c/s input channels of ``reader``.  Records: one for each metric,
    criterion (the series) and speed-up of the layer (x).
    """
    model, recipe = network(parents[0])
    data = context.data()
    sampling = params.sampling

    def outputs_of(net: nn.Module) -> torch.Tensor:
        return accuracy.logits(
            net,
            data.test,
            context.device,
            workers=context.workers,
            progress=context.progress,
            channels_last=takes_channels_last(recipe),
        )

    images = calibration_images(data, params.images, sampling.seed, sampling.batch)
    calibration = calibrate(
        model, images, sampling, context.device, lambda site: site.reader == params.reader, context.progress
    )
    site = calibration.sites[0]
    assert site.producer is not None
    conv, norm = surgery.convolution(model, site.reader), norm_behind(model, site)
    walk = Walk(model, trace(model), calibration.batches, context.device, sampling.budget)
    with counted(calibration, walk, site.reader) if "apoz" in params.selections else nullcontext() as zeros:
        sampled = accumulate(calibration, walk, site, conv, compensate=False)
    weight, bias = folded(conv, norm)
    layer = Layer(
        sampled.fitted,
        weight,
        bias,
        surgery.convolution(model, site.producer).weight,
        seed=sampling.seed,
        zeros=None if zeros is None else zeros.shares,
    )
    dense = outputs_of(model)
    found = []
    for criterion in params.selections:
        for speedup in params.speedups:
            keep = max(1, round(conv.in_channels / speedup))
            kept = select(criterion, layer, keep)
            rebuilt = reconstruct(sampled, kept, (conv.kernel_size[0], conv.kernel_size[1]), weight)
            pruned = copy.deepcopy(model)
            # the other channels' weights are zero: the same outputs as removal, because only this reader sees them
            whole = torch.zeros_like(weight)
            whole[:, kept] = rebuilt.weight
            unfold(surgery.convolution(pruned, site.reader), norm_behind(pruned, site), whole, rebuilt.bias)
            outputs = outputs_of(pruned)
            found_here = accuracy.compare([outputs], [dense], data.test.labels, missing_of(data), units=data.test.units)
            for record in found_here:
                if record.metric.endswith("err_increase") or record.metric == "kl":
                    speedup_ = conv.in_channels / keep
                    found.append(replace(record, series=criterion, x=speedup_, seed=sampling.seed))
    return Result(records=found)


def prunable(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Names for widths in a recipe's network: producers whose filters can go, and readers that could get a sampler.

    Samplers are offered to 1x1 convolutions that begin a residual branch.
    """
    model, sites = dense_sites(recipe)
    samplers = [
        site.reader
        for site in sites
        if site.producer is None
        and site.branch_end is not None
        and surgery.convolution(model, site.reader).kernel_size == (1, 1)
    ]
    return [site.producer for site in sites if site.producer is not None], samplers


def ratio_widths(recipe: Recipe, ratios: dict[str, float], speedup: float) -> dict[str, int]:
    """Widths by producer in proportion to ``ratios``, scaled until conv MACs reach ``speedup``."""
    model, sites = dense_sites(recipe)
    chosen = {site.producer: site.reader for site in sites if site.producer in ratios}
    keep = scaled(
        mac_model(model, recipe, [site for site in sites if site.producer in ratios]),
        {reader: ratios[producer] for producer, reader in chosen.items() if producer is not None},
        speedup,
    )
    return {producer: keep[reader] for producer, reader in chosen.items() if producer is not None}


def dense_macs(recipe: Recipe) -> int:
    """Conv and fc MACs of the recipe's dense network for one image, counted once in a process."""
    key = digest(recipe.base.to_json())
    if key not in _COUNTED:
        _COUNTED[key] = macs.count(recipe.base.build("meta"), recipe.input_shape).total("conv+fc")
    return _COUNTED[key]


_COUNTED: dict[str, int] = {}
_SITES: dict[tuple[str, bool], tuple[nn.Module, list[Site]]] = {}


def dense_sites(recipe: Recipe, shared: bool = False) -> tuple[nn.Module, list[Site]]:
    """The dense network (on ``meta`` where it is one of ours) and its sites, ``shared`` as in :func:`find_sites`.

    Found once in a process: nobody changes them.
    """
    key = digest(recipe.base.to_json()), shared
    if key not in _SITES:
        model = recipe.base.build("meta" if ":" not in recipe.builder else "cpu")
        _SITES[key] = model, find_sites(model, trace(model), shared)
    return _SITES[key]


def curves(parent: Step, params: CurveMeasuring, data: DataValue, work: float) -> Step:
    """The step that measures the dense network's error curves."""
    name = f"curves(seed {params.sampling.seed}, {parent.name})"
    return make_step(Kind.PRUNE, name, run_curves, params, [parent], data=data, device=parent.device, work=work)


def pruned(
    parent: Step, error_curves_: Step | None, params: Pruning, data: DataValue, work: float, target: str = ""
) -> Step:
    """The step that prunes the dense network layer by layer; ``target`` names its widths for people."""
    words = [params.method.selection, target or _target(params.widths)]
    words += ["without compensation"] if not params.method.compensate else []
    words += ["full"] if params.method.rectify else []
    words += [params.method.rebuild] if params.method.rebuild == RESCALE else []
    words += ["one filter a position"] if params.method.outputs == "one" else []
    name = f"pruned({', '.join(words)}, seed {params.sampling.seed}, {parent.name})"
    parents = [parent] if error_curves_ is None else [parent, error_curves_]
    return make_step(Kind.PRUNE, name, run_pruned, params, parents, data=data, device=parent.device, work=work)


def single_layer(parent: Step, params: SingleLayer, data: DataValue, work: float) -> Step:
    """The step that prunes one layer of the dense network alone, by several criteria.

    It keeps no network, it measures many: an evaluation, which nights do anew.
    """
    name = f"single layer({params.reader})"
    device, rate = parent.device, RATES[Kind.PRUNE]
    return make_step(
        Kind.EVALUATE, name, run_single_layer, params, [parent], data=data, device=device, work=work, rate=rate
    )


def _target(widths: Widths) -> str:
    if isinstance(widths, Fixed):
        return "fixed widths"
    return f"{'ratios' if isinstance(widths, Ratios) else 'error-driven'} {widths.speedup:g}x"
