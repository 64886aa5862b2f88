"""`upsample` for several stacks of the same anatomy: motion between them, one volume, and what is to be reported."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import GeometryError, InputError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.progress import Progress, silent
from slice3d.superres.interpolate import bspline
from slice3d.superres.methods import UpsampleSettings
from slice3d.superres.motion import movement, register, terms_of
from slice3d.superres.profile import SliceProfile
from slice3d.superres.scene import Image, Turned, View, coarser, resampled, slices_last, view_of
from slice3d.superres.single import bounds_of, network_minutes
from slice3d.superres.stack import Stack, gap_finding, make_stack, through_plane_axis
from slice3d.superres.uncertainty import calibrate_crossed
from slice3d.superres.variation import DARK, VariationSettings, agree, noise_of, reconstruct, strength_for
from slice3d.volume import Volume, freeze

# The share of the first stack's field of view that another must see.
MIN_OVERLAP = 0.2
# Least correlation of a stack's slices with what the others say they should be.
MIN_CORRELATION = 0.7
# Motion that removes less of the squared difference between a stack and the others is not believed, and the header's
# position is kept: 0 to 5 % were seen without motion, 12 % and more with 0.2 mm and 0.1° of it (CT and MR).
MIN_EXPLAINED = 0.08
# Nor is motion below this (mm, at 60 mm from the centre): it is within the error of finding it.
STILL_MM = 0.25
# Voxel size at which the volume is first estimated.
COARSE_MM = 2.0


@dataclass(frozen=True, eq=False)
class Scene:
    """Stacks in one frame, ready to be fitted. lattice: voxels of the result, the first stack's normal last. bounds:
    (low, range) of intensities. rows: what to report about each stack."""

    stacks: list[Stack]
    views: list[View]
    lattice: Grid
    bounds: tuple[float, float]
    rows: list[dict[str, Any]]


def upsample_stacks(
    volumes: Sequence[Volume],
    *,
    spacing_mm: float,
    method: str,
    profile: SliceProfile | str | None,
    settings: UpsampleSettings,
    progress: Progress = silent,
) -> Volume:
    """One volume from several stacks, on the first one's lattice refined along its normal.

    The first stack stays where it is and the others move rigidly. Raises `InputError` for stacks of different modality
    or without a slice direction, and `GeometryError` for stacks that do not overlap."""
    start = time.perf_counter()
    scene = prepare(volumes, spacing_mm=spacing_mm, profile=profile, settings=settings, progress=progress)
    image = by_variation(scene, progress)
    facts: dict[str, Any] = {"method": method}
    if method == "implicit":
        image, facts["training_steps"] = by_network(scene, image, settings, start, progress)
    return _result(scene, image, facts, start)


def prepare(
    volumes: Sequence[Volume],
    *,
    spacing_mm: float,
    profile: SliceProfile | str | None,
    settings: UpsampleSettings,
    progress: Progress = silent,
) -> Scene:
    """Check the stacks, lay them out in one frame and find the motion between them."""
    kinds = sorted({volume.modality for volume in volumes if volume.modality})
    if len(kinds) > 1:
        raise InputError(f"the stacks are of different modality ({', '.join(kinds)}); expected one kind of image")
    stacks = [_stack(volume, n, spacing_mm, profile, settings) for n, volume in enumerate(volumes, start=1)]
    lattice = slices_last(stacks[0].grid, stacks[0].axis)
    centre = lattice.to_world((np.array(lattice.shape) - 1) / 2)
    views = [view_of(stack, centre) for stack in stacks]
    for n, view in enumerate(views[1:], start=2):
        _check_overlap(view, n, lattice)
    bounds = bounds_of(stacks[0].slices)
    found = register(views, lattice, bounds, scales="CT" not in kinds, progress=progress)
    rows: list[dict[str, Any]] = [{"moved_mm": 0.0, "turned_deg": 0.0}]
    kept = [views[0]]
    for view, held_out in zip(found.views[1:], found.held_out, strict=True):
        believed = held_out.explained >= MIN_EXPLAINED and movement(view.pose) >= STILL_MM
        kept.append(view if believed else replace(view, pose=np.zeros(6)))
        rows.append(
            {
                "moved_mm": round(float(np.linalg.norm(kept[-1].pose[3:])), 3),
                "turned_deg": round(float(np.rad2deg(np.linalg.norm(kept[-1].pose[:3]))), 3),
                "gain": round(view.scale[0], 4),
                "held_out_rms": held_out.rms,
                "held_out_correlation": round(held_out.correlation, 4),
            }
        )
    return Scene(stacks, kept, lattice, bounds, rows)


def by_variation(scene: Scene, progress: Progress = silent) -> Image:
    """The volume of least total variation that agrees with all stacks, in the first stack's intensities."""
    low, size = scene.bounds
    grid = coarser(scene.lattice, COARSE_MM)
    small = [view.coarser(COARSE_MM) for view in scene.views]
    image = resampled(_first(scene), scene.lattice, grid)
    image = reconstruct(
        terms_of(small, grid, scene.bounds), image, grid.spacing_mm, settings=VariationSettings(rounds=4)
    )
    image = resampled(image, grid, scene.lattice)
    terms = terms_of(scene.views, scene.lattice, scene.bounds)
    turned = any(isinstance(term.projector, Turned) for term in terms)
    # sampling at an angle costs fifty times a product of matrices, and the last rounds gain 0.1 to 0.4 dB
    chosen = VariationSettings(rounds=3, steps=5) if turned else VariationSettings(rounds=6, steps=8)
    image = reconstruct(terms, image, scene.lattice.spacing_mm, settings=chosen, progress=progress)
    image = agree(terms, image, steps=2 if turned else 4)
    image *= np.float32(size)
    image += np.float32(low)
    return image


