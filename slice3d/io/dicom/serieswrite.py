"""A volume as a DICOM series (CT or MR, one file per slice), derived from the series it came from."""

from __future__ import annotations

import copy
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import slice3d
from slice3d.errors import InputError
from slice3d.io.dicom.geometry import LPS_TO_RAS
from slice3d.io.dicom.patient import repair_patient
from slice3d.io.dicom.source import DicomSource
from slice3d.io.files import quiet
from slice3d.volume import Volume

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
MIN_LEVELS = 256

# patient, study and equipment facts that a derived series shares with the one it came from
_KEPT_GROUPS = (0x0010,)
_KEPT = (
    "SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyInstanceUID",
    "StudyID", "StudyDescription", "Manufacturer", "ManufacturerModelName", "BodyPartExamined", "PatientPosition",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "KVP", "ScanningSequence", "SequenceVariant", "ScanOptions",
    "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength", "InversionTime",
    "MagneticFieldStrength", "Laterality", "PatientIdentityRemoved", "DeidentificationMethod",
)  # fmt: skip


def write_dicom_series(volume: Volume, path: Path, *, source: Volume) -> None:
    """Write a folder of CT or MR files that appears complete or not at all.

    Raises `InputError` when `source` was not loaded from DICOM, the folder holds files, or values do not fit 16 bits.
    """
    origin = source.source
    if not isinstance(origin, DicomSource):
        raise InputError(
            "the volume was not loaded from DICOM; pass source=the volume it was made from, or write .nii.gz"
        )
    modality = volume.modality or source.modality
    if modality not in ("CT", "MR"):
        raise InputError(
            f"modality is {modality or 'unknown'!r}; expected CT or MR for a DICOM series; write .nii.gz instead"
        )
    if not volume.grid.is_orthogonal:
        raise InputError("the grid is sheared, which a DICOM series of one stack cannot say; resample it first")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path.name} is a file; expected a new or empty folder for a DICOM series; choose another")
    if path.exists() and any(path.iterdir()):
        raise InputError(f"{path.name} holds files already; expected a new or empty folder; choose another")
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent.name!r} does not exist; create it first")
    staging = path.parent / f".{path.name}.{secrets.token_hex(6)}.part"
    try:
        staging.mkdir()
        _write_all(volume, origin, modality, staging)
        if path.exists():
            path.rmdir()
        staging.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path.name}: {error.strerror or error}; choose a folder you may write to"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_all(volume: Volume, origin: DicomSource, modality: str, folder: Path) -> None:
    from pydicom.uid import generate_uid

    template = _template(origin.datasets()[0], modality)
    template.SeriesInstanceUID = generate_uid()
    if "FrameOfReferenceUID" not in template:
        template.FrameOfReferenceUID = generate_uid()
    template.Columns, template.Rows = volume.grid.shape[:2]
    slope, intercept, stored = _stored(volume, modality)
    lps = LPS_TO_RAS @ volume.grid.affine
    directions = lps[:3, :3] / np.array(volume.grid.spacing_mm)
    with quiet():
        for k in range(volume.grid.shape[2]):
            dataset = copy.deepcopy(template)
            dataset.SOPInstanceUID = generate_uid()
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.InstanceNumber = k + 1
            dataset.ImagePositionPatient = [_ds(x) for x in lps[:3, 2] * k + lps[:3, 3]]
            dataset.ImageOrientationPatient = [_ds(x) for x in (*directions[:, 0], *directions[:, 1])]
            dataset.PixelSpacing = [_ds(volume.grid.spacing_mm[1]), _ds(volume.grid.spacing_mm[0])]
            dataset.SliceThickness = _ds(volume.grid.spacing_mm[2])
            dataset.SpacingBetweenSlices = _ds(volume.grid.spacing_mm[2])
            if modality == "CT":
                dataset.RescaleSlope, dataset.RescaleIntercept = _ds(slope), _ds(intercept)
                dataset.RescaleType = "HU"
            else:
                low, high = float(stored.min()), float(stored.max())
                dataset.WindowCenter, dataset.WindowWidth = _ds((low + high) / 2), _ds(max(high - low, 1))
            dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
            dataset.save_as(folder / f"{k + 1:05d}.dcm", enforce_file_format=True)


def _ds(value: float) -> str:
    from pydicom.valuerep import format_number_as_ds

    return str(format_number_as_ds(float(value)))


def _template(original: Any, modality: str) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    out = Dataset()
    for element in original:
        if element.tag.group in _KEPT_GROUPS or element.keyword in _KEPT:
            out.add(copy.deepcopy(element))
    repair_patient(out)
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
        "ReferringPhysicianName", "StudyID", "Manufacturer", "PositionReferenceIndicator", "PatientPosition",
        "Laterality",
    ):  # fmt: skip
        if keyword not in out:
            setattr(out, keyword, "")
    out.file_meta = FileMetaDataset()
    out.SOPClassUID = CT_IMAGE if modality == "CT" else MR_IMAGE
    out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.Modality = modality
    out.ImageType = ["DERIVED", "SECONDARY", "AXIAL"] if modality == "CT" else ["DERIVED", "SECONDARY", "OTHER"]
    out.SeriesDescription = "slice3d volume"
    out.SeriesNumber = 9001
    out.SoftwareVersions = f"slice3d {slice3d.__version__}"
    out.DerivationDescription = "Resampled or super-resolved by slice3d; not all voxels were measured"
    out.AcquisitionNumber = 1
    out.SamplesPerPixel = 1
    out.PhotometricInterpretation = "MONOCHROME2"
    out.BitsAllocated = out.BitsStored = 16
    out.HighBit = 15
    out.PixelRepresentation = 1
    if modality == "CT":
        for keyword in ("KVP",):
            if keyword not in out:
                setattr(out, keyword, None)
    else:
        if "IR" not in str(out.get("ScanningSequence", "")) and "InversionTime" in out:
            del out.InversionTime
        for keyword, value in (
            ("ScanningSequence", "RM"), ("SequenceVariant", "NONE"), ("ScanOptions", ""), ("MRAcquisitionType", ""),
            ("RepetitionTime", None), ("EchoTime", None), ("EchoTrainLength", None),
        ):  # fmt: skip
            if keyword not in out:
                setattr(out, keyword, value)
        if "IR" in out.ScanningSequence and "InversionTime" not in out:
            out.InversionTime = None
    return out


def _stored(volume: Volume, modality: str) -> tuple[float, float, np.ndarray]:
    values = volume.data
    low, high = float(values.min()), float(values.max())
    if low >= -32768 and high <= 32767:
        exact = values.dtype.kind in "iub"
        # MR has no rescale: whole numbers are all that a file can hold
        if modality == "MR" and not exact and high - low < MIN_LEVELS and not np.array_equal(values, np.rint(values)):
            raise InputError(
                f"values run from {low:g} to {high:g} and would be rounded to whole numbers; expected a range of at "
                f"least {MIN_LEVELS} for an MR series; write .nii.gz instead, or scale them"
            )
        return 1.0, 0.0, (values if exact else np.rint(values)).astype("<i2")
    raise InputError(
        f"values run from {low:g} to {high:g}; expected 16-bit values for a DICOM series; write .nii.gz instead"
    )
