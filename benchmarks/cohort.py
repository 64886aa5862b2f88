"""Cohorts: throughput and scaling over workers, overhead against a plain loop, faults, and memory over many cases.

    python benchmarks/cohort.py [--quick] [--studies N] [--part scaling|faults|soak|fuzz] [--workers N] [--studies-in FOLDER]

scaling: each study is a CT of 60 slices of 160 × 160 pixels through the liver of the torso phantom; the shipped model
segments it on one core, surfaces, measures, files and preview are made as `slice3d batch` makes them (no report page).
The plain loop is the same function in a process of its own; two of these at the same time show what the machine itself
gives. faults, soak: studies of 16 slices and a network of milliseconds, so that the cohort's own machinery weighs most.
fuzz: 1000 mutations of each kind of file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from slice3d.cohort import CohortSettings, Job, pipeline_job, run_cohort  # noqa: E402
from slice3d.cohort.job import CaseInput  # noqa: E402
from slice3d.inference import InferenceSettings  # noqa: E402
from slice3d.pipeline import RunSettings  # noqa: E402
from slice3d.progress import silent  # noqa: E402

PARTS = ("scaling", "faults", "soak", "fuzz")
SHAPE, SPACING = (160, 160, 60), (2.1, 2.1, 2.5)
STAGES = ("load", "segment", "surfaces", "measure", "write", "preview")


def torso_job() -> Job:
    return pipeline_job(RunSettings(organs=("liver",), inference=InferenceSettings(threads=1), report=False))


def write_torsos(folder: Path, count: int) -> None:
    """`count` CT studies through the liver: one body, everywhere moved and with noise of its own."""
    from slice3d.grid import Grid
    from slice3d.samples.torso import torso
    from tests.cohort.real import write_series

    coarse = torso(spacing_mm=(8.0, 8.0, 8.0), noise_hu=0.0).segmentation
    inside = np.argwhere(coarse.mask("liver"))
    middle = coarse.grid.affine[:3, :3] @ (inside.min(0) + inside.max(0)) / 2 + coarse.grid.affine[:3, 3]
    spare = 12  # slices, so that not every study shows the same part
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    corner = np.array([middle[0] / 2, 0.0, middle[2]])  # between the body's axis and the liver
    affine[:3, 3] = corner - affine[:3, :3] @ (*SHAPE[:2], SHAPE[2] + spare) / 2
    body = torso(noise_hu=0.0, grid=Grid((*SHAPE[:2], SHAPE[2] + spare), affine)).volume.data
    for n in (n for n in range(count) if not (folder / f"{n:04d}").exists()):
        rng = np.random.default_rng(n)
        (i, j), k = rng.integers(-8, 9, 2), int(rng.integers(spare))
        moved = np.roll(body[:, :, k : k + SHAPE[2]], (i, j), (0, 1))
        noise = 12 * rng.standard_normal(SHAPE, dtype=np.float32)
        write_series(folder / f"{n:04d}", np.clip(moved + noise, -1024, 3071).astype(np.int16), SPACING, n)


@dataclass(frozen=True)
class Noted:
    """What was noted of one case: process, when it began and ended, processor time when it ended, s; memory, MiB."""

    pid: str
    begun: float
    ended: float
    cpu: float
    memory_before: float
    memory_after: float


def read_notes(path: Path) -> list[Noted]:
    """In order of their ends."""
    begun: dict[str, tuple[float, float]] = {}
    found = []
    for line in path.read_text().splitlines():
        what, study, pid, mib, at, cpu = line.split()
        if what == "begin":
            begun[study] = (float(at), float(mib))
        else:
            found.append(Noted(pid, begun[study][0], float(at), float(cpu), begun[study][1], float(mib)))
    return found


def figures(cases: list[Noted]) -> dict[str, float]:
    """Per case, from the moment when every process had ended its first one, which imports and loads everything."""
    by_process: dict[str, list[Noted]] = defaultdict(list)
    for case in cases:
        by_process[case.pid].append(case)
    start = max(own[0].ended for own in by_process.values())
    seconds = (cases[-1].ended - start) / sum(case.ended > start for case in cases)
    pairs = [pair for own in by_process.values() for pair in itertools.pairwise(own)]
    return {
        "cases": len(cases),
        "seconds_per_case": round(seconds, 4),
        "cases_per_hour": round(3600 / seconds),
        "inside_case_s": round(statistics.mean(b.ended - b.begun for _, b in pairs), 4),
        "between_cases_ms": round(1000 * statistics.mean(b.begun - a.ended for a, b in pairs), 1),
        "cpu_s_per_case": round(statistics.mean(b.cpu - a.cpu for a, b in pairs), 4),
        "largest_MiB": round(max(case.memory_after for case in cases)),
    }


def plain_loop(studies: list[Path], out: Path) -> None:
    """The case function on every study in turn; notes beside `out`."""
    from tests.cohort.real import noted

    function = noted(out.with_suffix(".notes"), torso_job()).function
    for study in studies:
        function(CaseInput(study), out / study.name, silent)


def loops(base: Path, studies: Path, shares: list[tuple[int, int]]) -> dict[str, float]:
    """Plain loops over shares (first, last) of the studies, all at the same time, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=base) as name:
        outs = [Path(name) / str(n) for n in range(len(shares))]
        calls = [
            [sys.executable, __file__, "--loop", str(studies), str(first), str(last), str(out)]
            for (first, last), out in zip(shares, outs, strict=True)
        ]
        running = [subprocess.Popen(call) for call in calls]
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError("a plain loop failed")
        cases = [case for out in outs for case in read_notes(out.with_suffix(".notes"))]
    return figures(sorted(cases, key=lambda case: case.ended))


