"""Plans: which rows a command names, and the steps that each needs in the setting of a job; nothing is run."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import bench.data
from bench import claims, contrasts, metrics, threads
from bench.data.annotations import DetectionSet
from bench.data.identity import value_of
from bench.data.images import ImageSet
from bench.errors import UserError
from bench.models import weights
from bench.models.recipe import Recipe
from bench.pruning.rounding_steps import rounded_steps
from bench.rows import Chain, Paper, Row, Setting, match, row_id
from bench.steps import OWN, DataValue, Kind, Source, Step, canonical, in_order
from bench.store import Store, file_digest


def default_device() -> str:
    """The device of a job that names none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Job:
    """What to run and where: the choices of one ``bench run``.

    ``reuse_times`` answers times from earlier runs of the same device; otherwise they are taken anew, as are steps of
    the kinds ``fresh``.  ``multiple`` rounds the widths that pruning leaves.  ``networks`` is the folder of
    another run, whose networks are taken over.
    """

    out: Path = Path("runs")
    data: Path = Path("data")
    scale: str | None = None
    device: str = "auto"
    seed: int | None = None
    weights: Path | None = None
    protocol: str = "short256"
    workers: int = 0
    amp: bool = False
    paper_schedule: bool = False
    progress: bool = True
    strict: bool = False
    reuse_times: bool = False
    fresh: frozenset[Kind] = frozenset()
    multiple: int | None = None
    networks: Path | None = None
    images: dict[tuple[Source, int], ImageSet | DetectionSet] = field(default_factory=dict)
    values: dict[tuple[Source, int], DataValue] = field(default_factory=dict)
    fitting: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"unknown device {self.device!r}: choose auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("no CUDA device is available here: leave out --device, or choose cpu")
        if self.device == "auto":
            self.device = default_device()
        if self.multiple not in (None, 8, 16, 32):
            raise UserError("--round takes 8, 16 or 32")
        if self.weights is not None and not self.weights.is_file():
            raise UserError(f"no weights file {self.weights}: give the path of a state dict with --weights")


@dataclass(frozen=True)
class Planned:
    """A row in its setting: the chain of steps, or the reason why it cannot run here."""

    paper: Paper
    row: Row
    scale: str
    dense: Recipe | None = None
    chain: Chain | None = None
    size: int = 0
    reason: str | None = None
    setting: Setting | None = None

    @property
    def id(self) -> str:
        """The row's id."""
        return row_id(self.paper.key, self.row)


# --------------------------------------------------------------------------------------------------------------------
# Choosing and planning


@functools.cache
def scripts() -> tuple[dict[str, Paper], dict[str, Exception]]:
    """Every paper script in ``reproductions`` (found, not listed), by name, and what the broken ones raised."""
    package = importlib.import_module("reproductions")
    known = list(claims.by_id(Path(package.__path__[0]) / "registry").values())
    found: dict[str, Paper] = {}
    broken: dict[str, Exception] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            try:
                paper = importlib.import_module(f"reproductions.{module.name}").paper()
                metrics.declare(paper.metrics)
                paper = contrasts.with_claims(paper, known)
                _ = paper.ids  # raises where two rows have one
                found[paper.key] = paper
            except Exception as error:
                broken[module.name] = error
    return found, broken


def papers() -> dict[str, Paper]:
    """Every paper, by name.  Raises what a broken script raised."""
    found, broken = scripts()
    for error in broken.values():
        raise error
    return found


def choose(
    names: Sequence[str],
    table: str | None,
    row: str | None,
    several: bool = False,
    known: Mapping[str, Paper] | None = None,
) -> list[tuple[Paper, list[Row]]]:
    """The papers and rows that a command names, of those ``known`` (default: all); everything for no names.

    ``table`` is a beginning of names.  ``row`` is an id, an end of one or a name, else the beginning of one row's; with
    ``several`` of any number of rows.  Case is ignored.  Raises :class:`UserError` where nothing or too much matches.
    """
    known = papers() if known is None else known
    for name in names:
        if name not in known:
            raise UserError(f"unknown paper {name!r}: choose one of {', '.join(known)}")
    chosen = {key: {i: r for i, r in known[key].ids.items() if _in_table(r, table)} for key in names or known}
    if not any(chosen.values()):
        tables = dict.fromkeys(r.table for key in names or known for r in known[key].rows)
        raise UserError(f"unknown table {table!r}: {', '.join(names) or 'the papers'} have {', '.join(tables)}")
    if row is not None:
        found = match(row, {i: r.name for rows in chosen.values() for i, r in rows.items()})
        if not found:
            raise UserError(f"unknown row {row!r}: see `{' '.join(['bench list', *names])}`")
        if len(found) > 1 and not several:
            raise UserError(f"{row!r} names {len(found)} rows, choose one: {', '.join(found)}")
        chosen = {key: {i: r for i, r in rows.items() if i in found} for key, rows in chosen.items()}
    return [(known[key], list(rows.values())) for key, rows in chosen.items() if rows]


