"""`slice3d batch COHORT --organ liver --out OUT`: many studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slice3d.cli import console


def batch(
    cohort: Annotated[str, typer.Argument(help="Folder of studies, .csv or .parquet table, or dicomweb:// query.")],
    organ: Annotated[list[str], typer.Option("--organ", "-o", help="Structure; repeat it or separate by commas.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for all results.")],
    workers: Annotated[int, typer.Option("--workers", help="Worker processes on this machine.")] = 1,
    scheduler: Annotated[str | None, typer.Option("--scheduler", help="A Dask scheduler, tcp://host:8786.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model package (default: chosen by organ).")] = None,
    memory: Annotated[float | None, typer.Option("--memory", help="GiB for all workers together.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds a case may take.")] = 3600.0,
    retries: Annotated[int, typer.Option("--retries", help="Tries after the disk or the network failed.")] = 3,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also cases that lastingly failed.")] = False,
    linkage: Annotated[
        Path | None, typer.Option("--linkage", help="File, not in OUT, for the table case → study.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Segment, mesh and measure every study of COHORT; run it again to go on where it stopped."""
    from slice3d.cohort import CohortSettings, run_cohort
    from slice3d.pipeline import RunSettings

    organs = tuple(part.strip() for entry in organ for part in entry.split(",") if part.strip())
    execution = CohortSettings(
        workers=workers, scheduler=scheduler, memory_gib=memory, timeout_s=timeout, retries=retries,
        retry_failed=retry_failed, linkage=linkage,
    )  # fmt: skip
    silent = quiet or as_json
    if scheduler is None:
        execution = execution.with_budget()
        console.say(execution.budget(), quiet=silent)
    with console.progress_bar(silent) as progress:
        settings = RunSettings(organs=organs, model=model)
        result = run_cohort(cohort, out, settings=settings, execution=execution, progress=progress)
    if as_json:
        console.say_json(result.summary())
        return
    counts = f"{result.done} done, {result.reused} done before, {result.failed} failed, {result.seconds:.0f} s"
    console.say(counts, quiet=quiet)
    console.say(f"results in {out}: index.html, cohort.csv, cohort.parquet, cases", quiet=quiet)
