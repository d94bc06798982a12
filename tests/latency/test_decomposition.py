"""Layers and their times: counts by hand, and causes that add up to the gap."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from bench.latency import decomposition, roofline
from bench.latency.decomposition import REST, measured, multiple, paragraph, why
from bench.latency.roofline import Roofline

PEAK = Roofline(100e9, 10e9, 1)


class Small(nn.Module):
    """A convolution, a ReLU that is used twice, an addition outside of modules, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(x))
        y = self.relu(y + 1.0)
        return self.fc(y.mean((2, 3)))  # type: ignore[no-any-return]


def test_layers_by_hand() -> None:
    macs = {"conv": 3 * 12 * 9 * 64, "fc": 12 * 16}
    found = {layer["layer"]: layer for layer in measured(Small().eval(), torch.randn(2, 3, 8, 8), macs, PEAK)}
    assert list(found) == ["conv", "relu", "fc", REST]
    assert sum(layer["share"] for layer in found.values()) == pytest.approx(100.0)
    assert found["conv"]["macs"] == 2 * 3 * 12 * 9 * 64 and found["relu"]["macs"] == 0
    # two images in and out and the weights, four bytes each
    assert found["conv"]["bytes"] == 4 * (2 * 3 * 64 + 2 * 12 * 64 + 12 * 3 * 9)
    assert found["relu"]["bytes"] == 2 * 4 * 2 * (2 * 12 * 64)
    assert found["fc"]["bytes"] == 4 * (2 * 12 + 2 * 16 + 12 * 16 + 16)
    conv = found["conv"]
    assert conv["intensity"] == pytest.approx(2 * conv["macs"] / conv["bytes"])
    assert conv["gflops_per_s"] == pytest.approx(2 * conv["macs"] / conv["ms"] / 1e6)
    roof = min(100e9, 10e9 * conv["intensity"])
    assert conv["of_roofline"] == pytest.approx(100 * 1e9 * conv["gflops_per_s"] / roof)
    assert (conv["inputs"], conv["outputs"], conv["multiple"]) == (3, 12, 1)
    # one convolution, two ReLUs, one linear layer; an addition and a mean between them
    assert [found[name]["launches"] for name in found] == [1, 2, 1, 2]


def test_a_layer_that_takes_no_time_computes_nothing_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two events of a GPU around a layer that does nothing there may be 0 ms."""
    seconds = itertools.cycle([1.0, 0.0, 0.0])  # the whole pass, then each of the two layers
    monkeypatch.setattr(decomposition._Clock, "seconds", lambda self, begin, end: next(seconds))
    found = measured(nn.Sequential(nn.Identity(), nn.Linear(4, 2)), torch.ones(1, 4), {"1": 8}, PEAK)
    assert [entry.get("gflops_per_s") for entry in found] == [0.0, 0.0, None]
    assert [entry.get("of_roofline") for entry in found] == [None, None, None]


def test_networks_that_are_compared_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down with every pass: each network's passes have the same mean place."""
    order: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.layer = name, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            order.append(self.name)
            return self.layer(x)  # type: ignore[no-any-return]

    monkeypatch.setattr(decomposition, "_LEAST_SECONDS", 0.0)
    x = torch.ones(1, 1)
    found = decomposition.together({name: (Named(name), x, {}) for name in ("a", "b")}, PEAK)
    assert list(found) == ["a", "b"]
    # one pass each warms up; seven turns; one pass each counts what is started
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" + "ba" + "ab" + "ba" + "ab" + "ab"


@pytest.mark.parametrize(("widths", "expected"), [((64, 32), 32), ((16, 48), 16), ((3, 24), 8), ((64, 12), 1)])
def test_multiples(widths: tuple[int, ...], expected: int) -> None:
    assert multiple(*widths) == expected


def layer(name: str, ms: float, macs: int = 0, **more: object) -> dict[str, object]:
    return {"layer": name, "ms": ms, "macs": macs, "launches": 1, **more}


DENSE = [layer("a", 10.0, 600), layer("relu", 2.0), layer("b", 6.0, 400), layer(REST, 2.0)]
# a: a sixth of its MACs in a fifth of its time; b keeps all; ReLU a half, the rest unchanged
PRUNED = [
    layer("a", 2.0, 100, inputs=3, outputs=10, multiple=1, of_roofline=40.0),
    layer("relu", 1.0),
    layer("b", 6.0, 400, inputs=32, outputs=32, multiple=32, of_roofline=50.0),
    layer(REST, 2.0),
]


def test_the_causes_by_hand() -> None:
    """Half of the MACs are left, so 10 of 20 ms are expected; 11 were taken."""
    found = why(DENSE, PRUNED)
    assert (found.dense, found.pruned, found.expected) == (20.0, 11.0, 10.0)
    assert found.uncounted == pytest.approx(0.0)  # 1 - 0.5 * 2
    assert found.rest == pytest.approx(1.0)  # 2 - 0.5 * 2
    assert found.allocation == pytest.approx(10 * (1 / 6 - 0.5) + 6 * (1.0 - 0.5))
    assert found.efficiency == pytest.approx(2.0 - 10 / 6)
    assert found.uncounted + found.rest + found.allocation + found.efficiency == pytest.approx(1.0)
    assert [name for name, _ in found.slowest] == ["a"]


def test_layers_that_went_or_came_are_accounted_for() -> None:
    """A head that was replaced: its layers are in one network only."""
    pruned = [layer("a", 4.0, 300), layer("relu", 2.0), layer("pool", 0.5), layer(REST, 1.0)]
    found = why(DENSE, pruned)
    total = found.uncounted + found.rest + found.allocation + found.efficiency
    assert total == pytest.approx(found.pruned - found.expected)
    assert found.expected == pytest.approx(20 * 0.3)


def test_the_paragraph_names_causes_layers_and_widths() -> None:
    text = paragraph("net", why(DENSE, PRUNED), DENSE, PRUNED)
    assert "20.0 ms became 11.0 ms (1.82x); in proportion to the MACs it would be 10.0 ms (2.00x)" in text
    assert "The difference of +1.0 ms: +1.0 ms by what happens between the layers" in text
    assert "Most is lost in a (+0.3 ms, 3 -> 10 channels, 40 % of the roofline)" in text
    assert "1 of 2 layers with weights have widths that are no multiple of 8; they take 18 % of the time" in text
    assert "4 dense, 4 pruned" in text


def test_the_roofline_is_a_product_and_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 0.1 s for the product of 100 and 0.2 s for the copy of 1 MB read and written."""
    seconds = iter([0.1, 0.2])
    monkeypatch.setattr(roofline, "_best", lambda function, cuda, times: next(seconds))
    found = roofline.measured("cpu", torch.float32, 100, 1)
    assert found.flops == pytest.approx(2e6 / 0.1) and found.bytes == pytest.approx(2e6 / 0.2)
    assert found.ridge == pytest.approx(2.0) and found.at(1.0) == pytest.approx(1e7) and found.at(9.0) == found.flops
    monkeypatch.undo()
    real = roofline.measured("cpu", torch.float32, 64, 1, 2)
    assert 1e6 < real.flops < 1e15 and 1e6 < real.bytes < 1e15


def test_views_are_no_launches() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            return self.flat(x).t().reshape(-1)

    found = decomposition.measured(Views(), torch.randn(1, 2, 2, 2), {}, PEAK)
    assert [entry["launches"] for entry in found] == [0, 0]
