"""What a point says: records of what may be said, reasons for what may not, a table, files.

A value is withheld where its interval is wider than 5 %, where it was seen in one process only, where the GPU was
throttled or outputs changed meanwhile, and a speed-up also where it is smaller than the noise floor of the same run.
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

from bench.latency.contestants import AS_IT_IS, BACKWARD, FORWARD, Form
from bench.latency.decomposition import paragraph, why
from bench.latency.interval import FASTER, SAME, SLOWER, WIDEST, Estimate
from bench.latency.point import BEST, DENSE, TWICE, Measured, contestant, form_of
from bench.latency.roofline import Roofline
from bench.measure.latency import PERCENTILES
from bench.metrics import Metric
from bench.provenance import git_state, now
from bench.rows import slug
from bench.store import Record, disk_errors, make_folder, write_json, write_text

METRICS = (
    Metric("noise_floor", "noise floor", "%", 1, "What one network differs by from itself in the same run.", "lower"),
    Metric("latency", "latency", "ms", 3, "Time of one call, the mean over fresh processes.", "lower", of="calls"),
    Metric("latency_p*", "latency, percentile", "ms", 3, "That share of the calls was faster.", "lower", of="calls"),
    Metric(
        "speedup_over_*", "speed-up over", "x", 3, "Time of the other network over this one's.", "higher", of="calls"
    ),
)

CHANGED = "the outputs of a network changed while it was timed"
# what a network with rounded widths is called, after the one that it was rounded from
ROUNDED = ", rounded to "
# by how much the layers' times may sum up to another time than the network's on a GPU, as a share
_SUM_APART = 0.2
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
    "over_unrounded",
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
        "inputs": "noise",
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
    if any(run.about["changed"] for run in measured.runs):
        return CHANGED
    reasons = [run.about["clocks"][clock].get("unstable") for run in measured.runs]
    return next((reason for reason in reasons if reason), None)


def said(measured: Measured, clock: str) -> tuple[list[Record], list[dict[str, str]]]:
    """Records of the latencies and speed-ups by a clock that may be said, and the others with the reason."""
    records: list[Record] = []
    withheld: list[dict[str, str]] = []
    general = unstable(measured, clock)
    floor = measured.floor(clock)
    if np.isfinite(floor) and general is None:
        records.append(Record("noise_floor", 100.0 * floor, "%"))

    def add(record: Record, found: Estimate, verdict: str | None) -> bool:
        reason = general or _reason(found, verdict, floor)
        if reason is None:
            records.append(record)
        else:
            withheld.append({"clock": clock, "metric": record.metric, "series": record.series or "", "reason": reason})
        return reason is None

    for name in measured.names(clock):
        time_ = measured.latency(clock, name)
        calls = sum(run.samples[clock][name].size for run in measured.runs)
        if add(Record("latency", time_.value, "ms", time_.low, time_.high, calls, series=name), time_, None):
            for percent, value in percentiles(measured, clock, name).items():
                records.append(Record(f"latency_p{percent}", value, "ms", n=calls, series=name))
    for pair in pairs(measured, clock):
        ratio = measured.speedup(clock, pair.reference, pair.name)
        metric = f"speedup_over_{pair.over}"
        record = Record(metric, ratio.value, "x", ratio.low, ratio.high, ratio.rounds, series=pair.series)
        add(record, ratio, measured.verdict(clock, pair.reference, pair.name))
    return records, withheld


def _reason(found: Estimate, verdict: str | None, floor: float) -> str | None:
    if found.low is None:
        return "seen in one process only"
    if found.width > WIDEST:
        return f"the interval is {100 * found.width:.1f} % wide"
    if verdict == SAME:
        return f"no difference beyond the noise floor of {100 * floor:.1f} % and its own interval"
    return None


@dataclass(frozen=True)
class Pair:
    """``series`` over ``over``, as records call them: the contestants ``name`` and ``reference``."""

    series: str
    over: str
    name: str
    reference: str


def pairs(measured: Measured, clock: str) -> list[Pair]:
    """Which contestant is compared with which.

    Every network, as it is and in its best form, with the dense one as it is and in its best form; and a network with
    rounded widths with the one that it was rounded from, both in their best forms.
    """
    labels = [DENSE, *(subject.name for subject in measured.point.networks)]
    best = {label: measured.best(clock, label) for label in labels}
    forms = {(label, ""): label for label in labels if label in measured.timed(label, clock)}
    forms |= {(label, f" {BEST}"): name for label, name in best.items() if name is not None}
    compared = [((label, end), (DENSE, "")) for label, end in forms]
    compared += [((label, end), (DENSE, f" {BEST}")) for label, end in forms if label != DENSE]
    for label in labels:
        if (plain := unrounded(label)) in labels:
            compared.append(((label, f" {BEST}"), (plain, f" {BEST}")))
    return [
        Pair("".join(one), "".join(other), forms[one], forms[other])
        for one, other in compared
        if one in forms and other in forms and forms[one] != forms[other]
    ]


def unrounded(name: str) -> str:
    """The name of the network whose widths were rounded; empty for others."""
    plain, rounded, _ = name.rpartition(ROUNDED)
    return plain if rounded else ""


def percentiles(measured: Measured, clock: str, name: str) -> dict[int, float]:
    """In ms, of the calls of all processes; those that so many calls support."""
    values = 1e3 * np.concatenate([run.samples[clock][name].reshape(-1) for run in measured.runs])
    return {p: float(np.percentile(values, p)) for p in PERCENTILES if len(values) >= 10 / (1 - p / 100.0)}


def rows(measured: Measured, clock: str, quoted: Mapping[tuple[str, str, int], Quoted]) -> list[dict[str, Any]]:
    """One line a network; a cell is None where nothing may be said."""
    point, names = measured.point, measured.names(clock)
    general = unstable(measured, clock)
    networks = measured.first["networks"]
    best_dense = measured.best(clock, DENSE)
    dense_macs = _macs(networks[point.dense.name])
    floor = measured.floor(clock)

    def time_of(name: str | None) -> float | None:
        if name not in names or name is None or general:
            return None
        found = measured.latency(clock, name)
        return found.value if found.width <= WIDEST else None

    def ratio(name: str | None, over: str | None) -> float | None:
        if name is None or over is None or general or name == over or not {name, over} <= set(names):
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
        "noise_floor": 100.0 * floor if np.isfinite(floor) and general is None else None,
    }
    found = []
    for subject in (point.dense, *point.networks):
        entry = networks[subject.name]
        if "failed" in entry:
            found.append({"network": f"{subject.name}: {entry['failed']}", **common})
            continue
        own = subject is point.dense
        plain = DENSE if own else subject.name
        best, missing = measured.best(clock, plain), measured.untimed(clock, plain)
        macs = _macs(entry)
        theory = dense_macs / macs
        from_name = unrounded(subject.name)
        unknown = f"not known: {', '.join(missing)} has no such time" if missing else "not timed"
        best_form = form_of(plain, best) if best else unknown
        best_ms = time_of(best)
        realised = ratio(best, best_dense)
        # a gated network that does not skip computes more than is counted
        wasted = subject.gated and best_form == AS_IT_IS.name
        passes = 3.0 if point.mode == BACKWARD else 1.0
        reference = quoted.get((subject.name, point.mode, point.batch))
        found.append(
            {
                "network": subject.name,
                **common,
                "ms": time_of(plain),
                "best_ms": best_ms,
                "best_form": best_form,
                "theoretical": theory,
                "over_dense": None if own else ratio(plain, DENSE),
                "best_over_dense": ratio(best, DENSE),
                "over_dense_best": None if own else ratio(plain, best_dense),
                "best_over_dense_best": None if own else realised,
                "over_unrounded": ratio(best, measured.best(clock, from_name)) if from_name else None,
                "efficiency": 100.0 * realised / theory if realised is not None and not own else None,
                "gflops_per_s": None if best_ms is None or wasted else passes * 2e-6 * macs * point.batch / best_ms,
                "published": reference.text if reference else None,
            }
        )
    return found


def _macs(entry: Mapping[str, Any]) -> float:
    """Of convolutions and fully connected layers, and of gates where there are any."""
    macs = entry["macs"]
    return float(macs["conv+fc+gates"] if "conv+fc+gates" in macs else macs["conv+fc"])


def paragraphs(measured: Measured) -> list[str]:
    """Where each pruned network's saving went, where the layers were looked at and agree with the whole."""
    found, _ = layer_by_layer(measured)
    return found


