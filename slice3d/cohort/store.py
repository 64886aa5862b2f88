"""A cohort's output folder: finished cases, failures, attempts and locks, consistent after a kill at any instant.

    OUT/cases/<case>/             results of one case and its `case.json`, renamed into place as a whole
    OUT/.slice3d/staging/<case>/  what is being made; belongs to whoever holds the case's lock
    OUT/.slice3d/failed/<case>.json, attempts/<case>.json, locks/<case>

The one moment a case becomes finished is a rename of its folder. Decisions never depend on clocks.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from slice3d.errors import InputError

RECORD = "case.json"
Kind = Literal["", "input", "model", "quality", "resource", "memory", "timeout", "crash", "bug"]
# what the same content and settings would meet again; everything else is worth another try in the next run
LASTING: frozenset[str] = frozenset({"input", "model", "quality"})


@dataclass(frozen=True)
class Record:
    """How a case ended. rows: one per structure; reason: one line without names of files or persons; sizes: bytes of
    each file of the result.
    """

    case: str
    key: str
    status: Literal["done", "failed"]
    kind: Kind = ""
    reason: str = ""
    run: str = ""
    seconds: float = 0.0
    attempts: int = 1
    rows: tuple[Mapping[str, Any], ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            **asdict(self), "rows": [dict(row) for row in self.rows], "stages": dict(self.stages),
            "sizes": dict(self.sizes),
        }  # fmt: skip


def _record(path: Path) -> Record | None:
    """The record in a file, None when there is none or it is not whole."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["rows"] = tuple(values["rows"])
        return Record(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Store:
    """The output folder of a cohort, as drivers and workers see it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.inner = out / ".slice3d"

    def prepare(self) -> None:
        """Make the folders. Raises `InputError` when `out` cannot be written to."""
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out.name!r} is a file; expected a folder for the results; choose another --out")
        try:
            for folder in (self.out / "cases", *(self.inner / n for n in ("staging", "failed", "attempts", "locks"))):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.inner / "probe"
            probe.write_text("")
            probe.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(
                f"cannot write to {self.out.name!r}: {reason}; choose a writable folder with --out"
            ) from error

    def salt(self) -> bytes:
        """Random bytes of this cohort, so that hashed names cannot be looked up by whoever knows the names.

        Call it while `driving`.
        """
        path = self.inner / "salt"
        with suppress(FileNotFoundError):
            if len(salt := path.read_bytes()) == 16:
                return salt
        part = _part(path)
        part.write_bytes(secrets.token_bytes(16))
        part.replace(path)
        return path.read_bytes()

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Be the only run into this folder. Raises `InputError` when another one is at it."""
        import filelock

        lock = filelock.FileLock(self.inner / "run.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise InputError(
                f"another run is writing to {self.out.name!r}; expected one at a time; wait for it or change --out"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def holding(self, case: str) -> Iterator[None]:
        """Be the only worker at this case; waits. The system frees the lock of a process that dies."""
        import filelock

        with filelock.FileLock(self.inner / "locks" / case):
            yield

    def folder(self, case: str) -> Path:
        """Where the results of a finished case are."""
        return self.out / "cases" / case

    def finished(self, case: str, key: str) -> Record | None:
        """The record of a case that is done with this very key, all files there; call it while holding the case."""
        self._recover(case)
        record = _record(self.folder(case) / RECORD)
        if record is None or record.key != key or record.status != "done":
            return None
        if any(_size(self.folder(case) / name) != size for name, size in record.sizes.items()):
            return None  # deleted by hand, or lost with the power
        self._clear(case)
        return record

    def _recover(self, case: str) -> None:
        """Finish what a kill interrupted between the two renames of `_publish`, or before them."""
        staging = self.inner / "staging" / case
        if _record(staging / "result" / RECORD) is not None:
            self._publish(case, staging / "result")
        else:
            self._put_back(case)

    def _put_back(self, case: str) -> None:
        old = self.inner / "staging" / case / "old"
        if old.exists() and not self.folder(case).exists():
            old.rename(self.folder(case))

    def _clear(self, case: str) -> None:
        """Remove what belongs to a case that is not finished."""
        shutil.rmtree(self.inner / "staging" / case, ignore_errors=True)
        for folder in ("failed", "attempts"):
            for path in (self.inner / folder / f"{case}.json", _part(self.inner / folder / f"{case}.json")):
                path.unlink(missing_ok=True)

    def tidy(self, case: str) -> None:
        """Remove what a worker that died right after committing a case left of it. Call it while holding the case."""
        self._clear(case)

    def failure(self, case: str, key: str) -> Record | None:
        """How the last try of this case with this key failed."""
        record = _record(self.inner / "failed" / f"{case}.json")
        return record if record is not None and record.key == key else None

    def staging(self, case: str) -> Path:
        """A fresh, empty folder to work in; what a killed worker left is removed. Call it while holding the case."""
        folder = self.inner / "staging" / case
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, record: Record, result: Path) -> Record:
        """Make `result`, a folder inside the staging folder, the results of the case, all at once; the record kept."""
        sizes = {p.relative_to(result).as_posix(): p.stat().st_size for p in sorted(result.rglob("*")) if p.is_file()}
        record = replace(record, sizes=sizes)
        _write_json(result / RECORD, record.to_dict())
        self._publish(record.case, result)
        return record

    def _publish(self, case: str, result: Path) -> None:
        final, old = self.folder(case), self.inner / "staging" / case / "old"
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        result.rename(final)
        self._clear(case)

    def fail(self, record: Record) -> None:
        """Keep why a case failed; results of an earlier, successful run with other settings stay as they are.

        Call it while holding the case.
        """
        self._put_back(record.case)
        shutil.rmtree(self.inner / "staging" / record.case, ignore_errors=True)  # first: it may free the space needed
        _write_json(self.inner / "failed" / f"{record.case}.json", record.to_dict())
        (self.inner / "attempts" / f"{record.case}.json").unlink(missing_ok=True)

    def begin_attempt(self, case: str, key: str) -> int:
        """Count a try that has begun; a try that ends in any way but the death of its process is taken back."""
        path = self.inner / "attempts" / f"{case}.json"
        count = self._attempts(path, key) + 1
        _write_json(path, {"key": key, "begun": count}, durable=False)
        return count

    def take_back_attempt(self, case: str, key: str) -> None:
        """Undo `begin_attempt`: the case is not to blame for what ended it."""
        path = self.inner / "attempts" / f"{case}.json"
        count = self._attempts(path, key) - 1
        if count > 0:
            _write_json(path, {"key": key, "begun": count}, durable=False)
        else:
            path.unlink(missing_ok=True)

    def _attempts(self, path: Path, key: str) -> int:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return int(values["begun"]) if values["key"] == key else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def free_bytes(self) -> int:
        """Free space where the results go."""
        return shutil.disk_usage(self.out).free

    def cases(self) -> list[str]:
        """Names of all finished cases."""
        return sorted(path.name for path in (self.out / "cases").iterdir() if (path / RECORD).is_file())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _part(path: Path) -> Path:
    """Where a document is written first: always the same place, so that what a kill leaves is found."""
    return path.with_name(f".{path.name}.part")


def _write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write a document that is there whole or not at all; a durable one also after the power fails."""
    part = _part(path)
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, allow_nan=False)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
