"""A cohort from start to end: find the cases, do them on Dask, write the table and the page."""

from __future__ import annotations

import csv
import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slice3d import __version__
from slice3d.cohort.cases import Case, check_apart, find_cases
from slice3d.cohort.drive import drive
from slice3d.cohort.job import Job, pipeline_job
from slice3d.cohort.settings import CohortSettings
from slice3d.cohort.store import Record, Store
from slice3d.cohort.table import table, write_table
from slice3d.cohort.work import Task
from slice3d.errors import InputError
from slice3d.pacs import is_address
from slice3d.pipeline import RunSettings
from slice3d.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CohortResult:
    """What a cohort run left. table: one row per structure per case, one per failed case; seconds: wall time."""

    out: Path
    table: pd.DataFrame
    done: int
    reused: int
    failed: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Counts, for people and scripts."""
        return {"done": self.done, "reused": self.reused, "failed": self.failed, "seconds": round(self.seconds, 1)}


def run_cohort(
    cohort: str | Path | Sequence[Case],
    out: str | Path,
    *,
    settings: RunSettings | None = None,
    execution: CohortSettings | None = None,
    job: Job | None = None,
    progress: Progress = silent,
) -> CohortResult:
    """Do every study of a cohort and keep each result, each failure and one table in `out`.

    cohort: folder of studies, .csv or .parquet table, `dicomweb://` query, or cases. settings: what to make of each
    study (or `job`: another case function). A case done with the same content, settings and model is not done again;
    failures are rows of the table. Writes `cohort.parquet`, `cohort.csv`, `index.html`, `cohort.json` and `cases/`.
    Raises `InputError` when there is no study, `out` cannot be written or another run is writing to it, and what
    `pipeline_job` raises. Call it below `if __name__ == "__main__":` in scripts, since workers import the script.
    """
    out, execution = Path(out), (execution or CohortSettings()).with_budget()
    if job is None:
        if settings is None:
            raise InputError("neither settings nor a job given; expected one, e.g. RunSettings(organs=('liver',))")
        job = pipeline_job(settings)
    cases = find_cases(cohort) if isinstance(cohort, (str, Path)) else tuple(cohort)
    if isinstance(cohort, (str, Path)) and not is_address(str(cohort)) and Path(cohort).is_dir():
        check_apart(Path(cohort), out)
    _check_linkage(execution, out)
    store, started = Store(out), time.monotonic()
    store.prepare()
    with store.driving():
        run, salt = secrets.token_hex(8), store.salt()
        tasks = (Task(case, str(out.resolve()), job, execution, run, salt) for case in cases)
        records: dict[int, Record] = {}
        try:
            for n, (task, record) in enumerate(drive(tasks, execution), start=1):
                records[task.case.number] = record
                progress("cohort", n / len(cases))
        finally:
            frame = write_all(store, cases, records, execution)
    return CohortResult(
        out,
        frame,
        done=sum(r.status == "done" and r.run == run for r in records.values()),
        reused=sum(r.status == "done" and r.run != run for r in records.values()),
        failed=sum(r.status == "failed" for r in records.values()),
        seconds=time.monotonic() - started,
    )


def _check_linkage(execution: CohortSettings, out: Path) -> None:
    if execution.linkage is not None and out.resolve() in execution.linkage.resolve().parents:
        raise InputError("the linkage file would lie in the output folder; it names studies: keep it elsewhere")


def write_all(
    store: Store, cases: Sequence[Case], records: dict[int, Record], execution: CohortSettings
) -> pd.DataFrame:
    """Write the table, the page, the summary and the linkage file from what is known; the table is returned."""
    from slice3d.cohort.page import page

    frame = table(_marked(records))
    summary = {
        "slice3d": __version__,
        "cases": len(cases),
        "done": sum(r.status == "done" for r in records.values()),
        "failed": sum(r.status == "failed" for r in records.values()),
        "not_reached": len(cases) - len(records),
        "execution": {k: v for k, v in asdict(execution).items() if k not in ("linkage", "scheduler")},
    }
    try:
        write_table(frame, store.out)
        for name, text in (("cohort.json", json.dumps(summary, indent=2) + "\n"), ("index.html", page(frame, summary))):
            part = store.inner / f"{name}.part"
            part.write_text(text, encoding="utf-8")
            part.replace(store.out / name)
        if execution.linkage is not None:
            _write_linkage(execution.linkage, cases, records)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"could not write the cohort's table: {reason}; the cases are safe: run it again") from error
    return frame


def _marked(records: dict[int, Record]) -> list[tuple[int, Record]]:
    """The records in order; a study with the same images as an earlier one is counted, and measured, once."""
    first: dict[str, int] = {}
    marked: list[tuple[int, Record]] = []
    for number in sorted(records):
        record = records[number]
        earlier = first.setdefault(record.case, number)
        if earlier != number and record.status == "done":
            reason = f"the same images and settings as number {earlier}"
            record = replace(record, kind="", reason=reason, rows=({"structure": "", "duplicate_of": earlier},))
        marked.append((number, record))
    return marked


def _write_linkage(path: Path, cases: Sequence[Case], records: dict[int, Record]) -> None:
    """Case → study, readable by its owner alone: with this file the results are no longer without names."""
    part = path.with_name(f"{path.name}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "case", "study"])
        for case in cases:
            if case.number in records:
                writer.writerow([case.number, records[case.number].case, case.source])
    part.replace(path)
