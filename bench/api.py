"""Pruning a network of one's own: the papers' selection, reconstruction, removal and measurement, on any network.

The network must be traceable by torch.fx; the data are an image folder (or any :class:`ImageSet`).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import assumptions, memory, saved
from bench.assumptions import Inputs
from bench.data.folder import image_folder
from bench.data.images import ImageSet
from bench.errors import UserError
from bench.measure import accuracy, macs
from bench.models import weights as weight_files
from bench.models.recipe import Recipe, network_of
from bench.pruning import surgery
from bench.pruning.calibration import Calibration, Sampling, because, calibrate, error_curves
from bench.pruning.faithful import copied
from bench.pruning.graph import Site, find_sites, left_out, trace
from bench.pruning.layerwise import LayerReport, Method, few_images
from bench.pruning.layerwise import prune as prune_layers
from bench.pruning.steps import ELIMINATION_RIDGE, calibration_images
from bench.pruning.widths import MacModel, error_driven, scaled
from bench.saved import load
from bench.stages import Stage, Stages, Stopped
from bench.store import Record, check_writable, digest

__all__ = ["METHODS", "WIDTHS", "Inputs", "Pruned", "load", "prune"]

METHODS = {
    "cp": "lasso",
    "exact": "exact",
    "thinet": "thinet",
    "max-response": "max response",
    "first-k": "first k",
    "weight-sum": "weight sum",
    "random": "random",
}
WIDTHS = ("uniform", "error-driven")
# where an interrupted run keeps its finished stages, in the output folder
UNFINISHED = "unfinished"
# what a run holds in memory besides activations kept between layers (bytes): the libraries, and room for one batch
_TARGET, _BASE, _LEAST_BUDGET = 1_900_000_000, 1_000_000_000, 50_000_000
# images of one batch: at most 64, and at most so many pixels
_BATCH, _BATCH_PIXELS = 64, 8 * 224 * 224
# a logit of minus infinity (a class that is masked out) counts as this much, so that differences stay numbers
_LEAST_LOGIT = -1e9


@dataclass(frozen=True)
class Pruned:
    """A pruned network with what was measured on the test split, before and after, and a report for each layer.

    ``recipe`` says how it is built from the dense network; ``inputs`` what was assumed of images and classes;
    ``dense_records`` are the dense network's accuracies, ``records`` the pruned one's and the changes; ``warnings``
    what was told on the way; ``problems`` counts the images that could not be taken as they were.
    ``left_out`` names the layers that were not pruned because they do not compute what their class says, with the
    reason; ``data`` holds the data set's name and fingerprint.
    """

    model: nn.Module
    layers: list[LayerReport]
    dense: macs.Macs
    pruned: macs.Macs
    records: list[Record]
    recipe: Recipe
    inputs: dict[str, Any]
    dense_records: list[Record]
    warnings: list[str]
    problems: dict[str, int]
    left_out: list[tuple[str, str]]
    data: dict[str, str] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """Dense over pruned conv MACs."""
        return self.dense.total("conv") / self.pruned.total("conv")

    def save(self, folder: Path | str) -> None:
        """Writes the network into ``folder``, from which :func:`load` gives it back, bit for bit.

        Raises :class:`UserError` where the place cannot be written or the network could not be built again.
        """
        problem = saved.save(self.model, self.recipe, Path(folder), self.facts())
        if problem is not None:
            raise UserError(problem)

    def facts(self) -> dict[str, Any]:
        """Everything but the network, as plain JSON values."""
        return {
            "inputs": self.inputs,
            "data": self.data,
            "problems": self.problems,
            "warnings": self.warnings,
            "left_out": [list(layer) for layer in self.left_out],
            "macs": {name: [self.dense.total(name), self.pruned.total(name)] for name in macs.CONVENTIONS},
            "params": [self.dense.params, self.pruned.params],
            "conv_speedup": self.speedup,
            "dense_records": [record.to_json() for record in self.dense_records],
            "records": [record.to_json() for record in self.records],
            "layers": [layer.to_json() for layer in self.layers],
        }


def _tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def prune(
    model: nn.Module | str,
    data: ImageSet | Path | str,
    *,
    speedup: float = 2.0,
    method: str = "cp",
    widths: str = "uniform",
    size: int = 224,
    images: int = 5000,
    positions: int = 10,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    interpolation: str | None = None,
    classes: Sequence[str] | str | Path | None = None,
    protocol: str | None = None,
    weights: Path | str | None = None,
    out: Path | str | None = None,
    workers: int = 0,
    tell: Callable[[str], None] = _tell,
) -> Pruned:
    """Prunes a trained classifier to ``speedup`` times fewer conv MACs, without fine-tuning; ``model`` is not changed.

    ``model`` is a network or the name of its factory, MODULE:FACTORY, filled from ``weights`` (a state dict, or the
    folder of a saved network).  ``method`` is one of ``METHODS``, ``widths`` one of ``WIDTHS``; ``data`` an image
    folder with train/ and test/ (or val/) or an :class:`ImageSet`; calibration uses at most ``images`` training images,
    ``positions`` outputs of each.  ``mean``, ``std``, ``interpolation``, ``protocol`` and ``classes`` (names in the
    order of the outputs, or a file of them) are those of :class:`Inputs`.  ``tell`` is called with each line about the
    dense network as soon as it is known.  With ``out`` the network is saved there before it is measured, and finished
    stages are kept there, so that an interrupted call goes on.

    Everything that can fail is tried before the expensive part.  Raises :class:`UserError` for a network, data, a place
    or a target that cannot be handled.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if widths not in WIDTHS:
        raise UserError(f"unknown widths {widths!r}: choose one of {', '.join(WIDTHS)}")
    if not speedup > 1.0:
        raise UserError(f"a speed-up of {speedup:g} prunes nothing: give a number above 1")
    for what, number in (("--images", images), ("--positions", positions), ("--size", size)):
        if number < 1:
            raise UserError(f"{what} {number} leaves nothing to calibrate with: give at least 1")
    if isinstance(classes, str | Path):
        classes = assumptions.read_classes(str(classes))
    names = None if classes is None else tuple(classes)
    inputs = Inputs(assumptions.three(mean), assumptions.three(std), interpolation, names, protocol)
    out = None if out is None else Path(out)
    if out is not None:
        check_writable(out)
    network, recipe = _network(model, weights, size if not isinstance(data, ImageSet) else data.size)
    images_of = data if isinstance(data, ImageSet) else _folder(Path(data), size, inputs, progress)
    if isinstance(data, ImageSet) and inputs != Inputs(classes=inputs.classes):
        raise UserError("an ImageSet brings its own normalisation and resize: give mean, std and the like to that")
    shape = (3, images_of.size, images_of.size)
    outputs = check_outputs(network, shape, len(images_of.classes))
    labelled = assumptions.relabelled(images_of, inputs.classes, outputs)
    dense = macs.count(network.cpu(), shape)
    mac_model = _mac_model(network, dense, speedup)
    sampling = _sampling(network, shape[1], positions, seed)
    key = _key(network, labelled, inputs, [speedup, method, widths, images, asdict(sampling), device.split(":")[0]])
    with _stages(out, key) as stages:
        told: list[str] = []

        def note(line: str) -> None:
            told.append(line)
            tell(f"warning: {line}")

        facts, before = _dense(
            network, labelled, inputs, isinstance(data, ImageSet), device, seed, sampling, workers, stages, progress
        )
        ready = labelled.normalised_by(tuple(facts["mean"]), tuple(facts["std"])) if "mean" in facts else labelled
        labels, units = ready.test.labels, ready.test.units
        dense_records = accuracy.records(before, labels, seed, units=units)
        if "mean" in facts:
            tell(assumptions.in_words(facts, outputs))
        tell("dense network: " + ", ".join(in_words(record) for record in dense_records))
        for line in assumptions.warnings(before, labels, inputs, images_of.classes):
            note(line)
        for kind, count in images_of.problems.items():
            note(f"{count} {kind}" if kind.startswith("test images") else f"{count} images were {kind}")
        memory.release()
        batches = calibration_images(ready, images, seed, sampling.batch, workers, progress)
        calibration = calibrate(
            network, batches, sampling, device, _is_wanted, progress, spool=stages.folder / "responses"
        )
        keep = _keep(network, calibration, mac_model, widths, speedup, stages, progress)
        smaller, layers = prune_layers(network, calibration, keep, Method(METHODS[method]), progress, stages)
        faults = calibration.left_out
        for line in few_images(calibration, layers):
            note(line)
        del calibration, batches
        smaller = smaller.cpu().eval()
        pruned_macs = macs.count(smaller, shape)
        rebuilt = _recipe(recipe, network, smaller, layers)
        problems = dict(images_of.problems)
        about = {"name": images_of.name, "fingerprint": images_of.fingerprint}
        found = Pruned(
            smaller, layers, dense, pruned_macs, [], rebuilt, facts, dense_records, told, problems, faults, about
        )
        if out is not None:
            problem = saved.save(smaller, found.recipe, out, found.facts())
            if problem is not None:
                note(problem)
        after = _logits(smaller, ready, device, sampling.batch, workers, progress, "the pruned network")
        records = accuracy.records(after, labels, seed, units=units)
        records += accuracy.compare([after], [before], labels, units=units)
        found = replace(found, model=smaller.cpu(), records=records)
        if out is not None:
            saved.save(found.model, found.recipe, out, found.facts())
    return found


