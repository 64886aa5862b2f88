"""The part of a label map that one structure needs: cropped, padded, and what of it lies at the border of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled
from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.volume import Segmentation

MARGIN = 4


@dataclass(frozen=True)
class Region:
    """One structure with a margin around it.

    grid: of the cropped arrays; reaches beyond the scan where the structure touches its border. mask: (i, j, k) bool.
    probability: (i, j, k) float32 in 0…1 or None. cut: (axis, 0 first / 1 last) faces of the scan that the structure
    touches. limits: (2, 3) index positions of the faces of the scan in this region (voxel edges).
    """

    grid: Grid
    mask: NDArray[np.bool_]
    probability: NDArray[np.float32] | None
    cut: tuple[tuple[int, int], ...]
    limits: NDArray[np.float64]

    def scanned(self, factors: Sequence[int] = (1, 1, 1)) -> tuple[slice, ...]:
        """The part of the arrays, refined `factors` times, that was scanned and not made up beyond the border."""
        return tuple(
            slice(int(np.ceil(max(low, 0))) * f, (int(np.floor(min(high, size - 1))) + 1) * f)
            for low, high, size, f in zip(*self.limits, self.mask.shape, factors, strict=True)
        )

    def border(self) -> list[tuple[NDArray[np.float64], float]]:
        """Unit normal n (3,), outwards, and offset d in mm of each face of the scan that cuts the structure: n · x = d."""
        out = []
        for axis, end in self.cut:
            across = np.linalg.inv(self.grid.affine)[axis, :3] * (1 if end else -1)
            n: NDArray[np.float64] = across / np.linalg.norm(across)
            corner = np.zeros(3)
            corner[axis] = self.limits[end, axis]
            out.append((n, float(self.grid.to_world(corner) @ n)))
        return out


def bounding_box(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """(start, stop) of the True voxels, or None where there are none."""
    start, stop = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    for axis in range(3):
        if axis == 0:
            flat = mask.any(axis=(1, 2))
        else:
            # Everything outside the box found so far is empty: look only inside it.
            inner = mask[start[0] : stop[0]] if axis == 1 else mask[start[0] : stop[0], start[1] : stop[1]]
            flat = inner.any(axis=(0, 2) if axis == 1 else (0, 1))
        found = np.flatnonzero(flat)
        if not len(found):
            return None
        start[axis], stop[axis] = found[0], found[-1] + 1
    return start, stop


def crop(segmentation: Segmentation, structure: str, *, use_probabilities: bool = True) -> Region | None:
    """Cuts one structure out of a segmentation; None where it has no voxels.

    Raises `InputError` for an unknown name and for probabilities that are NaN or outside 0…1.
    """
    probability = segmentation.probabilities.get(structure) if use_probabilities else None
    if probability is None:
        box = _box_of_labels(segmentation.labels, segmentation.values(structure))
    else:
        _check_probability(structure, probability)
        box = bounding_box(np.asarray(probability) >= 0.5)
    if box is None:
        return None
    start, stop = box[0] - MARGIN, box[1] + MARGIN
    shape = np.asarray(segmentation.grid.shape)
    cut = [(axis, 0) for axis in range(3) if box[0][axis] == 0]
    cut += [(axis, 1) for axis in range(3) if box[1][axis] == shape[axis]]
    limits = np.stack([-0.5 - start, shape - 0.5 - start]).astype(np.float64)
    if probability is None:
        part = None
        mask = _is_one_of(padded(segmentation.labels, start, stop), segmentation.values(structure))
    else:
        part = padded(probability, start, stop).astype(np.float32)
        mask = part >= 0.5
    return Region(
        segmentation.grid.crop(start.tolist(), stop.tolist()),
        mask,
        part,
        tuple(sorted(cut)),
        limits,
    )


def _is_one_of(labels: NDArray[Any], values: tuple[int, ...]) -> NDArray[np.bool_]:
    out: NDArray[np.bool_] = labels == values[0] if len(values) == 1 else np.isin(labels, values)
    return out


def _box_of_labels(labels: NDArray[Any], values: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """`bounding_box` of some labels, without a mask of the whole scan."""
    if labels.flags.f_contiguous and not labels.flags.c_contiguous:
        box = _box_of_labels(labels.T, values)
        return None if box is None else (box[0][::-1], box[1][::-1])
    known = [v for v in values if v <= np.iinfo(labels.dtype).max]
    start, stop = np.asarray(labels.shape, dtype=np.int64), np.zeros(3, dtype=np.int64)
    for value in np.asarray(known, dtype=labels.dtype):
        _widen(np.ascontiguousarray(labels), value, start, stop)
    return (start, stop) if stop.any() else None


@compiled
def _widen(labels: NDArray[Any], value: int, start: NDArray[np.int64], stop: NDArray[np.int64]) -> None:
    """Widens the box from `start` to before `stop` until it holds every voxel of one value."""
    ni, nj, nk = labels.shape
    for i in range(ni):
        for j in range(nj):
            row = labels[i, j]
            found = np.uint8(0)
            for k in range(nk):
                found |= np.uint8(row[k] == value)
            if not found:
                continue
            start[0], stop[0] = min(start[0], i), max(stop[0], i + 1)
            start[1], stop[1] = min(start[1], j), max(stop[1], j + 1)
            for k in range(start[2]):
                if row[k] == value:
                    start[2] = k
                    break
            for k in range(nk - 1, stop[2] - 1, -1):
                if row[k] == value:
                    stop[2] = k + 1
                    break


def padded(array: NDArray[Any], start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[Any]:
    """`array` from `start` to before `stop`, which may lie outside it."""
    low, high = np.maximum(start, 0), np.minimum(stop, array.shape)
    inner = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if inner.shape == tuple(stop - start):
        return inner
    # Beyond the scan the last slice goes on, so that smoothing does not round the structure off before it is cut flat.
    return np.pad(inner, list(zip(low - start, stop - high, strict=True)), mode="edge")


def _check_probability(structure: str, probability: NDArray[Any]) -> None:
    low, high = float(probability.min()), float(probability.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(
            f"probability of {structure} holds NaN or infinity; expected 0 to 1; repair the map or drop it"
        )
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(f"probability of {structure} runs from {low:.3g} to {high:.3g}; expected 0 to 1; rescale it")


def cut_sides(labels: NDArray[Any]) -> dict[int, list[tuple[int, int]]]:
    """For each label value, the (axis, 0 first / 1 last) faces of the scan that it touches."""
    out: dict[int, list[tuple[int, int]]] = {}
    for axis in range(3):
        for end, at in ((0, 0), (1, -1)):
            for value in np.unique(np.moveaxis(labels, axis, 0)[at]):
                out.setdefault(int(value), []).append((axis, end))
    return out


def cut_finding(structure: str, cut: Sequence[tuple[int, int]], grid: Grid) -> Finding | None:
    """The sentence that a surface was closed where the scan ended. cut: as in `Region`. grid: its axes."""
    if not cut:
        return None
    sides = [grid.end(axis, bool(end)) for axis, end in cut]
    text = (
        f"{structure} reaches the border of the field of view ({', '.join(sides)}) and was closed there by a flat face; "
        "its true extent is unknown"
    )
    return Finding("closed-at-field-of-view", text, details={"sides": sides})
