"""Every outcome of a verdict on hand-computed cases, boundaries included, and what must hold for all numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.registry import Published
from bench.verdict import not_run, verdict


def published(
    printed: str = "90.0",
    direction: str = "higher",
    tolerance: float | None = 0.5,
    unit: str = "%",
) -> Published:
    """A published value with the fields a verdict reads."""
    return Published(
        paper="toy",
        table="Table 1",
        row="ours",
        model="VGG-16",
        dataset="ImageNet",
        metric="metric",
        value=float(printed.removeprefix("~")) if printed else None,
        unit=unit,
        convention="",
        protocol="",
        direction=direction,
        tolerance=tolerance,
        source="",
        verified=True,
        printed=printed,
    )


def judge(measured: float, row: Published, half_width: float | None = None, cap: float | None = None) -> str:
    """The verdict at the row's own scale, with a symmetric interval."""
    low, high = (None, None) if half_width is None else (measured - half_width, measured + half_width)
    return verdict(measured, low, high, row, analogue=False, cap=cap)


@pytest.mark.parametrize(
    ("measured", "direction", "expected"),
    [
        (90.0, "higher", "reproduced"),
        (90.5, "higher", "reproduced"),  # on the boundary
        (89.5, "higher", "reproduced"),
        (90.51, "higher", "better"),
        (89.49, "higher", "not reproduced"),
        (90.5, "lower", "reproduced"),
        (89.5, "lower", "reproduced"),
        (90.51, "lower", "not reproduced"),
        (89.49, "lower", "better"),
        (math.nan, "higher", "not reproduced"),
        (math.nan, "lower", "not reproduced"),
    ],
)
def test_tolerance_and_direction(measured: float, direction: str, expected: str) -> None:
    assert judge(measured, published(direction=direction)) == expected


@pytest.mark.parametrize(
    ("printed", "tolerance", "half_width", "measured", "expected"),
    [
        ("90", 0.1, None, 89.5, "reproduced"),  # half the last printed digit, 0.5, is the largest
        ("90", 0.1, None, 89.49, "not reproduced"),
        ("90.00", None, None, 89.995, "reproduced"),  # 0.005, and no tolerance of the row's own
        ("90.00", None, None, 89.99, "not reproduced"),
        ("90.00", 0.1, 0.75, 89.25, "reproduced"),  # our half-width, 0.75, is the largest
        ("90.00", 0.1, 0.75, 89.125, "not reproduced"),
        ("90.00", 0.1, 0.75, 90.875, "better"),
        ("90.00", 0.5, 0.25, 89.5, "reproduced"),  # the tolerance is the largest
    ],
)
def test_the_largest_of_the_three_margins_counts(
    printed: str, tolerance: float | None, half_width: float | None, measured: float, expected: str
) -> None:
    assert judge(measured, published(printed, tolerance=tolerance), half_width) == expected


def test_the_half_width_is_half_of_the_whole_interval() -> None:
    # 88.0 to 90.5 has half-width 1.25, wherever the measured value lies in it.
    assert verdict(89.0, 88.0, 90.5, published(), analogue=False) == "reproduced"
    assert verdict(88.5, 88.0, 90.5, published(), analogue=False) == "not reproduced"


@pytest.mark.parametrize(
    ("half_width", "cap", "expected"),
    [
        (1.0, 0.75, "inconclusive"),
        (0.75, 0.75, "reproduced"),  # at the cap it still decides
        (1.0, None, "reproduced"),
        (None, 0.0, "reproduced"),  # no interval, nothing above a cap
    ],
)
def test_a_half_width_above_the_cap_decides_nothing(half_width: float | None, cap: float | None, expected: str) -> None:
    assert judge(90.0, published(), half_width, cap) == expected


@pytest.mark.parametrize("measured", [50.0, 90.0, 99.0])
def test_inconclusive_hides_good_and_bad_news_alike(measured: float) -> None:
    assert judge(measured, published(), half_width=2.0, cap=1.0) == "inconclusive"


