"""The versatile convolution (Wang et al. 2018, sections 2.1 and 2.2): several secondary filters from each stored one.

    spatial    f (d x d x c) gives s = ceil(d/2) filters M_i o f, M_i = 1 on the centred square of side d - 2(i-1)
    channel    f gives n_c = (c - c_hat)/g + 1 filters of c_hat channels, windows that move by g

Each secondary filter gives an output map of its own, so that n maps need ceil(n / (s n_c)) primary filters.

Computed is, by ``execution``:
* ``cropped``: each secondary filter at its own size, as the paper counts multiplications;
* ``one``: one convolution with all secondary filters, zero outside their masks;
* ``shared``: each product once; the sums over rings and blocks of channels that several secondary filters have in
  common are shared between them.
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

EXECUTIONS = ("cropped", "one", "shared")


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
        self.execution = "cropped"

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
        if self.execution == "one":
            weight = self.expanded()
            return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)
        y = self._shared(x, padding) if self.execution == "shared" else self._cropped(x, padding)
        return y if self.bias is None else y + self.bias[:, None, None]

    def filters(self, block: Block, crop: int) -> Tensor:
        """The block's secondary filters, (groups * used) x width x side of the mask."""
        start = block.start if self.options.channels == "paper" else 0
        height, width = self.kernel_size
        weight = self.weight[:, start : start + self.width, crop : height - crop, crop : width - crop]
        if self.groups == 1 or block.used == self.primaries:
            return weight[: self.groups * block.used]
        return torch.unflatten(weight, 0, (self.groups, self.primaries))[:, : block.used].flatten(0, 1)

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
            seen = self._window(x, block.start)
            maps = [self._convolved(seen, self.filters(block, crop), crop, padding) for crop in block.crops]
            parts.append(sum(maps[1:], maps[0]))
        if self.groups == 1:
            return torch.cat(parts, 1)
        return torch.cat([torch.unflatten(part, 1, (self.groups, -1)) for part in parts], 2).flatten(1, 2)

    def _window(self, x: Tensor, start: int) -> Tensor:
        """The channels that a window sees, of every group."""
        if self.width == self.inputs:
            return x
        if self.groups == 1:
            return x[:, start : start + self.width]
        return torch.unflatten(x, 1, (self.groups, self.inputs))[:, :, start : start + self.width].flatten(1, 2)

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
        crops = crops_of(self.kernel_size, self.options.spatial)
        columns = F.unfold(x, self.kernel_size, self.dilation, padding, self.stride)
        columns = torch.unflatten(columns, 1, (self.groups, self.inputs, -1))
        weight = torch.unflatten(self.weight, 0, (self.groups, self.primaries)).flatten(3)
        # a mask and those within it, from the smallest: each adds its ring
        rings = list(self._rings(crops))
        # by window, the sums of each mask: N x groups x primaries x places
        nested: dict[int, list[Tensor]] = {}
        for (a, b), (first, last), starts in self._segments():
            parts = [
                weight[:, :, first:last, ring].flatten(2) @ columns[:, :, a:b, ring].flatten(2, 3) for ring in rings
            ]
            sums = list(torch.stack(parts[::-1]).cumsum(0).flip(0))
            for start in starts:
                known = nested.get(start)
                nested[start] = sums if known is None else [one + more for one, more in zip(known, sums, strict=True)]
        maps = []
        for block in self.blocks:
            chosen = [nested[block.start][crop][:, :, : block.used] for crop in block.crops]
            maps.append(sum(chosen[1:], chosen[0]))
        return torch.unflatten(torch.cat(maps, 2).flatten(1, 2), 2, self._output_size(x, padding))

    def _rings(self, crops: tuple[int, ...]) -> Iterator[Tensor]:
        """The places of each mask that the next smaller one leaves out; of the smallest all."""
        height, width = self.kernel_size
        depth = torch.arange(height * width).reshape(height, width)
        rows, columns = depth // width, depth % width
        depth = torch.minimum(torch.minimum(rows, height - 1 - rows), torch.minimum(columns, width - 1 - columns))
        for crop in crops:
            inside = depth >= crop if crop == crops[-1] else depth == crop
            yield inside.flatten().nonzero()[:, 0].to(self.weight.device)

    def _segments(self) -> Iterator[tuple[tuple[int, int], tuple[int, int], list[int]]]:
        """Blocks of input channels, the filter's channels that meet them, and the windows that both belong to."""
        if self.options.channels == "released":
            for start in self.starts:
                yield (start, start + self.width), (0, self.width), [start]
            return
        edges = sorted({edge for start in self.starts for edge in (start, start + self.width)})
        for a, b in itertools.pairwise(edges):
            yield (a, b), (a, b), [start for start in self.starts if start <= a < start + self.width]

    def _output_size(self, x: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                x.shape[2:], padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        return height, width


def execute(model: nn.Module, execution: str) -> None:
    """Sets how the versatile convolutions of a network are computed.  Raises :class:`UserError` for an unknown way."""
    if execution not in EXECUTIONS:
        raise UserError(f"unknown execution {execution!r}: choose one of {', '.join(EXECUTIONS)}")
    for module in model.modules():
        if isinstance(module, VersatileConv2d):
            module.execution = execution
