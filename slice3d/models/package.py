"""What a model package says about itself: `model.json`, checked and turned into values. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slice3d import anatomy
from slice3d.errors import ModelError
from slice3d.models import own_steps
from slice3d.models.own_steps import KeepLargest, Region, Tissue

FORMAT = "slice3d-model/1"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SCHEMES = (
    "clip_zscore", "zscore", "zscore_nonzero", "clip_range", "rescale_range", "percentiles", "rescale_rgb", "none",
)  # fmt: skip
ACTIVATIONS = ("softmax", "sigmoid")
TILINGS = ("nnunet", "monai")
BLENDS = ("gaussian", "constant")
RESAMPLING = ("average", "linear", "cubic", "nnunet", "torch", "none")


@dataclass(frozen=True)
class Intensity:
    """How one input channel is normalised.

    scheme: `clip_zscore` clips to `clip`, subtracts `mean`, divides by `std`; `zscore` uses the image's own mean and
    standard deviation, `zscore_nonzero` those inside the non-zero region and leaves the rest 0; `clip_range` clips to
    `clip` and maps it linearly to `to`; `rescale_range` maps the image's own range to 0…1; `percentiles` maps
    the image's 0.5th and 99.5th percentile to 0 and 1 and cuts to 0…1.5; `rescale_rgb` divides by 255.
    """

    scheme: str = "none"
    clip: tuple[float, float] | None = None
    mean: float = 0.0
    std: float = 1.0
    to: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Weights:
    """One weights file (one fold): name inside the package folder, SHA-256, dtype as stored."""

    file: str
    sha256: str
    dtype: str = "float32"


@dataclass(frozen=True)
class Sampling:
    """How the package's runner goes from the study's grid to the network's and back.

    resampling: `average` (voxels averaged by a Gaussian of σ = 0.35·√(ratio² − 1) study voxels where the network's are
    coarser, then linear), `linear` or `cubic` B-spline; these take the image's own values and normalise afterwards.
    `nnunet` (normalised first, then cubic, but nearest along one axis that is much coarser than the others, over
    exactly the field of view, as nnU-Net v2 does), `torch` (nnU-Net v2's trilinear variant), `none`.
    scores: the same for the way back; scores are always interpolated at most linearly.
    *_order, *_order_coarse, *_split refine `nnunet`: spline order, order along the coarse axis, and whether there is
    one (None: decided by the spacing).
    pad: value outside the field of view after normalisation, `zero` or `lowest`.
    overlap: share of the patch that neighbouring tiles overlap. tiling: where they lie, `nnunet` (evenly spread) or
    `monai` (at a fixed step, the last one at the end). blend: how tiles that overlap are weighted, by a Gaussian around
    their centre (each runner has its own) or all alike (`constant`, MONAI only). mirror_axes: network axes to average flips over.
    crop_nonzero: whether the non-zero bounding box alone is looked at, as nnU-Net does.
    """

    resampling: str = "average"
    scores: str = "linear"
    pad: str = "lowest"
    overlap: float = 0.5
    tiling: str = "nnunet"
    blend: str = "gaussian"
    mirror_axes: tuple[int, ...] = ()
    crop_nonzero: bool = False
    resampling_order: int = 3
    resampling_order_coarse: int = 0
    resampling_split: bool | None = None
    scores_order: int = 1
    scores_order_coarse: int = 0
    scores_split: bool | None = None


MALFORMED = (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError)
"""What reading a description raises that holds text for a number, a list for an object, and so on."""


@dataclass(frozen=True)
class ModelPackage:
    """An installed model. Everything but the weights is read; `folder` holds `model.json` and the weights files.

    labels: output label value → structure name. groups: structure name → label values whose union it is.
    spacing_mm, patch_size: along the network's own axes, which run as `orientation` says (`"RAS"`, or `"native"`: the
    study's axes in the order k, j, i, then permuted by `transpose`). channels: one name per input image.
    regions: for sigmoid outputs, the label value each channel writes (0: none), later channels over earlier ones.
    threshold: raw score above which a sigmoid channel is there. keep_largest: steps that belong to the model.
    tissues: where not empty, borders are put where the image's own grey values change (`inference.by_intensity`).
    region: where to look in images larger than this package knows (`inference.cascade`).
    """

    name: str
    version: str
    licence: str
    modality: tuple[str, ...]
    labels: Mapping[int, str]
    groups: Mapping[str, tuple[int, ...]]
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    orientation: str
    transpose: tuple[int, int, int]
    channels: tuple[str, ...]
    intensity: tuple[Intensity, ...]
    network_class: str
    network_arguments: Mapping[str, Any]
    activation: str
    regions: tuple[int, ...]
    sampling: Sampling
    weights: tuple[Weights, ...]
    reliability: Mapping[str, Any]
    expected_intensity: Mapping[str, Any]
    description: Mapping[str, Any]
    folder: Path
    origin: str = "native"
    builtin: bool = False
    threshold: float = 0.0
    keep_largest: tuple[KeepLargest, ...] = ()
    tissues: tuple[Tissue, ...] = ()
    region: Region | None = None

    @property
    def structures(self) -> tuple[str, ...]:
        """Every name that can be asked for: labels in order of value, then groups."""
        return tuple(dict.fromkeys([*(self.labels[v] for v in sorted(self.labels)), *self.groups]))

    @property
    def sha256(self) -> str:
        """Identity of the weights: the hash of the only file, or of the hashes of all folds."""
        if len(self.weights) == 1:
            return self.weights[0].sha256
        return hashlib.sha256("".join(w.sha256 for w in self.weights).encode()).hexdigest()

    @property
    def non_commercial(self) -> bool:
        """Whether the licence, as stated, forbids commercial use or leaves it unclear."""
        return forbids_commercial_use(self.licence)

    def values(self, structure: str) -> tuple[int, ...]:
        """Label values of one structure. Raises `InputError` with the nearest spelling when it is not offered."""
        (name,) = anatomy.resolve(structure, self.structures)[:1]
        if name in self.groups:
            return self.groups[name]
        return tuple(value for value, known in self.labels.items() if known == name)

    def verify(self) -> None:
        """Recompute the hash of every weights file. Raises `ModelError` when one differs or is missing."""
        for fold in range(len(self.weights)):
            self.verify_fold(fold)

    def verify_fold(self, fold: int) -> None:
        """Recompute the hash of one weights file. Raises `ModelError` when it differs or is missing."""
        weights = self.weights[fold]
        path = self.folder / weights.file
        if not path.is_file():
            raise ModelError(f"model {self.name!r} lacks its weights {weights.file}; add it again")
        found = file_sha256(path)
        if found != weights.sha256:
            raise ModelError(
                f"weights {weights.file} of model {self.name!r} have SHA-256 {found[:12]}…, model.json says "
                f"{weights.sha256[:12]}…; the file is damaged or was changed: add the model again"
            )

    def __repr__(self) -> str:
        return (
            f"ModelPackage({self.name} {self.version}: {', '.join(self.modality)}, {len(self.structures)} structures)"
        )


def forbids_commercial_use(licence: str) -> bool:
    """Whether a licence text or SPDX-like name says no to commercial use (`CC-BY-NC-4.0`, `non-commercial`)."""
    text = licence.lower().replace(" ", "-").replace("_", "-")
    return "non-commercial" in text or "noncommercial" in text or "-nc" in text or "academic" in text


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_package(folder: Path, *, builtin: bool = False) -> ModelPackage:
    """The package in `folder`. Raises `ModelError` naming the field of `model.json` that is missing or wrong."""
    try:
        text = (folder / "model.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"no readable model.json in {folder.name}; expected a slice3d model package") from error
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ModelError(f"model.json of {folder.name} is not valid JSON ({error}); add the model again") from error
    return parse_package(raw, folder, builtin=builtin)


def parse_package(raw: Any, folder: Path, *, builtin: bool = False) -> ModelPackage:
    """Check the contents of a `model.json`. Raises `ModelError` as `read_package` does."""
    try:
        return _parsed(raw, folder, builtin)
    except MALFORMED as error:
        raise ModelError(
            f"model.json of {folder.name!r} holds a value of another kind than expected ({one_line(error)}); "
            "add the model again"
        ) from error


def one_line(error: BaseException) -> str:
    """What an error says, on one line that is not too long; its kind where it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _parsed(raw: Any, folder: Path, builtin: bool) -> ModelPackage:
    fields = _Fields(raw, folder.name)
    if raw.get("format") != FORMAT:
        raise ModelError(f"model {folder.name!r} has format {raw.get('format')!r}; expected {FORMAT!r}")
    name = fields.text("name")
    if not NAME.fullmatch(name):
        raise ModelError(f"model name {name!r} is not usable; expected letters, digits, '.', '_' and '-'")
    labels = fields.labels()
    channels = tuple(str(c) for c in raw.get("channels", ["image"]))
    intensity = fields.intensity(len(channels))
    activation = fields.choice("activation", ACTIVATIONS, "softmax")
    regions = tuple(int(v) for v in raw.get("regions", sorted(labels) if activation == "sigmoid" else ()))
    if not set(regions) <= {0, *labels}:
        raise fields.wrong("regions", f"label values out of {sorted(labels)}, or 0")
    network = fields.mapping("network")
    if not isinstance(network.get("class"), str) or not isinstance(network.get("arguments"), Mapping):
        raise ModelError(f"model {name!r}: `network` needs `class` (text) and `arguments` (object)")
    modality = raw.get("modality", [])
    return ModelPackage(
        name=name,
        version=str(raw.get("version", "0")),
        licence=fields.text("licence"),
        modality=(modality,) if isinstance(modality, str) else tuple(str(m) for m in modality),
        labels=MappingProxyType(labels),
        groups=MappingProxyType(fields.groups(labels)),
        spacing_mm=fields.numbers("spacing_mm", float),
        patch_size=fields.numbers("patch_size", int),
        orientation=_orientation(str(raw.get("orientation", "RAS")), name),
        transpose=fields.transpose(),
        channels=channels,
        intensity=intensity,
        network_class=str(network["class"]),
        network_arguments=MappingProxyType(dict(network["arguments"])),
        activation=activation,
        regions=regions,
        sampling=fields.sampling(),
        weights=fields.weights(),
        reliability=MappingProxyType(fields.reliability(labels)),
        expected_intensity=MappingProxyType(dict(raw.get("expected_intensity") or {})),
        description=MappingProxyType(dict(raw)),
        folder=folder,
        origin=str(raw.get("origin", "native")),
        builtin=builtin,
        threshold=fields.number("threshold", 0.0),
        keep_largest=own_steps.keep_largest(raw, fields.wrong),
        tissues=own_steps.tissues(raw, fields.wrong, labels, len(channels)),
        region=own_steps.region(raw, fields.wrong),
    )


def _orientation(text: str, name: str) -> str:
    if text == "native":
        return text
    letters = text.upper()
    axes = [next((n for n, pair in enumerate(("RL", "AP", "SI")) if letter in pair), -1) for letter in letters]
    if sorted(axes) != [0, 1, 2]:
        raise ModelError(f"model {name!r} has orientation {text!r}; expected e.g. 'RAS', or 'native'")
    return letters


class _Fields:
    """Typed access to the fields of a `model.json`; every complaint names the model and the field."""

    def __init__(self, raw: Any, folder_name: str) -> None:
        if not isinstance(raw, dict):
            raise ModelError(f"model.json of {folder_name!r} holds {type(raw).__name__}; expected an object")
        self.raw = raw
        self.name = str(raw.get("name", folder_name))

    def wrong(self, field: str, expected: str) -> ModelError:
        found = self.raw.get(field, "nothing")
        return ModelError(f"model {self.name!r}: `{field}` is {str(found)[:60]!r}; expected {expected}")

    def text(self, field: str) -> str:
        value = self.raw.get(field)
        if not isinstance(value, str) or not value:
            raise self.wrong(field, "text")
        return value

    def mapping(self, field: str) -> Mapping[str, Any]:
        value = self.raw.get(field)
        if not isinstance(value, dict):
            raise self.wrong(field, "an object")
        return value

    def reliability(self, labels: Mapping[int, str]) -> dict[str, Any]:
        """What is known of the model's reliability, with `untested` checked: structure → reason."""
        found = self.raw.get("reliability") or {}
        if not isinstance(found, dict):
            raise self.wrong("reliability", "an object")
        untested = found.get("untested")
        if untested is None:
            return {name: value for name, value in found.items() if name != "untested"}
        known = {*labels.values(), *(self.raw.get("groups") or {})}
        if not isinstance(untested, dict) or not all(isinstance(v, str) and n in known for n, v in untested.items()):
            raise self.wrong("reliability", "`untested` to be an object: structures of the model, each with a reason")
        return dict(found)

    def choice(self, field: str, choices: tuple[str, ...], default: str) -> str:
        value = self.raw.get(field, default)
        if value not in choices:
            raise self.wrong(field, " or ".join(choices))
        return str(value)

    def numbers(self, field: str, kind: type) -> Any:
        value = self.raw.get(field)
        if (
            not isinstance(value, list)
            or len(value) != 3
            or not all(isinstance(v, (int, float)) and v > 0 for v in value)
        ):
            raise self.wrong(field, "three positive numbers")
        return tuple(kind(v) for v in value)

    def number(self, field: str, default: float) -> float:
        value = self.raw.get(field, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(field, "a number")
        return float(value)

    def labels(self) -> dict[int, str]:
        try:
            labels = {int(value): str(name) for value, name in self.mapping("labels").items()}
        except ValueError as error:
            raise self.wrong("labels", "label values as keys and structure names as values") from error
        labels.pop(0, None)
        if not labels or min(labels) < 0 or max(labels) > 65535 or len(set(labels.values())) != len(labels):
            raise self.wrong("labels", "positive label values, each with its own structure name")
        return labels

    def groups(self, labels: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
        try:
            groups = {str(name): tuple(int(v) for v in values) for name, values in self.raw.get("groups", {}).items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise self.wrong("groups", "structure names with lists of label values") from error
        if any(not values or not set(values) <= set(labels) for values in groups.values()):
            raise self.wrong("groups", f"lists of label values out of {sorted(labels)}")
        return groups

    def intensity(self, channels: int) -> tuple[Intensity, ...]:
        value = self.raw.get("intensity", {"scheme": "none"})
        entries = value if isinstance(value, list) else [value] * channels
        if len(entries) != channels or not all(isinstance(e, dict) and e.get("scheme") in SCHEMES for e in entries):
            raise self.wrong("intensity", f"for each of {channels} channels a scheme out of {', '.join(SCHEMES)}")
        return tuple(
            Intensity(
                scheme=entry["scheme"],
                clip=None if entry.get("clip") is None else (float(entry["clip"][0]), float(entry["clip"][1])),
                mean=float(entry.get("mean", 0.0)),
                std=float(entry.get("std", 1.0)),
                to=(float(entry.get("to", (0, 1))[0]), float(entry.get("to", (0, 1))[1])),
            )
            for entry in entries
        )

    def transpose(self) -> tuple[int, int, int]:
        value = self.raw.get("transpose", [0, 1, 2])
        if not isinstance(value, list) or sorted(value) != [0, 1, 2]:
            raise self.wrong("transpose", "a permutation of [0, 1, 2]")
        return (value[0], value[1], value[2])

    def sampling(self) -> Sampling:
        value = self.raw.get("sampling", {})
        if not isinstance(value, dict) or not set(value) <= set(Sampling.__dataclass_fields__):
            raise self.wrong("sampling", f"an object with fields out of {', '.join(Sampling.__dataclass_fields__)}")
        sampling = Sampling(**{**value, "mirror_axes": tuple(value.get("mirror_axes", ()))})
        if sampling.resampling not in RESAMPLING or sampling.scores not in RESAMPLING:
            raise self.wrong("sampling", f"resampling and scores out of {', '.join(RESAMPLING)}")
        if sampling.tiling not in TILINGS or sampling.blend not in BLENDS:
            raise self.wrong("sampling", f"tiling out of {', '.join(TILINGS)} and blend out of {', '.join(BLENDS)}")
        if (sampling.tiling, sampling.blend) == ("nnunet", "constant"):
            raise self.wrong("sampling", "a gaussian blend with nnunet tiling")
        if not 0 <= sampling.overlap < 1 or not set(sampling.mirror_axes) <= {0, 1, 2}:
            raise self.wrong("sampling", "overlap from 0 to below 1 and mirror_axes out of 0, 1, 2")
        return sampling

    def weights(self) -> tuple[Weights, ...]:
        value = self.raw.get("weights")
        entries = value if isinstance(value, list) else [value]
        out = []
        for entry in entries:
            if not isinstance(entry, dict) or not {"file", "sha256"} <= set(entry):
                raise self.wrong("weights", "an object (or a list of them) with file and sha256")
            file = str(entry["file"])
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise ModelError(
                    f"model {self.name!r}: weights file {file!r}; expected a .safetensors file beside model.json"
                )
            out.append(Weights(file, str(entry["sha256"]), str(entry.get("dtype", "float32"))))
        return tuple(out)
