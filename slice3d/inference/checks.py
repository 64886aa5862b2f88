"""Is this an image the model was made for? Asked before any tile runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.models.package import ModelPackage
from slice3d.volume import Volume

_SAMPLES = 2_000_000
_AIR_HU = -500.0
_FEWEST_VOXELS = 4  # along each axis of the network's grid: below, a 3-D network has nothing to look at


def check_input(volumes: Sequence[Volume], package: ModelPackage, *, allow: bool = False) -> tuple[Finding, ...]:
    """Findings about the input. allow: report a wrong modality or range as a finding instead of stopping.

    Raises `InputError` for the wrong number of images, different grids, NaN, too few slices, and, unless allowed, an
    image of another modality or with values that cannot be what the model was trained on.
    """
    check_shape(volumes, package)
    findings: list[Finding] = []
    if package.non_commercial:
        findings.append(Finding("licence-forbids-commercial-use", licence_notice(package), severity="info"))
    complaints = [
        *_modality(volumes, package, findings), *_intensity(volumes, package), *_field_of_view(volumes, package)
    ]  # fmt: skip
    if complaints and not allow:
        raise InputError(complaints[0].message)
    return (*findings, *complaints)


def licence_notice(package: ModelPackage) -> str:
    """What the user of a model for non-commercial use alone must know."""
    return f"model {package.name!r} is licensed {package.licence!r}: its results must not be used commercially"


def check_shape(volumes: Sequence[Volume], package: ModelPackage) -> None:
    """As many images as the package has channels, on one grid, large enough. Raises `InputError`."""
    channels = len(package.channels)
    if len(volumes) != channels:
        raise InputError(
            f"{len(volumes)} image(s) given, model {package.name!r} takes {channels} ({', '.join(package.channels)}); "
            "give one per channel, in this order"
        )
    grid = volumes[0].grid
    for volume in volumes[1:]:
        if not volume.grid.matches(grid):
            raise InputError("the images of the channels lie on different grids; resample them to one of them first")
    for volume in volumes:
        if volume.data.dtype.kind == "f" and not bool(np.isfinite(volume.data).all()):
            raise InputError("the image holds NaN or infinity; expected finite values; repair or mask them first")
    spacing = sorted(package.spacing_mm)
    for n, size in zip(grid.shape, grid.size_mm, strict=True):
        # a coarse package axis may run along any study axis, so the finest spacing is the benchmark
        if n < 2 or size < _FEWEST_VOXELS * spacing[0]:
            raise InputError(
                f"the image has {'×'.join(map(str, grid.shape))} voxels over "
                f"{'×'.join(f'{s:.0f}' for s in grid.size_mm)} mm; a 3-D model needs at least 2 slices and "
                f"{_FEWEST_VOXELS * spacing[0]:.0f} mm along each axis; load the whole series"
            )


def _modality(volumes: Sequence[Volume], package: ModelPackage, findings: list[Finding]) -> list[Finding]:
    if not package.modality:
        return []
    expected = " or ".join(package.modality)
    for volume in volumes:
        if volume.modality and volume.modality not in package.modality:
            text = (
                f"the image is {volume.modality}, model {package.name!r} was trained on {expected}; "
                f"use a {expected} study or a model for {volume.modality}"
            )
            return [Finding("modality-not-trained-on", text, details={"found": volume.modality, "expected": expected})]
        if not volume.modality:
            text = (
                f"the file does not say its modality; it was taken for {expected}, which model {package.name!r} expects"
            )
            findings.append(Finding("modality-assumed", text, severity="info", details={"expected": expected}))
    return []


def _intensity(volumes: Sequence[Volume], package: ModelPackage) -> list[Finding]:
    if package.modality and "CT" not in package.modality:
        return _hounsfield(volumes, package)
    if tuple(package.modality) != ("CT",):
        return []
    for volume in volumes:
        reason = not_hounsfield(volume.data)
        if reason:
            text = (
                f"values cannot be Hounsfield units ({reason}), which model {package.name!r} expects; "
                "check that it is a CT and rescaled"
            )
            return [Finding("intensity-range-not-trained-on", text, details=intensity_statistics(volume.data))]
    return []


def _hounsfield(volumes: Sequence[Volume], package: ModelPackage) -> list[Finding]:
    """A CT whose file does not say so, given to a model for something else."""
    for volume in volumes:
        if float(np.percentile(_sample(volume.data), 0.5)) < _AIR_HU and not not_hounsfield(volume.data):
            text = (
                f"values look like Hounsfield units, model {package.name!r} was trained on "
                f"{' or '.join(package.modality)}; check that it is no CT"
            )
            return [Finding("intensity-range-not-trained-on", text, details=intensity_statistics(volume.data))]
    return []


def _field_of_view(volumes: Sequence[Volume], package: ModelPackage) -> list[Finding]:
    """A model that knows crops alone finds its structure everywhere else, too."""
    limit = package.reliability.get("largest_field_of_view_mm")
    size = volumes[0].grid.size_mm
    if limit is None or max(size) <= float(limit):
        return []
    text = (
        f"the image is {' × '.join(f'{s:.0f}' for s in size)} mm, model {package.name!r} was trained on crops and takes "
        f"up to {float(limit):g} mm; crop the image around the structure"
    )
    return [Finding("field-of-view-not-trained-on", text, details={"size_mm": [round(s, 1) for s in size]})]


def intensity_statistics(data: NDArray[Any]) -> dict[str, float]:
    """Percentiles of (a regular sample of) the values."""
    values = _sample(data)
    marks = np.percentile(values, (0.5, 5, 50, 95, 99.5))
    return {f"p{name}": round(float(v), 3) for name, v in zip(("0.5", "5", "50", "95", "99.5"), marks, strict=True)}


def not_hounsfield(data: NDArray[Any]) -> str:
    """Why these values cannot be a CT in Hounsfield units; an empty string when they can.

    A CT of a person holds air or fat (below −50 HU) around or inside it, and of what is denser than −500 HU a good part
    is soft tissue within −150…300 HU. Magnetic resonance, normalised and not-rescaled images fail one of the two.
    """
    values = _sample(data)
    low = float(np.percentile(values, 0.5))
    if low > -50:
        return f"0.5th percentile is {low:.4g}, there is neither air nor fat"
    dense = values[values > -500]
    if len(dense) < 0.001 * len(values):
        return f"nothing is denser than −500, the highest value is {float(values.max()):.4g}"
    soft = float(np.mean((dense >= -150) & (dense <= 300)))
    if soft < 0.2:
        return f"only {100 * soft:.0f} % of what is denser than −500 lies within −150…300, where soft tissue is"
    return ""


def _sample(data: NDArray[Any]) -> NDArray[Any]:
    step = max(1, round((data.size / _SAMPLES) ** (1 / 3)))
    steps = [max(1, min(step, n // 8)) for n in data.shape]
    return np.asarray(data[tuple(slice(s // 2, None, s) for s in steps)]).ravel()
