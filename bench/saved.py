"""A pruned network in a folder, and back: ``recipe.json`` builds it, ``weights.safetensors`` fills it.

Weights that are all numbers of half precision take two bytes each; they come back in single.

A network that came from a factory (a name, or MODULE:FACTORY) is built by its recipe.  One that came as an object is
kept with its modules (``structure.pt``, without weights): reading it needs the classes of the network, and nothing else
that is in such a file is ever called.  Of factories, a file's word alone calls none but those that make networks: the
suite's, classes of modules, functions that say so, and functions of one's own.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import pickle
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.errors import UserError
from bench.models.builders import BUILDERS
from bench.models.recipe import Recipe, find_builder
from bench.store import disk_errors, file_digest, write_json

RECIPE, WEIGHTS, STRUCTURE = "recipe.json", "weights.safetensors", "structure.pt"


def is_saved(folder: Path) -> bool:
    """Whether ``folder`` holds a network that :func:`save` wrote."""
    return (folder / RECIPE).is_file()


def save(model: nn.Module, recipe: Recipe, folder: Path, facts: Mapping[str, Any] | None = None) -> str | None:
    """Writes ``model``, which ``recipe`` describes, so that :func:`load` gives it back, bit for bit; and checks that.

    ``facts`` (JSON values) are stored beside the recipe.  Returns None, or why the network cannot be built from what
    was written.  Raises :class:`UserError` where the place cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
        halves = _halves(state)
        save_file(halves or state, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors writes for its owner alone
    value: dict[str, Any] = {
        "recipe": recipe.to_json(),
        "weights": file_digest(folder / WEIGHTS),
        "facts": dict(facts or {}),
    }
    if halves is not None:
        value["half"] = True
    problem = None if recipe.builder else _save_structure(model, folder)
    write_json(folder / RECIPE, value)
    if problem is None:
        problem = _difference(model, folder, recipe.input_shape)
    if problem is None:
        return None
    return (
        f"{folder} holds the pruned weights and their recipe, but the network cannot be built from them alone "
        f"({problem}): load it with bench.api.load(folder, dense_network), or prune it by MODULE:FACTORY"
    )


def _halves(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """``state`` in half precision, where single precision says no more; None where it does."""
    kinds = {value.dtype for value in state.values() if value.is_floating_point()}
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    fits = kinds == {torch.float32} and all(
        torch.equal(halves[name].to(state[name].dtype), state[name]) for name in state
    )
    return halves if fits else None


def load(folder: Path | str, dense: nn.Module | None = None) -> nn.Module:
    """The network that :func:`save` wrote, on the CPU in evaluation mode.

    ``dense`` is the network as it was before pruning, needed only where the saved one cannot be built without it; it is
    not changed.  Raises :class:`UserError` where the folder holds no saved network, a damaged one, or one that
    ``dense`` or its factory does not fit.
    """
    folder = Path(folder)
    recipe, state = recipe_of(folder), _state(folder)
    if dense is None and recipe.builder:
        _check_factory(recipe.builder, folder)
        model = recipe.build()
    elif dense is None:
        return _materialised(_load_structure(folder), state).eval()
    else:
        model = copy.deepcopy(dense).cpu()
        recipe.apply(model)
    problem = _misfit(model, state)
    if problem:
        whose = recipe.builder if dense is None else type(dense).__name__
        raise UserError(f"the network in {folder} does not fit {whose} ({problem}): has the factory's code changed?")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)
    return model.eval()


def _check_factory(name: str, folder: Path) -> None:
    """Raises :class:`UserError` for a factory that may be anything: a file from elsewhere calls no other function."""
    if name in BUILDERS:
        return
    factory = find_builder(name)
    if isinstance(factory, type):
        fine = issubclass(factory, nn.Module)
    else:
        fine = inspect.isfunction(factory) and (_says_network(factory) or _own(factory))
    if not fine:
        raise UserError(
            f"{folder} names {name} as what makes its network, and nothing says that it makes any: if you trust it, "
            "give bench.api.load the dense network"
        )


def _says_network(function: Callable[..., Any]) -> bool:
    """Whether its annotation promises a module."""
    try:
        promised = get_type_hints(function).get("return")
    except Exception:  # annotations name what cannot be found
        return False
    return isinstance(promised, type) and issubclass(promised, nn.Module)


def _own(function: Callable[..., Any]) -> bool:
    """Whether it stands in a file of the user's: not Python's, no installed package's, not the suite's."""
    file = getattr(
        sys.modules.get(function.__module__), "__file__", None
    )  # a function of a frozen module knows no file
    places = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    others = {Path(place).resolve() for place in places} | {Path(__file__).resolve().parent}
    return file is not None and not any(Path(file).resolve().is_relative_to(other) for other in others)


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a saved network.  Raises :class:`UserError` where there is none."""
    return Recipe.from_json(_description(folder)["recipe"])


def facts_of(folder: Path) -> dict[str, Any]:
    """What was stored beside the recipe.  Raises :class:`UserError` where there is no saved network."""
    facts: dict[str, Any] = _description(folder).get("facts", {})
    return facts


def _description(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE
    try:
        value: dict[str, Any] = json.loads(path.read_text())
        Recipe.from_json(value["recipe"])
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no saved network ({RECIPE} is missing): give a folder of Pruned.save"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no readable recipe ({error}): save the network again") from error
    return value


def _state(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        description = _description(folder)
        if file_digest(path) != description["weights"]:
            raise UserError(f"{path} is not the file that {RECIPE} belongs to: save the network again")
        state: dict[str, Tensor] = load_file(path)
        if description.get("half"):
            state = {name: value.float() if value.dtype == torch.float16 else value for name, value in state.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): save the network again") from error
    return state


def _misfit(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    own = model.state_dict()
    odd = sorted(set(own) ^ set(state)) or sorted(n for n in own if own[n].shape != state[n].shape)
    return f"{odd[0]} is not the same in both" if odd else None


@torch.no_grad()
def _difference(model: nn.Module, folder: Path, shape: tuple[int, int, int]) -> str | None:
    """Why the saved network is not ``model``, or None: both see the same noise."""
    try:
        loaded = load(folder)
    except UserError as error:
        return str(error)
    parameter = next(model.parameters())
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(parameter.dtype)
    training = [module for module in model.modules() if module.training]
    ours, theirs = (
        model.eval()(noise.to(parameter.device)).cpu(),
        loaded.to(parameter.device)(noise.to(parameter.device)).cpu(),
    )
    for module in training:
        module.training = True
    same = ours.shape == theirs.shape and bool(torch.isclose(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True).all())
    return None if same else "what is built gives other outputs"


# --- networks that came as objects -----------------------------------------------------------------------------------


def _save_structure(model: nn.Module, folder: Path) -> str | None:
    """Writes the modules without their weights; returns why they cannot be read again, or None."""
    stored = set(model.state_dict())
    tensors = [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in stored)]
    empty = {id(tensor): _empty(tensor) for tensor in tensors}
    try:
        bare = copy.deepcopy(model, empty)  # type: ignore[arg-type]
        with disk_errors(folder):
            torch.save(bare, folder / STRUCTURE)
        _load_structure(folder)
    except UserError as error:
        return str(error)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        return str(error).splitlines()[0][:160]
    return None


def _empty(tensor: Tensor) -> Tensor:
    bare = torch.empty_like(tensor, device="meta")
    return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def _load_structure(folder: Path) -> nn.Module:
    path = folder / STRUCTURE
    if not path.is_file():
        raise UserError(f"{folder} has no {STRUCTURE}: give the dense network as well, bench.api.load(folder, dense)")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals(_allowed(names)):
            model = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, ImportError, AttributeError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise UserError(
            f"the modules in {path} cannot be read ({str(error).splitlines()[0][:160]}): make their code importable, "
            "or give the dense network as well, bench.api.load(folder, dense)"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{path} holds no network: save it again")
    return model


def _allowed(names: list[str]) -> list[Any]:
    """The objects behind ``names`` that a network is made of: classes of modules, and functions from beside them."""
    found = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        found.append(getattr(importlib.import_module(module), attribute))
    classes = [value for value in found if inspect.isclass(value) and issubclass(value, nn.Module)]
    places = {value.__module__ for value in classes} | {"torch.nn.functional"}
    functions = [value for value in found if inspect.isfunction(value) and value.__module__ in places]
    return [*classes, *functions]


def _materialised(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """``model`` with the tensors of ``state`` in place of its empty ones; what was shared stays shared."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # by the empty tensor, which is held so that its id stays its own
    for prefix, module in model.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for name, old in list(table.items()):
                key = f"{prefix}.{name}" if prefix else name
                if old is None or key not in state:
                    continue
                if id(old) not in made:
                    new = state[key]
                    made[id(old)] = old, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                table[name] = made[id(old)][1]  # type: ignore[assignment]
    return model
