"""Matrices that are zero but for a band, applied along an axis: compiled, one thread each.

Matrix products of a library would do as well on an idle machine; their threads wait for each other in loops, and on a busy
one that took ten seconds for what takes a tenth of one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled_loosely

Array = NDArray[np.float32]
Ints = NDArray[np.int64]

_NOTHING = 1e-8  # weights of a spline fall off by 0.27 a voxel; these are below what float32 resolves


class Band(NamedTuple):
    """A matrix (N, n): row r is zero but for weights[r] from column start[r] on. start: (N,); weights: (N, taps)."""

    start: Ints
    weights: Array


def band(matrix: Array) -> Band:
    """The band of a matrix (N, n); rows may be anything but much wider than what they hold pays nothing."""
    some = np.abs(matrix) > _NOTHING
    first = np.argmax(some, axis=1)
    taps = int((matrix.shape[1] - np.argmax(some[:, ::-1], axis=1) - first).max())
    start = np.minimum(first, matrix.shape[1] - taps)
    places = start[:, None] + np.arange(taps)
    return Band(start, np.ascontiguousarray(np.take_along_axis(matrix, places, axis=1)))


@compiled_loosely
def along_rows(start: Ints, weights: Array, source: Array, out: Array, first: int, last: int) -> None:
    """out[r] = Σ weights[r, t] · source[start[r] + t], for rows first…last-1 of (N, width) from (n, width)."""
    for r in range(first, last):
        line = out[r]
        line[:] = 0
        for t in range(weights.shape[1]):
            if start[r] < 0:  # never; compilers see by it that indices do not count from the end
                return
            w = weights[r, t]
            row = source[start[r] + t]
            for i in range(len(line)):
                line[i] += w * row[i]


@compiled_loosely
def along_columns(start: Ints, weights: Array, source: Array, out: Array) -> None:
    """out[:, r] = Σ weights[r, t] · source[:, start[r] + t]: (height, N) from (height, n)."""
    for y in range(len(source)):
        row = source[y]
        for r in range(len(start)):
            if start[r] < 0:
                return
            total = np.float32(0)
            for t in range(weights.shape[1]):
                total += weights[r, t] * row[start[r] + t]
            out[y, r] = total
