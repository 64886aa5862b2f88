"""From voxels to a smooth implicit function that is positive inside, zero on the surface and accurate between voxels.

Binary labels say only that each voxel centre lies inside or outside. Of all functions that agree with every label, the
one with the least bending energy is taken (V. Lempitsky, "Surface extraction from binary volumes with higher-order
smoothness", CVPR 2010), on the acquired slices, in millimetres; thick slices are then refined by cubic splines.
Probability maps are read as the part of each voxel that lies inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.surface import marching
from slice3d.surface.bending import SHORT, THICK, Array, bounds, least_bending, majority, refine_all, solve
from slice3d.surface.fractions import fraction, is_partial_volume, plane_distance
from slice3d.surface.region import Region
from slice3d.surface.settings import SurfaceSettings

# how far from the level a voxel stays that must keep its side; also keeps vertices off the grid points
KEPT = np.float32(0.04)


@dataclass(frozen=True)
class Field:
    """values: (i, j, k) float32, positive inside, not yet ended at the border of the scan. factors: samples per voxel.

    volume_mm3: what the surface should enclose within the scan, None where a fading probability map does not say.
    """

    values: Array
    factors: tuple[int, int, int]
    volume_mm3: float | None


def implicit(region: Region, settings: SurfaceSettings) -> Field:
    """The implicit function of one structure on a grid about as fine along every axis as the finest spacing."""
    spacing = np.asarray(region.grid.spacing_mm)
    factors = refinement(region.grid, settings.resolution_mm)
    if region.probability is None:
        values = _from_labels(region, settings, factors)
    elif not is_partial_volume(region.probability):
        values = _logit(region.probability)
    else:
        values = (
            planes(region.probability, spacing)
            if factors.max() == 1
            else consistent(region.probability, spacing, factors)
        )
    native = values
    if values.shape == region.mask.shape:
        values = refine_all(values, factors)
    volume = _volume(region, native, values, factors, smooth=cutoff_mm(region.grid, settings) > 0)
    return Field(values, (int(factors[0]), int(factors[1]), int(factors[2])), volume)


def refinement(grid: Grid, step_mm: float | None = None) -> NDArray[np.int64]:
    """Samples per voxel along each axis (3,) that bring thick slices near to a step, by default the finest spacing."""
    ratio = np.asarray(grid.spacing_mm) / (step_mm or min(grid.spacing_mm))
    return np.where(ratio > THICK, np.round(ratio), 1).astype(np.int64)


def _volume(region: Region, native: Array, values: Array, factors: NDArray[Any], *, smooth: bool) -> float | None:
    """What the surface should enclose within the scan, in mm³; None where a fading probability map does not say."""
    voxel = region.grid.voxel_volume_mm3
    inner = region.scanned()
    if region.probability is not None:
        sharp = is_partial_volume(region.probability)
        return float(region.probability[inner].sum(dtype=np.float64)) * voxel if sharp else None
    count = float(np.count_nonzero(region.mask[inner])) * voxel
    if refinement(region.grid).max() == 1 or not smooth:
        return count
    spacing = np.asarray(region.grid.spacing_mm)
    return weighed(region.mask[inner], native, values, spacing, scanned=region.scanned(factors.tolist()))


def weighed(
    mask: NDArray[np.bool_], native: Array, values: Array, spacing: NDArray[np.float64], *, scanned: tuple[slice, ...]
) -> float:
    """Volume in mm³ of a structure on thick slices: that of its function and its count, each trusted as its error lets.

    mask: (i, j, k) of what was scanned; native, values: its function on the slices' grid of `spacing` and refined;
    scanned: the part of `values` that was. The count is off by how the slices fall on the ends, which the function has
    estimated (both errors hardly correlate); the function where a structure is rough. There it matters whether labels stand
    for centres or for most of voxels, so that its volume in either reading tells how sure it is.
    """
    factors = np.asarray(values.shape) // np.asarray(native.shape)
    step = spacing / factors
    read = (values, refine_all(native - majority(native, spacing), factors))
    one, other = (float(inside_part(v, step)[scanned].sum(dtype=np.float64) * step.prod()) for v in read)
    count = float(np.count_nonzero(mask)) * float(spacing.prod())
    counting = (_counting_error(mask, int(np.argmax(factors))) * count) ** 2
    function = (one - other) ** 2
    trust = function / (function + counting) if counting else 0.0
    # the count is one of the second reading: compared in it, corrected with the function
    return one + trust * (count - other)


def _counting_error(mask: NDArray[np.bool_], axis: int) -> float:
    """Coefficient of error of a volume counted on parallel slices (H. Gundersen, E. Jensen, J. Microsc. 147, 1987)."""
    area = mask.sum(axis=tuple(a for a in range(3) if a != axis)).astype(np.float64)
    lagged = [float(area[lag:] @ area[: len(area) - lag]) for lag in range(3)]
    variance = max(0.0, 3 * lagged[0] - 4 * lagged[1] + lagged[2]) / 240.0
    return float(np.sqrt(variance) / area.sum())


def cutoff_mm(grid: Grid, settings: SurfaceSettings) -> float:
    """The wavelength in mm at which ripples of a surface from labels keep half their height."""
    return 4.0 * min(grid.spacing_mm) if settings.smoothing_mm is None else settings.smoothing_mm


def _from_labels(region: Region, settings: SurfaceSettings, factors: NDArray[Any]) -> Array:
    spacing = np.asarray(region.grid.spacing_mm)
    cutoff = cutoff_mm(region.grid, settings)
    if cutoff == 0:
        return region.mask.astype(np.float32) - np.float32(0.5)
    if factors.max() > 1:
        return least_bending(region.mask, spacing)
    return low_pass(region.mask, spacing, cutoff)


def _logit(probability: Array) -> Array:
    """Log odds: nearly linear in the distance where a network's confidence fades, so that interpolation is right."""
    p = np.clip(probability, 0.02, 0.98)
    out: Array = np.log(p / (1 - p)).astype(np.float32)
    return out


