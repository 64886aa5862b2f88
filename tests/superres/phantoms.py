"""Smooth and structured phantoms with known values everywhere, sampled as thick slices on awkward grids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.superres import SliceProfile, slice_operator
from slice3d.superres.profile import fine_positions
from slice3d.volume import Volume
from tests.builders import oblique


def blobs(
    points: NDArray[np.float64], *, seed: int = 3, count: int = 40, extent_mm: float = 90.0
) -> NDArray[np.float32]:
    """(…, 3) mm → intensities of many soft-edged ellipsoids of 4 to 16 mm: detail alike along every axis."""
    rng = np.random.default_rng(seed)
    out = np.zeros(points.shape[:-1], dtype=np.float32)
    for _ in range(count):
        centre = rng.uniform(0, extent_mm, 3)
        radii = rng.uniform(4.0, 16.0, 3)
        distance = np.linalg.norm((points - centre) / radii, axis=-1)
        out += (rng.uniform(-300, 600) / (1 + np.exp((distance - 1) * radii.mean() / 0.8))).astype(np.float32)
    return out


def truth_and_slices(
    shape: tuple[int, int] = (60, 52),
    *,
    in_plane_mm: tuple[float, float] = (1.5, 1.5),
    count: int = 14,
    step_mm: float = 1.5,
    slice_step_mm: float = 6.0,
    thickness_mm: float = 4.5,
) -> tuple[NDArray[np.float32], NDArray[np.float32], SliceProfile]:
    """(a, b, m) truth at the fine positions, (a, b, n) thick slices of it, and the profile that made them."""
    profile = SliceProfile("gaussian", thickness_mm)
    fine = fine_positions(count, slice_step_mm, step_mm)
    axes = [np.arange(n) * s for n, s in zip(shape, in_plane_mm, strict=True)]
    points = np.stack(np.meshgrid(*axes, fine - fine[0], indexing="ij"), axis=-1)
    truth = blobs(points)
    operator = slice_operator(np.arange(count) * slice_step_mm, fine, profile)
    return truth, operator.forward(truth), profile


def thick_volume(
    slices: NDArray[np.float32],
    *,
    axis: int = 2,
    in_plane_mm: tuple[float, float] = (1.5, 1.5),
    slice_step_mm: float = 6.0,
    thickness_mm: float | None = 4.5,
    modality: str = "CT",
) -> Volume:
    """(a, b, n) slices as an oblique volume whose slices lie along `axis`."""
    spacing = list(in_plane_mm)
    spacing.insert(axis, slice_step_mm)
    data = np.ascontiguousarray(np.moveaxis(slices, -1, axis))
    affine = oblique((spacing[0], spacing[1], spacing[2]))
    metadata = {} if thickness_mm is None else {"SliceThickness": thickness_mm}
    return Volume(data, Grid(data.shape, affine), modality, metadata)
