"""Kernels for exact distances from points to polygons: packets of neighbouring points against a tree of boxes.

Imported only when distances are needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled, compiled_loosely

LEAF = 8  # polygons in a box of the lowest level
PACK = 32  # points that walk the tree together, a few vector registers of single precision
_ZERO = np.float32(0)
_ONE = np.float32(1)


@compiled
def curve(point: NDArray[Any], polygon: NDArray[np.int32]) -> NDArray[np.int32]:
    """Keys along a Morton curve through 1024³ cells, of points, or of the polygons' centroids where any are given."""
    count = len(polygon) if len(polygon) else len(point)
    corners = polygon.shape[1]
    low = np.full(3, np.inf)
    size = 0.0
    for a in range(3):
        high = -np.inf
        for n in range(len(point)):
            low[a] = min(low[a], point[n, a])
            high = max(high, point[n, a])
        size = max(size, high - low[a])
    scale = 1024.0 / size if size > 0 else 0.0
    key = np.empty(count, np.int32)
    for n in range(count):
        code = 0
        for a in range(3):
            x = 0.0
            if len(polygon):
                for c in range(corners):
                    x += point[polygon[n, c], a] / corners
            else:
                x = point[n, a]
            v = min(int((x - low[a]) * scale), 1023)
            v = (v | v << 16) & 0x30000FF
            v = (v | v << 8) & 0x300F00F
            v = (v | v << 4) & 0x30C30C3
            v = (v | v << 2) & 0x9249249
            code |= v << a
        key[n] = code
    return key


@compiled
def permute(rows: NDArray[np.int32], order: NDArray[np.int32]) -> None:
    """rows = rows[order] without a copy, cycle by cycle; `order` is used up."""
    kept = np.empty(rows.shape[1], np.int32)
    for start in range(len(order)):
        if order[start] < 0:
            continue
        kept[:] = rows[start]
        n = start
        while True:
            source = order[n]
            order[n] = -1
            if source == start:
                break
            rows[n] = rows[source]
            n = source
        rows[n] = kept


