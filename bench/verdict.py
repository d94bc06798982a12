"""What a measured value says about a published one: computed from the two, never typed."""

import math

from bench.registry import Published

# A time printed for another machine is an analogue wherever we run; only ratios of times can be compared.
TIME_UNITS = ("ms", "s")


def _within(measured: float, published: float, limit: float) -> bool:
    """Whether the two differ by at most ``limit`` (same unit); False for NaN.

    Four units in the last place of slack, so that a decimal on the boundary (15.475 against 15.47 +- 0.005) is inside
    in binary too. With a limit of 0 there is no slack: counts have to be equal.
    """
    slack = 4 * math.ulp(max(abs(measured), abs(published))) if limit else 0.0
    return abs(measured - published) <= limit + slack


def verdict(
    measured: float,
    low: float | None,
    high: float | None,
    published: Published,
    *,
    analogue: bool,
    cap: float | None = None,
) -> str:
    """The verdict on ``measured``, one of: analogue, exact, wrong, inconclusive, reproduced, better, not reproduced.

    ``measured``, its 95 % interval ``low`` to ``high`` and ``cap`` (the largest half-width of an interval that still
    decides) are in the published row's unit. ``low`` and ``high`` are both None where there is no interval.
    ``analogue`` is True where the row ran at a scale other than its own. The rules, in this order:

    * ``analogue``: another scale, or a time (never compared in absolute terms);
    * ``exact`` / ``wrong`` for direction exact: within the row's tolerance, equal where it has none, no interval;
    * ``inconclusive``: our half-width is above the cap;
    * ``reproduced``: within the larger of the row's tolerance, half the last printed digit and our half-width;
    * ``better`` / ``not reproduced``: beyond it, by the metric's direction. A NaN is not reproduced, or wrong.

    Raises ValueError where an interval has one end only or is reversed, and where the published value is unknown.
    """
    if (low is None) != (high is None):
        raise ValueError("an interval needs both ends or none")
    half_width = 0.0 if low is None or high is None else (high - low) / 2
    if half_width < 0:
        raise ValueError(f"the interval is reversed: {low} to {high}")
    if analogue or published.unit in TIME_UNITS:
        return "analogue"
    if published.value is None:
        raise ValueError(f"no published value of {published.metric} for {published.row} in {published.table}")
    if published.direction == "exact":
        return "exact" if _within(measured, published.value, published.tolerance or 0.0) else "wrong"
    if cap is not None and half_width > cap:
        return "inconclusive"
    if _within(measured, published.value, max(published.tolerance or 0.0, published.last_digit, half_width)):
        return "reproduced"
    gain = measured - published.value if published.direction == "higher" else published.value - measured
    return "better" if gain > 0 else "not reproduced"


def not_run(reason: str) -> str:
    """The verdict on a row that has not run, with the reason (a few words, no full stop)."""
    return f"not run ({reason})"
