"""Smoothing of a finished mesh, with a cut-off in mm and the volume kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.mesh import Mesh
from slice3d.surface import _vtk
from slice3d.surface.contour import keep_volume, volume
from slice3d.surface.distance import deviation, require_faces
from slice3d.surface.shared import apart


def smooth(mesh: Mesh, *, cutoff_mm: float, iterations: int = 40) -> Mesh:
    """Windowed-sinc smoothing (G. Taubin, T. Zhang, G. Golub, ECCV 1996) that removes ripples shorter than `cutoff_mm`.

    The pass band follows from the mean edge length h: a ripple of wavelength L has eigenvalue (2π h / L)² / 4 of the
    umbrella operator on an even triangle mesh. The enclosed volume is restored by a shift along the normals.
    Raises `InputError` for an empty mesh or a cut-off that is not positive.
    """
    from vtkmodules.vtkFiltersCore import vtkWindowedSincPolyDataFilter

    require_faces(mesh, "smoothing")
    if not (np.isfinite(cutoff_mm) and cutoff_mm > 0):
        raise InputError(f"cutoff_mm is {cutoff_mm}; expected a positive wavelength in mm")
    corner = mesh.vertices[mesh.faces]
    edge = float(np.linalg.norm(corner - np.roll(corner, 1, axis=1), axis=2).mean())
    band = (2 * np.pi * edge / cutoff_mm) ** 2 / 4
    if band >= 2.0:
        return mesh
    filter_ = vtkWindowedSincPolyDataFilter()
    filter_.SetInputData(_vtk.polydata(mesh.vertices, mesh.faces))
    filter_.SetNumberOfIterations(iterations)
    filter_.SetPassBand(max(band, 1e-4))
    filter_.NormalizeCoordinatesOn()
    filter_.FeatureEdgeSmoothingOff()
    filter_.BoundarySmoothingOff()
    filter_.NonManifoldSmoothingOff()
    filter_.Update()
    vertices, faces = _vtk.arrays(filter_.GetOutput())
    vertices, shift = keep_volume(vertices, faces, volume(mesh.vertices, mesh.faces))
    out = replace(mesh, vertices=vertices, faces=faces)
    moved = deviation(out, mesh)
    text = f"{mesh.name or 'mesh'} was smoothed at {cutoff_mm:g} mm; the surface moved by {moved['mean_mm']:.3f} mm on average"
    details = {"cutoff_mm": cutoff_mm, "shift_mm": shift, **moved}
    return apart(mesh, out.with_findings([Finding("smoothed", text, "info", details)]))
