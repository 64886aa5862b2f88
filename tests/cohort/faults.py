"""A cohort on a cluster whose parts are killed at random, as a cluster manager would then start them again.

python -m tests.cohort.faults --studies 200 --kills 20 --corrupt 10
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slice3d.cohort import CohortSettings, Job, run_cohort
from tests.cohort.stubs import Stub, journal, make_cohort
from tests.pacs.orthanc import free_port

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What a fault run left. lost: good cases without a result; twice: good cases finished more than once."""

    studies: int
    corrupt: int
    worker_kills: int
    scheduler_restarts: int
    disk_full: int
    done: int
    failed: int
    lost: int
    twice: int
    without_reason: int
    begun_again: int
    leftovers: int
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
            "--name", f"w{number}-{time.monotonic_ns()}", "--memory-limit", "1GiB", "--death-timeout", "30",
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
def _saboteur(cluster: Cluster, out: Path, kills: int, restarts: int, total: int, seed: int) -> Iterator[Counter[str]]:
    """Kills evenly over the course of the work, at random moments."""
    choice, stop, done = random.Random(seed), threading.Event(), Counter[str]()
    deeds = ["worker"] * kills + ["scheduler"] * restarts
    choice.shuffle(deeds)

    def work() -> None:
        for n, deed in enumerate(deeds):
            while (
                len(list((out / "cases").glob("*"))) < total * n / (len(deeds) + 1)
                if (out / "cases").exists()
                else True
            ):
                if stop.wait(0.05):
                    return
            if stop.wait(choice.uniform(0.0, 0.4)):
                return
            cluster.kill_worker(choice) if deed == "worker" else cluster.kill_scheduler()
            done[deed] += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def fault_run(
    folder: Path,
    *,
    studies: int,
    kills: int,
    restarts: int = 1,
    corrupt: int = 10,
    seconds: float = 0.2,
    workers: int = 2,
) -> Outcome:
    """Do `studies` studies, `corrupt` of them damaged and one that meets a full disk, while things are killed."""
    words = [str(1000 + n) for n in range(studies - corrupt - 1)] + ["full-once"]
    words += [f"corrupt {n}" for n in range(corrupt)]
    random.Random(1).shuffle(words)
    cohort, out = make_cohort(folder / "in", words), folder / "out"
    settings = CohortSettings(deaths=10, min_free_gib=0.0, scheduler_wait_s=120.0, timeout_s=120.0)
    cluster, started = Cluster(folder, workers), time.monotonic()
    try:
        with _saboteur(cluster, out, kills, restarts, studies - corrupt, seed=2) as done:
            job = Job(Stub(str(folder / "journal"), seconds), "faults/1")
            settings = CohortSettings(**{**asdict(settings), "scheduler": cluster.address})
            result = run_cohort(cohort, out, job=job, execution=settings)
    finally:
        cluster.close()
    lines = journal(folder / "journal")
    ended = Counter(line[1] for line in lines if line[0] == "end")
    begun = Counter(line[1] for line in lines if line[0] == "begin" and line[1] != "corrupt")
    good = [word for word in words if "corrupt" not in word]
    table = result.table
    inner = out / ".slice3d"
    return Outcome(
        studies=studies, corrupt=corrupt, worker_kills=done["worker"], scheduler_restarts=done["scheduler"],
        disk_full=int((folder / "was-full").exists()), done=int((table.status == "done").sum()), failed=result.failed,
        lost=len(good) - len(list((out / "cases").iterdir())), twice=sum(ended[word] > 1 for word in good),
        without_reason=int((table[table.status == "failed"].reason.str.len() < 10).sum()),
        begun_again=sum(begun[word] - 1 for word in good if begun[word] > 1),
        leftovers=len([*(inner / "staging").iterdir(), *(inner / "attempts").iterdir(), *out.rglob(".slice3d-*")]),
        seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--corrupt", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = fault_run(
            Path(folder), studies=options.studies, kills=options.kills, corrupt=options.corrupt, seconds=options.seconds
        )
    return asdict(outcome)


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
