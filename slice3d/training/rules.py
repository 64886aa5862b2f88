"""Labels that Hounsfield units alone give: the body, the lungs and (its sure part) bone on a real CT."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.training.structures import (
    IGNORE,
    IN_BODY,
    NOT_LUNG_OR_BONE,
    PARTIAL,
    SOFT_TISSUE,
    SOFT_TISSUE_OR_BONE,
    VALUES,
)

Array = NDArray[Any]
_LEFT, _RIGHT, _BONE, _BODY = (VALUES[n] for n in ("lung_left", "lung_right", "bone", "body"))


def body_mask(hu: Array, spacing_mm: tuple[float, ...]) -> Array:
    """(i, j, k) bool: the patient without the table, holes filled slice by slice.

    Tissue above −300 HU, opened to cut the table and blankets off, largest connected part and parts at least a tenth
    of it (arms).
    """
    from scipy import ndimage

    tissue = hu > -300
    opened = ndimage.binary_opening(tissue, iterations=max(1, round(5.0 / min(spacing_mm[:2]))))
    parts, n = ndimage.label(opened)
    if not n:
        return tissue
    sizes = np.bincount(parts.ravel())[1:]
    keep = np.isin(parts, 1 + np.flatnonzero(sizes >= 0.1 * sizes.max()))
    grown = ndimage.binary_dilation(keep, iterations=2) & tissue | keep
    closed = ndimage.binary_closing(np.pad(grown, 3), iterations=2)[3:-3, 3:-3, 3:-3] | grown
    filled: Array = np.stack([ndimage.binary_fill_holes(closed[:, :, k]) for k in range(hu.shape[2])], axis=2)
    return filled


def lung_masks(hu: Array, body: Array, spacing_mm: tuple[float, ...]) -> tuple[Array, Array, Array]:
    """(left, right, unsure) bool masks. Air in the body below −400 HU, airways and bowel gas taken out as unsure.

    A lung is a part of at least 60 ml that reaches beside the spine in the body's upper part; two lungs that touch are
    split by a watershed from their eroded cores. A lung that the first or last slice cuts goes on beyond it.
    """
    beyond = ((0, 0), (0, 0), (4, 4))
    masks = _lung_masks(np.pad(hu, beyond, mode="edge"), np.pad(body, beyond, mode="edge"), spacing_mm)
    left, right, unsure = (mask[:, :, 4:-4] for mask in masks)
    return left, right, unsure


def _lung_masks(hu: Array, body: Array, spacing_mm: tuple[float, ...]) -> tuple[Array, Array, Array]:
    """As `lung_masks`, on a volume whose first and last slice are repeated four times: they count for no volume."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    voxel_ml = float(np.prod(spacing_mm)) / 1000
    air = (hu < -400) & body
    tracheal = ndimage.binary_opening((hu < -930) & body, iterations=1)
    parts, n = ndimage.label(ndimage.binary_opening(air & ~tracheal, iterations=1))
    empty = np.zeros(hu.shape, bool)
    if not n:
        return empty, empty, air
    sizes = np.bincount(parts[:, :, 4:-4].ravel(), minlength=n + 1).astype(float) * voxel_ml
    median = ndimage.median(hu, parts, np.arange(n + 1))
    lungs = np.isin(parts, [v for v in range(1, n + 1) if sizes[v] > 60 and median[v] > -950])
    if not lungs.any():
        return empty, empty, air
    middle = np.array([np.flatnonzero(body[:, :, k].any(axis=1)).mean() if body[:, :, k].any() else hu.shape[0] / 2
                       for k in range(hu.shape[2])])  # fmt: skip
    side = np.arange(hu.shape[0])[:, None, None] - np.round(ndimage.gaussian_filter1d(middle, 3))[None, None, :]
    core = ndimage.binary_erosion(lungs, iterations=3)
    markers = np.zeros(hu.shape, np.int32)
    reach = 25.0 / spacing_mm[0]
    markers[core & (side < -reach)] = 1
    markers[core & (side > reach)] = 2
    distance = ndimage.distance_transform_edt(lungs)
    split = watershed(  # type: ignore[no-untyped-call]
        -distance, markers, mask=lungs
    )
    closed = [ndimage.binary_closing(split == v, iterations=2) & body for v in (1, 2)]
    left, right = closed[0] & ~(split == 2), closed[1] & ~(split == 1) & ~closed[0]
    return left, right, air & ~left & ~right


