"""Partial volume: from the part of a voxel that lies inside to where the surface runs through it, and back.

Within one voxel the surface is taken as a plane; the part of a box below a plane is the distribution function of a sum
of three uniform variables (the interface reconstruction of volume-of-fluid methods, e.g. R. Scardovelli and
S. Zaleski, J. Comput. Phys. 164, 2000).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
_SIGNS = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])


def fraction(distance: Float, widths: Float) -> Float:
    """Part of a box on the inner side of a plane.

    distance: (N,) signed mm from the plane to the centre of the box, positive inside. widths: (N, 3) extent of the box
    along the normal that each axis contributes, |normal · axis| · spacing.
    """
    w = np.maximum(widths, 2e-2 * widths.max(axis=1, keepdims=True))
    # A plane outside the box is exact without the cubes, which cancel badly there.
    half = w.sum(axis=1) / 2
    d = np.clip(distance, -half, half)
    total = np.zeros_like(d)
    for sign in _SIGNS:
        total += sign.prod() * np.maximum(d + w @ (sign / 2), 0.0) ** 3
    out: Float = np.clip(total / (6.0 * w.prod(axis=1)), 0.0, 1.0)
    return out


def plane_distance(part: Float, widths: Float) -> Float:
    """Inverse of `fraction`: (N,) mm from the plane to the centre of the box, by bisection."""
    high = widths.sum(axis=1) / 2
    low = -high
    for _ in range(15):
        middle = (low + high) / 2
        below = fraction(middle, widths) < part
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    out: Float = (low + high) / 2
    return out


def is_partial_volume(probability: NDArray[np.float32]) -> bool:
    """Whether a map falls from 1 to 0 within about one voxel, as the part of a voxel that lies inside does.

    Network output fades over several voxels; reading it as partial volume would misplace the surface. Over two voxels
    the part inside changes by at least 0.9 along some axis, whatever the slope of the surface; a blur of one voxel
    standard deviation changes by 0.7.
    """
    half = np.nonzero((probability > 0.3) & (probability < 0.7))
    if not len(half[0]):
        return True
    squared = np.zeros(len(half[0]))
    for axis in range(3):
        up, down = list(half), list(half)
        up[axis] = np.minimum(up[axis] + 1, probability.shape[axis] - 1)
        down[axis] = np.maximum(down[axis] - 1, 0)
        squared += ((probability[tuple(up)] - probability[tuple(down)]) / 2.0) ** 2
    return bool(np.median(np.sqrt(squared)) >= 0.42)
