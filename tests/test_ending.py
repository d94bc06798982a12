"""How a run ends on the screen, on hand-made rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.claims import Claim
from bench.registry import Published
from bench.report import chance, ending, render
from bench.report.cells import Cell
from bench.report.load import Line
from bench.report.tables import Table
from bench.verdict import Verdict

PAGE = Path("runs/toy/README.md")
BLANK: dict[str, Any] = {
    "paper": "toy", "table": "Table 1 (a toy)", "order": 0, "own_scale": "imagenet", "analogue": True, "ours": False,
    "claimed": None, "recipe": "", "command": "", "shape": None, "steps": {}, "points": [], "links": {},
}  # fmt: skip


def line(name: str, cells: list[Cell] | None = None, status: str = "ran", scale: str = "clutter", **more: Any) -> Line:
    by_name = {cell.metric: cell for cell in cells or []}
    return Line(**{**BLANK, "name": name, "scale": scale, "status": status, "cells": by_name, **more})


def change(value: float, low: float, high: float, metric: str = "top1_change") -> Cell:
    return Cell(metric, value, "pp", low, high, None, 1, 2000)


def claimed(first: str, second: str, cells: list[Cell], decision: Verdict | None, **more: Any) -> Line:
    claim = Claim("a-b", "toy", "A beats B", "Table 1", first, second, "Table 1", "top1", None, 0.5, "", True)
    return line("a-b", cells, table="Claims", claim=claim, decision=decision, **more)


def table(*lines: Line, name: str = "Table 1 (a toy)") -> Table:
    frame = pd.DataFrame([{"row": one.name, "verdict": "; ".join(one.outcomes)} for one in lines])
    return Table("toy", name, lines[0].scale, lines, frame, frame, ["a note."], ())


def test_the_largest_effect_is_the_largest_that_excludes_zero() -> None:
    rows = [
        line("noisy", [change(-9.0, -19.0, 1.0)]),
        line("small", [change(-2.0, -3.0, -1.0)]),
        line("better", [change(4.25, 3.0, 5.5)]),
        line("touches", [change(-8.0, -16.0, 0.0)]),
        line("accuracy is no effect", [Cell("top1_acc", 90.0, "%", 88.0, 92.0)]),
        line("nor is an exact size", [Cell("top1_change", -7.0, "pp")]),
        line("not run", [change(-6.0, -7.0, -5.0)], status="not run (needs imagenet)"),
    ]
    expected = "Largest effect: top-1 change +4.25 [+3.00, +5.50] pp, better (Table 1 (a toy), clutter)."
    assert ending.largest_effect(rows) == expected
    # below zero counts by its size, and the best row of the table stands beside it
    worse = line("worse", [change(-4.5, -5.5, -3.0)])
    assert ending.largest_effect([*rows, worse]) == (
        "Top-1 change from +4.25 [+3.00, +5.50] pp (better) down to -4.50 [-5.50, -3.00] pp (worse); "
        "Table 1 (a toy), clutter."
    )
    # a gain needs no row beside it
    values = {"a": (6.0, -1.0, 13.0), "b": (4.0, 3.0, 5.0), "c": (1.0, -1.0, 3.0)}
    assert ending.largest_effect([line(name, [change(*value)]) for name, value in values.items()]) == (
        "Largest effect: top-1 change +4.00 [+3.00, +5.00] pp, b (Table 1 (a toy), clutter)."
    )
    # rows of other data are no part of it
    apart = line("apart", [change(20.0, 10.0, 30.0)], scale="digits")
    assert "(apart)" not in ending.largest_effect([line("worst", [change(-40.0, -50.0, -30.0)]), worse, apart])


def test_a_claim_is_named_by_its_two_rows() -> None:
    contrast = change(2.0, 1.0, 3.0, "top1_difference")
    row = claimed("2x LASSO", "2x first k", [contrast], Verdict("holds"))
    found = ending.largest_effect([row, line("less", [change(-1.0, -1.5, -0.5)])])
    assert found.endswith("+2.00 [+1.00, +3.00] pp, 2x LASSO against 2x first k (Claims, clutter).")


def rival(top1: float, classes: int = 10, scale: str = "clutter", **more: Any) -> Line:
    recipe = f"net(num_classes={classes})"
    trained = {"d": {"step": "dense(net)"}, "t": {"step": "recovered(slimmed(2x, dense(net)))"}}
    history = {"history": trained, **more}
    return line("NS", [Cell("top1_acc", top1, "%")], table="Table 1", recipe=recipe, scale=scale, **history)


BIG = claimed("FBS", "NS", [change(79.0, 78.0, 80.0, "top1_difference")], Verdict("holds"))


def test_a_claim_to_beat_a_network_near_chance_is_undecided_and_no_effect() -> None:
    small = claimed("FBS", "CP", [change(-0.9, -1.6, -0.2, "top1_difference")], Verdict("does not hold"))
    found = chance.undecided([BIG, small, rival(10.2)])
    assert str(found[0].decision) == "undecided (NS, 10.2 %, was trained and is near chance)"
    assert found[1:] == [small, rival(10.2)]
    assert ending.largest_effect(found).endswith("-0.90 [-1.60, -0.20] pp, FBS against CP (Claims, clutter).")
    assert ending.largest_effect(found[:1]) == "Largest effect: none, every interval of a difference holds zero."
    # who is said to win may be at chance: then it has not won
    lost = claimed("NS", "CP", [change(-70.0, -71.0, -69.0, "top1_difference")], Verdict("does not hold"))
    assert chance.undecided([lost, rival(10.2)]) == [lost, rival(10.2)]


@pytest.mark.parametrize(
    ("other", "near"),
    [
        (rival(12.0), True),
        (rival(12.1), False),
        (rival(52.0, classes=2), True),
        (rival(74.0, classes=2), False),
        (rival(10.2, scale="clutter (device cuda)"), True),  # the row was measured on another machine
        (rival(10.2, scale="imagenet", setting={"scale": "imagenet"}), False),
        (rival(10.2, status="not run"), False),
        (rival(10.2, history={"d": {"step": "dense(net)"}}), False),  # pruned and left so: its criterion's own doing
        (rival(10.2, history={}), False),
    ],
)
def test_what_is_near_chance(other: Line, near: bool) -> None:
    assert (chance.undecided([BIG, other])[0] != BIG) == near


def test_a_row_of_the_claim_s_own_setting_counts_before_others() -> None:
    elsewhere = rival(10.2, scale="clutter (device cpu)")
    assert chance.undecided([BIG, rival(90.0), elsewhere])[0] == BIG


def test_without_an_effect_this_is_said() -> None:
    assert ending.largest_effect([line("a", [change(0.1, -1.0, 1.2)])]) == (
        "Largest effect: none, every interval of a difference holds zero."
    )


@pytest.mark.parametrize("analogue", [False, True])
def test_verdicts_and_claims_are_counted(analogue: bool) -> None:
    """Verdicts on values that nobody verified are in brackets, analogues have none, and their claims say so."""
    words = [
        Verdict("reproduced"),
        Verdict("reproduced"),
        Verdict("inconclusive", "why"),
        Verdict("better", verified=False),
    ]
    rows = [line(f"row {i}", analogue=analogue) for i in range(4)]
    if not analogue:
        rows = [replace(row, verdicts={"top1_acc": word}) for row, word in zip(rows, words, strict=True)]
    rows += [
        claimed("a", "b", [], Verdict("holds", "a reason"), analogue=analogue),
        claimed("a", "c", [], Verdict("holds", verified=False), analogue=analogue),
        claimed("a", "d", [], None, status="not run (needs imagenet)", analogue=analogue),
        line("absent", status="not run (needs imagenet)", analogue=analogue),
    ]
    end = " (analogue)" if analogue else ""
    claims = f"claims: 1 holds{end}, 1 [holds]{end}, 1 not run."
    if analogue:
        said = f"Verdicts: none; 4 rows on other data than the paper's, which get none (analogue); {claims}"
    else:
        said = f"Verdicts: 2 reproduced, 1 inconclusive, 1 [better]; {claims}"
    assert ending.verdicts_and_claims(rows) == said
    assert ending.verdicts_and_claims([]) == "Verdicts: none; claims: none."


def test_tables_stand_under_their_titles_and_three_lines_end() -> None:
    ran = table(line("a", [change(-2.0, -3.0, -1.0)]), line("b", status="not run (method not implemented yet)"))
    absent = table(
        line("c", status="not run (needs imagenet)"), line("d", status="not run (needs imagenet)"), name="Table 2"
    )
    parts = ending.text([ran, absent], PAGE, "1 of 4 rows failed:\n  toy/table-1/x: no memory").split("\n\n")
    assert parts[0] == "## Table 1 (a toy): clutter"
    # aligned, without the footnote, which stands on the page
    assert [text.split(maxsplit=1)[0] for text in parts[1].split("\n")] == ["row", "a", "b"]
    assert len({text.rfind("not run") for text in parts[1].split("\n")[2:]}) == 1
    # what has nothing to show is named, not shown
    assert parts[2] == "Left out, nothing of them ran here: Table 2"
    assert parts[3].startswith("1 of 4 rows failed")
    last = parts[4].split("\n")
    assert len(parts) == 5 and len(last) == 3
    assert last[0].startswith("Largest effect: top-1 change -2.00")
    assert last[1].startswith("Verdicts: none; 1 row on") and last[2] == f"The page: {PAGE}"


def test_published_values_are_no_part_of_it() -> None:
    """A link alone is no verdict: what was not measured is not counted."""
    entry = Published(**dict.fromkeys(Published.__dataclass_fields__, None))  # type: ignore[arg-type]
    assert ending.verdicts_and_claims([line("a", links={"top1_acc": entry}, analogue=False)]) == (
        "Verdicts: none; claims: none."
    )


def test_a_terminal_shows_the_columns_that_it_has_room_for() -> None:
    """Names to the left, values to the right; 120 characters hold 20 + 2 + 50 + 2 + 46 of these, not one more."""
    frame = pd.DataFrame({"row": ["a" * 20, "b"], "x": ["1" * 50, "2"], "y": ["3" * 46, "4"], "z": ["5", "6"]})
    shown = replace(table(line("a")), frame=frame)
    head, first, second = render.screen(shown).splitlines()
    assert first == f"{'a' * 20}  {'1' * 50}  {'3' * 46}" and len(first) == 120
    assert second == "b" + " " * 70 + "2" + " " * 47 + "4"
    assert head.split() == ["row", "x", "y"]
    wider = replace(shown, frame=frame.assign(y=["3" * 47, "4"]))
    assert render.screen(wider).splitlines()[0].split() == ["row", "x"]
    # a value is shown whatever its width
    only = replace(shown, frame=frame.assign(x=["1" * 130, "2"]))
    assert render.screen(only).splitlines()[0].split() == ["row", "x"]


def test_a_terminal_keeps_the_verdict_and_goes_without_parameters_first() -> None:
    frame = pd.DataFrame(
        {"row": ["one two " * 10], "params": ["1 k"], "ours": ["2"], "published": ["3" * 60], "verdict": ["better"]}
    )
    shown = replace(table(line("a")), frame=frame)
    head, first, second = render.screen(shown).splitlines()
    assert head.split() == ["row", "ours", "verdict"] and first.split()[-2:] == ["2", "better"]
    # 14 words of 3 letters are 55 characters; the rest stands in the next line
    assert first.startswith("one two " * 7) and second.split() == ["one", "two"] * 3
    narrow = replace(shown, frame=frame.assign(published=["3" * 41]))
    assert render.screen(narrow).splitlines()[0].split() == ["row", "ours", "published", "verdict"]


def test_what_failed_and_what_nobody_verified_is_no_largest_effect() -> None:
    """A training that ended at chance, a claim to beat it, a claim that was not checked in the publication."""
    classes = {"recipe": "net(num_classes=10)"}
    trained = {"k": {"step": "recovered(net)", "seed": 0, "epochs": []}}
    chance = line(
        "at chance", [Cell("top1_acc", 10.2, "%", 9.0, 11.0), change(-80.0, -81.0, -79.0)], history=trained, **classes
    )
    fine = [line("small", [change(-1.0, -1.5, -0.5)], **classes), line("large", [change(-3.0, -3.5, -2.5)], **classes)]
    said = (
        "Top-1 change from -1.00 [-1.50, -0.50] pp (small) down to -3.00 [-3.50, -2.50] pp (large); "
        "Table 1 (a toy), clutter."
    )
    assert ending.largest_effect([chance, *fine]) == said
    # left untrained it is what its criterion is worth
    assert "-80.00" in ending.largest_effect([replace(chance, history={}), *fine])
    unverified = replace(
        line("claim", [Cell("top1_difference", 9.0, "pp", 8.0, 10.0)]), decision=Verdict("holds", verified=False)
    )
    assert ending.largest_effect([unverified, *fine]) == said
    assert "+9.00" in ending.largest_effect([replace(unverified, decision=Verdict("holds")), *fine])
