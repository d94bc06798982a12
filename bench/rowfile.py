"""Row files: what a row measured in one setting, and nothing that its script says (title, order, links, commands)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import macs
from bench.models.recipe import Recipe
from bench.store import Record, Store, digest, row_path, write_json

if TYPE_CHECKING:
    from bench.planning import Planned

RAN = "ran"
# the kinds of step that make networks
_MAKING = ("train", "prune")
# what it repeats of the report on a layer
_OF_A_LAYER = ("reader", "producer", "channels", "kept", "error", "held_out_error")
# what figures draw that are no records: facts of steps that make them, each of one network
DRAWN = ("activity", "precision_recall", "pictures")
# facts of steps that take times, one a clock
TIMED = ("timing", "timing_events", "timing_graph")
# the clock, how the turns ended, the machine's state, the rounds of each process
_OF_TIMING = ("clock", "stopped", "machine", "rounds")
# what a row file repeats of a step's header; the roots, because one function's code differs with its parameters' types
_OF_A_STEP = ("step", "kind", "run", "roots", "code", "seconds", "provenance")


def write(store: Store, entry: Planned, setting: Mapping[str, Any]) -> Path:
    """Writes the file of a row whose steps are all stored.

    Raises ValueError where a metric has two values of one seed, which no table could show.
    """
    assert entry.chain is not None
    steps, records, history = {}, _size_records(entry, store), {}
    for step in dict.fromkeys([*entry.chain.networks, *entry.chain.records]):
        header = _header(store, step.key)
        steps[step.key] = {name: header[name] for name in _OF_A_STEP}
        records += [{**record, "step": step.key} for record in header["records"]]
    for key in _trained(store, list(steps)):
        header = _header(store, key)
        history[key] = {
            "step": header["step"],
            "seed": header["params"].get("seed"),
            "epochs": header["facts"]["history"],
        }
    shape = entry.row.own_shape()
    value = {
        "id": entry.id,
        "setting": dict(setting),
        "status": RAN,
        "recipe": label(entry.dense),
        "shape": None if shape is None else own_sizes(shape),
        "records": records,
        "steps": steps,
        "history": history,
        "widths": {
            step.key: Recipe.from_json(_header(store, step.key)["recipe"]).widths for step in entry.chain.networks
        },
        "layers": layers(store, [step.key for step in entry.chain.networks]),
        "drawn": drawn(store, list(steps)),
        **timed(store, list(steps)),
        "made_on": made_on(store, list(steps)),
        "made_with": made_with(store, list(steps)),
        "code": digest(sorted({step["code"] for step in steps.values()})),
    }
    _check_seeds(records)
    target = row_path(store.root, entry.id, setting)
    write_json(target, value)
    row_path(store.root, entry.id, {"scale": setting["scale"]}).unlink(missing_ok=True)  # it could not run before
    return target


def _check_seeds(records: Sequence[Mapping[str, Any]]) -> None:
    """Each metric has one value a seed; on a curve one at each place."""
    seen: set[tuple[Any, ...]] = set()
    for record in records:
        curve = () if record.get("x") is None else (record.get("series"), record["x"])
        place = (record["metric"], record.get("seed"), *curve)
        if record.get("seed") is not None and place in seen:
            raise ValueError(f"{record['metric']} has two values of one seed")
        seen.add(place)


def write_reason(store: Store, entry: Planned, scale: str) -> Path | None:
    """Notes why a row could not run; where it was measured before at this scale, that stays as it is."""
    target = row_path(store.root, entry.id, {"scale": scale})
    if any(target.parent.glob(f"{target.stem}--*.json")):
        return None
    shape = entry.row.own_shape()
    write_json(
        target,
        {
            "id": entry.id,
            "setting": {"scale": scale},
            "status": f"not run ({entry.reason})",
            "shape": None if shape is None else own_sizes(shape),
            "records": [],
            "steps": {},
        },
    )
    return target


def layers(store: Store, keys: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What was found at each layer of these networks where their last pruning reconstructed it, by network.

    A choice by gradients reconstructs nothing, and reports other things.

    The convolution that reads, that whose filters went, how many channels there were and are, and the share of the
    responses' variance that is missed on the fitted rows and on held-out ones.
    """
    found = {}
    for key in keys:
        header = store.header(key)
        while header is not None and "layers" not in header["facts"] and header["parents"]:
            header = store.header(header["parents"][0])  # a network that was tuned since
        reports = [] if header is None else header["facts"].get("layers", [])
        if reports and all(set(_OF_A_LAYER) <= set(report) for report in reports):
            found[key] = [
                {name: len(report[name]) if name == "kept" else report[name] for name in _OF_A_LAYER}
                for report in reports
            ]
    return found


