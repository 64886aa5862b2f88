"""The print gate: is a mesh a solid that a slicer will print as it is, and how far is it from what was measured?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.mesh import Mesh
from slice3d.surface import _vtk, topology
from slice3d.surface.distance import deviation, sample_with_normals
from slice3d.surface.intersect import self_intersections

# STL stores float32: at 0.5 m from the origin its step is 3e-5 mm, and thinner triangles collapse in the file.
# What is looked at is therefore what the file will hold.
_DEGENERATE_MM = 5e-5


@dataclass(frozen=True)
class PrintReport:
    """What the gate found. Lengths in mm, volumes in mm³.

    closed: no edge with a single face. manifold: every edge has two faces and every vertex one fan. oriented: neighbours
    agree on which side is out. outward: the whole encloses positive volume. coincident_vertices: with the float32
    position of another one. degenerate_faces: repeated or collinear corners. components: separate outer shells; cavities: shells that enclose a hole. genus: handles, over all shells.
    minimum_wall_mm: least thickness found on rays through the solid. volume_drift: relative difference from the
    reference volume. distance_mm: mean, p95 and max distance to the reference surface. reasons: why it fails, in words.
    """

    vertices: int
    faces: int
    closed: bool
    manifold: bool
    oriented: bool
    outward: bool
    open_edges: int
    nonmanifold_edges: int
    nonmanifold_vertices: int
    coincident_vertices: int
    self_intersections: int
    degenerate_faces: int
    components: int
    cavities: int
    genus: int | None
    minimum_wall_mm: float | None
    volume_mm3: float
    volume_drift: float | None
    distance_mm: dict[str, float] | None
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against printing."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {"passed": self.passed, **asdict(self), "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Limits:
    """What a caller asks for beyond a valid solid; None asks for nothing.

    wall_mm: thinnest wall allowed. drift: largest |relative volume difference| from the reference. mean_mm: largest mean
    distance to the reference. components: largest number of separate shells.
    """

    wall_mm: float | None = None
    drift: float | None = None
    mean_mm: float | None = None
    components: int | None = None


def check(
    mesh: Mesh,
    *,
    reference: Mesh | None = None,
    reference_volume_mm3: float | None = None,
    limits: Limits | None = None,
    wall: bool = True,
) -> PrintReport:
    """Looks at everything a printer's slicer trips over; `reference` is the surface before it was worked on.

    Without `reference_volume_mm3` the volume of `reference` is compared, or else what the mesh's metadata say about its voxels.
    """
    limits = limits or Limits()
    faces, vertices = mesh.faces, mesh.vertices.astype(np.float32).astype(np.float64)
    half = topology.edges(faces, len(vertices))
    split = topology.nonmanifold_vertices(faces, len(vertices), half)
    open_edges = int(np.count_nonzero(half.count == 1))
    bad_edges = int(np.count_nonzero(half.count > 2))
    volume = mesh.volume_mm3 if len(faces) else 0.0
    target = reference_volume_mm3
    if target is None:
        target = reference.volume_mm3 if reference is not None else _voxel_volume(mesh)
    shells = _shells(mesh)
    genus = None
    if not (open_edges or bad_edges or len(split)) and len(faces):
        used = len(np.unique(faces))
        genus = int(shells[0] + shells[1] - (used - len(half.key) + len(faces)) // 2)
    report = PrintReport(
        vertices=len(vertices),
        faces=len(faces),
        closed=open_edges == 0 and len(faces) > 0,
        manifold=open_edges == 0 and bad_edges == 0 and len(split) == 0 and len(faces) > 0,
        oriented=not np.any(half.balance[half.count == 2]),
        outward=volume > 0,
        open_edges=open_edges,
        nonmanifold_edges=bad_edges,
        nonmanifold_vertices=len(split),
        coincident_vertices=len(topology.coincident(vertices, faces)),
        self_intersections=len(self_intersections(vertices, faces)),
        degenerate_faces=int(np.count_nonzero(degenerate(vertices, faces))),
        components=shells[0],
        cavities=shells[1],
        genus=genus,
        minimum_wall_mm=minimum_wall(mesh) if wall and len(faces) and open_edges == 0 else None,
        volume_mm3=volume,
        volume_drift=(volume / target - 1.0) if target else None,
        distance_mm=deviation(mesh, reference)
        if reference is not None and len(faces) and len(reference.faces)
        else None,
        reasons=(),
    )
    return PrintReport(
        **{**{k: getattr(report, k) for k in report.__dataclass_fields__}, "reasons": _reasons(report, limits)}
    )


def _voxel_volume(mesh: Mesh) -> float | None:
    value = mesh.metadata.get("voxel_volume_ml")
    return float(value) * 1000.0 if value else None


def _reasons(report: PrintReport, limits: Limits) -> tuple[str, ...]:
    if not report.faces:
        return ("no faces: there is nothing to print",)
    out = []
    if report.open_edges:
        out.append(f"not closed: {report.open_edges} open edges")
    if report.nonmanifold_edges:
        out.append(f"not 2-manifold: {report.nonmanifold_edges} edges with more than two faces")
    if report.nonmanifold_vertices and not (report.open_edges or report.nonmanifold_edges):
        out.append(f"not 2-manifold: {report.nonmanifold_vertices} vertices where parts touch in a point")
    if report.coincident_vertices:
        out.append(f"{report.coincident_vertices} vertices at the place of others, which an STL joins")
    if not report.oriented:
        out.append("faces disagree on which side is out")
    if not report.outward:
        out.append("inside out: the enclosed volume is not positive")
    if report.self_intersections:
        out.append(f"{report.self_intersections} pairs of faces run through each other")
    if report.degenerate_faces:
        out.append(f"{report.degenerate_faces} degenerate faces")
    if limits.wall_mm is not None and report.minimum_wall_mm is not None and report.minimum_wall_mm < limits.wall_mm:
        out.append(f"thinnest wall {report.minimum_wall_mm:.2f} mm, at least {limits.wall_mm:g} mm asked for")
    if limits.drift is not None and report.volume_drift is not None and abs(report.volume_drift) > limits.drift:
        out.append(f"volume is off by {report.volume_drift:+.2%}, at most {limits.drift:.2%} asked for")
    if limits.mean_mm is not None and report.distance_mm is not None and report.distance_mm["mean_mm"] > limits.mean_mm:
        out.append(f"mean distance {report.distance_mm['mean_mm']:.3f} mm, at most {limits.mean_mm:g} mm asked for")
    if limits.components is not None and report.components > limits.components:
        out.append(f"{report.components} separate parts, at most {limits.components} asked for")
    return tuple(out)


def degenerate(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(M,) faces that are thinner than a float32 file can hold: two corners equal, or all three on a line."""
    corner = vertices[faces]
    side = np.stack([np.linalg.norm(corner[:, n] - corner[:, (n + 1) % 3], axis=1) for n in range(3)], axis=1)
    twice_area = np.linalg.norm(topology.face_normals(vertices, faces), axis=1)
    longest = side.max(axis=1)
    height = np.divide(twice_area, longest, out=np.zeros_like(longest), where=longest > 0)
    out: NDArray[np.bool_] = height < _DEGENERATE_MM
    return out


