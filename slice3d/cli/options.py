"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slice3d.cli import complete, values

Organs = Annotated[
    list[str],
    typer.Option("--organ", "-o", help="Structure; repeat it or separate by commas.", autocompletion=complete.organs),
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Model package (default: chosen by organ).", autocompletion=complete.models),
]
Workers = Annotated[int, typer.Option("--workers", help="Worker processes on this machine.")]
WorkersMemory = Annotated[
    str | None, typer.Option("--memory", help="Budget of all workers, e.g. 8GiB (default: 80 % of free).")
]
Precision = Annotated[
    values.Precision,
    typer.Option("--precision", help="Of the network's arithmetic: auto is what the device does fast."),
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds a case may take.")]
DicomSeg = Annotated[
    bool, typer.Option("--dicom-seg", help="Also write segmentation.dcm; it carries patient identifiers.")
]
DicomStl = Annotated[
    bool, typer.Option("--dicom-stl", help="Also write each surface as .dcm; it carries patient identifiers.")
]
Deidentify = Annotated[
    bool, typer.Option("--deidentify", help="DICOM results without identifiers (PS3.15 Basic Profile).")
]
KeyFile = Annotated[Path | None, typer.Option("--key", help="With --deidentify: file with a secret.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
