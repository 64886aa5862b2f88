"""The baselines: linear, cubic B-spline and Lanczos interpolation along the normal, each as a matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def linear(slices_mm: ArrayLike, fine_mm: ArrayLike) -> Array:
    """(m, n) weights of linear interpolation; constant beyond the outer slices."""
    position, count = _index(slices_mm, fine_mm)
    clamped = np.clip(position, 0, count - 1)
    low = np.minimum(clamped.astype(int), max(count - 2, 0))
    weight = clamped - low
    out = np.zeros((len(position), count))
    rows = np.arange(len(position))
    out[rows, low] += 1 - weight
    out[rows, np.minimum(low + 1, count - 1)] += weight
    return out


def bspline(slices_mm: ArrayLike, fine_mm: ArrayLike) -> Array:
    """(m, n) weights of the interpolating cubic B-spline (Unser 1993), the outer slices repeated beyond the ends."""
    from scipy.interpolate import make_interp_spline

    position, count = _index(slices_mm, fine_mm)
    pad = 4
    knots = np.arange(-pad, count + pad)
    values = np.eye(count)[np.clip(knots, 0, count - 1)]
    out: Array = np.asarray(make_interp_spline(knots, values, k=3)(np.clip(position, -pad, count - 1 + pad)))
    return out


def lanczos(slices_mm: ArrayLike, fine_mm: ArrayLike, lobes: int = 3) -> Array:
    """(m, n) weights of the Lanczos kernel with three lobes (Duchon 1979), normalised, the outer slices repeated."""
    position, count = _index(slices_mm, fine_mm)
    taps = np.arange(1 - lobes, lobes + 1)
    base = np.floor(position).astype(int)
    distance = position[:, None] - (base[:, None] + taps[None, :])
    weight = np.where(np.abs(distance) < lobes, np.sinc(distance) * np.sinc(distance / lobes), 0.0)
    weight /= weight.sum(axis=1, keepdims=True)
    out = np.zeros((len(position), count))
    columns = np.clip(base[:, None] + taps[None, :], 0, count - 1)
    np.add.at(out, (np.arange(len(position))[:, None], columns), weight)
    return out


BASELINES: dict[str, Callable[[ArrayLike, ArrayLike], Array]] = {
    "linear": linear,
    "bspline": bspline,
    "lanczos": lanczos,
}


def _index(slices_mm: ArrayLike, fine_mm: ArrayLike) -> tuple[Array, int]:
    z = np.asarray(slices_mm, dtype=np.float64)
    step = z[1] - z[0] if len(z) > 1 else 1.0
    position: Array = (np.asarray(fine_mm, dtype=np.float64) - z[0]) / step
    return position, len(z)
