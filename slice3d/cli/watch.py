"""`slice3d watch IN --organ liver --out OUT`: a folder that studies are sent to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from slice3d.cli import console, options
from slice3d.cli.values import PRECISIONS, gib, listed


def watch(
    inbox: Annotated[Path, typer.Argument(metavar="IN", help="Folder that studies are sent to, one sub-folder each.")],
    organ: options.Organs,
    out: Annotated[Path, typer.Option("--out", help="Folder for all results.")],
    model: options.Model = None,
    settle: Annotated[float, typer.Option("--settle", help="Seconds without change until a study is whole.")] = 30.0,
    workers: options.Workers = 1,
    memory: options.WorkersMemory = None,
    precision: options.Precision = "auto",
    timeout: options.Timeout = 3600.0,
    quiet: options.Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per study.")] = False,
) -> None:
    """Wait for studies in IN and do each as soon as it is whole; stop with Ctrl-C."""
    from slice3d.cohort import CohortSettings, WatchSettings, pipeline_job
    from slice3d.cohort import watch as watch_folder
    from slice3d.inference import InferenceSettings
    from slice3d.pipeline import RunSettings

    organs = listed(organ)
    job = pipeline_job(
        RunSettings(organs=organs, model=model, inference=InferenceSettings(precision=PRECISIONS[precision]))
    )
    execution = CohortSettings(workers=workers, memory_gib=gib(memory), timeout_s=timeout).with_budget()
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
