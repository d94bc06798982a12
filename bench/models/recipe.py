"""A recipe: the JSON that builds a network without its weights: a base, and the edits that change it, in order.

A checkpoint is a recipe plus a safetensors file; a size column is a recipe built on the ``meta`` device; a row trained
from scratch is a recipe with fresh weights.  The base is the network before any edit: what MACs are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bench.errors import UserError
from bench.models.builders import BUILDERS, Builder, find
from bench.models.edits import Bias, Edit, Remove, Sample, edit, read, simplified
from bench.models.initial import initialise


@dataclass(frozen=True)
class Recipe:
    """What builds a network.

    ``builder`` is a name in ``BUILDERS`` or ``package.module:factory`` (a network of the user's own); ``arguments`` are
    its keyword arguments; ``input_shape`` is (channels, height, width); ``edits`` are applied to it in order.  Edits
    that do nothing are left out and neighbours of one kind are joined, so that they make no difference.
    """

    builder: str
    arguments: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    edits: Sequence[Edit] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", simplified(self.edits))

    @property
    def base(self) -> Recipe:
        """The network before any edit: the reference for MACs, speed-ups and shares of parameters."""
        return replace(self, edits=())

    # --- more edits --------------------------------------------------------------------------------------------------

    def edited(self, *edits: Edit) -> Recipe:
        """This network with more edits behind those that it has."""
        return replace(self, edits=(*self.edits, *edits))

    def removed(self, widths: Mapping[str, int]) -> Recipe:
        """With so many filters left in these convolutions."""
        return self.edited(Remove(widths))

    def sampled(self, channels: Mapping[str, Sequence[int]]) -> Recipe:
        """With channel samplers in front of these convolutions, which read the given channels of their input."""
        return self.edited(Sample(channels))

    def biased(self, names: Iterable[str]) -> Recipe:
        """With a bias in these convolutions, where they have none."""
        return self.edited(Bias(tuple(names)))

    def gated(self, density: int, options: object = None, ungated: Sequence[str] = ()) -> Recipe:
        """With the gates of FBS (:class:`bench.gating.edit.Gate`) at a density in thousandths.

        ``options`` are :class:`bench.gating.layer.GateOptions`; None: the paper's.
        """
        # by its kind, not by its class: the code of gates stays out of the keys of recipes without
        return self.edited(edit("gate", density=density, options=options, ungated=tuple(ungated)))

    # --- what the edits say ------------------------------------------------------------------------------------------

    @property
    def widths(self) -> dict[str, int]:
        """The filters left in each convolution that lost some."""
        return {name: width for one in self.edits if isinstance(one, Remove) for name, width in one.widths.items()}

    @property
    def samplers(self) -> dict[str, list[int]]:
        """The channels of its input that each convolution behind a channel sampler reads."""
        return {
            name: list(read) for one in self.edits if isinstance(one, Sample) for name, read in one.channels.items()
        }

    @property
    def biases(self) -> tuple[str, ...]:
        """The convolutions that got the bias that they lacked."""
        return tuple(sorted({name for one in self.edits if isinstance(one, Bias) for name in one.names}))

    def last(self, kind: str) -> Any:
        """The last edit of a kind (a name in ``EDITS`` or MODULE:CLASS), or None."""
        return next((one for one in reversed(self.edits) if one.kind == kind), None)

    # --- JSON --------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values, keys sorted, so that equal recipes have equal hashes."""
        return {
            "builder": self.builder,
            "arguments": dict(sorted(self.arguments.items())),
            "input_shape": list(self.input_shape),
            "edits": [one.to_json() for one in self.edits],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """The inverse of :meth:`to_json`; also reads what was written before recipes had edits.

        Raises :class:`UserError` for an edit that cannot be found.
        """
        if "edits" not in value:
            return _from_older(value)
        edits = [read(one) for one in value["edits"]]
        return cls(value["builder"], value["arguments"], tuple(value["input_shape"]), edits)

    # --- networks ----------------------------------------------------------------------------------------------------

    @property
    def factory(self) -> Builder:
        """Where the function that builds the base is found."""
        module, _, function = self.builder.partition(":")
        return BUILDERS.get(self.builder) or Builder(module, function)

    def apply(self, model: nn.Module) -> None:
        """Makes the base, ``model``, the network of this recipe, in place; the weights that stay are kept.

        Raises :class:`UserError` where an edit does not fit the network.
        """
        for one in self.edits:
            one.apply(model, self.input_shape)

    def build(self, device: str = "cpu") -> nn.Module:
        """The network, in training mode, with fresh weights (none on ``meta``).

        Edits are the same physical changes that pruning makes, so a recipe cannot describe a network that pruning could
        not have made.  Raises :class:`UserError` for a builder that cannot be found or an edit that does not fit.
        """
        factory = find_builder(self.builder)
        if self.builder not in BUILDERS:
            model = factory(**self.arguments)
            self.apply(model)
            return model.to(device)
        with torch.device("meta"):
            model = factory(**self.arguments)
        self.apply(model)
        if device != "meta":
            # what an edit has fixed (a sampler's indices) is no weight and holds its values already
            fixed = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_meta}
            model.to_empty(device=device)
            for name, buffer in fixed.items():
                model.get_buffer(name).copy_(buffer)
            initialise(model)
        return model


def _from_older(value: Mapping[str, Any]) -> Recipe:
    """A recipe in the form that had samplers, widths and biases, and gates as a builder around another recipe."""
    arguments = value["arguments"]
    if value["builder"] == "gated":
        gate = {"density": arguments.get("density", 1000)}
        gate |= {name: arguments[name] for name in ("options", "ungated") if name in arguments}
        recipe = Recipe.from_json(arguments["base"]).edited(read({"kind": "gate", **gate}))
    else:
        recipe = Recipe(value["builder"], arguments, tuple(value["input_shape"]))
    return recipe.sampled(value["samplers"]).removed(value["widths"]).biased(value.get("biases", ()))


def network_of(name: str) -> nn.Module:
    """The network that MODULE:FACTORY returns.  Raises :class:`UserError` where it returns another thing or cannot."""
    factory = find_builder(name)
    try:
        network = factory()
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise UserError(f"{name} cannot be called without arguments ({error}): give a factory that can") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} returns a {type(network).__name__}, not an nn.Module")
    return network


def find_builder(name: str) -> Callable[..., nn.Module]:
    """The factory behind a builder's name; ``package.module:factory`` is imported.  Raises :class:`UserError`."""
    if name in BUILDERS:
        return BUILDERS[name]
    if ":" not in name:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(BUILDERS)}, or give MODULE:FACTORY")
    factory = find(name, "model")
    if not callable(factory):
        module, _, function = name.partition(":")
        raise UserError(f"{module!r} has no function {function!r}: give MODULE:FACTORY that returns an nn.Module")
    return factory  # type: ignore[no-any-return]
