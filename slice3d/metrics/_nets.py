"""Kernels that turn a binary mask into a closed quadrilateral surface net (Gibson, MICCAI 1998) and smooth it.

All coordinates are array indices; the caller maps them to millimetres. Masks are bits of an array of bytes with a layer
of padding on every side. Imported only when a surface is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled


@compiled
def _four(m: Any, bit: int, i: int, j: int, k: int) -> Any:
    """Half of a cell's code: the corners at k. The code of the cell is `_four` at k, and at k + 1 four bits higher."""
    return (
        (m[i, j, k] >> bit & 1)
        | (m[i + 1, j, k] >> bit & 1) << 1
        | (m[i, j + 1, k] >> bit & 1) << 2
        | (m[i + 1, j + 1, k] >> bit & 1) << 3
    )


@compiled
def measure(m: NDArray[np.uint8], bit: int) -> tuple[int, int]:
    """Number of mixed cells (net vertices) and of lattice edges that cross the surface (net quads)."""
    cells = 0
    edges = 0
    ni, nj, nk = m.shape
    for i in range(ni - 1):
        for j in range(nj - 1):
            upper = _four(m, bit, i, j, 0)
            for k in range(nk - 1):
                lower, upper = upper, _four(m, bit, i, j, k + 1)
                code = lower | upper << 4
                if code != 0 and code != 255:
                    cells += 1
                    here = code & 1
                    edges += (j > 0 and k > 0 and here != (code >> 1 & 1)) + (
                        i > 0 and k > 0 and here != (code >> 2 & 1)
                    )
                    edges += i > 0 and j > 0 and here != (code >> 4 & 1)
    return cells, edges


@compiled
def build(
    m: NDArray[np.uint8],
    bit: int,
    vertex: NDArray[np.float32],
    link: NDArray[np.int32],
    sides: NDArray[np.uint8],
) -> None:
    """Fill the start positions, and which vertices are neighbours.

    A vertex starts at the mean of the midpoints of its cell's crossed edges; two vertices are neighbours when the face
    between their cells is mixed. `sides` has a bit for each of the six directions (−i, +i, −j, +j, −k, +k); `link` the
    neighbours at −i and −j (that at −k is the vertex before).
    """
    ni, nj, nk = m.shape
    here = np.full((nj, nk), -1, np.int32)
    before = np.full((nj, nk), -1, np.int32)
    n = 0
    for i in range(ni - 1):
        for j in range(nj - 1):
            upper = _four(m, bit, i, j, 0)
            for k in range(nk - 1):
                lower, upper = upper, _four(m, bit, i, j, k + 1)
                code = lower | upper << 4
                if code == 0 or code == 255:
                    continue
                here[j, k] = n
                x = 0.0
                y = 0.0
                z = 0.0
                crossings = 0
                for e in range(4):
                    u, v = e & 1, e >> 1
                    if (code >> (2 * u + 4 * v) ^ code >> (2 * u + 4 * v + 1)) & 1:
                        x += 0.5
                        y += u
                        z += v
                        crossings += 1
                    if (code >> (u + 4 * v) ^ code >> (u + 4 * v + 2)) & 1:
                        x += u
                        y += 0.5
                        z += v
                        crossings += 1
                    if (code >> (u + 2 * v) ^ code >> (u + 2 * v + 4)) & 1:
                        x += u
                        y += v
                        z += 0.5
                        crossings += 1
                vertex[n, 0] = i + x / crossings
                vertex[n, 1] = j + y / crossings
                vertex[n, 2] = k + z / crossings
                sides[n] = 0
                face = code & 0b01010101
                if i > 0 and face != 0 and face != 0b01010101:
                    link[n, 0] = before[j, k]
                    sides[before[j, k]] |= 2
                    sides[n] |= 1
                face = code & 0b00110011
                if j > 0 and face != 0 and face != 0b00110011:
                    link[n, 1] = here[j - 1, k]
                    sides[here[j - 1, k]] |= 8
                    sides[n] |= 4
                face = code & 0b00001111
                if k > 0 and face != 0 and face != 0b00001111:
                    sides[n - 1] |= 32
                    sides[n] |= 16
                n += 1
        here, before = before, here


