"""From one `Grid` to another: images by B-splines of order 0 to 3, labels by nearest neighbour, nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid
from slice3d.volume import Segmentation, Volume, freeze


def resample(volume: Volume, *, grid: Grid, order: int = 1, fill: float | None = None) -> Volume:
    """The volume's values at the voxel centres of `grid`.

    order: 0 nearest, 1 linear, 3 cubic B-spline. fill: value outside the field of view, by default the lowest value.
    Returns a `Volume` of float32 (order ≥ 1) or the input's dtype (order 0). It interpolates points and does not
    average: before going to much coarser voxels, smooth first. Raises `InputError` for an unknown order.
    """
    if order not in (0, 1, 2, 3):
        raise InputError(f"interpolation order is {order}; expected 0, 1, 2 or 3")
    fill = float(volume.data.min()) if fill is None else float(fill)
    data = _sample(volume.data, volume.grid, grid, order=order, fill=fill)
    return replace(volume, data=freeze(data), grid=grid, synthesised=None, uncertainty=None)


def resample_labels(segmentation: Segmentation, *, grid: Grid) -> Segmentation:
    """The labels at the voxel centres of `grid` (nearest neighbour; background outside). Probabilities and marks of
    synthesised voxels are dropped."""
    labels = _sample(segmentation.labels, segmentation.grid, grid, order=0, fill=0)
    return replace(segmentation, labels=freeze(labels), grid=grid, probabilities={}, synthesised=None, uncertainty=None)


def reorient(volume: Volume, orientation: str = "RAS") -> Volume:
    """The same voxels, axes flipped and permuted to run as `orientation` says (closest match, no resampling)."""
    axes, flips = axis_moves(volume.grid, orientation)
    return replace(
        volume,
        data=apply_moves(volume.data, axes, flips),
        grid=moved_grid(volume.grid, axes, flips),
        synthesised=None if volume.synthesised is None else apply_moves(volume.synthesised, axes, flips),
        uncertainty=None if volume.uncertainty is None else apply_moves(volume.uncertainty, axes, flips),
    )


def axis_moves(grid: Grid, orientation: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which input axis each output axis comes from, and whether it is flipped, to reach `orientation`."""
    letters = [letter.upper() for letter in orientation]
    pairs = ["RL", "AP", "SI"]
    worlds = [next((w for w, pair in enumerate(pairs) if letter in pair), -1) for letter in letters]
    if sorted(worlds) != [0, 1, 2]:
        raise GeometryError(f"orientation is {orientation!r}; expected one letter each of R/L, A/P and S/I, e.g. 'RAS'")
    here = grid.world_axes
    axes = [here.index(world) for world in worlds]
    flips = [grid.orientation[axis] != letter for axis, letter in zip(axes, letters, strict=True)]
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def apply_moves(array: NDArray[Any], axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> NDArray[Any]:
    """A view of `array` (i, j, k) with its axes permuted, then flipped."""
    moved = array.transpose(axes)
    return moved[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]


def undo_moves(array: NDArray[Any], axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> NDArray[Any]:
    """The inverse of `apply_moves`."""
    flipped = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    return flipped.transpose(tuple(int(n) for n in np.argsort(axes)))


def moved_grid(grid: Grid, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Grid:
    """The grid of `apply_moves(data, axes, flips)`."""
    affine = np.eye(4)
    start = np.zeros(3)
    for out, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[:3, out] = grid.affine[:3, axis] * (-1 if flip else 1)
        if flip:
            start[axis] = grid.shape[axis] - 1
    affine[:3, 3] = grid.to_world(start)
    shape = (grid.shape[axes[0]], grid.shape[axes[1]], grid.shape[axes[2]])
    return Grid(shape, affine)


# what scipy cannot sample → what holds the same values
_WORKING: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(bool): np.dtype(np.uint8),
    np.dtype(np.float16): np.dtype(np.float32),
}


def _sample(data: NDArray[Any], source: Grid, target: Grid, *, order: int, fill: float) -> NDArray[Any]:
    from scipy import ndimage

    # index of the source = inverse(source) @ target @ index of the target
    matrix = np.linalg.inv(source.affine) @ target.affine
    kept = _WORKING.get(data.dtype, data.dtype)
    work = data.astype(np.dtype(np.float32) if order else kept, copy=False)
    out = np.empty(target.shape, dtype=work.dtype)
    linear = matrix[:3, :3]
    diagonal = np.allclose(linear, np.diag(np.diag(linear)), atol=1e-9) and (np.diag(linear) > 0).all()
    ndimage.affine_transform(
        work,
        np.diag(linear) if diagonal else linear,
        offset=matrix[:3, 3],
        output_shape=target.shape,
        output=out,
        order=order,
        mode="grid-constant" if order == 0 else "nearest",
        cval=fill,
    )
    if order:
        _fill_outside(out, matrix, source.shape, fill)
    return out.astype(data.dtype, copy=False) if not order else out


def _fill_outside(out: NDArray[Any], matrix: NDArray[np.float64], shape: tuple[int, int, int], fill: float) -> None:
    """Set voxels whose centre lies outside the source's outer voxel edges (not just its outer centres) to `fill`."""
    for axis in range(3):
        steps = [
            matrix[axis, n] * np.arange(out.shape[n]).reshape([-1 if m == n else 1 for m in range(3)]) for n in range(3)
        ]
        if np.count_nonzero(np.abs(matrix[axis, :3]) > 1e-12) == 1:
            # one output axis drives this index: cut whole slabs instead of testing every voxel
            driver = int(np.argmax(np.abs(matrix[axis, :3])))
            index = matrix[axis, 3] + steps[driver].ravel()
            outside = (index < -0.5 - 1e-6) | (index > shape[axis] - 0.5 + 1e-6)
            out[tuple(outside if n == driver else slice(None) for n in range(3))] = fill
        else:
            for plane in range(out.shape[0]):
                index = matrix[axis, 3] + steps[0][plane] + steps[1][0] + steps[2][0]
                out[plane][(index < -0.5 - 1e-6) | (index > shape[axis] - 0.5 + 1e-6)] = fill
