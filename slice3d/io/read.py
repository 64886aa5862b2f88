"""`scan`, `load` and `load_segmentation`: recognise the format, hand over to its module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from slice3d import anatomy
from slice3d.errors import InputError
from slice3d.io.listing import Listing
from slice3d.io.settings import LoadSettings, OnIrregular
from slice3d.progress import Progress, silent
from slice3d.volume import Segmentation, Volume

NIFTI = (".nii", ".nii.gz", ".hdr", ".img")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
PICTURES = (".png", ".tif", ".tiff")


def suffix_of(path: Path) -> str:
    """The format part of a file name in lower case, `.nii.gz` and `.seg.nrrd` whole."""
    name = path.name.lower()
    for double in (".nii.gz", ".seg.nrrd"):
        if name.endswith(double):
            return double
    return path.suffix.lower()


def scan(path: str | Path, *, progress: Progress = silent) -> Listing:
    """List the studies and series under a path from headers alone: folder, DICOMDIR, single file or .zip.

    Raises `InputError` when the path does not exist or cannot be read.
    """
    path = _existing(path)
    if _format(path) != "dicom":
        from slice3d.io.listfile import list_file

        return list_file(path)
    from slice3d.io.dicom.read import list_dicom

    return list_dicom(path, progress=progress)


def load(
    path: str | Path,
    *,
    series: str | int | None = None,
    on_gap: OnIrregular = "resample",
    on_tilt: OnIrregular = "resample",
    spacing_mm: Sequence[float] | None = None,
    progress: Progress = silent,
) -> Volume:
    """Load one volume: a DICOM folder, file or .zip, NIfTI-1/2, NRRD, MHA/MHD, or a folder of PNG/TIFF slices.

    series: which one of several (a key from `scan`, a series instance UID, part of a description). Irregular or tilted
    slices are resampled along their true positions or refused. spacing_mm: (x, y, z), only for PNG/TIFF stacks.
    Raises `InputError` or `GeometryError`; every repair is in `Volume.findings`.
    """
    settings = _settings(series, on_gap, on_tilt, spacing_mm)
    path = _existing(path)
    kind = _format(path)
    if kind == "nifti":
        from slice3d.io.nifti import load_nifti

        return load_nifti(path, index=_index(settings.series))
    if kind == "itk":
        from slice3d.io.itk import load_itk

        return load_itk(path)
    if kind == "pictures":
        from slice3d.io.pictures import load_pictures

        return load_pictures(path, spacing_mm=settings.spacing_mm, progress=progress)
    from slice3d.io.dicom.read import load_dicom

    return load_dicom(path, settings, progress=progress)


def load_4d(path: str | Path, *, series: str | int | None = None, progress: Progress = silent) -> tuple[Volume, ...]:
    """Every volume of one series (phases, echoes, b-values), in the order that `scan` lists them."""
    settings = _settings(series, "resample", "resample", None)
    path = _existing(path)
    if _format(path) == "nifti":
        from slice3d.io.nifti import load_nifti_4d

        return load_nifti_4d(path)
    if _format(path) != "dicom":
        return (load(path, progress=progress),)
    from slice3d.io.dicom.read import load_all

    return load_all(path, settings, progress=progress)


def load_segmentation(
    path: str | Path, *, names: Mapping[int, str] | None = None, reference: Volume | None = None
) -> Segmentation:
    """Load labels: NIfTI, .seg.nrrd, NRRD, MHA, DICOM SEG or RTSTRUCT.

    names: label value → structure name, where the file carries none (default `label_1`, …). reference: the volume whose
    grid an RTSTRUCT is drawn on (its contours carry no voxels). Raises `InputError` or `GeometryError`.
    """
    found = _load_labels(_existing(path), names, reference)
    return found if found.groups else replace(found, groups=anatomy.standard_groups(found.names))


def _load_labels(path: Path, names: Mapping[int, str] | None, reference: Volume | None) -> Segmentation:
    kind = _format(path)
    if kind == "nifti":
        from slice3d.io.nifti import load_nifti_labels

        return load_nifti_labels(path, names=names)
    if kind == "itk":
        from slice3d.io.itk import load_itk_labels

        return load_itk_labels(path, names=names)
    if kind == "pictures":
        raise InputError(f"{path.name} holds pictures; expected labels as NIfTI, NRRD, MHA, DICOM SEG or RTSTRUCT")
    from slice3d.io.dicom.segread import load_dicom_segmentation

    return load_dicom_segmentation(path, names=names, reference=reference)


def _settings(
    series: str | int | None, on_gap: OnIrregular, on_tilt: OnIrregular, spacing_mm: Sequence[float] | None
) -> LoadSettings:
    for name, value in (("on_gap", on_gap), ("on_tilt", on_tilt)):
        if value not in ("resample", "refuse"):
            raise InputError(f"{name} is {value!r}; expected 'resample' or 'refuse'")
    spacing = None
    if spacing_mm is not None:
        values = tuple(float(s) for s in spacing_mm)
        if len(values) != 3 or not all(0 < s < 1000 for s in values):
            raise InputError(f"spacing_mm is {list(spacing_mm)}; expected three positive numbers (x, y, z) in mm")
        spacing = (values[0], values[1], values[2])
    return LoadSettings(None if series is None else str(series), on_gap, on_tilt, spacing)


def _index(series: str | None) -> int | None:
    if series is None:
        return None
    if not series.isdigit() or int(series) < 1:
        raise InputError(f"series is {series!r}; expected the number of a volume in this file, from 1")
    return int(series) - 1


def _existing(path: str | Path) -> Path:
    path = Path(path)
    try:
        if path.is_dir() or path.is_file():
            return path
        if path.exists():  # a pipe or a device would block or never end
            raise InputError(f"{path.name} is no ordinary file; expected a study folder, file or .zip; save it first")
    except OSError as error:  # a name too long, a folder that may not be entered
        raise InputError(
            f"{path.name[:60]} cannot be reached: {error.strerror}; expected a study folder, file or .zip"
        ) from error
    raise InputError(f"{path.name or path} does not exist; expected a study folder, file or .zip; check the spelling")


def _format(path: Path) -> str:
    if path.is_dir():
        return "pictures" if _is_picture_folder(path) else "dicom"
    suffix = suffix_of(path)
    if suffix in NIFTI:
        return "nifti"
    if suffix in ITK or suffix == ".seg.nrrd":
        return "itk"
    return "pictures" if suffix in PICTURES else "dicom"


def _is_picture_folder(folder: Path) -> bool:
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read folder {folder.name}: {error.strerror}; check the permissions") from error
    names = [p.name.lower() for p in entries if p.is_file() and not p.name.startswith(".")]
    pictures = sum(name.endswith(PICTURES) for name in names)
    return pictures > 0 and pictures >= 0.8 * len(names) and not any(p.is_dir() for p in entries)
