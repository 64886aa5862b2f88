"""From a study to what a network sees: axes turned, intensities normalised, resampled to the package's spacing.

Resampling is separable on an axis-aligned pair of grids, so each axis is one small matrix, exact for splines of any
order including their edges, and all but a band of it is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.inference.bands import Band, along_columns, along_rows, band
from slice3d.models.package import Intensity, ModelPackage, Sampling
from slice3d.resample import apply_moves, axis_moves
from slice3d.volume import Volume

_ANISOTROPY = 3.0  # nnU-Net v2 treats an axis as coarse when its spacing exceeds the finest by more than this

PERCENTILE_CEILING = 1.5

Axes = tuple[int, int, int]


@dataclass(frozen=True)
class Frame:
    """How the network's grid lies in the study's.

    axes, flips: moves from the study's (i, j, k) to the network's axes. study_shape: the study's shape after them.
    start, stop: the box of it that is looked at. shape: of the network's grid, whose first corner is the box's.
    step: study voxels per network voxel. image_orders, score_orders: spline order per axis on the way in and out.
    average: whether finer study voxels are averaged on the way in.
    """

    axes: Axes
    flips: tuple[bool, bool, bool]
    study_shape: Axes
    start: Axes
    stop: Axes
    shape: Axes
    image_orders: Axes
    score_orders: Axes
    spacing_mm: tuple[float, float, float]
    step: tuple[float, float, float]
    average: bool = False

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The looked-at box as slices of the moved study array."""
        a, b, c = (slice(lo, hi) for lo, hi in zip(self.start, self.stop, strict=True))
        return a, b, c

    @property
    def box_shape(self) -> Axes:
        """Shape of the looked-at box in study voxels."""
        a, b, c = (hi - lo for lo, hi in zip(self.start, self.stop, strict=True))
        return a, b, c


def make_frame(volumes: Sequence[Volume], package: ModelPackage) -> Frame:
    """Where the network's grid lies for this study (all volumes share one grid)."""
    grid = volumes[0].grid
    if package.orientation == "native":
        axes, flips = (2, 1, 0), (False, False, False)
    else:
        axes, flips = axis_moves(grid, package.orientation)
    t = package.transpose
    axes, flips = (axes[t[0]], axes[t[1]], axes[t[2]]), (flips[t[0]], flips[t[1]], flips[t[2]])
    spacing = np.array(grid.spacing_mm)[list(axes)]
    shape = np.array(grid.shape)[list(axes)]
    start, stop = np.zeros(3, int), shape
    if package.sampling.crop_nonzero:
        start, stop = _nonzero_box([apply_moves(v.data, axes, flips) for v in volumes])
    target = np.array(package.spacing_mm)
    rule = package.sampling
    if rule.resampling == "none":
        target = spacing
    if rule.resampling in ("nnunet", "torch"):
        new = np.maximum(1, np.round((stop - start) * spacing / target)).astype(int)
        step = (stop - start) / new
    else:
        new = np.maximum(1, np.ceil((stop - start) * spacing / target - 1e-3)).astype(int)
        step = target / spacing
    return Frame(
        axes=axes,
        flips=flips,
        study_shape=_three(shape),
        start=_three(start),
        stop=_three(stop),
        shape=_three(new),
        image_orders=_image_orders(rule, spacing, target),
        score_orders=_score_orders(rule, target, spacing),
        spacing_mm=(float(target[0]), float(target[1]), float(target[2])),
        step=(float(step[0]), float(step[1]), float(step[2])),
        average=rule.resampling == "average",
    )


def _three(values: NDArray[np.int64]) -> Axes:
    return int(values[0]), int(values[1]), int(values[2])


def _image_orders(rule: Sampling, study: NDArray[np.float64], network: NDArray[np.float64]) -> Axes:
    if rule.resampling == "cubic":
        return 3, 3, 3
    if rule.resampling not in ("nnunet", "torch"):
        return 1, 1, 1
    order = rule.resampling_order if rule.resampling == "nnunet" else 1
    return _split_orders(order, rule.resampling_order_coarse, rule.resampling_split, study, network)


def _score_orders(rule: Sampling, network: NDArray[np.float64], study: NDArray[np.float64]) -> Axes:
    if rule.scores not in ("nnunet", "torch"):
        return 1, 1, 1
    order = min(1, rule.scores_order)
    return _split_orders(order, min(1, rule.scores_order_coarse), rule.scores_split, network, study)


def _split_orders(
    order: int, coarse_order: int, split: bool | None, current: NDArray[np.float64], new: NDArray[np.float64]
) -> Axes:
    """Spline order per axis by nnU-Net's rule: another one along the only axis that is far coarser before or after."""
    orders = [order] * 3
    chosen = None
    if split is None:
        chosen = next((s for s in (current, new) if s.max() / s.min() > _ANISOTROPY), None)
    elif split:
        chosen = current
    if chosen is not None:
        coarse = np.flatnonzero(chosen == chosen.max())
        if len(coarse) == 1:
            orders[int(coarse[0])] = coarse_order
    return orders[0], orders[1], orders[2]


