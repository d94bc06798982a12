"""What each command of the command line does; every one returns (JSON value, text, exit status)."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import bench.data
from bench import adopted, apart, api, claims, collecting, isolated, planning, processes, runner, threads
from bench import sizes as sizing
from bench.data import cifar10
from bench.errors import UserError
from bench.planning import Job
from bench.registry import Published, linked
from bench.registry import load as load_registry
from bench.registry import papers as registered
from bench.report import coverage as covering
from bench.report import ending, pages
from bench.report import load as loading
from bench.report import tables as building
from bench.report.load import Declared
from bench.rows import STUDY, Paper, Row, row_id
from bench.steps import Kind
from bench.store import Store, disk_errors, write_json
from bench.tracking import mirror, mirrored, modes

Output = tuple[Any, str, int]


def registry_folder() -> Path:
    """Where the published values are: beside the paper scripts."""
    package = importlib.import_module("reproductions")
    return Path(package.__path__[0]) / "registry"


def checked_pages(root: Path) -> None:
    """UserError for a file of the registry, or a row in ``root``, that the pages could not read behind the last row."""
    for path in loading.row_files(root):
        loading.content(path)
    folder = registry_folder()
    claims.by_id(folder)
    for paper in registered(folder):
        load_registry(paper, folder)


def declared() -> dict[str, dict[str, Declared]]:
    """What the scripts say of their rows, by paper and id."""
    return {key: _declared(paper) for key, paper in planning.papers().items()}


def _declared(paper: Paper) -> dict[str, Declared]:
    return {
        name: Declared(
            row.table,
            row.name,
            order,
            row.scale,
            row.ours,
            row.claimed,
            row.published,
            row.seeds,
            row.release,
            row.seeds_at,
            partial(_sizes, paper, row),
            row.scales,
            row.missing,
        )
        for order, (name, row) in enumerate(paper.ids.items())
    }


def _sizes(paper: Paper, row: Row, published: Sequence[Published]) -> list[sizing.Decided]:
    """The printed sizes that a row links to; asked first, those of all rows are decided."""
    found = sizing.decided(paper, published) if row.sizes else []
    return [one for one in found if (one.row, one.published.table) == (row.name, row.table)]


def abouts() -> dict[str, pages.About]:
    """Titles, references, deviations and rows of all papers, for their pages."""
    return {
        key: pages.About(
            paper.title,
            paper.reference,
            paper.deviations,
            _declared(paper),
            paper.answers,
            study=paper.reference == STUDY,
        )
        for key, paper in planning.papers().items()
    }


def run(options: argparse.Namespace) -> Output:
    """Runs rows, or prints the plan."""
    job = job_of(options)
    processes.start(job.device)
    if options.jobs < 1:
        raise UserError("--jobs needs 1 or more")
    chosen = planning.choose(options.paper, options.table, options.row)
    if options.plan:
        with threads.sharing(options.jobs):
            return _plan(chosen, job, options.jobs)
    with threads.sharing(options.jobs):
        return _run(options, job, chosen)


def _run(options: argparse.Namespace, job: Job, chosen: Sequence[tuple[Paper, list[Row]]]) -> Output:
    mode = modes.chosen(options.wandb)
    checked_pages(options.out)
    separate = options.isolate or options.jobs > 1
    if separate and processes.launched() > 1:
        raise UserError("--isolate and --jobs give each row one process: leave out torchrun")
    store = Store(options.out)
    server = None
    if separate:  # it imports while this process plans
        able = [(paper, [row for row in rows if row.missing is None]) for paper, rows in chosen]
        wanted = [(row_id(paper.key, row), scale) for paper, rows in able for row, scale in planning.meant(rows, job)]
        server = isolated.server("bench.apart", wanted)
    planned = [entry for paper, rows in chosen for entry in planning.plan(paper, rows, job)]
    if options.row and planned[0].chain is None:
        raise UserError(f"{planned[0].id}: not run ({planned[0].reason}); choose another --scale or give --data")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    names = [paper.key for paper, _ in chosen]
    if job.networks is not None and processes.is_main():
        if not (job.networks / "steps").is_dir():
            raise UserError(f"{job.networks} holds no run: give the folder that a run wrote by --out")
        count = adopted.adopt(planned, job, store, Store(job.networks), say)
        say(f"{count} networks of {job.networks} taken over; what is measured is measured here")
    watch = mirror_of(options.out, names, mode, say) if processes.is_main() and mode != modes.DISABLED else None
    try:
        if server is not None:
            outcomes = apart.run(planned, job, server, say, watch, options.jobs)
        else:
            outcomes = runner.run(planned, job, store, say, watch)
        status = 1 if any(outcome.status == runner.FAILED for outcome in outcomes) else 0
        if not processes.is_main():
            return [], "", status
        written = write_pages(options.out)
        if watch is not None:
            watch.finish()
    finally:
        if watch is not None:
            watch.close()
    shown = [
        table
        for paper, rows in chosen
        for table in tables_of(options.out, [paper.key])
        if table.name in {r.table for r in rows}
    ]
    page = options.out / chosen[0][0].key / "README.md" if len(chosen) == 1 else options.out / "README.md"
    value = {
        "rows": [
            {"id": o.id, "status": o.status, "reason": o.reason, "file": None if o.file is None else str(o.file)}
            for o in outcomes
        ],
        "tables": [table_json(table) for table in shown],
        **ending.to_json(shown),
        "pages": [str(p) for p in written],
    }
    return value, ending.text(shown, page, _failed(outcomes)), status


def mirror_of(out: Path, names: Sequence[str], mode: str, say: runner.Say) -> mirrored.Mirrored | None:
    """The mirror of a run of these papers, whose processes start now: they are ready when the first row ends."""
    known = abouts()
    try:
        return mirrored.Mirrored(out, registry_folder(), {name: known[name] for name in names}, mode, say)
    except OSError as error:
        say(f"W&B: nothing is mirrored ({error}): run `bench sync` later")
        return None


def sync(options: argparse.Namespace) -> Output:
    """Sends to W&B what has not reached it."""
    if not any(loading.row_files(options.out)):
        raise UserError(f"no rows in {options.out}: run `bench run` first, or name their folder with --out")
    count, had, sent, problems = mirrored.sync(options.out, registry_folder(), abouts())
    value = {"runs": count, "sent": sent - had, "unchanged": had, "left": count - sent}
    text = f"{count} runs: {sent - had} sent, {had} unchanged, {count - sent} left"
    return value, "\n".join([*problems, text]), 1 if sent < count else 0


def _failed(outcomes: Sequence[runner.Outcome]) -> str:
    """How many rows failed, and why; nothing where all went well."""
    failed = [outcome for outcome in outcomes if outcome.status == runner.FAILED]
    if not failed:
        return ""
    lines = [f"{len(failed)} of {len(outcomes)} rows failed:"]
    return "\n".join([*lines, *(f"  {outcome.id}: {outcome.reason}" for outcome in failed)])


def job_of(options: argparse.Namespace) -> Job:
    """The job that a command's options describe; what a command has no option for is the default."""
    return Job(
        out=options.out,
        data=bench.data.data_root(options.data),
        scale=options.scale,
        device=options.device,
        seed=options.seed,
        weights=options.weights,
        protocol=options.protocol,
        workers=options.workers,
        amp=getattr(options, "amp", False),
        paper_schedule=getattr(options, "paper_schedule", False),
        strict=getattr(options, "strict_data", False),
        reuse_times=getattr(options, "reuse_times", False),
        multiple=getattr(options, "round", None),
        networks=getattr(options, "networks", None),
        progress=not options.json and sys.stderr.isatty(),
    )


