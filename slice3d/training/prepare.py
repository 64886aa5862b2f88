"""From image files to cached training cases: one orientation, one spacing, memory-mapped arrays."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.progress import Progress, silent
from slice3d.training import cases
from slice3d.training.cases import Case
from slice3d.training.dataset import Dataset, TrainingPair
from slice3d.training.plan import Fingerprint, Plan
from slice3d.training.settings import TrainSettings
from slice3d.training.structures import IGNORE

log = logging.getLogger(__name__)

_SAMPLE = 20_000
_SOURCE = ".source"
_LEAST_HU = 50.0  # noise and fat beside muscle alone span more
_ROUNDING = 1e-3  # of whole numbers that were stored scaled


def read_pair(
    pair: TrainingPair, *, ignore: int | None = None
) -> tuple[cases.Array, cases.Array, tuple[float, float, float]]:
    """(image, labels, spacing in mm) of one case, axes growing to R, A, S; labels of value `ignore` become `IGNORE`.

    Raises `InputError` when grids differ, for several volumes in a file, a single slice or labels that are no numbers.
    """
    image, grid = _read(pair.image, pair.name, "image")
    labels, label_grid = _read(pair.labels, pair.name, "labels")
    if labels.shape != image.shape:
        raise InputError(f"{pair.name}: image {image.shape} and labels {labels.shape} differ; expected one grid")
    if not grid.matches(label_grid, tolerance_mm=0.5 * min(grid.spacing_mm)):
        raise InputError(f"{pair.name}: image and labels lie in different places; expected one grid")
    if min(image.shape) < 2:
        raise InputError(
            f"{pair.name} has {' × '.join(map(str, image.shape))} voxels; expected at least 2 along each axis; put all "
            "slices of a series into one file, or leave the case out"
        )
    return image, _classes(labels, pair.name, ignore), grid.spacing_mm


def _read(path: Path, name: str, what: str) -> tuple[cases.Array, Grid]:
    """As `cases.read`, but what a file holds beside one volume of numbers is refused, not passed over."""
    from slice3d.io import load
    from slice3d.resample import reorient

    if not path.exists():
        raise InputError(f"{name}: no {path.name}; expected the {what} of this case; complete the data set")
    volume = load(path)
    found = {finding.code: finding for finding in volume.findings}
    if "several-volumes" in found:
        count = found["several-volumes"].details.get("volumes", "several")
        raise InputError(f"{name}: the {what} file holds {count} volumes; expected one; keep the one to train on")
    if what == "labels" and "not-finite" in found:
        raise InputError(f"{name}: the labels hold NaN or infinity; expected whole numbers; set them to 0")
    volume = reorient(volume)
    return np.asarray(volume.data), volume.grid


def _classes(labels: cases.Array, name: str, ignore: int | None) -> cases.Array:
    whole = np.rint(labels)
    odd = labels[np.abs(labels - whole) > _ROUNDING] if labels.dtype.kind == "f" else np.empty(0)
    if len(odd):
        raise InputError(
            f"{name}: the labels hold {float(odd[0]):.4g}; expected whole numbers; is it an image or a "
            "probability? store one number per structure, without interpolation"
        )
    out = whole.astype(np.int32)
    if ignore is not None and ignore != IGNORE:
        if (out == IGNORE).any():
            raise InputError(
                f"{name}: the labels hold {IGNORE}, which dataset.json does not name; set them to {ignore} (ignore)"
            )
        out[out == ignore] = IGNORE
    return out


def fingerprints(dataset: Dataset, *, progress: Progress = silent) -> list[Fingerprint]:
    """Shape, spacing and labelled intensities of every case. Of CT that may not be in HU the log has a warning."""
    from slice3d.inference.checks import not_hounsfield

    out = []
    doubtful: dict[str, str] = {}
    for number, pair in enumerate(dataset.pairs):
        image, labels, spacing = read_pair(pair, ignore=dataset.ignore)
        # what is cached as HU is checked again where the plan is known
        if dataset.modality == "CT" and (reason := not_hounsfield(image)):
            doubtful[pair.name] = reason
        known = labels if dataset.ignore is None else np.where(labels == IGNORE, 0, labels)
        inside = image[known > 0]
        step = max(1, len(inside) // _SAMPLE)
        values = tuple(int(v) for v in np.unique(known))
        out.append(Fingerprint((image.shape[0], image.shape[1], image.shape[2]), spacing, inside[::step], values))
        progress("reading data", (number + 1) / len(dataset.pairs))
    if doubtful:
        name, reason = next(iter(doubtful.items()))
        log.warning("%d CT image(s) may not be in Hounsfield units, e.g. %s: %s; models of a CT data set expect them",
                    len(doubtful), name, reason)  # fmt: skip
    return out


def _check_hounsfield(image: cases.Array, name: str) -> None:
    """Images that are cached as whole numbers would be all but empty where theirs are fractions."""
    low, high = float(image.min()), float(image.max())
    if high - low < _LEAST_HU:
        raise InputError(
            f"{name}: values from {low:.4g} to {high:.4g} are no Hounsfield units (air −1000, water 0), expected for CT and "
            "'clip_zscore'; store HU, or name the channel by what it is, e.g. 'scaled CT', so that each image is normalised "
            "by its own values"
        )


def prepare(dataset: Dataset, plan: Plan | TrainSettings, cache: Path, *, progress: Progress = silent) -> Path:
    """Write every case at the plan's spacing below `cache` and return the folder.

    Cases already there are kept. Raises `InputError` where they were made of other files or for another plan, or belong to
    another data set: training draws from the whole folder.
    """
    strange = {path.name[: -len(".json")] for path in cache.glob("*.json")} - {pair.name for pair in dataset.pairs}
    if strange:
        raise InputError(
            f"{cache} holds case {min(strange)}, which {dataset.name} does not; remove that folder or choose another --out"
        )
    for number, pair in enumerate(dataset.pairs):
        source = _source(pair, plan, dataset.ignore)
        if (cache / f"{pair.name}.json").exists():
            _check_kept(cache, pair.name, source)
        else:
            image, labels, spacing = read_pair(pair, ignore=dataset.ignore)
            case = _prepared(pair.name, image, labels, spacing, plan)
            cache.mkdir(parents=True, exist_ok=True)
            # before the case: what is complete has it
            (cache / f"{pair.name}{_SOURCE}").write_text(json.dumps(source), encoding="utf-8")
            cases.save(case, cache)
        progress("preparing data", (number + 1) / len(dataset.pairs))
    return cache


def _source(pair: TrainingPair, plan: Plan | TrainSettings, ignore: int | None) -> dict[str, str]:
    """What a cached case depends on, in words."""
    return {
        "image file": _state(pair.image),
        "label file": _state(pair.labels),
        "image sha256": _digest(pair.image),
        "label sha256": _digest(pair.labels),
        "spacing": _spacing(plan.spacing_mm),
        "intensity": plan.intensity.scheme,
        "ignore label": str(ignore),
    }


def _state(path: Path) -> str:
    if not path.exists():
        return "missing"
    found = path.stat()
    when = datetime.fromtimestamp(found.st_mtime, tz=timezone.utc).isoformat(sep=" ", timespec="milliseconds")
    return f"{found.st_size} bytes of {when}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def _spacing(spacing_mm: Sequence[float]) -> str:
    return f"{' × '.join(f'{s:.3f}' for s in spacing_mm)} mm"


def _check_kept(cache: Path, name: str, now: Mapping[str, str]) -> None:
    """Refuse a cached case that another file or plan would not give; of older caches the spacing alone is known."""
    path = cache / f"{name}{_SOURCE}"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
    else:
        before = {"spacing": _spacing(json.loads((cache / f"{name}.json").read_text())["spacing_mm"])}
    for what, value in now.items():
        if what.endswith("file") and before.get(what.replace("file", "sha256")) == now[what.replace("file", "sha256")]:
            continue  # a copy of the same
        if before.get(what, value) != value:
            raise InputError(
                f"case {name} in {cache} was prepared with {what} {before[what]}, now it is {value}; remove that folder "
                "or choose another --out"
            )


def _prepared(
    name: str, image: cases.Array, labels: cases.Array, spacing: tuple[float, ...], plan: Plan | TrainSettings
) -> Case:
    values = cases.respaced(image, spacing, plan.spacing_mm)
    classes = cases.respaced_labels(labels, spacing, plan.spacing_mm)
    if plan.intensity.scheme == "zscore":
        deviation = max(float(values.std()), 1e-8)
        return Case(name, ((values - values.mean()) / deviation).astype(np.float32), classes, plan.spacing_mm)
    _check_hounsfield(image, name)
    return Case(name, np.clip(np.rint(values), -32768, 32767).astype(np.int16), classes, plan.spacing_mm)
