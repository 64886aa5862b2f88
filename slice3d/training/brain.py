"""The recipe of `mr-brain`: MR of no particular contrast painted from label maps, two stages, the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slice3d.errors import InputError
from slice3d.progress import Progress, silent
from slice3d.training import cases
from slice3d.training.brain_labels import (
    GROUPS,
    KEEP_LARGEST,
    LABELS,
    ORDERS,
    TISSUES,
    class_table,
    families,
    left_of,
)
from slice3d.training.export import CardFacts
from slice3d.training.generator import GeneratorSettings, LabelMap
from slice3d.training.labelmaps import GeneratedCrops, label_map, whole_case
from slice3d.training.settings import IntensitySettings, TrainSettings, Triple

VERSION = "0.2.0"
FOLDER = "brain-labels"
SOURCE = "SynthSeg training label maps (github.com/BBillot/SynthSeg), Apache-2.0"
NAMES = tuple(f"{n:02d}" for n in range(1, 21))
HELD_OUT = ("04", "09", "14", "19")
SAMPLES = GeneratorSettings()
TILES = GeneratorSettings(jitter_mm=30.0, tied=0.9, ordered=0.8)
"""As far from the brain's middle as tiles lie at inference; mostly contrasts in an order that sequences have."""


@dataclass(frozen=True)
class Stage:
    """One stage: voxels of `voxel_mm`, `steps` of a schedule that may be longer (0: as long)."""

    name: str
    voxel_mm: float
    patch: Triple
    steps: int
    lr: float
    lr_end: float
    warmup: int = 20
    schedule: int = 0
    seed: int = 1
    samples: GeneratorSettings = TILES


STAGES = (
    Stage("coarse", 3.0, (48, 64, 48), 1450, 1.5e-3, 3e-4, warmup=50, schedule=2000, seed=0, samples=SAMPLES),
    Stage("fine", 2.0, (64, 80, 64), 2000, 1.4e-3, 1e-5),
    Stage("long", 2.0, (64, 80, 64), 6800, 1.2e-3, 1e-5, seed=2),
)
"""Where structures lie, whatever the contrast, with nearly the whole brain in each sample; then where their borders are."""


@dataclass(frozen=True)
class BrainRecipe:
    """How much of everything; the defaults are those of the shipped weights."""

    stages: tuple[Stage, ...] = STAGES
    channels: tuple[int, ...] = (32, 64, 128, 192, 256)
    names: tuple[str, ...] = NAMES
    held_out: tuple[str, ...] = HELD_OUT
    workers: int = 1
    threads: int = 1


def stage_settings(recipe: BrainRecipe, stage: Stage) -> TrainSettings:
    """The network and how this stage trains it."""
    arguments = {
        "spatial_dims": 3, "in_channels": 1, "out_channels": len(LABELS) + 1, "channels": list(recipe.channels),
        "strides": [2] * (len(recipe.channels) - 1), "num_res_units": 2, "norm": ["GROUP", {"num_groups": 1}],
    }  # fmt: skip
    return TrainSettings(
        network="monai.networks.nets.UNet", arguments=arguments, labels=LABELS, deep_supervision=True,
        patch_size=stage.patch, spacing_mm=(stage.voxel_mm,) * 3, steps=stage.schedule or stage.steps,
        intensity=IntensitySettings(scheme="percentiles"), lr=stage.lr, lr_end=stage.lr_end, warmup=stage.warmup,
        ema=0.99 if stage.steps < 5000 else 0.999, seed=stage.seed, validate_every=10**9, save_every=50,
        workers=recipe.workers, threads=recipe.threads,
    )  # fmt: skip


def read_brain_maps(data: Path, names: Sequence[str], *, progress: Progress = silent) -> list[LabelMap]:
    """The maps of these names (`"01"`…). Raises `InputError` when one is missing."""
    table = class_table()
    classes = {int(value): int(table[value]) for value in np.flatnonzero(table)}
    out = []
    for done, name in enumerate(names):
        labels, grid = cases.read(data / FOLDER / f"training_seg_{name}.nii.gz")
        out.append(
            label_map(
                name,
                labels.astype(np.int32),
                grid.spacing_mm,
                classes,
                LABELS,
                same=left_of,
                families=families,
                orders=ORDERS,
            )
        )
        progress("reading label maps", (done + 1) / len(names))
    return out


