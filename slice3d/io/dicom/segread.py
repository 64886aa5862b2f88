"""DICOM SEG and RTSTRUCT → `Segmentation`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.errors import GeometryError, InputError
from slice3d.io.dicom.discovery import discover
from slice3d.io.dicom.geometry import POSITION_TOLERANCE_MM, axes, to_ras
from slice3d.io.dicom.header import Header
from slice3d.io.segnrrd import combine
from slice3d.volume import Segmentation, Volume


def load_dicom_segmentation(path: Path, *, names: Mapping[int, str] | None = None, reference: Volume | None = None) -> Segmentation:
    """The one SEG or RTSTRUCT under a path. Raises `InputError` when there is none or more than one."""
    found = discover(path)
    hits = [h for h in found.headers if h.modality in ("SEG", "RTSTRUCT") or h.sop_class in (SEG_CLASSES | {RTSTRUCT_CLASS})]
    if not hits and found.damaged:
        raise InputError(found.damaged[0][1])
    if len(hits) != 1:
        what = f"{len(hits)} segmentations" if hits else "no DICOM SEG or RTSTRUCT"
        raise InputError(f"{path.name} holds {what}; expected one; name the file")
    header = hits[0]
    if header.modality == "RTSTRUCT" or header.sop_class == RTSTRUCT_CLASS:
        from slice3d.io.dicom.rtstruct import load_rtstruct

        return load_rtstruct(header.file, reference=reference)
    return _load_seg(header, names)


SEG_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"


def _load_seg(header: Header, names: Mapping[int, str] | None) -> Segmentation:
    import pydicom

    label = header.file.name
    with header.file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(stream)
            segments = list(dataset.SegmentSequence)
            frames = list(dataset.get("PerFrameFunctionalGroupsSequence", []))
        except Exception as error:
            raise InputError(f"{label} is a damaged DICOM SEG ({type(error).__name__}); export it again") from error
        if not frames or "PixelData" not in dataset:
            raise InputError(f"{label} is a DICOM SEG without frames; expected at least one segmented slice; export it again")
        try:
            pixels = _pixels(dataset)
        except Exception as error:
            raise InputError(f"{label} holds damaged pixels ({type(error).__name__}); export it again") from error
    try:
        return _assemble(dataset, segments, frames, pixels, names, label)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{label} lacks what a DICOM SEG must have ({error}); export it again") from error


def _pixels(dataset: Any) -> NDArray[Any]:
    values = np.asarray(dataset.pixel_array)
    return values if values.ndim == 3 else values[None]


def _assemble(
    dataset: Any, segments: list[Any], frames: list[Any], pixels: NDArray[Any], names: Mapping[int, str] | None, label: str
) -> Segmentation:
    shared = dataset.SharedFunctionalGroupsSequence[0] if dataset.get("SharedFunctionalGroupsSequence") else None

    def group(frame: Any, keyword: str) -> Any:
        for holder in (frame, shared):
            if holder is not None and holder.get(keyword):
                return holder.get(keyword)[0]
        raise InputError(f"{label} lacks {keyword}; expected it in every frame; export it again")

    orientation = tuple(float(x) for x in group(frames[0], "PlaneOrientationSequence").ImageOrientationPatient)
    measures = group(frames[0], "PixelMeasuresSequence")
    spacing = [float(x) for x in measures.PixelSpacing]
    row, column, normal = axes(orientation, label)
    positions = np.array([[float(x) for x in group(f, "PlanePositionSequence").ImagePositionPatient] for f in frames])
    if not np.isfinite(positions).all() or min(spacing) <= 0 or not np.isfinite(spacing).all():
        raise GeometryError(f"{label} holds NaN positions or a spacing of {spacing} mm; expected finite millimetres; export it again")
    depths = positions @ normal
    step, places, count = _lattice(depths, measures, label)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * spacing[1], column * spacing[0], normal * step
    affine[:3, 3] = positions[int(np.argmin(depths))]
    from slice3d.grid import Grid

    grid = Grid((pixels.shape[2], pixels.shape[1], count), to_ras(affine))
    kind = str(dataset.SegmentationType)
    titles = {int(s.SegmentNumber): _name(s) for s in segments}
    if names:
        titles = {number: names.get(number, title) for number, title in titles.items()}
    if kind == "LABELMAP":
        labels = np.zeros(grid.shape, dtype=np.uint16, order="F")
        for place, plane in zip(places, pixels, strict=True):
            labels[:, :, place] = plane.T
        titles.pop(0, None)
        masks = [(title, labels == number) for number, title in sorted(titles.items())]
        return combine(masks, grid, findings=[])
    numbers = [int(group(f, "SegmentIdentificationSequence").ReferencedSegmentNumber) for f in frames]
    maximum = float(dataset.get("MaximumFractionalValue", 255)) if kind == "FRACTIONAL" else 1.0
    fields: dict[int, NDArray[Any]] = {n: np.zeros(grid.shape, dtype=np.float32 if maximum != 1 else np.bool_) for n in titles}
    for number, place, plane in zip(numbers, places, pixels, strict=True):
        fields[number][:, :, place] = plane.T / np.float32(maximum) if maximum != 1 else plane.T > 0
    masks = [(titles[n], f >= 0.5 if maximum != 1 else f) for n, f in sorted(fields.items())]
    out = combine(masks, grid, findings=[])
    if maximum == 1:
        return out
    from dataclasses import replace

    return replace(out, probabilities={titles[n]: f for n, f in fields.items()})


def _lattice(depths: NDArray[np.float64], measures: Any, label: str) -> tuple[float, NDArray[np.int_], int]:
    unique = np.unique(np.round(depths / POSITION_TOLERANCE_MM).astype(int)) * POSITION_TOLERANCE_MM
    if len(unique) == 1:
        step = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0)
        return step, np.zeros(len(depths), dtype=int), 1
    gaps = np.diff(unique)
    step = float(gaps.min())
    # empty slices are left out of SEG files, so gaps may be any multiple of the distance
    step = float(np.mean(gaps / np.round(gaps / step)))
    places = np.round((depths - depths.min()) / step).astype(int)
    if np.abs((depths - depths.min()) - places * step).max() > 0.1 * step:
        raise GeometryError(f"{label} has slices {gaps.min():.3g} to {gaps.max():.3g} mm apart; expected one distance")
    return step, places, int(places.max()) + 1


def _name(segment: Any) -> str:
    title = str(segment.get("SegmentLabel") or f"segment_{segment.SegmentNumber}")
    return anatomy.canonical(title)
