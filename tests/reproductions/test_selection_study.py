"""The study's declarations: which rows there are, and what each of them prunes, how and with which images."""

from __future__ import annotations

import pytest

from bench.measure import steps as measuring
from bench.pruning import peers
from bench.pruning import steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.rows import Chain, Row, Setting
from bench.steps import DataValue, Step
from bench.train import steps as training
from reproductions import selection_study as study

ROWS = {(row.table, row.name): row for row in study.paper().rows}
# of ResNet-56's 27 blocks, half of 16, 32 and 64 channels
HALF = {f"layer{stage}.{block}.conv1": 8 * 2 ** (stage - 1) for stage in (1, 2, 3) for block in range(9)}
# what stands in a row's name, and what torch-pruning is then asked for: importance, global, renewed
PEERS = {
    "torch-pruning, magnitude, uniform": ("magnitude", False, False),
    "torch-pruning, magnitude, uniform, renewed": ("magnitude", False, True),
    "torch-pruning, magnitude, global": ("magnitude", True, False),
    "torch-pruning, magnitude, global, renewed": ("magnitude", True, True),
    "torch-pruning, taylor, uniform": ("taylor", False, False),
    "torch-pruning, taylor, uniform, renewed": ("taylor", False, True),
    "torch-pruning, taylor, global": ("taylor", True, False),
    "torch-pruning, taylor, global, renewed": ("taylor", True, True),
}
# selection, allocation, full reconstruction
METHODS = {
    "first k, uniform": ("first k", "uniform", False),
    "max response, uniform": ("max response", "uniform", False),
    "weight sum, uniform": ("weight sum", "uniform", False),
    "ThiNet, uniform": ("thinet", "uniform", False),
    "LASSO, uniform": ("lasso", "uniform", False),
    "exact, uniform": ("exact", "uniform", False),
    "first k, error-driven": ("first k", "error-driven", False),
    "max response, error-driven": ("max response", "error-driven", False),
    "weight sum, error-driven": ("weight sum", "error-driven", False),
    "ThiNet, error-driven": ("thinet", "error-driven", False),
    "LASSO, error-driven": ("lasso", "error-driven", False),
    "exact, error-driven": ("exact", "error-driven", False),
    "LASSO, error-driven, full reconstruction": ("lasso", "error-driven", True),
    "exact, error-driven, full reconstruction": ("exact", "error-driven", True),
}
# first minus second
WORTH = {
    "LASSO instead of first k, at uniform widths": ("LASSO, uniform", "first k, uniform"),
    "LASSO instead of max response, at uniform widths": ("LASSO, uniform", "max response, uniform"),
    "LASSO instead of weight sum, at uniform widths": ("LASSO, uniform", "weight sum, uniform"),
    "LASSO instead of ThiNet, at uniform widths": ("LASSO, uniform", "ThiNet, uniform"),
    "exact selection instead of LASSO, at uniform widths": ("exact, uniform", "LASSO, uniform"),
    "exact selection instead of LASSO, at error-driven widths": ("exact, error-driven", "LASSO, error-driven"),
    "exact selection instead of LASSO, with full reconstruction": (
        "exact, error-driven, full reconstruction",
        "LASSO, error-driven, full reconstruction",
    ),
    "error-driven widths, with LASSO": ("LASSO, error-driven", "LASSO, uniform"),
    "error-driven widths, with exact selection": ("exact, error-driven", "exact, uniform"),
    "full reconstruction, with LASSO": ("LASSO, error-driven, full reconstruction", "LASSO, error-driven"),
    "full reconstruction, with exact selection": ("exact, error-driven, full reconstruction", "exact, error-driven"),
    "all three: exact, error-driven, full against LASSO, uniform": (
        "exact, error-driven, full reconstruction",
        "LASSO, uniform",
    ),
}


def chain_of(row: Row) -> Chain:
    where = Setting("cifar10", DataValue("plain", "training"), 10, 50_000, 10_000, "cpu", (0, 1, 2), "sha")
    assert row.dense is not None and row.chain is not None
    assert (row.scale, row.seeds, row.ours, row.published) == ("cifar10", (0, 1, 2), True, {})
    return row.chain(where, row.dense("cifar10", 10, True))


def made_by(step: Step, speedup: int) -> tuple[str, str, bool]:
    """Selection, allocation and whether the reconstruction is full; the rest must be as it is declared."""
    assert (step.run, step.params.images) == (pruning.run_pruned, 5170)
    method, widths = step.params.method, step.params.widths
    full = method.refit
    assert method == Method(method.selection, compensate=True, refit=full, rectify=2 if full else 0)
    if widths == pruning.ErrorDriven(speedup):
        dense, curves = step.parents
        assert (curves.run, curves.parents) == (pruning.run_curves, (dense,))
        assert curves.params == pruning.CurveMeasuring(step.params.sampling, 5170)
        return method.selection, "error-driven", full
    assert widths == (pruning.Fixed(HALF) if speedup == 2 else pruning.Ratios(dict.fromkeys(HALF, 1.0), speedup))
    assert len(step.parents) == 1
    return method.selection, "uniform", full


