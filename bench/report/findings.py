"""What a page says first: three sentences made from verdicts and claims; no value that nobody verified is in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bench.claims import Claim
from bench.report.ending import answered, largest_effect
from bench.report.load import Line
from bench.report.render import markdown_text

# so many rows or claims of one verdict are named; of more the number
_NAMED = 3
_SIZES = {"exact": "come out exactly", "wrong": "come out otherwise"}


def sentences(lines: Sequence[Line], sizes: Mapping[str, int], answers: Sequence[tuple[str, str]] = ()) -> list[str]:
    """On published values, on claims, and the largest effect, measured on the paper's own data where anything was.

    ``sizes`` are the verdicts on printed sizes that could be verified, with their numbers.  Where rows that answer the
    paper's question (``answers``: their tables and names) were measured, they stand in the largest effect's place.
    """
    own = [line for line in lines if line.ran and not line.analogue]
    ran = own or [line for line in lines if line.ran]
    where = "" if own or not ran else "(On other data than the paper's.) "
    claims = _claims(own)
    if lines and all(line.ours or line.claim is not None for line in lines):
        printed = "A study of ours: no paper prints these values."
        claims = claims if any(line.claim is not None for line in lines) else "No claim is tied to it."
    else:
        printed = _values(own, sizes, unread=_unread(lines))
    claims += _brackets(own)
    found = [line for answer in answers for line in ran if (line.table, line.name) == answer]
    last = answered(found) or largest_effect(ran)
    return [printed, claims, f"{where}{last}" if ran else "Nothing was run."]


def _unread(lines: Sequence[Line]) -> bool:
    """Whether none of the values that the rows link to could be read in the publication."""
    links = [published for line in lines if line.claim is None for published in line.links.values()]
    return bool(links) and all(published.value is None for published in links)


def _values(lines: Sequence[Line], sizes: Mapping[str, int], unread: bool) -> str:
    """Which published values came out, which did not; printed sizes apart, in numbers."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.decision is None:
            for verdict in line.verdicts.values():
                if verdict.verified:
                    given = ", weights given" if line.setting.get("weights") and not line.history else ""
                    found.setdefault(verdict.word, []).append(f"{line.name} ({line.table.partition(' (')[0]}{given})")
    # a row with one verdict on several metrics is named once
    values = {
        word: list(dict.fromkeys(names))
        for word, names in found.items()
        if word not in _SIZES and not word.startswith("check")
    }
    counted = [f"{sizes[word]} {_SIZES[word]}" for word in _SIZES if sizes.get(word)]
    said = [f"{word}: {_named(names)}" for word, names in values.items()]
    if unread:
        said = ["none of the paper's accuracies could be read, so no verdict on them is possible, whatever is measured"]
    elif not said:
        said = ["no published accuracy that could be verified has been measured on the paper's data yet"]
    text = "; ".join([*said, *(["printed sizes: " + ", ".join(counted)] if counted else [])])
    return f"{text[0].upper()}{text[1:]}."


def _claims(lines: Sequence[Line]) -> str:
    """Which of the paper's claims hold on its own data."""
    found: dict[str, list[Claim]] = {}
    for line in lines:
        if line.claim is not None and line.decision is not None and line.decision.verified:
            found.setdefault(line.decision.word, []).append(line.claim)
    if not found:
        return "None of its claims that could be verified has been decided on its own data yet."
    said = []
    for word, claims in found.items():
        names = [claim.statement for claim in claims]
        said.append(f"{'Claim' if len(names) == 1 else 'Claims'} that {_verb(word, names)}: {_named(names)}")
        if others := sum(claim.elsewhere for claim in claims):
            of = "" if len(claims) == 1 else "all " if others == len(claims) else f"{others} of them "
            said[-1] += f" ({of}claimed of another network or other data)"
    return " ".join(f"{text}." for text in said)


def _brackets(lines: Sequence[Line]) -> str:
    """How many verdicts of each kind count nowhere, because nobody could check what they are on."""
    claims = Counter(line.decision.word for line in lines if line.decision is not None and not line.decision.verified)
    values = Counter(
        verdict.word
        for line in lines
        if line.decision is None
        for verdict in line.verdicts.values()
        if not verdict.verified and not verdict.word.startswith("check")
    )
    parts = [
        f"{what}: {', '.join(f'{count} [{word}]' for word, count in sorted(counts.items()))}"
        for what, counts in (("values", values), ("claims", claims))
        if counts
    ]
    return f" On what nobody could check in the publication, and so in no count: {'; '.join(parts)}." if parts else ""


def _verb(word: str, names: Sequence[str]) -> str:
    plural = {"holds": "hold", "does not hold": "do not hold", "undecided": "stay undecided"}
    single = {"undecided": "stays undecided"}
    return (plural if len(names) > 1 else single).get(word, word)


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return "; ".join(map(markdown_text, names[:_NAMED])) + (f" and {rest} more" if rest > 0 else "")
