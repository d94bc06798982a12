"""Networks to take home: accepted with their row, evaluated again, and refused where they are not what was measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import bench.data

# they keep `registry_folder` by name: imported while it is patched they would keep the patch for all tests behind
import bench.network_commands
import bench.nightly.commands
import bench.page_commands
from bench import commands, planning, provenance, released
from bench.chains import loaded, measured_chain, trained
from bench.cli import main
from bench.data.images import ImageSet
from bench.evaluate import Recorded, judge
from bench.models.builders import BUILDERS
from bench.models.recipe import Recipe
from bench.registry import COLUMNS
from bench.rows import Chain, Paper, Row, Setting
from bench.saved import facts_of
from bench.saved import load as load_saved
from bench.store import file_digest
from bench.train.schedule import Schedule

RESULTS = Path(__file__).parent.parent / "results"
SIDE = 16


def recipe(scale: str, classes: int, given: bool) -> Recipe:
    return Recipe("cifar_resnet20", {"num_classes": classes, "width": 0.25}, (3, SIDE, SIDE))


def chain(setting: Setting, network: Recipe) -> Chain:
    def dense(where: Setting, own: Recipe, seed: int) -> Any:
        if where.weights is not None:
            return loaded(where, own)
        return trained(where, own, None, Schedule(epochs=4, lr=0.05, batch=32), seed, "dense")

    return measured_chain(setting, network, dense=dense, prune=None, tuning=None)


def paper() -> Paper:
    """Two rows of one network; the first releases it."""
    rows = [Row("Table 1 (toy)", name, "digits", dense=recipe, chain=chain, seeds=(3, 1)) for name in ("Kept", "not")]
    return Paper("toy", "A toy", "nobody", [replace(rows[0], release=True), rows[1]], [])


def arranged(patch: pytest.MonkeyPatch, place: Path, made: Paper) -> None:
    """The harness sees one paper, an empty registry, and committed code."""
    place.mkdir(exist_ok=True)
    (place / "toy.csv").write_text(",".join(COLUMNS) + "\n")
    patch.setattr(planning, "papers", lambda: {"toy": made})
    patch.setattr(commands, "registry_folder", lambda: place)
    patch.setattr(provenance, "git_state", lambda: "c0ffee")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what was run."""
    place = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        arranged(patch, place / "registry", paper())
        assert main(["run", "toy", "--device", "cpu", "--out", str(place / "runs")]) == 0
    return place / "runs"


@pytest.fixture(scope="module")
def taken(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what was accepted."""
    place = tmp_path_factory.mktemp("accepted")
    with pytest.MonkeyPatch.context() as patch:
        arranged(patch, place / "registry", paper())
        assert accepted(measured, place / "results") == 0
    return place / "results"


@pytest.fixture
def results(taken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    arranged(monkeypatch, tmp_path / "registry", paper())
    shutil.copytree(taken, tmp_path / "results")
    return tmp_path / "results"


def accepted(runs: Path, results: Path) -> int:
    return main(["accept", "--from", str(runs), "--to", str(results)])


def only(results: Path) -> Path:
    return results / "toy" / "networks" / "table-1--kept"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("[")]
    assert len(lines) == 1 and lines[0].startswith("bench: "), lines
    return lines[0]


def plain(folder: Path) -> tuple[Tensor, Tensor]:
    """What the weights in ``folder`` predict for the digits' test images, and the labels, without the harness."""
    model = BUILDERS["cifar_resnet20"](num_classes=10, width=0.25)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))[1437:]
    raw = torch.from_numpy(digits.images).float()[order, None] * 255 / 16
    images = F.interpolate(raw, size=(SIDE, SIDE), mode="bilinear", align_corners=False).round() / 255
    with torch.no_grad():
        outputs = model.eval()(((images - 0.5) / 0.5).expand(-1, 3, -1, -1))
    return outputs.argmax(1), torch.from_numpy(digits.target)[order]


