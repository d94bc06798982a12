"""The two inner loops of a skipped layer on the CPU, compiled by Numba: who wins, and the winners' filters.

As PyTorch operations they took more time than the convolutions that they save: some twenty calls a layer, and two
passes over filters that do not fit the cache.  Both work on one image and float32 or float64 (Numba compiles each once
a process).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]


@njit(nogil=True)  # type: ignore[untyped-decorator]
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
    return winners, g


@njit(nogil=True)  # type: ignore[untyped-decorator]
def gather(rows: Array, bias: Array, behind: Array, g: Array, outputs: Array, inputs: Array) -> Any:
    """The filters ``outputs`` at the input channels ``inputs``, times their saliency, and their biases.

    ``rows`` is C_out x kh kw x C_in; ``bias`` is scaled too, ``behind`` is not (each C_out).  Returns k x kh kw x n and
    k.
    """
    taps = rows.shape[1]
    weights = np.empty((len(outputs), taps, len(inputs)), rows.dtype)
    biases = np.empty(len(outputs), rows.dtype)
    for a in range(len(outputs)):
        o = outputs[a]
        saliency = g[o]
        biases[a] = bias[o] * saliency + behind[o]
        for t in range(taps):
            source, target = rows[o, t], weights[a, t]
            for c in range(len(inputs)):
                target[c] = source[inputs[c]] * saliency
    return weights, biases


@njit(nogil=True)  # type: ignore[untyped-decorator]
def choose_and_gather(
    x: Array,
    inputs: Array,
    rows: Array,
    bias: Array,
    behind: Array,
    phi: Array,
    rho: Array,
    k: int,
    absolute: bool,
    rectified: bool,
    exact: bool,
) -> Any:
    """Both in one call, which saves what a call from Python costs: winners, filters, biases."""
    winners, g = choose(x, inputs, phi, rho, k, absolute, rectified, exact)
    weights, biases = gather(rows, bias, behind, g, winners, inputs)
    return winners, weights, biases
