"""Figures of what row files keep beside records: channels of gates, precision and recall, boxes; by hand."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from bench import rowfile
from bench.registry import COLUMNS
from bench.report import activity, drawing, figures, pictures, precision_recall
from bench.report.load import Declared, Line, read
from bench.report.tables import Table, build
from bench.store import Store

ACTIVITY = {
    "images": 40,
    "layers": {"a": "0.25 1 0.5", "b": "0 0.995 0.3 0.6"},
    "by_class": {"layer": "b", "classes": 2, "shares": {"cat": "0 1 0.1 0.9", "dog": "0 0.99 0.5 0.3"}},
}
CURVES = {
    "images": 200,
    "networks": {
        "pruned": {"mean": "0.8 0.4 0", "of": 2, "classes": {"cat": "1 0.5 0", "dog": "0.6 0.3 0"}},
        "dense": {"mean": "1 0.9 0.2", "of": 2, "classes": {"cat": "1 1 0.4", "dog": "1 0.8 0"}},
    },
}


def png(value: int) -> str:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 8), value, np.uint8)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def pictured(thumbnails: bool = True, score: float = 0.75) -> dict[str, Any]:
    images = []
    for grey in (34, 68):
        image: dict[str, Any] = {"width": 80, "height": 40, "thumbnail": png(grey)}
        image["truth"] = [{"class": "cat", "box": "10 5 30 25"}]
        image["dense"] = [{"class": "cat", "box": "11 6 30 24", "score": 0.98}]
        image["pruned"] = [{"class": "dog", "box": "40 5 60 25", "score": score}]
        images.append({name: part for name, part in image.items() if thumbnails or name != "thumbnail"})
    return {"score": 0.5, "images": images}


def line(name: str, **drawn: Any) -> Line:
    first = ("toy", "T", name, 0, "digits", "cifar10", True, True, None, "ran")
    return Line(*first, "net()", "", None, {}, {}, [], {}, drawn=drawn)


def table(*lines: Line) -> Table:
    return build(lines, [])


def made(found: Figure | None) -> Figure:
    assert found is not None
    return found


# --------------------------------------------------------------------------------------------------------------------
# Channels of gates


def test_channels_are_drawn_by_how_often_they_win() -> None:
    """A strip a layer, largest share first; below, the last layer by class, its channels in the strip's order."""
    figure = made(activity.figure(table(line("dense"), line("d=0.5", activity=ACTIVITY))))
    *strips, classes = figure.axes[:3]
    shown = [axes.images[0].get_array().tolist() for axes in (*strips, classes)]  # type: ignore[union-attr]
    assert shown == [[[1, 0.5, 0.25]], [[0.995, 0.6, 0.3, 0]], [[1, 0.9, 0.1, 0], [0.99, 0.3, 0.5, 0]]]
    assert [axes.texts[0].get_text() for axes in strips] == ["of 3: 1 always,\n0 never", "of 4: 1 always,\n1 never"]
    assert [label.get_text() for label in classes.get_yticklabels()] == ["cat", "dog"]
    assert classes.get_title("left") == "b by class of the image"
    assert "40 test images" in figure.get_suptitle() and "digits (analogue)" in figure.get_suptitle()
    assert {image.get_clim() for axes in (*strips, classes) for image in axes.images} == {(0.0, 1.0)}


def test_networks_stand_side_by_side_and_others_are_left_out() -> None:
    other = {**ACTIVITY, "layers": {"z": "1"}, "by_class": {"layer": "z", "classes": 1, "shares": {"cat": "1"}}}
    lines = [line("one", activity=ACTIVITY), line("other", activity=other), line("two", activity=ACTIVITY)]
    figure = made(activity.figure(table(*lines)))
    assert [axes.get_title("left") for axes in figure.axes if axes.get_title("left") in ("one", "other", "two")] == [
        "one",
        "two",
    ]


def test_a_part_of_many_classes_is_said_to_be_one() -> None:
    many = {**ACTIVITY, "by_class": {**ACTIVITY["by_class"], "classes": 1000}}  # type: ignore[dict-item]
    assert "2 of 1,000 classes" in made(activity.figure(table(line("a", activity=many)))).get_suptitle().replace(
        "\n", " "
    )


# --------------------------------------------------------------------------------------------------------------------
# Precision and recall


def test_a_panel_a_row_with_both_detectors() -> None:
    rows = [line("dense"), line("random", precision_recall=CURVES), line("LCP", precision_recall=CURVES)]
    figure = made(precision_recall.figure(table(*rows)))
    assert [axes.get_title("left") for axes in figure.axes] == ["random", "LCP"]
    for axes in figure.axes:
        thin = [curve for curve in axes.lines if curve.get_linewidth() < 1]
        thick = {str(curve.get_label()): curve for curve in axes.lines if curve.get_linewidth() > 1}
        assert {name: curve.get_ydata().tolist() for name, curve in thick.items()} == {  # type: ignore[union-attr]
            "dense": [1, 0.9, 0.2],
            "pruned": [0.8, 0.4, 0],
        }
        assert all(curve.get_xdata().tolist() == [0, 0.5, 1] for curve in axes.lines)  # type: ignore[union-attr]
        found = [(curve.get_color() == thick["dense"].get_color(), curve.get_ydata().tolist()) for curve in thin]  # type: ignore[union-attr]
        assert found == [(True, [1, 1, 0.4]), (True, [1, 0.8, 0]), (False, [1, 0.5, 0]), (False, [0.6, 0.3, 0])]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "pruned"]
    said = figure.get_suptitle().replace("\n", " ")
    assert "on 200 test images" in said and "mean over 2 classes, thin: each of them" in said


