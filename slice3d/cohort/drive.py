"""The Dask side: a bounded number of tasks in flight, on a cluster of this machine or one that runs elsewhere.

Dask's own retries are not relied upon: the records on disk decide what is done, so a task may run any number of times.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from slice3d.cohort.settings import CohortSettings, gpus
from slice3d.cohort.store import Record
from slice3d.cohort.work import Task, backlog, do_case
from slice3d.errors import InputError, MissingExtraError

log = logging.getLogger(__name__)

_PLUGIN = "slice3d"
_POLL_S = 0.5
# what Dask raises, in the one or the other place, when futures went away with their scheduler
_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)


def perform(task: Task) -> Record:
    """Run on a worker by Dask: the case, with what this worker process shares."""
    from distributed import get_worker

    plugin: Any = get_worker().plugins[_PLUGIN]
    try:
        return do_case(task, plugin.process)
    finally:
        plugin.process.tidy()


def _plugin(settings: CohortSettings) -> Any:
    from slice3d.cohort.worker import CaseWorker

    if settings.scheduler is not None:
        return CaseWorker()
    share = settings.memory_bytes() // settings.workers
    return CaseWorker(memory_bytes=share, threads=settings.cores_per_worker(), gpus=gpus())


class _Connection:
    """A client that is made again after the scheduler was lost."""

    def __init__(self, settings: CohortSettings) -> None:
        self._settings = settings
        self._plugin = _plugin(settings)
        self._stack = contextlib.ExitStack()
        self._client: Any = None
        self._cluster: Any = None

    def client(self) -> Any:
        """A connected client. Raises `InputError` when no scheduler answers in time."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    def lose(self) -> None:
        """Drop a client whose scheduler went away."""
        with contextlib.suppress(Exception):
            self._stack.close()
        self._stack, self._client, self._cluster = contextlib.ExitStack(), None, None

    def heal(self) -> None:
        """Start a local worker again whose nanny gave up, as it does when the worker dies while it is starting."""
        if self._cluster is None:
            return
        for name, nanny in list(self._cluster.workers.items()):
            if nanny.status.name in ("closed", "failed"):
                del self._cluster.workers[name]
        if len(self._cluster.workers) < self._settings.workers:
            self._cluster.scale(self._settings.workers)

    def close(self) -> None:
        """Let go of the client, and of the cluster where it is ours."""
        self.lose()

    def _connect(self) -> Any:
        from distributed import Client

        address = self._settings.scheduler
        if address is None:
            try:
                self._cluster = self._stack.enter_context(_local_cluster(self._settings))
            except Exception as error:  # nothing of ours is running yet: trying again would meet the same
                raise InputError(
                    f"no worker processes can be started on this machine ({type(error).__name__}); free memory and "
                    "processes, or use fewer --workers"
                ) from error
            client = self._stack.enter_context(Client(self._cluster))
        else:
            client = self._reach(address)
        client.register_plugin(self._plugin, name=_PLUGIN)
        return client

    def _reach(self, address: str) -> Any:
        from distributed import Client

        deadline = time.monotonic() + self._settings.scheduler_wait_s
        while True:
            try:
                return self._stack.enter_context(Client(address, timeout=5))
            except (OSError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"no Dask scheduler answers at the address given within {self._settings.scheduler_wait_s:g} s; "
                        "start one with `dask scheduler` or leave --scheduler out"
                    ) from error
                time.sleep(1.0)
            except ValueError as error:
                raise InputError("the scheduler's address is not usable; expected e.g. tcp://host:8786") from error


