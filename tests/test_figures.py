"""What figures show, by hand: cut axes, curves on each other, widths, errors, trainings, all methods on one network."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from bench.report import (
    densities,
    drawing,
    figures,
    layers,
    leaderboard,
    leaderboard_figure,
    leaderboard_page,
    training,
)
from bench.report.cells import Cell, Point
from bench.report.load import Line
from bench.report.tables import build


def line(name: str, cells: list[Cell] | None = None, paper: str = "toy", **more: Any) -> Line:
    given = {cell.metric: cell for cell in cells or []}
    fields: dict[str, Any] = {"recipe": "net() at 32x32", "setting": {"scale": "cifar10"}, "points": [], **more}
    first = (paper, "T", name, 0, "cifar10", "cifar10", False, True, None, "ran")
    steps = fields.pop("steps", {name: {"kind": "evaluate"}})
    recipe, points = fields.pop("recipe"), fields.pop("points")
    return Line(*first, recipe, "", None, steps, given, points, {}, **fields)


def change(value: float, half: float = 0.5) -> Cell:
    return Cell("top1_change", value, "pp", value - half, value + half)


# --------------------------------------------------------------------------------------------------------------------
# Drawing


def test_few_far_values_are_cut_off_and_many_are_not() -> None:
    near = [-7.0, -4.0, -3.0, -2.0, -1.0, 0.0]
    ends = ([value - 0.5 for value in near], [value + 0.5 for value in near])
    assert drawing.limits(ends[0], near, ends[1]) is None
    far = [*near, -40.0, -55.0]
    assert drawing.limits([value - 0.5 for value in far], far, [value + 0.5 for value in far]) == (-7.5, 0.5)
    half = [0.0, 0.1, 50.0, 50.1]
    assert drawing.limits(half, half, half) is None
    assert drawing.limits([], [], []) is None


def test_cut_values_are_marked_at_the_axis_with_their_numbers() -> None:
    """The axis ends with the others; a triangle stands for each that lies beyond it."""
    values = [-7.0, -4.0, -3.0, -2.0, -1.0, -0.5, -40.0, -55.0]
    table = build([line(f"row {n}", [change(value)]) for n, value in enumerate(values)], [])
    (axes,) = figures._dots(table, ["top1_change"]).axes
    low, high = axes.get_xlim()
    assert -9.0 < low < -7.5 and 0.0 < high < 1.0
    triangles = [mark for mark in axes.lines if mark.get_marker() == "<"]
    assert len(triangles) == 2
    assert {"-40.00", "-55.00"} <= {text.get_text() for text in axes.texts}
    assert "beyond the axis" in axes.get_title()


def test_curves_on_each_other_have_one_name() -> None:
    curves = {"a": [(1.0, 0.0), (2.0, 5.0)], "b": [(1.0, 0.1), (2.0, 5.1)], "c": [(1.0, 0.0), (2.0, 9.0)]}
    assert drawing.on_each_other(curves, 10.0) == {"a": ["a", "b"], "c": ["c"]}
    assert drawing.on_each_other(curves, 1.0) == {"a": ["a"], "b": ["b"], "c": ["c"]}
    other = {"a": [(1.0, 0.0)], "b": [(1.5, 0.0)]}  # other places are other curves
    assert drawing.on_each_other(other, 10.0) == {"a": ["a"], "b": ["b"]}


def points(values: dict[str, list[float]]) -> list[Point]:
    return [
        Point(name, float(x), Cell("top1_err_increase", value, "pp"))
        for name, curve in values.items()
        for x, value in enumerate(curve, start=1)
    ]


def test_a_panel_says_which_curves_lie_on_each_other(tmp_path: Path) -> None:
    table = build([line("conv1", points=points({"lasso": [0, 5], "exact": [0, 5], "first k": [0, 9]}))], [])
    texts = {text.get_text() for text in figures._curves(table, "top1_err_increase").axes[0].texts}
    assert texts == {"lasso = exact", "first k"}
    flat = build([line("conv1", points=points({"lasso": [0, 0], "exact": [0, 0]}))], [])
    files, said = figures.draw(flat, tmp_path)
    assert [file.suffix for file in files] == [".csv"]
    assert said == ["top-1 error increase (pp): 0.00 at every point of every curve; not drawn."]


def test_a_digest_tells_what_is_drawn(tmp_path: Path) -> None:
    """Equal figures have equal ones; another value, text or colour has another; the same picture is not drawn again."""

    def figure(value: float = 2.0, name: str = "a", colour: str = "#0072B2") -> Figure:
        made = Figure()
        axes = made.subplots()
        axes.errorbar([1.0], [value], yerr=[0.5], color=colour, label=name)
        axes.legend()
        return made

    digests = [drawing.drawn(figure(*given)) for given in ((), (2.5,), (2.0, "b"), (2.0, "a", "#D55E00"))]
    assert len(set(digests)) == 4 and drawing.drawn(figure()) == digests[0]
    picture, vector = drawing.save(figure(), tmp_path / "a.png")
    assert drawing.digest_of(picture) == digests[0]
    assert b"<dc:date>" not in vector.read_bytes()
    vector.write_text("kept")
    drawing.save(figure(), tmp_path / "a.png")
    assert vector.read_text() == "kept"
    drawing.save(figure(2.5), tmp_path / "a.png")
    assert vector.read_text() != "kept" and drawing.digest_of(picture) == digests[1]
    assert drawing.digest_of(tmp_path / "none.png") is None


# --------------------------------------------------------------------------------------------------------------------
# Layers and trainings


def test_widths_are_those_of_the_first_seed_in_the_network_s_order() -> None:
    lines = [
        line("a", widths={"seed 0": {"f.10": 8, "f.2": 4}, "seed 1": {"f.10": 1, "f.2": 1}}),
        line("b", widths={"seed 0": {"f.2": 3}}),
        line("dense", widths={"seed 0": {}}),
        line("other", widths={"seed 0": {"g": 5}}, recipe="other() at 32x32"),
    ]
    assert layers.widths(lines) == (["f.2", "f.10"], {"a": [(0.0, 4.0), (1.0, 8.0)], "b": [(0.0, 3.0)]})


def test_convolutions_of_one_kind_stand_together_and_no_line_leads_from_kind_to_kind() -> None:
    names = [f"layer{stage}.{block}.{kind}" for stage in (1, 2) for block in (2, 10) for kind in ("conv1", "conv2")]
    rows = [
        line(row, widths={"0": {name: n + 1 + more for n, name in enumerate(names)}})
        for more, row in ((0, "a"), (1, "b"))
    ]
    ((_, figure),) = layers.figures(build(rows, []))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == names[::2] + names[1::2]
    assert axes.get_xticks().tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    drawn = np.asarray(axes.lines[0].get_ydata(), dtype=float)
    assert np.isnan(drawn[4]) and np.delete(drawn, 4).tolist() == [1, 3, 5, 7, 2, 4, 6, 8]


def test_rows_that_keep_the_same_have_one_line(tmp_path: Path) -> None:
    same, other = {"f.1": 8, "f.2": 8, "f.3": 16}, {"f.1": 4, "f.2": 8, "f.3": 20}
    names = ("a", "b", "c", "d")
    rows = [line(name, widths={"0": same if name != "d" else other}) for name in names]
    ((what, figure),) = layers.figures(build(rows, []))
    assert what == "widths"
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert labels == ["a = b and 1 more", "d"]
    assert layers.figures(build(rows[:3], [])) == []  # nothing differs


def test_more_rows_than_colours_are_strips_and_none_is_left_out() -> None:
    kept = [{"f.1": 4 + n, "f.2": 8} | ({"f.3": 16} if n else {}) for n in range(len(drawing.COLOURS) + 1)]
    rows = [line(f"row {n}", widths={"0": widths}) for n, widths in enumerate(kept)]
    ((_, figure),) = layers.figures(build(rows, []))
    axes = figure.axes[0]
    (image,) = axes.images
    assert [text.get_text() for text in axes.get_yticklabels()] == [one.name for one in rows]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["f.1", "f.2", "f.3"]
    shown = np.ma.filled(np.ma.masked_invalid(image.get_array()), -1.0)
    assert shown.tolist() == [[widths.get(name, -1.0) for name in ("f.1", "f.2", "f.3")] for widths in kept]
    # seven rows have a line each
    ((_, figure),) = layers.figures(build(rows[:-1], []))
    assert len(figure.axes[0].lines) == len(drawing.COLOURS) and not figure.axes[0].images


def test_errors_are_held_out_ones_where_these_are_known() -> None:
    reports = [
        {"reader": "f.2", "error": 0.1, "held_out_error": 0.2},
        {"reader": "f.1", "error": 0.3, "held_out_error": None},
        {"reader": "f.3", "error": 0.0, "held_out_error": 0.0},
    ]
    found = layers.errors([line("a", widths={"0": {"f.1": 1}}, layers={"0": reports})])
    assert found == (["f.1", "f.2"], {"a": [(0.0, 0.3), (1.0, 0.2)]})


def history(step: str, seed: int, *losses: float) -> dict[str, Any]:
    epochs = [{"epoch": n, "loss": loss, "accuracy": 50.0 + n} for n, loss in enumerate(losses, start=1)]
    return {"step": step, "seed": seed, "epochs": epochs}


def test_no_line_is_drawn_through_a_layer_that_was_left() -> None:
    found = layers.gapped([(0.0, 4.0), (2.0, 8.0)], [0.0, 1.0, 2.0, 3.0])
    assert [str(value) for value in found] == ["4.0", "nan", "8.0", "nan"]


def test_what_is_drawn_in_a_dot_plot_is_drawn_with_its_whole_interval() -> None:
    """Ten close ones, one far away that is cut off, one inside the axis whose interval reaches beyond the others'."""
    values = [-1.0 - 0.1 * n for n in range(10)]
    close = [line(f"row {v}", [Cell("top1_change", v, "pp", v - 0.2, v + 0.2)]) for v in values]
    wide = line("wide", [Cell("top1_change", -1.5, "pp", -6.0, 1.0)])
    far = line("far", [Cell("top1_change", -80.0, "pp", -81.0, -79.0)])
    (axes, *_) = figures._dots(build([*close, wide, far], []), ["top1_change"]).axes
    low, high = axes.get_xlim()
    assert -15 < low < -6.0 and 1.0 < high < 5.0
    triangles = [drawn for drawn in axes.lines if drawn.get_marker() in "<>" and len(drawn.get_xdata()) == 1]  # type: ignore[arg-type]
    assert len(triangles) == 1


