"""Held-out studies made worse, for `benchmarks.accuracy`: thicker slices, more noise, a patient who lies askew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from scipy import ndimage

from slice3d.grid import Grid
from slice3d.training.structures import IGNORE
from slice3d.volume import Volume

Pair = tuple[Volume, np.ndarray]


def thick(volume: Volume, truth: np.ndarray, *, mm: float) -> Pair:
    """Slices averaged in groups until they are about `mm` thick; the truth is that of the plane in the middle."""
    axis = _superior(volume)
    factor = max(2, round(mm / volume.grid.spacing_mm[axis]))
    count = volume.data.shape[axis] // factor
    groups = np.moveaxis(volume.data, axis, 0)[: count * factor]
    data = groups.reshape(count, factor, *groups.shape[1:]).mean(axis=1)
    middle = np.moveaxis(truth, axis, 0)[factor // 2 : count * factor : factor]
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (factor - 1) / 2
    affine[:3, axis] *= factor
    data = np.moveaxis(data, 0, axis)
    return _changed(volume, data, Grid(data.shape, affine)), np.ascontiguousarray(np.moveaxis(middle, 0, axis))


def noisy(volume: Volume, truth: np.ndarray, *, hu: float) -> Pair:
    """Noise of this standard deviation, a little correlated as a soft kernel's is, on top of what there is."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=volume.data.shape), 0.6)
    return _changed(volume, volume.data + noise * (hu / noise.std()), volume.grid), truth


def turned(volume: Volume, truth: np.ndarray, *, deg: float) -> Pair:
    """The patient turned about the long axis, the field of view left where it is: air comes in at its corners."""
    axis = _superior(volume)
    plane = tuple(n for n in range(3) if n != axis)
    how = {"angle": deg, "axes": plane, "reshape": False}
    data = ndimage.rotate(volume.data.astype(np.float32), order=1, cval=-1024, **how)
    return _changed(volume, data, volume.grid), ndimage.rotate(truth, order=0, cval=IGNORE, **how)


VARIANTS: dict[str, Callable[[Volume, np.ndarray], Pair]] = {
    "slices of 5 to 6 mm": partial(thick, mm=5.0),
    "slices of 8 to 9 mm": partial(thick, mm=8.0),
    "25 HU more noise": partial(noisy, hu=25.0),
    "60 HU more noise": partial(noisy, hu=60.0),
    "turned by 20°": partial(turned, deg=20.0),
    "turned by −20°": partial(turned, deg=-20.0),
}


def _superior(volume: Volume) -> int:
    return int(np.abs(volume.grid.directions[2]).argmax())


def _changed(volume: Volume, data: np.ndarray, grid: Grid) -> Volume:
    return replace(volume, data=np.rint(data).astype(np.int16), grid=grid, source=None)
