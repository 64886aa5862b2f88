"""Identifiers planted in every attribute, file name and folder name of a study appear in nothing that is made of it."""

from __future__ import annotations

import gzip
import logging
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from slice3d.io.dicom.deidentify import Deidentifier

ROOT = Path(__file__).parents[1]
NAME, DATE, NUMBER, UID = "Zqxdoe", "19540817", "424242424", "1.2.826.0.1.777.4242"
MARKS = (b"zqxdoe", DATE.encode(), b"1954-08-17", NUMBER.encode(), UID.encode())

# Text that identifies a person, an institution, a visit or who worked on it (PS3.15 table E.1-1)
_TEXTS = (
    "PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress",
    "PatientTelephoneNumbers", "IssuerOfPatientID", "PatientComments", "AdditionalPatientHistory", "EthnicGroup",
    "Occupation", "MilitaryRank", "PatientReligiousPreference", "ResponsiblePerson", "MedicalRecordLocator",
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "DeviceSerialNumber",
    "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy",
    "RequestingPhysician", "PhysiciansOfRecord", "StudyID", "AccessionNumber", "StudyDescription", "SeriesDescription",
    "ProtocolName", "ImageComments", "RequestedProcedureDescription", "PerformedProcedureStepDescription",
    "PerformedProcedureStepID", "AdmissionID", "CurrentPatientLocation", "FillerOrderNumberImagingServiceRequest",
    "AcquisitionComments", "DerivationDescription", "ContrastBolusAgent", "FrameComments",
    "DeviceDescription", "AcquisitionDeviceProcessingDescription", "PatientState", "DetectorID",
    "CassetteID", "PlateID", "GantryID", "GeneratorID", "ClinicalTrialSubjectID", "ClinicalTrialSponsorName",
)  # fmt: skip
_DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "LastMenstrualDate")


def _slices() -> Iterator[Any]:
    """A CT of 14 slices, 18 cm wide: soft tissue in air, so that the network has little to do."""
    x, y = np.meshgrid(np.linspace(-1, 1, 20), np.linspace(-1, 1, 20))
    for n in range(14):
        dataset: Any = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{UID}.{n + 1}"
        dataset.Modality, dataset.PatientPosition, dataset.BodyPartExamined = "CT", "HFS", "ABDOMEN"
        dataset.Manufacturer, dataset.InstanceNumber, dataset.SeriesNumber = "maker", n + 1, 1
        dataset.ImageType, dataset.ConvolutionKernel, dataset.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], "SOFT", 120
        dataset.ImagePositionPatient, dataset.SliceThickness = [-90.0, -90.0, 12.0 * n], 12.0
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [9.0, 9.0]
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = -1024, 1, "HU"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        pixels = np.where(x**2 + y**2 < 0.8, 1080, 24) + (np.arange(400).reshape(20, 20) * 7919 + n * 104729) % 23
        dataset.Rows, dataset.Columns, dataset.PixelData = 20, 20, pixels.astype("<u2").tobytes()
        yield dataset


