"""What of a row's setting somebody chose, as two rows of other choices are never compared.

The data and the seeds are no such choice: data may change from one night to another, seeds stand in the script.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CHOSEN = ("folder", "device", "amp", "paper_schedule", "round", "networks", "strict")
# two ways to evaluate on ImageNet; other protocols follow from the network's input
_PROTOCOLS = ("short256", "squash256")


def chosen(row: Mapping[str, Any]) -> dict[str, Any]:
    """The choices by name, without those that were not made."""
    setting = row["setting"]
    protocol = (setting.get("data") or {}).get("protocol")
    found = {
        **{name: setting.get(name) for name in _CHOSEN},
        "weights": weights(row),
        "protocol": protocol if protocol in _PROTOCOLS else None,
    }
    return {name: value for name, value in found.items() if value}


def weights(row: Mapping[str, Any]) -> str | None:
    """The digest of the given weights (of older rows their file's name), or None."""
    given = row["setting"].get("weights")
    return None if given is None else str(given["sha256"] or given["file"])


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In which choices the two differ, in words; empty where in none."""
    names = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
    return ", ".join(f"{name} {_told(before.get(name))} before, {_told(now.get(name))} now" for name in names)


def _told(value: Any) -> str:
    return "none" if value is None else str(value)[:12]