def test_trainings_are_drawn_once_under_the_names_of_their_rows() -> None:
    dense = history("dense(net, seed 0)", 0, 2.0, 1.0)
    lines = [
        line("dense", widths={"d": {}}, history={"d": dense}),
        line("tuned", widths={"t": {"f": 1}}, history={"d": dense, "t": history("tuned(seed 0)", 0, 1.5, 0.5)}),
        line("again", widths={"u": {"f": 1}}, history={"d": dense, "v": history("x", 1, 9.0, 9.0)}),
    ]
    found = training.histories(lines)
    assert list(found) == ["dense", "tuned"]
    assert found["tuned"] == {"loss": [(1.0, 1.5), (2.0, 0.5)], "accuracy": [(1.0, 51.0), (2.0, 52.0)]}
    figure = training.figure(build(lines, []))
    assert figure is not None
    assert [curve.get_ydata().tolist() for curve in figure.axes[0].lines] == [[2.0, 1.0], [1.5, 0.5]]  # type: ignore[union-attr]
    # a dense network that another table's rows train is that table's
    assert training.figure(build([line("curve", history={"d": dense})], [])) is None


def test_trainings_between_prunings_are_one_curve_with_the_last() -> None:
    dense = history("dense(net, seed 0)", 0, 9.0, 8.0)
    first = history("tuned(pruned(a, seed 0, dense(net, seed 0)))", 0, 5.0)
    last = history(f"tuned(pruned(b, seed 0, {first['step']}))", 0, 4.0)
    beside = history("fine-tuned(dense(net, seed 0))", 0, 7.0, 6.0)
    other = history("fine-tuned(dense(net))", 0, 3.0, 2.0)
    told = {str(n): one for n, one in enumerate([dense, first, last, beside, other])}
    found = training.histories([line("each", widths={"2": {"f": 1}}, history=told)])
    losses = {name: curves["loss"] for name, curves in found.items()}
    assert losses == {
        "dense": [(1.0, 9.0), (2.0, 8.0)],
        "each": [(1.0, 5.0), (2.0, 4.0)],
        "dense, fine-tuned": [(1.0, 7.0), (2.0, 6.0)],
        "dense, fine-tuned (2)": [(1.0, 3.0), (2.0, 2.0)],
    }


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("dense(vgg16_bn, seed 0)", "dense"),
        ("fine-tuned(dense(vgg16_bn, seed 0))", "dense, fine-tuned"),
        ("thinet tuned at the end (dense(vgg16, seed 0))", "dense, thinet tuned at the end"),
        ("tuned(pruned(lasso, 2x, seed 0, dense(net)))", "dense, pruned, tuned"),
        ("from scratch (20 epochs)(net, seed 0)", "from scratch"),
        ("dense, longer(net, seed 0)", "dense, longer"),
        ("gated(d=0.9, dense(net, seed 0))", "dense, gated d=0.9"),
        ("elsewhere", "elsewhere"),
    ],
)
def test_a_step_in_words(step: str, words: str) -> None:
    assert training.done(step) == words


