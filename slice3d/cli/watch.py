"""`slice3d watch IN --organ liver --out OUT`: a folder that studies are sent to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from slice3d.cli import console
from slice3d.cli.values import listed


def watch(
    inbox: Annotated[Path, typer.Argument(metavar="IN", help="Folder that studies are sent to, one sub-folder each.")],
    organ: Annotated[list[str], typer.Option("--organ", "-o", help="Structure; repeat it or separate by commas.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for all results.")],
    model: Annotated[str | None, typer.Option("--model", help="Model package (default: chosen by organ).")] = None,
    settle: Annotated[float, typer.Option("--settle", help="Seconds without change until a study is whole.")] = 30.0,
    workers: Annotated[int, typer.Option("--workers", help="Worker processes on this machine.")] = 1,
    memory: Annotated[float | None, typer.Option("--memory", help="GiB for all workers together.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds a case may take.")] = 3600.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per study.")] = False,
) -> None:
    """Wait for studies in IN and do each as soon as it is whole; stop with Ctrl-C."""
    from slice3d.cohort import CohortSettings, WatchSettings, pipeline_job
    from slice3d.cohort import watch as watch_folder
    from slice3d.pipeline import RunSettings

    organs = listed(organ)
    job = pipeline_job(RunSettings(organs=organs, model=model))
    execution = CohortSettings(workers=workers, memory_gib=memory, timeout_s=timeout).with_budget()
    quiet = quiet or as_json
    console.say(execution.budget(), quiet=quiet)
    console.say("waiting for studies; Ctrl-C stops", quiet=quiet)
    try:
        for record in watch_folder(inbox, out, job=job, settings=WatchSettings(settle_s=settle), execution=execution):
            if as_json:
                print(json.dumps({"case": record.case, "status": record.status, "reason": record.reason}), flush=True)
            else:
                console.say(f"{record.case}: {record.status} {record.reason}".rstrip(), quiet=quiet)
    except KeyboardInterrupt:
        console.say("stopped; finished cases are kept", quiet=quiet)