def test_accept_keeps_the_first_seed_s_network_with_its_predictions(results: Path) -> None:
    folder = only(results)
    assert [path.name for path in (results / "toy" / "networks").iterdir()] == ["table-1--kept"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "predictions.safetensors",
        "recipe.json",
        "weights.safetensors",
    ]
    predicted, labels = plain(folder)
    kept = load_file(folder / "predictions.safetensors")["predictions"]
    assert kept.dtype == torch.uint8 and torch.equal(kept.long(), predicted)
    facts = facts_of(folder)
    right = int((predicted == labels).sum())
    assert 60 < right < 360  # it has learnt, and not everything
    assert facts["top1"]["right"] == right and facts["top1"]["value"] == pytest.approx(100 * right / 360)
    assert (facts["row"], facts["seed"], facts["top1"]["n"], facts["top1"]["of"]) == ("toy/table-1/kept", 3, 360, None)
    (row,) = (results / "toy" / "rows" / "digits").glob("table-1--kept--*.json")
    value = json.loads(row.read_text())
    assert facts["setting"] == value["setting"] and next(iter(value["widths"])) == facts["step"]
    assert facts["provenance"]["code"] == "c0ffee"
    assert (facts["mean"], facts["std"]) == ([0.5] * 3, [0.5] * 3)


def test_the_page_lists_it_and_says_how_to_repeat_it(results: Path) -> None:
    page = (results / "toy" / "README.md").read_text()
    top1 = facts_of(only(results))["top1"]
    assert "## Networks" in page and "](networks/table-1--kept) | digits | 3 |" in page
    assert f"{top1['value']:.2f} % [" in page and f"({top1['right']} of 360 images)" in page
    assert "bench evaluate results/toy/networks\n" in page