def label(hu: Array, spacing_mm: tuple[float, ...]) -> Array:
    """Classes and partial labels of one CT (uint8): what HU cannot decide is left open, not guessed.

    Bone: what exceeds 450 HU in parts above 250 HU that hold at least 1 ml above 600 HU and are too thin for a vessel
    or heart full of contrast medium. Other bright voxels and the fringe beside bone stay open.
    """
    from scipy import ndimage

    body = body_mask(hu, spacing_mm)
    left, right, air = lung_masks(hu, body, spacing_mm)
    out = np.zeros(hu.shape, np.uint8)
    out[body] = SOFT_TISSUE
    near_air = ndimage.binary_dilation(left | right, iterations=2) & body & ~(left | right)
    out[near_air] = IN_BODY
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    bright = (hu > 130) & body
    parts, n = ndimage.label(hu > 250)
    dense = np.bincount(parts[(hu > 600)], minlength=n + 1).astype(float) * voxel_ml
    dense[0] = 0
    sure = np.isin(parts, np.flatnonzero(dense >= 1.0)) & body & ~contrast_filled(hu, spacing_mm)
    out[bright] = SOFT_TISSUE_OR_BONE
    fringe = ndimage.binary_closing(np.pad(sure, 4), iterations=3)[4:-4, 4:-4, 4:-4] & body & (hu > -20)
    out[fringe & (out == SOFT_TISSUE)] = SOFT_TISSUE_OR_BONE
    out[sure & (hu > 450)] = _BONE
    out[marrow(hu, sure, spacing_mm) & np.isin(out, (SOFT_TISSUE, SOFT_TISSUE_OR_BONE))] = _BONE
    # the edges of a lung are air that its smooth mask leaves out: only air far from lungs is surely none
    lung_edge = ndimage.binary_dilation(left | right, iterations=4)
    out[air & lung_edge] = IGNORE
    out[air & ~lung_edge] = NOT_LUNG_OR_BONE
    out[left], out[right] = _LEFT, _RIGHT
    rim = body ^ ndimage.binary_erosion(body, iterations=1, border_value=1)  # a body that the image cuts goes on
    out[rim & (out == SOFT_TISSUE)] = NOT_LUNG_OR_BONE
    return out


def marrow(hu: Array, bone: Array, spacing_mm: tuple[float, ...], *, largest_cm2: float = 20.0) -> Array:
    """What compact bone encloses slice by slice, but for the spinal canal, which is darker than 60 HU.

    bone: sure bone. Its shell is what exceeds 180 HU beside it. Holes larger than `largest_cm2` are no marrow: a skull
    holds a brain, a pelvis its organs.
    """
    from scipy import ndimage

    near = ndimage.binary_dilation(bone, iterations=4)
    shell = bone | (near & (hu > 180))
    limit = 100 * largest_cm2 / (spacing_mm[0] * spacing_mm[1])
    out = np.zeros(hu.shape, bool)
    for k in range(hu.shape[2]):
        plane = np.pad(shell[:, :, k], 2)
        closed = ndimage.binary_closing(plane, iterations=1)
        holes, n = ndimage.label((ndimage.binary_fill_holes(closed) & ~plane)[2:-2, 2:-2])
        if n:
            small = np.flatnonzero(np.bincount(holes.ravel())[1:] <= limit) + 1
            out[:, :, k] = np.isin(holes, small)
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), 0.7)
    kept: Array = (out & (smooth > 60)) | (
        shell & ndimage.binary_dilation(out, iterations=1) & ndimage.binary_dilation(bone, iterations=1)
    )
    return kept


def contrast_filled(hu: Array, spacing_mm: tuple[float, ...]) -> Array:
    """Where a ball of 10 mm radius fits into what is brighter than 250 HU: heart, aorta or kidney, hardly ever bone."""
    from scipy import ndimage

    reach = 10.0
    bright = np.pad(hu > 250, 1)
    core = ndimage.distance_transform_edt(bright, sampling=spacing_mm) > reach
    grown: Array = ndimage.distance_transform_edt(~core, sampling=spacing_mm) <= reach + 2 * max(spacing_mm)
    return grown[1:-1, 1:-1, 1:-1] if core.any() else np.zeros(hu.shape, bool)


def with_body(labels: Array, ruled: Array, *, rest: int = _BODY) -> Array:
    """Labelled organs over a ruled body: what the annotator left 0 inside the body is `rest`."""
    out = labels.copy()
    inside = (ruled != 0) & (labels == 0)
    out[inside] = rest
    return out


def with_open_bone(labels: Array, annotated: Array, ruled: Array) -> Array:
    """Labels of an annotator who drew some bones only: what else may be one stays open."""
    out = labels.copy()
    out[(annotated == 0) & ((ruled == _BONE) | (ruled == SOFT_TISSUE_OR_BONE))] = SOFT_TISSUE_OR_BONE
    return out


def with_lungs(labels: Array, annotated: Array, ruled: Array) -> Array:
    """Add the ruled lungs to labels of an annotator who drew none; air and lung borders they leave unsure stay open."""
    out = labels.copy()
    free = annotated == 0
    out[free & ((ruled == NOT_LUNG_OR_BONE) | (ruled == IN_BODY))] = IGNORE
    for value in (_LEFT, _RIGHT):
        out[free & (ruled == value)] = value
    return out


def distrust_border(labels: Array, annotated: Array) -> Array:
    """Leave the end slices of a predicted label map open where a cropped network had no context."""
    out = labels.copy()
    for k in (0, labels.shape[2] - 1):
        plane = out[:, :, k]
        plane[(annotated[:, :, k] == 0) & (plane == _BODY)] = SOFT_TISSUE_OR_BONE
    return out


def partial_values() -> tuple[int, ...]:
    """The label numbers that stand for several classes."""
    return tuple(PARTIAL)
