"""DICOM SEG (binary, fractional, labelmap; PS3.3 A.51) → `Segmentation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.errors import GeometryError, InputError
from slice3d.findings import Finding
from slice3d.io.dicom.codecs import is_panic
from slice3d.io.dicom.discovery import discover
from slice3d.io.dicom.elements import Elements
from slice3d.io.dicom.geometry import POSITION_TOLERANCE_MM, Layout
from slice3d.io.dicom.header import Header
from slice3d.io.dicom.planes import Target, measure, own_target, place, reference_target
from slice3d.io.dicom.stored import MAX_COMPRESSION, MAX_UNCHECKED_BYTES
from slice3d.io.files import quiet
from slice3d.io.layers import combine
from slice3d.volume import Segmentation, Volume

# voxels × segments of one file that are unpacked at once
MAX_VOXELS = 2**33


def load_dicom_segmentation(
    path: Path, *, names: Mapping[int, str] | None = None, reference: Volume | None = None
) -> Segmentation:
    """The one SEG or RTSTRUCT under a path. Raises `InputError` when there is none or more than one."""
    found = discover(path)
    hits = [h for h in found.headers if h.is_seg or h.is_rtstruct]
    if not hits and found.damaged:
        raise InputError(found.damaged[0][1])
    if len(hits) != 1:
        what = f"{len(hits)} segmentations" if hits else "no DICOM SEG or RTSTRUCT"
        raise InputError(f"{path.name} holds {what}; expected one; name the file")
    if hits[0].is_rtstruct:
        from slice3d.io.dicom.rtstruct import load_rtstruct

        return load_rtstruct(hits[0].file, reference=reference, near=path)
    return _load_seg(hits[0], names, reference)


def _load_seg(header: Header, names: Mapping[int, str] | None, reference: Volume | None) -> Segmentation:
    import pydicom

    label = header.file.name
    with header.file.open() as stream, quiet():
        try:
            dataset = pydicom.dcmread(stream, force=True)
            frames = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
            if not frames or "PixelData" not in dataset:
                raise InputError(
                    f"{label} is a DICOM SEG without frames; expected at least one segmented slice; export it again"
                )
            return _assemble(dataset, frames, names, reference, label)
        except (InputError, MemoryError):
            raise
        except BaseException as error:  # pydicom and its codecs raise whatever the damaged bytes lead them into
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise InputError(f"{label} is a damaged DICOM SEG ({type(error).__name__}); export it again") from error


@dataclass(frozen=True)
class _Geometry:
    """Where the frames lie: `place_of[n]` is the slice of `layout` that frame n belongs to."""

    layout: Layout
    place_of: NDArray[np.intp]
    declared_mm: float | None
    thickness_mm: float | None


def _assemble(
    dataset: Any, frames: list[Any], names: Mapping[int, str] | None, reference: Volume | None, label: str
) -> Segmentation:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    kind = str(dataset.get("SegmentationType", ""))
    pixels = _pixels(dataset, len(frames), label)
    geometry = _geometry(frames, shared, pixels.shape[1:], label)
    findings: list[Finding] = []
    target = (
        own_target(
            geometry.layout, label, findings, declared_mm=geometry.declared_mm, thickness_mm=geometry.thickness_mm
        )
        if reference is None
        else reference_target(reference, geometry.layout)
    )
    if reference is None:
        target = _with_left_out_ends(dataset, target, len(geometry.layout.distances), findings)
    titles = {int(s.SegmentNumber): _title(s) for s in dataset.SegmentSequence}
    titles.pop(0, None)
    if names:
        titles = {key: str(names.get(key, title)) for key, title in titles.items()}
    if not titles:
        raise InputError(f"{label} describes no segment; expected at least one; export it again")
    if kind == "LABELMAP":
        labels = _put(pixels, np.arange(len(frames)), geometry, target)
        return combine([(t, labels == n) for n, t in sorted(titles.items())], target.grid, findings=findings)
    return _segments(dataset, frames, shared, pixels, geometry, target, titles, findings, label)


def _with_left_out_ends(dataset: Any, target: Target, stored: int, findings: list[Finding]) -> Target:
    """One more slice at both ends where slices without labels were left out of the file, as most writers do.

    Without them everything would seem to reach the border of the scan.
    """
    series = list(dataset.get("ReferencedSeriesSequence") or [])
    images = sum(len(item.get("ReferencedInstanceSequence") or []) for item in series)
    if images <= stored:
        return target
    message = (
        f"The segmentation stores {stored} of the {images} slices of its study; empty ones were left out. "
        "Give the images as reference to have them all."
    )
    findings.append(Finding("empty-slices-left-out", message, "info", {"stored": stored, "images": images}))
    i, j, k = target.grid.shape
    return replace(target, grid=target.grid.crop((0, 0, -1), (i, j, k + 1)))


def _segments(
    dataset: Any, frames: list[Any], shared: Any, pixels: NDArray[Any], geometry: _Geometry, target: Target,
    titles: dict[int, str], findings: list[Finding], label: str,
) -> Segmentation:  # fmt: skip
    fractional = str(dataset.SegmentationType) == "FRACTIONAL"
    owner = np.array([_segment_number(frame, shared, label) for frame in frames])
    if int(np.prod(target.grid.shape, dtype=float)) * len(titles) > MAX_VOXELS:
        raise InputError(
            f"{label} holds {len(titles)} segments on {target.grid.shape} voxels; expected fewer; split it"
        )
    unknown = sorted({int(n) for n in owner} - set(titles))
    if unknown:
        raise InputError(f"{label} has frames of segment {unknown[0]} that it does not describe; export it again")
    maximum = float(dataset.get("MaximumFractionalValue") or 255)
    masks: list[tuple[str, NDArray[np.bool_]]] = []
    fields: dict[str, NDArray[Any]] = {}
    for segment, title in sorted(titles.items()):
        mine = np.flatnonzero(owner == segment)
        values = _put(pixels, mine, geometry, target) if len(mine) else np.zeros(target.grid.shape, np.uint8, order="F")
        if fractional:
            fields[title] = (values / np.float32(maximum)).astype(np.float32)
            masks.append((title, fields[title] >= 0.5))
        else:
            masks.append((title, values > 0))
    out = combine(masks, target.grid, findings=findings)
    return replace(out, probabilities=fields) if fractional else out


def _put(pixels: NDArray[Any], which: NDArray[np.intp], geometry: _Geometry, target: Target) -> NDArray[Any]:
    planes = {int(geometry.place_of[n]): pixels[n] for n in which}
    return place(planes, geometry.layout, target)


def _group(frame: Any, shared: Any, keyword: str, label: str) -> Any:
    for holder in (frame, shared):
        if holder is not None and holder.get(keyword):
            return holder.get(keyword)[0]
    raise InputError(f"{label} lacks {keyword}; expected it for every frame; export it again")


def _segment_number(frame: Any, shared: Any, label: str) -> int:
    return int(_group(frame, shared, "SegmentIdentificationSequence", label).ReferencedSegmentNumber)


def _geometry(frames: list[Any], shared: Any, shape: tuple[int, ...], label: str) -> _Geometry:
    orientations = {
        Elements(_group(f, shared, "PlaneOrientationSequence", label)).numbers("ImageOrientationPatient", 6)
        for f in frames
    }
    measures = Elements(_group(frames[0], shared, "PixelMeasuresSequence", label))
    spacing = measures.numbers("PixelSpacing", 2)
    positions = [
        Elements(_group(f, shared, "PlanePositionSequence", label)).numbers("ImagePositionPatient", 3) for f in frames
    ]
    orientation = next(iter(orientations))
    if spacing is None or orientation is None or any(p is None for p in positions):
        raise GeometryError(
            f"{label} has frames without a usable position; expected finite millimetres; export it again"
        )
    if len(orientations) > 1:
        raise GeometryError(f"{label} has frames in {len(orientations)} orientations; expected one; export it again")
    thickness = measures.number("SpacingBetweenSlices") or measures.number("SliceThickness") or 1.0
    origins = np.array(positions, dtype=np.float64)
    layout = measure(origins, orientation, (spacing[0], spacing[1]), (shape[0], shape[1]), abs(thickness), label)
    depths = origins @ layout.normal
    places = np.clip(np.searchsorted(layout.distances, depths - POSITION_TOLERANCE_MM), 0, len(layout.distances) - 1)
    return _Geometry(layout, places, measures.number("SpacingBetweenSlices"), measures.number("SliceThickness"))


def _pixels(dataset: Any, count: int, label: str) -> NDArray[Any]:
    """(frames, rows, columns), after checking that the file holds as many as it says."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    bits = int(dataset.BitsAllocated)
    frames = int(dataset.get("NumberOfFrames") or 1)
    native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    if frames != count or (native and len(dataset.PixelData) * 8 < rows * columns * bits * frames):
        raise InputError(f"{label} is truncated: it describes {count} frames and does not hold them; copy it again")
    if not native and rows * columns * frames > max(MAX_UNCHECKED_BYTES, MAX_COMPRESSION * len(dataset.PixelData)):
        raise InputError(f"{label} promises {frames} frames of {rows}×{columns} in a small file; is it damaged?")
    if rows * columns * frames > MAX_VOXELS:
        raise InputError(f"{label} claims {frames} frames of {rows}×{columns}; expected fewer; is it damaged?")
    values = np.asarray(dataset.pixel_array)
    return values if values.ndim == 3 else values[None]


def _title(segment: Any) -> str:
    return anatomy.canonical(str(segment.get("SegmentLabel") or f"segment_{segment.SegmentNumber}"))
