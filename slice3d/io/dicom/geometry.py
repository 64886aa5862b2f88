"""Where the slices of one stack lie, and whether they form a regular lattice.

Everything is measured from `ImagePositionPatient` and `ImageOrientationPatient` (PS3.3 C.7.6.2.1.1); `SliceThickness`
and `SpacingBetweenSlices` are only compared. Positions are LPS here and become RAS in `to_ras`, the only such site for
DICOM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError
from slice3d.findings import Finding
from slice3d.grid import Grid

# Positions are written with few digits; below these a stack counts as regular and straight.
POSITION_TOLERANCE_MM = 0.02
ORIENTATION_TOLERANCE = 1e-3
# no table moves that far; squares of larger numbers would overflow
MAX_POSITION_MM = 1e8

Array = NDArray[np.float64]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Layout:
    """A stack of parallel slices in the order in which they lie along the normal.

    origins: (K, 3) LPS mm of the first pixel's centre. row, column, normal: unit vectors LPS; `row` is the direction in
    which the column index grows. spacing: (between columns, between rows) mm. distances: (K,) mm along the normal.
    shape: (columns, rows). step_mm: the regular slice distance. tilt_deg: angle between stack direction and normal.
    regular: whether `grid` describes every slice without resampling.
    """

    origins: Array
    row: Array
    column: Array
    normal: Array
    spacing: tuple[float, float]
    distances: Array
    shape: tuple[int, int]
    step_mm: float
    tilt_deg: float
    tilted: bool
    even: bool
    findings: tuple[Finding, ...]

    @property
    def regular(self) -> bool:
        """Whether the slices as acquired form an orthogonal lattice."""
        return self.even and not self.tilted

    @property
    def grid(self) -> Grid:
        """The acquired lattice (meaningful when `regular`)."""
        affine = np.eye(4)
        affine[:3, 0] = self.row * self.spacing[0]
        affine[:3, 1] = self.column * self.spacing[1]
        affine[:3, 2] = self.normal * self.step_mm
        affine[:3, 3] = self.origins[0]
        return Grid((*self.shape, len(self.origins)), to_ras(affine))

    def slice_affine(self, k: int) -> Array:
        """(4, 4) index (column, row, 0) of slice `k` → RAS mm."""
        affine = np.eye(4)
        affine[:3, 0] = self.row * self.spacing[0]
        affine[:3, 1] = self.column * self.spacing[1]
        affine[:3, 2] = self.normal * self.step_mm
        affine[:3, 3] = self.origins[k]
        return to_ras(affine)


def to_ras(affine: Array) -> Array:
    """LPS → RAS world coordinates of an index → world affine."""
    out: Array = LPS_TO_RAS @ affine
    return out


def axes(orientation: tuple[float, ...], label: str = "series") -> tuple[Array, Array, Array]:
    """Unit row, column and normal direction.

    Raises `GeometryError` when they are not at right angles or not unit vectors.
    """
    row, column = np.array(orientation[:3], dtype=float), np.array(orientation[3:], dtype=float)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not all(abs(length - 1) < 0.01 for length in lengths):
        raise GeometryError(
            f"ImageOrientationPatient of {label} has vectors of length {lengths[0]:.3g} and {lengths[1]:.3g}; "
            "expected 1; the files are damaged or the study must be exported again"
        )
    row, column = row / lengths[0], column / lengths[1]
    if abs(row @ column) > 0.01:
        raise GeometryError(
            f"rows and columns of {label} meet at {np.degrees(np.arccos(row @ column)):.1f}°; expected a right angle; "
            "export the study again"
        )
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    return row, np.cross(normal, row), normal


def layout(
    origins: Array,
    orientation: tuple[float, ...],
    spacing: tuple[float, float],
    shape: tuple[int, int],
    *,
    thickness_mm: float | None = None,
    label: str = "series",
) -> Layout:
    """Measure a stack whose slices are already in order along the normal, no two at one position.

    spacing: mm (between rows, between columns), as DICOM's PixelSpacing has it. shape: (rows, columns).
    """
    row, column, normal = axes(orientation, label)
    if min(spacing) <= 0 or max(spacing) > 1000:
        raise GeometryError(
            f"PixelSpacing of {label} is {spacing[0]:g}×{spacing[1]:g} mm; expected positive millimetres"
        )
    if np.abs(origins).max() > MAX_POSITION_MM:
        raise GeometryError(
            f"ImagePositionPatient of {label} reaches {np.abs(origins).max():.3g} mm; expected a place inside a scanner; "
            "the files are damaged or the study must be exported again"
        )
    distances = origins @ normal
    count = len(distances)
    findings: list[Finding] = []
    if count == 1:
        step = thickness_mm if thickness_mm and thickness_mm > 0 else 1.0
        source = "SliceThickness" if thickness_mm and thickness_mm > 0 else "no header"
        findings.append(
            Finding(
                "single-slice",
                f"Only one slice position: the extent along the third axis ({step:g} mm) comes from {source}, not "
                "from positions; "
                "volumes in ml are not reliable.",
                "warning",
                {"assumed_mm": step},
            )
        )
        return Layout(
            origins, row, column, normal, (spacing[1], spacing[0]), distances, (shape[1], shape[0]),
            step, 0.0, False, True, tuple(findings),
        )  # fmt: skip
    gaps = np.diff(distances)
    step, even = _step(distances, gaps, findings, label)
    tilt_deg, tilted = _tilt(origins, distances, row, column, normal, findings)
    _compare_thickness(step, thickness_mm, findings)
    return Layout(
        origins, row, column, normal, (spacing[1], spacing[0]), distances, (shape[1], shape[0]),
        step, tilt_deg, tilted, even, tuple(findings),
    )  # fmt: skip


def _step(distances: Array, gaps: Array, findings: list[Finding], label: str) -> tuple[float, bool]:
    count = len(distances)
    mean = float((distances[-1] - distances[0]) / (count - 1))
    ideal = distances[0] + mean * np.arange(count)
    if np.abs(distances - ideal).max() <= max(POSITION_TOLERANCE_MM, 1e-3 * mean):
        return mean, True
    base = recurring_gap(gaps)
    multiples = gaps / base
    whole = np.abs(multiples - np.round(multiples)) * base <= np.maximum(POSITION_TOLERANCE_MM, 0.02 * base)
    details = {
        "smallest_mm": round(float(gaps.min()), 4),
        "largest_mm": round(float(gaps.max()), 4),
        "regular_mm": round(base, 4),
    }
    if whole.all():
        wide = np.flatnonzero(np.round(multiples) > 1)
        missing = int(np.round(multiples)[wide].sum() - len(wide))
        where = [round(float(distances[k] - distances[0]), 3) for k in wide]
        findings.append(
            Finding(
                "missing-slices",
                f"{missing} slice{'s are' if missing > 1 else ' is'} missing: the distance between neighbours is "
                f"{base:.4g} mm but reaches {gaps.max():.4g} mm.",
                "warning",
                {**details, "missing": missing, "gaps_start_at_mm": where[:50]},
            )
        )
    else:
        findings.append(
            Finding(
                "variable-spacing",
                f"The distance between neighbouring slices varies from {gaps.min():.4g} to {gaps.max():.4g} mm.",
                "warning",
                details,
            )
        )
    return base, False


def recurring_gap(gaps: Array) -> float:
    """The smallest distance that covers at least a tenth of the stack; odd single gaps do not set the spacing."""
    # a hole between two blocks is not part of what the slices cover
    total = np.minimum(gaps, 3 * np.median(gaps)).sum()
    for gap in np.sort(gaps):
        alike = np.abs(gaps - gap) <= max(POSITION_TOLERANCE_MM, 0.02 * gap)
        if gaps[alike].sum() >= 0.1 * total:
            return float(gaps[alike].mean())
    return float(np.median(gaps))


def _tilt(
    origins: Array, distances: Array, row: Array, column: Array, normal: Array, findings: list[Finding]
) -> tuple[float, bool]:
    relative = origins - origins[0] - np.outer(distances - distances[0], normal)
    sideways = np.stack([relative @ row, relative @ column], axis=1)
    largest = float(np.abs(sideways).max())
    if largest <= POSITION_TOLERANCE_MM:
        return 0.0, False
    # least squares through the origin: how far the stack moves sideways per millimetre along the normal
    depth = distances - distances[0]
    slope = depth @ sideways / (depth @ depth)
    angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    residual = float(np.abs(sideways - np.outer(depth, slope)).max())
    straight = residual <= max(POSITION_TOLERANCE_MM, 0.02 * largest)
    if straight:
        message = f"The gantry was tilted: the slices are sheared by {angle:.2f}° ({largest:.1f} mm over the stack)."
        code = "gantry-tilt"
    else:
        message = f"The slices are shifted sideways against each other by up to {largest:.2f} mm, not along one line."
        code = "shifted-slices"
    findings.append(
        Finding(
            code,
            message,
            "warning",
            {"tilt_deg": round(angle, 3), "shift_mm": round(largest, 3), "residual_mm": round(residual, 4)},
        )
    )
    return angle, True


def _compare_thickness(step: float, thickness_mm: float | None, findings: list[Finding]) -> None:
    if not thickness_mm or thickness_mm <= 0:
        return
    if thickness_mm > step * 1.01 + POSITION_TOLERANCE_MM:
        findings.append(
            Finding(
                "overlapping-slices",
                f"Slices overlap: {thickness_mm:.4g} mm thick, {step:.4g} mm apart.",
                "info",
                {"thickness_mm": thickness_mm, "distance_mm": round(step, 4)},
            )
        )
    elif thickness_mm < step * 0.99 - POSITION_TOLERANCE_MM:
        findings.append(
            Finding(
                "slices-with-gaps",
                f"Tissue between slices was not imaged: {thickness_mm:.4g} mm thick, {step:.4g} mm apart.",
                "info",
                {"thickness_mm": thickness_mm, "distance_mm": round(step, 4)},
            )
        )
