"""Versatile filters with learned binary masks (the journal version, arXiv 2109.09310), shared or of each filter's own.

A primary filter f gives s secondary filters M_j o f.  The masks M are the signs of real-valued proxies H, through which
gradients pass straight (straight-through estimator).  With w_j = M_j o f and L_0 the task's loss

    dL_0/df = sum_j M_j o dL_0/dw_j,        dL/dM_j = f o dL_0/dw_j + lambda dL_orth/dX_j,
    L_orth = |X X'/n - I|^2 / m^2,          dL_orth/dX = 4 / (n m^2) (X X'/n - I) X,

X the m masks of a layer (shared ones: s; else those of all its filters) as rows of n signs, +1 and -1: with masks of
{0,1} the signs stand for the bits, or the diagonal of X X'/n would be their share of ones.  The filters see the task's
loss alone.  L_orth is that of the precursor's code (iamhankai/Full-Stack-Filters mask_conv.py, ``ortho_loss``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.versatile.shape import Replacement

ALPHABETS = ("{0,1}", "{-1,+1}")
# proxies are drawn within this of zero
FIRST = 0.1


@dataclass(frozen=True)
class Masks:
    """``count`` is s; None: as many as nested masks, ceil(d/2), so that the network has their size.

    ``own``: every primary filter has masks of its own; else all share those of the layer.
    """

    count: int | None = None
    own: bool = True
    alphabet: str = "{0,1}"

    def __post_init__(self) -> None:
        if self.alphabet not in ALPHABETS:
            raise UserError(f"unknown alphabet {self.alphabet!r}: choose one of {', '.join(ALPHABETS)}")
        if self.count is not None and self.count < 1:
            raise UserError(f"{self.count} masks: give 1 or more")


NESTED_AS_MANY = Masks()


class _Binary(torch.autograd.Function):
    """The sign of the proxies, 0 or -1 where not positive; its gradient passes straight."""

    @staticmethod
    def forward(ctx: Any, proxies: Tensor, low: float) -> Tensor:
        """Entries of 1 and ``low``."""
        return _entries(proxies > 0, low, proxies.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The gradient of the masks is that of the proxies."""
        return gradient, None


def _entries(bits: Tensor, low: float, dtype: torch.dtype) -> Tensor:
    """1 where a bit is set, ``low`` elsewhere."""
    return bits.to(dtype) * (1.0 - low) + low


class LearnedConv2d(Replacement):
    """In the place of an ordinary convolution; N x in_channels x H x W to N x out_channels x H' x W'.

    ``proxies`` (masks shared: s x inputs x kernel; own: primaries of all groups x s x inputs x kernel) are parameters
    while masks are learned; after :meth:`export` the bits ``fixed`` stand in their place.  Within a group the maps are
    those of all primaries for the first mask, then for the next.
    """

    proxies: nn.Parameter
    fixed: Tensor

    def __init__(self, conv: nn.Conv2d, masks: Masks, exported: bool = False) -> None:
        self.masks = masks
        self.secondaries = masks.count or (min(conv.kernel_size) + 1) // 2
        super().__init__(conv, self.secondaries)
        shape = (self.secondaries, *self.weight.shape[1:])
        shape = (len(self.weight), *shape) if masks.own else shape
        like = self.weight
        if exported:
            self.register_buffer("fixed", torch.empty(shape, dtype=torch.bool, device=like.device))
        else:
            self.proxies = nn.Parameter(torch.empty(shape, device=like.device, dtype=like.dtype))

    @property
    def exported(self) -> bool:
        """Whether the masks are fixed."""
        return "fixed" in self._buffers

    @torch.no_grad()
    def initialise(self) -> None:
        """Filters as those of the convolution that it replaces; each mask's entries by coin."""
        super().initialise()
        if self.exported:
            self.fixed.copy_(torch.rand(self.fixed.shape, device=self.fixed.device) < 0.5)
        else:
            nn.init.uniform_(self.proxies, -FIRST, FIRST)

    @torch.no_grad()
    def export(self) -> None:
        """The masks are bits from now on."""
        if not self.exported:
            bits = self.proxies > 0
            del self.proxies
            self.register_buffer("fixed", bits)

    def binary(self) -> Tensor:
        """The masks, shaped as the proxies."""
        low = 0.0 if self.masks.alphabet == ALPHABETS[0] else -1.0
        if self.exported:
            return _entries(self.fixed, low, self.weight.dtype)
        return _Binary.apply(self.proxies, low)  # type: ignore[no-untyped-call, no-any-return]

    def expanded(self) -> Tensor:
        """All secondary filters, out_channels x inputs x kernel."""
        every = self.weight[:, None] * self.binary()
        grouped = torch.unflatten(every, 0, (self.groups, self.primaries)).transpose(1, 2).flatten(1, 2)
        return grouped[:, : self.outputs].flatten(0, 1)

    def macs(self, input_shape: torch.Size, output_shape: torch.Size) -> int:
        """Each secondary filter in full: a learned mask has no smaller size of its own."""
        return output_shape.numel() * self.inputs * math.prod(self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """One convolution with all secondary filters."""
        x, padding = self.padded(x)
        return F.conv2d(x, self.expanded(), self.bias, self.stride, padding, self.dilation, self.groups)


def orthogonality(masks: Tensor) -> Tensor:
    """L_orth of a layer's masks as signs, ... x inputs x kernel height x kernel width: the mean over all pairs of them.

    0 where they are orthogonal: any two of them agree in half of their entries.
    """
    rows = masks.flatten(-3).flatten(0, -2)
    gram = rows @ rows.T / rows.shape[-1]
    return F.mse_loss(gram, torch.eye(len(rows), device=gram.device, dtype=gram.dtype))


def signs(layer: LearnedConv2d) -> Tensor:
    """The layer's masks, shaped as the proxies, with -1 for each entry that is not 1, whatever its alphabet."""
    if layer.exported:
        return _entries(layer.fixed, -1.0, layer.weight.dtype)
    return _Binary.apply(layer.proxies, -1.0)  # type: ignore[no-untyped-call, no-any-return]


def learned_layers(model: nn.Module) -> list[LearnedConv2d]:
    """The layers with learned masks."""
    return [module for module in model.modules() if isinstance(module, LearnedConv2d)]


def network_orthogonality(model: nn.Module) -> Tensor:
    """The sum of L_orth over a network's layers: what lambda multiplies."""
    terms = [orthogonality(signs(layer)) for layer in learned_layers(model)]
    return torch.stack(terms).sum() if terms else torch.zeros(())
