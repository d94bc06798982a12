"""One night: every row that can run, each on its own, the most valuable first; it can be stopped and goes on."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from bench import evaluate, isolated, provenance, runner, side_by_side
from bench.errors import DiskFull, UserError
from bench.nightly import child, history, networks, order
from bench.nightly.child import Report
from bench.nightly.order import Candidate, Costs
from bench.planning import Job, Planned
from bench.side_by_side import Needs
from bench.store import Store, sole, write_json

# a row is stopped at this many times its planned seconds, and not before so many: the plan learns slowly
_PATIENCE, _AT_LEAST = 4.0, 600.0
# so many seconds a row may go on when its part of the budget is over, and so many the networks behind the budget's end
GRACE = 300.0
_ATTEMPTS = 2
_BAD = (runner.FAILED, child.CRASHED, child.HUNG)
STATE = "night.json"


@dataclass
class Night:
    """What a night did so far; ``<out>/nightly/<number>/night.json`` holds it.

    ``arguments`` and ``commit`` tell whether a stopped night may go on.  ``left`` are rows for which the budget or the
    time until the interrupt did not last, with their planned minutes; ``not_run`` those that cannot run here, and
    ``elsewhere`` those for other embedded data than the night takes, with the reason; ``networks`` what became of the
    released networks.  A night has ``ended`` when its rows have: the next
    command begins the next night, whatever became of the networks.
    """

    number: int
    arguments: Mapping[str, Any]
    commit: str | None
    date: str
    rows: dict[str, Report] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    planned: dict[str, float] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    networks: list[dict[str, Any]] = field(default_factory=list)
    minutes: float = 0.0
    ended: bool = False

    @property
    def failed(self) -> list[Report]:
        """The rows that did not end well."""
        return [report for report in self.rows.values() if report.status in _BAD]

    @property
    def files(self) -> dict[str, Path]:
        """The row files that this night wrote, by row."""
        return {
            name: Path(report.file) for name, report in self.rows.items() if report.file and report.status == runner.OK
        }

    @property
    def measured(self) -> set[str]:
        """The steps that this night has measured."""
        return {key for report in self.rows.values() for key in report.measured}


def folder(out: Path, number: int) -> Path:
    """Where a night's files are."""
    return out / "nightly" / f"{number:05d}"


def alone(out: Path) -> contextlib.AbstractContextManager[None]:
    """Within, this is the only night in ``out``.  Raises :class:`UserError` where another is at work."""
    problem = f"another night is at work in {out}: wait for its end, or name another folder by --out"
    return sole(out / "nightly" / "lock", problem)


def begin(out: Path, arguments: Mapping[str, Any]) -> Night:
    """The last night where it was stopped, by the same code and with the same arguments; else a new one.

    Nights are counted: a clock that goes backwards changes nothing.
    """
    numbers = [int(path.name) for path in (out / "nightly").glob("[0-9]*") if path.name.isdigit()]
    commit = provenance.git_state()
    number = max(numbers, default=0) + 1
    if numbers:
        last = _read(out, max(numbers))
        if last is not None and not last.ended and (last.arguments, last.commit) == (arguments, commit):
            return replace(last, left={}, not_run={}, elsewhere={})
        if not (folder(out, max(numbers)) / STATE).exists():
            number = max(numbers)  # its first row did not end, or the disk was full
    return Night(number, arguments, commit, provenance.now())


def _read(out: Path, number: int) -> Night | None:
    try:
        value = json.loads((folder(out, number) / STATE).read_text())
        rows = {
            name: Report(**{**report, "measured": tuple(report["measured"])}) for name, report in value["rows"].items()
        }
        return Night(**{**value, "rows": rows})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # killed before its first row ended


def last(out: Path) -> Night | None:
    """The last night in ``out``, whether it ended or not; None where there is none.

    Raises :class:`UserError` where nothing is known of it: it was killed before its first row ended, or its file is
    damaged.
    """
    numbers = [int(path.name) for path in (out / "nightly").glob("[0-9]*") if path.name.isdigit()]
    if not numbers:
        return None
    found = _read(out, max(numbers))
    if found is None:
        number = max(numbers)
        if (state := folder(out, number) / STATE).exists():
            raise UserError(f"{state} is not readable: remove {state.parent}, or run `bench nightly` again")
        raise UserError(f"night {number} in {out} was stopped before its first row ended: run `bench nightly` again")
    return found


def keep(out: Path, night: Night) -> None:
    """Writes the night's state."""
    write_json(folder(out, night.number) / STATE, asdict(night))


