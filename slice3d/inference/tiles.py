"""Where tiles lie, and how much each of their voxels counts."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Axes = tuple[int, int, int]


def positions(length: int, patch: int, overlap: float, tiling: str = "nnunet") -> list[int]:
    """Starts of tiles along one axis; they overlap by at least `overlap` of the patch. length ≥ patch.

    `nnunet`: evenly spread, as nnU-Net v2 does (Isensee et al. 2021). `monai`: at a fixed step, the last one moved back
    to end with the image, as MONAI's sliding window does.
    """
    if tiling == "monai":
        every = patch if length == patch else max(1, int(patch * (1 - overlap)))
        return [min(n, length - patch) for n in range(0, length - patch + every, every)]
    step = max(1.0, patch * (1 - overlap))
    count = int(np.ceil((length - patch) / step)) + 1
    if count == 1:
        return [0]
    stride = (length - patch) / (count - 1)
    return [int(np.round(stride * n)) for n in range(count)]


def tile_starts(shape: Axes, patch: Axes, overlap: float, tiling: str = "nnunet") -> list[Axes]:
    """Starts of all tiles, ordered along the first axis first."""
    axes = [positions(n, p, overlap, tiling) for n, p in zip(shape, patch, strict=True)]
    return [(a, b, c) for a, b, c in itertools.product(*axes)]


@lru_cache(maxsize=4)
def importance(patch: Axes, tiling: str = "nnunet", blend: str = "gaussian") -> NDArray[np.float32]:
    """Weight of each voxel of a tile: a Gaussian of σ = patch/8 around its centre, nowhere zero.

    MONAI's centre and least weight are its own, and its tiles may all count alike (blend `constant`).
    """
    if tiling == "monai":
        from monai.data.utils import compute_importance_map

        found: NDArray[np.float32] = compute_importance_map(patch, mode=blend, sigma_scale=0.125).numpy()
        return found
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
