"""Cross-validation whose networks all ship: every case is scored by the one network that never saw it.

The package that comes out averages the networks of all folds; `InferenceSettings(folds=(n,))` runs one of them, so the
scores in its card can be computed again from the shipped weights, case by case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slice3d.errors import InputError, Slice3DError
from slice3d.inference import Engine, InferenceSettings
from slice3d.inference.reliability import calibrate
from slice3d.io import load
from slice3d.metrics import dice, hausdorff_mm, lesion_scores, surface_distances, volume_ml
from slice3d.models.package import ModelPackage
from slice3d.progress import Progress, silent
from slice3d.resample import apply_moves, axis_moves, moved_grid
from slice3d.training.cases import load_case
from slice3d.training.dataset import TrainingPair
from slice3d.training.prepare import read_pair
from slice3d.training.settings import TrainSettings
from slice3d.training.structures import IGNORE
from slice3d.volume import Segmentation

_FEWEST_CASES = 10  # for a calibration of a structure by itself
_LEAST_OFF = 0.25  # share of the mean volume by which any range reaches up and down

Scores = dict[str, dict[str, dict[str, float]]]
"""case → structure → measure → value."""


def make_folds(names: Sequence[str], count: int, *, seed: int = 0) -> tuple[tuple[str, ...], ...]:
    """The names dealt into `count` groups whose sizes differ by one at most; the deal depends on the seed alone.

    Raises `InputError` when a fold would be empty or hold every case.
    """
    if not 2 <= count <= len(names):
        raise InputError(f"{count} folds of {len(names)} cases; expected at least 2 folds and a case in each")
    order = np.random.default_rng(seed).permutation(len(names))
    ordered = sorted(names)
    return tuple(tuple(sorted(ordered[n] for n in order[fold::count])) for fold in range(count))


def train_folds(
    cache: Path, folds: Sequence[Sequence[str]], stages: Sequence[TrainSettings], out: Path, *,
    shared: TrainSettings | None = None, watched: int = 12, report: Callable[[str], None] = lambda line: None,
    processes: Any = None, progress: Progress = silent,
) -> list[Path]:  # fmt: skip
    """Train one network per fold without its cases and return their checkpoints.

    cache: prepared cases. stages: settings, each beginning with the averaged weights of the one before. shared:
    settings of a first stage that several folds share to save time: half of the folds begin from one network that saw
    no case of any of them, the other half likewise. watched: held-out cases that the learning curve follows. What is
    finished is kept and what was interrupted goes on where it was.
    """
    from slice3d.training.crops import Pool
    from slice3d.training.loop import fit, warm_start
    from slice3d.training.validate import WholeVolumes

    def run(name: str, held: Sequence[str], how: TrainSettings) -> Path:
        report(f"{name}: {how.steps} steps, {len(held)} cases held out")
        follow = WholeVolumes([load_case(cache, case) for case in held[:watched]], how)
        return fit(Pool({cache: 1.0}, without=held), how, out / name, validate=follow, processes=processes,
                   progress=progress)  # fmt: skip

    checkpoints = []
    half = len(folds) // 2
    for first, last in ((0, half), (half, len(folds))) if shared else ((0, len(folds)),):
        begin = None
        if shared:
            begin = run(f"shared-{first}", [case for held in folds[first:last] for case in held], shared)
        for number in range(first, last):
            before = begin
            for stage, how in enumerate(stages):
                name = f"fold-{number}" + (f"-stage-{stage}" if stage else "")
                if before is not None:
                    warm_start(before, out / name)
                before = run(name, folds[number], how)
            checkpoints += [before] if before is not None else []
    return checkpoints


def score_folds(
    package: ModelPackage, pairs: Sequence[TrainingPair], folds: Sequence[Sequence[str]], *,
    settings: InferenceSettings | None = None, lesions: bool = False, ignore: int | None = None,
    refused: dict[str, str] | None = None, progress: Progress = silent,
) -> Scores:  # fmt: skip
    """Every case segmented from its file, as a user would, by the fold that was not trained on it.

    settings: for the runs (`folds` is replaced). lesions: also count lesions found, missed and invented. ignore: label
    value of voxels that count for nothing. refused: takes the reason for each case that cannot be segmented or scored;
    without it the first one raises.
    """
    from dataclasses import replace

    by_name = {pair.name: pair for pair in pairs}
    scores: Scores = {}
    done = 0
    for number, held in enumerate(folds):
        engine = Engine(package, replace(settings or InferenceSettings(), folds=(number,)))
        for name in held:
            try:
                result = _in_ras(engine.predict(load(by_name[name].image)))
                # as training reads them: image and label file may differ in how they store their axes
                _, truth, _ = read_pair(by_name[name], ignore=ignore)
            except Slice3DError as error:
                if refused is None:
                    raise
                refused[name] = str(error)
            else:
                scores[name] = score(result, truth, package, lesions=lesions)
            done += 1
            progress("scoring", done / sum(map(len, folds)))
    return scores


def _in_ras(result: Segmentation) -> Segmentation:
    axes, flips = axis_moves(result.grid, "RAS")
    labels, grid = apply_moves(result.labels, axes, flips), moved_grid(result.grid, axes, flips)
    return Segmentation(labels, grid, result.names, groups=result.groups, metadata=result.metadata)


def score(
    result: Segmentation, truth: Any, package: ModelPackage, *, lesions: bool = False
) -> dict[str, dict[str, float]]:
    """Overlap, distance and volume of every structure that the truth holds, and the model's agreement with itself.

    truth: (i, j, k) label values of the package on the result's grid, and `IGNORE` where nothing is known. Of a
    structure that the truth does not hold, how much was drawn all the same, `invented_ml`.
    """
    out: dict[str, dict[str, float]] = {}
    measured = result.metadata.get("reliability", {})
    for name in package.structures:
        reference = np.isin(truth, package.values(name))
        mask = result.mask(name) & (truth != IGNORE)
        if not reference.any():
            if mask.any():
                out[name] = {"invented_ml": _rounded(volume_ml(mask, result.grid))}
            continue
        row = {
            "dice": round(dice(mask, reference), 4),
            "volume_ml": _rounded(volume_ml(mask, result.grid)),
            "reference_ml": _rounded(volume_ml(reference, result.grid)),
        }
        if mask.any():  # nothing is at no distance from anything
            away = hausdorff_mm(surface_distances(mask, reference, result.grid), percentile=95)
            row["hd95_mm"] = round(away, 2)
        own = measured.get(name, {}).get("soft_dice")
        if own is not None:
            row["soft_dice"] = own
        if lesions:
            found = lesion_scores(mask, reference, min_iou=0.1)
            row |= {"found": found.detected, "missed": found.missed, "invented": found.invented}
        out[name] = row
    return out


def _rounded(volume: float) -> float:
    """To 0.001 ml, and of a mouse's organ not to nothing."""
    return min(round(volume, 3), float(f"{volume:.3g}"), key=lambda near: abs(near - volume))


