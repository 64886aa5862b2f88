"""A recipe whose networks are the folds of a cross-validation: prepare, train, export, score, write the card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slice3d.progress import Progress, silent
from slice3d.training import crossval
from slice3d.training.dataset import Dataset
from slice3d.training.export import CardFacts, export
from slice3d.training.settings import TrainSettings, Triple

Folds = Sequence[Sequence[str]]


@dataclass(frozen=True)
class FoldRecipe:
    """What differs between recipes of this kind.

    shared, stages: as `crossval.train_folds` takes them. window: patch size of the shipped networks.
    facts: (folds, stages, scores so far) → facts and card of the package. lesions: whether scores count lesions.
    """

    dataset: Dataset
    folds: int
    shared: TrainSettings
    stages: Sequence[TrainSettings]
    window: Triple
    facts: Callable[[Folds, Sequence[TrainSettings], Mapping[str, Any]], CardFacts]
    lesions: bool = False


def train_fold_recipe(
    recipe: FoldRecipe, out: Path, *, report: Callable[[str], None] = lambda line: None, processes: Any = None,
    progress: Progress = silent,
) -> Path:  # fmt: skip
    """Run the recipe and return the package's folder; what an interrupted run had finished is kept.

    `out` also holds the prepared cases, a folder per stage, `learning-curves.png` and `cross-validation.json`.
    """
    from slice3d.training.loop import first_process_first
    from slice3d.training.prepare import prepare

    stages = recipe.stages
    folds = crossval.make_folds([pair.name for pair in recipe.dataset.pairs], recipe.folds, seed=recipe.shared.seed)
    with first_process_first(processes):
        cache = prepare(recipe.dataset, stages[-1], out / "cases", progress=progress)
    checkpoints = crossval.train_folds(
        cache, folds, stages, out, shared=recipe.shared, report=report, processes=processes, progress=progress
    )
    with first_process_first(processes) as first:
        return _finish(recipe, checkpoints, folds, out, report, progress) if first else out / "package"


def _finish(
    recipe: FoldRecipe, checkpoints: Sequence[Path], folds: Folds, out: Path, report: Callable[[str], None],
    progress: Progress,
) -> Path:  # fmt: skip
    """Learning curves, the package, its scores and, with these, the package's card."""
    from slice3d.models.package import read_package
    from slice3d.training.curves import draw_stages

    stages, every = recipe.stages, [recipe.shared, *recipe.stages]
    draw_stages(sorted(path.parent for path in out.glob("*/history.jsonl")), out / "learning-curves.png")
    shipped = replace(stages[-1], patch_size=recipe.window)
    package = export(checkpoints, shipped, recipe.facts(folds, every, {}), out / "package")
    scores = crossval.score_folds(
        read_package(package), recipe.dataset.pairs, folds, lesions=recipe.lesions, progress=progress
    )
    found = crossval.summary(scores)
    results = {"folds": folds, "scores": scores, "summary": found}
    (out / "cross-validation.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, row in found.items():
        report(f"{name}: Dice {row['mean']:.3f} ± {row['sd']:.3f} over {row['cases']} held-out cases")
    return export(checkpoints, shipped, recipe.facts(folds, every, scores), out / "package")
