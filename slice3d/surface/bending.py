"""The smoothest function whose sign agrees with the labels of thick slices.

Labels say only on which side of the surface the centre, or most, of each voxel lies. Of all functions that agree with
them, the one is taken whose third derivatives are least (as V. Lempitsky, "Surface extraction from binary volumes with
higher-order smoothness", CVPR 2010, does with second ones): quadrics cost nothing then, so that a body which closes
between two slices is continued as its slices curve, and neither cut short nor drawn out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
THICK = 1.5
# of the slice distance: the waves that the solver settles first, those that carry the volume and those of detail
LONG, SHORT = 4.0, 2.8
# of the slice distance, how far the function may look beyond the structure
_BEYOND = 3.0
# of the slice distance: an end is flat where the function stays this near to zero over a patch that is wider than a slice
_UNDECIDED = 0.05
# of the finest spacing: how far from zero every voxel stays on its side
_KEPT = 0.02
# waves of which the quadratic step would leave less than this part are not computed
_NOTHING = 5e-3
# of the function over the thickness of a slice, for its median
_SAMPLES = 6


def least_bending(mask: NDArray[np.bool_], spacing: Floats) -> Array:
    """(i, j, k) float32 in mm, positive inside; refined by cubic splines along the thick axes it is the surface.

    Solved first on every n-th voxel within the slices, where the long waves settle that carry the volume, then on all.
    A label is read as what most of its voxel is, since a scanner averages over the thickness of its slices.
    """
    h = float(spacing.max())
    more = [(m, m) for m in np.ceil(_BEYOND * h / spacing).astype(int) * (spacing < h)]
    inner = tuple(slice(a, a + n) for (a, _), n in zip(more, mask.shape, strict=True))
    wide = np.pad(mask, more, mode="edge")
    low, high, start = bounds(wide, spacing)
    skip = np.where(spacing * THICK < h, np.maximum(h / (2 * spacing), 1).astype(int), 1)
    # without a coarser grid the long waves are as well settled sooner, and each round costs more
    first, again = (200, 60) if skip.max() > 1 else (60, 30)
    every = tuple(slice(None, None, int(n)) for n in skip)
    coarse = wide[every]
    coarse_low, coarse_high, values = (np.ascontiguousarray(b[every]) for b in (low, high, start))
    values = solve(coarse_low, coarse_high, values, spacing * skip, wave=LONG, iterations=first)
    shift = flat = np.zeros_like(values)
    for _ in range(2):
        flat = np.maximum(flat, _flat_ends(values, coarse, spacing * skip))
        shift = majority(values, spacing * skip)
        top = np.minimum(coarse_high, _halfway(values, coarse, flat, spacing))
        values = solve(coarse_low + shift, top + shift, values, spacing * skip, wave=LONG, iterations=again)
    if skip.max() > 1:
        values, shift, flat = (_spread(v, skip, wide.shape) for v in (values, shift, flat))
    top = np.minimum(high, _halfway(values, wide, np.clip(flat, 0, 1), spacing))
    values = solve(low + shift, top + shift, values, spacing, wave=SHORT, iterations=30)
    values -= np.float32(slice_level(values - shift, int(np.count_nonzero(wide)), spacing))
    # what is as thin as a voxel is not lost to what the solver left undone
    kept = np.float32(_KEPT * spacing.min())
    values = np.where(wide, np.maximum(values, shift + kept), np.minimum(values, shift - kept))
    return np.ascontiguousarray(values[inner])


def solve(low: Array, high: Array, start: Array, spacing: Floats, *, wave: float, iterations: int) -> Array:
    """The function between two bounds whose third derivatives are least, by over-relaxed ADMM.

    The quadratic step is exact in the cosine basis, but for waves that it would leave next to nothing of. wave: length, in
    slice distances, that converges fastest.
    """
    from scipy.fft import next_fast_len

    inner = tuple(slice(n) for n in start.shape)
    more = [(0, next_fast_len(n) - n) for n in start.shape]
    start = np.ascontiguousarray(np.pad(start, more, mode="edge"))
    low = np.ascontiguousarray(np.pad(low, more, constant_values=-np.inf))
    high = np.ascontiguousarray(np.pad(high, more, constant_values=np.inf))
    weight = (2 * np.pi / (wave * float(spacing.max()))) ** 6
    energy: NDArray[Any] = np.zeros((1, 1, 1))
    kept = []
    for axis, (n, s) in enumerate(zip(start.shape, spacing, strict=True)):
        along = (2 - 2 * np.cos(np.pi * np.arange(n) / n)) / s**2
        kept.append(int(np.count_nonzero(weight > _NOTHING * (weight + along**3))))
        energy = energy + along[: kept[axis]].reshape([-1 if a == axis else 1 for a in range(3)])
    gain = (weight / (weight + energy**3)).astype(np.float32)
    # what the quadratic step is given becomes what it makes: one array, and two more that remember
    x, z, dual = start.copy(), start.copy(), np.zeros_like(start)
    for n in range(iterations):
        if n:
            _relax(x.reshape(-1), z.reshape(-1), dual.reshape(-1), low.reshape(-1), high.reshape(-1))
        x = _waves(x, kept)
        x *= gain
        x = _sum_of_waves(x, start.shape)
    return np.ascontiguousarray(x[inner])


def _waves(values: Array, kept: Sequence[int]) -> Array:
    """The longest waves along each axis (cosine basis). values: may be written over."""
    from scipy.fft import dct

    for axis, count in enumerate(kept):
        longest = tuple(slice(count) if a == axis else slice(None) for a in range(3))
        values = dct(values, axis=axis, norm="ortho", overwrite_x=True, workers=2)[longest]
    return values


def _sum_of_waves(waves: Array, shape: Sequence[int]) -> Array:
    """The opposite of `_waves`."""
    from scipy.fft import idct

    for axis in (2, 1, 0):
        waves = idct(waves, n=shape[axis], axis=axis, norm="ortho", overwrite_x=True, workers=2)
    return waves


@compiled
def _relax(x: Array, z: Array, dual: Array, low: Array, high: Array) -> None:
    """Between two quadratic steps: what the last one made is brought within the bounds, and x is what the next one is given."""
    for n in range(len(x)):
        over = np.float32(1.7) * x[n] + np.float32(-0.7) * z[n]
        over += dual[n]
        z[n] = min(max(over, low[n]), high[n])
        dual[n] = over - z[n]
        x[n] = z[n] - dual[n]


def bounds(mask: NDArray[np.bool_], spacing: Floats) -> tuple[Array, Array, Array]:
    """Lowest and highest value allowed at each voxel, and a first guess, all in mm."""
    from scipy.ndimage import binary_dilation

    epsilon = np.float32(0.1 * spacing.min())
    half = np.float32(0.5 * spacing.min())
    start = np.zeros(mask.shape, dtype=np.float32)
    bound = np.zeros(mask.shape, dtype=np.float32)
    for side, sign in ((mask, 1), (~mask, -1)):
        rim = side & binary_dilation(~side)
        # Half of the depth leaves the function room to curve; the sign is what matters.
        depth = _distance_to(rim, spacing)[side]
        bound[side] = sign * (epsilon + depth / 2)
        start[side] = sign * (_distance_to(~side, spacing)[side] - half)
    infinity = np.float32(np.inf)
    return np.where(mask, bound, -infinity), np.where(mask, infinity, bound), start


def _distance_to(mask: NDArray[np.bool_], spacing: Floats) -> Array:
    """(i, j, k) float32 mm from each voxel to the nearest one of the mask."""
    # views below need rows in a row, whatever the order of the mask
    out: Array = np.ascontiguousarray(np.where(mask, np.float32(0), np.float32(np.inf)))
    for axis in (2, 1, 0):
        _lower_envelope(out.reshape(int(np.prod(mask.shape[:axis])), mask.shape[axis], -1), float(spacing[axis]))
    # where the mask is empty: farther than anything in the volume, but finite
    longest = np.float32(np.linalg.norm(np.asarray(mask.shape) * spacing))
    return np.minimum(np.sqrt(out, out=out), longest, out=out)


@compiled
def _lower_envelope(squared: Array, step: float) -> None:
    """Squared distances (A, N, B) in place: each becomes the least of those along the second axis, with the way there
    (P. Felzenszwalb, D. Huttenlocher, "Distance transforms of sampled functions", Theory of Computing 8, 2012)."""
    count = squared.shape[1]
    place, height, begin = np.empty(count, np.int64), np.empty(count), np.empty(count)
    for a in range(squared.shape[0]):
        for b in range(squared.shape[2]):
            last = -1
            for n in range(count):
                own = float(squared[a, n, b])
                if own == np.inf:
                    continue
                meet = -np.inf
                while last >= 0:
                    gap = n - place[last]
                    meet = (own - height[last]) / (2 * step * step * gap) + (n + place[last]) / 2
                    if meet > begin[last]:
                        break
                    last -= 1
                if last < 0:
                    meet = -np.inf
                last += 1
                place[last], height[last], begin[last] = n, own, meet
            at = 0
            for n in range(count if last >= 0 else 0):
                while at < last and begin[at + 1] < n:
                    at += 1
                way = (n - place[at]) * step
                squared[a, n, b] = height[at] + way * way


def majority(values: Array, spacing: Floats) -> Array:
    """By how much the function at each voxel's centre is above its median over the voxel: curved parts lose by it."""
    h = float(spacing.max())
    factors = np.where(spacing > THICK * spacing.min(), _SAMPLES, 1)
    fine = refine_all(values, factors)
    blocks = [n for size, f in zip(values.shape, factors, strict=True) for n in (size, f)]
    near = np.abs(values) < h
    part = fine.reshape(blocks).transpose(0, 2, 4, 1, 3, 5)[near].reshape(-1, int(factors.prod()))
    out = np.zeros_like(values)
    out[near] = np.clip(values[near] - np.median(part, axis=1), -h / 4, h / 4)
    return out