@compiled
def build_tree(vertex: NDArray[Any], polygon: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """An eight-way tree of boxes: blocks (B, 6, 8) of eight siblings, and the first block of each level, leaves first.

    Sibling n of a level covers block n of the level below; on the lowest level it covers polygons `LEAF`·n onwards.
    Eight boxes side by side are compared in one vector instruction.
    """
    start = np.zeros(24, np.int64)
    count = (len(polygon) + LEAF - 1) // LEAF
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
    for f in range(len(polygon)):
        n = f // LEAF
        b, s = n // 8, n % 8
        for c in range(polygon.shape[1]):
            for a in range(3):
                # boxes are kept in single precision: widened a little, so that no polygon sticks out
                v = vertex[polygon[f, c], a]
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


@compiled_loosely
def _inverse(x: Any) -> Any:
    return _ONE / x if x > _ZERO else _ZERO


@compiled_loosely
def _to(x: Any, y: Any, z: Any, t: Any, ux: Any, uy: Any, uz: Any) -> Any:
    x, y, z = x - t * ux, y - t * uy, z - t * uz
    return x * x + y * y + z * z


@compiled_loosely
def _to2(x: Any, y: Any, z: Any, s: Any, ux: Any, uy: Any, uz: Any, t: Any, vx: Any, vy: Any, vz: Any) -> Any:
    return _to(x - s * ux, y - s * uy, z - s * uz, t, vx, vy, vz)


@compiled_loosely
def _polygon2(p: NDArray[np.float32], q: NDArray[np.float32], best: NDArray[np.float32]) -> None:
    """best = min(best, squared distance) from a packet's points to the triangles (0, 1, 2) and (0, 2, 3) of corners q."""
    ax, ay, az = q[0, 0], q[0, 1], q[0, 2]
    ux, uy, uz = q[1, 0] - ax, q[1, 1] - ay, q[1, 2] - az
    vx, vy, vz = q[2, 0] - ax, q[2, 1] - ay, q[2, 2] - az
    wx, wy, wz = q[3, 0] - ax, q[3, 1] - ay, q[3, 2] - az
    ex, ey, ez = vx - ux, vy - uy, vz - uz
    fx, fy, fz = wx - vx, wy - vy, wz - vz
    uu, vv, ww = ux * ux + uy * uy + uz * uz, vx * vx + vy * vy + vz * vz, wx * wx + wy * wy + wz * wz
    uv, vw = ux * vx + uy * vy + uz * vz, vx * wx + vy * wy + vz * wz
    ee, ff = ex * ex + ey * ey + ez * ez, fx * fx + fy * fy + fz * fz
    one, other = uu * vv - uv * uv, vv * ww - vw * vw
    # a side or a triangle without extent is a point: its inverse is 0, and the nearest point of it its first corner
    iu, iv, iw, ie, i_f = _inverse(uu), _inverse(vv), _inverse(ww), _inverse(ee), _inverse(ff)
    i1 = _ONE / one if one > np.float32(1e-12) * uu * vv else _ZERO
    i2 = _ONE / other if other > np.float32(1e-12) * vv * ww else _ZERO
    for n in range(PACK):
        x, y, z = p[0, n] - ax, p[1, n] - ay, p[2, n] - az
        xx = x * x + y * y + z * z
        pu, pv, pw = x * ux + y * uy + z * uz, x * vx + y * vy + z * vz, x * wx + y * wy + z * wz
        d = best[n]
        # the sides from corner 0
        t = min(max(pu * iu, _ZERO), _ONE)
        d = min(d, _to(x, y, z, t, ux, uy, uz))
        t = min(max(pv * iv, _ZERO), _ONE)
        d = min(d, _to(x, y, z, t, vx, vy, vz))
        t = min(max(pw * iw, _ZERO), _ONE)
        d = min(d, _to(x, y, z, t, wx, wy, wz))
        # the planes, where the point is over its triangle
        s, t = (vv * pu - uv * pv) * i1, (uu * pv - uv * pu) * i1
        over = min(min(s, t), _ONE - s - t)
        d = min(d, _to2(x, y, z, s, ux, uy, uz, t, vx, vy, vz) if over >= _ZERO else xx)
        s, t = (ww * pv - vw * pw) * i2, (vv * pw - vw * pv) * i2
        over = min(min(s, t), _ONE - s - t)
        d = min(d, _to2(x, y, z, s, vx, vy, vz, t, wx, wy, wz) if over >= _ZERO else xx)
        # the other two sides
        gx, gy, gz = x - ux, y - uy, z - uz
        t = min(max((gx * ex + gy * ey + gz * ez) * ie, _ZERO), _ONE)
        d = min(d, _to(gx, gy, gz, t, ex, ey, ez))
        gx, gy, gz = x - vx, y - vy, z - vz
        t = min(max((gx * fx + gy * fy + gz * fz) * i_f, _ZERO), _ONE)
        best[n] = min(d, _to(gx, gy, gz, t, fx, fy, fz))


@compiled
def query(
    points: NDArray[Any],
    order: NDArray[Any],
    vertex: NDArray[Any],
    polygon: NDArray[np.int32],
    tree: tuple[NDArray[np.float32], NDArray[np.int64]],
    out: NDArray[Any],
) -> None:
    """Exact distance (to single precision) from each point, packed in `order`, to the nearest polygon."""
    box, start = tree
    corners = polygon.shape[1]
    near = np.empty(8, np.float32)
    stack = np.empty((128, 2), np.int64)
    bound = np.empty(128, np.float32)
    p = np.empty((3, PACK), np.float32)
    q = np.empty((4, 3), np.float32)
    best = np.empty(PACK, np.float32)
    low = np.empty(3, np.float32)
    high = np.empty(3, np.float32)
    origin = np.empty(3, np.float64)
    guess = 0
    for first in range(0, len(order), PACK):
        size = min(PACK, len(order) - first)
        for a in range(3):
            origin[a] = points[order[first], a]
            low[a] = np.inf
            high[a] = -np.inf
            for n in range(PACK):
                x = points[order[first + min(n, size - 1)], a]
                p[a, n] = x - origin[a]
                low[a] = min(low[a], np.float32(x))
                high[a] = max(high[a], np.float32(x))
        # neighbours in space: what was near the last packet is a good first guess
        for c in range(4):
            for a in range(3):
                q[c, a] = vertex[polygon[guess, min(c, corners - 1)], a] - origin[a]
        best[:] = np.inf
        _polygon2(p, q, best)
        worst = _largest(best)
        stack[0, 0] = len(start) - 2
        stack[0, 1] = 0
        bound[0] = 0.0
        top = 1
        while top:
            top -= 1
            if bound[top] >= worst:
                continue
            level, node = stack[top, 0], stack[top, 1]
            block = box[start[level] + node]
            for c in range(8):
                dx = max(max(block[0, c] - high[0], low[0] - block[3, c]), _ZERO)
                dy = max(max(block[1, c] - high[1], low[1] - block[4, c]), _ZERO)
                dz = max(max(block[2, c] - high[2], low[2] - block[5, c]), _ZERO)
                near[c] = dx * dx + dy * dy + dz * dz
            if level:
                closest = 0
                for c in range(1, 8):
                    if near[c] < near[closest]:
                        closest = c
                for n in range(8):
                    c = n if n < closest else n + 1
                    if n == 7:
                        c = closest
                    if near[c] < worst:
                        stack[top, 0] = level - 1
                        stack[top, 1] = 8 * node + c
                        bound[top] = near[c]
                        top += 1
                continue
            for c in range(8):
                if near[c] >= worst:
                    continue
                lx, ly, lz = block[0, c] - origin[0], block[1, c] - origin[1], block[2, c] - origin[2]
                hx, hy, hz = block[3, c] - origin[0], block[4, c] - origin[1], block[5, c] - origin[2]
                if not _any_nearer(
                    p,
                    np.float32(lx),
                    np.float32(ly),
                    np.float32(lz),
                    np.float32(hx),
                    np.float32(hy),
                    np.float32(hz),
                    best,
                ):
                    continue
                leaf = (8 * node + c) * LEAF
                for f in range(leaf, min(leaf + LEAF, len(polygon))):
                    e = polygon[f, 0]
                    x, y, z = vertex[e, 0] - origin[0], vertex[e, 1] - origin[1], vertex[e, 2] - origin[2]
                    q[0, 0], q[0, 1], q[0, 2] = x, y, z
                    lx, ly, lz, hx, hy, hz = x, y, z, x, y, z
                    for c_ in range(1, corners):
                        e = polygon[f, c_]
                        x, y, z = vertex[e, 0] - origin[0], vertex[e, 1] - origin[1], vertex[e, 2] - origin[2]
                        q[c_, 0], q[c_, 1], q[c_, 2] = x, y, z
                        lx, ly, lz = min(lx, x), min(ly, y), min(lz, z)
                        hx, hy, hz = max(hx, x), max(hy, y), max(hz, z)
                    if not _any_nearer(
                        p,
                        np.float32(lx),
                        np.float32(ly),
                        np.float32(lz),
                        np.float32(hx),
                        np.float32(hy),
                        np.float32(hz),
                        best,
                    ):
                        continue
                    if corners == 3:
                        q[3] = q[2]
                    found = best[0]
                    _polygon2(p, q, best)
                    if best[0] < found:
                        guess = f
                worst = _largest(best)
        for n in range(size):
            out[order[first + n]] = np.sqrt(best[n])


@compiled_loosely
def _any_nearer(p: Any, lx: Any, ly: Any, lz: Any, hx: Any, hy: Any, hz: Any, best: Any) -> bool:
    """Whether the box is nearer to any of a packet's points than what that one has found."""
    count = np.int32(0)
    for n in range(PACK):
        dx = max(max(lx - p[0, n], p[0, n] - hx), _ZERO)
        dy = max(max(ly - p[1, n], p[1, n] - hy), _ZERO)
        dz = max(max(lz - p[2, n], p[2, n] - hz), _ZERO)
        count += np.int32(1) if dx * dx + dy * dy + dz * dz < best[n] else np.int32(0)
    return bool(count > 0)


@compiled
def _largest(values: NDArray[np.float32]) -> Any:
    a, b, c, d = values[0], values[1], values[2], values[3]
    for n in range(4, PACK, 4):
        a, b, c, d = max(a, values[n]), max(b, values[n + 1]), max(c, values[n + 2]), max(d, values[n + 3])
    return max(max(a, b), max(c, d))


@compiled
def vertex_areas(vertex: NDArray[Any], polygon: NDArray[np.int32]) -> NDArray[np.float32]:
    """A third of the area of the triangles around each vertex."""
    out = np.zeros(len(vertex), np.float32)
    for f in range(len(polygon)):
        a = polygon[f, 0]
        for n in range(1, polygon.shape[1] - 1):
            b, c = polygon[f, n], polygon[f, n + 1]
            ux, uy, uz = vertex[b, 0] - vertex[a, 0], vertex[b, 1] - vertex[a, 1], vertex[b, 2] - vertex[a, 2]
            vx, vy, vz = vertex[c, 0] - vertex[a, 0], vertex[c, 1] - vertex[a, 1], vertex[c, 2] - vertex[a, 2]
            x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
            area = np.float32(np.sqrt(float(x * x + y * y + z * z)) / 6)
            out[a] += area
            out[b] += area
            out[c] += area
    return out


@compiled
def shorter_diagonals(vertex: NDArray[Any], polygon: NDArray[np.int32]) -> None:
    """Turn quads so that the diagonal from the first to the third corner, which cuts them, is the shorter one."""
    for f in range(len(polygon)):
        a, b, c, d = polygon[f, 0], polygon[f, 1], polygon[f, 2], polygon[f, 3]
        one = 0.0
        other = 0.0
        for n in range(3):
            one += (vertex[a, n] - vertex[c, n]) ** 2
            other += (vertex[b, n] - vertex[d, n]) ** 2
        if other < one:
            polygon[f, 0], polygon[f, 1], polygon[f, 2], polygon[f, 3] = b, c, d, a
