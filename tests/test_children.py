"""A function in an interpreter of its own: what it gets and gives, and what is told of one that fails or dies."""

from __future__ import annotations

import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import children


def doubled(value: Tensor, names: list[str]) -> tuple[Tensor, list[str], int, int, bool, bool]:
    """Twice the value, the names, where this is, with how many threads; whether memory is shared, modules are new."""
    return (
        2 * value,
        names,
        os.getpid(),
        torch.get_num_threads(),
        value.is_shared(),
        "pytest" not in sys.modules or not hasattr(pytest, "of_the_starter"),
    )


def failing(word: str) -> None:
    raise KeyError(word)


def dying() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_function_runs_elsewhere_on_copies_and_on_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest, "of_the_starter", True, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        value, names, process, threads, shared, new = children.fresh(doubled, torch.arange(3.0), ["a", "b"])
    finally:
        torch.set_num_threads(before)
    assert value.tolist() == [0.0, 2.0, 4.0] and names == ["a", "b"]
    assert process != os.getpid() and threads == 3 and new
    assert not shared and not value.is_shared()


def test_a_failure_is_told_and_its_traceback_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match=r"^its process ended with status 1$"):
        children.fresh(failing, "planted")
    assert "KeyError: 'planted'" in capfd.readouterr().err


def test_a_death_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"^its process died of signal 9, as where memory runs out$"):
        children.fresh(dying)


def dying_first(there: Any, share: tuple[int, int]) -> None:
    """Before it has read its work."""
    os._exit(7)


def dying_within(there: Any, share: tuple[int, int]) -> None:
    """Behind the length of an answer that it does not give."""
    there.recv_bytes()
    os.write(there.fileno(), struct.pack("!i", 1000))
    os._exit(7)


@pytest.mark.parametrize("target", [dying_first, dying_within])
def test_a_death_at_any_moment_is_told(monkeypatch: pytest.MonkeyPatch, target: Any) -> None:
    """With more work than a pipe holds: the starter would wait for ever for it to be read."""
    monkeypatch.setattr(children, "_in_fresh", target)
    with pytest.raises(RuntimeError, match=r"^its process ended with status 7$"):
        children.fresh(doubled, torch.zeros(1_000_000), [])


def test_modules_of_the_working_directory_are_no_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "socket.py").write_text("raise RuntimeError('read from the working directory')")
    monkeypatch.chdir(tmp_path)
    value, *_ = children.fresh(doubled, torch.ones(1), [])
    assert value.tolist() == [2.0] and "PYTHONSAFEPATH" not in os.environ
