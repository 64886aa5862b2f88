"""`slice3d segment STUDY --organ liver --out OUT`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slice3d.cli import console, options
from slice3d.cli import plan as planning
from slice3d.cli.values import (
    PRECISIONS,
    OnIrregular,
    gib,
    listed,
    local_study,
    millimetres,
    pseudonyms,
    super_resolution,
)

if TYPE_CHECKING:
    from slice3d.pipeline import RunResult

_FIRST = {
    "report.html": "open it in a browser: slices, surfaces, numbers, what to check",
    "preview.png": "the same as one picture",
}


def segment(
    study: Annotated[str, typer.Argument(help="Folder, file, .zip, or dicomweb://host/root/studies/UID.")],
    organ: options.Organs,
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    model: options.Model = None,
    series: Annotated[str | None, typer.Option("--series", help="Series to use, as `slice3d info` numbers it.")] = None,
    reference: Annotated[Path | None, typer.Option("--reference", help="Reference labels to score against.")] = None,
    on_gap: Annotated[OnIrregular, typer.Option("--on-gap", help="Missing or uneven slices.")] = "resample",
    on_tilt: Annotated[OnIrregular, typer.Option("--on-tilt", help="Tilted gantry.")] = "resample",
    spacing: Annotated[str | None, typer.Option("--spacing", help="x,y,z in mm of a PNG or TIFF stack.")] = None,
    superres: Annotated[
        bool, typer.Option("--superres", help="First estimate what lies between thick slices; takes minutes.")
    ] = False,
    superres_spacing: Annotated[
        float | None,
        typer.Option("--superres-spacing", help="With --superres: mm between slices to make (default: 1)."),
    ] = None,
    superres_method: Annotated[
        str | None, typer.Option("--superres-method", help="With --superres: as `slice3d upsample --method`.")
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="Budget, e.g. 8GiB (default: 60 % of free).")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N (default: CUDA if any).")] = None,
    precision: options.Precision = "auto",
    dicom_seg: options.DicomSeg = False,
    dicom_stl: options.DicomStl = False,
    deidentify: options.Deidentify = False,
    key: options.KeyFile = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which series, which model, how much memory and time.")
    ] = False,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open report.html in the browser.")] = False,
    quiet: options.Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Segment structures, mesh and measure them, and write everything to OUT."""
    from slice3d.inference import InferenceSettings
    from slice3d.pipeline import RunSettings, run

    settings = RunSettings(
        organs=listed(organ),
        model=model,
        series=series,
        inference=InferenceSettings(device=device, memory_gib=gib(memory), precision=PRECISIONS[precision]),
        report=report,
        dicom_seg=dicom_seg,
        dicom_stl=dicom_stl,
        deidentify=pseudonyms(deidentify, key),
        on_gap=on_gap,
        on_tilt=on_tilt,
        spacing_mm=millimetres(spacing),
        superres=super_resolution(superres, superres_spacing, superres_method),
    )
    if dry_run:
        with local_study(study) as path:
            found = planning.plan(path, settings)
        if as_json:
            console.say_json(found.to_dict())
        elif not quiet:
            planning.show(found, out)
        return
    with local_study(study) as path, console.progress_bar(quiet or as_json) as progress:
        result = run(path, out, settings=settings, reference=reference, progress=progress)
    if as_json:
        console.say_json(result.summary())
    elif not quiet:
        _show(result, out)
    page = out / "report.html"
    if show and page.is_file():
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def _show(result: RunResult, out: Path) -> None:
    summary = result.summary()
    width = max((len(name) for name in summary["structures"]), default=0)
    for name, row in summary["structures"].items():
        console.say(f"{name:<{width}}  {', '.join(_facts(row))}")
    console.say_findings(result.findings)
    console.say(f"in {console.link(out)}, after {console.duration(sum(summary['timings_s'].values()))}:")
    rest = [name for name in summary["outputs"] if name not in _FIRST]
    for name, what in _FIRST.items():
        if name in summary["outputs"]:
            console.say(f"  {console.link(out / name)}  {what}")
    console.say(f"  {', '.join(rest)}")


def _facts(row: dict[str, Any]) -> list[str]:
    facts = [f"{row['volume_ml']:.1f} ml"]
    if row.get("mesh"):
        facts.append(f"surface {row['mesh']['area_cm2']:.1f} cm²")
    if row.get("expected_dice") is not None:
        facts.append(f"expected Dice {row['expected_dice']:.2f}")
    for key, name, unit in (("dice", "Dice", ""), ("hd95_mm", "HD95", " mm"), ("assd_mm", "ASSD", " mm")):
        value = (row.get("reference") or {}).get(key)
        if value is not None:
            facts.append(f"{name} {value:.3g}{unit}")
    return facts