def test_a_curve_has_no_points_within_its_level_parts() -> None:
    axes = Figure().subplots()
    precision_recall._curve(axes, "1 1 1 1 0.5 0.5 0.5 0.2 0 0 0")
    (curve,) = axes.lines
    assert curve.get_xdata().tolist() == [0, 0.3, 0.4, 0.6, 0.7, 0.8, 1]  # type: ignore[union-attr]
    assert curve.get_ydata().tolist() == [1, 1, 0.5, 0.5, 0.2, 0, 0]  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------------------------------------
# Boxes


def corners(curve: Line2D) -> tuple[float, ...]:
    xs, ys = curve.get_xdata(), curve.get_ydata()
    return min(xs), min(ys), max(xs), max(ys)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("thumbnails", [True, False])
def test_boxes_of_every_kind_in_columns(thumbnails: bool) -> None:
    """Ground truth, dense, then a column a row, three at most; the pixels where they are kept."""
    lines = [line(f"row {n}", pictures=pictured(thumbnails, 0.5 + n / 10)) for n in range(4)]
    figure = made(pictures.figure(table(line("dense"), *lines)))
    assert len(figure.axes) == 2 * 5
    titles = [axes.get_title("left") for axes in figure.axes[:5]]
    assert titles == ["ground truth", "dense", "row 0", "row 1", "row 2"]
    for place, axes in enumerate(figure.axes):
        column = place % 5
        expected = [(10, 5, 30, 25), (11, 6, 30, 24)][column] if column < 2 else (40, 5, 60, 25)
        assert [corners(curve) for curve in axes.lines] == [expected]
        name = ["cat", "cat 0.98"][column] if column < 2 else f"dog 0.{column + 3}0"
        assert [text.get_text() for text in axes.texts] == [name]
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 80), (40, 0))
        values = {float(value) for image in axes.images for value in np.ravel(image.get_array())}  # type: ignore[arg-type]
        assert values == ({34.0 * (1 + place // 5)} if thumbnails else set())
    said = figure.get_suptitle().replace("\n", " ")
    assert "score of at least 0.5 on the first 2 test images" in said


# --------------------------------------------------------------------------------------------------------------------
# From the row file to the page


def test_a_digest_tells_another_pixel() -> None:
    def figure(text: str) -> Figure:
        layers = {**ACTIVITY, "layers": {**ACTIVITY["layers"], "a": text}}  # type: ignore[dict-item]
        return made(activity.figure(table(line("a", activity=layers))))

    assert drawing.drawn(figure("0.25 1 0.5")) == drawing.drawn(figure("0.25 1 0.5"))
    assert drawing.drawn(figure("0.25 1 0.5")) != drawing.drawn(figure("0.26 1 0.5"))


def test_what_steps_found_is_kept_in_the_row_file(tmp_path: Path) -> None:
    """Of steps that found the same kind of thing the first one's; other facts are not repeated."""
    for key, facts in {
        "a": {"of": 3, "activity": {"images": 1}},
        "b": {"activity": {"images": 2}, "pictures": {"score": 0.5}},
    }.items():
        (tmp_path / "steps" / key).mkdir(parents=True)
        (tmp_path / "steps" / key / "step.json").write_text(json.dumps({"facts": facts, "complete": True}))
    assert rowfile.drawn(Store(tmp_path), ["a", "b"]) == {"activity": {"images": 1}, "pictures": {"score": 0.5}}


def test_figures_are_drawn_from_the_row_files_alone(tmp_path: Path) -> None:
    """A row file with them gives three figures twice the same; an older one, without, gives none."""
    declared = {f"toy/t/{name}": Declared("T", name, place, "cifar10") for place, name in enumerate(("new", "old"))}
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "toy.csv").write_text(",".join(COLUMNS) + "\n")
    for name in ("new", "old"):
        value = {"id": f"toy/t/{name}", "setting": {"scale": "digits"}, "status": "ran", "shape": None}
        value |= {"records": [], "steps": {}}
        if name == "new":
            value["drawn"] = {"activity": ACTIVITY, "precision_recall": CURVES, "pictures": pictured()}
        path = tmp_path / "toy" / "rows" / "digits" / f"t--{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    lines = read(tmp_path, tmp_path / "registry", {"toy": declared})["toy"]
    assert [sorted(one.drawn) for one in lines] == [["activity", "pictures", "precision_recall"], []]
    files, _ = figures.draw(build(lines, []), tmp_path / "figures")
    names = ["T.png", "T.svg", "T--precision-recall.png", "T--precision-recall.svg", "T--pictures.png"]
    assert [file.name for file in files] == [*names, "T--pictures.svg"]
    assert figures.draw(build(lines[1:], []), tmp_path / "none") == ([], [])
    before = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    figures.draw(build(lines, []), tmp_path / "figures")
    assert [file.read_bytes() for file in files] == before
