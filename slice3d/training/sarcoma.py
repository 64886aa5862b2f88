"""The recipe of `mr-sarcoma`: gross volume of a soft-tissue sarcoma of a limb on T1 MR crops, four folds, all shipped.

Data: 16 crops about 5 cm around one tumour each (validation set of the Image Biomarker Standardisation Initiative, from
the TCIA collection Soft-tissue-Sarcoma, Vallières et al. 2015, doi:10.1088/0031-9155/60/14/5471).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slice3d.errors import InputError
from slice3d.progress import Progress, silent
from slice3d.training import crossval
from slice3d.training.dataset import Dataset, TrainingPair
from slice3d.training.export import CardFacts
from slice3d.training.settings import AugmentSettings, IntensitySettings, TrainSettings

LABELS = {1: "sarcoma"}
LICENCE = "CC-BY-3.0"
SOURCE = "TCIA Soft-tissue-Sarcoma (doi:10.1088/0031-9155/60/14/5471), crops of the IBSI validation set"
VERSION = "0.1.0"
SPACING_MM = (5.0, 5.0, 5.0)
PATCH = (32, 32, 40)
LARGEST_MM = 350.0
"""Crops of 53 to 270 mm were trained on."""

TISSUES = (
    {"name": "around", "labels": [0], "components": 6},
    {"name": "sarcoma", "labels": [1], "components": 2},
)


@dataclass(frozen=True)
class Recipe:
    """How much of everything."""

    folds: int = 4
    shared_steps: int = 1800
    steps: int = 700
    seed: int = 0
    threads: int = 1


def shared_settings(recipe: Recipe) -> TrainSettings:
    """First stage, from random weights. So few cases that every mirror image counts."""
    return TrainSettings(
        network="monai.networks.nets.DynUNet",
        arguments={
            "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "kernel_size": [[3, 3, 3]] * 4,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * 3, "upsample_kernel_size": [[2, 2, 2]] * 3,
            "filters": [16, 32, 64, 128], "norm_name": ["GROUP", {"num_groups": 4}],
        },
        labels=LABELS,
        patch_size=PATCH,
        spacing_mm=SPACING_MM,
        steps=recipe.shared_steps,
        intensity=IntensitySettings(scheme="zscore", clip=(-1e6, 1e6), mean=0.0, std=1.0),
        augment=AugmentSettings(
            rotate_deg=20, scale=0.25, noise=0.15, shift=0.2, gain=0.2, gamma=0.4, low_resolution=0.2,
            cut_field_of_view=0.1, flip_axes=(0, 1, 2),
        ),
        lr=2e-3,
        lr_end=1e-3,
        ema=0.99,
        seed=recipe.seed,
        validate_every=max(1, recipe.shared_steps // 3),
        save_every=100,
        threads=recipe.threads,
    )  # fmt: skip


def stages(recipe: Recipe) -> list[TrainSettings]:
    """Second stage, each fold on its own: the learning rate falls to nothing."""
    first = replace(
        shared_settings(recipe), steps=recipe.steps, lr=1e-3, lr_end=1e-5, warmup=20, seed=recipe.seed + 1,
        validate_every=recipe.steps,
    )  # fmt: skip
    return [first]


def read(data: Path) -> Dataset:
    """The cases in `data/sarcoma-mr`. Raises `InputError` when there are none."""
    pairs = tuple(
        TrainingPair(mask.name.removesuffix("_mask.nii.gz"), mask.with_name(mask.name.replace("_mask", "_image")), mask)
        for mask in sorted((data / "sarcoma-mr").glob("[!.]*_mask.nii.gz"))
    )
    if not pairs:
        raise InputError("no sarcoma-mr/*_mask.nii.gz in the data folder; expected *_image.nii.gz and *_mask.nii.gz")
    return Dataset("sarcoma-mr", "MR", LABELS, pairs, LICENCE)


def train_sarcoma(
    data: Path, out: Path, *, report: Callable[[str], None] = lambda line: None, processes: Any = None,
    recipe: Recipe | None = None, progress: Progress = silent,
) -> Path:  # fmt: skip
    """Run the recipe and return the package's folder; what an interrupted run had finished is kept."""
    from slice3d.training.fold_recipe import FoldRecipe, train_fold_recipe

    recipe = recipe or Recipe()
    steps = FoldRecipe(
        dataset=read(data), folds=recipe.folds, shared=shared_settings(recipe), stages=stages(recipe),
        window=PATCH, facts=package_facts, lesions=True,
    )  # fmt: skip
    return train_fold_recipe(steps, out, report=report, processes=processes, progress=progress)


