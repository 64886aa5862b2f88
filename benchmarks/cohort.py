"""Cohorts: throughput and scaling over workers, overhead against a plain loop, faults, and memory over many cases.

    python benchmarks/cohort.py [--quick] [--studies N] [--part scaling|faults|soak] [--out benchmarks/results/cohort.json]

Each case is a generated DICOM study of 16 slices with a known answer. It goes through the real pipeline (load, network,
surface, measures, files, preview) with a package so small that the network takes milliseconds: what is measured is the
cohort's own machinery under short cases, where it weighs most. The report page is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from slice3d.cohort import CohortResult, CohortSettings, run_cohort  # noqa: E402
from slice3d.cohort.job import CaseInput  # noqa: E402
from slice3d.progress import silent  # noqa: E402

PARTS = ("scaling", "faults", "soak")


def settings(workers: int) -> CohortSettings:
    return CohortSettings(workers=workers, memory_gib=3.0 * workers, min_free_gib=0.1, threads=1)


def plain_loop(cohort: Path, out: Path) -> float:
    """Seconds per case of a loop over the same function, the first case (which imports everything) left out."""
    from tests.cohort.real import job

    function, marks = job().function, []
    for study in sorted(cohort.iterdir()):
        function(CaseInput(study), out / study.name, silent)
        marks.append(time.perf_counter())
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def with_workers(cohort: Path, out: Path, workers: int) -> tuple[float, CohortResult]:
    """Seconds per case from the end of the first case to the end of the last, so without the start of workers."""
    from tests.cohort.real import job

    marks: list[float] = []
    result = run_cohort(
        cohort, out, job=job(), execution=settings(workers), progress=lambda *_: marks.append(time.perf_counter())
    )
    if result.failed:
        raise RuntimeError(f"{result.failed} cases failed: {result.table.reason.unique()[:3]}")
    return (marks[-1] - marks[0]) / (len(marks) - 1), result


def scaling(base: Path, count: int, workers: tuple[int, ...]) -> dict[str, Any]:
    from tests.cohort.real import job, write_cohort

    write_cohort(base / "in", count)
    loop = plain_loop(base / "in", base / "loop")
    rows: dict[str, Any] = {
        "studies": count,
        "plain_loop": {"seconds_per_case": round(loop, 4), "cases_per_hour": round(3600 / loop)},
    }
    one = 0.0
    for n in workers:
        seconds, result = with_workers(base / "in", base / "out", n)
        one = one or seconds
        rows[f"{n} workers"] = {
            "seconds_per_case": round(seconds, 4), "cases_per_hour": round(3600 / seconds),
            "efficiency": round(one / seconds / n, 3), "whole_run_s": round(result.seconds, 1),
        }  # fmt: skip
        if n == workers[0]:
            again = run_cohort(base / "in", base / "out", job=job(), execution=settings(n))
            if again.reused != count:
                raise RuntimeError("a finished case was not found again")
            rows["all_found_again_s"] = round(again.seconds, 1)
        shutil.rmtree(base / "out")
    rows["overhead_per_case"] = round(one / loop - 1, 4)
    return rows


def soak(base: Path, count: int) -> dict[str, Any]:
    """Resident memory of each worker process after every case: the second tenth of its cases against the last."""
    from tests.cohort.faults import Cluster
    from tests.cohort.real import noted, write_cohort

    write_cohort(base / "in", count)
    cluster = Cluster(base, workers=3)
    try:
        execution = CohortSettings(scheduler=cluster.address, min_free_gib=0.1, timeout_s=600.0)
        result = run_cohort(base / "in", base / "out", job=noted(base / "notes"), execution=execution)
    finally:
        cluster.close()
    if result.failed:
        raise RuntimeError(f"{result.failed} cases failed: {result.table.reason.unique()[:3]}")
    memory: dict[str, list[float]] = defaultdict(list)
    for line in (base / "notes").read_text().splitlines():
        what, _, pid, mib, _ = line.split()
        if what == "end":
            memory[pid].append(float(mib))
    workers = []
    for values in memory.values():
        tenth = max(1, len(values) // 10)
        early, late = (sum(part) / len(part) for part in (values[tenth : 2 * tenth], values[-tenth:]))
        growth = (late - early) / max(1, len(values) - 2 * tenth)
        workers.append({"cases": len(values), "early_MiB": round(early, 1), "late_MiB": round(late, 1),
                        "largest_MiB": max(values), "growth_KiB_per_case": round(1024 * growth, 1)})  # fmt: skip
    return {"cases": count, "seconds": round(result.seconds, 1), "workers": workers}


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few studies")
    parser.add_argument("--studies", type=int, default=200, help="studies of scaling and faults; default 200")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cohort.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    from tests.cohort.faults import fault_run
    from tests.cohort.real import install_model

    count = 12 if options.quick else options.studies
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.part and options.out.exists() else {}
    for part in options.part or PARTS:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as name:
            base = Path(name)
            os.environ["XDG_CACHE_HOME"] = str(base / "cache")
            install_model(base / "cache")
            if part == "scaling":
                found = scaling(base, count, (1, 2) if options.quick else (1, 2, 4))
            elif part == "faults":
                kills, corrupt = (2, 3) if options.quick else (20, 10)
                found = asdict(fault_run(base, studies=count, kills=kills, corrupt=corrupt))
            else:
                found = soak(base, 40 if options.quick else 1000)
        loads = {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)}
        results[part] = {"quick": options.quick, "machine": machine(), **loads, **found}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
