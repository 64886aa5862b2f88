"""Two label maps on one grid, cut down to where something is, structure by structure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Cropped views of the prediction's and the reference's labels, and the box of every label value in them."""

    prediction: NDArray[Any]
    reference: NDArray[Any]
    boxes: dict[int, Box]

    @classmethod
    def of(cls, prediction: NDArray[Any], reference: NDArray[Any]) -> Pairs:
        """Find everything in one pass over each array."""
        with ThreadPoolExecutor(2) as pool:
            box = join([box for box in pool.map(bounding_box, (prediction, reference)) if box is not None])
        if box is None:
            empty = np.zeros((1, 1, 1), bool)
            return cls(empty, empty, {})
        a, b = prediction[box], reference[box]
        boxes: dict[int, Box] = {}
        for labels in (a, b):
            for value, found in _objects(labels).items():
                boxes[value] = join([boxes[value], found]) or found if value in boxes else found
        return cls(a, b, boxes)

    def masks(self, values: tuple[int, ...], reference_values: tuple[int, ...]) -> tuple[Mask, Mask]:
        """Both masks of one structure on their common box; (1, 1, 1) empty masks where neither has a voxel."""
        box = join([self.boxes[v] for v in {*values, *reference_values} if v in self.boxes])
        if box is None:
            return np.zeros((1, 1, 1), bool), np.zeros((1, 1, 1), bool)
        return select(self.prediction[box], values), select(self.reference[box], reference_values)


def select(labels: NDArray[Any], values: tuple[int, ...]) -> Mask:
    """The union of some label values as a contiguous boolean array."""
    if len(values) == 1:
        out = labels == values[0]
    elif values:
        out = np.isin(labels, values)
    else:
        out = np.zeros(labels.shape, bool)
    return np.ascontiguousarray(out)


def join(boxes: list[Box]) -> Box | None:
    """The smallest box around boxes, None for none."""
    if not boxes:
        return None
    i, j, k = (slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in range(3))
    return i, j, k


def bounding_box(array: NDArray[Any]) -> Box | None:
    """The box of the non-zero elements, None for none. Reads memory in the order in which it lies."""
    from slice3d.metrics import _band

    axes = tuple(int(a) for a in np.argsort([-abs(s) for s in array.strides], kind="stable"))
    raw = np.ascontiguousarray(array.transpose(axes)).view(np.uint8)  # no copy unless it is a part of something
    raw.flags.writeable = False  # one kind of array to compile for
    lines = [np.zeros(n, np.uint8) for n in raw.shape]
    _band.occupied(raw, *lines)
    lines[2] = lines[2].reshape(-1, array.dtype.itemsize).max(axis=1)
    found = dict(zip(axes, map(_range, lines), strict=True))
    i, j, k = found[0], found[1], found[2]
    return None if i is None or j is None or k is None else (i, j, k)


def _range(line: Any) -> slice | None:
    where = np.flatnonzero(line)
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else None


def _objects(labels: NDArray[Any]) -> dict[int, Box]:
    from scipy import ndimage

    top = int(labels.max())
    whole: Box = (slice(0, labels.shape[0]), slice(0, labels.shape[1]), slice(0, labels.shape[2]))
    if int(labels.min()) < 0 or top > 1_000_000:
        return {int(value): whole for value in np.unique(labels) if value}
    if top <= 1:
        return {1: whole} if top else {}
    found = ndimage.find_objects(labels if labels.dtype.itemsize <= 4 else labels.astype(np.int32))
    return {value + 1: box for value, box in enumerate(found) if box is not None}