def test_where_trainings_are_more_than_colours_those_of_rows_are_drawn() -> None:
    stages = {f"s{n}": history(f"stage {n}(net)", 0, 2.0, 1.0) for n in range(9)}
    rows = [line(f"row {n}", widths={f"r{n}": {}}, history={f"r{n}": history(f"r{n}", 0, 3.0, 1.0)}) for n in range(3)]
    made = training.figure(build([replace(rows[0], history={**stages, **rows[0].history}), *rows[1:]], []))
    assert made is not None
    labels = [curve.get_label() for curve in made.axes[0].lines]
    assert {"row 0", "row 1", "row 2"} <= set(labels) and len(labels) == len(training.COLOURS)
    assert made.axes[0].get_title() == f"{12 - len(labels)} trainings more are not drawn"


def test_the_way_down_is_drawn_epoch_after_epoch() -> None:
    dense, name = history("dense(net, seed 0)", 0, 4.0, 3.0), "dense(net, seed 0)"
    steps = [dense, *(history(f"gated(d={d}, {name})", 0, 2.0 * float(d), float(d)) for d in ("1", "0.9", "0.8"))]
    control, again = history("dense, longer(net, seed 0)", 0, 9.0, 8.0, 7.0), history(f"gated(d=1, {name})", 1, 6.0)
    told = {str(n): one for n, one in enumerate([*steps, control, again])}
    rows = [line("d=0.9", history={n: told[n] for n in "012"}), line("d=0.8", history=told), line("dense", history={})]
    # another way through the same densities stands beside it, the same way under another name does not
    other = line("d=0.8, other", history={**told, "3": history(f"gated(d=0.8, {name})", 0, 1.0, 0.5)})
    same = line("d=0.8, again", history=dict(told))
    assert densities.furthest([*rows, other, same]) == [rows[1], other] and densities.furthest(rows[:1]) == []
    both = densities.figure(build([*rows, other], []))
    assert both is not None and both._suptitle.get_text().endswith("way to d=0.8 and to d=0.8, other")
    assert [(where, len(epochs)) for where, epochs in densities.way(rows[1])] == [
        ("before gating", 2),
        ("d=1", 2),
        ("d=0.9", 2),
        ("d=0.8", 2),
    ]
    assert densities.way(rows[2]) == []
    figure = densities.figure(build(rows, []))
    assert figure is not None and densities.figure(build([rows[0]], [])) is None
    curves = [curve for curve in figure.axes[0].lines if len(curve.get_xdata()) > 2 or curve.get_marker() == "."]  # type: ignore[arg-type]
    drawn = [list(zip(curve.get_xdata(), curve.get_ydata(), strict=True)) for curve in curves]  # type: ignore[arg-type]
    assert drawn == [
        [(1, 9.0), (2, 8.0), (3, 7.0)],
        [(1, 4.0), (2, 3.0)],
        [(3, 2.0), (4, 1.0)],
        [(5, 1.8), (6, 0.9)],
        [(7, 1.6), (8, 0.8)],
    ]
    borders = [curve.get_xdata()[0] for curve in figure.axes[0].lines if len(set(curve.get_xdata())) == 1]  # type: ignore[index,arg-type]
    assert borders == [2.5, 4.5, 6.5]


