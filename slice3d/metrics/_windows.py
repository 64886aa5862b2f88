"""Kernels that move the vertices of a net onto the quadrics that separate its mask, window by window.

Windows and blending as in multi-level partition of unity implicits (Ohtake et al., SIGGRAPH 2003); the fit differs: all
voxel centres in a window lie on their side of its quadric. Imported only when a surface is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled
from slice3d.metrics._quadrics import TERMS, fit, shape

FEWEST = 60  # crossings in a window: fewer do not pin down ten coefficients
BLOCK = 5.0  # voxels; windows are at least four blocks wide: the steps of a sphere of radius 40 are about ten wide
SHARPEST = 0.5  # curvature times voxel, above which a surface counts as an edge


@compiled
def _sharpest(
    ends: NDArray[np.int16],
    chosen: NDArray[np.int32],
    steps: NDArray[np.float64],
    middle: NDArray[np.float64],
    size: float,
    q: NDArray[np.float64],
) -> float:
    """The largest curvature, √(κ₁² + κ₂²) in 1/mm, of the level sets of a quadric at the middles of crossings."""
    x = np.empty(3)
    g = np.empty(3)
    most = 0.0
    for c in chosen:
        axis = ends[c, 3] >> 1
        i, j, k = ends[c, 0] + 0.5 * (axis == 0), ends[c, 1] + 0.5 * (axis == 1), ends[c, 2] + 0.5 * (axis == 2)
        for a in range(3):
            x[a] = (steps[a, 0] * i + steps[a, 1] * j + steps[a, 2] * k - middle[a]) / size
        most = max(most, shape(q, x, g)[3])
    return float(np.sqrt(most) / size)


@compiled
def _project(
    p: NDArray[np.float64],
    cell: NDArray[np.int16],
    steps: NDArray[np.float64],
    back: NDArray[Any],
    middle: NDArray[np.float64],
    size: float,
    q: NDArray[np.float64],
    fixed: NDArray[np.bool_],
    voxel: float,
) -> None:
    """Move p (array indices) to the quadric, within its cell.

    Flat facets between corners on a curved surface lie inside it, on average by a twelfth of their area times κ₁ + κ₂.
    Corners stand out by as much, so that the facets have the surface in their middle.
    """
    x = np.empty(3)
    g = np.empty(3)
    free = np.empty(3, np.bool_)
    for _ in range(6):
        for a in range(3):
            x[a] = (steps[a, 0] * p[0] + steps[a, 1] * p[1] + steps[a, 2] * p[2] - middle[a]) / size
        value, steep, bend, _ = shape(q, x, g)
        if not steep > 0.0:
            return
        # a net has |nx| + |ny| + |nz| facets to a voxel's face
        facet = (voxel / size) ** 2 * np.sqrt(steep) / (abs(g[0]) + abs(g[1]) + abs(g[2]))
        value -= np.sqrt(steep) * facet * bend / 12
        # along the gradient, but where that leaves the cell only as far as its wall, and on along the wall
        slope = 0.0
        for a in range(3):
            x[a] = back[a, 0] * g[0] + back[a, 1] * g[1] + back[a, 2] * g[2]
            out = p[a] >= cell[a] + 1.0 if value * x[a] < 0.0 else p[a] <= cell[a]
            free[a] = not (fixed[a] or out)
            if free[a]:
                slope += x[a] * (steps[0, a] * g[0] + steps[1, a] * g[1] + steps[2, a] * g[2])
        if not slope > 0.0:
            return
        for a in range(3):
            if free[a]:
                p[a] = min(max(p[a] - size * value / slope * x[a], float(cell[a])), cell[a] + 1.0)


@compiled
def _key(steps: Any, i: float, j: float, k: float, low: NDArray[np.float64], block: float, count: int) -> int:
    """The number of the block of a point given in array indices."""
    code = 0
    for a in range(3):
        x = (steps[a, 0] * i + steps[a, 1] * j + steps[a, 2] * k - low[a]) / block
        code = code * count + min(max(int(x), 0), count - 1)
    return code


@compiled
def _sort(keys: NDArray[np.int32], count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Counting sort: the first entry of every block (and one more), and the entries, block by block."""
    first = np.zeros(count + 2, np.int32)
    for key in keys:
        first[key + 2] += 1
    for c in range(2, count + 2):
        first[c] += first[c - 1]
    out = np.empty(len(keys), np.int32)
    for n in range(len(keys)):
        c = keys[n] + 1
        out[first[c]] = n
        first[c] += 1
    return first, out


