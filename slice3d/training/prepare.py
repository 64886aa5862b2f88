"""From image files to cached training cases: one orientation, one spacing, memory-mapped arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slice3d.errors import InputError
from slice3d.progress import Progress, silent
from slice3d.training import cases
from slice3d.training.cases import Case
from slice3d.training.dataset import Dataset, TrainingPair
from slice3d.training.plan import Fingerprint, Plan
from slice3d.training.settings import TrainSettings

_SAMPLE = 20_000


def read_pair(pair: TrainingPair) -> tuple[cases.Array, cases.Array, tuple[float, float, float]]:
    """(image, labels, spacing in mm) of one case, axes growing to R, A, S. Raises `InputError` when grids differ."""
    image, grid = cases.read(pair.image)
    labels, label_grid = cases.read(pair.labels)
    if labels.shape != image.shape:
        raise InputError(f"{pair.name}: image {image.shape} and labels {labels.shape} differ; expected one grid")
    if not grid.matches(label_grid, tolerance_mm=0.5 * min(grid.spacing_mm)):
        raise InputError(f"{pair.name}: image and labels lie in different places; expected one grid")
    return image, np.rint(labels).astype(np.int32), grid.spacing_mm


def fingerprints(dataset: Dataset, *, progress: Progress = silent) -> list[Fingerprint]:
    """Shape, spacing and labelled intensities of every case."""
    out = []
    for number, pair in enumerate(dataset.pairs):
        image, labels, spacing = read_pair(pair)
        inside = image[labels > 0]
        step = max(1, len(inside) // _SAMPLE)
        values = tuple(int(v) for v in np.unique(labels))
        out.append(Fingerprint((image.shape[0], image.shape[1], image.shape[2]), spacing, inside[::step], values))
        progress("reading data", (number + 1) / len(dataset.pairs))
    return out


def prepare(dataset: Dataset, plan: Plan | TrainSettings, cache: Path, *, progress: Progress = silent) -> Path:
    """Write every case at the plan's spacing below `cache` (cases already there are kept). Returns the folder."""
    for number, pair in enumerate(dataset.pairs):
        if not (cache / f"{pair.name}.json").exists():
            image, labels, spacing = read_pair(pair)
            cases.save(_prepared(pair.name, image, labels, spacing, plan), cache)
        progress("preparing data", (number + 1) / len(dataset.pairs))
    return cache


def _prepared(
    name: str, image: cases.Array, labels: cases.Array, spacing: tuple[float, ...], plan: Plan | TrainSettings
) -> Case:
    values = cases.respaced(image, spacing, plan.spacing_mm)
    classes = cases.respaced_labels(labels, spacing, plan.spacing_mm)
    if plan.intensity.scheme == "zscore":
        deviation = max(float(values.std()), 1e-8)
        return Case(name, ((values - values.mean()) / deviation).astype(np.float32), classes, plan.spacing_mm)
    return Case(name, np.rint(values).astype(np.int16), classes, plan.spacing_mm)
