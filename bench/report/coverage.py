"""How many published values are decided, by which verdict, and why each of the others is not.

Counted are accuracies and sizes of the paper or of its authors' files that somebody could read and verify.  Values
that nobody could verify, and those that others report, stand apart with their verdicts in brackets; so do unread ones,
times, sizes of trained networks, widths, settings and our own checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.registry import KINDS, Published
from bench.report.load import Line
from bench.verdict import A_BOUND, OTHER_BASE

_PLURAL = {"accuracy": "accuracies", "size": "sizes"}
JUDGED = ("accuracy", "size")
OTHERS = "others"
DECIDED = ("reproduced", "better", "not reproduced", "exact", "wrong")
# why a value is not decided
METHOD, DATA, GPU, NOT_RUN, POWER, BOUND = "method", "data", "GPU", "not run", "power", "bound"
REASONS = {
    METHOD: "no row of ours implements it",
    DATA: "its data set is not at hand",
    GPU: "its data are at hand, a GPU is not",
    NOT_RUN: "its data are at hand and it has not been run",
    POWER: "measured, and too noisy to decide",
    BOUND: "measured, and no worse than the bound that is printed",
}


@dataclass(frozen=True)
class Outcome:
    """A published accuracy or size with its verdict, or why there is none."""

    published: Published
    text: str
    decided: bool


@dataclass(frozen=True)
class Coverage:
    """The outcomes of a paper's accuracies and sizes that were read, and how many values there are of each kind.

    ``kinds`` counts all that was read, ``counted`` what of it is the paper's or its authors' and was checked,
    ``others`` what others report, ``quoted`` what of the counted was read in a source that quotes it, ``unread`` what
    was not read.
    """

    outcomes: Sequence[Outcome]
    kinds: Counter[str]
    counted: Counter[str]
    others: Counter[str]
    quoted: Counter[str]
    unread: Counter[str]

    def decided(self, kind: str) -> Counter[str]:
        """Verdicts on the counted values of a kind."""
        return self._count(kind, lambda entry: entry.counted, decided=True)

    def open(self, kind: str) -> Counter[str]:
        """Reasons why counted values of a kind are not decided."""
        return self._count(kind, lambda entry: entry.counted, decided=False)

    def in_brackets(self, kind: str, others: bool) -> Counter[str]:
        """Verdicts on the values of a kind that ``others`` report, or that nobody could verify."""
        return self._count(kind, lambda entry: not entry.counted and (entry.origin == OTHERS) == others, decided=True)

    def unverified(self, kind: str) -> int:
        """How many values of a kind were read and nobody could verify, without those of others."""
        return self.kinds[kind] - self.counted[kind] - self.others[kind]

    def _count(self, kind: str, chosen: Callable[[Published], bool], decided: bool) -> Counter[str]:
        return Counter(
            outcome.text
            for outcome in self.outcomes
            if (outcome.published.kind, outcome.decided) == (kind, decided) and chosen(outcome.published)
        )

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            [*self.outcomes, *other.outcomes],
            self.kinds + other.kinds,
            self.counted + other.counted,
            self.others + other.others,
            self.quoted + other.quoted,
            self.unread + other.unread,
        )


EMPTY = Coverage([], Counter(), Counter(), Counter(), Counter(), Counter())


def of_paper(
    published: Sequence[Published],
    sized: Mapping[Published, str],
    scales: Mapping[Published, str],
    lines: Sequence[Line],
    absent: Callable[[str], str],
) -> Coverage:
    """The coverage of one paper.

    ``sized`` are the verdicts on the sizes that were decided from built networks, ``scales`` the own scale of the first
    row that can run and links to a value, ``lines`` the rows as they ran, and ``absent(scale)`` one of ``REASONS``: why
    a row with that scale has not.  Where several rows link to one value, the first in the script's order that ran
    counts.
    """
    read = [entry for entry in published if entry.value is not None]
    verdicts: dict[Published, str] = {}
    for line in lines:
        if line.ran and not line.analogue:
            for metric, verdict in line.verdicts.items():
                verdicts.setdefault(line.links[metric], str(verdict))
    outcomes = []
    for entry in read:
        if entry.kind == "size":
            outcomes.append(_outcome(entry, sized.get(entry), entry.undecidable or METHOD))
        elif entry.kind == "accuracy":
            reason = absent(scales[entry]) if entry in scales else METHOD
            outcomes.append(_outcome(entry, verdicts.get(entry), reason))
    return Coverage(
        outcomes,
        Counter(entry.kind for entry in read),
        Counter(entry.kind for entry in read if entry.counted),
        Counter(entry.kind for entry in read if entry.origin == OTHERS),
        Counter(entry.kind for entry in read if entry.counted and entry.quoted),
        Counter(entry.kind for entry in published if entry.value is None),
    )


def _outcome(entry: Published, verdict: str | None, reason: str) -> Outcome:
    if verdict is None:
        return Outcome(entry, reason, decided=False)
    text = verdict.removeprefix("[").removesuffix("]")
    word, _, rest = text.partition(" (")
    if word in DECIDED:
        return Outcome(entry, word, decided=True)
    if word == "inconclusive":
        reasons = {OTHER_BASE: OTHER_BASE, A_BOUND: BOUND}
        reason = next((told for said, told in reasons.items() if rest.startswith(said)), POWER)
        return Outcome(entry, reason, decided=False)
    return Outcome(entry, text, decided=False)


def to_json(coverage: Coverage) -> dict[str, Any]:
    """Counts, and every value with its outcome."""
    kinds: dict[str, Any] = {
        kind: {
            "read": coverage.kinds[kind],
            "counted": coverage.counted[kind],
            "of_others": coverage.others[kind],
            "quoted": coverage.quoted[kind],
            "unread": coverage.unread[kind],
        }
        for kind in KINDS
    }
    for kind in JUDGED:
        kinds[kind] |= {
            "decided": dict(coverage.decided(kind)),
            "open": dict(coverage.open(kind)),
            "in_brackets": dict(coverage.in_brackets(kind, False) + coverage.in_brackets(kind, True)),
        }
    values = [
        {
            "table": entry.table,
            "row": entry.row,
            "model": entry.model,
            "dataset": entry.dataset,
            "metric": entry.metric,
            "printed": entry.printed,
            "unit": entry.unit,
            "kind": entry.kind,
            "convention": entry.convention,
            "verified": entry.verified,
            "origin": entry.origin,
            "decided": outcome.decided,
            "outcome": outcome.text,
        }
        for outcome in coverage.outcomes
        for entry in [outcome.published]
    ]
    return {"kinds": kinds, "values": values}


def text(coverages: Mapping[str, Coverage]) -> str:
    """A table: for each paper and in total, its accuracies and sizes, and a line on all that is not judged."""
    total = sum(coverages.values(), EMPTY)
    lines = [f"{'':<24}{'':<10}{'published':>10}{'decided':>9}  verdicts; why not"]
    for name, coverage in [*coverages.items(), *([("total", total)] if len(coverages) != 1 else [])]:
        for number, kind in enumerate(JUDGED):
            verdicts, reasons = coverage.decided(kind), coverage.open(kind)
            parts = [_counts(counter) for counter in (verdicts, reasons) if counter]
            label = name if number == 0 else ""
            lines.append(
                f"{label:<24}{kind:<10}{coverage.counted[kind]:>10}{verdicts.total():>9}  {'; '.join(parts) or '-'}"
            )
        lines.append(f"{'':<24}{_apart(coverage)}")
    found = {reason for coverage in coverages.values() for kind in JUDGED for reason in coverage.open(kind)}
    lines += [f"{reason}: {meaning}" for reason, meaning in REASONS.items() if reason in found]
    return "\n".join(lines)


def markdown(coverages: Mapping[str, Coverage], titles: Mapping[str, str]) -> list[str]:
    """The same as lines of Markdown, papers by their titles."""
    total = sum(coverages.values(), EMPTY)
    lines = [
        "| paper | | published | decided | verdicts | the others |",
        "| :-- | :-- | --: | --: | :-- | :-- |",
    ]
    printed = {name: coverage for name, coverage in coverages.items() if coverage.kinds.total()}  # studies have nothing
    for name, coverage in [*printed.items(), ("**all papers**", total)]:
        for number, kind in enumerate(JUDGED):
            verdicts, reasons = coverage.decided(kind), coverage.open(kind)
            label = titles.get(name, name) if number == 0 else ""
            numbers = f"{coverage.counted[kind]} | {verdicts.total()}"
            lines.append(f"| {label} | {_PLURAL[kind]} | {numbers} | {_counts(verdicts)} | {_counts(reasons)} |")
    found = {reason for kind in JUDGED for reason in total.open(kind)}
    meanings = "; ".join(f"*{reason}*: {meaning}" for reason, meaning in REASONS.items() if reason in found)
    others = [kind for kind in KINDS if kind not in JUDGED and total.kinds[kind]]
    terms = {
        **({"unverified": "not checked against the publication"} if any(map(total.unverified, JUDGED)) else {}),
        **({"of others": "reported by others than the paper's authors"} if total.others.total() else {}),
        **({"unread": "known to be printed, but not read"} if total.unread.total() else {}),
        **{kind: KINDS[kind] for kind in others},
    }
    told = "; ".join(f"*{term}*: {meaning}" for term, meaning in terms.items())
    apart = f"{_apart(total).capitalize()}." + (f" Of these, {told}." if told else "")
    counted = "Counted is what the papers print, or their authors' own files say, and somebody could read"
    if quoted := [f"{total.quoted[kind]} {_PLURAL[kind]}" for kind in JUDGED if total.quoted[kind]]:
        counted += f" ({' and '.join(quoted)} in a source that quotes them)"
    return [*lines, "", f"{counted}. {meanings[:1].upper()}{meanings[1:]}. {apart}"]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def _apart(coverage: Coverage) -> str:
    """What is not counted: unverified and unread values, and the other kinds."""
    parts = []
    for kind in JUDGED:
        for count, word, others in (
            (coverage.unverified(kind), "unverified", False),
            (coverage.others[kind], "of others", True),
        ):
            if count:
                brackets = coverage.in_brackets(kind, others)
                parts.append(f"{count} {kind} {word}" + (f" [{_counts(brackets)}]" if brackets else ""))
        if coverage.unread[kind]:
            parts.append(f"{coverage.unread[kind]} {kind} unread")
    parts += [f"{coverage.kinds[kind]} {kind}" for kind in KINDS if kind not in JUDGED and coverage.kinds[kind]]
    return "apart: " + (", ".join(parts) or "nothing")