def by_network(
    scene: Scene, image: Image, settings: UpsampleSettings, begin: float, progress: Progress = silent
) -> tuple[Image, int]:
    """A coordinate network fitted to all stacks, starting from `image`, and how many steps it took."""
    from slice3d.superres.implicit import FieldSettings, fit_field

    low, size = scene.bounds
    terms = terms_of(scene.views, scene.lattice, scene.bounds)
    chosen = FieldSettings(
        minutes=network_minutes(settings, begin, image.size),
        steps=settings.steps,
        seed=settings.seed,
        strength=strength_for(terms),
    )
    start = ((image - low) / size).astype(np.float32)
    field, steps = fit_field(scene.views, scene.lattice, scene.bounds, start, settings=chosen, progress=progress)
    made = agree(terms, field.render(progress), steps=4)
    return made * np.float32(size) + np.float32(low), steps


def _first(scene: Scene) -> Image:
    operator = scene.stacks[0].operator
    fine = scene.stacks[0].slices @ bspline(operator.slices_mm, operator.fine_mm).T.astype(np.float32)
    return np.ascontiguousarray((fine - scene.bounds[0]) / scene.bounds[1], dtype=np.float32)


def _stack(
    volume: Volume, n: int, spacing_mm: float, profile: SliceProfile | str | None, settings: UpsampleSettings
) -> Stack:
    axis = settings.axis if settings.axis is not None else through_plane_axis(volume.grid)
    if axis is None:
        raise InputError(
            f"stack {n} is isotropic ({volume.grid.spacing_mm[0]:.3g} mm); expected thick slices in every stack; "
            "use that stack alone"
        )
    try:
        return make_stack(volume, spacing_mm=spacing_mm, axis=axis, profile=profile)
    except (InputError, GeometryError) as error:
        raise type(error)(f"stack {n}: {error}") from error


def _check_overlap(view: View, n: int, lattice: Grid) -> None:
    steps = [np.linspace(0, count - 1, min(count, 24)) for count in lattice.shape]
    points = lattice.to_world(np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1))
    index = view.frame.to_index(points)
    share = float(((index >= -0.5) & (index <= np.array(view.frame.shape) - 0.5)).all(axis=-1).mean())
    if share < MIN_OVERLAP:
        raise GeometryError(
            f"stack {n} sees {share:.0%} of the first stack's field of view; expected at least {MIN_OVERLAP:.0%}; "
            "give stacks of the same body part with their patient positions intact"
        )


