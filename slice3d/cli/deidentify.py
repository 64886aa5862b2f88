"""`slice3d deidentify STUDY --out OUT`: DICOM copies without identifiers (PS3.15 Basic Profile)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slice3d.cli import console
from slice3d.cli.values import secret


def deidentify(
    study: Annotated[Path, typer.Argument(help="Study folder or DICOM file.")],
    out: Annotated[Path, typer.Option("--out", help="New or empty folder.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="File with a secret: the same secret gives the same pseudonyms.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Write copies of all DICOM files of STUDY following the standard's Basic Profile."""
    from slice3d.io.dicom.deidentify import deidentify as write

    findings = write(study, out, key=secret(key))
    if as_json:
        console.say_json({"findings": [finding.to_dict() for finding in findings]})
        return
    console.say_findings(findings, quiet=quiet)
    console.say(f"de-identified copies in {console.link(out)}", quiet=quiet)
