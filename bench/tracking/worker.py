"""The processes that speak to W&B: ``python -m bench.tracking.worker write | send``, in the output folder.

They read one JSON request a line and answer with one line: the run's ``id`` and its ``content`` (a digest), with the
``folder`` of a run that was written, ``sent`` for one that reached the server, or the ``error``.  The writer writes
offline runs and never touches the network; the sender replays them.  A process of its own, because a server that hangs
must not hold up who measures; it imports nothing of the suite that would take time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# seconds between two samples of the system's load
SAMPLING = 5.0


def main(role: str) -> None:
    """Answers requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # W&B prints; what it says goes where the errors go
    handle: Callable[[dict[str, Any]], dict[str, Any] | None] = Writer().handle if role == "write" else send
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = handle(request)
        except Exception as error:  # a run that cannot be mirrored costs no other
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        if answer is not None:
            about = {name: request[name] for name in ("id", "content")}
            print(json.dumps({**about, **answer}), file=answers, flush=True)


class Writer:
    """Writes offline runs into ``wandb/`` of the working folder."""

    def __init__(self) -> None:
        import wandb

        self.wandb = wandb
        logging.getLogger("wandb").setLevel(logging.ERROR)
        self.open: dict[str, Any] = {}

    def handle(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """``open`` begins a run and the sampling of the system's load, ``write`` writes it, ``drop`` forgets it."""
        if request["do"] == "open":
            self.open[request["id"]] = self._init(request, watched=True)
            return None
        run = self.open.pop(request["id"], None)
        if request["do"] == "drop":
            if run is not None:
                run.finish(exit_code=1)
                shutil.rmtree(Path(run.dir).parent, ignore_errors=True)
            return None
        if run is None:
            run = self._init(request, watched=False)
        folder = Path(run.dir).parent
        try:
            self._fill(run, request, folder)
        finally:
            run.finish()
        for name in ("logs", "tmp"):  # of no use any more, and full of this machine's paths
            shutil.rmtree(folder / name, ignore_errors=True)
        return {"folder": folder.name}

    def _init(self, request: dict[str, Any], watched: bool) -> Any:
        settings = self.wandb.Settings(
            mode="offline",
            project=request["project"],
            run_id=request["id"],
            run_name=request["name"],
            run_group=request["group"],
            run_job_type=request["kind"],
            root_dir=os.getcwd(),
            use_dot_wandb=False,
            reinit="create_new",
            console="off",
            silent=True,
            symlink=False,
            sagemaker_disable=True,
            # nothing of the machine but its load; nothing of the user; the provenance says what made the numbers
            host="-",
            username="-",
            email="-",
            program="-",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            label_disable=True,
            save_code=False,
            x_disable_meta=True,
            x_save_requirements=False,
            x_disable_stats=not watched,
            x_stats_pid=request["pid"],
            x_stats_track_process_tree=True,
            x_stats_sampling_interval=SAMPLING,
            x_stats_disk_paths=(),
        )
        return self.wandb.init(settings=settings)

    def _fill(self, run: Any, request: dict[str, Any], folder: Path) -> None:
        wandb = self.wandb
        run.tags = tuple(request["tags"])
        run.config.update(request["config"])
        if request["history"]:
            run.define_metric("*", step_metric=request["axis"])
        for line in request["history"]:
            run.log(line)
        media: dict[str, Any] = {}
        for name, (columns, rows) in request["tables"].items():
            media[name] = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            # bound to its run it is a file of the run, and no artifact with a name and a version of its own
            media[name].bind_to_run(run, name, len(request["history"]))
        media |= {name: wandb.Image(path) for name, path in request["images"].items()}
        if media:
            run.log(media)
        for name, value in request["summary"].items():
            run.summary[name] = value
        if request["files"]:
            artifact = wandb.Artifact(f"network-{request['id']}", type="network")
            for name, value in request["made"].items():
                made = Path(os.path.relpath(folder)) / name
                made.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
                request["files"][name] = str(made)
            for name, path in request["files"].items():
                artifact.add_file(path, name=name, policy="immutable", skip_cache=True)
            run.log_artifact(artifact)


def send(request: dict[str, Any]) -> dict[str, Any] | None:
    """Replays the offline run in a folder of ``wandb/``; W&B marks it when the server has all of it."""
    from wandb.cli import cli

    if request["do"] == "warm":  # the imports were all
        return None
    folder = Path("wandb") / request["folder"]
    for marker in folder.glob("*.synced"):  # of another server, or project
        marker.unlink()
    for state in folder.glob("*.syncstate"):
        state.unlink()
    where = [part for name in ("project", "entity") if request[name] for part in (f"--{name}", request[name])]
    with contextlib.redirect_stdout(sys.stderr):
        cli.sync.main([*where, "--include-synced", str(folder)], standalone_mode=False)
    if not any(folder.glob("*.synced")):
        return {"error": "the server did not take it"}
    return {"sent": True}


if __name__ == "__main__":
    main(sys.argv[1])