# --------------------------------------------------------------------------------------------------------------------
# All methods on the same network


def pruned(name: str, speedup: float, top1: float, paper: str = "toy", **more: Any) -> Line:
    cells = [Cell("top1_acc", top1, "%", top1 - 1, top1 + 1, n=1000), Cell("speedup", speedup, "x")]
    kl = Cell("kl", (100.0 - top1) / 50.0, "nats")
    return line(name, [*cells, Cell("macs", 125e6 / speedup, "MACs"), change(top1 - 93), kl], paper, **more)


ROWS = [
    pruned("dense", 1.0, 93.0),
    pruned("A at 2x", 2.0, 92.0),
    pruned("A at 4x", 4.0, 88.0),
    pruned("2x B", 2.0, 90.0, "other"),
    pruned("4x B", 4.0, 89.0, "other"),
    pruned("cliff", 2.1, 10.0, "other"),
]


def test_a_network_that_two_papers_show_stands_once_and_other_data_apart() -> None:
    again = pruned("Ours", 2.0, 92.0, "third", steps={"A at 2x": {"kind": "evaluate"}})
    elsewhere = [pruned(f"{n}", 2.0, 90.0, setting={"scale": "digits"}) for n in range(5)]
    weights = pruned("given", 2.0, 91.0, setting={"scale": "cifar10", "weights": {"sha256": "ab"}})
    (group,) = leaderboard.groups([*ROWS, again, *elsewhere, weights])
    assert [entry.line.name for entry in group.entries] == ["dense", "A at 2x", "2x B", "cliff", "4x B", "A at 4x"]
    assert [entry.method for entry in group.entries] == ["dense", "A", "B", "cliff", "B", "A"]
    # the cliff has fewer MACs than "A at 2x", and both at 4x beat it
    assert [entry.line.name for entry in leaderboard.front(group.entries)] == ["A at 2x", "4x B"]
    assert group.title == "net() at 32x32, cifar10, 1,000 test images"
    # measured twice it is one network, and a dense one with more accuracy at as few MACs beats a pruned one
    twice = pruned("A again", 2.0, 92.0, "third", steps={"elsewhere": {"kind": "evaluate"}})
    (group,) = leaderboard.groups([*ROWS, twice, pruned("gated", 0.99, 92.5)])
    assert "A again" not in [entry.line.name for entry in group.entries]
    assert "gated" not in [entry.line.name for entry in leaderboard.front(group.entries)]
    assert leaderboard.groups(ROWS[:4]) == []  # three pruned networks are read in their table


