"""The edit that puts the gates of FBS into a network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from bench.gating.convert import convert
from bench.gating.layer import PAPER, GateOptions
from bench.models.edits import Edit
from bench.models.recipe import Recipe


@dataclass(frozen=True)
class Gate(Edit):
    """Every convolution with a batch norm behind it is gated at ``density`` (thousandths), except those ``ungated``.

    ``options`` may be given by the names of its fields; None stands for the paper's.
    """

    kind = "gate"
    density: int
    options: GateOptions = PAPER
    ungated: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.options, GateOptions):
            object.__setattr__(self, "options", GateOptions(**(self.options or {})))
        object.__setattr__(self, "ungated", tuple(sorted(self.ungated)))

    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """Weights carry over; new ones are drawn, by the options, except on ``meta``."""
        on_meta = next(model.parameters()).is_meta
        with torch.device("meta") if on_meta else nullcontext():
            convert(model, self.density, self.options, self.ungated)


def at_density(recipe: Recipe, density: int) -> Recipe:
    """A gated network's recipe at another density (thousandths)."""
    edits = [replace(edit, density=density) if isinstance(edit, Gate) else edit for edit in recipe.edits]
    return replace(recipe, edits=edits)
