"""The commands that read results: ``bench tables | coverage | power | site | accept``.

Every one returns (JSON value, text, exit status).
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

import bench.data
from bench import planning, released
from bench.commands import Output, coverages, declared, registry_folder, table_json, tables_of, write_pages
from bench.errors import UserError
from bench.latency import page as times
from bench.registry import load as load_registry
from bench.registry import papers as registered
from bench.report import accept as accepting
from bench.report import coverage as covering
from bench.report import load as loading
from bench.report import power as powering
from bench.report import render


def tables(options: argparse.Namespace) -> Output:
    """Prints the tables of a folder of results."""
    source = options.source or _results()
    known = planning.papers()
    _check(options.paper, known)
    found = tables_of(source, options.paper)
    if not found:
        raise UserError(f"no measured rows in {source}: run `bench run` first, or name a folder with --from")
    forms = {"md": render.markdown, "csv": render.csv_text, "tex": render.latex, "html": render.html_page}
    value = [table_json(table) for table in found]
    return value, "\n\n".join(forms[options.format](table) for table in found), 0


def _check(names: Iterable[str], known: Collection[str]) -> None:
    """Raises :class:`UserError` for the name of no paper."""
    for name in names:
        if name not in known:
            raise UserError(f"unknown paper {name!r}: choose one of {', '.join(known)}")


def _results() -> Path:
    """The folder that is read where none is named: what was run here, else what was accepted."""
    return Path("runs") if any(loading.row_files(Path("runs"))) else Path("results")


def coverage(options: argparse.Namespace) -> Output:
    """How many published values are decided, and why the others are not."""
    folder = registry_folder()
    known = registered(folder)
    _check(options.paper, known)
    source = options.source or _results()
    if not source.is_dir():
        raise UserError(f"no folder {source}: name one with rows by --from")
    data_root, gpu = bench.data.data_root(options.data), torch.cuda.is_available()

    def absent(scale: str) -> str:
        if bench.data.find(scale, data_root) is None:
            return covering.DATA
        return covering.NOT_RUN if gpu or scale in bench.data.EMBEDDED else covering.GPU

    found = coverages(options.paper or known, source, folder, absent)
    value: dict[str, Any] = {"papers": {name: covering.to_json(one) for name, one in found.items()}}
    value["total"] = covering.to_json(sum(found.values(), covering.EMPTY))["kinds"]
    value["flawed_data"] = {
        scale: bench.data.missing(scale, data_root)
        for scale in bench.data.SCALES
        if bench.data.find(scale, data_root) is None and bench.data.flawed(scale, data_root) is not None
    }
    return value, "\n".join([covering.text(found), *value["flawed_data"].values()]), 0


def power(options: argparse.Namespace) -> Output:
    """What the verdicts on published values can decide, before anything is run."""
    folder = registry_folder()
    known = registered(folder)
    _check(options.paper, known)
    found = {name: powering.of_values(load_registry(name, folder)) for name in options.paper or known}
    value = {name: powering.to_json(powers) for name, powers in found.items()}
    return value, powering.text(found, rows=bool(options.paper)), 0


def site(options: argparse.Namespace) -> Output:
    """Writes the pages of a folder of results again, from its rows: also of a run that was stopped in the middle."""
    source = options.source or _results()
    if not any(loading.row_files(source)):
        raise UserError(f"no rows in {source}: run `bench run` first, or name a folder with --from")
    written = write_pages(source)
    return [str(path) for path in written], f"{len(written)} files; the index: {source / 'README.md'}", 0


def accept(options: argparse.Namespace) -> Output:
    """Promotes rows, or what was timed, from runs/ to results/ and writes the pages."""
    if options.without:
        raise UserError("--without leaves rows out of a baseline: name it by --baseline")
    if options.paper == [times.FOLDER]:
        points = times.accept(options.source, options.to)
        files = [*points, *write_pages(options.to)]
        return [str(file) for file in files], f"{len(points)} points accepted; the index: {options.to / 'README.md'}", 0
    known, papers = declared(), options.paper or None
    chosen = accepting.choose(options.source, options.to, papers, known)
    with released.prepared(options.source, options.to, [row for _, row in chosen], known) as networks:
        files = accepting.write(options.source, options.to, papers, known, chosen)
        kept = networks.write()
    written = write_pages(options.to)
    value = {
        "rows": [str(f) for f in files],
        "networks": [str(k) for k in kept],
        "notes": networks.notes,
        "pages": [str(p) for p in written],
    }
    counts = f"{len(files)} rows accepted" + (f", networks released: {len(kept)}" if kept else "")
    return value, "\n".join([*networks.notes, f"{counts}; the index: {options.to / 'README.md'}"]), 0
