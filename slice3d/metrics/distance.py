"""Distances between the surfaces of two masks, and the numbers made of them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid
from slice3d.metrics.overlap import as_masks, flat_axes
from slice3d.metrics.pairs import bounding_box, join

CONVENTIONS = ("mesh", "deepmind", "monai", "simpleitk", "nnunet")

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Convention:
    """How a surface is defined and what is computed on it.

    name: `"mesh"` (default, true surfaces), or whose number to reproduce: `"deepmind"` (surface-distance), `"monai"`,
    `"simpleitk"`, `"nnunet"` (voxel borders, as MedPy computes them).
    percentiles: the percentiles of the Hausdorff distance to report, each 0 < p ≤ 100.
    boundary_mm: width of the band of boundary IoU; None takes the tolerance of the NSD (of 0: the smallest step).
    """

    name: str = "mesh"
    percentiles: tuple[float, ...] = (95.0,)
    boundary_mm: float | None = None

    def __post_init__(self) -> None:
        if self.name not in CONVENTIONS:
            raise InputError(f"convention is {self.name!r}; expected one of {', '.join(CONVENTIONS)}")
        object.__setattr__(self, "percentiles", tuple(float(p) for p in self.percentiles))
        for p in self.percentiles:
            check_percentile(p)
        if self.boundary_mm is not None and not (math.isfinite(self.boundary_mm) and self.boundary_mm > 0):
            raise InputError(f"boundary width is {self.boundary_mm} mm; expected a positive number")

    @classmethod
    def of(cls, convention: str | Convention) -> Convention:
        """A convention by name, or itself."""
        return convention if isinstance(convention, Convention) else cls(convention)


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances from each element of one surface to the other surface.

    to_reference_mm, weights: (N,) from the elements of the prediction's surface, and their areas in mm² (or ones).
    to_prediction_mm, reference_weights: (M,) the same from the reference's surface.
    convention: whose rules for percentiles and means apply. set_hausdorff_mm: the maximum where it is not that of the
    elements (SimpleITK compares whole voxel sets).
    """

    to_reference_mm: NDArray[Any]
    weights: NDArray[Any]
    to_prediction_mm: NDArray[Any]
    reference_weights: NDArray[Any]
    convention: str = "mesh"
    set_hausdorff_mm: float | None = None

    @property
    def undefined(self) -> float | None:
        """NaN where both surfaces are empty, infinity where one is, None where distances exist."""
        sizes = len(self.to_reference_mm), len(self.to_prediction_mm)
        if all(sizes):
            return None
        return math.inf if any(sizes) else math.nan

    @property
    def areas(self) -> tuple[float, float]:
        """Summed weights of both surfaces."""
        return float(self.weights.sum(dtype=np.float64)), float(self.reference_weights.sum(dtype=np.float64))

    @property
    def totals(self) -> tuple[float, float]:
        """Summed weighted distances of both directions."""
        return (
            float(np.einsum("i,i->", self.to_reference_mm, self.weights, dtype=np.float64)),
            float(np.einsum("i,i->", self.to_prediction_mm, self.reference_weights, dtype=np.float64)),
        )


def surface_distances(
    prediction: ArrayLike, reference: ArrayLike, grid: Grid, *, convention: str | Convention = "mesh"
) -> SurfaceDistances:
    """Measure both directed surface distances between two masks on `grid`.

    In the default convention the surfaces are those of `slice3d.metrics.mask_surface`, distances run from their
    vertices to the nearest point of the other's triangles (exact to single precision), and weights are areas. Raises
    `InputError` for masks of different shapes or not boolean, `GeometryError` for a voxel convention on a sheared
    grid.
    """
    a, b = as_masks(prediction, reference)
    if a.shape != grid.shape:
        raise GeometryError(f"the masks have shape {a.shape}, the grid {grid.shape}; expected the same")
    box = join([box for box in (bounding_box(a), bounding_box(b)) if box is not None])
    a, b = (np.ascontiguousarray(mask[box]) if box is not None else mask[:1, :1, :1] for mask in (a, b))
    return crop_distances(a, b, grid, Convention.of(convention).name)


def crop_distances(a: Mask, b: Mask, grid: Grid, convention: str, *, threads: int = 2) -> SurfaceDistances:
    """`surface_distances` of cropped masks: of `grid`, only the steps and which axes are one slice matter."""
    if convention != "mesh":
        return _voxel_distances(a, b, grid, convention)
    from slice3d.metrics.border import padded_bits

    return net_distances(bit_nets(padded_bits((a, b), flat_axes(grid)), grid, threads=threads), threads=threads)


Net = tuple[NDArray[np.float32], NDArray[np.int32]]


def bit_nets(bits: NDArray[np.uint8], grid: Grid, *, threads: int) -> list[Net]:
    """Points and quads of bits 0 and 1 of `slice3d.metrics.border.padded_bits`, which nothing needs from here on."""
    from slice3d.metrics.border import bit_net

    steps, flat = grid.affine[:3, :3], flat_axes(grid)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda bit: bit_net(bits, bit, steps, flat_axes=flat), (0, 1)))


def net_distances(nets: list[Net], *, threads: int) -> SurfaceDistances:
    """Distances between two nets, whose quads it puts in another order."""
    from slice3d.metrics.border import Surface, distances_mm

    with ThreadPoolExecutor(threads) as pool:
        one, other = pool.map(lambda net: Surface.in_place(*net), nets)
        if not len(one.polygons) or not len(other.polygons):
            return _nowhere(one.areas_mm2, other.areas_mm2)
        there = pool.submit(distances_mm, one.points, other)
        back = pool.submit(distances_mm, other.points, one)
        return SurfaceDistances(there.result(), one.areas_mm2, back.result(), other.areas_mm2)


