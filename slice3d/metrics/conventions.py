"""Surface elements as other tools define them, so that their numbers can be reproduced.

All of them work on voxel (or cell) centres and assume axes at right angles. Summarised in docs/metrics.md.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Elements = tuple[NDArray[np.float64], NDArray[np.float64]]


def wide_border(mask: Mask, spacing_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) mm: voxels with an outside one among all 26 neighbours, as SimpleITK's Maurer distance map has them."""
    from scipy import ndimage

    inner = ndimage.minimum_filter(np.pad(mask, 1), size=3, mode="constant", cval=0)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner) * spacing_mm


def border_elements(mask: Mask, spacing_mm: NDArray[np.float64]) -> Elements:
    """Voxel borders (MONAI, nnU-Net/MedPy, SimpleITK's label contour): inside voxels with an outside face neighbour.

    Returns their centres (N, 3) in mm and weights of one. Outside the array counts as outside the structure.
    """
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for shift in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(shift, shift + mask.shape[axis])
            inner &= padded[tuple(window)]
    points = np.argwhere(mask & ~inner) * spacing_mm
    return points, np.ones(len(points))


def cell_elements(mask: Mask, spacing_mm: NDArray[np.float64]) -> Elements:
    """Cells of 2×2×2 voxel centres that hold both sides (DeepMind surface-distance), with marching-cubes areas."""
    padded = np.pad(mask.view(np.uint8), 1)
    code = np.zeros(tuple(n - 1 for n in padded.shape), np.uint8)
    ni, nj, nk = code.shape
    for bit in range(8):
        i, j, k = bit & 1, bit >> 1 & 1, bit >> 2 & 1
        code |= padded[i : i + ni, j : j + nj, k : k + nk] << np.uint8(bit)
    where = (code != 0) & (code != 255)
    return np.argwhere(where) * spacing_mm, _cell_areas(*map(float, spacing_mm))[code[where]]


@lru_cache(maxsize=32)
def _cell_areas(a: float, b: float, c: float) -> NDArray[np.float64]:
    """(256,) mm²: area of the marching-cubes patch (Lorensen and Cline 1987, level one half) of every corner pattern.

    A pattern with more than four corners inside has the patch of its complement, as in the surface-distance package.
    """
    from skimage import measure

    out = np.zeros(256)
    marching_cubes: Any = measure.marching_cubes
    for code in range(1, 255):
        used = code if code.bit_count() <= 4 else 255 - code
        corners = np.array([used >> bit & 1 for bit in range(8)], np.float32).reshape(2, 2, 2).transpose(2, 1, 0)
        vertices, faces, _, _ = marching_cubes(corners, 0.5, method="lorensen")
        corner = vertices[faces].astype(np.float64) * (a, b, c)
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        out[code] = np.linalg.norm(normal, axis=1).sum() / 2
    out.flags.writeable = False
    return out


def nearest_mm(points: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) distance from each point to the nearest of the other points."""
    from scipy.spatial import cKDTree

    tree = cKDTree(others, balanced_tree=False, compact_nodes=False)
    out: NDArray[np.float64] = tree.query(points)[0]
    return out


def set_hausdorff_mm(a: Mask, b: Mask, spacing_mm: NDArray[np.float64]) -> float:
    """Hausdorff distance of the voxel sets, inner voxels included, as SimpleITK's HausdorffDistanceImageFilter."""
    out = 0.0
    for one, other in ((a, b), (b, a)):
        alone = np.argwhere(one & ~other) * spacing_mm
        if len(alone):
            out = max(out, float(nearest_mm(alone, border_elements(other, spacing_mm)[0]).max()))
    return out
