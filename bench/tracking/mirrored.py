"""The mirror of an output folder: the runs of its rows and papers, kept while a command runs or made afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import registry
from bench.report.load import RAN, Line, content, read, row_files
from bench.report.pages import About
from bench.report.tables import build_all
from bench.store import digest
from bench.tracking import mirror, modes
from bench.tracking.mirror import Run
from bench.tracking.tracker import SYNC_PATIENCE, Notes, Say, Tracker


def runs(root: Path, folder: Path, papers: Mapping[str, About]) -> list[Run]:
    """The runs of all rows of ``papers`` that ran, and of these papers; ``folder`` holds the registry."""
    found: list[Run] = []
    for paper, lines in read(root, folder, {name: about.rows for name, about in papers.items()}).items():
        by_setting = {_place(line.id, line.setting): line for line in lines}
        for value in map(content, row_files(root, paper)):
            if value["status"] == RAN and value["id"] in papers[paper].rows:
                found.append(mirror.of_row(root, value, by_setting.get(_place(value["id"], value["setting"]))))
        tables = build_all(lines, registry.load(paper, folder))
        figures = sorted((root / paper / "figures").glob("*/*.png"))
        found.append(mirror.of_paper(root, paper, papers[paper].title, tables, figures))
    return found


def _place(name: str, setting: Mapping[str, Any]) -> str:
    return digest([name, dict(setting)])


class Mirrored:
    """A reproduction run with its mirror: told of each row's begin and end, and of the end of all."""

    def __init__(self, root: Path, folder: Path, papers: Mapping[str, About], mode: str, say: Say) -> None:
        self.root, self.folder, self.papers, self.say = root, folder, papers, say
        self.tracker = Tracker(root, mode)
        _ = self.tracker.writer  # ready when the first row ends
        self.row = ""

    def began(self, name: str, setting: Mapping[str, Any]) -> None:
        """The work on a row begins."""
        self.row = mirror.row_run_id(name, setting)
        with self._harmless():
            self.tracker.began(self.row, mirror.run_name(name, setting), name.partition("/")[0])

    def ended(self, file: Path | None) -> None:
        """The work on it has ended; ``file`` holds what it measured, None where it failed."""
        with self._harmless():
            self.tracker.ended(self.row, lambda: None if file is None else self._of(file))

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """What goes wrong is told at the end: it costs no row."""
        try:
            yield
        except Exception as error:
            self.tracker.errors[self.row] = str(error)

    def _of(self, file: Path) -> Run:
        value = content(file)
        paper = value["id"].partition("/")[0]
        lines: Sequence[Line] = read(self.root, self.folder, {paper: self.papers[paper].rows})[paper]
        place = _place(value["id"], value["setting"])
        line = next((line for line in lines if _place(line.id, line.setting) == place), None)
        return mirror.of_row(self.root, value, line)

    def finish(self) -> None:
        """Completes the mirror and says in one line what is left to do; nothing that goes wrong raises."""
        try:
            found = runs(self.root, self.folder, self.papers)
            written, sent = self.tracker.finish(found)
        except Exception as error:  # the numbers are stored; the mirror can be made again
            self.tracker.close()
            self.say(f"W&B: the mirror is not complete ({error}): `bench sync` makes it again")
            return
        for line in told(self.tracker, len(found), written, sent):
            self.say(line)

    def close(self) -> None:
        """Ends at once."""
        self.tracker.close()


def once(root: Path, run: Run, mode: str) -> list[str]:
    """Mirrors one run of the folder ``root``; returns what there is to say."""
    try:
        tracker = Tracker(root, mode)
        said = told(tracker, 1, *tracker.finish([run]))
    except Exception as error:  # the network is saved
        said = [f"W&B: nothing was sent ({error}): run `bench sync`"]
    return [line.replace("run `bench sync`", "run the same command again") for line in said]


def told(tracker: Tracker, count: int, written: int, sent: int) -> list[str]:
    """What there is to say of ``count`` runs that were to be mirrored: how many were, and what became of the others."""
    reason = next(iter(tracker.errors.values()), f"no answer; see {tracker.notes.folder}")
    if written < count:
        return [f"W&B: {count - written} of {count} runs could not be written ({reason}): run `bench sync`"]
    if tracker.sender is not None and sent < count:
        return [
            f"W&B: {count - sent} of {count} runs did not reach {tracker.target.server} ({reason}): run `bench sync`"
        ]
    return []


def sync(root: Path, folder: Path, papers: Mapping[str, About]) -> tuple[int, int, int, list[str]]:
    """Sends all runs of an output folder that the server does not have as they are now.

    Returns how many runs there are, how many the server had, how many it has now, and what went wrong.
    """
    modes.check_login()
    found, notes, target = runs(root, folder, papers), Notes(root), modes.target()
    had = sum(notes.is_sent(run, target) for run in found)
    if had == len(found):
        return had, had, had, []
    tracker = Tracker(root, modes.ONLINE)
    try:
        written, sent = tracker.finish(found, SYNC_PATIENCE)
    finally:
        tracker.close()
    return len(found), had, sent, told(tracker, len(found), written, sent)
