"""Properties of pruning over many small networks: traced == given, removed == masked, refitted == given.

The networks are assembled by number.  Each block keeps N x ``WIDTH`` x H x W.  A convolution called ``c1`` has its
norm, if any, in ``n1``.
"""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.pruning.calibration import Sampling, calibrate
from bench.pruning.faithful import copied, run_graph
from bench.pruning.graph import find_sites, trace
from bench.pruning.layerwise import Method, prune
from bench.pruning.surgery import remove_filters

WIDTH = 6
ACTIVATIONS = ("module", "module in place", "function", "function in place", "method", "statement", "torch.relu_")
ADDITIONS = ("operator", "iadd", "statement", "torch.add", "alpha")


class Styled(nn.Module):
    """Ways of writing a ReLU and an addition that compute the same (but for ``alpha``)."""

    def __init__(self, activation: str, addition: str, norms: bool, bias: bool) -> None:
        super().__init__()
        self.activation, self.addition, self.norms, self.bias = activation, addition, norms, bias
        self.relu = nn.ReLU(inplace=activation == "module in place")

    def layer(self, number: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        """Adds the convolution c<number> and, with norms, n<number>."""
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=self.bias or not self.norms)
        self.add_module(f"c{number}", conv)
        self.add_module(f"n{number}", nn.BatchNorm2d(outputs) if self.norms else nn.Identity())

    def call(self, number: int, x: Tensor) -> Tensor:
        """norm(conv(x))."""
        return self.get_submodule(f"n{number}")(self.get_submodule(f"c{number}")(x))  # type: ignore[no-any-return]

    def act(self, x: Tensor) -> Tensor:
        """The ReLU; some ways change ``x`` itself."""
        if self.activation in ("module", "module in place"):
            return self.relu(x)  # type: ignore[no-any-return]
        if self.activation == "statement":
            x.relu_()
            return x
        ways = {
            "function": F.relu,
            "function in place": lambda t: F.relu(t, True),
            "method": lambda t: t.relu(),
            "torch.relu_": torch.relu_,
        }
        return ways[self.activation](x)

    def plus(self, x: Tensor, y: Tensor) -> Tensor:
        """The residual addition; some ways change ``y``."""
        if self.addition == "iadd":
            y += x
            return y
        if self.addition == "statement":
            y.add_(x)
            return y
        if self.addition == "torch.add":
            return torch.add(x, y)
        return torch.add(x, y, alpha=0.2) if self.addition == "alpha" else x + y


class Residual(Styled):
    """c1 n1 relu c2 n2 + x, relu."""

    def __init__(self, *style: object) -> None:
        super().__init__(*style)  # type: ignore[arg-type]
        self.layer(1, WIDTH, 5)
        self.layer(2, 5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.plus(x, self.call(2, self.act(self.call(1, x)))))


class PreActivation(Styled):
    """n0 relu c1 n1 relu c2 + x, where x is what the first ReLU has made of it where that works in place."""

    def __init__(self, *style: object) -> None:
        super().__init__(*style)  # type: ignore[arg-type]
        self.first = nn.BatchNorm2d(WIDTH) if self.norms else nn.Identity()
        self.layer(1, WIDTH, 7)
        self.layer(2, 7, WIDTH)
        self.n2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out = self.act(x)
        out = self.c2(self.act(self.call(1, out)))  # type: ignore[operator]
        return self.plus(x, out)


class Concatenation(Styled):
    """Two branches, one of two convolutions, side by side, and a 1x1 convolution that reads both."""

    def __init__(self, *style: object) -> None:
        super().__init__(*style)  # type: ignore[arg-type]
        self.layer(1, WIDTH, 4, kernel=1)
        self.layer(2, 4, 3)
        self.layer(3, WIDTH, 5)
        self.layer(4, 8, WIDTH, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.act(self.call(2, self.act(self.call(1, x))))
        return self.act(self.call(4, torch.cat([left, self.act(self.call(3, x))], 1)))


class SqueezeExcite(Styled):
    """c1 n1 relu c2 n2, scaled channel by channel by two 1x1 convolutions of its own mean, + x."""

    def __init__(self, *style: object) -> None:
        super().__init__(*style)  # type: ignore[arg-type]
        self.layer(1, WIDTH, 6)
        self.layer(2, 6, WIDTH)
        self.down, self.up = nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(4, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.call(2, self.act(self.call(1, x)))
        gate = torch.sigmoid(self.up(self.act(self.down(F.adaptive_avg_pool2d(out, 1)))))
        return self.plus(x, out * gate)


class Shared(Styled):
    """c1 is called twice, the norm n2 stands behind c2 and c3."""

    def __init__(self, *style: object) -> None:
        super().__init__(*style)  # type: ignore[arg-type]
        self.layer(1, WIDTH, WIDTH)
        self.layer(2, WIDTH, 5)
        self.c3, self.c4 = nn.Conv2d(WIDTH, 5, 3, padding=1), nn.Conv2d(5, WIDTH, 1)
        self.c5, self.c6 = nn.Conv2d(WIDTH, 8, 1), nn.Conv2d(8, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.call(1, self.act(self.call(1, x))))
        both = self.act(self.call(2, x)) + self.act(self.n2(self.c3(x)))  # type: ignore[operator]
        return self.c6(self.act(self.c5(self.c4(both))))  # type: ignore[no-any-return, operator]


class Pooled(Styled):
    """A plain chain with dropout, identity and pooling on the way."""

    def __init__(self, *style: object) -> None:
        super().__init__(*style)  # type: ignore[arg-type]
        self.layer(1, WIDTH, 8)
        self.layer(2, 8, 5, kernel=1)
        self.layer(3, 5, WIDTH)
        self.drop, self.pool = nn.Dropout(0.5, inplace=self.activation == "module in place"), nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.call(1, x)))
        x = F.dropout(self.pool(self.act(self.call(2, x))), 0.3, self.training)
        return self.call(3, x)


