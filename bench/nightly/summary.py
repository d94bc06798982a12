"""What a night says of itself: Markdown for people (and GitHub's step summary), JUnit's XML for machines."""

from __future__ import annotations

import html
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence

from bench import evaluate, planning, runner
from bench.nightly import check as checking
from bench.nightly import compared, drift, networks
from bench.nightly.child import Report
from bench.nightly.night import Night

Drifts = Sequence[tuple[str, str, int, drift.Drift]]


def status(night: Night, checked: Sequence[checking.RowCheck], problem: str = "") -> int:
    """The exit status: 1 where a row or a network failed, a value got worse, is missing or not compared, else 0."""
    bad = any(one["verdict"] in (evaluate.DIFFERENT, networks.FAILED) for one in night.networks)
    return int(bool(night.failed) or any(row.failed for row in checked) or bad or bool(problem))


def markdown(
    night: Night,
    checked: Sequence[checking.RowCheck],
    drifts: Drifts,
    changes: Sequence[str],
    baseline: str | None,
    problem: str = "",
) -> str:
    """The night on one page: what went wrong first, then every row, then what was left out and why.

    ``problem`` says why it could not be compared with the ``baseline`` (None: there is none).
    """
    good = sum(report.status == runner.OK for report in night.rows.values())
    title = f"# Night {night.number}: {_verdict(night, checked, drifts, changes, baseline, problem)}"
    facts = (
        f"{good} of {len(night.rows) + len(night.left)} rows ran in {night.minutes:.0f} minutes; begun {night.date}; "
        f"code {night.commit or 'of no commit'}."
    )
    parts = [title, facts if night.ended else f"{facts} **Stopped before its end.** The same command goes on."]
    if night.failed:
        parts.append("## Rows that failed\n\n" + "\n".join(_failed(one, night) for one in night.failed))
    bad = [row for row in checked if row.failed]
    if bad:
        parts.append(f"## Worse than the baseline {baseline}, or missing\n\n```\n{checking.text(bad)}\n```")
    elif baseline is None:
        parts.append(
            "**Compared with no baseline:** `bench accept --baseline DIR` makes one, `--baseline DIR` names it."
        )
    elif problem:
        parts.append(f"**Not compared with the baseline {baseline}:** {_inline(problem)}.")
    elif checked:
        counts = Counter(str(row.word) for row in checked)
        words = ", ".join(f"{count} {word}" for word, count in counts.most_common())
        elsewhere = sum(any(one.excuse in checking.ELSEWHERE for one in row.compared) for row in checked)
        told = f" ({elsewhere} beside networks or times of other hardware or packages)" if elsewhere else ""
        parts.append(f"Against the baseline {baseline}: {words}{told}.")
    if seen := checking.unpaired([row for row in checked if row not in bad]):
        parts.append("\n".join(f"- {line}" for line in seen))
    if others := [row for row in checked if row.other]:
        parts.append(f"## In another setting than the baseline {baseline}\n\n" + "\n".join(_others(others)))
    if drifts:
        lines = [
            f"- {row}, {metric}: {found.direction} since night {since}, {found.before:.4g} to {found.after:.4g}"
            for row, metric, since, found in drifts
        ]
        parts.append(
            f"## Slow drifts\n\nOne value without any drift is listed once in {drift.false_alarms():,.0f} nights.\n\n"
            + "\n".join(lines)
        )
    parts += [f"**Data changed:** {line}." for line in changes]
    if night.networks:
        failed = [one for one in night.networks if one["verdict"] == networks.FAILED]
        absent = [one for one in night.networks if one["verdict"] == evaluate.INCOMPARABLE]
        again = [one for one in night.networks if one not in failed and one not in absent]
        lines = [f"- {one['network']}: {networks.FAILED}: {_inline(one['words'])}" for one in failed]
        lines += [f"- {one['network']}: {_inline(one['words'])}" for one in again]
        prefix = f"{evaluate.INCOMPARABLE}: "
        reasons = Counter(one["words"].removeprefix(prefix) for one in absent)
        lines += [f"- {count} {prefix}{_inline(why)}" for why, count in reasons.most_common()]
        heading = f"## Released networks: {len(again)} of {len(night.networks)} evaluated again and compared"
        parts.append(f"{heading}\n\n" + "\n".join(lines))
    parts.append("## Rows\n\n" + _table(night))
    if night.left:
        lines = [f"- {name} ({planning.minutes(minutes)})" for name, minutes in night.left.items()]
        heading = "Left for want of time" if night.ended else "Not reached"
        parts.append(f"## {heading}\n\n" + "\n".join(lines))
    if night.not_run or night.elsewhere:
        unable = {**night.not_run, **night.elsewhere}
        rows = Counter((name.partition("/")[0], why) for name, why in unable.items())
        lines = [f"- {paper}, {count} rows: {_inline(why)}" for (paper, why), count in rows.items()]
        parts.append("## Not run here\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _verdict(
    night: Night,
    checked: Sequence[checking.RowCheck],
    drifts: Drifts,
    changes: Sequence[str],
    baseline: str | None,
    problem: str,
) -> str:
    """What went wrong in few words, or that nothing did; a night that did not end says so first."""
    words = Counter(row.word for row in checked)
    verdicts = Counter(one["verdict"] for one in night.networks)
    said = [
        f"{count} {what}"
        for count, what in (
            (len(night.failed), "failed"),
            (words[compared.Word.WORSE], "worse than the baseline"),
            (words[compared.Word.MISSING], "missing of the baseline"),
            (verdicts[evaluate.DIFFERENT], "released networks differ"),
            (verdicts[networks.FAILED], "released networks failed"),
            (len(drifts), "drifting"),
        )
        if count
    ]
    said += ["data changed"] if changes else []
    said += ["not compared with the baseline"] if problem else []
    if not night.ended:
        return ", ".join(["stopped", *said])
    return ", ".join(said) or ("fine" if baseline is not None else "fine, compared with no baseline")


