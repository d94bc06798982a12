"""How many threads a step computes with: a share of them where rows run side by side, all of them for times.

The number is part of the keys of trainings, prunings and times, so whoever plans rows must have that of who runs them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_whole: int | None = None


def whole() -> int:
    """The threads of all rows together, with which times are taken."""
    return _whole or torch.get_num_threads()


def share(jobs: int) -> int:
    """The threads of each of ``jobs`` rows that run at once."""
    return max(1, whole() // jobs)


def take(count: int, of: int) -> None:
    """From now on this process computes with ``count`` threads ``of`` so many."""
    global _whole
    _whole = of
    torch.set_num_threads(count)


@contextlib.contextmanager
def sharing(jobs: int) -> Iterator[None]:
    """Within, this process has the threads of one row of ``jobs``: what it plans is what their processes find."""
    global _whole
    count, before = torch.get_num_threads(), _whole
    take(share(jobs), whole())
    try:
        yield
    finally:
        _whole = before
        torch.set_num_threads(count)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, this process has the threads of all rows together."""
    count = torch.get_num_threads()
    torch.set_num_threads(whole())
    try:
        yield
    finally:
        torch.set_num_threads(count)
