"""Makes printable solids of damaged meshes, and says what was done; removes fragments and cavities; remeshes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError, MissingExtraError, QualityError
from slice3d.findings import Finding
from slice3d.mesh import Mesh
from slice3d.surface import topology
from slice3d.surface.check import degenerate
from slice3d.surface.distance import require_faces
from slice3d.surface.intersect import self_intersections
from slice3d.surface.shared import apart

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]

_SLIVER_MM = 2e-4


def repair(mesh: Mesh) -> Mesh:
    """A closed, oriented 2-manifold without self-intersections, as near to `mesh` as it gets.

    In this order, each only where needed: points equal in float32 are joined, degenerate and duplicate faces dropped, pieces that
    touch are separated, holes are filled with flat fans, faces turned outwards, crossing parts re-made by manifold3d.
    Every step taken is a finding. Raises `QualityError` where a solid cannot be made, `InputError` without faces.
    """
    require_faces(mesh, "repair")
    done: list[str] = []
    vertices, faces = _local_steps(mesh.vertices, mesh.faces, done)
    if not len(faces):
        raise QualityError(
            f"{mesh.name or 'the mesh'} has no face left after repair; expected a solid; remesh it instead"
        )
    if len(self_intersections(vertices, faces)):
        vertices, faces = _resolve_crossings(vertices, faces, done)
    vertices, faces, _ = topology.compact(vertices, faces)
    if not done:
        return mesh
    vertices = topology.spread(vertices, faces)
    finding = Finding(
        "mesh-repaired", f"{mesh.name or 'mesh'} was repaired: {', '.join(done)}", details={"steps": done}
    )
    return apart(mesh, replace(mesh, vertices=vertices, faces=faces, scalars={}, findings=(*mesh.findings, finding)))


def repair_local(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Arrays:
    """The steps of `repair` that touch only the faces concerned: all but the crossing parts."""
    vertices, faces = _local_steps(vertices, faces, [])
    vertices, faces, _ = topology.compact(vertices, faces)
    return topology.spread(vertices, faces), faces


def _local_steps(vertices: NDArray[np.float64], faces: NDArray[np.int64], done: list[str]) -> Arrays:
    vertices, faces = _weld(vertices, faces, done)
    vertices, faces = _drop_bad_faces(vertices, faces, done)
    vertices, faces = _separate(vertices, faces, done)
    faces = _orient(vertices, faces, done)
    vertices, faces = _fill_holes(vertices, faces, done)
    faces = _outward(vertices, faces, done)
    return vertices, faces


def _weld(vertices: NDArray[np.float64], faces: NDArray[np.int64], done: list[str]) -> Arrays:
    used = np.unique(faces)
    # equal in a file of float32 is equal
    _, first, index = np.unique(vertices[used].astype(np.float32), axis=0, return_index=True, return_inverse=True)
    number = np.zeros(len(vertices), dtype=np.int64)
    number[used] = index.reshape(-1)
    if len(first) < len(used):
        done.append(f"{len(used) - len(first)} equal points joined")
    return vertices[used[first]], number[faces]


def _drop_bad_faces(vertices: NDArray[np.float64], faces: NDArray[np.int64], done: list[str]) -> Arrays:
    ordered = np.sort(faces, axis=1)
    keep = (ordered[:, 0] != ordered[:, 1]) & (ordered[:, 1] != ordered[:, 2])
    faces, ordered = faces[keep], ordered[keep]
    _, first = np.unique(ordered, axis=0, return_index=True)
    faces = faces[np.sort(first)]
    dropped = len(keep) - len(faces)
    if dropped:
        done.append(f"{dropped} repeated faces dropped")
    for _ in range(10):
        thin = degenerate(vertices, faces)
        if not thin.any():
            break
        vertices, faces, count = _collapse(vertices, faces, thin)
        if not count:
            break
        done.append(f"{count} degenerate faces collapsed")
    return vertices, faces


def _collapse(vertices: NDArray[np.float64], faces: NDArray[np.int64], thin: NDArray[np.bool_]) -> tuple[Any, Any, int]:
    """Merges the ends of the shortest edge of each thin face, one per neighbourhood."""
    target = np.arange(len(vertices))
    touched = np.zeros(len(vertices), dtype=bool)
    count = 0
    for face in np.flatnonzero(thin):
        corner = faces[face]
        if touched[corner].any():
            continue
        length = [np.linalg.norm(vertices[corner[n]] - vertices[corner[(n + 1) % 3]]) for n in range(3)]
        n = int(np.argmin(length))
        a, b = corner[n], corner[(n + 1) % 3]
        target[b] = a
        touched[corner] = True
        count += 1
    faces = target[faces]
    keep = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return vertices, faces[keep], count


def _separate(vertices: NDArray[np.float64], faces: NDArray[np.int64], done: list[str]) -> Arrays:
    """Cuts the mesh along edges with more than two faces and at vertices with more than one fan."""
    half = topology.edges(faces, len(vertices))
    bad = int(np.count_nonzero(half.count > 2))
    if bad:
        vertices, faces = topology.pair_edges(vertices, faces)
        done.append(f"{bad} edges with more than two faces divided")
    split = topology.nonmanifold_vertices(faces, len(vertices))
    if len(split):
        vertices, faces = topology.split_fans(vertices, faces)
        done.append(f"{len(split)} touching vertices divided")
    return vertices, faces


def _orient(vertices: NDArray[np.float64], faces: NDArray[np.int64], done: list[str]) -> NDArray[np.int64]:
    """Turns faces until neighbours agree, piece by piece."""
    from vtkmodules.vtkFiltersCore import vtkPolyDataNormals

    from slice3d.surface import _vtk

    half = topology.edges(faces, len(vertices))
    if not np.any(half.balance[half.count == 2]):
        return faces
    turn = vtkPolyDataNormals()
    turn.SetInputData(_vtk.polydata(vertices, faces))
    turn.SplittingOff()
    turn.ConsistencyOn()
    turn.AutoOrientNormalsOff()
    turn.ComputePointNormalsOff()
    turn.ComputeCellNormalsOff()
    turn.Update()
    _, out = _vtk.arrays(turn.GetOutput())
    done.append("faces turned so that neighbours agree")
    return out


def _outward(vertices: NDArray[np.float64], faces: NDArray[np.int64], done: list[str]) -> NDArray[np.int64]:
    """Turns a mesh whose outermost pieces enclose negative volume inside out."""
    count, piece = topology.components(faces, len(vertices))
    if not count:
        return faces
    volume = topology.piece_volumes(vertices, faces, piece, count)
    turned = np.zeros(count, dtype=bool)
    low = np.full((count, 3), np.inf)
    high = np.full((count, 3), -np.inf)
    np.minimum.at(low, piece, vertices[faces].min(axis=1))
    np.maximum.at(high, piece, vertices[faces].max(axis=1))
    for n in range(count):
        within = (low <= low[n]).all(axis=1) & (high >= high[n]).all(axis=1)
        within[n] = False
        if volume[n] < 0 and not within.any():
            turned[n] = True
    if not turned.any():
        return faces
    done.append(f"{int(turned.sum())} parts turned inside out")
    return np.where(turned[piece][:, None], faces[:, ::-1], faces)


def _fill_holes(vertices: NDArray[np.float64], faces: NDArray[np.int64], done: list[str]) -> Arrays:
    """Closes each open loop with a fan around its middle."""
    half = topology.edges(faces, len(vertices))
    lone = np.flatnonzero(half.count[half.of_half] == 1)
    if not len(lone):
        return vertices, faces
    start = faces.reshape(-1)[lone]
    end = np.roll(faces, -1, axis=1).reshape(-1)[lone]
    following = dict(zip(end.tolist(), start.tolist(), strict=True))
    added_vertices: list[NDArray[np.float64]] = []
    added_faces: list[tuple[int, int, int]] = []
    holes = 0
    while following:
        first = next(iter(following))
        loop = [first]
        here = following.pop(first)
        while here != first and here in following:
            loop.append(here)
            here = following.pop(here)
        if len(loop) < 3 or here != first:
            continue
        holes += 1
        middle = len(vertices) + len(added_vertices)
        added_vertices.append(vertices[loop].mean(axis=0))
        added_faces += [(a, b, middle) for a, b in zip(loop, [*loop[1:], loop[0]], strict=True)]
    if not holes:
        return vertices, faces
    done.append(f"{holes} holes filled")
    return np.concatenate([vertices, added_vertices]), np.concatenate([faces, np.asarray(added_faces, dtype=np.int64)])


def _resolve_crossings(vertices: NDArray[np.float64], faces: NDArray[np.int64], done: list[str]) -> Arrays:
    """Union of the parts; where one part crosses itself, the whole is re-made from its distance function."""
    count, piece = topology.components(faces, len(vertices))
    if count > 1:
        module = _manifold3d()
        volume = topology.piece_volumes(vertices, faces, piece, count)
        parts = [_solid(module, vertices, faces[piece == n]) for n in range(count)]
        if all(part is not None for part in parts):
            solid = module.Manifold.batch_boolean(
                [p for p, v in zip(parts, volume, strict=True) if v > 0], module.OpType.Add
            )
            holes = [p for p, v in zip(parts, volume, strict=True) if v < 0]
            for hole in holes:
                solid = solid - hole
            # where two bodies meet, faces thinner than a file can hold arise
            new = repair_local(*_arrays(solid.simplify(_SLIVER_MM)))
            if len(new[1]) and not degenerate(*new).any() and not len(self_intersections(*new)):
                done.append(f"{count} overlapping parts united")
                return new
    from slice3d.surface.remesh import resample

    extent = np.linalg.norm(np.ptp(vertices, axis=0))
    edge = np.linalg.norm(vertices[faces[:, 0]] - vertices[faces[:, 1]], axis=1)
    step = max(float(np.median(edge)) * 0.7, float(extent) / 250.0)
    done.append(f"surface re-made from its distance function at {step:.2g} mm, since it crossed itself")
    return resample(vertices, faces, step_mm=step)


def _manifold3d() -> Any:
    try:
        import manifold3d
    except ImportError as error:
        raise MissingExtraError(
            "this needs the package manifold3d, which is not installed; pip install manifold3d"
        ) from error
    return manifold3d


def _solid(module: Any, vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Any:
    points, triangles, _ = topology.compact(vertices, faces)
    solid = module.Manifold(
        module.Mesh64(np.ascontiguousarray(points), np.ascontiguousarray(triangles.astype(np.uint64)))
    )
    return solid if solid.status() == module.Error.NoError else None


def _arrays(solid: Any) -> Arrays:
    data = solid.to_mesh64()
    return np.asarray(data.vert_properties)[:, :3].astype(np.float64), np.asarray(data.tri_verts).astype(np.int64)


def to_manifold(mesh: Mesh) -> Any:
    """A manifold3d solid. Raises `InputError` for a mesh that is not a closed, oriented 2-manifold."""
    solid = _solid(_manifold3d(), mesh.vertices, mesh.faces)
    if solid is None:
        raise InputError(
            f"{mesh.name or 'the mesh'} is not a closed, oriented 2-manifold; repair it first (surface.repair)"
        )
    return solid


def from_manifold(solid: Any, like: Mesh, *, suffix: str = "") -> Mesh:
    """A `Mesh` of a manifold3d solid with the name and colour of `like`."""
    vertices, faces = _arrays(solid)
    name = f"{like.name}_{suffix}" if suffix and like.name else suffix or like.name
    return Mesh(vertices, faces, name=name, color=like.color, findings=like.findings)


def remove_small(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], *, fragment_mm3: float, cavity_mm3: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], Sequence[float], Sequence[float]]:
    """Drops separate pieces and cavities smaller than stated; also returns the volumes dropped, in mm³."""
    count, piece = topology.components(faces, len(vertices))
    volume = topology.piece_volumes(vertices, faces, piece, count) if count else np.zeros(0)
    fragment = (volume >= 0) & (volume < fragment_mm3)
    if fragment.all() or (fragment | (volume < 0)).all():
        # Never remove everything: the largest piece is the structure itself.
        fragment[int(np.argmax(volume))] = False
    cavity = (volume < 0) & (-volume < cavity_mm3)
    gone = fragment | cavity
    if not gone.any():
        return vertices, faces, [], []
    vertices, faces, _ = topology.compact(vertices, faces[~gone[piece]])
    return vertices, faces, volume[fragment].tolist(), (-volume[cavity]).tolist()