def test_what_was_trained_in_a_dense_network_s_place_stands_apart() -> None:
    """It starts from no network that the others start from: its own ordinary one was trained otherwise."""
    own = {"o": history("ordinary(net, seed 0)", 0, 2.0), "s": history("spatial(net, seed 0)", 0, 2.0)}
    from_dense = {"d": history("dense(net, seed 0)", 0, 2.0), "s": history("from scratch(net, seed 0)", 0, 2.0)}
    rows = [*ROWS, pruned("spatial", 2.0, 91.0, history=own), pruned("from scratch", 2.0, 91.5, history=from_dense)]
    (group,) = leaderboard.groups(rows)
    assert "spatial" not in [entry.line.name for entry in group.entries]
    assert "from scratch" in [entry.line.name for entry in group.entries]


def test_networks_of_one_name_are_told_apart_by_their_tables() -> None:
    half = replace(pruned("A at 2x", 2.0, 91.9), table="Half precision (net)", steps={"half": {"kind": "evaluate"}})
    (group,) = leaderboard.groups([*ROWS, half])
    named = [group.name(entry) for entry in group.entries]
    assert named == ["dense", "A at 2x (T)", "A at 2x (Half precision)", "2x B", "cliff", "4x B", "A at 4x"]
    assert "| A at 2x (Half precision) |" in leaderboard_page._markdown(group, {})[6]


