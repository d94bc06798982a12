"""A recipe: the JSON that builds a network, dense or pruned, without its weights.

A checkpoint is a recipe plus a safetensors file; a size column is a recipe built on the ``meta`` device; a row trained
from scratch is a recipe with fresh weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from bench.errors import UserError
from bench.models.builders import BUILDERS, Builder
from bench.pruning import surgery


@dataclass(frozen=True)
class Recipe:
    """What builds a network.

    ``builder`` is a name in ``BUILDERS`` or ``package.module:factory`` (a network of the user's own); ``arguments`` are
    its keyword arguments; ``input_shape`` is (channels, height, width); ``widths`` gives the number of filters left in
    each pruned convolution, ``samplers`` the input channels that a convolution behind a channel sampler reads,
    ``biases`` the convolutions to which a reconstruction gave the bias that they lacked.
    """

    builder: str
    arguments: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    widths: Mapping[str, int] = field(default_factory=dict)
    samplers: Mapping[str, list[int]] = field(default_factory=dict)
    biases: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values, keys sorted, so that equal recipes have equal hashes."""
        value: dict[str, Any] = {
            "builder": self.builder,
            "arguments": dict(sorted(self.arguments.items())),
            "input_shape": list(self.input_shape),
            "widths": dict(sorted(self.widths.items())),
            "samplers": {name: list(index) for name, index in sorted(self.samplers.items())},
        }
        return {**value, "biases": sorted(self.biases)} if self.biases else value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """The inverse of :meth:`to_json`."""
        return cls(
            value["builder"],
            value["arguments"],
            tuple(value["input_shape"]),
            value["widths"],
            value["samplers"],
            tuple(value.get("biases", ())),
        )

    @property
    def builders(self) -> tuple[Builder, ...]:
        """The functions that build the network: this recipe's and that of the recipe that it is made from."""
        module, _, function = self.builder.partition(":")
        own = BUILDERS.get(self.builder) or Builder(module, function)
        base = self.arguments.get("base")
        return (own, *(Recipe.from_json(base).builders if isinstance(base, Mapping) else ()))

    def dense(self) -> Recipe:
        """The same network before any removal."""
        return replace(self, widths={}, samplers={}, biases=())

    def build(self, device: str = "cpu") -> nn.Module:
        """The network at these widths, in training mode, with fresh weights (none on ``meta``).

        Widths are applied by the same physical removal that pruning uses, so a recipe cannot describe a network that
        pruning could not have made.  Raises :class:`UserError` for a builder that cannot be found.
        """
        factory = find_builder(self.builder)
        if self.builder in BUILDERS:
            with torch.device("meta"):
                model = factory(**self.arguments)
            surgery.resize(model, self.input_shape, self.widths, self.samplers, self.biases)
            if device != "meta":
                model.to_empty(device=device)
                surgery.set_samplers(model, self.samplers)
                initialise(model)
        else:
            model = factory(**self.arguments)
            surgery.resize(model, self.input_shape, self.widths, self.samplers, self.biases)
            model.to(device)
        return model


def find_builder(name: str) -> Callable[..., nn.Module]:
    """The factory behind a builder's name; ``package.module:factory`` is imported.  Raises :class:`UserError`."""
    if name in BUILDERS:
        return BUILDERS[name]
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(BUILDERS)}, or give MODULE:FACTORY")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot import {module_name!r} of model {name!r}: {error}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UserError(f"{module_name!r} has no function {attribute!r}: give MODULE:FACTORY that returns an nn.Module")
    return factory  # type: ignore[no-any-return]


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Fresh weights: He normal (fan out) in convolutions as torchvision's VGG and ResNet, torch's own elsewhere.

    A network with an ``initialise`` of its own (the detectors) is left to it; a module with one (gated layers) too, but
    not what is in it.
    """
    own = getattr(model, "initialise", None)
    if callable(own):
        own()
        return
    for module in model.modules():
        own = getattr(module, "initialise", None)
        if callable(own):
            own()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
        else:
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
