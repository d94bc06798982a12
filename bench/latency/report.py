"""What a point says: records of what may be said, reasons for what may not, a table, files.

A value is withheld where its interval is wider than 5 %, where it was seen in one process only, where the GPU was
throttled, and a speed-up also where it is smaller than the noise floor of the same run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bench.latency.contestants import BACKWARD, FORWARD, Form
from bench.latency.decomposition import paragraph, why
from bench.latency.interval import FASTER, SAME, SLOWER, WIDEST, Estimate
from bench.latency.point import AGAIN, BEST, DENSE, Measured
from bench.latency.roofline import Roofline
from bench.measure.latency import PERCENTILES
from bench.metrics import Metric
from bench.provenance import git_state, now
from bench.rows import slug
from bench.store import Record, disk_errors, write_json, write_text

METRICS = (
    Metric("noise_floor", "noise floor", "%", 1, "What one network differs by from itself in the same run.", "lower"),
    Metric("latency", "latency", "ms", 3, "Time of one call, the mean over fresh processes.", "lower", of="calls"),
    Metric("latency_p*", "latency, percentile", "ms", 3, "That share of the calls was faster.", "lower", of="calls"),
    Metric(
        "speedup_over_*", "speed-up over", "x", 3, "Time of the other network over this one's.", "higher", of="calls"
    ),
)

COLUMNS = (
    "network",
    "batch",
    "dtype",
    "mode",
    "clock",
    "dense_ms",
    "dense_best_ms",
    "ms",
    "best_ms",
    "best_form",
    "theoretical",
    "over_dense",
    "best_over_dense",
    "over_dense_best",
    "best_over_dense_best",
    "efficiency",
    "gflops_per_s",
    "noise_floor",
    "published",
)


@dataclass(frozen=True)
class Quoted:
    """A paper's own times as a ratio, dense over pruned: another machine, so only the ratio is shown beside ours."""

    ratio: float
    where: str
    verified: bool

    @property
    def text(self) -> str:
        """The ratio, with a dagger where the published values were not checked."""
        return f"{self.ratio:.2f}x" + ("" if self.verified else "†")


def value_of(measured: Measured, quoted: Mapping[tuple[str, str, int], Quoted]) -> dict[str, Any]:
    """A point as JSON: setting, records, what is withheld and why, the forms, layers, machine, checks."""
    point = measured.point
    found: dict[str, Any] = {
        "point": point.about(),
        "name": point.name,
        "device": measured.first.get("hardware"),
        "code": git_state(),
        "date": now(),
        "stopped": measured.stopped,
        "processes": len(measured.runs),
        "seconds": round(measured.seconds, 2),
        "not_measured": measured.reason,
        "networks": measured.first.get("networks", {}),
        "roofline": measured.first.get("roofline"),
        "records": [],
        "withheld": [],
        "rows": [],
        "checks": {
            "failed": {name: why_ for run in measured.runs for name, why_ in run.failed.items()},
            "outputs_changed_while_timed": [run.about["changed"] for run in measured.runs if run.about["changed"]],
        },
        "notes": notes(measured),
        "why": [],
        "runs": [run.about for run in measured.runs],
    }
    if measured.reason is None:
        for clock in measured.clocks:
            records, withheld = said(measured, clock)
            found["records"] += [{"clock": clock, **record.to_json()} for record in records]
            found["withheld"] += withheld
            found["rows"] += rows(measured, clock, quoted)
        found["why"] = paragraphs(measured)
    return found


def unstable(measured: Measured, clock: str) -> str | None:
    """Why no time of this clock is one, or None."""
    reasons = [run.about["clocks"][clock].get("unstable") for run in measured.runs]
    return next((reason for reason in reasons if reason), None)


def said(measured: Measured, clock: str) -> tuple[list[Record], list[dict[str, str]]]:
    """Records of the latencies and speed-ups by a clock that may be said, and the others with the reason."""
    records: list[Record] = []
    withheld: list[dict[str, str]] = []
    general = unstable(measured, clock)
    floor = measured.floor(clock)
    records.append(Record("noise_floor", 100.0 * floor, "%")) if np.isfinite(floor) else None

    def add(record: Record, found: Estimate, verdict: str | None) -> None:
        reason = general or _reason(found, verdict, floor)
        if reason is None:
            records.append(record)
        else:
            withheld.append({"clock": clock, "metric": record.metric, "series": record.series or "", "reason": reason})

    for name in measured.names(clock):
        time_ = measured.latency(clock, name)
        calls = sum(run.samples[clock][name].size for run in measured.runs)
        add(Record("latency", time_.value, "ms", time_.low, time_.high, calls, series=name), time_, None)
        for percent, value in percentiles(measured, clock, name).items():
            records.append(Record(f"latency_p{percent}", value, "ms", n=calls, series=name))
    for name, over in pairs(measured, clock):
        ratio = measured.speedup(clock, over, name)
        record = Record(f"speedup_over_{over}", ratio.value, "x", ratio.low, ratio.high, ratio.rounds, series=name)
        add(record, ratio, measured.verdict(clock, over, name))
    return records, withheld


