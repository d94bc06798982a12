"""A step's result that holds a network: a recipe and its state."""

from __future__ import annotations

from typing import Any

from torch import nn

from bench.models.recipe import Recipe
from bench.store import Result


def checkpoint(model: nn.Module, recipe: Recipe, **more: Any) -> Result:
    """A result that holds a network: its recipe and its state."""
    return Result(recipe=recipe.to_json(), state=dict(model.state_dict()), **more)


def network(result: Result) -> tuple[nn.Module, Recipe]:
    """The network of a result, on the CPU in evaluation mode, and its recipe."""
    if result.recipe is None:
        raise ValueError("this step gave no network")
    recipe = Recipe.from_json(result.recipe)
    model = recipe.build()
    model.load_state_dict(result.state)
    return model.eval(), recipe


def takes_channels_last(recipe: Recipe) -> bool:
    """Whether the network takes images of that layout: the suite's own do, a user's may view its maps as vectors."""
    return bool(recipe.builder) and ":" not in recipe.builder