def _result(scene: Scene, image: Image, facts: dict[str, Any], start: float) -> Volume:
    first = scene.stacks[0]
    rows, total, count = [], 0.0, 0
    for stack, view, row in zip(scene.stacks, scene.views, scene.rows, strict=True):
        mask = view.inside(scene.lattice)
        gain, offset = view.scale
        difference = (view.project(scene.lattice).forward(image) * gain + offset - stack.slices)[mask]
        rms = float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
        profile = view.operator.profile.to_dict()
        noise = noise_of(stack.slices, gain * (scene.bounds[0] + DARK * scene.bounds[1]) + offset)
        rows.append(
            {
                **row,
                "consistency_rms": rms,
                "noise": noise,
                "slice_step_mm": view.operator.slice_step_mm,
                "profile": profile,
            }
        )
        total, count = total + rms**2 * difference.size, count + difference.size
    synthesised = ~_measured(scene)
    details = {
        **facts,
        "made_spacing_mm": first.operator.step_mm,
        "synthesised_share": float(synthesised.mean()),
        "consistency_rms": float(np.sqrt(total / max(count, 1))),
        "stacks": rows,
        "seconds": round(time.perf_counter() - start, 1),
    }
    table = calibrate_crossed(first, scene.bounds)
    uncertainty = None if table is None else freeze(first.to_volume_axes(table(image)))
    metadata = {
        **first.volume.metadata,
        "SliceThickness": first.operator.step_mm,
        "superresolution": {**facts, "stacks": rows},
    }
    return replace(
        first.volume,
        data=freeze(first.to_volume_axes(image)),
        grid=first.grid,
        metadata=metadata,
        findings=(*first.volume.findings, *_of_stacks(scene), *_findings(scene, details)),
        synthesised=freeze(first.to_volume_axes(synthesised)),
        uncertainty=uncertainty,
    )


def _measured(scene: Scene) -> NDArray[np.bool_]:
    """(i, j, k) voxels whose centre lies on a slice of some stack, to a quarter of a voxel."""
    tolerance = 0.25 * min(scene.lattice.spacing_mm)
    out = np.zeros(scene.lattice.shape, dtype=bool)
    for view in scene.views:
        back = np.linalg.inv(view.to_lattice(scene.lattice))
        operator = view.operator
        limits = [*view.slices.shape[:2], len(operator.fine_mm)]
        axes = [np.arange(n, dtype=np.float64) for n in scene.lattice.shape]
        for i in range(scene.lattice.shape[0]):
            at = [
                back[f, 0] * i + back[f, 3] + back[f, 1] * axes[1][:, None] + back[f, 2] * axes[2][None, :]
                for f in range(3)
            ]
            seen = np.logical_and.reduce([(a >= -0.5) & (a <= n - 0.5) for a, n in zip(at, limits, strict=True)])
            place = (at[2] * operator.step_mm + operator.fine_mm[0] - operator.slices_mm[0]) / operator.slice_step_mm
            nearest = np.clip(np.rint(place), 0, len(operator.slices_mm) - 1)
            out[i] |= seen & (np.abs(place - nearest) * operator.slice_step_mm <= tolerance)
    return out


def _of_stacks(scene: Scene) -> list[Finding]:
    found = []
    for n, stack in enumerate(scene.stacks, start=1):
        own = [*(stack.volume.findings if n > 1 else ()), *stack.findings]
        if (gap := gap_finding(stack)) is not None:
            own.append(gap)
        found += [replace(finding, message=f"stack {n}: {finding.message}") for finding in own]
    return found


def _findings(scene: Scene, details: dict[str, Any]) -> list[Finding]:
    first = scene.stacks[0]
    unit = "HU" if first.volume.modality == "CT" else "intensity units"
    residuals = ", ".join(f"{row['consistency_rms']:.2g} (noise {row['noise']:.2g})" for row in details["stacks"])
    text = (
        f"{len(scene.stacks)} stacks were joined at {first.operator.step_mm:.2f} mm by {details['method']}: "
        f"{details['synthesised_share']:.0%} of the voxels are estimates, not measurements; averaged over its slice "
        f"profile the volume reproduces each stack's slices to {residuals} {unit} (root mean square)"
    )
    found = [Finding("superres", text, "warning", details)]
    moved = [
        f"stack {n} by {row['moved_mm']:.1f} mm and {row['turned_deg']:.1f}°"
        for n, row in enumerate(details["stacks"], start=1)
        if row["moved_mm"] or row["turned_deg"]
    ]
    text = "motion between the stacks was found and undone: " + "; ".join(moved)
    found.append(
        Finding(
            "superres-motion", text if moved else "no motion between the stacks was found", "info", {"moved": moved}
        )
    )
    for n, row in enumerate(details["stacks"][1:], start=2):
        if row["held_out_correlation"] < MIN_CORRELATION:
            text = (
                f"stack {n} does not look like what the other stacks say it should (correlation "
                f"{row['held_out_correlation']:.2f}, expected at least {MIN_CORRELATION:g}): do not rely on the result; "
                "leave that stack out"
            )
            found.append(Finding("superres-stacks-disagree", text, "warning", dict(row)))
    return found
