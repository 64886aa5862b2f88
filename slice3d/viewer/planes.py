"""Slices as a radiologist hangs them: which plane, which way up, how wide the window, which slice shows most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.grid import Grid
from slice3d.volume import Segmentation, Volume

PlaneName = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[PlaneName, ...] = ("axial", "coronal", "sagittal")

# plane → world axis it is normal to, world axes shown to the right and upwards, and in which direction they grow.
# Radiological convention: the patient's right on the viewer's left; sagittal with the face to the left.
_LAYOUT: dict[PlaneName, tuple[int, tuple[int, int], tuple[int, int]]] = {
    "axial": (2, (0, -1), (1, +1)),
    "coronal": (1, (0, -1), (2, +1)),
    "sagittal": (0, (1, -1), (2, +1)),
}
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # world axis → (negative end, positive end)

# Centre and width in HU, common clinical presets.
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "soft tissue": (50, 400),
    "liver": (70, 180),
    "lung": (-600, 1500),
    "bone": (400, 1800),
    "brain": (40, 80),
}


@dataclass(frozen=True)
class Hanging:
    """How array slices of one grid become one plane's picture.

    axis: array axis the slices run along. transpose, flip_rows, flip_columns: what to do to a 2D slice so that row 0 is
    the top. row_mm, column_mm: size of a pixel. left, right, top, bottom: anatomical letters at the edges.
    """

    plane: PlaneName
    axis: int
    transpose: bool
    flip_rows: bool
    flip_columns: bool
    row_mm: float
    column_mm: float
    left: str
    right: str
    top: str
    bottom: str

    def picture(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """(rows, columns) of slice `index` of a 3D array on the grid, the right way up."""
        flat = cut(array, self.axis, index)
        if self.transpose:
            flat = flat.T
        if self.flip_rows:
            flat = flat[::-1]
        out: NDArray[Any] = flat[:, ::-1] if self.flip_columns else flat
        return out


def cut(array: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """A view of one slice (`np.take` would copy the whole of an array that is not in C order)."""
    out: NDArray[Any] = np.moveaxis(array, axis, 0)[index]
    return out


def hanging(grid: Grid, plane: PlaneName) -> Hanging:
    """How the array slices nearest to `plane` are shown; oblique grids are shown along their own axes."""
    normal, (across, across_sign), (up, up_sign) = _LAYOUT[plane]
    axis_of = {world: axis for axis, world in enumerate(grid.world_axes)}
    column_axis, row_axis = axis_of[across], axis_of[up]
    # Does the picture's column (row) number grow with the array index?
    columns_grow = np.sign(grid.directions[across, column_axis]) == across_sign
    rows_grow = np.sign(grid.directions[up, row_axis]) == -up_sign
    spacing = grid.spacing_mm
    across_ends = _LETTERS[across] if across_sign > 0 else _LETTERS[across][::-1]
    return Hanging(
        plane=plane, axis=axis_of[normal], transpose=column_axis < row_axis,
        flip_rows=not rows_grow, flip_columns=not columns_grow,
        row_mm=spacing[row_axis], column_mm=spacing[column_axis],
        left=across_ends[0], right=across_ends[1], top=_LETTERS[up][1], bottom=_LETTERS[up][0],
    )  # fmt: skip


def window(volume: Volume, structures: Sequence[str] = ()) -> tuple[float, float]:
    """(lowest, highest) value to show: a CT preset that suits the structures, else the 1st to 99.5th percentile."""
    if volume.modality == "CT":
        kinds = {name: anatomy.STRUCTURES.get(anatomy.canonical(name)) for name in structures}
        if structures and all(name.startswith("lung") for name in structures):
            preset = "lung"
        elif structures and all(s is not None and s.kind == "bone" for s in kinds.values()):
            preset = "bone"
        elif structures and all(s is not None and s.kind == "brain" for s in kinds.values()):
            preset = "brain"
        else:
            preset = "soft tissue"
        center, width = CT_WINDOWS[preset]
        return center - width / 2, center + width / 2
    step = max(1, volume.data.size // 2_000_000)
    sample = volume.data.reshape(-1)[::step].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    low, high = np.percentile(sample, (1, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def voxels_by_slice(segmentation: Segmentation) -> tuple[dict[str, NDArray[np.int64]], ...]:
    """For each array axis: structure → (slices,) number of its voxels in each slice. One pass per axis."""
    labels = segmentation.labels
    highest = int(labels.max(initial=0))
    known = [value for value in segmentation.names if 0 < value <= highest]
    compact = np.zeros(highest + 1, dtype=np.intp)
    compact[known] = np.arange(1, len(known) + 1)
    out: list[dict[str, NDArray[np.int64]]] = []
    for axis in range(3):
        rows = [cut(labels, axis, n) for n in range(labels.shape[axis])]
        counts = np.stack([np.bincount(compact[np.maximum(r, 0).ravel()], minlength=len(known) + 1) for r in rows])
        column = {value: counts[:, n] for n, value in enumerate(known, start=1)}
        empty = np.zeros(labels.shape[axis], dtype=np.int64)
        out.append(
            {
                name: sum((column[v] for v in segmentation.values(name) if v in column), start=empty)
                for name in segmentation.structures
            }
        )
    return tuple(out)


def best_slice(counts: dict[str, NDArray[np.int64]], structures: Sequence[str], fallback: int) -> int:
    """The slice where the most of the most structures is seen: for a single one, its largest cross-section."""
    score = np.zeros(1)
    for name in structures:
        area = counts[name]
        if area.any():
            score = score + np.sqrt(area / area.max())
    return int(np.argmax(score)) if score.any() else fallback
