"""What layer-by-layer pruning asks of the original network: responses at sampled positions, and error curves.

Responses depend on the network, the images and the seed alone, so several prunings with one seed share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench import memory
from bench.data.stream import ImageStream
from bench.errors import UserError
from bench.pruning.exact import eliminate
from bench.pruning.faithful import check_traced
from bench.pruning.fold import folded
from bench.pruning.graph import Site, find_sites, left_out, trace
from bench.pruning.moments import Moments, output_size, patches, sample_positions
from bench.pruning.reconstruction import Sampled, columns_of
from bench.pruning.rows import Rows, Spool, squares_about_mean
from bench.pruning.surgery import convolution
from bench.pruning.thinet import Draws
from bench.pruning.walk import Walk

_CHECKED = 8  # images on which the traced network is compared with the given one


@dataclass(frozen=True)
class Sampling:
    """How calibration samples: training images, ``positions`` outputs of each per layer, a ``held_out`` share.

    Held-out images choose the ridge and judge the reconstruction; they are never fitted.  Where they would be fewer
    than ``least_held_out``, all images are fitted and cross-validation over ``folds`` parts of them does both instead
    (0: no cross-validation).  ``batch`` images run at once; ``budget`` bytes of activations may be kept between layers,
    and ``resident`` bytes of responses in memory (the rest lies in temporary files).
    """

    positions: int = 10
    held_out: float = 0.1
    least_held_out: int = 10
    folds: int = 5
    batch: int = 64
    budget: int = 1_500_000_000
    seed: int = 0
    resident: int = 1_000_000_000


@dataclass
class SiteResponses:
    """Of one reader in the original network: sampled positions (images x count x 2) and what was seen there.

    ``response`` is rows x n (batch norm folded, before any activation), ``shortcut`` rows x n the value that is added
    to it at the end of a residual branch (None elsewhere); rows are ordered by image, then position.
    """

    positions: Tensor
    response: Rows
    shortcut: Rows | None

    @property
    def variance(self) -> float:
        """Sum of squares of the responses about their means, over all rows and outputs."""
        return squares_about_mean(self.response)

    @property
    def block_variance(self) -> float:
        """The same of what the block hands on: response plus shortcut."""
        return squares_about_mean(self.response, self.shortcut)


@dataclass
class Calibration:
    """The images (as batches), the sites, and the original network's responses, ready for any number of prunings."""

    batches: Sequence[Tensor]
    fitted: Tensor  # one flag per image: fitted or held out
    judges: list[Tensor]  # one flag per image each: the images that are held out, or the folds of the fitted ones
    sites: list[Site]
    responses: dict[str, SiteResponses]
    sampling: Sampling
    device: str
    left_out: list[tuple[str, str]]  # layers that do not compute what their class says, with the reason

    @property
    def crossed(self) -> bool:
        """Whether the judges are folds of the fitted images."""
        return bool(self.fitted.all()) and len(self.judges) > 1

    def groups(self, first: int, last: int) -> list[Tensor]:
        """The rows of the images from ``first`` up to ``last`` as flags: fitted, then each judge's."""
        repeats = self.sampling.positions
        return [flags[first:last].repeat_interleave(repeats).to(self.device) for flags in (self.fitted, *self.judges)]

    def moments(self, conv: nn.Conv2d) -> list[Moments]:
        """Empty moments of a convolution, one for each of :meth:`groups`."""
        columns = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        return [Moments(columns, conv.out_channels, self.device) for _ in range(1 + len(self.judges))]


def norm_behind(model: nn.Module, site: Site) -> nn.BatchNorm2d | None:
    """The batch norm right behind the site's reader, or None."""
    return None if site.batch_norm is None else model.get_submodule(site.batch_norm)  # type: ignore[return-value]


