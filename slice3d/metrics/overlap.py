"""Overlap of two masks on one grid: counts, the ratios made of them, and boundary IoU.

Each function takes two boolean (or 0/1 integer) masks of the same shape, prediction first. Where exactly one of the two
is empty (a missed or an invented structure) every ratio is 0, so that leaving a difficult structure out never raises a
mean; where both are empty there is nothing to measure and every ratio is NaN, which the summary tables count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import InputError
from slice3d.grid import Grid


@dataclass(frozen=True)
class Counts:
    """Voxels of the prediction, of the reference, and of both."""

    prediction: int
    reference: int
    both: int

    @property
    def status(self) -> str:
        """`"ok"`, `"missed"` (only the reference), `"invented"` (only the prediction) or `"both empty"`."""
        if self.prediction and self.reference:
            return "ok"
        if self.reference:
            return "missed"
        return "invented" if self.prediction else "both empty"

    def ratio(self, numerator: float, denominator: float) -> float:
        """The ratio, 0 where exactly one mask is empty, NaN where both are."""
        if self.status == "both empty":
            return math.nan
        return numerator / denominator if self.status == "ok" else 0.0

    @property
    def dice(self) -> float:
        """See `dice`."""
        return self.ratio(2 * self.both, self.prediction + self.reference)

    @property
    def jaccard(self) -> float:
        """See `jaccard`."""
        return self.ratio(self.both, self.prediction + self.reference - self.both)

    @property
    def sensitivity(self) -> float:
        """See `sensitivity`."""
        return self.ratio(self.both, self.reference)

    @property
    def precision(self) -> float:
        """See `precision`."""
        return self.ratio(self.both, self.prediction)

    @property
    def volume_similarity(self) -> float:
        """See `volume_similarity`."""
        total = self.prediction + self.reference
        return self.ratio(total - abs(self.prediction - self.reference), total)


def as_mask(mask: ArrayLike, what: str = "mask") -> NDArray[np.bool_]:
    """A boolean array from a boolean or 0/1 integer one.

    Raises `InputError` for floats (a probability map has to be thresholded first, and NaN has no side) and for integers
    other than 0 and 1 (a label map has to be split first).
    """
    array = np.asarray(mask)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind == "f":
        nan = ", with NaN" if np.isnan(array).any() else ""
        raise InputError(
            f"{what} holds {array.dtype} values{nan}; expected True/False; threshold it first, e.g. mask > 0.5"
        )
    if array.dtype.kind not in "iu":
        raise InputError(f"{what} has dtype {array.dtype}; expected True/False")
    if array.size and (array.min() < 0 or array.max() > 1):
        raise InputError(
            f"{what} holds integers other than 0 and 1; expected one structure; compare with its label first"
        )
    out: NDArray[np.bool_] = array.astype(bool)
    return out


def as_masks(prediction: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both masks as booleans of one shape. Raises `InputError` otherwise."""
    a, b = as_mask(prediction, "the prediction"), as_mask(reference, "the reference")
    if a.shape != b.shape:
        raise InputError(
            f"the prediction has shape {a.shape}, the reference {b.shape}; expected the same grid; resample one"
        )
    return a, b


def count(prediction: ArrayLike, reference: ArrayLike) -> Counts:
    """Count the voxels of both masks and of their intersection."""
    a, b = as_masks(prediction, reference)
    return Counts(int(np.count_nonzero(a)), int(np.count_nonzero(b)), int(np.count_nonzero(a & b)))


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Dice similarity coefficient, 2·|A∩B| / (|A|+|B|).

    Unit: none. Range: 0…1, higher is better. Both empty: NaN. One empty: 0. No overlap: 0.
    Reference: Dice, Ecology 26 (1945) 297–302; Sørensen 1948.
    """
    return count(prediction, reference).dice


def jaccard(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Jaccard index (intersection over union), |A∩B| / |A∪B|.

    Unit: none. Range: 0…1, higher is better. Both empty: NaN. One empty: 0. No overlap: 0.
    Reference: Jaccard, New Phytologist 11 (1912) 37–50.
    """
    return count(prediction, reference).jaccard


