"""Where a field of view ends: at the sides of the image, and in CT where the reconstruction left it blank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slice3d.volume import Segmentation, Volume

EDGE = "edge of the reconstruction"
_PADDED_MM = 1.5  # thickest voxel that may be left out at the border of the field of view
_LOOK_MM = 3.0  # networks leave out a voxel or two beside blank ones; skin, fat and muscle over an organ are thicker
_BLANK_HU = -500.0
_BLANK_SHARE = 0.1  # of the image's rim that is one value: air varies


def sides(result: Segmentation) -> dict[str, NDArray[np.float64]]:
    """Side of the field of view → mm² that each label value covers of it.

    Networks may leave out the outermost voxels, beside which they see padding: where fine ones are empty, the next count.
    """
    grid, labels = result.grid, result.labels
    most = int(labels.max(initial=0)) + 1
    found = {}
    for axis in range(3):
        area = float(np.prod([s for n, s in enumerate(grid.spacing_mm) if n != axis]))
        for last in (False, True):
            depth = min(2 if grid.spacing_mm[axis] <= _PADDED_MM else 1, labels.shape[axis])
            planes = np.moveaxis(labels, axis, 0)[:: -1 if last else 1][:depth]
            counts = [np.bincount(plane.ravel(), minlength=most) for plane in planes]
            found[grid.end(axis, last)] = np.where(counts[0] > 0, counts[0], counts[-1]).astype(np.float64) * area
    return found


def beside_blank(result: Segmentation, image: Volume) -> NDArray[np.float64]:
    """mm² that each label value covers of the edge of what was reconstructed: scanners leave the rest of a slice blank.

    Blank is what has the commonest value of the axial slices' rims, if that is below −500 HU and a tenth of them has it, and
    is connected with the rim within its slice: gas in a bowel is not. Looked at every 3 mm. Organs only, please: skin is
    always beside something blank. Images other than CT have no such edge: in them background can be what was masked.
    """
    from scipy import ndimage

    grid = result.grid
    out = np.zeros(int(result.labels.max(initial=0)) + 1)
    if image.modality != "CT":
        return out
    up = grid.world_axes.index(2)
    steps = [max(1, round(_LOOK_MM / s)) for s in grid.spacing_mm]
    thin = tuple(slice(None, None, step) for step in steps)
    across = [axis for axis in range(3) if axis != up]
    values, labels = (np.moveaxis(array[thin], up, 2) for array in (image.data, result.labels))
    blank = _blank(values)
    if not blank.any():
        return out
    within = np.zeros((3, 3, 3), bool)
    within[:, 1, 1] = within[1, :, 1] = True
    parts, count = ndimage.label(blank, structure=within)
    outer = np.zeros(count + 1, bool)
    for rim in _rims(parts):
        outer[rim] = True
    outer[0] = False
    blank = outer[parts]
    for axis in (0, 1):
        height = grid.spacing_mm[up] * steps[up]
        area = height * grid.spacing_mm[across[1 - axis]] * steps[across[1 - axis]]
        a, b = (np.moveaxis(array, axis, 0) for array in (labels, blank))
        for inside, there, beyond in ((a[1:], b[1:], b[:-1]), (a[:-1], b[:-1], b[1:])):
            out += np.bincount(inside[beyond & ~there], minlength=len(out)) * area
    return out * np.pi / 4  # faces of voxels overstate an edge that runs in all directions by 4/π


def _blank(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """(i, j, slices) bool: what has the value that rims of slices are left blank with."""
    rim = np.concatenate([side.ravel() for side in _rims(values)])
    found, counts = np.unique(rim, return_counts=True)
    commonest = int(counts.argmax())
    if found[commonest] > _BLANK_HU or counts[commonest] < _BLANK_SHARE * len(rim):
        return np.zeros(values.shape, bool)
    out: NDArray[np.bool_] = values == found[commonest]
    return out


def _rims(array: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    return [array[0], array[-1], array[:, 0], array[:, -1]]