def _plan(chosen: Sequence[tuple[Paper, list[Row]]], job: Job, jobs: int) -> Output:
    """The steps with their minutes, and together as if ``jobs`` rows always ran at once, but for times."""
    value, lines, total = [], [], 0.0
    stored = Store(job.out) if job.out.exists() else None
    learned = planning.learned_costs(stored)
    seen: set[str] = set()
    for paper, rows in chosen:
        planned = planning.plan(paper, rows, job)
        for step, _ in planning.steps_of(planned):
            if step.key in seen:  # papers may share a step
                continue
            seen.add(step.key)
            again = step.kind is Kind.TIME and not job.reuse_times
            cached = not again and stored is not None and stored.header(step.key) is not None
            minutes = 0.0 if cached else planning.expected_seconds(step, learned) / 60.0
            total += minutes if step.kind is Kind.TIME else minutes / jobs
            lines.append(f"{'cached' if cached else f'{minutes:.1f} min':>9}  {step.name}")
            value.append(
                {
                    "paper": paper.key,
                    "step": step.name,
                    "kind": step.kind.value,
                    "key": step.key,
                    "cached": cached,
                    "minutes": minutes,
                }
            )
        for entry in planned:
            if entry.chain is None:
                lines.append(f"  not run  {entry.row.table}: {entry.row.name} ({entry.reason})")
    lines.append(f"{planning.minutes(total)} on this {job.device}; nothing was run")
    return {"steps": value, "minutes": total}, "\n".join(lines), 0


def table_json(table: building.Table) -> dict[str, Any]:
    return {"paper": table.paper, "table": table.name, "scale": table.scale, "rows": building.long(table)}


def tables_of(source: Path, papers: Sequence[str]) -> list[building.Table]:
    """The tables of a folder of results, for the named papers or all."""
    lines = loading.read(source, registry_folder(), declared())
    found = []
    for paper in papers or lines:
        found += building.build_all(lines.get(paper, []), load_registry(paper, registry_folder()))
    return found


