"""A row's measured values judged by the published ones that it links to, and a claim by the contrast of two rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from bench import registry, verdict
from bench.claims import Claim
from bench.registry import Published
from bench.report.cells import Cell
from bench.verdict import Verdict

_POINTS = ("%", "pp", "points")
# the contrast of two rows that decides a claim by metric, and the sign that makes it positive where the first is better
CONTRASTS = {
    "top1": ("top1_difference", 1.0),
    "top5": ("top5_difference", 1.0),
    "map": ("map_voc07_difference", 1.0),
    "kl": ("kl_ratio", -1.0),
}
# differences are judged only where the dense network is about as good as the paper's
_CHANGES = ("err_increase", "change")


def judge_all(
    cells: Mapping[str, Cell], links: Mapping[str, Published], bases: tuple[float, float] | None
) -> dict[str, Verdict]:
    """The verdicts on the measured values that are linked to published ones, by metric."""
    return {
        name: found
        for name, entry in links.items()
        if name in cells and (found := judge(cells, name, entry, bases)) is not None
    }


def judge(
    cells: Mapping[str, Cell], name: str, published: Published, bases: tuple[float, float] | None = None
) -> Verdict | None:
    """The verdict on the measured ``name`` of a row; None where there is nothing to judge.

    Nothing is judged where no value could be read, for times, and for sizes that were realised by somebody's training.
    Sizes that the network decides are judged by :mod:`bench.sizes`.  Values whose units do not belong together are
    ``not comparable``.
    """
    cell = cells[name]
    if published.value is None or published.kind in ("time", "trained", "width", "setting"):
        return None
    if published.kind in ("size", "check"):
        return _judge_size(cell, published)
    factor = 1.0 if cell.unit == published.unit else 100.0 if published.unit == "" else 1.0
    if cell.unit != published.unit and not (cell.unit in _POINTS and published.unit in (*_POINTS, "")):
        return Verdict("not comparable", f"{cell.unit or 'count'} with {published.unit or 'count'}")
    if bases is not None and abs(bases[0] - bases[1]) > verdict.LARGEST_BASE_DIFFERENCE and _is_change(name):
        return Verdict("inconclusive", verdict.OTHER_BASE, verified=published.counted)
    least = 100.0 / cell.n if cell.n else 0.0
    sigma = _sigma(cells, name)
    if sigma is None:
        return Verdict("not comparable", "no interval")
    return verdict.of_value(
        cell.value / factor,
        published,
        sigma=sigma / factor,
        runs=max(cell.seeds, 1) if cell.sd is not None else 1,
        least_sigma=least / factor,
        slack=_missing(cell) / factor,
    )


def _is_change(name: str) -> bool:
    return any(word in name for word in _CHANGES)


def _sigma(cells: Mapping[str, Cell], name: str) -> float | None:
    """The spread of one run: measured over three or more, else the images' noise, paired with the dense network."""
    cell = cells[name]
    if cell.sd is not None and cell.seeds >= verdict.LEAST_RUNS:
        return cell.sd
    paired = name.replace("_acc", "_change").replace("_err", "_change") if not _is_change(name) else name
    chosen = cells.get(paired, cell)
    if chosen.low is None or chosen.high is None:
        chosen = cell
    if chosen.low is None or chosen.high is None:
        return None
    # the interval was widened by what missing images could change, which the verdict adds itself
    return max((chosen.high - chosen.low) / 2.0 - _missing(chosen), 0.0) / 1.959964


def _missing(cell: Cell) -> float:
    """What the missing test images could change, in points."""
    return 0.0 if not cell.of or not cell.n or cell.of <= cell.n else 100.0 * (cell.of - cell.n) / cell.of


def _judge_size(cell: Cell, published: Published) -> Verdict:
    """A count of ours against a printed one, in its unit and convention."""
    factor = registry.UNITS.get(published.unit, None) if cell.unit in ("", "MACs") else 1
    if factor is None or (factor == 1 and cell.unit not in ("", "MACs", published.unit)):
        return Verdict("not comparable", f"{cell.unit or 'count'} with {published.unit or 'count'}")
    value = Fraction(cell.value) if float(cell.value).is_integer() else Fraction(repr(cell.value))
    given = _convention(cell)
    if given and published.convention and given != published.convention:
        try:
            value = registry.converted(value, given, published.convention, ratio=cell.unit == "x")
        except registry.OtherConvention:
            return Verdict(verdict.OTHER_CONVENTION, verified=published.counted)
    agrees = published.agrees(value / factor)
    if published.kind == "check":
        return Verdict("check agrees" if agrees else "check differs")
    return Verdict("exact" if agrees else "wrong", verified=published.counted)


def _convention(cell: Cell) -> str:
    """Our records' convention as the registry names it; parameters are all parameters."""
    if cell.convention is None:
        return "all" if cell.metric == "params" else ""
    return {"2x": "2x conv+fc"}.get(cell.convention, cell.convention)


def bases_of(
    cells: Mapping[str, Cell], links: Mapping[str, Published], published: Sequence[Published]
) -> tuple[float, float] | None:
    """The dense network's accuracy (%) here and in the paper, for the change that the row is linked by."""
    for name, entry in links.items():
        if not _is_change(name):
            continue
        k = name.split("_")[0]
        accuracy, change = cells.get(f"{k}_acc"), cells.get(f"{k}_change")
        theirs = registry.base_of(entry, published)
        if accuracy is not None and change is not None and theirs is not None:
            return accuracy.value - change.value, theirs
    return None


def decide(claim: Claim, cells: Mapping[str, Cell]) -> Verdict | None:
    """The verdict on a claim from the contrast of its two rows; None where the contrast was not measured."""
    name, sign = CONTRASTS[claim.metric]
    cell = cells.get(name)
    if cell is None or cell.low is None or cell.high is None:
        return None
    low, high = sorted((sign * cell.low, sign * cell.high))
    found = verdict.of_claim(sign * cell.value, low, high, claim.smallest, claim.published)
    return replace(found, verified=claim.verified)
