"""Widths rounded to multiples, against a plain search."""

from __future__ import annotations

import pytest

from bench.models.recipe import Recipe
from bench.pruning.rounding import rounded, to_multiple


@pytest.mark.parametrize("multiple", [8, 16, 32])
def test_the_nearest_multiple(multiple: int) -> None:
    for full in (64, 100, 256):
        allowed = list(range(multiple, full + 1, multiple))
        for width in range(1, full + 1):
            found = to_multiple(width, full, multiple)
            if full % multiple and width > allowed[-1] + multiple / 2 - 1:
                assert found in (full, allowed[-1])
                continue
            nearest = min(allowed, key=lambda m: (abs(m - width), -m))
            assert found == nearest, (width, full)


def test_a_layer_as_narrow_as_the_multiple_keeps_its_width() -> None:
    assert to_multiple(5, 8, 8) == 5 and to_multiple(5, 16, 32) == 5


def test_a_recipe() -> None:
    recipe = Recipe("vgg16", {"num_classes": 10, "form": "cifar"}, (3, 32, 32))
    small = recipe.removed({"features.0": 11, "features.5": 21, "features.10": 73})
    assert rounded(small, 8).widths == {"features.0": 8, "features.5": 24, "features.10": 72}
    assert rounded(small, 32).widths == {"features.0": 32, "features.5": 32, "features.10": 64}
    assert rounded(recipe, 8) == recipe
    rounded(small, 16).build("meta")