def planes(probability: Array, spacing: NDArray[np.float64]) -> Array:
    """Signed distance in mm from a map of partial volumes: a plane in each mixed voxel, continued into its neighbours."""
    inside = probability >= 0.5
    widths, mixed = _mixed_widths(probability, spacing)
    index = np.argwhere(mixed)
    part = probability[mixed].astype(np.float64)
    distance = plane_distance(part, np.abs(widths) * spacing)
    far = np.float32(2.0 * spacing.max())
    out = np.where(inside, far, -far).astype(np.float32)
    out[mixed] = distance
    total = np.zeros(probability.shape, dtype=np.float32)
    weight = np.zeros(probability.shape, dtype=np.float32)
    pure = ~mixed
    for axis in range(3):
        for step in (-1, 1):
            other = index.copy()
            other[:, axis] += step
            usable = (other[:, axis] >= 0) & (other[:, axis] < probability.shape[axis])
            target = tuple(other[usable].T)
            keep = pure[target]
            target = tuple(t[keep] for t in target)
            along = widths[usable][keep][:, axis]
            value = distance[usable][keep] + step * spacing[axis] * along
            np.add.at(total, target, (value * along**2).astype(np.float32))
            np.add.at(weight, target, (along**2).astype(np.float32))
    reached = weight > 0
    guess = total[reached] / weight[reached]
    least = np.float32(0.5 * spacing.min())
    out[reached] = np.where(inside[reached], np.maximum(guess, least), np.minimum(guess, -least))
    return out


