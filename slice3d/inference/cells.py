"""Labels between network voxels, cell by cell, compiled: nothing is interpolated that cannot change the label.

Every score inside a cell is a convex combination of those at its eight corners. A class that some other one beats at all
corners wins nowhere in the cell; where one class wins all corners, the cell is that class. What remains, mostly two or
three classes, is interpolated along the slab axis, then rows, then columns, and the first of the largest wins: the
labels are those of interpolating every class, bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


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


@compiled
def strongest(scores: Floats, best: NDArray[np.int32], first: int, last: int) -> None:
    """(H, W, C) scores → first of the largest, rows first…last-1."""
    classes = scores.shape[2]
    for r in range(first, last):
        for c in range(scores.shape[1]):
            here, most = 0, scores[r, c, 0]
            for k in range(1, classes):
                if scores[r, c, k] > most:
                    here, most = k, scores[r, c, k]
            best[r, c] = here


@compiled
def _rule_out(
    s0: Floats, s1: Floats, s2: Floats, s3: Floats, s4: Floats, s5: Floats, s6: Floats, s7: Floats,
    m: int, keep: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Classes that class m beats at all corners; one as good as m somewhere stays, whichever of the two comes first."""
    t0, t1, t2, t3, t4, t5, t6, t7 = s0[m], s1[m], s2[m], s3[m], s4[m], s5[m], s6[m], s7[m]
    for k in range(len(keep)):
        keep[k] &= (
            (s0[k] >= t0) | (s1[k] >= t1) | (s2[k] >= t2) | (s3[k] >= t3)
            | (s4[k] >= t4) | (s5[k] >= t5) | (s6[k] >= t6) | (s7[k] >= t7)
        )  # fmt: skip


@compiled
def softmax_labels(
    a: Floats,
    b: Floats,
    best_a: NDArray[np.int32],
    best_b: NDArray[np.int32],
    slab_weight: Floats,
    rows: Runs,
    columns: Runs,
    values: NDArray[np.uint16],
    out: NDArray[np.uint16],
    first: int,
    last: int,
) -> None:
    """Labels between two planes of scores (H, W, C), runs first…last-1 of the rows.

    best_a, best_b: (H, W) strongest class. slab_weight: of `b`, one per output plane. values: label of each class.
    out: (planes, height, width).
    """
    classes = a.shape[2]
    keep = np.empty(classes, np.bool_)
    candidate = np.empty(classes, np.int64)
    winner = np.empty(8, np.int64)
    p = np.empty((4, classes), np.float32)
    q = np.empty((2, classes), np.float32)
    one = np.float32(1)
    for r in range(first, last):
        y0, y1, top, bottom = rows.low[r], rows.high[r], rows.start[r], rows.stop[r]
        for s in range(len(columns.low)):
            x0, x1, left, right = columns.low[s], columns.high[s], columns.start[s], columns.stop[s]
            winner[0], winner[1], winner[2], winner[3] = best_a[y0, x0], best_a[y0, x1], best_a[y1, x0], best_a[y1, x1]
            winner[4], winner[5], winner[6], winner[7] = best_b[y0, x0], best_b[y0, x1], best_b[y1, x0], best_b[y1, x1]
            label = values[winner[0]]
            same = True
            alone = True
            for n in range(1, 8):
                if winner[n] != winner[0]:
                    alone = False
                    break
            if not alone:
                a00, a01, a10, a11 = a[y0, x0], a[y0, x1], a[y1, x0], a[y1, x1]
                b00, b01, b10, b11 = b[y0, x0], b[y0, x1], b[y1, x0], b[y1, x1]
                for k in range(classes):
                    keep[k] = True
                for n in range(8):
                    m = winner[n]
                    if not keep[m]:
                        continue
                    before = 0
                    while winner[before] != m:
                        before += 1
                    if before < n:
                        continue
                    _rule_out(a00, a01, a10, a11, b00, b01, b10, b11, m, keep)
                count = 0
                for k in range(classes):
                    candidate[count] = k
                    count += keep[k]
                for j in range(count):
                    if values[candidate[j]] != label:
                        same = False
                        break
            if same:
                for z in range(len(slab_weight)):
                    for y in range(top, bottom):
                        for x in range(left, right):
                            out[z, y, x] = label
                continue
            for z in range(len(slab_weight)):
                w = slab_weight[z]
                v = one - w
                for j in range(count):
                    k = candidate[j]
                    p[0, j], p[1, j] = v * a00[k] + w * b00[k], v * a01[k] + w * b01[k]
                    p[2, j], p[3, j] = v * a10[k] + w * b10[k], v * a11[k] + w * b11[k]
                for y in range(top, bottom):
                    w = rows.weight[y]
                    v = one - w
                    for j in range(count):
                        q[0, j], q[1, j] = v * p[0, j] + w * p[2, j], v * p[1, j] + w * p[3, j]
                    for x in range(left, right):
                        w = columns.weight[x]
                        v = one - w
                        here, most = 0, v * q[0, 0] + w * q[1, 0]
                        for j in range(1, count):
                            score = v * q[0, j] + w * q[1, j]
                            if score > most:
                                here, most = j, score
                        out[z, y, x] = values[candidate[here]]