def with_workers(base: Path, studies: list[Path], workers: int) -> dict[str, Any]:
    from slice3d.cohort import Case
    from tests.cohort.real import noted

    execution = CohortSettings(workers=workers, memory_gib=3.0 * workers, min_free_gib=0.1, threads=1)
    cases = [Case(n, str(study)) for n, study in enumerate(studies, start=1)]
    with tempfile.TemporaryDirectory(dir=base) as name:
        driver = os.times()
        job = noted(Path(name) / "notes", torso_job())
        result = run_cohort(cases, Path(name) / "out", job=job, execution=execution)
        driver_s = sum(os.times()[:2]) - sum(driver[:2])
        if result.failed:
            raise RuntimeError(f"{result.failed} cases failed: {result.table.reason.unique()[:3]}")
        again = run_cohort(cases, Path(name) / "out", job=job, execution=execution)
        if again.reused != len(cases):
            raise RuntimeError("a finished case was not found again")
        found = figures(read_notes(Path(name) / "notes"))
    stages = {stage: round(float(result.table[f"stage_{stage}_s"].median()), 3) for stage in STAGES}
    return {
        **found, "driver_cpu_s_per_case": round(driver_s / len(cases), 4), "whole_run_s": round(result.seconds, 1),
        "all_found_again_s": round(again.seconds, 1), "budget_MiB_per_worker": 3072, "median_stage_s": stages,
    }  # fmt: skip


