"""A convolution and the batch norm behind it as one affine map, and back.

Moments, selection and reconstruction see the folded map; the network keeps its batch norm, because fine-tuning needs
it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# below this |gamma| a channel cannot be divided by its scale, so the batch norm is made an identity scale instead
_SMALLEST_GAMMA = 1e-6


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Weight (n x c x kh x kw) and bias (n), float64, of ``norm(conv(x))`` in evaluation mode."""
    weight = conv.weight.detach().to(torch.float64)
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if conv.bias is not None:
        bias = conv.bias.detach().to(torch.float64)
    if norm is None:
        return weight, bias
    scale = _scale(norm)
    mean, beta = _statistics(norm)
    return weight * scale[:, None, None, None], beta + (bias - mean) * scale


@torch.no_grad()
def unfold(
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    weight: Tensor,
    bias: Tensor,
    seen: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Writes a folded map into ``conv`` and ``norm``, in place, so that ``norm(conv(x))`` computes it exactly.

    Filters are divided by the batch norm's scale and the bias goes into beta.  ``seen`` are mean and variance (n each)
    of ``weight`` applied to the layer's inputs: with them the running statistics become those of the new filters, gamma
    and beta taking up the difference, so that training mode starts from the same function (least squares shrinks the
    responses, and fine-tuning would otherwise undo it).  A convolution without a bias and a batch norm gets a bias.
    """
    if norm is None:
        conv.weight.copy_(weight)
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.empty(len(weight), device=conv.weight.device, dtype=conv.weight.dtype))
        conv.bias.copy_(bias)
        return
    if norm.weight is not None:
        norm.weight[norm.weight.abs() < _SMALLEST_GAMMA] = 1.0
    scale = _scale(norm)
    old = torch.zeros_like(bias) if conv.bias is None else conv.bias.to(torch.float64)
    conv.weight.copy_(weight / scale[:, None, None, None])
    if seen is not None and norm.weight is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(seen[0] / scale + old)
        norm.running_var.copy_(seen[1] / scale.square())
        norm.weight.copy_(scale * torch.sqrt(norm.running_var.to(torch.float64) + norm.eps))
    mean, _ = _statistics(norm)
    norm.bias.copy_(bias + (mean - old) * scale)


def _scale(norm: nn.BatchNorm2d) -> Tensor:
    if norm.running_var is None or norm.bias is None:
        raise ValueError("a batch norm without running statistics or shift cannot be folded")
    inverse = torch.rsqrt(norm.running_var.to(torch.float64) + norm.eps)
    return inverse if norm.weight is None else norm.weight.detach().to(torch.float64) * inverse


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    return norm.running_mean.to(torch.float64), norm.bias.detach().to(torch.float64)
