"""Settings of `load`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnIrregular = Literal["resample", "refuse"]


@dataclass(frozen=True)
class LoadSettings:
    """How a study becomes a volume.

    series: key from `scan`, series instance UID, or part of the description; None picks as a person would.
    on_gap, on_tilt: resample irregular or sheared slices along their true positions, or refuse them.
    spacing_mm: (x, y, z) of a stack of pictures, which cannot carry it.
    """

    series: str | None = None
    on_gap: OnIrregular = "resample"
    on_tilt: OnIrregular = "resample"
    spacing_mm: tuple[float, float, float] | None = None