def _shells(mesh: Mesh) -> tuple[int, int]:
    """(outer shells, cavities)."""
    count, piece = topology.components(mesh.faces, len(mesh.vertices))
    if not count:
        return 0, 0
    volume = topology.piece_volumes(mesh.vertices, mesh.faces, piece, count)
    return int(np.count_nonzero(volume >= 0)), int(np.count_nonzero(volume < 0))


def minimum_wall(mesh: Mesh, *, rays: int = 4000) -> float | None:
    """Least thickness in mm on rays that enter along the normal and leave through a wall facing the other way."""
    from vtkmodules.vtkCommonCore import mutable
    from vtkmodules.vtkCommonDataModel import vtkStaticCellLocator

    points, normals = sample_with_normals(mesh, rays)
    all_normals = topology.face_normals(mesh.vertices, mesh.faces)
    locator: Any = vtkStaticCellLocator()
    locator.SetDataSet(_vtk.polydata(mesh.vertices, mesh.faces))
    locator.BuildLocator()
    reach = float(np.linalg.norm(np.ptp(mesh.vertices, axis=0))) + 1.0
    t, sub, cell = mutable(0.0), mutable(0), mutable(0)
    place, parametric = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    best = np.inf
    for point, normal in zip(points, normals, strict=True):
        start = point - 1e-3 * normal
        if not locator.IntersectWithLine(start, start - reach * normal, 1e-9, t, place, parametric, sub, cell):
            continue
        exit_normal = all_normals[int(cell)]
        if exit_normal @ normal < -0.7 * np.linalg.norm(exit_normal):
            best = min(best, float(np.linalg.norm(np.asarray(place) - point)))
    return best if np.isfinite(best) else None
