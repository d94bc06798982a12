"""Values of which only some channels exist: what flows between the layers of a network that skips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Compact:
    """The active channels of a group of images: ``values`` B x k x H x W are those at ``index`` (k) of ``channels``."""

    __slots__ = ("channels", "index", "values")

    def __init__(self, values: Tensor, index: Tensor, channels: int) -> None:
        self.values, self.index, self.channels = values, index, channels

    def holding(self, values: Tensor) -> Compact:
        """The same channels of the same images with other values."""
        return type(self)(values, self.index, self.channels)

    def dense(self) -> Tensor:
        """B x channels x H x W, the inactive ones zero."""
        batch, _, height, width = self.values.shape
        whole = self.values.new_zeros(batch, self.channels, height, width)
        return whole.index_copy_(1, self.index, self.values)

    def rows(self, chosen: Tensor) -> Compact:
        """The images ``chosen`` of the group."""
        return Compact(self.values.index_select(0, chosen), self.index, self.channels)

    def added_to(self, whole: Tensor) -> Tensor:
        """``whole`` (B x channels x H x W) plus the active channels."""
        return whole.index_add(1, self.index, self.values)


class PerImage(Compact):
    """As many active channels of each image, each image's own: ``index`` is B x k."""

    __slots__ = ()

    def dense(self) -> Tensor:
        """B x channels x H x W, the inactive ones zero."""
        batch, _, height, width = self.values.shape
        return self.values.new_zeros(batch, self.channels, height, width).scatter_(1, self._places(), self.values)

    def rows(self, chosen: Tensor) -> PerImage:
        """The images ``chosen``."""
        return PerImage(self.values.index_select(0, chosen), self.index.index_select(0, chosen), self.channels)

    def added_to(self, whole: Tensor) -> Tensor:
        """``whole`` (B x channels x H x W) plus the active channels."""
        return whole.scatter_add(1, self._places(), self.values)

    def _places(self) -> Tensor:
        return self.index[:, :, None, None].expand_as(self.values)


Value = Tensor | Compact


def dense(value: Any) -> Any:
    """The whole tensor of a value."""
    return value.dense() if isinstance(value, Compact) else value


def take(value: Any, rows: Tensor) -> Any:
    """The images ``rows`` of a value; what is no tensor of images stays as it is."""
    if isinstance(value, Compact):
        return value.rows(rows)
    return value.index_select(0, rows) if isinstance(value, Tensor) and value.ndim else value


def add(a: Value, b: Value) -> Value:
    """A residual addition: the union of both sets of channels; all of them, where each image has its own."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a + b
    if isinstance(a, Tensor):
        a, b = b, a
    assert isinstance(a, Compact)
    if isinstance(b, Tensor) or isinstance(a, PerImage):
        return a.added_to(dense(b))
    place = torch.zeros(a.channels, dtype=torch.long, device=a.index.device)
    place[a.index] = 1
    place[b.index] = 1
    union = place.nonzero()[:, 0]
    place[union] = torch.arange(len(union), device=union.device)
    batch, _, height, width = a.values.shape
    whole = a.values.new_zeros(batch, len(union), height, width)
    whole.index_copy_(1, place[a.index], a.values).index_add_(1, place[b.index], b.values)
    return Compact(whole, union, a.channels)
