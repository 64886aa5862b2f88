"""What every worker process gets when it joins: its memory limit, its GPU and the state its cases share."""

from __future__ import annotations

import os
from typing import Any

from distributed import WorkerPlugin

from slice3d.allocator import keep_freed_memory
from slice3d.cohort.work import Process

# code and constants of torch, VTK, ITK and the rest: 275 MiB resident after a case
_MAPPED_BYTES = 320 << 20


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
        # Dask starts workers with MALLOC_TRIM_THRESHOLD_=65536: ten times as many page faults, a quarter of the time of
        # short cases; what is kept is given back after the case
        keep_freed_memory()
        limit = self.memory_bytes if self.memory_bytes is not None else worker.memory_manager.memory_limit
        self.process = Process(memory_bytes=limit, threads=self.threads)
        number = str(worker.name)
        if len(self.gpus) > 1 and number.isdigit():
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[int(number) % len(self.gpus)]
        if limit is not None and not self.gpus:
            _limit_memory(limit)


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