@pytest.mark.parametrize(
    ("printed", "tolerance", "measured", "expected"),
    [
        ("15346630656", None, 15346630656, "exact"),  # counts have to be equal
        ("15346630656", None, 15346630655, "wrong"),
        ("24", None, 24, "exact"),
        ("24", None, 24.25, "wrong"),
        ("24", None, math.nextafter(24, 25), "wrong"),  # a count has no rounding to forgive
        ("15.47", 0.005, 15.470264320, "exact"),  # VGG-16's conv+fc MACs, printed in G
        ("15.47", 0.005, 15.475, "exact"),  # on the boundary
        ("15.47", 0.005, 15.465, "exact"),  # too, though 15.47 - 15.465 > 0.005 in binary
        ("15.47", 0.005, 15.4751, "wrong"),
        ("15.47", 0.005, 15.4649, "wrong"),
        ("15.47", 0.005, 15.346630656, "wrong"),
        ("2.129", 0.0005, 2.1287, "exact"),
        ("2.129", 0.0005, 2.1284, "wrong"),
        ("~1", 0.5, 1.4, "exact"),
        ("24", None, math.nan, "wrong"),
    ],
)
def test_exact_rows(printed: str, tolerance: float | None, measured: float, expected: str) -> None:
    row = published(printed, "exact", tolerance, unit="")
    assert judge(measured, row) == expected
    # An interval can neither widen nor suspend an exact comparison.
    assert judge(measured, row, half_width=10.0, cap=1.0) == expected


@pytest.mark.parametrize("unit", ["ms", "s"])
def test_times_are_never_compared_in_absolute_terms(unit: str) -> None:
    assert judge(90.0, published(direction="lower", tolerance=None, unit=unit)) == "analogue"


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="both ends or none"):
        verdict(90.0, 89.0, None, published(), analogue=False)
    with pytest.raises(ValueError, match="both ends or none"):
        verdict(90.0, None, 91.0, published(), analogue=True)
    with pytest.raises(ValueError, match="reversed"):
        verdict(90.0, 91.0, 89.0, published(), analogue=False)
    with pytest.raises(ValueError, match="no published value of metric for ours in Table 1"):
        judge(90.0, published(""))


def test_an_analogue_needs_no_published_value() -> None:
    assert verdict(90.0, None, None, published(""), analogue=True) == "analogue"


def test_not_run_tells_the_reason() -> None:
    assert not_run("no ImageNet here") == "not run (no ImageNet here)"


NUMBERS = st.floats(-1e6, 1e6)
WIDTHS = st.floats(0, 1e3)
DIRECTIONS = st.sampled_from(["higher", "lower", "exact"])
PRINTED = st.decimals(-1000, 1000, places=2).map(str)


@given(NUMBERS, WIDTHS, PRINTED, DIRECTIONS, st.none() | WIDTHS, st.none() | WIDTHS)
def test_an_analogue_is_always_an_analogue(
    measured: float, width: float, printed: str, direction: str, tolerance: float | None, cap: float | None
) -> None:
    row = published(printed, direction, tolerance)
    assert verdict(measured, measured - width, measured + width, row, analogue=True, cap=cap) == "analogue"


@given(NUMBERS, st.floats(0, 1e3), PRINTED, st.sampled_from(["higher", "lower"]), st.none() | WIDTHS)
def test_doing_better_never_makes_the_verdict_worse(
    measured: float, shift: float, printed: str, direction: str, tolerance: float | None
) -> None:
    ranks = {"not reproduced": 0, "reproduced": 1, "better": 2}
    row = published(printed, direction, tolerance)
    shifted = measured + shift if direction == "higher" else measured - shift
    assert ranks[judge(shifted, row)] >= ranks[judge(measured, row)]


@given(NUMBERS, PRINTED, st.none() | WIDTHS, WIDTHS)
def test_higher_and_lower_mirror_each_other(
    measured: float, printed: str, tolerance: float | None, half_width: float
) -> None:
    mirror = {"better": "not reproduced", "not reproduced": "better", "reproduced": "reproduced"}
    higher = judge(measured, published(printed, "higher", tolerance), half_width)
    assert judge(measured, published(printed, "lower", tolerance), half_width) == mirror[higher]


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_counts_are_exact_only_when_equal(measured: int, count: int) -> None:
    assert judge(measured, published(str(count), "exact", None)) == ("exact" if measured == count else "wrong")
    assert judge(count, published(str(count), "exact", None)) == "exact"