def layer_by_layer(measured: Measured) -> tuple[list[str], list[str]]:
    """Paragraphs on the layers of pruned networks, and why there is none where they were looked at.

    Hooks disturb what they time.  On a GPU that works less than it takes to start the work, the layers' times are those
    of starting: their sum is not the time of the network.  And where the layers' ratio is another than the whole
    networks', causes that add up to it explain something else.
    """
    point, networks = measured.point, measured.first["networks"]
    clock = "events" if point.device.startswith("cuda") else "wall"
    dense, found, without = networks[point.dense.name], [], []
    for subject in point.networks:
        pruned = networks[subject.name]
        if not (dense.get("layers") and pruned.get("layers")):
            continue
        names = [
            contestant(label, Form(**entry["best_eager"])) for label, entry in ((DENSE, dense), (subject.name, pruned))
        ]
        sums = [sum(layer["ms"] for layer in entry["layers"]) for entry in (dense, pruned)]
        reason = _apart(measured, clock, names, sums)
        if reason is None:
            found.append(
                paragraph(subject.name, why(dense["layers"], pruned["layers"]), dense["layers"], pruned["layers"])
            )
        else:
            without.append(f"{subject.name}: nothing is said of its layers: {reason}")
    return found, without


def _apart(measured: Measured, clock: str, names: Sequence[str], sums: Sequence[float]) -> str | None:
    """Why the sums of the layers' times (ms; dense, pruned) are not those of the networks, or None."""
    if not set(names) <= set(measured.names(clock)):
        return "the form that was looked at was not timed"
    if clock == "events":  # on a processor milliseconds move from process to process
        for name, ms in zip(names, sums, strict=True):
            whole = measured.latency(clock, name).value
            if abs(ms / whole - 1.0) > _SUM_APART:
                return f"they sum up to {ms:.2f} ms, and {name} takes {whole:.2f} ms"
    ratio, layers = measured.speedup(clock, *names), sums[0] / sums[1]
    if (reason := unstable(measured, clock) or _reason(ratio, None, 0.0)) is not None:
        return f"their sum is not to be compared, {reason}"
    if ratio.low is None or ratio.high is None or not agree(layers, ratio.low, ratio.high):
        return f"one by one they gave {layers:.2f}x, the whole networks {ratio.value:.2f}x"
    return None


