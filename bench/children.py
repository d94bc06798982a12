"""Processes that this one starts: how they begin and end, and a function in an interpreter of its own."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from bench import memory, threads

T = TypeVar("T")
# seconds that a process gets between the polite signal and the other one
_GRACE = 10.0


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """What is started within does not hear Ctrl-C, which reaches every process of a terminal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """What is started within has these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def begin(count: int, of: int) -> None:
    """What such a process does first: it takes ``count`` threads ``of`` so many, and its starter decides when it ends.

    Ctrl-C reaches every process of a terminal, and one of them has to say so; a starter that is killed says nothing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what is stored is whole at any moment
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    # of threads alone: the one that it would make for processes is a semaphore, left behind by who is terminated
    tqdm.set_lock(threading.RLock())
    threads.take(count, of)
    memory.settle()


def _end_with(starter: Any) -> None:
    starter.join()
    os._exit(1)


def stop(process: Any) -> None:
    """The process has ended afterwards: by itself, else by SIGTERM, else by SIGKILL."""
    process.join(0.5)
    for end in (process.terminate, process.kill):
        if process.is_alive():
            end()
            process.join(_GRACE)


def death(process: Any) -> str:
    """How a process ended that said nothing, in words."""
    process.join(_GRACE)
    code = process.exitcode
    if code is None:
        return "its process said nothing and did not end"
    memory = ", as where memory runs out" if code == -signal.SIGKILL else ""
    return f"its process died of signal {-code}{memory}" if code < 0 else f"its process ended with status {code}"


def fresh(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)`` in an interpreter of its own, from its first import on, with this process's threads.

    The function stands at the top level of a file; arguments and value are copied, tensors too, so that memory is laid
    out as in a process that does nothing else.  Raises RuntimeError where the process fails (its traceback is printed)
    or dies.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    share = torch.get_num_threads(), threads.whole()
    process = context.Process(target=_in_fresh, args=(there, share))
    # it finds the packages that this process found, not those of the working directory
    with deaf(), environment({"PYTHONSAFEPATH": "1"}):
        process.start()
    there.close()
    try:
        # not among the process's arguments: one that dies before it has read them would leave this one waiting
        here.send_bytes(_packed((function, arguments)))
        return _unpacked(here.recv_bytes())  # type: ignore[no-any-return]
    except (EOFError, OSError):  # before its answer, or within
        raise RuntimeError(death(process)) from None
    finally:
        here.close()
        stop(process)


def _in_fresh(there: Any, share: tuple[int, int]) -> None:
    begin(*share)
    function, arguments = _unpacked(there.recv_bytes())
    there.send_bytes(_packed(function(*arguments)))


def _packed(value: Any) -> memoryview:
    """Not as :mod:`multiprocessing` would: it would share the memory of tensors."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getbuffer()


def _unpacked(value: bytes) -> Any:
    # from this run's own pipe: nothing from outside is unpickled
    return torch.load(io.BytesIO(value), weights_only=False)
