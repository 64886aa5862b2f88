"""MONAI bundles as model packages: `configs/metadata.json`, `configs/inference.json`, `models/model.pt`.

The configuration is a small programming language. Literal values and references between them (`@name`) are read;
expressions (`$…`) are Python and are evaluated only when the user trusts the bundle.
Format: MONAI bundle specification (Project MONAI).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slice3d import anatomy
from slice3d.errors import MissingExtraError, ModelError
from slice3d.models.nnunet import Foreign

_CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
_NETS = "monai.networks.nets"


def find(folder: Path) -> list[Path]:
    """Bundles below `folder`: those with a metadata file, an inference configuration and weights."""
    return sorted(path.parents[1] for path in folder.rglob("configs/metadata.json"))


def translate(folder: Path, *, name: str, trust: bool = False) -> Foreign:
    """Read a bundle. Raises `ModelError` for what is missing, not supported, or would need evaluating an expression."""
    metadata = _read(folder / "configs" / "metadata.json")
    config = _Config(_inference(folder), folder, trust)
    network = config.network()
    labels = _labels(metadata)
    steps = list(config.transforms("preprocessing"))
    after = {step.get("_target_", "").rpartition(".")[2] for step in config.transforms("postprocessing")}
    inputs = metadata.get("network_data_format", {}).get("inputs", {}).get("image", {})
    count = int(inputs.get("num_channels", network["arguments"].get("in_channels", 1)))
    sigmoid = config.sigmoid() and len(labels) >= 1
    outputs = int(network["arguments"].get("out_channels", max(labels) + 1))
    description: dict[str, Any] = {
        "format": "slice3d-model/1",
        "name": name,
        "origin": "monai-bundle",
        "version": str(metadata.get("version", "0")),
        "licence": _licence(folder, metadata),
        "modality": _modality(str(inputs.get("modality", ""))),
        "channels": _channels(inputs, count),
        "labels": {str(v): n for v, n in labels.items() if v < outputs + int(sigmoid)},
        "groups": {},
        "spacing_mm": _spacing(steps),
        "orientation": _orientation(steps),
        "patch_size": config.patch_size(inputs),
        "intensity": [_intensity(steps)] * count,
        "network": network,
        "activation": "sigmoid" if sigmoid else "softmax",
        "sampling": {
            "resampling": "linear",
            "scores": "linear",
            "pad": "zero",
            "overlap": config.overlap(),
            "mirror_axes": [],
        },
        "postprocess": "KeepLargestConnectedComponentd" in after,
        "training": {"task": str(metadata.get("task", ""))},
        "scores": dict(metadata.get("eval_metrics", {})),
        "reliability": {},
    }
    if sigmoid:
        description["regions"] = sorted(labels)[:outputs]
    return Foreign(description, (_weights(folder),))


def weights_of(checkpoint: Path) -> dict[str, Any]:
    """The tensors of a bundle's `model.pt`: a plain dictionary, or one nested in a training checkpoint."""
    from slice3d.models.unpickle import load_checkpoint, tensors_of

    found = load_checkpoint(checkpoint)
    for key in ("model", "state_dict", "net", "network"):
        if isinstance(found.get(key), Mapping):
            return tensors_of(found[key], checkpoint)
    return tensors_of(found, checkpoint)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path.name} of the bundle cannot be read; expected a MONAI bundle's configuration"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} of the bundle holds {type(found).__name__}; expected an object")
    return found