def train_brain(
    data: Path, out: Path, *, report: Callable[[str], None] = lambda line: None, processes: Any = None,
    recipe: BrainRecipe | None = None, progress: Progress = silent,
) -> Path:  # fmt: skip
    """Run the recipe and return the package's folder. Each stage goes on where an interrupted run left it."""
    from slice3d.training.curves import draw_curves
    from slice3d.training.export import export
    from slice3d.training.loop import first_process_first, fit, warm_start
    from slice3d.training.validate import WholeVolumes

    recipe = recipe or BrainRecipe()
    training = [name for name in recipe.names if name not in recipe.held_out]
    maps = read_brain_maps(data, training, progress=progress)
    held = read_brain_maps(data, recipe.held_out)
    report(
        f"{len(maps)} label maps to paint from, {len(recipe.held_out)} held out; "
        + ", ".join(f"{stage.steps} steps at {stage.voxel_mm} mm" for stage in recipe.stages)
    )
    before: Path | None = None
    for stage in recipe.stages:
        settings = stage_settings(recipe, stage)
        if before is not None:
            warm_start(before, out / stage.name)
        last = stage is recipe.stages[-1] and held
        whole = [whole_case(m, settings, stage.samples, seed=n) for n, m in enumerate(held)] if last else []
        before = fit(
            GeneratedCrops(maps, settings, stage.samples), settings, out / stage.name,
            validate=WholeVolumes(whole, settings) if whole else None, processes=processes, stop_after=stage.steps,
            progress=progress,
        )  # fmt: skip
    if before is None:
        raise InputError("a recipe without stages trains nothing; expected at least one")
    with first_process_first(processes) as first:
        if not first:
            return out / "package"
        draw_curves(before.parent, out / "learning-curves.png")
        return export(before, settings, package_facts(training, recipe.held_out), out / "package")


def package_facts(
    training: Sequence[str], held_out: Sequence[str], *, scores: Mapping[str, Any] | None = None,
    reliability: Mapping[str, Any] | None = None, run: Mapping[str, Any] | None = None,
) -> CardFacts:  # fmt: skip
    """Facts and card of the package. scores: case → structure → {dice, …}. run: time and hardware."""
    return CardFacts(
        name="mr-brain",
        version=VERSION,
        licence="CC-BY-4.0",
        modality=("MR",),
        groups=GROUPS,
        keep_largest=KEEP_LARGEST,
        tissues=TISSUES,
        training={
            "recipe": "slice3d train --recipe mr-brain",
            "label_maps_for_synthesis": {f"training_seg_{name}": SOURCE for name in training},
            "held_out": {f"training_seg_{name}": SOURCE for name in held_out},
            **dict(run or {}),
        },
        scores=scores or {},
        reliability=reliability or {},
        card=card_text(training, held_out, scores or {}),
    )


_UNSCORED = "Not computed for these weights yet."


def card_text(training: Sequence[str], held_out: Sequence[str], scores: Mapping[str, Any]) -> str:
    """README.md of the package. scores: `<map> <setting>` → structure → {dice}."""
    rows = [
        f"| {case} | {sum(r['dice'] for r in table.values()) / len(table):.3f} | "
        f"{min(table, key=lambda n: table[n]['dice'])} {min(r['dice'] for r in table.values()):.3f} |"
        for case, table in scores.items()
        if table
    ]
    return "\n".join(
        [
            "# mr-brain", "",
            "Brain structures (left and right) on MR of any contrast, 2 mm, one 3D U-Net. **It has never seen a real "
            "image**: every training image was painted from a label map. Not a medical device: look at every outline "
            "before you use it.", "",
            f"Structures: {', '.join(LABELS.values())}.", "",
            "## Scores on synthetic images of label maps it was not trained on", "",
            "The images follow a signal model with settings never used in training (`benchmarks/accuracy_brain.py`). "
            "They say nothing certain about patients; no real image with expert labels was at hand. In these images each tissue "
            "has one grey value, which the last step of this package assumes: expect less on patients.", "",
            *(["| image | mean Dice | worst structure |", "|---|---|---|", *rows] if rows else [_UNSCORED]), "",
            "## Made from", "",
            f"{SOURCE}. Painted for training: {', '.join(training)}. Held out: {', '.join(held_out) or 'none'}.", "",
            "`docs/models.md` has the method, the pictures and the limits. Left and right come from the file's "
            "orientation: a brain is too symmetric for the network to notice a mirrored one. Weights: CC BY 4.0, with "
            "attribution to the source above.", "",
        ]
    )  # fmt: skip
