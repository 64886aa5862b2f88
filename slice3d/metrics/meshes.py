"""Distances between two triangle meshes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.mesh import Mesh
from slice3d.metrics.border import Surface, distances_mm
from slice3d.metrics.distance import SurfaceDistances


def mesh_distances(prediction: Mesh, reference: Mesh, *, sample_mm: float | None = None) -> SurfaceDistances:
    """Distances from each surface to the nearest point of the other's triangles, both ways.

    Samples are the vertices (with a third of the area around them) and, where a triangle is larger than `sample_mm`,
    points on a regular subdivision of it; None takes a hundredth of the diagonal of both meshes. Feed the result to
    `hausdorff_mm`, `assd_mm`, `masd_mm` and `nsd`. Distances are to surfaces: an inside point is as far as an outside
    one. Unit: mm. Both meshes empty: everything is NaN; one empty: distances are ∞ and the NSD is 0.
    Reference: Cignoni et al., Metro, Computer Graphics Forum 17 (1998) 167–174.
    """
    one, other = _samples(prediction, reference, sample_mm)
    ends = [Surface.of(mesh.vertices, mesh.faces) for mesh in (prediction, reference)]
    if not len(one[0]) or not len(other[0]):
        return SurfaceDistances(np.full(len(one[0]), np.inf), one[1], np.full(len(other[0]), np.inf), other[1])
    return SurfaceDistances(distances_mm(one[0], ends[1]), one[1], distances_mm(other[0], ends[0]), other[1])


def chamfer_mm(distances: SurfaceDistances) -> float:
    """Chamfer distance, mean of d(·,B) over A + mean of d(·,A) over B (not squared): twice the MASD.

    Unit: mm. Range: 0…∞, lower is better. Both empty: NaN. One empty: ∞.
    Reference: Barrow et al., IJCAI 1977; Fan et al., CVPR 2017 (who square the distances).
    """
    from slice3d.metrics.distance import masd_mm

    return 2.0 * masd_mm(distances)


Samples = tuple[NDArray[np.float64], NDArray[np.float64]]


def _samples(one: Mesh, other: Mesh, sample_mm: float | None) -> tuple[Samples, Samples]:
    if sample_mm is None:
        corners = [mesh.bounds_mm for mesh in (one, other) if len(mesh.faces)]
        size = max((float(np.linalg.norm(np.ptp(corner, axis=0))) for corner in corners), default=1.0)
        sample_mm = max(size / 100.0, 1e-6)
    if not (np.isfinite(sample_mm) and sample_mm > 0):
        raise InputError(f"sample_mm is {sample_mm}; expected a positive number of millimetres")
    return _sample(one, sample_mm), _sample(other, sample_mm)


def _sample(mesh: Mesh, sample_mm: float) -> Samples:
    """Points and areas: each triangle is cut into n² equal ones, whose corners carry a third of their area each."""
    if not len(mesh.faces):
        return np.zeros((0, 3)), np.zeros(0)
    corner = mesh.vertices[mesh.faces]
    edges = np.linalg.norm(corner - np.roll(corner, 1, axis=1), axis=2).max(axis=1)
    parts = np.minimum(np.maximum(1, np.ceil(edges / sample_mm)), 64).astype(int)
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1) / 2
    points, weights = [], []
    for n in np.unique(parts):
        which = parts == n
        place, share = _lattice(int(n))
        points.append(np.einsum("pc,fcx->fpx", place, corner[which]).reshape(-1, 3))
        weights.append((area[which, None] * share).ravel())
    return np.concatenate(points), np.concatenate(weights)


def _lattice(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Barycentric coordinates of the corners of n² equal sub-triangles, and the share of the area that each carries."""
    index = {(i, j): k for k, (i, j) in enumerate((i, j) for i in range(n + 1) for j in range(n + 1 - i))}
    share = np.zeros(len(index))
    for i in range(n):
        for j in range(n - i):
            for corner in ((i, j), (i + 1, j), (i, j + 1)):
                share[index[corner]] += 1
            if i + j < n - 1:
                for corner in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
                    share[index[corner]] += 1
    place = np.array([(i / n, j / n, (n - i - j) / n) for i, j in index])
    return place, share / (3 * n * n)
