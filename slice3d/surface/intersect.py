"""Which triangles of a surface run through each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pairs = NDArray[np.int64]
_TOUCH = 1e-7


def self_intersections(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Pairs:
    """(K, 2) pairs of faces that cross, or that share an edge and are folded flat onto each other.

    Faces that only touch (in a shared vertex or edge, or in equal coordinates) do not count.
    """
    if len(faces) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    corner = vertices[faces]
    pairs = _neighbours(corner.min(axis=1), corner.max(axis=1))
    shared = (faces[pairs[:, 0]][:, :, None] == faces[pairs[:, 1]][:, None, :]).any(axis=2)
    common = shared.sum(axis=1)
    apart, corner_only, edge = pairs[common == 0], pairs[common == 1], pairs[common >= 2]
    hits = [
        apart[_cross(corner, apart)],
        corner_only[_cross_opposite(corner, faces, corner_only)],
        edge[_folded(corner, edge)],
    ]
    return np.concatenate(hits)


def _neighbours(low: NDArray[np.float64], high: NDArray[np.float64]) -> Pairs:
    """Pairs of boxes that overlap, found through a hash grid."""
    extent = (high - low).max(axis=1)
    size = max(float(np.median(extent)) * 1.5, float(extent.max()) / 24.0, 1e-9)
    first = np.floor((low - low.min(axis=0)) / size).astype(np.int64)
    span = np.floor((high - low.min(axis=0)) / size).astype(np.int64) - first + 1
    count = span.prod(axis=1)
    owner = np.repeat(np.arange(len(low)), count)
    local = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    sides = span[owner]
    cell = np.stack(
        [local // (sides[:, 1] * sides[:, 2]), local // sides[:, 2] % sides[:, 1], local % sides[:, 2]], axis=1
    )
    cell += first[owner]
    extent_cells = cell.max(axis=0) + 1
    key = (cell[:, 0] * extent_cells[1] + cell[:, 1]) * extent_cells[2] + cell[:, 2]
    order = np.argsort(key, kind="stable")
    key, owner, cell = key[order], owner[order], cell[order]
    found = []
    for shift in range(1, len(key)):
        at = np.flatnonzero(key[shift:] == key[:-shift])
        if not len(at):
            break
        a, b = owner[at], owner[at + shift]
        keep = np.ones(len(at), dtype=bool)
        for axis in range(3):
            keep &= (low[a, axis] <= high[b, axis]) & (low[b, axis] <= high[a, axis])
            # Two boxes share several cells: they are reported in the first one only.
            keep &= cell[at, axis] == np.maximum(first[a, axis], first[b, axis])
        found.append(np.stack([a[keep], b[keep]], axis=1))
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)


def _pierces(start: NDArray[np.float64], end: NDArray[np.float64], triangle: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each segment passes through the inside of its triangle (Möller and Trumbore, 1997)."""
    a = triangle[:, 0]
    ab, ac, direction = triangle[:, 1] - a, triangle[:, 2] - a, end - start
    p = np.cross(direction, ac)
    determinant = np.einsum("ij,ij->i", ab, p)
    scale = np.linalg.norm(ab, axis=1) * np.linalg.norm(ac, axis=1) * np.linalg.norm(direction, axis=1)
    usable = np.abs(determinant) > 1e-12 * scale
    inverse = np.divide(1.0, determinant, out=np.zeros_like(determinant), where=usable)
    s = start - a
    u = np.einsum("ij,ij->i", s, p) * inverse
    q = np.cross(s, ab)
    v = np.einsum("ij,ij->i", direction, q) * inverse
    t = np.einsum("ij,ij->i", ac, q) * inverse
    e = _TOUCH
    inside: NDArray[np.bool_] = usable & (u > e) & (v > e) & (u + v < 1 - e) & (t > e) & (t < 1 - e)
    return inside


def _cross(corner: NDArray[np.float64], pairs: Pairs) -> NDArray[np.bool_]:
    out = np.zeros(len(pairs), dtype=bool)
    for one, two in ((0, 1), (1, 0)):
        a, b = corner[pairs[:, one]], corner[pairs[:, two]]
        for n in range(3):
            out |= _pierces(a[:, n], a[:, (n + 1) % 3], b)
    return out


def _cross_opposite(corner: NDArray[np.float64], faces: NDArray[np.int64], pairs: Pairs) -> NDArray[np.bool_]:
    """For faces with one common vertex only the edge across from it can run through the other face."""
    out = np.zeros(len(pairs), dtype=bool)
    equal = faces[pairs[:, 0]][:, :, None] == faces[pairs[:, 1]][:, None, :]
    rows = np.arange(len(pairs))
    for one, axis in ((0, 2), (1, 1)):
        vertex = equal.any(axis=axis).argmax(axis=1)
        a, b = corner[pairs[:, one]], corner[pairs[:, 1 - one]]
        out |= _pierces(a[rows, (vertex + 1) % 3], a[rows, (vertex + 2) % 3], b)
    return out


def _folded(corner: NDArray[np.float64], pairs: Pairs) -> NDArray[np.bool_]:
    normal = [np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]) for c in (corner[pairs[:, 0]], corner[pairs[:, 1]])]
    dot = np.einsum("ij,ij->i", normal[0], normal[1])
    length = np.linalg.norm(normal[0], axis=1) * np.linalg.norm(normal[1], axis=1)
    folded: NDArray[np.bool_] = dot < -(1 - 1e-6) * length
    folded &= length > 0
    return folded
