"""Shapes with closed-form answers, and blobs that look like nothing in particular."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from slice3d.grid import Grid


def centred(size_mm, spacing_mm):
    """A grid of odd shape, centred on the world origin, that holds a cube of `size_mm` with room to spare."""
    shape = [int(np.ceil((size_mm + 4 * s) / s)) // 2 * 2 + 1 for s in spacing_mm]
    return Grid.from_spacing(shape, spacing_mm, [-(n - 1) / 2 * s for n, s in zip(shape, spacing_mm, strict=True)])


def points(grid):
    return grid.to_world(np.stack(np.indices(grid.shape), axis=-1))


def ball(grid, radius_mm, centre_mm=(0, 0, 0)):
    return ((points(grid) - centre_mm) ** 2).sum(axis=-1) <= radius_mm**2


def box(grid, half_mm, centre_mm=(0, 0, 0)):
    return (np.abs(points(grid) - centre_mm) <= half_mm).all(axis=-1)


def blobs(shape, seed, *, threshold=0.5):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0, mode="constant")
    return noise > threshold * noise.std()
