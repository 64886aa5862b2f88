"""Label planes in space → a label grid: what SEG files and contours have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.io.dicom.geometry import LPS_TO_RAS, POSITION_TOLERANCE_MM, Layout, layout, to_ras
from slice3d.io.dicom.source import DicomSource
from slice3d.volume import Volume

Array = NDArray[np.float64]
MAX_PLANES = 20_000


@dataclass(frozen=True)
class Target:
    """Where labels shall lie. depths: mm along the normal of every slice that exists, also those without labels."""

    grid: Grid
    depths: Array | None


def measure(
    origins: Array,
    orientation: tuple[float, ...],
    spacing: tuple[float, float],
    shape: tuple[int, int],
    step_mm: float,
    label: str,
) -> Layout:
    """The layout of planes at `origins` (N, 3) LPS, in order of depth; several may share a position."""
    from slice3d.io.dicom.geometry import axes

    normal = axes(orientation, label)[2]
    order = np.argsort(origins @ normal, kind="stable")
    origins = origins[order]
    fresh = np.concatenate([[True], np.diff(origins @ normal) > POSITION_TOLERANCE_MM])
    return layout(origins[fresh], orientation, spacing, shape, thickness_mm=step_mm, label=label)


def own_target(
    found: Layout,
    label: str,
    findings: list[Finding],
    *,
    declared_mm: float | None = None,
    thickness_mm: float | None = None,
) -> Target:
    """The lattice of the planes themselves: exact when regular, else orthogonal along the normal at the recurring
    distance.

    declared_mm: the distance of all slices as the file has it, which counts when the gaps are multiples of it: slices
    without labels are left out of files, so the planes alone may not tell. thickness_mm: of one slice, as declared.
    """
    depth = found.distances - found.distances[0]
    gaps = np.diff(depth)
    # empty slices are left out of files, so distances may be any multiple of the smallest
    step = float(gaps.min()) if len(gaps) else found.step_mm
    if len(gaps):
        step = float(np.mean(gaps / np.round(gaps / step)))
    parts = int(np.round(step / declared_mm)) if declared_mm and declared_mm > 0.01 else 1
    sparse = parts > 1 and abs(step - parts * (declared_mm or 0)) * len(depth) <= 0.1 * step
    if sparse:
        step /= parts
    elif not declared_mm:
        _note_unsure_step(step, len(depth), thickness_mm, findings)
    lattice = np.abs(depth - np.round(depth / step) * step).max() <= max(POSITION_TOLERANCE_MM, 0.02 * step)
    if not lattice:
        step = found.step_mm
    count = int(np.round(depth[-1] / step)) + 1
    if count > MAX_PLANES:
        raise GeometryError(
            f"{label} spans {depth[-1]:.0f} mm at {step:.3g} mm; expected slices that lie together; export it again"
        )
    relative = found.origins - found.origins[0]
    shift = np.stack([relative @ found.row / found.spacing[0], relative @ found.column / found.spacing[1]], axis=1)
    shift[np.abs(shift) < 1e-3] = 0.0
    start = np.floor(shift.min(axis=0))
    extra = (np.ceil(shift.max(axis=0)) - start).astype(int)
    if extra.max() > 4 * max(found.shape):
        raise GeometryError(
            f"{label} has slices shifted by {extra.max()} pixels; expected slices that lie together; export it again"
        )
    affine = np.eye(4)
    affine[:3, 0] = found.row * found.spacing[0]
    affine[:3, 1] = found.column * found.spacing[1]
    affine[:3, 2] = found.normal * step
    affine[:3, 3] = found.origins[0] + affine[:3, 0] * start[0] + affine[:3, 1] * start[1]
    if not lattice or shift.any():
        message = "The slices of the segmentation are tilted or unevenly spaced; its labels were moved to an even grid."
        findings.append(Finding("resampled", message, "warning", {"step_mm": round(step, 4)}))
    shape = (found.shape[0] + int(extra[0]), found.shape[1] + int(extra[1]), count)
    return Target(Grid(shape, to_ras(affine)), found.distances[0] + step * np.arange(count) if sparse else None)


def _note_unsure_step(step: float, count: int, thickness_mm: float | None, findings: list[Finding]) -> None:
    """Files leave out slices without labels; when nothing declares the distance of all slices it may be smaller."""
    if count > 1 and thickness_mm and step <= 1.5 * thickness_mm:
        return
    if count > 1 and not thickness_mm:
        reason = f"nothing in the file says that slices between them ({step:.4g} mm apart) were not left out"
    elif count > 1:
        reason = f"slices {step:.4g} mm apart are {thickness_mm:.4g} mm thick, so some between them may be left out"
    else:
        reason = f"there is one slice only, taken as {step:.4g} mm thick"
    message = f"The slice distance of the segmentation is a guess: {reason}; give the images as reference to be sure."
    findings.append(Finding("slice-distance-guessed", message, "warning", {"step_mm": round(step, 4)}))


def reference_target(reference: Volume, found: Layout) -> Target:
    """The grid of `reference`, and where its acquired slices lie when it knows."""
    source = reference.source
    depths = None
    if isinstance(source, DicomSource):
        origins = np.array([(LPS_TO_RAS @ item.affine)[:3, 3] for item in source.slices])
        direction = (LPS_TO_RAS @ source.slices[0].affine)[:3, 2]
        if abs(direction @ found.normal) / np.linalg.norm(direction) > 0.9999:
            depths = np.sort(origins @ found.normal)
    return Target(reference.grid, depths)


def place(planes: dict[int, NDArray[np.generic]], found: Layout, target: Target) -> NDArray[np.generic]:
    """Put planes (rows, columns), by number in `found`, on the target grid; each voxel takes the plane nearest to it.

    A voxel whose nearest acquired slice carries no plane, or that lies further from every plane than half the slice
    distance, stays 0.
    """
    first = next(iter(planes.values()))
    grid = target.grid
    out = np.zeros(grid.shape, dtype=first.dtype, order="F")
    numbers = np.array(sorted(planes))
    depths = found.distances[numbers]
    reach = _reach(found, target)
    stack = np.stack([planes[int(n)] for n in numbers])
    shifts = found.origins[numbers]
    matrix = LPS_TO_RAS @ grid.affine
    i, j = np.meshgrid(np.arange(grid.shape[0]), np.arange(grid.shape[1]), indexing="ij")
    across = np.array([found.row / found.spacing[0], found.column / found.spacing[1]])
    for k in range(grid.shape[2]):
        corner = matrix[:3, 2] * k + matrix[:3, 3]
        depth = (matrix[:3, 0] @ found.normal) * i + (matrix[:3, 1] @ found.normal) * j + corner @ found.normal
        if depth.max() < depths[0] - reach.max() or depth.min() > depths[-1] + reach.max():
            continue
        nearest = _nearest(depths, depth)
        good = np.abs(depths[nearest] - depth) <= reach[numbers[nearest]]
        if target.depths is not None:
            acquired = target.depths[_nearest(target.depths, depth)]
            good &= np.abs(acquired - depths[nearest]) <= POSITION_TOLERANCE_MM * 2
        if not good.any():
            continue
        index = []
        for axis in range(2):
            position = (matrix[:3, 0] @ across[axis]) * i + (matrix[:3, 1] @ across[axis]) * j + corner @ across[axis]
            index.append(np.floor(position - (shifts @ across[axis])[nearest] + 0.5).astype(np.intp))
        good &= (index[0] >= 0) & (index[0] < found.shape[0]) & (index[1] >= 0) & (index[1] < found.shape[1])
        out[:, :, k][good] = stack[nearest[good], index[1][good], index[0][good]]
    return out


def _nearest(sorted_values: Array, wanted: Array) -> NDArray[np.intp]:
    right = np.clip(np.searchsorted(sorted_values, wanted), 0, len(sorted_values) - 1)
    left = np.maximum(right - 1, 0)
    take_left = np.abs(sorted_values[left] - wanted) <= np.abs(sorted_values[right] - wanted)
    return np.where(take_left, left, right)


def _reach(found: Layout, target: Target) -> Array:
    """(N,) how far along the normal each plane speaks for: half the distance to its neighbours."""
    depths = found.distances if target.depths is None else target.depths
    if len(depths) == 1:
        return np.full(len(found.distances), found.step_mm / 2 + POSITION_TOLERANCE_MM)
    gaps = np.diff(depths)
    # a neighbour much further than usual is not a neighbour: the slices between were empty and left out
    if target.depths is None:
        gaps = np.where(gaps > 1.9 * gaps.min(), gaps.min(), gaps)
    half = np.maximum(np.concatenate([[gaps[0]], gaps]), np.concatenate([gaps, [gaps[-1]]])) / 2 + POSITION_TOLERANCE_MM
    if target.depths is None:
        return np.asarray(half, dtype=np.float64)
    out: Array = half[_nearest(depths, found.distances)]
    return out
