"""All structures of a label map in one pass, with shared interfaces: neighbours meet without gap and without overlap.

Surface nets (S. Gibson, MICCAI 1998): one vertex for every eight voxels that hold more than one label, one quadrangle
between every two neighbouring voxels whose labels differ; the surface of a structure is all the quadrangles with the
structure on one side. The vertices do not come from relaxation, which costs small structures a third of their volume,
but from where the low-pass filtered masks of two labels are equal between their voxels. Thick slices are refined
before, by letting the least-bending functions of all labels compete for each finer sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.progress import Progress, silent
from slice3d.surface import topology
from slice3d.surface.implicit import THICK, least_bending, low_pass, refine_all
from slice3d.surface.region import bounding_box
from slice3d.volume import Segmentation

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]
_PAD = 2
_CLOSE = 0.05


@dataclass(frozen=True)
class Network:
    """vertices: (N, 3) world mm. quads: (M, 4), seen from side 1 counter-clockwise. sides: (M, 2) labels.

    voxels: (M, 2) number of the voxel on each side, which tells apart what only touches along an edge.
    """

    vertices: NDArray[np.float64]
    quads: NDArray[np.int64]
    sides: NDArray[np.int64]
    voxels: NDArray[np.int64]

    def part(self, label: int) -> Arrays:
        """The closed surface of one label, faces outwards; parts that touch in edges or points are divided there."""
        inner = np.flatnonzero(self.sides[:, 0] == label)
        outer = np.flatnonzero(self.sides[:, 1] == label)
        # Divided before it is turned, so that both neighbours get the same two triangles.
        mine, theirs = (_triangles(self.vertices, self.quads[rows]) for rows in (inner, outer))
        faces = np.concatenate([mine, theirs[:, ::-1]])
        voxel = np.concatenate([self.voxels[inner, 0], self.voxels[outer, 1]])
        vertices, faces, _ = topology.compact(self.vertices, faces)
        return topology.split_by_owner(vertices, faces, np.repeat(voxel, 2))


def _triangles(vertices: NDArray[np.float64], quads: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two triangles for each quadrangle, along its shorter diagonal (from the lower vertex where they are equal)."""
    one = np.linalg.norm(vertices[quads[:, 0]] - vertices[quads[:, 2]], axis=1)
    two = np.linalg.norm(vertices[quads[:, 1]] - vertices[quads[:, 3]], axis=1)
    turned = np.where((two < one - 1e-9)[:, None], np.roll(quads, -1, axis=1), quads)
    out: NDArray[np.int64] = turned[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
    return out


def network(
    segmentation: Segmentation, labels: Sequence[int], *, smoothing_mm: float | None = None, progress: Progress = silent
) -> Network | None:
    """The boundaries between `labels` and everything else; None where none of them has voxels.

    smoothing_mm: cut-off wavelength of the low-pass; None takes four of the finer samples along every axis.
    """
    values = segmentation.labels
    wanted = np.zeros(max(int(values.max()), *labels, 0) + 1, dtype=bool)
    wanted[[v for v in labels if v > 0]] = True
    box = bounding_box(values > 0)
    if box is None:
        return None
    start, stop = np.maximum(box[0] - 1, 0), np.minimum(box[1] + 1, segmentation.grid.shape)
    window = np.ascontiguousarray(values[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))])
    window = np.where(wanted[np.maximum(window, 0)], window, 0).astype(window.dtype)
    if not window.any():
        return None
    grid = segmentation.grid.crop(start.tolist(), stop.tolist())
    factors = _factors(grid)
    target = np.bincount(window.reshape(-1)).astype(np.float64) * float(np.prod(factors))
    if factors.max() > 1:
        window = refine_labels(window, grid, factors, progress=progress)
    window = np.pad(window, _PAD)
    progress("shared surfaces", 0.2)
    edges = _edges(window)
    scale = (np.ones(3), 4.0) if smoothing_mm is None else (np.asarray(grid.spacing_mm) / factors, smoothing_mm)
    crossing = _crossings(window, edges, scale, progress)
    points, quads, cells = _net(window.shape, edges, crossing)
    sides = np.stack([window.reshape(-1)[edges.low], window.reshape(-1)[edges.high]], axis=1).astype(np.int64)
    # No vertex leaves its cell, so that no interface passes through another, nor the scan where it touches its border.
    ends = (
        np.where(start == 0, _PAD - 0.5, -np.inf),
        np.where(stop == segmentation.grid.shape, np.asarray(window.shape) - _PAD - 0.5, np.inf),
    )
    limits = np.maximum(cells + 0.03, ends[0]), np.minimum(cells + 0.97, ends[1])
    points = _keep_volumes(points, quads, sides, limits, target)
    index = (points - _PAD + 0.5) / factors - 0.5
    if np.linalg.det(grid.affine[:3, :3]) < 0:
        quads = quads[:, ::-1]
    return Network(grid.to_world(index), np.ascontiguousarray(quads), sides, np.stack([edges.low, edges.high], axis=1))


