"""One case on a worker: admitted when there is memory and disk, timed, committed or kept as failed; never raises."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from slice3d.cohort.cases import Case, content_sha256, study_files
from slice3d.cohort.job import CaseInput, Job
from slice3d.cohort.reasons import classify, explain
from slice3d.cohort.settings import CohortSettings
from slice3d.cohort.store import LASTING, Kind, Record, Store
from slice3d.cohort.table import rows_of
from slice3d.errors import InputError
from slice3d.pacs import is_address

log = logging.getLogger(__name__)

# exit status of a worker that ended itself because a case ran over its time
TIMED_OUT = 75


@dataclass(frozen=True, repr=False)
class Task:
    """All a worker needs to do one case. Nothing of it shows in the representation, which Dask may log."""

    case: Case
    out: str
    job: Job
    settings: CohortSettings
    run: str
    salt: bytes

    def __repr__(self) -> str:
        return f"Task({self.case.number})"


@dataclass
class Process:
    """What the cases running in one worker process share.

    gate: one inference at a time. running: cases begun in this process, by name, with the means to take their attempt
    back. memory_bytes, threads: what this process may use, None for no limit. end: how the process ends itself on a time-out.
    """

    memory_bytes: int | None = None
    threads: int | None = None
    end: Callable[[int], None] = os._exit
    gate: threading.Lock = field(default_factory=threading.Lock)
    running: dict[str, Callable[[], None]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    settled: bool = False

    def tidy(self) -> None:
        """Free what a case left in reference cycles: with images in them, the collector's own time is too late.

        What the first case imported and keeps is left out from then on, which makes this a matter of milliseconds.
        Free memory goes back to the system: else the allocator's arenas grow with every case.
        """
        gc.collect()
        _return_free_memory()
        with self.lock:
            if not self.settled and not self.running:
                gc.freeze()
                self.settled = True


def _return_free_memory() -> None:
    """What the C library keeps of freed memory goes back to the system, where it is glibc (malloc_trim(3))."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def do_case(task: Task, process: Process) -> Record:
    """Do one case, or find that it was done. Every end is a record."""
    store, started = Store(Path(task.out)), time.monotonic()
    name, key = _fallback_name(task), ""
    study = _Study(task)
    try:
        if task.case.problem:
            raise InputError(task.case.problem)
        digest, reference = study.sha256(), _reference_sha256(task.case, task.settings)
        name = task.case.label or _name(digest, task.case.series, reference)
        key = task.job.key(digest, task.case.series, reference)
        with store.holding(name):
            try:
                return _do_held(task, process, store, Record(name, key, "done", run=task.run), study)
            except Exception as error:  # kept while the case is held: a twin of it may be waiting
                return _keep_failure(store, _failed(error, task, study, Record(name, key, "failed"), started))
    except Exception as error:  # whatever it is, the cohort goes on and the row says why
        return _keep_failure(store, _failed(error, task, study, Record(name, key or name, "failed"), started))


def _failed(error: Exception, task: Task, study: _Study, record: Record, started: float) -> Record:
    kind = classify(error)
    log.info("case %s failed: %s", task.case.number, kind)
    reason = explain(error, study.path, study.files, Path(task.out))
    return replace(record, kind=kind, reason=reason, run=task.run, seconds=_since(started))


def _keep_failure(store: Store, record: Record) -> Record:
    with contextlib.suppress(OSError):  # a full disk must not hide why the case failed: the driver has the record too
        store.fail(record)
    return record


def _fallback_name(task: Task) -> str:
    digest = hashlib.sha256(task.salt + os.fsencode(task.case.source)).hexdigest()
    return task.case.label or f"unread-{digest[:13]}"


def _name(digest: str, series: str | None, reference: str) -> str:
    """What a case without a label is called: its content, so that a study is found again wherever it was moved."""
    return hashlib.sha256("\0".join((digest, series or "", reference)).encode()).hexdigest()[:20]


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


