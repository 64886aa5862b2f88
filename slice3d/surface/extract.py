"""Label maps and probabilities to surfaces: what `slice3d.surface` and `slice3d.surfaces` do."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from slice3d import anatomy
from slice3d.findings import Finding
from slice3d.mesh import Mesh
from slice3d.progress import Progress, silent
from slice3d.surface.contour import contour, keep_volume, snap
from slice3d.surface.implicit import Field, implicit
from slice3d.surface.region import crop, cut_finding
from slice3d.surface.settings import SurfaceSettings
from slice3d.volume import Segmentation

log = logging.getLogger(__name__)


def surface(
    segmentation: Segmentation,
    structure: str,
    *,
    settings: SurfaceSettings | None = None,
    progress: Progress = silent,
) -> Mesh:
    """The surface of one structure in world RAS mm, closed, faces outwards.

    A structure without voxels gives an empty mesh with the finding `empty-structure`.
    Raises `InputError` for a name the segmentation does not hold and for probabilities outside 0…1.
    """
    settings = settings or SurfaceSettings()
    progress(f"surface of {structure}", 0.0)
    color = anatomy.color(structure)
    region = crop(segmentation, structure, use_probabilities=settings.use_probabilities)
    if region is None:
        return empty(structure)
    field = implicit(region, settings)
    field = Field(snap(field.values), field.factors, field.volume_mm3)
    progress(f"surface of {structure}", 0.5)
    vertices, faces = contour(field, region.grid)
    shift = 0.0
    if settings.keep_volume and field.volume_mm3 is not None:
        vertices, shift = keep_volume(vertices, faces, field.volume_mm3)
    found = cut_finding(structure, region)
    progress(f"surface of {structure}", 1.0)
    return Mesh(
        vertices,
        faces,
        name=structure,
        color=color,
        findings=(found,) if found else (),
        metadata={"voxel_volume_ml": None if field.volume_mm3 is None else field.volume_mm3 / 1000.0, "volume_shift_mm": shift},
    )


def surfaces(
    segmentation: Segmentation,
    *,
    structures: Sequence[str] | None = None,
    settings: SurfaceSettings | None = None,
    progress: Progress = silent,
) -> dict[str, Mesh]:
    """The surfaces of several structures (default: all) by name."""
    names = list(structures if structures is not None else segmentation.structures)
    return {name: surface(segmentation, name, settings=settings, progress=progress) for name in names}


def empty(structure: str) -> Mesh:
    """An empty mesh that says so."""
    finding = Finding(
        "empty-structure", f"{structure} has no voxels in this segmentation; its surface is empty", "warning"
    )
    return Mesh(
        np.zeros((0, 3)),
        np.zeros((0, 3), dtype=np.int64),
        name=structure,
        color=anatomy.color(structure),
        findings=(finding,),
    )