def _reason(found: Estimate, verdict: str | None, floor: float) -> str | None:
    if found.low is None:
        return "seen in one process only"
    if found.width > WIDEST:
        return f"the interval is {100 * found.width:.1f} % wide"
    if verdict == SAME:
        return f"no difference beyond the noise floor of {100 * floor:.1f} % and its own interval"
    return None


def pairs(measured: Measured, clock: str) -> list[tuple[str, str]]:
    """Which contestant is compared with which: everything with dense as it is and with dense (best)."""
    names = measured.names(clock)
    best = f"{DENSE} {BEST}"
    found = [(name, DENSE) for name in names if name not in (DENSE, AGAIN)]
    if best in names:
        found += [(name, best) for name in names if name not in (DENSE, AGAIN, best)]
    return found


def percentiles(measured: Measured, clock: str, name: str) -> dict[int, float]:
    """In ms, of the calls of all processes; those that so many calls support."""
    values = 1e3 * np.concatenate([run.samples[clock][name].reshape(-1) for run in measured.runs])
    return {p: float(np.percentile(values, p)) for p in PERCENTILES if len(values) >= 10 / (1 - p / 100.0)}


def rows(measured: Measured, clock: str, quoted: Mapping[tuple[str, str, int], Quoted]) -> list[dict[str, Any]]:
    """One line a network; a cell is None where nothing may be said."""
    point, names = measured.point, measured.names(clock)
    general = unstable(measured, clock)
    networks = measured.first["networks"]
    best_dense = f"{DENSE} {BEST}" if f"{DENSE} {BEST}" in names else DENSE
    dense_macs = networks[point.dense.name]["macs"]["conv+fc"]
    floor = measured.floor(clock)

    def time_of(name: str) -> float | None:
        if name not in names or general:
            return None
        found = measured.latency(clock, name)
        return found.value if found.width <= WIDEST else None

    def ratio(name: str, over: str) -> float | None:
        if name not in names or over not in names or general or name == over:
            return None
        verdict = measured.verdict(clock, over, name)
        return measured.speedup(clock, over, name).value if verdict in (FASTER, SLOWER) else None

    common = {
        "batch": point.batch,
        "dtype": point.dtype,
        "mode": point.mode,
        "clock": clock,
        "dense_ms": time_of(DENSE),
        "dense_best_ms": time_of(best_dense),
        "noise_floor": 100.0 * floor if np.isfinite(floor) else None,
    }
    found = []
    for subject in (point.dense, *point.networks):
        entry = networks[subject.name]
        if "failed" in entry:
            found.append({"network": f"{subject.name}: {entry['failed']}", **common})
            continue
        own = subject is point.dense
        plain = DENSE if own else subject.name
        best = f"{plain} {BEST}" if f"{plain} {BEST}" in names else plain
        macs = entry["macs"]["conv+fc"]
        theory = dense_macs / macs
        best_ms = time_of(best)
        realised = ratio(best, best_dense)
        passes = 3.0 if point.mode == BACKWARD else 1.0
        reference = quoted.get((subject.name, point.mode, point.batch))
        found.append(
            {
                "network": subject.name,
                **common,
                "ms": time_of(plain),
                "best_ms": best_ms,
                "best_form": Form(**entry["best"]).name if best != plain else "as it is",
                "theoretical": theory,
                "over_dense": None if own else ratio(plain, DENSE),
                "best_over_dense": ratio(best, DENSE),
                "over_dense_best": None if own else ratio(plain, best_dense),
                "best_over_dense_best": None if own else realised,
                "efficiency": 100.0 * realised / theory if realised is not None and not own else None,
                "gflops_per_s": None if best_ms is None else passes * 2e-6 * macs * point.batch / best_ms,
                "published": reference.text if reference else None,
            }
        )
    return found


def paragraphs(measured: Measured) -> list[str]:
    """Where each pruned network's saving went, where the layers were looked at."""
    networks = measured.first["networks"]
    dense = networks[measured.point.dense.name].get("layers")
    found = []
    for subject in measured.point.networks:
        layers = networks[subject.name].get("layers")
        if dense and layers:
            found.append(paragraph(subject.name, why(dense, layers), dense, layers))
    return found


