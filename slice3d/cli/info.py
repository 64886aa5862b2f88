"""`slice3d info PATH`: what a folder, file or archive holds, read from headers only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slice3d.cli import console

if TYPE_CHECKING:
    from slice3d.io.listing import Listing, SeriesEntry


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
        _show(listing)


def _show(listing: Listing) -> None:
    for study in listing.studies:
        about = f": {study.description}" if study.description else ""
        console.say(f"study {study.number} (patient {study.patient}){about}")
        for series in study.series:
            console.say(f"{'→' if series.picked else ' '} series {series.key}  {describe(series)}")
            if series.problem and not any(series.problem in finding.message for finding in series.findings):
                console.say(f"      {series.problem}")
            console.say_findings(series.findings, indent="   ")
    console.say_findings(listing.findings)
    chosen = f"series {listing.picked}" if listing.picked else "no series"
    console.say(f"{listing.files} file{'s' * (listing.files != 1)}; `load` would pick {chosen}: {listing.why}")


def describe(series: SeriesEntry) -> str:
    """One line about a series."""
    parts = [series.modality or "unknown modality"]
    if series.shape:
        parts.append("×".join(str(n) for n in series.shape))
    if series.spacing_mm:
        parts.append("×".join(f"{s:.3g}" for s in series.spacing_mm) + " mm")
    if series.orientation:
        parts.append(series.orientation)
    parts += [f"{key} {value}" for key, value in series.label.items()]
    kinds = [*([series.kind] if series.kind != "volume" else []), *([series.role] if series.role != "acquired" else [])]
    if any(kinds):
        parts.append(f"({', '.join(k for k in kinds if k)})")
    if series.description:
        parts.append(series.description)
    return "  ".join(parts)