def drawn(store: Store, keys: Sequence[str]) -> dict[str, Any]:
    """What these steps found for figures, by the names of :data:`DRAWN`; of several the first step's."""
    found: dict[str, Any] = {}
    for key in keys:
        facts = _header(store, key)["facts"]
        for name in DRAWN:
            if name in facts:
                found.setdefault(name, facts[name])
    return found


def timed(store: Store, keys: Sequence[str]) -> dict[str, Any]:
    """``timed``: of steps that took times, by step and fact, what :data:`_OF_TIMING` names, as far as it is there."""
    found: dict[str, dict[str, Any]] = {}
    for key in keys:
        facts = _header(store, key)["facts"]
        for name in (name for name in facts if name in TIMED):
            found.setdefault(key, {})[name] = {part: facts[name][part] for part in _OF_TIMING if part in facts[name]}
    return {"timed": found} if found else {}


def made_on(store: Store, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Names, threads and instructions of the hardware that trained and pruned the networks behind these steps."""
    found = []
    for header in _making(store, keys):
        hardware = header["provenance"]["hardware"]
        # older records, and those of GPUs, have no instructions
        one = {name: hardware[name] for name in ("name", "threads", "capability") if name in hardware}
        if one not in found:
            found.append(one)
    return sorted(found, key=lambda one: (one["name"], one["threads"], one.get("capability", "")))


def made_with(store: Store, keys: Sequence[str]) -> dict[str, Any]:
    """How the networks behind these steps were made, and the versions of the packages that made them.

    ``how`` is a digest of functions, parameters and code: other packages, another device or other data change none.
    """
    making = _making(store, keys)
    ways = [[header["run"], header["params"], header["code"]] for header in making]
    versions = {
        f"{package} {version}"
        for header in making
        for package, version in header["provenance"]["versions"].items()
        if package != "python"
    }
    return {"how": digest(sorted(ways, key=digest)), "versions": sorted(versions)}


def _making(store: Store, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The headers of the trainings and prunings behind these steps."""
    return [header for header in store.behind(keys).values() if header["kind"] in _MAKING]


def _header(store: Store, key: str) -> dict[str, Any]:
    header = store.header(key)
    assert header is not None
    return header


def _trained(store: Store, keys: list[str]) -> list[str]:
    """The trainings behind some steps, parents first."""
    found: dict[str, None] = {}
    seen: set[str] = set()

    def visit(key: str) -> None:
        header = store.header(key)
        if key in seen or header is None:
            return
        seen.add(key)
        for parent in header["parents"]:
            visit(parent)
        if "history" in header["facts"]:
            found[key] = None

    for key in keys:
        visit(key)
    return list(found)


def label(recipe: Recipe | None) -> str:
    """The network in words."""
    if recipe is None:
        return ""
    arguments = ", ".join(f"{name}={value}" for name, value in recipe.arguments.items())
    return f"{recipe.builder}({arguments}) at {recipe.input_shape[1]}x{recipe.input_shape[2]}"


def own_sizes(shape: Recipe) -> dict[str, Any]:
    """Exact sizes at the paper's own shape, pruned and dense, from the ``meta`` device."""
    pruned = macs.count(shape.build("meta"), shape.input_shape)
    dense = macs.count(shape.base.build("meta"), shape.input_shape)
    return {
        "recipe": label(shape),
        "macs": {convention: pruned.total(convention) for convention in macs.CONVENTIONS},
        "dense_macs": {convention: dense.total(convention) for convention in macs.CONVENTIONS},
        "params": pruned.params,
        "dense_params": dense.params,
        "speedup": dense.total("conv") / pruned.total("conv"),
    }


def _size_records(entry: Planned, store: Store) -> list[dict[str, Any]]:
    """MACs, parameters and theoretical speed-up of the networks that were really made, one set per seed."""
    assert entry.chain is not None
    found = []
    for step in entry.chain.networks:
        recipe = Recipe.from_json(_header(store, step.key)["recipe"])
        device = "cpu" if ":" in recipe.builder else "meta"
        pruned = macs.count(recipe.build(device), recipe.input_shape)
        dense = macs.count(recipe.base.build(device), recipe.input_shape)
        for record in (
            Record("macs", pruned.total("conv"), "MACs", convention="conv"),
            Record("params", pruned.params, ""),
            Record("speedup", dense.total("conv") / pruned.total("conv"), "x", convention="conv"),
        ):
            found.append({**record.to_json(), "step": step.key})
    return found
