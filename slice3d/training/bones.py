"""Whole bones, marrow included, on CTs that nobody labelled: a network's guess, Hounsfield units and boxes set by eye.

Rules on HU (`rules.py`) are sure of compact bone only. Here a network says where bones are, their rim is drawn at a share
of the brightest HU nearby, what a rim encloses in two of three planes is marrow, and a person who looked at the result
says in `SEEN` where it is wrong. As in `annotate.py`, the outlines that were looked at are kept in `outlines.npz`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.training import rules
from slice3d.training.annotate import Box, inside
from slice3d.training.cases import Case
from slice3d.training.structures import SOFT_TISSUE, SOFT_TISSUE_OR_BONE, VALUES

Array = NDArray[Any]
_BONE = VALUES["bone"]
_RIM_HU = 150.0
_LARGEST_CM2 = 20.0


@dataclass(frozen=True)
class Skeleton:
    """What the eye adds for one case. Boxes are (first, last + 1) along i, j, k of the 3 mm grid of outlines.

    not_bone: bright, but contrast medium, calcified vessels or metal. open: left undecided. spongy: box and HU above which
    everything in it is bone: vertebral bodies without a visible shell. flat: in each axial slice the convex hull of every
    bright part is bone: the breastbone.
    """

    not_bone: tuple[Box, ...] = ()
    open: tuple[Box, ...] = ()
    spongy: tuple[tuple[Box, float], ...] = ()
    flat: tuple[Box, ...] = ()


_ALL = (0, 999)
SEEN: dict[str, Skeleton] = {
    "acrin-flt-breast-013": Skeleton(flat=(((55, 86), (58, 70), (8, 64)),), open=((_ALL, _ALL, (63, 99)),)),
    "cmb-crc-01068": Skeleton(
        not_bone=(((38, 115), (41, 79), (0, 47)), ((38, 115), (38, 74), (47, 56))),
        open=(((28, 84), (46, 84), (56, 99)), ((60, 95), (74, 90), (47, 56))),
        flat=(((64, 92), (79, 92), (0, 47)),),
    ),
    "cort-liver": Skeleton(
        not_bone=(((70, 110), (55, 82), (110, 140)),),
        spongy=((((78, 106), (54, 69), (14, 34)), 95), (((78, 104), (51, 67), (34, 46)), 95),
                (((78, 103), (47, 65), (46, 62)), 95)),
    ),
    "cptac-pda-00189": Skeleton(
        not_bone=(((72, 98), (58, 82), (4, 32)),), open=(((60, 95), (78, 100), (44, 99)), ((70, 82), (48, 64), (0, 10))),
    ),
    "ct-20slices": Skeleton(),
    "ct-abdomen-contrast": Skeleton(
        not_bone=(((56, 112), (51, 80), (104, 134)),), open=(((70, 92), (46, 60), (50, 68)),),
    ),
    "ts-example-whole": Skeleton(open=(((40, 80), (0, 24), (8, 38)),)),
}  # fmt: skip
"""Seen on sixteen planes of each case."""


def whole_bones(case: Case, shares: Array, seen: Skeleton) -> Array:
    """Labels of `case` with its bones whole: bone, SOFT_TISSUE where something bright is none, open where nobody knows.

    shares: (C, i, j, k) a network's class probabilities on the case's grid.
    """
    from scipy import ndimage

    organs = np.isin(case.labels, [VALUES[n] for n in ("liver", "spleen", "kidney_left", "kidney_right", "aorta")])
    barred = organs.copy()
    for box in seen.not_bone:
        barred[inside(box)] = True
    # bones that the first or last slice cuts go on beyond it
    beyond = ((0, 0), (0, 0), (4, 4))
    longer = replace(case, image=np.pad(case.image, beyond, mode="edge"))
    found = _outline(longer, np.pad(shares, ((0, 0), *beyond), mode="edge"), np.pad(barred, beyond, mode="edge"))[
        :, :, 4:-4
    ]
    smooth = ndimage.gaussian_filter(case.image.astype(np.float32), 0.7)
    for box, least in seen.spongy:
        at = inside(box)
        filled = found[at] | ((smooth[at] > least) & ~barred[at])
        found[at] = ndimage.binary_closing(np.pad(filled, 2))[2:-2, 2:-2, 2:-2] & ~barred[at]
    for box in seen.flat:
        at = inside(box)
        found[at] |= _hulls((case.image[at] > _RIM_HU - 30) & ~barred[at])
    out = case.labels.copy()
    body = (out == SOFT_TISSUE) | (out == SOFT_TISSUE_OR_BONE) | (out == _BONE)
    body |= np.isin(out, (VALUES["body"], *range(250, 253))) & found
    undecided = np.zeros(out.shape, bool)
    for box in seen.open:
        undecided[inside(box)] = True
    rim = ndimage.binary_dilation(found) & ~found & (case.image > 100)
    out[(out == _BONE) | (out == SOFT_TISSUE_OR_BONE)] = SOFT_TISSUE
    out[rim & (out == SOFT_TISSUE)] = SOFT_TISSUE_OR_BONE
    out[found & body] = _BONE
    bright = (case.labels == _BONE) | (case.labels == SOFT_TISSUE_OR_BONE) | (found & body)
    out[undecided & bright] = SOFT_TISSUE_OR_BONE
    return out


def _outline(case: Case, shares: Array, barred: Array) -> Array:
    from scipy import ndimage

    hu, spacing = case.image.astype(np.float32), case.spacing_mm
    voxel_ml = float(np.prod(spacing)) / 1000
    body = rules.body_mask(hu, spacing)
    core = (shares.argmax(0) == _BONE) & (hu > -100) & body & ~barred
    parts, n = ndimage.label(hu > 250)
    dense = np.bincount(parts[hu > 600], minlength=n + 1) * voxel_ml
    dense[0] = 0
    sure = np.isin(parts, np.flatnonzero(dense >= 1.0)) & ~rules.contrast_filled(hu, spacing) & body & ~barred
    likely = ndimage.binary_dilation(shares[_BONE] > 0.25, iterations=2)
    bright = ((sure & likely) | (ndimage.binary_dilation(core) & (hu > _RIM_HU))) & ~barred
    # where bone ends, HU are halfway between it and muscle; noise makes the brightest voxel nearby too bright for that
    near = np.linalg.norm(np.indices((5, 5, 5)) - 2, axis=0) <= 2.3
    brightest = ndimage.maximum_filter(np.clip(hu, -200, 1500), footprint=near)
    rim = bright & (hu > np.maximum(_RIM_HU, 0.35 * (brightest + 50)))
    solid = rim | ndimage.binary_erosion(core)
    closed = ndimage.binary_closing(np.pad(solid, 4), iterations=2)[4:-4, 4:-4, 4:-4]
    smooth = ndimage.gaussian_filter(hu, 0.7)
    enclosed = (_enclosed(solid, spacing) >= 2) & (smooth > -90)
    whole = solid | ((enclosed | (ndimage.binary_erosion(closed) & (smooth > 90))) & ~barred)
    labelled, _ = ndimage.label(whole)
    sizes = np.bincount(labelled.ravel()) * voxel_ml
    sizes[0] = 0
    found: Array = np.isin(labelled, np.flatnonzero(sizes >= 0.3))
    return found


def _enclosed(solid: Array, spacing_mm: tuple[float, ...]) -> Array:
    """In how many of the three planes through a voxel it lies in a hole of `solid` no larger than a bone's inside."""
    from scipy import ndimage

    votes = np.zeros(solid.shape, np.uint8)
    for axis in range(3):
        across = [s for n, s in enumerate(spacing_mm) if n != axis]
        limit = 100 * _LARGEST_CM2 / (across[0] * across[1])
        for plane, vote in zip(np.moveaxis(solid, axis, 0), np.moveaxis(votes, axis, 0), strict=True):
            padded = np.pad(plane, 3)
            closed = ndimage.binary_closing(padded, iterations=2)
            holes, n = ndimage.label((ndimage.binary_fill_holes(closed) & ~padded)[3:-3, 3:-3])
            small = np.flatnonzero(np.bincount(holes.ravel(), minlength=n + 1)[1:] <= limit) + 1
            vote += np.isin(holes, small)
    return votes


def _hulls(bright: Array) -> Array:
    """Convex hull of each part of at least four voxels, slice by slice along k."""
    from scipy import ndimage
    from skimage.measure import regionprops

    out = np.zeros(bright.shape, bool)
    for k in range(bright.shape[2]):
        parts, _ = ndimage.label(bright[:, :, k], structure=np.ones((3, 3)))
        for part in regionprops(parts):  # type: ignore[no-untyped-call]
            if part.area >= 4 and min(part.image.shape) > 1:
                out[(*part.slice, k)] |= part.image_convex
    return out