def _mixed_widths(probability: Array, spacing: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Unit normals (N, 3), pointing inwards, of the voxels that the surface passes through, and which those are."""
    from scipy.ndimage import gaussian_filter

    mixed = (probability > 1e-3) & (probability < 1 - 1e-3)
    smooth = gaussian_filter(probability, 0.7, mode="nearest", truncate=3.0)
    gradient = np.empty((int(np.count_nonzero(mixed)), 3))
    index = np.nonzero(mixed)
    for axis in range(3):
        up, down = list(index), list(index)
        up[axis] = np.minimum(up[axis] + 1, probability.shape[axis] - 1)
        down[axis] = np.maximum(down[axis] - 1, 0)
        gradient[:, axis] = (smooth[tuple(up)] - smooth[tuple(down)]) / (2 * spacing[axis])
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    fallback = np.tile([1.0, 0.0, 0.0], (len(gradient), 1))
    return np.divide(gradient, length, out=fallback, where=length > 1e-9), mixed


def consistent(probability: Array, spacing: NDArray[np.float64], factors: NDArray[Any], *, rounds: int = 3) -> Array:
    """On thick slices: the least-bending function, corrected until each voxel holds the part of it that was given.

    Returns values on the refined grid.
    """
    mask = probability >= 0.5
    low, high, start = bounds(mask, spacing)
    native = solve(low, high, start, spacing, wave=SHORT, iterations=60)
    fine = refine_all(native, factors)
    mixed = (probability > 1e-3) & (probability < 1 - 1e-3)
    wide = np.float32(1.2 * np.linalg.norm(spacing))
    for _ in range(rounds):
        predicted, slope = _predict(fine, spacing, factors)
        wrong = (probability - predicted) * slope
        free = mixed | (np.abs(probability - predicted) > 1e-3)
        target = np.clip(native + wrong, -wide, wide)
        low = np.where(free, target, low)
        high = np.where(free, target, high)
        native = solve(low, high, native, spacing, wave=SHORT, iterations=20)
        fine = refine_all(native, factors)
    return fine


def _predict(fine: Array, spacing: NDArray[np.float64], factors: NDArray[Any]) -> tuple[Array, Array]:
    """The part of each voxel that lies inside, and how many mm of shift change it by one, from the refined function."""
    step = spacing / factors
    part = inside_part(fine, step)
    blocks = [n for size, f in zip(fine.shape, factors, strict=True) for n in (size // f, f)]
    mean = part.reshape(blocks).mean(axis=(1, 3, 5))
    # A shift by δ changes the part by δ · (area in the voxel) / (volume of the voxel).
    area = ((part > 0.02) & (part < 0.98)).reshape(blocks).sum(axis=(1, 3, 5))
    total = float(np.prod(factors))
    slope = np.where(area > 0, total / np.maximum(area, 1), 1.0) * float(step.min())
    return mean, np.minimum(slope, 0.5 * spacing.max()).astype(np.float32)


def inside_part(values: Array, step: NDArray[np.float64]) -> Array:
    """The part of each sample's box (edges `step`, mm) in which the function is positive, taking it as linear there."""
    out = (values > 0).astype(np.float32)
    jump = []
    for axis in range(3):
        there, here = (tuple(slice(s if a == axis else 0, None, 3) for a in range(3)) for s in (1, 0))
        after = values[there]
        jump.append(np.abs(after - values[here][tuple(slice(n) for n in after.shape)]))
    # Twice the largest half diagonal of the box, in units of the function.
    reach = np.float32(1.2 * sum(float(np.percentile(j, 99)) if j.size else 0.0 for j in jump))
    near = np.nonzero(np.abs(values) < reach)
    gradient = np.empty((len(near[0]), 3))
    for axis in range(3):
        up, down = list(near), list(near)
        up[axis] = np.minimum(up[axis] + 1, values.shape[axis] - 1)
        down[axis] = np.maximum(down[axis] - 1, 0)
        gradient[:, axis] = (values[tuple(up)] - values[tuple(down)]) / np.maximum(up[axis] - down[axis], 1)
    length = np.maximum(np.linalg.norm(gradient / step, axis=1), 1e-6)
    out[near] = fraction(values[near] / length, np.abs(gradient) / length[:, None])
    return out


def low_pass(
    mask: NDArray[np.bool_], spacing: NDArray[np.float64], cutoff_mm: float, *, keep_labels: bool = True
) -> Array:
    """Mask minus ½ after a low-pass filter without second moment, so that curved surfaces do not shrink to first order.

    The kernel is 2G − G∗G per axis; its half-amplitude wavelength is `cutoff_mm`. With `keep_labels` no voxel centre
    changes sides, so that nothing thin is lost.
    """
    out = marching.filtered(mask, low_pass_kernels(spacing, cutoff_mm))
    out -= np.float32(0.5)
    if keep_labels:
        keep_sides(out, mask)
    return out


def low_pass_kernels(spacing: NDArray[np.float64], cutoff_mm: float) -> tuple[NDArray[np.float64], ...]:
    """The weights along each axis of the filter of `low_pass`."""
    return tuple(_kernel(max(cutoff_mm / 4.0 / float(s), 0.3)) for s in spacing)


def _kernel(sigma: float) -> NDArray[np.float64]:
    radius = int(np.ceil(4.0 * sigma))
    x = np.arange(-2 * radius, 2 * radius + 1)
    gauss = np.exp(-0.5 * (x / sigma) ** 2)
    gauss /= gauss.sum()
    out: NDArray[np.float64] = (2 * gauss - np.convolve(gauss, gauss, mode="same"))[radius : 3 * radius + 1]
    out /= out.sum()
    return out


def keep_sides(values: Array, mask: NDArray[np.bool_]) -> None:
    """Moves values, in place, so that every voxel of the mask is inside and every other one outside."""
    np.maximum(values, KEPT, out=values, where=mask)
    np.minimum(values, -KEPT, out=values, where=~mask)


def cut(values: Array, region: Region, factors: Sequence[int]) -> Array:
    """Ends the structure at the faces of the scan that it touches, and in any case inside the region."""
    out = values.copy()
    for axis, end in region.cut:
        along = np.moveaxis(out, axis, 0)
        # the border lies halfway between two samples: with opposite values there the function is zero on it
        last = round((region.limits[end, axis] + 0.5) * factors[axis])
        if end == 0:
            along[:last] = -np.abs(along[last])
        else:
            along[last:] = -np.abs(along[last - 1])
    for axis in range(3):
        for edge in (0, -1):
            face = np.moveaxis(out, axis, 0)[edge]
            np.minimum(face, -1e-3, out=face)
    return out
