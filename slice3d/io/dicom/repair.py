"""Resample slices that do not form a lattice (tilted gantry, missing slices, varying distances) along their true
positions.

The target keeps the acquired in-plane axes and its third axis is the slice normal, so a slice that lies on a target
plane
is only shifted within that plane (by a sub-pixel amount), never mixed with its neighbours. Between acquired slices
values
are interpolated linearly along the normal, the shortest way; wide holes stay empty. What was not measured is marked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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
# what decoded slices may be, narrow to wide
_TYPES = [np.dtype(np.int16), np.dtype(np.int32), np.dtype(np.float32)]


@dataclass(frozen=True)
class Repaired:
    """values, estimated: (K, rows, columns) on `grid` (whose axes run columns, rows, slices)."""

    values: NDArray[np.generic]
    estimated: NDArray[np.bool_]
    grid: Grid


def repair(
    parts: Iterable[NDArray[Any]], layout: Layout, *, fill: float | None, progress: Progress = silent
) -> Repaired:
    """Put acquired slices on an orthogonal lattice, holding only those between which a plane lies.

    parts: the slices in order, some (n, rows, columns) at a time. fill: what lies outside of them, None for the lowest
    value. Raises `GeometryError` when the lattice would be absurdly larger than what was acquired.
    """
    step = layout.step_mm
    depth = layout.distances - layout.distances[0]
    count = int(np.round(depth[-1] / step + 1e-6)) + 1
    relative = layout.origins - layout.origins[0]
    shift = np.stack([relative @ layout.column / layout.spacing[1], relative @ layout.row / layout.spacing[0]], axis=1)
    shift[np.abs(shift) < 1e-3] = 0.0
    start = np.floor(shift.min(axis=0)).astype(int)
    stop = np.ceil(shift.max(axis=0)).astype(int)
    columns, rows = layout.shape
    shape = (count, rows + int(stop[0] - start[0]), columns + int(stop[1] - start[1]))
    if np.prod(shape, dtype=float) > MAX_GROWTH * rows * columns * len(depth) + 1e6:
        raise GeometryError(
            f"the repaired volume would have {shape[2]}×{shape[1]}×{shape[0]} voxels from {len(depth)} slices of "
            f"{columns}×{rows}; expected slices that lie together; choose another series with --series"
        )
    slices = _Slices(parts, shift, start, (shape[1], shape[2]))
    plan = [_neighbours(depth, m * step, step) for m in range(count)]
    out = np.zeros(shape, dtype=np.int16)
    estimated = np.ones(shape, dtype=np.bool_)
    for m, (weights, measured) in enumerate(plan):
        if weights:
            plane = slices.blend(weights)
            out = _wide_enough(out, slices.dtype)
            out[m] = np.rint(plane) if out.dtype.kind == "i" else plane
        if measured:
            estimated[m] = ~slices.inside(weights)
        progress("repairing geometry", (m + 1) / count)
    slices.read_to(len(depth) - 1)
    out = _wide_enough(out, slices.dtype)
    for m, (weights, _) in enumerate(plan):
        out[m][~slices.inside(weights)] = slices.lowest if fill is None else fill
    affine = np.eye(4)
    affine[:3, 0] = layout.row * layout.spacing[0]
    affine[:3, 1] = layout.column * layout.spacing[1]
    affine[:3, 2] = layout.normal * step
    affine[:3, 3] = layout.origins[0] + affine[:3, 0] * start[1] + affine[:3, 1] * start[0]
    return Repaired(out, estimated, Grid((shape[2], shape[1], shape[0]), to_ras(affine)))


def _neighbours(depth: NDArray[np.float64], place: float, step: float) -> tuple[dict[int, float], bool]:
    """Weights of the slices that a plane at `place` is made of, none in a wide hole; whether it was acquired."""
    z = min(place, float(depth[-1]))
    k = int(np.clip(np.searchsorted(depth, z, side="right") - 1, 0, max(len(depth) - 2, 0)))
    gap = float(depth[k + 1] - depth[k])
    t, near = (z - float(depth[k])) / gap, POSITION_TOLERANCE_MM / gap
    if near < t < 1 - near:
        return ({} if gap > max(MAX_BRIDGE_MM, MAX_BRIDGE_STEPS * step) else {k: 1 - t, k + 1: t}), False
    return {k if t <= near else k + 1: 1.0}, abs(place - z) <= POSITION_TOLERANCE_MM


def _wide_enough(out: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return out if _TYPES.index(out.dtype) >= _TYPES.index(dtype) else out.astype(dtype)


class _Slices:
    """Slices moved into a canvas whose corner is at `start`, read in order and dropped once passed."""

    def __init__(
        self, parts: Iterable[NDArray[Any]], shift: NDArray[np.float64], start: NDArray[np.int_], shape: tuple[int, int]
    ) -> None:
        self._parts, self._shift, self._start, self._shape = iter(parts), shift, start, shape
        self._part: NDArray[Any] = np.empty((0, *shape), dtype=np.int16)
        self._first = 0
        self._moved: dict[int, NDArray[np.float32]] = {}
        self._plane = (0, 0)
        self.dtype, self.lowest = np.dtype(np.int16), np.inf

    def read_to(self, number: int) -> None:
        """Read on until slice `number` is at hand."""
        while number >= self._first + len(self._part):
            self._first += len(self._part)
            self._part = next(self._parts)
            self._plane = self._part.shape[1:]
            self.dtype = max(self.dtype, self._part.dtype, key=_TYPES.index)
            self.lowest = min(self.lowest, float(self._part.min()))

    def blend(self, weights: dict[int, float]) -> NDArray[np.float64]:
        """The weighted sum of slices, the lowest of them not before that of the last call."""
        self._moved = {n: plane for n, plane in self._moved.items() if n in weights}
        out: NDArray[np.float64] = np.zeros(self._shape)
        for number, weight in sorted(weights.items()):
            if number not in self._moved:
                self.read_to(number)
                self._moved[number] = self._move(number)
            out += np.float64(weight) * self._moved[number]
        return out

    def inside(self, weights: dict[int, float]) -> NDArray[np.bool_]:
        """Where all of these slices have values; nowhere without any."""
        out: NDArray[np.bool_] = np.full(self._shape, bool(weights))
        for number in weights:
            for axis in (0, 1):
                index = self._index(number, axis)
                good = (index >= -1e-3) & (index <= self._plane[axis] - 1 + 1e-3)
                out &= good[:, None] if axis == 0 else good
        return out

    def _index(self, number: int, axis: int) -> NDArray[np.float64]:
        """Output index o reads input index o + start − shift."""
        index: NDArray[np.float64] = np.arange(self._shape[axis]) + self._start[axis] - self._shift[number, axis]
        return index

    def _move(self, number: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._part[number - self._first].astype(np.float32)
        for axis in (0, 1):
            index, last = self._index(number, axis), self._plane[axis] - 1
            low = np.clip(np.floor(index + 1e-9).astype(int), 0, last)
            weight = np.clip(index - low, 0, 1).astype(np.float32)
            a, b = np.take(values, low, axis=axis), np.take(values, np.clip(low + 1, 0, last), axis=axis)
            weight = weight[:, None] if axis == 0 else weight[None, :]
            values = a + (b - a) * weight if weight.any() else a
        return values
