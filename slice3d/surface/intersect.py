"""Which triangles of a surface run through each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled

Pairs = NDArray[np.int64]
Floats = NDArray[np.float64]
# of the size of two faces: nearer than this they touch
_TOUCH = 1e-7
# what `_kind` makes of two faces: of no interest, without a common edge, with one
_APART, _FREE, _EDGE = 0, 1, 2


def self_intersections(vertices: Floats, faces: NDArray[np.int64]) -> Pairs:
    """(K, 2) pairs of faces that cross, or that share an edge and are folded flat onto each other.

    Two faces cross where each has corners on both sides of the other's plane and the pieces of the planes' common line
    that they cover overlap (T. Möller, "A fast triangle-triangle intersection test", J. Graphics Tools 2, 1997), also
    where edges meet edges exactly; so do the two faces at an edge that lies in a third one with one of them on either
    side. Faces that only touch, or overlap in one plane without a common edge, do not count.
    """
    if len(faces) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    corner = vertices[faces]
    free, edge = _candidates(corner, faces)
    sides, touch = _sides(corner, free)
    # a face that is on one side of the other's plane, but for a corner, only touches it
    near = np.flatnonzero(_split(sides) | (np.count_nonzero(sides, axis=1) == 1))
    free, sides, touch = free[near], sides[near], touch[near]
    turned = free[:, ::-1]
    others, _ = _sides(corner, turned)
    crossing = _split(sides) & _split(others)
    pieces = [_on_line(corner[p[crossing, 0]], s[crossing]) for p, s in ((free, sides), (turned, others))]
    crossing[crossing] = _overlap(*pieces) > touch[crossing]
    both, sides, touch = np.concatenate([free, turned]), np.concatenate([sides, others]), np.tile(touch, 2)
    along = np.flatnonzero(np.count_nonzero(sides, axis=1) == 1)
    within = _edges_within(corner, faces, both[along], sides[along], touch[along])
    hits = [free[crossing], both[along][within], edge[_folded(corner, edge)]]
    return np.concatenate(hits)


@compiled
def _kind(a: Floats, b: Floats, one: NDArray[np.int64], two: NDArray[np.int64]) -> int:
    """What two faces, their corners (3, 3) and the numbers of these, are to each other.

    `_APART` where they surely neither cross nor are folded onto each other: one lies on one side of the other's plane by
    more than a corner, or both look the same way at their edge. Rounding errors of the exact tests to come are allowed for.
    """
    common = 0
    for x in range(3):
        common += int(one[x] == two[0] or one[x] == two[1] or one[x] == two[2])
    n, m = _normal(b), _normal(a)
    if common >= 2:
        return _EDGE if n[0] * m[0] + n[1] * m[1] + n[2] * m[2] < 0 else _APART
    size = 0.0
    for x in range(3):
        size = max(size, max(a[0, x], a[1, x], a[2, x]) - min(a[0, x], a[1, x], a[2, x]))
        size = max(size, max(b[0, x], b[1, x], b[2, x]) - min(b[0, x], b[1, x], b[2, x]))
    split, few = _lies(a, b[0], n, size)
    if not (split or few):
        return _APART
    split_too, few_too = _lies(b, a[0], m, size)
    return _FREE if few or few_too or split_too else _APART


@compiled
def _lies(corner: Floats, origin: Floats, n: tuple[float, float, float], size: float) -> tuple[bool, bool]:
    """Whether a triangle may be on both sides of a plane, and whether only one of its corners may be off it."""
    touch = _TOUCH * size * np.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
    above, below, surely = 0, 0, 0
    for x in range(3):
        height = (
            (corner[x, 0] - origin[0]) * n[0] + (corner[x, 1] - origin[1]) * n[1] + (corner[x, 2] - origin[2]) * n[2]
        )
        above += int(height > 0.9 * touch)
        below += int(height < -0.9 * touch)
        surely += int(abs(height) > 1.1 * touch)
    return above > 0 and below > 0, surely < 2


@compiled
def _normal(corner: Floats) -> tuple[float, float, float]:
    """The normal of a triangle (3, 3), as long as twice its area."""
    ux, uy, uz = corner[1, 0] - corner[0, 0], corner[1, 1] - corner[0, 1], corner[1, 2] - corner[0, 2]
    vx, vy, vz = corner[2, 0] - corner[0, 0], corner[2, 1] - corner[0, 1], corner[2, 2] - corner[0, 2]
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx


def _candidates(corner: Floats, faces: NDArray[np.int64]) -> tuple[Pairs, Pairs]:
    """Pairs of faces that may cross, and pairs with a common edge that may be folded; found through a hash grid."""
    low, high = corner.min(axis=1), corner.max(axis=1)
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
    # only counted first
    kind, pairs = np.empty(0, dtype=np.uint8), np.empty((0, 2), dtype=np.int64)
    for _ in range(2):
        found = _in_cells(key, owner, cell, first, low, high, corner, faces, pairs, kind)
        if not len(pairs):
            kind, pairs = np.empty(found, dtype=np.uint8), np.empty((found, 2), dtype=np.int64)
    return pairs[kind == _FREE], pairs[kind == _EDGE]


@compiled
def _in_cells(
    key: NDArray[np.int64],
    owner: NDArray[np.int64],
    cell: Pairs,
    first: Pairs,
    low: Floats,
    high: Floats,
    corner: Floats,
    faces: NDArray[np.int64],
    pairs: Pairs,
    kind: NDArray[np.uint8],
) -> int:
    """Number of pairs with overlapping boxes in a common cell that are not `_APART`; written where there is room for them."""
    found = 0
    for m in range(len(key)):
        a = owner[m]
        for n in range(m + 1, len(key)):
            if key[n] != key[m]:
                break
            b = owner[n]
            near = True
            for x in range(3):
                near &= low[a, x] <= high[b, x] and low[b, x] <= high[a, x]
                # Two boxes share several cells: they are reported in the first one only.
                near &= cell[m, x] == max(first[a, x], first[b, x])
            if not near:
                continue
            what = _kind(corner[a], corner[b], faces[a], faces[b])
            if what == _APART:
                continue
            if found < len(pairs):
                pairs[found, 0], pairs[found, 1], kind[found] = a, b, what
            found += 1
    return found


def _sides(corner: Floats, pairs: Pairs) -> tuple[Floats, Floats]:
    """(N, 3) mm of the corners of each first face above the plane of its second one, 0 where they touch it; and (N,) the
    mm that count as touching."""
    a, b = corner[pairs[:, 0]], corner[pairs[:, 1]]
    normal = np.cross(b[:, 1] - b[:, 0], b[:, 2] - b[:, 0])
    length = np.linalg.norm(normal, axis=1)
    height = np.einsum("nij,nj->ni", a - b[:, :1], normal)
    height = np.divide(height, length[:, None], out=np.zeros_like(height), where=length[:, None] > 0)
    touch = _TOUCH * np.maximum(np.ptp(a, axis=1).max(axis=1), np.ptp(b, axis=1).max(axis=1))
    height[np.abs(height) <= touch[:, None]] = 0.0
    return height, touch


def _split(side: Floats) -> NDArray[np.bool_]:
    out: NDArray[np.bool_] = (side.min(axis=1, initial=0) < 0) & (side.max(axis=1, initial=0) > 0)
    return out


def _on_line(triangle: Floats, side: Floats) -> Floats:
    """(N, 2, 3) where the two edges of each triangle that change sides do so. side: (N, 3) of its corners."""
    # the corner that is alone on its side, a corner in the plane counted to the other two
    alone = np.where(np.count_nonzero(side > 0, axis=1) == 1, side.argmax(axis=1), side.argmin(axis=1))
    rows = np.arange(len(side))
    apex, height = triangle[rows, alone], side[rows, alone]
    out = np.empty((len(side), 2, 3))
    for n in (0, 1):
        other = (alone + 1 + n) % 3
        part = height / (height - side[rows, other])
        out[:, n] = apex + part[:, None] * (triangle[rows, other] - apex)
    return out


def _overlap(one: Floats, two: Floats) -> Floats:
    """(N,) mm that two pieces (N, 2, 3) of the same line have in common."""
    along = one[:, 1] - one[:, 0], two[:, 1] - two[:, 0]
    length = [np.linalg.norm(v, axis=1) for v in along]
    longer = np.where((length[0] >= length[1])[:, None], *along)
    direction = longer / np.maximum(np.maximum(*length), 1e-300)[:, None]
    origin = one[:, :1]
    a, b = (np.einsum("nij,nj->ni", piece - origin, direction) for piece in (one, two))
    out: Floats = np.minimum(a.max(axis=1), b.max(axis=1)) - np.maximum(a.min(axis=1), b.min(axis=1))
    return out


def _edges_within(
    corner: Floats, faces: NDArray[np.int64], pairs: Pairs, sides: Floats, touch: Floats
) -> NDArray[np.bool_]:
    """Of pairs whose first face has an edge in the plane of the second: whether it lies inside the second, partly at
    least, while the face at the edge's other side has its third corner across."""
    if not len(pairs):
        return np.zeros(0, dtype=bool)
    rows = np.arange(len(pairs))
    apex = np.abs(sides).argmax(axis=1)
    ends = [(apex + 1) % 3, (apex + 2) % 3]
    start, end = (corner[pairs[:, 0], e] for e in ends)
    b = corner[pairs[:, 1]]
    normal = np.cross(b[:, 1] - b[:, 0], b[:, 2] - b[:, 0])
    first, last = np.zeros(len(pairs)), np.ones(len(pairs))
    for n in range(3):
        inwards = np.cross(normal, b[:, (n + 1) % 3] - b[:, n])
        inwards /= np.maximum(np.linalg.norm(inwards, axis=1), 1e-300)[:, None]
        # how deep within this edge of the second face the segment starts, and how much deeper it ends
        depth = np.einsum("ij,ij->i", start - b[:, n], inwards) - touch
        gain = np.einsum("ij,ij->i", end - start, inwards)
        at = np.divide(-depth, gain, out=np.where(depth > 0, -np.inf, np.inf), where=np.abs(gain) > 0)
        first = np.where((gain > 0) | ((gain == 0) & (depth <= 0)), np.maximum(first, at), first)
        last = np.where(gain < 0, np.minimum(last, at), last)
    inside = (last - first) * np.linalg.norm(end - start, axis=1) > touch
    ids = np.sort(np.stack([faces[pairs[:, 0], e] for e in ends], axis=1), axis=1)
    key = np.concatenate([ids, pairs[:, 1:]], axis=1)
    _, number = np.unique(key, axis=0, return_inverse=True)
    number = number.reshape(-1)
    above = sides[rows, apex] > 0
    across = [np.bincount(number, inside & which, minlength=len(rows))[number] > 0 for which in (above, ~above)]
    out: NDArray[np.bool_] = inside & across[0] & across[1]
    return out


def _folded(corner: Floats, pairs: Pairs) -> NDArray[np.bool_]:
    normal = [np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]) for c in (corner[pairs[:, 0]], corner[pairs[:, 1]])]
    dot = np.einsum("ij,ij->i", normal[0], normal[1])
    length = np.linalg.norm(normal[0], axis=1) * np.linalg.norm(normal[1], axis=1)
    folded: NDArray[np.bool_] = dot < -(1 - 1e-6) * length
    folded &= length > 0
    return folded