def _yaml(text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtraError("the bundle is written in YAML; run `pip install pyyaml`") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError("not YAML") from error


def _inference(folder: Path) -> dict[str, Any]:
    for name in _CONFIGS:
        if (folder / "configs" / name).is_file():
            return _read(folder / "configs" / name)
    raise ModelError("the bundle has no configs/inference.json; expected a bundle that can be used for inference")


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


class _Config:
    """The inference configuration with references resolved and expressions refused (or, when trusted, evaluated)."""

    def __init__(self, raw: dict[str, Any], folder: Path, trust: bool) -> None:
        self.raw, self.folder, self.trust = raw, folder, trust
        self._parser: Any = None

    def value(self, item: Any, *, depth: int = 0) -> Any:
        """A literal copy of `item`: references followed, expressions evaluated only when trusted."""
        if depth > 32:
            raise ModelError("the bundle's references lead in a circle; its configuration is damaged")
        if isinstance(item, Mapping):
            return {key: self.value(entry, depth=depth + 1) for key, entry in item.items()}
        if isinstance(item, list):
            return [self.value(entry, depth=depth + 1) for entry in item]
        if isinstance(item, str) and item.startswith("@"):
            return self.value(self._lookup(item[1:]), depth=depth + 1)
        if isinstance(item, str) and item.startswith("$"):
            return self._evaluate(item)
        return item

    def _lookup(self, reference: str) -> Any:
        found: Any = self.raw
        for part in re.split(r"::|#", reference):
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise ModelError(f"the bundle refers to {reference!r}, which it does not define") from error
        return found

    def _evaluate(self, expression: str) -> Any:
        if not self.trust:
            raise ModelError(
                f"the bundle computes a value it needs ({expression[:60]!r}); expressions are code and are not run; "
                "pass --trust if you trust its publisher"
            )
        from monai.bundle.config_parser import ConfigParser

        parser = ConfigParser({**self.raw, "bundle_root": str(self.folder), "slice3d_value": expression})
        try:
            return parser.get_parsed_content("slice3d_value")
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, ImportError, NameError) as error:
            text = " ".join(str(error).split())[:120]
            raise ModelError(f"the bundle's expression {expression[:60]!r} fails: {text}") from error

    def network(self) -> dict[str, Any]:
        """Class and literal arguments of the network."""
        raw = self.raw.get("network_def") or self.raw.get("network") or self.raw.get("net")
        if isinstance(raw, str) and raw.startswith("@"):
            raw = self._lookup(raw[1:])
        if isinstance(raw, str) or not isinstance(raw, Mapping) or "_target_" not in raw:
            raise ModelError(
                "the bundle does not define its network under `network_def`; expected `_target_` and arguments"
            )
        target = str(raw["_target_"])
        arguments = {k: self.value(v) for k, v in raw.items() if not (k.startswith("_") and k.endswith("_"))}
        return {"class": target if "." in target else f"{_NETS}.{target}", "arguments": _plain(arguments)}

    def transforms(self, section: str) -> Iterator[dict[str, Any]]:
        """The transforms of a section with literal arguments; those that stay expressions are left out of the dict."""
        raw = self.raw.get(section, {})
        if isinstance(raw, str) and raw.startswith("@"):
            raw = self._lookup(raw[1:])
        entries = raw.get("transforms", []) if isinstance(raw, Mapping) else raw
        if isinstance(entries, str) and entries.startswith("@"):
            entries = self._lookup(entries[1:])
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, str) and entry.startswith("@"):
                entry = self._lookup(entry[1:])
            if not isinstance(entry, Mapping) or self._off(entry):
                continue
            wanted = _MATTERS.get(str(entry.get("_target_", "")).rpartition(".")[2].removesuffix("d"))
            keep = entry if wanted is None else {k: v for k, v in entry.items() if k in (*wanted, "_target_")}
            yield {k: self.value(v) for k, v in keep.items()} if wanted is not None else {"_target_": entry["_target_"]}

    def _off(self, entry: Mapping[str, Any]) -> bool:
        disabled = entry.get("_disabled_", False)
        return disabled is True or (isinstance(disabled, str) and disabled.lower() == "true")

    def _inferer(self) -> dict[str, Any]:
        raw = self.raw.get("inferer", {})
        if isinstance(raw, str) and raw.startswith("@"):
            raw = self._lookup(raw[1:])
        return {k: raw[k] for k in ("roi_size", "overlap") if isinstance(raw, Mapping) and k in raw}

    def patch_size(self, inputs: Mapping[str, Any]) -> list[int]:
        """The sliding window's size."""
        size = self.value(self._inferer().get("roi_size", inputs.get("spatial_shape")))
        if not isinstance(size, (list, tuple)) or len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
            raise ModelError("the bundle does not say its window size; expected `inferer.roi_size` with three numbers")
        return list(size)

    def overlap(self) -> float:
        """The sliding window's overlap (MONAI's own default is a quarter)."""
        overlap = self.value(self._inferer().get("overlap", 0.25))
        return float(overlap) if isinstance(overlap, (int, float)) and 0 <= overlap < 1 else 0.5

    def sigmoid(self) -> bool:
        """Whether the scores go through a sigmoid rather than a softmax."""
        return any(step.get("sigmoid") is True for step in self.transforms("postprocessing"))


