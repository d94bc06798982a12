"""The staircase: which counts, what rounding up costs by hand, the advice, the files; a real layer."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.errors import UserError
from bench.latency import staircase
from bench.latency.contestants import Subject
from bench.latency.staircase import Stairs, counts_of, measured
from bench.models.recipe import Recipe

SUBJECT = Subject("net", Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.5}, (3, 16, 16)))


def stairs(ms: dict[int, float], error: float = 0.01) -> Stairs:
    values = tuple(ms.values())
    low, high = (tuple(factor * value for value in values) for factor in (1 - error, 1 + error))
    return Stairs("net, layer", "nchw", tuple(ms), values, low, high)


def test_counts() -> None:
    assert counts_of(20) == list(range(1, 21))
    many = counts_of(512)
    assert set(range(8, 513, 8)) <= set(many) and {31, 33, 511} <= set(many) and max(many) == 512
    assert 60 in counts_of(60)


def test_steps_of_16_advise_16() -> None:
    """A machine that computes 16 filters at a time: rounding up to 16 is free everywhere, to 32 only at half."""
    found = stairs({count: float(-(-count // 16)) for count in range(1, 65)})
    assert found.rounding_up(16) == {"median": 0.0, "free": 60, "of": 60}
    up = found.rounding_up(32)
    # above 16 of each 32 the same step, below it twice (or from 3 to 4) as long
    assert up is not None and (up["free"], up["of"]) == (30, 62)
    assert found.advice().startswith("round widths up to multiples of 16: at 60 of 60 counts between")


def test_a_slope_advises_nothing() -> None:
    found = stairs({count: float(count) for count in range(1, 65)}, 0.001)
    assert found.advice().startswith("rounding up pays at no multiple")
    up = found.rounding_up(8)
    assert up is not None and up["free"] == 0
    assert stairs({8: 1.0, 16: 2.0}).rounding_up(8) is None


def test_noise_is_no_step() -> None:
    """Differences within the intervals are none: everything between is as fast as the multiple."""
    assert stairs({31: 1.0, 32: 1.01}, 0.05).rounding_up(32) == {"median": pytest.approx(1.0), "free": 1, "of": 1}


def test_files(tmp_path: Path) -> None:
    made = replace(stairs({count: float(count) for count in range(1, 40)}), stopped="1 s are over")
    staircase.keep(made, tmp_path / "here", {"device": "cpu", "name": "A CPU", "threads": 2})
    rows = list(csv.DictReader((tmp_path / "here.csv").open()))
    assert len(rows) == 39 and rows[31] == {
        "channels": "32",
        "ms": "32.0",
        "low": "31.68",
        "high": "32.32",
        "multiple": "32",
    }
    about = json.loads((tmp_path / "here.json").read_text())
    assert (about["stopped"], about["layout"], about["device"]["name"]) == ("1 s are over", "nchw", "A CPU")
    assert about["counts"] == list(range(1, 40)) and about["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (tmp_path / "here.png").read_bytes().startswith(b"\x89PNG")


def test_a_real_layer() -> None:
    found = measured(SUBJECT, "layer1.0.conv1", 2, "fp32", "cpu", 0.3)
    assert found.counts == tuple(range(1, 9)) and all(ms > 0 for ms in found.ms)
    assert all(low <= ms <= high for low, ms, high in zip(found.low, found.ms, found.high, strict=True))
    assert found.to_json()["advice"] == found.advice()
    linear = measured(SUBJECT, "linear", 1, "fp32", "cpu", 0.1)
    assert linear.counts == tuple(range(1, 11)) and linear.layout == "nchw"


def test_a_layer_that_is_none() -> None:
    with pytest.raises(UserError, match=r"no convolution or linear layer 'bn1': choose one of conv1, layer1\.0\.conv1"):
        measured(SUBJECT, "bn1", 1, "fp32", "cpu", 0.1)


def test_on_a_gpu_a_time_is_of_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 calls between two events, as one graph where that can be; 1/20 of the time is said."""
    calls: list[int] = []
    for captured in (lambda network, x: network, lambda network, x: "no graphs here"):
        calls.clear()
        monkeypatch.setattr(staircase.latency, "captured", captured)
        monkeypatch.setattr(staircase.latency, "events", lambda network, x: network(x) or 0.5)
        many = staircase._many(lambda x: calls.append(1), torch.zeros(1))
        assert staircase._of_many(many, torch.zeros(1)) == 0.025 and len(calls) == 20
