"""Triangles of the zero level of an implicit function: closed, 2-manifold, in world millimetres, facing outwards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.surface import _vtk, topology
from slice3d.surface.implicit import Array, Field

# How close to a grid point, as part of the largest step at hand, a vertex may come: nearer ones make needle triangles.
_SNAP = np.float32(0.02)


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
    vertices: NDArray[np.float64], faces: NDArray[np.int64], volume_mm3: float
) -> tuple[NDArray[np.float64], float]:
    """Shifts the surface along its normals until it encloses `volume_mm3`; returns the shift in mm too."""
    shift = 0.0
    for _ in range(3):
        normal = topology.face_normals(vertices, faces)
        corner = vertices[faces[:, 0]] - vertices.mean(axis=0)
        missing = volume_mm3 - float(np.einsum("ij,ij->", corner, normal)) / 6.0
        if abs(missing) <= 1e-6 * abs(volume_mm3):
            break
        area = float(np.linalg.norm(normal, axis=1).sum() / 2)
        step = missing / area
        vertices = vertices + step * topology.vertex_normals(vertices, faces, normal)
        shift += step
    return vertices, shift


def volume(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> float:
    """Signed enclosed volume in mm³."""
    return float(topology.piece_volumes(vertices, faces, np.zeros(len(faces), dtype=np.int64), 1)[0])
