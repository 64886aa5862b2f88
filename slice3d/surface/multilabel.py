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

from slice3d.compiled import compiled
from slice3d.grid import Grid
from slice3d.progress import Progress, silent
from slice3d.surface import topology
from slice3d.surface.bending import least_bending, refine_all
from slice3d.surface.implicit import low_pass, refinement, weighed
from slice3d.surface.region import MARGIN, bounding_box, padded
from slice3d.volume import Segmentation

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]
_PAD = 2
_CLOSE = 0.05
# voxels: a push smaller than this changes no volume that anyone reads
_STILL = 1e-4


@dataclass(frozen=True)
class Network:
    """vertices: (N, 3) world mm. quads: (M, 4), seen from side 1 counter-clockwise, divided from the first corner to the
    third. sides: (M, 2) labels.

    voxels: (M, 2) number of the voxel on each side, which tells apart what only touches along an edge. by_side: for either
    side the quads sorted by its label, and where each label's begin.
    """

    vertices: NDArray[np.float64]
    quads: NDArray[np.int64]
    sides: NDArray[np.int64]
    voxels: NDArray[np.int64]
    by_side: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]

    def part(self, label: int) -> Arrays:
        """The closed surface of one label, faces outwards; parts that touch in edges or points are divided there."""
        inner, outer = (order[start[label] : start[label + 1]] for order, start in self.by_side)
        # Divided before it is turned, so that both neighbours get the same two triangles.
        mine, theirs = (_triangles(self.quads[rows]) for rows in (inner, outer))
        faces = np.concatenate([mine, theirs[:, ::-1]])
        voxel = np.concatenate([self.voxels[inner, 0], self.voxels[outer, 1]])
        vertices, faces, _ = topology.compact(self.vertices, faces)
        return topology.split_by_owner(vertices, faces, np.repeat(voxel, 2))


def _triangles(quads: NDArray[np.int64]) -> NDArray[np.int64]:
    return quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


@compiled
def _height(
    points: NDArray[np.float64], quad: NDArray[np.int64], first: int, axis: int, low: NDArray[np.int64]
) -> float:
    """Where along the line from voxel `low` to the next a quadrangle around it is met, if divided from corner `first`.

    Negative where its two triangles would be folded over each other, seen along the line.
    """
    b, c = (axis + 1) % 3, (axis + 2) % 3
    p, q = points[quad[first]], points[quad[(first + 2) % 4]]
    r, s = points[quad[(first + 1) % 4]], points[quad[(first + 3) % 4]]
    pu, pv, qu, qv = p[b] - low[b], p[c] - low[c], q[b] - low[b], q[c] - low[c]
    ru, rv, su, sv = r[b] - low[b], r[c] - low[c], s[b] - low[b], s[c] - low[c]
    r_side = (qu - pu) * (rv - pv) - (qv - pv) * (ru - pu)
    s_side = (qu - pu) * (sv - pv) - (qv - pv) * (su - pu)
    if r_side * s_side >= 0:
        return -1.0
    side = pu * qv - pv * qu
    height = r[axis]
    if side * r_side < 0:
        ru, rv, height = su, sv, s[axis]
    wp, wq = qu * rv - qv * ru, ru * pv - rv * pu
    out: float = (wp * p[axis] + wq * q[axis] + side * height) / (wp + wq + side) - low[axis]
    return out


@compiled
def _turn(
    points: NDArray[np.float64],
    world: NDArray[np.float64],
    quads: NDArray[np.int64],
    lowest: NDArray[np.int64],
    axes: NDArray[np.int8],
    shape: NDArray[np.int64],
) -> None:
    """Turns each quadrangle so that it is to be divided from its first corner to its third.

    That is its shorter diagonal, unless only the other keeps the triangles flat and between the two voxels that they
    part: folded ones, and those that reach beyond a voxel's centre, run into others (T. Ju and T. Udeshi, Pacific
    Graphics 2006).
    """
    low = np.empty(3, np.int64)
    for n in range(len(quads)):
        quad = quads[n]
        one, two = 0.0, 0.0
        for x in range(3):
            one += (world[quad[0], x] - world[quad[2], x]) ** 2
            two += (world[quad[1], x] - world[quad[3], x]) ** 2
        first = 1 if two < one - 1e-9 else 0
        low[0] = lowest[n] // (shape[1] * shape[2])
        low[1] = lowest[n] // shape[2] % shape[1]
        low[2] = lowest[n] % shape[2]
        height = _height(points, quad, first, axes[n], low)
        if not 0.0 < height < 1.0:
            height = _height(points, quad, 1 - first, axes[n], low)
            if 0.0 < height < 1.0:
                first = 1 - first
        if first:
            start = quad[0]
            quad[0], quad[1], quad[2], quad[3] = quad[1], quad[2], quad[3], start


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
    factors = refinement(grid)
    target = np.bincount(window.reshape(-1)).astype(np.float64) * float(np.prod(factors))
    if factors.max() > 1:
        window = refine_labels(window, grid, factors, volumes=target, progress=progress)
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
    world = grid.to_world(index)
    if np.linalg.det(grid.affine[:3, :3]) < 0:
        quads = np.ascontiguousarray(quads[:, ::-1])
    _turn(points, world, quads, edges.low, edges.axis, np.asarray(window.shape))
    order = [np.argsort(side, kind="stable") for side in sides.T]
    first = np.arange(len(wanted) + 1)
    by_side = tuple((o, np.searchsorted(side[o], first)) for o, side in zip(order, sides.T, strict=True))
    return Network(world, quads, sides, np.stack([edges.low, edges.high], axis=1), by_side)


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
    start, shift, weight = points, np.empty_like(points), np.empty(len(points))
    volume, surface = np.empty(len(target)), np.empty(len(target))
    for _ in range(6):
        _volumes(points, quads, sides, volume, surface)
        step = np.divide(target - volume, surface, out=np.zeros_like(surface), where=surface > 0)
        step[0] = 0.0
        if np.abs(step).max() < _STILL:
            break
        push = np.clip(push + step, -0.5, 0.5)
        _shifts(points, quads, sides, push, shift, weight)
        points = np.clip(start + shift / np.maximum(weight, 1e-12)[:, None], *limits)
    return points


