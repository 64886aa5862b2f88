"""Kernel: which voxels of a mask have an outside voxel at one of some offsets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled


@compiled
def inner_band(mask: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Voxels of `mask` for which `mask` is false (or the array ends) at any of the offsets, nearest offsets first."""
    ni, nj, nk = mask.shape
    out = np.zeros(mask.shape, np.bool_)
    for i in range(ni):
        for j in range(nj):
            last = -1
            for k in range(nk):
                if not mask[i, j, k]:
                    continue
                # the offset that found the previous voxel's outside usually finds this one's too
                first = last if last >= 0 else 0
                for n in range(-1, len(offsets)):
                    o = first if n < 0 else n
                    if o >= len(offsets):
                        break
                    x, y, z = i + offsets[o, 0], j + offsets[o, 1], k + offsets[o, 2]
                    if x < 0 or y < 0 or z < 0 or x >= ni or y >= nj or z >= nk or not mask[x, y, z]:
                        out[i, j, k] = True
                        last = o
                        break
    return out
