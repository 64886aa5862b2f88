"""Re-makes a surface from its own distance function: even triangles, guaranteed closed and free of crossings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.surface import topology
from slice3d.surface.distance import require_faces, signed_distance
from slice3d.surface.shared import apart

_LARGEST = 60_000_000


def remesh(mesh: Mesh, *, edge_mm: float) -> Mesh:
    """The same closed surface with triangles of about `edge_mm`; details finer than that are lost.

    Raises `InputError` for an empty mesh, a step that is not positive, or one so fine that it would need over 60 M samples.
    """
    require_faces(mesh, "remeshing")
    if not (np.isfinite(edge_mm) and edge_mm > 0):
        raise InputError(f"edge_mm is {edge_mm}; expected a positive length in mm")
    vertices, faces = resample(mesh.vertices, mesh.faces, step_mm=edge_mm)
    finding = Finding("remeshed", f"{mesh.name or 'mesh'} was remeshed to edges of about {edge_mm:g} mm", "info")
    return apart(mesh, replace(mesh, vertices=vertices, faces=faces, scalars={}, findings=(*mesh.findings, finding)))


def resample(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], *, step_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices and faces of the zero level of the signed distance, sampled every `step_mm`."""
    from slice3d.surface.contour import STEADY, contour, keep_volume, snap, volume
    from slice3d.surface.implicit import Field

    low, high = vertices.min(axis=0) - 3 * step_mm, vertices.max(axis=0) + 3 * step_mm
    shape = np.ceil((high - low) / step_mm).astype(int) + 1
    if int(shape.prod()) > _LARGEST:
        raise InputError(f"a step of {step_mm:g} mm needs {int(shape.prod()):,} samples; choose a larger one")
    grid = Grid.from_spacing(shape.tolist(), (step_mm,) * 3, low)
    values = -_distances(Mesh(vertices, faces), grid, step_mm)
    level, steady, target = 0.0, STEADY * step_mm, abs(volume(vertices, faces))
    for _ in range(5):
        new_vertices, new_faces = contour(Field(snap(values + np.float32(level)), (1, 1, 1), None), grid)
        if not len(new_faces):
            raise InputError(
                f"nothing is left at a step of {step_mm:g} mm; the part is thinner than that; choose a smaller one"
            )
        new_vertices, needed = keep_volume(new_vertices, new_faces, target, most_mm=steady)
        if abs(needed) <= steady or abs(level + needed) > step_mm:
            break
        level += needed  # the function is a distance: its level is the shift
    new_vertices, new_faces, _ = topology.compact(new_vertices, new_faces)
    return new_vertices, new_faces


def _distances(mesh: Mesh, grid: Grid, step_mm: float) -> NDArray[np.float32]:
    """Signed distance (negative inside) near the surface, ± a large value elsewhere by flood from outside."""
    from scipy.ndimage import binary_dilation, label
    from scipy.spatial import cKDTree

    points = _dense(mesh, step_mm)
    seeds = np.unique(np.round(grid.to_index(points)).astype(np.int64), axis=0)
    near = np.zeros(grid.shape, dtype=bool)
    near[tuple(seeds.T)] = True
    near = binary_dilation(near, np.ones((3, 3, 3), dtype=bool), iterations=2)
    out = np.full(grid.shape, np.float32(-3 * step_mm))
    pieces, _ = label(~near)
    out[pieces == pieces[0, 0, 0]] = 3 * step_mm
    index = np.argwhere(near)
    distance = signed_distance(mesh, grid.to_world(index))
    # The sign of a surface that crosses itself is unreliable; what can be reached from outside decides.
    reach, _ = cKDTree(points).query(grid.to_world(index), distance_upper_bound=4 * step_mm)
    magnitude = np.minimum(np.abs(distance), reach)
    out[near] = np.where(distance < 0, -magnitude, magnitude)
    return out


def _dense(mesh: Mesh, step_mm: float) -> NDArray[np.float64]:
    from slice3d.surface.distance import sample

    count = int(mesh.area_mm2 / (step_mm / 2) ** 2) + 1000
    return np.concatenate([sample(mesh, count), mesh.vertices])
