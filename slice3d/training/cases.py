"""The torso cases by name: where each comes from, how its labels map to classes, everything on one RAS grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.training.structures import IGNORE, NO_ORGAN, SCHEMES, VALUES

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One training volume.

    image: (i, j, k) int16 HU (float32 where images are normalised one by one), axes growing to R, A, S.
    labels: (i, j, k) uint8 classes and partial labels.
    spacing_mm: along i, j, k.
    """

    name: str
    image: Array
    labels: Array
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Source:
    """Where a case lies below the data folder. spacing_mm overrides a header that cannot be right."""

    image: str
    labels: str = ""
    scheme: str = "totalsegmentator-v2"
    licence: str = ""
    spacing_mm: tuple[float, float, float] | None = None


_TS = "CC BY 4.0 (TotalSegmentator dataset v2, doi:10.5281/zenodo.6802613)"
_TSREF = "Apache-2.0 (TotalSegmentator reference files)"
LABELLED: dict[str, Source] = {
    "s0002": Source("ct-torso/labelled/s0002/ct.nii.gz", "ct-torso/labelled/s0002/labels.nii.gz", licence=_TS),
    "s0003": Source("ct-torso/labelled/s0003/ct.nii.gz", "ct-torso/labelled/s0003/labels.nii.gz", licence=_TS),
    "s0009": Source("ct-torso/labelled/s0009/ct.nii.gz", "ct-torso/labelled/s0009/labels.nii.gz", licence=_TS),
    # The copy of the SPL atlas is downsampled twofold but its header is not: as written, the trunk would be 205 mm wide
    # and a kidney 37 ml. 1.41 mm and 3 mm give 165 ml kidneys and a 307 mm wide trunk.
    "spl": Source("ct-torso/labelled/spl/ct.nii.gz", "ct-torso/labelled/spl/labels.nii.gz", scheme="spl-abdominal",
                  licence="3D Slicer licence (SPL/Open Anatomy abdominal atlas)", spacing_mm=(1.40625, 1.40625, 3.0)),
    "ts-example": Source("ct-torso/ts-example/ct_30slices.nii.gz", "ct-torso/ts-example/seg_30slices.nii.gz",
                         licence=_TSREF),
}  # fmt: skip
MAPS: dict[str, Source] = {
    name: Source("", f"ct-torso/labels-only/{name}.nii.gz", licence=_TS)
    for name in ("s0000", "s0001", "s0004", "s0006", "s0011")
}
UNLABELLED: dict[str, Source] = {
    "acrin-flt-breast-013": Source(
        "ct-torso/unlabelled/acrin-flt-breast-013.nii.gz", licence="CC BY 3.0 (TCIA ACRIN-FLT-Breast)"
    ),
    "cmb-crc-01068": Source("ct-torso/unlabelled/cmb-crc-01068.nii.gz", licence="CC BY 4.0 (TCIA CMB-CRC)"),
    "cort-liver": Source("ct-torso/unlabelled/cort-liver.nii.gz", licence="CC0 (matRad phantoms, CORT data set)"),
    "cptac-pda-00189": Source("ct-torso/unlabelled/cptac-pda-00189.nii.gz", licence="CC BY 3.0 (TCIA CPTAC-PDA)"),
    "ts-example-whole": Source("ct-torso/ts-example/ct.nii.gz", licence=_TSREF),
    "ct-abdomen-contrast": Source("dicom/ct-abdomen-contrast", licence="CC BY 4.0 (TCIA Pancreatic-CT-CBCT-SEG)"),
    "ct-20slices": Source("dicom/ct-20slices", licence=_TSREF),
}


def read(path: Path) -> tuple[Array, Grid]:
    """The voxels of a NIfTI file or DICOM folder as (i, j, k) with axes growing to R, A, S, and their grid."""
    from slice3d.io import load
    from slice3d.resample import reorient

    if not path.exists():
        raise InputError(f"no {path.name} in the training data; expected the layout of its README")
    volume = reorient(load(path))
    return np.asarray(volume.data), volume.grid


def respaced(image: Array, spacing_mm: tuple[float, ...], target_mm: tuple[float, ...]) -> Array:
    """The image averaged and interpolated to voxels of `target_mm`, same field of view; float32."""
    from scipy import ndimage

    ratio = np.asarray(target_mm) / np.asarray(spacing_mm)
    # a Gaussian of this width turns the finer sampling into about the coarser one's box average
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) * 0.35
    smooth = ndimage.gaussian_filter(image.astype(np.float32), sigma, mode="nearest")
    return _zoomed(smooth, spacing_mm, target_mm)


def respaced_labels(labels: Array, spacing_mm: tuple[float, ...], target_mm: tuple[float, ...]) -> Array:
    """Labels on the voxels that `respaced` gives: the class with the largest smoothed share of the voxel; uint8."""
    from scipy import ndimage

    ratio = np.asarray(target_mm) / np.asarray(spacing_mm)
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) * 0.35
    best: Array | None = None
    out: Array | None = None
    for value in np.unique(labels):
        share = _zoomed(ndimage.gaussian_filter((labels == value).astype(np.float32), sigma), spacing_mm, target_mm)
        if best is None or out is None:
            best, out = share, np.full(share.shape, value, np.uint8)
        else:
            out[share > best] = value
            best = np.maximum(best, share)
    if out is None:
        raise InputError("empty label volume; expected at least one voxel")
    return out


