"""``bench nightly``, ``bench check`` and ``bench history``; every one returns (JSON value, text, exit status)."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import planning, processes, threads
from bench.commands import Output, checked_pages, declared, job_of, mirror_of, registry_folder, write_pages
from bench.errors import UserError
from bench.nightly import baseline, compared, matching, networks, night, order, summary
from bench.nightly import check as checking
from bench.nightly import history as remembering
from bench.planning import Job, Planned
from bench.registry import load as load_registry
from bench.report import accept as accepting
from bench.report.load import content, row_files
from bench.store import Store, digest, file_digest, sole, write_text
from bench.tracking import modes

BASELINE = Path("results/baseline")
RESULTS = Path("results")
_NOTHING = "it holds none of these rows in the same setting"


def nightly(options: argparse.Namespace) -> Output:
    """Runs a night, or prints its plan."""
    since = time.monotonic()
    job = job_of(options)
    if options.budget is not None and not options.budget > 0:
        raise UserError(f"--budget {options.budget:g} leaves no time: give minutes")
    if options.jobs < 1:
        raise UserError("--jobs needs 1 or more")
    if processes.launched() > 1:
        raise UserError("a night gives each row one process: leave out torchrun")
    with threads.sharing(options.jobs):
        return _nightly(options, job, since)


def _nightly(options: argparse.Namespace, job: Job, since: float) -> Output:
    base = options.baseline or (BASELINE if BASELINE.is_dir() else None)
    if base is not None:
        checking.measured(base)
    checked_pages(options.out)
    chosen, broken = order.chosen(options.paper)
    planned = order.planned(chosen, job)
    keys = dict.fromkeys(entry.paper.key for entry in planned)
    published = {key: load_registry(key, registry_folder()) for key in keys}
    worths = {entry.id: order.worth(entry, published[entry.paper.key]) for entry in planned}
    planned += broken
    limit = night.for_rows(options.budget, len(networks.found(RESULTS, {entry.paper.key for entry in planned})))
    if options.plan:
        return _plan(planned, worths, job, limit, options.jobs)
    able = [entry for entry in planned if entry.chain is not None]
    arguments = {
        "papers": list(options.paper),
        "scale": options.scale,
        "seed": options.seed,
        "device": job.device,
        "weights": None if job.weights is None else file_digest(job.weights),
        "protocol": job.protocol,
        "data": str(job.data),
        # the code, committed or not, the data and the packages
        "steps": digest(sorted(step.key for step, _ in planning.steps_of(able))),
    }
    mode = modes.chosen(options.wandb)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with night.alone(options.out):
        begun = night.begin(options.out, arguments)
        rest = None if limit is None else limit - (time.monotonic() - since) / 60.0
        left = [entry for entry in able if entry.id not in begun.rows]
        if begun.rows and not _any_ends(left, job, None if rest is None else rest - begun.minutes, begun.measured):
            # it was stopped with no row left, or no time for one: this is the next night
            if (stopped := night.last(options.out)) is not None:
                night.keep(options.out, replace(stopped, ended=True))
            begun = night.begin(options.out, arguments)
        if rest is not None and not begun.rows:
            _check_budget(able, job, options.budget, rest)
        try:
            night.run(begun, planned, worths, job, options.budget, RESULTS, say, options.jobs, since)
        finally:
            value, text, status = _told(begun, options.out, base, say, asked=options.baseline is not None)
    if planning.scripts()[1]:  # also of a paper that this night was not asked for: the pages are of all
        say("no pages are written and nothing is mirrored while a paper's script cannot be imported")
        return value, text, status
    value["pages"] = [str(path) for path in write_pages(options.out)]
    watch = None if mode == modes.DISABLED else mirror_of(options.out, list(keys), mode, say)
    if watch is not None:
        try:
            watch.finish()
        finally:
            watch.close()
    return value, text, status


def _told(done: night.Night, out: Path, base: Path | None, say: Callable[[str], None], asked: bool = True) -> Output:
    """Compares what the night did, writes its summary and JUnit file, and says both.

    Where they cannot be written, on a full disk, the summary is still said, also to GitHub's page.  A baseline that was
    ``asked`` for and holds none of the rows in their setting makes the status 1; the project's own may be of others.
    """
    checked: list[checking.RowCheck] = []
    problem, fails = "", True
    try:
        checked = [] if base is None else checking.check(out, base, done)
        # what ended badly is told as that
        checked = [row for row in checked if not row.missing or row.id not in done.rows or row.id in done.files]
        if base is not None and done.files and not compares(checked):
            problem, fails = _NOTHING, asked
    except UserError as error:  # what the night found is kept whatever became of the baseline
        problem = str(error)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        problem = f"{type(error).__name__}: {error}"
    entries = remembering.read(out)
    drifts = remembering.drifts([one for one in entries if one.row in done.rows])
    changes = night.data_changes(entries, done.number)
    page = summary.markdown(done, checked, drifts, changes, None if base is None else str(base), problem)
    place = night.folder(out, done.number)
    try:
        write_text(place / "summary.md", page)
        write_text(place / "junit.xml", summary.junit(done, checked))
    except UserError:
        say(page)
        raise
    finally:
        _to_github(page, say)
    status = summary.status(done, checked, problem if fails else "")
    value = {
        "night": asdict(done),
        "check": checking.to_json(checked),
        "not_compared": problem,
        "drifts": [{"row": row, "metric": metric, "since": since} for row, metric, since, _ in drifts],
        "data_changes": changes,
        "status": status,
        "summary": str(place / "summary.md"),
        "junit": str(place / "junit.xml"),
    }
    return value, page, status


def _to_github(page: str, say: Callable[[str], None]) -> None:
    """Adds the summary to the page of GitHub's step, where there is one."""
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(step).open("a", encoding="utf-8") as file:
                file.write(page)
        except OSError as error:
            say(f"the summary is not on GitHub's page ({error})")


