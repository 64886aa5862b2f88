"""Data consistency: the nearest estimate whose re-simulated slices are the acquired ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.superres.profile import SliceOperator

# Directions of the data that the slices hardly see (overlapping slices) are damped below this share of the largest
# eigenvalue, so that noise is not amplified without bound.
_DAMPING = 1e-4


def correction(operator: SliceOperator, *, smoothness_mm: float | None = None) -> NDArray[np.float64]:
    """(m, n) matrix K with which `x + K (y − A x)` agrees with the slices y.

    K = C Aᵀ (A C Aᵀ + λ I)⁻¹: among all changes that make x agree, the smallest one in the norm of C⁻¹, where C is a
    Gaussian covariance of `smoothness_mm` (default: 0.4 slice distances; 0: the identity, the plain
    projection). A smooth C keeps slice borders out of the result.
    """
    a = operator.matrix
    width = 0.4 * operator.slice_step_mm if smoothness_mm is None else smoothness_mm
    if width > 0:
        distance = operator.fine_mm[:, None] - operator.fine_mm[None, :]
        back = np.exp(-0.5 * np.square(distance / width)) @ a.T
    else:
        back = a.T
    normal = a @ back
    largest = float(np.linalg.eigvalsh((normal + normal.T) / 2)[-1])
    out: NDArray[np.float64] = back @ np.linalg.inv(normal + _DAMPING * largest * np.eye(len(normal)))
    return out


def enforce(
    fine: NDArray[Any], slices: NDArray[Any], operator: SliceOperator, *, rounds: int = 2
) -> NDArray[np.float32]:
    """(…, m) estimate → (…, m) float32 estimate that agrees with (…, n) `slices`; further rounds undo the damping."""
    k = correction(operator).astype(np.float32)
    out: NDArray[np.float32] = np.asarray(fine, dtype=np.float32)
    for _ in range(rounds):
        out = out + (np.asarray(slices, dtype=np.float32) - operator.forward(out)) @ k.T
    return out


def residual(fine: NDArray[Any], slices: NDArray[Any], operator: SliceOperator) -> tuple[float, float]:
    """Root mean square and largest difference between re-simulated and acquired slices, in units of the data."""
    difference = operator.forward(np.asarray(fine, dtype=np.float32)) - np.asarray(slices, dtype=np.float32)
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))), float(np.abs(difference).max())
