"""`evaluate`: one table of every overlap and distance metric, one row per structure."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid, describe
from slice3d.metrics import distance, overlap
from slice3d.metrics.border import padded_bits
from slice3d.metrics.distance import Convention
from slice3d.metrics.pairs import Pairs
from slice3d.volume import Segmentation

if TYPE_CHECKING:
    import pandas as pd

OnGrid = Literal["refuse", "resample"]


def evaluate(
    prediction: Segmentation,
    reference: Segmentation,
    structures: Iterable[str] | str | None = None,
    *,
    tolerance_mm: float | Mapping[str, float] = 2.0,
    convention: str | Convention = "mesh",
    on_grid: OnGrid = "refuse",
) -> pd.DataFrame:
    """Score a segmentation against a reference, structure by structure.

    structures: names to score; None scores every structure that the reference names. A structure that the prediction
    does not name counts as an empty prediction, and in an empty prediction every structure is missed. tolerance_mm: for the NSD, one number or one per structure.
    convention: how surfaces are defined, see `Convention`. on_grid: `"refuse"` two different grids or `"resample"` the
    prediction to the reference's grid (nearest neighbour).

    Returns a table indexed by structure. Raises `GeometryError` when the grids differ, `InputError` for unknown
    structures, no structure in common, a negative tolerance or an unknown convention.
    """
    names = _structures(prediction, reference, structures)
    return score(prediction, reference, names, tolerance_mm=tolerance_mm, convention=convention, on_grid=on_grid)


def score(
    prediction: Segmentation,
    reference: Segmentation,
    names: list[str],
    *,
    tolerance_mm: float | Mapping[str, float] = 2.0,
    convention: str | Convention = "mesh",
    on_grid: OnGrid = "refuse",
) -> pd.DataFrame:
    """The table of `evaluate` for any names: one that either side does not name is empty there."""
    import pandas as pd

    settings = Convention.of(convention)
    tolerances = _tolerances(tolerance_mm, names)
    labels = _on_reference_grid(prediction, reference, on_grid)
    pairs = Pairs.of(labels, reference.labels)

    def row(name: str, threads: int) -> dict[str, Any]:
        values, reference_values = (s.values(name) if name in s.structures else () for s in (prediction, reference))
        return _row(pairs.masks(values, reference_values), reference.grid, tolerances[name], settings, threads)

    if len(names) == 1:
        rows = [row(names[0], 2)]
    else:
        with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as pool:
            rows = list(pool.map(lambda name: row(name, 1), names))
    return pd.DataFrame(rows, index=pd.Index(names, name="structure"))


def expected_structures(prediction: Segmentation, reference: Segmentation) -> list[str]:
    """Every structure that the reference names. Raises `InputError` when the prediction has others and none of them."""
    return _structures(prediction, reference, None)


def _structures(prediction: Segmentation, reference: Segmentation, wanted: Iterable[str] | str | None) -> list[str]:
    known = reference.structures
    if wanted is None:
        if not known:
            raise InputError("the reference names no structure (an empty mask?); expected at least one; check the file")
        common = [name for name in known if name in prediction.structures]
        if not common and prediction.labels.any():
            raise InputError(
                f"prediction names {listed(prediction.structures)}; reference names {listed(known)}; "
                "expected at least one structure in common; rename one side"
            )
        return list(known)
    names = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    if not names:
        raise InputError("no structure to evaluate; name at least one, or leave `structures` out")
    for name in names:
        if name not in known:
            raise InputError(f"no structure {name!r} in the reference; it holds: {listed(known)}")
    return names


def listed(names: Iterable[str]) -> str:
    """The first eight names, and how many there are."""
    names = list(names)
    return (", ".join(names[:8]) or "none") + (f", … {len(names)} in all" if len(names) > 8 else "")


def _tolerances(tolerance_mm: float | Mapping[str, float], names: list[str]) -> dict[str, float]:
    if isinstance(tolerance_mm, Mapping):
        missing = [name for name in names if name not in tolerance_mm]
        if missing:
            raise InputError(f"no tolerance for {listed(missing)}; give one for each structure or one number for all")
        out = {name: float(tolerance_mm[name]) for name in names}
    else:
        out = dict.fromkeys(names, float(tolerance_mm))
    for value in out.values():
        distance.check_tolerance(value)
    return out


def _on_reference_grid(prediction: Segmentation, reference: Segmentation, on_grid: str) -> NDArray[Any]:
    if on_grid not in ("refuse", "resample"):
        raise InputError(f"on_grid is {on_grid!r}; expected 'refuse' or 'resample'")
    if prediction.grid.matches(reference.grid):
        return prediction.labels
    if on_grid == "refuse":
        raise GeometryError(
            f"the prediction lies on another grid ({describe(prediction.grid)}) than the reference "
            f"({describe(reference.grid)}); expected the same; pass on_grid='resample' (--resample) to resample the prediction"
        )
    return _nearest(prediction.labels, prediction.grid, reference.grid)


def _nearest(labels: NDArray[Any], grid: Grid, target: Grid) -> NDArray[Any]:
    from scipy import ndimage

    to_index = np.linalg.inv(grid.affine) @ target.affine
    out: NDArray[Any] = ndimage.affine_transform(
        labels, to_index[:3, :3], to_index[:3, 3], output_shape=target.shape, order=0, mode="grid-constant", cval=0
    )
    return out


def _row(
    masks: tuple[NDArray[np.bool_], ...], grid: Grid, tolerance_mm: float, settings: Convention, threads: int
) -> dict[str, Any]:
    counts = overlap.count(masks[0], masks[1])
    ml = grid.voxel_volume_mm3 / 1000.0
    width = settings.boundary_mm or tolerance_mm or min(grid.spacing_mm)
    bits = padded_bits(masks, overlap.flat_axes(grid))
    if settings.name != "mesh":
        measured = distance.crop_distances(masks[0], masks[1], grid, settings.name)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda mask, bit: overlap.keep_band(mask, bits, bit, grid, width), masks, (0, 1)))
    boundary = overlap.count(masks[0], masks[1]).jaccard
    del masks
    if settings.name == "mesh":
        nets = distance.bit_nets(bits, grid, threads=threads)
        del bits
        measured = distance.net_distances(nets, threads=threads)
        del nets
    change = counts.prediction - counts.reference
    row: dict[str, Any] = {
        "status": counts.status,
        "dice": counts.dice,
        "jaccard": counts.jaccard,
        "sensitivity": counts.sensitivity,
        "precision": counts.precision,
        "volume_similarity": counts.volume_similarity,
        "volume_ml": counts.prediction * ml,
        "reference_volume_ml": counts.reference * ml,
        "volume_difference_ml": change * ml,
        "volume_difference_percent": 100.0 * change / counts.reference if counts.reference else math.nan,
        "hd_mm": distance.hausdorff_mm(measured),
    }
    for p in settings.percentiles:
        row[f"hd{p:g}_mm"] = distance.hausdorff_mm(measured, percentile=p)
    row["assd_mm"] = distance.assd_mm(measured)
    row["masd_mm"] = distance.masd_mm(measured)
    row["nsd"] = distance.nsd(measured, tolerance_mm=tolerance_mm)
    row["boundary_iou"] = boundary
    row["tolerance_mm"] = tolerance_mm
    return row
