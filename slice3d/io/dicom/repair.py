"""Resample slices that do not form a lattice (tilted gantry, missing slices, varying distances) along their true
positions.

The target keeps the acquired in-plane axes and its third axis is the slice normal, so a slice that lies on a target
plane
is only shifted within that plane (by a sub-pixel amount), never mixed with its neighbours. Between acquired slices
values
are interpolated linearly along the normal, the shortest way; wide holes stay empty. What was not measured is marked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError
from slice3d.grid import Grid
from slice3d.io.dicom.geometry import POSITION_TOLERANCE_MM, Layout, to_ras
from slice3d.progress import Progress, silent

MAX_GROWTH = 20
# between slices further apart than this nothing is interpolated: it would invent centimetres of anatomy
MAX_BRIDGE_MM = 20.0
MAX_BRIDGE_STEPS = 4.0


@dataclass(frozen=True)
class Repaired:
    """values, estimated: (K, rows, columns) on `grid` (whose axes run columns, rows, slices)."""

    values: NDArray[np.generic]
    estimated: NDArray[np.bool_]
    grid: Grid


def repair(values: NDArray[np.generic], layout: Layout, *, fill: float, progress: Progress = silent) -> Repaired:
    """Put acquired slices (K, rows, columns) on an orthogonal lattice.

    Raises `GeometryError` when that lattice would be absurdly larger than what was acquired.
    """
    step = layout.step_mm
    depth = layout.distances - layout.distances[0]
    count = int(np.round(depth[-1] / step + 1e-6)) + 1
    relative = layout.origins - layout.origins[0]
    shift = np.stack([relative @ layout.column / layout.spacing[1], relative @ layout.row / layout.spacing[0]], axis=1)
    shift[np.abs(shift) < 1e-3] = 0.0
    start = np.floor(shift.min(axis=0)).astype(int)
    stop = np.ceil(shift.max(axis=0)).astype(int)
    shape = (count, values.shape[1] + stop[0] - start[0], values.shape[2] + stop[1] - start[1])
    if np.prod(shape, dtype=float) > MAX_GROWTH * values.size + 1e6:
        raise GeometryError(
            f"the repaired volume would have {shape[2]}×{shape[1]}×{shape[0]} voxels from {len(depth)} slices of "
            f"{values.shape[2]}×{values.shape[1]}; expected slices that lie together; choose another series with "
            "--series"
        )
    out = np.empty(shape, dtype=values.dtype)
    estimated = np.zeros(shape, dtype=np.bool_)
    cache: dict[int, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}
    for m in range(count):
        z = min(m * step, float(depth[-1]))
        k = int(np.clip(np.searchsorted(depth, z, side="right") - 1, 0, max(len(depth) - 2, 0)))
        t = (z - depth[k]) / (depth[k + 1] - depth[k])
        near = POSITION_TOLERANCE_MM / (depth[k + 1] - depth[k])
        gap = depth[k + 1] - depth[k]
        weights = {k: 1.0} if t <= near else {k + 1: 1.0} if t >= 1 - near else {k: 1 - t, k + 1: t}
        if len(weights) == 2 and gap > max(MAX_BRIDGE_MM, MAX_BRIDGE_STEPS * step):
            out[m], estimated[m] = fill, True
            continue
        cache = {n: cache[n] if n in cache else _shifted(values[n], shift[n], start, shape[1:]) for n in weights}
        plane = sum((w * cache[n][0] for n, w in weights.items()), np.zeros(shape[1:], dtype=np.float32))
        inside = np.logical_and.reduce([cache[n][1] for n in weights])
        plane = np.where(inside, plane, fill)
        out[m] = np.rint(plane) if out.dtype.kind in "iu" else plane
        estimated[m] = ~inside if len(weights) == 1 and abs(m * step - z) <= POSITION_TOLERANCE_MM else True
        progress("repairing geometry", (m + 1) / count)
    affine = np.eye(4)
    affine[:3, 0] = layout.row * layout.spacing[0]
    affine[:3, 1] = layout.column * layout.spacing[1]
    affine[:3, 2] = layout.normal * step
    affine[:3, 3] = layout.origins[0] + affine[:3, 0] * start[1] + affine[:3, 1] * start[0]
    return Repaired(out, estimated, Grid((shape[2], shape[1], shape[0]), to_ras(affine)))


def _shifted(
    plane: NDArray[np.generic], shift: NDArray[np.float64], start: NDArray[np.int_], shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A slice moved by `shift` (rows, columns) pixels into a canvas whose corner is at `start`; where it has values."""
    values = plane.astype(np.float32)
    inside_axes = []
    for axis in (0, 1):
        # output index o reads input index o + start − shift
        index = np.arange(shape[axis]) + start[axis] - shift[axis]
        inside_axes.append((index >= -1e-3) & (index <= plane.shape[axis] - 1 + 1e-3))
        low = np.clip(np.floor(index + 1e-9).astype(int), 0, plane.shape[axis] - 1)
        high = np.clip(low + 1, 0, plane.shape[axis] - 1)
        weight = np.clip(index - low, 0, 1).astype(np.float32)
        a, b = np.take(values, low, axis=axis), np.take(values, high, axis=axis)
        weight = weight[:, None] if axis == 0 else weight[None, :]
        values = a + (b - a) * weight if weight.any() else a
    return values, inside_axes[0][:, None] & inside_axes[1][None, :]