def _others(rows: Sequence[checking.RowCheck]) -> list[str]:
    """Each difference in choices with the rows that have it."""
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row.other, []).append(row.id)
    return [f"- {len(found)} rows ({_inline(why)}): {', '.join(found)}" for why, found in names.items()]


def _failed(report: Report, night: Night) -> str:
    tries = night.attempts.get(report.id, 1)
    attempts = "1 attempt" if tries == 1 else f"{tries} attempts"
    return f"- {report.id}: {report.status} ({attempts}): {_inline(report.reason)}"


def _table(night: Night) -> str:
    lines = ["| row | status | minutes | planned | checkpoints | measured |", "| :-- | :-- | --: | --: | --: | --: |"]
    for name, report in night.rows.items():
        checkpoints = f"{report.reused} reused, {report.made} made"
        planned = night.planned.get(name)
        lines.append(
            f"| {name} | {report.status} | {report.minutes:.1f} | {'' if planned is None else f'{planned:.1f}'} | "
            f"{checkpoints} | {len(report.measured)} anew |"
        )
    return "\n".join(lines)


def _inline(text: str) -> str:
    """Text that stays in its line, and text."""
    return html.escape(" ".join(text.split()), quote=False)


def junit(night: Night, checked: Sequence[checking.RowCheck]) -> str:
    """JUnit's XML: a case for each row; a bad end is an error, a worse value a failure, what did not run is skipped."""
    worse = {row.id: row for row in checked if row.failed}
    suite = ElementTree.Element("testsuite", name="bench nightly", timestamp=night.date)
    counts: Counter[str] = Counter()

    def case(name: str, minutes: float = 0.0) -> ElementTree.Element:
        counts["tests"] += 1
        paper, _, rest = name.partition("/")
        return ElementTree.SubElement(suite, "testcase", classname=paper, name=rest, time=f"{60.0 * minutes:.1f}")

    for name, report in night.rows.items():
        element = case(name, report.minutes)
        if report.status not in (runner.OK, runner.SKIPPED):
            counts["errors"] += 1
            ElementTree.SubElement(element, "error", message=_printable(f"{report.status}: {report.reason}"))
        elif name in worse:
            counts["failures"] += 1
            message = checking.text([worse[name]])
            ElementTree.SubElement(element, "failure", message=str(worse[name].word)).text = _printable(message)
    not_reached = "no time left" if night.ended else "the night was stopped before it"
    for name, reason in [*((n, not_reached) for n in night.left), *night.not_run.items()]:
        if name in worse:  # what the baseline has and cannot run any more is a failure
            continue
        counts["skipped"] += 1
        ElementTree.SubElement(case(name), "skipped", message=_printable(reason))
    for name, row in worse.items():
        if name not in night.rows and name not in night.left:
            counts["failures"] += 1
            ElementTree.SubElement(case(name), "failure", message=f"{row.word}: {_printable(row.missing)}")
    for network in night.networks:
        element = case(f"released/{network['network']}")
        if network["verdict"] == evaluate.DIFFERENT:
            counts["failures"] += 1
            ElementTree.SubElement(element, "failure", message=_printable(network["words"]))
        elif network["verdict"] == networks.FAILED:
            counts["errors"] += 1
            ElementTree.SubElement(element, "error", message=_printable(network["words"]))
        elif network["verdict"] == evaluate.INCOMPARABLE:
            counts["skipped"] += 1
            ElementTree.SubElement(element, "skipped", message=_printable(network["words"]))
    for attribute in ("tests", "failures", "errors", "skipped"):
        suite.set(attribute, str(counts[attribute]))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """XML knows no control characters."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