def _nowhere(weights: NDArray[Any], reference_weights: NDArray[Any]) -> SurfaceDistances:
    return SurfaceDistances(
        np.full(len(weights), np.inf), weights, np.full(len(reference_weights), np.inf), reference_weights
    )


def _voxel_distances(a: Mask, b: Mask, grid: Grid, convention: str) -> SurfaceDistances:
    from slice3d.metrics import conventions

    if not grid.is_orthogonal:
        raise GeometryError(
            f"the grid's axes are not at right angles, which convention {convention!r} assumes; use convention='mesh'"
        )
    spacing = np.asarray(grid.spacing_mm)
    elements = conventions.cell_elements if convention == "deepmind" else conventions.border_elements
    (pa, wa), (pb, wb) = elements(a, spacing), elements(b, spacing)
    if not len(pa) or not len(pb):
        return replace(_nowhere(wa, wb), convention=convention)
    ta, tb = (conventions.wide_border(m, spacing) for m in (a, b)) if convention == "simpleitk" else (pa, pb)
    there, back = conventions.nearest_mm(pa, tb), conventions.nearest_mm(pb, ta)
    whole = conventions.set_hausdorff_mm(a, b, spacing) if convention == "simpleitk" else None
    return SurfaceDistances(there, wa, back, wb, convention, whole)


def hausdorff_mm(distances: SurfaceDistances, *, percentile: float = 100.0) -> float:
    """Hausdorff distance, max(P(d(A→B)), P(d(B→A))), with P the maximum or a percentile weighted by surface area.

    The p-th weighted percentile is the smallest distance that p % of the surface's area does not exceed. MONAI takes
    the unweighted, linearly interpolated percentile of each direction; nnU-Net/MedPy and SimpleITK that of both
    together.
    Unit: mm. Range: 0…∞, lower is better. Both empty: NaN. One empty: ∞. No overlap: as measured.
    Reference: Huttenlocher et al., IEEE PAMI 15 (1993) 850–863; weighted: Nikolov et al., JMIR 23 (2021) e26151.
    """
    check_percentile(percentile)
    if distances.undefined is not None:
        return distances.undefined
    d = distances
    if percentile == 100.0:
        if d.set_hausdorff_mm is not None:
            return d.set_hausdorff_mm
        return float(max(d.to_reference_mm.max(), d.to_prediction_mm.max()))
    if d.convention == "monai":
        return float(max(np.percentile(x, percentile) for x in (d.to_reference_mm, d.to_prediction_mm)))
    if d.convention in ("nnunet", "simpleitk"):
        return float(np.percentile(np.concatenate([d.to_reference_mm, d.to_prediction_mm]), percentile))
    return max(
        _weighted_percentile(d.to_reference_mm, d.weights, percentile),
        _weighted_percentile(d.to_prediction_mm, d.reference_weights, percentile),
    )


def assd_mm(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance, (∫_A d(·,B) + ∫_B d(·,A)) / (area A + area B): the mean over both surfaces.

    nnU-Net/MedPy call the mean of the two directed means ASSD; `convention="nnunet"` follows them.
    Unit: mm. Range: 0…∞, lower is better. Both empty: NaN. One empty: ∞. No overlap: as measured.
    Reference: Heimann et al., IEEE TMI 28 (2009) 1251–1265.
    """
    if distances.undefined is not None:
        return distances.undefined
    if distances.convention == "nnunet":
        return masd_mm(distances)
    there, back = distances.totals
    return float((there + back) / sum(distances.areas))


def masd_mm(distances: SurfaceDistances) -> float:
    """Mean average surface distance, (mean over A of d(·,B) + mean over B of d(·,A)) / 2, area-weighted means.

    Unit: mm. Range: 0…∞, lower is better. Both empty: NaN. One empty: ∞. No overlap: as measured.
    Reference: Maier-Hein et al., Metrics reloaded, Nature Methods 21 (2024) 195–212.
    """
    if distances.undefined is not None:
        return distances.undefined
    (there, back), (area, reference_area) = distances.totals, distances.areas
    return float((there / area + back / reference_area) / 2)


def nsd(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Normalised surface Dice: (area of A within τ of B + area of B within τ of A) / (area A + area B).

    Unit: none. Range: 0…1, higher is better. Both empty: NaN. One empty: 0. No overlap: as measured.
    Reference: Nikolov et al., JMIR 23 (2021) e26151.
    """
    check_tolerance(tolerance_mm)
    if distances.undefined is not None:
        return math.nan if math.isnan(distances.undefined) else 0.0
    near = distances.weights[distances.to_reference_mm <= tolerance_mm].sum(dtype=np.float64)
    near += distances.reference_weights[distances.to_prediction_mm <= tolerance_mm].sum(dtype=np.float64)
    return float(near / sum(distances.areas))


def check_tolerance(tolerance_mm: float) -> None:
    """Raise `InputError` unless the tolerance is a finite number of at least 0."""
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError(f"tolerance is {tolerance_mm} mm; expected a finite number of at least 0")


def check_percentile(percentile: float) -> None:
    """Raise `InputError` unless 0 < percentile ≤ 100."""
    if not 0 < percentile <= 100:
        raise InputError(f"percentile is {percentile}; expected more than 0 and at most 100")


def _weighted_percentile(values: NDArray[Any], weights: NDArray[Any], percentile: float) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order], dtype=np.float64)
    index = int(np.searchsorted(share, share[-1] * percentile / 100.0))
    return float(values[order[min(index, len(order) - 1)]])
