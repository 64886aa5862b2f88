"""RTSTRUCT (contours drawn on slices, PS3.3 C.8.8.6) → voxels of the volume they were drawn on."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.errors import GeometryError, InputError, Slice3DError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.io.dicom.geometry import LPS_TO_RAS, POSITION_TOLERANCE_MM
from slice3d.io.dicom.source import DicomSource
from slice3d.io.files import FileRef, quiet
from slice3d.io.layers import combine
from slice3d.volume import Segmentation, Volume

MAX_POINTS = 50_000_000
# contours may be drawn on every third slice only; what lies further apart is not one piece
MAX_SKIPPED = 3.5


def load_rtstruct(file: FileRef, *, reference: Volume | None, near: Path) -> Segmentation:
    """Fill the closed contours on the grid of `reference`, or of the series they refer to when it lies beside the file.

    A voxel belongs to a structure when its centre lies inside an odd number of the contours of its slice.
    """
    dataset = _read(file)
    if reference is None:
        reference = _referenced(dataset, near, file.name)
    grid = reference.grid
    slice_mm = _slice_distance(reference)
    findings: list[Finding] = []
    masks: list[tuple[str, NDArray[np.bool_]]] = []
    for name, contours, skipped in _drawn(dataset, file.name):
        if skipped:
            message = f"{skipped} contours of {name} are points or open lines and were left out."
            findings.append(Finding("open-contours", message, "warning", {"structure": name, "contours": skipped}))
        if contours:
            masks.append((name, _fill(contours, grid, name, slice_mm)))
        elif not skipped:
            masks.append((name, np.broadcast_to(np.False_, grid.shape)))  # listed and not drawn: there, and empty
    if not any(mask.any() for _, mask in masks):
        raise InputError(f"{file.name} holds no closed contour; expected at least one drawn structure; export it again")
    return combine(masks, grid, findings=findings)


def _read(file: FileRef) -> Any:
    import pydicom

    with file.open() as stream, quiet():
        try:
            dataset = pydicom.dcmread(stream, force=True)
            if not dataset.get("StructureSetROISequence"):
                raise InputError(f"{file.name} lists no structure; expected an RTSTRUCT with contours; export it again")
            return dataset
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{file.name} is a damaged RTSTRUCT ({type(error).__name__}); export it again") from error


def _drawn(dataset: Any, label: str) -> list[tuple[str, list[NDArray[np.float64]], int]]:
    """(name, contours, how many of them are not closed) of every structure."""
    try:
        titles = {
            int(r.ROINumber): anatomy.canonical(str(r.get("ROIName") or f"roi_{r.ROINumber}"))
            for r in dataset.StructureSetROISequence
        }
        out = []
        for roi in dataset.get("ROIContourSequence") or []:
            name = titles.get(int(roi.ReferencedROINumber), f"roi_{roi.ReferencedROINumber}")
            out.append((name, *_contours(roi, label)))
        return out
    except (InputError, MemoryError):
        raise
    except Exception as error:  # pydicom raises whatever the damaged bytes lead it into
        raise InputError(f"{label} is a damaged RTSTRUCT ({type(error).__name__}); export it again") from error


def _slice_distance(reference: Volume) -> float:
    """mm between neighbouring slices that somebody could draw on: the acquired ones where they are known."""
    source = reference.source
    if isinstance(source, DicomSource) and len(source.slices) > 1:
        origins = np.array([item.affine[:3, 3] for item in source.slices])
        normal = source.slices[0].affine[:3, 2] / np.linalg.norm(source.slices[0].affine[:3, 2])
        return float(np.median(np.abs(np.diff(origins @ normal))))
    return reference.grid.spacing_mm[2]


def _referenced(dataset: Any, near: Path, label: str) -> Volume:
    from slice3d.io.dicom.read import load_dicom
    from slice3d.io.settings import LoadSettings

    wanted = []
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            wanted += [str(s.SeriesInstanceUID) for s in study.get("RTReferencedSeriesSequence") or []]
    folder = near if near.is_dir() else near.parent
    for series in wanted:
        try:
            return load_dicom(folder, LoadSettings(series=series))
        except Slice3DError:
            continue
    raise InputError(
        f"{label} holds contours but no voxels, and the images it refers to are not beside it; give them too: "
        "--study FOLDER at the shell, reference=volume in Python"
    )


def _contours(roi: Any, label: str) -> tuple[list[NDArray[np.float64]], int]:
    """Closed contours as (N, 3) RAS mm, and how many were not closed."""
    out, skipped = [], 0
    for contour in roi.get("ContourSequence") or []:
        if "CLOSED" not in str(contour.get("ContourGeometricType", "CLOSED_PLANAR")):
            skipped += 1
            continue
        try:
            points = np.array([float(x) for x in contour.ContourData], dtype=np.float64).reshape(-1, 3)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{label} holds a damaged contour; expected x, y, z for each point; export it again"
            ) from error
        if not np.isfinite(points).all() or len(points) > MAX_POINTS:
            raise GeometryError(
                f"{label} holds a contour with NaN or infinite points; expected millimetres; export it again"
            )
        if len(points) < 3:
            skipped += 1
            continue
        out.append(points @ LPS_TO_RAS[:3, :3].T)
    return out, skipped


def _fill(contours: list[NDArray[np.float64]], grid: Grid, name: str, slice_mm: float) -> NDArray[np.bool_]:
    """Even-odd fill of contours of one plane; each voxel plane takes the contour plane that is nearest within half
    a gap. Contours further apart than every third slice are parts of their own, as thick as a slice.
    """
    import skimage.draw

    polygon: Any = skimage.draw.polygon

    planes: dict[float, list[NDArray[np.float64]]] = defaultdict(list)
    step = grid.spacing_mm[2]
    for points in contours:
        index = grid.to_index(points)
        depth = index[:, 2] * step
        if np.ptp(depth) > max(0.5, 0.1 * step):
            raise GeometryError(
                f"a contour of {name} spans {np.ptp(depth):.2f} mm across the slices of the reference; expected "
                "contours "
                "drawn on its slices; pass the series they were drawn on as reference"
            )
        middle = float(np.median(depth))
        key = next((known for known in planes if abs(known - middle) <= POSITION_TOLERANCE_MM * 5), middle)
        planes[key].append(index[:, :2])
    depths = np.array(sorted(planes))
    gaps = np.diff(depths)
    apart = float(gaps.min()) if len(gaps) else slice_mm
    reach = (apart if apart < MAX_SKIPPED * slice_mm else slice_mm) / 2 + POSITION_TOLERANCE_MM
    reach = max(reach, min(step / 2, reach * 1.01) + POSITION_TOLERANCE_MM)
    filled: dict[float, NDArray[np.bool_]] = {}
    out = np.zeros(grid.shape, dtype=np.bool_, order="F")
    for k in range(grid.shape[2]):
        nearest = float(depths[int(np.argmin(np.abs(depths - k * step)))])
        if abs(nearest - k * step) > reach:
            continue
        if nearest not in filled:
            mask = np.zeros(grid.shape[:2], dtype=np.bool_)
            for points in planes[nearest]:
                inside = polygon(points[:, 0], points[:, 1], shape=grid.shape[:2])
                mask[inside] ^= True
            filled = {nearest: mask}
        out[:, :, k] = filled[nearest]
    return out
