"""`slice3d segment STUDY --organ liver --out OUT`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slice3d.cli import console


def segment(
    study: Annotated[Path, typer.Argument(help="The study: folder, file or .zip (DICOM, NIfTI, NRRD, MHA).")],
    organ: Annotated[list[str], typer.Option("--organ", "-o", help="Structure; repeat it or separate by commas.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    model: Annotated[str | None, typer.Option("--model", help="Model package (default: chosen by organ).")] = None,
    series: Annotated[str | None, typer.Option("--series", help="Series to use, as `slice3d info` numbers it.")] = None,
    reference: Annotated[Path | None, typer.Option("--reference", help="Reference labels to score against.")] = None,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also write segmentation.dcm; it carries patient identifiers.")
    ] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Segment structures, mesh and measure them, and write everything to OUT."""
    from slice3d.pipeline import RunSettings, run

    organs = tuple(part.strip() for entry in organ for part in entry.split(",") if part.strip())
    settings = RunSettings(organs, model, series, report=report, dicom_seg=dicom_seg)
    with console.progress_bar(quiet or as_json) as progress:
        result = run(study, out, settings=settings, reference=reference, progress=progress)
    if as_json:
        console.say_json(result.summary())
        return
    summary: dict[str, Any] = result.summary()
    for name, row in summary["structures"].items():
        measured = f"{name}: {row['volume_ml']:.1f} ml"
        if row.get("mesh"):
            measured += f", surface {row['mesh']['area_cm2']:.1f} cm²"
        expected = row.get("expected_dice")
        if expected is not None:
            measured += f", expected Dice {expected:.2f}"
        for key, unit in (("dice", ""), ("hd95_mm", " mm"), ("assd_mm", " mm")):
            value = (row.get("reference") or {}).get(key)
            if value is not None:
                measured += f", {key.removesuffix('_mm')} {value:.3g}{unit}"
        console.say(measured, quiet=quiet)
    console.say_findings(result.findings, quiet=quiet)
    console.say(f"results in {out}: {', '.join(summary['outputs'])}", quiet=quiet)
