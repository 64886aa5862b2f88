"""A folder that studies are sent to: each is done when nothing changed in it for a while, and again if more comes."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from slice3d.cohort.cases import Case, check_apart, find_cases
from slice3d.cohort.drive import drive
from slice3d.cohort.job import Job
from slice3d.cohort.run import write_all
from slice3d.cohort.settings import CohortSettings
from slice3d.cohort.store import Record, Store
from slice3d.cohort.work import Task
from slice3d.errors import InputError

log = logging.getLogger(__name__)

# what senders call a file that is not whole yet
_PARTIAL = (".part", ".partial", ".tmp", ".filepart", ".crdownload", ".download", ".incomplete")

_Snapshot = tuple[tuple[bytes, int, int], ...]


@dataclass(frozen=True)
class WatchSettings:
    """settle_s: how long a study must not change before it is taken for whole; poll_s: how often to look."""

    settle_s: float = 30.0
    poll_s: float = 2.0

    def __post_init__(self) -> None:
        if self.settle_s <= 0 or self.poll_s <= 0:
            raise InputError("settle_s and poll_s are not both positive; expected seconds")


@dataclass
class _Seen:
    """What is known of one study in the inbox. since: when it last changed, on this process's own clock."""

    number: int
    snapshot: _Snapshot = ()
    since: float = 0.0
    given_out: _Snapshot | None = None


def watch(
    inbox: Path | str,
    out: Path | str,
    *,
    job: Job,
    settings: WatchSettings | None = None,
    execution: CohortSettings | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Do what arrives in `inbox` (one folder or file per study) until `stop`, and give each record as it ends.

    A study is called by a hash of its folder's name, so that what arrives later replaces the result of what came first.
    The table and the page in `out` are up to date after every case. Raises `InputError` when `inbox` is not a folder or
    `out` cannot be written.
    """
    inbox, out = Path(inbox), Path(out)
    settings, execution = settings or WatchSettings(), (execution or CohortSettings()).with_budget()
    if not inbox.is_dir():
        raise InputError(f"{inbox.name!r} is not a folder; expected the folder that studies are sent to")
    check_apart(inbox, out)
    store = Store(out)
    store.prepare()
    with store.driving():
        inbound = _Inbox(inbox, store.salt(), settings)
        template = Task(Case(0, ""), str(out.resolve()), job, execution, "", inbound.salt)
        records: dict[int, Record] = {}
        for task, record in drive(inbound.tasks(template, stop), execution):
            records[task.case.number] = record
            write_all(store, inbound.cases(), records, execution)
            yield record


@dataclass
class _Inbox:
    folder: Path
    salt: bytes
    settings: WatchSettings
    seen: dict[str, _Seen] = field(default_factory=dict)

    def cases(self) -> tuple[Case, ...]:
        """Everything that was ever met, whole or not."""
        return tuple(Case(seen.number, source) for source, seen in self.seen.items())

    def tasks(self, template: Task, stop: Callable[[], bool]) -> Iterator[Task | None]:
        """Studies that settled; None while there is none."""
        looked = -1e9
        while not stop():
            if time.monotonic() - looked < self.settings.poll_s:
                yield None
                continue
            looked = time.monotonic()
            for case in self._settled():
                yield replace(template, case=case, run=secrets.token_hex(8))
            yield None

    def _settled(self) -> Iterator[Case]:
        try:
            cases = find_cases(self.folder)
        except InputError:  # nothing there yet
            return
        now = time.monotonic()
        for case in cases:
            seen = self.seen.setdefault(case.source, _Seen(len(self.seen) + 1))
            snapshot = _snapshot(Path(case.source))
            if snapshot is None or snapshot != seen.snapshot:
                seen.snapshot, seen.since = snapshot or (), now
            elif snapshot and snapshot != seen.given_out and now - seen.since >= self.settings.settle_s:
                seen.given_out = snapshot
                label = hashlib.sha256(self.salt + os.fsencode(Path(case.source).name)).hexdigest()[:20]
                yield replace(case, number=seen.number, label=label)


def _snapshot(source: Path) -> _Snapshot | None:
    """Names, sizes and times of the files of a study; None while one is being written or the study is moving."""
    found: list[tuple[bytes, int, int]] = []
    paths = [source] if source.is_file() else sorted(source.rglob("*"), key=os.fsencode)
    for path in paths:
        if path.name.lower().endswith(_PARTIAL):
            return None
        try:
            if path.is_file():
                status = path.stat()
                found.append((os.fsencode(path), status.st_size, status.st_mtime_ns))
        except OSError:  # it went away, or is being replaced
            return None
    return tuple(found)
