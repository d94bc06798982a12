"""Forked children, for tests that kill a process or need several: no interpreter is started, nothing imported again."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch

_SECONDS = 300.0


def begun(function: Callable[..., object], *given: Any) -> BaseProcess:
    """``function(*given)`` begun in a forked process, on one thread: the parent's pool of threads is not in it.

    Nor are the threads by which autograd serves a GPU: on a machine that has one the test is skipped.
    """
    if torch.cuda.is_available():
        pytest.skip("a process that has trained beside a GPU cannot be forked to train again")
    process = multiprocessing.get_context("fork").Process(target=_on_one_thread, args=(function, given))
    process.start()
    return process


def done(function: Callable[..., object], *given: Any) -> int | None:
    """The exit status of ``function(*given)`` in a forked process; minus the signal that ended it."""
    process = begun(function, *given)
    process.join(_SECONDS)
    process.kill()  # one that waits for ever does not hold up the tests
    process.join()
    return process.exitcode


def two_ranks(function: Callable[..., object], *given: Any) -> None:
    """``function(*given)`` in two processes at once, in the environment that torchrun makes for its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [begun(_as_rank, rank, port, function, given) for rank in range(2)]
    try:
        for process in processes:
            process.join(_SECONDS)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:  # where one has failed the other would wait for it
            process.kill()


def _on_one_thread(function: Callable[..., object], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(*given)


def _as_rank(rank: int, port: int, function: Callable[..., object], given: tuple[Any, ...]) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    function(*given)
