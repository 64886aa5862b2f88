"""NIfTI-1 and NIfTI-2: RAS+ millimetres already; read with nibabel, written byte-identically every time.

https://nifti.nimh.nih.gov/nifti-1 (sform and qform, method 2 and 3).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.io.files import atomic
from slice3d.io.packed import packed, unpacked
from slice3d.volume import Segmentation, Volume, freeze

# corners of the field of view may differ by this much between sform and qform before it is reported; single-precision
# quaternions of a 500 mm field of view are exact to about 0.001 mm
FORM_TOLERANCE_MM = 0.1
# no deflate stream expands further
MAX_DEFLATE = 1032
# mm per unit by NIfTI's code; 0 is unknown, which everybody takes as mm
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def load_nifti(path: Path, *, index: int | None = None) -> Volume:
    """One volume; of a 4D file the one that `index` (from 0) names, else the first, with a finding."""
    image = _open(path)
    count = _volumes(image.shape, path)
    findings: list[Finding] = []
    if index is not None and index >= count:
        raise InputError(f"{path.name} holds {count} volumes; expected series between 1 and {count}, got {index + 1}")
    if count > 1 and index is None:
        message = f"The file holds {count} volumes; the first was taken, series=1…{count} chooses another."
        findings.append(Finding("several-volumes", message, "warning", {"volumes": count}))
    return _volume(image, path, index or 0, findings)


def load_nifti_4d(path: Path) -> tuple[Volume, ...]:
    """Every volume of the file."""
    image = _open(path)
    return tuple(_volume(image, path, n, []) for n in range(_volumes(image.shape, path)))


def list_nifti(path: Path) -> tuple[Grid, int, list[Finding], str]:
    """What the header says: grid, number of volumes, findings, and why they are no volumes ("" when they are)."""
    image = _open(path)
    count = _volumes(image.shape, path)
    _check_size(image, path)
    findings: list[Finding] = []
    grid = _grid(image, path, findings)
    return grid, count, findings, _no_numbers(image)


def load_nifti_labels(path: Path, *, names: Mapping[int, str] | None = None) -> Segmentation:
    """A label map; floats that are all whole numbers count as labels. Names come from `names`, else from the file."""
    from slice3d.io.labeltable import from_extensions

    image = _open(path)
    names = names if names is not None else from_extensions(getattr(image.header, "extensions", ()))
    if _volumes(image.shape, path) > 1:
        raise InputError(f"{path.name} holds several volumes; expected one label map")
    values = _values(image, path, 0)
    findings: list[Finding] = []
    grid = _grid(image, path, findings)
    labels = as_labels(values, path.name)
    return Segmentation(freeze(labels), grid, label_names(labels, names), findings=tuple(findings))


def as_labels(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Integers of the smallest type. Raises `InputError` for fractions, negatives or more than 65535."""
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and np.array_equal(values, np.rint(values))):
        raise InputError(f"{name} holds fractions; expected whole label values; is it an image or a probability?")
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high > 65535:
        raise InputError(f"{name} holds values from {low} to {high}; expected labels from 0 to 65535; is it an image?")
    return np.asfortranarray(values.astype(np.uint8 if high < 256 else np.uint16))


def label_names(labels: NDArray[Any], names: Mapping[int, str] | None) -> dict[int, str]:
    """The names given, and `label_N` for values present without one."""
    present = [int(v) for v in np.flatnonzero(np.bincount(labels.ravel(order="K"))) if v]
    out = {int(value): str(name) for value, name in (names or {}).items()}
    for value in present:
        out.setdefault(value, f"label_{value}")
    return dict(sorted(out.items()))


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """nibabel prints what it mends in a header (a qfac of 0, say); what matters of it is a finding here."""
    logger = logging.getLogger("nibabel.global")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _open(path: Path) -> Any:
    import nibabel

    try:
        with _unheard():
            image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image | nibabel.Nifti1Pair | nibabel.Nifti2Image):
            raise InputError(f"{path.name} is {type(image).__name__}; expected NIfTI-1 or NIfTI-2")
        return image
    except InputError:
        raise
    except Exception as error:  # nibabel passes on what numpy, gzip and struct raise
        raise InputError(f"{path.name} is no readable NIfTI file ({type(error).__name__}); copy it again") from error


