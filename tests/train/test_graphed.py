"""A training step as a graph: the same training as without, by a stand-in for the graph here, by CUDA's where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.data.images import MemorySplit
from bench.models.recipe import Recipe
from bench.train import graphed
from bench.train.auxiliary import Discriminating, Heads, fit_with_heads
from bench.train.fit import Classifier, History, fit, seed_everything
from bench.train.schedule import Schedule

# 40 images in batches of 16: two of one size, and a smaller one at the end of each epoch
SCHEDULE = Schedule(epochs=3, lr=0.05, batch=16, momentum=0.9, weight_decay=0.01)


def split() -> MemorySplit:
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return MemorySplit(images, torch.arange(40) % 4, (0.5,) * 3, (0.25,) * 3, pad=1, mirror=True)


def network() -> nn.Module:
    seed_everything(3)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(body, nn.Flatten(), nn.Dropout(0.2), nn.Linear(288, 4))


def state(net: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


class StandIn:
    """What a graph does, without one: a replay writes where the capture wrote, and nowhere else."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, passes: Callable[[], None]) -> Callable[[], None]:
        step = passes.__closure__
        assert step is not None
        passes()  # as the warm-up, it moves running statistics and draws
        owner = next(cell.cell_contents for cell in step if isinstance(cell.cell_contents, graphed.GraphedStep))
        passes()
        self.captures += 1
        held = {p: p.grad for p in owner.model.parameters() if p.grad is not None}
        values = owner._values
        assert values is not None

        def replay() -> None:
            self.replays += 1
            passes()
            for parameter, gradient in held.items():
                assert parameter.grad is not None
                gradient.copy_(parameter.grad)
                parameter.grad = None
            values.copy_(owner._values)
            owner._values = values

        return replay


def trained(folder: Path, heads: bool = False, device: str = "cpu") -> tuple[Tensor, History]:
    net = network()
    if not heads:
        history = fit(net, split(), SCHEDULE, 0, folder, device, progress=False)
        return state(net), history
    recipe = Recipe("unused", {}, (3, 8, 8))
    extra = Heads(net, ["0"], recipe.input_shape, 4)
    history = fit_with_heads(net, extra, {"0": 0.5}, split(), SCHEDULE, 0, folder, device, "x", progress=False)
    return torch.cat([state(net), state(extra)]), history


@pytest.mark.parametrize("heads", [False, True])
def test_replayed_steps_train_as_started_ones_do(heads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, history = trained(tmp_path / "plain", heads)
    stand_in = StandIn()
    monkeypatch.setattr(graphed, "can_be_graphed", lambda *_: True)
    monkeypatch.setattr(graphed, "_captured", stand_in)
    replayed, theirs = trained(tmp_path / "replayed", heads)
    assert torch.equal(replayed, plain)
    assert theirs == history
    assert stand_in.captures == 1 and stand_in.replays == 3 * 2


def test_what_cannot_be_captured_is_trained_all_the_same_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, _ = trained(tmp_path / "plain")

    def broken(passes: Callable[[], None]) -> Callable[[], None]:
        passes()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graphed, "can_be_graphed", lambda *_: True)
    monkeypatch.setattr(graphed, "_captured", broken)
    found, _ = trained(tmp_path / "broken")
    assert torch.equal(found, plain)
    assert capsys.readouterr().err.count("no CUDA graph of the training (operation not permitted") == 1


class Counting(nn.Module):
    """A network of a user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_only_what_does_the_same_in_every_pass_is_captured() -> None:
    plain, heads = Classifier(network()), Heads(network(), ["0"], (3, 8, 8), 4)
    table = [
        (plain, "cuda", False, True),
        (plain, "cuda:0", False, True),
        (Discriminating(network(), heads, {"0": 1.0}), "cuda", False, True),
        (plain, "cpu", False, False),
        (plain, "cuda", True, False),
        (Classifier(network(), lambda net: torch.zeros(())), "cuda", False, False),
        (Classifier(nn.Sequential(network(), Counting())), "cuda", False, False),
    ]
    for model, device, amp, expected in table:
        assert graphed.can_be_graphed(model, device, amp) is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("heads", [False, True])
def test_cudas_graph_trains_as_the_started_kernels_do(
    heads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, history = trained(tmp_path / "graph", heads, "cuda")
    assert "no CUDA graph" not in capsys.readouterr().err
    monkeypatch.setattr(graphed, "can_be_graphed", lambda *_: False)
    plain, theirs = trained(tmp_path / "plain", heads, "cuda")
    torch.testing.assert_close(graph, plain, rtol=1e-4, atol=1e-5)
    for ours, other in zip(history, theirs, strict=True):
        assert ours == pytest.approx(other, rel=1e-4)