def plant(target: Path) -> Path:
    """A CT study in which whatever can identify does; file and folder names too."""
    folder = target / f"{NAME}^JANE {DATE}" / f"{NUMBER} {NAME}"
    folder.mkdir(parents=True)
    for n, dataset in enumerate(_slices()):
        for keyword in _TEXTS:
            if pydicom.datadict.tag_for_keyword(keyword) is not None:
                setattr(dataset, keyword, f"{NAME} {NUMBER}")
        for keyword in _DATES:
            setattr(dataset, keyword, DATE)
        dataset.PatientName = f"{NAME}^JANE"
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(dataset, keyword, f"{UID}.{len(keyword)}.0")
        item = Dataset()
        item.PatientID, item.PatientName = NUMBER, f"{NAME}^JANE"
        dataset.OtherPatientIDsSequence = dataset.RequestAttributesSequence = Sequence([item])
        dataset.private_block(0x0029, f"{NAME} HEADER", create=True).add_new(1, "LO", NAME)
        dataset.preamble = (NAME * 30).encode()[:128]
        dataset.file_meta.SourceApplicationEntityTitle = NAME
        dataset.save_as(folder / f"{NAME}_{NUMBER}_{n:03d}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("privacy"))


def _unpacked(path: Path) -> list[bytes]:
    """The bytes of a file, and what is packed inside it: gzip, zip, deflated PNG text, base64 in HTML."""
    data = path.read_bytes()
    found = [data]
    if data[:2] == b"\x1f\x8b":
        found.append(gzip.decompress(data))
    if data[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            found += [archive.read(name) for name in archive.namelist()]
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        found += _png_text(data)
    if path.suffix == ".html":
        found += _embedded(data)
    if b"encoding: gzip" in data[:4096]:
        found.append(gzip.decompress(data.partition(b"\n\n")[2]))
    return found


def _png_text(data: bytes) -> list[bytes]:
    chunks, at = [], 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        if kind in (b"zTXt", b"iTXt"):
            tail = body.split(b"\0", 2)[-1]
            for start in range(min(len(tail), 80)):
                try:
                    chunks.append(zlib.decompress(tail[start:]))
                    break
                except zlib.error:
                    continue
        at += 12 + length
    return chunks


def _embedded(data: bytes) -> list[bytes]:
    import base64
    import re

    found = []
    for match in re.finditer(rb"[A-Za-z0-9+/]{200,}={0,2}", data):
        try:
            raw = base64.b64decode(match.group())
        except ValueError:
            continue
        found.append(raw)
        if raw[:2] == b"\x1f\x8b":
            found.append(gzip.decompress(raw))
    return found


def leaks(folder: Path) -> list[str]:
    """What of the planted marks appears in names and contents below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).lower()
        found += [f"name of {path.name}: {mark!r}" for mark in MARKS if mark in name]
        if path.is_file():
            for data in _unpacked(path):
                low = data.lower()
                found += [
                    f"{path.name}: …{data[max(0, low.index(mark) - 40) : low.index(mark) + 30]!r}"
                    for mark in MARKS
                    if mark in low or mark.decode().encode("utf-16-le") in low
                ]
    return found


def test_the_search_finds_what_is_there(tmp_path: Path, study: Path) -> None:
    assert leaks(study.parent)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"-- ZQXDOE --"))
    with zipfile.ZipFile(tmp_path / "b.3mf", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", NUMBER)
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", f"{NAME} {'x' * 200}", zip=True)
    Image.new("L", (3, 3)).save(tmp_path / "c.png", pnginfo=info)
    assert {line.split(":")[0] for line in leaks(tmp_path)} == {"a.gz", "b.3mf", "c.png"}


def _run(*arguments: object, temporary: Path) -> subprocess.CompletedProcess[str]:
    """The command line as a user runs it, with every log on and temporary files in a folder of its own."""
    code = "import logging, sys; logging.basicConfig(level=logging.DEBUG); from slice3d.cli.main import main; main()"
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    call = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300, check=False)


def _referenced(dataset: Any) -> set[str]:
    """UIDs of the images that a SEG or encapsulated STL was made from, at any depth."""
    return {str(item.value) for item in dataset.iterall() if item.keyword == "ReferencedSOPInstanceUID"}


def test_segment_leaks_nothing(study: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    key = tmp_path / "key"
    key.write_bytes(b"a secret of at least this length, and more")
    options = ("--organ", "liver", "--dicom-seg", "--dicom-stl", "--deidentify", "--key", key)
    done = _run("segment", study, *options, "--out", tmp_path / "out", temporary=tmp_path / "tmp")
    assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path / "printed.txt").write_text(done.stdout + done.stderr)
    assert leaks(tmp_path) == []
    made = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").glob("*.dcm"))]
    assert [str(dataset.Modality) for dataset in made] == ["M3D", "SEG"]
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({str(dataset.get(keyword)) for dataset in made}) == 1
    assert all(dataset.PatientIdentityRemoved == "YES" for dataset in made)
    # both refer to the images as `slice3d deidentify` with the same key calls them
    worker = Deidentifier(key.read_bytes())
    images = {worker.uid(str(pydicom.dcmread(path).SOPInstanceUID)) for path in study.iterdir()}
    assert [_referenced(dataset) for dataset in made] == [images, images]


def test_batch_leaks_nothing_also_when_it_fails(study: Path, tmp_path: Path) -> None:
    cohort = tmp_path / "elsewhere" / f"{NAME} cohort"
    broken = cohort / f"{NAME}^JOHN"
    broken.mkdir(parents=True)
    (cohort / f"{NAME}^JANE").symlink_to(study)
    (broken / f"{NAME}.dcm").write_bytes(next(study.iterdir()).read_bytes()[:5000])
    (cohort / f"{NAME}.nii.gz").write_bytes(b"\x1f\x8b not gzip")
    place = tmp_path / "made"
    (place / "tmp").mkdir(parents=True)
    table = tmp_path / "table.csv"
    rows = ["study", str(study), *(str(cohort / f"{NAME}{end}") for end in ("^JOHN", ".nii.gz", "^NOBODY"))]
    table.write_text("\n".join(rows) + "\n")
    key = tmp_path / "key"
    key.write_bytes(b"a secret of at least this length, and more")
    options = ("--organ", "liver", "--dicom-seg", "--dicom-stl", "--deidentify", "--key", key)
    done = _run("batch", table, *options, "--out", place / "out", temporary=place / "tmp")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "3 failed" in done.stdout
    (place / "printed.txt").write_text(done.stdout + done.stderr)
    assert leaks(place) == []
    made = [pydicom.dcmread(path) for path in sorted((place / "out" / "cases").glob("*/*.dcm"))]
    assert [(str(d.Modality), str(d.PatientIdentityRemoved)) for d in made] == [("M3D", "YES"), ("SEG", "YES")]
    assert not [path for path in place.rglob("*") if path.is_file() and b"a secret of" in path.read_bytes()]


def test_info_shows_no_person(study: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    done = _run("info", study, "--json", temporary=tmp_path / "tmp")
    assert done.returncode == 0, done.stderr
    # what an operator typed is shown to whoever has the study itself, on the screen alone
    shown = [line for line in done.stdout.splitlines() if '"description"' not in line]
    (tmp_path / "printed.txt").write_text("\n".join(shown) + done.stderr)
    assert leaks(tmp_path) == []


def test_errors_name_no_folder_above_the_study(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    study = tmp_path / f"{NAME}^{DATE}" / "study"
    study.mkdir(parents=True)
    (study / "1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    done = _run("segment", study, "--organ", "liver", "--out", tmp_path / "out", temporary=tmp_path / "tmp")
    assert done.returncode == 2
    assert NAME not in done.stderr.replace(str(study), "") or pytest.fail(done.stderr)
    assert not (tmp_path / "out").exists()


def test_loggers_of_the_package_write_no_paths(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    import slice3d

    with caplog.at_level(logging.DEBUG):
        volume = slice3d.load(study)
        listing = slice3d.scan(study)
    assert NAME.lower() not in caplog.text.lower()
    assert NAME.lower() not in (repr(volume) + repr(dict(volume.metadata)) + repr(volume.findings)).lower()
    assert NAME.lower() not in repr([f.to_dict() for f in listing.findings]).lower()