def _zoomed(array: Array, spacing_mm: tuple[float, ...], target_mm: tuple[float, ...]) -> Array:
    ratio = np.asarray(target_mm) / np.asarray(spacing_mm)
    shape = tuple(max(1, int(np.ceil(n / r - 1e-3))) for n, r in zip(array.shape, ratio, strict=True))
    return onto(array, spacing_mm, shape, target_mm)


def onto(image: Array, spacing_mm: tuple[float, ...], shape: tuple[int, ...], target_mm: tuple[float, ...]) -> Array:
    """The image on a grid of `shape` voxels of `target_mm` that begins at the same corner: between its voxels linearly.

    Whole numbers are rounded down to whole numbers: give it floats.
    """
    from scipy import ndimage

    ratio = np.asarray(target_mm) / np.asarray(spacing_mm)
    out: Array = ndimage.affine_transform(
        image, ratio, offset=(ratio - 1) / 2, output_shape=shape, order=1, mode="nearest"
    )
    return out


def mapped(values: Array, scheme: str) -> Array:
    """Label numbers of a naming scheme → the classes of `structures.LABELS`; everything else stays 0."""
    table = np.zeros(int(values.max()) + 1, np.uint8)
    for name, numbers in SCHEMES[scheme].items():
        for number in numbers:
            if number < len(table):
                table[number] = VALUES[name]
    return table[values]


def labelled_case(root: Path, name: str, *, spacing_mm: tuple[float, float, float]) -> Case:
    """A case with labels on its own CT; the body is filled in from the image, unlabelled tissue in it is `body`."""
    from slice3d.training import rules

    source = LABELLED[name]
    image, grid = read(root / source.image)
    values, _ = read(root / source.labels)
    if values.shape != image.shape:
        raise InputError(f"{name}: labels {values.shape} and image {image.shape} differ; expected one grid")
    old = source.spacing_mm or grid.spacing_mm
    labels = respaced_labels(mapped(values.astype(np.int32), source.scheme), old, spacing_mm)
    hu = np.rint(respaced(np.maximum(image, -1024), old, spacing_mm)).astype(np.int16)
    ruled = rules.label(hu, spacing_mm)
    # the atlas of spl names less than the others do: what it leaves out may be heart, muscle or vessel
    out = rules.with_body(labels, ruled, rest=NO_ORGAN if name == "spl" else VALUES["body"])
    if name == "spl":
        out = rules.with_open_bone(rules.with_lungs(out, labels, ruled), labels, ruled)
    if name == "ts-example":
        out = rules.distrust_border(out, labels)
    return Case(name, hu, out, spacing_mm)


def unlabelled_case(root: Path, name: str, *, spacing_mm: tuple[float, float, float]) -> Case:
    """A case without labels: body, lungs and bone by rules on HU, partial labels elsewhere."""
    from slice3d.training import rules

    source = UNLABELLED[name]
    image, grid = read(root / source.image)
    hu = np.rint(respaced(np.maximum(image, -1024), source.spacing_mm or grid.spacing_mm, spacing_mm)).astype(np.int16)
    return Case(name, hu, rules.label(hu, spacing_mm), spacing_mm)


def body_box(case: Case, *, margin: int = 8) -> tuple[slice, slice, slice]:
    """The outermost labelled voxels and a margin around them; all of it where nothing is labelled."""
    inside = (case.labels != 0) & (case.labels != IGNORE)
    box = [slice(0, n) for n in inside.shape]
    if inside.any():
        for axis in range(3):
            where = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
            box[axis] = slice(max(0, int(where[0]) - margin), int(where[-1]) + 1 + margin)
    return box[0], box[1], box[2]


def cropped_to_body(case: Case, *, margin: int = 8) -> Case:
    """The case without the empty air around the body."""
    box = body_box(case, margin=margin)
    return Case(case.name, case.image[box].copy(), case.labels[box].copy(), case.spacing_mm)


def save(case: Case, folder: Path) -> None:
    """Write `<name>.image.npy`, `<name>.labels.npy` and `<name>.json`, to be mapped into memory while training."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{case.name}.image.npy", case.image)
    np.save(folder / f"{case.name}.labels.npy", case.labels.astype(np.uint8))
    values, counts = np.unique(case.labels, return_counts=True)
    facts: Mapping[str, Any] = {
        "spacing_mm": list(case.spacing_mm),
        "voxels": {int(v): int(n) for v, n in zip(values, counts, strict=True)},
    }
    (folder / f"{case.name}.json").write_text(json.dumps(facts))


def load_case(folder: Path, name: str) -> Case:
    """What `save` wrote."""
    facts = json.loads((folder / f"{name}.json").read_text())
    a, b, c = (float(s) for s in facts["spacing_mm"])
    return Case(name, np.load(folder / f"{name}.image.npy"), np.load(folder / f"{name}.labels.npy"), (a, b, c))
