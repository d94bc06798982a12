"""What comes from outside cannot run code, climb out of its folder, or speak for us: one test for each way in."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from bench import saved
from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.nightly import baseline
from bench.rows import Row, row_id
from bench.saved import RECIPE, STRUCTURE, load, save
from bench.store import Result, Store, _sealed, file_digest, folder_name, network_path, row_path
from bench.train.fit import Classifier, train
from bench.train.schedule import Schedule


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_saved_network_s_structure_runs_no_code(tmp_path: Path) -> None:
    """The folder of somebody else's pruned network: only modules and what stands beside them is unpickled."""
    folder = tmp_path / "pruned"
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    assert save(model, Recipe("", {}, (3, 8, 8)), folder) is None
    assert isinstance(load(folder), torch.nn.Module)
    torch.save({"model": Payload(tmp_path / "made")}, folder / STRUCTURE)
    with pytest.raises(UserError):
        load(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "builder",
    ["os:mkdir", "os:makedirs", "shutil:rmtree", "bench.store:make_folder", "torch.hub:load", "climbing:mkdir"],
)
def test_a_saved_network_s_factory_is_no_other_function(
    builder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a recipe from elsewhere names is called only where something says that it makes networks."""
    (tmp_path / "climbing.py").write_text("from os import mkdir\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "pruned"
    assert save(torch.nn.Conv2d(3, 4, 3), Recipe("", {}, (3, 8, 8)), folder) is None
    value = json.loads((folder / RECIPE).read_text())
    value["recipe"] |= {"builder": builder, "arguments": {"path": str(tmp_path / "made")}}
    (folder / RECIPE).write_text(json.dumps(value))
    with pytest.raises(UserError, match="nothing says that it makes any"):
        load(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("builder", ["torchvision.models:resnet18", "torch.nn:Identity", "ownnetwork:net"])
def test_factories_of_networks_are_called(builder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An annotated function, a class of modules, a function of one's own."""
    (tmp_path / "ownnetwork.py").write_text("import torch\ndef net():\n    return torch.nn.Conv2d(3, 4, 3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    saved._check_factory(builder, tmp_path)


def checkpoint_of_a_training(work: Path) -> nn.Module:
    """``work`` with a checkpoint behind the first of two epochs; returns the network as both leave it."""
    for epochs in (1, 2):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
        net(torch.zeros(2, 3, 8, 8))
        train(Classifier(net), Noise(), Schedule(epochs, 0.1, 8), 0, work / str(epochs), "cpu", "t", progress=False)
    (work / "checkpoint.pth").write_bytes((work / "1" / "checkpoint.pth").read_bytes())
    return net


class Noise(Dataset[tuple[Tensor, Tensor]]):
    """Sixteen images of noise; a list of places gives a batch."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return images[places], torch.arange(16)[places] % 2


@pytest.mark.parametrize("damage", ["payload", "flipped", "truncated", "another's"])
def test_a_damaged_checkpoint_is_no_start(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle is not executed, a flipped bit not believed: the training begins anew and ends as it would have."""
    wanted = checkpoint_of_a_training(tmp_path).state_dict()
    path = tmp_path / "checkpoint.pth"
    data = bytearray(path.read_bytes())
    if damage == "payload":
        torch.save({"state_dict": Payload(tmp_path / "made")}, path)
    elif damage == "another's":
        path.write_bytes(pickle.dumps(Payload(tmp_path / "made")))
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda one: one.file_size if "/data/" in one.filename else 0)
        data[largest.header_offset + 30 + len(largest.filename) + 128] ^= 1
        path.write_bytes(data)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(2, 3, 8, 8))
    history = train(Classifier(net), Noise(), Schedule(2, 0.1, 8), 0, tmp_path, "cpu", "t", progress=False)
    assert "is damaged: training begins anew" in capsys.readouterr().err
    assert not (tmp_path / "made").exists() and len(history) == 2
    for name, value in net.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_a_cache_entry_that_is_a_pickle_is_no_result(tmp_path: Path) -> None:
    """Tensors of the store are safetensors: another file, with its digest corrected, is as good as absent."""
    store = Store(tmp_path)
    store.save("key", Result(arrays={"logits": torch.zeros(2, 2)}), {})
    path = store.folder("key") / "arrays.safetensors"
    torch.save(Payload(tmp_path / "made"), path)
    header = json.loads((store.folder("key") / "step.json").read_text())
    header["files"]["arrays.safetensors"] = file_digest(path)
    (store.folder("key") / "step.json").write_text(json.dumps(_sealed(header)))
    assert store.header("key") is not None
    assert store.load("key") is None
    assert not (tmp_path / "made").exists()


def test_a_baseline_s_predictions_are_no_pickle(tmp_path: Path) -> None:
    row = tmp_path / "toy" / "rows" / "digits" / "a.json"
    path = baseline.predictions_path(row)
    path.parent.mkdir(parents=True)
    torch.save(Payload(tmp_path / "made"), path)
    with pytest.raises(UserError, match="cannot be read"):
        baseline.read(row)
    assert not (tmp_path / "made").exists()


@given(st.text(max_size=60))
def test_no_name_of_a_data_set_leads_out_of_the_results(name: str) -> None:
    folder = folder_name(name)
    assert folder not in ("", ".", "..") and "/" not in folder and "\\" not in folder and "\0" not in folder
    root = Path("/results")
    path = row_path(root, "toy/table-1/a", {"scale": name})
    assert Path(os.path.normpath(path)) == path and path.is_relative_to(root / "toy" / "rows")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a/b/c/d", "/etc/passwd", "..//..//x"])
def test_ids_are_made_of_slugs(name: str) -> None:
    """A row's id has three parts, each a slug: nothing else becomes a path."""
    made = row_id("toy", Row(name, name, "digits"))
    assert made.count("/") == 2 and ".." not in made.split("/")
    target = network_path(Path("/results"), made)
    assert Path(os.path.normpath(target)).is_relative_to("/results/toy/networks")
