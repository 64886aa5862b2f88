"""`slice3d segment … --dry-run`: which series, which model, how much memory and time, before anything is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slice3d.cli import console

if TYPE_CHECKING:
    from slice3d.grid import Grid
    from slice3d.inference import Estimate
    from slice3d.io.listing import Listing, SeriesEntry
    from slice3d.models import ModelPackage
    from slice3d.pipeline import RunSettings


# A CT of 512×512×134 with five structures, bone among them, on 2 cores: what surfaces, checks, measurements and pages
# took beyond the network, in seconds and in GiB at the peak. Scaled by the number of voxels; a single organ takes less.
_MEASURED_VOXELS = 512 * 512 * 134
_MEASURED_S, _MEASURED_GIB = 70.0, 2.1


@dataclass(frozen=True)
class Plan:
    """What a run would do. voxels: that it would work on. outputs: files that it would write into the folder.
    superres_minutes: what super-resolution may take on top."""

    series: SeriesEntry
    why: str
    package: ModelPackage
    structures: tuple[str, ...]
    estimate: Estimate
    outputs: tuple[str, ...]
    voxels: int
    superres_minutes: float = 0.0

    @property
    def share(self) -> float:
        """How large the study is beside the one that was measured."""
        return self.voxels / _MEASURED_VOXELS

    @property
    def run_s(self) -> float:
        """Seconds of the whole run, roughly."""
        return self.estimate.seconds + _MEASURED_S * self.share + 60 * self.superres_minutes

    @property
    def run_gib(self) -> float:
        """Memory of the whole run at its peak, roughly."""
        return self.estimate.memory_gib + _MEASURED_GIB * self.share

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary without identifiers."""
        needed = self.estimate
        return {
            "series": self.series.to_dict(),
            "why": self.why,
            "model": {
                "name": self.package.name,
                "version": self.package.version,
                "licence": self.package.licence,
                "spacing_mm": list(self.package.spacing_mm),
            },
            "structures": list(self.structures),
            "device": needed.device,
            "precision": needed.precision,
            "threads": needed.threads,
            "network_runs": needed.runs,
            "network_run_s": needed.run_s,
            "network_s": round(needed.seconds, 1),
            "network_memory_gib": needed.memory_gib,
            "memory_budget_gib": needed.budget_gib,
            "run_s": round(self.run_s),
            "run_memory_gib": round(self.run_gib, 1),
            "outputs": list(self.outputs),
        }


def plan(study: Path, settings: RunSettings) -> Plan:
    """Read the headers of `study`, choose as `slice3d.pipeline.run` would, and time the network once.

    Raises what the run itself would raise before it starts to work.
    """
    from slice3d import anatomy, io, models
    from slice3d.errors import InputError
    from slice3d.inference import InferenceSettings, engine_for
    from slice3d.inference import estimate as estimated

    if not settings.organs:
        raise InputError("no structure asked for; expected at least one, e.g. --organ liver")
    models.find(settings.organs, model=settings.model)  # an unknown organ must not wait for the headers
    listing = io.scan(study)
    series = _chosen(listing, settings.series)
    spacing = series.spacing_mm or settings.spacing_mm
    if series.shape is None or spacing is None or len(spacing) != 3:
        raise InputError(f"the size of series {series.key} is known only once it is loaded; run without --dry-run")
    package = models.find(settings.organs, modality=series.modality, model=settings.model)
    structures = tuple(
        dict.fromkeys(n for organ in settings.organs for n in anatomy.resolve(organ, package.structures))
    )
    inference = settings.inference or InferenceSettings()
    engine = engine_for(package, device=inference.device, precision=inference.precision, folds=inference.folds)
    grid = _grid(series, spacing)
    minutes = 0.0
    if settings.superres is not None:
        minutes = settings.superres.settings.minutes
        grid = _finer(grid, settings.superres.spacing_mm)
    estimate = estimated(engine, grid, structures=structures, settings=inference)
    why = listing.why if series.picked else "asked for with --series"
    outputs = _outputs(structures, settings)
    return Plan(series, why, package, structures, estimate, outputs, math.prod(grid.shape), minutes)


def _finer(grid: Grid, spacing_mm: float) -> Grid:
    """The grid after super-resolution to `spacing_mm`, to a slice."""
    import numpy as np

    from slice3d.grid import Grid
    from slice3d.superres.stack import through_plane_axis

    axis = through_plane_axis(grid)
    if axis is None:
        return grid
    factor = max(1.0, grid.spacing_mm[axis] / max(spacing_mm, float(np.delete(grid.spacing_mm, axis).min())))
    shape, affine = list(grid.shape), grid.affine.copy()
    shape[axis] = round(shape[axis] * factor)
    affine[:3, axis] /= factor
    return Grid((shape[0], shape[1], shape[2]), affine)


def _chosen(listing: Listing, key: str | None) -> SeriesEntry:
    from slice3d.errors import InputError

    found = [entry for entry in listing if (entry.picked if key is None else entry.key == key)]
    if not found:
        keys = ", ".join(entry.key for entry in listing) or "none"
        said = listing.why if key is None else f"there is no series {key!r}"
        raise InputError(f"{said}; expected one of {keys}; choose it with --series")
    if found[0].problem:
        raise InputError(f"series {found[0].key} cannot be loaded: {found[0].problem}; choose another with --series")
    return found[0]


def _grid(series: SeriesEntry, spacing_mm: Sequence[float]) -> Grid:
    """A grid of the series' size and axes; where it lies does not matter here."""
    import numpy as np

    from slice3d.grid import Grid

    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(series.orientation or "RAS"):
        world = next(n for n, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        affine[world, axis] = spacing_mm[axis] * (1 if letter in "RAS" else -1)
    return Grid(series.shape or (1, 1, 1), affine)


def _outputs(structures: tuple[str, ...], settings: RunSettings) -> tuple[str, ...]:
    names = ["segmentation.nii.gz", "segmentation.seg.nrrd", *(f"{name}.stl" for name in structures)]
    names += ["preview.png", "metrics.json", "manifest.json"]
    names += ["report.html"] * settings.report + ["segmentation.dcm"] * settings.dicom_seg
    names += [f"{name}.dcm" for name in structures] * settings.dicom_stl
    if settings.superres is not None:
        names += ["image.nii.gz", "image.synthesised.nii.gz", "image.uncertainty.nii.gz"]
        names += [f"{name}.vtp" for name in structures]
    return tuple(sorted(names))


def show(found: Plan, out: Path) -> None:
    """Print it for people."""
    from slice3d.cli.info import describe

    needed = found.estimate
    console.say(f"series   {found.series.key}: {describe(found.series)}")
    console.say(f"         {found.why}")
    package = found.package
    console.say(f"model    {package.name} {package.version}, {package.licence}: {', '.join(found.structures)}")
    console.say(
        f"memory   about {found.run_gib:.1f} GiB in all, {needed.memory_gib:.1f} GiB of it for the network (its budget: "
        f"{needed.budget_gib:.1f} GiB)"
    )
    console.say(
        f"time     about {console.duration(found.run_s)} in all, {console.duration(needed.seconds)} of it for the network: "
        f"{needed.runs} runs of {needed.run_s:.2f} s on {needed.device} with {needed.threads} threads, one timed just now"
    )
    if found.superres_minutes:
        console.say(f"         (with up to {found.superres_minutes:g} min of super-resolution)")
    console.say(
        "         (what follows the network is scaled from a measured run of five structures; one organ takes less)"
    )
    console.say(f"would write to {out}: {', '.join(found.outputs)}")
    console.say("nothing was written")
    console.say_findings(found.series.findings)
