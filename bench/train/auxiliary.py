"""Training a classifier with further losses inside of it (Zhuang et al. 2018, section 3.2; Lee et al. 2015)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.augment import Augmentable, Augmented
from bench.models.capture import captured
from bench.train.fit import History, train
from bench.train.schedule import Schedule


class Head(nn.Module):
    """The classifier of a discrimination-aware loss: batch norm, ReLU, average pooling, one linear layer.

    N x ``channels`` x H x W to N x ``classes`` logits.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """The logits."""
        return self.linear(torch.relu(self.norm(features)).mean((2, 3)))  # type: ignore[no-any-return]


class Heads(nn.ModuleDict):
    """A :class:`Head` for each module of ``net`` in ``positions``; one run on zeros of ``input_shape`` sizes them."""

    def __init__(self, net: nn.Module, positions: Sequence[str], input_shape: Sequence[int], classes: int) -> None:
        channels = {}
        training, weight = net.training, next(net.parameters())
        with contextlib.ExitStack() as stack, torch.no_grad():
            seen = {name: stack.enter_context(captured(net, name)) for name in positions}
            net.eval()(torch.zeros(1, *input_shape, device=weight.device))
            channels = {name: found[0].shape[1] for name, found in seen.items()}
        net.train(training)
        super().__init__({_key(name): Head(count, classes) for name, count in channels.items()})

    def at(self, position: str) -> Head:
        """The head that reads this module's output."""
        head = self[_key(position)]
        assert isinstance(head, Head)
        return head


def _key(position: str) -> str:
    return position.replace(".", "/")


class Discriminating(BaseModel):  # type: ignore[misc]
    """A classifier whose loss is L_f plus ``weights`` (by position) times each head's cross-entropy.

    One forward pass gives all of them, and both gradients are taken at the same weights (the paper's algorithm S1 has
    two steps one after the other).
    """

    static = True

    def __init__(self, net: nn.Module, heads: Heads, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.net, self.heads, self.weights = net, heads, dict(weights)

    def forward(  # type: ignore[override]
        self, images: Tensor, labels: Tensor, mode: str = "loss"
    ) -> dict[str, Tensor] | Tensor:
        """Images B x 3 x H x W, labels B: the losses by name, or the logits B x classes."""
        with contextlib.ExitStack() as stack:
            seen = {name: stack.enter_context(captured(self.net, name)) for name in self.weights}
            outputs = self.net(images)
        if mode != "loss":
            return outputs  # type: ignore[no-any-return]
        losses = {"loss_f": F.cross_entropy(outputs, labels)}
        for name, weight in self.weights.items():
            losses[f"loss_{_key(name)}"] = weight * F.cross_entropy(self.heads.at(name)(seen[name][0]), labels)
        return {**losses, "accuracy": (outputs.detach().argmax(1) == labels).float().mean()}


def fit_with_heads(
    net: nn.Module,
    heads: Heads,
    weights: Mapping[str, float],
    split: Augmentable,
    schedule: Schedule,
    seed: int,
    work: Path,
    device: str,
    label: str,
    workers: int = 0,
    progress: bool = True,
) -> History:
    """Trains ``net`` and ``heads`` in place with augmentation; on the CPU and in evaluation mode afterwards."""
    data = Augmented(split.on(device), seed)
    workers = workers if split.decodes else 0
    model = Discriminating(net, heads, weights)
    history = train(model, data, schedule, seed, work, device, label, workers, progress)
    net.cpu().eval()
    heads.cpu().eval()
    return history
