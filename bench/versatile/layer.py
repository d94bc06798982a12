"""The versatile convolution (Wang et al. 2018, sections 2.1 and 2.2): several secondary filters from each stored one.

    spatial    f (d x d x c) gives s = ceil(d/2) filters M_i o f, M_i = 1 on the centred square of side d - 2(i-1)
    channel    f gives n_c = (c - c_hat)/g + 1 filters of c_hat channels, windows that move by g

Each secondary filter gives an output map of its own, so that n maps need ceil(n / (s n_c)) primary filters.

Computed is, by ``execution``:
* ``cropped``: each secondary filter at its own size, as the paper counts multiplications;
* ``one``: one convolution with all secondary filters, zero outside their masks; added masks are folded into one filter;
* ``shared``: the sums over blocks of channels that several windows have in common are computed once.  The rings that
  nested masks have in common are not: taken apart into strips they save products and take longer.

Where nothing else is chosen a layer of few channels trains by ``one``, and all else is done by ``cropped``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.versatile.shape import Replacement


@dataclass(frozen=True)
class Options:
    """Which secondary filters there are; the defaults are the paper's spatial ones.

    ``spatial``: the nested masks.  ``windows`` is n_c; a window moves by the share ``shift`` of the channels, at least
    by one channel.  ``channels``: a window of the input meets the same channels of the filter (``paper``), or always
    the filter's first ones (``released``: the authors' code).  ``aggregate``: the maps of the nested masks are
    ``concatenate``d, or ``add``ed up, which one filter with weighted places could do as well.
    """

    spatial: bool = True
    windows: int = 1
    shift: float = 0.0625
    channels: str = "paper"
    aggregate: str = "concatenate"

    def __post_init__(self) -> None:
        for name, allowed in (("channels", ("paper", "released")), ("aggregate", ("concatenate", "add"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.windows < 1 or not 0.0 <= self.shift < 1.0:
            raise UserError(f"{self.windows} windows that move by {self.shift}: give 1 or more, and a share below 1")


PAPER = Options()
# input channels up to which one convolution trains faster than a part for each secondary filter (measured on a CPU,
# forward and backward): nested masks 1.7x at 8 and 0.9x at 32, windows 1.2x to 2x at 8 to 32 and about 1x from 64 on
_FEW, _FEW_OF_WINDOWS = 8, 64


@dataclass(frozen=True)
class Block:
    """One secondary filter of every primary: the window's first channel, the rings that each mask leaves out, and of
    how many primaries of a group it is used (the last block may have some to spare).

    Several ``crops`` are added up.
    """

    start: int
    crops: tuple[int, ...]
    used: int


def crops_of(kernel: tuple[int, ...], spatial: bool = True) -> tuple[int, ...]:
    """How many rings each nested mask leaves out: 0 to ceil(d/2) - 1, with d the kernel's shorter side."""
    return tuple(range((min(kernel) + 1) // 2)) if spatial else (0,)


class VersatileConv2d(Replacement):
    """In the place of an ordinary convolution; N x in_channels x H x W to N x out_channels x H' x W'.

    Within a group the maps are those of all primaries for the first window's largest mask, then for its next, and so
    on; then the next window's.
    """

    def __init__(self, conv: nn.Conv2d, options: Options | None = None) -> None:
        self.options = options or Options()
        crops = crops_of(conv.kernel_size, self.options.spatial)
        channels = conv.in_channels // conv.groups
        step = max(1, round(channels * self.options.shift))
        # so few channels have fewer windows
        count = min(self.options.windows, (channels - 1) // step + 1)
        self.width, self.starts = channels - (count - 1) * step, tuple(step * place for place in range(count))
        masks = [crops] if self.options.aggregate == "add" else [(crop,) for crop in crops]
        super().__init__(conv, len(self.starts) * len(masks))
        self.secondaries = len(self.starts) * len(crops)
        kinds = [(start, mask) for start in self.starts for mask in masks]
        left = [min(self.primaries, self.outputs - place * self.primaries) for place in range(len(kinds))]
        self.blocks = [Block(*kind, used) for kind, used in zip(kinds, left, strict=True) if used > 0]
        self.execution: str | None = None
        self.few = channels <= (_FEW if len(self.starts) == 1 else _FEW_OF_WINDOWS)

    def side(self, crop: int) -> tuple[int, int]:
        """Height and width of the mask that leaves out so many rings."""
        return self.kernel_size[0] - 2 * crop, self.kernel_size[1] - 2 * crop

    def macs(self, input_shape: torch.Size, output_shape: torch.Size) -> int:
        """Each secondary filter at its own size, whatever is executed, as the paper counts."""
        places = output_shape[0] * self.groups * output_shape[2] * output_shape[3]
        taps = [block.used * height * width for block in self.blocks for height, width in map(self.side, block.crops)]
        return places * self.width * sum(taps)

    def forward(self, x: Tensor) -> Tensor:
        """The maps, by ``execution``."""
        x, padding = self.padded(x)
        execution = self.execution or ("one" if self.training and self.few else "cropped")
        if execution == "one":
            weight = self.expanded()
            return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)
        y = self._shared(x, padding) if execution == "shared" else self._cropped(x, padding)
        return y if self.bias is None else y + self.bias[:, None, None]

    def filters(self, block: Block, crop: int) -> Tensor:
        """The block's secondary filters, (groups * used) x width x side of the mask."""
        start = block.start if self.options.channels == "paper" else 0
        weight = self._cut(self.weight[:, start : start + self.width], crop)
        if self.groups == 1 or block.used == self.primaries:
            return weight[: self.groups * block.used]
        return torch.unflatten(weight, 0, (self.groups, self.primaries))[:, : block.used].flatten(0, 1)

    def _cut(self, weight: Tensor, crop: int) -> Tensor:
        """Filters without the rings that a mask leaves out."""
        height, width = self.kernel_size
        return weight[:, :, crop : height - crop, crop : width - crop]

    def expanded(self) -> Tensor:
        """All secondary filters at full size, zero outside their masks: out_channels x inputs x kernel."""
        parts = []
        for block in self.blocks:
            behind = self.inputs - block.start - self.width
            masked = [F.pad(self.filters(block, crop), (*[crop] * 4, block.start, behind)) for crop in block.crops]
            parts.append(torch.unflatten(sum(masked[1:], masked[0]), 0, (self.groups, block.used)))
        return torch.cat(parts, 1).flatten(0, 1)

    # --- each secondary filter by itself ------------------------------------------------------------------------------

    def _cropped(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        parts = []
        for block in self.blocks:
            seen = self._channels(x, block.start, block.start + self.width)
            maps = [self._convolved(seen, self.filters(block, crop), crop, padding) for crop in block.crops]
            parts.append(sum(maps[1:], maps[0]))
        if self.groups == 1:
            return torch.cat(parts, 1)
        return torch.cat([torch.unflatten(part, 1, (self.groups, -1)) for part in parts], 2).flatten(1, 2)

    def _channels(self, x: Tensor, a: int, b: int) -> Tensor:
        """The channels a to b - 1 of every group."""
        if b - a == self.inputs:
            return x
        if self.groups == 1:
            return x[:, a:b]
        return torch.unflatten(x, 1, (self.groups, self.inputs))[:, :, a:b].flatten(1, 2)

    def _convolved(self, x: Tensor, weight: Tensor, crop: int, padding: tuple[int, int]) -> Tensor:
        """The smaller filter's output at the places of the whole one's: less is padded, or the border is not read."""
        rest = [pad - crop * dilation for pad, dilation in zip(padding, self.dilation, strict=True)]
        (top, left), (height, width) = (max(0, -pad) for pad in rest), x.shape[2:]
        if top or left:
            x = x[:, :, top : height - top, left : width - left]
        pads = [max(0, pad) for pad in rest]
        stride = self.stride
        if weight.shape[2:] == (1, 1) and stride != (1, 1):
            # oneDNN computes a strided 1x1 convolution of few channels wrongly (bench.train.onednn)
            x = F.pad(x, (pads[1], pads[1], pads[0], pads[0]))[:, :, :: stride[0], :: stride[1]]
            stride, pads = (1, 1), [0, 0]
        return F.conv2d(x, weight, None, stride, pads, self.dilation, self.groups)

    # --- sums in common -----------------------------------------------------------------------------------------------

    def _shared(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        crops = {crop for block in self.blocks for crop in block.crops}
        sums: dict[tuple[int, int], Tensor] = {}  # by window and mask, for all primaries
        for (a, b), first, starts in self._segments():
            seen = self._channels(x, a, b)
            for crop in crops:
                weight = self._cut(self.weight[:, first : first + b - a], crop)
                part = self._convolved(seen, weight, crop, padding)
                for start in starts:
                    sums[start, crop] = sums[start, crop] + part if (start, crop) in sums else part
        parts = []
        for block in self.blocks:
            maps = [sums[block.start, crop] for crop in block.crops]
            parts.append(torch.unflatten(sum(maps[1:], maps[0]), 1, (self.groups, -1))[:, :, : block.used])
        return torch.cat(parts, 2).flatten(1, 2)

    def _segments(self) -> Iterator[tuple[tuple[int, int], int, list[int]]]:
        """Blocks of input channels, the filter's channel that meets the first of each, the windows that it is in."""
        if self.options.channels == "released":
            for start in self.starts:
                yield (start, start + self.width), 0, [start]
            return
        edges = sorted({edge for start in self.starts for edge in (start, start + self.width)})
        for a, b in itertools.pairwise(edges):
            if starts := [start for start in self.starts if start <= a < start + self.width]:
                yield (a, b), a, starts
