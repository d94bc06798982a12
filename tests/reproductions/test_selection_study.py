"""The study's declarations: which rows there are, and what each of them prunes, how and with which images."""

from __future__ import annotations

from bench.pruning import peers
from bench.pruning import steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.rows import Chain, Setting
from bench.steps import DataValue
from bench.train import steps as training
from reproductions import selection_study as study

ROWS = {row.name: row for row in study.paper().rows}
# what stands in a row's name, and what torch-pruning is then asked for: importance, global, renewed
PEERS = {
    "magnitude, uniform": ("magnitude", False, False),
    "magnitude, uniform, renewed": ("magnitude", False, True),
    "magnitude, global": ("magnitude", True, False),
    "magnitude, global, renewed": ("magnitude", True, True),
    "taylor, uniform": ("taylor", False, False),
    "taylor, uniform, renewed": ("taylor", False, True),
    "taylor, global": ("taylor", True, False),
    "taylor, global, renewed": ("taylor", True, True),
}


def chain_of(name: str) -> Chain:
    where = Setting("cifar10", DataValue("plain", "training"), 10, 50_000, 10_000, "cpu", (0, 1, 2), "sha")
    row = ROWS[name]
    assert row.dense is not None and row.chain is not None
    assert (row.scale, row.scales, row.ours, row.published) == ("cifar10", ("cifar10",), True, {})
    return row.chain(where, row.dense("cifar10", 10, True))


def test_the_rows_are_three_speed_ups_of_ten_methods_and_the_dense_network() -> None:
    expected = {"dense"}
    for speedup in (2, 3, 4):
        expected |= {f"{speedup}x LASSO, uniform", f"{speedup}x exact, error-driven, full reconstruction"}
        expected |= {f"{speedup}x torch-pruning, {name}" for name in PEERS}
    assert set(ROWS) == expected and len(study.paper().rows) == len(expected)
    assert [step.params for step in chain_of("dense").networks] == [
        training.Loading(study.resnet56("", 10, True), "sha")
    ]


def test_torch_pruning_gets_the_dense_network_and_the_images_of_the_other_methods() -> None:
    dense = chain_of("dense").networks[0]
    for speedup in (2, 3, 4):
        for name, (importance, everywhere, renewed) in PEERS.items():
            chain = chain_of(f"{speedup}x torch-pruning, {name}")
            if (importance, renewed) == ("magnitude", False):  # no image is looked at
                expected = [peers.Peer(importance, everywhere, speedup, 0, 0, False)]
            else:
                expected = [peers.Peer(importance, everywhere, speedup, 5170, seed, renewed) for seed in (0, 1, 2)]
            assert [step.params for step in chain.networks] == expected, name
            for step, run in zip(chain.networks, dict.fromkeys(chain.evaluations), strict=True):
                assert (step.run, step.parents, run.parents) == (peers.run_peer, (dense,), (step,))
            assert [reference.parents for reference in chain.references] == [(dense,)] * 3


def test_the_best_networks_are_kept() -> None:
    kept = {name for name, row in ROWS.items() if row.release}
    assert kept == {f"{speedup}x exact, error-driven, full reconstruction" for speedup in (2, 3, 4)}


def test_the_paper_s_method_and_the_best_of_ours() -> None:
    for speedup in (2, 3, 4):
        for step, seed in zip(chain_of(f"{speedup}x LASSO, uniform").networks, (0, 1, 2), strict=True):
            assert (step.params.method, step.params.sampling) == (Method("lasso"), Sampling(positions=10, seed=seed))
            assert step.params.images == 5170 and not isinstance(step.params.widths, pruning.ErrorDriven)
        for step in chain_of(f"{speedup}x exact, error-driven, full reconstruction").networks:
            assert step.params.method == Method("exact", refit=True, rectify=2)
            assert step.params.widths == pruning.ErrorDriven(speedup)