def coverages(
    names: Sequence[str], source: Path, folder: Path, absent: Callable[[str], str]
) -> dict[str, covering.Coverage]:
    """The coverage of the named papers: sizes are decided on the spot, accuracies are read from the rows in ``source``.

    ``absent(scale)`` says why a row with that scale of its own has not run.
    """
    lines = loading.read(source, folder, declared())
    scripts = planning.papers()
    found = {}
    for name in names:
        published = load_registry(name, folder)
        sized: dict[Published, str] = {}
        scales: dict[Published, str] = {}
        if name in scripts:
            sized = {one.published: str(one.verdict) for one in sizing.decided(scripts[name], published)}
            for row in (row for row in scripts[name].rows if row.missing is None):
                for link in row.published.values():
                    entry = linked(published, row.table, link)
                    if entry is not None:
                        scales.setdefault(entry, row.scale)
        found[name] = covering.of_paper(published, sized, scales, lines.get(name, []), absent)
    return found


def prune(options: argparse.Namespace) -> Output:
    """Prunes a network of the user's own and saves it."""
    if ":" not in options.model:
        raise UserError(f"{options.model!r}: give MODULE:FACTORY, a function that returns your nn.Module")
    if options.data is None:
        raise UserError("give your image folder (train/ and test/ or val/) with --data")
    if processes.launched() > 1:
        raise UserError("bench prune works in one process: start it without torchrun")
    if options.wandb == modes.ONLINE:
        modes.check_login()
    sys.path.insert(0, os.getcwd())
    job = Job(device=options.device)
    result = api.prune(
        options.model,
        options.data,
        speedup=options.speedup,
        method=options.method,
        widths=options.widths,
        size=options.size,
        images=options.images,
        seed=options.seed or 0,
        device=job.device,
        progress=not options.json,
        mean=options.mean,
        std=options.std,
        interpolation=options.interpolation,
        classes=options.classes,
        protocol=options.protocol,
        weights=options.weights,
        out=options.out,
        workers=options.workers,
    )
    with disk_errors(options.out):
        torch.save(result.model.state_dict(), options.out / "state.pth")
    value = {"recipe": result.recipe.to_json(), **result.facts()}
    write_json(options.out / "pruned.json", value)
    lines = [
        f"conv MACs {result.dense.total('conv'):,} -> {result.pruned.total('conv'):,} ({result.speedup:.3f}x), "
        f"parameters {result.dense.params:,} -> {result.pruned.params:,}"
    ]
    lines += [f"dense {api.in_words(record)}" for record in result.dense_records]
    lines += [api.in_words(record) for record in result.records]
    lines += [f"left out: {name}: {reason}" for name, reason in result.left_out]
    lines += [f"warning: {line}" for line in result.warnings]
    if options.wandb != modes.DISABLED:
        asked = {"method": options.method, "widths": options.widths, "speedup": options.speedup, "device": job.device}
        lines += mirrored.once(options.out, mirror.of_pruned(options.out, options.model, asked, value), options.wandb)
    lines.append(f"saved: {options.out} (bench.api.load reads it, --weights {options.out} prunes it further)")
    return value, "\n".join(lines), 0


def data(options: argparse.Namespace) -> Output:
    """Writes the CIFAR-10 subset."""
    root = bench.data.data_root(options.data)
    place = bench.data.find("cifar10", root) or root
    counts = cifar10.write_subset(place, options.folder, progress=not options.json)
    text = f"{options.folder}: {counts['train']} training and {counts['test']} test images"
    return {"folder": str(options.folder), **counts}, text, 0


def write_pages(root: Path) -> list[Path]:
    """The pages of all papers; why a value is not decided is said without regard to what this machine has.

    Data are at hand that come with the packages, or that rows in ``root`` were measured on.
    """
    folder = registry_folder()
    files = (loading.content(path) for path in loading.row_files(root))
    held = {value["setting"]["scale"] for value in files if value["status"] == loading.RAN}

    def absent(scale: str) -> str:
        return covering.NOT_RUN if scale in bench.data.EMBEDDED or scale in held else covering.DATA

    return pages.write(root, folder, abouts(), coverages(registered(folder), root, folder, absent))


def gc(options: argparse.Namespace) -> Output:
    """Removes what no row needs."""
    if not (options.out / "steps").is_dir():
        raise UserError(f"no runs in {options.out}: name their folder with --out")
    needed = {key for path in loading.row_files(options.out) for key in loading.content(path)["steps"]}
    removed, size = collecting.collect(Store(options.out), needed, options.dry_run)
    verb = "would be removed" if options.dry_run else "removed"
    return (
        {verb.replace(" ", "_"): removed, "bytes": size},
        f"{len(removed)} steps and leftovers {verb}, {size / 1e6:,.1f} MB",
        0,
    )
