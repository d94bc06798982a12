"""What is sent: names, history and tags from hand-made row files; tables of the committed results, read back."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import commands
from bench.report import pages, render, tables
from bench.report.load import read
from bench.tracking import mirror, mirrored
from bench.tracking.tracker import Tracker

RESULTS = Path(__file__).parents[2] / "results"
PAPER, SCALE = "channel_pruning", "cifar10"


def row(**more: Any) -> dict[str, Any]:
    """A row file's value."""
    setting = {"scale": "digits", "seeds": [0, 1], "device": "cpu"}
    value = {"id": "toy/table-1/a", "setting": setting, "status": "ran", "shape": None, "records": [], "steps": {}}
    return value | more


def test_records_have_names_of_their_own() -> None:
    plain = {"metric": "macs", "value": 5}
    records = [
        plain,
        plain,
        {"metric": "top1_acc", "value": 90.5, "seed": 0},
        {"metric": "top1_acc", "value": 91.5, "seed": 1},
        {"metric": "top1_acc", "value": 91.0, "networks": 2},
        {"metric": "err", "value": 1.0, "series": "max response", "x": 2.5},
    ]
    found = mirror.records_by_name(records)
    names = ["macs", "macs/2", "top1_acc/seed-0", "top1_acc/seed-1", "top1_acc", "err/max_response/x-2.5"]
    assert list(found) == names
    assert list(found.values()) == records


def test_the_history_has_a_line_for_each_epoch_and_a_name_for_each_training() -> None:
    def training(name: str, seed: int, *losses: float) -> dict[str, Any]:
        epochs = [{"epoch": number, "loss": loss} for number, loss in enumerate(losses, start=1)]
        return {"step": name, "seed": seed, "epochs": epochs}

    history = {
        "a": training("dense(net, seed 0)", 0, 3.0, 2.0),
        "b": training("fine-tuned(dense(net, seed 0))", 0, 1.0),
        "c": training("dense(net, seed 1)", 1, 3.5, 2.5),
    }
    run = mirror.of_row(Path("nowhere"), row(history=history), None)
    assert run.history == [
        {"epoch": 1, "1-dense/seed-0/loss": 3.0, "2-fine-tuned/seed-0/loss": 1.0, "1-dense/seed-1/loss": 3.5},
        {"epoch": 2, "1-dense/seed-0/loss": 2.0, "1-dense/seed-1/loss": 2.5},
    ]
    assert run.config["trainings"] == {"1-dense/seed-0": "a", "2-fine-tuned/seed-0": "b", "1-dense/seed-1": "c"}


def test_the_id_is_the_row_s_and_the_setting_s_and_the_digest_the_content_s() -> None:
    run = mirror.of_row(Path("nowhere"), row(), None)
    measured = mirror.of_row(Path("nowhere"), row(records=[{"metric": "macs", "value": 5}]), None)
    elsewhere = mirror.of_row(Path("nowhere"), row(setting={"scale": "digits", "seeds": [0], "device": "cpu"}), None)
    other = mirror.of_row(Path("nowhere"), row(id="toy/table-1/b"), None)
    assert run.id == measured.id
    assert len({run.id, elsewhere.id, other.id}) == 3
    assert run.digest != measured.digest
    assert (run.group, run.name, run.tags) == ("toy", "table-1/a (digits)", ["digits", "cpu"])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a paper's committed rows and figures at its own scale."""
    root = tmp_path_factory.mktemp("results")
    for part in ("rows", "figures"):
        for folder in (RESULTS / PAPER / part).glob(f"{SCALE}*"):
            shutil.copytree(folder, root / PAPER / part / folder.name)
    return root


@pytest.fixture(scope="module")
def about() -> pages.About:
    """What the paper's script says."""
    return commands.abouts()[PAPER]


@pytest.fixture(scope="module")
def runs(results: Path, about: pages.About) -> list[mirror.Run]:
    """The mirror of these results."""
    return mirrored.runs(results, commands.registry_folder(), {PAPER: about})


@pytest.mark.slow
def test_tags_tell_the_verdicts(runs: list[mirror.Run]) -> None:
    """Those in the paper's table of verdicts, without their reasons."""
    known = {"exact", "wrong", "reproduced", "better", "not reproduced", "inconclusive", "not comparable", "other base"}
    known |= {"holds", "does not hold", "undecided", "other convention", "check agrees", "check differs"}
    tagged = {tag.strip("[]") for run in runs if run.kind == "row" for tag in run.tags} - {SCALE, "cpu", "analogue"}
    assert tagged
    assert tagged <= known
    columns, rows = runs[-1].tables["verdicts"]
    assert {str(line[columns.index("verdict")]).strip("[]").partition(" (")[0] for line in rows} == tagged


