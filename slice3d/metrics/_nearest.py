"""Kernels for exact distances from points to triangles: a bounding-volume tree over Morton-ordered triangles.

Imported only when distances are needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled

LEAF = 2


@compiled
def curve(points: NDArray[Any], low: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
    """The order of points along a Morton curve through 64³ cells (a counting sort): neighbours stay neighbours."""
    key = np.empty(len(points), np.int32)
    first = np.zeros(64**3 + 1, np.int32)
    for n in range(len(points)):
        code = 0
        for a in range(3):
            v = min(int((points[n, a] - low[a]) * scale), 63)
            v = (v | v << 8) & 0x300F
            v = (v | v << 4) & 0x30C3
            v = (v | v << 2) & 0x9249
            code |= v << a
        key[n] = code
        first[code + 1] += 1
    for c in range(64**3):
        first[c + 1] += first[c]
    out = np.empty(len(points), np.int64)
    for n in range(len(points)):
        out[first[key[n]]] = n
        first[key[n]] += 1
    return out


@compiled
def centroids(vertex: NDArray[Any], face: NDArray[Any]) -> NDArray[np.float32]:
    """(M, 3) centroids of the triangles."""
    out = np.empty((len(face), 3), np.float32)
    for f in range(len(face)):
        for a in range(3):
            out[f, a] = (vertex[face[f, 0], a] + vertex[face[f, 1], a] + vertex[face[f, 2], a]) / 3
    return out


@compiled
def build_tree(vertex: NDArray[Any], face: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """An eight-way tree of boxes: blocks (B, 6, 8) of eight siblings, and the first block of each level, leaves first.

    Sibling n of a level covers block n of the level below; on the lowest level it covers triangles `LEAF`·n onwards.
    Eight boxes side by side are compared with a point in one vector instruction.
    """
    start = np.zeros(24, np.int64)
    count = (len(face) + LEAF - 1) // LEAF
    levels = 0
    while True:
        count = (count + 7) // 8
        start[levels + 1] = start[levels] + count
        levels += 1
        if count == 1:
            break
    start = start[: levels + 1].copy()
    box = np.empty((start[levels], 6, 8), np.float32)
    box[:, :3] = np.inf
    box[:, 3:] = -np.inf
    for f in range(len(face)):
        n = f // LEAF
        b, s = n // 8, n % 8
        for c in range(3):
            for a in range(3):
                # boxes are kept in single precision: widened a little, so that no triangle sticks out
                v = vertex[face[f, c], a]
                margin = 1e-6 * abs(v)
                box[b, a, s] = min(box[b, a, s], v - margin)
                box[b, a + 3, s] = max(box[b, a + 3, s], v + margin)
    for level in range(1, levels):
        for n in range(start[level] - start[level - 1]):
            b, s = start[level] + n // 8, n % 8
            below = start[level - 1] + n
            for a in range(3):
                box[b, a, s] = box[below, a].min()
                box[b, a + 3, s] = box[below, a + 3].max()
    return box, start


@compiled
def _triangle2(vertex: NDArray[Any], a: int, b: int, c: int, x: float, y: float, z: float) -> Any:
    """Squared distance from a point to a triangle (Ericson, Real-Time Collision Detection, 5.1.5)."""
    ax, ay, az = float(vertex[a, 0]), float(vertex[a, 1]), float(vertex[a, 2])
    ux, uy, uz = vertex[b, 0] - ax, vertex[b, 1] - ay, vertex[b, 2] - az
    vx, vy, vz = vertex[c, 0] - ax, vertex[c, 1] - ay, vertex[c, 2] - az
    px, py, pz = x - ax, y - ay, z - az
    d1 = ux * px + uy * py + uz * pz
    d2 = vx * px + vy * py + vz * pz
    if d1 <= 0 and d2 <= 0:
        return px * px + py * py + pz * pz
    uu = ux * ux + uy * uy + uz * uz
    uv = ux * vx + uy * vy + uz * vz
    vv = vx * vx + vy * vy + vz * vz
    d3, d4 = d1 - uu, d2 - uv
    d5, d6 = d1 - uv, d2 - vv
    s = 0.0
    t = 0.0
    if d3 >= 0 and d4 <= d3:
        s = 1.0
    elif d6 >= 0 and d5 <= d6:
        t = 1.0
    else:
        vc = d1 * d4 - d3 * d2
        vb = d5 * d2 - d1 * d6
        va = d3 * d6 - d5 * d4
        if vc <= 0 and d1 >= 0 and d3 <= 0 and d1 != d3:
            s = d1 / (d1 - d3)
        elif vb <= 0 and d2 >= 0 and d6 <= 0 and d2 != d6:
            t = d2 / (d2 - d6)
        elif va <= 0 and d4 - d3 >= 0 and d5 - d6 >= 0:
            length = (d4 - d3) + (d5 - d6)
            t = (d4 - d3) / length if length > 0 else 0.0
            s = 1.0 - t
        else:
            total = va + vb + vc
            s = vb / total if total > 0 else 0.0
            t = vc / total if total > 0 else 0.0
    dx, dy, dz = px - s * ux - t * vx, py - s * uy - t * vy, pz - s * uz - t * vz
    return dx * dx + dy * dy + dz * dz


@compiled
def _boxes2(block: NDArray[np.float32], x: np.float32, y: np.float32, z: np.float32, out: NDArray[np.float32]) -> None:
    zero = np.float32(0)
    for c in range(8):
        dx = max(max(block[0, c] - x, x - block[3, c]), zero)
        dy = max(max(block[1, c] - y, y - block[4, c]), zero)
        dz = max(max(block[2, c] - z, z - block[5, c]), zero)
        out[c] = dx * dx + dy * dy + dz * dz


@compiled
def query(
    points: NDArray[Any],
    order: NDArray[np.int64],
    vertex: NDArray[Any],
    face: NDArray[np.int32],
    tree: tuple[NDArray[np.float32], NDArray[np.int64]],
    out: NDArray[np.float64],
) -> None:
    """Exact distance from each point, visited in `order`, to the nearest triangle."""
    box, start = tree
    near = np.empty(8, np.float32)
    stack = np.empty((128, 2), np.int64)
    bound = np.empty(128, np.float64)
    best_face = 0
    for index in range(len(order)):
        p = order[index]
        x, y, z = float(points[p, 0]), float(points[p, 1]), float(points[p, 2])
        # points are visited along a space-filling curve: the previous one's triangle is a good first guess
        best = _triangle2(vertex, face[best_face, 0], face[best_face, 1], face[best_face, 2], x, y, z)
        stack[0, 0] = len(start) - 2
        stack[0, 1] = 0
        bound[0] = 0.0
        top = 1
        while top:
            top -= 1
            if bound[top] >= best:
                continue
            level, node = stack[top, 0], stack[top, 1]
            _boxes2(box[start[level] + node], np.float32(x), np.float32(y), np.float32(z), near)
            if level == 0:
                for _ in range(8):
                    c = 0
                    for n in range(1, 8):
                        if near[n] < near[c]:
                            c = n
                    if near[c] >= best:
                        break
                    near[c] = np.inf
                    first = (8 * node + c) * LEAF
                    for f in range(first, min(first + LEAF, len(face))):
                        d = _triangle2(vertex, face[f, 0], face[f, 1], face[f, 2], x, y, z)
                        if d < best:
                            best = d
                            best_face = f
                continue
            closest = 0
            for c in range(1, 8):
                if near[c] < near[closest]:
                    closest = c
            for n in range(8):
                c = n if n < closest else n + 1
                if n == 7:
                    c = closest
                if near[c] < best:
                    stack[top, 0] = level - 1
                    stack[top, 1] = 8 * node + c
                    bound[top] = near[c]
                    top += 1
        out[p] = np.sqrt(best)


@compiled
def vertex_areas(vertex: NDArray[Any], face: NDArray[np.int32]) -> NDArray[np.float64]:
    """A third of the area of the triangles around each vertex."""
    out = np.zeros(len(vertex), np.float64)
    for f in range(len(face)):
        a, b, c = face[f, 0], face[f, 1], face[f, 2]
        ux, uy, uz = vertex[b, 0] - vertex[a, 0], vertex[b, 1] - vertex[a, 1], vertex[b, 2] - vertex[a, 2]
        vx, vy, vz = vertex[c, 0] - vertex[a, 0], vertex[c, 1] - vertex[a, 1], vertex[c, 2] - vertex[a, 2]
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        area = np.sqrt(float(x * x + y * y + z * z)) / 6
        out[a] += area
        out[b] += area
        out[c] += area
    return out