def package_facts(
    folds: Sequence[Sequence[str]], stages: Sequence[TrainSettings], scores: Mapping[str, Any]
) -> CardFacts:
    """Facts and card. scores: case → structure → measures, each case by the fold that held it out; may be empty."""
    limits: dict[str, Any] = {"largest_field_of_view_mm": LARGEST_MM}
    return CardFacts(
        name="mr-sarcoma",
        version=VERSION,
        licence=LICENCE,
        modality=("MR",),
        training={
            "recipe": "slice3d train --recipe mr-sarcoma",
            "source": SOURCE,
            "licence": "CC BY 3.0",
            "cases": sorted(case for held in folds for case in held),
            "held_out_by_fold": [list(held) for held in folds],
            "stages": [how.to_dict() for how in stages],
        },
        scores=scores,
        reliability={**crossval.reliability(scores, per_structure=False), **limits} if scores else limits,
        sampling={"mirror_axes": [0, 1, 2]},
        keep_largest=[{"labels": [1]}],
        tissues=TISSUES,
        card=card_text(folds, scores),
    )


def case_rows(scores: Mapping[str, Any], folds: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of every case."""
    fold_of = {case: number for number, held in enumerate(folds) for case in held}
    head = "| case | held out of fold | Dice | HD95, mm | volume, ml | reference, ml | found | missed | invented |"
    return [head, "|---|---|---|---|---|---|---|---|---|"] + [
        f"| {case} | {fold_of[case]} | {r['dice']:.3f} | {crossval.hd95(r)} | {r['volume_ml']:.0f} | "
        f"{r['reference_ml']:.0f} | {r['found']} | {r['missed']} | {r['invented']} |"
        for case, table in sorted(scores.items())
        for r in table.values()
        if "dice" in r
    ]


def card_text(folds: Sequence[Sequence[str]], scores: Mapping[str, Any]) -> str:
    """README.md of the package."""
    mean = crossval.summary(scores).get("sarcoma", {}).get("mean", float("nan"))
    return "\n".join(
        [
            "# mr-sarcoma", "",
            "A rough outline of a soft-tissue sarcoma on T1-weighted MR, 5 mm. Trained on 16 crops of 16 people: a starting "
            f"point for correction by hand, no more. Mean Dice on held-out cases {mean:.2f}. Not a medical device.", "",
            f"## Scores in {len(folds)}-fold cross-validation", "",
            "Each case was segmented by the one network that was not trained on it. Found, missed and invented count lesions "
            "(connected parts; a match needs an overlap of 0.1, intersection over union). The average of all networks, which "
            "is what runs by default, cannot be scored on these cases. With so few cases the expected Dice that a result "
            "reports is a rough guide.", "",
            *case_rows(scores, folds), "",
            "## What it assumes", "",
            "Every training image is a crop about 5 cm around one tumour, so the network has never seen an image without one "
            "and expects it near the middle. It cannot screen: give it a crop around a tumour that a person has found. One "
            "connected tumour comes back, the largest; satellites are left out.", "",
            "## Trained on", "",
            f"{SOURCE}, CC BY 3.0: {', '.join(sorted(case for held in folds for case in held))}. Every case is in the training set of all folds but one.", "",
        ]
    )  # fmt: skip
