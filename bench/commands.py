"""What each command of the command line does; every one returns (JSON value, text)."""

from __future__ import annotations

import argparse
import builtins
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import bench.data
from bench import api, provenance, runner
from bench.data import cifar10
from bench.errors import UserError
from bench.measure import macs as counting
from bench.mmcv_ops import install as install_ops
from bench.models.recipe import BUILDERS, Recipe
from bench.registry import load as load_registry
from bench.report import accept as accepting
from bench.report import load as loading
from bench.report import pages, render
from bench.report import tables as building
from bench.runner import Job
from bench.store import Store, disk_errors, write_json
from bench.train import distributed

Output = tuple[Any, str]


def registry_folder() -> Path:
    """Where the published values are: beside the paper scripts."""
    package = importlib.import_module("reproductions")
    return Path(package.__path__[0]) / "registry"


def abouts() -> dict[str, pages.About]:
    """Titles, references and deviations of all papers, for their pages."""
    return {key: pages.About(p.title, p.reference, p.deviations) for key, p in runner.papers().items()}


def list(options: argparse.Namespace) -> Output:
    """Papers, tables, rows and what each needs."""
    value, lines = [], []
    for paper, rows in runner.choose(options.paper, None, None):
        lines.append(f"{paper.key}: {paper.title} ({paper.reference})")
        table = None
        for row in rows:
            if row.table != table:
                table = row.table
                lines.append(f"  {table}")
            needs = row.missing or f"{row.scale}" + ("" if row.scales is None else f"; runs at {', '.join(row.scales)}")
            lines.append(f"    {row.name}  [{'not run: ' if row.missing else 'own scale '}{needs}]")
            value.append(
                {"paper": paper.key, "table": row.table, "row": row.name, "scale": row.scale, "missing": row.missing}
            )
    return value, "\n".join(lines)


def run(options: argparse.Namespace) -> Output:
    """Runs rows, or prints the plan."""
    job = _job(options)
    chosen = runner.choose(options.paper, options.table, options.row)
    if options.plan:
        return _plan(chosen, job)
    command = "bench run " + " ".join(shlex.quote(part) for part in _public_arguments(options))
    files = []
    store = Store(options.out)
    for paper, rows in chosen:
        planned = runner.plan(rows, job)
        if options.row and all(entry.chain is None for entry in planned):
            raise UserError(
                f"{planned[0].row.name}: not run ({planned[0].reason}); choose another --scale or give --data"
            )
        files += runner.run(paper, planned, job, store, lambda text: print(text, file=sys.stderr, flush=True), command)
    if not distributed.is_main():
        return [], ""
    written = pages.write(options.out, registry_folder(), abouts())
    shown = [
        table
        for paper, rows in chosen
        for table in _tables(options.out, [paper.key])
        if table.name in {r.table for r in rows}
    ]
    text = "\n\n".join(render.markdown(table) for table in shown)
    page = options.out / chosen[0][0].key / "README.md" if len(chosen) == 1 else options.out / "README.md"
    return {"rows": [str(f) for f in files], "pages": [str(p) for p in written]}, f"{text}\n\nThe page: {page}"


def _job(options: argparse.Namespace) -> Job:
    return Job(
        out=options.out, data=bench.data.data_root(options.data), scale=options.scale, device=options.device,
        seed=options.seed, weights=options.weights, protocol=options.protocol, workers=options.workers, amp=options.amp,
        strict=options.strict_data,
        progress=not options.json and sys.stderr.isatty(),
    )  # fmt: skip


def _public_arguments(options: argparse.Namespace) -> builtins.list[str]:
    """The command's arguments without paths of this machine: folders and files by their last name."""
    parts = [*options.paper]
    for name in ("table", "row", "scale", "weights", "seed"):
        value = getattr(options, name)
        if value is not None:
            known = name != "scale" or value in bench.data.SCALES
            parts += [f"--{name}", str(value) if known and name != "weights" else Path(value).name]
    return parts + [flag for flag, given in (("--amp", options.amp), ("--strict-data", options.strict_data)) if given]