def test_what_was_trained_longer_beats_nothing_that_was_not() -> None:
    """Epochs after the dense network: its own and those of a dense network tuned beside it are not counted."""
    dense, beside = history("dense(net, seed 0)", 0, 4.0, 3.0), history("fine-tuned(dense(net, seed 0))", 0, 2.0, 1.0)
    sparse = history("sparse(dense(net, seed 0))", 0, 3.0)
    tuned, again = (history("tuned(slimmed(2x, dense(net, seed 0)))", seed, 2.0, 1.5) for seed in (0, 1))
    told = {str(n): one for n, one in enumerate([dense, beside, sparse, tuned, again])}
    rows = [
        *ROWS,
        pruned("dense (tuned)", 1.0, 93.5, history={"0": dense, "1": beside}),
        pruned("slim", 2.0, 92.5, history=told),
        pruned("slim, shorter", 2.01, 92.4, history={"0": dense, "3": tuned}),
        pruned("C", 1.99, 91.9),
    ]
    (group,) = leaderboard.groups(rows)
    epochs = {entry.line.name: entry.epochs for entry in group.entries}
    assert epochs["slim"] == 3 and epochs["slim, shorter"] == 2 and epochs["A at 2x"] == 0
    assert epochs["dense"] == 0 and epochs["dense (tuned)"] == 2
    # C has a hundredth more MACs than A and less accuracy; A is behind both tuned ones, which had epochs it had not
    best = [entry.line.name for entry in leaderboard.front(group.entries)]
    assert best == ["slim", "slim, shorter", "A at 2x", "4x B"]
    text = "\n".join(leaderboard_page._markdown(group, {}))
    assert [part.split("\n")[0] for part in text.split("### ")[1:]] == ["2.0x to 2.1x fewer MACs", "4.0x fewer MACs"]
    assert "| 62.5 M | 2.00x | 3 | 1 | 92.50 [91.50, 93.50] |" in text


def test_the_picture_and_the_page_of_a_network(tmp_path: Path) -> None:
    (group,) = leaderboard.groups(ROWS)
    (axes,) = leaderboard_figure.draw(group, {"toy": "toy"}).axes
    assert axes.get_ylim()[0] > 80 and "cliff 10.0 %" in axes.get_title("left")
    shown = {container.get_label(): container[0].get_xydata().tolist() for container in axes.containers}
    assert shown["toy: A"] == [[50.0, 92.0], [25.0, 88.0]]
    assert shown["other: B"] == [[50.0, 90.0], [25.0, 89.0]]
    files, index = leaderboard_page.write(tmp_path, {"toy": ROWS[:3], "other": ROWS[3:]}, {"toy": "toy"})
    assert [file.suffix for file in files] == [".png", ".svg", ".csv", ".md"]
    assert any("same-network/README.md" in text for text in index)
    page = files[-1].read_text()
    best = "| **A at 2x** | [toy](../toy/README.md) | 62.5 M | 2.00x | 0 | 1 | 92.00 [91.00, 93.00] |"
    assert f"{best} -1.00 [-1.50, -0.50] |" in page
    assert "| 2x B |" in page
    rows = list(csv.DictReader(io.StringIO(files[2].read_text())))
    assert [(row["paper"], float(row["top1_acc"]), row["front"]) for row in rows[:3]] == [
        ("toy", 93.0, "False"),
        ("toy", 92.0, "True"),
        ("other", 90.0, "False"),
    ]
    assert leaderboard_page.write(tmp_path, {"toy": []}, {}) == ([], [])