@dataclass(frozen=True)
class _Edges:
    """Neighbouring voxels with different labels. low, high: their flat numbers; axis: along which they are neighbours."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    axis: NDArray[np.int8]


def _edges(window: NDArray[Any]) -> _Edges:
    stride = np.array([window.shape[1] * window.shape[2], window.shape[2], 1])
    low, axis = [], []
    for n in range(3):
        turned = np.moveaxis(window, n, 0)
        at = np.nonzero(np.moveaxis(turned[1:] != turned[:-1], 0, n))
        low.append(at[0] * stride[0] + at[1] * stride[1] + at[2])
        axis.append(np.full(len(at[0]), n, dtype=np.int8))
    lows, axes = np.concatenate(low), np.concatenate(axis)
    return _Edges(lows, lows + stride[axes], axes)


def _crossings(
    window: NDArray[Any], edges: _Edges, scale: tuple[NDArray[np.float64], float], progress: Progress
) -> NDArray[np.float64]:
    """(E,) where between the two voxels, 0…1, their labels' low-pass filtered masks are equal."""
    flat = window.reshape(-1)
    shape = np.asarray(window.shape)
    ends = flat[edges.low], flat[edges.high]
    # share[end, own]: filtered mask at this end of the edge, of this end's own label or of the other end's
    gain = np.zeros((2, len(edges.low)))
    boxes = _boxes(window)
    order = [np.argsort(e, kind="stable") for e in ends]
    ranks = [np.searchsorted(e[o], np.arange(len(boxes) + 1)) for e, o in zip(ends, order, strict=True)]
    for value, box in enumerate(boxes):
        if box is None:
            continue
        if value % 8 == 0:
            progress("shared surfaces", 0.2 + 0.6 * value / len(boxes))
        start, stop = np.maximum(box[0] - 2, 0), np.minimum(box[1] + 2, shape)
        where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        field = low_pass(window[where] == value, *scale, keep_labels=False)
        for side in (0, 1):
            mine = order[side][ranks[side][value] : ranks[side][value + 1]]
            for end, number in enumerate((edges.low[mine], edges.high[mine])):
                local = np.stack(np.unravel_index(number, window.shape), axis=1) - start
                sample = field[local[:, 0], local[:, 1], local[:, 2]]
                gain[end, mine] += sample if side == 0 else -sample
    # Each voxel keeps its label: the difference is positive at the low end, negative at the high end.
    low, high = np.maximum(gain[0], _CLOSE), np.minimum(gain[1], -_CLOSE)
    out: NDArray[np.float64] = low / (low - high)
    return out


def _boxes(window: NDArray[Any]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]] | None]:
    """Bounding box of every label value, background included."""
    from scipy.ndimage import find_objects

    out: list[tuple[NDArray[np.int64], NDArray[np.int64]] | None] = []
    for found in [tuple(slice(0, n) for n in window.shape), *find_objects(window)]:
        if found is None:
            out.append(None)
        else:
            out.append((np.array([f.start for f in found]), np.array([f.stop for f in found])))
    return out