def calibrate(
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    sampling: Sampling,
    device: str = "cpu",
    wanted: Callable[[Site], bool] = lambda site: True,
    progress: bool = True,
    shared: bool = False,
    spool: Path | None = None,
) -> Calibration:
    """Runs the original network once and stores its responses at the sampled positions of the wanted sites.

    ``shared`` as in :func:`find_sites`.

    ``images`` is one tensor N x 3 x H x W, preprocessed, or a sequence of batches (an :class:`ImageStream` keeps them
    out of memory).  With ``spool`` the responses lie in that folder, and those that an interrupted calibration has left
    there are used: the caller sees to it that they belong to this network, these images and this sampling.  Raises
    :class:`UserError` without images, without a convolution that could be pruned, or where the traced network computes
    something else.
    """
    batches: Sequence[Tensor] = torch.split(images, sampling.batch) if isinstance(images, Tensor) else images
    count = images.images if isinstance(images, ImageStream) else sum(len(batch) for batch in batches)
    if not count:
        raise UserError("no calibration images: the training split is empty")
    model = model.to(device).eval()
    graph = trace(model)
    sites = [site for site in find_sites(model, graph, shared) if wanted(site)]
    faults = left_out(model, graph)
    if not sites:
        raise UserError(f"the network has no convolution behind another one: nothing to prune{because(faults)}")
    check_traced(model, graph, batches[0][:_CHECKED].to(device))
    generator = torch.Generator().manual_seed(sampling.seed)
    fitted, judges = _split(count, sampling, generator)
    walk = Walk(model, graph, batches, device, sampling.budget)
    responses: dict[str, SiteResponses] = {}
    kept = Spool(sampling.resident, spool)
    for site in tqdm(sites, desc="original responses", disable=not progress, leave=False):
        found = _reopened(kept, site, generator)
        if found is None:
            found = _responses(model, walk, site, sampling.positions, count, generator, kept)
        responses |= found
        memory.release()
    return Calibration(batches, fitted, judges, sites, responses, sampling, device, faults)


def because(faults: Sequence[tuple[str, str]]) -> str:
    """The first few layers that were left out, with their reasons, as the end of a message."""
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return f" ({'; '.join(f'{name}: {reason}' for name, reason in faults[:3])}{more})" if faults else ""


