"""Points that were accepted, beside the other results: ``<results>/latency`` holds them and a page made from them.

Raw samples stay where they were measured.  A point is one network's shapes on one device: what it takes on another is
another point, and no line of a table compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.latency import sensitivity
from bench.latency.point import BEST, DENSE
from bench.latency.report import COLUMNS, agree, csv_text
from bench.report.render import markdown_text
from bench.store import write_json, write_text

FOLDER = "latency"
# of a point's table: what a reader asks first; the rest is in the CSV file
_COLUMNS = {
    "network": "network",
    "form": "best form",  # with its time
    "theoretical": "fewer MACs",
    "over_dense": "as it is, over dense as it is",
    "best_over_dense": "best over dense as it is",
    "best_over_dense_best": "best over dense (best)",
    "over_unrounded": "best over unrounded (best)",
    "efficiency": "share of the saving (%)",
    "published": "published",
}
# a page is no wider; the first to go is said by the two ratios beside it
_MOST_COLUMNS = 8
_RATIOS = ("over_dense", "best_over_dense", "over_dense_best", "best_over_dense_best", "over_unrounded")
_SENSITIVITY = "sensitivity"
_OF_TRIES = {"text", "device", "code", "date", "entries"}
_NEEDED = {"records", "point", "name", "device", "code", "date", "rows", "notes", "why", "not_measured", "networks"}


def accept(runs: Path, results: Path) -> list[Path]:
    """Copies the points in ``runs`` to ``results``, without their raw samples; returns the files.

    Raises :class:`UserError` where there are none, for one of code that is not committed, and for an unreadable file.
    """
    chosen = [(path, _read(path, _NEEDED)) for path in _points(runs)]
    chosen += [(path, _read(path, _OF_TRIES)) for path in _tries(runs)]
    if not chosen:
        raise UserError(f"no latency in {runs}: run `bench latency --out {runs}` first, or name the run's folder")
    for path, value in chosen:
        if value["code"] is None or str(value["code"]).endswith("-dirty"):
            raise UserError(f"{path} was made by code that is not committed: commit it and measure again")
    files = []
    for path, value in chosen:
        files.append(results / FOLDER / path.name)
        write_json(files[-1], {name: part for name, part in value.items() if name not in ("samples", "file")})
    return files


def write(results: Path) -> list[Path]:
    """Writes the page and one CSV of all values; returns the files, none where no point was accepted."""
    folder = results / FOLDER
    values = [_read(path, _NEEDED) for path in _points(results)]
    tries = [_read(path, _OF_TRIES) for path in _tries(results)]
    if not values:
        return []
    values.sort(key=lambda value: (_machine(value), value["point"]["mode"], value["point"]["dtype"], value["name"]))
    text = [
        "# Latency",
        "",
        "This page is generated from the points beside it; edits are overwritten.",
        "",
        "Each network is timed in turns with its dense one, in fresh processes: as it is, and in its best form (batch "
        "norm folded, channels-last, compiled where that was asked for). *Share of the saving*: the speed-up over the "
        "dense network, both in their best forms, in per cent of what the MACs (of convolutions and fully connected "
        "layers) promise. A dash, or a best form without its time: the interval was wider than 5 %, or the difference "
        "smaller than that of one network from itself in the same run; where no speed-up is said, or the layers one by "
        "one give another one, nothing is said of the layers.",
        "",
    ]
    for machine in dict.fromkeys(map(_machine, values)):
        text += [f"## {machine}", ""]
        for one in (one for one in tries if _machine(one) == machine):
            said = sensitivity.text(one["entries"])
            text += [f"What this machine tells apart ({one['date'][:10]}): {markdown_text(said)}.", ""]
        for value in (value for value in values if _machine(value) == machine):
            text += _section(value)
    files = [folder / "README.md", folder / "latency.csv"]
    write_text(files[0], "\n".join(text).rstrip() + "\n")
    lines = [{**row, **_conditions(value, row)} for value in values for row in value["rows"]]
    ends = [f"{column}_{end}" for column in _RATIOS for end in ("low", "high")]
    write_text(
        files[1], csv_text(lines, ("device", *COLUMNS, *ends, "weights", "compiled", "layouts", "notes", "code"))
    )
    return files


def _conditions(value: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of the CSV file needs to be read without the page: intervals, weights, forms, notes, the code."""
    ends = _intervals(value, str(row["clock"]))
    found: dict[str, Any] = {}
    for column in _RATIOS:
        if row.get(column) is not None and (interval := ends.get((str(row["network"]), column))):
            found |= dict(zip((f"{column}_low", f"{column}_high"), interval, strict=True))
    point = value["point"]
    given = {one["name"]: one["weights"] for one in _subjects(point)}
    return {
        **found,
        "device": _machine(value),
        "weights": given.get(row["network"]) or "fresh",
        "compiled": bool(point.get("compiled")),
        "layouts": " ".join(point.get("layouts", ())),
        "notes": "; ".join(value["notes"]),
        "code": value["code"],
    }


