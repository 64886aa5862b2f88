"""What a MONAI bundle's transforms mean for a model package: voxel size, axes, intensities, and what follows the scores.

A transform that is not known is refused rather than left out: without it the labels would silently be others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slice3d.errors import ModelError

Steps = Sequence[Mapping[str, Any]]

# arguments that are read, by transform (without the final d of the dictionary variant)
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "Spacing": ("pixdim",),
    "Orientation": ("axcodes",),
    "ScaleIntensityRange": ("a_min", "a_max", "b_min", "b_max", "clip"),
    "NormalizeIntensity": ("subtrahend", "divisor", "nonzero", "channel_wise"),
    "ScaleIntensity": ("minv", "maxv"),
    "Activations": ("sigmoid", "softmax"),
    "AsDiscrete": ("argmax", "threshold", "threshold_values", "logit_thresh"),
    "KeepLargestConnectedComponent": ("applied_labels", "independent", "connectivity", "num_components"),
}
_INTENSITY = ("ScaleIntensityRange", "NormalizeIntensity", "ScaleIntensity")
# what changes nothing about the voxels that the engine does not do itself
_HARMLESS = {
    "LoadImage", "EnsureChannelFirst", "EnsureType", "ToTensor", "CastToType", "AddChannel", "AsChannelFirst",
    "ToDevice", "CropForeground", "Identity", "SelectItems", "CopyItems", "DeleteItems",
}  # fmt: skip
_HARMLESS_AFTER = _HARMLESS | {"Invert", "SaveImage", "Resize", "SqueezeDim"}


def kind(step: Mapping[str, Any]) -> str:
    """The transform's name without its module and the final d of the dictionary variant."""
    return str(step.get("_target_", "")).rpartition(".")[2].removesuffix("d")


def spacing(steps: Steps) -> list[float] | None:
    """Voxel size that the images are resampled to; None where they stay as they are."""
    step = _first(steps, "Spacing")
    if step is None:
        return None
    pixdim = step.get("pixdim")
    if isinstance(pixdim, (int, float)):
        pixdim = [pixdim] * 3
    if not isinstance(pixdim, (list, tuple)) or len(pixdim) != 3 or not all(_number(p) and p > 0 for p in pixdim):
        raise ModelError(f"the bundle resamples to {str(pixdim)[:40]!r}; expected Spacingd with three sizes in mm")
    return [float(p) for p in pixdim]


def orientation(steps: Steps) -> str:
    """Axes that the images are turned to, `"native"` where they are not."""
    step = _first(steps, "Orientation")
    return str(step["axcodes"]) if step and "axcodes" in step else "native"


def intensity(steps: Steps, channels: int) -> dict[str, Any]:
    """How every channel is normalised. Raises `ModelError` for a transform that is not known or cannot be followed."""
    for step in steps:
        if kind(step) not in _HARMLESS and kind(step) not in ARGUMENTS:
            raise ModelError(
                f"the bundle prepares images with {kind(step)!r}, which is not supported; expected MONAI's usual ones"
            )
    found = [step for step in steps if kind(step) in _INTENSITY]
    if len(found) > 1:
        raise ModelError("the bundle normalises intensities twice, which is not supported; expected one normalisation")
    if not found:
        return {"scheme": "none"}
    step = found[0]
    if kind(step) == "ScaleIntensityRange":
        low, high = float(step["a_min"]), float(step["a_max"])
        to = [float(step.get("b_min") or 0.0), float(1.0 if step.get("b_max") is None else step["b_max"])]
        if not step.get("clip", False):
            raise ModelError("the bundle scales intensities without clipping, which is not supported")
        return {"scheme": "clip_range", "clip": [low, high], "to": to}
    if kind(step) == "ScaleIntensity":
        if (step.get("minv", 0.0), step.get("maxv", 1.0)) != (0.0, 1.0):
            raise ModelError("the bundle scales intensities to other limits than 0…1, which is not supported")
        return {"scheme": "rescale_range"}
    if _number(step.get("subtrahend")) and _number(step.get("divisor")):
        wide = 1e6
        return {"scheme": "clip_zscore", "clip": [-wide, wide], "mean": step["subtrahend"], "std": step["divisor"]}
    if channels > 1 and not step.get("channel_wise"):
        raise ModelError("the bundle normalises all channels together, which is not supported; expected channel_wise")
    return {"scheme": "zscore_nonzero" if step.get("nonzero") else "zscore"}


@dataclass(frozen=True)
class After:
    """What follows the network. threshold: of the raw score of a sigmoid channel. keep_largest: see `KeepLargest`."""

    sigmoid: bool = False
    threshold: float = 0.0
    keep_largest: list[dict[str, Any]] = field(default_factory=list)


def after(steps: Steps) -> After:
    """What a bundle does with the scores. Raises `ModelError` for a transform that would change labels unseen."""
    for step in steps:
        if kind(step) not in _HARMLESS_AFTER and kind(step) not in ARGUMENTS:
            raise ModelError(
                f"the bundle changes its result with {kind(step)!r}, which is not supported; expected Activationsd, "
                "AsDiscreted, KeepLargestConnectedComponentd, Invertd"
            )
    activations = [step for step in steps if kind(step) == "Activations"]
    discrete = [step for step in steps if kind(step) == "AsDiscrete"]
    sigmoid = any(step.get("sigmoid") is True for step in activations)
    softmax = any(step.get("softmax") is True for step in activations)
    argmax = any(step.get("argmax") is True for step in discrete)
    limit = next((t for step in discrete if (t := _threshold(step)) is not None), None)
    if limit is not None and softmax and not argmax:
        raise ModelError("the bundle takes a threshold of softmax scores, which is not supported; expected argmax")
    keep = [_keep_largest(step) for step in steps if kind(step) == "KeepLargestConnectedComponent"]
    if argmax or (limit is None and not sigmoid):
        return After(keep_largest=keep)
    if not sigmoid:
        return After(sigmoid=True, threshold=float(limit or 0.0), keep_largest=keep)
    limit = 0.5 if limit is None else limit
    if not 0 < limit < 1:
        raise ModelError(f"the bundle takes a threshold of {limit} of probabilities; expected one between 0 and 1")
    return After(sigmoid=True, threshold=math.log(limit / (1 - limit)), keep_largest=keep)


def _threshold(step: Mapping[str, Any]) -> float | None:
    if step.get("threshold_values") is True:  # before MONAI 0.7
        return float(step.get("logit_thresh", 0.5))
    value = step.get("threshold")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _keep_largest(step: Mapping[str, Any]) -> dict[str, Any]:
    labels = step.get("applied_labels")
    return {
        "labels": None if labels is None else [int(n) for n in (labels if isinstance(labels, list) else [labels])],
        "independent": step.get("independent", True) is not False,
        "connectivity": int(step.get("connectivity") or 3),
        "components": int(step.get("num_components") or 1),
    }


def _first(steps: Steps, name: str) -> Mapping[str, Any] | None:
    return next((step for step in steps if kind(step) == name), None)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
