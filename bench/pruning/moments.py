"""Second moments of a layer's sampled inputs and responses: all that selection and reconstruction need to know.

For patches X (N x p, p = c*kh*kw) and responses Y (N x n) they are XX = X'X, XY = X'Y, YY = |Y|^2 and the sums of X and
Y, accumulated in float64 in one streaming pass; memory does not depend on N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UserError

# Rows are gathered up to this size (bytes of float64) before they are multiplied: one large product instead of many
# small ones, and fewer switches between torch's threads and BLAS's.
_BUFFER = 64_000_000


# rows of XX that are worked on at once, so that nothing else of its size is made
_BLOCK_ROWS = 512


class Moments:
    """Float64 second moments; ``inputs`` = p (columns of X), ``outputs`` = n (columns of Y)."""

    def __init__(self, inputs: int, outputs: int, device: str | torch.device = "cpu") -> None:
        self.count = 0
        self._inputs = inputs
        self._made: Tensor | None = None  # XX; 170 MB for 4,608 inputs, so made when rows are multiplied
        self._xy = torch.zeros(inputs, outputs, dtype=torch.float64, device=device)
        self._yy = torch.zeros(outputs, dtype=torch.float64, device=device)
        self._x_sum = torch.zeros(inputs, dtype=torch.float64, device=device)
        self._y_sum = torch.zeros(outputs, dtype=torch.float64, device=device)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._mirrored = True
        self._flushed = False
        # of moments of some inputs only: diagonal of XX and sum of X of all of them, which the ridge's unit is about
        self._whole: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds rows: X (rows x p) and Y (rows x n), any floating type; they are copied or kept, never changed."""
        self.count += len(x)
        self._waiting.append((x, y))
        if 8 * sum(x_.numel() + y_.numel() for x_, y_ in self._waiting) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        x = torch.cat([rows for rows, _ in self._waiting]).to(torch.float64)
        y = torch.cat([rows for _, rows in self._waiting]).to(torch.float64)
        self._waiting, self._flushed = [], True
        if x.device.type == "cpu":
            # BLAS computes half of the symmetric X'X, and adds it in place: with p = 4608 a copy costs 170 MB
            total = dsyrk(1.0, x.numpy().T, beta=1.0, c=self._xx.numpy().T, overwrite_c=1)
            if total.ctypes.data != self._xx.data_ptr():  # SciPy may decline to work in place
                self._xx.copy_(torch.from_numpy(total.T))
            self._mirrored = False
        else:
            self._xx.addmm_(x.T, x)
        self._xy.addmm_(x.T, y)
        self._yy += y.square().sum(0)
        self._x_sum += x.sum(0)
        self._y_sum += y.sum(0)
        if not bool(torch.isfinite(self._x_sum).all() and torch.isfinite(self._y_sum).all()):
            raise UserError("a layer's activations are not finite: the network or its weights are broken")

    @property
    def _xx(self) -> Tensor:
        if self._made is None:
            self._made = torch.zeros(self._inputs, self._inputs, dtype=torch.float64, device=self._yy.device)
        return self._made

    @_xx.setter
    def _xx(self, value: Tensor) -> None:
        self._made = value

    def transient(self) -> Moments:
        """The same moments for use once: where all rows still wait, a copy, and what is computed goes with it.

        Folds of a few hundred rows are small; their XX, 170 MB for 4,608 inputs, is kept for none of them.
        """
        if self._flushed:
            return self
        other = Moments(self._inputs, self._xy.shape[1], self._yy.device)
        other.count, other._waiting = self.count, list(self._waiting)
        return other

    def rows(self) -> tuple[Tensor, Tensor] | None:
        """X and Y (float64) while none of the rows were multiplied, else None."""
        if self._flushed or not self._waiting:
            return None
        return tuple(torch.cat(part).to(torch.float64) for part in zip(*self._waiting, strict=True))  # type: ignore

    def of(self, columns: Tensor) -> Moments:
        """A copy with these inputs alone; the ridge's unit stays that of all of them."""
        if self._flushed or not self._waiting:
            other = Moments(0, 0)
            other._flushed, other.count = True, self.count
            other._xx, other._xy, other._x_sum = (
                self.xx[columns[:, None], columns],
                self.xy[columns],
                self.x_sum[columns],
            )
            other._yy, other._y_sum = self.yy.clone(), self.y_sum.clone()
            other._whole = self.xx.diagonal().clone(), self.x_sum
            return other
        # the rows still wait: XX of all inputs is never made
        other = Moments(len(columns), self._xy.shape[1], self._yy.device)
        other._whole = torch.zeros_like(self._x_sum), torch.zeros_like(self._x_sum)
        for x, y in self._waiting:
            other.add(x[:, columns], y)
            other._whole[0].add_(x.double().square().sum(0))
            other._whole[1].add_(x.double().sum(0))
        return other

    def remove(self, part: Moments) -> Moments:
        """These moments less the rows of ``part``, which are all among theirs and of the same inputs; in place."""
        assert self._whole is not None and part._whole is not None, "of() gives moments that are one's own"
        self.count -= part.count
        for name in ("xx", "xy", "yy", "x_sum", "y_sum"):
            getattr(self, name).sub_(getattr(part, name))
        self._whole = self._whole[0] - part._whole[0], self._whole[1] - part._whole[1]
        return self

    def retargeted(self) -> Moments:
        """The same inputs without any targets yet: the start of a pass that only :meth:`add_targets`."""
        other = Moments(0, 0)
        other._flushed = True
        other.count, other._xx, other._x_sum = self.count, self.xx, self.x_sum
        other._xy, other._yy, other._y_sum = (torch.zeros_like(t) for t in (self.xy, self.yy, self.y_sum))
        return other

    def add_targets(self, x: Tensor, y: Tensor) -> None:
        """New targets Y (rows x n) for rows X (rows x p) whose inputs are in the moments already."""
        x, y = x.to(torch.float64), y.to(torch.float64)
        self._xy.addmm_(x.T, y)
        self._yy += y.square().sum(0)
        self._y_sum += y.sum(0)

    @property
    def xx(self) -> Tensor:
        """X'X, p x p."""
        self._flush()
        if not self._mirrored:
            for first in range(0, len(self._xx), _BLOCK_ROWS):
                last = first + _BLOCK_ROWS
                here = self._xx[first:last, first:last]
                here.copy_(here.tril() + here.tril(-1).T)
                self._xx[first:last, last:] = self._xx[last:, first:last].T
            self._mirrored = True
        return self._xx

    @property
    def xy(self) -> Tensor:
        """X'Y, p x n."""
        self._flush()
        return self._xy

    @property
    def yy(self) -> Tensor:
        """Sum of squares of each output, n."""
        self._flush()
        return self._yy

    @property
    def x_sum(self) -> Tensor:
        """Sum of X over the rows, p."""
        self._flush()
        return self._x_sum

    @property
    def y_sum(self) -> Tensor:
        """Sum of Y over the rows, n."""
        self._flush()
        return self._y_sum

    def centred(self, columns: Tensor | None = None) -> Centred:
        """The moments about the means: what a regression with an intercept sees (divided by nothing).

        ``columns`` picks inputs; the ridge's unit stays that of all of them.
        """
        if self.count == 0:
            raise UserError("no rows were sampled: give at least one calibration image")
        if columns is not None:
            return self.of(columns).centred_in_place()
        return self._centred(self.xx.clone(), self.xy.clone())

    def centred_in_place(self) -> Centred:
        """The same for moments that are used for nothing else: without a copy of XX, which they lose."""
        if self.count == 0:
            raise UserError("no rows were sampled: give at least one calibration image")
        found = self._centred(self.xx, self.xy)
        self._xx, self._xy = self._xx[:0], self._xy[:0]
        return found

    def _centred(self, xx: Tensor, xy: Tensor) -> Centred:
        """Takes the means off ``xx`` and ``xy``, in place."""
        x_mean, y_mean = self.x_sum / self.count, self.y_sum / self.count
        squares, sums = (self.xx.diagonal(), self.x_sum) if self._whole is None else self._whole
        unit = float((squares - self.count * (sums / self.count).square()).mean())
        return Centred(
            self.count,
            xx.addr_(x_mean, x_mean, alpha=-self.count),
            xy.addr_(x_mean, y_mean, alpha=-self.count),
            (self.yy - self.count * y_mean.square()).clamp_min(0.0),
            x_mean,
            y_mean,
            unit,
        )

    def raw(self) -> Centred:
        """The moments about zero in the same form: a regression without an intercept (ThiNet)."""
        return Centred(
            self.count, self.xx, self.xy, self.yy, torch.zeros_like(self.x_sum), torch.zeros_like(self.y_sum)
        )


