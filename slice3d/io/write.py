"""`save`: by suffix, atomically."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slice3d.errors import InputError
from slice3d.io.read import suffix_of
from slice3d.mesh import Mesh
from slice3d.volume import Segmentation, Volume

if TYPE_CHECKING:
    from slice3d.io.dicom.deidentify import Deidentifier

SegKind = Literal["binary", "labelmap", "fractional"]


def save(
    obj: Volume | Segmentation | Mesh,
    path: str | Path,
    *,
    source: Volume | None = None,
    kind: SegKind = "binary",
    deidentifier: Deidentifier | None = None,
    **options: Any,
) -> None:
    """Write a volume, segmentation or mesh; the suffix of `path` chooses the format.

    Volume: .nii, .nii.gz, .nrrd, .mha, or a folder name without suffix for a DICOM series (needs `source`).
    Segmentation: .nii, .nii.gz, .seg.nrrd, .mha, .dcm (DICOM SEG of `kind` on the slices of `source`).
    Mesh: what `slice3d.io.meshes` writes, with its `options`. Files appear complete or not at all.
    deidentifier: for a segmentation or mesh as .dcm, which else carries the identifiers of `source`.
    Raises `InputError` for an unknown suffix or a missing source.
    """
    path = Path(path)
    if deidentifier is not None and (isinstance(obj, Volume) or suffix_of(path) != ".dcm"):
        raise InputError(f"{path.name!r} is not to be de-identified; expected a segmentation or mesh as .dcm")
    if isinstance(obj, Mesh):
        return _save_mesh(
            obj, path, source, options if deidentifier is None else {**options, "deidentifier": deidentifier}
        )
    if options:
        raise InputError(f"unknown options {sorted(options)} for a {type(obj).__name__}; expected source and kind")
    if isinstance(obj, Segmentation):
        return _save_segmentation(obj, path, source, kind, deidentifier)
    if isinstance(obj, Volume):
        return _save_volume(obj, path, source)
    raise InputError(f"cannot save a {type(obj).__name__}; expected a Volume, Segmentation or Mesh")


def _save_mesh(mesh: Mesh, path: Path, source: Volume | None, options: dict[str, Any]) -> None:
    from slice3d.io.meshes import MESH_WRITERS

    writer: Callable[..., Any] = _choose(MESH_WRITERS, path, "mesh")
    if source is not None:
        options = {**options, "source": source}
    writer(mesh, path, **options)


def _save_segmentation(
    segmentation: Segmentation, path: Path, source: Volume | None, kind: SegKind, deidentifier: Deidentifier | None
) -> None:
    def nifti() -> None:
        from slice3d.io.nifti import write_nifti

        write_nifti(segmentation.labels, segmentation.grid, path, names=segmentation.names)

    def seg_nrrd() -> None:
        from slice3d.io.segnrrd import write_seg_nrrd

        write_seg_nrrd(segmentation, path)

    def mha() -> None:
        from slice3d.io.itk import write_mha
        from slice3d.io.segnrrd import name_fields

        write_mha(segmentation.labels, segmentation.grid, path, fields=name_fields(segmentation))

    def dicom() -> None:
        from slice3d.io.dicom.segwrite import write_dicom_seg

        if source is None:
            raise InputError(
                "a DICOM SEG refers to the images it was made from; pass source=the volume that was loaded from DICOM"
            )
        write_dicom_seg(segmentation, source, path, kind=kind, deidentifier=deidentifier)

    writers = {".nii": nifti, ".nii.gz": nifti, ".seg.nrrd": seg_nrrd, ".nrrd": seg_nrrd, ".mha": mha, ".dcm": dicom}
    _choose(writers, path, "segmentation")()


def _save_volume(volume: Volume, path: Path, source: Volume | None) -> None:
    # formats know neither half nor extended precision
    odd = volume.data.dtype.kind == "f" and volume.data.dtype.itemsize not in (4, 8)
    data = volume.data.astype("float32") if odd else volume.data

    def nifti() -> None:
        from slice3d.io.nifti import write_nifti

        write_nifti(data, volume.grid, path)

    def nrrd() -> None:
        from slice3d.io.segnrrd import write_nrrd

        write_nrrd(data, volume.grid, path)

    def mha() -> None:
        from slice3d.io.itk import write_mha

        write_mha(data, volume.grid, path)

    def series() -> None:
        from slice3d.io.dicom.serieswrite import write_dicom_series

        write_dicom_series(volume, path, source=source if source is not None else volume)

    if not path.suffix or path.is_dir():
        return series()
    _choose({".nii": nifti, ".nii.gz": nifti, ".nrrd": nrrd, ".mha": mha}, path, "volume")()


def _choose(writers: dict[str, Any], path: Path, what: str) -> Any:
    suffix = suffix_of(path)
    if suffix not in writers:
        known = ", ".join(sorted(writers))
        raise InputError(f"{path.name!r} has suffix {suffix or 'none'!r}; expected one of {known} for a {what}")
    return writers[suffix]
