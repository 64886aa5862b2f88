"""MONAI bundles as model packages: `configs/metadata.json`, `configs/inference.json`, `models/model.pt`.

The configuration is a small programming language. Literal values and references between them (`@name`) are read;
expressions (`$…`) are Python and are evaluated only when the user trusts the bundle.
Format: MONAI bundle specification (Project MONAI).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slice3d import anatomy
from slice3d.errors import ModelError
from slice3d.models import bundle_steps
from slice3d.models.bundle_config import Config, inference_file, read
from slice3d.models.nnunet import Foreign

_MOST = 1 << 12  # channels


def find(folder: Path) -> list[Path]:
    """Bundles below `folder`: those with a metadata file, an inference configuration and weights."""
    return sorted(path.parents[1] for path in folder.rglob("configs/metadata.json"))


def translate(folder: Path, *, name: str, trust: bool = False) -> Foreign:
    """Read a bundle. Raises `ModelError` for what is missing, not supported, or would need evaluating an expression."""
    metadata = read(folder / "configs" / "metadata.json")
    config = Config(inference_file(folder), folder, trust)
    network = config.network()
    steps = list(config.transforms("preprocessing"))
    after = bundle_steps.after(list(config.transforms("postprocessing")))
    inputs = metadata.get("network_data_format", {}).get("inputs", {}).get("image", {})
    count = int(inputs.get("num_channels", network["arguments"].get("in_channels", 1)))
    named = _channel_names(metadata)
    outputs = int(network["arguments"].get("out_channels", max(named) + 1))
    if not (0 < count <= _MOST and 0 < outputs <= _MOST):
        raise ModelError(f"the bundle has {count} input and {outputs} output channels; expected 1 to {_MOST} of each")
    labels, regions = _labels(named, outputs, after.sigmoid)
    if after.keep_largest and len(regions) > 1:
        raise ModelError("the bundle keeps the largest component of overlapping channels, which is not supported")
    spacing = bundle_steps.spacing(steps)
    description: dict[str, Any] = {
        "format": "slice3d-model/1",
        "name": name,
        "origin": "monai-bundle",
        "version": str(metadata.get("version", "0")),
        "licence": _licence(folder, metadata),
        "modality": _modality(str(inputs.get("modality", ""))),
        "channels": _channels(inputs, count),
        "labels": {str(v): n for v, n in labels.items()},
        "groups": {},
        "spacing_mm": spacing or [1.0, 1.0, 1.0],
        "orientation": bundle_steps.orientation(steps),
        "patch_size": config.patch_size(inputs),
        "intensity": [bundle_steps.intensity(steps, count)] * count,
        "network": network,
        "activation": "sigmoid" if after.sigmoid else "softmax",
        "sampling": {
            "resampling": "linear" if spacing else "none",
            "scores": "linear",
            "pad": "zero",
            "tiling": "monai",
            "blend": config.blend(),
            "overlap": config.overlap(),
            "mirror_axes": [],
        },
        "threshold": after.threshold,
        "keep_largest": after.keep_largest,
        "training": {"task": str(metadata.get("task", ""))},
        "scores": dict(metadata.get("eval_metrics", {})),
        "reliability": {},
    }
    if after.sigmoid:
        description["regions"] = regions
    return Foreign(description, (_weights(folder),))


def weights_of(checkpoint: Path) -> dict[str, Any]:
    """The tensors of a bundle's `model.pt`: a plain dictionary, or one nested in a training checkpoint."""
    from slice3d.models.unpickle import load_checkpoint, tensors_of

    found = load_checkpoint(checkpoint)
    for key in ("model", "state_dict", "net", "network"):
        if isinstance(found.get(key), Mapping):
            return tensors_of(found[key], checkpoint)
    return tensors_of(found, checkpoint)


def _weights(folder: Path) -> Path:
    for name in ("model.pt", "model.pth"):
        if (folder / "models" / name).is_file():
            return folder / "models" / name
    scripted = (folder / "models" / "model.ts").is_file()
    raise ModelError(
        "the bundle has no models/model.pt"
        + (", only a TorchScript file, which would run as code" if scripted else "")
        + "; expected weights as a dictionary of tensors"
    )


def _channel_names(metadata: Mapping[str, Any]) -> dict[int, str]:
    """Output channel → name as the metadata has it, in the project's spelling."""
    outputs: Mapping[str, Any] = metadata.get("network_data_format", {}).get("outputs", {})
    prediction: Mapping[str, Any] = outputs.get("pred") or next(iter(outputs.values()), {})
    definition = prediction.get("channel_def", {})
    try:
        names = {int(channel): str(name) for channel, name in definition.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            "the bundle's channel_def is not a table of output channels; its metadata is damaged"
        ) from error
    if not names:
        raise ModelError("the bundle does not name its outputs; expected channel_def in metadata.json")
    return {c: anatomy.label_name(n) for c, n in sorted(names.items())}


def _labels(named: Mapping[int, str], outputs: int, sigmoid: bool) -> tuple[dict[int, str], list[int]]:
    """Label value → name, and for sigmoid outputs the value each channel writes (0: background)."""
    if not sigmoid:  # channel 0 is the background, whatever it is called
        labels = {value: named.get(value) or f"class_{value}" for value in range(1, outputs)}
        if not labels:
            raise ModelError("the bundle's network gives one channel and takes its argmax; expected two or more")
        return labels, []
    first = 1 if named.get(0) in ("background", "bg") else 0
    if first and outputs == len(named) - 1:  # one channel per structure, the background named though not computed
        named, first = {channel - 1: name for channel, name in named.items() if channel}, 0
    labels = {channel + 1 - first: named.get(channel) or f"class_{channel}" for channel in range(first, outputs)}
    return labels, [0] * first + list(labels)


def _channels(inputs: Mapping[str, Any], count: int) -> list[str]:
    names = inputs.get("channel_def", {})
    return [str(names.get(str(n), f"image {n}" if count > 1 else "image")) for n in range(count)]


def _modality(text: str) -> list[str]:
    text = text.upper()
    return ["CT"] if "CT" in text.split() else ["MR"] if text.startswith("MR") else []


def _licence(folder: Path, metadata: Mapping[str, Any]) -> str:
    if metadata.get("license"):
        return str(metadata["license"])
    for path in (folder / "LICENSE", folder / "docs" / "license.txt", folder / "LICENSE.txt"):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if "Apache License" in text:
                return "Apache-2.0"
            return next((line.strip() for line in text.splitlines() if line.strip()), "not stated")[:80]
    return "not stated"