@compiled
def _area(points: NDArray[np.float64], quad: NDArray[np.int64]) -> tuple[float, float, float]:
    """Vector area of a quadrangle: half the cross product of its diagonals."""
    a, b, c, d = points[quad[0]], points[quad[1]], points[quad[2]], points[quad[3]]
    ux, uy, uz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    vx, vy, vz = d[0] - b[0], d[1] - b[1], d[2] - b[2]
    return (uy * vz - uz * vy) / 2.0, (uz * vx - ux * vz) / 2.0, (ux * vy - uy * vx) / 2.0


@compiled
def _volumes(
    points: NDArray[np.float64],
    quads: NDArray[np.int64],
    sides: NDArray[np.int64],
    volume: NDArray[np.float64],
    surface: NDArray[np.float64],
) -> None:
    """Writes what each label encloses and the area of its boundary; the diagonal does not matter to second order."""
    for label in range(len(volume)):
        volume[label] = surface[label] = 0.0
    x, y, z = points[0]
    for q in range(len(quads)):
        quad = quads[q]
        ax, ay, az = _area(points, quad)
        under = 0.0
        for n in range(4):
            p = points[quad[n]]
            under += ((p[0] - x) * ax + (p[1] - y) * ay + (p[2] - z) * az) / 12.0
        size = np.sqrt(ax * ax + ay * ay + az * az)
        one, other = sides[q]
        volume[one] += under
        volume[other] -= under
        surface[one] += size
        surface[other] += size


@compiled
def _shifts(
    points: NDArray[np.float64],
    quads: NDArray[np.int64],
    sides: NDArray[np.int64],
    push: NDArray[np.float64],
    shift: NDArray[np.float64],
    weight: NDArray[np.float64],
) -> None:
    """Writes the sum of each vertex' shifts, weighted by area, and the sum of the weights."""
    for v in range(len(shift)):
        shift[v, 0] = shift[v, 1] = shift[v, 2] = weight[v] = 0.0
    for q in range(len(quads)):
        ax, ay, az = _area(points, quads[q])
        size = np.sqrt(ax * ax + ay * ay + az * az)
        by = push[sides[q, 0]] - push[sides[q, 1]]
        for n in range(4):
            v = quads[q, n]
            shift[v, 0] += by * ax
            shift[v, 1] += by * ay
            shift[v, 2] += by * az
            weight[v] += size


def refine_labels(
    labels: NDArray[Any],
    grid: Grid,
    factors: NDArray[np.int64],
    *,
    volumes: NDArray[np.float64],
    progress: Progress = silent,
) -> NDArray[Any]:
    """Labels on `factors` times as many samples: each takes the label whose least-bending function is largest there.

    volumes: of each label but the background, in finer samples; written here as the functions and the counts have it.
    """
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
        low, high = box[0] - MARGIN, box[1] + MARGIN
        start, stop = np.maximum(low, 0), np.minimum(high, shape)
        inner = padded(mask, low, high)
        fine = tuple(slice(a, b) for a, b in zip(start * factors, stop * factors, strict=True))
        if inner.all():
            rise = np.full(out[fine].shape, np.inf, dtype=np.float32)
        else:
            native = least_bending(inner, spacing)
            whole = refine_all(native, factors)
            part = tuple(slice(a, b) for a, b in zip((start - low) * factors, (stop - low) * factors, strict=True))
            rise = whole[part]
            if value > 0:
                volumes[value] = weighed(mask, native, whole, spacing, scanned=part) / float((spacing / factors).prod())
        wins = rise > best[fine]
        out[fine][wins] = value
        best[fine][wins] = rise[wins]
    return out
