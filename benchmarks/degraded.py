"""Held-out studies made worse, for `benchmarks.accuracy`: thicker slices, more noise, a patient who lies askew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import ndimage

from slice3d.grid import Grid
from slice3d.resample import apply_moves, axis_moves, undo_moves
from slice3d.training.structures import IGNORE
from slice3d.volume import Volume

Pair = tuple[Volume, np.ndarray]


def variants(volume: Volume, truth: np.ndarray) -> Iterator[tuple[str, Volume, np.ndarray]]:
    """What was done, the study after it, and its truth."""
    for mm in (5.0, 8.0):
        worse = thick(volume, truth, mm=mm)
        yield f"slices of {worse[0].grid.spacing_mm[_superior(volume)]:.3g} mm", *worse
    for hu in (25.0, 60.0):
        yield f"{hu:.0f} HU more noise", *noisy(volume, truth, hu=hu)
    for deg, towards in ((20.0, "left"), (-20.0, "right")):
        yield f"front turned {abs(deg):.0f}° to the {towards}", *turned(volume, truth, deg=deg)


def thick(volume: Volume, truth: np.ndarray, *, mm: float) -> Pair:
    """Slices averaged in groups until they are about `mm` thick; the truth is what most of a group is, open in a tie."""
    axis = _superior(volume)
    factor = max(2, round(mm / volume.grid.spacing_mm[axis]))
    count = volume.data.shape[axis] // factor

    def grouped(array: np.ndarray) -> np.ndarray:
        along = np.moveaxis(array, axis, 0)[: count * factor]
        return along.reshape(count, factor, *along.shape[1:])

    classes = grouped(truth)
    most, out = np.zeros((count, *classes.shape[2:]), int), np.full((count, *classes.shape[2:]), IGNORE, truth.dtype)
    for value in np.unique(truth):
        votes = (classes == value).sum(axis=1)
        out[votes > most] = value
        out[(votes == most) & (votes > 0)] = IGNORE
        most = np.maximum(most, votes)
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (factor - 1) / 2
    affine[:3, axis] *= factor
    data = np.moveaxis(grouped(volume.data).mean(axis=1), 0, axis)
    return _changed(volume, data, Grid(data.shape, affine)), np.ascontiguousarray(np.moveaxis(out, 0, axis))


def noisy(volume: Volume, truth: np.ndarray, *, hu: float) -> Pair:
    """Noise of this standard deviation, a little correlated as a soft kernel's is, on top of what there is."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=volume.data.shape), 0.6)
    return _changed(volume, volume.data + noise * (hu / noise.std()), volume.grid), truth


def turned(volume: Volume, truth: np.ndarray, *, deg: float) -> Pair:
    """The patient's front turned to the patient's left by `deg`; the field of view stays, air comes in at its corners."""
    moves = axis_moves(volume.grid, "RAS")
    hu, classes = (np.asarray(apply_moves(a, *moves)) for a in (volume.data.astype(np.float32), truth))
    # the first axis runs to the patient's right, the second to the front; in plane, pixels are square
    hu = ndimage.rotate(hu, deg, axes=(0, 1), reshape=False, order=1, cval=-1024)
    classes = ndimage.rotate(classes, deg, axes=(0, 1), reshape=False, order=0, cval=IGNORE)
    return _changed(volume, undo_moves(hu, *moves), volume.grid), np.ascontiguousarray(undo_moves(classes, *moves))


def _superior(volume: Volume) -> int:
    return int(np.abs(volume.grid.directions[2]).argmax())


def _changed(volume: Volume, data: np.ndarray, grid: Grid) -> Volume:
    return replace(volume, data=np.rint(data).astype(np.int16), grid=grid, source=None)