@contextlib.contextmanager
def _local_cluster(settings: CohortSettings) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    threads = str(settings.cores_per_worker())
    options = {
        "distributed.scheduler.allowed-failures": 1_000_000,  # deaths are counted on disk, per case
        "distributed.deploy.lost-worker-timeout": "1h",  # a slow restart is not a lost worker
        "distributed.scheduler.worker-ttl": None,  # a library that holds the GIL for long is not dead
        "distributed.worker.memory.terminate": 0.95,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.monitor-interval": "50ms",
        # at its default pace Dask's own watching takes 6 % of a processor, most of it in waiting for the GIL
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "5s",
        "distributed.nanny.pre-spawn-environ": {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
        },
    }
    with (
        dask.config.set(options),
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=settings.threads_per_worker(),
            processes=True,
            memory_limit=settings.memory_bytes() // settings.workers,
            dashboard_address=None,
            # it serves HTTP all the same: on a free port, so that two runs on one machine do not meet
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            host="127.0.0.1",
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield cluster


def drive(tasks: Iterable[Task | None], settings: CohortSettings) -> Iterator[tuple[Task, Record]]:
    """Do all tasks and give each with its record as it ends; order is not kept. None among them: nothing right now.

    Raises `InputError` when no scheduler or no worker can be had, `MissingExtraError` when Dask is not installed.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("cohorts need Dask; run `pip install 'slice3d[cluster]'`") from error
    connection = _Connection(settings)
    try:
        yield from _drive(connection, tasks, settings)
    finally:
        connection.close()


def _drive(
    connection: _Connection, tasks: Iterable[Task | None], settings: CohortSettings
) -> Iterator[tuple[Task, Record]]:
    feed = _Feed(tasks)
    waiting: deque[Task] = deque()
    later: list[tuple[float, Task]] = []
    tries: dict[int, int] = {}
    active: dict[Any, Task] = {}
    crowd = _Crowd(settings)
    while waiting or later or active or not feed.ended:
        now = time.monotonic()
        waiting.extend(task for due, task in later if due <= now)
        later = [(due, task) for due, task in later if due > now]
        try:
            client = connection.client()
            window = 2 * crowd.threads(client, connection)
            waiting.extend(feed.take(window - len(active) - len(waiting)))
            while waiting and len(active) < window:
                task = waiting.popleft()
                active[_submit(client, task)] = task
            # outcomes too come from the scheduler: what is not here when it goes away is on disk, and found there
            ended = [(future, _outcome(future, active[future])) for future in _ended(active, _POLL_S)]
        except (OSError, TimeoutError, RuntimeError, *_CANCELLED) as error:
            log.warning("the scheduler was lost (%s); connecting again", type(error).__name__)
            ended = []
            waiting.extendleft(active.values())
            active.clear()
            connection.lose()
            time.sleep(_POLL_S)
        for future, record in ended:
            task = active.pop(future)
            if record is None:
                waiting.appendleft(task)
            elif backlog(record.kind) and tries.get(task.case.number, 0) < settings.retries:
                tries[task.case.number] = tries.get(task.case.number, 0) + 1
                later.append((time.monotonic() + 2.0 ** tries[task.case.number], task))
            else:
                yield task, record


class _Feed:
    """Tasks as they are needed: a cohort of any length costs the same memory."""

    def __init__(self, tasks: Iterable[Task | None]) -> None:
        self._tasks = iter(tasks)
        self.ended = False

    def take(self, count: int) -> Iterator[Task]:
        """Up to `count` tasks, fewer when there are none right now."""
        for _ in range(count):
            try:
                task = next(self._tasks)
            except StopIteration:
                self.ended = True
                return
            if task is None:
                return
            yield task


def _submit(client: Any, task: Task) -> Any:
    # pure=False: no key from the arguments, which would be a hash of names; retries belong to the records on disk
    return client.submit(perform, task, pure=False, key=f"case-{task.case.number}-{time.monotonic_ns()}")


def _ended(active: dict[Any, Task], seconds: float) -> list[Any]:
    from distributed import wait

    if not active:
        time.sleep(min(seconds, 0.1))
        return []
    with contextlib.suppress(TimeoutError):
        wait(list(active), timeout=seconds, return_when="FIRST_COMPLETED")
    ended = [future for future in active if future.status != "pending"]
    if any(future.status in ("cancelled", "lost") for future in ended):
        raise OSError("the scheduler forgot its tasks")
    return ended


def _outcome(future: Any, task: Task) -> Record | None:
    """The record of a finished task; None when its worker died and the task is to be given out again."""
    from distributed import KilledWorker

    if future.status == "finished":
        record: Record = future.result(timeout=60)
        return record
    error = future.exception(timeout=60)
    if isinstance(error, KilledWorker):
        return None
    reason = f"the worker could not run the case ({type(error).__name__}); are slice3d and its models the same there?"
    return Record(task.case.label or f"unread-{task.case.number}", "", "failed", "bug", reason, task.run)


class _Crowd:
    """How many cases the workers can run at once, asked for every few seconds."""

    def __init__(self, settings: CohortSettings) -> None:
        self._settings = settings
        self._asked = -1e9
        self._last_seen = time.monotonic()
        self._threads = 1

    def threads(self, client: Any, connection: _Connection) -> int:
        """Threads of all workers, at least 1. Raises `InputError` when there was no worker for too long."""
        now = time.monotonic()
        if now - self._asked > 2.0:
            self._asked = now
            connection.heal()
            count = sum(client.nthreads().values())
            if count:
                self._last_seen = now
            elif now - self._last_seen > self._settings.scheduler_wait_s:
                raise InputError(
                    f"no worker joined within {self._settings.scheduler_wait_s:g} s; start some with `dask worker`"
                )
            self._threads = max(1, count)
        return self._threads
