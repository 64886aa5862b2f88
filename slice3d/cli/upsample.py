"""`slice3d upsample STUDY --spacing 1 --out iso.nii.gz`: thick slices → fine slices, marked as estimated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slice3d.cli import console

if TYPE_CHECKING:
    from slice3d.volume import Volume


def upsample(
    study: Annotated[
        list[Path],
        typer.Argument(
            help="The study (folder, file or .zip: DICOM, NIfTI, NRRD, MHA), or several stacks of one body."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Volume to write (.nii.gz, .nrrd, .mha).")],
    spacing: Annotated[float, typer.Option("--spacing", help="Distance between slices to make, in mm.")] = 1.0,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="auto, linear, bspline, lanczos, tv, pretrained, selftrain, pretrained+selftrain, implicit.",
        ),
    ] = "auto",
    profile: Annotated[str, typer.Option("--profile", help="Slice profile: gaussian, rect or estimate.")] = "gaussian",
    thickness: Annotated[
        float | None, typer.Option("--thickness", help="Slice thickness (FWHM) in mm, instead of the header's.")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Time that learning may take.")] = 4.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = 0,
    series: Annotated[str | None, typer.Option("--series", help="Series, as `slice3d info` numbers it.")] = None,
    marks: Annotated[bool, typer.Option("--marks", help="Also write which voxels are estimates, and how sure.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Estimate what lies between the slices of STUDY and write it to OUT; acquired slices are reproduced.

    Several studies (axial, coronal, sagittal or oblique stacks) are registered and joined on the first one's lattice."""
    from slice3d import io
    from slice3d.superres import SliceProfile, UpsampleSettings
    from slice3d.superres import upsample as run

    volumes = [io.load(path, series=series) for path in study]
    shape = profile if thickness is None else SliceProfile(profile, thickness)  # type: ignore[arg-type]
    with console.progress_bar(quiet or as_json) as progress:
        result = run(
            volumes,
            spacing_mm=spacing,
            method=method,
            slice_profile=shape,
            settings=UpsampleSettings(minutes=minutes, seed=seed),
            progress=progress,
        )
    io.save(result, out)
    written = [out.name, *(_write_marks(result, out) if marks else [])]
    if as_json:
        console.say_json(
            {
                "outputs": written,
                "shape": list(result.grid.shape),
                "spacing_mm": list(result.grid.spacing_mm),
                "findings": [finding.to_dict() for finding in result.findings],
            }
        )
        return
    console.say(f"{result!r}", quiet=quiet)
    console.say_findings(result.findings, quiet=quiet)
    console.say(f"written: {', '.join(written)}", quiet=quiet)


def _write_marks(result: Volume, out: Path) -> list[str]:
    """`NAME.synthesised.EXT` (1 = estimated) and `NAME.uncertainty.EXT` (standard deviation) beside the result."""
    from slice3d import io
    from slice3d.io.read import suffix_of

    suffix = suffix_of(out)
    stem = out.name[: len(out.name) - len(suffix)]
    written = []
    for name in ("synthesised", "uncertainty"):
        array = getattr(result, name)
        if array is None:
            continue
        path = out.with_name(f"{stem}.{name}{suffix}")
        data = array.astype("uint8") if name == "synthesised" else array
        io.save(replace(result, data=data, synthesised=None, uncertainty=None, findings=()), path)
        written.append(path.name)
    return written