def in_words(record: Record) -> str:
    """A record as people read it."""
    interval = "" if record.low is None else f" [{record.low:.2f}, {record.high:.2f}]"
    return f"{record.metric}: {record.value:.2f} {record.unit}{interval}"


def _network(model: nn.Module | str, weights: Path | str | None, size: int) -> tuple[nn.Module, Recipe]:
    """A network of our own to work on, and the recipe of the dense network (no builder where it came as an object)."""
    shape = (3, size, size)
    folder = None if weights is None else Path(weights)
    if not isinstance(model, str):
        if weights is not None:
            raise UserError("a network that is given comes with its weights: leave out `weights`")
        return _same_weights(model), Recipe("", {}, shape)
    if folder is not None and saved.is_saved(folder):
        before = saved.recipe_of(folder)
        if before.builder and before.builder != model:
            raise UserError(f"{folder} holds a network of {before.builder}, not of {model}: give that name")
        return load(folder, None if before.builder else network_of(model)), replace(before, builder=model)
    network = network_of(model)
    if folder is not None:
        weight_files.load(network, folder)
    return network, Recipe(model, {}, shape)


def _same_weights(model: nn.Module) -> nn.Module:
    """Modules of our own on the same weights, which nothing here changes: modes, flags and devices are theirs alone."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copied(model, shared | {id(buffer): buffer.detach() for buffer in model.buffers()})


def _folder(root: Path, size: int, inputs: Inputs, progress: bool) -> ImageSet:
    return image_folder(
        root,
        size,
        inputs.protocol or "short256",
        progress=progress,
        interpolation=inputs.interpolation or "bicubic",
        in_memory=inputs.protocol is None,
    )


def _mac_model(network: nn.Module, dense: macs.Macs, speedup: float) -> MacModel:
    """Conv MACs as a function of the widths.  Raises :class:`UserError` where the target cannot be reached."""
    probe = _same_weights(network).eval()
    graph = trace(probe)
    sites = _prunable(find_sites(probe, graph))
    if not sites:
        faults = left_out(probe, graph)
        raise UserError(f"no convolution's channels belong to it alone: nothing to prune{because(faults)}")
    channels = {site.reader: surgery.convolution(network, site.reader).in_channels for site in sites}
    model = MacModel(dense.conv, sites, channels)
    scaled(model, dict.fromkeys(channels, 1.0), speedup)
    return model


def _prunable(sites: list[Site]) -> list[Site]:
    return [site for site in sites if site.producer is not None]


def _is_wanted(site: Site) -> bool:
    """Sites that can be pruned, and those that end a residual branch: error curves weigh by what the block hands on."""
    return site.producer is not None or site.shortcut is not None


def _sampling(network: nn.Module, size: int, positions: int, seed: int) -> Sampling:
    """Batches and memory so that any number of images fits 2 GB: what the largest layer and weights leave is kept."""
    weight_bytes = sum(p.nbytes for p in network.parameters())
    widest = max((m.weight[0].numel() for m in network.modules() if isinstance(m, nn.Conv2d)), default=0)
    left = _TARGET - _BASE - 2 * weight_bytes - 4 * 8 * widest**2
    batch = max(1, min(_BATCH, _BATCH_PIXELS // size**2))
    return Sampling(positions, batch=batch, budget=max(_LEAST_BUDGET, left), seed=seed, resident=_LEAST_BUDGET)


def _key(network: nn.Module, data: ImageSet, inputs: Inputs, options: list[Any]) -> str:
    """A hash of all that a run's stages depend on: the network, the data, the options, our own code."""
    hasher = hashlib.sha256(repr(network).encode())
    for name, value in network.state_dict().items():
        hasher.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for kind in sorted({type(module) for module in network.modules()}, key=str):
        with contextlib.suppress(OSError, TypeError):  # a class without a source file
            hasher.update(inspect.getsource(kind).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        hasher.update(path.read_bytes())
    about = [data.fingerprint, data.size, data.protocol, data.interpolation, asdict(inputs), options]
    return digest([hasher.hexdigest(), torch.__version__, torch.get_num_threads(), about])


@contextlib.contextmanager
def _stages(out: Path | None, key: str) -> Iterator[Stages]:
    """Stages in the output folder, cleared once all is done; without one, in a temporary folder."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            yield Stages(Path(folder), key)
        return
    stages = Stages(out / UNFINISHED, key)
    try:
        yield stages
    except KeyboardInterrupt as error:
        raise Stopped(stages.kept()) from error
    stages.clear()


def _dense(
    network: nn.Module,
    data: ImageSet,
    inputs: Inputs,
    own: bool,
    device: str,
    seed: int,
    sampling: Sampling,
    workers: int,
    stages: Stages,
    progress: bool,
) -> tuple[dict[str, Any], Tensor]:
    """What is assumed of the inputs (``own``: nothing, the data bring it) and the dense network's logits."""

    def make() -> Stage:
        facts: dict[str, Any] = {"normalisation": "the image set's own"}
        ready = data
        if not own:
            ready, facts = assumptions.normalised(network, data, inputs, device, seed, sampling.batch)
        found = _logits(network, ready, device, sampling.batch, workers, progress, "the network")
        return facts, {"logits": found}

    facts, tensors = stages.remember("dense", make)
    return facts, tensors["logits"]


def _logits(
    model: nn.Module, data: ImageSet, device: str, batch: int, workers: int, progress: bool, whose: str
) -> Tensor:
    found = accuracy.logits(model, data.test, device, batch, workers, progress)
    if bool(found.isnan().any() | found.isposinf().any() | found.isneginf().all(1).any()):
        raise UserError(f"{whose} has outputs that are no numbers on the test images: its weights are broken")
    return found.clamp_min(_LEAST_LOGIT)


def _keep(
    network: nn.Module,
    calibration: Calibration,
    model: MacModel,
    widths: str,
    speedup: float,
    stages: Stages,
    progress: bool,
) -> dict[str, int]:
    if widths == "uniform":
        return scaled(model, dict.fromkeys(model.channels, 1.0), speedup)

    def make() -> Stage:
        return error_curves(network, calibration, ELIMINATION_RIDGE, progress=progress), {}

    return error_driven(model, stages.remember("curves", make)[0], speedup)


def _recipe(dense: Recipe, network: nn.Module, pruned: nn.Module, layers: list[LayerReport]) -> Recipe:
    samplers, biases = surgery.structure(network, pruned)
    widths = {layer.producer: len(layer.kept) for layer in layers if layer.producer is not None}
    return dense.sampled(samplers).removed(widths).biased(biases)


@torch.no_grad()
def check_outputs(model: nn.Module, shape: tuple[int, int, int], classes: int) -> int:
    """The number of outputs.

    Raises :class:`UserError` unless the network maps images of ``shape`` to ``classes`` logits or more.
    """
    other = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype != torch.float32}
    if other:
        raise UserError(f"the network has weights of {', '.join(sorted(other))}: make it float32 (model.float())")
    try:
        outputs = model.cpu().eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"the network does not run on images of {shape[1]}x{shape[2]} ({reason}): give its input size with --size"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2 or outputs.shape[1] < classes:
        raise UserError(
            f"the network must give one row of at least {classes} logits for each image: the data have {classes} "
            "classes"
        )
    return outputs.shape[1]
