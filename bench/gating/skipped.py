"""The layers of a network that skips: convolutions with the active filters, at the input channels that exist.

Images and filters lie channels-last, in which small convolutions are about twice as fast on the CPU (nothing needs
reordering) and a filter at one place is a row.  A single image on the CPU takes the compiled loops of
:mod:`bench.gating.kernels`, with filters that stay gathered from image to image; everything else (batches, CUDA, half
precision, d = 1) takes PyTorch's operations.  A batch is computed group by group of equal winners, or, with as many
launches for any winners, all at once by :mod:`bench.gating.batched`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.gating import batched, kernels
from bench.gating.compact import Compact, PerImage, Value, dense, take
from bench.gating.layer import GatedConv2d
from bench.gating.winners import winners

_COMPILED = (torch.float32, torch.float64)


class Gathered:
    """The filters that a layer holds between single images: ``k`` slots at ``n`` input channels.

    ``slots`` (k) are the channels by slot, ``place`` (C_out) the slot of each channel, -1 for none; ``filters`` is
    k x n x kh x kw.  ``arrays`` are what the compiled loops change: slots, place, the filters as k x kh kw x n, and
    the filters (k) and input channels (n) that it holds.
    """

    def __init__(self, rows: Tensor, kernel: tuple[int, ...], k: int, n: int) -> None:
        outputs, taps, _ = rows.shape
        weights = torch.empty(k, taps, n, dtype=rows.dtype)
        self.filters = _filters(weights, kernel)
        self.slots, self.place = np.arange(k), np.full(outputs, -1)
        self.place[:k] = np.arange(k)
        # nothing is held yet
        self.arrays = (self.slots, self.place, weights.numpy(), np.full(k, -1), np.full(n, -1))


class SkippedConv(nn.Module):
    """One gated layer: the batch norm folded into the filters, the gate's phi and rho as they are.

    ``rectify`` applies a ReLU at once; ``non_negative`` says that the input is never negative.  ``last`` keeps the
    winners of the last single image (None: all).
    """

    rows: Tensor
    bias: Tensor
    behind: Tensor
    phi: Tensor
    rho: Tensor

    def __init__(self, layer: GatedConv2d, rectify: bool = False, non_negative: bool = False) -> None:
        super().__init__()
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise UserError("only zero padding of a fixed size can be skipped")
        inverse = torch.rsqrt(layer.running_var.detach() + layer.eps)
        shift, beta = -layer.running_mean.detach() * inverse, layer.beta.detach()
        # y = pi (norm(conv(x)) + beta), or in the official code's form pi norm(conv(x)) + beta
        gated = layer.options.shift == "gated"
        self.register_buffer("rows", _rows(layer.weight.detach() * inverse[:, None, None, None]))
        self.register_buffer("bias", shift + beta if gated else shift)
        self.register_buffer("behind", torch.zeros_like(beta) if gated else beta.clone())
        # by input channel, so that active channels are rows
        self.register_buffer("phi", layer.gate.weight.detach().t().contiguous())
        self.register_buffer("rho", layer.gate.bias.detach().clone())
        self.kernel, self.shape = layer.kernel_size, (layer.stride, layer.padding, layer.dilation)
        self.channels, self.k = layer.out_channels, layer.k
        self.exact, self.gated = layer.options.ties == "exact", gated
        self.rectified_gate, self.rectify = layer.gate.rectified, rectify
        self.absolute = layer.options.subsample == "l1" and not non_negative
        self.last: Tensor | None = None
        # whether one image is computed as a batch of one, for which nothing waits for the device
        self.whole = False
        self._rule = (self.k, self.absolute, self.rectified_gate, self.exact)
        self._arrays: tuple[Any, ...] | None = None
        self._gathered: Gathered | None = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SkippedConv:
        """As usual; the buffers have moved, so their views are taken anew."""
        self._arrays = self._gathered = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """What is gathered lies in memory that several views share, which a copy would tear apart: it starts anew."""
        return {**super().__getstate__(), "_arrays": None, "_gathered": None}  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """As usual; what was gathered is of the old filters."""
        self._arrays = self._gathered = None
        super()._load_from_state_dict(*arguments)  # type: ignore[no-untyped-call]

    def compiled(self, x: Value) -> bool:
        """Whether ``x`` takes the compiled loops."""
        values = _values(x)
        return len(values) == 1 and values.is_cpu and values.dtype in _COMPILED and self.k < self.channels

    def _views(self) -> tuple[Any, ...]:
        if self._arrays is None:
            self._arrays = tuple(b.numpy() for b in (self.rows, self.bias, self.behind, self.phi, self.rho))
        return self._arrays

    def choose(self, x: Value) -> tuple[Tensor | None, Tensor]:
        """The winners of one image, None for all, and g (1 x C_out)."""
        if self.compiled(x):
            *_, phi, rho = self._views()
            index, g = kernels.choose(*_channels(x), phi, rho, *self._rule)
            return torch.from_numpy(index), torch.from_numpy(g)[None]
        g = self.saliency(x)
        return (None if self.k == self.channels else self.masks(g)[0]), g

    def _held(self, x: Value) -> Gathered:
        """The filters that are gathered by now, at as many input channels as ``x`` has."""
        n = _values(x).shape[1]
        if self._gathered is None or self._gathered.filters.shape[1] != n:
            self._gathered = Gathered(self.rows, self.kernel, self.k, n)
        return self._gathered

    def gather(self, x: Value, index: Tensor | None, g: Tensor) -> tuple[Tensor, Tensor | None]:
        """The filters ``index`` at the input channels of ``x`` and their biases; compiled, by slot and without."""
        if self.compiled(x):
            assert index is not None
            held = self._held(x)
            slots, place, weights, *now = held.arrays
            kernels.settle(slots, place, index.numpy())
            kernels.gather(weights, *now, self._views()[0], slots, _channels(x)[1])
            return held.filters, None
        chosen, bias = self.rows, self.bias
        if index is not None:
            chosen, bias = chosen.index_select(0, index), bias.index_select(0, index)
        return _filters(_at(chosen, x), self.kernel), bias

    def convolve(self, x: Value, index: Tensor | None, g: Tensor, weight: Tensor, bias: Tensor | None) -> Value:
        """The layer's outputs ``index``, B x k x H' x W', with what :meth:`gather` gave."""
        if self.compiled(x):
            assert index is not None
            return self._finished(x, self._held(x), index.numpy(), g[0].numpy())
        y = F.conv2d(_values(x), weight, bias, *self.shape)
        y.mul_((g if index is None else g.index_select(1, index))[:, :, None, None])
        if not self.gated:
            y.add_((self.behind if index is None else self.behind.index_select(0, index))[:, None, None])
        if self.rectify:
            y.relu_()
        return y if index is None else Compact(y, index, self.channels)

    def forward(self, x: Value) -> Value:
        """One image, or a batch whose images have winners of their own each."""
        if self.whole or len(_values(x)) > 1:
            return self._together(x)
        if not self.compiled(x):
            self.last, g = self.choose(x)
            return self.convolve(x, self.last, g, *self.gather(x, self.last, g))
        held, (rows, _, _, phi, rho) = self._held(x), self._views()
        won, g = kernels.choose_and_gather(*_channels(x), phi, rho, *self._rule, *held.arrays, rows)
        self.last = torch.from_numpy(won)
        return self._finished(x, held, won, g)

    def _finished(self, x: Value, held: Gathered, won: kernels.Array, g: kernels.Array) -> Compact:
        """The outputs by slot, with the filters that are held."""
        filters, outputs = held.filters, held.slots.copy()  # a copy: the slots change with the next image
        if len(won) < len(outputs):  # ties at the threshold lose: only the winners are computed
            filters, outputs = filters.index_select(0, torch.from_numpy(held.place[won])), won
        y = F.conv2d(_values(x), filters, None, *self.shape).contiguous(memory_format=torch.channels_last)
        _, bias, behind, *_ = self._views()
        kernels.finish(_positions(y), outputs, g, bias, behind, self.rectify)
        return Compact(y, torch.from_numpy(outputs), self.channels)

    def _together(self, x: Value) -> Value:
        """A batch at once; nothing waits for the device, so that it can be captured as a CUDA graph."""
        g = self.saliency(x)
        if self.k == self.channels and isinstance(x, Tensor):
            return self.convolve(x, None, g, *self.gather(x, None, g))
        index = winners(g, self.k).sort(dim=1).values
        chosen = g.gather(1, index)
        y = batched.convolved(x, self.rows, index, self.bias[index], self.kernel, *self.shape)
        y.mul_(chosen[:, :, None, None])
        if not self.gated:
            y.add_(self.behind[index][:, :, None, None])
        if self.rectify:
            y.relu_()
        if self.k == self.channels:
            return y
        if not self.exact:  # ties at the threshold lose; they are computed all the same
            won = chosen > g.topk(self.k + 1, dim=1).values[:, -1:]
            y = y.where(won[:, :, None, None], 0.0)
        return PerImage(y, index, self.channels)

    def saliency(self, x: Value) -> Tensor:
        """g, B x C_out, from the channels that exist."""
        if isinstance(x, PerImage):
            pooled = (x.values.abs() if self.absolute else x.values).mean((2, 3))
            means = pooled.new_zeros(len(pooled), x.channels).scatter_(1, x.index, pooled)
            g = F.linear(means, self.phi.t(), self.rho)
            return g.relu_() if self.rectified_gate else g
        values, phi = (x.values, self.phi.index_select(0, x.index)) if isinstance(x, Compact) else (x, self.phi)
        g = F.linear((values.abs() if self.absolute else values).mean((2, 3)), phi.t(), self.rho)
        return g.relu_() if self.rectified_gate else g

    def masks(self, g: Tensor) -> list[Tensor]:
        """The winners of each row of g, in ascending order."""
        if self.exact:
            return list(winners(g, self.k).sort(dim=1).values)
        return [row.nonzero()[:, 0] for row in g > g.topk(self.k + 1, dim=1).values[:, -1:]]

    def groups(self, x: Value) -> list[tuple[Tensor, Value]]:
        """A batch: for each set of images with equal winners their rows and their outputs."""
        g = self.saliency(x)
        if self.k == self.channels:
            rows = torch.arange(len(g), device=g.device)
            return [(rows, self.convolve(x, None, g, *self.gather(x, None, g)))]
        members: dict[tuple[int, ...], list[int]] = {}
        masks = self.masks(g)
        for row, key in enumerate(mask.tolist() for mask in masks):
            members.setdefault(tuple(key), []).append(row)
        found = []
        for group in members.values():
            rows, index = torch.tensor(group, device=g.device), masks[group[0]]
            part, own = take(x, rows), g.index_select(0, rows)
            found.append((rows, self.convolve(part, index, own, *self.gather(part, index, own))))
        return found