def _nonzero_box(arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    start, stop = [], []
    for axis in range(3):
        others = tuple(n for n in range(3) if n != axis)
        filled = np.flatnonzero(np.any([np.any(a, axis=others) for a in arrays], axis=0))
        start.append(int(filled[0]) if len(filled) else 0)
        stop.append(int(filled[-1]) + 1 if len(filled) else arrays[0].shape[axis])
    return np.array(start), np.array(stop)


def sample_positions(n_in: int, n_out: int, step: float) -> NDArray[np.float64]:
    """Where n_out samples of `step` input voxels each lie, as indices of n_in voxels; the first corners coincide."""
    out: NDArray[np.float64] = np.clip((np.arange(n_out) + 0.5) * step - 0.5, 0, n_in - 1)
    return out


def axis_matrix(n_in: int, n_out: int, *, step: float, order: int, average: bool = False) -> NDArray[np.float32] | None:
    """(n_out, n_in) interpolation matrix along one axis, edges repeated; None for the identity."""
    from scipy import ndimage

    if n_in == n_out and abs(step - 1) < 1e-6:
        return None
    # half a voxel beyond the outer centres a spline of repeated edges still bends, so only linear positions are clipped
    where = (np.arange(n_out) + 0.5) * step - 0.5 if order > 1 else sample_positions(n_in, n_out, step)
    if order == 0 or n_in == 1:
        nearest = np.zeros((n_out, n_in), np.float32)
        nearest[np.arange(n_out), np.clip(np.floor(where + 0.5).astype(int), 0, n_in - 1)] = 1
        return nearest
    pulses = np.eye(n_in)
    if average and step > 1:
        pulses = ndimage.gaussian_filter1d(pulses, 0.35 * np.sqrt(step**2 - 1), axis=0, mode="nearest")
    if order == 1:
        edge, coefficients = 0, pulses
    else:  # as `map_coordinates` does for repeated edges
        edge = 12
        coefficients = ndimage.spline_filter1d(np.pad(pulses, ((edge, edge), (0, 0)), "edge"), order, 0, mode="nearest")
    place = where + edge
    first = (np.floor(place) if order % 2 else np.floor(place + 0.5)).astype(int) - order // 2
    near = first[:, None] + np.arange(order + 1)
    single = np.zeros(2 * order + 3)  # the spline of one coefficient is read off scipy's own
    single[order + 1] = 1
    weight = ndimage.map_coordinates(single, [place[:, None] - near + order + 1], order=order, prefilter=False)
    near = np.minimum(near, len(coefficients) - 1)  # a neighbour beyond the last one has no weight
    out = np.zeros((n_out, n_in))
    for n in range(order + 1):
        out += weight[:, n, None] * coefficients[near[:, n]]
    return out.astype(np.float32)


def network_image(
    volumes: Sequence[Volume], package: ModelPackage, frame: Frame, *, threads: int = 1
) -> NDArray[np.float32]:
    """(channels, *frame.shape) float32: what the network sees, before padding."""
    out = np.empty((len(volumes), *frame.shape), np.float32)
    normalise_first = package.sampling.resampling in ("nnunet", "torch")
    views = [apply_moves(volume.data, frame.axes, frame.flips)[frame.box] for volume in volumes]
    masked = any(intensity.scheme == "zscore_nonzero" for intensity in package.intensity)
    mask = _filled(views) if masked and normalise_first else None
    with ThreadPoolExecutor(threads) as pool:
        for image, view, intensity in zip(out, views, package.intensity, strict=True):
            if normalise_first:
                _resample(view, _Normaliser(view, intensity, mask), frame, image, pool)
            else:
                _resample(view, _Normaliser(view, Intensity(), None), frame, image, pool)
                whole = _Normaliser(image, intensity, image != 0 if masked else None)
                for n in range(len(image)):
                    image[n] = whole.plane(image[n], n, 0)
    return out


def _filled(views: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Where any channel is not zero, holes filled: the region nnU-Net takes statistics from."""
    from scipy import ndimage

    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(np.any([view != 0 for view in views], axis=0))
    return filled


def _resample(
    view: NDArray[Any], normalise: _Normaliser, frame: Frame, out: NDArray[np.float32], pool: ThreadPoolExecutor
) -> None:
    """Normalise and resample slice by slice along the axis whose slices lie together in memory."""
    bands = [
        None if matrix is None else band(matrix)
        for matrix in (
            axis_matrix(a, b, step=s, order=o, average=frame.average)
            for a, b, s, o in zip(frame.box_shape, frame.shape, frame.step, frame.image_orders, strict=True)
        )
    ]
    slow, p, q = (int(n) for n in np.argsort([-abs(s) for s in view.strides], kind="stable"))
    planes = np.moveaxis(view, slow, 0)
    half = np.empty((len(planes), frame.shape[p], frame.shape[q]), np.float32)
    ends = np.empty((len(planes), 2), np.float32)

    def work(n: int) -> None:
        values = normalise.plane(planes[n], n, slow)
        ends[n] = low, high = values.min(), values.max()
        half[n] = _in_plane(values if p < q else values.T, bands[p], bands[q])
        if frame.image_orders[slow] == 0 and frame.image_orders[p] == 3:
            np.clip(half[n], low, high, out=half[n])

    list(pool.map(work, range(len(planes))))
    last = bands[slow]
    if last is not None:
        flat, done = half.reshape(len(half), -1), np.empty((frame.shape[slow], half[0].size), np.float32)
        list(pool.map(lambda n: along_rows(*last, flat, done, n, n + 1), range(len(done))))
        half = done.reshape(-1, *half.shape[1:])
    # splines overshoot at edges; like scikit-image's resize, stay within the range that was measured
    np.clip(half, ends[:, 0].min(), ends[:, 1].max(), out=half)
    np.transpose(out, (slow, p, q))[...] = half


def _in_plane(plane: NDArray[np.float32], rows: Band | None, columns: Band | None) -> NDArray[np.float32]:
    plane = np.ascontiguousarray(plane)
    if rows is not None:
        source, plane = plane, np.empty((len(rows.start), plane.shape[1]), np.float32)
        along_rows(*rows, source, plane, 0, len(plane))
    if columns is not None:
        source, plane = plane, np.empty((len(plane), len(columns.start)), np.float32)
        along_columns(*columns, source, plane)
    return plane


class _Normaliser:
    """Normalises planes of one channel; statistics of the whole box (of `mask`, if the scheme wants it) come first."""

    def __init__(self, view: NDArray[Any], intensity: Intensity, mask: NDArray[np.bool_] | None) -> None:
        self.intensity = intensity
        self.mask = mask if intensity.scheme == "zscore_nonzero" else None
        self.shift, self.scale = 0.0, 1.0
        scheme = intensity.scheme
        if scheme in ("clip_zscore", "clip_range") and intensity.clip is None:
            raise InputError(f"intensity scheme {scheme!r} of the model lacks `clip`; the package is damaged")
        if scheme == "clip_zscore":
            self.shift, self.scale = intensity.mean, max(intensity.std, 1e-8)
        elif scheme in ("zscore", "zscore_nonzero"):
            self.shift, self.scale = _moments(view, self.mask)
        elif scheme == "rescale_range":
            low, high = float(view.min()), float(view.max())
            self.shift, self.scale = low, max(high - low, 1e-8)
        elif scheme == "percentiles":
            low, high = percentiles(view)
            self.shift, self.scale = low, max(high - low, 1e-6)
        elif scheme == "rescale_rgb":
            self.scale = 255.0

    def plane(self, plane: NDArray[Any], index: int, axis: int) -> NDArray[np.float32]:
        """Plane number `index` along `axis`, normalised, float32."""
        values = plane.astype(np.float32)
        intensity = self.intensity
        if intensity.scheme == "none":
            return values
        if intensity.clip is not None:
            np.clip(values, *intensity.clip, out=values)
        if intensity.scheme == "clip_range" and intensity.clip is not None:
            low, high = intensity.clip
            a, b = intensity.to
            return (values - np.float32(low)) * np.float32((b - a) / (high - low)) + np.float32(a)
        values -= np.float32(self.shift)
        values /= np.float32(self.scale)
        if intensity.scheme == "percentiles":
            np.clip(values, 0, PERCENTILE_CEILING, out=values)
        if self.mask is not None:
            # outside the mask nnU-Net leaves the image as it is, which is zero there
            outside = ~np.take(self.mask, index, axis=axis)
            values[outside] = plane[outside]
        return values


def percentiles(values: NDArray[Any]) -> tuple[float, float]:
    """The 0.5th and 99.5th percentile of (a regular sample of) the values, for the scheme `percentiles`."""
    step = max(1, round((values.size / 2_000_000) ** (1 / 3)))
    low, high = np.percentile(values[::step, ::step, ::step], (0.5, 99.5))
    return float(low), float(high)


def _moments(view: NDArray[Any], mask: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Mean and standard deviation, of the masked voxels where there is a mask."""
    count, total, squares = 0, 0.0, 0.0
    for n, plane in enumerate(view):
        values = plane.astype(np.float64).ravel()
        if mask is not None:
            values = values[mask[n].ravel()]
        count += len(values)
        total += float(values.sum())
        squares += float((values**2).sum())
    if count == 0:
        return 0.0, 1.0
    mean = total / count
    return mean, max(float(np.sqrt(max(squares / count - mean**2, 0.0))), 1e-8)


def pad_value(image: NDArray[np.float32], package: ModelPackage) -> float:
    """The normalised value outside the field of view."""
    intensity = package.intensity[0]
    if package.sampling.pad == "zero":
        return 0.0
    if intensity.scheme == "clip_zscore" and intensity.clip is not None:
        return (intensity.clip[0] - intensity.mean) / intensity.std
    return float(image.min())