def _in_table(row: Row, wanted: str | None) -> bool:
    if wanted is None:
        return True
    name, wanted = row.table.lower(), wanted.lower()
    # "Table 1" must not match "Table 10"
    return name == wanted or (name.startswith(wanted) and not name[len(wanted)].isalnum())


def plan(paper: Paper, rows: Sequence[Row], job: Job) -> list[Planned]:
    """The rows of a paper in the job's setting, with their steps; data are read, nothing is run.

    Rows that are meant for other scales or for the other kind of data are left out.  Raises :class:`UserError` where
    none is left, and for weights that fit no network.
    """
    if job.scale is not None:
        bench.data.check_scale(job.scale)
    planned = [_plan(paper, row, scale, job) for row, scale in meant(rows, job)]
    if not planned:
        raise UserError(
            f"none of these rows runs at {job.scale}, which has {bench.data.kind(job.scale or '')}: see `bench list`"
        )
    return planned


def meant(rows: Sequence[Row], job: Job) -> list[tuple[Row, str]]:
    """The rows that are meant for the job's scale and its kind of data, each with its scale: its own for no other."""
    found = []
    for row in rows:
        scale = job.scale or row.scale
        here = row.scales is None or scale in row.scales or scale not in bench.data.SCALES
        if here and (job.scale is None or row.data == bench.data.kind(scale)):
            found.append((row, scale))
    return found


def _plan(paper: Paper, row: Row, scale: str, job: Job) -> Planned:
    if row.missing is not None or row.chain is None or row.dense is None:
        return Planned(paper, row, scale, reason=row.missing or "not implemented")
    if scale not in bench.data.SCALES and not Path(scale).is_dir():
        return Planned(paper, row, scale, reason=f"needs {scale}: give its folder by --scale")
    size = row.dense(scale, 10, job.weights is not None).input_shape[1]
    if bench.data.find(scale, job.data) is None and scale != "cifar10":
        return Planned(paper, row, scale, reason=bench.data.needs(scale, job.data))
    try:
        images = images_of(job, scale, size)
    except UserError as error:
        # files that are there and are wrong are told as they are
        if scale == "cifar10" and bench.data.find(scale, job.data) is None:
            return Planned(paper, row, scale, reason=bench.data.needs(scale, job.data))
        raise error
    recipe = row.dense(scale, len(images.classes), job.weights is not None)
    setting = _setting(row, scale, size, OWN, job)
    for name, source in row.further(scale).items():
        other = source.scale or scale
        if bench.data.find(other, job.data) is None:
            return Planned(paper, row, scale, reason=bench.data.needs(other, job.data))
        if source.protocol in (None, images_of(job, scale, size, source).protocol):
            further = {**setting.further, name: _setting(row, scale, size, source, job)}
            setting = replace(setting, further=further)
    chain = row.chain(setting, recipe)
    if job.multiple is not None:
        chain = rounded_chain(chain, job.multiple)
    _check_weights(chain, job)
    return Planned(paper, row, scale, recipe, chain, size, setting=setting)


def _setting(row: Row, scale: str, size: int, source: Source, job: Job) -> Setting:
    """The job's setting of a row at ``scale``, on its own data or on those of another source."""
    images = images_of(job, scale, size, source)
    return Setting(
        source.scale or scale,
        _value(job, scale, size, source),
        len(images.classes),
        len(images.train),
        len(images.test),
        job.device,
        row.seeds_on(scale) if job.seed is None else (job.seed,),
        None if job.weights is None else file_digest(job.weights),
        job.amp,
        job.paper_schedule,
    )


