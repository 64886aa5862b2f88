"""Triangles of the zero level of an implicit function: closed, 2-manifold, in world millimetres, facing outwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.surface import _vtk, topology
from slice3d.surface.implicit import Array, Field

# How close to a grid point, as part of the largest step at hand, a vertex may come: nearer ones make needle triangles.
_SNAP = np.float32(0.02)
# float32 vertices of a flat face at the border of the scan lie in its plane to this
_ON_BORDER_MM = 1e-3


def contour(field: Field, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N, 3) vertices in world RAS mm and (M, 3) outward faces of the zero level of `field` over `grid`."""
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D

    values = np.ascontiguousarray(field.values, dtype=np.float32)
    filter_ = vtkFlyingEdges3D()
    filter_.SetInputData(_vtk.image(values))
    filter_.SetValue(0, 0.0)
    filter_.ComputeNormalsOff()
    filter_.ComputeGradientsOff()
    filter_.ComputeScalarsOff()
    filter_.Update()
    points, faces = _vtk.arrays(filter_.GetOutput())
    index = (points[:, ::-1] + 0.5) / np.asarray(field.factors) - 0.5
    vertices = grid.to_world(index)
    # VTK's normals point to lower values here, seen in its (k, j, i) axes; turning the axes round mirrors once more.
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        faces = faces[:, ::-1]
    return vertices, np.ascontiguousarray(faces)


def snap(values: Array) -> Array:
    """Keeps every grid value away from zero by a small part of the largest step to a neighbour across the surface."""
    step = np.zeros_like(values)
    for axis in range(3):
        a = np.moveaxis(values, axis, 0)
        s = np.moveaxis(step, axis, 0)
        crossing = (a[1:] > 0) != (a[:-1] > 0)
        jump = np.where(crossing, np.abs(a[1:] - a[:-1]), 0)
        np.maximum(s[1:], jump, out=s[1:])
        np.maximum(s[:-1], jump, out=s[:-1])
    limit = _SNAP * step
    out: Array = np.where(values > 0, np.maximum(values, limit), np.minimum(values, -limit))
    return out


def keep_volume(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    volume_mm3: float,
    *,
    border: Sequence[tuple[NDArray[np.float64], float]] = (),
) -> tuple[NDArray[np.float64], float]:
    """Shifts the surface along its normals until it encloses `volume_mm3`; returns the shift in mm too.

    border: planes (outward unit normal, offset in mm) where the scan ended: what lies in one stays in it, and nothing
    passes it.
    """
    flat = [np.abs(vertices @ n - d) < _ON_BORDER_MM for n, d in border]
    free = np.ones(len(faces), dtype=bool)
    for held in flat:
        free &= ~held[faces].all(axis=1)
    shift = 0.0
    for _ in range(4 if border else 3):
        normal = topology.face_normals(vertices, faces)
        corner = vertices[faces[:, 0]] - vertices.mean(axis=0)
        missing = volume_mm3 - float(np.einsum("ij,ij->", corner, normal)) / 6.0
        if abs(missing) <= 1e-6 * abs(volume_mm3):
            break
        size = np.linalg.norm(normal, axis=1) / 2
        area = float(size[free].sum())
        if area < 0.01 * float(size.sum()):
            break  # the border of the scan all round: nothing of the surface is the structure's own
        step = missing / area
        move = step * topology.vertex_normals(vertices, faces, normal)
        for (n, d), held in zip(border, flat, strict=True):
            outwards = move @ n
            # half of what is left at most, so that no triangle collapses in the plane
            room = np.where(held, 0.0, np.maximum(0.5 * (d - vertices @ n), 0.0))
            move -= (outwards - np.where(held, 0.0, np.minimum(outwards, room)))[:, None] * n
        vertices = vertices + move
        shift += step
    return vertices, shift


def volume(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> float:
    """Signed enclosed volume in mm³."""
    return float(topology.piece_volumes(vertices, faces, np.zeros(len(faces), dtype=np.int64), 1)[0])