def notes(measured: Measured) -> list[str]:
    """What a reader has to know beside the numbers: the stop, the machine, failures, times above the roofline."""
    found = [f"{measured.point.name}: {len(measured.runs)} processes, {measured.seconds:.0f} s; {measured.stopped}"]
    for clock in measured.clocks:
        floor = measured.floor(clock)
        same = measured.speedup(clock, DENSE, AGAIN) if np.isfinite(floor) else None
        if same is not None:
            found.append(
                f"A/A ({clock}): {same.value:.4f} ({same.low:.4f} to {same.high:.4f}); smaller changes than "
                f"{100 * floor:.1f} % are not said"
            )
    labels = {label for run in measured.runs for clock in run.about["clocks"].values() for label in clock["labels"]}
    found += sorted(labels)
    failed = {f"{name}: {reason}" for run in measured.runs for name, reason in run.failed.items()}
    for name, entry in measured.first.get("networks", {}).items():
        failed |= {f"{name}: {entry['failed']}"} if "failed" in entry else set()
        failed |= {f"{name}, {form}: {reason}" for form, reason in entry.get("failed_forms", {}).items()}
    found += sorted(failed)
    if any(run.about["changed"] for run in measured.runs):
        found.append("the outputs of a network changed while it was timed: its times are worth nothing")
    peak = measured.first.get("roofline")
    if peak:
        limit = Roofline(peak["flops_per_s"], peak["bytes_per_s"], peak["threads"])
        found.append(
            f"measured roofline: {limit.flops / 1e9:,.0f} GFLOP/s, {limit.bytes / 1e9:,.1f} GB/s, ridge at "
            f"{limit.ridge:.0f} FLOP a byte, {limit.threads} threads"
        )
        if measured.point.mode == FORWARD and not measured.reason:
            above = {
                row["network"]
                for clock in measured.clocks
                for row in rows(measured, clock, {})
                if (row.get("gflops_per_s") or 0.0) * 1e9 > limit.flops
            }
            found += [
                f"{name}: more FLOP/s than the measured peak: an algorithm with fewer products (Winograd) or an error"
                for name in sorted(above)
            ]
    return found


# --------------------------------------------------------------------------------------------------------------------
# Tables and files

_HEADINGS = {
    "dense_ms": "dense ms",
    "dense_best_ms": "dense (best) ms",
    "best_ms": "best ms",
    "best_form": "best form",
    "over_dense": "over dense",
    "best_over_dense": "best over dense",
    "over_dense_best": "over dense (best)",
    "best_over_dense_best": "best over dense (best)",
    "efficiency": "efficiency of the saving %",
    "gflops_per_s": "GFLOP/s",
    "noise_floor": "noise floor %",
    "published": "published ratio",
}


def markdown(rows_: Sequence[Mapping[str, Any]]) -> str:
    """The rows as one Markdown table; a dash where nothing may be said."""
    used = [name for name in COLUMNS if any(row.get(name) is not None for row in rows_)]
    lines = [f"| {' | '.join(_HEADINGS.get(name, name) for name in used)} |", "|" + "---|" * len(used)]
    lines += [f"| {' | '.join(_cell(name, row.get(name)) for name in used)} |" for row in rows_]
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if name.endswith("ms"):
        return f"{value:.4g}"
    if name == "theoretical" or "over" in name:
        return f"{value:.2f}x"
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def csv_text(rows_: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """The rows as CSV, unrounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows_)
    return text.getvalue()


def keep(measured: Measured, value: Mapping[str, Any], folder: Path) -> Path:
    """Writes a point's JSON and, beside it, the raw samples; returns the JSON file."""
    stem = f"{slug(measured.point.name)}--{measured.point.key}"
    samples = {
        f"{number}/{clock}/{name}": np.ascontiguousarray(values)
        for number, run in enumerate(measured.runs)
        for clock, contestants in run.samples.items()
        for name, values in contestants.items()
    }
    path = folder / f"{stem}.json"
    write_json(path, {**value, "samples": f"{stem}.safetensors" if samples else None})
    if samples:
        with disk_errors(folder):
            save_file(samples, folder / f"{stem}.safetensors")
    return path


def text_of(values: Sequence[Mapping[str, Any]]) -> str:
    """Everything for a reader: the table, the notes of each point, where the savings went."""
    lines = []
    table = [row for value in values for row in value["rows"]]
    if table:
        lines += [markdown(table), ""]
    for value in values:
        lines += [*(f"* {note}" for note in value["notes"]), "", *value["why"], *([""] if value["why"] else [])]
    if any("†" in str(row.get("published")) for row in table):
        lines.append("† published times that were not checked against the paper; other machines, so ratios only.")
    return "\n".join(lines).rstrip()


def write_summary(text: str, values: Sequence[Mapping[str, Any]], folder: Path, name: str) -> None:
    """The table as Markdown and CSV beside the points."""
    write_text(folder / f"{name}.md", text + "\n")
    write_text(folder / f"{name}.csv", csv_text(row for value in values for row in value["rows"]))
