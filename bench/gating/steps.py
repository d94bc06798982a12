"""The steps of gated and slimmed networks: gating and training, slimming, and sizes that densities alone tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from bench.gating.convert import convert
from bench.gating.edit import Gate, at_density
from bench.gating.layer import PAPER, GateOptions, saliency_l1, set_density
from bench.measure import dynamic, macs
from bench.metrics import Metric
from bench.models.checkpoint import checkpoint, network
from bench.models.recipe import Recipe
from bench.pruning.slimming import gamma_l1, slim
from bench.steps import Context, DataValue, Kind, Step, make_step
from bench.store import Record, Result
from bench.train.fit import History, fit, seed_everything
from bench.train.schedule import Schedule

METRICS = (
    Metric(
        "expected_macs",
        "MACs from the densities",
        "",
        None,
        "MACs that the densities alone tell, independent masks, without gates.",
        "lower",
        count=True,
        exact=True,
    ),
    Metric("expected_macs_gates", "with gates", "", None, "The same with the gates.", "lower", count=True, exact=True),
    Metric(
        "expected_speedup",
        "MAC speed-up from the densities",
        "x",
        3,
        "MACs of the dense network divided by those that the densities tell, gates included.",
        "higher",
        exact=True,
    ),
)


@dataclass(frozen=True)
class Gating:
    """Training at ``density`` (thousandths) with ``penalty`` times the L1 norm of the saliencies.

    ``options`` and ``ungated`` (convolutions left as they are) count where the parent has no gates yet.
    """

    density: int
    schedule: Schedule
    seed: int
    penalty: float
    options: GateOptions = PAPER
    ungated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sparse:
    """Training with ``penalty`` times the L1 norm of the gammas."""

    schedule: Schedule
    seed: int
    penalty: float


@dataclass(frozen=True)
class Slimming:
    """Removal down to a ``speedup`` in conv MACs, or to the widths ``keep`` by producer."""

    speedup: float | None = None
    keep: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Sizes:
    """The recipe whose MACs are counted."""

    recipe: Recipe


def _weighted(term: Any, weight: float, net: nn.Module) -> Tensor:
    value: Tensor = weight * term(net)
    return value


def _fit(context: Context, model: nn.Module, params: Gating | Sparse, penalty: Any) -> History:
    return fit(
        model,
        context.data().train,
        params.schedule,
        params.seed,
        context.work,
        context.device,
        context.label,
        context.workers,
        context.progress,
        penalty,
    )


def run_gated(context: Context, parents: list[Result], params: Gating) -> Result:
    """Parent: a dense network, which gets gates, or a gated one at another density; trained at ``density``."""
    model, recipe = network(parents[0])
    facts: dict[str, Any] = {}
    if recipe.last(Gate.kind) is not None:
        set_density(model, params.density)
        recipe = at_density(recipe, params.density)
    else:
        seed_everything(params.seed)
        options, ungated = params.options, params.ungated
        facts = asdict(convert(model, params.density, options, ungated))
        recipe = recipe.edited(Gate(params.density, options, ungated))
    data = context.data()
    history = _fit(context, model, params, partial(_weighted, saliency_l1, params.penalty))
    return checkpoint(model, recipe, facts={"images": len(data.train), "history": history, **facts})


def run_sparse(context: Context, parents: list[Result], params: Sparse) -> Result:
    """Network slimming, first half: the parent trained on with the L1 term on its gammas."""
    model, recipe = network(parents[0])
    data = context.data()
    history = _fit(context, model, params, partial(_weighted, gamma_l1, params.penalty))
    return checkpoint(model, recipe, facts={"images": len(data.train), "history": history})


def run_slimmed(context: Context, parents: list[Result], params: Slimming) -> Result:
    """Network slimming, second half: the channels with the smallest gammas removed, to a speed-up or fixed widths."""
    model, recipe = network(parents[0])
    counted = macs.count(recipe.build("meta" if ":" not in recipe.builder else "cpu"), recipe.input_shape)
    smaller, widths = slim(model, recipe.input_shape, counted.conv, params.speedup, params.keep)
    return checkpoint(smaller, recipe.removed(widths), facts={"widths": widths})


def run_expected(context: Context, parents: list[Result], params: Sizes) -> Result:
    """MACs that the densities alone tell, on ``meta``: no data, no weights."""
    recipe = params.recipe
    counted = dynamic.expected(recipe.build("meta"), recipe.input_shape)
    whole = dynamic.expected(recipe.base.build("meta"), recipe.input_shape)
    mean = float(counted.totals[0])
    return Result(
        records=[
            Record("expected_macs", float(counted.macs.sum()), "MACs", convention="conv+fc"),
            Record("expected_macs_gates", mean, "MACs", convention=dynamic.CONVENTION),
            Record("expected_speedup", whole.dense / mean, "x", convention=dynamic.CONVENTION),
        ],
        facts={"layers": counted.table()},
    )


def gated(
    parent: Step,
    density: int,
    schedule: Schedule,
    seed: int,
    data: DataValue,
    work: float,
    penalty: float,
    options: GateOptions,
    ungated: tuple[str, ...] = (),
) -> Step:
    """The step that trains ``parent``'s network at a density (thousandths), with gates put in where it has none."""
    # named after the network that the gates were put into, not after all densities on the way
    origin = parent.origin if parent.run is run_gated else parent.name
    name = f"gated(d={density / 1000:g}, {origin})"
    params = Gating(density, schedule, seed, penalty, options, ungated)
    return make_step(
        Kind.TRAIN, name, run_gated, params, [parent], data=data, device=parent.device, work=work, origin=origin
    )


def slimmed(parent: Step, sparse: Sparse, target: Slimming, data: DataValue, work: float) -> Step:
    """The two steps of network slimming: ``parent``'s network trained with the L1 term, then the removal."""
    learned = make_step(
        Kind.TRAIN, f"sparse({parent.name})", run_sparse, sparse, [parent], data=data, device=parent.device, work=work
    )
    words = "fixed widths" if target.speedup is None else f"{target.speedup:.3g}x"
    name = f"slimmed({words}, {parent.name})"
    return make_step(Kind.PRUNE, name, run_slimmed, target, [learned], device=parent.device)


def sized(what: str, shape: Recipe, device: str) -> Step:
    """The step that counts the MACs that densities alone tell."""
    return make_step(Kind.SIZE, f"sizes({what})", run_expected, Sizes(shape), device=device)
