"""Where a field of view ends: at the sides of the image, at planes padded on to it, at the circle that a CT was made in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.volume import Segmentation, Volume

EDGE = "circular edge"
_PADDED_MM = 1.5  # thickest voxel that may be left out at the border of the field of view
_REACH_MM = 4.0  # or two voxels: networks leave out as much beside blank ones; skin, fat and muscle are thicker
_BLANK_HU = -500.0
_RINGING_HU = 2.5  # around blank, after compression or interpolation
_BLANK_SHARE = 0.1  # of the image's rim that is one value: air varies
_LOOK_MM = 1.5
_ARC_MM = 2.0
_LEAST_ARC = 1 / 5  # of a circle that has to be seen
_FULL = 0.75  # of the first plane behind padded ones is something else: just less than a circle's share of its square
_LARGE = 0.85  # a circle's diameter of the shorter side of its slices: what was masked lies inside, as a rule
_LEAST_MM = 50.0  # and its radius: smaller things are masked organs
_ROUND = 0.015  # of its radius: what half of its border may be off by

Array = NDArray[Any]


def sides(result: Segmentation, image: Volume | None = None) -> dict[str, NDArray[np.float64]]:
    """Side of the field of view → mm² that each label value covers of it.

    image: what was segmented, same grid; planes of one value that were padded on to it are no part of the field of view.
    Networks may leave out the outermost voxels, beside which they see padding: where fine ones are empty, the next count.
    """
    grid, labels = result.grid, result.labels
    most = int(labels.max(initial=0)) + 1
    found = {}
    for axis in range(3):
        area = float(np.prod([s for n, s in enumerate(grid.spacing_mm) if n != axis]))
        for last in (False, True):
            depth = min(2 if grid.spacing_mm[axis] <= _PADDED_MM else 1, labels.shape[axis])
            order = slice(None, None, -1 if last else 1)
            padded = 0 if image is None else _padded(np.moveaxis(image.data, axis, 0)[order])
            planes = np.moveaxis(labels, axis, 0)[order][padded : padded + depth]
            counts = [np.bincount(plane.ravel(), minlength=most) for plane in planes]
            found[grid.end(axis, last)] = np.where(counts[0] > 0, counts[0], counts[-1]).astype(np.float64) * area
    return found


def _padded(planes: Array) -> int:
    """How many of the first planes are padding: all of them one value, and the plane behind them is mostly something else."""
    value = planes[0, 0, 0]
    for n, plane in enumerate(planes):
        other = np.count_nonzero(plane[::2, ::2] != value)
        if other:
            full = other >= _FULL * plane[::2, ::2].size
            return n if full else 0
    return 0


def beside_circle(result: Segmentation, ct: Volume) -> NDArray[np.float64]:
    """mm² that each label value covers of the circular edge of a CT's reconstruction, beyond which slices are blank.

    ct: what was segmented, same grid. An edge is covered where a label lies within 4 mm or two voxels of it, at most 6 mm.
    Blank is the commonest value of the axial slices' rims, if that is no more than −500 HU and a tenth of them has it; it
    has to be so in every slice that is looked at (every 1.5 mm, about 50 at most), and to end in a circle about as wide as
    the slices: what ends otherwise was masked. Organs only: skin may lie beside it. Raises `InputError` when the grids differ.
    """
    grid, out = result.grid, np.zeros(int(result.labels.max(initial=0)) + 1)
    if ct.data.shape != result.labels.shape:
        raise InputError(f"labels of {result.labels.shape} voxels and a CT of {ct.data.shape}; expected one grid")
    up = grid.world_axes.index(2)
    values, labels = (np.moveaxis(array, up, 2) for array in (ct.data, result.labels))
    height, *spacing = grid.spacing_mm[up], *(s for axis, s in enumerate(grid.spacing_mm) if axis != up)
    circle = _circle(values, (spacing[0], spacing[1]), max(1, round(_LOOK_MM / height), values.shape[2] // 50))
    if circle is None:
        return out
    centre, radius = circle
    x, y = ((np.arange(n) * s - c).astype(np.float32) for n, s, c in zip(values.shape, spacing, centre, strict=False))
    away = np.hypot(x[:, None], y)
    ring = (away > radius - min(max(_REACH_MM, 2 * max(spacing)), 1.5 * _REACH_MM)) & (away < radius + max(spacing))
    angle = np.arctan2(*np.broadcast_arrays(y, x[:, None]))[ring]
    bins = max(8, round(2 * np.pi * radius / max(_ARC_MM, 2 * max(spacing))))
    place = np.minimum(((angle + np.pi) / (2 * np.pi) * bins).astype(int), bins - 1)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    near = labels[ring][order]
    for value in np.unique(near):
        if value:
            out[value] = np.count_nonzero(np.logical_or.reduceat(near == value, starts, axis=0))
    return out * (2 * np.pi * radius / bins) * height


def _circle(values: Array, spacing_mm: tuple[float, float], every: int) -> tuple[tuple[float, float], float] | None:
    """(centre, radius) in mm from the first voxel's centre of what is not blank, the same in `every`-th slice."""
    from scipy import ndimage

    steps = [max(1, round(_LOOK_MM / s)) for s in spacing_mm]
    values = values[:: steps[0], :: steps[1], ::every]
    pixel = [n * s for n, s in zip(steps, spacing_mm, strict=True)]
    rim = np.concatenate([side.ravel() for side in (values[0], values[-1], values[:, 0], values[:, -1])])
    found, counts = np.unique(rim, return_counts=True)
    commonest = int(counts.argmax())
    if not found[commonest] <= _BLANK_HU or counts[commonest] < _BLANK_SHARE * len(rim):
        return None
    low, high = (float(found[commonest]) + sign * _RINGING_HU for sign in (-1, 1))
    if values.dtype.kind in "iu":  # compared as floats they take ten times as long
        low, high = int(np.ceil(max(low, np.iinfo(values.dtype).min))), int(np.floor(high))
    blank = ((values >= low) & (values <= high)).all(axis=2)
    # air beside a couch can be clipped to the same value in every slice: its lines go, what is left of it is outvoted
    blank = ndimage.binary_opening(np.pad(blank, 2, mode="edge"), np.ones((3, 3)))[2:-2, 2:-2]
    at = np.argwhere(~blank & ndimage.binary_dilation(blank)) * pixel
    fitted = _fitted(at, max(pixel))
    side = min(n * s for n, s in zip(blank.shape, pixel, strict=True))
    if fitted is None or fitted[2] < max(_LEAST_MM, _LARGE * side / 2):
        return None
    return fitted[:2], fitted[2] + min(pixel) / 2


