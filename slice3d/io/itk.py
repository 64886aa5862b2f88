"""NRRD, MHA and MHD through SimpleITK, whose world is LPS; the only site where ITK images become volumes and back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.io.files import text_path
from slice3d.io.nifti import MAX_DEFLATE, as_labels, label_names
from slice3d.volume import Segmentation, Volume, freeze

_FLIP = np.diag([-1.0, -1.0, 1.0])


def load_itk(path: Path) -> Volume:
    """One scalar 3D image."""
    image, findings = _read(path)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path.name} has {image.GetNumberOfComponentsPerPixel()} values per voxel; expected one")
    values = _array(image)
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        finite = np.isfinite(values)
        values = np.where(finite, values, values[finite].min() if finite.any() else 0).astype(np.float32)
        findings.append(
            Finding("not-finite", "Some voxels held NaN or infinity; they were set to the lowest value.", "warning")
        )
    return Volume(freeze(values), grid_of(image), modality=_modality(image), findings=tuple(findings))


def load_itk_labels(path: Path, *, names: Mapping[int, str] | None = None) -> Segmentation:
    """A label map; segment names and overlapping layers of 3D Slicer's .seg.nrrd are understood, in MetaImage too."""
    image, findings = _read(path)
    keys = _metadata(image)
    if "Segment0_ID" in keys or "Segment0_Name" in keys:
        from slice3d.io.segnrrd import from_layers

        return from_layers(_array(image), grid_of(image), keys, names=names, findings=findings, label=path.name)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path.name} has {image.GetNumberOfComponentsPerPixel()} values per voxel; expected one label each"
        )
    labels = as_labels(_array(image), path.name)
    return Segmentation(freeze(labels), grid_of(image), label_names(labels, names), findings=tuple(findings))


def _metadata(image: Any) -> dict[str, str]:
    """Header fields; those whose bytes are no text are left out."""
    out = {}
    for key in image.GetMetaDataKeys():
        try:
            out[key] = image.GetMetaData(key)
        except (TypeError, UnicodeError):
            continue
    return out


def grid_of(image: Any) -> Grid:
    """The grid of a SimpleITK image."""
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = _FLIP @ direction @ np.diag(image.GetSpacing())
    affine[:3, 3] = _FLIP @ np.array(image.GetOrigin())
    return Grid(tuple(int(n) for n in image.GetSize()), affine)  # type: ignore[arg-type]


def to_itk(data: NDArray[Any], grid: Grid) -> Any:
    """A SimpleITK image of an orthogonal grid."""
    import SimpleITK as sitk

    image: Any = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin((_FLIP @ grid.origin_mm).tolist())
    image.SetDirection((_FLIP @ grid.directions).ravel().tolist())
    return image


def write_mha(data: NDArray[Any], grid: Grid, path: Path, *, fields: Mapping[str, str] | None = None) -> None:
    """Write MetaImage (.mha). fields: lines of their own in the header, none of them empty."""
    import SimpleITK as sitk

    from slice3d.io.files import atomic

    if not grid.is_orthogonal:
        raise InputError(
            "the grid is sheared, which MetaImage cannot say; expected right angles; write NIfTI or resample"
        )
    if data.dtype == np.bool_:
        data = data.astype(np.uint8)
    with atomic(path) as part:
        # ITK chooses the format by suffix
        own = part.with_suffix(".mha")
        try:
            image = to_itk(data, grid)
            for key, value in (fields or {}).items():
                image.SetMetaData(key, value)
            sitk.WriteImage(image, text_path(own), useCompression=True)
            own.replace(part)
        except RuntimeError as error:
            raise InputError(f"cannot write {path.name}; choose a folder you may write to") from error
        finally:
            own.unlink(missing_ok=True)


def _array(image: Any) -> NDArray[Any]:
    import SimpleITK as sitk

    values = sitk.GetArrayFromImage(image)
    axes = (2, 1, 0) if values.ndim == 3 else (2, 1, 0, 3)
    out: NDArray[Any] = values.transpose(axes)
    return out


def list_itk(path: Path) -> tuple[Grid | None, str, list[Finding], str]:
    """What the header says: grid, modality, findings, and why it is no volume ("" when it is)."""
    reader, findings = _reader(path)
    if reader.GetDimension() != 3:
        return None, "", [], f"{reader.GetDimension()} dimensions; expected three"
    count = reader.GetNumberOfComponents()
    layers = any(key in reader.GetMetaDataKeys() for key in ("Segment0_ID", "Segment0_Name"))
    problem = "" if count == 1 or layers else f"{count} values per voxel (colours or vectors); expected one"
    return grid_of(reader), _modality(reader), findings, problem


def _modality(image: Any) -> str:
    return _metadata(image).get("Modality", "").strip().removeprefix("MET_MOD_").removeprefix("UNKNOWN")


def _read(path: Path) -> tuple[Any, list[Finding]]:
    reader, findings = _reader(path)
    if reader.GetDimension() != 3:
        raise InputError(f"{path.name} has {reader.GetDimension()} dimensions; expected three")
    try:
        return reader.Execute(), findings
    except RuntimeError as error:
        raise _unreadable(path, error) from error


def _reader(path: Path) -> tuple[Any, list[Finding]]:
    """SimpleITK's reader with the header read, which the file can keep."""
    import SimpleITK as sitk

    have = _check_data_files(path)
    toolkit: Any = sitk
    reader = toolkit.ImageFileReader()
    reader.SetFileName(text_path(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    need = float(np.prod(reader.GetSize(), dtype=float)) * reader.GetNumberOfComponents()
    if need > have * MAX_DEFLATE:
        raise InputError(f"{path.name} is truncated: its header promises {need:.3g} voxels; copy it again")
    findings: list[Finding] = []
    if path.suffix.lower() in (".nrrd", ".nhdr") and not reader.HasMetaDataKey("NRRD_space"):
        findings.append(
            Finding("no-orientation", "The file does not say how it lies in the patient; left and right are a guess.")
        )
    return reader, findings


def _unreadable(path: Path, error: RuntimeError) -> InputError:
    return InputError(f"{path.name} cannot be read as {path.suffix}: {_reason(str(error))}; copy it again")


def _check_data_files(path: Path) -> float:
    """How many bytes the file and its data files hold; infinite where a pattern names them. Refuses headers that take their voxels from outside their own folder: whoever sent the file must not choose what
    is read from this machine.
    """
    try:
        with path.open("rb") as stream:
            lines = stream.read(65536).decode("latin-1").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}; check the permissions") from error
    folder, have = path.parent.resolve(), float(path.stat().st_size)
    for number, line in enumerate(lines):
        match = re.match(r"(?i)\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*(.*)", line)
        if not match:
            continue
        listed = match[1].upper().startswith("LIST")
        names = lines[number + 1 :] if listed else [match[1]]
        for name in (n.strip().replace("\0", "") for n in names):
            if not name or name.upper() == "LOCAL":
                continue
            if folder not in (folder / name).resolve().parents:
                raise InputError(
                    f"{path.name} takes its voxels from outside its folder; expected a file beside it; copy it there"
                )
            have += (folder / name).stat().st_size if (folder / name).is_file() else math.inf
        break
    return have


def _reason(message: str) -> str:
    """ITK's last sentence without addresses and paths."""
    last = [line.strip() for line in message.splitlines() if line.strip()][-1:]
    return re.sub(r"(0x[0-9a-f]+|/\S+)", "…", last[0])[:120] if last else "unknown reason"
