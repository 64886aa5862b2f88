"""Label maps and probabilities to surfaces: what `slice3d.surface` and `slice3d.surfaces` do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.findings import Finding
from slice3d.mesh import Mesh
from slice3d.progress import Progress, silent
from slice3d.surface.contour import STEADY, contour_mask, shift_to_volume
from slice3d.surface.implicit import cutoff_mm, implicit, refinement
from slice3d.surface.level import levelled
from slice3d.surface.region import Region, crop, cut_finding, cut_sides
from slice3d.surface.settings import SurfaceSettings
from slice3d.volume import Segmentation


def surface(
    segmentation: Segmentation,
    structure: str,
    *,
    settings: SurfaceSettings | None = None,
    progress: Progress = silent,
) -> Mesh:
    """The surface of one structure in world RAS mm: closed, 2-manifold, faces outwards.

    From the structure's probability map where there is one, else from its labels. A structure without voxels gives an
    empty mesh with the finding `empty-structure`; one at the border of the scan is closed there with a finding.
    `metadata` holds `voxel_volume_ml`, `volume_shift_mm` (of the surface outwards, to keep the volume) and `cutoff_mm`.
    Raises `InputError` for a name the segmentation does not hold, and for probabilities that are NaN or outside 0…1.
    """
    settings = settings or SurfaceSettings()
    stage = f"surface of {structure}"
    progress(stage, 0.0)
    region = crop(segmentation, structure, use_probabilities=settings.use_probabilities)
    if region is None:
        return empty(structure)
    cutoff = cutoff_mm(region.grid, settings)
    even = refinement(region.grid, settings.resolution_mm).max() == 1
    filtered = region.probability is None and even
    voxels_mm3 = _voxel_volume(region)
    shift, most_mm = math.inf, STEADY * min(region.grid.spacing_mm)
    if filtered and cutoff > 0 and not region.cut:
        vertices, faces = contour_mask(region.mask, region.grid, cutoff)
        shift = 0.0
        if settings.keep_volume:
            shift = shift_to_volume(vertices, faces, voxels_mm3, most_mm=most_mm)
    if abs(shift) > most_mm:
        field = implicit(region, settings)
        progress(stage, 0.6)
        target = field.volume_mm3 if settings.keep_volume else None
        (vertices, faces), shift = levelled(field, region, target, hold=filtered and cutoff > 0)
        del field  # the largest array; what follows needs room of its own
    metadata = {
        "voxel_volume_ml": voxels_mm3 / 1000.0,
        "volume_shift_mm": shift,
        # probabilities and thick slices are not filtered
        "cutoff_mm": cutoff if filtered else None,
        "source": "labels" if region.probability is None else "probability",
    }
    finding = cut_finding(structure, region.cut, region.grid)
    del region
    mesh = _finish(structure, vertices, faces, settings, finding, metadata)
    progress(stage, 1.0)
    return mesh


def surfaces(
    segmentation: Segmentation,
    *,
    structures: Sequence[str] | None = None,
    settings: SurfaceSettings | None = None,
    progress: Progress = silent,
) -> dict[str, Mesh]:
    """The surfaces of several structures, by name (default: every label; groups such as `lungs` only when asked for).

    Plain labels are done in one pass and share their interfaces: neighbours meet without gap or overlap. Groups,
    structures with a probability map, and everything when `settings.shared_interfaces` is off, are done one by one.
    """
    settings = settings or SurfaceSettings()
    every = [segmentation.names[value] for value in sorted(segmentation.names)]
    names = list(dict.fromkeys(every if structures is None else structures))
    plain = {name: segmentation.values(name)[0] for name in names if _is_plain(segmentation, name, settings)}
    together = _together(segmentation, plain, settings, progress) if len(plain) > 1 else {}
    out = {}
    for name in names:
        out[name] = (
            together[name] if name in together else surface(segmentation, name, settings=settings, progress=progress)
        )
    return out


def _is_plain(segmentation: Segmentation, name: str, settings: SurfaceSettings) -> bool:
    values = segmentation.values(name)
    mapped = settings.use_probabilities and name in segmentation.probabilities
    return settings.shared_interfaces and len(values) == 1 and name not in segmentation.groups and not mapped


def _together(
    segmentation: Segmentation, plain: Mapping[str, int], settings: SurfaceSettings, progress: Progress
) -> dict[str, Mesh]:
    from slice3d.surface.multilabel import network

    net = network(segmentation, sorted(plain.values()), smoothing_mm=settings.smoothing_mm, progress=progress)
    if net is None:
        return {name: empty(name) for name in plain}
    # ravel in memory order: counting needs no particular one, and a Fortran-ordered map would be copied otherwise
    flat = segmentation.labels.ravel(order="K")
    count = np.bincount(flat[flat > 0], minlength=max(plain.values()) + 1)
    sides = cut_sides(segmentation.labels)
    out = {}
    for n, (name, value) in enumerate(plain.items()):
        progress("shared surfaces", 0.8 + 0.2 * n / len(plain))
        if not count[value]:
            out[name] = empty(name)
            continue
        vertices, faces = net.part(value)
        milliliters = float(count[value]) * segmentation.grid.voxel_volume_mm3 / 1000.0
        metadata = {"voxel_volume_ml": milliliters, "source": "labels", "shared_interfaces": True}
        out[name] = _finish(
            name, vertices, faces, settings, cut_finding(name, sides.get(value, ()), segmentation.grid), metadata
        )
    progress("shared surfaces", 1.0)
    return out


def _finish(
    name: str,
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    settings: SurfaceSettings,
    finding: Finding | None,
    metadata: Mapping[str, Any],
) -> Mesh:
    """Small parts removed and triangles reduced, as asked for, with what that cost as findings."""
    from slice3d.surface.decimate import decimate
    from slice3d.surface.repair import remove_small

    findings = [finding] if finding else []
    vertices.flags.writeable = faces.flags.writeable = False
    if settings.min_fragment_mm3 or settings.min_cavity_mm3:
        vertices, faces, fragments, cavities = remove_small(
            vertices, faces, fragment_mm3=settings.min_fragment_mm3, cavity_mm3=settings.min_cavity_mm3
        )
        for what, gone in (("fragments", fragments), ("cavities", cavities)):
            if gone:
                text = f"{name}: {len(gone)} {what} of {sum(gone):.0f} mm³ in all were removed"
                findings.append(
                    Finding(f"small-{what}-removed", text, "info", {"volumes_mm3": [round(v, 2) for v in gone]})
                )
    mesh = Mesh(
        vertices, faces, name=name, color=anatomy.color(name), findings=tuple(findings), metadata=dict(metadata)
    )
    if settings.target_triangles is not None or settings.max_error_mm is not None:
        mesh = decimate(mesh, target_triangles=settings.target_triangles, max_error_mm=settings.max_error_mm)
    return mesh


def _voxel_volume(region: Region) -> float:
    values = region.mask if region.probability is None else region.probability
    return float(values[region.scanned()].sum(dtype=np.float64)) * region.grid.voxel_volume_mm3


def empty(structure: str) -> Mesh:
    """An empty mesh that says so."""
    text = f"{structure} has no voxels in this segmentation; its surface is empty"
    finding = Finding("empty-structure", text, details={"structure": structure})
    none = np.zeros((0, 3), dtype=np.int64)
    return Mesh(np.zeros((0, 3)), none, name=structure, color=anatomy.color(structure), findings=(finding,))
