"""The recipe of a gated network, and what builds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from bench.errors import UserError
from bench.gating.convert import convert
from bench.gating.layer import GateOptions
from bench.models.recipe import Recipe


def gated(
    base: Mapping[str, Any] | None = None,
    density: int = 1000,
    options: Mapping[str, str] | None = None,
    ungated: Sequence[str] = (),
) -> nn.Module:
    """The FBS form of another recipe's network (``base``, as JSON) at a density in thousandths, on ``meta``."""
    if base is None:
        raise UserError("a gated network is made from another one: give the recipe of that as `base`")
    model = Recipe.from_json(base).build("meta")
    convert(model, density, GateOptions(**(options or {})), ungated)
    return model


def gated_recipe(base: Recipe, density: int, options: GateOptions, ungated: Sequence[str]) -> Recipe:
    """The recipe of ``base`` with gates."""
    arguments = {"base": base.to_json(), "density": density, "options": asdict(options), "ungated": list(ungated)}
    return Recipe(gated.__name__, arguments, base.input_shape)


def original(recipe: Recipe) -> Recipe:
    """The dense, ungated network behind a recipe."""
    if recipe.builder == gated.__name__:
        return original(Recipe.from_json(recipe.arguments["base"]))
    return recipe.dense()