class Centred:
    """Moments about ``x_mean`` (p) and ``y_mean`` (n): ``xx`` p x p, ``xy`` p x n, ``yy`` n (one sum per output).

    ``unit`` is the ridge's (None: the mean of the diagonal of ``xx``).
    """

    def __init__(
        self, count: int, xx: Tensor, xy: Tensor, yy: Tensor, x_mean: Tensor, y_mean: Tensor, unit: float | None = None
    ) -> None:
        self.count, self.xx, self.xy, self.yy, self.x_mean, self.y_mean = count, xx, xy, yy, x_mean, y_mean
        self.unit = unit

    @property
    def share(self) -> float:
        """1 / YY, or 0 where the responses are constant up to rounding: such a reader has no say."""
        energy = float(self.yy.sum())
        constant = 1e-12 * self.count * float(self.y_mean.square().sum())
        return 1.0 / energy if energy > constant else 0.0

    @property
    def scale(self) -> float:
        """Mean of the diagonal of ``xx``: the unit in which ridges are given; 1 where no input varies."""
        value = float(self.xx.diagonal().mean()) if self.unit is None else self.unit
        return value if value > 0.0 else 1.0  # rounding leaves constant inputs a little below zero


def channel_gram(moments: Centred, weight: Tensor) -> tuple[Tensor, Tensor]:
    """G (c x c) and b (c) of the channels' contributions Z_i = X_i W_i': G_ij = <Z_i, Z_j>, b_i = <Z_i, Y>.

    ``weight`` is n x c x kh x kw.  Computed from the moments alone: G sums XX o (W'W) over each block.
    """
    outputs, channels = weight.shape[:2]
    w = weight.to(moments.xx).reshape(outputs, -1)
    size = w.shape[1] // channels
    gram = torch.empty(channels, channels, dtype=w.dtype, device=w.device)
    step = max(1, _BLOCK_ROWS // size)
    for first in range(0, channels, step):  # a few channels' rows at a time, so that nothing p x p is made
        rows = slice(first * size, (first + step) * size)
        product = moments.xx[rows] * (w[:, rows].T @ w)
        gram[first : first + step] = product.reshape(-1, size, channels, size).sum((1, 3))
    target = (moments.xy * w.T).sum(1).reshape(channels, size).sum(1)
    return gram, target


def sample_positions(count: int, images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Output positions (images x count x 2, row and column), uniform with replacement, independent for every image."""
    rows = torch.randint(height, (images, count), generator=generator)
    columns = torch.randint(width, (images, count), generator=generator)
    return torch.stack([rows, columns], dim=-1)


def patches(x: Tensor, positions: Tensor, conv: torch.nn.Conv2d) -> Tensor:
    """The inputs (rows x c*kh*kw) that ``conv`` sees at ``positions`` (images x count x 2) of its output.

    ``x`` is images x c x H x W; rows are ordered by image, then by position.  Only the wanted patches are copied.
    """
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    ph, pw = int(conv.padding[0]), int(conv.padding[1])
    padded = F.pad(x, (pw, pw, ph, ph)) if ph or pw else x
    images, count = positions.shape[:2]
    positions = positions.to(x.device)
    image = torch.arange(images, device=x.device).repeat_interleave(count)
    top = positions[..., 0].reshape(-1) * sh
    left = positions[..., 1].reshape(-1) * sw
    rows = (top[:, None] + dh * torch.arange(kh, device=x.device))[:, :, None]
    columns = (left[:, None] + dw * torch.arange(kw, device=x.device))[:, None, :]
    # rows x kh x kw x c, because the advanced indices come first
    return padded[image[:, None, None], :, rows, columns].permute(0, 3, 1, 2).reshape(images * count, -1)


def output_size(x_shape: Sequence[int], conv: torch.nn.Conv2d) -> tuple[int, int]:
    """Height and width of ``conv``'s output for an input of shape (…, H, W)."""
    sizes = []
    for axis in (0, 1):
        span = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        sizes.append((x_shape[-2 + axis] + 2 * int(conv.padding[axis]) - span) // conv.stride[axis] + 1)
    return sizes[0], sizes[1]