def sensitivity(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Sensitivity (recall), |A∩B| / |B| with B the reference.

    Unit: none. Range: 0…1, higher is better. Both empty: NaN. One empty: 0. No overlap: 0.
    Reference: Taha and Hanbury, BMC Medical Imaging 15 (2015) 29.
    """
    return count(prediction, reference).sensitivity


def precision(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Precision (positive predictive value), |A∩B| / |A| with A the prediction.

    Unit: none. Range: 0…1, higher is better. Both empty: NaN. One empty: 0 (an empty prediction has no precision;
    0 keeps a model that leaves structures out from gaining). No overlap: 0.
    Reference: Taha and Hanbury, BMC Medical Imaging 15 (2015) 29.
    """
    return count(prediction, reference).precision


def volume_similarity(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Volume similarity, 1 − ||A|−|B|| / (|A|+|B|). It does not look at position.

    Unit: none. Range: 0…1, higher is better. Both empty: NaN. One empty: 0. No overlap: as computed.
    Reference: Taha and Hanbury, BMC Medical Imaging 15 (2015) 29.
    """
    return count(prediction, reference).volume_similarity


def volume_ml(mask: ArrayLike, grid: Grid) -> float:
    """Volume of the voxels of one mask on `grid`: voxel count times the volume of the voxel parallelepiped.

    Unit: ml. Range: 0…∞. Empty: 0.
    """
    return float(np.count_nonzero(as_mask(mask)) * grid.voxel_volume_mm3 / 1000.0)


def volume_difference_ml(prediction: ArrayLike, reference: ArrayLike, grid: Grid) -> float:
    """Signed volume difference, V(A) − V(B): positive where the prediction is too large.

    Unit: ml. Range: −∞…∞, 0 is best. Both empty: 0. One empty: the whole volume of the other. No overlap: as computed.
    """
    counts = count(prediction, reference)
    return (counts.prediction - counts.reference) * grid.voxel_volume_mm3 / 1000.0


def boundary_iou(prediction: ArrayLike, reference: ArrayLike, grid: Grid, *, width_mm: float) -> float:
    """Boundary IoU: Jaccard index of the two inner boundary bands.

    The band of a mask is every voxel of it with an outside face neighbour, or with the centre of any outside voxel at
    most `width_mm` away (outside the array counts as outside the structure). Unit: none. Range: 0…1, higher is better.
    Both empty: NaN. One empty: 0. No overlap: 0. Reference: Cheng et al., Boundary IoU, CVPR 2021.
    """
    a, b = as_masks(prediction, reference)
    return band_counts(a, b, grid, width_mm).jaccard


def band_counts(a: NDArray[np.bool_], b: NDArray[np.bool_], grid: Grid, width_mm: float) -> Counts:
    """Voxel counts of the inner boundary bands of two masks."""
    from slice3d.metrics.border import padded_bits

    check_width(width_mm)
    bits = padded_bits((a, b), flat_axes(grid))
    a, b = a.copy(), b.copy()
    for bit, mask in enumerate((a, b)):
        keep_band(mask, bits, bit, grid, width_mm)
    return count(a, b)


def check_width(width_mm: float) -> None:
    """Raise `InputError` unless the width of a band is a positive number."""
    if not (math.isfinite(width_mm) and width_mm > 0):
        raise InputError(f"boundary width is {width_mm} mm; expected a positive number")


def flat_axes(grid: Grid) -> tuple[int, ...]:
    """The axes along which a grid is a single slice: they have no outside."""
    return tuple(axis for axis in range(3) if grid.shape[axis] == 1)


def keep_band(mask: NDArray[np.bool_], bits: NDArray[np.uint8], bit: int, grid: Grid, width_mm: float) -> None:
    """Of `mask`, in place, keep the voxels with an outside face neighbour or an outside centre within `width_mm`.

    bits: `slice3d.metrics.border.padded_bits` with the same mask as one bit.
    """
    from slice3d.metrics import _band

    steps, flat = grid.affine[:3, :3], flat_axes(grid)
    # in a sheared grid a ball reaches further along an axis than its radius: the dual basis gives the exact extent
    dual = np.linalg.norm(np.linalg.inv(steps), axis=1)
    reach = [0 if axis in flat else min(int(width_mm * dual[axis] * (1 + 1e-9)), mask.shape[axis]) for axis in range(3)]
    around = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    length = np.linalg.norm(around @ steps.T, axis=1)
    near = np.argsort(length, kind="stable")[1 : np.count_nonzero(length <= width_mm * (1 + 1e-9))]
    faces = [sign * np.eye(3, dtype=np.int64)[axis] for axis in range(3) if axis not in flat for sign in (-1, 1)]
    offsets = np.concatenate([np.array(faces, np.int64).reshape(-1, 3), around[near]])
    if len(offsets):  # none at all: a single voxel in a single line
        _band.keep_band(bits, bit, np.abs(offsets).max(axis=0), offsets, mask)
