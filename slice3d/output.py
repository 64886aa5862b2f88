"""A folder of results that appears all at once or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from slice3d.errors import InputError


@contextmanager
def private_folder(home: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `home` for this run alone, removed at the end; what killed runs left there is removed first.

    A run holds a lock on its folder, which the system lets go of when the process ends in whatever way: no clock and no
    process number says whether a folder is still in use.
    """
    for left in home.glob(f"{prefix}*"):
        if left.is_dir() and not left.is_symlink():
            with _lock(left, wait=False) as dead:
                if dead:
                    shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{prefix[:-1]}~", dir=home))
    with _lock(made, wait=False):
        folder = made.with_name(made.name.replace(f"{prefix[:-1]}~", prefix, 1))
        made.rename(folder)  # under its final name only once it is locked: nobody takes it for a dead one
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a folder; gives whether it is held. Where there are no such locks, it is not."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield False
        return
    try:
        held = False
        with contextlib.suppress(OSError):  # another run's, or a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        yield held
    finally:
        os.close(handle)


class Transaction:
    """Collects files in a hidden folder beside `out`, or in `out` where it exists; `commit` moves them into `out`.

    Nothing in `out` changes before `commit`. On commit, files that an earlier run listed in its `manifest.json` and
    that this run did not write again are removed, so that no stale result is left beside new ones; files that slice3d
    did not make are kept. Raises `InputError` when `out` cannot be written to, before any work is done.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = Path()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Transaction:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out.name!r} is a file; expected a folder for the results; choose another --out")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            # Inside a folder that is there: it may be a mounted volume or a link to another disk, to which nothing can
            # be moved from beside it, and its parent may be read-only.
            home = self.out if self.out.is_dir() else self.out.parent
            self.folder = self._stack.enter_context(private_folder(home, ".slice3d-"))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"cannot write to {self.out}: {reason}; choose a writable folder with --out") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
            raise InputError(
                f"could not write the results to {self.out}: {reason}; free space or choose another --out"
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON document; NaN and infinity are refused because JSON has none."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        (self.folder / name).write_text(text + "\n", encoding="utf-8")

    def hashes(self) -> dict[str, str]:
        """File name → SHA-256 of everything written so far."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): _sha256(path) for path in files}

    def commit(self) -> None:
        """Move everything into `out`. Of two runs that end at the same time, the later one replaces all of the other."""
        self.folder.chmod(0o755)
        with contextlib.suppress(OSError):  # it is there, or came while we worked
            if not self.out.exists():
                self.folder.rename(self.out)
                return
        with _lock(self.out, wait=True):
            self._move()

    def _move(self) -> None:
        stale = self._listed_before()
        # The manifest goes last: while files are being moved, the old one must not vouch for new results.
        names = sorted((p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file()), key=_manifest_last)
        (self.out / "manifest.json").unlink(missing_ok=True)
        for name in names:
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).replace(self.out / name)
            stale.discard(name.as_posix())
        for old in stale:
            if not (self.out / old).is_dir():
                (self.out / old).unlink(missing_ok=True)

    def _listed_before(self) -> set[str]:
        try:
            listed = json.loads((self.out / "manifest.json").read_text(encoding="utf-8"))["outputs"]
            names = {str(name) for name in listed}
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        return {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}


def _manifest_last(name: Path) -> tuple[bool, str]:
    return name.name == "manifest.json", name.as_posix()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
