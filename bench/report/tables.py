"""One table for each published table and scale, in text, with its footnotes; and the same values unrounded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench import claims
from bench.metrics import size
from bench.registry import Published
from bench.report.cells import Cell
from bench.report.glossary import metric, position
from bench.report.judging import CONTRASTS
from bench.report.load import Line
from bench.report.readable import (
    DAGGER,
    MARKS,
    ROW,
    VERDICT,
    cell_text,
    columns,
    mark,
    printed,
    readable,
    row_name,
    usual_seeds,
)
from bench.verdict import seeds_for

_DIFFERENCE = re.compile("change|increase|difference|ratio|agreement|kl")
# of why turns ended (bench.measure.latency): they ended too early
_TOO_WIDE = "is wider than"
CLAIMED, REAL = "claimed", "real (own shape)"
OWN_MACS, OWN_PARAMS = "MACs (own shape)", "params (own shape)"


def _counts(name: str, what: str) -> bool:
    """Whether the metric's n counts ``what``: test images, rows of a fit, calls of a timing."""
    return metric(name).of == what


@dataclass(frozen=True)
class Table:
    """The rows of one published table at one scale.

    ``frame`` is the table that people read, text only, and ``full`` one row for each line with every metric of them;
    ``notes`` are the footnotes and ``unlinked`` the published rows of the same table that no line quotes.
    """

    paper: str
    name: str
    scale: str
    lines: Sequence[Line]
    frame: pd.DataFrame
    full: pd.DataFrame
    notes: Sequence[str]
    unlinked: Sequence[str]

    @property
    def title(self) -> str:
        """The table's name with the data that it was measured on."""
        return f"{self.name}: {self.scale}"

    @property
    def ran(self) -> bool:
        """Whether any of its rows did."""
        return any(line.ran for line in self.lines)

    @property
    def analogue(self) -> bool:
        """Whether all that ran did so on other data than the paper's."""
        return all(line.analogue for line in self.lines)

    @property
    def slug(self) -> str:
        """The table's name as a file name."""
        return slug(self.name)


def slug(name: str) -> str:
    """Letters, digits, dots and hyphens of ``name``; underscores for the rest."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_")


def build_all(lines: Iterable[Line], published: Sequence[Published]) -> list[Table]:
    """The tables of one paper: by the data (by name), in the order of the paper's script, then by the setting."""
    groups: dict[tuple[str, str], list[Line]] = {}
    first: dict[str, int] = {}
    for line in lines:
        groups.setdefault((line.scale, line.table), []).append(line)
        first[line.table] = min(line.order, first.get(line.table, line.order))

    def place(key: tuple[str, str]) -> tuple[str, int, str]:
        return str(groups[key][0].setting.get("scale", key[0])), first[key[1]], key[0]

    return [build(groups[key], published) for key in sorted(groups, key=place)]


def build(lines: Sequence[Line], published: Sequence[Published]) -> Table:
    """The table of these lines (one paper, table and scale); ``published`` are all values of the paper's registry."""
    first = lines[0]
    if first.table == claims.TABLE:
        return _claims(lines)
    present = {name: line.cells[name].unit for line in lines for name in line.cells}
    chosen = {name: metric(name, present[name]).title for name in columns(lines)}
    mixed = len({line.recipe for line in lines if line.ran}) > 1
    all_ours = all(line.ours for line in lines)
    body = []
    for line in lines:
        text = {ROW: row_name(line, all_ours)}
        text["network"] = line.recipe if mixed else ""
        text |= _own_sizes(line)
        for name, title in chosen.items():
            text[title] = cell_text(line.cells[name]) if name in line.cells else ""
        text["curve"] = f"{len(line.points)} points" if line.points else ""
        for heading in dict.fromkeys(_published_heading(other) for other in lines):
            text[heading] = _published_text(line) if heading == _published_heading(line) else ""
        text[VERDICT] = _verdict_text(line)
        body.append(text)
    frame = pd.DataFrame(body, dtype=object)
    filled = [name for name in frame.columns if name in (ROW, VERDICT) or bool((frame[name] != "").any())]
    notes = _notes(lines, chosen, all_ours)
    unlinked = _unlinked(lines, published)
    return Table(first.paper, first.table, first.scale, tuple(lines), readable(lines), frame[filled], notes, unlinked)


