"""Cohorts: throughput and scaling over workers, overhead against a plain loop, faults, and memory over many cases.

    python benchmarks/cohort.py [--quick] [--part scaling|faults|soak] [--out benchmarks/results/cohort.json]

Each case works in NumPy on one core for a fixed number of steps, reads a generated study of 1 MiB and writes 1 MiB: the
CPU-bound part is real, the model is left out, so that what is measured is the cohort's own machinery.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: E402

from slice3d.cohort import CohortSettings, Job, run_cohort  # noqa: E402
from slice3d.cohort.job import CaseInput  # noqa: E402
from slice3d.output import Transaction  # noqa: E402
from slice3d.progress import Progress, silent  # noqa: E402

PARTS = ("scaling", "faults", "soak")


@dataclass(frozen=True)
class Work:
    """A CPU-bound case: `steps` smoothing passes over a volume, about 20 ms each."""

    steps: int

    def __call__(self, case: CaseInput, out: Path, progress: Progress) -> None:
        import resource

        volume = np.load(case.study / "volume.npy").astype(np.float64)
        started = time.perf_counter()
        for _ in range(self.steps):
            volume = 0.5 * volume + 0.25 * (np.roll(volume, 1, 0) + np.roll(volume, -1, 0))
        spent = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = {
            "liver": {
                "volume_ml": float(volume.sum()) % 1000,
                "rss_kib": _rss_kib(),
                "peak_kib": peak,
                "pid": os.getpid(),
            }
        }
        with Transaction(out) as transaction:
            np.save(transaction.folder / "result.npy", volume.astype(np.int16))
            transaction.write_json("metrics.json", {"structures": rows})
            transaction.write_json("manifest.json", {"timings_s": {"work": spent}, "outputs": transaction.hashes()})
            transaction.commit()


def _rss_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)


def generate(folder: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    for n in range(count):
        study = folder / f"{n:05d}"
        study.mkdir(parents=True)
        np.save(study / "volume.npy", random.integers(-1000, 1000, (64, 64, 128)).astype(np.int16))
    return folder


def plain_loop(cohort: Path, out: Path, work: Work) -> float:
    started = time.perf_counter()
    for study in sorted(cohort.iterdir()):
        work(CaseInput(study), out / study.name, silent)
    return time.perf_counter() - started


def cohort_seconds(cohort: Path, out: Path, work: Work, workers: int) -> tuple[float, Any]:
    """Seconds from the first case's start to the last one's end, without the start of Python in the workers."""
    settings = CohortSettings(workers=workers, memory_gib=1.0 * workers, min_free_gib=0.1, threads=1)
    marks: list[float] = []
    started = time.perf_counter()
    result = run_cohort(
        cohort, out, job=Job(work, "benchmark"), execution=settings,
        progress=lambda stage, fraction: marks.append(time.perf_counter()),
    )  # fmt: skip
    if result.failed:
        raise RuntimeError(f"{result.failed} cases failed: {result.table.reason.unique()[:3]}")
    # the first end marks that a worker is up; with it the time of the cases it had done by then is left out
    return (marks[-1] - marks[0]) * len(marks) / max(len(marks) - 1, 1), (result, time.perf_counter() - started)


def scaling(base: Path, count: int, steps: int, workers: tuple[int, ...]) -> dict[str, Any]:
    cohort, work = generate(base / "in", count), Work(steps)
    loop = plain_loop(cohort, base / "loop", work)
    rows: dict[str, Any] = {"plain_loop": {"seconds": round(loop, 2), "cases_per_hour": round(3600 * count / loop)}}
    one = 0.0
    for n in workers:
        seconds, (_, total) = cohort_seconds(cohort, base / f"out{n}", work, n)
        one = one or seconds
        rows[f"{n} workers"] = {
            "seconds": round(seconds, 2), "with_start_s": round(total, 2),
            "cases_per_hour": round(3600 * count / seconds), "efficiency": round(one / seconds / n, 3),
        }  # fmt: skip
        again = time.perf_counter()
        result = run_cohort(
            cohort, base / f"out{n}", job=Job(work, "benchmark"),
            execution=CohortSettings(workers=n, memory_gib=1.0 * n, min_free_gib=0.1, threads=1),
        )  # fmt: skip
        rows[f"{n} workers"]["again_s"] = round(time.perf_counter() - again, 2)
        if result.reused != count:
            raise RuntimeError("a finished case was not found again")
        shutil.rmtree(base / f"out{n}")
    rows["overhead_per_case"] = round(one / loop - 1, 4)
    return rows


def soak(base: Path, count: int) -> dict[str, Any]:
    cohort = generate(base / "soak", count)
    _, (result, total) = cohort_seconds(cohort, base / "soak-out", Work(1), 2)
    table = result.table.sort_values("number")
    growth = {}
    for pid, part in table.groupby("pid"):
        values = part.rss_kib.to_numpy()
        tenth = max(1, len(values) // 10)
        growth[str(pid)] = {"cases": len(values), "first_MiB": round(values[tenth : 2 * tenth].mean() / 1024, 1),
                            "last_MiB": round(values[-tenth:].mean() / 1024, 1)}  # fmt: skip
    return {"cases": count, "seconds": round(total, 1), "workers": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few studies")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cohort.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    from tests.cohort.faults import fault_run

    count, steps, kills = (24, 15, 3) if options.quick else (200, 40, 20)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.part and options.out.exists() else {}
    results |= {"quick": options.quick, "machine": {"cores": os.cpu_count(), "python": platform.python_version()}}
    results["load_before"] = round(os.getloadavg()[0], 2)
    parts = options.part or [part for part in PARTS if part != "soak" or not options.quick]
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        if "scaling" in parts:
            workers = (1, 2) if options.quick else (1, 2, 4)
            results["scaling"] = {"studies": count, **scaling(base / "scaling", count, steps, workers)}
        if "faults" in parts:
            (base / "faults").mkdir()
            corrupt = 3 if options.quick else 10
            outcome = fault_run(base / "faults", studies=count, kills=kills, corrupt=corrupt, seconds=0.2)
            results["faults"] = asdict(outcome)
        if "soak" in parts:
            results["soak"] = soak(base, 100 if options.quick else 1000)
    results["load_after"] = round(os.getloadavg()[0], 2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