def _split(count: int, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    """Flags of ``count`` images: which are fitted, and by which the fit is judged."""
    order = torch.randperm(count, generator=generator)
    fitted = torch.ones(count, dtype=torch.bool)
    held_out, folds = int(sampling.held_out * count), min(sampling.folds, count)
    if held_out < sampling.least_held_out and folds > 1:
        fold = torch.empty(count, dtype=torch.long)
        fold[order] = torch.arange(count) % folds
        return fitted, [fold == number for number in range(folds)]
    fitted[order[:held_out]] = False
    return fitted, [~fitted] if held_out else []


def _responses(
    model: nn.Module, walk: Walk, site: Site, positions: int, images: int, generator: torch.Generator, spool: Spool
) -> dict[str, SiteResponses]:
    """What all readers of a site answer in the original network, by reader."""
    convs = [convolution(model, reader.reader) for reader in site.readers]
    maps = [folded(conv, norm_behind(model, reader)) for conv, reader in zip(convs, site.readers, strict=True)]
    places: list[list[Tensor]] = [[] for _ in convs]
    rows = images * positions
    seen = [
        spool.collect(reader.reader, rows, conv.out_channels) for conv, reader in zip(convs, site.readers, strict=True)
    ]
    added = None
    for inputs, shortcut in walk.visit_all([reader.reader for reader in site.readers], site.shortcut):
        for index, (x, conv, (weight, bias)) in enumerate(zip(inputs, convs, maps, strict=True)):
            here = sample_positions(positions, len(x), *output_size(x.shape, conv), generator)
            places[index].append(here)
            seen[index].append((patches(x, here, conv) @ weight.flatten(1).T.float() + bias.float()).cpu())
            if shortcut is not None and index == 0:
                values = at_positions(shortcut, here).cpu()
                if added is None:
                    added = spool.collect(f"{site.reader}+", rows, values.shape[1])
                added.append(values)
    found = {
        reader.reader: SiteResponses(
            torch.cat(places[index]), seen[index].done(), added.done() if added is not None and index == 0 else None
        )
        for index, reader in enumerate(site.readers)
    }
    columns = {name: [here.response.shape[1], here.shortcut is not None] for name, here in found.items()}
    tensors = {name: here.positions for name, here in found.items()}
    spool.finish(site.reader, {"rows": rows, "columns": columns}, {**tensors, "": generator.get_state()})
    return found


def _reopened(spool: Spool, site: Site, generator: torch.Generator) -> dict[str, SiteResponses] | None:
    """The responses that an interrupted calibration has left, or None; the generator goes on behind them."""
    stored = spool.finished(site.reader)
    if stored is None:
        return None
    facts, tensors = stored
    found = {}
    for name, (columns, has_shortcut) in facts["columns"].items():
        shortcut = spool.reopened(f"{name}+", facts["rows"], columns) if has_shortcut else None
        found[name] = SiteResponses(tensors[name], spool.reopened(name, facts["rows"], columns), shortcut)
    generator.set_state(tensors[""])
    return found


def at_positions(maps: Tensor, positions: Tensor) -> Tensor:
    """Values (images*count x channels) of ``maps`` (images x channels x H x W) at ``positions`` (images, count, 2)."""
    positions = positions.to(maps.device)
    image = torch.arange(len(maps), device=maps.device)[:, None]
    return maps[image, :, positions[..., 0], positions[..., 1]].flatten(0, 1)


def sampled_rows(
    calibration: Calibration, walk: Walk, site: Site, conv: nn.Conv2d, compensate: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, list[Tensor]]]:
    """For each batch: inputs (rows x p) in the network that ``walk`` runs, what the block should hand on (rows x n, of
    the original network), what its shortcut hands on now (rows x n or None), and the rows' :meth:`Calibration.groups`.

    Without ``compensate`` the shortcut is left out of both.
    """
    stored = calibration.responses[site.reader]
    shortcut = site.shortcut if compensate else None
    per_image, first = calibration.sampling.positions, 0
    for x, now in walk.visit(site.reader, shortcut):
        last = first + len(x)
        here = stored.positions[first:last]
        rows = slice(first * per_image, last * per_image)
        wanted, added = stored.response[rows].to(x.device), None
        if now is not None and stored.shortcut is not None:
            wanted = wanted + stored.shortcut[rows].to(x.device)
            added = at_positions(now, here)
        yield patches(x, here, conv), wanted, added, calibration.groups(first, last)
        first = last


def _sampled(calibration: Calibration, moments: Sequence[Moments]) -> Sampled:
    return Sampled(moments[0], tuple(moments[1:]), calibration.crossed)


def accumulate(
    calibration: Calibration, walk: Walk, site: Site, conv: nn.Conv2d, compensate: bool, draws: Draws | None = None
) -> Sampled:
    """Moments of the site's inputs in the network that ``walk`` runs, against the original responses.

    With ``compensate`` the target at the end of a residual branch is Y1 - Y1' + Y2 (CP, 3.3): the branch also makes up
    for the error that has come down the shortcut.  ``draws`` are given the same rows.
    """
    found = calibration.moments(conv)
    for inputs, wanted, added, groups in sampled_rows(calibration, walk, site, conv, compensate):
        target = wanted if added is None else wanted - added
        if draws is not None:
            draws.add(inputs, target, groups)
        for moments, mask in zip(found, groups, strict=True):
            if bool(mask.any()):
                moments.add(inputs[mask], target[mask])
    memory.release()  # the batches' activations, before the solvers need theirs
    return _sampled(calibration, found)


def accumulate_shared(
    calibration: Calibration, walk: Walk, site: Site, convs: Sequence[nn.Conv2d], draws: Sequence[Draws | None] = ()
) -> list[Sampled]:
    """The moments of all readers of a site, as :func:`accumulate` gives them for one, in one pass."""
    device = calibration.device
    found = [calibration.moments(conv) for conv in convs]
    per_image, first = calibration.sampling.positions, 0
    for inputs, _ in walk.visit_all([reader.reader for reader in site.readers]):
        last = first + len(inputs[0])
        groups = calibration.groups(first, last)
        each = draws or [None] * len(convs)
        for x, conv, reader, own, drawn in zip(inputs, convs, site.readers, found, each, strict=True):
            stored = calibration.responses[reader.reader]
            rows = patches(x, stored.positions[first:last], conv)
            wanted = stored.response[first * per_image : last * per_image].to(device)
            if drawn is not None:
                drawn.add(rows, wanted, groups)
            for moments, mask in zip(own, groups, strict=True):
                if bool(mask.any()):
                    moments.add(rows[mask], wanted[mask])
        first = last
    return [_sampled(calibration, own) for own in found]


