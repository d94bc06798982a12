"""Several processes under torchrun: they join, the first one decides and writes, training is shared."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def launched() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process decides and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def start(device: str = "cpu") -> None:
    """Joins the process group under torchrun (NCCL beside gloo on GPUs) and takes the threads of a plain run.

    Without torchrun nothing happens.  Waiting for the first process may take as long as a selection does, hence the
    long timeout.
    """
    if launched() == 1 or distributed.is_initialized():
        return
    torch.set_num_threads(_plain_threads())
    backend = "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=datetime.timedelta(hours=24))


def _plain_threads() -> int:
    """The threads that a process has which torchrun did not start: it sets OMP_NUM_THREADS to 1 where nobody did."""
    if os.environ.get("OMP_NUM_THREADS") != "1" or _user_s_own("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    asked = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    return int(subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout)


def _user_s_own(name: str) -> bool:
    """Whether torchrun itself was started with the variable (Linux tells; elsewhere it is taken for torchrun's)."""
    try:
        started = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return False
    return any(entry.startswith(f"{name}=".encode()) for entry in started.split(b"\0"))


def told(value: T) -> T:
    """The first process's ``value``, in every process: each gives its own and all get that one."""
    if not distributed.is_initialized():
        return value
    box: list[Any] = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def agreed(failure: str | None) -> str | None:
    """Waits for all processes; the ``failure`` of the first that had one, in every process."""
    if not distributed.is_initialized():
        return failure
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, failure)
    return next((text for text in found if text is not None), None)


def summed(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values
