"""What a convolution keeps when its filters become primary filters: its shape, stride, padding and groups."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Replacement(nn.Module):
    """A convolution of ``conv``'s shape whose ``out_channels`` maps come of fewer filters, ``weight``.

    ``weight`` is (groups * ``primaries``) x (in_channels / groups) x kernel, ``primaries`` being those of each group;
    each output map has a bias of its own where ``conv`` has one.
    """

    bias: nn.Parameter | None

    def __init__(self, conv: nn.Conv2d, secondaries: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        # left, right, top, bottom; "same" pads even kernels unevenly
        self.pads = tuple(int(pad) for pad in conv._reversed_padding_repeated_twice)
        self.padding_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        self.inputs, self.outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        # surplus maps of the last secondary filters are dropped
        self.primaries = math.ceil(self.outputs / secondaries)
        like = conv.weight
        shape = (self.groups * self.primaries, self.inputs, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=like.device, dtype=like.dtype))
        if conv.bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.empty(self.out_channels, device=like.device, dtype=like.dtype))
        self.train(conv.training)

    @torch.no_grad()
    def initialise(self) -> None:
        """Fresh weights, as those of the convolution that it replaces: He normal, fan out; no bias."""
        fan = self.outputs * math.prod(self.kernel_size)
        nn.init.normal_(self.weight, 0.0, math.sqrt(2.0 / fan))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input, and the zeros that are still to be put around it (vertically, horizontally)."""
        left, right, top, bottom = self.pads
        if self.padding_mode == "constant" and (left, top) == (right, bottom):
            return x, (top, left)
        return F.pad(x, self.pads, self.padding_mode), (0, 0)

    def extra_repr(self) -> str:
        """The shape, as torch's convolutions print it."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"groups={self.groups}, primaries={self.primaries}"
        )
