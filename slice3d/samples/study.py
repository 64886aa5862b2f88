"""The torso phantom as a CT study on disk: DICOM files, true labels, exact volumes. Same seed, same bytes."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slice3d.errors import InputError
from slice3d.io import save
from slice3d.progress import Progress, silent
from slice3d.samples.anatomy import GROUPS, NAMES
from slice3d.samples.torso import Torso, TorsoPhantom, torso
from slice3d.volume import Volume

_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
_SOURCE = (
    "Organs after Cristy & Eckerman, ORNL/TM-8381/V1 (1987), adult; heart simplified; aorta, vena cava, tumour, fat "
    "and couch added. Volumes are integrals of the equations within the field of view."
)


@dataclass(frozen=True)
class StudyPaths:
    """Where `write_study` put what: dicom (folder), truth (NIfTI label map with names), volumes (JSON)."""

    dicom: Path
    truth: Path
    volumes: Path


def write_study(
    folder: str | Path,
    phantom: TorsoPhantom | None = None,
    *,
    seed: int = 0,
    spacing_mm: tuple[float, float, float] = (2.3, 2.3, 3.0),
    noise_hu: float = 12.0,
    progress: Progress = silent,
) -> StudyPaths:
    """Write `folder`/dicom/*.dcm (CT Image Storage, JPEG-LS lossless), truth.nii.gz and truth.json.

    Raises `InputError` when `folder` exists and is not an empty folder, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder.name} exists and is not an empty folder; expected a new or empty one; pass another")
    made = torso(phantom, seed=seed, spacing_mm=spacing_mm, noise_hu=noise_hu, progress=progress)
    paths = StudyPaths(folder / "dicom", folder / "truth.nii.gz", folder / "truth.json")
    try:
        paths.dicom.mkdir(parents=True, exist_ok=True)
        _write_series(made.volume, paths.dicom, seed, progress)
        save(made.segmentation, paths.truth)
        paths.volumes.write_text(json.dumps(_truth(made, seed, noise_hu), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or "write failed"
        raise InputError(
            f"cannot write the sample study to {folder.name!r}: {reason}; choose a writable folder"
        ) from error
    return paths


def _truth(made: Torso, seed: int, noise_hu: float) -> dict[str, Any]:
    grid = made.volume.grid
    return {
        "what": "exact volumes of the sample study, ml",
        "source": _SOURCE,
        "seed": seed,
        "noise_hu": noise_hu,
        "shape": list(grid.shape),
        "spacing_mm": [round(s, 6) for s in grid.spacing_mm],
        "volumes_ml": {name: round(value, 3) for name, value in made.volumes_ml.items()},
        "relative_error_below": 2e-4,
        "labels": {name: value for value, name in NAMES.items()},
        "groups": {name: list(values) for name, values in GROUPS.items()},
        "note": "'liver' includes 'liver_tumor', 'body' includes everything; bone is cut by the lower end of the scan",
    }


def _uid(seed: int, *what: object) -> str:
    """A UUID-derived UID (DICOM PS3.5 B.2) that depends on nothing but its arguments."""
    digest = hashlib.sha256(repr(("slice3d-sample", seed, *what)).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"


def _write_series(volume: Volume, folder: Path, seed: int, progress: Progress) -> None:
    content = hashlib.sha256(np.ascontiguousarray(volume.data).tobytes() + volume.grid.affine.tobytes()).hexdigest()
    slices = volume.grid.shape[2]
    for number in range(1, slices + 1):
        # Numbered from the top, as scanners often do: a reader that trusts the numbers turns the patient over.
        k = slices - number
        dataset = _slice(volume, k, number, lambda *what: _uid(seed, content, *what))
        dataset.save_as(folder / f"IM{number:04d}.dcm", enforce_file_format=True)
        progress("DICOM", number / slices)


def _slice(volume: Volume, k: int, number: int, uid: Any) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset

    ds: Any = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = _CT_IMAGE_STORAGE
    ds.file_meta.MediaStorageSOPInstanceUID = uid("image", k)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds.file_meta.ImplementationClassUID = _uid(0, "implementation")
    ds.file_meta.ImplementationVersionName = "SLICE3D"
    ds.SOPClassUID, ds.SOPInstanceUID = _CT_IMAGE_STORAGE, uid("image", k)
    for part in (_patient_and_study(uid), _series_and_equipment(uid), _plane(volume, k)):
        ds.update(part)
    ds.InstanceNumber = number
    ds.AcquisitionNumber = 1
    _pixels(ds, volume, k)
    return ds


def _patient_and_study(uid: Any) -> dict[str, Any]:
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": "Phantom^Torso", "PatientID": "SLICE3D-PHANTOM", "PatientBirthDate": "", "PatientSex": "O",
        "StudyInstanceUID": uid("study"), "StudyDate": "20000101", "StudyTime": "120000", "StudyID": "1",
        "ReferringPhysicianName": "", "AccessionNumber": "", "StudyDescription": "Synthetic torso phantom",
        "PatientIdentityRemoved": "YES", "DeidentificationMethod": "Synthetic: there is no patient",
    }  # fmt: skip


def _series_and_equipment(uid: Any) -> dict[str, Any]:
    return {
        "Modality": "CT", "SeriesInstanceUID": uid("series"), "SeriesNumber": 2, "SeriesDate": "20000101",
        "SeriesTime": "120100", "SeriesDescription": "Abdomen portal venous 3 mm (synthetic)", "PatientPosition": "HFS",
        "FrameOfReferenceUID": uid("frame"), "PositionReferenceIndicator": "", "Manufacturer": "slice3d",
        "ManufacturerModelName": "torso phantom", "BodyPartExamined": "ABDOMEN", "ContrastBolusAgent": "synthetic",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "AcquisitionDate": "20000101", "AcquisitionTime": "120130",
        "ContentDate": "20000101", "ContentTime": "120130", "KVP": 120, "ConvolutionKernel": "SOFT",
    }  # fmt: skip


def _plane(volume: Volume, k: int) -> dict[str, Any]:
    grid = volume.grid
    # DICOM's patient axes run left, posterior, superior (PS3.3 C.7.6.2.1.1): x and y change sign.
    lps = np.array([-1.0, -1.0, 1.0])
    position = grid.to_world((0, 0, k)) * lps
    rows, columns = grid.directions[:, 0] * lps, grid.directions[:, 1] * lps
    return {
        "ImagePositionPatient": [round(float(v), 4) for v in position],
        "ImageOrientationPatient": [float(v) + 0.0 for v in (*rows, *columns)],
        "PixelSpacing": [round(grid.spacing_mm[1], 6), round(grid.spacing_mm[0], 6)],
        "SliceThickness": round(grid.spacing_mm[2], 6),
        "SpacingBetweenSlices": round(grid.spacing_mm[2], 6),
        "SliceLocation": round(float(position[2]), 4),
    }


def _pixels(ds: Any, volume: Volume, k: int) -> None:
    plane = np.ascontiguousarray(volume.data[:, :, k].T)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = plane.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = 50, 400
    stored = (plane.astype(np.int32) + 1024).astype(np.uint16)
    ds.compress(_JPEG_LS_LOSSLESS, stored, generate_instance_uid=False)
