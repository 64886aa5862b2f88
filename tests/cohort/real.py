"""Small DICOM studies with a known answer, and a model that gives it: the real pipeline, fast enough for cohorts."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.cohort import Job, pipeline_job
from slice3d.cohort.job import CaseInput
from slice3d.inference import InferenceSettings
from slice3d.pipeline import RunSettings
from slice3d.progress import Progress
from tests.inference.builders import write_threshold_package

SHAPE, SPACING = (48, 40, 16), (6.0, 6.0, 10.0)  # columns, rows, slices; mm
MODEL = "dense"


def install_model(cache: Path) -> str:
    """Into `cache`, which XDG_CACHE_HOME must name here and in workers; its name."""
    fields = {"spacing_mm": list(SPACING), "patch_size": list(SHAPE)}
    return write_threshold_package(cache / "slice3d" / "models" / MODEL, 100.0, **fields).name


def write_study(folder: Path, number: int) -> float:
    """A CT of a body in air with a bright ellipsoid, other in every study; the volume of the ellipsoid, ml."""
    rng = np.random.default_rng(number)
    at = np.stack(np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing="ij"), axis=-1) * SPACING
    body = ((at / (125.0, 100.0, 200.0)) ** 2).sum(-1) < 1
    bright = (((at - rng.uniform(-15, 15, 3)) / rng.uniform(35, 55, 3)) ** 2).sum(-1) < 1
    hu = np.where(bright, 180, np.where(body, 30, -1000)) + rng.integers(-9, 10, SHAPE)
    write_series(folder, hu, SPACING, number)
    return float(bright.sum() * np.prod(SPACING) / 1000)


def write_series(folder: Path, hu: NDArray[Any], spacing_mm: tuple[float, float, float], number: int) -> None:
    """`hu` (columns, rows, slices) as a CT series, uncompressed, of a person called by `number`."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True)
    uid = f"1.2.826.0.1.3680043.8.498.77.{number}"
    for k in range(hu.shape[2]):
        d: Any = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = CTImageStorage
        d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1.{k + 1}"
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = uid, f"{uid}.1", f"{uid}.2"
        d.Modality, d.PatientPosition, d.PatientName, d.PatientID = "CT", "HFS", f"DOE^JANE {number}", str(number)
        d.InstanceNumber, d.SeriesNumber, d.ImageType = k + 1, 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
        d.ImagePositionPatient = [-145.0, -120.0, spacing_mm[2] * k]
        d.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        d.PixelSpacing, d.SliceThickness = [spacing_mm[1], spacing_mm[0]], spacing_mm[2]
        d.RescaleIntercept, d.RescaleSlope, d.RescaleType = -1024, 1, "HU"
        d.SamplesPerPixel, d.PhotometricInterpretation, d.Rows, d.Columns = 1, "MONOCHROME2", hu.shape[1], hu.shape[0]
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.PixelData = (hu[:, :, k].T + 1024).astype("<u2").tobytes()
        d.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)


def write_cohort(folder: Path, studies: int, *, corrupt: int = 0) -> dict[str, float]:
    """`studies` studies in folders of persons' names, of which `corrupt` are damaged; volume, ml, of the good ones."""
    damaged = set(random.Random(3).sample(range(studies), corrupt))
    volumes: dict[str, float] = {}
    for n in range(studies):
        study = folder / f"DOE_JANE_{n:04d}"
        volume = write_study(study, n)
        if n not in damaged:
            volumes[study.name] = volume
            continue
        for path in study.iterdir():  # three kinds of damage
            raw = path.read_bytes()
            path.write_bytes((raw[: len(raw) // 3], b"\0" * len(raw), random.Random(n).randbytes(len(raw)))[n % 3])
    return volumes


def job() -> Job:
    """Segment, mesh, measure and draw with the installed model, as `slice3d batch` does, without the report page."""
    inference = InferenceSettings(precision="float32", threads=1)
    return pipeline_job(RunSettings(organs=("liver",), model=MODEL, inference=inference, report=False))


@dataclass(frozen=True)
class Noted:
    """A case function that notes in a file when it begins and ends a study, what memory (MiB) its process holds then,
    and its processor time so far (s).
    """

    job: Job
    notes: str

    def __call__(self, case: CaseInput, out: Path, progress: Progress) -> None:
        self._note("begin", case.study.name)
        self.job.function(case, out, progress)
        self._note("end", case.study.name)

    def _note(self, what: str, study: str) -> None:
        import os

        import psutil

        mib = psutil.Process().memory_info().rss / 2**20
        with Path(self.notes).open("a") as file:  # one short write in append mode is atomic on a local file system
            file.write(f"{what} {study} {os.getpid()} {mib:.1f} {time.monotonic():.4f} {time.process_time():.4f}\n")


def noted(notes: Path, inner: Job) -> Job:
    """A job, with notes."""
    return Job(Noted(inner, str(notes)), inner.identity)