def rounded_chain(chain: Chain, multiple: int) -> Chain:
    """The chain with the widths that its prunings leave rounded."""
    parts = [chain.networks, chain.records, chain.evaluations, chain.references]
    every = iter(rounded_steps([step for part in parts for step in part], multiple))
    return Chain(*[[next(every) for _ in part] for part in parts])


def _check_weights(chain: Chain, job: Job) -> None:
    """Raises :class:`UserError` where the user's weights do not fit a network that a step gives them to."""
    if job.weights is None:
        return
    for step in in_order([*chain.networks, *chain.records]):
        if step.kind is Kind.LOAD and (name := str(canonical(step.params.recipe))) not in job.fitting:
            weights.load(step.params.recipe.build(), job.weights)
            job.fitting.add(name)


def _place(job: Job, scale: str, size: int, source: Source) -> tuple[Source, int]:
    """Under what data are kept: everything that says which they are."""
    return Source(source.scale or scale, source.protocol or job.protocol, source.apart), size


def images_of(job: Job, scale: str, size: int, source: Source = OWN) -> ImageSet | DetectionSet:
    """The data of a row at ``scale`` (``size``: its network's input), or those of another source, read once a job.

    Raises :class:`UserError` where they are not there or cannot be read.
    """
    place = _place(job, scale, size, source)
    if place not in job.images:
        name, protocol = str(place[0].scale), str(place[0].protocol)
        job.images[place] = bench.data.load(name, job.data, size, protocol, job.progress, job.strict, source.apart)
    return job.images[place]


def images_read(job: Job, entry: Planned, source: Source = OWN) -> ImageSet | DetectionSet | None:
    """The data of a planned row, or those of another source, where the job has read them."""
    return job.images.get(_place(job, entry.scale, entry.size, source))


def _value(job: Job, scale: str, size: int, source: Source) -> DataValue:
    place = _place(job, scale, size, source)
    if place not in job.values:
        job.values[place] = value_of(images_of(job, scale, size, source))
    return replace(job.values[place], source=source)


def steps_of(planned: Sequence[Planned]) -> list[tuple[Step, Planned]]:
    """All steps of the planned rows, each once, in order, with a row that needs it."""
    owner: dict[str, Planned] = {}
    leaves = []
    for entry in planned:
        if entry.chain is not None:
            here = [*entry.chain.networks, *entry.chain.records]
            leaves += here
            for step in in_order(here):
                owner.setdefault(step.key, entry)
    return [(step, owner[step.key]) for step in in_order(leaves)]


# --------------------------------------------------------------------------------------------------------------------
# What a plan says

# how many threads' work a GPU does: rough, until the store knows better
_GPU_THREADS = 100


def minutes(total: float) -> str:
    """A plan's minutes in words."""
    return f"about {total:.0f} minutes" if total >= 1.0 else "less than a minute"


def expected_seconds(step: Step, learned: Mapping[tuple[str, str], float]) -> float:
    """The step's duration: its cost in GMACs times what a GMAC of such steps took in this store, else elsewhere."""
    device = step.device.split(":")[0]
    here = threads.whole() if step.kind is Kind.TIME else torch.get_num_threads()
    if (step.run_name, device) in learned:
        seconds = learned[step.run_name, device] * (step.work or 1.0)
        return seconds / here if step.work and device == "cpu" else seconds
    count = _GPU_THREADS if device == "cuda" else here
    return step.work / (step.rate * count) if step.rate else 0.0


def learned_costs(store: Store | None) -> dict[tuple[str, str], float]:
    """Seconds a GMAC (a step, where its cost is 0) by function and device: the median over the steps stored.

    On a processor they are those of one thread, as if so many took a share of them each.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for key in store.stored() if store is not None else []:
        header = store.header(key) if store is not None else None
        if header is not None and "run" in header:
            hardware = header["provenance"]["hardware"]
            device = hardware["device"].split(":")[0]
            count = hardware.get("threads", 1) if header["work"] and device == "cpu" else 1
            found.setdefault((header["run"], device), []).append(header["seconds"] * count / (header["work"] or 1.0))
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}