def run(
    night: Night,
    candidates: Sequence[Planned],
    worths: Mapping[str, float],
    job: Job,
    budget: float | None,
    results: Path,
    say: Callable[[str], None],
    jobs: int = 1,
    since: float | None = None,
) -> Night:
    """Runs the rows that the night has not behind it, ``jobs`` at once; returns the same night.

    ``budget`` (minutes) holds what earlier parts of the night took too, and what passed ``since`` (of the monotonic
    clock): a row that would not end within it is left, the next ones are tried.  The networks that ``results`` release
    of these papers are evaluated last.  Whatever ends it, the state is kept.
    """
    store = Store(job.out)
    begun, before = time.monotonic() if since is None else since, night.minutes
    folders = networks.found(results, {entry.paper.key for entry in candidates})
    limit = for_rows(budget, len(folders))
    reasons = {entry.id: str(entry.reason) for entry in candidates if entry.chain is None}
    failed = [entry.id for entry in candidates if isinstance(entry, order.Unplannable)]
    night.elsewhere = {entry.id: reasons[entry.id] for entry in candidates if isinstance(entry, order.Elsewhere)}
    told = {*failed, *night.elsewhere}
    night.not_run = {name: reason for name, reason in reasons.items() if name not in told}
    able = [Candidate(entry, worths[entry.id]) for entry in candidates if entry.chain is not None]
    able = [one for one in able if one.entry.id not in night.rows]
    todo = order.in_order(able, store, night.measured)
    costs = Costs([one.entry for one in todo], store, night.measured)
    night.left = {one.entry.id: round(one.minutes, 2) for one in todo}

    def spent() -> float:
        return before + (time.monotonic() - begun) / 60.0

    def ended(report: Report, tries: int) -> None:
        file = None if report.file is None or report.status != runner.OK else Path(report.file)
        line = history.entry(night.number, report.id, report.status, report.minutes, provenance.now(), file)
        # of lines of one row and night the last one counts; a row that is behind the night is not run again
        history.append(job.out, line)
        night.rows[report.id], night.attempts[report.id] = report, tries
        night.left.pop(report.id, None)
        night.minutes = spent()
        keep(job.out, night)

    def rest() -> float | None:
        return None if limit is None else limit - spent()

    rows = _Rows(todo, costs, job, store, night, jobs, say, runner.users_of(candidates))
    try:
        for name in failed:
            if name not in night.rows:
                ended(Report(name, runner.FAILED, reasons[name]), 1)
        while rows.some_left(rest()):
            for report, tries in rows.wait(rest()):
                ended(report, tries)
            if rows.full is not None:
                raise rows.full
        night.networks = [
            networks.told(name, evaluate.INCOMPARABLE, "the night was stopped before it") for name in folders
        ]
        night.ended, night.minutes = True, spent()
        keep(job.out, night)  # killed from here on, it has ended: the next night is not to go on with it
        if jobs > 1:
            runner.tidied([entry for entry in candidates if entry.chain is not None], job)
        seconds = math.inf if budget is None else 60.0 * (budget - spent()) + GRACE
        with contextlib.closing(networks.evaluated(rows.server, folders, job, seconds, say)) as found:
            for place, one in enumerate(found):
                night.networks[place] = one
    except KeyboardInterrupt as error:
        if night.ended:
            raise KeyboardInterrupt("stopped; its rows are done: the same command begins the next night") from error
        raise
    finally:
        rows.stop()
        night.minutes = spent()
        night.left = {one.entry.id: round(costs.minutes(one.entry), 2) for one in todo if one.entry.id in night.left}
        keep(job.out, night)
    return night


def for_rows(budget: float | None, count: int) -> float | None:
    """What a night's rows may take of its budget (minutes), where so many released networks follow them."""
    return None if budget is None else budget - networks.minutes(count, budget)


