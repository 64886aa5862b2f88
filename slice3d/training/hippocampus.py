"""The recipe of `mr-hippocampus`: anterior and posterior hippocampus on T1 MR crops, five folds, all shipped.

Data: Medical Segmentation Decathlon task 4 (Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9), 1 mm crops around
one hippocampus each, left or right. Mirroring left to right turns one into the other, so it is a fair augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slice3d.errors import InputError
from slice3d.progress import Progress, silent
from slice3d.training.dataset import Dataset, TrainingPair
from slice3d.training.settings import AugmentSettings, IntensitySettings, TrainSettings

LABELS = {1: "hippocampus_anterior", 2: "hippocampus_posterior"}
GROUPS = {"hippocampus": (1, 2)}
LICENCE = "CC-BY-SA-4.0"
SOURCE = "Medical Segmentation Decathlon, Task04 Hippocampus (doi:10.1038/s41467-022-30695-9)"
WINDOW = (32, 48, 32)
"""What the shipped networks look at in one go: what they learn on. In 48 × 64 × 48, mostly padding, they fail."""


@dataclass(frozen=True)
class Recipe:
    """How much of everything. again: further stages, each (steps, learning rate that it begins with)."""

    folds: int = 5
    shared_steps: int = 1500
    steps: int = 600
    again: tuple[tuple[int, float], ...] = ((3000, 1.5e-3), (9000, 1.5e-3))
    batch_size: int = 1
    seed: int = 0
    workers: int = 0
    threads: int = 1


def shared_settings(recipe: Recipe) -> TrainSettings:
    """First stage, from random weights: a U-Net, on patches a little smaller than the crops."""
    return TrainSettings(
        network="monai.networks.nets.DynUNet",
        arguments={
            "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "kernel_size": [[3, 3, 3]] * 4,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * 3, "upsample_kernel_size": [[2, 2, 2]] * 3,
            "filters": [16, 32, 64, 128], "norm_name": ["GROUP", {"num_groups": 4}],
        },
        labels=LABELS,
        patch_size=(32, 48, 32),
        spacing_mm=(1.0, 1.0, 1.0),
        steps=recipe.shared_steps,
        intensity=IntensitySettings(scheme="zscore", clip=(-1e6, 1e6), mean=0.0, std=1.0),
        augment=AugmentSettings(
            rotate_deg=10, scale=0.12, noise=0.1, shift=0.1, gain=0.15, gamma=0.3, low_resolution=0.1,
            cut_field_of_view=0.0, flip_axes=(0,),
        ),
        batch_size=recipe.batch_size,
        lr=2.5e-3,
        lr_end=1e-3,
        ema=0.995,
        seed=recipe.seed,
        validate_every=max(1, recipe.shared_steps // 4),
        save_every=100,
        workers=recipe.workers,
        threads=recipe.threads,
    )  # fmt: skip


def stages(recipe: Recipe) -> list[TrainSettings]:
    """Each fold on its own: the learning rate falls to nothing, and once more from where each entry of `again` says."""
    first = replace(
        shared_settings(recipe), steps=recipe.steps, lr=1.5e-3, lr_end=1e-5, warmup=20, seed=recipe.seed + 1,
        validate_every=max(1, recipe.steps // 2),
    )  # fmt: skip
    further = [
        replace(first, steps=steps, lr=lr, seed=recipe.seed + 2 + number, validate_every=max(1, steps))
        for number, (steps, lr) in enumerate(recipe.again)
    ]
    return [first, *further]


def read(data: Path) -> Dataset:
    """The cases in `data/hippocampus`. Raises `InputError` when there are none."""
    folder = data / "hippocampus"
    pairs = tuple(
        TrainingPair(labels.name.removesuffix(".nii.gz"), folder / "imagesTr" / labels.name, labels)
        for labels in sorted((folder / "labelsTr").glob("[!.]*.nii.gz"))
    )
    if not pairs:
        raise InputError("no hippocampus/labelsTr/*.nii.gz in the data folder; expected the layout of MSD task 4")
    return Dataset("hippocampus", "MR", LABELS, pairs, LICENCE)


def train_hippocampus(
    data: Path, out: Path, *, report: Callable[[str], None] = lambda line: None, processes: Any = None,
    recipe: Recipe | None = None, progress: Progress = silent,
) -> Path:  # fmt: skip
    """Run the recipe and return the package's folder; what an interrupted run had finished is kept."""
    from slice3d.training.fold_recipe import FoldRecipe, train_fold_recipe
    from slice3d.training.hippocampus_card import package_facts

    recipe = recipe or Recipe()
    steps = FoldRecipe(
        dataset=read(data), folds=recipe.folds, shared=shared_settings(recipe), stages=stages(recipe),
        window=WINDOW, facts=package_facts,
    )  # fmt: skip
    return train_fold_recipe(steps, out, report=report, processes=processes, progress=progress)
