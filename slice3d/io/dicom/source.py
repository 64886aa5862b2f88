"""What a volume remembers of its files, so that results go back onto the slices that were acquired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.io.dicom.separate import Stack
from slice3d.io.files import FileRef, Opener, quiet


@dataclass(frozen=True, eq=False)
class SourceSlice:
    """One acquired slice. affine: (4, 4) (column, row, 0) → RAS mm; frame: 0-based index in its file."""

    file: FileRef
    frame: int
    sop_class: str
    sop_instance: str
    affine: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DicomSource:
    """The acquired slices in order along the normal. shape: (columns, rows). grid: their lattice when they form one."""

    slices: tuple[SourceSlice, ...]
    shape: tuple[int, int]
    grid: Grid | None
    frame_of_reference: str

    def datasets(self) -> list[Any]:
        """The header of every file (pixels left out), once per file, in slice order.

        Raises `InputError` when one is no longer there.
        """
        import pydicom

        seen: dict[FileRef, Any] = {}
        with Opener() as opener, quiet():
            for item in self.slices:
                if item.file in seen:
                    continue
                try:
                    with opener.open(item.file) as stream:
                        seen[item.file] = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
                except Exception as error:  # moved, or changed into something that pydicom stumbles over
                    raise InputError(
                        f"{item.file.name}, which the volume was loaded from, cannot be read any more "
                        f"({type(error).__name__}); expected it where it was; load the study again"
                    ) from error
        return list(seen.values())


def source_of(stack: Stack) -> DicomSource:
    """The source of a stack that has a layout."""
    layout = stack.layout
    if layout is None:
        raise ValueError(stack.problem)
    slices = tuple(
        SourceSlice(
            plane.header.file, plane.frame.index, plane.header.sop_class, plane.header.sop_instance,
            layout.slice_affine(k) )
        for k, plane in enumerate(stack.planes)
    )  # fmt: skip
    first = stack.planes[0].header
    return DicomSource(slices, layout.shape, layout.grid if layout.regular else None, first.frame_of_reference)