def test_where_many_share_a_speed_up_the_best_of_each_are_drawn_in_a_row() -> None:
    crowd = [pruned(f"method {n}", 2.0 + n / 100, 60.0 + n, "toy" if n % 2 else "other") for n in range(14)]
    (group,) = leaderboard.groups([pruned("dense", 1.0, 93.0), *crowd, pruned("steep", 4.0, 50.0)])
    parts = leaderboard.standings(group.entries)
    # 2.0x to 2.13x are one standing, the best first; 4x is another
    assert [[entry.line.name for entry in part] for part in parts] == [
        [f"method {n}" for n in reversed(range(14))],
        ["steep"],
    ]
    twice, four = leaderboard_figure.draw(group, {"toy": "toy"}).axes
    assert [label.get_text() for label in twice.get_yticklabels()] == [f"method {n}" for n in range(13, 3, -1)]
    assert [float(box[0].get_xdata()[0]) for box in twice.containers] == [60.0 + n for n in range(13, 3, -1)]
    assert twice.get_title("left") == "2.0x to 2.1x fewer MACs: the best 10 of 14, the rest down to 60 %"
    assert four.get_title("left") == "4.0x fewer MACs"
    dashed = [line.get_xdata()[0] for line in twice.lines if line.get_linestyle() == "--"]
    assert dashed == [93.0]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("VGG-16 2x, fine-tuned", "VGG-16 fine-tuned"),
        ("FBS at d=0.5", "FBS"),
        ("4x LASSO", "LASSO"),
        ("CP (LASSO) at 3.94x", "CP (LASSO)"),
        ("exact, uniform", "exact, uniform"),
        ("2x", "2x"),
    ],
)
def test_methods_are_rows_without_their_speed_ups(name: str, method: str) -> None:
    cell = Cell("top1_acc", 90.0, "%")
    assert leaderboard.Entry(replace(ROWS[0], name=name), 2.0, cell, None).method == method


def test_reports_of_layers_are_kept_in_the_row_file(tmp_path: Path) -> None:
    """Of a network that was tuned since, those of the pruning behind it; channels kept are counted.

    A choice by gradients reports other things, under the same name, and has none of these.
    """
    from bench import rowfile
    from bench.store import Store

    report = {"reader": "b", "producer": "a", "channels": 4, "kept": [0, 2], "error": 0.1, "held_out_error": 0.2}
    headers = {
        "pruned": {"facts": {"layers": [{**report, "ridge": 1.0, "unknowns": 9}]}, "parents": []},
        "tuned": {"facts": {"history": []}, "parents": ["pruned"]},
        "dense": {"facts": {}, "parents": []},
        "by gradients": {"facts": {"layers": [{"producer": "a", "channels": 4, "order": [1, 0]}]}, "parents": []},
    }
    for key, header in headers.items():
        (tmp_path / "steps" / key).mkdir(parents=True)
        (tmp_path / "steps" / key / "step.json").write_text(json.dumps({**header, "complete": True}))
    found = rowfile.layers(Store(tmp_path), ["tuned", "dense", "by gradients", "gone"])
    assert found == {"tuned": [{**report, "kept": 2}]}


def test_pictures_of_an_equal_table_are_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    drawn: list[str] = []
    plain = figures._drawn
    monkeypatch.setattr(figures, "_drawn", lambda table, *rest: (drawn.append(table.slug), plain(table, *rest))[1])
    rows = [line(f"row {n}", widths={"0": {"f.1": 4 + n, "f.2": 8, "f.3": 8}}) for n in range(4)]
    folder = tmp_path / "figures"
    first = figures.draw(build(rows, []), folder)
    assert first[0] and figures.draw(build(rows, []), folder) == first and len(drawn) == 1
    # another value deep in a row, another folder, a picture that is gone or another's: drawn
    other = [*rows[:3], line("row 3", widths={"0": {"f.1": 7, "f.2": 8, "f.3": 9}})]
    figures.draw(build(other, []), folder)
    assert len(drawn) == 2
    assert figures.draw(build(rows, []), folder) == first and len(drawn) == 3  # of the others now
    figures.draw(build(rows, []), tmp_path / "elsewhere")
    first[0][1].unlink()
    figures.draw(build(rows, []), folder)
    assert len(drawn) == 5 and first[0][1].exists()


def test_trainings_without_an_accuracy_have_one_panel() -> None:
    epochs = [{"epoch": n, "loss": 2.0 / n} for n in (1, 2, 3)]
    history = {"one": {"step": "dense()", "seed": 0, "epochs": epochs}}
    rows = [line("a", widths={"one": {}}, history=history)]
    made = training.figure(build(rows, []))
    assert made is not None
    (axes,) = made.axes
    assert axes.get_ylabel() == "training loss" and axes.lines[0].get_xydata().tolist() == [[1, 2], [2, 1], [3, 2 / 3]]  # type: ignore[union-attr]