_PRINTED = "difference as printed"


def _claims(lines: Sequence[Line]) -> Table:
    """What the paper claims of two of its rows each: their paired contrast, the published effect, the verdict."""
    body, notes = [], []
    for line in lines:
        claim = line.claim
        text = {"claim": line.name if claim is None else claim.statement, "first": "", "second": "", "contrast": ""}
        text |= {_PRINTED: "", "smallest of interest": "", VERDICT: "; ".join(line.outcomes)}
        if claim is not None:
            name, _ = CONTRASTS[claim.metric]
            shown = metric(name)
            text |= {"first": claim.first, "second": claim.second}
            if name in line.cells:
                text["contrast"] = f"{shown.heading} {cell_text(line.cells[name])} {shown.unit}"
            unit = "%" if claim.metric == "kl" else "pp"
            dagger = "" if claim.verified else DAGGER
            text[_PRINTED] = "" if claim.published is None else f"{claim.published:g} {unit}{dagger}"
            text["smallest of interest"] = f"{claim.smallest:g} {unit}"
        body.append(text)
    first = lines[0]
    ran = [line for line in lines if line.ran]
    notes.append(
        "Contrast: first minus second, paired by image and seed, with its 95 % interval. A claim holds where the "
        "whole interval lies on the claimed side of zero and its far end reaches the smallest effect of interest; it "
        "does not hold where all of it falls short of that effect and does not contain the printed difference; it is "
        "undecided otherwise, and where the second was trained and is near chance (a criterion that leaves nothing "
        "before fine-tuning is beaten all the same). The smallest effect: half of the printed "
        "difference (of the two values as printed: our subtraction), at most 0.5 pp."
    )
    for told, statements in _grounds(ran).items():
        notes.append(f"Where it is claimed ({'; '.join(statements)}): {told}.")
    if needed := _needed(ran):
        notes.append(
            "Seeds that it would take at least, where undecided, to tell from zero an effect as large as the printed "
            "one (where the interval leaves that out, or none is printed: the smallest of interest): "
            f"{'; '.join(needed)}."
        )
    if any(line.claim is not None and not line.claim.verified for line in lines):
        notes.append(
            f"[brackets] and {DAGGER}: the claim or its published effect was not checked against the publication."
        )
    for own in dict.fromkeys(line.own_scale for line in ran if line.analogue):
        notes.append(f"analogue: measured on {first.scale}, not on {own}.")
    notes += _interval_notes([cell for line in ran for cell in line.cells.values()])
    frame = pd.DataFrame(body, dtype=object)
    filled = [name for name in frame.columns if name == VERDICT or bool((frame[name] != "").any())]
    return Table(first.paper, first.table, first.scale, tuple(lines), frame[filled], frame[filled], notes, ())


def _needed(lines: Sequence[Line]) -> list[str]:
    """Of each claim that the width of its interval leaves undecided its rows and the seeds that it would take."""
    found = []
    for line in lines:
        if line.claim is None or line.decision is None or line.decision.word != "undecided" or line.decision.reason:
            continue
        claim, low, high = line.claim, line.decision.low, line.decision.high
        if low is not None and high is not None:
            printed = claim.published
            effect = printed if printed is not None and low <= printed <= high else claim.smallest
            had = line.cells[CONTRASTS[claim.metric][0]].seeds
            found.append(f"{claim.first} against {claim.second} {seeds_for(low, high, had, effect)} (had {had})")
    return found


