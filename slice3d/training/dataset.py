"""Data sets as people have them: Medical Segmentation Decathlon and nnU-Net raw folders with their `dataset.json`."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slice3d.anatomy import label_name
from slice3d.errors import InputError
from slice3d.training.structures import PARTIAL

log = logging.getLogger(__name__)

_MR = ("MR", "MRI", "T1", "T1W", "T1C", "T1CE", "T1GD", "T1N", "T2", "T2W", "T2F", "FLAIR", "T2FLAIR", "PD", "PDW", "ADC",
       "DWI", "SWI")  # fmt: skip
_MODALITIES = {"CT": "CT", **dict.fromkeys(_MR, "MR"), "PET": "PT", "PT": "PT"}
_FIRST_PARTIAL = min(PARTIAL)


@dataclass(frozen=True)
class TrainingPair:
    """One training case: its name, image file and label file."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says. labels: value → name without background. modality: DICOM modality or "" if unknown.

    ignore: value of voxels of which nothing is known, in nnU-Net's sense.
    """

    name: str
    modality: str
    labels: Mapping[int, str]
    pairs: tuple[TrainingPair, ...]
    licence: str
    ignore: int | None = None


def read_dataset(folder: Path) -> Dataset:
    """The data set in `folder`, MSD or nnU-Net raw layout (v1 or v2), or imagesTr/labelsTr without a `dataset.json`'s list.

    Images that are in imagesTr and in no pair are counted in a warning of the log. Raises `InputError` when
    `dataset.json` is missing or damaged, when there is more than one image channel, when the labels are not consecutive
    from 0, or when no pair of image and label file exists.
    """
    raw = _json(folder)
    channel = _channel(raw.get("channel_names") or raw.get("modality") or "", folder.name)
    labels, ignore = _labels(raw.get("labels"), folder.name)
    ending = str(raw.get("file_ending", ".nii.gz"))
    listed = _listed(folder, raw.get("training"))
    pairs = listed or _paired(folder, ending)
    if not pairs:
        raise InputError(f"no training cases in {folder.name}; expected imagesTr/ and labelsTr/ with matching names")
    missing = next((p for p in pairs if not p.image.is_file() or not p.labels.is_file()), None)
    if missing is not None:
        raise InputError(f"case {missing.name} of {folder.name} lacks its image or label file; complete the folder")
    twice = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
    if twice:
        raise InputError(
            f"{folder.name} has two cases {twice[0]}; expected a name for each; rename one or list it once"
        )
    _warn_of_others(folder, ending, pairs, "listed in dataset.json" if listed else "labelled in labelsTr")
    return Dataset(
        name=str(raw.get("name") or folder.name),
        modality=_MODALITIES.get(re.sub("[^A-Z0-9]", "", channel.upper()), ""),
        labels=labels,
        pairs=tuple(pairs),
        licence=str(raw.get("licence") or raw.get("license") or "unknown"),
        ignore=ignore,
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


def _channel(found: Any, name: str) -> str:
    """What the one image channel is called, "" where nothing is said."""
    channels = list(
        map(str, found.values() if isinstance(found, dict) else found if isinstance(found, list) else [found])
    )
    if len(channels) > 1:
        raise InputError(
            f"{name} has {len(channels)} image channels ({', '.join(channels)}); expected one; keep one of them in "
            "dataset.json and in imagesTr, or train with nnU-Net itself"
        )
    return "".join(channels)


def _labels(found: Any, name: str) -> tuple[dict[int, str], int | None]:
    """Structures, and the value of nnU-Net's ignore label. MSD writes `{"1": "liver"}`, nnU-Net `{"liver": 1}`."""
    if not isinstance(found, dict) or not found:
        raise InputError(
            f'dataset.json of {name} has no `labels`; add names and values, e.g. {{"background": 0, "liver": 1}}'
        )
    try:
        pairs = [(int(k), str(v)) for k, v in found.items()]
    except ValueError:
        try:
            pairs = [(int(v), str(k)) for k, v in found.items()]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"`labels` of {name} holds regions or text; expected one number per structure; give each part a number "
                "of its own and unite the parts afterwards, or train with nnU-Net itself"
            ) from error
    names = {value: label_name(text) for value, text in sorted(pairs) if value}
    ignore = next((value for value, text in names.items() if text == "ignore"), None)
    if ignore is not None and ignore != max(names):
        raise InputError(
            f"the ignore label of {name} is {ignore}, the highest is {max(names)}; expected ignore to be the highest, as "
            "nnU-Net does; renumber it in dataset.json and in the label files"
        )
    names = {value: text for value, text in names.items() if value != ignore}
    if len({value for value, _ in pairs}) < len(pairs) or [*names] != list(range(1, len(names) + 1)):
        raise InputError(
            f"labels of {name} are {sorted(v for v, _ in pairs if v)}; expected consecutive numbers from 1 (0 is "
            "background), each once; renumber them in dataset.json and in the label files"
        )
    said = dict(pairs)
    for value, text in names.items():
        first = next(v for v, t in names.items() if t == text)
        if first != value:
            raise InputError(
                f"`labels` of {name} names both {said[first]!r} and {said[value]!r}, which are one structure here, {text}; "
                "rename one of them"
            )
    _check_count(names, name)
    return names, ignore


def _check_count(names: Mapping[int, str], name: str) -> None:
    """What the loss can tell apart: see `structures.PARTIAL`."""
    if not names:
        raise InputError(f"`labels` of {name} names no structure; expected at least one beside background and ignore")
    if max(names) >= _FIRST_PARTIAL:
        raise InputError(f"{name} has {len(names)} structures; expected at most {_FIRST_PARTIAL - 1}; merge some")


def _listed(folder: Path, training: Any) -> list[TrainingPair]:
    if not isinstance(training, list):
        return []
    out = []
    for entry in training:
        if isinstance(entry, dict) and "image" in entry and "label" in entry:
            image, labels = folder / str(entry["image"]), folder / str(entry["label"])
            if not image.is_file():  # nnU-Net v1 leaves the number of the channel out
                image = _first_channel(image)
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


def _warn_of_others(folder: Path, ending: str, pairs: Sequence[TrainingPair], expected: str) -> None:
    """Say how many images no case is made of: a forgotten label file looks like a smaller data set."""
    taken = {pair.image.name for pair in pairs}
    others = sorted(p.name for p in (folder / "imagesTr").glob(f"[!.]*{ending}") if p.name not in taken)
    if others:
        log.warning("%d image(s) in imagesTr of %s are not %s, e.g. %s; they are left out",
                    len(others), folder.name, expected, others[0])  # fmt: skip


def _first_channel(path: Path) -> Path:
    stem = _stem(path)
    return path.with_name(f"{stem}_0000{path.name[len(stem) :]}")


def _stem(path: Path) -> str:
    return path.name.split(".nii")[0].split(".nrrd")[0].split(".mha")[0].removesuffix("_0000")
