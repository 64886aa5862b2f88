"""What a user may choose about a surface, in millimetres."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slice3d.errors import InputError


@dataclass(frozen=True)
class SurfaceSettings:
    """Options of `surface` and `surfaces`. The defaults suit every structure; nothing needs to be chosen.

    smoothing_mm: cut-off wavelength in mm, at which ripples along the surface keep half their height; None takes four
    voxels, the length below which a binary mask shows its own steps and not the patient. 0 switches smoothing off.
    Probabilities are never smoothed; on thick slices bending energy decides, and only 0 changes anything.
    resolution_mm: longest step of the working grid; axes coarser than it are refined by shape-based interpolation
    before contouring. None: the finest spacing of the grid.
    keep_volume: shift the surface along its normals (by hundredths of a millimetre) so that smoothing loses no volume.
    use_probabilities: contour the probability map where the segmentation carries one for the structure.
    min_fragment_mm3, min_cavity_mm3: smaller separate pieces and smaller enclosed holes are removed; 0 keeps everything.
    max_error_mm: decimate as far as the surface moves by no more than this; None keeps all triangles.
    target_triangles: decimate to about this many triangles; None keeps all. With both, whichever stops first.

    shared_interfaces: let `surfaces` make all plain labels in one pass, so that neighbours meet without gap or overlap;
    `resolution_mm` and `keep_volume` are then at their defaults.

    Raises `InputError` for negative or non-finite numbers.
    """

    smoothing_mm: float | None = None
    resolution_mm: float | None = None
    keep_volume: bool = True
    use_probabilities: bool = True
    min_fragment_mm3: float = 0.0
    min_cavity_mm3: float = 0.0
    max_error_mm: float | None = None
    target_triangles: int | None = None
    shared_interfaces: bool = True

    def __post_init__(self) -> None:
        for name in ("smoothing_mm", "resolution_mm", "min_fragment_mm3", "min_cavity_mm3", "max_error_mm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; expected a number of at least 0")
        if self.resolution_mm == 0:
            raise InputError("resolution_mm is 0; expected a positive step, or None for the finest spacing of the grid")
        if self.target_triangles is not None and self.target_triangles < 4:
            raise InputError(f"target_triangles is {self.target_triangles}; a closed surface has at least 4")