def _flat_ends(values: Array, mask: NDArray[np.bool_], spacing: Floats) -> Array:
    """0…1: where the body ends between two slices by a face along them, so that no slice says how far it reaches.

    There the function goes on growing until the next slice stops it. Half a slice within such a face begins to count.
    """
    from scipy.ndimage import distance_transform_edt

    h = float(spacing.max())
    out = np.zeros_like(values)
    for axis in _thick(spacing):
        open_ = np.isfinite(_behind(values, mask, axis)) & (values > -_UNDECIDED * h)
        within = np.delete(spacing, axis)
        layers, found = np.moveaxis(out, axis, 0), np.moveaxis(open_, axis, 0)
        for k in np.flatnonzero(found.any(axis=(1, 2))):
            depth = distance_transform_edt(found[k], sampling=within)
            np.maximum(layers[k], np.clip(2 * depth / h - 1, 0, 1), out=layers[k])
    return out


def _halfway(values: Array, mask: NDArray[np.bool_], flat: Array, spacing: Floats) -> Array:
    """Highest values that keep flat ends halfway between the last slice inside and the first one outside, else ∞."""
    out = np.full_like(values, np.inf)
    for axis in _thick(spacing):
        behind = _behind(values, mask, axis)
        held = (flat > 0) & np.isfinite(behind)
        out[held] = np.minimum(out[held], -flat[held] * np.maximum(behind[held], 0))
    return out


