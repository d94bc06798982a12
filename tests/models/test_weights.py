"""Weights files as users have them: wrapped, prefixed, wrong and broken; every mistake is one line."""

import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.errors import UserError
from bench.models.weights import load, load_pretrained, read


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    nn.init.normal_(model[1].weight)  # type: ignore[arg-type]
    return model


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("form", ["plain", "prefixed", "state_dict", "model", "wrapped and prefixed", "ordered"])
def test_forms_of_a_state_dict(form: str, tmp_path: Path) -> None:
    """Each comes back as the plain state dict, key by key."""
    state = network(0).state_dict()
    value: dict[str, Any] = {
        "plain": dict(state),
        "prefixed": prefixed(state),
        "state_dict": {"state_dict": state, "epoch": 3, "best": 0.5},
        "model": {"model": state},
        "wrapped and prefixed": {"state_dict": prefixed(state), "epoch": 1},
        "ordered": OrderedDict(state),
    }[form]
    path = saved(tmp_path / "weights.pth", value)
    assert equal(read(path), dict(state))
    model = network(1)
    load(model, path)
    assert equal(model.state_dict(), dict(state))


def test_safetensors_and_the_legacy_torch_format(tmp_path: Path) -> None:
    state = network(0).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    assert equal(read(tmp_path / "weights.safetensors"), dict(state))
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert equal(read(tmp_path / "old.pth"), dict(state))


def test_files_without_batch_counters_fit(tmp_path: Path) -> None:
    """PyTorch before 0.4.1 wrote none."""
    state = {key: value for key, value in network(0).state_dict().items() if "num_batches" not in key}
    model = network(1)
    load(model, saved(tmp_path / "old.pth", state))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def failure(path: Path, model: nn.Module | None = None) -> str:
    """The message of the UserError: one line that names the file."""
    with pytest.raises(UserError) as caught:
        load(network(0) if model is None else model, path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_missing_unknown_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    state = dict(network(0).state_dict())
    del state["0.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["3.weight"] = torch.zeros(2, 9)
    model = network(1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = failure(saved(tmp_path / "wrong.pth", state), model)
    assert "0.bias is missing" in message
    assert "extra.weight is unknown" in message
    assert re.search(r"3\.weight has shape \(2, 9\), not \(2, 16\)", message)
    assert equal(model.state_dict(), before)


def test_many_wrong_keys_stay_one_line(tmp_path: Path) -> None:
    """Another network's file: a few names and how many more."""
    message = failure(saved(tmp_path / "other.pth", {f"layer{i}.weight": torch.zeros(1) for i in range(30)}))
    # of the network's eight keys without the counter all are missing, thirty are unknown; four are named
    assert "0.weight is missing" in message
    assert message.count(" is missing") + message.count(" is unknown") == 4
    assert "and 34 more" in message
    assert len(message) < 600


def test_missing_file(tmp_path: Path) -> None:
    assert "no weights file" in failure(tmp_path / "nowhere.pth")
    assert "no weights file" in failure(tmp_path)


GARBAGE = {
    "empty": b"",
    "text": b"these are not weights\n",
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "zeros": bytes(1000),
    "bytes": bytes(range(256)) * 4,
    "zip header": b"PK\x03\x04" + bytes(100),
    "pickled int": pickle.dumps(3),
    "pickle of protocol 0": b"(lp0\nI1\na.",
    "stack underflow": b"\x80\x02R.",
    "json": b'{"conv1.weight": [1, 2, 3]}',
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_a_user_error(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(GARBAGE[kind])
    failure(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_user_errors(form: str, share: float, tmp_path: Path) -> None:
    """A download that broke off."""
    state = network(0).state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    failure(path)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_pickled_modules_are_refused_and_code_is_not_run(tmp_path: Path) -> None:
    failure(saved(tmp_path / "module.pth", network(0)))
    failure(saved(tmp_path / "payload.pth", {"weight": Payload(tmp_path / "made")}))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "value",
    [
        {},
        [1, 2],
        torch.zeros(3),
        {"epoch": 3},
        {"state_dict": {}},
        {"a": torch.zeros(1), "b": "text"},
        {0: torch.zeros(1)},
    ],
    ids=["empty", "list", "tensor", "no tensors", "empty inside", "mixed", "numbers as names"],
)
def test_files_that_hold_something_else_are_user_errors(value: object, tmp_path: Path) -> None:
    failure(saved(tmp_path / "other.pth", value))


def test_pretrained_weights_exist_for_few_networks() -> None:
    with pytest.raises(UserError, match=r"no pretrained weights for cifar_resnet20.*--weights"):
        load_pretrained(network(0), "cifar_resnet20")
