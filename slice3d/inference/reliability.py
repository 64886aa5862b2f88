"""What the result says about itself: expected Dice, organs cut by the field of view, volumes and sides that cannot be.

Expected Dice. With p the model's probability of a structure and m its own decision, 2·Σpm / (Σp + Σm) is the Dice the
decision would have if the probabilities were right. Networks are over-confident, so a package may carry a calibration
from held-out cases: `reliability = {"measure": "soft_dice", "structures": {name: {"intercept": a, "slope": b}}}`,
giving a + b·(soft Dice), clipped to 0…1. Where it also says between which values soft Dice lay on these cases, `"seen":
{name: [lowest, highest]}`, the line is not drawn on beyond them: below there is no number, above that of the highest.
Without a calibration the number is reported as the model's self-agreement, not as Dice.
Structures under `reliability["untested"]`, each with the reason, were never compared with a real outline: no expected Dice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.findings import Finding
from slice3d.inference import field_of_view, orientation
from slice3d.inference.reduce import Tally
from slice3d.models.package import ModelPackage
from slice3d.volume import Segmentation, Volume

MEASURES = ("soft_dice", "mean_entropy")
_LOW_DICE = 0.8
_FEW = 10  # outlines: a line through fewer is no reason to pass over a model's own doubts
_CONTACT_MM2 = 100.0
_CONTACT_SHARE = 0.15  # of volume^(2/3): a structure of a few millilitres is cut with less contact than that


def measure(tallies: Mapping[str, Tally], package: ModelPackage) -> dict[str, dict[str, Any]]:
    """Per structure: `soft_dice`, `mean_entropy` (nats, over its voxels), `expected_dice` (None: not calibrated)."""
    out: dict[str, dict[str, Any]] = {}
    for name, tally in tallies.items():
        both = tally.voxels + tally.probability
        values: dict[str, Any] = {
            "soft_dice": round(2 * tally.inside / both, 4) if both > 0 else None,
            "mean_entropy": round(tally.entropy / tally.voxels, 4) if tally.voxels else None,
        }
        values["expected_dice"] = _expected(name, values, package.reliability) if tally.voxels else None
        if tally.voxels:
            values |= _limits(name, values, package.reliability)
        out[name] = values
    return out


def _expected(name: str, values: Mapping[str, Any], reliability: Mapping[str, Any]) -> float | None:
    if name in reliability.get("untested", {}):
        return None
    line = _line(name, reliability)
    value = values.get(str(reliability.get("measure", "soft_dice")))
    if line is None or value is None:
        return None
    low, high = _seen(name, reliability)
    if value < low:
        return None
    return round(float(np.clip(line["intercept"] + line["slope"] * min(value, high), 0.0, 1.0)), 4)


def _line(name: str, reliability: Mapping[str, Any]) -> Mapping[str, float] | None:
    line = reliability.get("structures", {}).get(name) or reliability.get("default")
    return line if isinstance(line, Mapping) and {"intercept", "slope"} <= set(line) else None


def _seen(name: str, reliability: Mapping[str, Any]) -> tuple[float, float]:
    """Between which values soft Dice was on the cases of the calibration."""
    low, high = reliability.get("seen", {}).get(name, (-np.inf, np.inf))
    return float(low), float(high)


def _limits(name: str, values: Mapping[str, Any], reliability: Mapping[str, Any]) -> dict[str, Any]:
    """`least_seen`: soft Dice was never so low where the model was tested. `calibrated_on`: outlines, where they are few."""
    limits: dict[str, Any] = {}
    low, own, line = _seen(name, reliability)[0], values["soft_dice"], _line(name, reliability)
    if own is not None and own < low:
        limits["least_seen"] = low
    if values["expected_dice"] is not None and line is not None and line.get("cases", np.inf) < _FEW:
        limits["calibrated_on"] = int(line["cases"])
    return limits


def calibrate(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    """The line from a measure to Dice by least squares over held-out (measure, Dice) pairs, for `model.json`.

    Falls back to the mean Dice where there are fewer than three pairs, the measure does not vary, or more confidence
    went with less Dice (chance, in few cases). `residual` is the root mean square of what is left.
    """
    points = np.array(sorted(pairs), np.float64).reshape(-1, 2)
    if not len(points):
        return {"intercept": 0.0, "slope": 0.0, "residual": 1.0, "cases": 0.0}
    x, y = points.T
    slope = 0.0
    if len(points) >= 3 and float(x.std()) > 1e-6:
        slope = max(0.0, float(np.polyfit(x, y, 1)[0]))
    intercept = float(y.mean() - slope * x.mean())
    residual = float(np.sqrt(np.mean((intercept + slope * x - y) ** 2)))
    return {"intercept": intercept, "slope": slope, "residual": residual, "cases": float(len(points))}


def check_result(
    result: Segmentation,
    wanted: Sequence[str],
    measured: Mapping[str, Mapping[str, Any]],
    centres: Mapping[str, tuple[float, float, float]],
    *,
    ranges_ml: Mapping[str, Sequence[float]] | None = None,
    image: Volume | None = None,
    ct: bool = False,
    volumes_ml: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Findings about every wanted structure. centres: structure → world RAS mm, of all the model found.

    ranges_ml: structure → (lowest, highest) volume that the model's own data make plausible, before the table of
    `anatomy`. image: what was segmented, same grid: shows what was padded. ct: it is one, and shows where its
    reconstruction ends. volumes_ml: structure → volume, of all the model found.
    """
    findings: list[Finding] = []
    whole = _counted(result.labels)
    faces = field_of_view.sides(result, image)
    circle = field_of_view.beside_circle(result, image) if image is not None and ct else None
    for name in wanted:
        values = [v for v in result.values(name) if v < len(whole)]
        voxels = float(whole[values].sum())
        if not voxels:
            continue
        contact = {end: float(area[values].sum()) for end, area in faces.items()}
        if circle is not None and _under_the_skin(name):
            contact[field_of_view.EDGE] = float(circle[values].sum())
        cut = _cut(name, voxels * result.grid.voxel_volume_mm3, contact)
        findings += cut
        findings += _volume(result, name, voxels, bool(cut), (ranges_ml or {}).get(name))
        findings += _confidence(name, measured.get(name, {}))
    return findings + orientation.check_orientation(centres, volumes_ml or {})


