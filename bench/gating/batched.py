"""A batch in which every image has filters of its own: one gather and one grouped convolution, whatever the winners.

Images with equal winners could share a smaller convolution, but to find them the host waits for the device at each
layer, and a batch of different images launches as many convolutions as images.  Here both are one launch, and nothing
waits; the price is filters gathered for each image (B k n kh kw numbers).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gating.compact import PerImage, Value


def convolved(
    x: Value,
    rows: Tensor,
    index: Tensor,
    bias: Tensor | None,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
) -> Tensor:
    """The outputs ``index`` (B x k) of each image, B x k x H' x W'.

    ``x`` is B x C_in x H x W or the active channels of each image; ``rows`` the filters, C_out x kh kw x C_in; ``bias``
    B x k.
    """
    values = x.values if isinstance(x, PerImage) else x
    assert isinstance(values, Tensor), "winners that a group shares are computed together"
    batch, inputs, height, width = values.shape
    filters = gathered(rows, index, x.index if isinstance(x, PerImage) else None)
    y = F.conv2d(
        values.reshape(1, batch * inputs, height, width),
        filters.transpose(2, 3).reshape(-1, inputs, *kernel),
        None if bias is None else bias.flatten(),
        stride,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        dilation,  # type: ignore[arg-type]
        groups=batch,
    )
    return y.view(batch, -1, *y.shape[2:])


def gathered(rows: Tensor, outputs: Tensor, inputs: Tensor | None) -> Tensor:
    """The filters ``outputs`` (B x k) of each image at its channels ``inputs`` (B x n), or all: B x k x kh kw x n."""
    if inputs is None:
        return rows[outputs]
    taps = torch.arange(rows.shape[1], device=rows.device)
    return rows[outputs[:, :, None, None], taps[:, None], inputs[:, None, None, :]]
