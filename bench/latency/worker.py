"""A fresh process of ``bench latency``: ``python -m bench.latency.worker TASKS.json``.

A task is one of ``compile`` (does a form compile here?), ``first`` (which form is best, layers, the roofline) and
``measure`` (turns).  Results are written as each is finished, so that a process which dies costs one task.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench import provenance
from bench.errors import UserError
from bench.latency import contestants, decomposition, machine, roofline
from bench.latency.contestants import AS_IT_IS, FORWARD, Form, Subject
from bench.latency.point import DENSE, OUT_OF_MEMORY, TWICE, Point, contestant
from bench.measure import latency, macs
from bench.measure.latency import Network, Protocol
from bench.store import digest, write_json

# a network that was checked and tried is warm; a processor that idled meanwhile is not
_WARM_UP_SECONDS = {"cpu": 0.2, "cuda": 0.02}
# a block is long enough to be read well, and short enough that turns are many
_BLOCK_SECONDS, _MOST_CALLS, _LEAST_ROUNDS = 0.05, 10, 8
_SCREENING_ROUNDS = 3
_LONG_CALL = 0.1
# images that are timed on: gates depend on them; no more than so many bytes
_INPUTS, _INPUT_BYTES = 8, 160_000_000


class Networks:
    """The networks of points in this process, each built once; with a ``folder``, once for all processes.

    Pruning a large network down takes longer than measuring it on a GPU.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._built: dict[str, nn.Module] = {}
        self._folder = folder

    def of(self, subject: Subject, seed: int) -> nn.Module:
        """On the CPU, in evaluation mode; nobody changes it."""
        key = digest([subject.to_json(), seed])
        if key not in self._built:
            self._built[key] = self._found(key) or self._stored(key, subject.build(seed))
        return self._built[key]

    def _found(self, key: str) -> nn.Module | None:
        if self._folder is None or not (self._folder / key).exists():
            return None
        try:
            # this run's own file, in a folder that only its user can read: nothing from outside is unpickled
            model: nn.Module = torch.load(self._folder / key, weights_only=False, mmap=True)
        except Exception:  # no file that can be mapped here: it is built
            return None
        return model

    def _stored(self, key: str, model: nn.Module) -> nn.Module:
        if self._folder is not None:
            unfinished = self._folder / f"{key}.{os.getpid()}"
            try:
                torch.save(model, unfinished)
                unfinished.replace(self._folder / key)
            except Exception:  # a full disk, a network that cannot be pickled: the next process builds it again
                unfinished.unlink(missing_ok=True)
        return model


