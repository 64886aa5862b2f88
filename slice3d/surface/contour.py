"""Triangles of the zero level of an implicit function: closed, 2-manifold, in world millimetres, facing outwards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled
from slice3d.grid import Grid
from slice3d.surface import marching, topology
from slice3d.surface.bending import Array
from slice3d.surface.implicit import KEPT, Field, low_pass_kernels
from slice3d.surface.region import MARGIN

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]

# How close to a grid point, as part of the largest step at hand, a vertex may come: nearer ones make needle triangles.
_SNAP = np.float32(0.02)
# Vertices are shifted by no more than this part of the finest step: as near as `_SNAP` lets two of them come, a larger
# shift in two directions would fold the triangle between them.
STEADY = 0.02
# float32 vertices of a flat face at the border of the scan lie in its plane to this
_ON_BORDER_MM = 1e-3


def contour(field: Field, grid: Grid) -> Arrays:
    """(N, 3) vertices in world RAS mm and (M, 3) outward faces of the zero level of `field` over `grid`."""
    points, faces = marching.of_field(field.values)
    return _placed((points + 0.5) / np.asarray(field.factors) - 0.5, faces, grid)


def contour_mask(mask: NDArray[np.bool_], grid: Grid, cutoff_mm: float) -> Arrays:
    """As `contour` of the low-pass filtered mask, in one go; `MARGIN` voxels on every side of `mask` are outside."""
    kernels = low_pass_kernels(np.asarray(grid.spacing_mm), cutoff_mm)
    return _placed(*marching.of_mask(mask, kernels, KEPT, margin=MARGIN), grid)


def _placed(index: NDArray[np.float64], faces: NDArray[np.int64], grid: Grid) -> Arrays:
    """World positions and outward faces, written over what was given: a second copy would cost as much as the rest."""
    for start in range(0, len(index), 8192):
        rows = index[start : start + 8192]
        i, j, k = rows.T.copy()
        for axis, (a, b, c, d) in enumerate(grid.affine[:3]):
            rows[:, axis] = i * a + (j * b + k * c + d)
    if np.linalg.det(grid.affine[:3, :3]) < 0:
        marching.turn(faces)
    return index, faces


def snap(values: Array) -> Array:
    """Keeps every grid value away from zero by a small part of the largest step to a neighbour across the surface."""
    out: Array = np.array(values, order="C")
    _snap(np.ascontiguousarray(values), out, _SNAP)
    return out


@compiled
def _snap(values: Array, out: Array, part: np.float32) -> None:
    """Writes over those of `out`, a copy of `values` (i, j, k), that lie too near to zero."""
    ni, nj, nk = values.shape
    limit = np.empty(nk, np.float32)
    for i in range(ni):
        for j in range(nj):
            row = values[i, j]
            limit[:] = 0
            for other in (i - 1, i + 1):
                if 0 <= other < ni:
                    _widen(row, values[other, j], limit)
            for other in (j - 1, j + 1):
                if 0 <= other < nj:
                    _widen(row, values[i, other], limit)
            _widen(row[1:], row[:-1], limit[1:])
            _widen(row[:-1], row[1:], limit[:-1])
            for k in range(nk):
                least = part * limit[k]
                out[i, j, k] = max(row[k], least) if row[k] > 0 else min(row[k], -least)


@compiled
def _widen(row: Array, other: Array, limit: Array) -> None:
    """The largest step from one row to others, so far, where it crosses zero."""
    for k in range(len(row)):
        if (row[k] > 0) != (other[k] > 0):
            limit[k] = max(limit[k], abs(row[k] - other[k]))


def keep_volume(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    volume_mm3: float,
    *,
    border: Sequence[tuple[NDArray[np.float64], float]] = (),
    most_mm: float = math.inf,
) -> tuple[NDArray[np.float64], float]:
    """As `shift_to_volume`, of a copy of the vertices, which is returned too."""
    vertices = np.array(vertices, dtype=np.float64)
    return vertices, shift_to_volume(vertices, faces, volume_mm3, border=border, most_mm=most_mm)


def shift_to_volume(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    volume_mm3: float,
    *,
    border: Sequence[tuple[NDArray[np.float64], float]] = (),
    most_mm: float = math.inf,
) -> float:
    """Shifts the surface in place along its normals until it encloses `volume_mm3`; returns the shift in mm.

    border: planes (outward unit normal, offset in mm) where the scan ended: what lies in one stays in it, and nothing
    passes it. most_mm: where more than this would be needed nothing is shifted, and the shift returned is that needed.
    """
    flat = [np.abs(vertices @ n - d) < _ON_BORDER_MM for n, d in border]
    free = np.ones(len(faces), dtype=bool)
    for held in flat:
        free &= ~held[faces].all(axis=1)
    move = np.empty_like(vertices)
    shift = 0.0
    for _ in range(4 if border else 3):
        enclosed, whole, area = _normals(vertices, faces, free, move)
        missing = volume_mm3 - enclosed
        if abs(missing) <= 1e-6 * abs(volume_mm3):
            break
        if area < 0.01 * whole:
            break  # the border of the scan all round: nothing of the surface is the structure's own
        step = missing / area
        if abs(shift + step) > most_mm:
            return shift + step
        move *= step
        for (n, d), held in zip(border, flat, strict=True):
            outwards = move @ n
            # half of what is left at most, so that no triangle collapses in the plane
            room = np.where(held, 0.0, np.maximum(0.5 * (d - vertices @ n), 0.0))
            move -= (outwards - np.where(held, 0.0, np.minimum(outwards, room)))[:, None] * n
        vertices += move
        shift += step
    return shift


@compiled
def _normals(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], free: NDArray[np.bool_], out: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Writes the unit normal of each vertex; returns the volume, the area, and the area of the `free` faces."""
    out[:, :] = 0.0
    six, twice, twice_free = 0.0, 0.0, 0.0
    x, y, z = vertices[0]
    for f in range(len(faces)):
        a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
        ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
        vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        # relative to a point of the mesh: far from the world origin the products would cancel badly
        six += (a[0] - x) * nx + (a[1] - y) * ny + (a[2] - z) * nz
        size = np.sqrt(nx * nx + ny * ny + nz * nz)
        twice += size
        if free[f]:
            twice_free += size
        for corner in range(3):
            target = out[faces[f, corner]]
            target[0] += nx
            target[1] += ny
            target[2] += nz
    for v in range(len(out)):
        n = out[v]
        length = np.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
        if length > 0:
            n[0] /= length
            n[1] /= length
            n[2] /= length
    return six / 6.0, twice / 2.0, twice_free / 2.0


def volume(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> float:
    """Signed enclosed volume in mm³."""
    return float(topology.piece_volumes(vertices, faces, np.zeros(len(faces), dtype=np.int64), 1)[0])