def _volumes(shape: tuple[int, ...], path: Path) -> int:
    if len(shape) < 2 or min(shape) < 1 or len(shape) > 7:
        raise InputError(f"{path.name} has shape {shape}; expected three dimensions")
    return int(np.prod(shape[3:], dtype=float))


def _values(image: Any, path: Path, index: int) -> NDArray[Any]:
    proxy = image.dataobj
    if problem := _no_numbers(image):
        raise InputError(f"{path.name} holds {problem}")
    shape = image.shape
    _check_size(image, path)
    try:
        if len(shape) > 3:
            where = np.unravel_index(index, shape[3:], order="F")
            raw = np.asanyarray(proxy[(..., *[int(n) for n in where])]) if proxy.is_proxy else proxy[(..., *where)]
            return _tidy(np.asarray(raw), *_scaling(image))
        raw = _at_once(image)
        if raw is None:
            raw = proxy.get_unscaled()
    except (OSError, EOFError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"{path.name} is truncated or damaged ({type(error).__name__}); copy it again") from error
    except Exception as error:
        raise InputError(f"{path.name} cannot be read ({type(error).__name__}); copy it again") from error
    raw = np.asarray(raw).reshape((*shape, 1, 1, 1)[:3] if len(shape) < 3 else shape)
    return _scale(raw, *_scaling(image))


def _at_once(image: Any) -> NDArray[Any] | None:
    """The stored values of a .nii.gz, unpacked in one go; None where that cannot be done."""
    name = getattr(image.file_map.get("image"), "filename", None)
    if not name or not str(name).lower().endswith(".nii.gz"):
        return None
    dtype, offset = image.get_data_dtype(), int(image.dataobj.offset)
    if offset % dtype.itemsize:
        return None
    content = unpacked(Path(name), offset + int(np.prod(image.shape)) * dtype.itemsize)
    if content is None:
        return None
    freeze(content)
    return np.ndarray(image.shape, dtype, content, offset, order="F")


def _no_numbers(image: Any) -> str:
    dtype = image.get_data_dtype()
    if dtype.kind in "iufb":
        return ""
    what = "complex" if dtype.kind == "c" else "colour"
    return f"{what} voxels; expected one number each; convert it first"


def _check_size(image: Any, path: Path) -> None:
    """Refuse headers that promise more voxels than the file can hold, before any memory is taken."""
    holder = image.file_map.get("image")
    name = getattr(holder, "filename", None)
    if not name:
        return
    need = float(np.prod(image.shape, dtype=float)) * image.get_data_dtype().itemsize
    try:
        have = Path(name).stat().st_size * (MAX_DEFLATE if str(name).lower().endswith(".gz") else 1)
    except OSError as error:
        raise InputError(f"{Path(name).name} is missing; expected the voxels of {path.name} beside it") from error
    if need > have:
        raise InputError(f"{path.name} is truncated: its header promises {need:.3g} bytes of voxels; copy it again")


def _scaling(image: Any) -> tuple[float, float]:
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    return (slope, inter) if np.isfinite([slope, inter]).all() and slope != 0 else (1.0, 0.0)