def _net(
    shape: tuple[int, ...], edges: _Edges, crossing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Vertices (N, 3) in voxel indices; quads (E, 4), facing from the low to the high voxel; cells (N, 3), lowest corner."""
    stride = np.array([shape[1] * shape[2], shape[2], 1])
    place = np.stack(np.unravel_index(edges.low, shape), axis=1).astype(np.float64)
    place[np.arange(len(place)), edges.axis] += crossing
    b, c = (edges.axis + 1) % 3, (edges.axis + 2) % 3
    # The four cells around an edge, named by their lowest voxel, counter-clockwise seen from the high end.
    cells = np.stack(
        [edges.low - stride[b] - stride[c], edges.low - stride[c], edges.low, edges.low - stride[b]], axis=1
    )
    used = np.zeros(int(np.prod(shape)), dtype=bool)
    used[cells.reshape(-1)] = True
    number = np.cumsum(used, dtype=np.int64) - 1
    quads = number[cells]
    count = int(number[-1]) + 1
    total = np.bincount(quads.reshape(-1), minlength=count).astype(np.float64)
    sums = [np.bincount(quads.reshape(-1), np.repeat(place[:, n], 4), minlength=count) for n in range(3)]
    points = np.stack(sums, axis=1) / total[:, None]
    lowest = np.stack(np.unravel_index(np.flatnonzero(used), shape), axis=1).astype(np.float64)
    return points, quads, lowest


def _keep_volumes(
    points: NDArray[np.float64],
    quads: NDArray[np.int64],
    sides: NDArray[np.int64],
    limits: tuple[NDArray[np.float64], NDArray[np.float64]],
    target: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Moves shared vertices along the interfaces' normals until each label encloses its number of voxels.

    Every label pushes its whole boundary outwards by one distance; where two labels meet the difference counts.
    limits: (N, 3) lowest and highest position of each vertex.
    """
    push = np.zeros(len(target))
    centre = points.mean(axis=0)
    start = points
    for _ in range(6):
        corner = points[quads] - centre
        # A quadrangle's vector area and the volume under it do not depend on the diagonal to second order.
        area = np.cross(corner[:, 2] - corner[:, 0], corner[:, 3] - corner[:, 1]) / 2.0
        under = np.einsum("ij,ij->i", corner.mean(axis=1), area) / 3.0
        size = np.linalg.norm(area, axis=1)
        volume = np.bincount(sides[:, 0], under, len(target)) - np.bincount(sides[:, 1], under, len(target))
        surface = np.bincount(sides[:, 0], size, len(target)) + np.bincount(sides[:, 1], size, len(target))
        step = np.divide(target - volume, surface, out=np.zeros_like(surface), where=surface > 0)
        step[0] = 0.0
        push = np.clip(push + step, -0.5, 0.5)
        move = (push[sides[:, 0]] - push[sides[:, 1]])[:, None] * area
        weight = np.bincount(quads.reshape(-1), np.repeat(size, 4), len(points))
        sums = [np.bincount(quads.reshape(-1), np.repeat(move[:, n], 4), len(points)) for n in range(3)]
        shift = np.stack(sums, axis=1).astype(np.float64) / np.maximum(weight, 1e-12)[:, None]
        points = np.clip(start + shift, *limits)
    return points


def _factors(grid: Grid) -> NDArray[np.int64]:
    ratio = np.asarray(grid.spacing_mm) / min(grid.spacing_mm)
    return np.where(ratio > THICK, np.round(ratio), 1).astype(np.int64)


def refine_labels(
    labels: NDArray[Any], grid: Grid, factors: NDArray[np.int64], *, progress: Progress = silent
) -> NDArray[Any]:
    """Labels on `factors` times as many samples: each takes the label whose least-bending function is largest there."""
    values = [int(v) for v in np.unique(labels)]
    spacing = np.asarray(grid.spacing_mm)
    shape = np.asarray(labels.shape)
    best = np.full(shape * factors, -np.inf, dtype=np.float32)
    out = np.zeros(shape * factors, dtype=labels.dtype)
    for n, value in enumerate(values):
        progress("refining labels", n / len(values))
        mask = labels == value
        box = bounding_box(mask)
        if box is None:
            continue
        start, stop = np.maximum(box[0] - 3, 0), np.minimum(box[1] + 3, shape)
        where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        inner = mask[where]
        field = least_bending(np.pad(inner, 1, mode="edge"), spacing)[1:-1, 1:-1, 1:-1] if not inner.all() else None
        fine = tuple(slice(a, b) for a, b in zip(start * factors, stop * factors, strict=True))
        rise = refine_all(field, factors) if field is not None else np.full(out[fine].shape, np.inf, dtype=np.float32)
        wins = rise > best[fine]
        out[fine][wins] = value
        best[fine][wins] = rise[wins]
    return out
