"""A cohort on a cluster whose parts are killed at random, as a cluster manager would then start them again.

The studies are DICOM with a known answer, the work is the real pipeline. `benchmarks/cohort.py --part faults` is the long
form.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from slice3d.cohort import CohortSettings, run_cohort
from tests.cohort.real import job, noted, write_cohort
from tests.pacs.orthanc import free_port

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What a fault run left.

    complete: good studies with exactly one result, whole and right; twice: good ones finished more than once (between the
    end of the work and the commit a worker may die); begun_again: good ones that were begun more than once;
    disk_full: how often the output's disk was filled until nothing could be written, 0 where no disk could be mounted.
    """

    studies: int
    corrupt: int
    worker_kills: int
    scheduler_restarts: int
    disk_full: int
    failed: int
    complete: int
    twice: int
    without_reason: int
    begun_again: int
    leftovers: tuple[str, ...]
    seconds: float


class Cluster:
    """A Dask scheduler and workers as processes of their own; what dies is started again."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._port = folder, free_port()
        self._log = (folder / "cluster.log").open("w")
        self.address = f"tcp://127.0.0.1:{self._port}"
        self._scheduler = self._start_scheduler()
        self._workers = [self._start_worker(n) for n in range(workers)]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._manager = threading.Thread(target=self._keep_up, daemon=True)
        self._manager.start()

    def _run(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", *arguments], env=environment, cwd=self._folder, stdout=self._log, stderr=self._log,
            start_new_session=True,
        )  # fmt: skip

    def _start_scheduler(self) -> subprocess.Popen[bytes]:
        return self._run(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self._port), "--no-dashboard"
        )

    def _start_worker(self, number: int) -> subprocess.Popen[bytes]:
        return self._run(
            "distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
            "--name", f"w{number}-{time.monotonic_ns()}", "--memory-limit", "3GiB", "--death-timeout", "30",
            "--local-directory", str(self._folder),
        )  # fmt: skip

    def _keep_up(self) -> None:
        while not self._stop.wait(0.1):
            with self._lock:
                if self._scheduler.poll() is not None:
                    self._scheduler = self._start_scheduler()
                for n, worker in enumerate(self._workers):
                    if worker.poll() is not None:
                        self._workers[n] = self._start_worker(n)

    def kill_worker(self, choice: random.Random) -> None:
        with self._lock:
            os.kill(choice.choice(self._workers).pid, signal.SIGKILL)

    def kill_scheduler(self) -> None:
        with self._lock:
            os.kill(self._scheduler.pid, signal.SIGKILL)

    def close(self) -> None:
        self._stop.set()
        self._manager.join()
        for process in (*self._workers, self._scheduler):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._log.close()


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[bool]:
    """A file system of `mib` MiB at `folder` where this may be mounted (Linux, root); gives whether it is."""
    folder.mkdir(parents=True, exist_ok=True)
    call = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "slice3d-test", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(call, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def fill(folder: Path, seconds: float) -> bool:
    """Leave not one byte on the disk of `folder` for a while; whether the system then said that it is full."""
    ballast, full = folder / "ballast", False
    try:
        with ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 65536)
    except OSError as error:
        full = error.errno == errno.ENOSPC
    time.sleep(seconds)
    ballast.unlink(missing_ok=True)
    return full


@contextlib.contextmanager
def _saboteur(cluster: Cluster, out: Path, deeds: list[str], total: int) -> Iterator[Counter[str]]:
    """Does the deeds evenly over the course of the work, at random moments."""
    choice, stop, done = random.Random(2), threading.Event(), Counter[str]()
    choice.shuffle(deeds)
    acts: dict[str, Callable[[], bool | None]] = {
        "worker": lambda: cluster.kill_worker(choice),
        "scheduler": cluster.kill_scheduler,
        "disk": lambda: fill(out.parent, 3.0),
    }

    def finished() -> int:
        return len(list((out / "cases").iterdir())) if (out / "cases").is_dir() else 0

    def work() -> None:
        for n, deed in enumerate(deeds, start=1):
            while finished() < total * n / (len(deeds) + 2):
                if stop.wait(0.05):
                    return
            if stop.wait(choice.uniform(0.0, 0.5)):
                return
            done[deed] += acts[deed]() is not False

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def fault_run(
    folder: Path, *, studies: int, kills: int, restarts: int = 1, corrupt: int = 10, workers: int = 2
) -> Outcome:
    """Do `studies` studies, `corrupt` of them damaged, while workers and the scheduler are killed and the disk fills.

    XDG_CACHE_HOME must name a folder with the model of `tests.cohort.real`.
    """
    volumes, notes = write_cohort(folder / "in", studies, corrupt=corrupt), folder / "notes"
    out, started = folder / "disk" / "out", time.monotonic()
    with small_disk(folder / "disk", 50 + 2 * studies) as limited:
        deeds = ["worker"] * kills + ["scheduler"] * restarts + ["disk"] * limited
        cluster = Cluster(folder, workers)
        try:
            with _saboteur(cluster, out, deeds, len(volumes)) as done:
                settings = CohortSettings(
                    scheduler=cluster.address, deaths=10, min_free_gib=0.0, scheduler_wait_s=300.0, timeout_s=600.0,
                    linkage=folder / "linkage.csv",
                )  # fmt: skip
                result = run_cohort(folder / "in", out, job=noted(notes, job()), execution=settings)
        finally:
            cluster.close()
        seconds = round(time.monotonic() - started, 1)
        lines = [line.split() for line in notes.read_text().splitlines()]
        begun, ended = (Counter(line[1] for line in lines if line[0] == what) for what in ("begin", "end"))
        failed = result.table[result.table.status == "failed"]
        inner = out / ".slice3d"
        left = [*(inner / "staging").iterdir(), *(inner / "attempts").iterdir(), *out.rglob(".slice3d-*")]
        return Outcome(
            studies=studies, corrupt=corrupt, worker_kills=done["worker"], scheduler_restarts=done["scheduler"],
            disk_full=done["disk"], failed=result.failed, complete=_complete(out, folder / "linkage.csv", volumes),
            twice=sum(ended[name] > 1 for name in volumes),
            without_reason=int((failed.reason.str.len() < 20).sum()),
            begun_again=sum(begun[name] > 1 for name in volumes),
            leftovers=tuple(str(path.relative_to(out)) for path in left), seconds=seconds,
        )  # fmt: skip


def _complete(out: Path, linkage: Path, volumes: dict[str, float]) -> int:
    """How many good studies have one result, with every file as its manifest says and the volume that is known."""
    link = pd.read_csv(linkage)
    cases = {Path(row.study).name: str(row.case) for row in link.itertuples()}
    count = 0
    for name, volume in volumes.items():
        folder = out / "cases" / cases[name]
        manifest = json.loads((folder / "manifest.json").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())
        whole = all(
            hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
            for file, digest in manifest["outputs"].items()
        )
        count += whole and abs(metrics["structures"]["liver"]["volume_ml"] - volume) < 0.01
    extra = {path.name for path in (out / "cases").iterdir()} - set(cases.values())
    return count - len(extra)