def _subjects(point: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [point["dense"], *point["networks"]] if "dense" in point else []


def link(results: Path) -> list[str]:
    """The index's lines; none where nothing was accepted."""
    here = _points(results)
    return (
        ["## Latency", "", f"[{len(here)} points]({FOLDER}/README.md), each beside its dense network.", ""]
        if here
        else []
    )


def _points(root: Path) -> list[Path]:
    return sorted(path for path in (root / FOLDER).glob("*.json") if not path.name.startswith(_SENSITIVITY))


def _tries(root: Path) -> list[Path]:
    return sorted((root / FOLDER).glob(f"{_SENSITIVITY}*.json"))


def _read(path: Path, needed: Set[str]) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if missing := needed - set(value):
            raise ValueError(f"it has no {' or '.join(sorted(missing))}")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no point of `bench latency` ({error}): remove it and measure again") from error
    return value


def _machine(value: Mapping[str, Any]) -> str:
    device = value["device"] or {}
    threads = f", {device['threads']} threads" if device.get("device") == "cpu" else ""
    return f"{device.get('name', 'unknown device')} ({device.get('device', '?')}{threads})"


def _section(value: Mapping[str, Any]) -> list[str]:
    """One point: its table by each clock, what a reader must know beside it, where the savings went."""
    compiled = ", with compiled forms" if value["point"].get("compiled") else ""
    text = [f"### {markdown_text(value['name'])}, {value['point']['mode']}{compiled}", ""]
    for clock in dict.fromkeys(row["clock"] for row in value["rows"]):
        rows = [row for row in value["rows"] if row["clock"] == clock]
        ends = _intervals(value, clock)
        text += ([f"By {clock} time:", ""] if clock != "wall" else []) + [_table(rows, ends), ""]
    if subjects := _subjects(value["point"]):
        given = [f"{one['name']}: {one['weights']}" for one in subjects if one["weights"] is not None]
        said = ", ".join(given) + (" (the others fresh)" if len(given) < len(subjects) else "") if given else "fresh"
        layouts = value["point"].get("layouts", [])
        alone = f"; best of the layout {layouts[0]} alone" if len(layouts) == 1 else ""
        text += [markdown_text(f"Weights: {said}; inputs: {value.get('inputs', 'noise')}{alone}."), ""]
    if value["not_measured"]:
        text += [f"Not measured: {markdown_text(value['not_measured'])}.", ""]
    text += [*(f"- {markdown_text(note)}" for note in value["notes"]), ""]
    reasons = [reason for name in _explained(value) for reason in value["why"] if reason.startswith(f"{name}: ")]
    text += [line for reason in reasons for line in (markdown_text(reason), "")]
    code, date = value["code"], value["date"][:10]
    versions = ", ".join(f"{name} {version}" for name, version in (value["device"] or {}).get("versions", {}).items())
    return [*text, f"Code {code}, {date}; {versions}; processes: {value.get('launched', 'fresh interpreter')}.", ""]


def _explained(value: Mapping[str, Any]) -> list[str]:
    """The networks whose layers say something: where the whole network's speed-up is said, and theirs is the same."""
    clock = "events" if any(row["clock"] == "events" for row in value["rows"]) else "wall"
    ends = _intervals(value, clock)
    found = []
    for row in (row for row in value["rows"] if row["clock"] == clock and row.get("best_over_dense_best")):
        networks = value["networks"]
        sums = [
            sum(layer["ms"] for layer in networks.get(name, {}).get("layers", []))
            for name in (next(iter(networks), ""), str(row["network"]))
        ]
        interval = ends.get((str(row["network"]), "best_over_dense_best"))
        if interval is not None and all(sums) and agree(sums[0] / sums[1], *interval):
            found.append(str(row["network"]))
    return found


def _intervals(value: Mapping[str, Any], clock: str) -> dict[tuple[str, str], tuple[float, float]]:
    """The 95 % intervals of what is said by a clock, by network and column of the table."""
    dense = next((str(row["network"]) for row in value["rows"]), "")
    found = {}
    for record in value["records"]:
        if record["clock"] != clock or "low" not in record:
            continue
        name = str(record.get("series", ""))
        plain = name.removesuffix(f" {BEST}")
        best = plain != name
        over = str(record["metric"]).removeprefix("speedup_over_")
        if over == DENSE:
            column = "best_over_dense" if best else "over_dense"
        elif over == f"{DENSE} {BEST}":
            column = "best_over_dense_best" if best else "over_dense_best"
        else:
            column = "over_unrounded"
        found[dense if plain == DENSE else plain, column] = record["low"], record["high"]
    return found


def _table(rows: Sequence[Mapping[str, Any]], ends: Mapping[tuple[str, str], tuple[float, float]]) -> str:
    used = [name for name in _COLUMNS if name in ("network", "form") or any(_given(row, name) for row in rows)]
    if len(used) > _MOST_COLUMNS:
        used.remove("best_over_dense")
    lines = [f"| {' | '.join(_COLUMNS[name] for name in used)} |", "| :-- |" + " --: |" * (len(used) - 1)]
    for row in rows:
        texts = []
        for name in used:
            low, high = ends.get((str(row["network"]), name), (None, None))
            texts.append(
                _cell(row, name) + ("" if low is None or row.get(name) is None else f" [{low:.2f}, {high:.2f}]")
            )
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def _given(row: Mapping[str, Any], name: str) -> bool:
    return row.get("best_form" if name == "form" else name) is not None


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get("best_form" if name == "form" else name)
    if value is None:
        return "–"
    if name == "form" and row.get("best_ms") is not None:
        return markdown_text(f"{value} ({row['best_ms']:.4g} ms)")
    if not isinstance(value, float):
        return markdown_text(str(value))
    return f"{value:.0f}" if name == "efficiency" else f"{value:.2f}x"
