"""Networks that another machine trained: found by what made them, kept with their provenance, measured here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench import commands, planning, provenance
from bench.cli import main
from bench.models.recipe import Recipe
from bench.store import Store, _sealed
from reproductions import fbs

ROW = ["run", "fbs", "--row", "fbs/figure-3a/fbs-at-d-0.9", "--scale", "digits", "--device", "cpu", "--seed", "0"]
DENSE, ENDED = "dense(mcifarnet, seed 0)", "gated(d=0.9, dense(mcifarnet, seed 0))"


def steps(root: Path) -> dict[str, dict[str, Any]]:
    """The descriptions of a store by step name; no name stands twice here."""
    store = Store(root)
    headers = [store.header(key) or {} for key in store.stored()]
    assert len({header["step"] for header in headers}) == len(headers)
    return {header["step"]: header for header in headers}


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this is another machine: every step has another key."""
    own = provenance.environment

    def environment(kind: str, device: str, packages: Any) -> dict[str, Any]:
        return {**own(kind, device, packages), "machine": "another"}

    monkeypatch.setattr(provenance, "environment", environment)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another machine."""
    out = tmp_path_factory.mktemp("made") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        short(patch)
        elsewhere(patch)
        assert main([*ROW, "--out", str(out)]) == 0
    return out


def narrow(scale: str, classes: int, given: bool) -> Recipe:
    """An eighth of the width of the row's own network."""
    return Recipe("mcifarnet", {"num_classes": classes, "width": 0.0625, "side": 16}, (3, 16, 16))


def short(patch: pytest.MonkeyPatch) -> None:
    """One epoch each of a narrow network, and no pages: nothing here asks how good the networks are."""
    brief = fbs.Protocol(fbs.cosine(1, 0.05, 64), fbs.cosine(1, 0.02, 64), images=100)
    known = planning.papers()["fbs"]
    small = replace(known, rows=[replace(row, dense=narrow) for row in known.rows])
    patch.setattr(fbs, "PROTOCOLS", {("digits", "*"): brief})
    patch.setattr(planning, "papers", lambda: {"fbs": small})
    patch.setattr(commands, "write_pages", lambda root: [])


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> int:
    short(monkeypatch)
    return main([*ROW, "--out", str(out), *more])


def test_networks_are_taken_over_and_measured_here(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "--networks", str(made)) == 0
    told = capsys.readouterr().err
    theirs, ours = steps(made), steps(tmp_path)
    trained = [name for name, header in ours.items() if header["kind"] == "train"]
    assert sorted(trained) == sorted(name for name, header in theirs.items() if header["kind"] == "train")
    assert "4 networks" in told and len(trained) == 4
    for name in trained:
        key = ours[name]["adopted"]
        assert theirs[name] == {**Store(made).header(key), "step": name}  # type: ignore[dict-item]
        assert ours[name]["provenance"] == theirs[name]["provenance"]
        assert ours[name]["facts"] == theirs[name]["facts"]
    assert not any("adopted" in header for header in ours.values() if header["kind"] != "train")
    weights = [load_file(Store(root).folder(key) / "state.safetensors") for root, key in places(made, tmp_path, ENDED)]
    assert all(torch.equal(weights[0][part], weights[1][part]) for part in weights[0] | weights[1])
    row = json.loads(next((tmp_path / "fbs" / "rows" / "digits").glob("figure-3a--fbs*.json")).read_text())
    assert row["setting"]["networks"] == "runs"


def places(made: Path, here: Path, name: str) -> list[tuple[Path, str]]:
    return [
        (root, key)
        for root in (made, here)
        for key in Store(root).stored()
        if (Store(root).header(key) or {})["step"] == name
    ]


def test_without_it_nothing_of_another_machine_is_used(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {key for key in Store(made).stored() if (Store(made).header(key) or {})["kind"] == "train"}
    assert run(monkeypatch, tmp_path, "--plan") == 0
    assert run(monkeypatch, tmp_path) == 0
    assert not theirs & set(Store(tmp_path).stored())


@pytest.mark.parametrize("what", ["code", "params", "data"])
def test_what_was_made_otherwise_is_made_anew(
    what: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dense network's description is changed: neither it nor what came from it is taken."""
    copied = tmp_path / "copied"
    shutil.copytree(made, copied)
    for _, key in places(copied, copied, DENSE)[:1]:
        path = Store(copied).folder(key) / "step.json"
        header = json.loads(path.read_text())
        if what == "code":
            header["code"] = "0" * 64
        elif what == "params":
            header["params"]["seed"] = 7
        else:
            header["provenance"]["data"]["fingerprint"] = "0" * 64
        path.write_text(json.dumps(_sealed(header)))
    assert run(monkeypatch, tmp_path / "out", "--networks", str(copied)) == 0
    assert "1 networks" in capsys.readouterr().err  # the control, which was trained from fresh weights
    assert [name for name, header in steps(tmp_path / "out").items() if "adopted" in header] == [
        "dense, longer(mcifarnet, seed 0)"
    ]


@pytest.mark.parametrize("name", [ENDED, DENSE])
def test_a_damaged_network_is_trained_here_and_what_was_made_from_it_too(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else one of theirs would be compared with a dense network that it was not made from."""
    copied = tmp_path / "copied"
    shutil.copytree(made, copied)
    key = places(copied, copied, name)[0][1]
    (Store(copied).folder(key) / "state.safetensors").write_bytes(b"\0" * 100)
    assert run(monkeypatch, tmp_path / "out", "--networks", str(copied)) == 0
    here = steps(tmp_path / "out")
    assert f"damaged there: {name}" in capsys.readouterr().err
    for one in {name, ENDED}:
        assert "adopted" not in here[one] and "shed" not in here[one]
    if name == ENDED:
        assert "adopted" in here[DENSE]


def test_a_folder_without_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ROW, "--out", str(tmp_path / "out"), "--networks", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