def images(point: Point) -> list[Tensor]:
    """Batches of noise with an image's statistics, on the device."""
    shape = (point.batch, *point.dense.recipe.input_shape)
    generator = torch.Generator().manual_seed(point.seed)
    count = max(1, min(_INPUTS, int(_INPUT_BYTES // (4 * np.prod(shape)))))
    number = contestants.DTYPES[point.dtype]
    return [torch.randn(shape, generator=generator).to(point.device, number) for _ in range(count)]


def failure(error: BaseException) -> str:
    """Why a contestant cannot be timed, in one line."""
    text = str(error).strip().splitlines()
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def seconds_of(network: Network, x: Tensor, device: str) -> float:
    """Of one call, after two that warm up; of a call so long that a point's time is for turns, the first counts."""
    clock = latency.synchronised if device.startswith("cuda") else latency.wall
    with torch.inference_mode():
        for _ in range(3):
            seconds = clock(network, x)
            if seconds > _LONG_CALL:
                break
    return seconds


# --------------------------------------------------------------------------------------------------------------------
# Tasks


def compile_one(task: Mapping[str, Any], networks: Networks) -> dict[str, Any]:
    """Whether a compiled form runs here and computes the same.  Its code stays in the compiler's cache."""
    point = Point.from_json(task["point"])
    subject = Subject.from_json(task["subject"])
    model, x = networks.of(subject, point.seed), images(point)[0]
    kinds = contestants.forms(model, subject.gated, point.mode, (task["layout"],), True)
    form = next(form for form in kinds if form.compiled)
    contestants.set_precision(point.dtype)
    begin = time.monotonic()
    try:
        reference = _reference(model, point, x)
        call, checked = contestants.prepared(model, form, point.mode, point.dtype, point.device)
        wrong = _wrong(checked, reference, model, form, x, point)
        seconds_of(call, x, point.device)
    except Exception as error:  # the compiler raises whatever goes wrong in it: the contestant has failed
        return {"failed": failure(error)}
    return {"failed": wrong, "form": asdict(form), "seconds": round(time.monotonic() - begin, 1)}


def first(task: Mapping[str, Any], networks: Networks) -> dict[str, Any]:
    """Every form of every network tried: the best of each, what failed, the digests; layers and roofline."""
    point = Point.from_json(task["point"])
    compiles: Mapping[str, list[dict[str, Any]]] = task["compiled"]
    inputs = images(point)
    found: dict[str, Any] = {"networks": {}, "hardware": hardware(point)}
    for subject in (point.dense, *point.networks):
        try:
            model = networks.of(subject, point.seed)
            kinds = contestants.forms(model, subject.gated, point.mode, point.layouts, False)
            kinds += [Form(**form) for form in compiles.get(subject.name, [])]
            entry = found["networks"][subject.name] = _tried(subject, model, kinds, point, inputs)
            entry.setdefault("failed_forms", {}).update(task["failed"].get(subject.name, {}))
        except UserError:
            raise
        except Exception as error:
            if failure(error) != OUT_OF_MEMORY:
                raise
            found["networks"][subject.name] = {"failed": OUT_OF_MEMORY}
    try:  # what is beside the times must not cost them
        peak = roofline.measured(point.device, contestants.DTYPES[point.dtype])
        found["roofline"] = peak.to_json()
        if point.layers and point.mode == FORWARD:
            for name, layers in _layers(point, networks, found["networks"], inputs[0], peak).items():
                found["networks"][name]["layers"] = layers
    except Exception as error:
        found["layers_failed"] = failure(error)
    return found


def _reference(model: nn.Module, point: Point, x: Tensor) -> Tensor:
    _, checked = contestants.prepared(model, AS_IT_IS, point.mode, point.dtype, point.device)
    return contestants.outputs(checked, x)


def _wrong(checked: Network, reference: Tensor, model: nn.Module, form: Form, x: Tensor, point: Point) -> str | None:
    """Why a form is not the network, or None."""
    differs = contestants.difference(contestants.outputs(checked, x), reference)
    if differs <= contestants.TOLERANCE[point.dtype] or (form.skipped and contestants.skips_right(model, x)):
        return None
    return f"computes something else (relative difference {differs:.2g})"


def _tried(
    subject: Subject, model: nn.Module, kinds: Sequence[Form], point: Point, inputs: list[Tensor]
) -> dict[str, Any]:
    x = inputs[0]
    contestants.set_precision(point.dtype)
    ready: dict[str, Network] = {}
    failed: dict[str, str] = {}
    reference = _reference(model, point, x)
    for form in kinds:
        try:
            call, checked = contestants.prepared(model, form, point.mode, point.dtype, point.device)
            wrong = _wrong(checked, reference, model, form, x, point)
            if wrong is None:
                seconds_of(call, x, point.device)
                ready[form.name] = call
            else:
                failed[form.name] = wrong
        except Exception as error:  # a form that does not work is a contestant that has failed
            failed[form.name] = failure(error)
    if AS_IT_IS.name not in ready:
        return {"failed": failed[AS_IT_IS.name]}
    medians = _screened(ready, inputs, point)
    by_time = [next(form for form in kinds if form.name == name) for name in sorted(medians, key=medians.__getitem__)]
    return {
        "screened_ms": medians,
        "best": asdict(by_time[0]),
        # the best that has layers to look at
        "best_eager": asdict(next(form for form in by_time if not form.compiled)),
        "forms": [asdict(form) for form in kinds if form.name in ready],
        "failed_forms": failed,
        "digest": contestants.digest(model),
        "macs": contestants.mac_count(subject, model),
        "params": sum(parameter.numel() for parameter in model.parameters()),
    }


def _screened(ready: Mapping[str, Network], inputs: list[Tensor], point: Point) -> dict[str, float]:
    """Milliseconds of a few calls.  On a GPU of the work alone, by graphs where all can be captured: the time that it
    takes to start the work says little of the forms."""
    cuda = point.device.startswith("cuda")
    clock, chosen = (latency.events if cuda else latency.wall), ready
    if cuda and point.mode == FORWARD:
        graphs, _ = _graphs(ready, inputs[0])
        chosen = graphs if len(graphs) == len(ready) else ready
    rounds = Protocol(block=1, rounds=_SCREENING_ROUNDS, least=_SCREENING_ROUNDS, warm_up=1, seconds=1e9)
    with torch.inference_mode():
        timing = latency.turns(chosen, inputs, rounds, clock, "screening", point.device, False)
    return {name: 1e3 * timing.median(name) for name in ready}


def _layers(
    point: Point, networks: Networks, entries: Mapping[str, Mapping[str, Any]], x: Tensor, peak: roofline.Roofline
) -> dict[str, list[dict[str, Any]]]:
    """The layers of each network in its best form that is not compiled (the compiler leaves none to look at)."""
    looked_at = {}
    for subject in (point.dense, *point.networks):
        entry = entries[subject.name]
        if "failed" in entry or subject.gated:
            continue
        form, model = Form(**entry["best_eager"]), networks.of(subject, point.seed)
        body = contestants.body_of(model, form, point.dtype, point.device)
        laid = x.contiguous(memory_format=torch.channels_last) if form.layout == "nhwc" else x
        counted = macs.count(model, subject.recipe.input_shape)
        looked_at[subject.name] = (body, laid, {**counted.conv, **counted.fc})
    return decomposition.together(looked_at, peak)


def measure(task: Mapping[str, Any], networks: Networks) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The turns of a point's contestants for ``task["seconds"]``, by every clock of the device."""
    point = Point.from_json(task["point"])
    chosen_forms = {name: [Form(**form) for form in forms] for name, forms in task["forms"].items()}
    twice = Form(**task["twice"])
    inputs, cuda = images(point), point.device.startswith("cuda")
    contestants.set_precision(point.dtype)
    ready, checks, failed = _contestants(point, chosen_forms, twice, networks, inputs[0])
    if DENSE not in ready:
        return {"failed": failed.get(DENSE, "the dense network could not be timed")}, {}
    order = sorted(ready)
    random.Random(task["process"]).shuffle(order)  # whoever is a contestant's neighbour is one by chance
    ready = {name: ready[name] for name in order}
    kept = {name: contestants.outputs(check, inputs[0]) for name, check in checks.items()}
    clocks: list[tuple[str, Callable[[Network, Tensor], float], Mapping[str, Network]]] = [
        ("wall", latency.synchronised if cuda else latency.wall, ready)
    ]
    if cuda:
        clocks.append(("events", latency.events, ready))
    arrays: dict[str, Tensor] = {}
    read: dict[str, Any] = {}
    spent, share = 0.0, task["seconds"] / (3 if cuda and point.mode == FORWARD else len(clocks))
    while clocks:
        label, clock, chosen = clocks.pop(0)
        before, begin = machine.state(point.device), time.monotonic()
        protocol = planned(chosen, inputs, share, point.device)
        with torch.inference_mode():
            timing = latency.turns(chosen, inputs, protocol, clock, label, point.device, False, DENSE)
        after = machine.state(point.device)
        spent += time.monotonic() - begin
        read[label] = {
            "stopped": timing.stopped,
            "calls_a_block": protocol.block,
            "machine": {"before": before, "after": after},
            "labels": machine.labels(point.device, before, after),
            "unstable": machine.unstable(before, after),
        }
        arrays |= {f"{label}/{name}": samples for name, samples in timing.samples.items()}
        if label == "events" and point.mode == FORWARD:  # graphs hold memory of their own, so they come last
            graphs, reasons = _graphs(ready, inputs[0])
            failed |= reasons
            clocks += [("graph", latency.events, graphs)] if DENSE in graphs else []
    differences = {
        name: contestants.difference(contestants.outputs(check, inputs[0]), kept[name])
        for name, check in checks.items()
    }
    changed = {
        name: differs if math.isfinite(differs) else str(differs)
        for name, differs in differences.items()
        if not differs <= contestants.TOLERANCE[point.dtype]  # not a number: changed, too
    }
    value = {"clocks": read, "seconds": spent, "failed_contestants": failed, "changed": changed, "order": order}
    return {**value, "device": hardware(point)["name"]}, arrays


def _contestants(
    point: Point, forms: Mapping[str, Sequence[Form]], twice: Form, networks: Networks, x: Tensor
) -> tuple[dict[str, Network], dict[str, Network], dict[str, str]]:
    """Every network as it is and in its ``forms``; the dense one as it is and in the form ``twice`` once more."""
    wanted = []
    for label, subject in [(DENSE, point.dense), *((subject.name, subject) for subject in point.networks)]:
        for form in dict.fromkeys([AS_IT_IS, *forms.get(subject.name, [])]):
            wanted.append((contestant(label, form), subject, form))
    for form in dict.fromkeys([AS_IT_IS, twice]):
        wanted.append((f"{contestant(DENSE, form)}{TWICE}", point.dense, form))
    ready: dict[str, Network] = {}
    checks: dict[str, Network] = {}
    failed: dict[str, str] = {}
    references: dict[str, Tensor] = {}
    for label, subject, form in wanted:
        try:
            model = networks.of(subject, point.seed)
            call, checked = contestants.prepared(model, form, point.mode, point.dtype, point.device)
            if subject.name not in references:
                references[subject.name] = contestants.outputs(checked, x)
            wrong = _wrong(checked, references[subject.name], model, form, x, point)
            if wrong is not None:
                failed[label] = wrong
                continue
            ready[label], checks[label] = call, checked
        except UserError:
            raise
        except Exception as error:  # out of memory, a compiler that fails: the others are timed
            failed[label] = failure(error)
    return ready, checks, failed


def _graphs(ready: Mapping[str, Network], x: Tensor) -> tuple[dict[str, Network], dict[str, str]]:
    """The contestants as CUDA graphs, and why the others cannot be captured."""
    with torch.inference_mode():
        captured = {name: latency.captured(network, x) for name, network in ready.items()}
    torch.cuda.empty_cache()
    reasons = {f"{name}: no CUDA graph": why for name, why in captured.items() if isinstance(why, str)}
    return {name: graph for name, graph in captured.items() if not isinstance(graph, str)}, reasons


def planned(chosen: Mapping[str, Network], inputs: list[Tensor], seconds: float, device: str) -> Protocol:
    """Calls a block by how long a call takes, fewer where few rounds would fit; as many rounds as the time allows."""
    calls = [seconds_of(network, inputs[0], device) for network in chosen.values()]
    # who has just been called for longer than a warm-up takes is warm
    warm_up = min(20, int(_WARM_UP_SECONDS[device.partition(":")[0]] / max(calls)))
    left = max(0.0, seconds - (warm_up + 1) * sum(calls))
    twice = 2.0 * sum(calls)
    block = max(1, min(_MOST_CALLS, int(_BLOCK_SECONDS / max(calls)), int(left / (_LEAST_ROUNDS * twice))))
    rounds = max(1, min(400, int(left / (block * twice))))
    return Protocol(block, rounds, min(rounds, 10), warm_up, precision=0.005, seconds=seconds)


def hardware(point: Point) -> dict[str, Any]:
    """The device's name and what a time depends on besides."""
    return {
        **provenance.hardware(point.device),
        "versions": {name: provenance.versions()[name] for name in ("torch", "python")},
        "cudnn_benchmark": torch.backends.cudnn.benchmark if point.device.startswith("cuda") else None,
    }


TASKS = {"compile": compile_one, "first": first}


def run(task: Mapping[str, Any], networks: Networks) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One task; its JSON value and its samples."""
    return measure(task, networks) if task["kind"] == "measure" else (TASKS[task["kind"]](task, networks), {})


def main(path: Path) -> None:
    """Runs the tasks of a file in order; each writes its value, then its samples, into the files that it names."""
    tasks = json.loads(path.read_text())
    networks = Networks(*(Path(folder) for folder in {task["built"] for task in tasks if "built" in task}))
    for task in tasks:
        try:
            _keep(*run(task, networks), task["out"])
        except UserError as error:
            _keep({"error": str(error)}, {}, task["out"])
        except Exception as error:  # costs this point, not those after it
            traceback.print_exc()
            _keep({"failed": failure(error), "networks": {}}, {}, task["out"])
        # after an error that the GPU does not forget, every call raises, this one too
        with contextlib.suppress(RuntimeError):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _keep(value: Mapping[str, Any], arrays: Mapping[str, Tensor], out: str) -> None:
    """The samples first: who finds the value finds them too."""
    if arrays:
        save_file({name: array.contiguous() for name, array in arrays.items()}, f"{out}.safetensors")
    write_json(Path(f"{out}.json"), value)


def child(path: Path, words: Path) -> None:
    """:func:`main` in a forked process; its errors go to the file ``words``, what it prints nowhere."""
    with words.open("w") as file, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
