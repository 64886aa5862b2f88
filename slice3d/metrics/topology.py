"""Topology of masks: connected parts, tunnels, cavities, and overlap of the centrelines of tubes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import InputError
from slice3d.metrics.overlap import Counts, as_mask, as_masks
from slice3d.metrics.pairs import bounding_box


def neighbourhood(connectivity: int) -> NDArray[np.bool_]:
    """(3, 3, 3) neighbours of a voxel: 6 (over faces), 18 (and edges) or 26 (and corners). Raises `InputError`."""
    from scipy import ndimage

    ranks = {6: 1, 18: 2, 26: 3}
    if connectivity not in ranks:
        raise InputError(f"connectivity is {connectivity}; expected 6, 18 or 26")
    out: NDArray[np.bool_] = ndimage.generate_binary_structure(3, ranks[connectivity])
    return out


def components(mask: ArrayLike, *, connectivity: int = 26) -> int:
    """Number of connected pieces of a mask: 0 for an empty one. connectivity: see `neighbourhood`."""
    from scipy import ndimage

    voxels = as_mask(mask, "the mask")
    box = bounding_box(voxels)
    return int(ndimage.label(voxels[box], neighbourhood(connectivity))[1]) if box is not None else 0


@dataclass(frozen=True)
class Betti:
    """Betti numbers: parts (b0), tunnels (b1) and enclosed cavities (b2) of a mask."""

    components: int
    tunnels: int
    cavities: int

    @property
    def euler(self) -> int:
        """Euler characteristic, b0 − b1 + b2."""
        return self.components - self.tunnels + self.cavities


def betti_numbers(mask: ArrayLike) -> Betti:
    """Betti numbers of a mask whose voxels touch over faces, edges and corners (26), its outside over faces (6).

    b0 counts the parts, b2 the parts of the outside that do not reach beyond the array, and b1 = b0 + b2 − χ with the
    Euler characteristic χ of the union of closed voxel cubes (vertices − edges + faces − cubes). Units: none.
    Range: 0…∞, a description, none is better. Empty: (0, 0, 0). Reference: Kong and Rosenfeld, CVGIP 48 (1989) 357–393.
    """
    from scipy import ndimage

    padded = np.pad(as_mask(mask, "the mask"), 1)
    parts = int(ndimage.label(padded, np.ones((3, 3, 3)))[1])
    cavities = int(ndimage.label(~padded)[1]) - 1
    return Betti(parts, parts + cavities - euler_characteristic(mask), cavities)


def euler_characteristic(mask: ArrayLike) -> int:
    """Euler characteristic of the union of closed voxel cubes: vertices − edges + faces − cubes."""
    padded = np.pad(as_mask(mask, "the mask"), 1)
    total = 0
    for axes in range(8):
        cells = padded
        for axis in range(3):
            if axes >> axis & 1:
                # a face (edge, vertex) belongs to the union when a voxel on either side does
                low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
                high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
                cells = cells[low] | cells[high]
        dimension = 3 - axes.bit_count()
        total += (-1) ** dimension * int(np.count_nonzero(cells))
    return total


def betti_errors(prediction: ArrayLike, reference: ArrayLike) -> Betti:
    """Absolute differences of the Betti numbers. Unit: none. Range: 0…∞, lower is better; both empty: 0, 0, 0; one empty: the numbers of the other.

    Reference: Hu et al., Topology-preserving deep image segmentation, NeurIPS 2019 (there in patches, here whole).
    """
    a, b = (betti_numbers(mask) for mask in as_masks(prediction, reference))
    return Betti(abs(a.components - b.components), abs(a.tunnels - b.tunnels), abs(a.cavities - b.cavities))


def cl_dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Centreline Dice of tubes: harmonic mean of |S(A)∩B| / |S(A)| and |S(B)∩A| / |S(B)|, with S the skeleton.

    The skeleton is the 3D thinning of Lee, Kashyap and Chu (1994). It works on voxels: spacing does not enter.
    Unit: none. Range: 0…1, higher is better. Both empty: NaN. One empty: 0. No overlap: 0.
    Reference: Shit et al., clDice, CVPR 2021.
    """
    from skimage import morphology

    a, b = as_masks(prediction, reference)
    counts = Counts(int(a.sum()), int(b.sum()), 0)
    if counts.status != "ok":
        return counts.dice
    skeletonize: Any = morphology.skeletonize
    one, other = skeletonize(a) > 0, skeletonize(b) > 0
    topological_precision = np.count_nonzero(one & b) / np.count_nonzero(one)
    topological_sensitivity = np.count_nonzero(other & a) / np.count_nonzero(other)
    total = topological_precision + topological_sensitivity
    return float(2 * topological_precision * topological_sensitivity / total) if total else 0.0
