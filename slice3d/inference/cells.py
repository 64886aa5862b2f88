"""Labels between network voxels, compiled: nothing is interpolated that cannot change the label.

Every score inside a cell is a convex combination of those at its eight corners. Cells are worked out some of a row at a
time. Where one class wins all their corners, they are that class; a class whose largest corner is below what another
one has at least wins nowhere. What remains is interpolated along the slab axis, then rows, then columns, many columns
at once, and the first of the largest wins: the labels are those of interpolating every class.

Scores come class by class, so that neighbours in memory are neighbours in space. The inner loops are written for
compilers: of constant length, without branches, with indices that are seen not to be negative.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled, compiled_loosely

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Labels = NDArray[np.int32]

BLOCK = 64  # cells of a row worked out at once


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
def strongest(scores: Floats, best: NDArray[np.int32], most: Floats, first: int, last: int) -> None:
    """(C, pixels) scores → first of the largest, and its score, of pixels first…last-1."""
    top = scores[0, first:last].copy()
    which = np.zeros(last - first, np.int32)
    for k in range(1, len(scores)):
        line = scores[k, first:last]
        label = np.int32(k)
        for i in range(len(top)):
            above = line[i] > top[i]
            top[i] = line[i] if above else top[i]
            which[i] = label if above else which[i]
    best[first:last] = which
    most[first:last] = top


@compiled
def _may_win(
    a: Floats, b: Floats, k: int, y0: int, y1: int, x0: int, n: int, bound: Floats, largest: Floats
) -> bool:  # fmt: skip
    """Whether class k comes up to `bound` at some corner of its cell, in any of the cells from column x0 on."""
    if k < 0 or y0 < 0 or y1 < 0 or x0 < 0:
        return False
    for i in range(n):
        f, g = a[k, y0, x0 + i], a[k, y1, x0 + i]
        largest[i] = f if f > g else g
    for i in range(n):
        f, g = b[k, y0, x0 + i], b[k, y1, x0 + i]
        f = f if f > g else g
        g = largest[i]
        largest[i] = f if f > g else g
    hits = np.int32(0)
    for i in range(BLOCK):
        f, g = largest[i], largest[i + 1]
        f = f if f > g else g
        hits += np.int32(1) if f >= bound[i] else np.int32(0)
    return bool(hits > 0)


@compiled
def _between_planes(a: Floats, b: Floats, w: float, k: int, y: int, x0: int, n: int, out: Floats) -> None:
    """n scores of class k in a row between two planes; w: of the second plane."""
    v = np.float32(1) - w
    if k < 0 or y < 0 or x0 < 0:
        return
    for i in range(n):
        out[i] = v * a[k, y, x0 + i] + w * b[k, y, x0 + i]


@compiled
def _compete(
    lines: Floats, count: int, weight: Floats, candidate: NDArray[np.int32], raises: bool, most: Floats, winner: Labels
) -> None:  # fmt: skip
    """A class wins where its score between columns is above `most`, which it raises or not; one after the other."""
    one = np.float32(1)
    for j in range(count):
        k = candidate[j]
        for i in range(BLOCK):
            w = weight[i]
            score = (one - w) * lines[j, i] + w * lines[j, i + 1]
            before, holder = most[i], winner[i]
            above = score > before
            winner[i] = k if above else holder
            most[i] = score if above & raises else before


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
    """Labels between two planes of scores (C, H, W), runs first…last-1 of the rows.

    threshold: −inf where the strongest class wins; else each class is on above it, and later ones overwrite earlier
    ones. best_a, best_b: (H, W) strongest class, where it wins. slab_weight: of `b`, one per output plane. values: label
    of each class. out: (planes, height, width).
    """
    classes, width = a.shape[0], a.shape[2]
    one, low = np.float32(1), np.float32(threshold)
    exclusive = threshold == -np.inf
    bound = np.empty(BLOCK, np.float32)
    largest = np.zeros(BLOCK + 1, np.float32)
    top = np.zeros((classes, BLOCK + 1), np.float32)
    bottom = np.zeros((classes, BLOCK + 1), np.float32)
    line = np.zeros((classes, BLOCK + 1), np.float32)
    weight = np.zeros((len(columns.weight), BLOCK), np.float32)
    most = np.empty(BLOCK, np.float32)
    winner = np.empty(BLOCK, np.int32)
    candidate = np.empty(classes, np.int32)
    for r in range(first, last):
        y0, y1 = rows.low[r], rows.high[r]
        for x0 in range(0, width, BLOCK):
            n = min(BLOCK, width - x0)
            wide = min(BLOCK + 1, width - x0)
            left, right = columns.start[x0], columns.start[x0 + n - 1] + columns.outputs[x0 + n - 1]
            if left == right:
                continue
            m = best_a[y0, x0]
            same = exclusive
            for x in range(x0, x0 + wide):
                same &= best_a[y0, x] == m and best_a[y1, x] == m and best_b[y0, x] == m and best_b[y1, x] == m
                if not same:
                    break
            label = values[m]
            count = 0
            if not same:
                bound[:] = np.inf
                bound[:n] = low
                largest[:] = -np.inf
                if exclusive:
                    for i in range(n):
                        x, u = x0 + i, min(x0 + i + 1, width - 1)
                        k = best_a[y0, x]
                        bound[i] = min(
                            min(min(a[k, y0, x], a[k, y0, u]), min(a[k, y1, x], a[k, y1, u])),
                            min(min(b[k, y0, x], b[k, y0, u]), min(b[k, y1, x], b[k, y1, u])),
                        )
                for k in range(classes):
                    if _may_win(a, b, k, y0, y1, x0, wide, bound, largest):
                        candidate[count] = k
                        count += 1
                same = exclusive or count == 0
                label = values[candidate[0]] if count else values[0] * 0
                for j in range(count):
                    same &= values[candidate[j]] == label
            if same:
                for z in range(len(slab_weight)):
                    for y in range(rows.start[r], rows.stop[r]):
                        for x in range(left, right):
                            out[z, y, x] = label
                continue
            phases = columns.outputs[x0 : x0 + n].max()
            weight[:, :n] = columns.weight[:, x0 : x0 + n]
            for z in range(len(slab_weight)):
                for j in range(count):
                    _between_planes(a, b, slab_weight[z], candidate[j], y0, x0, wide, top[j])
                    _between_planes(a, b, slab_weight[z], candidate[j], y1, x0, wide, bottom[j])
                for y in range(rows.start[r], rows.stop[r]):
                    w = rows.weight[y]
                    v = one - w
                    for j in range(count):
                        for i in range(BLOCK + 1):
                            line[j, i] = v * top[j, i] + w * bottom[j, i]
                    for t in range(phases):
                        most[:] = low
                        winner[:] = -1
                        _compete(line, count, weight[t], candidate, exclusive, most, winner)
                        for i in range(n):
                            if t < columns.outputs[x0 + i]:
                                k = winner[i]
                                out[z, y, columns.start[x0 + i] + t] = values[k] if k >= 0 else 0


@compiled_loosely
def tally(
    scores: Floats,
    probability: Floats,
    best: NDArray[np.int32],
    most: Floats,
    owners: NDArray[np.bool_],
    mass: NDArray[np.float64],
    sums: NDArray[np.float64],
    first: int,
    last: int,
) -> None:
    """Sums over pixels first…last-1 of a plane (C, pixels). owners: (groups, C), which classes belong to which group.

    best, most: strongest class and its score. mass: (C,) += probabilities. sums: (groups, 3) += voxels, the group's own
    probability and the entropy (nats) where the strongest class is one of the group's.
    """
    classes = len(scores)
    # Σ p (s − s of the strongest): with it, −Σ p log p takes one logarithm a pixel
    spread = np.zeros(last - first, np.float32)
    strongest = most[first:last]
    for k in range(classes):
        p, s = probability[k, first:last], scores[k, first:last]
        whole = np.float32(0)
        for i in range(len(spread)):
            whole += p[i]
            spread[i] += p[i] * (s[i] - strongest[i])
        mass[k] += whole
    groups = np.empty((classes, len(owners)), np.int64)
    count = np.zeros(classes, np.int64)
    members = np.empty((len(owners), classes), np.int64)
    size = np.zeros(len(owners), np.int64)
    for g in range(len(owners)):
        for k in range(classes):
            if owners[g, k]:
                groups[k, count[k]] = g
                count[k] += 1
                members[g, size[g]] = k
                size[g] += 1
    for c in range(first, last):
        m = best[c]
        if not count[m]:
            continue
        entropy = -np.log(probability[m, c]) - spread[c - first]
        for n in range(count[m]):
            g = groups[m, n]
            own = np.float32(0)
            for j in range(size[g]):
                own += probability[members[g, j], c]
            sums[g, 0] += 1
            sums[g, 1] += own
            sums[g, 2] += entropy


@compiled
def census(best: NDArray[np.int32], moments: NDArray[np.float64], extent: Ints) -> None:
    """Per class of a plane (H, W; −1: none): moments += voxels and sums of row and column; extent: (C, 4) first and last of each."""
    for r in range(best.shape[0]):
        for c in range(best.shape[1]):
            k = best[r, c]
            if k < 0:
                continue
            moments[k, 0] += 1
            moments[k, 1] += r
            moments[k, 2] += c
            extent[k, 0], extent[k, 1] = min(extent[k, 0], r), min(extent[k, 1], c)
            extent[k, 2], extent[k, 3] = max(extent[k, 2], r), max(extent[k, 3], c)


@compiled
def counted(labels: NDArray[np.uint16], count: NDArray[np.int64]) -> None:
    """count[k] += voxels of label k. labels: (N,). Four tables in turn: one alone would wait for its own last write."""
    table = np.zeros((4, len(count)), np.int64)
    most = len(labels) // 4 * 4
    for i in range(0, most, 4):
        for j in range(4):
            table[j, labels[i + j]] += 1
    for i in range(most, len(labels)):
        table[0, labels[i]] += 1
    for j in range(4):
        for k in range(len(count)):
            count[k] += table[j, k]