def rectify(
    calibration: Calibration,
    walk: Walk,
    site: Site,
    conv: nn.Conv2d,
    sampled: Sampled,
    kept: Sequence[int],
    weight: Tensor,
    bias: Tensor,
) -> Sampled:
    """New targets that ask nothing where the ReLU behind the layer lets nothing through (ours, beyond the paper).

    Minimised is the sum of (z - z')^2 where z > 0 and of relu(z')^2 elsewhere, z the original network's value behind
    the addition and z' ours: an upper bound of |relu(z) - relu(z')|^2, far below |z - z'|^2.  Where z <= 0 the target
    becomes min(z', 0) with the current solution (``weight`` n x c' x kh x kw, ``bias`` n on the channels ``kept``): a
    majorisation, so no round raises that sum on the fitted rows (but for the ridge).  Zhang et al. (2016) treat the
    ReLU by alternation too.
    """
    size = conv.kernel_size[0] * conv.kernel_size[1]
    columns = columns_of(kept, size, conv.weight.device)
    solution = weight.flatten(1).T.float()
    found = [moments.retargeted() for moments in (sampled.fitted, *sampled.judges)]
    for inputs, wanted, added, groups in sampled_rows(calibration, walk, site, conv, compensate=True):
        shortcut = torch.zeros_like(wanted) if added is None else added
        current = inputs[:, columns] @ solution + bias.float() + shortcut
        target = torch.where(wanted > 0, wanted, current.clamp_max(0.0)) - shortcut
        for new, mask in zip(found, groups, strict=True):
            if bool(mask.any()):
                new.add_targets(inputs[mask], target[mask])
    return _sampled(calibration, found)


def error_curves(
    model: nn.Module, calibration: Calibration, ridge: float, samplers: Sequence[str] = (), progress: bool = True
) -> dict[str, list[float]]:
    """What keeping k = 1 … c channels costs at each site that can be pruned: the exact elimination's errors.

    A site is pruned by its producer's filters, or (``samplers``) by a channel sampler.

    The error is relative to the variance of the *block's* output: within a residual branch the error relative to the
    reader's own response is weighted with the branch's share of what the block hands on.  ``curves[reader][k - 1]``
    belongs to k channels kept; curves never rise with k.
    """
    graph = trace(model)
    walk = Walk(model, graph, calibration.batches, calibration.device, calibration.sampling.budget)
    curves = {}
    prunable = [site for site in calibration.sites if site.producer is not None or site.reader in samplers]
    for site in tqdm(prunable, desc="error curves", disable=not progress, leave=False):
        convs = [convolution(model, reader.reader) for reader in site.readers]
        found = [sampled.fitted for sampled in accumulate_shared(calibration, walk, site, convs)]
        result = eliminate([moments.centred() for moments in found], convs[0].in_channels, 1, ridge)
        own = max(calibration.responses[site.reader].variance, torch.finfo(torch.float64).tiny)
        if site.others:  # their increases are shares of each reader's variance already
            own = float(_rows_share(calibration))
        end = calibration.responses.get(site.branch_end or site.reader)
        share = 1.0 if end is None else end.variance / max(end.block_variance, torch.finfo(torch.float64).tiny)
        total = share * _rows_share(calibration) / own
        errors = [0.0]
        for increase in result.increases:
            errors.append(errors[-1] + increase * total)
        curves[site.reader] = errors[::-1]
    return curves


def _rows_share(calibration: Calibration) -> float:
    """All rows over fitted rows: variances are over all, moments over the fitted."""
    return len(calibration.fitted) / max(int(calibration.fitted.sum()), 1)
