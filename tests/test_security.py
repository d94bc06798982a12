"""What comes from outside cannot run code, climb out of its folder, or speak for us: one test for each way in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.nightly import baseline
from bench.rows import Row, row_id
from bench.saved import STRUCTURE, load, save
from bench.store import Result, Store, _sealed, file_digest, folder_name, network_path, row_path


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
