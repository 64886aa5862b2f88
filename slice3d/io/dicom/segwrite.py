"""DICOM Segmentation on the slices that were acquired, with highdicom (PS3.3 A.51 and A.82)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import slice3d
from slice3d import anatomy
from slice3d.errors import InputError
from slice3d.io.dicom.deidentify import Deidentifier
from slice3d.io.dicom.geometry import LPS_TO_RAS
from slice3d.io.dicom.patient import repair_patient
from slice3d.io.dicom.source import DicomSource
from slice3d.io.files import atomic, quiet
from slice3d.io.terms import Code, category_of, laterality_of, type_of
from slice3d.volume import Segmentation, Volume

Kind = Literal["binary", "labelmap", "fractional"]


def write_dicom_seg(
    segmentation: Segmentation,
    source: Volume,
    path: Path,
    *,
    kind: Kind = "binary",
    deidentifier: Deidentifier | None = None,
) -> None:
    """Write `segmentation` as one SEG file that refers to every slice of `source` it was made from.

    The labels may lie on any grid (repaired, super-resolved); each acquired pixel takes the label of the voxel its
    centre
    lies in. `kind="fractional"` stores `segmentation.probabilities`, 0 or 1 for structures without. A labelmap holds
    one structure per pixel, so groups are left out of it. Identifiers are those of `source`, or none of them.
    Raises `InputError` when `source` was not loaded from DICOM, or its files lack what a SEG must refer to.
    """
    origin = source.source
    if not isinstance(origin, DicomSource):
        raise InputError(
            "the source volume was not loaded from DICOM; expected one; write .seg.nrrd or .nii.gz instead"
        )
    if kind not in ("binary", "labelmap", "fractional"):
        raise InputError(f"kind is {kind!r}; expected 'binary', 'labelmap' or 'fractional'")
    if not all(item.sop_instance for item in origin.slices):
        raise InputError(
            "the source images carry no SOPInstanceUID, so nothing can refer to them; expected images as the "
            "scanner wrote "
            "them; write .seg.nrrd or .nii.gz instead"
        )
    files = {item.file: item.sop_instance for item in origin.slices}
    if len(set(files.values())) < len(files):
        raise InputError(
            f"{len(files)} source images share {len(set(files.values()))} SOPInstanceUIDs, so nothing can refer to one of "
            "them; expected images as the scanner wrote them; write .seg.nrrd or .nii.gz instead"
        )
    labels = [segmentation.names[v] for v in sorted(segmentation.names)]
    names = labels if kind == "labelmap" else list(segmentation.structures)
    if not names:
        raise InputError("the segmentation names no structure; expected at least one; give names")
    images = _source_images(origin)
    try:
        dataset = _build(segmentation, origin, images, names, kind)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"the source images lack what a DICOM SEG needs ({reason}); expected images as the scanner wrote them; "
            "write .seg.nrrd or .nii.gz instead"
        ) from error
    with atomic(path) as part:
        if deidentifier is not None:
            dataset = deidentifier.dataset(dataset)
        dataset.save_as(part, enforce_file_format=True)


def _build(segmentation: Segmentation, origin: DicomSource, images: list[Any], names: list[str], kind: Kind) -> Any:
    import highdicom as hd
    from highdicom.seg import Segmentation as DicomSegmentation
    from highdicom.seg import SegmentationTypeValues

    with quiet(), _unlogged():
        return DicomSegmentation(
            source_images=images,
            pixel_array=_in_file_order(_pixels(segmentation, origin, names, kind), origin, images),
            segmentation_type=SegmentationTypeValues[kind.upper()],
            segment_descriptions=[_describe(n, name) for n, name in enumerate(names, start=1)],
            series_instance_uid=hd.UID(),
            series_number=9000,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="slice3d",
            manufacturer_model_name="slice3d",
            software_versions=slice3d.__version__,
            device_serial_number="1",
            series_description="slice3d segmentation",
            omit_empty_frames=True,
        )


@contextmanager
def _unlogged() -> Iterator[None]:
    """highdicom logs the UIDs of what it copies from, and UIDs identify a study."""
    logger = logging.getLogger("highdicom")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _describe(number: int, name: str) -> Any:
    import highdicom as hd
    from highdicom.seg import SegmentDescription

    structure = anatomy.STRUCTURES.get(anatomy.canonical(name))
    side = laterality_of(structure)
    kind = _concept(type_of(structure))
    if side is not None:
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(side)]
    return SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=_concept(category_of(structure)),
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="slice3d",
            version=slice3d.__version__,
            family=_concept(("DCM", "123110", "Artificial Intelligence")),
        ),
        display_color=hd.color.CIELabColor.from_rgb(*anatomy.color(name)),
    )


def _concept(code: Code) -> Any:
    import highdicom as hd

    scheme, value, meaning = code
    return hd.sr.CodedConcept(value=value, meaning=meaning, scheme_designator=scheme)


def _source_images(origin: DicomSource) -> list[Any]:
    """Headers of the source as highdicom wants to copy them: what a sloppy exporter left out is empty, what it got
    wrong dropped.
    """
    from pydicom.uid import generate_uid

    images = origin.datasets()
    files = {item.file: item for item in origin.slices}
    for image, item in zip(images, files.values(), strict=True):
        # some de-identifiers empty these and leave the copies in the file's preamble
        image.SOPInstanceUID = item.sop_instance
        missing = [keyword for keyword in ("StudyInstanceUID", "SeriesInstanceUID") if not image.get(keyword)]
        if missing:
            raise InputError(
                f"the source images carry no {' and no '.join(missing)}, so a SEG could not be filed beside them; "
                "expected images as the scanner wrote them; write .seg.nrrd or .nii.gz instead"
            )
        if not image.get("SOPClassUID"):
            image.SOPClassUID = item.sop_class or _CLASS_OF_MODALITY.get(
                str(image.get("Modality")), _CLASS_OF_MODALITY["OT"]
            )
        if not image.get("FrameOfReferenceUID"):
            # the same for the whole series, so that two results of it share one
            image.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(image.get("SeriesInstanceUID", "")), "slice3d"])
        for keyword in _NEEDED:
            if keyword not in image:
                setattr(image, keyword, "")
        repair_patient(image)
        _measured_geometry(image, origin)
    return images


_CLASS_OF_MODALITY = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
}
_NEEDED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName", "StudyID",
)  # fmt: skip


def _measured_geometry(image: Any, origin: DicomSource) -> None:
    """Slice distance, spacing and orientation as measured, where highdicom looks for them."""
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    lps = LPS_TO_RAS @ origin.slices[0].affine
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / lengths
    thickness = format_number_as_ds(float(lengths[2]))
    if "PerFrameFunctionalGroupsSequence" not in image:
        if not image.get("SliceThickness"):
            image.SliceThickness = thickness
        if "SpacingBetweenSlices" in image:
            del image.SpacingBetweenSlices
        if origin.grid is not None and len(origin.slices) > 1:
            image.SpacingBetweenSlices = thickness
        return
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = [format_number_as_ds(float(lengths[1])), format_number_as_ds(float(lengths[0]))]
    measures.SliceThickness = thickness
    orientation.ImageOrientationPatient = [
        format_number_as_ds(float(x)) for x in (*directions[:, 0], *directions[:, 1])
    ]
    shared = (image.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    image.SharedFunctionalGroupsSequence = [shared]
    for groups in image.PerFrameFunctionalGroupsSequence:
        for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if keyword in groups:
                delattr(groups, keyword)


def _in_file_order(pixels: NDArray[Any], origin: DicomSource, images: list[Any]) -> NDArray[Any]:
    """Slices as highdicom expects them: one per source file, or one per frame of the one multi-frame file."""
    if "PerFrameFunctionalGroupsSequence" not in images[0]:
        return pixels
    if len(images) > 1:
        raise ValueError(f"the volume is spread over {len(images)} multi-frame files")
    out = np.zeros((int(images[0].NumberOfFrames), *pixels.shape[1:]), dtype=pixels.dtype)
    out[[item.frame for item in origin.slices]] = pixels
    return out


def _pixels(segmentation: Segmentation, origin: DicomSource, names: list[str], kind: Kind) -> NDArray[Any]:
    """(slices, rows, columns) of segment numbers, or (slices, rows, columns, segments) where structures may overlap."""
    columns, rows = origin.shape
    if kind == "fractional":
        out = np.zeros((len(origin.slices), rows, columns, len(names)), dtype=np.float32)
        for n, name in enumerate(names):
            field = segmentation.probabilities.get(name)
            values = segmentation.mask(name).astype(np.uint8) if field is None else np.clip(field, 0, 1)
            out[..., n] = on_slices(values, segmentation, origin, order=0 if field is None else 1)
        return out
    labels = on_slices(segmentation.labels, segmentation, origin)
    # a label excludes all others; a structure may be the union of several labels
    values = {name: (value,) for value, name in segmentation.names.items()} if kind == "labelmap" else {}
    owned = {name: values.get(name) or segmentation.values(name) for name in names}
    flat = [value for group in owned.values() for value in group]
    if len(flat) != len(set(flat)):
        return np.stack([np.isin(labels, owned[name]) for name in names], axis=-1).astype(np.uint8)
    table = np.zeros(int(max(labels.max(), *flat)) + 1, dtype=np.uint8 if len(names) < 256 else np.uint16)
    for number, name in enumerate(names, start=1):
        table[list(owned[name])] = number
    numbered: NDArray[Any] = table[labels]
    return numbered


def on_slices(values: NDArray[Any], segmentation: Segmentation, origin: DicomSource, *, order: int = 0) -> NDArray[Any]:
    """Values of a grid at the pixel centres of the acquired slices, (slices, rows, columns); 0 outside the grid.

    order 0 takes the voxel in which the centre lies, order 1 interpolates linearly.
    """
    columns, rows = origin.shape
    if origin.grid is not None and segmentation.grid.matches(origin.grid):
        return np.ascontiguousarray(values.transpose(2, 1, 0))
    from scipy.ndimage import map_coordinates

    inverse = np.linalg.inv(segmentation.grid.affine)
    out = np.zeros((len(origin.slices), rows, columns), dtype=values.dtype)
    i, j = np.meshgrid(np.arange(columns), np.arange(rows))
    for n, item in enumerate(origin.slices):
        matrix = inverse @ item.affine
        index = [matrix[a, 0] * i + matrix[a, 1] * j + matrix[a, 3] for a in range(3)]
        nearest = [np.floor(axis + 0.5).astype(np.intp) for axis in index]
        inside = np.logical_and.reduce(
            [(axis >= 0) & (axis < size) for axis, size in zip(nearest, values.shape, strict=True)]
        )
        if order:
            # between the outermost centres and the border of the grid their value holds
            out[n][inside] = map_coordinates(values, [axis[inside] for axis in index], order=order, mode="nearest")
        else:
            out[n][inside] = values[tuple(axis[inside] for axis in nearest)]
    return out
