"""The geometry of a volume without its pixels.

World coordinates are RAS+ millimetres (x grows towards the patient's right, y towards anterior, z towards superior),
array axes are (i, j, k), and `affine` takes voxel *centres* to world points, as NIfTI and nibabel do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import GeometryError

Shape = tuple[int, int, int]

_POSITIVE = "RAS"
_NEGATIVE = "LPI"
_ENDS = (("left side", "right side"), ("back", "front"), ("lower end", "upper end"))


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie in the patient.

    shape: (i, j, k) number of voxels, each at least 1.
    affine: (4, 4) float64, voxel index (centre of the voxel) → world RAS+ mm; read-only.

    Raises `GeometryError` when the affine is not finite, not affine, or has no volume.
    """

    shape: Shape
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"grid shape is {tuple(self.shape)}; expected three positive numbers of voxels")
        affine = np.array(self.affine, dtype=np.float64) + 0.0  # -0.0 becomes 0.0: equal grids have equal bytes
        if affine.shape != (4, 4):
            raise GeometryError(f"affine has shape {affine.shape}; expected (4, 4)")
        if not np.isfinite(affine).all():
            raise GeometryError("affine holds NaN or infinity; expected finite millimetres; repair the file's geometry")
        if not np.allclose(affine[3], (0, 0, 0, 1)):
            raise GeometryError(f"last row of the affine is {affine[3].tolist()}; expected [0, 0, 0, 1]")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise GeometryError(
                f"affine is singular (spacing {lengths.tolist()} mm); expected three independent axes, none of length 0"
            )
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(
        cls, shape: Sequence[int], spacing_mm: Sequence[float], origin_mm: Sequence[float] = (0, 0, 0)
    ) -> Grid:
        """An axis-aligned RAS grid: `spacing_mm` along (i, j, k), voxel (0, 0, 0) centred on `origin_mm`."""
        affine = np.diag([*map(float, spacing_mm), 1.0])
        affine[:3, 3] = origin_mm
        return cls(tuple(shape), affine)  # type: ignore[arg-type]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j, k in mm."""
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(a), float(b), float(c)

    @property
    def directions(self) -> NDArray[np.float64]:
        """(3, 3): columns are the unit vectors of the i, j, k axes in world RAS."""
        out: NDArray[np.float64] = self.affine[:3, :3] / np.asarray(self.spacing_mm)
        return out

    @property
    def origin_mm(self) -> NDArray[np.float64]:
        """(3,) world RAS position of the centre of voxel (0, 0, 0)."""
        return self.affine[:3, 3].copy()

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel (parallelepiped) in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def is_orthogonal(self) -> bool:
        """Whether the axes are at right angles (to 1e-4 in the cosine)."""
        d = self.directions
        return bool(np.allclose(d.T @ d, np.eye(3), atol=1e-4))

    @property
    def world_axes(self) -> tuple[int, int, int]:
        """For each array axis, the world axis (0 = R/L, 1 = A/P, 2 = S/I) it runs along most closely; a permutation."""
        d = np.abs(self.directions)
        out = [-1, -1, -1]
        for _ in range(3):
            world, axis = np.unravel_index(int(np.argmax(d)), (3, 3))
            out[int(axis)] = int(world)
            d[world, :] = -1
            d[:, axis] = -1
        return out[0], out[1], out[2]

    @property
    def orientation(self) -> str:
        """Three letters: where i, j, k grow to, e.g. `"LPS"` for the usual axial DICOM study."""
        d = self.directions
        return "".join(
            _POSITIVE[world] if d[world, axis] > 0 else _NEGATIVE[world] for axis, world in enumerate(self.world_axes)
        )

    def end(self, axis: int, last: bool) -> str:
        """The patient's name for where an array axis begins or ends, e.g. `"lower end"` for the first axial slice."""
        world = self.world_axes[axis]
        return _ENDS[world][bool(self.directions[world, axis] > 0) == last]

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Extent of the field of view along i, j, k in mm (voxel edges, not centres)."""
        a, b, c = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return a, b, c

    def to_world(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """(…, 3) voxel indices (may be fractional) → (…, 3) world RAS mm."""
        points = np.asarray(ijk, dtype=np.float64)
        out: NDArray[np.float64] = points @ self.affine[:3, :3].T + self.affine[:3, 3]
        return out

    def to_index(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """(…, 3) world RAS mm → (…, 3) fractional voxel indices."""
        inverse = np.linalg.inv(self.affine)
        points = np.asarray(points_mm, dtype=np.float64)
        out: NDArray[np.float64] = points @ inverse[:3, :3].T + inverse[:3, 3]
        return out

    def corners_mm(self) -> NDArray[np.float64]:
        """(8, 3) world positions of the outer corners of the field of view (voxel edges)."""
        i, j, k = self.shape
        index = np.array([(a, b, c) for a in (-0.5, i - 0.5) for b in (-0.5, j - 0.5) for c in (-0.5, k - 0.5)])
        return self.to_world(index)

    def matches(self, other: Grid, *, tolerance_mm: float = 1e-2) -> bool:
        """Same shape, and no voxel centre further than `tolerance_mm` from its counterpart."""
        if self.shape != other.shape:
            return False
        difference = self.corners_mm() - other.corners_mm()
        return bool(np.linalg.norm(difference, axis=1).max() <= tolerance_mm)

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """The grid of `data[start[0]:stop[0], …]`; `start` may be negative and `stop` beyond the end (padding)."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(np.asarray(start, dtype=np.float64))
        shape = tuple(int(b) - int(a) for a, b in zip(start, stop, strict=True))
        return Grid(shape, affine)  # type: ignore[arg-type]

    def with_spacing(self, spacing_mm: Sequence[float]) -> Grid:
        """A grid over the same field of view (edges kept at the first corner, rounded up at the last), new spacing."""
        wanted = np.asarray(spacing_mm, dtype=np.float64)
        if wanted.shape != (3,) or not np.isfinite(wanted).all() or wanted.min() <= 0:
            raise GeometryError(f"spacing is {list(spacing_mm)} mm; expected three positive numbers")
        shape = np.maximum(1, np.ceil(np.asarray(self.size_mm) / wanted - 1e-3)).astype(int)
        affine = self.affine.copy()
        affine[:3, :3] = self.directions * wanted
        corner = self.to_world((-0.5, -0.5, -0.5))
        affine[:3, 3] = corner + affine[:3, :3] @ (0.5, 0.5, 0.5)
        return Grid(tuple(int(n) for n in shape), affine)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Grid, (self.shape, self.affine)

    def __repr__(self) -> str:
        return f"Grid({describe(self)})"


def describe(grid: Grid) -> str:
    """`512×512×134, 1.07×1.07×3 mm, LPS`."""
    shape = "×".join(str(n) for n in grid.shape)
    spacing = "×".join(f"{s:.3g}" for s in grid.spacing_mm)
    return f"{shape}, {spacing} mm, {grid.orientation}"