@compiled
def place(m: NDArray[np.uint8], bit: int, cell: NDArray[np.int16], end: NDArray[np.int16]) -> None:
    """Fill each vertex's cell, and the crossed lattice edges: (i, j, k, 2·axis + whether (i, j, k) is inside)."""
    ni, nj, nk = m.shape
    n = 0
    f = 0
    for i in range(ni - 1):
        for j in range(nj - 1):
            upper = _four(m, bit, i, j, 0)
            for k in range(nk - 1):
                lower, upper = upper, _four(m, bit, i, j, k + 1)
                code = lower | upper << 4
                if code == 0 or code == 255:
                    continue
                cell[n, 0] = i
                cell[n, 1] = j
                cell[n, 2] = k
                n += 1
                inside = code & 1
                for axis in range(3):
                    other = code >> (1 << axis) & 1
                    if inside != other and (axis == 0 or i > 0) and (axis == 1 or j > 0) and (axis == 2 or k > 0):
                        end[f, 0] = i
                        end[f, 1] = j
                        end[f, 2] = k
                        end[f, 3] = 2 * axis + inside
                        f += 1


@compiled
def join(m: NDArray[np.uint8], bit: int, quad: NDArray[np.int32]) -> None:
    """Fill the outward quads around the crossed lattice edges."""
    ni, nj, nk = m.shape
    here = np.full((nj, nk), -1, np.int32)
    before = np.full((nj, nk), -1, np.int32)
    n = 0
    f = 0
    for i in range(ni - 1):
        for j in range(nj - 1):
            upper = _four(m, bit, i, j, 0)
            for k in range(nk - 1):
                lower, upper = upper, _four(m, bit, i, j, k + 1)
                code = lower | upper << 4
                if code == 0 or code == 255:
                    continue
                here[j, k] = n
                inside = code & 1
                if j > 0 and k > 0 and inside != (code >> 1 & 1):
                    f = _put(quad, f, here[j - 1, k - 1], here[j, k - 1], n, here[j - 1, k], inside)
                if i > 0 and k > 0 and inside != (code >> 2 & 1):
                    f = _put(quad, f, before[j, k - 1], before[j, k], n, here[j, k - 1], inside)
                if i > 0 and j > 0 and inside != (code >> 4 & 1):
                    f = _put(quad, f, before[j - 1, k], here[j - 1, k], n, before[j, k], inside)
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
def step(
    vertex: NDArray[np.float32],
    total: NDArray[np.float32],
    link: NDArray[np.int32],
    sides: NDArray[np.uint8],
    weight: float,
) -> None:
    """vertex += weight · (mean of the neighbours − vertex): one step of umbrella smoothing; `total` is work space."""
    total[:] = 0
    for n in range(len(vertex)):
        s = sides[n]
        for a in range(3):
            if s >> 2 * a & 1:
                w = n - 1 if a == 2 else link[n, a]
                for c in range(3):
                    total[n, c] += vertex[w, c]
                    total[w, c] += vertex[n, c]
    for n in range(len(vertex)):
        s = sides[n]
        count = (s & 1) + (s >> 1 & 1) + (s >> 2 & 1) + (s >> 3 & 1) + (s >> 4 & 1) + (s >> 5 & 1)
        if count:
            for c in range(3):
                vertex[n, c] += np.float32(weight) * (total[n, c] / np.float32(count) - vertex[n, c])


@compiled
def clamp(vertex: NDArray[np.float32], cell: NDArray[np.int16]) -> None:
    """Keep each vertex inside its own cell, so that the surface still separates the voxel centres that it separated."""
    for n in range(len(vertex)):
        for a in range(3):
            vertex[n, a] = min(max(vertex[n, a], np.float32(cell[n, a])), np.float32(cell[n, a] + 1))


@compiled
def to_mm(vertex: NDArray[np.float32], steps: NDArray[np.float64]) -> None:
    """From indices of the padded array to mm from voxel (0, 0, 0) of the mask."""
    for n in range(len(vertex)):
        i, j, k = vertex[n, 0] - 1.0, vertex[n, 1] - 1.0, vertex[n, 2] - 1.0
        for a in range(3):
            vertex[n, a] = steps[a, 0] * i + steps[a, 1] * j + steps[a, 2] * k
