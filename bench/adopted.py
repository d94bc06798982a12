"""Networks that were made elsewhere: trainings and prunings in another store, on whatever machine, taken over here.

A step's key holds the environment that its kind depends on, so that a network which a GPU trained is not found on a
processor.  Here it is found by what made it: function, parameters, code, data, and what it was made from.  Its
provenance stays what it was; what is measured of it is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.planning import Job, Planned, steps_of
from bench.runner import data_of
from bench.steps import Kind, Step, canonical
from bench.store import Result, Store, digest

KINDS = (Kind.LOAD, Kind.TRAIN, Kind.PRUNE)
# what a header says of the files beside it, which saving writes anew
_OF_FILES = ("complete", "files", "recipe", "records", "facts", "shed", "seal")


def adopt(
    planned: Sequence[Planned], job: Job, store: Store, source: Store, say: Callable[[str], None] = lambda text: None
) -> int:
    """Takes over the networks of ``source`` that the planned rows need and ``store`` lacks; returns how many.

    Of a step whose weights have gone only the description comes along: what was made from it can be used.
    """
    there = _origins(source)
    origins: dict[str, str] = {}
    count = 0
    for step, entry in steps_of(planned):  # parents first
        origin = origins[step.key] = _origin(
            step.run_name,
            canonical(step.params),
            step.code.hash,
            data_of(entry, job, step.source),
            [origins[parent.key] for parent in step.parents],
        )
        if step.kind in KINDS and origin in there and store.header(step.key) is None:
            if _damaged(source, there[origin]):
                say(f"damaged there: {step.name}; it is made here, and what was made from it too")
                origins[step.key] = step.key  # of no step there
                continue
            result = _taken(store, step, source, there[origin])
            if result is not None:
                say(f"taken over: {step.name}")
                count += 1
    return count


def _damaged(source: Store, key: str) -> bool:
    """Whether the files of a step are not those that were written: another network would be made in its place."""
    header = source.header(key)
    return header is None or (not header.get("shed") and source.load(key) is None)


def _taken(store: Store, step: Step, source: Store, key: str) -> Result | None:
    """The result that was taken over; None where no more than its description is left."""
    header, result = source.header(key), source.load(key)
    assert header is not None
    about: dict[str, Any] = {name: value for name, value in header.items() if name not in _OF_FILES}
    about |= {"parents": [parent.key for parent in step.parents], "adopted": key}
    if result is None:
        about["shed"] = True
    store.save(step.key, result or Result(header["recipe"], facts=header["facts"]), about)
    return result


def _origins(source: Store) -> dict[str, str]:
    """The keys in a store by what made them; of several environments' the newest."""
    headers = {key: header for key in source.stored() if (header := source.header(key)) is not None and "run" in header}
    found: dict[str, str | None] = {}

    def visit(key: str) -> str | None:
        if key not in found:
            found[key] = None  # a description that has gone: what was made from it is not known either
            header = headers.get(key)
            parents = [visit(parent) for parent in header["parents"]] if header is not None else []
            known = [parent for parent in parents if parent is not None]
            if header is not None and known == parents:
                data = header["provenance"]["data"]
                found[key] = _origin(header["run"], header["params"], header["code"], data, known)
        return found[key]

    newest = sorted(headers, key=lambda key: str(headers[key]["provenance"]["date"]))
    return {origin: key for key in newest if (origin := visit(key)) is not None}


def _origin(run: str, params: Any, code: str, data: Mapping[str, Any] | None, parents: Sequence[str]) -> str:
    known = None if data is None else {name: data[name] for name in ("name", "fingerprint", "protocol")}
    return digest({"run": run, "params": params, "code": code, "data": known, "parents": list(parents)})
