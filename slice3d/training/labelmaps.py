"""Label maps as a source of training images: a folder of them made ready, samples drawn while training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.anatomy import label_name
from slice3d.errors import InputError
from slice3d.progress import Progress, silent
from slice3d.training import cases
from slice3d.training.cases import Case
from slice3d.training.generator import GeneratorSettings, LabelMap, generate
from slice3d.training.settings import TrainSettings

Array = NDArray[Any]
Families = dict[int, tuple[int, int, float]]
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class LabelFolder:
    """What `dataset.json` says of a folder of label maps. values: label value → structure name."""

    name: str
    files: tuple[Path, ...]
    values: Mapping[int, str]
    modality: str = ""
    licence: str = "unknown"

    @property
    def labels(self) -> dict[int, str]:
        """Class → name, 1, 2, …; values of the same name are one class."""
        names = list(dict.fromkeys(self.values[v] for v in sorted(self.values)))
        return {n + 1: name for n, name in enumerate(names)}


def read_label_folder(folder: Path) -> LabelFolder:
    """The label maps of a folder, or of its `labelsTr`, and what their values are called.

    Names come from `dataset.json` (`"labels": {"hippocampus_left": 17, …}` or the other way round, any numbers); values
    that it leaves out are painted but not found. Without the file every value is a structure, `label_<value>`. Raises
    `InputError` when there is no label map or the names cannot be used.
    """
    place = folder / "labelsTr" if (folder / "labelsTr").is_dir() else folder
    files = sorted(p for p in place.glob("*") if p.name.endswith(_ENDINGS) and not p.name.startswith("."))
    if not files:
        raise InputError(f"no label maps in {folder.name}; expected {', '.join(_ENDINGS)} there or in its labelsTr")
    path = folder / "dataset.json"
    if not path.is_file():
        values = {int(v) for file in files for v in np.unique(cases.read(file)[0]) if int(v) > 0}
        return LabelFolder(folder.name, tuple(files), {v: f"label_{v}" for v in sorted(values)})
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        named = dict(raw["labels"])
        values_of = {int(k): str(v) for k, v in named.items()} if all(str(k).isdigit() for k in named) else None
        values_of = values_of or {int(v): str(k) for k, v in named.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"dataset.json of {folder.name} cannot be used ({error}); expected `labels` with names"
        ) from error
    values_of.pop(0, None)
    if not values_of or min(values_of) < 0:
        raise InputError(f"dataset.json of {folder.name} names no label; expected positive values with names")
    return LabelFolder(
        str(raw.get("name") or folder.name), tuple(files),
        {value: label_name(name) for value, name in values_of.items()},
        str(raw.get("modality") or "") if isinstance(raw.get("modality"), str) else "",
        str(raw.get("licence") or raw.get("license") or "unknown"),
    )  # fmt: skip


def read_maps(folder: LabelFolder, *, progress: Progress = silent) -> list[LabelMap]:
    """All maps of a folder, ready for painting. Left and right of a pair look the same."""
    numbers = {name: value for value, name in folder.labels.items()}
    classes = {value: numbers[name] for value, name in folder.values.items()}
    by_name = {name: value for value, name in folder.values.items()}

    def same(value: int) -> int:
        name = folder.values.get(value, "")
        return by_name.get(name.removesuffix("_right") + "_left", value) if name.endswith("_right") else value

    out = []
    for done, file in enumerate(folder.files):
        labels, grid = cases.read(file)
        name = file.name.split(".nii")[0].split(".nrrd")[0].split(".mh")[0]
        out.append(
            label_map(name, np.rint(labels).astype(np.int32), grid.spacing_mm, classes, folder.labels, same=same)
        )
        progress("reading label maps", (done + 1) / len(folder.files))
    return out


def label_map(
    name: str, labels: Array, spacing_mm: tuple[float, float, float], classes: Mapping[int, int],
    names: Mapping[int, str], *, same: Callable[[int], int] = lambda value: value,
    families: Callable[[dict[int, int]], Families] = lambda tissues: {}, orders: tuple[tuple[int, ...], ...] = (),
) -> LabelMap:  # fmt: skip
    """Make a map ready. labels: (i, j, k) integers, axes growing to R, A, S.

    classes: label value → class to be found (others are painted, not found). names: class → structure name; names that
    end in `_left` and `_right` change places in mirror images. same: the value whose tissue a value shares. families:
    gives `LabelMap.families` from value → tissue number. orders: as in `LabelMap`. Raises `InputError` for more than 255 label values.
    """
    values, index = np.unique(labels, return_inverse=True)
    if len(values) > 255:
        raise InputError(f"label map {name} holds {len(values)} values; expected at most 255: is it an image?")
    index = index.reshape(labels.shape).astype(np.uint8)
    if values[0] != 0:  # number 0 is what lies around the map
        values, index = np.concatenate([[0], values]), index + np.uint8(1)
    tissues: dict[int, int] = {0: 0}
    for value in values:
        tissues.setdefault(same(int(value)), len(tissues))
    truth = np.array([classes.get(int(v), 0) for v in values], np.uint8)
    return LabelMap(
        name, index, truth, mirror_table(names)[truth], np.array([tissues[same(int(v))] for v in values]), spacing_mm,
        families({value: tissue for value, tissue in tissues.items() if value}), orders,
    )  # fmt: skip


def mirror_table(names: Mapping[int, str]) -> Array:
    """Class → class in the mirror image."""
    by_name = {name: value for value, name in names.items()}
    table = np.arange(max(names, default=0) + 1, dtype=np.uint8)
    for value, name in names.items():
        for side, other in (("_left", "_right"), ("_right", "_left")):
            if name.endswith(side):
                table[value] = by_name.get(name.removesuffix(side) + other, value)
    return table


class GeneratedCrops(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Map-style: item n is (image (1, …) float32, classes (…) int64) of sample n, painted when it is asked for."""

    def __init__(self, maps: Sequence[LabelMap], settings: TrainSettings, how: GeneratorSettings) -> None:
        if not maps:
            raise InputError("no label maps to paint from; expected at least one")
        self.maps = list(maps)
        self.settings = settings
        self.how = how

    def __len__(self) -> int:
        return self.settings.steps * self.settings.batch_size * 4096

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        seed = [self.settings.seed, number]
        source = self.maps[int(np.random.default_rng([*seed, 1]).integers(len(self.maps)))]
        image, classes = generate(
            source, seed=[*seed, 2], shape=self.settings.patch_size, spacing_mm=self.settings.spacing_mm,
            settings=self.how,
        )  # fmt: skip
        return torch.from_numpy(image)[None], torch.from_numpy(classes.astype(np.int64))


def whole_case(source: LabelMap, settings: TrainSettings, how: GeneratorSettings, *, seed: int) -> Case:
    """A sample of the whole map, for validation by whole-volume inference."""
    size = [n * s / t for n, s, t in zip(source.index.shape, source.spacing_mm, settings.spacing_mm, strict=True)]
    a, b, c = (max(4, round(n)) for n in size)
    image, classes = generate(
        source, seed=[settings.seed, seed, 3], shape=(a, b, c), spacing_mm=settings.spacing_mm, settings=how,
        around=tuple((n - 1) / 2 for n in source.index.shape),
    )  # fmt: skip
    return Case(source.name, image, classes, settings.spacing_mm)
