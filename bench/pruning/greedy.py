"""Greedy selection by gradients, stage by stage: what discrimination-aware (DCP) and localization-aware pruning share.

Zhuang et al. (NeurIPS 2018), algorithm 2: start without input channels; take the channel whose weights have the largest
gradient of L = L_re + alpha L_a, then let the weights taken so far follow the gradient; go on until enough are taken.
L_re = |F - X W|^2 / (2Q) is the reconstruction of the layer's outputs, L_a the loss of an auxiliary network further on.

What the channels are chosen by is an :class:`Objective`; :func:`choose` is the algorithm.  Here (:class:`Sampled`)
L_re and its gradient (XX W - XY) / Q come from second moments: exact over all sampled rows, without a pass over images.
Only L_a is back-propagated, through the layers between the reader and the auxiliary network.  The whole of both losses,
on mini-batches as published, is :mod:`bench.pruning.discrimination`.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from tqdm import tqdm

from bench.data.augment import draw_seed
from bench.errors import UserError
from bench.pruning import surgery
from bench.pruning.calibration import Calibration, accumulate_shared, norm_behind
from bench.pruning.fold import folded
from bench.pruning.graph import Site, reader_node, trace
from bench.pruning.moments import Moments
from bench.pruning.reconstruction import columns_of
from bench.pruning.walk import Walk, run_node

# (number of the mini-batch, output of the layer that the auxiliary network reads) to its loss, a scalar
AuxiliaryLoss = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Greedy:
    """Settings; the defaults are those of DCP's released code (SCUT-AILab/DCP at 70a2e53): SGD of the layer's weights.

    ``score`` ranks channels by ``frobenius``, the squared gradient norm of both papers, or ``l21``, the released code's
    sum of norms over the output channels; ``random`` takes them in an order drawn from ``seed`` and the reader's name.
    ``alpha`` weighs the auxiliary loss, ``reconstruction`` L_re where whole feature maps are compared.  ``steps`` are
    taken after each pick, ``last_steps`` more after the last one.  With ``epsilon`` (DCP, equation 10) the choice also
    ends behind the pick that changes L by no more than that share of what L was without channels.

    ``update`` is ``sgd``, or ``newton`` (ours): the reconstruction is solved (its gradient is divided by its Hessian
    with a ``ridge``, in units of the mean diagonal), and against L_a's gradient the weights move by ``lr`` times their
    own length.
    """

    alpha: float = 1.0
    score: str = "frobenius"
    update: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    ridge: float = 1e-3
    steps: int = 1
    last_steps: int = 0
    reconstruction: float = 1.0
    epsilon: float | None = None
    seed: int = 0


@dataclass
class Term:
    """L_re of one reader: ``xx`` p x p, ``xy`` p x n (X'F, without the bias), ``ff`` = |F|^2, over ``rows`` rows.

    ``weight`` n x c x kh x kw are the original weights; ``unit`` scales the term (several readers of one channel);
    ``live`` (n) is 0 for outputs that do not count.
    """

    xx: Tensor
    xy: Tensor
    ff: float
    rows: int
    weight: Tensor
    unit: float = 1.0
    live: Tensor | float = 1.0

    def value(self, weight: Tensor) -> float:
        """L_re at these weights."""
        v = weight.flatten(1).T * self.live
        residual = self.ff - 2.0 * (v * self.xy).sum() + (v * (self.xx @ v)).sum()
        return self.unit * float(residual) / (2.0 * self.rows * len(weight))

    def gradient(self, weight: Tensor) -> Tensor:
        """dL_re / dW, in the weights' shape."""
        v = weight.flatten(1).T * self.live
        return (self.unit / (self.rows * len(weight)) * (self.xx @ v - self.xy)).T.reshape(weight.shape)

    def newton(self, gradient: Tensor, chosen: Tensor, ridge: float) -> Tensor:
        """``gradient`` (n x c x kh x kw) divided by the Hessian of L_re over the ``chosen`` channels (c, bool)."""
        if self.unit == 0.0:
            return torch.zeros_like(gradient)
        size = gradient[0, 0].numel()
        columns = columns_of(chosen.nonzero().flatten(), size, self.xx.device)
        hessian = self.xx[columns[:, None], columns]
        hessian.diagonal().add_(ridge * hessian.diagonal().mean())
        flat = gradient.flatten(1).T[columns] * (self.rows * len(gradient) / self.unit)
        step = torch.zeros_like(gradient).flatten(1).T.contiguous()
        step[columns] = torch.cholesky_solve(flat, torch.linalg.cholesky(hessian))
        return step.T.reshape(gradient.shape)


def term(moments: Moments, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> Term:
    """L_re of ``conv`` itself, before its batch norm, from moments whose responses have the batch norm folded in."""
    _, bias = folded(conv, norm)
    weight = conv.weight.detach().to(torch.float64)
    scale = torch.ones_like(bias)
    if norm is not None:
        scale, _ = folded(_unit_filters(conv), norm)
        scale = scale.flatten()
        # a channel that its batch norm has switched off says nothing about its filter
        scale = torch.where(scale.abs() < 1e-6, torch.inf, scale)
    xy = (moments.xy - torch.outer(moments.x_sum, bias)) / scale
    ff = (moments.yy - 2.0 * bias * moments.y_sum + moments.count * bias.square()) / scale.square()
    raw = (moments.yy / scale.square()).sum()
    energy = float(ff.sum()) if float(ff.sum()) > 1e-10 * float(raw) else 0.0
    return Term(moments.xx, xy, energy, moments.count, weight, live=torch.isfinite(scale).to(scale))


def _unit_filters(conv: nn.Conv2d) -> nn.Conv2d:
    """1x1 filters of weight one: folding a batch norm into them gives its scale."""
    unit = nn.Conv2d(1, conv.out_channels, 1, bias=False, device=conv.weight.device, dtype=torch.float64)
    nn.init.ones_(unit.weight)
    return unit


def channel_scores(gradients: Sequence[Tensor], score: str) -> Tensor:
    """S_k for each input channel k (c), over all readers' gradients (n x c x kh x kw each).

    ``frobenius``: sum over i, j of |dL/dW_k,i,j|^2 (localization-aware, section 3; the square of DCP's |G_k|_F).
    ``l21``: sum over the output channels of |dL/dW_j,k|, DCP's released code.  Raises :class:`UserError` otherwise.
    """
    squares = [g.square().sum((2, 3)) for g in gradients]  # n x c
    if score == "frobenius":
        return torch.stack([square.sum(0) for square in squares]).sum(0)
    if score == "l21":
        return torch.stack([square.sqrt().sum(0) for square in squares]).sum(0)
    raise UserError(f"unknown score {score!r}: choose frobenius or l21")


@dataclass
class Picked:
    """The channels in the order of their choice, the readers' weights (zero where not chosen), L before and after."""

    order: list[int]
    weights: list[Tensor]
    losses: tuple[float, float]


class Objective(Protocol):
    """L of a site's readers as a function of their weights (n x c x kh x kw each, zero where no channel is chosen).

    ``originals`` are the network's own weights.
    """

    originals: Sequence[Tensor]

    def gradients(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """dL / dW of each reader, by which the next channel is chosen."""

    def loss(self) -> float:
        """L at the weights of the latest call of :meth:`gradients`."""

    def step(self, weights: Sequence[Tensor], chosen: Tensor) -> None:
        """The weights of the ``chosen`` channels (c, bool) follow the gradient, in place."""


def choose(objective: Objective, keep: int, settings: Greedy) -> Picked:
    """Algorithm 2: picks ``keep`` channels (perhaps fewer with ``epsilon``); their weights follow the gradient.

    Raises :class:`UserError` for an unknown score.
    """
    weights = [torch.zeros_like(original) for original in objective.originals]
    channels = weights[0].shape[1]
    chosen = torch.zeros(channels, dtype=torch.bool, device=weights[0].device)
    drawn = torch.randperm(channels, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    order: list[int] = []
    gradients = objective.gradients(weights)
    first = last = objective.loss()
    for number in range(keep):
        if settings.score == "random":
            channel = drawn[number]
        else:
            scores = channel_scores(gradients, settings.score)
            scores[chosen] = -torch.inf
            channel = int(scores.argmax())
        chosen[channel] = True
        order.append(channel)
        for weight, original in zip(weights, objective.originals, strict=True):
            weight[:, channel] = original[:, channel]  # warm start from the network's own weights
        for _ in range(settings.steps if number + 1 < keep else settings.steps + settings.last_steps):
            objective.step(weights, chosen)
        gradients = objective.gradients(weights)
        if settings.epsilon is not None:
            now = objective.loss()
            if abs(last - now) <= settings.epsilon * first:
                break
            last = now
    return Picked(order, weights, (first, objective.loss()))


class Sampled:
    """L_re of the readers from the moments of sampled rows, L_a on one mini-batch after the other.

    ``auxiliary`` gives L_a and dL_a/dW for a weight of the first reader (the one on the way to the auxiliary network),
    on a mini-batch of its own choice.  Raises :class:`UserError` for settings that it does not know.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        settings: Greedy,
        auxiliary: Callable[[Tensor], tuple[float, Tensor]] | None = None,
    ) -> None:
        if settings.update not in ("sgd", "newton"):
            raise UserError(f"unknown update {settings.update!r}: choose sgd or newton")
        self.terms, self.settings, self.auxiliary = terms, settings, auxiliary
        self.originals: Sequence[Tensor] = [t.weight for t in terms]
        self.velocity = [torch.zeros_like(t.weight) for t in terms]
        self._latest: tuple[list[Tensor], float] = ([], 0.0)

    def gradients(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """dL / dW of each reader."""
        value, extra = self._further(weights)
        self._latest = list(weights), value
        return self._gradients(weights, extra)

    def loss(self) -> float:
        """L at the weights of the latest call of :meth:`gradients`."""
        weights, extra = self._latest
        return sum(t.value(w) for t, w in zip(self.terms, weights, strict=True)) + extra

    def step(self, weights: Sequence[Tensor], chosen: Tensor) -> None:
        """One step of the update that the settings name."""
        _, extra = self._further(weights)
        if self.settings.update == "newton":
            _newton(self.terms, weights, extra, chosen, self.settings)
        else:
            sgd(weights, self.velocity, self._gradients(weights, extra), chosen, self.settings)

    def _further(self, weights: Sequence[Tensor]) -> tuple[float, Tensor]:
        """alpha L_a and its gradient."""
        if self.auxiliary is None:
            return 0.0, torch.zeros_like(weights[0])
        value, gradient = self.auxiliary(weights[0])
        return self.settings.alpha * value, self.settings.alpha * gradient

    def _gradients(self, weights: Sequence[Tensor], extra: Tensor) -> list[Tensor]:
        found = [t.gradient(w) for t, w in zip(self.terms, weights, strict=True)]
        found[0] = found[0] + extra
        return found


def sgd(
    weights: Sequence[Tensor], velocity: Sequence[Tensor], gradients: Sequence[Tensor], chosen: Tensor, settings: Greedy
) -> None:
    """One step of SGD with Nesterov's momentum for the chosen channels, in place."""
    for weight, speed, gradient in zip(weights, velocity, gradients, strict=True):
        step = (gradient + settings.weight_decay * weight) * chosen[:, None, None]
        speed.mul_(settings.momentum).add_(step)
        weight.sub_(settings.lr * (step + settings.momentum * speed))


def _newton(terms: Sequence[Term], weights: Sequence[Tensor], extra: Tensor, chosen: Tensor, settings: Greedy) -> None:
    """Newton's step for L_re, and for L_a a step against its gradient of a fixed length relative to the weights."""
    for weight, t in zip(weights, terms, strict=True):
        weight.sub_(t.newton(t.gradient(weight), chosen, settings.ridge))
    push = extra * chosen[:, None, None]
    length = push.norm()
    if length > 0:
        weights[0].sub_(settings.lr * weights[0].norm() / length * push)


def output_node(graph: fx.Graph, name: str) -> fx.Node:
    """Where the module ``name`` (a layer or a block of them) gives its output; the network's own output for "".

    Raises :class:`UserError` where no node belongs to such a module.
    """
    if not name:
        given: fx.Node = next(node for node in graph.nodes if node.op == "output").all_input_nodes[0]
        return given
    inside: list[fx.Node] = [
        node for node in graph.nodes if any(where == name for where, _ in node.meta.get("nn_module_stack", {}).values())
    ]
    if not inside:
        raise UserError(f"the network has no module {name!r} whose output could be read")
    return inside[-1]


class Tail:
    """The network from a reader's convolution to the module ``end``, as a function of the reader's weight.

    ``values`` are the live values of one mini-batch just before the reader (see :meth:`Walk.live`).
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, reader: str, end: str) -> None:
        self.model, self.start, self.end = model, reader_node(graph, reader), output_node(graph, end)
        needed, waiting = {self.end}, [self.end]
        while waiting:
            for parent in waiting.pop().all_input_nodes:
                if parent not in needed:
                    needed.add(parent)
                    waiting.append(parent)
        nodes = list(graph.nodes)
        first, last = nodes.index(self.start), nodes.index(self.end)
        if last < first:
            raise ValueError(f"{end} comes before {reader}")
        self.nodes = [node for node in nodes[first + 1 : last + 1] if node in needed]

    def __call__(self, values: Mapping[fx.Node, Tensor], weight: Tensor) -> Tensor:
        """The output of ``end`` (B x n x H x W) with ``weight`` (n x c x kh x kw) in the reader's place."""
        conv = self.reader
        x = self.inputs(values)
        response = F.conv2d(
            x,
            weight,
            conv.bias,
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
        )
        return self.behind(values, response)

    @property
    def reader(self) -> nn.Conv2d:
        """The convolution as it is by now."""
        return surgery.convolution(self.model, str(self.start.target))

    def inputs(self, values: Mapping[fx.Node, Tensor]) -> Tensor:
        """What the reader reads, B x c x H x W."""
        return values[self.start.all_input_nodes[0]]

    def behind(self, values: Mapping[fx.Node, Tensor], response: Tensor) -> Tensor:
        """The output of ``end`` with ``response`` in place of the reader's own."""
        now = {**values, self.start: response}
        for node in self.nodes:
            now[node] = run_node(self.model, node, now)
        return now[self.end]


@dataclass(frozen=True)
class SiteReport:
    """What happened at one site: the channels kept, in the order of their choice, and L before and after."""

    reader: str
    producer: str
    channels: int
    order: list[int]
    first_loss: float
    last_loss: float


def prune_stage(
    net: nn.Module,
    calibration: Calibration,
    keep: Mapping[str, int],
    settings: Greedy,
    end: str,
    auxiliary: AuxiliaryLoss | None,
    progress: bool = True,
) -> tuple[nn.Module, list[SiteReport]]:
    """A copy of ``net`` in which the sites in ``keep`` (by reader, all before ``end``) have lost channels, one by one.

    ``calibration`` holds the outputs of ``net`` itself, the reconstruction's target; ``auxiliary`` is evaluated on its
    mini-batches in turn.  Everything but the readers' weights is fixed, batch norms in evaluation mode.
    """

    def objective(model: nn.Module, graph: fx.Graph, walk: Walk, site: Site) -> Objective:
        convs = [surgery.convolution(model, reader.reader) for reader in site.readers]
        terms = _terms(model, calibration, walk, site, convs)
        return Sampled(terms, settings, _gradient(model, graph, walk, site, end, auxiliary))

    budget = calibration.sampling.budget
    sites = [site for site in calibration.sites if site.reader in keep]
    return prune_sites(net, calibration.batches, sites, keep, settings, objective, calibration.device, budget, progress)


def prune_sites(
    net: nn.Module,
    batches: Sequence[Tensor],
    sites: Sequence[Site],
    keep: Mapping[str, int],
    settings: Greedy,
    objective: Callable[[nn.Module, fx.Graph, Walk, Site], Objective],
    device: str,
    budget: int,
    progress: bool = True,
) -> tuple[nn.Module, list[SiteReport]]:
    """A copy of ``net`` in which each of ``sites`` in turn has lost channels, by an objective in the network so far.

    ``keep`` counts the channels by reader (with ``epsilon`` at most so many); ``budget`` bytes of activations of
    ``batches`` may be kept.
    """
    model = copy.deepcopy(net).to(device).eval().requires_grad_(False)
    graph = trace(model)
    walk = Walk(model, graph, batches, device, budget)
    reports = []
    for site in tqdm(sites, desc="greedy selection", disable=not progress, leave=False):
        assert site.producer is not None
        wanted, channels = keep[site.reader], surgery.convolution(model, site.reader).in_channels
        if wanted >= channels and settings.epsilon is None:
            continue
        with torch.no_grad():
            here = replace(settings, seed=draw_seed(settings.seed, zlib.crc32(site.reader.encode())))
            picked = choose(objective(model, graph, walk, site), min(wanted, channels), here)
            _apply(model, tuple(batches[0].shape[1:]), walk, site, picked)
        reports.append(SiteReport(site.reader, site.producer, channels, picked.order, *picked.losses))
    return model.requires_grad_(True), reports


def _terms(
    model: nn.Module, calibration: Calibration, walk: Walk, site: Site, convs: Sequence[nn.Conv2d]
) -> list[Term]:
    """L_re of every reader; further readers count in the unit of the first (energy of their outputs)."""
    found = [
        term(sampled.fitted, conv, norm_behind(model, reader))
        for sampled, conv, reader in zip(
            accumulate_shared(calibration, walk, site, convs), convs, site.readers, strict=True
        )
    ]
    energies = [t.ff / (t.rows * len(t.weight)) for t in found]
    first = next((energy for energy in energies if energy > 0.0), 1.0)
    for t, energy in zip(found, energies, strict=True):
        t.unit = first / energy if energy > 0.0 else 0.0
    return found


def _gradient(
    model: nn.Module, graph: fx.Graph, walk: Walk, site: Site, end: str, auxiliary: AuxiliaryLoss | None
) -> Callable[[Tensor], tuple[float, Tensor]] | None:
    """L_a and its gradient with respect to the reader's weight, on one mini-batch after the other."""
    if auxiliary is None:
        return None
    tail = Tail(model, graph, site.reader, end)
    values: list[dict[fx.Node, Tensor]] = []
    size = 0
    for batch in walk.live(site.reader):  # as many mini-batches as the walk's memory allows, at least one
        size += sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
        if values and size > walk.budget:
            break
        values.append(batch)
    turn = 0

    def gradient(weight: Tensor) -> tuple[float, Tensor]:
        nonlocal turn
        place, turn = turn % len(values), turn + 1
        with torch.enable_grad():
            free = weight.float().requires_grad_(True)
            loss = auxiliary(place, tail(values[place], free))
            (found,) = torch.autograd.grad(loss, free)
        return float(loss), found.to(weight.dtype)

    return gradient


def _apply(model: nn.Module, shape: tuple[int, ...], walk: Walk, site: Site, picked: Picked) -> None:
    """Removes the filters that were not chosen and writes the readers' new weights; images are of ``shape``."""
    kept = sorted(picked.order)
    channels = picked.weights[0].shape[1]
    assert site.producer is not None
    surgery.remove_filters(model, shape, site.producer, sorted(set(range(channels)) - set(kept)))
    walk.select([reader.reader for reader in site.readers], torch.as_tensor(kept))
    for reader, weight in zip(site.readers, picked.weights, strict=True):
        surgery.convolution(model, reader.reader).weight.copy_(weight[:, kept])
