"""Data sets as people have them: Medical Segmentation Decathlon and nnU-Net raw folders with their `dataset.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slice3d.errors import InputError

_MODALITIES = {"CT": "CT", "MRI": "MR", "MR": "MR", "T1": "MR", "T2": "MR", "FLAIR": "MR", "PET": "PT", "PT": "PT"}


@dataclass(frozen=True)
class TrainingPair:
    """One training case: its name, image file and label file."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says. labels: value → name without background. modality: DICOM modality or "" if unknown."""

    name: str
    modality: str
    labels: Mapping[int, str]
    pairs: tuple[TrainingPair, ...]
    licence: str


def read_dataset(folder: Path) -> Dataset:
    """The data set in `folder`, MSD or nnU-Net v2 raw layout, or imagesTr/labelsTr without a `dataset.json`'s list.

    Raises `InputError` when `dataset.json` is missing or damaged, when there is more than one image channel, when the
    labels are not consecutive from 0, or when no pair of image and label file exists.
    """
    raw = _json(folder)
    channels = raw.get("channel_names") or raw.get("modality") or {}
    if not isinstance(channels, dict) or len(channels) > 1:
        raise InputError(
            f"{folder.name} has {len(channels)} image channels; this command trains on one; pick one first"
        )
    labels = _labels(raw.get("labels"), folder.name)
    pairs = _listed(folder, raw.get("training")) or _paired(folder, str(raw.get("file_ending", ".nii.gz")))
    if not pairs:
        raise InputError(f"no training cases in {folder.name}; expected imagesTr/ and labelsTr/ with matching names")
    missing = next((p for p in pairs if not p.image.is_file() or not p.labels.is_file()), None)
    if missing is not None:
        raise InputError(f"case {missing.name} of {folder.name} lacks its image or label file; complete the folder")
    channel = str(next(iter(channels.values()), "")).upper()
    return Dataset(
        name=str(raw.get("name") or folder.name),
        modality=_MODALITIES.get(channel, ""),
        labels=labels,
        pairs=tuple(pairs),
        licence=str(raw.get("licence") or raw.get("license") or "unknown"),
    )


def _json(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.is_file():
        raise InputError(f"no dataset.json in {folder.name}; expected a data set in MSD or nnU-Net raw layout")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"dataset.json of {folder.name} is not valid JSON ({error}); repair it") from error
    if not isinstance(raw, dict):
        raise InputError(f"dataset.json of {folder.name} holds {type(raw).__name__}; expected an object")
    return raw


def _labels(found: Any, name: str) -> dict[int, str]:
    """MSD writes `{"1": "liver"}`, nnU-Net `{"liver": 1}`; regions (lists) are not supported."""
    if not isinstance(found, dict) or not found:
        raise InputError(f"dataset.json of {name} has no `labels`; expected names and values")
    try:
        pairs = {int(k): str(v) for k, v in found.items()}
    except ValueError:
        try:
            pairs = {int(v): str(k) for k, v in found.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"`labels` of {name} holds regions or text; expected one number per structure") from error
    pairs.pop(0, None)
    if sorted(pairs) != list(range(1, len(pairs) + 1)):
        raise InputError(f"labels of {name} are {sorted(pairs)}; expected consecutive numbers from 1 (0 is background)")
    return {value: "_".join(pairs[value].lower().split()) for value in sorted(pairs)}


def _listed(folder: Path, training: Any) -> list[TrainingPair]:
    if not isinstance(training, list):
        return []
    out = []
    for entry in training:
        if isinstance(entry, dict) and "image" in entry and "label" in entry:
            image, labels = folder / str(entry["image"]), folder / str(entry["label"])
            out.append(TrainingPair(_stem(image), image, labels))
    return sorted(out, key=lambda pair: pair.name)


def _paired(folder: Path, ending: str) -> list[TrainingPair]:
    out = []
    for labels in sorted((folder / "labelsTr").glob(f"*{ending}")):
        name = labels.name[: -len(ending)]
        image = folder / "imagesTr" / f"{name}_0000{ending}"
        if not image.is_file():
            image = folder / "imagesTr" / labels.name
        if not name.startswith("."):
            out.append(TrainingPair(name, image, labels))
    return out


def _stem(path: Path) -> str:
    return path.name.split(".nii")[0].split(".nrrd")[0].split(".mha")[0].removesuffix("_0000")