class _Study:
    """The images of a case: on a path, or in an archive from which they are fetched only when there is work to do."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._remote = is_address(task.case.source)
        self.path = Path(task.case.source)
        self.files: list[Path] = []

    def sha256(self) -> str:
        """Identity of the content. Raises `InputError` when there is none, or too much."""
        if self._remote:
            from slice3d.pacs import credentials, study_identity

            return study_identity(self._task.case.source, auth=credentials(os.environ))
        settings = self._task.settings
        limit = int(settings.max_study_gib * 2**30)
        self.files = study_files(self.path, max_files=settings.max_study_files, max_bytes=limit)
        return content_sha256(self.files)

    @contextlib.contextmanager
    def local(self) -> Iterator[Path]:
        """The study as a path."""
        if not self._remote:
            yield self.path
            return
        from slice3d.pacs import credentials, fetched

        limit = int(self._task.settings.max_study_gib * 2**30)
        with fetched(self._task.case.source, auth=credentials(os.environ), max_bytes=limit) as folder:
            self.path, self.files = folder, sorted(folder.iterdir())
            yield folder


def _reference_sha256(case: Case, settings: CohortSettings) -> str:
    if case.reference is None:
        return ""
    try:
        files = study_files(Path(case.reference), max_files=settings.max_study_files, max_bytes=8 * 2**30)
    except InputError as error:
        raise InputError(f"the reference of this case is not usable: {error}") from error
    return content_sha256(files)


def _do_held(task: Task, process: Process, store: Store, record: Record, study: _Study) -> Record:
    name, key = record.case, record.key
    done = store.finished(name, key)
    if done is not None:
        store.tidy(name)
        return done
    failed = store.failure(name, key)
    if failed is not None and ((failed.run == task.run and not backlog(failed.kind)) or _lasting(failed, task)):
        return failed
    _await_disk(store, task.settings)
    begun = store.begin_attempt(name, key)
    record = replace(record, attempts=begun)
    if begun > task.settings.deaths:
        reason = f"the worker process died {begun - 1} times on this case (out of memory, or a crash in a library)"
        dead = replace(record, status="failed", kind="crash", reason=reason, attempts=begun - 1)
        store.fail(dead)
        return dead
    started = time.monotonic()
    with _Watch(task, process, store, record), study.local() as source:
        _await_memory(process)
        result = store.staging(name) / "result"
        stages = _run(task, process, source, result, store.folder(name))
        record = replace(
            record, seconds=_since(started), rows=tuple(rows_of(result)), stages={**stages, **_timings(result)}
        )
        return store.commit(record, result)


def _lasting(failed: Record, task: Task) -> bool:
    return failed.kind in LASTING and not task.settings.retry_failed


def _run(task: Task, process: Process, source: Path, out: Path, previous: Path) -> Mapping[str, float]:
    share = None if process.memory_bytes is None else process.memory_bytes / 2**30
    reference = Path(task.case.reference) if task.case.reference else None
    case = CaseInput(source, task.case.series, reference, share, previous, process.threads)
    with _Gate(process.gate) as gate:
        task.job.function(case, out, gate)
        return {"waited_for_inference": round(gate.waited, 3)}


def _timings(folder: Path) -> dict[str, float]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {str(name): float(value) for name, value in manifest.get("timings_s", {}).items()}


class _Gate:
    """A `Progress` that lets one case at a time through the stage `segment`: others load and write meanwhile."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._held = lock, False
        self.waited = 0.0

    def __enter__(self) -> _Gate:
        return self

    def __exit__(self, *error: object) -> None:
        self._release()

    def __call__(self, stage: str, fraction: float, /) -> None:
        if stage == "segment" and fraction <= 0.0 and not self._held:
            started = time.monotonic()
            self._lock.acquire()
            self._held, self.waited = True, time.monotonic() - started
        elif stage == "surfaces":
            self._release()

    def _release(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()


class _Watch:
    """Ends the process when a case runs over its time: nothing else stops code that is inside a C library.

    The failure is on disk before the process ends, so that whoever gets the case next finds it decided; cases of the
    same process that are not to blame get their attempt back.
    """

    def __init__(self, task: Task, process: Process, store: Store, record: Record) -> None:
        self._limit, self._process, self._store, self._record = task.settings.timeout_s, process, store, record
        self._timer = threading.Timer(self._limit, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> None:
        name, key = self._record.case, self._record.key
        with self._process.lock:
            self._process.running[name] = lambda: self._store.take_back_attempt(name, key)
        self._timer.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        with self._process.lock:
            self._process.running.pop(self._record.case, None)

    def _expire(self) -> None:
        with self._process.lock:
            if self._record.case not in self._process.running:
                return
            reason = f"took longer than {self._limit:g} s; a larger --timeout or a crop would help"
            failure = replace(self._record, status="failed", kind="timeout", reason=reason, seconds=self._limit)
            _keep_failure(self._store, failure)
            for name, take_back in self._process.running.items():
                if name != self._record.case:
                    with contextlib.suppress(OSError):
                        take_back()
            self._process.end(TIMED_OUT)


def _await_disk(store: Store, settings: CohortSettings) -> None:
    """Wait for free space. Raises `InputError` with an `OSError` as its cause when none comes."""
    import errno

    needed = int(settings.min_free_gib * 2**30)
    deadline = time.monotonic() + settings.disk_wait_s
    while store.free_bytes() < needed:
        if time.monotonic() >= deadline:
            text = f"less than {settings.min_free_gib:g} GiB free for the results; free space or choose another --out"
            raise InputError(text) from OSError(errno.ENOSPC, "No space left on device")
        time.sleep(min(1.0, max(0.01, settings.disk_wait_s / 20)))


def _await_memory(process: Process) -> None:
    """A second case of one process waits until half of the process's memory is free, or it is alone."""
    import psutil

    if process.memory_bytes is None:
        return
    me = psutil.Process()
    while me.memory_info().rss > 0.5 * process.memory_bytes:
        with process.lock:
            if len(process.running) <= 1:
                return
        time.sleep(0.2)


def backlog(kind: Kind) -> bool:
    """Whether a failure of this kind is worth another try in the same run."""
    return kind == "resource"
