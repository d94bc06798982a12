"""What keeps the mirror while a command runs: writes runs as rows end, sends them, and waits for neither for long."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.store import write_json
from bench.tracking import modes
from bench.tracking.mirror import EPOCH, Run
from bench.tracking.modes import Target

# a row that takes longer is watched: its run is opened, and the system's load is sampled
WATCHED_AFTER = 2.0
# seconds without a run that reached the server (that was written) after which a command ends all the same
SERVER_PATIENCE, WRITER_PATIENCE = 4.5, 60.0
# `bench sync` waits for large networks to arrive, but not for a server that refused so many runs in a row
SYNC_PATIENCE, REFUSALS = 300.0, 3
# of the environment, all that the sender is told of W&B
_KEPT = ("API_KEY", "BASE_URL", "IDENTITY_TOKEN_FILE", "CREDENTIALS_FILE", "CONFIG_DIR", "INSECURE_DISABLE_SSL")
Say = Callable[[str], None]


class Worker:
    """A process of :mod:`bench.tracking.worker`: requests go in without waiting, answers are collected by a thread."""

    def __init__(self, role: str, out: Path) -> None:
        folder = out / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{role}.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.tracking.worker", role],
                cwd=out,
                env=_environment(role, folder.resolve()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.waiting = 0
        self.heard = time.monotonic()
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        for task in (self._feed, self._listen):
            threading.Thread(target=task, daemon=True).start()

    def ask(self, request: dict[str, Any], answered: bool = True) -> None:
        """Hands over a request; ``answered`` ones are waited for."""
        self.waiting += answered
        self.requests.put(request)

    def answered(self, patience: float) -> Iterator[dict[str, Any]]:
        """The answers to all that was asked, as they come; it gives up ``patience`` seconds after the last success."""
        begin = time.monotonic()
        while self.waiting:
            left = max(begin, self.heard) + patience - time.monotonic()
            try:
                answer = self.answers.get(timeout=min(max(left, 0.0), 0.1))
            except queue.Empty:
                if left <= 0.0 or (self.process.poll() is not None and self.answers.empty()):
                    return
                continue
            self.waiting -= 1
            yield answer

    def close(self) -> None:
        """Ends the process at once; W&B's own service ends with it."""
        self.requests.put(None)
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _feed(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended
            while (request := self.requests.get()) is not None:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
            self.process.stdin.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            if "error" not in answer:
                self.heard = time.monotonic()
            self.answers.put(answer)


def _environment(role: str, folder: Path) -> dict[str, str]:
    """The environment of a worker: no settings of other runs, for the writer no secrets; few, short tries to send."""
    kept = {f"WANDB_{name}" for name in _KEPT} if role == "send" else set()
    found = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") or name in kept}
    path = str(Path(__file__).resolve().parents[2])
    found["PYTHONPATH"] = os.pathsep.join(part for part in (path, found.get("PYTHONPATH")) if part)
    own = str(folder / "cache")
    found |= {"WANDB_DATA_DIR": own, "WANDB_CACHE_DIR": own, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    if role == "write":
        found["WANDB_CONFIG_DIR"] = own
    for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER"):
        found |= {f"WANDB__{part}_RETRY_MAX": "3", f"WANDB__{part}_TIMEOUT_SECONDS": "20"}
        found |= {f"WANDB__{part}_RETRY_WAIT_MIN_SECONDS": "1", f"WANDB__{part}_RETRY_WAIT_MAX_SECONDS": "4"}
    return found


class Notes:
    """What of the mirror is written and what has reached which server: a file for each run beside the runs."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "wandb"

    def of(self, run_id: str) -> dict[str, Any]:
        """``digest`` and ``folder`` of the run as written, ``sent`` the digests by target; empty for none."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "mirror" / f"{run_id}.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def is_written(self, run: Run) -> bool:
        """Whether this content has its offline run."""
        note = self.of(run.id)
        return note.get("digest") == run.digest and (self.folder / note["folder"]).is_dir()

    def is_sent(self, run: Run, target: Target) -> bool:
        """Whether this content has reached the server."""
        return bool(self.of(run.id).get("sent", {}).get(target.name) == run.digest)

    def wrote(self, run_id: str, content: str, folder: str) -> None:
        """Notes that a run was written; what was written of it before goes."""
        self._write(run_id, {**self.of(run_id), "digest": content, "folder": folder})
        for other in self.folder.glob(f"offline-run-*-{run_id}"):
            if other.name != folder:
                shutil.rmtree(other, ignore_errors=True)

    def sent(self, run_id: str, content: str, target: Target) -> None:
        """Notes that a run has reached the server."""
        note = self.of(run_id)
        self._write(run_id, {**note, "sent": {**note.get("sent", {}), target.name: content}})

    def _write(self, run_id: str, note: Mapping[str, Any]) -> None:
        write_json(self.folder / "mirror" / f"{run_id}.json", dict(note))


class Tracker:
    """Mirrors the runs of one output folder; nothing that goes wrong here raises, and no server is waited for long."""

    def __init__(self, out: Path, mode: str) -> None:
        self.notes = Notes(out)
        self.target = modes.target()
        self.out = out
        self.sender = Worker("send", out) if mode == modes.ONLINE else None
        if self.sender is not None:
            self.sender.ask({"id": "", "content": "", "do": "warm"}, answered=False)
        self.timer: threading.Timer | None = None
        self.opened: set[str] = set()
        self.asked: set[tuple[str, str]] = set()  # runs and their contents that the writer has, and the sender
        self.sending: set[tuple[str, str]] = set()
        self.errors: dict[str, str] = {}
        self.refusals = 0

    @functools.cached_property
    def writer(self) -> Worker:
        """The process that writes; it starts when it is first needed."""
        return Worker("write", self.out)

    @property
    def _writing(self) -> Worker | None:
        return self.__dict__.get("writer")

    def began(self, run_id: str, name: str, group: str) -> None:
        """A row's work begins; where it takes long, its run is opened meanwhile."""

        def open_() -> None:
            self.opened.add(run_id)
            self.writer.ask(self._about(run_id, name, group, "row") | {"do": "open"}, answered=False)

        self.timer = threading.Timer(WATCHED_AFTER, open_)
        self.timer.daemon = True
        self.timer.start()

    def ended(self, run_id: str, make: Callable[[], Run | None]) -> None:
        """The row's work has ended; what ``make`` gives is written now where it was watched; None for a failed row."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer.join()
        if run_id not in self.opened:
            return  # it comes with the others at the end
        self.opened.discard(run_id)
        run = None
        try:
            run = make()
        except Exception as error:  # the mirror costs no row
            self.errors[run_id] = str(error)
        if run is None or run.id != run_id or self.notes.is_written(run):
            self.writer.ask({"id": run_id, "do": "drop"}, answered=False)
        else:
            self._write(run)
        self._hear(0.0, 0.0)

    def finish(self, runs: Sequence[Run], patience: float = SERVER_PATIENCE) -> tuple[int, int]:
        """Writes those of ``runs`` that are not, sends what did not reach the server, and closes.

        Returns how many of ``runs`` are written and, where they are to be sent, how many the server has.
        """
        for run in runs:
            if (run.id, run.digest) not in self.asked and not self.notes.is_written(run):
                self._write(run)
        self._hear(WRITER_PATIENCE, 0.0)
        if self._writing is not None:
            self._writing.requests.put(None)  # it ends while the sender is listened to
        for run in runs:
            if self.notes.is_written(run) and not self.notes.is_sent(run, self.target):
                self._send(run.id, run.digest, self.notes.of(run.id)["folder"])
        self._hear(0.0, patience)
        self.close()
        sent = sum(self.notes.is_sent(run, self.target) for run in runs) if self.sender is not None else 0
        return sum(map(self.notes.is_written, runs)), sent

    def close(self) -> None:
        """Ends at once, without waiting for anything."""
        if self.timer is not None:
            self.timer.cancel()
        for worker in (self._writing, self.sender):
            if worker is not None:
                worker.close()

    def _about(self, run_id: str, name: str, group: str, kind: str) -> dict[str, Any]:
        about = {"id": run_id, "name": name, "group": group, "kind": kind}
        return {**about, "project": self.target.project, "pid": os.getpid()}

    def _write(self, run: Run) -> None:
        self.asked.add((run.id, run.digest))
        about = self._about(run.id, run.name, run.group, run.kind)
        self.writer.ask({**run.to_json(), **about, "do": "write", "content": run.digest, "axis": EPOCH})

    def _send(self, run_id: str, content: str, folder: str) -> None:
        """Hands a written run to the sender, where there is one and it does not have it already."""
        if self.sender is not None and (run_id, content) not in self.sending:
            self.sending.add((run_id, content))
            where = {"project": self.target.project, "entity": self.target.entity}
            self.sender.ask({"id": run_id, "content": content, "do": "send", "folder": folder, **where})

    def _hear(self, writer: float, server: float) -> None:
        """Notes what was written and hands it on, and what was sent; waits at most so long for the next of either."""
        for answer in self._writing.answered(writer) if self._writing is not None else ():
            if "error" in answer:
                self.errors[answer["id"]] = answer["error"]
            else:
                self.notes.wrote(answer["id"], answer["content"], answer["folder"])
                self._send(answer["id"], answer["content"], answer["folder"])
        for answer in self.sender.answered(server) if self.sender is not None else ():
            if "error" in answer:
                self.errors[answer["id"]] = answer["error"]
                self.refusals += 1
                if self.refusals >= REFUSALS:
                    return
            else:
                self.refusals = 0
                self.errors.pop(answer["id"], None)
                self.notes.sent(answer["id"], answer["content"], self.target)
