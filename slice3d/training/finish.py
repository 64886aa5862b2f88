"""The end of a training run: scores of the held-out cases, learning curves, the package and its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slice3d.progress import Progress, silent
from slice3d.training.dataset import Dataset
from slice3d.training.settings import TrainSettings

CACHE = "cache"
_FEWEST_CASES = 3  # held out: from fewer no expected Dice, from two points any line follows
_FEWEST_VOLUMES = 10  # of a structure: from fewer the spread of its volumes is a guess
_FROM_FILES = (
    "Each held-out case was segmented from its file by this package, as in use; Dice and 95 % Hausdorff distance on the "
    "file's own grid."
)
_WHILE_TRAINING = (
    "Dice on the network's own voxels, as it was followed while training; the cases were not segmented from files, so results "
    "carry no expected Dice."
)
_UNTESTED = "held out no case with one"

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""case → structure → measure → value."""


@dataclass(frozen=True)
class Run:
    """A run that came to its end in the folder `out`: of which data set, by which settings, trained and tested on what.

    name, version: of the package. A data set without pairs was painted: there are no files to score.
    """

    name: str
    version: str
    dataset: Dataset
    settings: TrainSettings
    training: Sequence[str]
    held: Sequence[str]
    out: Path


def finish(
    run: Run, checkpoint: Path, *, report: Callable[[str], None] = lambda line: None, progress: Progress = silent
) -> Path:
    """Write `validation.json`, `learning-curves.png` and the package, and return the package's folder.

    The package is there before its cases are scored, with what is known from training: scoring may be interrupted, too.
    """
    from slice3d.inference import InferenceSettings
    from slice3d.models.package import read_package
    from slice3d.training import crossval
    from slice3d.training.curves import draw_curves

    draw_curves(run.out, run.out / "learning-curves.png")
    scores: Scores = _while_training(run)
    package = run.out / "package"
    pairs = [pair for pair in run.dataset.pairs if pair.name in run.held]
    if not pairs or not (package / "model.json").exists():  # the one of a finished run says more
        _export(run, checkpoint, scores, {}, _card(run, scores, [_WHILE_TRAINING]))
    if pairs:
        # what the data set holds was asked about before it was trained on
        how = InferenceSettings(allow_unexpected_input=True)
        refused: dict[str, str] = {}
        scores = crossval.score_folds(
            read_package(package), pairs, (run.held,), settings=how, ignore=run.dataset.ignore, refused=refused,
            progress=progress,
        )  # fmt: skip
        known = _reliability(run, scores)
        said = [_FROM_FILES, _calibration(known), *(f"{case} was not scored: {why}." for case, why in refused.items())]
        _export(run, checkpoint, scores, known, _card(run, scores, said))
        for case, why in refused.items():
            report(f"{case} was not scored: {why}")
    (run.out / "validation.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    for case, table in scores.items():
        report(f"{case}: " + ", ".join(_words(name, row) for name, row in table.items()))
    return package


def _words(name: str, row: Mapping[str, float]) -> str:
    return f"{name} {row['dice']:.3f}" if "dice" in row else f"{name} {row['invented_ml']:g} ml where there is none"


def _calibration(reliability: Mapping[str, Any]) -> str:
    line = reliability.get("default")
    if line is None:
        return f"Results carry no expected Dice: {_FEWEST_CASES} or more held-out cases are needed for one."
    return (
        f"The expected Dice of a result is calibrated on these {line['cases']:g} outlines, from which the line differs by "
        f"{line['residual']:.3f} (root mean square); other scanners and patients may differ more."
    )


def _while_training(run: Run) -> Scores:
    """The last validation, of the weights that the run ended with."""
    from slice3d.training.curves import read_history

    rows = [
        row for row in read_history(run.out) if row["step"] == run.settings.steps and any("/" in key for key in row)
    ]
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in (rows[-1] if rows else {}).items():
        if "/" in key:
            case, structure = key.split("/", 1)
            scores.setdefault(case, {})[structure] = {"dice": round(float(value), 4)}
    return scores


def _reliability(run: Run, scores: Scores) -> dict[str, Any]:
    """What `inference.reliability` reads: expected Dice from the held-out cases, plausible volumes from all of them."""
    from slice3d.training import crossval

    found: dict[str, Any] = {}
    scored = [{name for name, row in table.items() if "dice" in row} for table in scores.values()]
    if sum(map(bool, scored)) >= _FEWEST_CASES:
        found = crossval.reliability(scores, per_structure=True)
    untested = sorted(set(run.dataset.labels.values()).difference(*scored))
    if untested:
        found["untested"] = dict.fromkeys(untested, _UNTESTED)
    volumes = {} if run.dataset.ignore is not None else _volumes(run)  # where much is unknown, no organ is whole
    ranges = crossval.volume_ranges(volumes)
    known = crossval.summary(volumes, "reference_ml")
    ranges = {name: limits for name, limits in ranges.items() if known[name]["cases"] >= _FEWEST_VOLUMES}
    return {**found, **({"volume_ml": ranges} if ranges else {})}


def _volumes(run: Run) -> Scores:
    """Volumes in the label files of all cases, trained on or not, where there is any."""
    volumes: dict[str, dict[str, dict[str, float]]] = {}
    for case in (*run.training, *run.held):
        facts = json.loads((run.out / CACHE / f"{case}.json").read_text(encoding="utf-8"))
        voxel_ml = float(np.prod(facts["spacing_mm"])) / 1000
        volumes[case] = {
            name: {"reference_ml": facts["voxels"][str(value)] * voxel_ml}
            for value, name in run.dataset.labels.items()
            if facts["voxels"].get(str(value))
        }
    return volumes


def _export(run: Run, checkpoint: Path, scores: Scores, reliability: Mapping[str, Any], card: str) -> None:
    from slice3d.training.export import CardFacts, export

    facts = CardFacts(
        name=run.name,
        version=run.version,
        licence=run.dataset.licence,
        modality=(run.dataset.modality,) if run.dataset.modality else (),
        training={
            "dataset": run.dataset.name,
            "cases": list(run.training),
            "held_out": list(run.held),
            "settings": run.settings.to_dict(),
        },
        scores=scores,
        reliability=reliability,
        card=card,
    )
    export(checkpoint, run.settings, facts, run.out / "package")


def _card(run: Run, scores: Scores, said: Sequence[str]) -> str:
    from slice3d.training.crossval import hd95

    table = [
        f"| {_cell(case)} | {name} | {row['dice']:.3f} | {hd95(row)} |"
        if "dice" in row
        else f"| {_cell(case)} | {name} | drawn where there is none, {row['invented_ml']:g} ml | – |"
        for case, rows in scores.items()
        for name, row in rows.items()
    ]
    return "\n".join(
        [
            f"# {run.name}", "",
            f"Structures: {', '.join(run.dataset.labels.values())}. Trained on {len(run.training)} cases of "
            f"{run.dataset.name} (licence: {run.dataset.licence}). Not a medical device.", "",
            *(line for sentence in said for line in (sentence, "")),
            "| held-out case | structure | Dice | HD95, mm |", "|---|---|---|---|", *table, "",
            f"Training cases: {', '.join(run.training)}. Held out: {', '.join(run.held)}.", "",
        ]
    )  # fmt: skip


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
