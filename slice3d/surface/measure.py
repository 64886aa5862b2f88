"""What planning asks of a surface: size, shape, and the parts that a cutting plane makes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import InputError
from slice3d.mesh import Mesh
from slice3d.surface.distance import require_faces

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Measurements:
    """Figures of one closed surface, world RAS mm.

    bounds_mm: lowest and highest corner. centroid_mm: of the enclosed volume. axes: three unit vectors, longest extent
    first; extents_mm: extent of the body along each. diameter_mm: largest distance between two of its points, which are
    diameter_points_mm.
    """

    volume_ml: float
    area_mm2: float
    bounds_mm: tuple[Triple, Triple]
    centroid_mm: Triple
    axes: tuple[Triple, Triple, Triple]
    extents_mm: Triple
    diameter_mm: float
    diameter_points_mm: tuple[Triple, Triple]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Plane:
    """A cutting plane through `point_mm`; `normal` points to the part that is resected. World RAS mm."""

    point_mm: Triple
    normal: Triple


@dataclass(frozen=True)
class Cut:
    """The two closed parts of a structure and their volumes; `area_mm2` is that of the cut face."""

    resected: Mesh
    remnant: Mesh
    resected_ml: float
    remnant_ml: float
    area_mm2: float

    def to_dict(self) -> dict[str, Any]:
        """The figures without the meshes."""
        return {"resected_ml": self.resected_ml, "remnant_ml": self.remnant_ml, "area_mm2": self.area_mm2}


def measure(mesh: Mesh) -> Measurements:
    """Volume, area, bounds, principal axes and largest diameter. Raises `InputError` for a mesh without faces."""
    require_faces(mesh, "measuring")
    volume, centroid, covariance = moments(mesh)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, np.argsort(values)[::-1]].T
    # Signs are free; point each axis towards its largest positive component so that equal input gives equal output.
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])[:, None]
    extents = np.ptp(mesh.vertices @ axes.T, axis=0)
    diameter, one, two = largest_diameter(mesh)
    low, high = mesh.bounds_mm
    return Measurements(
        volume / 1000.0, mesh.area_mm2, (_triple(low), _triple(high)), _triple(centroid),
        (_triple(axes[0]), _triple(axes[1]), _triple(axes[2])), _triple(extents), diameter, (_triple(one), _triple(two)),
    )  # fmt: skip


def moments(mesh: Mesh) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Volume in mm³, centroid (3,) and covariance (3, 3) in mm² of the enclosed body.

    Sums over tetrahedra from an inner point to each face; falls back to the surface's points where nothing is enclosed.
    """
    origin = mesh.vertices.mean(axis=0)
    corner = (mesh.vertices - origin)[mesh.faces]
    six = np.einsum("ij,ij->i", corner[:, 0], np.cross(corner[:, 1], corner[:, 2]))
    volume = float(six.sum() / 6.0)
    if abs(volume) < 1e-9:
        return volume, origin, np.cov(mesh.vertices.T)
    total = corner.sum(axis=1)
    centroid = (six[:, None] * total).sum(axis=0) / 24.0 / volume
    second = np.einsum("i,ij,ik->jk", six, total, total)
    second += np.einsum("i,inj,ink->jk", six, corner, corner)
    covariance = second / 120.0 / volume - np.outer(centroid, centroid)
    return volume, origin + centroid, covariance


def largest_diameter(mesh: Mesh) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Largest distance between two vertices in mm, and the two points; exact (both lie on the convex hull)."""
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import cdist

    points = mesh.vertices
    try:
        points = points[ConvexHull(points).vertices]
    except QhullError:
        points = np.unique(points, axis=0)
    best, one, two = -1.0, 0, 0
    for start in range(0, len(points), 512):
        distance = cdist(points[start : start + 512], points)
        at = int(distance.argmax())
        value = float(distance.flat[at])
        if value > best:
            best, one, two = value, start + at // len(points), at % len(points)
    return best, points[one], points[two]


def plane(point_mm: ArrayLike, normal: ArrayLike) -> Plane:
    """A cutting plane from a point and a direction of any length. Raises `InputError` for a zero direction."""
    direction = np.asarray(normal, dtype=np.float64)
    length = float(np.linalg.norm(direction))
    if not np.isfinite(length) or length == 0:
        raise InputError(f"plane normal is {direction.tolist()}; expected a direction that is not zero")
    return Plane(_triple(np.asarray(point_mm, dtype=np.float64)), _triple(direction / length))


def cut(mesh: Mesh, plane: Plane) -> Cut:
    """Divides a closed structure by a plane into closed parts. Raises `InputError` for one that is not a closed solid."""
    from slice3d.surface.repair import from_manifold, to_manifold

    require_faces(mesh, "cutting")
    solid = to_manifold(mesh)
    offset = float(np.dot(plane.normal, plane.point_mm))
    one, two = solid.split_by_plane(plane.normal, offset)
    resected = from_manifold(one, mesh, suffix="resected")
    remnant = from_manifold(two, mesh, suffix="remnant")
    area = (resected.area_mm2 + remnant.area_mm2 - mesh.area_mm2) / 2.0
    return Cut(resected, remnant, resected.volume_ml, remnant.volume_ml, max(0.0, area))


def _triple(point: ArrayLike) -> Triple:
    a, b, c = (float(v) for v in np.asarray(point).reshape(3))
    return a, b, c