def agree(layers: float, low: float, high: float) -> bool:
    """Whether the layers' ratio lies in the whole networks' interval, or as far beside it as may still be said."""
    return low / (1.0 + WIDEST) <= layers <= high * (1.0 + WIDEST)


def notes(measured: Measured) -> list[str]:
    """What a reader has to know beside the numbers: the stop, the machine, failures, times above the roofline."""
    found = [f"{measured.point.name}: {len(measured.runs)} processes, {measured.seconds:.0f} s; {measured.stopped}"]
    for clock in measured.clocks:
        floor = measured.floor(clock)
        for name in measured.twice(clock) if np.isfinite(floor) else ():
            same, form = measured.speedup(clock, name, f"{name}{TWICE}"), form_of(DENSE, name)
            found.append(
                f"A/A ({clock}, {form}): {same.value:.4f} ({same.low:.4f} to {same.high:.4f}); smaller changes than "
                f"{100 * floor:.1f} % are not said"
            )
    gated = [subject.name for subject in measured.point.networks if subject.gated]
    if gated:
        found.append(
            f"{', '.join(gated)}: timed on noise; which channels it computes, and so what it gathers anew, depends on "
            "the images"
        )
        if measured.point.dtype == "bf16":
            found.append(f"{', '.join(gated)}: the gates were in bf16 too, in which other channels win than in fp32")
    labels = {label for run in measured.runs for clock in run.about["clocks"].values() for label in clock["labels"]}
    found += sorted(labels)
    failed = {f"{name}: {reason}" for run in measured.runs for name, reason in run.failed.items()}
    for name, entry in measured.first.get("networks", {}).items():
        failed |= {f"{name}: {entry['failed']}"} if "failed" in entry else set()
        failed |= {f"{name}, {form}: {reason}" for form, reason in entry.get("failed_forms", {}).items()}
    found += sorted(failed)
    if any(run.about["changed"] for run in measured.runs):
        found.append(f"{CHANGED}: these times are worth nothing")
    if "layers_failed" in measured.first:
        found.append(f"neither the roofline nor the layers: {measured.first['layers_failed']}")
    if measured.reason is None:
        found += layer_by_layer(measured)[1]
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
    "over_unrounded": "best over unrounded (best)",
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
    """Writes a point's JSON beside its raw samples, which are written before; returns the JSON file."""
    path = folder / f"{_stem(measured)}.json"
    samples = path.with_suffix(".safetensors")
    write_json(path, {**value, "samples": samples.name if measured.runs else None})
    return path


def _stem(measured: Measured) -> str:
    hardware = hardware_slug(measured.first.get("hardware"))
    return "--".join([slug(measured.point.name), *hardware, measured.point.key])


def keep_samples(measured: Measured, folder: Path) -> None:
    """Writes a point's raw samples, where there are any: what is said of them can be made again, they cannot."""
    samples = {
        f"{number}/{clock}/{name}": np.ascontiguousarray(values)
        for number, run in enumerate(measured.runs)
        for clock, contestants in run.samples.items()
        for name, values in contestants.items()
    }
    if samples:
        make_folder(folder)
        unfinished = folder / f".{_stem(measured)}"
        with disk_errors(folder):
            save_file(samples, unfinished)
            unfinished.replace(folder / f"{_stem(measured)}.safetensors")


def hardware_slug(device: Mapping[str, Any] | None) -> list[str]:
    """The hardware in a file's name, one part or none: what two machines measure are two files."""
    if not device or "name" not in device:
        return []
    threads = f" {device['threads']} threads" if device.get("device") == "cpu" else ""
    return [slug(f"{device['name']}{threads}")]


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
