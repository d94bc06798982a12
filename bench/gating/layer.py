"""The gated layer of FBS (Gao et al. 2019, section 3): convolution, batch norm without gamma, shift, times pi(x).

    y = pi(x) * (norm(conv(x)) + beta),   pi = wta_k(g),   g = relu(phi ss(x) + rho)

``ss`` is the mean absolute value of each input channel, ``wta_k`` keeps the k = ceil(d C) largest.  What is computed
here is the *masked* form, which training needs; :mod:`bench.gating.skip` computes only the winners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.gating.winners import WHOLE, strict_mask, winner_count, winner_mask


@dataclass(frozen=True)
class GateOptions:
    """Where the paper and the official code (deep-fry/mayo) differ; the defaults are the paper's.

    ``subsample``: ``l1`` (mean of absolute values) or ``mean`` (the code's signed average).
    ``phi``: ``he`` (He normal, rho = 1), ``truncated`` (the code's truncated normal of 0.05), ``zero`` (the converted
    network equals the original) or ``scaled`` (ours: He normal in units of the batch norm's |gamma|, which rho is, so
    that gates look at the image and the network stays about what it was).
    ``rectify``: ``always`` (equation 8) or ``with layer`` (the code: only where a ReLU follows the layer).
    ``shift``: ``gated`` (pi multiplies norm + beta) or ``masked`` (the code: g multiplies norm, the mask beta).
    ``ties``: ``exact`` (k winners, the first of equals) or ``strict`` (the code: equals at the threshold all lose).
    ``penalty``: the L1 term over ``all`` of g, or over the ``winners`` (the code).
    """

    subsample: str = "l1"
    phi: str = "he"
    rectify: str = "always"
    shift: str = "gated"
    ties: str = "exact"
    penalty: str = "all"

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(allowed)}")


_ALLOWED = {
    "subsample": ("l1", "mean"),
    "phi": ("he", "truncated", "zero", "scaled"),
    "rectify": ("always", "with layer"),
    "shift": ("gated", "masked"),
    "ties": ("exact", "strict"),
    "penalty": ("all", "winners"),
}
PAPER = GateOptions()
OFFICIAL_CODE = GateOptions("mean", "truncated", "with layer", "masked", "strict", "winners")


class Gate(nn.Linear):
    """The saliency predictor: B x C_in x H x W to g, B x C_out; ``weight`` is phi, ``bias`` rho."""

    # of saliencies in half precision many would be equal, and the first of equals win
    full_precision = True

    def __init__(self, inputs: int, outputs: int, options: GateOptions, rectified: bool) -> None:
        self.options, self.rectified = options, rectified
        super().__init__(inputs, outputs)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """phi by the options, rho = 1 (the paper, section 3.2)."""
        if self.options.phi in ("he", "scaled"):
            nn.init.normal_(self.weight, 0.0, math.sqrt(2.0 / self.in_features))
        elif self.options.phi == "truncated":
            nn.init.trunc_normal_(self.weight, 0.0, 0.05, -0.1, 0.1)
        else:
            nn.init.zeros_(self.weight)
        nn.init.ones_(self.bias)

    initialise = reset_parameters

    def subsampled(self, x: Tensor) -> Tensor:
        """ss(x): B x C x H x W to B x C."""
        return (x.abs() if self.options.subsample == "l1" else x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """g for each image and output channel."""
        g = F.linear(self.subsampled(x), self.weight, self.bias)
        return g.relu() if self.rectified else g


class GatedConv2d(nn.Conv2d):
    """Convolution, normalisation and gate in one; takes the place of the convolution, the batch norm's becomes empty.

    ``weight`` keeps its name, so that a checkpoint says what it is.  ``density`` is in thousandths and may be changed
    at any time.  After a forward pass ``winners`` (B x C_out, bool) holds the mask that was applied and, in training
    mode, ``l1`` the mean over the batch of ||g||_1.
    """

    beta: nn.Parameter
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d, density: int, options: GateOptions, followed_by_relu: bool
    ) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.options = options
        self.eps, self.momentum = norm.eps, norm.momentum
        self.gate = Gate(conv.in_channels, conv.out_channels, options, options.rectify == "always" or followed_by_relu)
        self.beta = nn.Parameter(torch.zeros(conv.out_channels))
        self.register_buffer("running_mean", torch.zeros(conv.out_channels))
        self.register_buffer("running_var", torch.ones(conv.out_channels))
        self.weight = conv.weight
        self.density = density
        self.winners: Tensor | None = None
        self.l1: Tensor | None = None

    @property
    def density(self) -> int:
        """d in thousandths."""
        return self._density

    @density.setter
    def density(self, value: int) -> None:
        self.k = winner_count(value, self.out_channels)
        self._density = value

    def train(self, mode: bool = True) -> GatedConv2d:
        """As usual; forgets what the last pass left, which would keep its graph alive."""
        self.winners = self.l1 = None
        return super().train(mode)

    @torch.no_grad()
    def initialise(self) -> None:
        """Fresh weights: He normal (fan out) filters, an empty normalisation, no shift."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.beta)
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def masked(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """pi (B x C_out) and the mask (bool) behind it; no gradient passes the mask."""
        scores = g.detach()
        mask = (winner_mask if self.options.ties == "exact" else strict_mask)(scores, self.k)
        return (g if self._density == WHOLE else g * mask), mask

    def forward(self, x: Tensor) -> Tensor:
        """B x C_in x H x W to B x C_out x H' x W', the losers zero."""
        g = self.gate(x)
        pi, self.winners = self.masked(g)
        if self.training:
            self.l1 = (pi if self.options.penalty == "winners" else g).abs().sum(1).mean()
        gated = self.options.shift == "gated"
        # on a GPU, torch's batch norm cannot go back with a shift and no scale
        one = None if x.is_cpu or not gated else torch.ones_like(self.beta)
        y = F.batch_norm(
            self._conv_forward(x, self.weight, None),
            self.running_mean,
            self.running_var,
            one,
            self.beta if gated else None,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )
        y = y * pi[:, :, None, None]
        return y if gated else y + (self.winners * self.beta)[:, :, None, None]


def gated_layers(model: nn.Module) -> dict[str, GatedConv2d]:
    """The gated layers of a network by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GatedConv2d)}


def set_density(model: nn.Module, density: int) -> None:
    """Sets d (thousandths) of every gated layer."""
    for layer in gated_layers(model).values():
        layer.density = density


def saliency_l1(model: nn.Module) -> Tensor:
    """sum_l E_x ||g_l(x)||_1 of the last forward pass: what lambda multiplies (Gao et al. 2019, section 3.4)."""
    terms = [layer.l1 for layer in gated_layers(model).values() if layer.l1 is not None]
    return torch.stack(terms).sum() if terms else torch.zeros(())
