"""`slice3d sample OUT`: generate the sample study with its exact truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slice3d.cli import console


def sample(
    out: Annotated[Path, typer.Argument(help="Folder for the study: new, empty, or an earlier sample study.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise; same seed, same bytes.")] = 0,
    patient: Annotated[
        int | None, typer.Option("--patient", min=0, help="Draw another body instead of the reference one.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Write a synthetic torso CT as DICOM with exact organ volumes and true labels."""
    import json

    from slice3d.errors import InputError
    from slice3d.output import Transaction
    from slice3d.samples import TorsoPhantom, write_study

    if out.is_dir() and any(out.iterdir()) and not (out / "truth.json").is_file():
        raise InputError(f"{out.name!r} holds other files; expected a new or empty folder or an earlier sample study")
    phantom = None if patient is None else TorsoPhantom.random(patient)
    with Transaction(out) as transaction:
        with console.progress_bar(quiet or as_json) as progress:
            made = write_study(transaction.folder, phantom, seed=seed, progress=progress)
        truth = json.loads(made.volumes.read_text(encoding="utf-8"))
        names = sorted(path.name for path in made.dicom.iterdir())
        transaction.commit()
    old = set((out / "dicom").glob("IM*.dcm")) - {out / "dicom" / name for name in names}
    for path in old:
        path.unlink()
    if as_json:
        console.say_json({"study": "dicom", "slices": len(names), "volumes_ml": truth["volumes_ml"]})
        return
    console.say(
        f"{out}: {len(names)} CT slices in dicom/, true labels in truth.nii.gz, volumes in truth.json", quiet=quiet
    )
    for name, value in truth["volumes_ml"].items():
        console.say(f"  {name:<14}{value:>10.1f} ml", quiet=quiet)
