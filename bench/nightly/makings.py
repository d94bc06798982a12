"""How a row was made, before and now: commit, packages, data and devices, and which of them make other networks.

A processor is known by its name, threads and instructions ("AMD EPYC (2 cores)" is the name of several).  Older records
have no instructions: beside one of them the name and the threads decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.steps import Kind


@dataclass(frozen=True, order=True)
class Device:
    """What computes; ``capability`` are a processor's instructions, empty where nobody recorded them."""

    name: str
    threads: int
    capability: str = ""

    def __str__(self) -> str:
        name = f"{self.name} ({self.capability})" if self.capability else self.name
        return f"{name} with {self.threads} threads"


def timed_on(row: Mapping[str, Any]) -> set[Device]:
    """On what the row's times were taken."""
    return {_device(one["provenance"]["hardware"]) for one in row["steps"].values() if one["kind"] == Kind.TIME.value}


def processes(row: Mapping[str, Any]) -> set[int]:
    """In how many fresh processes the row's times were taken; 0 for in the row's own, as older code did."""
    return {len(facts.get("rounds", ())) for clocks in row.get("timed", {}).values() for facts in clocks.values()}


def made_on(row: Mapping[str, Any]) -> set[Device]:
    """On what the networks behind the row were made; of rows that older code wrote, on what any of its steps ran."""
    if "made_on" in row:
        return {_device(one) for one in row["made_on"]}
    return _devices(row)


def alike(before: Iterable[Device], now: Iterable[Device]) -> bool:
    """Whether they are the same devices, as far as both sides recorded them."""
    old, new = _comparable(before, now)
    return old == new


def other_packages(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the same functions, by the same parameters and code, made the networks with other packages.

    Such networks differ by rounding, as those of another machine do.  Where code or parameters changed too, or nobody
    recorded them, the packages explain nothing.
    """
    old, new = before.get("made_with"), now.get("made_with")
    if old is None or new is None:
        return False
    return bool(old["how"] == new["how"] and old["versions"] != new["versions"])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the makings of two rows: commit, networks' code, packages, data, device, in words."""
    devices = _comparable(_devices(before), _devices(now))
    parts = {
        "commit": (_commits(before), _commits(now)),
        "packages": (_packages(before), _packages(now)),
        "data": (_data(before), _data(now)),
        "device": tuple({str(one) for one in side} for side in devices),
    }
    found = [
        f"{title}: {_told(sorted(old - new))} before, {_told(sorted(new - old))} now"
        for title, (old, new) in parts.items()
        if old != new
    ]
    old_made, new_made = before.get("made_with"), now.get("made_with")
    if old_made is not None and new_made is not None and old_made["how"] != new_made["how"]:
        found.append("networks: made by other code or with other parameters")
    return found


def _comparable(before: Iterable[Device], now: Iterable[Device]) -> tuple[set[Device], set[Device]]:
    """Both sides, without the instructions of a processor of whose name one side recorded none."""
    old, new = set(before), set(now)
    bare = {one.name for one in old | new if not one.capability}

    def known(side: set[Device]) -> set[Device]:
        return {replace(one, capability="") if one.name in bare else one for one in side}

    return known(old), known(new)


def _told(parts: Sequence[str]) -> str:
    return " ".join(parts) if parts else "nothing else"


def _provenances(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [about["provenance"] for about in row["steps"].values()]


def _commits(row: Mapping[str, Any]) -> set[str]:
    return {
        str(one["code"])[:12] + ("-dirty" if str(one["code"]).endswith("-dirty") else "") for one in _provenances(row)
    }


def _packages(row: Mapping[str, Any]) -> set[str]:
    return {f"{name} {version}" for one in _provenances(row) for name, version in one["versions"].items()}


def _data(row: Mapping[str, Any]) -> set[str]:
    data = row["setting"].get("data") or {}
    return {f"{data.get('name')} {str(data.get('fingerprint'))[:12]}"}


def _devices(row: Mapping[str, Any]) -> set[Device]:
    return {_device(one["hardware"]) for one in _provenances(row)}


def _device(hardware: Mapping[str, Any]) -> Device:
    return Device(hardware["name"], hardware["threads"], hardware.get("capability", ""))
