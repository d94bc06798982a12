"""Memory that is not needed any more goes back to the system, so that a long run's peak is what it needs at once."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

# only growth by this much (bytes) is worth a collection and a trim
_GROWTH = 64_000_000
_STATM = Path("/proc/self/statm")
_last = 0


def settle() -> None:
    """Leaves what is loaded by now (half a million objects of the libraries) out of all later collections.

    Called before a network is built: a cycle that is alive here would never be collected.
    """
    gc.collect()
    gc.freeze()


def release() -> None:
    """Collects reference cycles (traced graphs hold whole activations) and trims the heap, where memory has grown."""
    global _last
    if _resident() - _last < _GROWTH:
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library decides for itself
        ctypes.CDLL(None).malloc_trim(0)
    _last = _resident()


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
