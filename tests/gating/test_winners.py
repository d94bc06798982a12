"""Exactly k winners, ties to the first: against sorting in plain Python."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.gating.winners import strict_mask, winner_count, winner_mask, winners

# few different values, so that ties are common
SCORES = st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, -1.0, 2.0]), min_size=1, max_size=12)


@given(st.integers(1, 1000), st.integers(1, 600))
def test_the_count_is_the_ceiling_in_exact_arithmetic(density: int, channels: int) -> None:
    assert winner_count(density, channels) == math.ceil(Fraction(density, 1000) * channels)
    assert 1 <= winner_count(density, channels) <= channels


def test_stepping_by_tenths_meets_no_rounding() -> None:
    """In floats 1 - 5 * 0.1 is 0.5000000000000001 and would give 6 of 10."""
    d = 1.0
    for _ in range(5):
        d -= 0.1
    assert math.ceil((d + 1e-16) * 10) == 6 or math.ceil(0.5000000000000001 * 10) == 6
    assert winner_count(1000 - 5 * 100, 10) == 5


@pytest.mark.parametrize("density", [0, -1, 1001])
def test_a_density_outside_is_a_user_error(density: int) -> None:
    with pytest.raises(UserError, match="thousandths"):
        winner_count(density, 10)


@given(SCORES, st.data())
def test_winners_are_the_first_of_the_largest(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
    g = torch.tensor([scores, scores[::-1]])
    mask = winner_mask(g, k)
    assert set(winners(g, k)[0].tolist()) == set(expected)
    assert mask[0].nonzero()[:, 0].tolist() == sorted(expected)
    assert mask.sum(1).tolist() == [k, k]
    assert mask.dtype == torch.bool
    # nobody outside is larger than anybody inside
    if k < len(scores):
        assert g[0][mask[0]].min() >= g[0][~mask[0]].max()


@given(SCORES, st.data())
def test_the_official_rule_gives_at_most_k(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    threshold = sorted(scores, reverse=True)[k] if k < len(scores) else -math.inf
    mask = strict_mask(torch.tensor([scores]), k)[0]
    assert mask.tolist() == [value > threshold for value in scores]
    assert int(mask.sum()) <= k
