"""What every worker process gets when it joins: its memory limit, its GPU and the state its cases share."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

from distributed import WorkerPlugin

from slice3d.cohort.work import Process

# code and constants of torch, VTK, ITK and the rest: 275 MiB resident after a case
_MAPPED_BYTES = 320 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class CaseWorker(WorkerPlugin):  # type: ignore[misc]
    """Dask calls `setup` in each worker process, also in one that replaces a dead one."""

    name = "slice3d"

    def __init__(
        self, *, memory_bytes: int | None = None, threads: int | None = None, gpus: tuple[str, ...] = ()
    ) -> None:
        self.memory_bytes = memory_bytes
        self.threads = threads
        self.gpus = gpus
        self.process: Process

    def __getstate__(self) -> dict[str, Any]:
        return {"memory_bytes": self.memory_bytes, "threads": self.threads, "gpus": self.gpus}

    def setup(self, worker: Any) -> None:
        """Pin the GPU, limit the memory; before the first case, so before torch is imported."""
        _keep_freed_memory()
        limit = self.memory_bytes if self.memory_bytes is not None else worker.memory_manager.memory_limit
        self.process = Process(memory_bytes=limit, threads=self.threads)
        number = str(worker.name)
        if len(self.gpus) > 1 and number.isdigit():
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[int(number) % len(self.gpus)]
        if limit is not None and not self.gpus:
            _limit_memory(limit)


def _keep_freed_memory() -> None:
    """Let the C library keep what a case frees for its next array, as it does in a process of its own.

    Dask starts workers with MALLOC_TRIM_THRESHOLD_=65536, with which every large array is a system call and page faults
    (ten times as many: a quarter of the time of short cases). What is kept is given back after the case. mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # what glibc's own, dynamic thresholds end up at
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def _limit_memory(limit: int) -> None:
    """Let allocations beyond the limit fail: a case then ends with a `MemoryError`, and the machine does not swap.

    RLIMIT_DATA counts private writable memory (Linux 4.7 and later), to which what is mapped from files comes on top.
    CUDA reserves far more than it uses: no limit there.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit -= min(_MAPPED_BYTES, limit // 4)
    wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    if soft == resource.RLIM_INFINITY or wanted < soft:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