def check_tested(wanted: Sequence[str], package: ModelPackage) -> list[Finding]:
    """A finding for each wanted structure that the package was never tested on, found in this study or not."""
    untested = package.reliability.get("untested", {})
    return [
        Finding(
            "structure-untested",
            f"{name}: model {package.name!r} {untested[name]} and was never compared with a real outline of one: what it "
            "draws, and that it draws nothing, are guesses; look at every slice",
            details={"structure": name, "model": package.name},
        )
        for name in wanted
        if name in untested
    ]


def _counted(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Voxels of each label value."""
    from slice3d.inference import pixels

    count = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for plane in np.moveaxis(labels, int(np.argmax(np.abs(labels.strides))), 0):
        pixels.counted(plane.ravel(order="K"), count)
    return count


def _under_the_skin(name: str) -> bool:
    """Whether it never lies beside air outside the body unless it is cut."""
    name = anatomy.canonical(name)
    members = anatomy.GROUPS[name].members if name in anatomy.GROUPS else (name,)
    kinds = {anatomy.STRUCTURES[member].kind if member in anatomy.STRUCTURES else "unknown" for member in members}
    return kinds <= {"organ", "vessel", "brain"}


def _cut(name: str, volume_mm3: float, contact_mm2: Mapping[str, float]) -> list[Finding]:
    least = min(_CONTACT_MM2, _CONTACT_SHARE * volume_mm3 ** (2 / 3))
    touched = {
        end: round(area / 100.0, 2 if area < _CONTACT_MM2 else 1) for end, area in contact_mm2.items() if area >= least
    }
    if not touched:
        return []
    known = anatomy.STRUCTURES.get(name)
    # whoever asks for the skeleton of a scan expects it to end where the scan does
    usual = known is not None and known.kind in ("body", "bone", "vessel", "tissue")
    where = ", ".join(f"{end} ({cm2:.2g} cm²)" if cm2 < 1 else f"{end} ({cm2:.0f} cm²)" for end, cm2 in touched.items())
    text = f"{name} is cut off by the field of view on its {where}: its volume and surface are incomplete"
    details = {"structure": name, "contact_cm2": touched}
    return [Finding("organ-cut-by-field-of-view", text, severity="info" if usual else "warning", details=details)]


def _volume(
    result: Segmentation, name: str, voxels: float, cut: bool, trained: Sequence[float] | None
) -> list[Finding]:
    known = anatomy.STRUCTURES.get(name)
    table = known.volume_ml if known is not None else None
    if trained is None and table is None:
        return []
    low, high = (float(trained[0]), float(trained[1])) if trained is not None else table or (0.0, 0.0)
    volume = voxels * result.grid.voxel_volume_mm3 / 1000.0
    if low <= volume <= high or (volume < low and cut):
        return []
    whose = "adults have" if trained is None else "plausible after the cases it was trained on are"
    text = (
        f"{name} measures {_ml(volume)} ml; {whose} {low:g} to {high:g} ml: check the outline, "
        "or the patient is a child or has had surgery"
    )
    digits = round(volume, 1) if volume >= 10 else float(f"{volume:.3g}")
    details = {"structure": name, "volume_ml": digits, "plausible_ml": [low, high]}
    return [Finding("volume-implausible", text, details=details)]


def _ml(volume: float) -> str:
    return f"{volume:.0f}" if volume >= 10 else f"{volume:.2g}"


def _confidence(name: str, measured: Mapping[str, Any]) -> list[Finding]:
    expected, own = measured.get("expected_dice"), measured.get("soft_dice")
    if "least_seen" in measured:
        text = (
            f"{name}: the model is less sure (self-agreement {own:.2f}) than on any case it was tested on "
            f"({measured['least_seen']:.2f} or more), so no expected Dice is given: check the outline slice by slice"
        )
        return [Finding("model-unsure", text, details={"structure": name, "soft_dice": own})]
    if expected is not None and expected < _LOW_DICE:
        text = f"{name}: expected Dice {expected:.2f} on this image, below {_LOW_DICE}: check every slice"
        return [Finding("low-expected-dice", text, details={"structure": name, "expected_dice": expected})]
    few = measured.get("calibrated_on")
    if (expected is None or few is not None) and own is not None and own < _LOW_DICE:
        known = "not calibrated" if few is None else f"calibrated on {few} outlines alone"
        text = f"{name}: the model is unsure (self-agreement {own:.2f}, {known}): check the outline slice by slice"
        return [Finding("model-unsure", text, details={"structure": name, "soft_dice": own})]
    return []