def reliability(scores: Mapping[str, Mapping[str, Mapping[str, float]]], *, per_structure: bool) -> dict[str, Any]:
    """`reliability` of `model.json` from held-out scores. per_structure: a line of its own for what ten cases or more hold.

    Of each structure it says between which values the measure was on these cases.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for table in scores.values():
        for name, row in table.items():
            if "soft_dice" in row:
                pairs.setdefault(name, []).append((row["soft_dice"], row["dice"]))
    every = [pair for found in pairs.values() for pair in found]
    if not every:
        return {}
    many = {name: found for name, found in pairs.items() if len(found) >= _FEWEST_CASES}
    lines = {name: calibrate(found) for name, found in many.items()} if per_structure else {}
    seen = {name: [min(own for own, _ in found), max(own for own, _ in found)] for name, found in pairs.items()}
    return {"measure": "soft_dice", "default": calibrate(every), "structures": lines, "seen": seen}


def volume_ranges(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, list[float]]:
    """structure → what four standard deviations around the mean volume of the reference leave plausible, in ml.

    At least a quarter of the mean: cases that are much alike say little of others.
    """
    volumes: dict[str, list[float]] = {}
    for table in scores.values():
        for name, row in table.items():
            if "reference_ml" in row:
                volumes.setdefault(name, []).append(row["reference_ml"])
    means = {name: float(np.mean(v)) for name, v in volumes.items()}
    off = {name: max(4 * float(np.std(v)), _LEAST_OFF * means[name]) for name, v in volumes.items()}
    return {
        name: [float(f"{max(0.0, mean - off[name]):.4g}"), float(f"{mean + off[name]:.4g}")]
        for name, mean in means.items()
    }


def summary(scores: Mapping[str, Mapping[str, Mapping[str, float]]], measure: str = "dice") -> dict[str, Any]:
    """structure → mean, sd, median, min, max of a measure and the number of cases."""
    values: dict[str, list[float]] = {}
    for table in scores.values():
        for name, row in table.items():
            if measure in row:
                values.setdefault(name, []).append(row[measure])
    return {
        name: {
            "mean": round(float(np.mean(v)), 4), "sd": round(float(np.std(v)), 4), "median": round(float(np.median(v)), 4),
            "min": round(float(np.min(v)), 4), "max": round(float(np.max(v)), 4), "cases": len(v),
        }
        for name, v in values.items()
    }  # fmt: skip


def last_validation(folder: Path, labels: Mapping[int, str]) -> Scores:
    """Dice of the cases that a finished fold's learning curve follows, by the weights that it ended with."""
    from slice3d.training.curves import read_history

    rows = [row for row in read_history(folder) if any("/" in key for key in row)]
    facts: Scores = {}
    for key, value in (rows[-1] if rows else {}).items():
        if "/" in key:
            case, name = key.split("/", 1)
            facts.setdefault(case, {})[name] = {"dice": round(float(value), 4)}
    for case, table in facts.items():
        found = json.loads((folder.parent / "cases" / f"{case}.json").read_text())
        voxel = float(np.prod(found["spacing_mm"])) / 1000
        for value, name in labels.items():
            if name in table:
                table[name]["reference_ml"] = round(found["voxels"].get(str(value), 0) * voxel, 3)
    return facts


def hd95(row: Mapping[str, float]) -> str:
    """95 % Hausdorff distance in mm for a table; of what was not found there is none."""
    return f"{row['hd95_mm']:.1f}" if "hd95_mm" in row else "–"


def case_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]], folds: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, one row per case with the fold that held it out: Dice of each structure."""
    names = list(dict.fromkeys(name for table in scores.values() for name in table))
    fold_of = {case: number for number, held in enumerate(folds) for case in held}
    rows = [
        f"| {case} | {fold_of[case]} | "
        + " | ".join(f"{table[n]['dice']:.3f}" if "dice" in table.get(n, {}) else "–" for n in names)
        + " |"
        for case, table in sorted(scores.items())
    ]
    return ["| case | held out of fold | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names), *rows]
