"""`slice3d batch COHORT --organ liver --out OUT`: many studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slice3d.cli import console, options
from slice3d.cli.values import PRECISIONS, gib, listed, pseudonyms


def batch(
    cohort: Annotated[str, typer.Argument(help="Folder of studies, .csv or .parquet table, or dicomweb:// query.")],
    organ: options.Organs,
    out: Annotated[Path, typer.Option("--out", help="Folder for all results.")],
    workers: options.Workers = 1,
    scheduler: Annotated[str | None, typer.Option("--scheduler", help="A Dask scheduler, tcp://host:8786.")] = None,
    model: options.Model = None,
    memory: options.WorkersMemory = None,
    precision: options.Precision = "auto",
    timeout: options.Timeout = 3600.0,
    retries: Annotated[int, typer.Option("--retries", help="Tries after the disk or the network failed.")] = 3,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also cases that lastingly failed.")] = False,
    linkage: Annotated[
        Path | None, typer.Option("--linkage", help="File, not in OUT, for the table case → study.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which series of each study would be used.")
    ] = False,
    dicom_seg: options.DicomSeg = False,
    dicom_stl: options.DicomStl = False,
    deidentify: options.Deidentify = False,
    key: options.KeyFile = None,
    quiet: options.Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Segment, mesh and measure every study of COHORT; run it again to go on where it stopped."""
    from slice3d.cohort import CohortSettings, run_cohort
    from slice3d.inference import InferenceSettings
    from slice3d.pipeline import RunSettings

    organs = listed(organ)
    execution = CohortSettings(
        workers=workers, scheduler=scheduler, memory_gib=gib(memory), timeout_s=timeout, retries=retries,
        retry_failed=retry_failed, linkage=linkage,
    )  # fmt: skip
    silent = quiet or as_json
    if scheduler is None:
        execution = execution.with_budget()
        console.say(execution.budget(), quiet=silent)
    if dry_run:
        _plan(cohort, quiet=quiet, as_json=as_json)
        return
    with console.progress_bar(silent) as progress:
        settings = RunSettings(
            organs=organs, model=model, inference=InferenceSettings(precision=PRECISIONS[precision]),
            dicom_seg=dicom_seg, dicom_stl=dicom_stl, deidentify=pseudonyms(deidentify, key),
        )  # fmt: skip
        result = run_cohort(cohort, out, settings=settings, execution=execution, progress=progress)
    if as_json:
        console.say_json(result.summary())
        return
    counts = f"{result.done} done, {result.reused} done before, {result.failed} failed, {result.seconds:.0f} s"
    console.say(counts, quiet=quiet)
    console.say(f"results in {console.link(out)}: index.html, cohort.csv, cohort.parquet, cases", quiet=quiet)


def _plan(cohort: str, *, quiet: bool, as_json: bool) -> None:
    """What headers say of each case, by number: names of folders can be names of persons."""
    from slice3d import io
    from slice3d.cli.info import describe
    from slice3d.cohort.cases import find_cases
    from slice3d.cohort.reasons import explain, redact
    from slice3d.errors import Slice3DError
    from slice3d.pacs import is_address

    cases = find_cases(cohort)
    rows: list[dict[str, Any]] = []
    with console.progress_bar(quiet or as_json) as progress:
        for n, case in enumerate(cases, start=1):
            row: dict[str, Any] = {"case": case.number, "series": None, "about": "", "problem": case.problem}
            if not case.problem and is_address(case.source):
                row["about"] = "in the archive: its series are chosen once it is fetched"
            elif not case.problem:
                try:
                    listing = io.scan(case.source)
                    found = [s for s in listing if (s.key == case.series if case.series else s.picked)]
                    problem = found[0].problem if found else listing.why
                    row["problem"] = redact(problem, Path(case.source), Path(case.source).rglob("*"))
                    if found:
                        row.update(series=found[0].key, about=describe(found[0]))
                except Slice3DError as error:
                    row["problem"] = explain(error, Path(case.source), Path(case.source).rglob("*"))
            rows.append(row)
            progress("headers", n / len(cases))
    ready = sum(not row["problem"] for row in rows)
    if as_json:
        console.say_json({"cases": rows, "ready": ready})
        return
    for row in rows:
        about = f"series {row['series']}  {row['about']}" if row["series"] else row["about"]
        console.say(f"{row['case']:>4}  {row['problem'] or about}", quiet=quiet)
    console.say(f"{ready} of {len(rows)} studies can be used; nothing was written", quiet=quiet)
