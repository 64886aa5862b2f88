"""How a cohort is executed. Nothing here changes a result, so nothing here is part of a case's key."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path

from slice3d.errors import InputError


@dataclass(frozen=True)
class CohortSettings:
    """Execution of a cohort.

    workers: processes on this machine, or scheduler: address of a running Dask scheduler (`"tcp://host:8786"`).
    memory_gib: budget of all local workers together (default: 80 % of what is free); each gets an equal share as a hard
    limit. threads: cases at once in one worker, whose loading and writing then overlap with another's inference
    (default: 2 where there is a GPU, else 1). timeout_s: per case. retries: how often a case is tried again in one run
    after the disk or the network failed; deaths: how many workers may die on a case before it is given up.
    min_free_gib: free space below which cases wait up to disk_wait_s and then fail. retry_failed: try cases again that
    failed because of their content. linkage: file outside the output folder that gets the table case → study.
    max_study_gib, max_study_files: larger studies are refused.
    """

    workers: int = 1
    scheduler: str | None = None
    memory_gib: float | None = None
    threads: int | None = None
    timeout_s: float = 3600.0
    retries: int = 3
    deaths: int = 4
    min_free_gib: float = 0.5
    disk_wait_s: float = 60.0
    retry_failed: bool = False
    linkage: Path | None = None
    scheduler_wait_s: float = 300.0
    max_study_gib: float = 32.0
    max_study_files: int = 100_000

    def __post_init__(self) -> None:
        for name in ("workers", "timeout_s", "deaths", "max_study_gib", "max_study_files", "scheduler_wait_s"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a positive number")
        for name in ("retries", "min_free_gib", "disk_wait_s"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("memory_gib", "threads"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} is {value}; expected a positive number")

    def memory_bytes(self) -> int:
        """The budget of all local workers together, in bytes."""
        if self.memory_gib is not None:
            return int(self.memory_gib * 2**30)
        import psutil

        return int(0.8 * psutil.virtual_memory().available)

    def with_budget(self) -> CohortSettings:
        """The same with the memory budget settled, so that what is printed is what is enforced."""
        return replace(self, memory_gib=self.memory_bytes() / 2**30)

    def threads_per_worker(self) -> int:
        """Cases at once in one worker."""
        if self.threads is not None:
            return self.threads
        return 2 if gpus() else 1

    def cores_per_worker(self) -> int:
        """How many cores each local worker's computations use: together no more than there are."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.workers)

    def budget(self) -> str:
        """The memory budget in words, as it is printed."""
        total = self.memory_bytes() / 2**30
        return f"memory budget {total:.1f} GiB: {self.workers} × {total / self.workers:.2f} GiB, enforced per worker"


def gpus() -> tuple[str, ...]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without importing torch."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:  # a queueing system's word; whatever follows an invalid entry is invisible
        names = [name.strip() for name in allowed.split(",")]
        return tuple(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))
    if not Path("/dev").is_dir():
        return ()
    return tuple(sorted((p.name[6:] for p in Path("/dev").glob("nvidia*") if p.name[6:].isdigit()), key=int))
