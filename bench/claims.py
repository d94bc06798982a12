"""What the papers claim of two of their rows (A beats B), in our words.

They stand in ``registry/claims.csv``, which is read with a strict schema.

``first`` and ``second`` are names of rows in ``table`` of the paper's script (``second_table`` where the second stands
in another one); a row that no script has is one that cannot run yet. ``metric`` is what the two are compared by,
``first`` being the better one. ``published`` is the effect in the first row's favour, in points, where one table of the
paper prints both values; ``smallest`` the smallest effect of interest: half a point, and not more than half of the
published effect (for the divergence 5 % of the second row's).
``verified`` is yes where both published values are, or, where none are, where the claim itself could be read.
"""

import csv
import io
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from bench.errors import UserError

COLUMNS = (
    *("claim", "paper", "statement", "table", "first", "second", "second_table", "metric", "published", "smallest"),
    *("source", "verified"),
)
METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "map": "mean average precision",
    "kl": "Kullback-Leibler divergence from the dense network's outputs, less is better",
}
FILE = "claims.csv"
# the table of a paper that holds the contrasts of its claims' rows, one row a claim
TABLE = "Claims"
# the most that a smallest effect of interest may be, in points; for the divergence in per cent
_MOST, _MOST_KL = Decimal("0.5"), Decimal(5)
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Claim:
    """One claim; the fields are the columns of the file.

    Effects are in the first row's favour, in points; for ``kl`` in per cent of the second row's divergence.
    """

    claim: str
    paper: str
    statement: str
    table: str
    first: str
    second: str
    second_table: str
    metric: str
    published: float | None
    smallest: float
    source: str
    verified: bool

    @property
    def elsewhere(self) -> bool:
        """Whether it is claimed of another network or of other data: its source says what is ``here`` instead."""
        return re.search(r"\bhere\b", self.source) is not None


def _claim(cells: dict[str, str]) -> Claim:
    """One checked row; raises ValueError with what is wrong and what to do."""
    for name in ("paper", "statement", "table", "first", "second", "source"):
        if not cells[name]:
            raise ValueError(f"{name} is empty; every claim needs one")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cells["claim"]):
        raise ValueError(f"claim {cells['claim']!r} is no id; write small letters, digits and single hyphens")
    if cells["metric"] not in METRICS:
        raise ValueError(f"metric {cells['metric']!r} is unknown; use one of {', '.join(METRICS)}")
    for name in ("published", "smallest"):
        text = cells[name]
        if (text or name == "smallest") and not (_NUMBER.fullmatch(text) and Decimal(text) > 0):
            raise ValueError(f"{name} {text!r} is no positive number; write points, e.g. 0.5")
    most = _MOST_KL if cells["metric"] == "kl" else _MOST
    if cells["published"]:
        most = min(most, Decimal(cells["published"]) / 2)
    if Decimal(cells["smallest"]) > most:
        raise ValueError(f"smallest {cells['smallest']} is above {most}, the most of interest; write {most} or less")
    if cells["verified"] not in ("yes", "no"):
        raise ValueError(f"verified is {cells['verified']!r}; write yes or no")
    second_table = cells["second_table"] or cells["table"]
    if (cells["table"], cells["first"]) == (second_table, cells["second"]):
        raise ValueError("a row is compared with itself; name two rows")
    texts = {name: cells[name] for name in COLUMNS if name not in ("second_table", "published", "smallest", "verified")}
    published = float(cells["published"]) if cells["published"] else None
    return Claim(
        **texts,
        second_table=second_table,
        published=published,
        smallest=float(cells["smallest"]),
        verified=cells["verified"] == "yes",
    )


def by_id(folder: Path) -> dict[str, Claim]:
    """The claims of a registry by their ids; a registry without the file has none."""
    return {claim.claim: claim for claim in load(folder)} if (folder / FILE).exists() else {}


def load(folder: Path) -> list[Claim]:
    """All claims of ``folder/claims.csv``, in its order; UserError where the file breaks the schema."""
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the claims of all papers stand in it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    if tuple(next(reader, [])) != COLUMNS:
        raise UserError(f"{path}, line 1: another header; make it {','.join(COLUMNS)}")
    claims: list[Claim] = []
    for cells in reader:
        try:
            if len(cells) != len(COLUMNS):
                raise ValueError(f"{len(cells)} cells instead of {len(COLUMNS)}; quote cells that contain a comma")
            claim = _claim(dict(zip(COLUMNS, cells, strict=True)))
            if any(claim.claim == other.claim for other in claims):
                raise ValueError(f"a second claim {claim.claim}; ids must differ")
            if not (folder / f"{claim.paper}.csv").exists():
                raise ValueError(f"paper {claim.paper!r} has no registry file beside this one; correct its name")
        except ValueError as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from None
        claims.append(claim)
    return claims
