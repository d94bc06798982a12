"""Layer-by-layer channel pruning: select, remove, reconstruct, go on (CP's walk through a network).

Asymmetric: inputs come from the network as pruned so far, target responses from the original one, so errors do not pile
up from layer to layer.  ThiNet's factors are fitted in the same way; its released code takes inputs and responses both
from the network as it is by then, which is a walk of its own for each layer, over the network that the last one left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench import memory
from bench.errors import UserError
from bench.pruning import surgery
from bench.pruning.apoz import counted, rectifier
from bench.pruning.calibration import Calibration, accumulate, accumulate_shared, norm_behind, rectify
from bench.pruning.faithful import copied
from bench.pruning.fold import folded, unfold
from bench.pruning.graph import Site, trace
from bench.pruning.reconstruction import RIDGES, Reconstruction, judged, reconstruct, response_statistics
from bench.pruning.selection import Layer, select
from bench.pruning.thinet import OUTPUTS, Draws, rescale
from bench.pruning.walk import Walk
from bench.stages import Stages

_ROWS_PER_UNKNOWN = 10
LEAST_SQUARES, RESCALE = "least squares", "rescale"


@dataclass(frozen=True)
class LayerReport:
    """What happened at one reader: channels before and kept, the ridge, errors as fractions of the response variance.

    ``error`` is on the fitted rows, ``held_out_error`` on rows of other training images (held out, or by
    cross-validation).  ``unknowns`` are the least squares' inputs.  An infinite ridge (null in JSON) means that the old
    weights stayed, but for a factor per channel.
    """

    reader: str
    producer: str | None
    channels: int
    kept: list[int]
    ridge: float
    error: float
    held_out_error: float | None
    unknowns: int = 0

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self) | {"ridge": self.ridge if math.isfinite(self.ridge) else None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LayerReport:
        """The inverse of :meth:`to_json`."""
        return cls(**{**value, "ridge": math.inf if value["ridge"] is None else value["ridge"]})


@dataclass(frozen=True)
class Method:
    """How to prune: the ``selection`` criterion, ``compensate`` the residual shortcut's error, ``refit`` also the
    readers that keep all channels (the authors' code does: "rank == c, least squares still runs").  ``rectify`` rounds
    of new targets follow the least squares wherever a ReLU comes next (ours).  Without ``reconstruct`` the weights stay
    what they were (criteria that only rank channels: random, weight sum).  Channels with several readers end no
    residual branch: there ``compensate`` and ``rectify`` do nothing.

    ``rebuild`` says how: "least squares" of all weights (CP's), or "rescale" with one factor for each kept channel
    (ThiNet's; bias and batch norm stay).  ``outputs`` says what ThiNet's criteria and factors look at: "all" output
    filters at each sampled position, or "one" that is drawn for each, as published; the others always look at all.
    Raises :class:`UserError` for options that do not go together.
    """

    selection: str = "lasso"
    compensate: bool = True
    refit: bool = False
    rectify: int = 0
    ridges: tuple[float, ...] = RIDGES
    options: tuple[tuple[str, str], ...] = ()
    reconstruct: bool = True
    rebuild: str = LEAST_SQUARES
    outputs: str = "all"

    def __post_init__(self) -> None:
        if self.rebuild not in (LEAST_SQUARES, RESCALE):
            raise UserError(f"unknown rebuild {self.rebuild!r}: choose one of {LEAST_SQUARES}, {RESCALE}")
        if self.outputs not in OUTPUTS:
            raise UserError(f"unknown outputs {self.outputs!r}: choose one of {', '.join(OUTPUTS)}")
        if self.rebuild == RESCALE and self.rectify:
            raise UserError("rectify follows the least squares of all weights: leave it out with rebuild='rescale'")
        if self.rebuild == RESCALE and not self.reconstruct:
            raise UserError("without reconstruct nothing is rebuilt: leave one of reconstruct=False and rebuild out")


def few_images(calibration: Calibration, reports: Sequence[LayerReport]) -> list[str]:
    """A warning with its numbers where the calibration is too small to say much; none where it is not.

    Ten rows for each unknown of the widest layer's least squares are wanted (the authors: 50,000 for 4,608).
    """
    rows = int(calibration.fitted.sum()) * calibration.sampling.positions
    unknowns = max((report.unknowns for report in reports), default=0)
    if rows >= _ROWS_PER_UNKNOWN * unknowns:
        return []
    held_out = [report.held_out_error for report in reports if report.held_out_error is not None]
    told = f", held-out error {median(held_out):.2f} of the responses' variance in the median" if held_out else ""
    kept = sum(math.isinf(report.ridge) for report in reports)
    enough = -(-_ROWS_PER_UNKNOWN * unknowns // calibration.sampling.positions)
    return [
        f"few calibration images: {len(calibration.fitted)} give {rows:,} rows for up to {unknowns:,} unknowns of a "
        f"layer{told}; {kept} of {len(reports)} layers keep their old weights: give {enough:,} images or more"
    ]


@torch.no_grad()
def prune(
    original: nn.Module,
    calibration: Calibration,
    keep: Mapping[str, int],
    method: Method,
    progress: bool = True,
    stages: Stages | None = None,
) -> tuple[nn.Module, list[LayerReport]]:
    """A pruned and reconstructed copy of ``original``, in evaluation mode, and a report for each reader.

    ``keep`` gives the input channels kept at each reader; readers without an entry keep all.  Where the channels belong
    to a stream the reader gets a channel sampler, elsewhere the producer loses its filters.  ``stages`` keep the
    network after each reader, and an interrupted run goes on behind the last one that they hold.
    """
    # the walk never changes fully connected weights, so they are shared with the original until it is over: VGG-16's
    # are half a gigabyte
    shared = [p for m in original.modules() if isinstance(m, nn.Linear) for p in m.parameters()]
    model = copied(original, {id(p): p for p in shared}).to(calibration.device).eval()
    graph = trace(model)
    if method.selection == "apoz":
        for site in calibration.sites:
            channels = surgery.convolution(model, site.reader).in_channels
            if keep.get(site.reader, channels) < channels:
                rectifier(model, graph, site.reader)  # raises where there is none, before the walk
    done, reports = _restore(model, calibration, stages) if stages is not None else (0, [])
    walk = Walk(model, graph, calibration.batches, calibration.device, calibration.sampling.budget)
    for place, site in enumerate(tqdm(calibration.sites, desc=method.selection, disable=not progress, leave=False)):
        if place < done:
            continue
        channels = surgery.convolution(model, site.reader).in_channels
        wanted = keep.get(site.reader, channels)
        if wanted < channels or method.refit:
            seed = 1000 * calibration.sampling.seed + place
            if site.others:
                reports += _prune_shared(model, calibration, walk, site, wanted, method, seed)
            else:
                reports.append(_prune_site(model, calibration, walk, site, wanted, method, seed))
            if stages is not None:
                _keep(original, model, reports, place + 1, stages)
            memory.release()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if any(parameter is other for other in shared):
                setattr(module, name, copy.deepcopy(parameter))
    return model, reports


def _keep(original: nn.Module, model: nn.Module, reports: list[LayerReport], done: int, stages: Stages) -> None:
    """Stores the network as pruned so far (fully connected weights, which do not change, are left out)."""
    samplers, biases = surgery.structure(original, model)
    fixed = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for key, _ in module.named_parameters(recurse=False)
    }
    state = {name: value for name, value in model.state_dict().items() if name not in fixed}
    facts = {
        "done": done,
        "samplers": samplers,
        "biases": biases,
        "reports": [report.to_json() for report in reports],
    }
    stages.put("layers", facts, state)


def _restore(model: nn.Module, calibration: Calibration, stages: Stages) -> tuple[int, list[LayerReport]]:
    """Brings ``model`` to where an interrupted run stood: how many sites are done, and their reports."""
    stored = stages.get("layers")
    if stored is None:
        return 0, []
    facts, state = stored
    reports = [LayerReport.from_json(report) for report in facts["reports"]]
    widths = {
        report.producer: len(report.kept)
        for report in reports
        if report.producer is not None and len(report.kept) < report.channels
    }
    for name, channels in facts["samplers"].items():
        surgery.sample_stream(model, name, channels)
    surgery.shrink(model, tuple(calibration.batches[0].shape[1:]), widths)
    surgery.add_biases(model, facts["biases"])
    model.load_state_dict(state, strict=False)
    return facts["done"], reports


def _prune_site(
    model: nn.Module, calibration: Calibration, walk: Walk, site: Site, wanted: int, method: Method, seed: int
) -> LayerReport:
    """One layer of the walk; the moments live no longer than this call."""
    conv, norm = surgery.convolution(model, site.reader), norm_behind(model, site)
    channels = conv.in_channels
    weight, bias = folded(conv, norm)
    draws = _draws(calibration, method, weight, bias, seed)
    counts = method.selection == "apoz" and wanted < channels
    with counted(calibration, walk, site.reader) if counts else nullcontext() as zeros:
        sampled = accumulate(calibration, walk, site, conv, method.compensate, draws)
    moments = sampled.fitted
    producer = None if site.producer is None else surgery.convolution(model, site.producer)
    layer = Layer(
        moments,
        weight,
        bias,
        None if producer is None else producer.weight.detach(),
        seed=seed,
        options=dict(method.options),
        drawn=None if draws is None else draws.found[0],
        zeros=None if zeros is None else zeros.shares,
    )
    kept = select(method.selection, layer, wanted)
    if not method.reconstruct:
        rebuilt = judged(Reconstruction(weight[:, kept], bias, math.inf, 0.0, None), sampled, kept)
        _remove(model, calibration, walk, site, channels, kept)
        return _report(site, site, channels, kept, rebuilt)
    if method.rebuild == RESCALE:
        factors, rebuilt = rescale(sampled, kept, weight, bias, () if draws is None else draws.found)
        _remove(model, calibration, walk, site, channels, kept)
        _multiply(surgery.convolution(model, site.reader), factors)
        return _report(site, site, channels, kept, rebuilt, unknowns=len(kept))
    kernel = (conv.kernel_size[0], conv.kernel_size[1])
    rebuilt = reconstruct(sampled, kept, kernel, weight, method.ridges)
    rounds = method.rectify if site.rectified and (site.shortcut is None or method.compensate) else 0
    for _ in range(rounds):
        new = rectify(calibration, walk, site, conv, sampled, kept, rebuilt.weight, rebuilt.bias)
        # the errors that are reported are about the responses, whatever the targets are
        rebuilt = reconstruct(new, kept, kernel, weight, method.ridges, reported=sampled)
    _remove(model, calibration, walk, site, channels, kept)
    seen = response_statistics(moments, kept, rebuilt.weight)
    unfold(surgery.convolution(model, site.reader), norm, rebuilt.weight, rebuilt.bias, seen)
    return _report(site, site, channels, kept, rebuilt)


def _remove(model: nn.Module, calibration: Calibration, walk: Walk, site: Site, channels: int, kept: list[int]) -> None:
    """The producer loses the filters that are not kept; behind a stream the reader gets a channel sampler."""
    if site.producer is None:
        if len(kept) < channels:
            surgery.sample_input(model, site.reader, kept)
        return
    shape = tuple(calibration.batches[0].shape[1:])
    surgery.remove_filters(model, shape, site.producer, sorted(set(range(channels)) - set(kept)))
    walk.select([reader.reader for reader in site.readers], torch.as_tensor(kept))


def _draws(calibration: Calibration, method: Method, weight: Tensor, bias: Tensor, seed: int) -> Draws | None:
    """The paper's rows of a reader (n x c x kh x kw and n) where the method looks at one output filter a position."""
    if method.outputs == "all":
        return None
    rows = len(calibration.fitted) * calibration.sampling.positions
    return Draws(weight, bias, rows, 1 + len(calibration.judges), seed)


def _multiply(conv: nn.Conv2d, factors: Tensor) -> None:
    """Each input channel's weights times its factor (c'), in place; a batch norm behind stays, as in ThiNet."""
    conv.weight.copy_(conv.weight.to(torch.float64) * factors[:, None, None])


def _report(
    site: Site, reader: Site, channels: int, kept: list[int], rebuilt: Reconstruction, unknowns: int | None = None
) -> LayerReport:
    inputs = rebuilt.weight[0].numel() if unknowns is None else unknowns
    return LayerReport(
        reader.reader, site.producer, channels, kept, rebuilt.ridge, rebuilt.error, rebuilt.held_out_error, inputs
    )


def _prune_shared(
    model: nn.Module, calibration: Calibration, walk: Walk, site: Site, wanted: int, method: Method, seed: int
) -> list[LayerReport]:
    """Channels with several readers: chosen for all of them together, then every reader is rebuilt.

    What stands between the channels and a reader may couple them (SSD's L2Norm), so the moments for the least squares
    are taken again once the channels have gone.
    """
    readers = [(reader, surgery.convolution(model, reader.reader)) for reader in site.readers]
    channels = readers[0][1].in_channels
    maps = [folded(conv, norm_behind(model, reader)) for reader, conv in readers]
    draws = [_draws(calibration, method, *map_, seed) for map_ in maps]
    counts = method.selection == "apoz" and wanted < channels
    with counted(calibration, walk, site.reader) if counts else nullcontext() as zeros:
        before = accumulate_shared(calibration, walk, site, [conv for _, conv in readers], draws)
    layers = [
        Layer(
            sampled.fitted,
            *map_,
            seed=seed,
            options=dict(method.options),
            drawn=None if drawn is None else drawn.found[0],
            zeros=None if zeros is None else zeros.shares,
        )
        for map_, sampled, drawn in zip(maps, before, draws, strict=True)
    ]
    assert site.producer is not None
    filters = surgery.convolution(model, site.producer).weight.detach()
    kept = select(method.selection, replace(layers[0], filters=filters, others=tuple(layers[1:])), wanted)
    _remove(model, calibration, walk, site, channels, kept)
    convs = [surgery.convolution(model, reader.reader) for reader in site.readers]
    reports = []
    every = list(range(len(kept)))
    maps = [folded(conv, norm_behind(model, reader)) for reader, conv in zip(site.readers, convs, strict=True)]
    draws = [_draws(calibration, method, *map_, seed) for map_ in maps]
    after = accumulate_shared(calibration, walk, site, convs, draws)
    unknowns = len(kept) if method.rebuild == RESCALE else None
    for reader, conv, sampled, (weight, bias), drawn in zip(site.readers, convs, after, maps, draws, strict=True):
        norm = norm_behind(model, reader)
        if method.rebuild == RESCALE:
            factors, rebuilt = rescale(sampled, every, weight, bias, () if drawn is None else drawn.found)
            _multiply(conv, factors)
        elif method.reconstruct:
            kernel = (conv.kernel_size[0], conv.kernel_size[1])
            rebuilt = reconstruct(sampled, every, kernel, weight, method.ridges)
            unfold(conv, norm, rebuilt.weight, rebuilt.bias, response_statistics(sampled.fitted, every, rebuilt.weight))
        else:
            rebuilt = judged(Reconstruction(weight, bias, math.inf, 0.0, None), sampled, every)
        reports.append(_report(site, reader, channels, kept, rebuilt, unknowns))
    return reports
