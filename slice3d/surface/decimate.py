"""Fewer triangles: by number, or as far as the surface moves by no more than a stated distance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.mesh import Mesh
from slice3d.surface import _vtk, topology
from slice3d.surface.check import degenerate
from slice3d.surface.contour import keep_volume, volume
from slice3d.surface.distance import deviation, require_faces
from slice3d.surface.intersect import self_intersections
from slice3d.surface.shared import apart

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]
# collapsing stops a little off the number asked for; this far off it was not reached
_NEAR = 1.1


def decimate(mesh: Mesh, *, target_triangles: int | None = None, max_error_mm: float | None = None) -> Mesh:
    """Collapses edges by quadric error; volume, closedness and handles stay.

    target_triangles: about how many to leave. max_error_mm: largest distance the surface may move, measured on evenly
    spread points of both surfaces; with both, whichever stops first. What it cost is in the finding `decimated`; where
    fewer triangles would open or fold the surface, more are left, as the finding `decimation-target-missed` says.
    Raises `InputError` for an empty mesh and for no target.
    """
    require_faces(mesh, "decimation")
    if target_triangles is None and max_error_mm is None:
        raise InputError("decimation needs target_triangles or max_error_mm; give at least one")
    if target_triangles is not None and target_triangles < 4:
        raise InputError(f"target_triangles is {target_triangles}; a closed surface has at least 4; ask for more")
    target = target_triangles or 4
    if target >= len(mesh.faces):
        return mesh
    arrays = (mesh.vertices, mesh.faces)
    best = _to_count(arrays, target) if max_error_mm is None else _to_error(mesh, target, max_error_mm)
    missed = _missed(mesh, target_triangles, max_error_mm, len(best[1]))
    if len(best[1]) >= len(mesh.faces):
        return mesh.with_findings(missed)
    out = replace(mesh, vertices=best[0], faces=best[1], scalars={})
    moved = deviation(out, mesh)
    text = (
        f"{mesh.name or 'mesh'}: {len(mesh.faces)} triangles reduced to {len(out.faces)}; the surface moved by "
        f"{moved['mean_mm']:.3f} mm on average, {moved['max_mm']:.3f} mm at most"
    )
    details = {"before": len(mesh.faces), "after": len(out.faces), **moved}
    return apart(mesh, out.with_findings([Finding("decimated", text, "info", details), *missed]))


def _missed(mesh: Mesh, target: int | None, max_error_mm: float | None, left: int) -> list[Finding]:
    """That the target was not reached. An error bound without a target is missed where nothing could go."""
    if max_error_mm is None and target is not None and left > _NEAR * target:
        text = f"{left} triangles are left where {target} were asked for: fewer would open or fold the surface"
    elif max_error_mm is not None and left >= len(mesh.faces):
        text = f"all {left} triangles are left: none could go without moving the surface by {max_error_mm:g} mm or more"
    else:
        return []
    details = {"asked_triangles": target, "asked_mm": max_error_mm, "left": left}
    return [Finding("decimation-target-missed", f"{mesh.name or 'mesh'}: {text}", "warning", details)]


def _to_count(arrays: Arrays, target: int) -> Arrays:
    """Decimates; where the result is not a clean solid, asks for less until it is."""
    full = len(arrays[1])
    for part in (0.0, 0.15, 0.4, 0.7):
        count = int(target + part * (full - target))
        out = _quadric(arrays, count)
        if out is not None:
            return out
    return arrays


def _to_error(mesh: Mesh, target: int, max_error_mm: float) -> Arrays:
    """Bisects (on a logarithmic scale) for the fewest triangles within the error."""
    arrays = (mesh.vertices, mesh.faces)
    low, high = float(np.log(max(target, 4))), float(np.log(len(mesh.faces)))
    best = arrays
    for step in range(7):
        middle = low if step == 0 else (low + high) / 2
        out = _quadric(arrays, round(np.exp(middle)))
        good = (
            out is not None
            and deviation(replace(mesh, vertices=out[0], faces=out[1], scalars={}), mesh)["max_mm"] <= max_error_mm
        )
        if out is not None and good:
            best, high = out, middle
            if step == 0:
                break
        else:
            low = middle
    return best


def _quadric(arrays: Arrays, target: int) -> Arrays | None:
    """VTK's quadric edge collapse, mended where it left defects; None where that is not possible."""
    from vtkmodules.vtkFiltersCore import vtkQuadricDecimation

    filter_ = vtkQuadricDecimation()
    filter_.SetInputData(_vtk.polydata(*arrays))
    filter_.SetTargetReduction(min(0.9999, max(0.0, 1.0 - target / len(arrays[1]))))
    filter_.VolumePreservationOn()
    filter_.Update()
    vertices, faces = _vtk.arrays(filter_.GetOutput())
    if len(faces) < 4:
        return None
    vertices, faces, _ = topology.compact(vertices, faces)
    vertices, _ = keep_volume(vertices, faces, volume(*arrays))
    return (vertices, faces) if is_clean(vertices, faces) else mend(vertices, faces)


def mend(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Arrays | None:
    """`repair` for a result with small defects; None where it would change the volume by more than 0.1 %."""
    from slice3d.errors import Slice3DError
    from slice3d.surface.repair import repair_local

    try:
        out = repair_local(vertices, faces)
    except Slice3DError:
        return None
    before, after = volume(vertices, faces), volume(*out)
    return out if is_clean(*out) and abs(after - before) <= 1e-3 * abs(before) else None


def is_clean(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> bool:
    """Closed, 2-manifold, oriented, without degenerate or crossing faces, also with its vertices as float32."""
    vertices = vertices.astype(np.float32).astype(np.float64)
    half = topology.edges(faces, len(vertices))
    return (
        bool((half.count == 2).all())
        and not half.balance.any()
        and not len(topology.nonmanifold_vertices(faces, len(vertices)))
        and not len(topology.coincident(vertices, faces))
        and not degenerate(vertices, faces).any()
        and not len(self_intersections(vertices, faces))
    )