def _plan(chosen: Any, job: Job) -> Output:
    value, lines, total = [], [], 0.0
    stored = Store(job.out) if job.out.exists() else None
    for paper, rows in chosen:
        planned = runner.plan(rows, job)
        for step, _ in runner.steps_of(planned):
            header = stored.header(step.key) if stored is not None else None
            minutes = 0.0 if header else runner.expected_seconds(step) / 60.0
            total += minutes
            state = "cached" if header else f"{minutes:.1f} min"
            lines.append(f"{state:>9}  {step.name}")
            value.append(
                {"paper": paper.key, "step": step.name, "key": step.key, "cached": bool(header), "minutes": minutes}
            )
        for entry in planned:
            if entry.chain is None:
                lines.append(f"  not run  {entry.row.table}: {entry.row.name} ({entry.reason})")
    lines.append(f"about {total:.0f} minutes on this {job.device}; nothing was run")
    return {"steps": value, "minutes": total}, "\n".join(lines)


def tables(options: argparse.Namespace) -> Output:
    """Prints the tables of a folder of results."""
    source = options.source
    if source is None:
        source = Path("runs") if any(Path("runs").glob("*/rows/*/*.json")) else Path("results")
    known = runner.papers()
    for name in options.paper:
        if name not in known:
            raise UserError(f"unknown paper {name!r}: choose one of {', '.join(known)}")
    found = _tables(source, options.paper)
    if not found:
        raise UserError(f"no measured rows in {source}: run `bench run` first, or name a folder with --from")
    forms = {"md": render.markdown, "csv": render.csv_text, "tex": render.latex, "html": render.html_page}
    value = [{"paper": t.paper, "table": t.name, "scale": t.scale, "rows": building.raw(t)} for t in found]
    return value, "\n\n".join(forms[options.format](table) for table in found)


def _tables(source: Path, papers: Sequence[str]) -> builtins.list[building.Table]:
    """The tables of a folder of results, for the named papers or all."""
    lines = loading.read(source, registry_folder())
    found = []
    for paper in papers or lines:
        found += building.build_all(lines.get(paper, []), load_registry(paper, registry_folder()))
    return found


def macs(options: argparse.Namespace) -> Output:
    """MACs and parameters of a model, or of a row at the paper's own shape."""
    if options.model in BUILDERS or ":" in options.model:
        sides = {"cifar": 32, "mcifar": 32, "ssd300": 300, "narrow_ssd": 160}
        known = (side for name, side in sides.items() if options.model.startswith(name))
        side = options.size or next(known, 224)
        recipe = Recipe(options.model, {}, (3, side, side))
        shapes = [(options.model, recipe)]
    else:
        rows = [(paper, row) for paper, rows in runner.choose([], None, options.model) for row in rows]
        own = [(f"{row.table}: {row.name}", row.own_shape()) for _, row in rows]
        shapes = [(name, shape) for name, shape in own if shape is not None]
        if not shapes:
            raise UserError(f"{options.model!r} has no shape of the paper's own: its widths come from the data")
    value, lines = [], []
    for name, shape in shapes:
        device = "meta" if shape.builder in BUILDERS else "cpu"
        count = counting.count(shape.build(device), shape.input_shape)
        dense = counting.count(shape.dense().build(device), shape.input_shape)
        total, speedup = count.total(options.convention), dense.total("conv") / count.total("conv")
        value.append(
            {
                "name": name,
                "convention": options.convention,
                "macs": total,
                "params": count.params,
                "conv_speedup": speedup,
            }
        )
        lines.append(
            f"{name}: {total:,} MACs ({options.convention}), {count.params:,} parameters, {speedup:.3f}x in conv MACs"
        )
    return value, "\n".join(lines)


