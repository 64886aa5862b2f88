"""`slice3d info PATH`: what a folder, file or archive holds, read from headers only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slice3d.cli import console


def info(
    path: Annotated[Path, typer.Argument(help="A study: folder, DICOMDIR, single file or .zip.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """List the studies and series in PATH with geometry and findings, without reading pixels."""
    from slice3d.io import scan

    listing = scan(path)
    if as_json:
        console.say_json(listing.to_dict())
    else:
        console.say(str(listing))
