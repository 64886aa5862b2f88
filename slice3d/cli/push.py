"""`slice3d push FILES… dicomweb://host/root`: results into a picture archive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from slice3d.cli import console


def push(
    files: Annotated[list[Path], typer.Argument(help="DICOM files (SEG, encapsulated STL), or folders of them.")],
    to: Annotated[str, typer.Option("--to", help="The archive: dicomweb://host/root.")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Store DICOM results in an archive. Credentials: SLICE3D_DICOMWEB_TOKEN, or …_USER and …_PASSWORD."""
    from slice3d.pacs import credentials
    from slice3d.pacs import push as store

    found = [path for entry in files for path in (sorted(entry.glob("*.dcm")) if entry.is_dir() else [entry])]
    count = store(found, to, auth=credentials(os.environ))
    if as_json:
        console.say_json({"stored": count})
    else:
        console.say(f"{count} stored", quiet=quiet)
