"""Image quality of an estimated volume against a measured one: inside an explicit mask, with an explicit data range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.metrics.overlap import as_mask
from slice3d.volume import Volume


def mae(estimate: Volume, truth: Volume, *, mask: ArrayLike | None) -> float:
    """Mean absolute error inside `mask`, (1/n)·Σ|x − y|; None takes every voxel.

    Unit: that of the volumes (HU for CT). Range: 0…∞, lower is better. Empty mask: NaN.
    Reference: Willmott and Matsuura, Climate Research 30 (2005) 79–82.
    """
    x, y = _values(estimate, truth, mask)
    return float(np.abs(x - y).mean()) if x.size else math.nan


def psnr(estimate: Volume, truth: Volume, *, data_range: float, mask: ArrayLike | None) -> float:
    """Peak signal-to-noise ratio inside `mask`, 10·log10(data_range² / mean((x − y)²)); None takes every voxel.

    `data_range` is stated, never guessed from the data: two volumes scored with different ranges cannot be compared.
    Unit: dB. Range: −∞…∞, higher is better; identical: ∞. Empty mask: NaN.
    Reference: Huynh-Thu and Ghanbari, Electronics Letters 44 (2008) 800–801.
    """
    _check_range(data_range)
    x, y = _values(estimate, truth, mask)
    if not x.size:
        return math.nan
    error = float(np.mean((x - y) ** 2))
    return 10.0 * math.log10(data_range**2 / error) if error else math.inf


def ssim(estimate: Volume, truth: Volume, *, data_range: float, mask: ArrayLike | None, sigma: float = 1.5) -> float:
    """Structural similarity, averaged over `mask`; None takes every voxel.

    Windows are 3D Gaussians of `sigma` voxels cut at 3.5 sigma, K1 = 0.01, K2 = 0.03, population covariance; an axis of
    length 1 is left out. Unit: none. Range: −1…1, higher is better. Empty mask: NaN.
    Reference: Wang et al., IEEE TIP 13 (2004) 600–612.
    """
    from scipy import ndimage

    _check_range(data_range)
    inside = _inside(truth, mask)
    _values(estimate, truth, mask)
    x, y = estimate.data.astype(np.float64), truth.data.astype(np.float64)
    widths = [sigma if n > 1 else 0.0 for n in x.shape]

    def smooth(image: NDArray[np.float64]) -> NDArray[np.float64]:
        out: NDArray[np.float64] = ndimage.gaussian_filter(image, widths, truncate=3.5, mode="reflect")
        return out

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    cov = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(values[inside].mean()) if inside.any() else math.nan


def _check_range(data_range: float) -> None:
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"data range is {data_range}; expected a positive number, e.g. 2000 for HU from −1000 to 1000")


def _inside(truth: Volume, mask: ArrayLike | None) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(truth.grid.shape, bool)
    inside = as_mask(mask, "the mask")
    if inside.shape != truth.grid.shape:
        raise GeometryError(f"the mask has shape {inside.shape}, the volumes {truth.grid.shape}; expected the same")
    return inside


def _values(estimate: Volume, truth: Volume, mask: ArrayLike | None) -> tuple[NDArray[Any], NDArray[Any]]:
    if not estimate.grid.matches(truth.grid):
        raise GeometryError(f"the estimate lies on {estimate.grid}, the truth on {truth.grid}; resample one first")
    inside = _inside(truth, mask)
    x, y = estimate.data[inside].astype(np.float64), truth.data[inside].astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(
            "the volumes hold NaN or infinity inside the mask; expected finite values; exclude those voxels"
        )
    return x, y