def test_a_table_for_each_speed_up_and_one_of_comparisons() -> None:
    tables: dict[str, list[str]] = {}
    for table, name in ROWS:
        tables.setdefault(table, []).append(name)
    assert len(ROWS) == len(study.paper().rows)
    each = ["dense", *METHODS, *PEERS]
    comparisons = [f"{speedup}x: {name}" for speedup in (2, 3, 4) for name in WORTH]
    assert tables == {
        "ResNet-56 at 2x": each,
        "ResNet-56 at 3x": each,
        "ResNet-56 at 4x": each,
        "What each part is worth (ResNet-56)": comparisons,
        "Readings of Table 8 (ResNet-56 at 2x)": list(READINGS),
    }


def test_embedded_data_see_2x_and_no_torch_pruning() -> None:
    for (table, name), row in ROWS.items():
        at_2x = table == "ResNet-56 at 2x" or name.startswith("2x")
        assert row.scales == (None if at_2x and name not in PEERS else ("cifar10",)), (table, name)


@pytest.mark.parametrize("speedup", [2, 3, 4])
def test_every_criterion_with_every_allocation(speedup: int) -> None:
    for name, method in METHODS.items():
        row = ROWS[f"ResNet-56 at {speedup}x", name]
        chain = chain_of(row)
        assert [made_by(step, speedup) for step in chain.networks] == [method] * 3, name
        assert [step.params.sampling for step in chain.networks] == [Sampling(positions=10, seed=s) for s in (0, 1, 2)]
        assert [run.parents[0] for run in chain.evaluations] == chain.networks
        assert row.release == (name == "exact, error-driven, full reconstruction")
    dense = chain_of(ROWS[f"ResNet-56 at {speedup}x", "dense"])
    assert [step.params for step in dense.networks] == [training.Loading(study.resnet56("", 10, True), "sha")]


@pytest.mark.parametrize("speedup", [2, 3, 4])
def test_torch_pruning_gets_the_dense_network_and_the_images_of_the_other_methods(speedup: int) -> None:
    dense = chain_of(ROWS[f"ResNet-56 at {speedup}x", "dense"]).networks[0]
    for name, (importance, everywhere, renewed) in PEERS.items():
        row = ROWS[f"ResNet-56 at {speedup}x", name]
        chain = chain_of(row)
        if (importance, renewed) == ("magnitude", False):  # no image is looked at
            expected = [peers.Peer(importance, everywhere, speedup, 0, 0, False)]
        else:
            expected = [peers.Peer(importance, everywhere, speedup, 5170, seed, renewed) for seed in (0, 1, 2)]
        assert [step.params for step in chain.networks] == expected, name
        for step, run in zip(chain.networks, dict.fromkeys(chain.evaluations), strict=True):
            assert (step.run, step.parents, run.parents) == (peers.run_peer, (dense,), (step,))
        assert [reference.parents for reference in chain.references] == [(dense,)] * 3
        assert not row.release


# names of blocks: layer1.0 ... layer3.8
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9)]
MIDDLE = 1.5**0.5
READINGS = {
    "all inner channels alike": {f"{block}.conv1": 1.0 for block in BLOCKS},
    "first block of each stage spared": {f"{block}.conv1": 1.0 for block in BLOCKS if not block.endswith(".0")},
    "first and last block spared": {f"{block}.conv1": 1.0 for block in BLOCKS[1:-1]},
    "the last stage keeps 1.5 times as much": {
        f"{block}.conv1": {"1": 1.0, "2": MIDDLE, "3": 1.5}[block[5]] for block in BLOCKS
    },
    "the first stage keeps 1.5 times as much": {
        f"{block}.conv1": {"1": 1.0, "2": 1 / MIDDLE, "3": 1 / 1.5}[block[5]] for block in BLOCKS
    },
    "samplers in front of the blocks too": {f"{block}.conv1{tail}": 1.0 for block in BLOCKS for tail in ("", ":in")},
}


def test_readings_of_the_paper_s_table() -> None:
    table = "Readings of Table 8 (ResNet-56 at 2x)"
    assert [name for where, name in ROWS if where == table] == list(READINGS)
    for name, ratios in READINGS.items():
        for step, seed in zip(chain_of(ROWS[table, name]).networks, (0, 1, 2), strict=True):
            assert step.params.widths.speedup == 2.0
            assert step.params.widths.ratios == pytest.approx(ratios), name
            assert step.params.method == Method("lasso") and step.params.sampling == Sampling(positions=10, seed=seed)
            readers = {f"{block}.conv1" for block in BLOCKS} if "samplers" in name else set()
            assert set(step.params.samplers) == readers


def test_what_each_part_is_worth_is_the_choice_with_it_minus_the_one_without() -> None:
    for speedup in (2, 3, 4):
        for name, (first, second) in WORTH.items():
            chain = chain_of(ROWS["What each part is worth (ResNet-56)", f"{speedup}x: {name}"])
            (step,) = chain.records
            assert step.run is measuring.run_contrasted
            networks = [parent.parents[0] for parent in step.parents]
            made = [made_by(one, speedup) for one in networks[:6]]
            assert made == [METHODS[first]] * 3 + [METHODS[second]] * 3, name
            assert [one.params.sampling.seed for one in networks[:6]] == [0, 1, 2, 0, 1, 2]
            # given weights are one dense network
            assert [one.parents[0] for one in networks[:6]] == networks[6:] * 2
            assert networks[6:] == [networks[6]] * 3