def prune(options: argparse.Namespace) -> Output:
    """Prunes a network of the user's own and saves it."""
    if ":" not in options.model:
        raise UserError(f"{options.model!r}: give MODULE:FACTORY, a function that returns your nn.Module")
    if options.data is None:
        raise UserError("give your image folder (train/ and test/ or val/) with --data")
    if distributed.launched() > 1:
        raise UserError("bench prune works in one process: start it without torchrun")
    sys.path.insert(0, os.getcwd())
    job = Job(device=options.device)
    result = api.prune(
        options.model, options.data, speedup=options.speedup, method=options.method, widths=options.widths,
        size=options.size, images=options.images, seed=options.seed or 0, device=job.device, progress=not options.json,
        mean=options.mean, std=options.std, interpolation=options.interpolation, classes=options.classes,
        protocol=options.protocol, weights=options.weights, out=options.out, workers=options.workers,
    )  # fmt: skip
    with disk_errors(options.out):
        torch.save(result.model.state_dict(), options.out / "state.pth")
    value = {"recipe": result.recipe.to_json(), **result.facts()}
    write_json(options.out / "pruned.json", value)
    lines = [f"conv MACs {result.dense.total('conv'):,} -> {result.pruned.total('conv'):,} ({result.speedup:.3f}x), "
             f"parameters {result.dense.params:,} -> {result.pruned.params:,}"]  # fmt: skip
    lines += [f"dense {api.in_words(record)}" for record in result.dense_records]
    lines += [api.in_words(record) for record in result.records]
    lines += [f"warning: {line}" for line in result.warnings]
    lines.append(f"saved: {options.out} (bench.api.load reads it, --weights {options.out} prunes it further)")
    return value, "\n".join(lines)


def doctor(options: argparse.Namespace) -> Output:
    """Versions, devices, data sets, W&B."""
    root = bench.data.data_root(options.data)
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    installed = {
        name: _version(name) for name in ("wandb", "mmdet", "onedl-mmdetection", "mmengine", "mmcv", "onedl-mmcv")
    }
    value: dict[str, Any] = {
        "versions": provenance.versions(),
        "devices": {"cpu": provenance.hardware("cpu"), "cuda": cuda},
        "data": {
            scale: str(bench.data.find(scale, root)) if bench.data.find(scale, root) else None
            for scale in bench.data.SCALES
        },
        "wandb": {
            "version": installed["wandb"],
            "mode": os.environ.get("WANDB_MODE"),
            "key": "WANDB_API_KEY" in os.environ,
        },
    }
    lines = [f"{name} {version}" for name, version in provenance.versions().items()]
    hardware = provenance.hardware("cpu")
    lines.append(f"cpu: {hardware['name']}, {hardware['threads']} threads")
    lines.append(f"cuda: {', '.join(cuda) or 'none'}")
    for scale in bench.data.SCALES:
        place = bench.data.find(scale, root)
        embedded = scale in bench.data.EMBEDDED
        found = "embedded" if embedded else str(place) if place else f"not found: {bench.data.missing(scale, root)}"
        lines.append(f"data {scale}: {found}")
    state = (
        f"version {installed['wandb']}, {'key set' if value['wandb']['key'] else 'no key'}"
        if installed["wandb"]
        else "not installed"
    )
    lines.append(f"wandb: {state}")
    try:
        install_ops()
        lines.append("detection: mmdet can be used")
    except UserError as error:
        lines.append(f"detection: {error}")
    for ours, theirs in (("onedl-mmengine", "mmengine"), ("onedl-mmcv", "mmcv"), ("onedl-mmdetection", "mmdet")):
        if _version(ours) and _version(theirs):
            lines.append(
                f"warning: {theirs} and {ours} are both installed and overwrite each other: pip uninstall {theirs}"
            )
    return value, "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def data(options: argparse.Namespace) -> Output:
    """Writes the CIFAR-10 subset."""
    root = bench.data.data_root(options.data)
    place = bench.data.find("cifar10", root) or root
    counts = cifar10.write_subset(place, options.folder, progress=not options.json)
    return {
        "folder": str(options.folder),
        **counts,
    }, f"{options.folder}: {counts['train']} training and {counts['test']} test images"


def accept(options: argparse.Namespace) -> Output:
    """Promotes rows from runs/ to results/ and writes the pages."""
    files = accepting.accept(options.source, options.to, options.paper or None)
    written = pages.write(options.to, registry_folder(), abouts())
    return {
        "rows": [str(f) for f in files],
        "pages": [str(p) for p in written],
    }, f"{len(files)} rows accepted; the index: {options.to / 'README.md'}"
