"""``--round``: the prunings of a row's chain, and nothing else of it, are rounded; tables and commands say so."""

from __future__ import annotations

from typing import Any

import pytest

from bench.errors import UserError
from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.planning import Job, rounded_chain
from bench.pruning import rounding_steps
from bench.pruning import steps as pruning
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.pruning.rounding_steps import Rounded, rounded_steps, run_rounded
from bench.report.load import Declared, _told, command
from bench.rows import Chain
from bench.steps import Context, DataValue, Kind, Step, make_step
from bench.store import Result

RECIPE = Recipe("vgg16", {"num_classes": 10, "form": "cifar", "width": 0.25}, (3, 32, 32))
DATA = DataValue("plain", "training")


def run_nothing(context: Context, parents: list[Result], params: Sampling) -> Result:
    return Result()


def step(kind: Kind, name: str, *parents: Step) -> Step:
    return make_step(kind, name, run_nothing, Sampling(), parents, device="cpu")


def chain() -> Chain:
    """Dense, pruned, tuned; both measured, and compared."""
    dense = step(Kind.TRAIN, "dense")
    params = pruning.Pruning(Method("lasso"), pruning.Fixed({"features.0": 5}), Sampling(), 10)
    tuned = step(Kind.TRAIN, "tuned", pruning.pruned(dense, None, params, DATA, 1.0))
    runs, references = [step(Kind.EVALUATE, "measured", tuned)], [step(Kind.EVALUATE, "measured dense", dense)]
    return Chain([tuned], [*runs, step(Kind.COMPARE, "compared", *runs, *references)], runs, references)


def test_only_what_comes_of_a_pruning_changes() -> None:
    before, after = chain(), None
    after = rounded_chain(before, 8)
    assert after.references == before.references and after.references[0] is before.references[0]
    (tuned,) = after.networks
    (small,) = tuned.parents
    assert small.params == Rounded(before.networks[0].parents[0].params, 8) and small.run is run_rounded
    assert small.name == f"{before.networks[0].parents[0].name}, rounded to 8"
    assert small.parents == before.networks[0].parents[0].parents
    assert after.evaluations[0].parents[0] is tuned and after.records[1].parents[0] is after.evaluations[0]
    assert after.records[1].key != before.records[1].key
    assert rounded_steps(before.references, 8)[0] is before.references[0]


@pytest.mark.parametrize("multiple", [8, 16])
def test_the_widths_that_a_row_asks_for_are_rounded(multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A speed-up of 2: every width is the multiple nearest to that of the row; layers as narrow stay as they are."""
    names = pruning.prunable(RECIPE)[0]
    ratios = dict.fromkeys(names, 1.0)
    wanted = pruning.ratio_widths(RECIPE, ratios, 2.0)
    asked: list[Any] = []

    def run_pruned(context: Context, parents: list[Result], params: pruning.Pruning) -> Result:
        asked.append(params)
        return Result()

    monkeypatch.setattr(rounding_steps.pruning, "run_pruned", run_pruned)
    params = pruning.Pruning(Method("lasso"), pruning.Ratios(ratios, 2.0), Sampling(), 10)
    run_rounded(Context(lambda: None, "cpu", False), [checkpoint(RECIPE.build(), RECIPE)], Rounded(params, multiple))
    (found,) = asked
    filters = {name: RECIPE.build("meta").get_submodule(name).out_channels for name in names}
    assert set(found.widths.keep) == set(wanted) and found.method == params.method
    for name, width in found.widths.keep.items():
        if filters[name] <= multiple:
            assert width == wanted[name]
        else:
            assert width % multiple == 0 and abs(width - wanted[name]) <= multiple / 2
    assert found.widths.keep != wanted


def test_a_multiple_that_no_hardware_asks_for() -> None:
    with pytest.raises(UserError, match="--round takes 8, 16 or 32"):
        Job(device="cpu", multiple=7)


def test_the_command_of_a_rounded_row() -> None:
    declared = Declared("Table 1", "row", 0, "digits", False, None, {}, (0,), False, {})
    setting = {"scale": "digits", "seeds": [0], "round": 16}
    assert command("paper/table-1/row", setting, declared) == "bench run paper --row paper/table-1/row --round 16"
    assert _told(setting, "round") == "16" and _told({"scale": "digits"}, "round") == ""
