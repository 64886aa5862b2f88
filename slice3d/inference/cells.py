"""Labels between network voxels, compiled: nothing is interpolated that cannot change the label.

Every score inside a cell is a convex combination of those at its eight corners. Where one class wins all of them, the
cell is that class; a class that is below another one at all of them is so everywhere inside. What remains is
interpolated along the slab axis, then rows, then columns, all voxels of a cell at once, and the first of the largest
wins: the labels are those of interpolating every class.

Scores come voxel by voxel, so that all classes of a corner are neighbours in memory. The inner loops are written for
compilers: of constant length or over all classes, without branches, without views of arrays (each costs an atomic
count), with indices that are seen not to be negative.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

LANES = 16  # voxels of a cell worked out at once: a vector of the widest kind


class Runs(NamedTuple):
    """Output voxels of one axis, grouped by the pair of network voxels (low, high) that they lie between.

    low, high, start, stop: (runs,); outputs start…stop-1. weight: of `high`, one per output voxel.
    """

    low: Ints
    high: Ints
    start: Ints
    stop: Ints
    weight: Floats


def runs(lower: Ints, weight: Floats, n_in: int) -> Runs:
    """Group output voxels by their lower neighbour; lower: ascending, weight: of the upper one, n_in: network voxels."""
    if not len(lower):
        none = np.zeros(0, np.int64)
        return Runs(none, none, none, none, weight)
    start = np.concatenate([[0], np.flatnonzero(np.diff(lower)) + 1])
    stop = np.append(start[1:], len(lower))
    low = lower[start]
    # a neighbour without weight is no corner
    high = np.where(np.maximum.reduceat(weight, start) > 0, np.minimum(low + 1, n_in - 1), low)
    return Runs(low, high, start, stop, weight)


class Columns(NamedTuple):
    """Output voxels of the last axis by the network voxel at or before them.

    start, outputs: (W,), first of them and how many. weight: (most of outputs, W), of the network voxel after it.
    """

    start: Ints
    outputs: Ints
    weight: Floats


def columns(lower: Ints, weight: Floats, n_in: int) -> Columns:
    """Outputs by lower neighbour; lower: ascending, weight: of the upper one, n_in: network voxels."""
    start, stop = (np.searchsorted(lower, np.arange(n_in), side=side) for side in ("left", "right"))
    count = stop - start
    out = np.zeros((max(1, count.max()), n_in), np.float32)
    for n, line in enumerate(out):
        has = count > n
        line[has] = weight[start[has] + n]
    return Columns(start, count, out)


@compiled
def _above(a: Floats, b: Floats, y: int, v: int, x: int, u: int, k: int, threshold: np.float32) -> int:
    """At how many corners of the cell between rows y and v, columns x and u of two planes class k is above it."""
    count = int(a[y, x, k] > threshold) + int(a[y, u, k] > threshold) + int(a[v, x, k] > threshold)
    count += int(a[v, u, k] > threshold) + int(b[y, x, k] > threshold) + int(b[y, u, k] > threshold)
    return count + int(b[v, x, k] > threshold) + int(b[v, u, k] > threshold)


@compiled
def _winners(
    best_a: NDArray[np.int32], best_b: NDArray[np.int32], y: int, v: int, x: int, u: int, corner: Ints, winners: Ints
) -> int:  # fmt: skip
    """How many classes win the corners of a cell, each once in winners (8,). corner: (8,), room to work."""
    corner[0], corner[1], corner[2], corner[3] = best_a[y, x], best_a[y, u], best_a[v, x], best_a[v, u]
    corner[4], corner[5], corner[6], corner[7] = best_b[y, x], best_b[y, u], best_b[v, x], best_b[v, u]
    count = 0
    for n in range(8):
        known = False
        for j in range(count):
            known |= winners[j] == corner[n]
        if not known:
            winners[count] = corner[n]
            count += 1
    return count


@compiled
def _rivals(
    a: Floats, b: Floats, y: int, v: int, x: int, u: int, winners: Ints, count: int, keep: NDArray[np.uint8]
) -> None:  # fmt: skip
    """keep: (C…,), whether a class comes up to every one of `count` winners at some corner of a cell, as in `_above`.

    One that is below another at all of them is so everywhere between: interpolation, and rounding, keep the order.
    """
    if y < 0 or v < 0 or x < 0 or u < 0:  # never; compilers see by it that indices do not count from the end
        return
    for n in range(count):
        m = winners[n]
        a0, a1, a2, a3 = a[y, x, m], a[y, u, m], a[v, x, m], a[v, u, m]
        b0, b1, b2, b3 = b[y, x, m], b[y, u, m], b[v, x, m], b[v, u, m]
        for k in range(a.shape[2]):
            one = (a[y, x, k] >= a0) | (a[y, u, k] >= a1) | (a[v, x, k] >= a2) | (a[v, u, k] >= a3)
            other = (b[y, x, k] >= b0) | (b[y, u, k] >= b1) | (b[v, x, k] >= b2) | (b[v, u, k] >= b3)
            keep[k] = np.uint8(one | other) if n == 0 else keep[k] & np.uint8(one | other)


@compiled
def _listed(keep: NDArray[np.uint8], some: NDArray[np.uint64], values: NDArray[np.uint16], candidate: Ints) -> int:
    """How many classes are kept, listed in `candidate`; one of them where all give the same label. some: 8 of keep each."""
    count, alike = 0, True
    for word in range(len(some)):
        if some[word]:
            for k in range(8 * word, 8 * word + 8):
                if keep[k]:
                    candidate[count] = k
                    count += 1
                    alike &= values[k] == values[candidate[0]]
    return 1 if alike else count


@compiled
def _compete(
    corner: Floats, k: int, weight: Floats, blocks: int, raises: bool, most: Floats, winner: NDArray[np.uint32]
) -> None:  # fmt: skip
    """Class k wins in those voxels of a cell where its score is above `most`, which it raises or not.

    corner: (8,), its scores at the corners, slab axis first. weight: (3, blocks, LANES) of the far ones along each axis,
    one per voxel; most, winner: (blocks, LANES).
    """
    one, label = np.float32(1), np.uint32(k)
    a, b, c, d = corner[0], corner[1], corner[2], corner[3]
    e, f, g, h = corner[4], corner[5], corner[6], corner[7]
    for n in range(blocks):
        for i in range(LANES):
            w = weight[0, n, i]
            v = one - w
            p, q, r, s = v * a + w * e, v * b + w * f, v * c + w * g, v * d + w * h
            w = weight[1, n, i]
            v = one - w
            p, q = v * p + w * r, v * q + w * s
            w = weight[2, n, i]
            v = one - w
            score = v * p + w * q
            before, holder = most[n, i], winner[n, i]
            above = score > before
            winner[n, i] = label if above else holder
            most[n, i] = score if above & raises else before


@compiled
def labels_between(
    a: Floats,
    b: Floats,
    best_a: NDArray[np.int32],
    best_b: NDArray[np.int32],
    threshold: float,
    slab_weight: Floats,
    rows: Runs,
    columns: Columns,
    values: NDArray[np.uint16],
    out: NDArray[np.uint16],
    first: int,
    last: int,
) -> None:
    """Labels between two planes of scores (H, W, C), runs first…last-1 of the rows.

    threshold: −inf where the strongest class wins; else each class is on above it, and later ones overwrite earlier
    ones. best_a, best_b: (H, W) strongest class, where it wins. slab_weight: of `b`, one per output plane. values: label
    of each class, and of none. out: (planes, height, width).
    """
    width, classes = a.shape[1], a.shape[2]
    planes, phases = len(slab_weight), len(columns.weight)
    low = np.float32(threshold)
    exclusive = threshold == -np.inf
    mixed = np.empty(width, np.bool_)
    line = np.empty(out.shape[2], values.dtype)
    corner_best = np.empty(8, np.int64)
    winners = np.empty(8, np.int64)
    keep = np.zeros((classes + 7) // 8 * 8, np.uint8)
    some = keep.view(np.uint64)  # eight classes at a time, of which most often none is kept
    candidate = np.empty(classes, np.int64)
    corner = np.empty(8, np.float32)
    most_rows = (rows.stop[first:last] - rows.start[first:last]).max()
    room = (planes * most_rows * phases + LANES - 1) // LANES
    weights, most, winner = (
        np.zeros((3, room, LANES), np.float32), np.empty((room, LANES), np.float32), np.empty((room, LANES), np.uint32)
    )  # fmt: skip
    weight, tops, holder = weights.reshape(3, -1), most.reshape(-1), winner.reshape(-1)
    for r in range(first, last):
        y, v = rows.low[r], rows.high[r]
        top, height = rows.start[r], rows.stop[r] - rows.start[r]
        area = planes * height
        for x in range(width):
            u = min(x + 1, width - 1)
            if exclusive:
                m = best_a[y, x]
                label = values[m]
                same = (best_a[v, x] == m) & (best_b[y, x] == m) & (best_b[v, x] == m) & (best_a[y, u] == m)
                mixed[x] = not (same & (best_a[v, u] == m) & (best_b[y, u] == m) & (best_b[v, u] == m))
            else:
                label, mixed[x] = values[classes], False
                for k in range(classes):
                    corners = _above(a, b, y, v, x, u, k, low)
                    mixed[x] |= 0 < corners < 8
                    label = values[k] if corners == 8 else label
            for t in range(columns.start[x], columns.start[x] + columns.outputs[x]):
                line[t] = label
        for z in range(planes):
            for h in range(top, top + height):
                out[z, h] = line
        for t in range(phases):
            for z in range(planes):
                for h in range(height):
                    n = (t * planes + z) * height + h
                    weight[0, n], weight[1, n] = slab_weight[z], rows.weight[top + h]
        for x in range(width):
            outputs = columns.outputs[x]
            if not mixed[x] or not outputs:
                continue
            u = min(x + 1, width - 1)
            count = 0
            if exclusive:
                count = _winners(best_a, best_b, y, v, x, u, corner_best, winners)
                _rivals(a, b, y, v, x, u, winners, count, keep)
                count = _listed(keep, some, values, candidate)
            else:
                for k in range(classes):
                    if _above(a, b, y, v, x, u, k, low):
                        candidate[count] = k
                        count += 1
            length = area * outputs
            for t in range(outputs):
                for n in range(t * area, t * area + area):
                    weight[2, n] = columns.weight[t, x]
            for n in range(length):
                tops[n], holder[n] = low, classes
            for j in range(count):
                k = candidate[j]
                corner[0], corner[1], corner[2], corner[3] = a[y, x, k], a[y, u, k], a[v, x, k], a[v, u, k]
                corner[4], corner[5], corner[6], corner[7] = b[y, x, k], b[y, u, k], b[v, x, k], b[v, u, k]
                _compete(corner, k, weights, (length + LANES - 1) // LANES, exclusive, most, winner)
            n = 0
            for t in range(columns.start[x], columns.start[x] + outputs):
                for z in range(planes):
                    for h in range(top, top + height):
                        out[z, h, t] = values[holder[n]]
                        n += 1
