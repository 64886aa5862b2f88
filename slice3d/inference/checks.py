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
_GAS_HU = -400.0  # lighter: gas, inside the body or around it
_LIGHTEST_HU = -750.0  # where there is gas, some of it is lighter than this: air is −1000, inflated lung −850
_PADDED_HU = -1100.0  # lighter: one value that scanners write outside the field of view; air varies
_GAP_HU = (70.0, 230.0)  # from fat (−120…−50) to soft tissue (20…130, with contrast medium): 119 to 189 in 13 studies
_BIN_HU = 5.0
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
        *_modality(volumes, package, findings), *_intensity(volumes, package, findings), *_field_of_view(volumes, package)
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


def _intensity(volumes: Sequence[Volume], package: ModelPackage, findings: list[Finding]) -> list[Finding]:
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
        reason = unlike_hounsfield(volume.data)
        if reason:
            text = (
                f"values are unlike Hounsfield units ({reason}), which model {package.name!r} expects: outlines may be "
                "wrong; check that it is a CT, rescaled once and not windowed"
            )
            findings.append(Finding("intensity-range-not-trained-on", text, details=intensity_statistics(volume.data)))
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


def unlike_hounsfield(data: NDArray[Any]) -> str:
    """What no CT of a person shows as a rule, though `not_hounsfield` lets it pass; an empty string when nothing does.

    Scaled, shifted, negated and windowed values give themselves away by what does not depend on the patient: air is −1000,
    nothing but padding is lighter, fat and soft tissue lie 70 to 230 apart, no border of the values is crowded.
    """
    values = _sample(data)
    low, high = float(values.min()), float(values.max())
    at_low, at_high = float(np.mean(values == low)), float(np.mean(values == high))
    lightest, densest = (float(v) for v in np.percentile(values, (0.1, 99.95)))
    gas = float(np.mean(values < _GAS_HU))
    if low > _GAS_HU and at_low > 0.01:
        return f"{100 * at_low:.0f} % are exactly {low:.4g}, the lowest: clipped there, or air, which is −1000"
    if high < 600 and at_high > 0.001:
        return f"{100 * at_high:.2g} % are exactly {high:.4g}, the highest: clipped there; bone reaches 1000 and more"
    if gas > 0.05 and lightest > _LIGHTEST_HU:
        return f"{100 * gas:.0f} % are gas, but none is lighter than {lightest:.4g}; air is −1000"
    lighter = float(np.mean((values < _PADDED_HU) & (values > low)))
    if lighter > 0.05:
        return f"{100 * lighter:.0f} % are lighter than air, which is −1000, down to {low:.4g}"
    hard, softer = (float(np.mean((values > a) & (values <= b))) for a, b in ((750, 1100), (400, 750)))
    if hard > max(0.05, softer):  # of bone, the denser the rarer
        return f"{100 * hard:.0f} % lie within 750…1100, where little bone does: the sign may be wrong"
    if lightest > -200 and densest < 200:
        return f"nearly all lie within {lightest:.4g}…{densest:.4g}: neither air nor bone"
    return _odd_peaks(values)


def _odd_peaks(values: NDArray[Any]) -> str:
    """What is wrong with where fat and soft tissue lie; an empty string where they do not stand out."""
    from scipy.ndimage import gaussian_filter1d

    counts, edges = np.histogram(values, np.arange(-500, 1000, _BIN_HU))
    smooth = gaussian_filter1d(counts.astype(np.float64), 3)
    inner = smooth[1:-1]
    tops = 1 + np.flatnonzero((inner > smooth[:-2]) & (inner >= smooth[2:]) & (inner > 0.2 * smooth.max()))
    peaks = {float(edges[n] + _BIN_HU / 2): float(smooth[n]) for n in tops}
    if peaks and not any(-150 <= hu <= 150 for hu in peaks):
        return f"most tissue lies at {max(peaks, key=peaks.__getitem__):.0f}; fat and soft tissue do within −150…150"
    fat, soft = [hu for hu in peaks if hu < 0], [hu for hu in peaks if hu >= 0]
    if not fat or not soft:
        return ""
    a, b = max(fat, key=peaks.__getitem__), max(soft, key=peaks.__getitem__)
    if _GAP_HU[0] <= b - a <= _GAP_HU[1]:
        return ""
    return f"fat and soft tissue would lie at {a:.0f} and {b:.0f}, {b - a:.0f} apart; expected {_GAP_HU[0]:.0f} to {_GAP_HU[1]:.0f}"


def _sample(data: NDArray[Any]) -> NDArray[Any]:
    step = max(1, round((data.size / _SAMPLES) ** (1 / 3)))
    steps = [max(1, min(step, n // 8)) for n in data.shape]
    return np.asarray(data[tuple(slice(s // 2, None, s) for s in steps)]).ravel()
