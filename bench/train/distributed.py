"""Data-parallel runs under torchrun: every process walks the same steps, the first one writes, training is shared."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sized

import torch
from mmengine.dataset import DefaultSampler
from torch import distributed


def launched() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes."""
    return int(os.environ.get("RANK", "0")) == 0


def start() -> None:
    """Joins the process group under torchrun (NCCL with GPUs, else gloo); nothing otherwise.

    Waiting for the first process may take as long as a selection does, hence the long timeout.
    """
    if launched() > 1 and not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group(backend, timeout=datetime.timedelta(hours=24))


def barrier() -> None:
    """Waits for all processes."""
    if distributed.is_initialized():
        distributed.barrier()


def sampler(data: Sized, seed: int) -> DefaultSampler:
    """A shuffling sampler over this process's share; ``set_epoch`` changes the order."""
    return DefaultSampler(data, shuffle=True, seed=seed)