def _fitted(at: Array, pixel: float) -> tuple[float, float, float] | None:
    """(x, y, radius) in mm of the circle that at least half of the points (n, 2) lie on, as well as pixels can, or None.

    Random sample consensus (Fischler and Bolles 1981, doi:10.1145/358669.358692), the same samples each time, and Kåsa's fit
    to those that agree.
    """
    # scikit-image's `ransac` warns of points on one line, as straight padding has them, and takes one tolerance for all
    # radii; its `CircleModel` names centre and radius otherwise from version to version
    if len(at) < 20:
        return None
    middle = at.mean(axis=0)
    points = at - middle
    rng = np.random.default_rng(0)
    few = points[rng.choice(len(points), min(len(points), 500), replace=False)]
    trial = few[rng.integers(len(few), size=(400, 3))]
    edges = 2 * (trial[:, 1:] - trial[:, :1])
    square = (trial**2).sum(axis=2)
    possible = np.abs(np.linalg.det(edges)) > 1e-6
    if not possible.any():  # all on one line
        return None
    trial, edges, square = trial[possible], edges[possible], square[possible]
    centres = np.linalg.solve(edges, (square[:, 1:] - square[:, :1])[..., None])[..., 0]
    radii = np.linalg.norm(trial[:, 0] - centres, axis=1)
    off = np.abs(np.linalg.norm(few - centres[:, None], axis=2) - radii[:, None])
    near = np.minimum(0.75 * pixel, _ROUND * radii)[:, None]
    best = int(np.count_nonzero(off <= near, axis=1).argmax())
    (a, b), radius = (float(v) for v in centres[best]), float(radii[best])
    for _ in range(3):
        agree = np.abs(np.hypot(*(points - (a, b)).T) - radius) <= min(0.75 * pixel, _ROUND * radius)
        if np.count_nonzero(agree) < len(at) / 2:
            return None
        x, y = points[agree].T
        # x² + y² = 2 a x + 2 b y + c is linear in the centre (a, b)
        terms = np.stack([2 * x, 2 * y, np.ones_like(x)], axis=1)
        a, b, c = (float(v) for v in np.linalg.lstsq(terms, x**2 + y**2, rcond=None)[0])
        radius = max(c + a**2 + b**2, 0.0) ** 0.5
    arc = len(np.unique((np.arctan2(y - b, x - a) // np.deg2rad(5)).astype(int))) / 72
    if arc < _LEAST_ARC:
        return None
    return float(middle[0]) + a, float(middle[1]) + b, radius
