"""From voxels to a smooth implicit function that is positive inside, zero on the surface and accurate between voxels.

Binary labels say only that each voxel centre lies inside or outside. Of all functions that agree with every label, the
one with the least bending energy is taken (V. Lempitsky, "Surface extraction from binary volumes with higher-order
smoothness", CVPR 2010), on the acquired slices, in millimetres; thick slices are then refined by cubic splines.
Probability maps are read as the part of each voxel that lies inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.surface.region import Region
from slice3d.surface.settings import SurfaceSettings

Array = NDArray[np.float32]
THICK = 1.5


@dataclass(frozen=True)
class Field:
    """values: (i, j, k) float32, positive inside. factors: samples per voxel along each axis. volume_mm3: of the voxels."""

    values: Array
    factors: tuple[int, int, int]
    volume_mm3: float


def implicit(region: Region, settings: SurfaceSettings) -> Field:
    """The implicit function of one structure on a grid about as fine along every axis as the finest spacing."""
    spacing = np.asarray(region.grid.spacing_mm)
    step = settings.resolution_mm or float(spacing.min())
    ratio = spacing / step
    factors = np.where(ratio > THICK, np.round(ratio), 1).astype(int)
    if region.probability is not None:
        values = region.probability - np.float32(0.5)
        volume = float(region.probability.sum(dtype=np.float64)) * region.grid.voxel_volume_mm3
    else:
        cutoff = 4.0 * float(spacing.min()) if settings.smoothing_mm is None else settings.smoothing_mm
        if cutoff == 0:
            values = region.mask.astype(np.float32) - np.float32(0.5)
        elif factors.max() > 1:
            values = least_bending(region.mask, spacing)
        else:
            values = low_pass(region.mask, spacing, cutoff)
        volume = float(np.count_nonzero(region.mask)) * region.grid.voxel_volume_mm3
    for axis in range(3):
        if factors[axis] > 1:
            values = refine(values, axis, int(factors[axis]))
    return Field(_cut(values, region, factors), (int(factors[0]), int(factors[1]), int(factors[2])), volume)


def low_pass(
    mask: NDArray[np.bool_], spacing: NDArray[np.float64], cutoff_mm: float, *, keep_labels: bool = True
) -> Array:
    """Mask minus ½ after a low-pass filter without second moment, so that curved surfaces do not shrink to first order.

    The kernel is 2G − G∗G per axis; its half-amplitude wavelength is `cutoff_mm`. With `keep_labels` no voxel centre
    changes sides, so that nothing thin is lost.
    """
    from scipy.ndimage import correlate1d

    out: Array = mask.astype(np.float32)
    for axis in range(3):
        sigma = cutoff_mm / 4.0 / float(spacing[axis])
        kernel = _kernel(max(sigma, 0.3))
        out = correlate1d(out, kernel, axis=axis, mode="nearest")
    out -= np.float32(0.5)
    if keep_labels:
        low = np.float32(0.04)
        np.copyto(out, low, where=mask & (out < low))
        np.copyto(out, -low, where=~mask & (out > -low))
    return out


def _kernel(sigma: float) -> NDArray[np.float64]:
    radius = int(np.ceil(4.0 * sigma))
    x = np.arange(-2 * radius, 2 * radius + 1)
    gauss = np.exp(-0.5 * (x / sigma) ** 2)
    gauss /= gauss.sum()
    out: NDArray[np.float64] = (2 * gauss - np.convolve(gauss, gauss, mode="same"))[radius : 3 * radius + 1]
    return out / out.sum()


def least_bending(mask: NDArray[np.bool_], spacing: NDArray[np.float64], *, iterations: int = 40) -> Array:
    """The function of least bending energy, in mm, whose sign agrees with every voxel.

    Solved by ADMM; the quadratic step is exact in the cosine basis, so that long waves converge as fast as short ones.
    """
    from scipy.fft import dctn, idctn

    low, high, start = _bounds(mask, spacing)
    energy: NDArray[Any] = np.zeros(())
    for axis, (n, s) in enumerate(zip(mask.shape, spacing, strict=True)):
        shape = [1, 1, 1]
        shape[axis] = n
        energy = energy + ((2 - 2 * np.cos(np.pi * np.arange(n) / n)) / s**2).reshape(shape)
    weight = 0.3
    gain = (weight / (weight + energy**2)).astype(np.float32)
    z, dual = start, np.zeros_like(start)
    x = start
    for _ in range(iterations):
        x = idctn(
            gain * dctn(z - dual, norm="ortho", overwrite_x=True, workers=2), norm="ortho", overwrite_x=True, workers=2
        )
        z = np.clip(x + dual, low, high)
        dual += x - z
    out: Array = x
    return out


def _bounds(mask: NDArray[np.bool_], spacing: NDArray[np.float64]) -> tuple[Array, Array, Array]:
    """Lowest and highest value allowed at each voxel, and a first guess, all in mm."""
    from scipy.ndimage import binary_dilation, distance_transform_edt

    epsilon = np.float32(0.03 * spacing.min())
    rim_in = mask & binary_dilation(~mask)
    rim_out = ~mask & binary_dilation(mask)
    depth = np.where(mask, 0, 0).astype(np.float32)
    for side, rim, sign in ((mask, rim_in, 1), (~mask, rim_out, -1)):
        distance = distance_transform_edt(~rim, sampling=spacing).astype(np.float32)
        depth[side] = sign * (distance[side] + epsilon)
    infinity = np.float32(np.inf)
    return np.where(mask, depth, -infinity), np.where(mask, infinity, depth), depth


def refine(values: Array, axis: int, factor: int) -> Array:
    """Natural cubic spline along one axis: `factor` samples per voxel, spread evenly over its extent."""
    from scipy.interpolate import CubicSpline

    n = values.shape[axis]
    where = (np.arange(n * factor) + 0.5) / factor - 0.5
    weights = CubicSpline(np.arange(n), np.eye(n), bc_type="natural")(where).astype(np.float32)
    out: Array = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def _cut(values: Array, region: Region, factors: NDArray[Any]) -> Array:
    """Ends the structure at the faces of the scan that it touches, and in any case inside the region."""
    spacing = region.grid.spacing_mm
    out = values
    for axis, end in region.cut:
        position = (np.arange(values.shape[axis]) + 0.5) / factors[axis] - 0.5
        inside = (position - region.limits[0, axis]) if end == 0 else (region.limits[1, axis] - position)
        shape = [1, 1, 1]
        shape[axis] = -1
        out = np.minimum(out, (inside * spacing[axis]).astype(np.float32).reshape(shape))
    for axis in range(3):
        for edge in (0, -1):
            face = np.moveaxis(out, axis, 0)[edge]
            np.minimum(face, -1e-3, out=face)
    return out
