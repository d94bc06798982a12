"""The threads of rows side by side: what is planned, what is computed with, and with what times are taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bench import provenance, threads


@pytest.fixture
def eight() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def keyed(kind: str) -> int:
    """The threads in the key of a step of this kind."""
    count: int = provenance.environment(kind, "cpu", [])["threads"]
    return count


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("jobs", "share"), [(1, 8), (2, 4), (3, 2), (20, 1)])
def test_rows_share_what_times_have_alone(jobs: int, share: int) -> None:
    with threads.sharing(jobs):
        assert (torch.get_num_threads(), threads.whole()) == (share, 8)
        assert (keyed("train"), keyed("prune"), keyed("time")) == (share, share, 8)
        with threads.alone():
            assert (torch.get_num_threads(), keyed("time")) == (8, 8)
        with threads.sharing(1):  # as a command within a command
            assert torch.get_num_threads() == 8
        assert torch.get_num_threads() == share
    assert (torch.get_num_threads(), threads.whole(), keyed("time")) == (8, 8, 8)
