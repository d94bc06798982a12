"""Any Conv-BN(-ReLU) network that torch.fx can trace, into its FBS form, with its weights.

The batch norm's gamma moves into the gate: with rho = |gamma| and beta' = beta / |gamma| the gated layer with phi = 0
and d = 1 computes gamma * norm + beta exactly.  A negative gamma turns the filter and the running mean around.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.gating.layer import GatedConv2d, GateOptions
from bench.pruning.graph import trace
from bench.pruning.surgery import replace_module

# below this |gamma| the shift could not be divided by it; such a filter is shrunk instead, which changes no output
SMALLEST_GAMMA = 1e-3


@dataclass(frozen=True)
class Pair:
    """A convolution and the batch norm that alone reads it, by name; whether a ReLU alone reads that."""

    conv: str
    norm: str
    followed_by_relu: bool


@dataclass(frozen=True)
class Conversion:
    """What was done: the gated convolutions, those whose gamma was negative, and how many gammas were too small."""

    gated: list[str]
    negated: int
    clamped: int


def find_pairs(model: nn.Module) -> list[Pair]:
    """The convolutions that can be gated, in forward order: ungrouped, called once, read by a batch norm alone."""
    nodes = list(trace(model).nodes)
    calls = [node.target for node in nodes if node.op == "call_module"]
    pairs = []
    for node in nodes:
        conv, norm = _module(model, node), _module(model, _only_user(node))
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.groups == 1:
            behind = _only_user(node)
            assert behind is not None
            if calls.count(node.target) == calls.count(behind.target) == 1 and not isinstance(conv, GatedConv2d):
                pairs.append(Pair(str(node.target), str(behind.target), _is_relu(model, _only_user(behind))))
    return pairs


def _only_user(node: fx.Node | None) -> fx.Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def _module(model: nn.Module, node: fx.Node | None) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _is_relu(model: nn.Module, node: fx.Node | None) -> bool:
    if node is None:
        return False
    return isinstance(_module(model, node), nn.ReLU) or node.target in (F.relu, torch.relu, "relu")


@torch.no_grad()
def convert(
    model: nn.Module, density: int, options: GateOptions | None = None, ungated: Collection[str] = ()
) -> Conversion:
    """Gates every convolution that can be, in place, except those called ``ungated``.

    The weights carry over; phi is drawn by ``options`` (seed before); rho is |gamma| where phi is zero or in its units,
    else 1, as the paper starts (then the network is another one until it is trained).  Raises :class:`UserError` for a
    network that cannot be traced, without a single pair of convolution and batch norm, or for unknown names.
    """
    pairs = find_pairs(model)
    if not pairs:
        raise UserError("the network has no convolution with a batch norm behind it: nothing can be gated")
    unknown = sorted(set(ungated) - {pair.conv for pair in pairs})
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no convolution with a batch norm behind it has this name")
    gated, negated, clamped = [], 0, 0
    for pair in pairs:
        if pair.conv not in ungated:
            conv, norm = model.get_submodule(pair.conv), model.get_submodule(pair.norm)
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            layer, counts = _gated(pair, conv, norm, density, options or GateOptions())
            replace_module(model, pair.conv, layer)
            replace_module(model, pair.norm, nn.Identity())
            gated.append(pair.conv)
            negated, clamped = negated + counts[0], clamped + counts[1]
    return Conversion(gated, negated, clamped)


def _gated(
    pair: Pair, conv: nn.Conv2d, norm: nn.BatchNorm2d, density: int, options: GateOptions
) -> tuple[GatedConv2d, tuple[int, int]]:
    if norm.running_mean is None or norm.running_var is None or norm.momentum is None:
        raise UserError(f"{pair.norm}: a batch norm without running statistics or with momentum=None cannot be gated")
    like = conv.weight
    layer = GatedConv2d(conv, norm, density, options, pair.followed_by_relu)
    layer.gate.to(like.device, like.dtype)
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(gamma) if norm.bias is None else norm.bias.detach()
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias.detach()
    if like.is_meta:
        return layer.to("meta").train(conv.training), (0, 0)
    rho = gamma.abs().clamp_min(SMALLEST_GAMMA)
    # gamma / rho is the sign, and below SMALLEST_GAMMA the factor that the filter shrinks by
    turn = gamma / rho
    layer.weight = nn.Parameter(like.detach() * turn[:, None, None, None])
    layer.running_mean = (mean * turn).clone()
    layer.running_var = norm.running_var.clone()
    layer.beta = nn.Parameter(beta / rho)
    if options.phi in ("zero", "scaled"):  # else 1, as drawn: the scale of the channels is learned anew
        layer.gate.bias.copy_(rho)
    if options.phi == "scaled":
        layer.gate.weight.mul_(rho[:, None])
    counts = int((gamma < 0).sum()), int((gamma.abs() < SMALLEST_GAMMA).sum())
    return layer.train(conv.training), counts
