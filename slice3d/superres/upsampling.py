"""`upsample`: thick slices → a volume with fine spacing along the normal, marked as estimated and consistent with the
slices."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError, MissingExtraError
from slice3d.findings import Finding
from slice3d.progress import Progress, silent
from slice3d.superres.consistency import enforce, residual
from slice3d.superres.interpolate import BASELINES
from slice3d.superres.methods import JOINING, METHODS, Fitted, Method, UpsampleSettings
from slice3d.superres.profile import SliceOperator, SliceProfile
from slice3d.superres.quality import Lines, hold_out, sharpness
from slice3d.superres.stack import (
    ISOTROPY,
    Stack,
    gap_finding,
    is_fine_enough,
    make_stack,
    step_of,
    through_plane_axis,
)
from slice3d.superres.uncertainty import calibrate
from slice3d.volume import Volume, freeze

log = logging.getLogger(__name__)

# Below this factor a network has little to add, and `auto` takes the B-spline.
AUTO_RATIO = 1.8
# The share of the time budget that the self-check of a learning method takes.
CHECK_SHARE = 0.25


def upsample(
    volume: Volume | Sequence[Volume],
    *,
    spacing_mm: float = 1.0,
    method: str = "auto",
    slice_profile: SliceProfile | str | None = None,
    settings: UpsampleSettings | None = None,
    progress: Progress = silent,
) -> Volume:
    """Estimate `volume` at `spacing_mm` along its slice normal; what was acquired is kept.

    volume: one stack of slices, or several stacks of the same anatomy in any directions (then `"tv"` or
    `"implicit"` joins them: the first sets the frame and the lattice, the others are registered to it). method:
    `"linear"`, `"bspline"`, `"lanczos"`, `"tv"`, `"pretrained"`, `"selftrain"`, `"pretrained+selftrain"`, `"implicit"`
    or `"auto"`. slice_profile: a `SliceProfile`, `"gaussian"` (default) or `"rect"` with the
    header's slice thickness, or `"estimate"`.

    Returns float32 on the slices' own in-plane lattice, finer along the normal, with `synthesised` (every plane that is
    not at an acquired position), `uncertainty` (standard deviation in units of the data) and findings that name the
    method, the consistency residual and the sharpness. Averaged over the slice profile, the result reproduces the
    acquired slices. A volume that is fine enough comes back as it is, with a finding. Raises `InputError` for what
    cannot be super-resolved (fewer than 4 slices, NaN, an unknown method or profile), `GeometryError` for stacks that
    are sheared or do not overlap, `ModelError` when the shipped weights are missing."""
    settings = settings or UpsampleSettings()
    _check_arguments(spacing_mm, method, settings)
    stacks = _as_stacks(volume)
    if len(stacks) > 1:
        return _join(stacks, spacing_mm, method, slice_profile, settings, progress)
    volume = stacks[0]
    axis = settings.axis if settings.axis is not None else through_plane_axis(volume.grid)
    if axis is None or is_fine_enough(volume, spacing_mm, axis):
        return volume.with_findings([_already_fine(volume, spacing_mm, axis)])
    start = time.perf_counter()
    stack = make_stack(volume, spacing_mm=spacing_mm, axis=axis, profile=slice_profile)
    chosen, why = _choose(method, stack, settings)
    fitted, fine, check = _estimate(stack, chosen, settings, progress)
    return _result(stack, chosen, fitted, fine, [*why, *_report(stack, chosen, fitted, fine, check, start)])


def _estimate(
    stack: Stack, method: Method, settings: UpsampleSettings, progress: Progress
) -> tuple[Fitted, NDArray[np.float32], dict[str, float] | None]:
    """Fit, apply and make consistent; before that the self-check, where it is wanted."""
    check = None
    wanted = settings.self_check if settings.self_check is not None else not method.learns
    main = settings
    if wanted:
        quick = replace(settings, minutes=settings.minutes * CHECK_SHARE)
        main = replace(settings, minutes=settings.minutes * (1 - CHECK_SHARE)) if method.learns else settings

        def fit(slices: NDArray[np.float32], operator: SliceOperator) -> Lines:
            return method.fit(slices, stack.in_plane_mm, operator, quick, _renamed(progress, "self-check")).estimate

        try:
            check = hold_out(stack.slices, stack.operator, fit)
        except InputError as error:
            log.info("self-check left out: %s", error)
    fitted = method.fit(stack.slices, stack.in_plane_mm, stack.operator, main, progress)
    fine = fitted.estimate(stack.slices, stack.operator)
    for start in range(0, len(fine), 64):
        part = slice(start, start + 64)
        fine[part] = enforce(fine[part], stack.slices[part], stack.operator)
    return fitted, fine, check


def _result(
    stack: Stack, method: Method, fitted: Fitted, fine: NDArray[np.float32], findings: Sequence[Finding]
) -> Volume:
    uncertainty = None
    table = calibrate(stack, fitted.lines)
    if table is not None:
        uncertainty = freeze(stack.to_volume_axes(table.look_up(stack.slices, stack.operator)))
    synthesised = np.zeros(fine.shape, dtype=bool)
    synthesised[..., ~stack.measured()] = True
    operator = stack.operator
    facts = {
        "method": method.name,
        "acquired_spacing_mm": operator.slice_step_mm,
        "made_spacing_mm": operator.step_mm,
        "profile": operator.profile.to_dict(),
        **fitted.facts,
    }
    metadata = {**stack.volume.metadata, "SliceThickness": operator.step_mm, "superresolution": facts}
    return replace(
        stack.volume,
        data=freeze(stack.to_volume_axes(fine)),
        grid=stack.grid,
        metadata=metadata,
        findings=(*stack.volume.findings, *stack.findings, *findings),
        synthesised=freeze(np.ascontiguousarray(np.moveaxis(synthesised, -1, stack.axis))),
        uncertainty=uncertainty,
    )


def _report(
    stack: Stack,
    method: Method,
    fitted: Fitted,
    fine: NDArray[np.float32],
    check: dict[str, float] | None,
    start: float,
) -> list[Finding]:
    operator = stack.operator
    unit = "HU" if stack.volume.modality == "CT" else "intensity units"
    rms, largest = residual(fine, stack.slices, operator)
    sharp = sharpness(fine, stack.in_plane_mm, operator)
    details: dict[str, Any] = {
        "method": method.name,
        "acquired_spacing_mm": operator.slice_step_mm,
        "made_spacing_mm": operator.step_mm,
        "synthesised_share": float(1 - stack.measured().mean()),
        "consistency_rms": rms,
        "consistency_max": largest,
        "seconds": round(time.perf_counter() - start, 1),
        **fitted.facts,
    }
    if math.isfinite(sharp):
        details["sharpness_ratio"] = sharp
    text = (
        f"slices {operator.slice_step_mm:.2f} mm apart were super-resolved to {operator.step_mm:.2f} mm by "
        f"{method.name}: "
        f"{details['synthesised_share']:.0%} of the planes are estimates, not measurements; averaged over the "
        f"slice profile "
        f"they reproduce the acquired slices to {rms:.2g} {unit} (root mean square)"
    )
    found = [Finding("superres", text, "warning", details)]
    if (gap := gap_finding(stack)) is not None:
        found.append(gap)
    if check is not None:
        worse = check["rmse"] > check["rmse_linear"]
        text = (
            f"self-check with every second slice held out: error {check['rmse']:.3g} {unit}, "
            f"linear interpolation {check['rmse_linear']:.3g}"
            + ("; the method does worse than linear interpolation on this study: do not rely on it" if worse else "")
        )
        found.append(Finding("superres-self-check", text, "warning" if worse else "info", check))
    return found


def _choose(method: str, stack: Stack, settings: UpsampleSettings) -> tuple[Method, list[Finding]]:
    """The method, and where `auto` chose it, why. The measurements behind the rule are in docs/superres.md."""
    gap = gap_finding(stack)
    if method != "auto":
        chosen = METHODS[method]()
        if gap is not None and method not in BASELINES:
            raise InputError(f"{gap.message}; expected gaps of at most 3× the thickness; use method='bspline'")
        return chosen, []
    name, reason = "pretrained", ""
    if gap is not None:
        name, reason = "bspline", "the gaps are too large to learn across"
    elif stack.ratio < AUTO_RATIO:
        name, reason = "bspline", f"a factor of {stack.ratio:.2g} gains little from a network"
    text = f"method chosen: {name}" + (f" ({reason})" if reason else "")
    return METHODS[name](), [Finding("superres-method", text, "info", {"method": name})]


def _check_arguments(spacing_mm: float, method: str, settings: UpsampleSettings) -> None:
    if not np.isfinite(spacing_mm) or spacing_mm <= 0:
        raise InputError(f"spacing is {spacing_mm} mm; expected a positive number of millimetres")
    known = ["auto", *METHODS]
    if method not in known:
        raise InputError(f"method is {method!r}; expected one of {', '.join(known)}")
    if settings.axis is not None and settings.axis not in (0, 1, 2):
        raise InputError(f"axis is {settings.axis}; expected 0, 1 or 2")
    if not settings.minutes > 0 or (settings.steps is not None and settings.steps < 1):
        raise InputError(
            f"time budget is {settings.minutes} minutes and {settings.steps} steps; expected positive numbers"
        )
    if settings.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise MissingExtraError("no CUDA device found; use device='cpu' or 'auto'")


def _as_stacks(volumes: Any) -> tuple[Volume, ...]:
    if isinstance(volumes, Volume):
        return (volumes,)
    if not isinstance(volumes, (list, tuple)) or not volumes or not all(isinstance(v, Volume) for v in volumes):
        shape = getattr(volumes, "shape", None)
        what = type(volumes).__name__ + (f" of shape {shape}" if shape is not None else "")
        raise InputError(
            f"upsample was given {what}; expected one Volume (a 3D stack of slices) or a list of several; load it first"
        )
    return tuple(volumes)


def _join(
    stacks: tuple[Volume, ...],
    spacing_mm: float,
    method: str,
    profile: SliceProfile | str | None,
    settings: UpsampleSettings,
    progress: Progress,
) -> Volume:
    """Several stacks at once; `auto` takes the method that the benchmark found best for them."""
    from slice3d.superres.several import upsample_stacks

    chosen = JOINING[0] if method == "auto" else method
    if chosen not in JOINING:
        raise InputError(
            f"method {method!r} takes one stack and was given {len(stacks)}; expected one of auto, {', '.join(JOINING)}"
        )
    joined = upsample_stacks(
        stacks, spacing_mm=spacing_mm, method=chosen, profile=profile, settings=settings, progress=progress
    )
    if method != "auto":
        return joined
    text = f"method chosen: {chosen} (several stacks)"
    return joined.with_findings([Finding("superres-method", text, "info", {"method": chosen})])


def _already_fine(volume: Volume, spacing_mm: float, axis: int | None) -> Finding:
    spacing = "×".join(f"{s:.3g}" for s in volume.grid.spacing_mm)
    if axis is None or volume.grid.spacing_mm[axis] <= ISOTROPY * step_of(volume, 0.0, axis):
        text = f"already near-isotropic ({spacing} mm, asked for {spacing_mm:g} mm)"
    else:
        text = (
            f"{spacing_mm:g} mm was asked for, but the slices lie {volume.grid.spacing_mm[axis]:.3g} mm apart already"
        )
    text += ": returned unchanged, nothing synthesised"
    return Finding("superres-not-needed", text, "info", {"spacing_mm": list(volume.grid.spacing_mm)})


def _renamed(progress: Progress, stage: str) -> Progress:
    def report(_: str, fraction: float, /) -> None:
        progress(stage, fraction)

    return report
