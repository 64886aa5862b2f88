"""One stack of thick slices: its through-plane axis, its slices, and the fine grid on which it is to be estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.superres.profile import (
    MAX_OVERLAP,
    SliceOperator,
    SliceProfile,
    estimate_profile,
    fine_positions,
    profile_from_header,
    slice_operator,
)
from slice3d.volume import Volume

Voxel = TypeVar("Voxel", bound=np.generic)
MIN_SLICES = 4
# Beyond this the gap holds more anatomy than the slices show.
MAX_GAP = 3.0
# Spacings that differ by less than this count as equal.
ISOTROPY = 1.05


@dataclass(frozen=True, eq=False)
class Stack:
    """Thick slices ready for super-resolution.

    volume: as it came. axis: array axis along which the slices lie. slices: (a, b, n) float32, through-plane last.
    in_plane_mm: spacing along a and b. operator: from the fine samples to these slices (positions in mm from the first
    slice's centre). grid: the fine grid, axes in the volume's own order. findings: what was chosen and why.
    """

    volume: Volume
    axis: int
    slices: NDArray[np.float32]
    in_plane_mm: tuple[float, float]
    operator: SliceOperator
    grid: Grid
    findings: tuple[Finding, ...]

    @property
    def gap_mm(self) -> float:
        """Distance between the edge of one slice and the next; negative when slices overlap."""
        return self.operator.slice_step_mm - self.operator.profile.fwhm_mm

    @property
    def ratio(self) -> float:
        """Fine samples per slice."""
        return self.operator.slice_step_mm / self.operator.step_mm

    def to_volume_axes(self, fine: NDArray[Voxel]) -> NDArray[Voxel]:
        """(a, b, m) → the fine grid's axes."""
        return np.ascontiguousarray(np.moveaxis(fine, -1, self.axis))

    def measured(self) -> NDArray[np.bool_]:
        """(m,) which fine samples coincide with an acquired slice's centre (to a quarter of a sample)."""
        operator = self.operator
        distance = np.abs(operator.fine_mm[:, None] - operator.slices_mm[None, :]).min(axis=1)
        out: NDArray[np.bool_] = distance <= 0.25 * operator.step_mm
        return out


def through_plane_axis(grid: Grid) -> int | None:
    """The array axis with the largest spacing; None when no axis stands out (all within 5 % of the largest)."""
    spacing = np.asarray(grid.spacing_mm)
    axis = int(np.argmax(spacing))
    others = np.delete(spacing, axis)
    return None if spacing[axis] <= ISOTROPY * others.max() else axis


def is_fine_enough(volume: Volume, spacing_mm: float, axis: int | None) -> bool:
    """Whether the volume is already as fine through-plane as asked for, or as its own in-plane spacing."""
    if axis is None:
        return True
    return volume.grid.spacing_mm[axis] <= ISOTROPY * step_of(volume, spacing_mm, axis)


def step_of(volume: Volume, spacing_mm: float, axis: int) -> float:
    """The through-plane spacing to make: what was asked, but never finer than the finer in-plane spacing.

    There is no detail in the study from which finer steps could be estimated.
    """
    return max(float(spacing_mm), float(np.delete(volume.grid.spacing_mm, axis).min()))


def make_stack(volume: Volume, *, spacing_mm: float, axis: int, profile: SliceProfile | str | None) -> Stack:
    """Check `volume` and lay out its slices and its fine grid.

    profile: a `SliceProfile`, `"gaussian"` or `"rect"` (width from the header), `"estimate"`, or None for `"gaussian"`.
    Raises `InputError` (too few slices, values that are not finite, an unknown profile) and `GeometryError` (axes not
    at right angles: the profile acts along the normal, which must be an axis of the array)."""
    count = volume.grid.shape[axis]
    if count < MIN_SLICES:
        raise InputError(
            f"the study has {count} slices; expected at least {MIN_SLICES} for super-resolution; use the slices "
            f"as they are"
        )
    if not volume.grid.is_orthogonal:
        raise GeometryError(
            "the slices are sheared (gantry tilt or a skewed affine); expected axes at right angles; "
            "resample onto an orthogonal grid first"
        )
    data = np.asarray(volume.data, dtype=np.float32)
    if not np.isfinite(data).all():
        bad = int(np.count_nonzero(~np.isfinite(data)))
        raise InputError(
            f"{bad} voxels are NaN or infinite; expected numbers; replace them (for example by the minimum)"
        )
    step = volume.grid.spacing_mm[axis]
    fine_step = step_of(volume, spacing_mm, axis)
    in_plane = tuple(s for n, s in enumerate(volume.grid.spacing_mm) if n != axis)
    slices = np.ascontiguousarray(np.moveaxis(data, axis, -1))
    findings: list[Finding] = []
    chosen = _profile(volume, slices, (in_plane[0], in_plane[1]), step, profile, findings)
    if fine_step > spacing_mm * ISOTROPY:
        text = (
            f"{spacing_mm:g} mm was asked for, but the slices themselves are sampled at {fine_step:.3g} mm: "
            f"the result has {fine_step:.3g} mm between slices"
        )
        findings.append(
            Finding("superres-spacing-limited", text, "info", {"asked_mm": spacing_mm, "made_mm": fine_step})
        )
    fine = fine_positions(count, step, fine_step)
    operator = slice_operator(np.arange(count) * step, fine, chosen)
    stack = Stack(
        volume,
        axis,
        slices,
        (in_plane[0], in_plane[1]),
        operator,
        fine_grid(volume.grid, axis, operator),
        tuple(findings),
    )
    return stack


def fine_grid(grid: Grid, axis: int, operator: SliceOperator) -> Grid:
    """The grid of the fine samples: the slices' own axes and in-plane lattice, finer along `axis`."""
    start = np.zeros(3)
    start[axis] = operator.fine_mm[0] / grid.spacing_mm[axis]
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world(start)
    affine[:3, axis] = grid.directions[:, axis] * operator.step_mm
    shape = list(grid.shape)
    shape[axis] = len(operator.fine_mm)
    return Grid((shape[0], shape[1], shape[2]), affine)


def gap_finding(stack: Stack) -> Finding | None:
    """A warning when the gaps are larger than `MAX_GAP` slice thicknesses."""
    thickness = stack.operator.profile.fwhm_mm
    if stack.gap_mm <= MAX_GAP * thickness:
        return None
    text = (
        f"gaps of {stack.gap_mm:.2f} mm lie between slices of {thickness:.2f} mm: most of the anatomy was never "
        f"imaged, "
        "and what is between the slices is interpolated, not estimated from data"
    )
    return Finding("superres-gap", text, "warning", {"gap_mm": stack.gap_mm, "thickness_mm": thickness})


def _profile(
    volume: Volume,
    slices: NDArray[np.float32],
    in_plane_mm: tuple[float, float],
    step: float,
    wanted: SliceProfile | str | None,
    findings: list[Finding],
) -> SliceProfile:
    if isinstance(wanted, SliceProfile):
        if wanted.fwhm_mm > MAX_OVERLAP * step:
            raise InputError(
                f"slice profile is {wanted.fwhm_mm:g} mm wide with slices {step:.3g} mm apart; expected at most "
                f"{MAX_OVERLAP:g} slice distances; give the thickness of one slice"
            )
        return wanted
    if wanted == "estimate":
        found = estimate_profile(slices, in_plane_mm, step)
        text = f"slice profile estimated from the image: {found.fwhm_mm:.2f} mm wide at half maximum"
        findings.append(Finding("superres-profile", text, "info", found.to_dict()))
        return found
    kind = "gaussian" if wanted is None else str(wanted)
    SliceProfile(kind, step)  # type: ignore[arg-type]  # an unknown kind raises here, naming the known ones
    found, text = profile_from_header(volume.metadata, step, kind="rect" if kind == "rect" else "gaussian")
    severity = "info" if found.source == "SliceThickness" else "warning"
    findings.append(Finding("superres-profile", f"{text}; {kind} profile", severity, found.to_dict()))  # type: ignore[arg-type]
    return found