def _any_ends(able: Sequence[Planned], job: Job, minutes: float | None, measured: Set[str]) -> bool:
    """Whether any row would end within the minutes; ``measured`` is what the night has behind it."""
    if minutes is None:
        return bool(able)
    costs = order.Costs(able, Store(job.out), measured)
    return any(costs.minutes(entry) <= minutes for entry in able)


def _check_budget(able: Sequence[Planned], job: Job, budget: float, rest: float) -> None:
    """Raises :class:`UserError` where no row would end within the ``rest`` of the budget (minutes)."""
    costs = order.Costs(able, Store(job.out))
    least = min((costs.minutes(entry) for entry in able), default=0.0)
    if able and least > rest:
        raise UserError(
            f"no row ends within --budget {budget:g}, of which {max(0.0, rest):.1f} minutes are left for rows: "
            f"the shortest takes about {least:.1f} minutes"
        )


def _plan(planned: Sequence[Planned], worths: dict[str, float], job: Job, budget: float | None, jobs: int) -> Output:
    store = Store(job.out) if job.out.exists() else None
    able = [order.Candidate(entry, worths[entry.id]) for entry in planned if entry.chain is not None]
    costs = order.Costs([one.entry for one in able], store)
    taken, left = order.within(order.in_order(able, store), costs, budget, jobs)
    again, total = order.Costs([one.entry for one in able], store), 0.0
    for one in taken:
        total += again.spent(one.entry, jobs)
        again.assume(one.entry)
    lines, rows = [], []
    for fits, one in [*((True, one) for one in taken), *((False, one) for one in left)]:
        lines.append(f"{one.minutes:7.1f} min  {one.entry.id}{'' if fits else '  (no time)'}")
        rows.append({"row": one.entry.id, "minutes": one.minutes, "worth": one.worth, "fits": fits})
    absent = [entry for entry in planned if entry.chain is None]
    lines += [f"    not run  {entry.id} ({entry.reason})" for entry in absent]
    lines.append(f"{planning.minutes(total)} on this {job.device}; nothing was run")
    return {"rows": rows, "minutes": total}, "\n".join(lines), 0


def check(options: argparse.Namespace) -> Output:
    """Compares a run with the baseline."""
    if not options.out.is_dir():
        raise UserError(f"no runs in {options.out}: name their folder with --out")
    planning.scripts()  # they declare metrics of their own
    found = checking.check(options.out, options.baseline or BASELINE, night.last(options.out))
    said, failed = checking.text(found), any(row.failed for row in found)
    if not compares(found):
        reason = f"the baseline is not compared: {_NOTHING}"
        said, failed = f"{said}\n{reason}".lstrip(), True
        if options.json:  # rows alone do not say it
            print(reason, file=sys.stderr, flush=True)
    return checking.to_json(found), said, int(failed)


def compares(found: Sequence[checking.RowCheck]) -> bool:
    """Whether anything was compared, or is missing."""
    return any(row.word is not compared.Word.OTHER for row in found)


