"""The inner loops of a skipped layer on the CPU, compiled by Numba: who wins, the winners' filters, their saliencies.

As PyTorch operations they took more time than the convolutions that they save: some twenty calls a layer, and two
passes over filters that do not fit the cache.  The filters stay gathered from one image to the next: a channel that
wins again keeps its slot, and only what has changed is copied; where all win again, nothing is.  All work on one image
and float32 or float64.  Compiling them takes 20 seconds, so what was compiled is kept for the next process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]


def compiled(function: Callable[..., Any]) -> Any:
    """Compiled by Numba, which keeps it beside this file or in the user's cache, where one of them can be written."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere: each process compiles
        return njit(nogil=True)(function)


@compiled
def choose(
    x: Array, inputs: Array, phi: Array, rho: Array, k: int, absolute: bool, rectified: bool, exact: bool
) -> Any:
    """The winners of one image in ascending order, and all saliencies g (C_out).

    ``x`` (positions x n) are the input channels ``inputs`` (n), the others are zero; ``phi`` is C_in x C_out, ``rho``
    C_out.  ``absolute``: the subsampler takes absolute values; ``rectified``: g passes a ReLU; ``exact``: k winners,
    the first of equals, else those above the (k + 1)-th largest.  Needs k < C_out.
    """
    positions, channels = x.shape
    total = np.zeros(channels, np.float64)
    # two loops, because one with the choice inside is not vectorised
    if absolute:
        for p in range(positions):
            for c in range(channels):
                total[c] += abs(x[p, c])
    else:
        for p in range(positions):
            for c in range(channels):
                total[c] += x[p, c]
    outputs = len(rho)
    g = rho.copy()
    for c in range(channels):
        mean, row = x.dtype.type(total[c] / positions), phi[inputs[c]]
        for o in range(outputs):
            g[o] += mean * row[o]
    if rectified:
        for o in range(outputs):
            g[o] = max(g[o], 0)
    rank = outputs - k if exact else outputs - k - 1
    threshold = np.partition(g, rank)[rank]
    above = 0
    for o in range(outputs):
        above += g[o] > threshold
    equals = k - above if exact else 0
    winners = np.empty(above + equals, np.int64)
    place = 0
    for o in range(outputs):
        if g[o] > threshold or (equals > 0 and g[o] == threshold):
            equals -= g[o] == threshold
            winners[place] = o
            place += 1
    # fewer than counted where a saliency is no number: what was not set must not be taken for a channel
    return winners[:place], g


@compiled
def settle(slots: Array, place: Array, winners: Array) -> None:
    """Gives the ``winners`` the slots of the channels that lost; who won before too keeps its own.

    ``slots`` are the channels by slot, ``place`` (C_out) the slot of each channel, -1 for none; both are changed.  With
    fewer winners than slots some losers keep theirs.
    """
    won = np.zeros(len(place), np.bool_)
    for channel in winners:
        won[channel] = True
    free = 0
    for channel in winners:
        if place[channel] < 0:
            while won[slots[free]]:
                free += 1
            place[slots[free]] = -1
            slots[free] = channel
            place[channel] = free
            free += 1


@compiled
def gather(weights: Array, held: Array, columns: Array, rows: Array, outputs: Array, inputs: Array) -> None:
    """Makes ``weights`` (k x kh kw x n) the filters ``outputs`` at the input channels ``inputs``.

    ``held`` and ``columns`` say which filters and channels it holds; only what differs is copied, out of ``rows``
    (C_out x kh kw x C_in).
    """
    taps, n = rows.shape[1], len(inputs)
    changed = np.empty(n, np.int64)
    count = 0
    for c in range(n):
        if columns[c] != inputs[c]:
            columns[c] = inputs[c]
            changed[count] = c
            count += 1
    for a in range(len(outputs)):
        o = outputs[a]
        if held[a] != o:
            held[a] = o
            for t in range(taps):
                source, target = rows[o, t], weights[a, t]
                for c in range(n):
                    target[c] = source[inputs[c]]
        elif count:
            for t in range(taps):
                source, target = rows[o, t], weights[a, t]
                for i in range(count):
                    target[changed[i]] = source[inputs[changed[i]]]


@compiled
def choose_and_gather(
    x: Array,
    inputs: Array,
    phi: Array,
    rho: Array,
    k: int,
    absolute: bool,
    rectified: bool,
    exact: bool,
    slots: Array,
    place: Array,
    weights: Array,
    held: Array,
    columns: Array,
    rows: Array,
) -> Any:
    """All three in one call, which saves what a call from Python costs: winners and saliencies."""
    winners, g = choose(x, inputs, phi, rho, k, absolute, rectified, exact)
    settle(slots, place, winners)
    gather(weights, held, columns, rows, slots, inputs)
    return winners, g


@compiled
def finish(y: Array, outputs: Array, g: Array, bias: Array, behind: Array, rectify: bool) -> None:
    """Scales the convolution's outputs ``y`` (positions x k, changed) and adds what belongs to them, in one pass.

    Those of channel o = ``outputs[s]`` become g_o (y + bias_o) + behind_o, with ``rectify`` at least 0.
    """
    positions, k = y.shape
    scale, shift = np.empty(k, y.dtype), np.empty(k, y.dtype)
    for s in range(k):
        o = outputs[s]
        scale[s] = g[o]
        shift[s] = bias[o] * g[o] + behind[o]
    if rectify:
        for p in range(positions):
            for s in range(k):
                y[p, s] = max(y[p, s] * scale[s] + shift[s], 0)
    else:
        for p in range(positions):
            for s in range(k):
                y[p, s] = y[p, s] * scale[s] + shift[s]
