"""A whole training run on label maps alone: images are painted from them, `slice3d train LABELS --synthesise`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slice3d.progress import Progress, silent
from slice3d.training.config import checked
from slice3d.training.dataset import Dataset
from slice3d.training.generator import GeneratorSettings, LabelMap, generate
from slice3d.training.labelmaps import GeneratedCrops, LabelFolder, read_label_folder, read_maps, whole_case
from slice3d.training.plan import Fingerprint, Plan, make_plan
from slice3d.training.run import RunOptions, made, package_name, remember_cases, run_lines, settings_for, split
from slice3d.training.settings import IntensitySettings, TrainSettings

PERCENTILES = IntensitySettings(scheme="percentiles")


def generator_settings(options: RunOptions) -> GeneratorSettings:
    """The `[synthesis]` table of a configuration. Raises `InputError` naming the key that is not known."""
    return GeneratorSettings(**checked(options.synthesis or {}, GeneratorSettings, "[synthesis]"))


def plan_maps(folder: LabelFolder, maps: Sequence[LabelMap], options: RunOptions) -> Plan:
    """Spacing, patch and network from the maps' own sizes, with the configuration's overrides."""
    nothing = np.zeros(1, np.float32)
    prints = []
    for m in maps:
        a, b, c = m.index.shape
        prints.append(Fingerprint((a, b, c), m.spacing_mm, nothing, ()))
    plan = make_plan(
        prints, folder.labels, modality="MR", budget_voxels=options.budget_voxels, features=options.features
    )
    return replace(plan, **{**checked(options.plan or {}, Plan, "[plan]"), "intensity": PERCENTILES})


def train_label_maps(
    folder: Path, out: Path, options: RunOptions, *, report: Callable[[str], None] = lambda line: None,
    processes: Any = None, progress: Progress = silent,
) -> Path:  # fmt: skip
    """Train on images painted from the label maps in `folder`; returns the exported package's folder, `out/package`.

    Some maps are held out (`options.held_out`, else drawn) and scored on one painted image each. `out` holds what
    `train_dataset` leaves, and `samples.png`, pictures of what was painted. Raises `InputError` for a folder or
    configuration that cannot be used.
    """
    from slice3d.training.finish import Run, finish
    from slice3d.training.loop import first_process_first, fit
    from slice3d.training.validate import WholeVolumes

    described, how = read_label_folder(folder), generator_settings(options)
    maps = read_maps(described, progress=progress)
    plan = plan_maps(described, maps, options)
    settings = settings_for(plan, described.labels, options)
    training, held = split([m.name for m in maps], options)
    for line in run_lines(plan, settings, training, held):
        report(line)
    by_name = {m.name: m for m in maps}
    sources = [by_name[name] for name in training]
    with first_process_first(processes) as first:
        if first:
            remember_cases(made(out), training, held)
            draw_samples(sources, settings, how, out / "samples.png")
    validation = WholeVolumes(
        [whole_case(by_name[name], settings, how, seed=n) for n, name in enumerate(held)], settings
    )
    checkpoint = fit(
        GeneratedCrops(sources, settings, how), settings, out, validate=validation, processes=processes,
        progress=progress,
    )  # fmt: skip
    dataset = Dataset(described.name, described.modality, described.labels, (), described.licence)
    with first_process_first(processes) as first:
        if not first:
            return out / "package"
        run = Run(package_name(options, dataset), options.version, dataset, settings, training, held, out)
        return finish(run, checkpoint, report=report)


def draw_samples(
    maps: Sequence[LabelMap], settings: TrainSettings, how: GeneratorSettings, path: Path, *, count: int = 12
) -> None:
    """A picture of what is painted: per sample an axial, a coronal and a sagittal plane, its classes over the last."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2
    figure = Figure(figsize=(6 * columns, 2 * -(-count // columns)), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-count // columns), 3 * columns, squeeze=False)
    colors = np.random.default_rng(1).uniform(0.2, 1, (256, 3))
    for n in range(count):
        image, classes = generate(
            maps[n % len(maps)], seed=[settings.seed, n, 4], shape=settings.patch_size, spacing_mm=settings.spacing_mm,
            settings=how,
        )  # fmt: skip
        i, j, k = (m // 2 for m in image.shape)
        planes = ((image[:, :, k], None), (image[:, j], None), (image[i], classes[i]))
        for column, (plane, found) in enumerate(planes):
            rgb = np.stack([np.clip(plane.T, 0, 1)] * 3, axis=-1)
            if found is not None:
                rgb = np.where((found.T > 0)[..., None], 0.4 * rgb + 0.6 * colors[found.T], rgb)
            axes[n // columns, 3 * (n % columns) + column].imshow(rgb, origin="lower")
    for axis in axes.ravel():
        axis.axis("off")
    figure.savefig(path, dpi=70)
