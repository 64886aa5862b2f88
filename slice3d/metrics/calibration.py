"""Whether probabilities mean what they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import InputError
from slice3d.metrics.overlap import as_mask


def brier(probability: ArrayLike, reference: ArrayLike, *, mask: ArrayLike | None = None) -> float:
    """Brier score of a foreground probability, (1/n)·Σ(p − y)², over `mask`; None takes every voxel.

    Unit: none. Range: 0…1, lower is better. It is defined for an empty reference (every p should be 0); NaN only where
    the mask is empty. Reference: Brier, Monthly Weather Review 78 (1950) 1–3.
    """
    p, y = _pair(probability, reference, mask)
    return float(np.mean((p - y) ** 2)) if p.size else math.nan


def expected_calibration_error(
    probability: ArrayLike, reference: ArrayLike, *, bins: int = 15, mask: ArrayLike | None = None
) -> float:
    """Expected calibration error of a foreground probability, Σ_b (n_b / n)·|mean p − share of foreground| over bins.

    Bins have equal width over 0…1 (closed at 1). The background far from any structure is easy and hides errors: give a
    `mask` of the region that matters. Unit: none. Range: 0…1, lower is better. Empty mask: NaN.
    Reference: Naeini et al., AAAI 2015; Guo et al., ICML 2017 (there of the top class).
    """
    rows = reliability(probability, reference, bins=bins, mask=mask)
    total = rows["voxels"].sum()
    if not total:
        return math.nan
    filled = rows["voxels"] > 0
    gap = np.abs(rows["confidence"][filled] - rows["frequency"][filled])
    return float((rows["voxels"][filled] / total) @ gap)


def reliability(
    probability: ArrayLike, reference: ArrayLike, *, bins: int = 15, mask: ArrayLike | None = None
) -> dict[str, NDArray[Any]]:
    """The reliability diagram: per bin `voxels`, mean probability `confidence` and share of foreground `frequency`."""
    if bins < 1:
        raise InputError(f"bins is {bins}; expected at least 1")
    p, y = _pair(probability, reference, mask)
    where = np.minimum((p * bins).astype(np.int64), bins - 1)
    voxels = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(where, weights=p, minlength=bins) / voxels
        frequency = np.bincount(where, weights=y, minlength=bins) / voxels
    return {"voxels": voxels, "confidence": confidence, "frequency": frequency}


def _pair(
    probability: ArrayLike, reference: ArrayLike, mask: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, y = np.asarray(probability), as_mask(reference, "the reference")
    if p.shape != y.shape:
        raise InputError(f"the probability has shape {p.shape}, the reference {y.shape}; expected the same grid")
    if mask is not None:
        inside = as_mask(mask, "the mask")
        if inside.shape != y.shape:
            raise InputError(f"the mask has shape {inside.shape}, the reference {y.shape}; expected the same grid")
        p, y = p[inside], y[inside]
    p = p.astype(np.float64).ravel()
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise InputError(
            "the probability holds NaN or values outside 0…1; expected probabilities; apply a softmax first"
        )
    return p, y.astype(np.float64).ravel()
