"""Values per vertex: what of the surface was estimated, how sure it is, and how thick the structure is there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.surface import topology
from slice3d.surface.distance import require_faces
from slice3d.volume import Segmentation, Volume

# 2 sin(60° / 2): balls whose two contacts are less than 60° apart seen from their centre are taken for roughness
_CHORD = 1.0


def annotate(mesh: Mesh, *, volume: Volume | Segmentation | None = None, wall_thickness: bool = False) -> Mesh:
    """The mesh with the scalars `synthesised` (0…1) and `uncertainty` of an image or of its segmentation, and
    `wall_thickness_mm`.

    Scalars that it does not carry are left out. Raises `InputError` for a mesh without faces.
    """
    require_faces(mesh, "scalars")
    scalars: dict[str, NDArray[Any]] = dict(mesh.scalars)
    if volume is not None:
        for name, values in (("synthesised", volume.synthesised), ("uncertainty", volume.uncertainty)):
            if values is not None:
                scalars[name] = sample_grid(values, volume.grid, mesh.vertices)
    if wall_thickness:
        scalars["wall_thickness_mm"] = thickness(mesh)
    return replace(mesh, scalars=scalars)


def sample_grid(values: NDArray[Any], grid: Grid, points_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """(N,) linear interpolation of (i, j, k) values at world points; beyond the grid the nearest voxel counts."""
    from scipy.ndimage import map_coordinates

    if values.shape != grid.shape:
        raise InputError(f"values have shape {values.shape}, their grid {grid.shape}; expected the same")
    index = grid.to_index(points_mm).T
    out = map_coordinates(values.astype(np.float32), index, order=1, mode="nearest")
    return np.asarray(out, dtype=np.float32)


def thickness(mesh: Mesh, *, rounds: int = 12) -> NDArray[np.float32]:
    """(N,) diameter in mm of the largest ball inside that touches the surface at each vertex.

    Shrinking balls (J. Ma, S. Bae, S. Choi, Vis. Comput. 28, 2012), against the vertices and face centres.
    """
    from scipy.spatial import cKDTree

    normal = topology.vertex_normals(mesh.vertices, mesh.faces)
    points = np.concatenate([mesh.vertices, mesh.vertices[mesh.faces].mean(axis=1)])
    tree = cKDTree(points)
    radius = np.full(len(mesh.vertices), float(np.linalg.norm(np.ptp(mesh.vertices, axis=0))) / 2 + 1e-6)
    active = np.arange(len(radius))
    for _ in range(rounds):
        centre = mesh.vertices[active] - radius[active, None] * normal[active]
        distance, found = tree.query(centre)
        inside = distance < radius[active] * (1 - 1e-3)
        active, found = active[inside], found[inside]
        if not len(active):
            break
        gap = points[found] - mesh.vertices[active]
        depth = -np.einsum("ij,ij->i", gap, normal[active])
        squared = np.einsum("ij,ij->i", gap, gap)
        usable = depth > 1e-9
        smaller = np.where(usable, squared / np.where(usable, 2 * depth, 1.0), radius[active])
        # Roughness of the mesh shows as a ball that touches twice close together: that is no wall.
        chord = np.sqrt(squared)
        wall = chord > _CHORD * smaller
        radius[active] = np.where(wall, np.minimum(smaller, radius[active]), radius[active])
        active = active[wall]
    return (2 * radius).astype(np.float32)