BLOCKS = (Residual, PreActivation, Concatenation, SqueezeExcite, Shared, Pooled)


class Network(nn.Module):
    """Number ``number`` of the zoo: a stem, three blocks (the first one's kind and ways by turns) and a head.

    The head averages or flattens.  Input N x 3 x 8 x 8, output N x 4.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        draw = random.Random(number)
        kinds = [BLOCKS[number % len(BLOCKS)], draw.choice(BLOCKS), draw.choice(BLOCKS)]
        styles = [(ACTIVATIONS[number % len(ACTIVATIONS)], ADDITIONS[number % len(ADDITIONS)])]
        styles += [(draw.choice(ACTIVATIONS), draw.choice(ADDITIONS)) for _ in range(2)]
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(
            *(kind(*style, draw.random() < 0.7, draw.random() < 0.5) for kind, style in zip(kinds, styles, strict=True))
        )
        self.flat = draw.random() < 0.5
        self.head = nn.Linear(WIDTH * (16 if self.flat else 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x 8 x 8 to N x 4."""
        x = F.max_pool2d(self.blocks(self.stem(x)), 2)
        return self.head(torch.flatten(x, 1) if self.flat else x.mean((2, 3)))  # type: ignore[no-any-return]


def network(number: int) -> Network:
    """The network in evaluation mode, with random weights and norms that are far from the identity."""
    torch.manual_seed(number)
    model = Network(number).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.3)
                module.running_mean.normal_(0.0, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return model


def images(count: int, seed: int = 0) -> Tensor:
    """N x 3 x 8 x 8."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))  # type: ignore[no-any-return]


NUMBERS = range(48)
EXACT = 1e-5  # of the largest output


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def given(model: nn.Module, x: Tensor) -> Tensor:
    """What the network itself computes, on images of its own (it may change them)."""
    return copy.deepcopy(model)(x.clone())  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_traced_network_is_the_given_one(number: int) -> None:
    model, x = network(number), images(4)
    assert distance(run_graph(model, trace(model), x), given(model, x)) <= EXACT


@pytest.mark.parametrize("number", NUMBERS)
def test_removing_is_masking_with_the_norm_s_scale_and_shift(number: int) -> None:
    model, x = network(number), images(3)
    sites = [site for site in find_sites(model, trace(model)) if site.producer is not None]
    masked, removed = copied(model), copied(model)
    for place, site in enumerate(sites):
        filters = model.get_submodule(site.producer).out_channels  # type: ignore[arg-type]
        gone = sorted(torch.randperm(filters, generator=torch.Generator().manual_seed(place))[: filters // 2].tolist())
        norm = site.producer.rpartition(".")[0] + ".n" + site.producer[-1]  # type: ignore[union-attr]
        names = [site.producer, *([norm] if norm in dict(model.named_modules()) else [])]
        with torch.no_grad():
            for name in names:
                for parameter in masked.get_submodule(name).parameters():  # type: ignore[arg-type]
                    parameter[gone] = 0.0
        remove_filters(removed, (3, 8, 8), site.producer, gone)  # type: ignore[arg-type]
    assert distance(given(removed, x), given(masked, x)) <= EXACT


def test_the_zoo_has_sites_of_every_kind() -> None:
    """Otherwise the properties would be about nothing."""
    found = [find_sites(model, trace(model)) for model in map(network, NUMBERS)]
    assert sum(any(site.producer for site in sites) for sites in found) >= 40
    assert sum(any(site.shortcut for site in sites) for sites in found) >= 15


@pytest.mark.parametrize("number", NUMBERS[:30])
def test_refitting_without_removal_computes_the_same_and_the_given_network_stays(number: int) -> None:
    """Every fold, fit and unfold of every site, at once; the answer is known: the network itself."""
    model, x = network(number), images(40)
    before, outputs = copy.deepcopy(model.state_dict()), given(model, x)
    flags = {name: vars(module).get("inplace") for name, module in model.named_modules()}
    calibration = calibrate(model, x, Sampling(positions=20, batch=20), progress=False)
    refitted, reports = prune(model, calibration, {}, Method(refit=True), progress=False)
    assert reports
    assert distance(given(refitted, x), outputs) <= 1e-4  # of a least squares
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: vars(module).get("inplace") for name, module in model.named_modules()} == flags
    assert {name: vars(module).get("inplace") for name, module in refitted.named_modules()} == flags