@compiled
def sigmoid_labels(
    a: Floats,
    b: Floats,
    slab_weight: Floats,
    rows: Runs,
    columns: Runs,
    threshold: float,
    values: NDArray[np.uint16],
    out: NDArray[np.uint16],
    first: int,
    last: int,
) -> None:
    """As `softmax_labels` for channels that are each on above `threshold`; later ones overwrite earlier ones."""
    corner = np.empty((2, 2, 2), np.float32)
    one = np.float32(1)
    for r in range(first, last):
        y0, y1, top, bottom = rows.low[r], rows.high[r], rows.start[r], rows.stop[r]
        for s in range(len(columns.low)):
            x0, x1, left, right = columns.low[s], columns.high[s], columns.start[s], columns.stop[s]
            out[:, top:bottom, left:right] = 0
            for k in range(len(values)):
                corner[0, 0, 0], corner[0, 0, 1] = a[y0, x0, k], a[y0, x1, k]
                corner[0, 1, 0], corner[0, 1, 1] = a[y1, x0, k], a[y1, x1, k]
                corner[1, 0, 0], corner[1, 0, 1] = b[y0, x0, k], b[y0, x1, k]
                corner[1, 1, 0], corner[1, 1, 1] = b[y1, x0, k], b[y1, x1, k]
                on = 0
                for value in corner.flat:
                    on += int(value > threshold)
                if on == 8:
                    out[:, top:bottom, left:right] = values[k]
                if on in (0, 8):
                    continue
                for z in range(len(slab_weight)):
                    w = slab_weight[z]
                    v = one - w
                    p00 = v * corner[0, 0, 0] + w * corner[1, 0, 0]
                    p01 = v * corner[0, 0, 1] + w * corner[1, 0, 1]
                    p10 = v * corner[0, 1, 0] + w * corner[1, 1, 0]
                    p11 = v * corner[0, 1, 1] + w * corner[1, 1, 1]
                    for y in range(top, bottom):
                        w = rows.weight[y]
                        q0, q1 = (one - w) * p00 + w * p10, (one - w) * p01 + w * p11
                        for x in range(left, right):
                            w = columns.weight[x]
                            if (one - w) * q0 + w * q1 > threshold:
                                out[z, y, x] = values[k]


@compiled
def tally(
    scores: Floats,
    probability: Floats,
    best: NDArray[np.int32],
    owners: NDArray[np.bool_],
    mass: NDArray[np.float64],
    sums: NDArray[np.float64],
    first: int,
    last: int,
) -> None:
    """Sums over rows first…last-1 of a plane (H, W, C). owners: (groups, C), which classes belong to which group.

    mass: (C,) += probabilities. sums: (groups, 3) += voxels, the group's own probability and the entropy (nats) where
    the strongest class is one of the group's.
    """
    classes = scores.shape[2]
    line = np.empty(classes, np.float32)
    groups = np.empty((classes, len(owners)), np.int64)
    count = np.zeros(classes, np.int64)
    for g in range(len(owners)):
        for k in range(classes):
            if owners[g, k]:
                groups[k, count[k]] = g
                count[k] += 1
    for r in range(first, last):
        line[:] = 0
        for c in range(scores.shape[1]):
            p = probability[r, c]
            for k in range(classes):
                line[k] += p[k]
            m = best[r, c]
            if not count[m]:
                continue
            s = scores[r, c]
            # −Σ p log p, with log p of every class from that of the strongest one
            entropy = -np.log(p[m])
            for k in range(classes):
                entropy -= p[k] * (s[k] - s[m])
            for n in range(count[m]):
                g = groups[m, n]
                own = np.float32(0)
                for k in range(classes):
                    if owners[g, k]:
                        own += p[k]
                sums[g, 0] += 1
                sums[g, 1] += own
                sums[g, 2] += entropy
        for k in range(classes):
            mass[k] += line[k]


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