class PlainConv(nn.Module):
    """A convolution that is not gated: all its filters, but only the input channels that are active."""

    rows: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("rows", _rows(conv.weight.detach()))

    def forward(self, x: Value) -> Tensor:
        """B x C_out x H' x W'."""
        conv = self.conv
        if isinstance(x, Tensor) or conv.groups != 1 or type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
            return conv(dense(x))  # type: ignore[no-any-return]
        if isinstance(x, PerImage):
            every = torch.arange(conv.out_channels, device=x.index.device).expand(len(x.index), -1)
            bias = None if conv.bias is None else conv.bias[every]
            return batched.convolved(
                x,
                self.rows,
                every,
                bias,
                conv.kernel_size,
                conv.stride,
                conv.padding,  # type: ignore[arg-type]
                conv.dilation,
            )
        weight = _filters(_at(self.rows, x), conv.kernel_size)
        return F.conv2d(x.values, weight, conv.bias, conv.stride, conv.padding, conv.dilation)  # type: ignore[arg-type]


def _values(x: Value) -> Tensor:
    """The channels that exist."""
    return x.values if isinstance(x, Compact) else x


def _rows(weight: Tensor) -> Tensor:
    """Filters C_out x C_in x kh x kw as C_out x kh kw x C_in."""
    return weight.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _at(rows: Tensor, x: Value) -> Tensor:
    """The rows at the input channels of ``x``."""
    if not isinstance(x, Compact):
        return rows
    flat = rows.view(-1, rows.shape[2])
    # several times faster than index_select along the innermost dimension
    return flat.gather(1, x.index.expand(len(flat), -1)).view(*rows.shape[:2], -1)


def _filters(rows: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """C_out x kh kw x k as a channels-last C_out x k x kh x kw."""
    return rows.view(len(rows), *kernel, -1).permute(0, 3, 1, 2)


def _channels(x: Value) -> tuple[kernels.Array, kernels.Array]:
    """One image as positions x n, and the numbers of its n channels."""
    image = _positions(_values(x))
    return image, x.index.numpy() if isinstance(x, Compact) else np.arange(image.shape[1])


def _positions(values: Tensor) -> kernels.Array:
    """One channels-last image as positions x n, the same memory."""
    image: kernels.Array = values.numpy()[0].transpose(1, 2, 0)
    return image.reshape(-1, image.shape[2])