@pytest.mark.slow
def test_a_published_value_is_the_same_in_row_file_csv_and_the_table_read_back(
    results: Path, about: pages.About, runs: list[mirror.Run], offline: Callable[[Path], dict[str, Any]]
) -> None:
    """And so is every other value of every table, every picture, and every record of a row."""
    chosen, paper = next(run for run in runs if "reproduced" in run.tags), runs[-1]
    tracker = Tracker(results, "offline")
    assert tracker.finish([chosen, paper]) == (2, 0), tracker.errors
    mirror_of_row, mirror_of_paper = (
        offline(results / "wandb" / tracker.notes.of(run.id)["folder"]) for run in (chosen, paper)
    )

    lines = read(results, commands.registry_folder(), {PAPER: about.rows})[PAPER]
    built = tables.build_all(lines, commands.load_registry(PAPER, commands.registry_folder()))
    published = 0
    for table in built:
        place = f"{tables.slug(table.scale)}/{table.slug}"
        back = mirror_of_paper["tables"][f"values/{place}"]
        written = list(csv.reader(io.StringIO(render.csv_text(table))))
        assert back["columns"] == written[0]
        assert [["" if cell is None else str(cell) for cell in line] for line in back["data"]] == written[1:]
        settings = {line.name: line.setting for line in table.lines}
        for line in (dict(zip(back["columns"], cells, strict=True)) for cells in back["data"]):
            if line["published"] is None or line["value"] is None:
                continue
            (records,) = (
                value["records"]
                for value in files(results)
                if value["setting"] == settings[line["row"]] and about.rows[value["id"]].name == line["row"]
                if about.rows[value["id"]].table == table.name
            )
            over = [record for record in records if record["metric"] == line["metric"] and "seed" not in record]
            assert line["value"] == over[0]["value"]
            published += 1
        shown = mirror_of_paper["tables"][f"tables/{place}"]
        assert shown["data"] == table.frame.to_numpy().tolist()
    assert published >= 2

    pictures = {f"{path.parent.name}/{path.stem}": path for path in (results / PAPER / "figures").glob("*/*.png")}
    assert len(pictures) > 3
    assert {name: path.read_bytes() for name, path in mirror_of_paper["images"].items()} == {
        f"figures/{tables.slug(path.parent.name)}/{path.stem}": path.read_bytes() for path in pictures.values()
    }
    (value,) = (v for v in files(results) if mirror.row_run_id(v["id"], v["setting"]) == chosen.id)
    assert [mirror_of_row["summary"][name] for name in mirror.records_by_name(value["records"])] == value["records"]
    assert mirror_of_row["config"]["steps"] == value["steps"]
    assert mirror_of_row["config"]["setting"] == value["setting"]
    assert mirror_of_row["run"].run_group == PAPER
    assert set(chosen.tags) == set(mirror_of_row["tags"])


def files(results: Path) -> list[dict[str, Any]]:
    """The values of the row files that ran."""
    every = [json.loads(path.read_text()) for path in (results / PAPER / "rows" / SCALE).glob("*.json")]
    return [value for value in every if value["status"] == "ran"]


def test_of_a_user_s_own_network_nothing_of_the_data_is_sent(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    record = {"metric": "top1_acc", "value": 90.0, "unit": "%"}
    value = {
        "recipe": {"builder": "mine:net"},
        "macs": {"conv": [10, 5]},
        "params": [4, 2],
        "conv_speedup": 2.0,
        "layers": [],
        "dense_records": [record],
        "records": [record | {"value": 89.0}],
        "data": {"folder": "/home/somebody/photos"},
        "inputs": {"classes": ["secret"]},
        "warnings": ["/home/somebody/photos is small"],
        "left_out": [],
    }
    asked = {"method": "cp", "widths": "uniform", "speedup": 2.0, "device": "cpu"}
    run = mirror.of_pruned(tmp_path, "mine:net", asked, value)
    assert run.summary == {"dense/top1_acc": record, "top1_acc": record | {"value": 89.0}}
    assert run.config["conv_speedup"] == 2.0
    assert run.files == {"weights.safetensors": "weights.safetensors"}
    assert run.made["recipe.json"]["weights"] == hashlib.sha256(b"weights").hexdigest()
    sent = json.dumps(run.to_json())
    assert not [secret for secret in ("somebody", "secret", str(tmp_path)) if secret in sent]
