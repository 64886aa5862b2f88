"""Where bytes come from (a file or a member of a .zip) and where they go (written beside, then moved into place)."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import threading
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from slice3d.errors import InputError

# A deflate stream cannot expand more than 1032-fold; medical images stay well below 100-fold.
MAX_EXPANSION = 200
MAX_SMALL_MEMBER = 64 * 2**20
MAX_ZIP_BYTES = 64 * 2**30
MAX_ENTRIES = 500_000


@dataclass(frozen=True, slots=True)
class FileRef:
    """A readable thing: a file on disk, or the member `member` of the .zip at `path`."""

    path: str
    member: str = ""

    @property
    def name(self) -> str:
        """The last part of the name, safe to show."""
        return PurePosixPath(self.member).name if self.member else Path(self.path).name

    @property
    def folder(self) -> str:
        """What files of one folder share."""
        return f"{self.path}!{PurePosixPath(self.member).parent}" if self.member else str(Path(self.path).parent)

    def size(self) -> int:
        """Number of bytes (of the uncompressed member)."""
        if not self.member:
            return Path(self.path).stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(self.member).file_size

    def open(self) -> BinaryIO:
        """A seekable binary stream; members of a .zip are unpacked in memory, never to disk."""
        if not self.member:
            return Path(self.path).open("rb")
        with zipfile.ZipFile(self.path) as archive:
            return io.BytesIO(read_member(archive, self.member))


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of one member. Raises `InputError` when it is encrypted or damaged."""
    label = PurePosixPath(name).name
    try:
        return archive.read(name)
    except Exception as error:  # zlib, lzma and zipfile errors have no common base
        encrypted = isinstance(error, RuntimeError) and "password" in str(error)
        reason = "is encrypted" if encrypted else "is damaged"
        raise InputError(f"{label} in the .zip {reason}; expected a plain archive; pack the study again") from error


def check_zip(archive: zipfile.ZipFile, label: str) -> list[zipfile.ZipInfo]:
    """The members worth reading. Raises `InputError` for names that leave the archive and for absurd expansion."""
    members = [m for m in archive.infolist() if not m.is_dir()]
    if len(members) > MAX_ENTRIES:
        raise InputError(f"{label} holds {len(members)} files; expected at most {MAX_ENTRIES}")
    total = 0
    for member in members:
        name = member.filename.replace("\\", "/")
        if name.startswith("/") or ".." in PurePosixPath(name).parts or (len(name) > 1 and name[1] == ":"):
            raise InputError(f"{label} holds a file name that leads outside the archive; expected plain relative names")
        total += member.file_size
        bomb = member.file_size > MAX_EXPANSION * max(member.compress_size, 1)
        if bomb and member.file_size > MAX_SMALL_MEMBER:
            raise InputError(
                f"{label} expands {member.file_size // max(member.compress_size, 1)}-fold; "
                f"expected at most {MAX_EXPANSION}-fold for a study; unpack it yourself if you trust it"
            )
    packed = sum(m.compress_size for m in members)
    if total > MAX_ZIP_BYTES or (total > MAX_EXPANSION * max(packed, 1) and total > MAX_SMALL_MEMBER):
        raise InputError(
            f"{label} expands to {total / 2**30:.1f} GiB; expected a study; unpack it yourself if you trust it"
        )
    return members


class Opener:
    """Opens many `FileRef`s and keeps each .zip open in between. Threads may share one."""

    def __init__(self) -> None:
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *error: object) -> None:
        for archive in self._archives.values():
            archive.close()

    def open(self, file: FileRef) -> BinaryIO:
        """A seekable binary stream."""
        if not file.member:
            return Path(file.path).open("rb")
        with self._lock:
            if file.path not in self._archives:
                self._archives[file.path] = zipfile.ZipFile(file.path)
        return io.BytesIO(read_member(self._archives[file.path], file.member))


def text_path(path: Path) -> str:
    """The path for libraries that take nothing but UTF-8 (ITK ends the process otherwise).

    Raises `InputError` for a name that is not.
    """
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the name of a {path.suffix} file or of its folder is not UTF-8, which its format's library needs; rename it"
        ) from error
    return os.fspath(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of other libraries about what is in a file; ours are findings. Once around a pool of threads, not
    in each: the filters belong to the whole process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path` that is renamed to `path` when the block ends well, else removed.

    Raises `InputError` when the folder does not exist or cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(
            f"folder {path.parent.name!r} does not exist; expected one to write {path.name} into; create it first"
        )
    part = path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}.part"
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path.name}: {error.strerror or error}; choose a folder you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
