"""Widths rounded to a multiple that suits the hardware, and the same in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bench.models.edits import Edit, Remove
from bench.models.recipe import Recipe
from bench.pruning import surgery


def to_multiple(width: int, full: int, multiple: int) -> int:
    """The multiple nearest to ``width`` (the larger of two), at least one of them and at most all ``full`` channels.

    A layer with no more than ``multiple`` channels keeps its width: rounding would undo its pruning.
    """
    if full <= multiple:
        return width
    return min(full, max(multiple, multiple * ((2 * width + multiple) // (2 * multiple))))


def rounded(recipe: Recipe, multiple: int) -> Recipe:
    """The recipe with the filters that are left in each convolution rounded; samplers stay as they are."""
    dense = recipe.base.build("cpu" if ":" in recipe.builder else "meta")

    def of(widths: Mapping[str, int]) -> dict[str, int]:
        filters = {name: surgery.convolution(dense, name).out_channels for name in widths}
        return {name: to_multiple(width, filters[name], multiple) for name, width in widths.items()}

    edits: list[Edit] = [Remove(of(edit.widths)) if isinstance(edit, Remove) else edit for edit in recipe.edits]
    return replace(recipe, edits=edits)