@pytest.mark.parametrize("below", ["", "toy/networks", "toy/networks/table-1--kept"])
def test_evaluation_repeats_the_number(results: Path, below: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(results / below), "--device", "cpu", "--batch", "50", "--json"]) == 0
    (value,) = json.loads(capsys.readouterr().out)
    top1 = facts_of(only(results))["top1"]
    assert (value["verdict"], value["changed"], value["same_data"]) == ("same", 0, True)
    assert (value["top1"]["right"], value["top1"]["value"]) == (top1["right"], top1["value"])
    assert (value["top1"]["low"], value["top1"]["high"]) == (top1["low"], top1["high"])
    assert main(["evaluate", str(results / below), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    share = f"{100 * top1['right'] / 360:.2f} %"
    assert f"top-1 {share} [" in text and f"recorded {share}: {top1['right']} right of 360: same\n" in text


def rewritten(folder: Path, change: Any) -> None:
    """Changes recipe.json."""
    value = json.loads((folder / "recipe.json").read_text())
    change(value)
    (folder / "recipe.json").write_text(json.dumps(value))


def test_other_weights_are_told_from_the_measured_ones(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network whose files fit each other and which is not the one that was measured."""
    folder = only(results)
    state = load_file(folder / "weights.safetensors")
    name = next(name for name in reversed(state) if name.endswith("weight") and state[name].ndim == 2)
    state[name] = state[name].roll(1, 0)
    save_file(state, folder / "weights.safetensors")
    rewritten(folder, lambda value: value.update(weights=file_digest(folder / "weights.safetensors")))
    changed = int((plain(folder)[0] != load_file(folder / "predictions.safetensors")["predictions"].long()).sum())
    assert changed > 1
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 1
    assert f"different in {changed} predictions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "words", "expected"), [(1, "same up to 1 prediction\n", 0), (2, "different in 2", 1)]
)
def test_rounding_may_change_one_prediction_of_360(
    results: Path, count: int, words: str, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = only(results)
    kept = load_file(folder / "predictions.safetensors")["predictions"]
    kept[:count] = (kept[:count] + 1) % 10
    save_file({"predictions": kept}, folder / "predictions.safetensors")
    digest = file_digest(folder / "predictions.safetensors")
    rewritten(folder, lambda value: value["facts"].update(predictions=digest))
    assert main(["evaluate", str(folder), "--device", "cpu"]) == expected
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(("more", "expected"), [(0, "same"), (5, "different")])
def test_other_images_of_the_set_are_told_and_bound_the_number(
    results: Path, more: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if 357 of the 360 images had been recorded from another copy of the set: three more may be right now."""
    folder = only(results)
    right = facts_of(folder)["top1"]["right"]

    def change(value: dict[str, Any]) -> None:
        value["facts"]["setting"]["data"]["fingerprint"] = "f" * 64
        value["facts"]["top1"].update(n=357, of=360, right=right - 2 + more)

    rewritten(folder, change)
    assert main(["evaluate", str(folder), "--device", "cpu", "--json"]) == (expected == "different")
    (value,) = json.loads(capsys.readouterr().out)
    assert (value["verdict"], value["changed"], value["same_data"]) == (expected, None, False)
    assert f"{right - 2 + more} to {right + 1 + more} right agree" in value["words"]


HUNDRED = torch.zeros(100, dtype=torch.long)


@pytest.mark.parametrize(
    ("recorded", "predicted", "right", "of", "expected"),
    [
        (Recorded(80, 100, 100, HUNDRED, True), HUNDRED, 80, 100, (0, "same")),
        # 10,000 images: five may differ, six may not
        (Recorded(1, 10_000, 10_000, torch.zeros(10_000).long(), True), (torch.arange(10_000) < 5).long(), 1, 10_000,
         (5, "same")),
        (Recorded(1, 10_000, 10_000, torch.zeros(10_000).long(), True), (torch.arange(10_000) < 6).long(), 1, 10_000,
         (6, "different")),
        # 90 of 95 right, all 100 images here: 90 to 95 right are possible, and one more or less by rounding
        (Recorded(90, 95, 100, HUNDRED[:95], False), HUNDRED, 89, 100, (None, "same")),
        (Recorded(90, 95, 100, HUNDRED[:95], False), HUNDRED, 96, 100, (None, "same")),
        (Recorded(90, 95, 100, HUNDRED[:95], False), HUNDRED, 88, 100, (None, "different")),
        (Recorded(90, 95, 100, HUNDRED[:95], False), HUNDRED, 97, 100, (None, "different")),
        # all 100 recorded, 95 here: 85 to 90
        (Recorded(90, 100, 100, HUNDRED, False), HUNDRED[:95], 84, 100, (None, "same")),
        (Recorded(90, 100, 100, HUNDRED, False), HUNDRED[:95], 83, 100, (None, "different")),
        (Recorded(90, 100, 100, HUNDRED, False), HUNDRED[:95], 92, 100, (None, "different")),
        # another set
        (Recorded(90, 100, 100, HUNDRED, False), HUNDRED[:50], 50, 50, (None, "not compared")),
        # of a pruned network right answers were kept alone
        (Recorded(80, 100, 100, None, True), HUNDRED, 81, 100, (1, "same")),
        (Recorded(80, 100, 100, None, None), HUNDRED, 78, 100, (2, "different")),
        (Recorded(80, 100, 100, None, False), HUNDRED, 80, 100, (None, "not compared")),
        (Recorded(80, 100, 100, None, None), HUNDRED[:99], 80, 99, (None, "not compared")),
    ],
)  # fmt: skip
def test_what_the_recorded_network_leaves_possible(
    recorded: Recorded, predicted: Tensor, right: int, of: int, expected: tuple[int | None, str]
) -> None:
    assert judge(recorded, predicted, right, of)[:2] == expected


def test_mistakes_get_one_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = only(results), ["--data", str(tmp_path / "nowhere"), "--device", "cpu"]

    def told(place: Path) -> str:
        assert main(["evaluate", str(place), *data]) == 2
        return one_line(capsys)

    assert "no folder" in told(tmp_path / "absent")
    assert "holds no saved network" in told(results / "toy" / "rows")
    copies = {}
    for name in ("data", "weights", "predictions", "facts", "recipe"):
        copies[name] = tmp_path / name
        shutil.copytree(folder, copies[name])
    rewritten(copies["data"], lambda value: value["facts"]["setting"].update(scale="imagenet"))
    assert "no imagenet in" in told(copies["data"])
    for name in ("weights", "predictions"):
        path = copies[name] / f"{name}.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert f"{name}.safetensors is not the file that recipe.json belongs to" in told(copies[name])
        path.unlink()
        assert f"{name}.safetensors cannot be read" in told(copies[name])
    rewritten(copies["facts"], lambda value: value["facts"].pop("top1"))
    assert "has no top1" in told(copies["facts"])
    (copies["recipe"] / "recipe.json").write_text("{")
    assert "no readable recipe" in told(copies["recipe"])


@pytest.mark.parametrize("limit", ["LARGEST", "ALL"])
def test_what_is_too_large_is_refused_before_anything_is_written(
    measured: Path, tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arranged(monkeypatch, tmp_path / "registry", paper())
    assert (released.LARGEST, released.ALL) == (4_000_000, 20_000_000)
    weights = 4 * sum(p.numel() for p in BUILDERS["cifar_resnet20"](num_classes=10, width=0.25).parameters())
    monkeypatch.setattr(released, limit, weights)
    assert accepted(measured, tmp_path / "results") == 2
    assert f"at most {weights / 1e6:g} can be released" in one_line(capsys)
    assert not (tmp_path / "results").exists()


def test_all_networks_of_a_folder_count(
    results: Path, measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another paper's network takes its part of the room; the row's own old one does not."""
    size = sum(path.stat().st_size for path in only(results).iterdir())
    monkeypatch.setattr(released, "ALL", 2 * size - 1)
    assert accepted(measured, results) == 0
    shutil.copytree(only(results), results / "other" / "networks" / "table-1--kept")
    capsys.readouterr()
    assert accepted(measured, results) == 2
    assert f"would take {2 * size / 1e6:.1f} MB" in one_line(capsys)


def test_a_network_that_is_no_longer_stored_is_told(
    results: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was released of the same run stays, of another run it goes; the row is accepted either way."""
    runs = tmp_path / "runs"
    shutil.copytree(measured, runs)
    folder = only(results)
    key = facts_of(folder)["step"]
    shutil.rmtree(runs / "steps" / key)
    assert accepted(runs, results) == 0
    assert "toy/table-1/kept: its network is not released: dense(cifar_resnet20, seed 3)" in capsys.readouterr().out
    assert folder.is_dir()
    rewritten(folder, lambda value: value["facts"].update(step="0" * 32))
    assert accepted(runs, results) == 0
    assert "another run's network and is removed" in capsys.readouterr().out
    assert not folder.exists() and len(list(results.glob("toy/rows/digits/*.json"))) == 2


def test_a_row_that_releases_no_more_takes_its_network_along(
    results: Path, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = paper()
    silent = replace(known, rows=[replace(row, release=False) for row in known.rows])
    monkeypatch.setattr(planning, "papers", lambda: {"toy": silent})
    assert accepted(measured, results) == 0
    assert not only(results).exists()
    assert "## Networks" not in (results / "toy" / "README.md").read_text()


def test_an_analogue_is_not_released(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = paper()
    elsewhere = replace(known, rows=[replace(row, scale="cifar10") for row in known.rows])
    arranged(monkeypatch, tmp_path / "registry", elsewhere)
    assert accepted(measured, tmp_path / "results") == 0
    assert "networks" not in capsys.readouterr().out and not only(tmp_path / "results").exists()


def test_the_recorded_normalisation_is_that_of_the_data(tmp_path: Path) -> None:
    images = bench.data.load("digits", tmp_path, SIDE, progress=False)
    assert isinstance(images, ImageSet)
    assert bench.data.normalisation("digits") == (images.test.mean, images.test.std)
    assert bench.data.normalisation("cifar10")[0] == pytest.approx((0.485, 0.456, 0.406))


def cifar10_networks() -> list[Path]:
    """The released networks that were measured on CIFAR-10."""
    folders = [path.parent for path in sorted(RESULTS.glob("*/networks/*/recipe.json"))]
    return [folder for folder in folders if facts_of(folder)["setting"]["scale"] == "cifar10"]


def test_released_networks_predict_what_was_recorded() -> None:
    """On 40 images of CIFAR-10's test split, 4 of each class, which lie beside this test."""
    folders = cifar10_networks()
    if not folders:
        pytest.skip("no network that was measured on CIFAR-10 is released yet")
    with np.load(Path(__file__).parent / "data" / "cifar10_few.npz") as file:
        pixels, labels, places = (torch.from_numpy(file[name]) for name in ("images", "labels", "places"))
        fingerprint = str(file["fingerprint"])
    images = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor((0.485, 0.456, 0.406))[:, None, None]) / torch.tensor(
        (0.229, 0.224, 0.225)
    )[:, None, None]
    compared = 0
    for folder in folders:
        facts = facts_of(folder)
        if facts["setting"]["data"]["fingerprint"] != fingerprint:
            continue  # the places are those of another file
        recorded = load_file(folder / "predictions.safetensors")["predictions"].long()[places.long()]
        model: nn.Module = load_saved(folder)
        with torch.no_grad():
            predicted = model(images).argmax(1)
        assert torch.equal(predicted, recorded), folder
        # these are the images: their labels are met as often as the accuracy says, within five standard deviations
        share = facts["top1"]["value"] / 100
        hits = float((predicted == labels.long()).double().mean())
        assert abs(hits - share) < 5 * (share * (1 - share) / len(labels)) ** 0.5 + 0.05, folder
        compared += 1
    if not compared:
        pytest.skip("no released network was measured on the set that the 40 images are from")
