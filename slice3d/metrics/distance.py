"""Distances between the surfaces of two masks, and the numbers made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.metrics.overlap import as_masks

CONVENTIONS = ("mesh", "deepmind", "monai", "simpleitk", "nnunet")


@dataclass(frozen=True)
class Convention:
    """How a surface is defined and what is computed on it.

    name: `"mesh"` (default), `"deepmind"`, `"monai"`, `"simpleitk"` or `"nnunet"`.
    percentiles: the percentiles of the Hausdorff distance to report, each 0 < p ≤ 100.
    boundary_mm: width of the band of boundary IoU; None takes the tolerance of the NSD.
    """

    name: str = "mesh"
    percentiles: tuple[float, ...] = (95.0,)
    boundary_mm: float | None = None

    def __post_init__(self) -> None:
        if self.name not in CONVENTIONS:
            raise InputError(f"convention is {self.name!r}; expected one of {', '.join(CONVENTIONS)}")
        object.__setattr__(self, "percentiles", tuple(float(p) for p in self.percentiles))
        for p in self.percentiles:
            if not 0 < p <= 100:
                raise InputError(f"percentile is {p}; expected more than 0 and at most 100")
        if self.boundary_mm is not None and not (math.isfinite(self.boundary_mm) and self.boundary_mm > 0):
            raise InputError(f"boundary width is {self.boundary_mm} mm; expected a positive number")


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances from each element of one surface to the other surface.

    to_reference_mm, weights: (N,) from the elements of the prediction's surface, and their areas (or ones).
    to_prediction_mm, reference_weights: (M,) from the elements of the reference's surface.
    """

    to_reference_mm: NDArray[np.float64]
    weights: NDArray[np.float64]
    to_prediction_mm: NDArray[np.float64]
    reference_weights: NDArray[np.float64]

    @property
    def undefined(self) -> float | None:
        """NaN where both surfaces are empty, infinity where one is, None where distances exist."""
        sizes = len(self.to_reference_mm), len(self.to_prediction_mm)
        if all(sizes):
            return None
        return math.inf if any(sizes) else math.nan


def surface_distances(
    prediction: ArrayLike, reference: ArrayLike, grid: Grid, *, convention: str | Convention = "mesh"
) -> SurfaceDistances:
    """Measure both directed surface distances between two masks on `grid`."""
    a, b = as_masks(prediction, reference)
    return _mesh_distances(a, b, grid)


def hausdorff_mm(distances: SurfaceDistances, *, percentile: float = 100.0) -> float:
    """Hausdorff distance, or its robust form: the larger of the two directed, area-weighted percentiles."""
    if distances.undefined is not None:
        return distances.undefined
    return max(
        _weighted_percentile(distances.to_reference_mm, distances.weights, percentile),
        _weighted_percentile(distances.to_prediction_mm, distances.reference_weights, percentile),
    )


def assd_mm(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance: the mean over both surfaces together."""
    if distances.undefined is not None:
        return distances.undefined
    total = distances.to_reference_mm @ distances.weights + distances.to_prediction_mm @ distances.reference_weights
    return float(total / (distances.weights.sum() + distances.reference_weights.sum()))


def masd_mm(distances: SurfaceDistances) -> float:
    """Mean average surface distance: the mean of the two directed means."""
    if distances.undefined is not None:
        return distances.undefined
    return float(
        np.average(distances.to_reference_mm, weights=distances.weights) / 2
        + np.average(distances.to_prediction_mm, weights=distances.reference_weights) / 2
    )


def nsd(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Normalised surface Dice: the part of both surfaces that lies within `tolerance_mm` of the other."""
    check_tolerance(tolerance_mm)
    if distances.undefined is not None:
        return math.nan if math.isnan(distances.undefined) else 0.0
    near = distances.weights[distances.to_reference_mm <= tolerance_mm].sum()
    near += distances.reference_weights[distances.to_prediction_mm <= tolerance_mm].sum()
    return float(near / (distances.weights.sum() + distances.reference_weights.sum()))


def check_tolerance(tolerance_mm: float) -> None:
    """Raise `InputError` unless the tolerance is a finite number of at least 0."""
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError(f"tolerance is {tolerance_mm} mm; expected a finite number of at least 0")


def _weighted_percentile(values: NDArray[np.float64], weights: NDArray[np.float64], percentile: float) -> float:
    if percentile >= 100:
        return float(values.max())
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    index = int(np.searchsorted(share, share[-1] * percentile / 100.0))
    return float(values[order[min(index, len(order) - 1)]])


def _mesh_distances(a: NDArray[np.bool_], b: NDArray[np.bool_], grid: Grid) -> SurfaceDistances:
    from scipy.spatial import cKDTree

    (pa, wa), (pb, wb) = _surface(a, grid), _surface(b, grid)
    if not len(pa) or not len(pb):
        return SurfaceDistances(np.full(len(pa), np.inf), wa, np.full(len(pb), np.inf), wb)
    return SurfaceDistances(cKDTree(pb).query(pa)[0], wa, cKDTree(pa).query(pb)[0], wb)


def _surface(mask: NDArray[np.bool_], grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from skimage.measure import marching_cubes

    if not mask.any():
        return np.zeros((0, 3)), np.zeros(0)
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    points = grid.to_world(vertices - 1.0)
    corners = points[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    weights = np.bincount(faces.ravel(), np.repeat(area / 3, 3), minlength=len(points))
    return points, weights
