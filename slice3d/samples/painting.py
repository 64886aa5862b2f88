"""Solids to voxels: every voxel is the mean of a fixed pattern of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.progress import Progress
from slice3d.samples.anatomy import BODY, HU, LIVER, NAMES, TUMOR, Part, Tissue

POINTS = (4, 4, 3)


class Painted(NamedTuple):
    """hu: (i, j, k) float64 mean HU. labels: (i, j, k) uint8 majority label. inside: (i, j, k) float32 share of
    the voxel in the body. lost_mm3: label → volume that other labelled organs cover, or outside the liver for a tumour.
    """

    hu: NDArray[np.float64]
    labels: NDArray[np.uint8]
    inside: NDArray[np.float32]
    lost_mm3: dict[int, float]


def paint(parts: Sequence[Part], hu: Mapping[Tissue, float], grid: Grid, progress: Progress) -> Painted:
    """Paint `parts` in order on an axis-aligned `grid`; `hu` overrides the tissue table."""
    # Code 0 is air, code n is parts[n - 1]; whole HU keep the sums exact, so that every machine makes the same bytes.
    values = np.array([hu.get("air", HU["air"]), *(hu.get(p.tissue, HU[p.tissue]) for p in parts)])
    hu_of = np.rint(values).astype(np.int32)
    label_of = np.array([0, *(p.label for p in parts)], dtype=np.uint8)
    x, y, z = (_points(grid, axis) for axis in range(3))
    lost = np.zeros(256, dtype=np.int64)
    out = Painted(np.empty(grid.shape), np.empty(grid.shape, np.uint8), np.empty(grid.shape, np.float32), {})
    code = np.empty((POINTS[2], len(x), len(y)), dtype=np.uint8)
    for k in range(grid.shape[2]):
        code[:] = 0
        slab = z[k * POINTS[2] : (k + 1) * POINTS[2]]
        for number, part in enumerate(parts, start=1):
            _paint_part(code, number, part, (x, y, slab), label_of, lost)
        _average(
            _by_voxel(code), hu_of, label_of, Painted(out.hu[:, :, k], out.labels[:, :, k], out.inside[:, :, k], {})
        )
        progress("phantom", (k + 1) / grid.shape[2])
    point_mm3 = grid.voxel_volume_mm3 / float(np.prod(POINTS))
    out.lost_mm3.update({int(v): float(lost[v] * point_mm3) for v in np.flatnonzero(lost)})
    return out


def _points(grid: Grid, axis: int) -> NDArray[np.float64]:
    """World coordinates of the points along one axis, in index order."""
    n = POINTS[axis]
    index = (np.arange(grid.shape[axis] * n) + 0.5) / n - 0.5
    coordinates: NDArray[np.float64] = grid.affine[axis, axis] * index + grid.affine[axis, 3]
    return coordinates


def _range(coordinates: NDArray[np.float64], low: float, high: float) -> slice:
    hits = np.flatnonzero((coordinates >= low) & (coordinates <= high))
    return slice(int(hits[0]), int(hits[-1]) + 1) if len(hits) else slice(0, 0)


def _paint_part(
    code: NDArray[np.uint8],
    number: int,
    part: Part,
    points: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    label_of: NDArray[np.uint8],
    lost: NDArray[np.int64],
) -> None:
    x, y, z = points
    low, high = part.solid.bounds()
    in_x, in_y, in_z = (_range(c, lo, hi) for c, lo, hi in zip(points, low, high, strict=True))
    region = code[in_z, in_x, in_y]
    if not region.size:
        return
    chord = part.solid.chord(x[in_x][None, :], z[in_z][:, None])
    depth = y[in_y]
    mask = (depth >= chord.lo[..., None]) & (depth <= chord.hi[..., None])
    if part.solid.hole is not None:
        mask &= ~((depth > chord.hole_lo[..., None]) & (depth < chord.hole_hi[..., None]))
    if part.label == TUMOR:
        hit = mask.sum()
        mask &= label_of[region] == LIVER
        lost[TUMOR] += hit - mask.sum()
    elif part.label not in (0, BODY):
        before = np.bincount(label_of[region[mask]], minlength=256)
        before[[0, BODY, part.label]] = 0
        lost += before
    region[mask] = number


def _by_voxel(code: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(points, i · points, j · points) → (i, j, points)."""
    a, b, c = POINTS[2], POINTS[0], POINTS[1]
    i, j = code.shape[1] // b, code.shape[2] // c
    return np.ascontiguousarray(code.reshape(a, i, b, j, c).transpose(1, 3, 0, 2, 4)).reshape(i, j, a * b * c)


def _average(code: NDArray[np.uint8], hu_of: NDArray[np.int32], label_of: NDArray[np.uint8], out: Painted) -> None:
    """Fill one slice of `out`; only voxels that hold more than one part need counting."""
    first = code[:, :, 0]
    words = code.view(np.uint64)
    mixed = (words != (first.astype(np.uint64) * np.uint64(0x0101010101010101))[..., None]).any(axis=2)
    out.hu[:] = hu_of[first]
    out.labels[:] = label_of[first]
    out.inside[:] = out.labels != 0
    points = code[mixed]
    labels = label_of[points]
    present = [v for v in (*NAMES, 0) if v in set(np.flatnonzero(np.bincount(labels.ravel(), minlength=1)).tolist())]
    if not present:
        return
    counts = np.stack([(labels == v).sum(axis=1) for v in present])
    n = points.shape[1]
    out.hu[mixed] = hu_of[points].sum(axis=1, dtype=np.int64) / n
    out.labels[mixed] = np.array(present, dtype=np.uint8)[counts.argmax(axis=0)]
    out.inside[mixed] = (labels != 0).sum(axis=1) / n
