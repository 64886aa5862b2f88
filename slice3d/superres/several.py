"""`upsample` for several stacks: registration, coordinate network, joint consistency, and what is to be reported."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.findings import Finding
from slice3d.progress import Progress, silent
from slice3d.superres.implicit import FieldSettings, fit_field
from slice3d.superres.methods import UpsampleSettings
from slice3d.superres.profile import SliceProfile
from slice3d.superres.reconstruct import refine, register, solve
from slice3d.superres.scene import View, lay_out
from slice3d.superres.stack import Stack, gap_finding, make_stack, through_plane_axis
from slice3d.volume import Volume, freeze

# The share of the first stack's field of view that another must see.
MIN_OVERLAP = 0.2
# Least correlation between simulated and measured slices for stacks to count as registered.
MIN_CORRELATION = 0.7


def upsample_stacks(
    volumes: Sequence[Volume],
    *,
    spacing_mm: float,
    profile: SliceProfile | str | None,
    settings: UpsampleSettings,
    progress: Progress = silent,
) -> Volume:
    """One volume from several stacks, on the first one's lattice refined along its normal.

    The first stack stays where it is and the others move rigidly. Raises `InputError` for stacks of different
    modality or without a slice direction, and `GeometryError` for stacks that do not overlap."""
    start = time.perf_counter()
    stacks = [_stack(volume, n, spacing_mm, profile, settings) for n, volume in enumerate(volumes)]
    _check_same_kind(volumes)
    lattice, views = lay_out(stacks)
    _check_overlap(views, lattice)
    register(views, lattice, seed=settings.seed, progress=progress)
    left = settings.minutes - (time.perf_counter() - start) / 60
    field_settings = FieldSettings(
        minutes=max(0.2, 0.5 * left), steps=settings.steps, seed=settings.seed, finest_mm=float(lattice.step.min())
    )
    fitted = fit_field(views, lattice, settings=field_settings, progress=progress)
    image = fitted.render(lattice, progress)
    refine(views, image, lattice, seed=settings.seed)
    image = solve(views, lattice, image, progress=progress)
    facts: dict[str, Any] = {"training_steps": fitted.steps, "seconds": round(time.perf_counter() - start, 1)}
    return _result(stacks, views, lattice, image, facts)


def _stack(
    volume: Volume, n: int, spacing_mm: float, profile: SliceProfile | str | None, settings: UpsampleSettings
) -> Stack:
    axis = settings.axis if settings.axis is not None else through_plane_axis(volume.grid)
    if axis is None:
        raise InputError(
            f"stack {n + 1} is isotropic ({volume.grid.spacing_mm[0]:.3g} mm); expected thick slices in every stack; "
            "use that stack alone"
        )
    return make_stack(volume, spacing_mm=spacing_mm, axis=axis, profile=profile)


def _check_same_kind(volumes: Sequence[Volume]) -> None:
    kinds = sorted({volume.modality for volume in volumes if volume.modality})
    if len(kinds) > 1:
        raise InputError(f"the stacks are of different modality ({', '.join(kinds)}); expected one kind of image")


def _check_overlap(views: Sequence[View], lattice: Any) -> None:
    for n, view in enumerate(views[1:], start=2):
        # compare extents, not voxels: a stack may be far larger or far smaller than the first
        box = np.array([[0.0] * 3, (np.array(lattice.shape) - 1) * lattice.step])
        points = view.points[:: max(1, len(view.points) // 200_000)].numpy()
        inside = ((points >= box[0]) & (points <= box[1])).all(axis=1)
        seen = points[inside]
        share = 0.0 if len(seen) < 8 else float(np.prod((np.ptp(seen, axis=0) + 1e-6) / (np.ptp(box, axis=0) + 1e-6)))
        if share < MIN_OVERLAP:
            raise GeometryError(
                f"stack {n} sees {share:.0%} of the first stack's field of view; expected at least {MIN_OVERLAP:.0%}; "
                "give stacks of the same body part with their patient positions intact"
            )


def _result(
    stacks: Sequence[Stack], views: Sequence[View], lattice: Any, image: torch.Tensor, facts: dict[str, Any]
) -> Volume:
    first = stacks[0]
    rows, findings = [], []
    total, count = 0.0, 0
    variance = torch.zeros(lattice.shape)
    for n, view in enumerate(views):
        mask = view.inside(lattice)
        difference = (view.see(image, lattice) - view.values)[mask]
        correlation = float(np.corrcoef((view.values[mask] + difference).numpy(), view.values[mask].numpy())[0, 1])
        rms = float(difference.square().mean().sqrt())
        total, count = total + float(difference.square().sum()), count + len(difference)
        rows.append({"stack": n + 1, "residual_rms": rms, "correlation": correlation, **_motion(view)})
        if correlation < MIN_CORRELATION:
            text = (
                f"stack {n + 1} agrees poorly with the result (correlation {correlation:.2f}): "
                "registration may have failed"
            )
            findings.append(Finding("superres-registration", text, "warning", rows[-1]))
        variance = torch.maximum(variance, _spread_residual(view, lattice, image))
    rms = float(np.sqrt(total / max(count, 1)))
    unit = "HU" if first.volume.modality == "CT" else "intensity units"
    operator = first.operator
    details = {
        "method": "implicit",
        "stacks": rows,
        "acquired_spacing_mm": operator.slice_step_mm,
        "made_spacing_mm": operator.step_mm,
        "consistency_rms": rms,
        **facts,
    }
    moved = max((row["motion_mm"] for row in rows), default=0.0)
    text = (
        f"{len(stacks)} stacks were joined into one volume with {operator.step_mm:.2f} mm between slices: every "
        f"voxel is an "
        f"estimate; it reproduces the acquired slices to {rms:.3g} {unit} (root mean square); largest motion corrected "
        f"{moved:.1f} mm"
    )
    findings.insert(0, Finding("superres", text, "warning", details))
    findings += [gap for stack in stacks if (gap := gap_finding(stack)) is not None]
    metadata = {
        **first.volume.metadata,
        "SliceThickness": operator.step_mm,
        "superresolution": {"method": "implicit", "stacks": len(stacks), **facts},
    }
    earlier = [finding for stack in stacks for finding in (*stack.volume.findings, *stack.findings)]
    return replace(
        first.volume,
        data=freeze(first.to_volume_axes(image.numpy())),
        grid=first.grid,
        metadata=metadata,
        findings=(*earlier, *findings),
        synthesised=freeze(np.ones(first.grid.shape, dtype=bool)),
        uncertainty=freeze(first.to_volume_axes(variance.numpy())),
    )


def _motion(view: View) -> dict[str, float]:
    return {
        "motion_mm": float(np.linalg.norm(view.pose[3:])),
        "motion_deg": float(np.degrees(np.linalg.norm(view.pose[:3]))),
    }


def _spread_residual(view: View, lattice: Any, image: torch.Tensor) -> torch.Tensor:
    """Local root mean square disagreement of one stack with the result, on the lattice."""
    from slice3d.superres.reconstruct import _blur, _splat

    inside = view.inside(lattice).float()
    squares = (view.see(image, lattice) - view.values).square() * inside
    points, _ = view.placed()
    width = max(3.0, view.slice_step_mm)
    total = _blur(_splat(lattice, points, squares), lattice, width)
    weight = _blur(_splat(lattice, points, inside), lattice, width)
    out: NDArray[np.float32] = torch.sqrt(total / (weight + 1e-3 * weight.max())).numpy()
    return torch.from_numpy(out)
