"""What a row's file says beyond its steps' records: sizes of the networks, speed-ups, trainings; counted by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import planning, provenance, rowfile, runner
from bench.models.recipe import Recipe
from bench.planning import Job
from bench.rows import Chain, Paper, Row
from bench.steps import Context, Kind, Step, make_step
from bench.store import Record, Result, Store

DENSE = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 16, 16))
# filters of the first convolution of three blocks
SMALL = {"layer1.0.conv1": 8, "layer2.1.conv1": 5}


@dataclass(frozen=True)
class Made:
    """A network of these widths, and the epochs of its history."""

    widths: Mapping[str, int]
    seed: int
    epochs: int = 0


def run_made(context: Context, parents: list[Result], params: Made) -> Result:
    """No weights; the accuracy is the seed."""
    history = [{"epoch": n + 1, "loss": 1.0} for n in range(params.epochs)]
    facts = {"history": history} if params.epochs else {}
    recipe = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 16, 16)).removed(params.widths)
    return Result(recipe.to_json(), {"w": torch.zeros(1)}, [Record("top1_acc", float(params.seed), "%")], facts=facts)


def macs(widths: Mapping[str, int]) -> tuple[int, int]:
    """Convolutions' MACs and all parameters of ResNet-20 at 16x16 by hand; shortcuts have no weights."""
    total, params = 9 * 3 * 16 * 16 * 16, 9 * 3 * 16 + 2 * 16
    before = 16
    for stage, (filters, side) in enumerate(((16, 16), (32, 8), (64, 4)), start=1):
        for block in range(3):
            inner = widths.get(f"layer{stage}.{block}.conv1", filters)
            total += 9 * side * side * (before * inner + inner * filters)
            params += 9 * (before * inner + inner * filters) + 2 * inner + 2 * filters
            before = filters
    return total, params + 64 * 10 + 10


def row_file(tmp_path: Path, chain: Chain, shape: Recipe | None = None) -> dict[str, Any]:
    row = Row("Table 1", "only", "digits", shape, dense=lambda *_: DENSE, chain=lambda *_: chain, seeds=(0, 1))
    paper = Paper("toy", "A toy", "nobody", [row], [])
    job = Job(out=tmp_path, device="cpu", progress=False)
    (outcome,) = runner.run(planning.plan(paper, [row], job), job, Store(tmp_path))
    assert outcome.file is not None, outcome.reason
    return json.loads(outcome.file.read_text())  # type: ignore[no-any-return]


def step(params: Made, *parents: Step, kind: Kind = Kind.COMPARE) -> Step:
    return make_step(kind, f"made {params.seed}", run_made, params, parents, device="cpu")


def test_sizes_are_those_of_the_networks_that_were_made(tmp_path: Path) -> None:
    """Dense over pruned, in convolutions' MACs; one set of records for each network, told by its step."""
    networks = [step(Made(SMALL, 0)), step(Made({}, 1))]
    found = row_file(tmp_path, Chain(networks, [networks[0]]))
    dense, parameters = macs({})
    assert 4 * dense + 640 == 40_551_040  # ResNet-20's published 40.55 M at 32x32, with the classifier
    pruned, left = macs(SMALL)
    values = {(r["metric"], r["step"]): (r["value"], r["unit"], r.get("convention")) for r in found["records"]}
    first, second = (network.key for network in networks)
    assert values == {
        ("macs", first): (pruned, "MACs", "conv"),
        ("params", first): (left, "", None),
        ("speedup", first): (pytest.approx(dense / pruned), "x", "conv"),
        ("macs", second): (dense, "MACs", "conv"),
        ("params", second): (parameters, "", None),
        ("speedup", second): (1.0, "x", "conv"),
        ("top1_acc", first): (0.0, "%", None),
        ("top1_acc", second): (1.0, "%", None),
    }
    assert found["widths"] == {first: SMALL, second: {}}
    assert dense / pruned > 1.05


def test_the_size_at_the_paper_s_shape_is_beside_it_in_every_convention(tmp_path: Path) -> None:
    shape = DENSE.removed(SMALL)
    sizes = rowfile.own_sizes(shape)
    dense, parameters = macs({})
    pruned, left = macs(SMALL)
    assert sizes == {
        "recipe": "cifar_resnet20(num_classes=10) at 16x16",
        "macs": {"conv": pruned, "conv+fc": pruned + 640, "2x": 2 * (pruned + 640)},
        "dense_macs": {"conv": dense, "conv+fc": dense + 640, "2x": 2 * (dense + 640)},
        "params": left,
        "dense_params": parameters,
        "speedup": dense / pruned,
    }
    found = row_file(tmp_path, Chain([], [step(Made({}, 1))]), shape)
    assert found["shape"] == sizes
    assert (found["id"], found["status"], found["recipe"]) == (
        "toy/table-1/only", "ran", "cifar_resnet20(num_classes=10) at 16x16",
    )  # fmt: skip