@compiled
def refine(
    vertex: NDArray[np.float32],
    cell: NDArray[np.int16],
    ends: NDArray[np.int16],
    steps: NDArray[np.float64],
    voxel: float,
    fixed: NDArray[np.bool_],
) -> float:
    """Move vertices (array indices) onto the quadrics of the windows around them; returns the share that moved.

    Cubes of an octree around the structure, each with a window half its side wider on every side. A cube whose window
    has no quadric is split, down to sides of two blocks. A window's quadric counts fully in its cube, less and less in
    the margin around it; where the counts do not add up to one, the vertex keeps the rest.
    """
    back = np.linalg.inv(steps)
    low = np.full(3, np.inf)
    high = np.full(3, -np.inf)
    for n in range(len(vertex)):
        for a in range(3):
            x = steps[a, 0] * vertex[n, 0] + steps[a, 1] * vertex[n, 1] + steps[a, 2] * vertex[n, 2]
            low[a] = min(low[a], x)
            high[a] = max(high[a], x)
    extent = (high - low).max() * (1 + 1e-6)
    levels = 1
    while levels < 6 and BLOCK * voxel * 2**levels < extent:
        levels += 1
    count = 2**levels
    block = max(BLOCK * voxel, extent / count)
    origin = (low + high) / 2 - block * count / 2
    keys = np.empty(len(ends), np.int32)
    for n in range(len(ends)):
        axis = ends[n, 3] >> 1
        i, j, k = ends[n, 0] + 0.5 * (axis == 0), ends[n, 1] + 0.5 * (axis == 1), ends[n, 2] + 0.5 * (axis == 2)
        keys[n] = _key(steps, i, j, k, origin, block, count)
    first, entries = _sort(keys, count**3)
    chosen = keys  # from here on scratch
    corner_keys = np.empty(len(vertex), np.int32)
    for n in range(len(vertex)):
        corner_keys[n] = _key(steps, vertex[n, 0], vertex[n, 1], vertex[n, 2], origin, block, count)
    corner_first, corners = _sort(corner_keys, count**3)
    place = np.zeros((len(vertex), 3), np.float32)
    share = np.zeros(len(vertex), np.float32)
    work = np.empty((3, 2 * len(ends)))
    q = np.empty(TERMS)
    p = np.empty(3)
    middle = np.empty(3)
    stack = np.empty((8 * 7, 4), np.int64)
    stack[0] = 0
    stack[0, 0] = levels
    top = 1
    while top:
        top -= 1
        level, bi, bj, bk = stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3]
        side = 1 << level
        empty = True
        for i in range(bi, bi + side):
            for j in range(bj, bj + side):
                line = (i * count + j) * count + bk
                empty &= corner_first[line] == corner_first[line + side]
        if empty:
            continue
        margin = side >> 1
        klow, khigh = max(bk - margin, 0), min(bk + side + margin, count)
        total = 0
        for i in range(max(bi - margin, 0), min(bi + side + margin, count)):
            for j in range(max(bj - margin, 0), min(bj + side + margin, count)):
                line = (i * count + j) * count
                for n in range(first[line + klow], first[line + khigh]):
                    chosen[total] = entries[n]
                    total += 1
        if total < FEWEST:
            continue
        middle[0] = origin[0] + block * (bi + side / 2)
        middle[1] = origin[1] + block * (bj + side / 2)
        middle[2] = origin[2] + block * (bk + side / 2)
        size = block * side
        if fit((ends, chosen[:total], steps, middle, size), work, q) and (
            _sharpest(ends, chosen[:total], steps, middle, size, q) * voxel < SHARPEST
        ):
            for i in range(max(bi - margin, 0), min(bi + side + margin, count)):
                for j in range(max(bj - margin, 0), min(bj + side + margin, count)):
                    line = (i * count + j) * count
                    for c in range(corner_first[line + klow], corner_first[line + khigh]):
                        n = corners[c]
                        weight = 1.0
                        for a in range(3):
                            p[a] = vertex[n, a]
                        for a in range(3):
                            x = steps[a, 0] * p[0] + steps[a, 1] * p[1] + steps[a, 2] * p[2] - middle[a]
                            weight *= min(max(2.0 - 2.0 * abs(x) / size, 0.0), 1.0)
                        if weight > 0.0:
                            _project(p, cell[n], steps, back, middle, size, q, fixed, voxel)
                            share[n] += weight
                            for a in range(3):
                                place[n, a] += weight * p[a]
        elif level > 1:
            half = side >> 1
            for c in range(8):
                stack[top, 0] = level - 1
                stack[top, 1] = bi + half * (c & 1)
                stack[top, 2] = bj + half * (c >> 1 & 1)
                stack[top, 3] = bk + half * (c >> 2 & 1)
                top += 1
    moved = 0.0
    for n in range(len(vertex)):
        rest = max(np.float32(1.0) - share[n], np.float32(0.0))
        moved += 1.0 - rest
        for a in range(3):
            vertex[n, a] = (place[n, a] + rest * vertex[n, a]) / (share[n] + rest)
    return moved / len(vertex)
