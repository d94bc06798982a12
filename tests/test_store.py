"""The store: atomic, checked, shared; and what a full or forbidden disk is told."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UserError
from bench.store import Record, Result, Store, disk_errors, row_path, write_json

VALUES = st.floats(allow_nan=False, allow_infinity=False, width=64)


@settings(max_examples=25, deadline=None)
@given(
    value=VALUES,
    count=st.integers(0, 10**6),
    name=st.text(min_size=1, max_size=8),
    shape=st.lists(st.integers(0, 4), max_size=3),
    facts=st.dictionaries(st.text(max_size=5), st.lists(VALUES, max_size=4)),
)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    value: float,
    count: int,
    name: str,
    shape: list[int],
    facts: dict[str, list[float]],
) -> None:
    store = Store(tmp_path_factory.mktemp("runs"))
    tensor = torch.arange(int(torch.tensor(shape).prod()) if shape else 1, dtype=torch.float32).reshape(shape or [1])
    record = Record(name, value, "%", low=value, n=count, seed=0)
    store.save("k" * 32, Result({"builder": "x"}, {"w": tensor}, [record], {"logits": tensor}, facts), {"step": name})
    found = store.load("k" * 32)
    assert found is not None
    assert found.records == [record]
    assert found.facts == facts
    assert torch.equal(found.state["w"], tensor)
    assert found.state["w"].shape == tensor.shape
    assert found.recipe == {"builder": "x"}


def test_an_absent_or_unfinished_step_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.load("absent") is None
    (tmp_path / "steps" / "half").mkdir()
    (tmp_path / "steps" / "half" / "step.json").write_text('{"files": {}')
    assert store.load("half") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_files_are_noticed_and_replaced(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    result = Result(state={"w": torch.ones(100)})
    store.save("key", result, {})
    path = store.folder("key") / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-10])
    assert store.load("key") is None
    store.save("key", result, {})
    assert store.load("key") is not None


@pytest.mark.parametrize("part", ["records", "facts", "seconds"])
def test_an_edited_description_is_no_result(tmp_path: Path, part: str) -> None:
    """Records and facts stand in step.json, not in a file with a digest there."""
    store = Store(tmp_path)
    store.save("key", Result(records=[Record("top1_acc", 90.0, "%")], facts={"a": {1: 2.0}}), {"seconds": 1.0})
    assert store.load("key") is not None
    path = store.folder("key") / "step.json"
    value = json.loads(path.read_text())
    value[part] = {"records": [{"metric": "top1_acc", "value": 99.0, "unit": "%"}], "facts": {}, "seconds": 2.0}[part]
    path.write_text(json.dumps(value))
    assert store.load("key") is None


def test_a_description_of_before_there_were_seals_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("key", Result(facts={"a": 1}), {})
    path = store.folder("key") / "step.json"
    value = json.loads(path.read_text())
    del value["seal"]
    path.write_text(json.dumps(value))
    assert store.load("key") is not None


def test_nothing_is_left_behind_when_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bench.store.save_file", full)
    with pytest.raises(UserError, match="no space left"):
        store.save("key", Result(state={"w": torch.ones(1)}), {})
    assert store.load("key") is None
    assert list((tmp_path / "work").iterdir()) == []


def test_a_second_writer_of_the_same_step_does_no_harm(tmp_path: Path) -> None:
    for _ in range(2):
        Store(tmp_path).save("key", Result(facts={"a": 1}), {})
    found = Store(tmp_path).load("key")
    assert found is not None
    assert found.facts == {"a": 1}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "x"), "free some"),
        (OSError(errno.EDQUOT, "x"), "free some"),
        (PermissionError(errno.EACCES, "x"), "another folder"),
        (OSError(errno.EROFS, "x"), "another folder"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/1"), "free some"),
    ],
)
def test_disk_refusals_say_what_to_do(error: Exception, text: str) -> None:
    with pytest.raises(UserError, match=text) as caught, disk_errors(Path("runs")):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="a bug"), disk_errors(Path("runs")):
        raise RuntimeError("a bug")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="another folder"):
        Store(tmp_path / "runs")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_place_where_no_folder_can_be_made_is_refused() -> None:
    with pytest.raises(UserError, match="another folder"):
        Store(Path("/proc/runs"))


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    with pytest.raises(ValueError, match=r"JSON compliant"):
        write_json(tmp_path / "a" / "b.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 1}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_unfinished_work_goes_when_the_step_is_stored(tmp_path: Path) -> None:
    """A training that is run again must not go on from the checkpoint of one that is over."""
    store = Store(tmp_path)
    for key in ("done", "other"):
        store.work(key).mkdir()
        (store.work(key) / "checkpoint.pth").touch()
    store.save("done", Result(), {})
    assert not store.work("done").exists() and store.work("other").exists()


def test_tensors_that_are_let_go_are_gone_also_where_that_was_killed_half_way(tmp_path: Path) -> None:
    """Killed when the header said it and the file was still there, as any moment may be the one."""
    store = Store(tmp_path)
    store.save("key", Result(state={"w": torch.ones(3)}), {})
    path = store.folder("key") / "state.safetensors"
    kept = path.read_bytes()
    store.shed("key")
    assert not path.exists() and store.load("key") is None and store.header("key") is not None
    path.write_bytes(kept)
    store.shed("key")
    assert not path.exists()


def test_a_header_that_does_not_say_that_it_is_complete_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("key", Result(), {})
    path = store.folder("key") / "step.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, "complete": False}))
    assert store.header("key") is None and store.load("key") is None


def test_a_setting_s_file_is_told_by_every_choice(tmp_path: Path) -> None:
    setting = {"scale": "digits", "seeds": [0, 1, 2], "weights": None, "device": "cpu"}
    others = [{**setting, "seeds": [0]}, {**setting, "weights": {"sha256": "1"}}, {**setting, "device": "cuda"}]
    paths = {row_path(tmp_path, "toy/table-1/a", one) for one in (setting, *others)}
    assert len(paths) == 4
    assert {path.parent for path in paths} == {tmp_path / "toy" / "rows" / "digits"}
    assert all(path.name.startswith("table-1--a--") for path in paths)
