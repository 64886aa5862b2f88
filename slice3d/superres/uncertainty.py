"""How far an estimate may be off, voxel by voxel, learnt from the study itself.

In-plane lines are made thick with the study's own slice profile and estimated again, where the truth is known; the
error is tabulated by how much neighbouring slices differ there and by the distance from the nearest slice centre. The
table then speaks for the real direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slice3d.superres import interpolate
from slice3d.superres.consistency import enforce
from slice3d.superres.profile import SliceOperator, slice_operator
from slice3d.superres.quality import Lines
from slice3d.superres.stack import Stack

BINS = 16
# Distance from the nearest slice centre, as a share of the slice distance.
DEPTHS = (0.0, 0.17, 0.34, 0.5)
_IMAGES = 10


@dataclass(frozen=True, eq=False)
class ErrorTable:
    """edges: (BINS,) centres of the activity bins. errors: (3, BINS) root mean square error per depth and bin."""

    edges: NDArray[np.float64]
    errors: NDArray[np.float64]

    def look_up(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        """(…, n) slices → (…, m) expected standard deviation of the error, in units of the data."""
        q = activity(slices, operator)
        out = np.empty_like(q)
        for d, chosen in enumerate(_depths(operator)):
            out[..., chosen] = np.interp(q[..., chosen], self.edges, self.errors[d])
        return out


def activity(slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
    """(…, n) → (…, m) how much the slices around each fine sample differ."""
    from scipy import ndimage

    change = np.abs(np.diff(slices, axis=-1))
    padded = np.concatenate([change[..., :1], change, change[..., -1:]], axis=-1)
    around = change + 0.5 * (padded[..., :-2] + padded[..., 2:])
    smooth = ndimage.uniform_filter(around, (*[3] * (around.ndim - 1), 1), mode="nearest")
    interval = np.floor((operator.fine_mm - operator.slices_mm[0]) / operator.slice_step_mm).astype(int)
    out: NDArray[np.float32] = smooth[..., np.clip(interval, 0, change.shape[-1] - 1)]
    return out


def calibrate(stack: Stack, lines: Lines) -> ErrorTable | None:
    """Tabulate the errors of `lines` on thick slices made from in-plane lines; None when the plane is too small."""
    axis = int(np.argmin(stack.in_plane_mm))
    spacing, step = stack.in_plane_mm[axis], stack.operator.slice_step_mm
    length = stack.slices.shape[axis]
    chosen = np.unique(np.linspace(0, stack.slices.shape[2] - 1, _IMAGES).round().astype(int))
    images = np.ascontiguousarray(np.moveaxis(stack.slices[..., chosen], (2, axis), (0, 2)))  # (image, across, along)
    pixels = np.arange(length) * spacing
    margin = stack.operator.profile.fwhm_mm
    centres = np.arange(margin, pixels[-1] - margin, step)
    if len(centres) < 6:
        return None
    thick = slice_operator(centres, pixels, stack.operator.profile)
    fine = centres[0] + np.arange(0.0, centres[-1] - centres[0] + 1e-6, stack.operator.step_mm)
    low = np.ascontiguousarray(thick.forward(images))
    truth = images @ interpolate.bspline(pixels, fine).T.astype(np.float32)
    operator = slice_operator(centres, fine, stack.operator.profile)
    error = np.square(enforce(lines(low, operator), low, operator) - truth)
    return _tabulate(activity(low, operator), error, operator)


def _tabulate(q: NDArray[np.float32], error: NDArray[np.float32], operator: SliceOperator) -> ErrorTable:
    limits = np.unique(np.quantile(q, np.linspace(0, 1, BINS + 1)))
    if len(limits) < 3:
        overall = np.full((len(DEPTHS) - 1, 1), float(np.sqrt(error.mean())))
        return ErrorTable(np.array([float(limits[0])]), overall)
    place = np.clip(np.searchsorted(limits, q, side="right") - 1, 0, len(limits) - 2)
    count = len(limits) - 1
    centres = np.bincount(place.ravel(), q.ravel(), count) / np.maximum(np.bincount(place.ravel(), minlength=count), 1)
    errors = np.empty((len(DEPTHS) - 1, count))
    for d, chosen in enumerate(_depths(operator)):
        where = place[..., chosen].ravel()
        weight = np.bincount(where, minlength=count)
        sums = np.bincount(where, error[..., chosen].ravel(), count)
        overall_mean = float(sums.sum() / max(weight.sum(), 1))
        errors[d] = np.sqrt(np.where(weight > 0, sums / np.maximum(weight, 1), overall_mean))
    return ErrorTable(np.maximum.accumulate(centres), errors)


def _depths(operator: SliceOperator) -> list[NDArray[np.bool_]]:
    distance = np.abs(operator.fine_mm[:, None] - operator.slices_mm[None, :]).min(axis=1) / operator.slice_step_mm
    which = np.clip(np.searchsorted(DEPTHS, distance, side="right") - 1, 0, len(DEPTHS) - 2)
    return [which == d for d in range(len(DEPTHS) - 1)]


def calibrate_crossed(
    stack: Stack, bounds: tuple[float, float]
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]] | None:
    """The expected error of a volume from several stacks, by how steep it is: (i, j, k) volume → standard deviation.

    Within the planes of `stack` the truth is known: they are made thick along one in-plane axis and along the other, as
    two crossed stacks would see them, joined again and compared. None when the planes are too small."""
    from slice3d.superres.scene import Separable
    from slice3d.superres.variation import Term, VariationSettings, reconstruct

    low, size = bounds
    chosen = np.unique(np.linspace(0, stack.slices.shape[2] - 1, _IMAGES).round().astype(int))
    images = np.ascontiguousarray((stack.slices[..., chosen].transpose(2, 0, 1) - low) / size, dtype=np.float32)
    terms, start = [], np.zeros_like(images)
    for axis, spacing in enumerate(stack.in_plane_mm, start=1):
        pixels = np.arange(images.shape[axis]) * spacing
        step = stack.operator.slice_step_mm
        centres = np.arange(step / 2, pixels[-1] - step / 2 + 1e-6, step)
        if len(centres) < 6:
            return None
        thick = slice_operator(centres, pixels, stack.operator.profile)
        matrices: list[NDArray[np.float32] | None] = [None, None, None]
        matrices[axis] = np.ascontiguousarray(thick.matrix, dtype=np.float32)
        projector = Separable(tuple(matrices), (0, 1, 2))
        terms.append(Term(projector, projector.forward(images), None, step / spacing))
        matrices[axis] = interpolate.bspline(centres, pixels).astype(np.float32)
        start += Separable(tuple(matrices), (0, 1, 2)).forward(terms[-1].target) / 2
    spacing_mm = (np.inf, *stack.in_plane_mm)
    again = reconstruct(terms, start, spacing_mm, settings=VariationSettings(rounds=4))
    q = steepness(again, (1, 2))
    limits = np.unique(np.quantile(q, np.linspace(0, 1, BINS + 1)))
    error = np.square(again - images)
    if len(limits) < 3:
        flat = np.float32(np.sqrt(error.mean()) * size)
        return lambda image: np.full(image.shape, flat, dtype=np.float32)
    place = np.clip(np.searchsorted(limits, q.ravel(), side="right") - 1, 0, len(limits) - 2)
    count = np.maximum(np.bincount(place, minlength=len(limits) - 1), 1)
    centres = np.maximum.accumulate(np.bincount(place, q.ravel(), len(limits) - 1) / count)
    errors = np.sqrt(np.bincount(place, error.ravel(), len(limits) - 1) / count)

    def look_up(image: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.interp(steepness((image - low) / size, (0, 1, 2)), centres, errors) * size
        return out.astype(np.float32)

    return look_up


def steepness(image: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Root mean square difference between neighbours along `axes`, averaged over three voxels along each."""
    from scipy import ndimage

    total = np.zeros_like(image)
    for axis in axes:
        total += np.square(np.gradient(image, axis=axis)).astype(np.float32) / len(axes)
    around = ndimage.uniform_filter(total, [3 if n in axes else 1 for n in range(image.ndim)], mode="nearest")
    out: NDArray[np.float32] = np.sqrt(np.maximum(around, 0))
    return out