def test_the_history_is_of_every_training_behind_the_row(tmp_path: Path) -> None:
    """Also of those whose records the row does not show, parents first."""
    dense = step(Made({}, 4, epochs=2), kind=Kind.LOAD)
    tuned = step(Made(SMALL, 5, epochs=3), step(Made(SMALL, 6), dense))
    found = row_file(tmp_path, Chain([tuned], []))
    assert [(key, entry["seed"], len(entry["epochs"])) for key, entry in found["history"].items()] == [
        (dense.key, 4, 2),
        (tuned.key, 5, 3),
    ]
    assert list(found["steps"]) == [tuned.key]


@dataclass(frozen=True)
class Points:
    """Accuracies of one seed at these places of a curve; None: beside it."""

    places: tuple[float | None, ...]


def run_points(context: Context, parents: list[Result], params: Points) -> Result:
    """One record a place."""
    return Result(records=[Record("top1_acc", 50.0, "%", seed=0, x=x, series="a") for x in params.places])


@pytest.mark.parametrize(
    ("places", "status"),
    [((1.0, 2.0, None), runner.OK), ((1.0, 1.0), runner.FAILED), ((None, None), runner.FAILED)],
)
def test_two_values_of_one_seed_cost_their_row_and_leave_no_file(
    places: tuple[float | None, ...], status: str, tmp_path: Path
) -> None:
    """Such a file would stop the pages of all papers."""
    points = make_step(Kind.COMPARE, "points", run_points, Points(places), device="cpu")
    row = Row("Figure 1", "curve", "digits", dense=lambda *_: DENSE, chain=lambda *_: Chain([], [points]), seeds=(0,))
    job = Job(out=tmp_path, device="cpu", progress=False)
    (outcome,) = runner.run(planning.plan(Paper("toy", "A toy", "nobody", [row], []), [row], job), job, Store(tmp_path))
    assert outcome.status == status and bool(list(tmp_path.glob("toy/rows/*/*.json"))) == (status == runner.OK)
    assert status == runner.OK or outcome.reason == "top1_acc has two values of one seed"


@dataclass(frozen=True)
class Measured:
    """An evaluation of nothing."""


def run_measured(context: Context, parents: list[Result], params: Measured) -> Result:
    """No records."""
    return Result()


def test_it_says_how_the_networks_behind_it_were_made_and_with_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those alone: what evaluated them is no part, neither is Python, nor, of how, the machine and its packages."""

    def made(place: str, torch_: str, capability: str, seed: int = 0) -> dict[str, Any]:
        monkeypatch.setattr(provenance, "versions", lambda: {"python": place, "torch": torch_})
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(provenance, "environment", lambda *of: {"torch": torch_})
        network = step(Made(SMALL, seed), kind=Kind.TRAIN)
        seen = make_step(Kind.EVALUATE, "seen", run_measured, Measured(), [network], device="cpu")
        compared = make_step(Kind.COMPARE, "compared", run_measured, Measured(), [seen], device="cpu")
        return row_file(tmp_path / place, Chain([], [compared]))

    first, again = made("a", "2.9.1", "AVX2"), made("b", "2.10.0", "AVX512")
    assert first["made_with"]["versions"] == ["torch 2.9.1"] and again["made_with"]["versions"] == ["torch 2.10.0"]
    assert first["made_with"]["how"] == again["made_with"]["how"]
    assert [one["capability"] for one in (*first["made_on"], *again["made_on"])] == ["AVX2", "AVX512"]
    assert made("c", "2.9.1", "AVX2", seed=1)["made_with"]["how"] != first["made_with"]["how"]


def run_timed(context: Context, parents: list[Result], params: Made) -> Result:
    """A time, and how it was taken."""
    facts = {"clock": "wall clock, CPU", "stopped": "15 s are over", "machine": {"before": {"load": [2.0]}}}
    facts |= {"rounds": [3, 4]}
    return Result(records=[Record("latency_dense", 3.0, "ms")], facts={"timing": {**facts, "percentiles": {"a": {}}}})


def test_a_time_says_how_it_was_taken(tmp_path: Path) -> None:
    """Why the turns ended, by which clock, and what else the machine did."""
    timed = make_step(Kind.TIME, "timed", run_timed, Made({}, 0), device="cpu")
    value = row_file(tmp_path, Chain([], [timed]))
    how = {"clock": "wall clock, CPU", "stopped": "15 s are over", "machine": {"before": {"load": [2.0]}}}
    how |= {"rounds": [3, 4]}
    assert value["timed"] == {timed.key: {"timing": how}}
    assert "timed" not in row_file(tmp_path / "other", Chain([], [step(Made({}, 0))]))
