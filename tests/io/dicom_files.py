"""DICOM series written by pydicom for the tests: plain, on purpose odd, or compressed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"


def ds(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return str(format_number_as_ds(round(float(value), 12)))


LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    """Rotation by three angles in radians about x, y, z."""
    a, b, c = angles
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def oblique(
    spacing_mm: tuple[float, float, float] = (0.7, 1.3, 4.0),
    angles: tuple[float, float, float] = (0.2, -0.3, 0.4),
    origin_mm: tuple[float, float, float] = (-31.0, 17.0, 240.0),
) -> NDArray[np.float64]:
    """A right-handed RAS affine whose DICOM slices run along the normal, as an acquisition's do."""
    affine = np.eye(4)
    affine[:3, :3] = LPS[:3, :3] @ rotation(angles) @ np.diag(spacing_mm)
    affine[:3, 3] = origin_mm
    return affine


def asymmetric(shape: tuple[int, int, int] = (9, 7, 5), seed: int = 0) -> NDArray[np.int16]:
    """Integers without any symmetry, (i, j, k)."""
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


def image(
    pixels: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    series: str,
    study: str,
    number: int = 1,
    slope: float | None = 1.0,
    intercept: float = -1024.0,
    modality: str = "CT",
    syntax: str = ExplicitVRLittleEndian,
    extra: Mapping[str, Any] | None = None,
) -> Dataset:
    """One file. pixels: stored values (rows, columns). affine: RAS of (column, row, 0)."""
    lps = LPS @ affine
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    out = Dataset()
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = syntax
    out.SOPClassUID = CT if modality == "CT" else MR
    out.SOPInstanceUID = generate_uid()
    out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
    out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    out.StudyInstanceUID, out.SeriesInstanceUID = study, series
    out.FrameOfReferenceUID = generate_uid(entropy_srcs=[study, "frame"])
    out.PatientName, out.PatientID, out.PatientBirthDate, out.PatientSex = "Secret^Person", "ID-12345", "19700102", "O"
    out.StudyDate, out.StudyTime, out.StudyID, out.AccessionNumber = "20200102", "101112", "1", ""
    out.ReferringPhysicianName, out.Manufacturer = "", "ACME"
    out.PositionReferenceIndicator = ""
    out.Modality, out.SeriesNumber, out.InstanceNumber = modality, 1, number
    out.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    out.ImagePositionPatient = [ds(x) for x in lps[:3, 3]]
    out.ImageOrientationPatient = [ds(x) for x in (*(lps[:3, 0] / lengths[0]), *(lps[:3, 1] / lengths[1]))]
    out.PixelSpacing = [ds(lengths[1]), ds(lengths[0])]
    out.SliceThickness = ds(lengths[2])
    if slope is not None:
        out.RescaleSlope, out.RescaleIntercept = slope, intercept
    out.Rows, out.Columns = pixels.shape
    out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
    out.BitsAllocated = out.BitsStored = pixels.dtype.itemsize * 8
    out.HighBit = out.BitsStored - 1
    out.PixelRepresentation = int(pixels.dtype.kind == "i")
    out.PixelData = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"))).tobytes()
    for keyword, value in (extra or {}).items():
        setattr(out, keyword, value)
    return out


def slice_affine(affine: NDArray[np.float64], k: float) -> NDArray[np.float64]:
    """The affine of slice k of a volume."""
    out = affine.copy()
    out[:3, 3] += affine[:3, 2] * k
    return out


def series(
    data: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    at: NDArray[Any] | None = None,
    stored: Any = np.uint16,
    **options: Any,
) -> list[Dataset]:
    """A series holding `data` (i, j, k) in HU on `affine`; `at` gives slice places in units of the third axis."""
    uids = {
        "series": options.pop("series", None) or generate_uid(),
        "study": options.pop("study", None) or generate_uid(),
    }
    places = np.arange(data.shape[2]) if at is None else at
    intercept = options.get("intercept", -1024.0) if options.get("slope", 1.0) is not None else 0.0
    return [
        image(
            (data[:, :, k].T - intercept).astype(stored), slice_affine(affine, place), number=k + 1, **uids, **options
        )
        for k, place in enumerate(places)
    ]


def write(datasets: list[Dataset], folder: Path, *, shuffle: int | None = None) -> Path:
    """Save under names without extension, in an order that says nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.arange(len(datasets)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(datasets))
    for n, index in enumerate(order):
        dataset = datasets[index]
        little = dataset.file_meta.TransferSyntaxUID != pydicom.uid.ExplicitVRBigEndian
        implicit = dataset.file_meta.TransferSyntaxUID == pydicom.uid.ImplicitVRLittleEndian
        pydicom.dcmwrite(
            folder / f"IM{n:04d}", dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True
        )
    return folder


def enhanced(
    data: NDArray[Any], affine: NDArray[np.float64], *, modality: str = "CT", groups: list[dict[str, Any]] | None = None
) -> Dataset:
    """An enhanced multi-frame file of `data` (i, j, k) in HU; `groups[k]` adds per-frame sequences (keyword → item)."""
    first = series(data, affine)[0]
    out = image(
        (data[:, :, 0].T + 1024).astype(np.uint16), affine, series=first.SeriesInstanceUID, study=first.StudyInstanceUID
    )
    out.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1" if modality == "CT" else "1.2.840.10008.5.1.4.1.1.4.1"
    out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
    out.Modality = modality
    out.NumberOfFrames = data.shape[2]
    shared = Dataset()
    measures, orientation, transform = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = out.PixelSpacing, out.SliceThickness
    orientation.ImageOrientationPatient = out.ImageOrientationPatient
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [transform]
    out.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in range(data.shape[2]):
        frame, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [ds(x) for x in (LPS @ slice_affine(affine, k))[:3, 3]]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", k + 1, [1, k + 1]
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        for keyword, item in (groups[k] if groups else {}).items():
            setattr(frame, keyword, [item])
        frames.append(frame)
    out.PerFrameFunctionalGroupsSequence = frames
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(out, keyword)
    out.PixelData = np.ascontiguousarray((data + 1024).astype("<u2").transpose(2, 1, 0)).tobytes()
    return out
