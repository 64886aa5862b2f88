"""Kernels: where an array holds something, and which voxels of a mask have an outside voxel at one of some offsets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled


@compiled
def occupied(
    array: NDArray[np.uint8], first: NDArray[np.uint8], second: NDArray[np.uint8], third: NDArray[np.uint8]
) -> None:
    """Set, for each position along each axis, whether anything there is not zero (to any value that is not)."""
    ni, nj, nk = array.shape
    for i in range(ni):
        for j in range(nj):
            found = np.uint8(0)
            for k in range(nk):
                found |= array[i, j, k]
            if found:
                first[i] = 1
                second[j] = 1
                for k in range(nk):
                    third[k] |= array[i, j, k]


@compiled
def keep_band(
    bits: NDArray[np.uint8],
    bit: int,
    reach: NDArray[np.int64],
    offsets: NDArray[np.int64],
    mask: NDArray[np.bool_],
) -> None:
    """Clear those voxels of `mask` at all of whose offsets the bit is set.

    bits: `mask` as a bit, with a layer of padding. offsets: (N, 3), at most `reach` along each axis, nearest first.
    Beyond the padding nothing is set. A voxel in the middle of a full box of that reach is cleared without a look at
    every offset.
    """
    ni, nj, nk = mask.shape
    one = np.uint8(1 << bit)
    deep = np.empty((nj, nk), np.uint8)  # rows that are set as far as `reach` along the first axis
    full = np.empty(nk, np.uint8)
    for i in range(ni):
        inside = i >= reach[0] and i + reach[0] < ni
        if inside:
            deep[:] = one
            for u in range(i - reach[0], i + reach[0] + 1):
                for j in range(nj):
                    for k in range(nk):
                        deep[j, k] &= bits[u + 1, j + 1, k + 1]
        for j in range(nj):
            full[:] = 0
            if inside and j >= reach[1] and j + reach[1] < nj:
                full[:] = one
                for v in range(j - reach[1], j + reach[1] + 1):
                    for k in range(nk):
                        full[k] &= deep[v, k]
            run = 0  # full positions in a row, this one the last
            for k in range(nk + reach[2]):
                run = run + 1 if k < nk and full[k] else 0
                if run > 2 * reach[2]:
                    mask[i, j, k - reach[2]] = False
            last = -1
            for k in range(nk):
                if not mask[i, j, k]:
                    continue
                mask[i, j, k] = False
                # the offset that found the previous voxel's outside usually finds this one's too
                first = last if last >= 0 else 0
                for n in range(-1, len(offsets)):
                    o = first if n < 0 else n
                    x, y, z = i + offsets[o, 0] + 1, j + offsets[o, 1] + 1, k + offsets[o, 2] + 1
                    if (
                        x < 0 or y < 0 or z < 0 or x >= ni + 2 or y >= nj + 2 or z >= nk + 2
                        or not bits[x, y, z] & one
                    ):  # fmt: skip
                        mask[i, j, k] = True
                        last = o
                        break
