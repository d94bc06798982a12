"""The gated layer against loops, its gradients against finite differences, and the official code's choices."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bench.errors import UserError
from bench.gating.layer import OFFICIAL_CODE, PAPER, GatedConv2d, GateOptions, saliency_l1, set_density


def layer(
    inputs: int = 3, outputs: int = 5, density: int = 400, options: GateOptions = PAPER, relu: bool = True, **conv: Any
) -> GatedConv2d:
    """A gated layer with nothing at its start value, in float64."""
    torch.manual_seed(inputs + outputs + density)
    made = GatedConv2d(nn.Conv2d(inputs, outputs, 3, **conv), nn.BatchNorm2d(outputs), density, options, relu)
    made.running_mean.normal_()
    made.running_var.uniform_(0.5, 2.0)
    with torch.no_grad():
        made.beta.normal_()
        made.gate.bias.uniform_(0.5, 1.5)
    return made.double()


def by_hand(made: GatedConv2d, x: Tensor) -> Tensor:
    """The paper's equations, one image and channel at a time."""
    outputs = []
    for image in x:
        ss = [float(image[c].abs().sum()) / image[c].numel() for c in range(len(image))]
        g = []
        for o in range(made.out_channels):
            value = float(made.gate.bias[o]) + sum(float(made.gate.weight[o, c]) * ss[c] for c in range(len(ss)))
            g.append(max(0.0, value))
        won = sorted(range(len(g)), key=lambda o: (-g[o], o))[: made.k]
        y = F.conv2d(image[None], made.weight, None, made.stride, made.padding)[0]
        z = torch.zeros_like(y)
        for o in won:
            norm = (y[o] - made.running_mean[o]) / torch.sqrt(made.running_var[o] + made.eps)
            z[o] = g[o] * (norm + made.beta[o])
        outputs.append(z)
    return torch.stack(outputs)


@pytest.mark.parametrize("density", [200, 400, 1000])
def test_forward_is_the_paper_s(density: int) -> None:
    made = layer(density=density, stride=2, padding=1).eval()
    x = torch.randn(6, 3, 7, 9, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(made(x), by_hand(made, x), rtol=1e-12, atol=1e-12)
        assert made.winners is not None and made.winners.sum(1).tolist() == [made.k] * 6


def test_training_uses_the_batch_s_statistics_and_moves_the_running_ones() -> None:
    made = layer(density=1000).train()
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    norm = nn.BatchNorm2d(5, affine=False).double()
    norm.running_mean, norm.running_var = made.running_mean.clone(), made.running_var.clone()
    with torch.no_grad():
        expected = norm(F.conv2d(x, made.weight)) + made.beta[:, None, None]
        expected *= made.gate(x)[:, :, None, None]
        torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.running_mean, norm.running_mean)
    torch.testing.assert_close(made.running_var, norm.running_var)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [PAPER, GateOptions(shift="masked"), GateOptions(subsample="mean")])
def test_gradients_through_the_gate(training: bool, options: GateOptions) -> None:
    """Finite differences of every input: image, filters, phi, rho, beta."""
    made = layer(density=400, options=options, padding=1).train(training)
    x = torch.randn(3, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    names = ["weight", "gate.weight", "gate.bias", "beta"]
    values = [made.get_parameter(name).detach().clone().requires_grad_() for name in names]
    frozen = copy.deepcopy(dict(made.named_buffers()))

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        state = {**dict(zip(names, parameters, strict=True)), **copy.deepcopy(frozen)}
        return functional_call(made, state, (x,))  # type: ignore[no-any-return]

    g = made.gate(x).detach().sort(dim=1, descending=True).values
    assert float((g[:, made.k - 1] - g[:, made.k]).min()) > 1e-4  # no winner changes within the differences
    assert torch.autograd.gradcheck(forward, (x, *values), eps=1e-6, atol=1e-6)


def test_losers_get_no_gradient_and_winners_do() -> None:
    made = layer(density=400).eval()
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    made(x).square().sum().backward()
    assert made.winners is not None and made.gate.bias.grad is not None
    assert ((made.gate.bias.grad != 0) == made.winners[0]).all()


def test_the_l1_term_is_the_mean_over_the_batch_summed_over_layers() -> None:
    a, b = layer(3, 5, 400), layer(5, 4, 500, GateOptions(penalty="winners"))
    model = nn.Sequential(a, b).train()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    hidden = a(x)
    g = b.gate(hidden).sort(dim=1, descending=True).values[:, : b.k]
    expected = a.gate(x).sum() / 4 + g.sum() / 4
    model(x)
    torch.testing.assert_close(saliency_l1(model), expected)
    model.eval()
    model(x)
    assert float(saliency_l1(model)) == 0.0


def test_the_official_code_s_choices() -> None:
    """A signed average, no ReLU behind linear layers, beta only masked, ties at the threshold lose."""
    made = layer(density=400, options=OFFICIAL_CODE, relu=False).eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        g = x.mean((2, 3)) @ made.gate.weight.T + made.gate.bias
        torch.testing.assert_close(made.gate(x), g)
        mask = g > g.topk(made.k + 1).values[:, -1:]
        inverse = torch.rsqrt(made.running_var + made.eps)[:, None, None]
        norm = (F.conv2d(x, made.weight) - made.running_mean[:, None, None]) * inverse
        expected = (g * mask)[:, :, None, None] * norm + (mask * made.beta)[:, :, None, None]
        torch.testing.assert_close(made(x), expected)
        made.gate.weight.zero_()
        made.gate.bias.fill_(1.0)
        assert made(x).abs().sum() == 0 and made.winners is not None and not made.winners.any()


def test_initialisation_and_density() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(400, 300, 1), nn.BatchNorm2d(300)
    he = GatedConv2d(conv, norm, 500, PAPER, True).gate
    assert float(he.weight.detach().std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    truncated = GatedConv2d(conv, norm, 500, GateOptions(phi="truncated"), True).gate
    assert float(truncated.weight.detach().abs().max()) <= 0.1 and float(
        truncated.weight.detach().std()
    ) == pytest.approx(0.044, rel=0.03)
    assert bool((he.bias == 1).all()) and bool(
        (GatedConv2d(conv, norm, 1, GateOptions(phi="zero"), True).gate.weight == 0).all()
    )
    made = nn.Sequential(GatedConv2d(conv, norm, 500, PAPER, True))
    set_density(made, 10)
    assert made[0].k == 3 and made[0].density == 10
    with pytest.raises(UserError, match="ties"):
        GateOptions(ties="random")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shift", ["gated", "masked"])
def test_on_a_gpu_it_trains_as_on_the_processor(shift: str) -> None:
    """Its batch norm has a shift and no scale, which torch cannot differentiate there."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
    here = GatedConv2d(conv, norm, 500, GateOptions(shift=shift), True).double()
    here.initialise()
    here.gate.initialise()
    x, gradients = torch.randn(4, 3, 8, 8, dtype=torch.float64), []
    for device in ("cpu", "cuda"):
        layer = copy.deepcopy(here).to(device).train()
        layer(x.to(device)).square().sum().backward()
        gradients.append([parameter.grad.cpu() for parameter in layer.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == 4
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
