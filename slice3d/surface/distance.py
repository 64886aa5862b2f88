"""Distances from points and surfaces to surfaces, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.mesh import Mesh
from slice3d.surface import _vtk, topology


@dataclass(frozen=True)
class Gap:
    """Shortest distance between two surfaces. overlap: the structures share space, and the distance is 0."""

    distance_mm: float
    point_a_mm: tuple[float, float, float]
    point_b_mm: tuple[float, float, float]
    overlap: bool

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "distance_mm": self.distance_mm,
            "point_a_mm": list(self.point_a_mm),
            "point_b_mm": list(self.point_b_mm),
            "overlap": self.overlap,
        }


def signed_distance(mesh: Mesh, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distance in mm of world points (N, 3) to the surface; negative inside a closed one."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
    from vtkmodules.vtkCommonCore import vtkDoubleArray
    from vtkmodules.vtkFiltersCore import vtkImplicitPolyDataDistance

    require_faces(mesh, "a distance")
    implicit = vtkImplicitPolyDataDistance()
    implicit.SetInput(_vtk.polydata(mesh.vertices, mesh.faces))
    out = vtkDoubleArray()
    implicit.FunctionValue(numpy_to_vtk(np.ascontiguousarray(points, dtype=np.float64)), out)
    distance: NDArray[np.float64] = vtk_to_numpy(out).astype(np.float64)
    return distance


def nearest(mesh: Mesh, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) unsigned distances and (N, 3) the nearest points on the surface."""
    from vtkmodules.vtkCommonCore import mutable
    from vtkmodules.vtkCommonDataModel import vtkStaticCellLocator

    require_faces(mesh, "a distance")
    locator: Any = vtkStaticCellLocator()
    locator.SetDataSet(_vtk.polydata(mesh.vertices, mesh.faces))
    locator.BuildLocator()
    found = np.zeros((len(points), 3))
    place = [0.0, 0.0, 0.0]
    cell, sub, squared = mutable(0), mutable(0), mutable(0.0)
    for row, point in enumerate(np.asarray(points, dtype=np.float64)):
        locator.FindClosestPoint(point, place, cell, sub, squared)
        found[row] = place
    return np.linalg.norm(found - points, axis=1), found


def sample(mesh: Mesh, count: int, *, seed: int = 0) -> NDArray[np.float64]:
    """(count, 3) points spread evenly over the area of the surface."""
    return sample_with_normals(mesh, count, seed=seed)[0]


def sample_with_normals(mesh: Mesh, count: int, *, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(count, 3) points spread evenly over the area, and the (count, 3) unit normals of their faces."""
    require_faces(mesh, "sampling")
    rng = np.random.default_rng(seed)
    corner = mesh.vertices[mesh.faces]
    normal = topology.face_normals(mesh.vertices, mesh.faces)
    area = np.linalg.norm(normal, axis=1)
    # Systematic sampling: every equal share of the area gets one point.
    where = np.searchsorted(np.cumsum(area), (np.arange(count) + rng.random()) / count * area.sum(), side="right")
    where = np.minimum(where, len(area) - 1)
    chosen = corner[where]
    u, v = rng.random((2, count, 1))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    points = chosen[:, 0] + u * (chosen[:, 1] - chosen[:, 0]) + v * (chosen[:, 2] - chosen[:, 0])
    return points, normal[where] / area[where, None]


def deviation(mesh: Mesh, reference: Mesh, *, count: int = 20000) -> dict[str, float]:
    """Mean, 95th percentile and maximum distance between two surfaces, both ways, over evenly spread points.

    Each figure is the larger of the two directions.
    """
    one = np.abs(signed_distance(reference, sample(mesh, count)))
    two = np.abs(signed_distance(mesh, sample(reference, count)))
    return {
        "mean_mm": max(float(one.mean()), float(two.mean())),
        "p95_mm": max(float(np.percentile(one, 95)), float(np.percentile(two, 95))),
        "max_mm": max(float(one.max()), float(two.max())),
    }


def distance_between(mesh_a: Mesh, mesh_b: Mesh) -> Gap:
    """Shortest distance between two structures with the two points, in world RAS mm.

    Exact for the nearest vertex-to-face pair; between two edges that cross it is too long by less than one edge's sagitta.
    Where one structure reaches into the other the distance is 0 and `overlap` is True.
    """
    require_faces(mesh_a, "a distance")
    require_faces(mesh_b, "a distance")
    best: tuple[float, Any, Any, bool] | None = None
    for source, target, swapped in ((mesh_a, mesh_b, False), (mesh_b, mesh_a, True)):
        signed = signed_distance(target, source.vertices)
        at = int(np.argmin(signed))
        value = float(signed[at])
        point = source.vertices[at]
        other = nearest(target, point[None])[1][0]
        pair = (other, point) if swapped else (point, other)
        if best is None or value < best[0]:
            best = (value, pair[0], pair[1], value < 0)
    if best is None:
        raise InputError("no distance between the two meshes; expected at least one face in each")
    value, a, b, overlap = best
    return Gap(max(value, 0.0), _triple(a), _triple(b), overlap)


def _triple(point: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(point[0]), float(point[1]), float(point[2])


def require_faces(mesh: Mesh, purpose: str) -> None:
    """Raises `InputError` for a mesh without faces."""
    if not len(mesh.faces):
        name = mesh.name or "the mesh"
        raise InputError(f"{name} has no faces; {purpose} needs a surface; check that the structure is not empty")