def _grounds(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Where the claims stand, with what differs here (another network, other data), and which they are."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.claim is not None:
            sides, there = f"{line.claim.first} against {line.claim.second}", line.claim.source.rstrip(".")
            found[there] = list(dict.fromkeys([*found.get(there, []), sides]))
    return found


def _own_sizes(line: Line) -> dict[str, str]:
    """Claimed and real speed-up, and the sizes at the paper's own shape."""
    shape = line.shape
    return {
        CLAIMED: "" if line.claimed is None else f"{line.claimed:g}x",
        REAL: "" if shape is None else f"{shape['speedup']:.3f}x",
        OWN_MACS: "" if shape is None else size(shape["macs"]["conv"]),
        OWN_PARAMS: "" if shape is None else size(shape["params"]),
    }


def _published_heading(line: Line) -> str:
    """The column of a line's published values: an analogue's is headed with the paper's data, never with its own."""
    return f"published ({line.own_scale})" if line.analogue else "published"


def _published_text(line: Line) -> str:
    return "; ".join(f"{metric(name).heading} {printed(entry)}" for name, entry in line.links.items())


def _verdict_text(line: Line) -> str:
    found = list(dict.fromkeys(line.outcomes))
    if len(found) < 2:
        return found[0] if found else ""
    return "; ".join(f"{metric(name).heading}: {text}" for name, text in line.verdicts.items())


def _notes(lines: Sequence[Line], chosen: dict[str, str], all_ours: bool) -> list[str]:
    notes = []
    ran = [line for line in lines if line.ran]
    shown = [line.cells[name] for line in ran for name in chosen if name in line.cells]
    cells = [*shown, *(point.cell for line in ran for point in line.points)]
    marked = {mark(entry) for line in lines for entry in line.links.values()}
    notes += [f"{sign} published value {meaning}." for sign, meaning in MARKS.items() if sign in marked]
    for own in dict.fromkeys(line.own_scale for line in ran if line.analogue):
        quoted = any(line.links for line in lines if line.analogue and line.own_scale == own)
        end = "; the published value is quoted in the CSV and HTML files, not compared" if quoted else ""
        notes.append(f"analogue: measured on {lines[0].scale}, not on {own}{end}.")
    notes += _interval_notes(cells)
    if (usual := usual_seeds(lines)) is not None:
        notes.append(f"Rows without a mark are over {usual} seed{'s' if usual > 1 else ''}.")
    for ours, theirs in dict.fromkeys(line.bases for line in ran if line.bases is not None and not line.analogue):
        notes.append(f"Dense network: {ours:.2f} % here, {theirs:g} % in the paper.")
    verdicts = [found for line in lines for found in line.verdicts.values()]
    notes += _tolerances(lines)
    if any(found.word in ("exact", "wrong") for found in verdicts):
        notes.append("exact: ours, rounded or cut to the printed digits, is what is printed; else wrong.")
    if any(found.stand_in for found in verdicts):
        notes.append(
            "Verdicts on fewer than three seeds take the noise of the images, paired with the dense network, for the "
            "spread of a run."
        )
    if any(not found.verified for found in verdicts):
        notes.append(
            "[verdict]: on a value that nobody could verify, or that others than the paper's authors report; it enters "
            "no count."
        )
    images = sorted({cell.n for cell in cells if cell.n is not None and _counts(cell.metric, "images")})
    if images:
        notes.append(f"Measured on {' or '.join(f'{n:,}' for n in images)} test images.")
    for n, units in sorted({(cell.n, cell.units) for cell in cells if cell.n and cell.units}):
        notes.append(
            f"These {n:,} images show {units:,} different scans, each several times: intervals are for new scans."
        )
    for n, of in sorted({(cell.n, cell.of) for cell in cells if cell.n and cell.of}):
        notes.append(
            f"{n:,} of the {of:,} published test images are here: intervals and verdicts hold what the others could "
            "change."
        )
    cut_off: dict[str, list[str]] = {}
    for line in ran:
        for facts in (facts for clocks in line.timed.values() for facts in clocks.values()):
            if _TOO_WIDE in facts["stopped"]:
                cut_off.setdefault(f"{facts['clock']}: {facts['stopped']}", []).append(line.name)
    if cut_off:
        said = ". ".join(f"{'; '.join(dict.fromkeys(names))}: {why}" for why, names in sorted(cut_off.items()))
        notes.append(f"Times that are less precise than was asked for: {said}.")
    conventions = sorted({cell.convention for cell in shown if cell.convention})
    if conventions or any(line.shape for line in lines):
        counted = ", ".join(conventions or ["conv"])
        meant = " (convolutions only)" if counted == "conv" else ""
        notes.append(f"MACs and speed-ups count multiply-accumulates by the convention `{counted}`{meant}.")
    if any(line.shape for line in lines):
        notes.append("Sizes of rows that did not run, and own shapes, are those of the paper's network at full size.")
    mixed = [line.name for line in ran if line.setting.get("amp")]
    if mixed:
        which = "all" if len(mixed) == sum(bool(line.history) for line in ran) else ", ".join(dict.fromkeys(mixed))
        notes.append(f"Trained in mixed precision (`--amp`: bf16 on a processor, fp16 on a GPU): {which}.")
    recipes: dict[str, list[str]] = {}
    for line in ran:
        if line.recipe:
            recipes.setdefault(line.recipe, []).append(line.name)
    if len(recipes) == 1:
        notes.append(f"Network of the run: {next(iter(recipes))}.")
    elif recipes:
        told = (f"{recipe} ({', '.join(names)})" for recipe, names in recipes.items())
        notes.append(f"Networks of the run: {'; '.join(told)}.")
    absent: dict[str, list[str]] = {}
    for line in lines:
        if not line.ran:
            absent.setdefault(line.status, []).append(line.name)
    notes += [f"{status[:1].upper()}{status[1:]}: {', '.join(names)}." for status, names in absent.items() if ran]
    older = [line.name for line in ran if line.older]
    if older:
        notes.append(f"Measured by older code than the newest row of this table: {', '.join(older)}.")
    if all_ours:
        notes.append("All rows go beyond the paper: there are no published values.")
    return notes


def _tolerances(lines: Sequence[Line]) -> list[str]:
    """How far from the published value still counts as reproduced, and what a verdict asks."""
    limits: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        for name, found in line.verdicts.items():
            if found.low is not None:
                rows = limits.setdefault(f"{line.links[name].limit:g}", {}).setdefault(metric(name).heading, [])
                rows.append(line.name)
    if not limits:
        return []
    several = len(limits) > 1
    told = "; ".join(
        f"{limit} pp ("
        + "; ".join(f"{heading}{' of ' + ', '.join(rows) if several else ''}" for heading, rows in named.items())
        + ")"
        for limit, named in limits.items()
    )
    return [
        f"Tolerance of the verdicts (at most half of the effect that a row is about): {told}. Reproduced: shown, with "
        "95 %, to be no worse than published by more than that, where runs differ as they do; not reproduced: shown to "
        "be worse by more; better: shown to be better by more; inconclusive: none of these, and so many runs of ours "
        "would settle it if the difference stayed."
    ]


def _interval_notes(cells: Sequence[Cell]) -> list[str]:
    """What the intervals are about."""
    shown = [cell for cell in cells if cell.low is not None and not _counts(cell.metric, "calls")]
    # what is counted on images alone knows no networks
    networks = sorted({cell.seeds or int(not _DIFFERENCE.search(cell.metric)) for cell in shown})
    notes = []
    if 1 in networks:
        notes.append("[low, high]: 95 % interval for new images, of one network.")
    if 0 in networks:
        notes.append("[low, high] where older code measured a difference: a bootstrap over images and seeds.")
    several = [str(n) for n in networks if n > 1]
    if several:
        notes.append(
            f"[low, high] of {' or '.join(several)} seeds: 95 % interval of their mean for new images and new seeds."
        )
    return notes


def _unlinked(lines: Sequence[Line], published: Sequence[Published]) -> list[str]:
    """The rows of the published table that no line quotes, one text each, values of one row together.

    Sizes, and checks of our own arithmetic, stand in a part of their own.
    """
    quoted = {entry for line in lines for entry in line.links.values()}
    rows: dict[tuple[str, str, str], list[str]] = {}
    for entry in published:
        if entry.table == lines[0].table and entry not in quoted and entry.kind not in ("size", "check"):
            where = (entry.row, entry.model, entry.dataset)
            rows.setdefault(where, []).append(f"{entry.metric} {printed(entry)}")
    return [
        f"{row} ({', '.join(part for part in (model, dataset) if part)}): {'; '.join(values)}"
        for (row, model, dataset), values in rows.items()
    ]


def long(table: Table) -> list[dict[str, Any]]:
    """Every measured value of the table, unrounded, one a row: with its interval, counts, setting, what was published.

    An analogue's published value is in a column of its own, ``quoted``, never in ``published``.  A row that did not run
    has one line with its status, a point its ``curve`` and the speed-up ``at`` which it lies; the sizes at the paper's
    own shape are metrics that begin with ``own_shape_``, those among them that are printed, as the paper counts them
    and with their verdicts, with ``printed_``.
    """
    rows = []
    curved = ("curve", "at") if any(line.points for line in table.lines) else ()
    for line in table.lines:
        seeds = line.setting.get("seeds", [])
        about = {
            "paper": line.paper,
            "table": line.table,
            "row": line.name,
            "scale": line.scale,
            "own_scale": line.own_scale,
            "analogue": line.analogue,
            "beyond_the_paper": line.ours,
            "status": line.status,
            "seeds_of_the_run": " ".join(map(str, seeds)),
        }
        if table.name == claims.TABLE:
            claim = line.claim
            about |= {
                "claim": "" if claim is None else claim.statement,
                "first": "" if claim is None else claim.first,
                "second": "" if claim is None else claim.second,
                "smallest_of_interest": None if claim is None else claim.smallest,
            }
        columns = ("metric", *curved, *_OF_A_CELL, "published", "quoted", "published_unit", "verified", "verdict")
        empty = dict.fromkeys(columns)
        found = []
        for name in sorted({*line.cells, *line.links}, key=position):
            cell, entry = line.cells.get(name), line.links.get(name)
            value = {**empty, "metric": name}
            value |= {part: getattr(cell, part, None) for part in _OF_A_CELL}
            if entry is not None:
                value |= {"quoted" if line.analogue else "published": entry.value, "published_unit": entry.unit}
                value["verified"] = entry.verified
            if name in line.verdicts:
                value["verdict"] = str(line.verdicts[name])
            found.append(value)
        for point in line.points:
            value = {**empty, "metric": point.cell.metric, "curve": point.series, "at": point.x}
            found.append(value | {part: getattr(point.cell, part, None) for part in _OF_A_CELL})
        if line.decision is not None and line.claim is not None:
            # of the contrast that decides it; the others stand beside it
            for value in found:
                if value["metric"] == CONTRASTS[line.claim.metric][0]:
                    unit = "%" if line.claim.metric == "kl" else "pp"
                    value |= {"published": line.claim.published, "published_unit": unit}
                    value |= {"verified": line.claim.verified, "verdict": "; ".join(line.outcomes)}
        for name, value_ in _own_shape(line).items():
            found.append({**empty, "metric": f"own_shape_{name}", "value": value_})
        for size_ in line.sizes():
            entry = size_.published
            value = {"value": None if size_.value is None else float(size_.value), "unit": entry.unit}
            value |= {"metric": f"printed_{entry.metric}", "convention": entry.convention, "published": entry.value}
            value |= {"published_unit": entry.unit, "verified": entry.verified, "verdict": str(size_.verdict)}
            # of the network at its full size, whatever data the row ran on
            value |= {"scale": line.own_scale, "analogue": False, "status": "decided without data"}
            found.append({**empty, **value})
        rows += [{**about, **value} for value in found or [empty]]
    return rows


_OF_A_CELL = ("value", "unit", "low", "high", "sd", "seeds", "n", "of", "convention")


def _own_shape(line: Line) -> dict[str, float]:
    """Sizes of the network of the paper at its full size; nothing where the row has none."""
    if line.shape is None:
        return {}
    counts = {
        f"{kind}_{c}": line.shape[kind].get(c) for kind in ("macs", "dense_macs") for c in ("conv", "conv+fc", "2x")
    }
    return {**counts, **{name: line.shape[name] for name in ("params", "dense_params", "speedup")}}