def _tidy(values: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """Values that nibabel has scaled already (4D slices): floats only where they are needed."""
    if (
        values.dtype.kind == "f"
        and slope.is_integer()
        and inter.is_integer()
        and np.array_equal(values, np.rint(values))
    ):
        low, high = values.min(), values.max()
        if low >= -32768 and high <= 32767:
            return values.astype(np.int16)
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _scale(raw: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    raw = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    if (slope, inter) == (1.0, 0.0):
        return raw.astype(np.float32) if raw.dtype.kind == "f" and raw.dtype != np.float32 else raw
    if raw.dtype.kind in "iu" and slope.is_integer() and inter.is_integer():
        ends = sorted((float(raw.min()) * slope + inter, float(raw.max()) * slope + inter))
        if ends[0] >= -32768 and ends[1] <= 32767:
            return (raw.astype(np.int32) * int(slope) + int(inter)).astype(np.int16)
    return (raw.astype(np.float64) * slope + inter).astype(np.float32)


def _volume(image: Any, path: Path, index: int, findings: list[Finding]) -> Volume:
    values = _values(image, path, index)
    grid = _grid(image, path, findings)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        finite = np.isfinite(values)
        values = np.where(finite, values, values[finite].min() if finite.any() else 0).astype(np.float32)
        findings.append(
            Finding("not-finite", "Some voxels held NaN or infinity; they were set to the lowest value.", "warning")
        )
    mapped = isinstance(values.base, np.memmap) or isinstance(values, np.memmap)
    if mapped or (not values.flags.owndata and values.flags.writeable):
        values = np.array(values, order="K")
    return Volume(freeze(np.asarray(values)), grid, findings=tuple(findings))


def _grid(image: Any, path: Path, findings: list[Finding]) -> Grid:
    header = image.header
    shape = (*image.shape, 1, 1)[:3]
    unit = int(header["xyzt_units"]) % 8
    scale = _UNITS.get(unit, 1.0)
    if unit not in _UNITS:
        text = f"The file's unit of length has the unknown code {unit}; mm was assumed."
        findings.append(Finding("units", text, "warning", {"code": unit}))
    sform, sform_code = image.get_sform(coded=True)
    try:
        qform, qform_code = image.get_qform(coded=True)
    except (ValueError, np.linalg.LinAlgError) as error:
        if not sform_code:
            raise GeometryError(
                f"{path.name} has a damaged qform and no sform; expected one of them; repair the header"
            ) from error
        qform, qform_code = None, 0
    affine = sform if sform_code else qform if qform_code else image.affine
    if affine is None or not np.isfinite(affine).all():
        raise GeometryError(f"{path.name} has NaN or infinity in its affine; expected millimetres; repair the header")
    if not sform_code and not qform_code:
        findings.append(
            Finding(
                "no-orientation",
                "The file does not say how it lies in the patient (sform and qform unset); left and right are a guess.",
            )
        )
    affine = np.array(affine, dtype=np.float64)
    affine[:3] *= scale
    grid = Grid(shape, affine)
    if sform_code and qform_code and qform is not None and np.isfinite(qform).all():
        other = np.array(qform, dtype=np.float64)
        other[:3] *= scale
        _compare_forms(grid, other, findings)
    if scale != 1.0:
        findings.append(
            Finding("units", "The file's unit of length is not mm; it was converted.", "info", {"mm_per_unit": scale})
        )
    return grid


def _compare_forms(grid: Grid, qform: NDArray[np.float64], findings: list[Finding]) -> None:
    try:
        other = Grid(grid.shape, qform)
    except GeometryError:
        findings.append(Finding("qform-damaged", "The qform is not usable; the sform was taken.", "warning"))
        return
    difference = float(np.linalg.norm(grid.corners_mm() - other.corners_mm(), axis=1).max())
    if difference > FORM_TOLERANCE_MM:
        findings.append(
            Finding(
                "sform-qform-disagree",
                f"sform and qform place the volume up to {difference:.3g} mm apart; the sform was taken.",
                "warning",
                {"difference_mm": round(difference, 4), "tolerance_mm": FORM_TOLERANCE_MM},
            )
        )


def write_nifti(data: NDArray[Any], grid: Grid, path: Path, *, names: Mapping[int, str] | None = None) -> None:
    """Write an array with sform and qform in mm. A sheared grid gets the nearest qform and a full sform.

    names: makes it a label map that carries the names of its structures.
    """
    import nibabel

    array = np.asarray(data)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.dtype in (np.int64, np.uint64):
        low, high = int(array.min()), int(array.max())
        if low < -(2**31) or high >= 2**31:
            raise InputError(
                f"values run from {low} to {high}; expected 32-bit integers for NIfTI; write .nrrd instead"
            )
        array = array.astype(np.int32)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    image: Any = nibabel.Nifti1Image(array, grid.affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code="scanner")
    image.set_qform(grid.affine, code="scanner", strip_shears=True)
    image.header["descrip"] = "slice3d"
    if names is not None:
        from slice3d.io.labeltable import to_extension

        image.header.set_intent("label")
        image.header.extensions.append(to_extension(names))
    payload = image.to_bytes()
    with atomic(path) as part:
        if path.name.lower().endswith(".gz"):
            part.write_bytes(packed(payload, labels=names is not None))
        else:
            part.write_bytes(payload)
