"""Planes of scores or labels, voxel by voxel, compiled: which class is strongest, and what is summed or counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled, compiled_for_finite

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Owners(NamedTuple):
    """Which classes belong to which groups. groups: (C, most), number: (C,); members: (G, most), size: (G,)."""

    groups: Ints
    number: Ints
    members: Ints
    size: Ints


def owners(groups: Sequence[Sequence[int]], classes: int) -> Owners:
    """groups: the classes of each."""
    mine = [[g for g, members in enumerate(groups) if k in members] for k in range(classes)]
    return Owners(*_table(mine), *_table(groups))


def _table(lists: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    size = np.array([len(line) for line in lists], np.int64)
    out = np.zeros((len(lists), int(size.max(initial=1))), np.int64)
    for row, line in zip(out, lists, strict=True):
        row[: len(line)] = line
    return out, size


_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # n times the first is exact


@compiled_for_finite
def judge(
    scores: Floats,
    best: NDArray[np.int32],
    owners: Owners,
    mass: NDArray[np.float64],
    sums: NDArray[np.float64],
    first: int,
    last: int,
) -> None:
    """The first of the strongest classes, and sums of probabilities, of rows first…last-1 of a plane (H, W, C).

    best: (H, W). mass: (C,) += probabilities. sums: (groups, 3) += voxels, the group's own probability and the entropy
    (nats) where the strongest class is one of the group's.
    """
    width, classes = scores.shape[1], scores.shape[2]
    one = np.float32(1)
    share = np.empty(classes, np.float32)
    power = np.empty(classes, np.int32)
    scale = power.view(np.float32)
    whole = np.empty(classes, np.float32)
    if first < 0:  # never; compilers see by it that indices do not count from the end
        return
    for y in range(first, last):
        whole[:] = 0
        for x in range(width):
            top = scores[y, x, 0]
            for k in range(classes):
                s = scores[y, x, k]
                top = s if s > top else top
            m = 0
            while scores[y, x, m] < top:
                m += 1
            best[y, x] = m
            # exp d = 2ⁿ · exp r with |r| < 0.35 (Cephes' polynomial): a library would take them one by one
            for k in range(classes):
                d = scores[y, x, k] - top
                d = d if d > np.float32(-87) else np.float32(-87)
                n = np.floor(d * _LOG2_E + np.float32(0.5))
                r = (d - n * _LN2_HIGH) - n * _LN2_LOW
                e = np.float32(1.9875691500e-4)
                e = e * r + np.float32(1.3981999507e-3)
                e = e * r + np.float32(8.3334519073e-3)
                e = e * r + np.float32(4.1665795894e-2)
                e = e * r + np.float32(1.6666665459e-1)
                e = e * r + np.float32(5.0000001201e-1)
                share[k] = e * r * r + r + one
                power[k] = np.int32((n + np.float32(127)) * np.float32(8388608))  # 2²³: the bits of 2ⁿ
            total = np.float32(0)
            spread = np.float32(0)  # Σ p d: with it, −Σ p log p takes one logarithm a pixel
            for k in range(classes):
                p = share[k] * scale[k]
                share[k] = p
                total += p
                spread += p * (scores[y, x, k] - top)
            inverse = one / total
            for k in range(classes):
                p = share[k] * inverse
                share[k] = p
                whole[k] += p
            if not owners.number[m]:
                continue
            entropy = np.log(total) - spread * inverse
            for j in range(owners.number[m]):
                g = owners.groups[m, j]
                own = np.float32(0)
                for q in range(owners.size[g]):
                    own += share[owners.members[g, q]]
                sums[g, 0] += 1
                sums[g, 1] += own
                sums[g, 2] += entropy
        for k in range(classes):
            mass[k] += whole[k]


@compiled
def census(best: NDArray[np.int32], moments: NDArray[np.float64], extent: Ints) -> None:
    """Per class of a plane (H, W; −1: none): moments += voxels and sums of row and column; extent: (C, 4) first and last of each."""
    for r in range(best.shape[0]):
        line = best[r]
        stop = 0
        while stop < len(line):
            start, k = stop, line[stop]
            while stop < len(line) and line[stop] == k:
                stop += 1
            if k < 0:
                continue
            count = stop - start
            moments[k, 0] += count
            moments[k, 1] += count * r
            moments[k, 2] += count * (start + stop - 1) / 2
            extent[k, 0], extent[k, 1] = min(extent[k, 0], r), min(extent[k, 1], start)
            extent[k, 2], extent[k, 3] = max(extent[k, 2], r), max(extent[k, 3], stop - 1)


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