class _Rows:
    """The rows of a night, ``jobs`` at once in their order; what ends badly is tried once more."""

    def __init__(
        self,
        todo: Sequence[Candidate],
        costs: Costs,
        job: Job,
        store: Store,
        night: Night,
        jobs: int,
        say: Callable[[str], None],
        users: Mapping[str, set[str]],
    ) -> None:
        self.full: DiskFull | None = None
        self.users = users
        self.queue, self.costs, self.job, self.store = list(todo), costs, job, store
        self.night, self.jobs, self.say = night, jobs, say
        self.places = {one.entry.id: place for place, one in enumerate(todo)}
        self.labels = {name: f"[row {place + 1}/{len(todo)}] " for name, place in self.places.items()}
        self.needs = {one.entry.id: Needs(one.entry) for one in todo}
        self.server = isolated.server("bench.nightly.child", [(one.entry.id, one.entry.scale) for one in todo])
        self.running: dict[str, tuple[Candidate, int, child.Running]] = {}
        needs = [self.needs[one.entry.id] for one in todo]
        seconds = {key: costs.seconds(key) for one in needs for key in one.needed}
        self.loads = side_by_side.Loads(needs, seconds)

    def some_left(self, minutes: float | None) -> bool:
        """Starts what can start and would end within ``minutes``; whether any row runs."""
        while len(self.running) < self.jobs and (one := self._next(minutes)) is not None:
            self.queue.remove(one)
            self._start(one, 1, minutes)
        return bool(self.running)

    def _next(self, minutes: float | None) -> Candidate | None:
        """The first row that fits and can run beside the others; None while there is none.

        What does not fit now may later, when another row has made what both need.
        """
        fitting = [one for one in self.queue if minutes is None or self.costs.minutes(one.entry) <= minutes]
        for rows in (self._urgent(fitting, minutes), fitting):
            queue = [self.needs[one.entry.id] for one in rows]
            beside = [self.needs[name] for name in self.running]
            place = side_by_side.free(queue, beside, self.store, order.FRESH, self.night.measured)
            if place is not None:
                return rows[place]
        return None

    def _urgent(self, rows: Sequence[Candidate], minutes: float | None) -> list[Candidate]:
        """Where time is left for all rows, those that would outlast the others if they began after them.

        A row counts with all that waits for it: at the end of a night nothing would run beside it.
        """
        left = {self.places[one.entry.id] for one in self.queue}
        rest = sum(self.loads.own[place] for place in left)
        if self.jobs == 1 or (minutes is not None and rest / self.jobs > 60.0 * minutes):
            return []
        return [one for one in rows if self.jobs * self.loads.behind(self.places[one.entry.id], left) >= rest > 0.0]

    def _start(self, one: Candidate, attempt: int, rest: float | None) -> None:
        name, minutes = one.entry.id, self.costs.minutes(one.entry)
        self.night.planned[name] = round(minutes, 2)
        limit = max(_AT_LEAST, _PATIENCE * 60.0 * minutes)
        if rest is not None:
            limit = min(limit, 60.0 * rest + GRACE)
        users = {key: self.users[key] for key in self.needs[name].needed if key in self.users}
        more = users, self.jobs > 1, self.labels[name]
        row = child.Running(self.server, one.entry, self.job, self.night.measured, limit, *more)
        self.running[name] = one, attempt, row

    def wait(self, minutes: float | None) -> list[tuple[Report, int]]:
        """The reports, with the number of attempts, of rows that ended within a few seconds.

        There is no second attempt that would not end within ``minutes``.
        """
        rows = [row for _, _, row in self.running.values()]
        # what the others wait for may be stored before its row ends
        patience = min(runner.LOOK, *(row.left for row in rows))
        connection.wait([row.receiver for row in rows], patience)
        found = []
        for name, (one, attempt, row) in list(self.running.items()):
            try:
                report = row.report()
            except DiskFull as error:  # every row would fail of it
                self.full = error
                del self.running[name]
                continue
            if report is None:
                continue
            del self.running[name]
            retried = report.status in _BAD and attempt < _ATTEMPTS
            retried = retried and (minutes is None or self.costs.minutes(one.entry) <= minutes)
            self.costs.look(one.entry, self.night.measured | (set() if retried else set(report.measured)))
            if report.status in _BAD:
                again = "trying once more" if retried else "given up"
                self.say(f"{self.labels[name]}{name}: {report.status}: {report.reason}; {again}")
                if retried:
                    self._start(one, attempt + 1, minutes)
                    continue
            found.append((report, attempt))
        return found

    def stop(self) -> None:
        """No row runs any more."""
        for _, _, row in self.running.values():
            row.stop()


def data_changes(entries: Sequence[history.Entry], number: int) -> list[str]:
    """Rows whose data set is not the one of the night that measured them last, in words."""
    found: dict[tuple[str, str, str], int] = {}
    for now in (one for one in entries if one.night == number and one.data):
        before = [one for one in entries if one.night < number and (one.row, one.setting) == (now.row, now.setting)]
        last = before[-1] if before else now
        if last.data is not None and last.data != now.data:
            place = now.setting, last.data, str(now.data)
            found[place] = found.get(place, 0) + 1
    return [
        f"the data of {count} rows ({setting}) are other ones than last time ({old[:12]} before, {new[:12]} now): "
        "their numbers are about these"
        for (setting, old, new), count in found.items()
    ]