# arguments that are read, by transform (without the final d of the dictionary variant)
_MATTERS: Mapping[str, tuple[str, ...]] = {
    "Spacing": ("pixdim",),
    "Orientation": ("axcodes",),
    "ScaleIntensityRange": ("a_min", "a_max", "b_min", "b_max", "clip"),
    "NormalizeIntensity": ("subtrahend", "divisor", "nonzero"),
    "ScaleIntensity": ("minv", "maxv"),
    "Activations": ("sigmoid", "softmax"),
}
# what changes nothing about the voxels that the engine does not do itself
_HARMLESS = {
    "LoadImage", "EnsureChannelFirst", "EnsureType", "ToTensor", "CastToType", "AddChannel", "AsChannelFirst",
    "ToDevice", "CropForeground", "Identity", "SelectItems", "CopyItems", "DeleteItems",
}  # fmt: skip


def _steps(steps: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    found = [s for s in steps if str(s.get("_target_", "")).rpartition(".")[2].removesuffix("d") == name]
    return found[0] if found else None


def _spacing(steps: list[dict[str, Any]]) -> list[float]:
    step = _steps(steps, "Spacing")
    pixdim = step.get("pixdim") if step else None
    if isinstance(pixdim, (int, float)):
        pixdim = [pixdim] * 3
    if not isinstance(pixdim, (list, tuple)) or len(pixdim) != 3:
        raise ModelError("the bundle does not resample to a fixed voxel size; expected Spacingd with pixdim")
    return [float(p) for p in pixdim]


def _orientation(steps: list[dict[str, Any]]) -> str:
    step = _steps(steps, "Orientation")
    return str(step["axcodes"]) if step and "axcodes" in step else "native"


def _intensity(steps: list[dict[str, Any]]) -> dict[str, Any]:
    known = _HARMLESS | set(_MATTERS)
    for step in steps:
        name = str(step.get("_target_", "")).rpartition(".")[2].removesuffix("d")
        if name not in known:
            raise ModelError(
                f"the bundle prepares images with {name!r}, which is not supported; expected MONAI's usual ones"
            )
    found = [
        s
        for n in ("ScaleIntensityRange", "NormalizeIntensity", "ScaleIntensity")
        if (s := _steps(steps, n)) is not None
    ]
    if len(found) > 1:
        raise ModelError("the bundle normalises intensities twice, which is not supported; expected one normalisation")
    if not found:
        return {"scheme": "none"}
    step = found[0]
    name = str(step["_target_"]).rpartition(".")[2].removesuffix("d")
    if name == "ScaleIntensityRange":
        low, high = float(step["a_min"]), float(step["a_max"])
        to = [float(step.get("b_min") or 0.0), float(1.0 if step.get("b_max") is None else step["b_max"])]
        if not step.get("clip", False):
            raise ModelError("the bundle scales intensities without clipping, which is not supported")
        return {"scheme": "clip_range", "clip": [low, high], "to": to}
    if name == "ScaleIntensity":
        return {"scheme": "rescale_range"}
    if isinstance(step.get("subtrahend"), (int, float)) and isinstance(step.get("divisor"), (int, float)):
        wide = 1e6
        return {"scheme": "clip_zscore", "clip": [-wide, wide], "mean": step["subtrahend"], "std": step["divisor"]}
    return {"scheme": "zscore_nonzero" if step.get("nonzero") else "zscore"}


def _labels(metadata: Mapping[str, Any]) -> dict[int, str]:
    outputs: Mapping[str, Any] = metadata.get("network_data_format", {}).get("outputs", {})
    prediction: Mapping[str, Any] = outputs.get("pred") or next(iter(outputs.values()), {})
    definition = prediction.get("channel_def", {})
    try:
        labels = {int(value): str(name) for value, name in definition.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            "the bundle's channel_def is not a table of output channels; its metadata is damaged"
        ) from error
    labels = {v: re.sub(r"[^0-9a-z]+", "_", anatomy.canonical(n)).strip("_") for v, n in labels.items()}
    if labels.get(0) in ("background", "bg"):
        labels.pop(0)
    elif 0 in labels:
        labels = {value + 1: name for value, name in labels.items()}
    if not labels:
        raise ModelError("the bundle does not name its outputs; expected channel_def in metadata.json")
    return dict(sorted(labels.items()))


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


def _plain(value: Any) -> Any:
    """Only what JSON can hold: an argument that is an object cannot be stored; the bundle would need its own code."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            raise ModelError(
                f"the bundle's network is built from {value['_target_']!r} objects, which is not supported"
            )
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ModelError(f"the bundle's network takes a {type(value).__name__} argument, which is not supported")