def scaling(base: Path, folder: Path, count: int, workers: list[int], before: dict[str, Any]) -> dict[str, Any]:
    """Runs over `workers`, each of `count` studies, between plain loops; runs of earlier calls are kept."""
    write_torsos(folder, count)
    studies, few = sorted(folder.iterdir())[:count], max(3, count // 10)
    rows: dict[str, Any] = {**before.get("runs", {})}
    if 1 in workers:
        rows["plain loop, before"] = loops(base, folder, [(0, few)])
    for n in workers:
        rows[f"{n} workers"] = with_workers(base, studies, n)
        if n == 1:
            rows["plain loop, after"] = loops(base, folder, [(few, 2 * few)])
        if n == 2:
            rows["2 plain loops at once"] = loops(base, folder, [(0, few), (few, 2 * few)])
    rows.update(_ratios(rows))
    return {"runs": rows, "shape": SHAPE, "spacing_mm": SPACING}


def _ratios(rows: dict[str, Any]) -> dict[str, Any]:
    """Efficiency over workers, and overhead against the plain loop (mean of that before and that after)."""
    found: dict[str, Any] = {}
    speed = {name: row["seconds_per_case"] for name, row in rows.items() if isinstance(row, dict)}
    alone = [speed[name] for name in ("plain loop, before", "plain loop, after") if name in speed]
    if "1 workers" in speed and alone:
        found["overhead_per_case"] = round(speed["1 workers"] / statistics.mean(alone) - 1, 4)
    if "1 workers" in speed:
        for name in speed:
            if name.endswith(" workers"):
                found[f"efficiency of {name}"] = round(speed["1 workers"] / speed[name] / int(name.split()[0]), 3)
    if "2 plain loops at once" in speed and alone:
        found["efficiency of 2 plain loops"] = round(statistics.mean(alone) / speed["2 plain loops at once"] / 2, 3)
    return found


def soak(base: Path, count: int) -> dict[str, Any]:
    """Resident memory of each of two workers before every case: the second tenth of its cases against the last."""
    from tests.cohort.real import job, noted, write_cohort

    write_cohort(base / "in", count)
    execution = CohortSettings(workers=2, memory_gib=6.0, min_free_gib=0.1, threads=1)
    result = run_cohort(base / "in", base / "out", job=noted(base / "notes", job()), execution=execution)
    if result.failed:
        raise RuntimeError(f"{result.failed} cases failed: {result.table.reason.unique()[:3]}")
    memory: dict[str, list[Noted]] = defaultdict(list)
    for case in read_notes(base / "notes"):
        memory[case.pid].append(case)
    workers = []
    for cases in memory.values():
        values, tenth = [case.memory_before for case in cases], max(1, len(cases) // 10)
        early, late = (statistics.mean(part) for part in (values[tenth : 2 * tenth], values[-tenth:]))
        growth = (late - early) / max(1, len(values) - 2 * tenth)
        workers.append({
            "cases": len(cases), "early_MiB": round(early, 1), "late_MiB": round(late, 1),
            "growth_KiB_per_case": round(1024 * growth, 1),
            "largest_at_the_end_of_a_case_MiB": max(case.memory_after for case in cases),
            "MiB_before_each_case": [round(value) for value in values],
        })  # fmt: skip
    return {"cases": count, "seconds": round(result.seconds, 1), "budget_MiB_per_worker": 3072, "workers": workers}


def fuzzed(base: Path, rounds: int) -> dict[str, Any]:
    """How mutations of each kind of file ended; any other end than a result or one line is an error here."""
    import warnings

    from slice3d.samples.study import write_study
    from tests.test_hostile import fuzz

    warnings.simplefilter("ignore")
    study = write_study(base / "study", spacing_mm=(24.0, 24.0, 60.0)).dicom
    (base / "files").mkdir()
    return {"mutations_of_each": rounds, "ends": fuzz(base / "files", study, rounds)}


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few studies")
    parser.add_argument("--studies", type=int, default=200, help="studies of scaling and faults; default 200")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--workers", action="append", type=int, help="of scaling: only so many; may be repeated")
    parser.add_argument("--studies-in", type=Path, help="keep the studies of scaling in this folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cohort.json")
    parser.add_argument("--loop", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        folder, first, last, out = options.loop
        plain_loop(sorted(Path(folder).iterdir())[int(first) : int(last)], Path(out))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.part or PARTS:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as name:
            found = _part(part, Path(name), options, results.get(part, {}))
        loads = {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)}
        results[part] = {"quick": options.quick, "machine": machine(), **loads, **found}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def _part(part: str, base: Path, options: argparse.Namespace, before: dict[str, Any]) -> dict[str, Any]:
    from tests.cohort.faults import fault_run
    from tests.cohort.real import install_model

    count = 12 if options.quick else options.studies
    if part == "scaling":
        workers = options.workers or ([1, 2] if options.quick else [1, 2, 4])
        return scaling(base, options.studies_in or base / "in", count, workers, before if options.workers else {})
    if part == "fuzz":
        return fuzzed(base, 25 if options.quick else 1000)
    os.environ["XDG_CACHE_HOME"] = str(base / "cache")
    install_model(base / "cache")
    if part == "faults":
        kills, corrupt = (2, 3) if options.quick else (20, 10)
        return asdict(fault_run(base, studies=count, kills=kills, corrupt=corrupt))
    return soak(base, 40 if options.quick else 1000)


if __name__ == "__main__":
    main()
