"""Where tiles lie, and how much each of their voxels counts."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Axes = tuple[int, int, int]


def positions(length: int, patch: int, overlap: float) -> list[int]:
    """Evenly spread starts of tiles along one axis so that they overlap by at least `overlap` of the patch.

    The rule of nnU-Net v2 (Isensee et al. 2021), whose default overlap is one half. length ≥ patch.
    """
    step = max(1.0, patch * (1 - overlap))
    count = int(np.ceil((length - patch) / step)) + 1
    if count == 1:
        return [0]
    stride = (length - patch) / (count - 1)
    return [int(np.round(stride * n)) for n in range(count)]


def tile_starts(shape: Axes, patch: Axes, overlap: float) -> list[Axes]:
    """Starts of all tiles, ordered along the first axis first."""
    axes = [positions(n, p, overlap) for n, p in zip(shape, patch, strict=True)]
    return [(a, b, c) for a, b, c in itertools.product(*axes)]


@lru_cache(maxsize=4)
def importance(patch: Axes) -> NDArray[np.float32]:
    """Weight of each voxel of a tile: a Gaussian of σ = patch/8 around its centre, nowhere zero."""
    out = np.ones(patch, np.float64)
    for axis, n in enumerate(patch):
        x = np.arange(n) - n // 2
        curve = np.exp(-(x**2) / (2 * (n / 8) ** 2))
        out *= curve.reshape([-1 if m == axis else 1 for m in range(3)])
    out /= out.max()
    # far corners fall to 1e-11; nnU-Net's float16 map has its smallest number, 6e-8 of ten, there
    weights: NDArray[np.float32] = np.maximum(out, 6e-9).astype(np.float32)
    weights.flags.writeable = False
    return weights