def accept(options: argparse.Namespace) -> Output:
    """Promotes rows and their predictions to a baseline: of a folder with nights those of the last one."""
    runs, folder = options.source, options.baseline
    baseline.check_place(folder)
    if not (runs / "nightly").is_dir():
        return _accepted(options, None)
    busy = f"a night is at work in {runs}: wait for its end"
    with sole(runs / "nightly" / "lock", busy):
        return _accepted(options, night.last(runs))


def _accepted(options: argparse.Namespace, done: night.Night | None) -> Output:
    runs, folder, known = options.source, options.baseline, declared()
    for name in options.without:
        failed = done is not None and name in done.rows  # also of a row that no script has any more
        if not failed and not any(name in rows for rows in known.values()):
            raise UserError(f"--without {name}: no script has this row, see `bench list`")
    if done is None:
        files = {path: content(path)["id"] for path in row_files(runs)}
        left: list[str] = []
    else:
        papers = options.paper or sorted({name.partition("/")[0] for name in done.rows})
        _check_night(done, runs, papers, options.without)
        files = {path: name for name, path in matching.files_of(done, runs).items()}
        left = [name for name in done.left if name.partition("/")[0] in papers]
    wanted = options.paper or sorted({name.partition("/")[0] for name in files.values()})
    only = {path for path, name in files.items() if name not in options.without}
    chosen = accepting.choose(runs, folder, wanted, known, only=only)
    if not chosen:
        raise UserError(f"no measured rows of {', '.join(wanted) or 'any paper'} in {runs}: nothing was accepted")
    before = set(row_files(folder))
    kept = baseline.write(folder, chosen, Store(runs))
    written = accepting.write(runs, folder, wanted, known, chosen)
    baseline.clear(folder, chosen, (lambda row: False) if done is None else partial(matching.dropped, done=done))
    now = set(row_files(folder))
    removed = sorted(before - now)
    older = {content(path)["id"] for path in now} & set(left)
    value = {
        "rows": [str(file) for file in written],
        "predictions": [str(path) for path in kept],
        "removed": [str(path) for path in removed],
        "left": left,
    }
    text = f"{len(written)} rows are the baseline {folder}, {len(kept)} with predictions"
    text += f"; {len(removed)} older ones went" if removed else ""
    if left:
        text += f"; for {len(left)} planned rows the night had no time: {len(left) - len(older)} are missing"
        text += f", {len(older)} stay as they were" if older else ""
    return value, text, 0


def _check_night(done: night.Night, runs: Path, papers: Sequence[str], without: Sequence[str]) -> None:
    """Raises :class:`UserError` unless a night is whole, but for rows that are left out and want of time."""
    if not done.ended:
        raise UserError(f"night {done.number} in {runs} was stopped: run the same `bench nightly` to its end")
    failed = [one.id for one in done.failed if one.id.partition("/")[0] in papers and one.id not in without]
    if failed:
        names = " ".join(failed)
        raise UserError(
            f"{len(failed)} rows failed in night {done.number} in {runs}: run another night, or leave them out by "
            f"--without {names}"
        )
    for name, path in matching.files_of(done, runs).items():
        if path.parts[-4] in papers and name not in without and not path.exists():
            raise UserError(f"{path} has gone, which night {done.number} wrote: run another night")


def history(options: argparse.Namespace) -> Output:
    """Draws a row's nights."""
    planning.scripts()  # they declare metrics of their own
    entries = remembering.read(options.out)
    if not entries:
        raise UserError(f"no nights in {options.out}: run `bench nightly` first, or name the folder with --out")
    ids = list(dict.fromkeys(one.row for one in entries))
    named = [name for name in ids if options.row in (name, name.rpartition("/")[2])]
    named = named or [name for name in ids if options.row.lower() in name]
    if len(named) != 1:
        raise UserError(f"{options.row!r} names {len(named)} rows: choose one of {', '.join(named or ids)}")
    (row,) = named
    own = [one for one in entries if one.row == row]
    value: dict[str, Any] = {
        "row": row,
        "metrics": {metric: remembering.series(entries, row, metric) for metric in remembering.judged(own)},
        "drifts": [
            {"metric": metric, "since": since, "direction": found.direction, "shift": found.shift}
            for _, metric, since, found in remembering.drifts(own)
        ],
    }
    value["metrics"] = {name: points for name, points in value["metrics"].items() if points}
    return value, remembering.text(own, row), 0