def _thick(spacing: Floats) -> list[int]:
    return [axis for axis in range(3) if spacing[axis] > THICK * spacing.min()]


def _behind(values: Array, mask: NDArray[np.bool_], axis: int) -> Array:
    """For each voxel outside with a neighbour inside along an axis the latter's value (the larger of two), else −∞."""
    out = np.full_like(values, -np.inf)
    o, m, v = np.moveaxis(out, axis, 0), np.moveaxis(mask, axis, 0), np.moveaxis(values, axis, 0)
    for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        np.maximum(o[here], np.where(m[there] & ~m[here], v[there], -np.inf), out=o[here])
    return out


def _spread(values: Array, skip: NDArray[np.int64], shape: tuple[int, ...]) -> Array:
    """From every n-th voxel to all, by natural cubic splines."""
    from scipy.interpolate import CubicSpline

    for axis in range(3):
        if skip[axis] > 1:
            known = values.shape[axis]
            spline = CubicSpline(np.arange(known) * skip[axis], np.eye(known), bc_type="natural")
            weights = spline(np.arange(shape[axis])).astype(np.float32)
            values = np.ascontiguousarray(np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis))
    return values


def slice_level(values: Array, count: int, spacing: Floats) -> float:
    """The level at which as much of the acquired slices lies inside as voxels were labelled.

    Area is compared within slices, not volume between them: how the body ends between two slices is what the
    function estimates, and counting voxels there would be wrong by up to half a slice.
    """
    thin = [axis for axis in range(3) if spacing[axis] <= THICK * spacing.min()]
    width = np.sqrt(sum(np.gradient(values, axis=axis) ** 2 for axis in thin)) + np.float32(1e-6)
    reach = np.float32(3 * spacing.min())
    near = np.abs(values) < 2 * reach
    sure = int(np.count_nonzero(values[~near] > 0))
    value, scale = values[near], width[near]
    low, high = -float(reach), float(reach)
    for _ in range(24):
        level = (low + high) / 2
        if sure + float(np.clip(0.5 + (value - level) / scale, 0, 1).sum(dtype=np.float64)) > count:
            low = level
        else:
            high = level
    return (low + high) / 2


def refine_all(values: Array, factors: NDArray[Any]) -> Array:
    """`refine` along every axis whose factor is above 1."""
    for axis in range(3):
        if factors[axis] > 1:
            values = refine(values, axis, int(factors[axis]))
    return values


def refine(values: Array, axis: int, factor: int) -> Array:
    """Natural cubic spline along one axis: `factor` samples per voxel, spread evenly over its extent."""
    from scipy.interpolate import CubicSpline

    n = values.shape[axis]
    where = (np.arange(n * factor) + 0.5) / factor - 0.5
    weights = CubicSpline(np.arange(n), np.eye(n), bc_type="natural")(where).astype(np.float32)
    out: Array = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)
