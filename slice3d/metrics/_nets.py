"""Kernels that turn a binary mask into a closed quadrilateral surface net (Gibson, MICCAI 1998) and smooth it.

All coordinates are array indices; the caller maps them to millimetres. Imported only when a surface is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled


@compiled
def _code(m: Any, i: int, j: int, k: int) -> Any:
    return (
        m[i, j, k]
        | m[i + 1, j, k] << 1
        | m[i, j + 1, k] << 2
        | m[i + 1, j + 1, k] << 3
        | m[i, j, k + 1] << 4
        | m[i + 1, j, k + 1] << 5
        | m[i, j + 1, k + 1] << 6
        | m[i + 1, j + 1, k + 1] << 7
    )


@compiled
def measure(m: NDArray[np.uint8]) -> tuple[int, int]:
    """Number of mixed cells (net vertices) and of lattice edges that cross the surface (net quads)."""
    cells = 0
    edges = 0
    ni, nj, nk = m.shape
    for i in range(ni - 1):
        for j in range(nj - 1):
            for k in range(nk - 1):
                code = _code(m, i, j, k)
                if code != 0 and code != 255:
                    cells += 1
                    edges += (
                        (m[i, j, k] != m[i + 1, j, k]) + (m[i, j, k] != m[i, j + 1, k]) + (m[i, j, k] != m[i, j, k + 1])
                    )
    return cells, edges


@compiled
def build(
    m: NDArray[np.uint8],
    centre: NDArray[np.float32],
    vertex: NDArray[np.float32],
    linked: NDArray[np.int32],
    quad: NDArray[np.int32],
) -> None:
    """Fill cell centres, start positions, the six neighbours of each vertex (−1: none) and the outward quads.

    `m` is padded with a layer of zeros on every side. A vertex starts at the mean of the midpoints of its cell's
    crossed edges; two vertices are neighbours when the face between their cells is mixed.
    """
    ni, nj, nk = m.shape
    here = np.full((nj, nk), -1, np.int32)
    before = np.full((nj, nk), -1, np.int32)
    n = 0
    f = 0
    for i in range(ni - 1):
        for j in range(nj - 1):
            for k in range(nk - 1):
                code = _code(m, i, j, k)
                if code == 0 or code == 255:
                    here[j, k] = -1
                    continue
                here[j, k] = n
                x = 0.0
                y = 0.0
                z = 0.0
                crossings = 0
                for u in range(2):
                    for v in range(2):
                        if m[i, j + u, k + v] != m[i + 1, j + u, k + v]:
                            x += 0.5
                            y += u
                            z += v
                            crossings += 1
                        if m[i + u, j, k + v] != m[i + u, j + 1, k + v]:
                            x += u
                            y += 0.5
                            z += v
                            crossings += 1
                        if m[i + u, j + v, k] != m[i + u, j + v, k + 1]:
                            x += u
                            y += v
                            z += 0.5
                            crossings += 1
                centre[n, 0] = i + 0.5
                centre[n, 1] = j + 0.5
                centre[n, 2] = k + 0.5
                vertex[n, 0] = i + x / crossings
                vertex[n, 1] = j + y / crossings
                vertex[n, 2] = k + z / crossings
                face = code & 0b01010101
                if face != 0 and face != 0b01010101:
                    linked[n, 0] = before[j, k]
                    linked[before[j, k], 1] = n
                face = code & 0b00110011
                if face != 0 and face != 0b00110011:
                    linked[n, 2] = here[j - 1, k]
                    linked[here[j - 1, k], 3] = n
                face = code & 0b00001111
                if face != 0 and face != 0b00001111:
                    linked[n, 4] = here[j, k - 1]
                    linked[here[j, k - 1], 5] = n
                inside = m[i, j, k]
                if inside != m[i + 1, j, k]:
                    a, b, c, d = here[j - 1, k - 1], here[j, k - 1], n, here[j - 1, k]
                    f = _put(quad, f, a, b, c, d, inside)
                if inside != m[i, j + 1, k]:
                    a, b, c, d = before[j, k - 1], before[j, k], n, here[j, k - 1]
                    f = _put(quad, f, a, b, c, d, inside)
                if inside != m[i, j, k + 1]:
                    a, b, c, d = before[j - 1, k], here[j - 1, k], n, before[j, k]
                    f = _put(quad, f, a, b, c, d, inside)
                n += 1
        here, before = before, here


@compiled
def _put(quad: NDArray[np.int32], f: int, a: int, b: int, c: int, d: int, inside: int) -> int:
    quad[f, 0] = a
    quad[f, 1] = b if inside else d
    quad[f, 2] = c
    quad[f, 3] = d if inside else b
    return f + 1


@compiled
def step(source: NDArray[np.float32], target: NDArray[np.float32], linked: NDArray[np.int32], weight: float) -> None:
    """target = source + weight · (mean of the neighbours − source): one step of umbrella smoothing."""
    for n in range(len(source)):
        x = 0.0
        y = 0.0
        z = 0.0
        count = 0
        for e in range(6):
            w = linked[n, e]
            if w >= 0:
                x += source[w, 0]
                y += source[w, 1]
                z += source[w, 2]
                count += 1
        if count == 0:
            target[n] = source[n]
            continue
        target[n, 0] = source[n, 0] + weight * (x / count - source[n, 0])
        target[n, 1] = source[n, 1] + weight * (y / count - source[n, 1])
        target[n, 2] = source[n, 2] + weight * (z / count - source[n, 2])


@compiled
def clamp(vertex: NDArray[np.float32], centre: NDArray[np.float32], slack: float) -> None:
    """Keep each vertex inside its own cell, so that the surface still separates the voxel centres that it separated."""
    for n in range(len(vertex)):
        for a in range(3):
            low = centre[n, a] - slack
            high = centre[n, a] + slack
            vertex[n, a] = min(max(vertex[n, a], low), high)
